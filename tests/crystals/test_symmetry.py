"""Templates: what symmetry leaves free, against spglib and against the invariance of the metric; noise and samples that keep it."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch

from crystals.prototypes import PROTOTYPES
from crystals.recipes import Recipe, recipe_template, recipes
from crystals.symmetry import SymmetryConstraint, Template, find_operations, symmetrise
from crystals.templates import SUBSTITUTION_DISTANCE, TemplateLibrary, spread_draw, template_key
from generation.batch import PropertyEstimate, SheetBatch
from generation.process import add_noise, physical_state
from generation.sampling import sample
from generation.schedule import NoiseSchedule
from geo_utils import Sheet, lattice_to_vector, vector_to_lattice
from models import DenoiserModelConfig, DenoisingEGNN
from pipeline.settings import GenerationConfig


def sheet_of(family: str, *elements: str) -> Sheet:
    return Sheet.from_atoms(PROTOTYPES[family].build(*elements))


MOS2, TISE2, WTE2 = sheet_of("2H-MX2", "Mo", "S"), sheet_of("1T-MX2", "Ti", "Se"), sheet_of("1Tprime-MX2", "W", "Te")
PDSE2, FEOCL, GES = sheet_of("penta-MX2", "Pd", "Se"), sheet_of("FeOCl", "Fe", "O", "Cl"), sheet_of("GeS", "Ge", "S")
SYMMETRIC = [MOS2, TISE2, WTE2, PDSE2, FEOCL, GES]


def low_symmetry(seed: int = 0) -> Sheet:
    rng = np.random.default_rng(seed)
    heights = rng.normal(size=4)
    return Sheet(np.array([6, 7, 8, 9]), rng.random((4, 2)), heights - heights.mean(), np.array([[3.3, 0.0], [-0.7, 4.1]]))


@pytest.mark.parametrize(
    "sheet, layer_group, free",
    [
        (MOS2, 78, (0, 1, 1)),  # p-6m2: S above Mo at ±z; one lattice constant
        (TISE2, 72, (0, 1, 1)),  # p-3m1
        (PDSE2, 17, (2, 1, 2)),  # p2_1/b11: Pd at an inversion centre, Se at x, y, z; a and b
        (WTE2, 15, (3, 3, 2)),  # p2_1/m11: each of the three kinds of site on the mirror at y, z
        (FEOCL, 46, (0, 3, 2)),  # pmmn: every atom at (0, 1/2, z) or its like
        (low_symmetry(), 1, (8, 3, 3)),
    ],
)
def test_free_numbers_by_hand(sheet, layer_group, free):
    template = Template.of(sheet)
    assert (template.layer_group, template.num_free) == (layer_group, free)


@pytest.mark.parametrize("sheet", SYMMETRIC, ids=lambda s: str(s.atomic_numbers.tolist()))
def test_every_symmetric_displacement_keeps_the_group_and_no_other_does(sheet):
    template, rng = Template.of(sheet), np.random.default_rng(1)
    operations = find_operations(sheet, 1e-3, -1.0)
    assert len(operations) > 1
    in_plane = (template.frac_projector @ rng.normal(size=2 * len(sheet))).reshape(-1, 2) * 0.02
    moved = dataclasses.replace(
        sheet,
        frac_coords=template.frac_origin
        + (template.frac_projector @ (sheet.frac_coords - template.frac_origin).reshape(-1)).reshape(-1, 2)
        + in_plane,
        heights=sheet.heights + template.height_projector @ rng.normal(size=len(sheet)) * 0.05,
    )
    assert len(find_operations(moved, 1e-3, -1.0)) == len(operations)
    broken = dataclasses.replace(sheet, frac_coords=sheet.frac_coords + rng.normal(size=(len(sheet), 2)) * 0.02)
    assert len(find_operations(broken, 1e-3, -1.0)) < len(operations)


@pytest.mark.parametrize("sheet", [*SYMMETRIC, low_symmetry()], ids=lambda s: str(s.atomic_numbers.tolist()))
def test_projected_lattices_are_invariant_and_keep_their_area(sheet):
    template = Template.of(sheet)
    constraint = SymmetryConstraint([template], torch.tensor([len(sheet)]), torch.zeros(1, dtype=torch.float64))
    vector = lattice_to_vector(torch.as_tensor(sheet.lattice))[None] + 0.2 * torch.randn(
        1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    projected = constraint.lattice(vector)
    metric = (lambda cell: cell @ cell.transpose(-1, -2))(vector_to_lattice(projected))[0].numpy()
    for rotation in template.rotations:
        np.testing.assert_allclose(rotation.T @ metric @ rotation, metric, atol=1e-10)
    assert float(projected[0, :2].sum()) == pytest.approx(float(vector[0, :2].sum()), abs=1e-10), "log area"
    torch.testing.assert_close(constraint.lattice(projected), projected, atol=1e-10, rtol=0)
    own = lattice_to_vector(torch.as_tensor(sheet.lattice))[None]
    torch.testing.assert_close(constraint.lattice(own), own, atol=1e-6, rtol=0)


def test_a_sheet_without_template_is_left_alone_beside_one_with():
    sizes = torch.tensor([4, 3])
    constraint = SymmetryConstraint([None, Template.of(MOS2)], sizes, torch.zeros(1, dtype=torch.float64))
    frac, height, lattice = torch.randn(7, 2).double(), torch.randn(7).double(), 0.3 * torch.randn(2, 3).double()
    assert torch.equal(constraint.frac(frac)[:4], frac[:4]) and float(constraint.frac(frac)[4:].abs().max()) < 1e-12
    assert torch.equal(constraint.height(height)[:4], height[:4])
    torch.testing.assert_close(constraint.lattice(lattice)[0], lattice[0])
    with pytest.raises(ValueError, match="template of 3 atoms"):
        SymmetryConstraint([Template.of(MOS2)], torch.tensor([4]), frac)


@pytest.fixture(scope="module")
def model() -> DenoisingEGNN:
    torch.manual_seed(0)
    net = DenoisingEGNN(
        DenoiserModelConfig(hidden_channels=16, vector_channels=4, num_layers=1, num_rbf=8, max_neighbors=8, num_timesteps=60,
                            beta_end=0.3)
    )  # fmt: skip
    return net.double().eval()


def batch_of(sheets: list[Sheet]) -> SheetBatch:
    sizes = torch.tensor([len(s) for s in sheets])
    return SheetBatch(
        torch.as_tensor(np.concatenate([s.atomic_numbers for s in sheets])),
        torch.as_tensor(np.concatenate([s.frac_coords for s in sheets])),
        torch.as_tensor(np.concatenate([s.heights for s in sheets])),
        lattice_to_vector(torch.as_tensor(np.stack([s.lattice for s in sheets]))),
        torch.repeat_interleave(torch.arange(len(sheets)), sizes),
        sizes,
    )


def test_noise_within_a_template_is_symmetric_and_leads_back(model):
    sheets = batch_of(SYMMETRIC)
    schedule, generator = model.schedule, torch.Generator().manual_seed(2)
    constraint = SymmetryConstraint([Template.of(s) for s in SYMMETRIC], sheets.num_atoms, sheets.frac_coords)
    t = torch.full((len(SYMMETRIC),), 30)
    count = len(sheets.batch)
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((count, 2), (count,), (len(SYMMETRIC), 3))]
    state = add_noise(schedule, sheets, t, *noise, constraint)
    heights, cell = physical_state(schedule, state.height, state.lattice, sheets)
    start = 0
    for k, sheet in enumerate(SYMMETRIC):
        atoms = slice(start, start + len(sheet))
        noised = Sheet(sheet.atomic_numbers, state.frac[atoms].numpy(), heights[atoms].numpy(), cell[k].numpy())
        assert len(find_operations(noised, 1e-3, -1.0)) >= len(find_operations(sheet, 1e-3, -1.0))
        start += len(sheet)
    a, s = schedule.alphas_cumprod[30].sqrt(), (1 - schedule.alphas_cumprod[30]).sqrt()
    clean = schedule.scale_lattice(sheets.lattice_vector, sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    torch.testing.assert_close(a * clean + s * state.lattice_target, state.lattice, atol=1e-5, rtol=0)
    torch.testing.assert_close(constraint.frac(state.frac_target), state.frac_target, atol=1e-10, rtol=0)


def test_the_network_answers_a_symmetric_sheet_within_its_symmetry(model):
    """Equivariance: nothing but noise has to be projected, so the restricted reverse process is that of the learnt density."""
    sheets = batch_of(SYMMETRIC)
    constraint = SymmetryConstraint([Template.of(s) for s in SYMMETRIC], sheets.num_atoms, sheets.frac_coords)
    cell = vector_to_lattice(sheets.lattice_vector)
    exact = dataclasses.replace(
        sheets,
        frac_coords=torch.cat([torch.as_tensor(symmetrise(s, 0.01)[0].frac_coords) for s in SYMMETRIC]),
        heights=constraint.height(sheets.heights),
    )
    encoded = model.encode(exact.atomic_numbers, exact.frac_coords, exact.heights, cell, exact.batch, torch.full((6,), 20))
    noise = model.noise(encoded)
    torch.testing.assert_close(constraint.frac(noise.frac), noise.frac, atol=1e-7, rtol=0)
    torch.testing.assert_close(constraint.height(noise.height), noise.height, atol=1e-7, rtol=0)


def test_samples_keep_the_symmetry_of_their_template(model):
    settings = dataclasses.replace(GenerationConfig(), num_steps=8, guidance_scale=0.5, cfg_scale=1.5)
    templates = [Template.of(s) for s in SYMMETRIC]
    numbers = [s.atomic_numbers.tolist() for s in SYMMETRIC]
    together = sample(model, numbers, range(6), settings, 0, templates=templates)
    for k, (found, sheet) in enumerate(zip(together, SYMMETRIC, strict=True)):
        assert len(find_operations(found, 1e-3, -1.0)) >= len(find_operations(sheet, 1e-3, -1.0)), k
        alone = sample(model, numbers[k : k + 1], [k], settings, 0, templates=templates[k : k + 1])[0]
        assert np.array_equal(alone.frac_coords, found.frac_coords) and np.array_equal(alone.heights, found.heights)
        assert np.array_equal(alone.lattice, found.lattice)


def test_guidance_does_not_depend_on_which_of_equal_atoms_the_heads_look_at(model, monkeypatch):
    """The maximum over atoms goes to any of those that symmetry makes equal, by the last digit of each. Six of CrI3's are, under
    threefold axes, which are no orthogonal maps of fractional coordinates."""
    sheet = sheet_of("MX3", "Cr", "I")
    settings = dataclasses.replace(GenerationConfig(), num_steps=8, guidance_scale=1.0, cfg_scale=0.0)

    def looking_at(atom):
        def head(self, encoded):
            seen = 10 * encoded.scalars[atom].sum()[None] + encoded.scaled_heights[atom]
            return PropertyEstimate(seen, torch.zeros_like(seen), torch.full_like(seen, 50.0))

        monkeypatch.setattr(DenoisingEGNN, "properties", head)
        return sample(model, [sheet.atomic_numbers.tolist()], [0], settings, 0, templates=[Template.of(sheet)])[0]

    upper = [k for k in range(len(sheet)) if sheet.atomic_numbers[k] == 53 and sheet.heights[k] > 0]
    first, *others = [looking_at(k) for k in upper]
    free = dataclasses.replace(settings, guidance_scale=0.0)
    unguided = sample(model, [sheet.atomic_numbers.tolist()], [0], free, 0, templates=[Template.of(sheet)])[0]
    assert np.abs(first.lattice - unguided.lattice).max() > 1e-4 and len(others) == 2
    for other in others:
        assert np.array_equal(first.lattice, other.lattice) and np.array_equal(first.heights, other.heights)
        assert np.array_equal(first.frac_coords, other.frac_coords)


def test_every_family_has_a_template_for_its_recipes():
    for name, prototype in PROTOTYPES.items():
        elements = next(prototype.decorations())
        atoms = prototype.build(*elements)
        template = recipe_template(Recipe("", tuple(atoms.numbers.tolist()), name))
        assert template.layer_group > 1 and template.layer_group == Template.of(Sheet.from_atoms(atoms)).layer_group, name
    mixed = next(recipe for recipe in recipes({42, 74, 16, 34}, mixed=True) if recipe.family.endswith("mixed"))
    assert len(recipe_template(mixed).kinds) == len(mixed.atomic_numbers)


# ------------------------------------------------------------------------------------------------------------------- library


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
    drawn = [spread_draw(found, k).template.layer_group for k in range(64)]
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
    assert built._distance(40, 39) <= SUBSTITUTION_DISTANCE and "YSe2" not in formulas, "Y and two Se do not balance"
    assert built._distance(50, 72) > SUBSTITUTION_DISTANCE, "not of similar elements: HfSe2 comes from ZrSe2 alone"
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


def test_schedule_is_untouched_without_templates():
    schedule = NoiseSchedule(50, 1e-3, 0.2, 0.01, 0.5)
    sheets = batch_of([MOS2])
    noise = (torch.ones(3, 2).double(), torch.tensor([1.0, -1.0, 0.0]).double(), torch.ones(1, 3).double())
    state = add_noise(schedule, sheets, torch.tensor([10]), *noise)
    assert torch.equal(state.lattice_target, noise[2])
