"""The verdict in water: from what is found at each pH, in the rows of a set, and beside its switch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import simple_judges as simple
from simple_judges import SETTINGS, evaluated

from energetics.water import PH_VALUES, Decomposition, Species
from evaluation import water_verdict as water
from evaluation.candidate import QUANTITIES, CandidateResult
from evaluation.judge_pool import cache_key
from pipeline.files import PROJECT_DIR

REFERENCES = str(PROJECT_DIR / "data" / "references_sevennet-0.json.gz")
ION, SOLID = Species("M", {"M": 1}, 2, "aqueous", 0.0), Species("MO", {"M": 1, "O": 1}, 0, "solid", 0.0)
MOS2 = [0.05, 0.05, 0.15]


def found(values, product):
    return [Decomposition(ph, 0.0, value, {product: 1.0}) for ph, value in zip(PH_VALUES, values, strict=True)]


@pytest.mark.parametrize(
    ("values", "product", "verdict"),
    [
        ((0.15, 0.9, 0.9), ION, water.AS_STABLE),
        ((0.9, 0.9, 0.25), ION, water.AS_STABLE),
        ((0.16, 0.16, 0.26), ION, water.CORRODES),
        ((0.26, 0.5, 0.9), ION, water.DISSOLVES),
        ((0.9, 0.9, 0.9), SOLID, water.CORRODES),
    ],
)
def test_the_verdict_follows_drive_and_products(values, product, verdict):
    assert water.verdict_in_water(found(values, product), {"M", "S"} if product is ION else {"M"}, MOS2) == verdict


def test_the_products_at_the_kindest_ph_count():
    mixed = [*found((0.4, 0.5, 0.6), ION)[:1], *found((0.4, 0.5, 0.6), SOLID)[1:]]
    assert water.verdict_in_water(mixed, {"M"}, MOS2) == water.DISSOLVES
    turned = [*found((0.5, 0.4, 0.6), ION)[:1], *found((0.5, 0.4, 0.6), SOLID)[1:]]
    assert water.verdict_in_water(turned, {"M"}, MOS2) == water.CORRODES


def test_one_metal_that_is_lost_is_enough():
    """K leaves KAgPd, which ends as two metals and no sheet."""
    row = CandidateResult(formula="KAgPd", reduced_formula="KAgPd", e_above_hull_ev=0.05)
    water.judge_water(row, water.load_water(REFERENCES))
    assert row.water == water.DISSOLVES and "K+" in row.water_products and "Ag(s)" in row.water_products


def test_the_potential_that_drives_more_counts():
    pairs = [Decomposition(ph, u, 0.1 + (0.3 if u else 0), {SOLID: 1.0}) for ph in PH_VALUES for u in (0.0, -0.2)]
    assert [(d.u_rhe, d.delta_g) for d in water.worst_at_each_ph(pairs)] == [(-0.2, 0.4)] * 3


@pytest.mark.parametrize(
    ("formula", "verdict"),
    [("MoS2", water.AS_STABLE), ("PtSe2", water.AS_STABLE), ("TiO2", water.AS_STABLE), ("NbS2", water.CORRODES),
     ("Ti2CO2", water.CORRODES), ("NaCl", water.DISSOLVES), ("MgCl2", water.DISSOLVES), ("FeCl2", water.DISSOLVES)],
)  # fmt: skip
def test_known_sheets(formula, verdict):
    row = CandidateResult(formula=formula, reduced_formula=formula, e_above_hull_ev=0.05)
    water.judge_water(row, water.load_water(REFERENCES))
    assert row.water == verdict
    assert row.dg_pbx_ev == max(row.dg_pbx_ph0_ev, row.dg_pbx_ph7_ev, row.dg_pbx_ph14_ev)
    assert row.water_products.startswith("pH ")


def test_without_data_there_is_a_reason_and_no_number():
    row = CandidateResult(formula="XeF2", reduced_formula="XeF2", e_above_hull_ev=0.05)
    water.judge_water(row, water.load_water(REFERENCES))
    assert math.isnan(row.dg_pbx_ev) and row.water == "" and row.water_products == "unknown: no compound or ion of Xe"


def test_rows_of_a_set_get_it_after_judging_and_hits_stay(tmp_path):
    settings = dataclasses.replace(SETTINGS, references_path=REFERENCES)
    sheets = {"mos2": simple.sheet(), "no_sheet": simple.bulk_copper()}
    row, _ = evaluated(tmp_path / "a", sheets, settings=settings).rows
    assert row.id == "mos2" and row.water == water.AS_STABLE and row.dg_pbx_ph0_ev == pytest.approx(row.e_above_hull_ev, abs=0.02)
    plain, _ = evaluated(tmp_path / "b", sheets, settings=dataclasses.replace(settings, water=False)).rows
    assert plain.water == "" and math.isnan(plain.dg_pbx_ev) and (plain.hit, plain.p_hit) == (row.hit, row.p_hit)
    assert cache_key(b"x", {}, settings) == cache_key(b"x", {}, dataclasses.replace(settings, water=False))


def test_nothing_is_said_without_a_hull(tmp_path):
    rows = [CandidateResult(reduced_formula="MoS2"), CandidateResult(reduced_formula="MoS2", e_above_hull_ev=0.05)]
    water.mark_water(rows, dataclasses.replace(SETTINGS, references_path=str(tmp_path / "none.json.gz")))
    assert {row.water for row in rows} == {""}
    water.mark_water(rows, dataclasses.replace(SETTINGS, references_path=REFERENCES))
    assert [row.water for row in rows] == ["", water.AS_STABLE]


def test_the_columns_have_titles():
    names = [f.name for f in dataclasses.fields(CandidateResult) if f.name.startswith(("dg_pbx", "water"))]
    assert len(names) == 6 and set(names) <= set(QUANTITIES)
