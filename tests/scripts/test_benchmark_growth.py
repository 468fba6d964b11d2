"""The benchmark of big sets: its rows are those of judged candidates, and every part is measured."""

from __future__ import annotations

import json
import sys

import pytest
from undrawn import leave_figures_undrawn

from evaluation.decisions import mark_unique
from scripts import benchmark_growth


def test_rows_are_copies_that_differ():
    found = benchmark_growth.judged(40)
    first, again = found.rows[0], found.rows[32]
    assert [row.id for row in found.rows] == [benchmark_growth.name(k) for k in range(40)] and len(found.structures) == 40
    assert first.p_synth == again.p_synth and first.e_above_hull_ev != again.e_above_hull_ev and first.is_sheet
    assert all(atoms.calc is not None and "h_position" in atoms.info for atoms in found.structures.values())


def test_sheets_of_one_formula_are_no_copies():
    rows, structures = benchmark_growth.sheets_of_one_formula(8)
    mark_unique(rows, structures)
    assert all(row.unique for row in rows)


@pytest.mark.parametrize("part", [*benchmark_growth.PARTS, "together", "one formula"])
def test_every_part_is_measured(part, monkeypatch):
    leave_figures_undrawn(monkeypatch)
    found = benchmark_growth.measure(part, 6)
    assert found["peak_mib"] >= found["before_mib"] > 0 and found["seconds"] >= 0
    assert ("report.html_mb" in found) is (part in ("report", "together"))


def test_the_table_names_the_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_growth, "measured", lambda part, count: {"seconds": count, "peak_mib": len(part)})
    monkeypatch.setattr(sys, "argv", ["x", "--rows", "10", "20", "--one-formula", "5", "--output", str(tmp_path / "growth.json")])
    benchmark_growth.main()
    table = json.loads((tmp_path / "growth.json").read_text())
    assert table["machine"]["cores"] >= 1 and table["one_formula"]["5"]["seconds"] == 5
    assert list(table["rows"]) == ["10", "20"] and list(table["rows"]["20"]) == list(benchmark_growth.PARTS)


def test_stage_4_makes_as_many_sheets_as_are_asked_for():
    found = benchmark_growth.generated(2)
    assert found["sheets"] == 2 <= found["valid"] <= found["sampled"] and 1 <= found["formulas"] <= 2
    assert found["seconds"] > 0 and found["cpu_seconds"] > 0 and found["peak_mib"] > 100 and found["mb"] > 0
