"""The benchmark of relaxations: every way from the same starts."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from ase.build import fcc111

from energetics.relaxation import CURVATURE, MAX_STEP
from scripts import benchmark_relaxation
from tests.energetics.test_hydrogen_relaxation import EMT_POTENTIAL


def test_every_way_is_counted(tmp_path, monkeypatch, capsys):
    path = tmp_path / "relaxation.json"
    monkeypatch.setattr(benchmark_relaxation, "load_potential", lambda name: EMT_POTENTIAL)
    monkeypatch.setattr(benchmark_relaxation, "read", lambda path, index: [copper() for _ in range(3)])
    monkeypatch.setattr(benchmark_relaxation, "read_cif", lambda path: copper())
    monkeypatch.setattr(sys, "argv", ["benchmark_relaxation", "--sheets", "2", "--output", str(path)])
    benchmark_relaxation.main()
    table, shown = json.loads(path.read_text()), capsys.readouterr().out
    assert (CURVATURE, MAX_STEP) in benchmark_relaxation.WAYS, "that which the judges take is among them"
    for part in ("hydrogen", "sheets"):
        assert table[part]["starts"] == 2 and f"{part}: 2 starts" in shown
        ways = table[part]["ways"]
        assert len(ways) == len(benchmark_relaxation.WAYS) and ways[0]["median_speed_up"] == 1.0
        assert min(way["mean_energy_above_lowest_ev"] for way in ways) == pytest.approx(0, abs=1e-3)
        assert all(way["steps"] > 0 and not way["not_converged"] for way in ways)


def copper():
    atoms = fcc111("Cu", (1, 1, 2), vacuum=8.0)
    atoms.positions += np.random.default_rng(0).normal(scale=0.1, size=(2, 3))
    atoms.pbc = (True, True, False)
    atoms.info["e_above_hull_ev"] = 0.0
    return atoms
