"""Quotas, random orders, what the heads alone say of starting sheets, the selection, and work in other processes."""

from __future__ import annotations

import dataclasses
import pickle
from functools import partial

import numpy as np
import pytest

from crystals.recipes import Recipe
from generation import search
from generation.candidates import Plan, SampleStore, sample_candidates
from generation.sampling import predict_properties, target_loss
from generation.search import gumbel_keys, in_random_order
from geo_utils import Sheet
from pipeline.settings import Config

HEXAGON = np.array([[1.0, 0.0], [-0.5, 3**0.5 / 2]])


START = Sheet(
    np.array([42, 16, 16]), np.array([[0, 0], [1 / 3, 2 / 3], [1 / 3, 2 / 3]]), np.array([0.0, 1.56, -1.56]), 3.18 * HEXAGON
)


def scaled(sheet: Sheet, factor: float) -> Sheet:
    return dataclasses.replace(sheet, lattice=factor * sheet.lattice)


def test_compositions_have_a_quota(settings):
    recipes = [Recipe(f"C{k}", (6,) * k, "x") for k in range(1, 9)]
    one = dataclasses.replace(settings, num_structures=8, max_family_share=1.0, max_per_composition=1)
    polymorphs = [dataclasses.replace(recipes[k], atomic_numbers=(6, 7) * k, family=f) for k, f in ((4, "x"), (4, "y"), (4, "z"))]
    polymorphs.append(dataclasses.replace(recipes[5], atomic_numbers=(6, 8), family="x"))
    assert search.exceeds_quota(polymorphs, one).tolist() == [False, True, True, False]
    assert search.exceeds_quota(polymorphs, one, 2.0).tolist() == [False, False, True, False]
    assert not search.exceeds_quota(polymorphs, dataclasses.replace(one, max_per_composition=0)).any()


def test_the_heads_alone_weigh_sheets_as_guidance_does(model, settings):
    """Twice the guidance squares the ratio of two sheets; a sheet that clashes has no chance."""
    sheets = [scaled(START, factor) for factor in (0.4, 0.98, 1.02)]
    properties = predict_properties(model.double(), sheets)
    loss = target_loss(properties, settings).double().numpy()
    once, twice = (search.by_heads(dataclasses.replace(settings, guidance_scale=eta))(sheets, properties) for eta in (1.0, 2.0))
    assert once[0] == 0 and once[1] > 0 and abs(loss[1] - loss[2]) > 1e-4
    assert once[1] / once[2] == pytest.approx(np.exp((loss[2] - loss[1]) / 0.1), rel=1e-4)
    assert twice[1] / twice[2] == pytest.approx((once[1] / once[2]) ** 2, rel=1e-4)


def test_halides_and_alkali_metals_have_a_quota(settings):
    """MoS2, NaCl, CsI, LiTe, MoBr3, WS2: of four soluble ones in ten structures one stays ahead of the others."""
    numbers = [(42, 16, 16), (11, 17), (55, 53), (3, 52), (42, 35, 35, 35), (74, 16, 16)]
    recipes = [Recipe(str(k), z, f"family {k}") for k, z in enumerate(numbers)]
    ten = dataclasses.replace(settings, num_structures=10, max_family_share=1.0, max_soluble_share=0.1)
    assert search.exceeds_quota(recipes, ten).tolist() == [False, False, True, True, True, False]
    assert search.exceeds_quota(recipes, ten, oversample=3.0).tolist() == [False, False, False, False, True, False]
    assert search.exceeds_quota(recipes, dataclasses.replace(ten, max_soluble_share=0.0)).sum() == 4
    assert not search.exceeds_quota(recipes, dataclasses.replace(ten, max_soluble_share=1.0)).any()


def test_families_have_the_same_weight():
    """Of 200 recipes of one family and 10 of another, the small family has a fair share among the first."""
    recipes = [Recipe(f"a{k}", (6,), "large") for k in range(200)] + [Recipe(f"b{k}", (6,), "small") for k in range(10)]
    orders = [in_random_order(recipes, seed) for seed in range(100)]
    assert 30 < [order[0].family for order in orders].count("small") < 70
    assert all(sorted(r.formula for r in order) == sorted(r.formula for r in recipes) for order in orders[:3])
    assert in_random_order(recipes, 0) == orders[0] != orders[1]


def test_selection_draws_with_the_tilt_of_the_guidance():
    """Of two candidates, the worse by 0.1 eV is drawn with probability 1/(1+e) at η = 1, and as often as the other at η = 0."""
    loss, trials = np.array([0.1, 0.2]), 4000
    for strength, expected in ((1.0, 1 / (1 + np.e)), (0.0, 0.5)):
        worse = sum(np.argmax(gumbel_keys(loss, [2 * k, 2 * k + 1], strength, 0)) for k in range(trials))
        assert worse / trials == pytest.approx(expected, abs=4 * 0.5 / trials**0.5)
    keys = gumbel_keys(np.zeros(3), [5, 6, 7], 1.0, 0)
    np.testing.assert_array_equal(gumbel_keys(np.zeros(2), [7, 5], 1.0, 0), keys[[2, 0]])


class AtWork:
    """A backend that runs the tasks elsewhere, as far as the caller can tell, and the last one first."""

    def __init__(self, model):
        self.model, self.tasks = model, 0

    def results(self, function, tasks):
        assert isinstance(function, partial) and "cpu" in function.args, "it runs where the workers are"
        for key, task in reversed(pickle.loads(pickle.dumps(tasks)).items()):
            self.tasks += 1
            yield key, pickle.loads(pickle.dumps(function))(self.model, task)


def test_workers_say_the_same_of_starting_sheets(model, settings, monkeypatch):
    monkeypatch.setattr(search, "BATCH", 2)
    recipes = [Recipe(f"r{k}", (42, 16, 16), f"family {k}", start=scaled(START, 0.4 + 0.1 * k)) for k in range(18)]
    plain = dataclasses.replace(settings, refine_steps=0, num_structures=9, oversample=2.0, max_per_composition=0)
    heads, told = search.by_heads(dataclasses.replace(plain, guidance_scale=1.0)), []

    def triage(sheets, properties):
        told.append(heads(sheets, properties))
        return told[-1]

    ask = partial(search.order_by_chance, model.double(), settings=plain, device="cpu", triage=triage)
    alone = ask(recipes, None)
    assert (told[0] > 0).sum() not in (0, 18) and len(set(told[0])) > 9, (
        "sheets that clash are not valid, and the heads tell the others apart"
    )
    workers = AtWork(model)
    assert ask(recipes, None, workers=workers) == alone and workers.tasks == 9 and (told[1] == told[0]).all()
    ask(recipes[:6], None, workers=workers)
    assert workers.tasks == 9, "a few recipes are looked at here"


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
