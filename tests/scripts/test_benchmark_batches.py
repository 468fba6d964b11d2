"""The benchmark of batches: what it draws, how many structures it takes, and its table."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from pipeline.files import PROJECT_DIR
from scripts import benchmark_batches

DATABASE = PROJECT_DIR / "data" / "demo_c2db.db"


@pytest.mark.parametrize("kind", benchmark_batches.STEPS)
def test_longer_lists_begin_with_shorter_ones(kind):
    few, more = (benchmark_batches.drawn(kind, count, DATABASE, 1) for count in (2, 5))
    assert len(more) == 5 and all((a.positions == b.positions).all() for a, b in zip(few, more, strict=False))
    assert all(tuple(atoms.pbc) == (True, True, False) for atoms in more)
    assert all(len(atoms.constraints) == (kind == "hydrogen") for atoms in more)
    assert kind == "bare" or all(atoms.numbers[-1] == 1 for atoms in more)


def test_time_bounds_the_number_of_structures():
    count = benchmark_batches.number_to_relax
    assert count(32, 16, 0.01, 60) == 64 and count(1, 16, 0.01, 60) == 16, "enough time"
    assert count(32, 16, 1.0, 40) == 40 and count(32, 16, 1.0, 20) == 32, "at least one batch"
    assert count(32, 16, 1.0, 10) == 0, "none that takes more than twice the time"


def test_energies_are_compared_where_both_ways_converged():
    found = benchmark_batches.drawn("bare", 3, DATABASE, 0)

    def results(energies, converged):
        pairs = zip(found, energies, converged, strict=True)
        return [benchmark_batches.Relaxation(atoms, e * len(atoms), ok, 1, "ok") for atoms, e, ok in pairs]

    compared = benchmark_batches.agreement(results([1.0, 2.0, 3.0], [True] * 3), results([1.001, 2.01, 9.0], [True, True, False]))
    assert compared == {"compared": 2, "largest_difference_mev_per_atom": 10.0, "share_within_5_mev_per_atom": 0.5}
    assert benchmark_batches.agreement([], []) == {"compared": 0}


def test_both_kinds_are_measured_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_batches, "STEPS", {"bare": 1, "hydrogen": 1})
    monkeypatch.setattr(benchmark_batches, "WARM_STEPS", 0)
    options = ["--single", "1", "--batches", "2", "--device", "cpu", "--output", str(tmp_path / "batches.json")]
    monkeypatch.setattr(sys, "argv", ["x", *options])
    benchmark_batches.main()
    table = json.loads((tmp_path / "batches.json").read_text())
    assert table["machine"]["cores"] >= 1 and table["machine"]["gpu"] is None and list(table["kinds"]) == ["bare", "hydrogen"]
    for found in table["kinds"].values():
        assert found["one_by_one"]["structures"] == 1 and found["batches"]["2"]["structures"] == 4
        assert found["batches"]["2"]["speed_up"] > 0 and np.isfinite(found["batches"]["2"]["evaluations_per_s"])
    assert len(capsys.readouterr().out.splitlines()) == 4
