"""Recipes from the diffusion of elements: storage of the model, and what the shipped weights draw within the settings."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from element_tables import flat_ab, mx2

from crystals.elements import covalent_radius_table
from crystals.prototypes import PROTOTYPES
from crystals.recipes import allowed_elements, prototype_recipes, reduced_formula
from crystals.symmetry import Template, symmetrise
from crystals.templates import TemplateLibrary
from generation import elements
from generation.element_diffusion import draw_elements
from generation.element_training import at_bond_length
from generation.elements import (
    ASKED,
    CONDITIONS,
    REDRAWS,
    UNGUIDED_DRAWS,
    ElementModel,
    conditions_of,
    element_recipes,
    load_elements,
    new_element_denoiser,
    redrawn_recipes,
    save_elements,
)
from generation.mean_arrangements import mean_arrangements
from generation.recipe_choice import choose_recipes
from generation.refinement import padded
from geo_utils import Sheet
from networks.checkpoints import CheckpointError
from networks.element_denoiser import ElementDenoiserConfig
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.settings import GenerationConfig
from pipeline.store import LineStore

SIZES = {"channels": 12, "vectors": 3, "tensors": 3, "layers": 1, "neighbours": 10, "rbf": 6}
UNGUIDED = GenerationConfig(num_structures=8, guidance_scale=0.0, cfg_scale=0.0)


def small_model(conditions: tuple[str, ...] = CONDITIONS) -> ElementModel:
    """A random small network whose weights half precision holds exactly, and two arrangements."""
    torch.manual_seed(0)
    network = new_element_denoiser(ElementDenoiserConfig(**SIZES, conditions=conditions)).eval()
    for parameter in network.parameters():
        parameter.data = (parameter.data + 0.3 * torch.randn_like(parameter)).half().float()
    radii = covalent_radius_table().float()
    flat = flat_ab(5, 7, float(radii[5] + radii[7]))
    members = [at_bond_length(padded([sheet] * 3), radii) for sheet in (mx2(42, 16), flat)]
    properties = [torch.zeros(3, len(CONDITIONS))] * 2
    elements = [torch.tensor([[42, 16]] * 3), torch.tensor([[5, 7]] * 3)]
    arrangements = mean_arrangements(members, [torch.tensor([0, 1, 1]), torch.tensor([0, 1])], elements, properties)
    seen = torch.zeros(119, dtype=torch.bool)
    seen[[1, 8, 16, 22, 34, 42, 74]] = True
    return ElementModel(network, arrangements, seen)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save_elements(tmp_path / "elements.pth", small_model(), step=7)
    return tmp_path / "elements.pth"


@pytest.fixture(scope="module")
def shipped() -> ElementModel:
    return load_elements(PROJECT_DIR / "weights" / "elements.pth")


def trained_on(model: ElementModel) -> set[int]:
    return set(torch.nonzero(model.seen).flatten().tolist())


def draws(model: ElementModel) -> torch.Tensor:
    rows = torch.tensor([0, 1] * 50)
    state = model.arrangements.state(rows)
    generator = torch.Generator().manual_seed(3)
    asked = conditions_of(GenerationConfig())
    return draw_elements(model.network, state, model.arrangements.kinds[rows], asked, 1.5, model.seen, generator)[0]


def test_a_model_that_was_stored_draws_the_same(checkpoint, tmp_path):
    first, again = small_model(), load_elements(checkpoint)
    assert torch.equal(draws(first), draws(again)) and len(draws(again).unique()) > 4
    assert torch.equal(first.seen, again.seen) and again.network.config == first.network.config
    assert not again.network.training and not any(x.requires_grad for x in again.network.parameters())
    save_elements(tmp_path / "second.pth", again, step=7)
    assert (tmp_path / "second.pth").read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize("part", ["embed.weight", "condition_mean", "null"])
def test_a_checkpoint_without_a_part_is_one_line(checkpoint, part):
    content = torch.load(checkpoint, weights_only=True)
    del content["model"][part]
    torch.save(content, checkpoint)
    with pytest.raises(CheckpointError, match="elements.pth does not fit this version .*train_elements"):
        load_elements(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(kind="refiner"), "is not a element_denoiser checkpoint .found: refiner"),
        (lambda content: content.pop("arrangements"), "does not fit this version"),
        (lambda content: content.pop("seen"), "does not fit this version"),
        (lambda content: content["arrangements"].pop("cell"), "does not fit this version"),
        (lambda content: content["arrangements"].pop("properties"), "does not fit this version"),
        (lambda content: content["arrangements"].update(properties=torch.zeros(6, 2)), "does not fit this version"),
        (lambda content: content.update(seen=torch.ones(50).bool()), "does not fit this version"),
        (lambda content: content["model_config"].update(channels=13), "does not fit this version"),
        (lambda content: content["model_config"].update(colour=1), "does not fit this version"),
        (lambda content: content["model"]["null"].fill_(torch.nan), "holds weights that are not finite"),
        (lambda content: content.update(schema_version=0), "has schema 0"),
    ],
)
def test_a_checkpoint_of_another_kind_or_version_is_one_line(checkpoint, change, message):
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, checkpoint)
    with pytest.raises(CheckpointError, match=f"elements.pth {message}") as found:
        load_elements(checkpoint)
    assert "\n" not in str(found.value)


def test_damaged_and_missing_files_and_other_conditions_are_one_line(checkpoint, tmp_path):
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="elements.pth is not a readable element_denoiser checkpoint"):
        load_elements(checkpoint)
    with pytest.raises(CheckpointError, match="none.pth"):
        load_elements(tmp_path / "none.pth")
    for conditions in (CONDITIONS[::-1], CONDITIONS[:3], ()):
        save_elements(tmp_path / "other.pth", small_model(conditions))
        with pytest.raises(CheckpointError, match="other.pth does not fit this version .its conditions are not"):
            load_elements(tmp_path / "other.pth")


def test_what_is_asked_for_follows_the_settings():
    asked = conditions_of(GenerationConfig(target_delta_g=-0.2, target_e_hull=0.05))
    assert asked.tolist() == pytest.approx([-0.2, 0.05, ASKED["conducts"], ASKED["p_dynamic"], ASKED["dissolves"]])


def test_recipes_differ_and_start_from_sheets_of_their_elements(shipped):
    settings = dataclasses.replace(UNGUIDED, num_structures=12, max_recipe_atoms=6)
    recipes = element_recipes(shipped, settings, trained_on(shipped), 0)
    assert 0.8 * 12 * UNGUIDED_DRAWS < len(recipes) <= 12 * UNGUIDED_DRAWS, "few of them are drawn twice"
    assert len({(recipe.family, tuple(sorted(recipe.atomic_numbers))) for recipe in recipes}) == len(recipes)
    for recipe in recipes:
        assert recipe.start.atomic_numbers.tolist() == list(recipe.atomic_numbers) and len(recipe.atomic_numbers) <= 6
        assert 1 not in recipe.atomic_numbers and set(recipe.atomic_numbers) <= trained_on(shipped)
        letters, group, row = recipe.family.split(", ")
        assert int(group.removeprefix("layer group ")) > 1
        assert shipped.arrangements.name(int(row.removeprefix("arrangement "))) == recipe.family
        amounts = sorted(recipe.atomic_numbers.count(z) for z in set(recipe.atomic_numbers))
        own = shipped.arrangements.kinds[int(row.removeprefix("arrangement "))][: len(recipe.atomic_numbers)]
        assert sorted(torch.bincount(own).tolist()) == amounts
    groups = [symmetrise(recipe.start, 0.1)[1].layer_group_number for recipe in recipes]
    assert np.mean([group > 1 for group in groups]) > 0.9


def test_the_same_seed_gives_the_same_recipes(shipped):
    settings = dataclasses.replace(UNGUIDED, num_structures=4, cfg_scale=1.5)
    first, again, other = (element_recipes(shipped, settings, trained_on(shipped), seed) for seed in (3, 3, 4))
    assert [(r.formula, r.family) for r in first] == [(r.formula, r.family) for r in again]
    assert all((a.start.lattice == b.start.lattice).all() for a, b in zip(first, again, strict=True))
    assert [r.formula for r in first] != [r.formula for r in other]


def test_elements_that_were_drawn_are_not_drawn_again(shipped, tmp_path, monkeypatch):
    settings = dataclasses.replace(UNGUIDED, num_structures=10)
    monkeypatch.setattr(elements, "BATCH", 16)
    whole = element_recipes(shipped, settings, trained_on(shipped), 0)

    class Killed(BaseException):
        pass

    class Stopping(LineStore):
        def add(self, key, record):
            if key == 1:
                raise Killed
            return super().add(key, record)

    with pytest.raises(Killed):
        element_recipes(shipped, settings, trained_on(shipped), 0, store=Stopping(tmp_path / "drawn.jsonl", {"of": "this"}))
    asked, draw = [], elements.draw_elements
    monkeypatch.setattr(elements, "draw_elements", lambda *arguments: asked.append(1) or draw(*arguments))
    for expected in (2, 0):
        resumed = element_recipes(
            shipped, settings, trained_on(shipped), 0, store=LineStore(tmp_path / "drawn.jsonl", {"of": "this"})
        )
        assert len(asked) == expected, "of three batches the first was there"
        assert [(r.formula, r.family) for r in resumed] == [(r.formula, r.family) for r in whole]
        assert all((a.start.heights == b.start.heights).all() for a, b in zip(resumed, whole, strict=True))
        asked.clear()


def test_guidance_draws_arrangements_whose_crystals_are_near_the_hull(shipped):
    """The crystals of what is drawn are near the hull more often than those of all arrangements."""
    arrangements, column = shipped.arrangements, CONDITIONS.index("e_hull")
    stable = torch.zeros(len(arrangements)).index_add(0, arrangements.owner, (arrangements.properties[:, column] <= 0.1).float())
    share = stable / arrangements.crystals

    def mean_share(w: float) -> float:
        settings = dataclasses.replace(UNGUIDED, num_structures=60, cfg_scale=w)
        recipes = element_recipes(shipped, settings, trained_on(shipped), 0)
        return float(torch.stack([share[int(recipe.family.rsplit(" ", 1)[1])] for recipe in recipes]).mean())

    rows = arrangements.rows_of_at_most(UNGUIDED.max_recipe_atoms)
    without_h = arrangements.made_of(shipped.seen & (torch.arange(119) != 1)).float()
    of_elements = torch.zeros(len(arrangements)).index_add(0, arrangements.owner, without_h)
    everywhere = float((share * of_elements)[rows].sum() / of_elements[rows].sum())
    unguided = mean_share(0.0)
    assert unguided == pytest.approx(everywhere, abs=0.06)
    guided = mean_share(1.5)
    assert guided > 1.5 * unguided and guided > 1.4 * everywhere
    chosen = dataclasses.replace(UNGUIDED, num_structures=8, element_draws=60, guidance_scale=1.0, cfg_scale=1.5)
    by_number = [float(share[int(r.family.rsplit(" ", 1)[1])]) for r in element_recipes(shipped, chosen, trained_on(shipped), 0)]
    assert np.mean(by_number) == pytest.approx(everywhere, abs=0.09), "where there is a choice, by the number of their crystals"


def test_guidance_draws_more_to_choose_from(checkpoint):
    """Of seven elements without H, the two arrangements have few recipes; all of them are found, and each once."""
    model = load_elements(checkpoint)
    settings = GenerationConfig(num_structures=4, guidance_scale=1.0, cfg_scale=0.0, element_draws=60)
    few = element_recipes(model, dataclasses.replace(settings, guidance_scale=0.0), trained_on(model), 0)
    many = element_recipes(model, settings, trained_on(model), 0)
    assert len(few) <= 4 * UNGUIDED_DRAWS < len(many) <= 30 + 15
    assert len({(r.family, tuple(sorted(r.atomic_numbers))) for r in many}) == len(many)
    assert {len(r.atomic_numbers) for r in many} == {2, 3}


def test_only_elements_that_the_settings_allow_are_drawn(shipped):
    content = {"elements": sorted(trained_on(shipped)), "formulas": ["MoS2", "WS2"]}
    settings = dataclasses.replace(
        UNGUIDED, num_structures=6, elements=["H", "Mo", "W", "S", "Se", "Pb"], max_recipe_atoms=3,
        cfg_scale=1.0, elements_checkpoint=str(PROJECT_DIR / "weights" / "elements.pth"),
    )  # fmt: skip
    assert 82 in settings_excluded(settings), "lead is among the elements that are left out unless one asks for them"
    recipes = choose_recipes(content, None, settings, 0)
    assert {z for recipe in recipes for z in recipe.atomic_numbers} <= {42, 74, 16, 34}
    assert all(len(recipe.atomic_numbers) <= 3 for recipe in recipes)
    known = [reduced_formula(recipe.atomic_numbers) in content["formulas"] for recipe in recipes]
    assert known == sorted(known) and any(known) and not all(known), "new ones come first"
    with pytest.raises(StageError, match="at most 8 atoms and so few elements"):
        element_recipes(shipped, UNGUIDED, {1}, 0)
    with pytest.raises(StageError, match="so few elements"):
        element_recipes(shipped, UNGUIDED, set(), 0)
    with pytest.raises(StageError, match="at most 1 atoms"):
        element_recipes(shipped, dataclasses.replace(UNGUIDED, max_recipe_atoms=1), trained_on(shipped), 0)
    with pytest.raises(StageError, match="leave no element"):
        choose_recipes(content, None, dataclasses.replace(settings, elements=["Pb"]), 0)


def test_a_screening_draws_from_prototypes_and_substitutions():
    """Of ten draws none is beyond the largest cell; with enough draws all recipes come, a known composition last."""
    sheets = [Sheet.from_atoms(PROTOTYPES["2H-MX2"].build(metal, "S")) for metal in ("Ti", "Zr", "Hf", "Mo", "W", "Nb")]
    library = TemplateLibrary.build([(sheet, Template.of(sheet)) for sheet in sheets])
    elements = {16, 22, 34, 40, 41, 42, 52, 72, 74}
    content = {"elements": sorted(elements), "formulas": ["MoS2"]}
    asked = dataclasses.replace(UNGUIDED, start="screening", num_structures=2, element_draws=5, max_recipe_atoms=4)
    few, others = (choose_recipes(content, library, asked, seed) for seed in (0, 1))
    assert len(few) == 10 and few != others and few == choose_recipes(content, library, asked, 0)
    every = choose_recipes(content, library, dataclasses.replace(asked, element_draws=10_000), 0)
    possible = [r for r in (*prototype_recipes(elements), *library.substitutions(elements)) if len(r.atomic_numbers) <= 4]
    assert Counter(every) == Counter(possible) and len(every) > 20
    known = [recipe.formula == "MoS2" for recipe in every]
    assert known == sorted(known) and any(known)
    with pytest.raises(StageError, match="max_recipe_atoms: there is no recipe of at most 1 atoms"):
        choose_recipes(content, library, dataclasses.replace(asked, max_recipe_atoms=1, elements=["S", "Mo"]), 0)


def settings_excluded(settings: GenerationConfig) -> set[int]:
    everything = set(range(1, 119))
    return everything - allowed_elements(everything, [], settings.exclude_elements)


def test_two_elements_fill_arrangements_of_two_kinds_alone(shipped):
    recipes = element_recipes(shipped, UNGUIDED, {42, 16}, 0)
    assert recipes and {tuple(sorted(set(recipe.atomic_numbers))) for recipe in recipes} <= {(16, 42), (16,), (42,)}


def test_elements_that_the_network_has_not_seen_are_never_drawn(checkpoint):
    model = load_elements(checkpoint)
    recipes = element_recipes(model, dataclasses.replace(UNGUIDED, num_structures=30), set(range(1, 119)), 0)
    assert {z for recipe in recipes for z in recipe.atomic_numbers} == trained_on(model) - {1}


def test_sizes_of_starts_are_those_of_their_elements(checkpoint):
    """The bonds of flat sheets of two atoms are as long as the sum of their radii, and those of 2H sheets grow with it."""
    radii = covalent_radius_table().numpy()
    recipes = element_recipes(load_elements(checkpoint), dataclasses.replace(UNGUIDED, num_structures=20), {8, 16, 34, 42, 74}, 1)
    flat = [recipe for recipe in recipes if len(recipe.atomic_numbers) == 2]
    assert len(flat) >= 3
    for recipe in flat:
        bond = np.linalg.norm(recipe.start.lattice[0]) / np.sqrt(3)
        assert bond == pytest.approx(radii[list(recipe.atomic_numbers)].sum(), rel=0.01)
    areas = {recipe.formula: np.linalg.det(recipe.start.lattice) for recipe in recipes}
    sums = {recipe.formula: radii[list(recipe.atomic_numbers)].sum() for recipe in recipes if len(recipe.atomic_numbers) == 3}
    assert areas[max(sums, key=sums.get)] > 1.2 * areas[min(sums, key=sums.get)]


def test_recipes_drawn_anew_differ_in_one_kind_or_in_the_arrangement(shipped):
    settings = dataclasses.replace(UNGUIDED, cfg_scale=1.5)
    parents = list({recipe.family: recipe for recipe in element_recipes(shipped, settings, trained_on(shipped), 1)}.values())[:6]
    found = redrawn_recipes(shipped, settings, trained_on(shipped), 0, parents)
    arrangements = shipped.arrangements
    by_family = {parent.family: parent for parent in parents}
    kinds_of = {name: arrangements.kinds[arrangements.row(name)].numpy() for name in {r.family for r in [*parents, *found]}}
    changed, moved = 0, 0
    for recipe in found:
        numbers = np.array(recipe.atomic_numbers)
        kinds = kinds_of[recipe.family][: len(numbers)]
        assert len(set(zip(kinds.tolist(), numbers.tolist(), strict=True))) == len(set(numbers.tolist())), "one element a kind"
        same = [p for p in parents if sorted(p.atomic_numbers) == sorted(recipe.atomic_numbers)]
        if same and recipe.family not in {p.family for p in same}:
            moved += 1
            continue
        parent = by_family[recipe.family]
        others = numbers != np.array(parent.atomic_numbers)
        assert len(set(kinds[others].tolist())) == 1 and 1 not in numbers
        changed += 1
    number_of_kinds = sum(len(set(parent.atomic_numbers)) for parent in parents)
    assert changed == number_of_kinds * REDRAWS and 0 < moved <= len(parents) * REDRAWS
    again, other = (redrawn_recipes(shipped, settings, trained_on(shipped), seed, parents) for seed in (0, 1))
    assert found == again and found != other
    assert all(recipe.start is not None for recipe in found)
    assert redrawn_recipes(shipped, settings, trained_on(shipped), 0, []) == []


def test_where_few_elements_are_allowed_as_many_are_drawn_anew_as_there_are(shipped):
    settings = dataclasses.replace(UNGUIDED, cfg_scale=1.5)
    parents = element_recipes(shipped, settings, {42, 16, 74, 34}, 1)[:3]
    found = redrawn_recipes(shipped, settings, {42, 16, 74, 34}, 0, parents)
    assert found and all(set(recipe.atomic_numbers) <= {42, 16, 74, 34} for recipe in found)
    only = redrawn_recipes(shipped, settings, set(parents[0].atomic_numbers), 0, parents[:1])
    assert all(sorted(recipe.atomic_numbers) == sorted(parents[0].atomic_numbers) for recipe in only), "nothing else is allowed"
