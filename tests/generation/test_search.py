"""The order of recipes, the search by substitution and the selection, with starting sheets of known loss."""

from __future__ import annotations

import dataclasses
import pickle
from functools import partial

import numpy as np
import pytest

from crystals.recipes import Recipe
from generation import search
from generation.candidates import Plan, SampleStore, sample_candidates
from generation.search import gumbel_keys, order_recipes
from geo_utils import Sheet
from pipeline.settings import Config
from pipeline.store import LineStore


def screen_of(is_clash, loss_of, made: list | None = None):
    """Return what stands for ``search.screen``: the verdict on a recipe by its number of atoms."""

    def screened(model, recipes):
        sizes = [len(recipe.atomic_numbers) for recipe in recipes]
        if made is not None:
            made.append(sizes)
        return {"valid": [not is_clash(size) for size in sizes], "loss": [loss_of(size) for size in sizes]}

    return screened


def test_guided_recipes_prefer_low_loss_and_new_compositions(model, settings, monkeypatch):
    recipes = [Recipe(f"C{k}", (6,) * k, "x") for k in range(1, 9)]
    monkeypatch.setattr(search, "reduced_formula", lambda numbers: f"C{len(numbers)}")
    by_size = screen_of(lambda size: size == 3, float)
    strong = dataclasses.replace(settings, guidance_scale=1.0, template_share=0.0, oversample=2.0)
    order = [r.formula for r in order_recipes(model, recipes, {"C1"}, strong, 0, screened=by_size)]
    assert order == ["C2", "C4", "C5", "C6", "C7", "C8", "C1", "C3"]  # C1 is not new, and the sheet of C3 is not valid
    capped = dataclasses.replace(strong, num_structures=1, max_family_share=1.0)
    others = [dataclasses.replace(r, family="y") if r.formula in ("C6", "C8") else r for r in recipes]
    order = [r.formula for r in order_recipes(model, others, {"C1"}, capped, 0, screened=by_size)]
    assert order == ["C2", "C4", "C6", "C8", "C5", "C7", "C1", "C3"]  # two of a family, then two of the other
    one = dataclasses.replace(strong, max_family_share=1.0, max_per_composition=1)
    order = [r.formula for r in order_recipes(model, recipes + recipes[4:5] * 2, {"C1"}, one, 0, screened=by_size)]
    assert order[2:5] == ["C5", "C5", "C6"]  # two of a composition are sampled for one that is kept
    polymorphs = [dataclasses.replace(recipes[k], family=f) for k, f in ((4, "x"), (4, "y"), (4, "z"), (5, "x"))]
    assert search.exceeds_quota(polymorphs, one).tolist() == [False, True, True, False]
    assert search.exceeds_quota(polymorphs, one, 2.0).tolist() == [False, False, True, False]
    assert not search.exceeds_quota(polymorphs, dataclasses.replace(one, max_per_composition=0)).any()
    free = dataclasses.replace(settings, guidance_scale=0.0)
    orders = [[r.formula for r in order_recipes(model, recipes, {"C1"}, free, seed, screened=by_size)] for seed in range(5)]
    assert len({*map(tuple, orders)}) > 1 and all(o[-1] == "C1" for o in orders)


def test_the_search_breeds_from_the_best_and_ends_at_the_target(model, settings, monkeypatch):
    """On a line of compositions C1, C2, ... with the target at C9, one substitution leads from n to n + 1."""
    monkeypatch.setattr(search, "reduced_formula", lambda numbers: f"C{len(numbers)}")
    made: list[list[int]] = []
    screened = screen_of(lambda size: size == 4, lambda size: abs(size - 9.0), made)
    bred: list[list[str]] = []

    def next_ones(parents):
        bred.append([parent.formula for parent in parents])
        return [Recipe(f"C{len(p.atomic_numbers) + 1}", (6,) * (len(p.atomic_numbers) + 1), "x") for p in parents]

    recipes = [Recipe(f"C{k}", (6,) * k, "x") for k in (1, 2, 3, 6)]
    strong = dataclasses.replace(
        settings,
        guidance_scale=1.0,
        template_share=0.0,
        num_structures=2,
        search_rounds=2,
        max_family_share=1.0,
    )
    find = lambda settings: order_recipes(model, recipes, set(), settings, 0, screened, None, next_ones)  # noqa: E731
    order = [r.formula for r in find(strong)]
    assert bred == [["C6", "C3"], ["C7", "C6"]], "the best two of all so far, none whose sheet is not valid"
    assert order == ["C8", "C7", "C6", "C3", "C2", "C1", "C4"] and sorted(sum(made, [])) == [1, 2, 3, 4, 6, 7, 8]
    small = dataclasses.replace(strong, max_recipe_atoms=7)
    assert find(small)[0].formula == "C7"
    none = dataclasses.replace(strong, search_rounds=0)
    assert len(find(none)) == 4


def test_halides_and_alkali_metals_have_a_quota(settings):
    """MoS2, NaCl, CsI, LiTe, MoBr3, WS2: of four soluble ones in ten structures one stays ahead of the others."""
    numbers = [(42, 16, 16), (11, 17), (55, 53), (3, 52), (42, 35, 35, 35), (74, 16, 16)]
    recipes = [Recipe(str(k), z, f"family {k}") for k, z in enumerate(numbers)]
    ten = dataclasses.replace(settings, num_structures=10, max_family_share=1.0, max_soluble_share=0.1)
    assert search.exceeds_quota(recipes, ten).tolist() == [False, False, True, True, True, False]
    assert search.exceeds_quota(recipes, ten, oversample=3.0).tolist() == [False, False, False, False, True, False]
    assert search.exceeds_quota(recipes, dataclasses.replace(ten, max_soluble_share=0.0)).sum() == 4
    assert not search.exceeds_quota(recipes, dataclasses.replace(ten, max_soluble_share=1.0)).any()


def test_elements_have_a_quota(settings):
    """With S in at most two of four structures, the third sulphide waits; an atom that a cell holds twice counts once."""
    numbers = [(42, 16, 16), (74, 16, 16), (22, 16, 16), (22, 34, 34), (74, 34, 34), (16, 34)]
    recipes = [Recipe(str(k), z, f"family {k}") for k, z in enumerate(numbers)]
    four = dataclasses.replace(settings, num_structures=4, max_family_share=1.0, max_element_share=0.5)
    assert search.exceeds_quota(recipes, four).tolist() == [False, False, True, False, False, True]
    assert not search.exceeds_quota(recipes, four, oversample=2.0).any()
    assert not search.exceeds_quota(recipes, dataclasses.replace(four, max_element_share=1.0)).any()


def test_families_have_the_same_weight(model, settings):
    """Of 200 recipes of one family and 10 of another, the small family has a fair share among the first."""
    recipes = [Recipe(f"a{k}", (6,), "large") for k in range(200)] + [Recipe(f"b{k}", (6,), "small") for k in range(10)]
    free = dataclasses.replace(settings, guidance_scale=0.0)
    first = [order_recipes(model, recipes, set(), free, seed, screen_of(bool, float))[0].family for seed in range(100)]
    assert 30 < first.count("small") < 70


def test_selection_draws_with_the_tilt_of_the_guidance():
    """Of two candidates, the worse by 0.1 eV is drawn with probability 1/(1+e) at η = 1, and as often as the other at η = 0."""
    loss, trials = np.array([0.1, 0.2]), 4000
    for strength, expected in ((1.0, 1 / (1 + np.e)), (0.0, 0.5)):
        worse = sum(np.argmax(gumbel_keys(loss, [2 * k, 2 * k + 1], strength, 0)) for k in range(trials))
        assert worse / trials == pytest.approx(expected, abs=4 * 0.5 / trials**0.5)
    keys = gumbel_keys(np.zeros(3), [5, 6, 7], 1.0, 0)
    np.testing.assert_array_equal(gumbel_keys(np.zeros(2), [7, 5], 1.0, 0), keys[[2, 0]])


def test_verdicts_of_a_stopped_run_are_not_made_again(model, settings, monkeypatch, tmp_path):
    """A run that dies in its third batch goes on with that batch, and ends as one that was not stopped."""
    made: list[list[int]] = []
    judge = screen_of(lambda size: size == 4, lambda size: size / 7, made)

    def screened(model, recipes):
        if len(made) == dies_after:
            raise KeyboardInterrupt
        return judge(model, recipes)

    monkeypatch.setattr(search, "reduced_formula", lambda numbers: f"C{len(numbers)}")
    monkeypatch.setattr(search, "BATCH", 3)
    recipes = [Recipe(f"C{k}", (6,) * k, "x") for k in range(1, 11)]
    strong = dataclasses.replace(settings, guidance_scale=1.0, num_structures=40)

    def find(run: int | None):
        store = LineStore(tmp_path / "d.jsonl", {"run": run}) if run else None
        return order_recipes(model, recipes, set(), strong, 0, store=store, screened=screened)

    dies_after = 99
    expected, batches = find(None), [*made]
    made.clear()
    dies_after = 2
    with pytest.raises(KeyboardInterrupt):
        find(1)
    dies_after = 99
    assert find(1) == expected
    assert made == batches and len(batches) == 4
    find(2)
    assert len(made) == 8, "verdicts of other settings are made anew"


HEXAGON = np.array([[1.0, 0.0], [-0.5, 3**0.5 / 2]])


def scaled(sheet: Sheet, factor: float) -> Sheet:
    return dataclasses.replace(sheet, lattice=factor * sheet.lattice)


class AtWork:
    """A backend that runs the tasks elsewhere, as far as the caller can tell, and the last one first."""

    def __init__(self, model):
        self.model, self.tasks = model, 0

    def results(self, function, tasks):
        assert isinstance(function, partial) and function.args[2] == "cpu", "it runs where the workers are"
        for key, task in reversed(pickle.loads(pickle.dumps(tasks)).items()):
            self.tasks += 1
            yield key, pickle.loads(pickle.dumps(function))(self.model, task)


def test_workers_say_the_same_of_starting_sheets(model, settings, monkeypatch, tmp_path):
    monkeypatch.setattr(search, "BATCH", 2)
    start = Sheet(
        np.array([42, 16, 16]), np.array([[0, 0], [1 / 3, 2 / 3], [1 / 3, 2 / 3]]), np.array([0.0, 1.56, -1.56]), 3.18 * HEXAGON
    )
    recipes = [Recipe(f"r{k}", (42, 16, 16), f"family {k}", start=scaled(start, 0.4 + 0.1 * k)) for k in range(18)]
    screened = partial(search.screen, None, dataclasses.replace(settings, refine_steps=0), "cpu")
    alone = search.judge_starts(model.double(), recipes, screened, {})
    assert 0 < alone[0].sum() < 18 and len(set(alone[1])) > 9, (
        "sheets that clash are not valid, and the heads tell the others apart"
    )
    store, workers = LineStore(tmp_path / "d.jsonl", {"run": 1}), AtWork(model)
    together = search.judge_starts(model, recipes, screened, {}, store, workers)
    assert workers.tasks == 9 and all((a == b).all() for a, b in zip(alone, together, strict=True))
    assert search.judge_starts(model, recipes, screened, {}, store, workers)[1].tolist() == alone[1].tolist()
    search.judge_starts(model, recipes[:6], screened, {}, None, workers)
    assert workers.tasks == 9, "what is stored is not judged again, and a few recipes are judged at once"


def test_workers_sample_the_same_sheets(model, settings, tmp_path):
    cfg = Config(generation=dataclasses.replace(settings, batch_size=2, num_steps=3))
    plans = [Plan(k, Recipe(f"C{k + 2}", (6,) * (k + 2), "x"), None, (6,) * (k + 2)) for k in range(5)]
    model, workers = model.double(), AtWork(model.double())
    alone = sample_candidates(model, plans, cfg, SampleStore(tmp_path / "alone", "x"), "cpu")
    together = sample_candidates(model, plans, cfg, SampleStore(tmp_path / "together", "x"), "cpu", workers)
    assert workers.tasks == 3 and [c.index for c in together] == list(range(5))
    for one, other in zip(alone, together, strict=True):
        for name, value in vars(one.sheet).items():
            np.testing.assert_array_equal(value, getattr(other.sheet, name))
    stored = SampleStore(tmp_path / "together", "x")
    sample_candidates(model, plans, cfg, stored, "cpu", workers)
    assert workers.tasks == 3, "what is stored is not sampled again"
