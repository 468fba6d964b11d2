"""Recipes that start from a sheet of their own, and their order by the chance of a hit that quick judges see."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.build import mx2

from crystals.recipes import Recipe
from crystals.templates import TemplateLibrary
from generation import search
from generation.candidates import plan_candidate
from generation.sampling import predict_properties
from generation.search import order_by_chance, starting_sheets
from geo_utils import Sheet


def sheet_of(formula: str, a: float = 3.2) -> Sheet:
    return Sheet.from_atoms(mx2(formula, "2H", a=a, thickness=3.1, vacuum=10))


def recipe_of(formula: str, family: str = "x", start: bool = True, a: float = 3.2) -> Recipe:
    sheet = sheet_of(formula, a)
    return Recipe(formula, tuple(sheet.atomic_numbers.tolist()), family, start=sheet if start else None)


@pytest.fixture
def plain(settings):
    """Without the refiner; at most one recipe of a family or a composition for each structure."""
    return dataclasses.replace(settings, refine_steps=0, num_structures=3, oversample=1.0, max_family_share=1.0)


class Crystals:
    """Known crystals: one sheet for everything but gold."""

    def nearest(self, numbers, count):
        return [] if 79 in numbers else [sheet_of("MoS2", 3.5)]


def by_lattice(sheets, properties):
    """A chance that is larger for a longer lattice vector."""
    assert len(sheets) == len(properties.delta_g) == len(properties.e_hull)
    return np.array([np.linalg.norm(sheet.lattice[0]) / 10 for sheet in sheets])


def test_a_recipe_takes_its_own_sheet_and_needs_no_crystals(plain, settings):
    own, other, none = recipe_of("WSe2", a=3.3), recipe_of("TiS2", start=False), recipe_of("AuS2", start=False)
    numbers, sheets = starting_sheets(None, plain, [other, own, none])
    assert numbers == [1] and sheets[0] is own.start
    numbers, sheets = starting_sheets(Crystals(), plain, [other, own, none])
    assert numbers == [0, 1] and np.linalg.norm(sheets[0].lattice[0]) == pytest.approx(3.5)
    assert starting_sheets(None, plain, [other, none]) == ([], [])
    refined = starting_sheets(None, dataclasses.replace(settings, refine_steps=2), [own])[1][0]
    assert (refined.atomic_numbers == own.start.atomic_numbers).all()
    assert not np.allclose(refined.lattice, own.start.lattice, atol=1e-3), "the refiner has moved it"


@pytest.mark.parametrize("screening", [True, False])
def test_the_plan_of_a_candidate_starts_from_its_sheet(screening):
    own, other = recipe_of("WSe2"), recipe_of("TiS2", start=False)
    for crystals in (None, Crystals()):
        plans = [plan_candidate(k, [own, other], TemplateLibrary([], []), 0.0, 0, crystals, screening) for k in range(4)]
        assert [plan.start is own.start for plan in plans] == [True, False, True, False]
        assert plans[0].template is None and plans[0].atomic_numbers == own.atomic_numbers
        assert (plans[1].start is not None) == (screening and crystals is not None)


def test_the_best_chances_come_first_and_what_exceeds_a_quota_after_them(model, plain):
    formulas = {"WSe2": 3.4, "MoS2": 3.2, "TiS2": 3.6, "NbS2": 3.3, "TaS2": 3.5}
    recipes = [recipe_of(formula, a=a) for formula, a in formulas.items()]
    order = [r.formula for r in order_by_chance(model.double(), recipes, None, plain, "cpu", by_lattice)]
    assert order == ["TiS2", "TaS2", "WSe2", "NbS2", "MoS2"]
    twice = [*recipes, recipe_of("TiS2", a=3.55)]
    one = dataclasses.replace(plain, max_per_composition=1, num_structures=9)
    order = [r.formula for r in order_by_chance(model, twice, None, one, "cpu", by_lattice)]
    assert order == ["TiS2", "TaS2", "WSe2", "NbS2", "MoS2", "TiS2"]
    one_family = dataclasses.replace(plain, max_family_share=1 / 3)
    mixed = [dataclasses.replace(r, family="y") if r.formula == "MoS2" else r for r in recipes]
    order = [r.formula for r in order_by_chance(model, mixed, None, one_family, "cpu", by_lattice)]
    assert order == ["TiS2", "MoS2", "TaS2", "WSe2", "NbS2"], "the best of each family, then the others as they are"
    order = [r.formula for r in order_by_chance(model, recipes, None, plain, "cpu", by_lattice, known={"TiS2", "NbS2"})]
    assert order == ["TaS2", "WSe2", "MoS2", "TiS2", "NbS2"], "known compositions come last"
    order = [r.formula for r in order_by_chance(model, mixed, None, one_family, "cpu", by_lattice, known={"TiS2"})]
    assert order == ["TaS2", "MoS2", "WSe2", "NbS2", "TiS2"], "and take no place of a family from new ones"


def test_recipes_beyond_the_first_stay_behind_in_their_order(model, plain, monkeypatch):
    monkeypatch.setattr(search, "TRIAGED", 2)
    recipes = [recipe_of("WS2", family=str(k), a=3.1 + 0.05 * k) for k in range(7)]
    few = dataclasses.replace(plain, num_structures=1, oversample=1.5, max_per_composition=0)
    looked_at = []

    def triage(sheets, properties):
        looked_at.extend(sheets)
        return by_lattice(sheets, properties)

    order = [r.family for r in order_by_chance(model.double(), recipes, None, few, "cpu", triage)]
    assert len(looked_at) == 2 * math.ceil(1.5) and order == ["3", "2", "1", "0", "4", "5", "6"]


def test_known_compositions_are_not_looked_at_where_there_are_enough_new_ones(model, plain):
    """For two sheets that are sampled four new compositions are enough, one is not."""
    cells = {"NbS2": 3.3, "WS2": 3.2, "MoS2": 3.1, "TaS2": 3.4, "TiS2": 3.5}
    recipes = [recipe_of(formula, a=a) for formula, a in cells.items()]
    one = dataclasses.replace(plain, num_structures=1, oversample=2.0)
    looked_at = []

    def triage(sheets, properties):
        looked_at.append(len(sheets))
        return by_lattice(sheets, properties)

    order = order_by_chance(model.double(), recipes, None, one, "cpu", triage, known={"NbS2"})
    assert looked_at == [4] and [r.formula for r in order] == ["TiS2", "TaS2", "WS2", "MoS2", "NbS2"]
    order = order_by_chance(model, recipes, None, one, "cpu", triage, known={"NbS2", "WS2", "MoS2", "TaS2"})
    assert looked_at == [4, 5] and [r.formula for r in order] == ["TiS2", "TaS2", "NbS2", "WS2", "MoS2"]


def test_what_starts_from_nothing_comes_last_of_those_looked_at(model, plain):
    recipes = [recipe_of("AuS2", start=False), recipe_of("MoS2", start=False), recipe_of("WSe2", a=3.3)]
    order = [r.formula for r in order_by_chance(model.double(), recipes, Crystals(), plain, "cpu", by_lattice)]
    assert order == ["MoS2", "WSe2", "AuS2"], "the crystal for MoS2 is larger, and none fits AuS2"
    unasked = SimpleNamespace(asked=0)
    assert order_by_chance(model, recipes[:1], None, plain, "cpu", unasked) == recipes[:1]


def test_the_heads_speak_to_the_judges(model, plain):
    recipes = [recipe_of("WSe2"), recipe_of("MoS2"), recipe_of("TiS2")]
    told = []

    def triage(sheets, properties):
        told.append(properties)
        return -properties.delta_g.numpy()

    order = order_by_chance(model.double(), recipes, None, plain, "cpu", triage)
    expected = predict_properties(model, [r.start for r in recipes])
    assert torch.allclose(told[0].delta_g, expected.delta_g) and torch.allclose(told[0].e_hull, expected.e_hull)
    assert [r.formula for r in order] == [recipes[k].formula for k in torch.argsort(expected.delta_g).tolist()]


def test_the_best_recipes_give_further_ones_which_are_looked_at_too(model, plain):
    """Each round lengthens the lattice of the best; one of the outcome is a known composition, one was there before."""
    asked = dataclasses.replace(plain, num_structures=1, search_rounds=2, max_per_composition=0)
    recipes = [recipe_of("WSe2", a=3.3), recipe_of("MoS2", a=3.2)]
    parents = []

    def redraw(best, number):
        parents.append([(r.formula, r.family) for r in best])
        own = dataclasses.replace(recipe_of("WSe2", a=3.5 + 0.1 * number), family=f"round {number}")
        return [own, recipes[1], recipe_of("NbS2", a=3.9)]

    order = order_by_chance(model.double(), recipes, None, asked, "cpu", by_lattice, known={"NbS2"}, redraw=redraw)
    assert search.PARENTS == 2
    assert parents == [[("WSe2", "x"), ("MoS2", "x")], [("WSe2", "round 0"), ("WSe2", "x")]]
    assert [r.family for r in order] == ["round 1", "round 0", "x", "x"] and order[2:] == recipes
    none = dataclasses.replace(asked, search_rounds=0)
    assert order_by_chance(model, recipes, None, none, "cpu", by_lattice, known={"NbS2"}, redraw=redraw) == recipes
    assert len(parents) == 2
