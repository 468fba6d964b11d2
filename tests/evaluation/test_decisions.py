"""Decisions over a set: hits, duplicates and novelty."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import simple_judges as simple
from simple_judges import SETTINGS, evaluated

from crystals import matching, validity
from evaluation import candidate, decisions


def test_a_potential_that_is_not_asked_for_hydrogen_calls_nothing_a_hit_or_a_miss(tmp_path):
    sheets = {"good": simple.sheet(), "no_sheet": simple.bulk_copper()}
    her = simple.Hydrogen()
    settings = dataclasses.replace(SETTINGS, potential_h_sites=0)
    evaluation = evaluated(tmp_path, sheets, simple.judges(her=her), settings=settings)
    assert [row.hit_potential for row in evaluation.rows] == [row.hit_corrected for row in evaluation.rows] == [None, None]
    assert evaluation.aggregates["hit_rate_potential"].n_ok == 0 and math.isnan(evaluation.aggregates["hit_rate_corrected"].value)
    assert evaluation.aggregates["hit_rate"].n_ok == 1
    assert her.gaps == [1.5], "the gap is DimeNet++'s too"


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
        row("likely", 0.1, valid=True, hit=False, p_hit=0.2),
        row("hit", 0.2, valid=True, hit=True, p_hit=0.1),
        row("sure hit", 0.1, valid=True, hit=True, p_hit=0.7),
    ]
    rows[1].dimensionality = validity.BULK
    ranked = ["sure hit", "hit", "likely", "a", "b", "invalid"]
    assert [r.id for r in decisions.rank(rows, 10)] == ranked
    assert [r.id for r in decisions.rank(rows, 2)] == ranked[:2]
    assert [r.id for r in decisions.rank(rows)] == [*ranked, "bulk", "unscored"]
    stored = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in dataclasses.asdict(r).items()}
        for r in rows
    ]
    assert [r["id"] for r in decisions.rank(stored)] == [r.id for r in decisions.rank(rows)]


def stable(**values):
    defaults = {"valid": True, "sheet_relaxed": True, "e_above_hull_ev": 0.02, "dimensionality": "2D", "reduced_formula": "MoS2"}
    return candidate.CandidateResult(**(defaults | values))


def test_the_best_judge_decides():
    row = stable(delta_g_h_ev=0.0, delta_g_h_std_ev=0.4, delta_g_h_corrected_ev=0.3, delta_g_h_corrected_std_ev=0.2)
    row.h_relax_converged = True
    decisions.choose_delta_g(row)
    assert (row.delta_g_ev, row.delta_g_std_ev, row.delta_g_source) == (0.3, 0.2, "corrected potential")
    alone = stable(delta_g_h_ev=0.05, delta_g_h_std_ev=0.4)
    decisions.choose_delta_g(alone)
    assert (alone.delta_g_ev, alone.delta_g_source) == (0.05, "DimeNet++")
    decisions.decide([row, alone], SETTINGS)
    assert row.hit is False and row.hit_dimenet is True and row.hit_corrected is False
    assert alone.hit is True and decisions.verdict(alone, SETTINGS) == "hit"


def test_p_hit_is_the_share_of_random_draws_within_the_window():
    """Against random draws of both errors; the standard error of the share is 0.001."""
    rng = np.random.default_rng(0)
    for delta_g, std, e_hull, hull_std in ((0.05, 0.3, 0.02, 0.06), (-0.3, 0.2, 0.15, 0.05), (0.0, 0.05, 0.05, 0.0)):
        row = stable(delta_g_ev=delta_g, delta_g_std_ev=std, e_above_hull_ev=e_hull)
        row.e_above_hull_std_ev = hull_std
        draws = rng.normal(delta_g, std, 200_000), rng.normal(e_hull, hull_std, 200_000)
        share = ((abs(draws[0]) <= 0.1) & (draws[1] <= 0.1)).mean()
        assert decisions.hit_probability(row, SETTINGS) == pytest.approx(share, abs=0.004)
    exact = stable(delta_g_ev=0.1)
    assert decisions.hit_probability(exact, SETTINGS) == 1.0


def test_h_that_is_not_at_rest_is_never_a_hit():
    for values in (
        {"h_relax_converged": False},
        {"h_desorbed": True},
        {"h_changes_sheet": True},
        {"valid": False},
        {"sheet_relaxed": False},
    ):
        row = stable(delta_g_ev=0.0, delta_g_std_ev=0.1, **values)
        decisions.decide([row], SETTINGS)
        assert row.hit is False and row.p_hit == 0.0 and decisions.verdict(row, SETTINGS) != "hit"
    unknown = stable()
    decisions.decide([unknown], SETTINGS)
    assert unknown.hit is None and math.isnan(unknown.p_hit)
