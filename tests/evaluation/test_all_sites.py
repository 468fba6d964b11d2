"""H at every site of the first candidates: who is asked, what comes into the rows, and what is stored."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import simple_judges as simple
from ase import Atoms
from simple_judges import evaluated

from energetics.potential_adsorption import HydrogenAtSite
from evaluation import all_sites, near_hull
from evaluation.candidate import QUANTITIES, CandidateResult
from evaluation.page_words import ABOUT
from evaluation.shards import settings_of_part

SETTINGS = dataclasses.replace(simple.SETTINGS, potential_h_sites=1, all_sites=1)
CORRECTION = 0.27


class Hollow(simple.Springs):
    """H at the first site and inside: ΔE_H of the table; at every other one lower by what ``deeper`` says of the formula."""

    def __init__(self, first: dict[str, float], deeper: dict[str, float]) -> None:
        super().__init__()
        self.first, self.deeper, self.asked, self.seen = first, deeper, [], {}

    def delta_e_hydrogen(self, sheet: Atoms, site, supercell, best=math.inf, gap=math.nan) -> HydrogenAtSite:
        name = "".join(sorted(set(sheet.get_chemical_symbols())))
        self.asked.append(name)
        # The site that is asked about first is DimeNet++'s best, whichever it is.
        is_first = np.allclose(self.seen.setdefault(name, site.position), site.position)
        value = self.first[name] - (0.0 if is_first or site.face == "inner" else self.deeper[name])
        return HydrogenAtSite(value, desorbed=False, converged=True, corrected=value, corrected_std=0.3)


SHEETS = {"a": simple.sheet("MoS2"), "b": simple.sheet("MoSe2"), "c": simple.sheet("WSe2")}


@pytest.fixture
def judges(monkeypatch):
    monkeypatch.setattr(simple.Table, "elements", simple.Table.elements | {"Se"})
    potential = Hollow({"MoS": -CORRECTION, "MoSe": 0.1 - CORRECTION, "SeW": 1.5}, {"MoS": 0.8, "MoSe": 0.0, "SeW": 0.0})
    return simple.judges(potential=potential)


def test_a_first_candidate_with_a_better_site_falls_and_the_next_one_is_asked(tmp_path, judges):
    without = evaluated(tmp_path, SHEETS, judges, dataclasses.replace(SETTINGS, all_sites=0), name="few").rows
    before = {row.id: row for row in without}
    assert before["a"].delta_g_ev == pytest.approx(0.0) and before["a"].hit is True and before["a"].h_n_sites > 1
    assert [row.h_sites_relaxed for row in without] == [2, 2, 2], "the first one, and the hollow of the metal layer"

    judges.potential.asked.clear()
    found = {row.id: row for row in evaluated(tmp_path, SHEETS, judges, SETTINGS).rows}
    assert found["a"].delta_g_ev == pytest.approx(-0.8) == found["a"].delta_g_h_potential_ev and found["a"].hit is False
    assert found["a"].p_hit < before["a"].p_hit and found["a"].score_composite < before["a"].score_composite
    assert found["b"].delta_g_ev == pytest.approx(0.1), "it comes first now and no other site of it is better"
    assert [found[k].h_sites_relaxed for k in "abc"] == [found["a"].h_n_sites + 1, found["b"].h_n_sites + 1, 2]
    assert found["c"].delta_g_ev == before["c"].delta_g_ev, "it never comes first"


def test_answers_are_kept_and_change_with_judges_and_settings(tmp_path, judges):
    first = evaluated(tmp_path, SHEETS, judges, SETTINGS)
    judges.potential.asked.clear()
    again = evaluated(tmp_path, SHEETS, judges, SETTINGS)
    assert not judges.potential.asked, "once each, in two runs"
    assert [repr(row.delta_g_ev) for row in again.rows] == [repr(row.delta_g_ev) for row in first.rows]
    stored = list((tmp_path / "out" / "cache" / all_sites.QUESTION).glob("*.json"))
    assert len(stored) == 2 and set(near_hull.NEEDED) < set(json.loads(stored[0].read_text()))
    atoms, identity = first.structures["a"], {"potential": {"name": "a", "sha256": "1"}, "her": {"sha256": "2"}}
    keys = {all_sites.all_sites_key(atoms, identity, SETTINGS)}
    keys.add(all_sites.all_sites_key(atoms, identity | {"her": {"sha256": "3"}}, SETTINGS))
    keys.add(all_sites.all_sites_key(atoms, identity, dataclasses.replace(SETTINGS, max_h_steps=7)))
    keys.add(all_sites.all_sites_key(first.structures["b"], identity, SETTINGS))
    assert len(keys) == 4
    assert all_sites.all_sites_key(atoms, identity, dataclasses.replace(SETTINGS, all_sites=9)) in keys


def test_a_failure_is_named_and_leaves_the_value(tmp_path, judges, monkeypatch):
    hydrogen = judges.potential.delta_e_hydrogen
    monkeypatch.setattr(all_sites, "hydrogen_at_best_sites", lambda *_: 1 / 0)
    row = evaluated(tmp_path, {"a": SHEETS["a"]}, judges, SETTINGS).rows[0]
    assert row.delta_g_ev == pytest.approx(0.0) and row.h_sites_relaxed == 2 and "all_sites: ZeroDivisionError" in row.status
    assert hydrogen == judges.potential.delta_e_hydrogen


def test_who_is_asked():
    row = CandidateResult(delta_g_h_potential_ev=0.1, h_n_sites=3, p_hit=0.1)
    assert all_sites.is_asked(row, SETTINGS)
    for changes in ({"p_hit": 0.0}, {"p_hit": math.nan}, {"delta_g_h_potential_ev": math.nan}, {"h_n_sites": 1}):
        assert not all_sites.is_asked(dataclasses.replace(row, **changes), SETTINGS)
    assert not all_sites.is_asked(row, settings_of_part(SETTINGS)), "a part does not know who comes first"


def test_the_column_has_a_title_and_words():
    assert "h_sites_relaxed" in QUANTITIES and "h_sites_relaxed" in ABOUT
