"""Orders recipes by the sheets that they start from and, in a screening, adds further ones by substitution of elements."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from crystals.recipes import Recipe, reduced_formula
from generation.batch import Denoiser, PropertyEstimate
from generation.candidates import Starts, check_validity, refined
from generation.sampling import TEMPERATURE_EV, predict_properties, target_loss
from geo_utils import Sheet
from pipeline.settings import GenerationConfig
from pipeline.store import LineStore
from pipeline.tasks import Processes, Serial, run

log = logging.getLogger("her2d")

NO_CRYSTAL_EV = 100.0  # L_target of a recipe that no crystal fits
BATCH = 64  # recipes judged at a time, and stored together
BATCHES_FOR_WORKERS = 8  # for fewer, loading the model in the workers takes longer
# By recipe: whether the sheet that it starts from is valid, and L_target of the heads for that (eV).
StartVerdicts = dict[Recipe, tuple[bool, float]]
# Chance of a hit of sheets, from what quick judges and the heads say of them.
Triage = Callable[[Sequence[Sheet], PropertyEstimate], np.ndarray]
# Recipes that come from others by noise and the reverse process, for a number of the round.
Redraw = Callable[[Sequence[Recipe], int], list[Recipe]]
PARENTS = 2  # recipes for each structure that give further ones
TRIAGED = 8  # recipes for each sheet that will be sampled, where they are in the order of the heads
ENOUGH_NEW = 2  # new compositions for each sheet that will be sampled, from which on known ones are not looked at
# "valid" and "loss" of recipes, in their order, by the sheets that they start from and the heads of a model.
Screen = Callable[[Denoiser, Sequence[Recipe]], dict[str, list]]


def judge_starts(
    model: Denoiser,
    recipes: Sequence[Recipe],
    screened: Screen,
    verdicts: StartVerdicts,
    store: LineStore | None = None,
    workers: Processes | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return whether the sheet that each recipe starts from is valid, (M,), and L_target of the heads for it, (M,) eV.

    Recipes in ``verdicts`` are not judged again; the others are added to it. Each batch is in the store as soon as it is done, and
    one that is there already is taken from it. Many batches go to the workers, which load the same model.
    """
    missing = [recipe for recipe in recipes if recipe not in verdicts]
    parts = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
    batches = {_batch_key(batch): batch for batch in parts}
    found = {key: store[key] for key in batches if store is not None and key in store}
    left = {key: batch for key, batch in batches.items() if key not in found}
    where = workers if workers is not None and len(left) >= BATCHES_FOR_WORKERS else Serial(lambda: model)
    with tqdm(total=len(missing), desc="recipes", unit="sheet", unit_scale=True, mininterval=1.0, disable=not missing) as bar:
        bar.update(sum(len(batches[key]) for key in found))
        for key, record in run(screened, left, store, where):
            found[key] = record
            bar.update(len(batches[key]))
    for key, batch in batches.items():
        verdicts.update(zip(batch, zip(found[key]["valid"], found[key]["loss"], strict=True), strict=True))
    return np.array([verdicts[recipe][0] for recipe in recipes]), np.array([verdicts[recipe][1] for recipe in recipes])


def starting_sheets(
    crystals: Starts | None, settings: GenerationConfig, recipes: Sequence[Recipe]
) -> tuple[list[int], list[Sheet]]:
    """Return the numbers of the recipes that start from a sheet, and these sheets, refined in single precision."""
    found = {}
    for k, recipe in enumerate(recipes):
        own = [recipe.start] if recipe.start is not None else crystals.nearest(recipe.atomic_numbers, 1) if crystals else []
        if own:
            found[k] = own[0]
    return list(found), refined(list(found.values()), settings, torch.float32)


def screen(
    crystals: Starts | None, settings: GenerationConfig, device: Any, model: Denoiser, recipes: Sequence[Recipe]
) -> dict[str, list]:
    """Return ``valid`` and ``loss`` of the sheet that each recipe starts from, refined; without one it is not valid.

    crystals: what recipes without a sheet of their own start from; None: nothing.
    """
    numbers, sheets = starting_sheets(crystals, settings, recipes)
    valid, loss = np.zeros(len(recipes), dtype=bool), np.full(len(recipes), NO_CRYSTAL_EV)
    if numbers:
        valid[numbers] = [check_validity(sheet, settings) == "ok" for sheet in sheets]
        loss[numbers] = np.round(target_loss(predict_properties(model, sheets, device), settings).double().numpy(), 6)
    return {"valid": valid.tolist(), "loss": loss.tolist()}


def _batch_key(recipes: Sequence[Recipe]) -> str:
    """Return a short name for a batch of recipes."""
    listed = [(recipe.formula, recipe.family, list(map(int, recipe.atomic_numbers))) for recipe in recipes]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:24]


def order_recipes(
    model: Denoiser,
    recipes: list[Recipe],
    known_formulas: set[str],
    settings: GenerationConfig,
    seed: int,
    screened: Screen,
    verdicts: StartVerdicts | None = None,
    substituted: Callable[[list[Recipe]], list[Recipe]] | None = None,
    store: LineStore | None = None,
    workers: Processes | None = None,
) -> list[Recipe]:
    """Return the recipes in the order in which candidates take them.

    New compositions come first, known ones after them. Both groups are in a seeded random order in which every family has the same
    weight, however many recipes it has.

    With guidance the heads judge the sheet that each starts from, and the order is that of sampling without replacement with
    weights exp(−η L_target / 0.1 eV), the factor by which guidance multiplies the density of the geometry. New compositions that
    exceed a quota (``exceeds_quota``) come after the other new ones; recipes whose sheet is not valid come last. Then one more
    element is substituted in the first ``num_structures`` recipes, and the results join the others, ``search_rounds`` times in
    all. So a screening reaches compositions that lie several substitutions away from any known crystal.

    Args:
        model: the trained network.
        recipes: all that candidates may take.
        known_formulas: reduced formulas of known compositions.
        settings: of the generation.
        seed: of the random order.
        screened: judges the sheets that recipes start from.
        verdicts: of earlier runs with this model and these settings; new ones are added.
        substituted: gives, for some recipes, those with one more element substituted.
        store: verdicts of a run that was stopped; new ones are added.
        workers: processes that judge, whose factory loads the model; None: this process.
    """
    order = _unguided_order(recipes, known_formulas, seed)
    pool, numbers = [recipes[i] for i in order], order.tolist()
    if settings.guidance_scale == 0:
        return pool
    log.info("guidance chooses among %d recipes by the sheets that they start from", len(pool))
    verdicts = {} if verdicts is None else verdicts
    seen = set(recipes)
    for round_number in range(settings.search_rounds + 1):
        valid, loss = judge_starts(model, pool, screened, verdicts, store, workers)
        keys = gumbel_keys(loss, numbers, settings.guidance_scale, seed + 1)
        known = _are_known(pool, known_formulas)
        ranked = np.lexsort((-keys, known, ~valid))
        exceeding = exceeds_quota([pool[i] for i in ranked], settings, settings.oversample)
        ranked = ranked[np.lexsort((exceeding, known[ranked], ~valid[ranked]))]
        if substituted is None or round_number == settings.search_rounds:
            break
        parents = [pool[i] for i in ranked[: settings.num_structures] if valid[i]]
        fresh = [r for r in substituted(parents) if r not in seen and len(r.atomic_numbers) <= settings.max_recipe_atoms]
        numbers += range(len(seen), len(seen) + len(fresh))
        pool += fresh
        seen.update(fresh)
    return [pool[i] for i in ranked]


def _unguided_order(recipes: Sequence[Recipe], known_formulas: set[str], seed: int) -> np.ndarray:
    """Return the indices of the recipes in the order without guidance, see ``order_recipes``."""
    sizes = Counter(recipe.family for recipe in recipes)
    prior = gumbel_keys(np.zeros(len(recipes)), range(len(recipes)), 0.0, seed) - np.log([sizes[r.family] for r in recipes])
    return np.lexsort((-prior, _are_known(recipes, known_formulas)))


def _are_known(recipes: Sequence[Recipe], formulas: set[str]) -> np.ndarray:
    """Return whether the composition of each recipe is among the formulas, (M,)."""
    return np.array([reduced_formula(recipe.atomic_numbers) in formulas for recipe in recipes])


def exceeds_quota(recipes: Sequence[Recipe], settings: GenerationConfig, oversample: float = 1.0) -> np.ndarray:
    """Return whether each recipe exceeds the quota of its family, composition or elements, or of what is soluble, (M,).

    A recipe does so when as many earlier ones of the same family or composition, or with one of its elements, or as many halides
    and compounds of alkali metals, stand in the list as ``oversample`` times ``num_structures`` structures may hold. Recipes that
    exceed a quota do not count towards one.
    """
    structures = oversample * settings.num_structures
    limits = {
        "family": at_most(settings.max_family_share * structures),
        "composition": at_most(settings.max_per_composition * oversample) or len(recipes),
        "element": at_most(settings.max_element_share * structures),
        "soluble": at_most(settings.max_soluble_share * structures),
    }
    counts: Counter[tuple[str, str | int]] = Counter()
    exceeding = []
    for recipe in recipes:
        groups = [("family", recipe.family), ("composition", reduced_formula(recipe.atomic_numbers))]
        groups += [("element", number) for number in set(recipe.atomic_numbers)] if settings.max_element_share < 1 else []
        groups += [("soluble", "")] if recipe.is_soluble else []
        exceeding.append(any(counts[group] >= limits[group[0]] for group in groups))
        if not exceeding[-1]:
            counts.update(groups)
    return np.array(exceeding, dtype=bool)


def at_most(share: float) -> int:
    """Return a number of structures rounded up, but for rounding errors: 3 of 0.1 x 3.0 x 10."""
    return math.ceil(round(share, 9))


def gumbel_keys(loss: np.ndarray, numbers: Sequence[int], guidance_scale: float, seed: int) -> np.ndarray:
    """Return keys (M,) whose k largest are a sample of k entries without replacement (Gumbel top-k, Kool et al., ICML 2019).

    The weights of the entries are exp(−η L / 0.1 eV).

    Args:
        loss: (M,) L, eV.
        numbers: (M,) numbers of the entries; the random part of a key depends on seed and number alone.
        guidance_scale: η.
        seed: of the random part.
    """
    gumbel = np.array([np.random.default_rng([seed, 0x5EED, int(k)]).gumbel() for k in numbers])
    return gumbel - guidance_scale * loss / TEMPERATURE_EV


def starts_and_properties(
    crystals: Starts | None, settings: GenerationConfig, device: Any, model: Denoiser, recipes: Sequence[Recipe]
) -> tuple[list[int], list[Sheet], PropertyEstimate]:
    """Return the numbers of the recipes that start from a sheet, these sheets, refined, and what the heads say of them."""
    numbers, sheets = starting_sheets(crystals, settings, recipes)
    return numbers, sheets, predict_properties(model, sheets, device) if sheets else PropertyEstimate(*[torch.zeros(0)] * 3)


def order_by_chance(
    model: Denoiser,
    recipes: Sequence[Recipe],
    crystals: Starts | None,
    settings: GenerationConfig,
    device: Any,
    triage: Triage,
    workers: Processes | None = None,
    known: Collection[str] = frozenset(),
    redraw: Redraw | None = None,
) -> list[Recipe]:
    """Return recipes in the order of the chance of a hit of the sheets that they start from; those beyond a quota after the others.

    Known compositions come last: what they give is no new hit. Where recipes can be drawn anew, the best give further ones,
    ``search_rounds`` times, which are looked at and join them: sequential Monte Carlo over the diffusion, whose potential is the
    chance of a hit (Feynman-Kac steering; Singhal et al., ICML 2025).

    Args:
        model: whose heads say ΔG_H and E_hull.
        recipes: all new compositions among them are looked at where there are ``ENOUGH_NEW``, else the first, ``TRIAGED`` for each
            sheet that will be sampled; the others stay behind these.
        crystals: what recipes without a sheet of their own start from.
        settings: of the generation.
        device: of the model.
        triage: quick judges of sheets.
        workers: load the same model, and refine sheets where they are many; None: this process.
        known: their reduced formulas; none where the recipes are in the order of the heads.
        redraw: gives recipes that come from others by noise and the reverse process, for a number of the round.
    """
    sampled = math.ceil(settings.num_structures * settings.oversample)
    is_known = [reduced_formula(recipe.atomic_numbers) in known for recipe in recipes]
    new, old = ([recipe for recipe, own in zip(recipes, is_known, strict=True) if own is side] for side in (False, True))
    first = new if known and len(new) >= ENOUGH_NEW * sampled else (new + old)[: TRIAGED * sampled]
    left = (new + old)[len(first) :]
    look = partial(_chances, model, crystals, settings, device, triage, workers)
    chance, comes_last = look(first), np.arange(len(first)) >= len(new)
    seen = set(recipes)
    for number in range(settings.search_rounds if redraw is not None else 0):
        best = _in_quotas(first, chance, comes_last, settings, PARENTS)[: PARENTS * settings.num_structures]
        fresh = [r for r in redraw([first[k] for k in best if chance[k] > 0], number) if r not in seen]
        fresh = [recipe for recipe in fresh if reduced_formula(recipe.atomic_numbers) not in known]
        first, seen = [*first, *fresh], seen.union(fresh)
        chance, comes_last = np.append(chance, look(fresh)), np.append(comes_last, np.zeros(len(fresh), dtype=bool))
    return [first[k] for k in _in_quotas(first, chance, comes_last, settings, settings.oversample)] + left


def _in_quotas(
    recipes: Sequence[Recipe], chance: np.ndarray, comes_last: np.ndarray, settings: GenerationConfig, oversample: float
) -> np.ndarray:
    """Return the numbers of recipes, those with the best chance first, those beyond a quota after them; ``exceeds_quota``."""
    order = np.lexsort((-chance, comes_last))
    exceeding = exceeds_quota([recipes[k] for k in order], settings, oversample)
    return order[np.lexsort((exceeding, comes_last[order]))]


def _chances(
    model: Denoiser,
    crystals: Starts | None,
    settings: GenerationConfig,
    device: Any,
    triage: Triage,
    workers: Processes | None,
    recipes: Sequence[Recipe],
) -> np.ndarray:
    """Return the chance of a hit (M,) of the sheets that recipes start from, −1 without one; see ``order_by_chance``."""
    batches = {start: recipes[start : start + BATCH] for start in range(0, len(recipes), BATCH)}
    where = workers if workers is not None and len(batches) >= BATCHES_FOR_WORKERS else Serial(lambda: model)
    look = partial(starts_and_properties, crystals, settings, device)
    found = []
    with tqdm(total=len(recipes), desc="refining", unit="sheet", mininterval=1.0, disable=not batches) as bar:
        for start, looked in run(look, batches, None, where, in_order=True):
            found.append((start, *looked))
            bar.update(len(batches[start]))
    numbers = [start + number for start, own, _, _ in found for number in own]
    chance = np.full(len(recipes), -1.0)
    if numbers:
        names = PropertyEstimate.__dataclass_fields__
        properties = PropertyEstimate(*(torch.cat([getattr(p, name) for *_, p in found]) for name in names))
        chance[numbers] = triage([sheet for _, _, sheets, _ in found for sheet in sheets], properties)
    return chance
