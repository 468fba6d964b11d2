"""The benchmark of the convolution: both ways on the same sheet."""

from __future__ import annotations

import json
import sys

import pytest

from scripts import benchmark_convolution


def test_both_ways_are_timed_and_agree(tmp_path, monkeypatch, capsys):
    path = tmp_path / "convolution.json"
    monkeypatch.setattr(benchmark_convolution, "POTENTIALS", ("sevennet-0",))
    monkeypatch.setattr(benchmark_convolution, "CELLS", (1, 2))
    monkeypatch.setattr(sys, "argv", ["benchmark_convolution", "--repeats", "2", "--output", str(path)])
    benchmark_convolution.main()
    rows = json.loads(path.read_text())["potentials"]["sevennet-0"]
    assert list(rows) == ["4", "13"] and "sevennet-0, 13 atoms" in capsys.readouterr().out
    for row in rows.values():
        assert row["speed_up"] == pytest.approx(row["e3nn_seconds"] / row["fast_seconds"], rel=0.1)
        assert row["energy_difference_ev"] < 1e-3 and row["largest_force_difference_ev_per_angstrom"] < 1e-4
    assert benchmark_convolution.with_hydrogen(3).get_chemical_formula() == "HMo9S18"
