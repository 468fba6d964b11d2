"""The library of templates: equal crystals, votes, substitutions and its way through a checkpoint."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from known_sheets import FEOCL, MOS2, TISE2, sheet_of

from crystals.recipes import Recipe, recipe_template
from crystals.symmetry import Template
from crystals.templates import SUBSTITUTION_DISTANCE, TemplateLibrary, quasirandom_suggestion, template_key
from geo_utils import Sheet


def library() -> TemplateLibrary:
    sheets = [MOS2, sheet_of("2H-MX2", "W", "S"), sheet_of("2H-MX2", "Nb", "Se"), TISE2, sheet_of("1T-MX2", "Zr", "Se"), FEOCL]
    return TemplateLibrary.build([(sheet, Template.of(sheet)) for sheet in sheets])


def test_equal_crystals_share_a_template_whatever_their_origin_order_and_basis():
    reference = template_key(Template.of(MOS2))[0]
    order = np.array([2, 0, 1])
    other = Sheet(MOS2.atomic_numbers[order], (MOS2.frac_coords[order] + [0.3, 0.1]) % 1.0, MOS2.heights[order], 1.1 * MOS2.lattice)
    atoms = other.to_atoms()
    atoms.rotate(77, "z", rotate_cell=True)
    atoms.set_cell(atoms.cell.array[[1, 0, 2]] * [[1], [1], [1]], scale_atoms=False)
    assert template_key(Template.of(Sheet.from_atoms(atoms)))[0] == reference
    assert template_key(Template.of(TISE2))[0] != reference
    assert len(library().templates) == 3 and sorted(len(rows) for rows in library().decorations) == [1, 2, 3]


def test_similar_crystals_vote_and_atoms_stand_in_the_order_of_the_template():
    found = library().suggest([16, 42, 16])
    assert found[0].template.layer_group == 78, "2H, as WS2 and MoS2"
    assert sorted(found[0].atomic_numbers) == [16, 16, 42] and np.bincount(found[0].template.kinds).tolist() in ([1, 2], [2, 1])
    assert sum(s.probability for s in found) == pytest.approx(1.0)
    assert library().suggest([40, 34, 34])[0].template.layer_group == 72, "1T, as ZrSe2"
    assert library().suggest([42] * 7) == []
    for suggestion in library().suggest([26, 26, 8, 8, 17, 17]):
        assert len(set(zip(suggestion.template.kinds.tolist(), suggestion.atomic_numbers, strict=True))) == 3


def test_draws_start_with_the_most_probable_and_cover_the_others_in_proportion():
    found = library().suggest([41, 34, 34])
    drawn = [quasirandom_suggestion(found, k).template.layer_group for k in range(64)]
    assert drawn[0] == found[0].template.layer_group
    share = sum(s.probability for s in found if s.template.layer_group == 78)
    assert drawn.count(78) / 64 == pytest.approx(share, abs=0.05)


def test_substitutions_are_new_neutral_and_similar():
    metals = ("Ti", "Zr", "Hf", "Sn", "Pt", "Pd")
    sheets = [sheet_of("1T-MX2", metal, x) for metal in metals for x in ("S", "Se") if (metal, x) != ("Hf", "Se")]
    found = TemplateLibrary.build([(sheet, Template.of(sheet)) for sheet in sheets]).substitutions({22, 40, 72, 50, 78, 16, 34, 1})
    assert [(recipe.formula, sorted(recipe.atomic_numbers)) for recipe in found] == [("HfSe2", [34, 34, 72])]
    assert recipe_template(found[0]).layer_group == 72 and found[0].family == "TiS2, layer group 72"
    assert library().substitutions({42, 16}) == [], "too few decorations for a family"


def test_further_substitutions_go_on_from_a_recipe_by_the_elements_of_its_sites():
    known = [("Ti", "S"), ("Zr", "S"), ("Hf", "S"), ("Sn", "S"), ("Pt", "Se"), ("Ge", "O"), ("Y", "S"), ("Mg", "Cl"), ("Mg", "Br")]
    built = TemplateLibrary.build([(sheet, Template.of(sheet)) for sheet in (sheet_of("1T-MX2", *pair) for pair in known)])
    elements = {22, 40, 72, 50, 32, 39, 78, 12, 8, 16, 34, 17, 35}
    first = built.substitutions(elements)
    parents = [recipe for recipe in first if recipe.formula in ("SnSe2", "ZrSe2")]
    assert built.further_substitutions([Recipe("MoS2", (42, 16, 16), "2H-MX2")], elements) == [], "no template, no sites"
    found = built.further_substitutions(parents, elements)
    formulas = [recipe.formula for recipe in found]
    assert {"GeSe2", "HfSe2", "TiSe2"} == set(formulas) and not {"SnS2", "PtSe2"} & set(formulas), "what is known is no recipe"
    assert built.chemical_distance(40, 39) <= SUBSTITUTION_DISTANCE and "YSe2" not in formulas, "Y and two Se do not balance"
    assert built.chemical_distance(50, 72) > SUBSTITUTION_DISTANCE, "not of similar elements: HfSe2 comes from ZrSe2 alone"
    assert "HfSe2" not in [r.formula for r in built.further_substitutions([r for r in parents if r.formula == "SnSe2"], elements)]
    for recipe in found:
        parent = next(p for p in parents if (p.formula == "SnSe2") == (recipe.formula == "GeSe2"))
        assert recipe.family == parent.family and recipe.template is parent.template
        changes = set(zip(recipe.atomic_numbers, parent.atomic_numbers, strict=True))
        assert sum(new != old for new, old in changes) == 1, "one element"
    assert "GeSe2" not in [recipe.formula for recipe in first], "two substitutions from what is known"
    twice = built.further_substitutions(found, elements)
    assert set(found) & set(twice) and all(r.template is parent.template for r in twice)


def test_a_library_goes_through_a_checkpoint():
    stored = io.BytesIO()
    torch.save(library().state_dict(), stored)
    stored.seek(0)
    again = TemplateLibrary.from_state_dict(torch.load(stored, weights_only=True))
    for first, second in zip(again.suggest([42, 16, 16]), library().suggest([42, 16, 16]), strict=True):
        assert first.probability == second.probability and first.atomic_numbers == second.atomic_numbers
        assert np.array_equal(first.template.frac_basis, second.template.frac_basis)
