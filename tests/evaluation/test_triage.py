"""Quick judges of sheets that are not relaxed: closed forms, what speaks against a sheet, and what is looked at."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import mx2
from scipy.stats import norm

from energetics.dynamics_model import load_dynamics_model
from evaluation import triage
from evaluation.synthesizability import SynthScore
from evaluation.triage import ABOVE_HULL, HEADS_STD_EV, HELD_BACK, HULL_STD_EV, QuickJudges
from generation.batch import PropertyEstimate
from geo_utils import NotTwoDimensional, Sheet
from pipeline.files import PROJECT_DIR
from pipeline.loading import load_config
from pipeline.tasks import Processes

SETTINGS = load_config(None, ["evaluation.hull=combined"]).evaluation


def known(name: str) -> Sheet:
    return Sheet.from_atoms(ase.io.read(PROJECT_DIR / "data" / "known_sheets" / f"{name}.cif"))


def mos2(formula: str = "MoS2", a: float = 3.18, thickness: float = 3.13) -> Sheet:
    return Sheet.from_atoms(mx2(formula, "2H", a=a, thickness=thickness, vacuum=10.0))


def salt() -> Sheet:
    """One layer of NaCl."""
    return Sheet.from_atoms(Atoms("NaCl", scaled_positions=[[0, 0, 0.5], [0.5, 0.5, 0.5]], cell=[4.0, 4.0, 20.0]))


def heads(delta_g, e_hull) -> PropertyEstimate:
    return PropertyEstimate(torch.tensor(delta_g), torch.tensor(e_hull), torch.zeros(len(delta_g)))


class Says:
    """Stands for networks, trees of the gap, of dynamic stability and of synthesizability; counts what it is asked."""

    def __init__(self, value: float) -> None:
        self.value, self.asked = value, 0

    def _answer(self, *_) -> float:
        self.asked += 1
        return self.value

    band_gap = without_phonons = _answer

    def of_sheets(self, sheets, dtype) -> np.ndarray:
        return np.array([self._answer() for _ in sheets])

    def score(self, structures) -> list[SynthScore]:
        return [SynthScore(self._answer(), math.nan, math.nan, "ok", True) for _ in structures]


def quick(**changes) -> QuickJudges:
    return QuickJudges(SETTINGS, **{"network": None, "gap": None, "dynamics": None, "water": None} | changes)


@pytest.fixture(scope="module")
def shipped() -> QuickJudges:
    return QuickJudges.load(SETTINGS, load_dynamics_model(SETTINGS.dynamics_checkpoint))


def chance(delta_g: float, e_hull: float) -> float:
    """Closed form: ΔG_H normal about the heads' within the window, E_above_hull normal and below the limit, or held back."""
    window, limit = SETTINGS.hit_delta_g_ev, SETTINGS.hit_e_hull_ev
    of_activity = norm(delta_g, HEADS_STD_EV)
    held_back = ABOVE_HULL if e_hull > limit else 1.0
    return held_back * (of_activity.cdf(window) - of_activity.cdf(-window)) * norm(e_hull, HULL_STD_EV).cdf(limit)


def test_the_chance_is_that_of_the_closed_form_and_best_at_zero(monkeypatch):
    monkeypatch.setattr(triage, "LOOKED_AT", 1.0)
    delta_g, e_hull = [0.0, 0.3, -0.3, 1.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.09, 0.4, -0.5]
    found = quick().chances([mos2()] * 7, heads(delta_g, e_hull))
    expected = [chance(g, max(0.0, e)) for g, e in zip(delta_g, e_hull, strict=True)]
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[0] > found[1] > found[3] and found[1] == pytest.approx(found[2]) and found[0] > found[4] > found[5]
    assert found[6] == pytest.approx(found[0]), "nothing is below the hull"


def test_networks_and_heads_are_averaged_and_heads_count_alone_without_networks(monkeypatch):
    monkeypatch.setattr(triage, "LOOKED_AT", 1.0)
    given = heads([0.1, 0.1], [0.0, 0.3])
    network = Says(0.1)
    assert quick(network=network).chances([mos2()] * 2, given) == pytest.approx([chance(0.1, 0.05), chance(0.1, 0.2)], rel=1e-6)
    assert network.asked == 2
    assert quick().chances([mos2()] * 2, given) == pytest.approx([chance(0.1, 0.0), chance(0.1, 0.3)], rel=1e-6)


def test_what_is_no_sheet_or_cannot_balance_has_no_chance(monkeypatch):
    monkeypatch.setattr(triage, "LOOKED_AT", 1.0)
    clashing, apart = mos2(a=1.6), mos2(a=9.0)
    found = quick().chances([clashing, apart, mos2("NaF2"), mos2()], heads([0.0] * 4, [0.0] * 4))
    assert found[:3].tolist() == [0, 0, 0] and found[3] > 0
    two_pieces = dataclasses.replace(mos2(), heights=np.array([0.0, 1.56, -9.0]))
    assert quick().chances([two_pieces, mos2()], heads([0.0] * 2, [0.0] * 2))[0] == 0


def test_trees_say_no_more_than_they_know(monkeypatch):
    monkeypatch.setattr(triage, "LOOKED_AT", 1.0)
    given, whole = heads([0.0], [0.0]), chance(0.0, 0.0)
    assert quick(dynamics=Says(0.25)).chances([mos2()], given)[0] == pytest.approx(whole / 4)
    assert quick(dynamics=Says(math.nan)).chances([mos2()], given)[0] == pytest.approx(whole), "an unknown element"
    assert quick(synth=Says(0.25)).chances([mos2()], given)[0] == pytest.approx(whole / 4)
    assert quick(synth=Says(math.nan)).chances([mos2()], given)[0] == pytest.approx(whole), "it abstains"
    limit = SETTINGS.conductive_gap_ev
    assert quick(gap=Says(limit)).chances([mos2()], given)[0] == pytest.approx(whole)
    assert quick(gap=Says(limit + 0.01)).chances([mos2()], given)[0] == pytest.approx(whole * HELD_BACK)
    assert quick(gap=Says(math.nan)).chances([mos2()], given)[0] == pytest.approx(whole)

    class Fails(Says):
        def band_gap(self, atoms):
            raise NotTwoDimensional("no sheet")

    assert quick(gap=Fails(0.0)).chances([mos2()], given)[0] == 0


def test_trees_take_the_place_of_the_heads_where_they_know_the_elements(monkeypatch):
    monkeypatch.setattr(triage, "LOOKED_AT", 1.0)

    class Active:
        """Knows the chance of MoS2 from the heads' value and the window, and nothing of other sheets."""

        def chance(self, atoms, by_heads, window):
            return by_heads / 2 + window if "Mo" in atoms.symbols else math.nan

    window, given = SETTINGS.hit_delta_g_ev, heads([0.6, 0.6], [0.0, 0.0])
    found = quick(activity=Active()).chances([mos2(), mos2("WS2")], given)
    of_trees = (0.3 + window) * norm(0.0, HULL_STD_EV).cdf(SETTINGS.hit_e_hull_ev)
    assert found == pytest.approx([of_trees, chance(0.6, 0.0)], rel=1e-6)


def test_salts_and_insulators_are_held_back(shipped, monkeypatch):
    monkeypatch.setattr(triage, "LOOKED_AT", 1.0)
    sheets = [salt(), known("h-BN"), known("2H-NbS2"), known("1T-VSe2"), known("2H-MoS2")]
    dissolves = [shipped.dissolves(sheet.to_atoms(15.0), 0.05) for sheet in sheets]
    assert dissolves[0] is True and dissolves[2:] == [False] * 3
    conducts = [shipped.gap.band_gap(sheet.to_atoms(15.0)) <= SETTINGS.conductive_gap_ev for sheet in sheets]
    assert conducts[1:] == [False, True, True, False]
    found = shipped.chances(sheets, heads([0.0] * 5, [0.0] * 5))
    assert max(found[[0, 1, 4]]) < 2 * HELD_BACK and min(found[2:4]) > 0.05
    wet = quick(water=shipped.water).chances(sheets[:1], heads([0.0], [0.0]))
    assert wet[0] == pytest.approx(chance(0.0, 0.0) * HELD_BACK), "water alone holds the salt back"
    assert shipped.dissolves(mos2("PoS2").to_atoms(15.0), 0.0) is None, "no data on Po"
    assert quick().dissolves(sheets[0].to_atoms(15.0), 0.0) is None


def test_water_is_asked_in_the_order_of_the_chance_until_enough_are_left(shipped, monkeypatch):
    monkeypatch.setattr(triage, "LOOKED_AT", 1.0)
    monkeypatch.setattr(triage, "WATER_BATCH", 1)
    sheets, given = [salt(), known("2H-NbS2"), salt(), known("1T-VSe2"), salt()], heads([0.0, 0.1, 0.2, 0.3, 0.4], [0.0] * 5)
    judges = quick(water=shipped.water)
    dry = quick().chances(sheets, given)
    for wanted, asked in ((None, 5), (1, 2), (2, 4), (0, 0)):
        held_back = np.array([HELD_BACK, 1.0, HELD_BACK, 1.0, HELD_BACK])
        held_back[asked:] = 1.0
        np.testing.assert_allclose(judges.chances(sheets, given, wanted=wanted), dry * held_back)
    np.testing.assert_allclose(judges.chances(sheets, given, least=dry[2]), dry * np.array([HELD_BACK, 1.0, 1.0, 1.0, 1.0]))


def test_only_the_best_share_is_looked_at():
    dynamics = Says(0.5)
    e_hull = [0.3, 0.0, 0.2, 0.1, 0.4, 0.5]
    found = quick(dynamics=dynamics).chances([mos2()] * 6, heads([0.0] * 6, e_hull))
    assert dynamics.asked == round(triage.LOOKED_AT * 6) == 3
    assert np.flatnonzero(found).tolist() == [1, 2, 3] and found[1] == pytest.approx(chance(0.0, 0.0) / 2)
    dynamics.asked = 0
    assert quick(dynamics=dynamics).chances([mos2()], heads([0.0], [0.0]))[0] > 0, "one sheet is always looked at"


def test_judges_that_the_settings_leave_out_are_not_loaded():
    plain = dataclasses.replace(SETTINGS, hull="learnt", band_gap_checkpoint="", water=False, synthesizability="csllm")
    found = QuickJudges.load(plain, None)
    assert (found.network, found.gap, found.dynamics, found.water, found.synth) == (None,) * 5, "CSLLM would take seconds each"


def test_workers_say_what_this_process_says(shipped):
    sheets = [salt(), known("h-BN"), known("2H-NbS2"), known("1T-VSe2"), known("2H-MoS2")]
    given = heads([0.0, 0.1, 0.2, -0.1, 0.0], [0.0] * 5)
    load = partial(QuickJudges.load, SETTINGS, load_dynamics_model(SETTINGS.dynamics_checkpoint))
    with Processes(2, load) as workers:
        np.testing.assert_array_equal(shipped.chances(sheets, given, workers), shipped.chances(sheets, given))
