"""Decisions over a set: hits, duplicates and novelty."""

from __future__ import annotations

import dataclasses
import math

import simple_judges as simple
from simple_judges import SETTINGS, evaluated

from crystals import matching, validity
from evaluation import candidate, decisions


def test_a_potential_that_is_not_asked_for_hydrogen_calls_nothing_a_hit_or_a_miss(tmp_path):
    sheets = {"good": simple.sheet(), "no_sheet": simple.bulk_copper()}
    evaluation = evaluated(tmp_path, sheets, settings=dataclasses.replace(SETTINGS, potential_h_sites=0))
    assert [row.hit_potential for row in evaluation.rows] == [row.hit_corrected for row in evaluation.rows] == [None, None]
    assert evaluation.aggregates["hit_rate_potential"].n_ok == 0 and math.isnan(evaluation.aggregates["hit_rate_corrected"].value)
    assert evaluation.aggregates["hit_rate"].n_ok == 1
    assert evaluation.rows[0].band_gap_ev == 1.5, "the gap is DimeNet++'s too"


def test_duplicates_and_known_structures(tmp_path):
    known = matching.match_structure(simple.sheet("WS2"), True)
    judges = simple.judges(training_structures=lambda formula: [("old", known)] if formula == "WS2" else [])
    structures = {"a": simple.sheet(), "b": simple.sheet(a=3.19), "c": simple.sheet(kind="1T"), "w": simple.sheet("WS2", a=3.2)}
    rows = {row.id: row for row in evaluated(tmp_path, structures, judges).rows}
    assert rows["a"].unique and not rows["b"].unique and rows["b"].duplicate_of == "a" and rows["c"].unique
    assert rows["w"].novel is False and rows["w"].novel_match == "old" and rows["a"].novel
    assert rows["b"].metastable_sun is False and rows["w"].metastable_sun is False


def test_one_order_for_rows_and_for_the_dictionaries_of_a_report():
    def row(name, score, **values):
        return candidate.CandidateResult(id=name, dimensionality="2D", score_composite=score, **values)

    rows = [
        row("unscored", math.nan, valid=True),
        row("bulk", 0.9, valid=True),
        row("invalid", 0.8, valid=False),
        row("b", 0.3, valid=True),
        row("a", 0.3, valid=True),
        row("hit", 0.2, valid=True, hit=True, hit_corrected=False),
        row("corrected", 0.1, valid=True, hit=False, hit_corrected=True),
    ]
    rows[1].dimensionality = validity.BULK
    ranked = ["corrected", "hit", "a", "b", "invalid"]
    assert [r.id for r in decisions.rank(rows, 10)] == ranked
    assert [r.id for r in decisions.rank(rows, 2)] == ranked[:2]
    assert [r.id for r in decisions.rank(rows)] == [*ranked, "bulk", "unscored"]
    stored = [
        dataclasses.asdict(r) | {"score_composite": None if math.isnan(r.score_composite) else r.score_composite} for r in rows
    ]
    assert [r["id"] for r in decisions.rank(stored)] == [r.id for r in decisions.rank(rows)]
