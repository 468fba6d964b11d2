"""Price, supply and hazards of elements, and who may be a finalist."""

from __future__ import annotations

import dataclasses
import math

import pytest

from evaluation import element_facts
from evaluation.candidate import CandidateResult
from pipeline.settings import EvaluationConfig

SETTINGS = EvaluationConfig()


def marked(formula: str) -> CandidateResult:
    row = CandidateResult(formula=formula, reduced_formula=formula)
    element_facts.mark_elements([row], SETTINGS)
    return row


def test_what_every_chemist_knows():
    sulfide, platinum, carbon = marked("MoS2"), marked("PtSe2"), marked("C")
    assert sulfide.price_usd_per_kg < 100 < 10_000 < platinum.price_usd_per_kg
    assert carbon.hhi_reserve < 1500 < 2500 < platinum.hhi_reserve
    assert marked("TlCdBr3").hazards == "Cd, Tl" and sulfide.hazards == ""


def test_a_mixture_is_the_mean_by_mass():
    mass = {"Mo": 95.95, "S": 2 * 32.06}
    total = sum(mass.values())
    for of in (element_facts.price, element_facts.supply_risk):
        assert of("MoS2") == pytest.approx(sum(of(symbol) * m / total for symbol, m in mass.items()), rel=1e-3)


def test_what_no_table_has_is_not_known():
    row = marked("PuO2")
    assert math.isnan(row.price_usd_per_kg) and math.isnan(row.hhi_reserve) and row.hazards == "Pu"
    empty = CandidateResult()
    element_facts.mark_elements([empty], SETTINGS)
    assert math.isnan(empty.price_usd_per_kg)


def test_finalists_are_practical():
    cheap = dataclasses.replace(SETTINGS, max_price_usd_per_kg=1000.0)
    anything = dataclasses.replace(SETTINGS, leave_out_hazards=False)
    assert [element_facts.is_practical(marked("PtSe2"), settings) for settings in (SETTINGS, cheap)] == [True, False]
    assert [element_facts.is_practical(marked("PbS"), settings) for settings in (SETTINGS, anything)] == [False, True]
    assert element_facts.is_practical(marked("MoS2"), cheap)
