"""The soak run, on few candidates, and what may not grow with their number."""

from __future__ import annotations

import json

import pytest
import simple_judges as simple
import soak

from energetics import hull
from pipeline.loading import load_config

IDENTITY = {"potential": {"name": "springs"}}


def test_memory_is_recorded_and_a_second_start_judges_only_what_is_new(tmp_path):
    simple.write_cifs(tmp_path / "given", {"a": simple.sheet(), "b": simple.sheet("WS2"), "c": simple.graphene_sheet()})
    output = tmp_path / "soak.json"
    cfg = load_config(None, ["evaluation.workers=1", "evaluation.bootstrap=10"])
    first = soak.soak(cfg, tmp_path / "given", 8, output, 2, simple.judges, IDENTITY, settled=2)
    assert [row["finished"] for row in first["rows"]] == [2, 4, 6, 8, 8]
    assert all(row["main_mib"] > 30 and row["workers_mib"] > 30 and len(row["worker_pids"]) == 1 for row in first["rows"])
    assert first["slope_main_mib_per_1000"] is not None and len(list((tmp_path / "soak_work" / "cifs").glob("*.cif"))) == 8
    second = soak.soak(cfg, tmp_path / "given", 10, output, 1, simple.judges, IDENTITY)
    assert [row["finished"] for row in second["rows"]] == [1, 2, 2]
    assert len(json.loads(output.read_text())["runs"]) == 2


def test_slope_by_hand():
    rows = [{"finished": n, "x": 100.0 if n < 100 else 50 + 0.01 * n} for n in range(0, 500, 50)]
    assert soak.slope(rows, "x") == pytest.approx(10.0)
    assert soak.slope(rows[:3], "x") is None


def test_phase_diagrams_in_memory_are_bounded():
    """A worker meets a new set of elements with every other candidate."""
    elements = ["Mo", "W", "Ti", "Zr", "Hf", "V", "Nb", "Ta", "Cr", "S", "Se", "Te", "O"]
    phases = [hull.ReferencePhase(element, -1.0 - k, "element") for k, element in enumerate(elements)]
    references = hull.References({"name": "x", "sha256": "x"}, phases)
    for first in elements:
        for second in elements:
            assert references.hull_energy(f"{first}{second}" if first != second else first) == pytest.approx(0.0)
    assert len(references._diagrams) <= hull.MAX_DIAGRAMS < 78
