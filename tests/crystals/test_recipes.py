"""Recipes from the prototypes, from the user's formulas and families, and their templates."""

from __future__ import annotations

import pytest
from ase.data import atomic_numbers

from crystals.prototypes import PROTOTYPES
from crystals.recipes import Recipe, parse_recipes, prototype_recipes, recipe_template
from crystals.symmetry import Template
from geo_utils import Sheet
from pipeline.errors import StageError


def test_recipes_cover_chemistry_and_obey_the_element_list():
    everything = prototype_recipes()
    assert len({recipe.family for recipe in everything}) >= 14
    assert len({z for recipe in everything for z in recipe.atomic_numbers}) >= 40
    allowed = {atomic_numbers[symbol] for symbol in ("Mo", "W", "S", "Se")}
    few = prototype_recipes(allowed)
    assert few and all(set(recipe.atomic_numbers) <= allowed for recipe in few)
    assert {recipe.formula for recipe in few} >= {"MoS2", "WSe2", "MoSSe"}
    listed = sum(len(list(prototype.decorations())) for prototype in PROTOTYPES.values())
    assert len(everything) > 1.3 * listed, "metals beyond the listed decorations are tried"
    formulas = {recipe.formula for recipe in everything}
    assert "RuS2" in formulas or "OsSe2" in formulas


def test_recipes_from_formulas():
    (recipe,) = parse_recipes(["Mo2S4"], {42, 16})
    assert sorted(recipe.atomic_numbers) == [16] * 4 + [42] * 2
    for formula, message in (
        ("MoS2", "not trained on Mo"),
        ("Xx", "not a chemical formula"),
        ("C0.5", "fractional"),
        ("C99", "99 atoms"),
    ):
        with pytest.raises(StageError, match=message):
            parse_recipes([formula], {16, 6})


def test_recipes_from_families(caplog):
    elements = {16, 34, 42, 74}
    found = parse_recipes(["2H-MX2: Mo W | S, Se", "Janus-2H: Mo | * | *"], elements)
    assert [r.formula for r in found] == ["MoS2", "MoSe2", "WS2", "WSe2", "MoSSe"]
    assert [r.family for r in found] == ["2H-MX2"] * 4 + [
        "Janus-2H"
    ] and "hold elements that the model does not know" in caplog.text
    for entry, message in (
        ("9H: Mo | S", "no family '9H'; there are 2H-MX2"),
        ("2H-MX2: Mo", "2 sites, not 1"),
        ("2H-MX2: Mo | ", "an empty site"),
        ("2H-MX2: Mo | Zz", "Zz is no element"),
        ("2H-MX2: Mo | W", "charge-neutral"),
        ("2H-MX2: Ti | O", "not trained on O, Ti"),
    ):
        with pytest.raises(StageError, match=message):
            parse_recipes([entry], elements)


def test_every_family_has_a_template_for_its_recipes():
    for name, prototype in PROTOTYPES.items():
        elements = next(prototype.decorations())
        atoms = prototype.build(*elements)
        template = recipe_template(Recipe("", tuple(atoms.numbers.tolist()), name))
        assert template.layer_group > 1 and template.layer_group == Template.of(Sheet.from_atoms(atoms)).layer_group, name
