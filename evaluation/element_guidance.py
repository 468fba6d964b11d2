"""Measures what classifier-free guidance does to the diffusion of elements, by judges that take milliseconds.

The sheets are refined, not relaxed. ΔG_H is that of the denoiser's heads, which labelled what the network learnt from, so that it
says how well the guidance is obeyed; E_hull is the mean of these and of the networks of ``energetics/hull_network.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from pymatgen.core import Composition
from scipy.stats import norm

from crystals.recipes import allowed_elements, reduced_formula
from energetics.dynamics_model import load_dynamics_model
from evaluation.generated_distributions import compare, features_of
from evaluation.statistics import mean_metric, rate_metric
from evaluation.triage import HEADS_STD_EV, HULL_STD_EV, VACUUM_ANGSTROM, QuickJudges
from generation.batch import Denoiser
from generation.elements import CONDITIONS, UNGUIDED_DRAWS, ElementModel, element_recipes, load_elements
from generation.sampling import predict_properties
from generation.search import starting_sheets
from generation.sheet_table import sheet_of
from geo_utils import Sheet
from pipeline.errors import StageError
from pipeline.settings import Config

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0)  # w
# What elements are told on arrangements that are drawn by the number of their crystals, whatever is asked for.
ELEMENTS_ALONE = (("e_hull",), ("delta_g",), CONDITIONS)
STABLE = 0.5  # P_dynamic from which a sheet counts as dynamically stable


def element_guidance(cfg: Config, denoiser: Denoiser, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return shares and means of ``benchmark.num_structures`` different draws, with intervals, for each way of guidance.

    These are each w of ``SCALES``, and ``generation.cfg_scale`` with each of ``ELEMENTS_ALONE``.

    Args:
        cfg: all settings.
        denoiser: its heads judge.
        content: its checkpoint, with the elements and formulas of the training set.
    """
    settings, evaluation = cfg.generation, cfg.evaluation
    model = load_elements(settings.elements_checkpoint)
    elements = allowed_elements(set(content["elements"]), settings.elements, settings.exclude_elements)
    known = {Composition(formula).reduced_formula for formula in content["formulas"]}
    quick = QuickJudges.load(evaluation, load_dynamics_model(evaluation.dynamics_checkpoint))
    silent = _without_properties(model)
    plan: list[tuple[float, Collection[str], bool]] = [(scale, CONDITIONS, True) for scale in SCALES]
    plan += [(settings.cfg_scale, told, False) for told in ELEMENTS_ALONE]
    number, rows = cfg.benchmark.num_structures, []
    for scale, told, with_arrangements in plan:
        asked = dataclasses.replace(
            settings, guidance_scale=0.0, cfg_scale=scale, num_structures=-(-2 * number // UNGUIDED_DRAWS), recipes=[]
        )
        source = model if with_arrangements else silent
        recipes = element_recipes(source, asked, elements, cfg.run.seed, told=told)[:number]
        _, sheets = starting_sheets(None, asked, recipes)
        values = _judged(quick, denoiser, sheets)
        values["new"] = np.array([reduced_formula(recipe.atomic_numbers) not in known for recipe in recipes])
        about = {"cfg_scale": scale, "told": list(told), "arrangements_guided": with_arrangements, "n": len(recipes)}
        rows.append(about | {"aggregates": _aggregates(values, cfg)})
    return rows


def unguided_distributions(cfg: Config, content: dict[str, Any], crystals: dict[str, Any]) -> dict[str, Any]:
    """Compare ``benchmark.num_structures`` draws without guidance with crystals as large and of the same elements.

    Args:
        cfg: all settings.
        content: the checkpoint of the denoiser, with the elements of the training set.
        crystals: columns of a split of stage 2 (``sheet_table.read_split``).

    Raises:
        StageError: the split has no more such crystals than draws.
    """
    settings, number = cfg.generation, cfg.benchmark.num_structures
    model = load_elements(settings.elements_checkpoint)
    elements = allowed_elements(set(content["elements"]), settings.elements, settings.exclude_elements) - {1}
    asked = dataclasses.replace(
        settings, guidance_scale=0.0, cfg_scale=0.0, num_structures=-(-2 * number // UNGUIDED_DRAWS), recipes=[]
    )
    _, drawn = starting_sheets(None, asked, element_recipes(model, asked, elements, cfg.run.seed)[:number])
    known = [sheet_of(crystals, row) for row in range(len(crystals["uid"]))]
    alike = [s for s in known if len(s) <= settings.max_recipe_atoms and set(s.atomic_numbers.tolist()) <= elements]
    if len(alike) <= len(drawn):
        raise StageError(f"{len(alike)} crystals of dataset.processed_dir are too few to compare {len(drawn)} draws with")
    features = [features_of(sheets, settings.symprec_angstrom) for sheets in (drawn, alike)]
    found = compare(*features, np.random.default_rng([cfg.run.seed, 47]))
    return {"n": len(drawn), "crystals": len(alike), "of": found}


def _without_properties(model: ElementModel) -> ElementModel:
    """Return a model of whose crystals nothing is known, so that arrangements are drawn by their number."""
    arrangements = model.arrangements
    return dataclasses.replace(model, arrangements=dataclasses.replace(arrangements, known=torch.zeros_like(arrangements.known)))


def _judged(quick: QuickJudges, denoiser: Denoiser, sheets: list[Sheet]) -> dict[str, np.ndarray]:
    """Return what the judges say of sheets, (M,) each."""
    properties = predict_properties(denoiser, sheets)
    atoms = [sheet.to_atoms(VACUUM_ANGSTROM) for sheet in sheets]
    e_hull = np.maximum(0.0, properties.e_hull.double().numpy())
    if quick.network is not None:
        e_hull = (e_hull + np.array([quick.network.e_above_hull(a) for a in atoms])) / 2
    settings, delta_g = quick.settings, properties.delta_g.double().numpy()
    active = norm.cdf((settings.hit_delta_g_ev - delta_g) / HEADS_STD_EV)
    active -= norm.cdf((-settings.hit_delta_g_ev - delta_g) / HEADS_STD_EV)
    return {
        "abs_delta_g_ev": np.abs(delta_g),
        "near_hull": e_hull <= settings.hit_e_hull_ev,
        "conducts": np.array([quick.gap is None or quick.gap.band_gap(a) <= settings.conductive_gap_ev for a in atoms]),
        "dynamically_stable": np.array(
            [quick.dynamics is None or quick.dynamics.without_phonons(a, e) >= STABLE for a, e in zip(atoms, e_hull, strict=True)]
        ),
        "not_dissolved": np.array([quick.dissolves(a, e) is False for a, e in zip(atoms, e_hull, strict=True)]),
        "chance_of_a_hit": active * norm.cdf((settings.hit_e_hull_ev - e_hull) / HULL_STD_EV),
    }


def _aggregates(values: dict[str, np.ndarray], cfg: Config) -> dict[str, dict[str, Any]]:
    """Return mean or share of each value with its 95 % interval."""
    found = {}
    for name, value in values.items():
        about = {"better": 1, "doc": "", "resamples": cfg.evaluation.bootstrap, "rng": np.random.default_rng([cfg.run.seed, 41])}
        if value.dtype == bool:
            metric = rate_metric(name, value.tolist(), **about)
        else:
            metric = mean_metric(name, value.tolist(), unit="", **about)
        found[name] = {"value": metric.value, "low": metric.low, "high": metric.high, "n": metric.n}
    return found
