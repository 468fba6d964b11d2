"""Orders recipes by the chance of a hit of the sheets that they start from, draws further ones near the best, and keeps quotas."""

from __future__ import annotations

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
from pipeline.tasks import Processes, Serial, run

BATCH = 64  # recipes whose sheets are refined at a time
BATCHES_FOR_WORKERS = 8  # for fewer, loading the model in the workers takes longer
# Chance of a hit of sheets, from what quick judges and the heads say of them.
Triage = Callable[[Sequence[Sheet], PropertyEstimate], np.ndarray]
# Recipes that come from others by a small change, for a number of the round.
Redraw = Callable[[Sequence[Recipe], int], list[Recipe]]
PARENTS = 2  # recipes for each structure that give further ones
TRIAGED = 8  # recipes for each sheet that will be sampled that are looked at where new compositions are few
ENOUGH_NEW = 2  # new compositions for each sheet that will be sampled, from which on known ones are not looked at


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


def in_random_order(recipes: Sequence[Recipe], seed: int) -> list[Recipe]:
    """Return recipes in a random order in which every family has the same weight, however many recipes it has."""
    sizes = Counter(recipe.family for recipe in recipes)
    keys = gumbel_keys(np.zeros(len(recipes)), range(len(recipes)), 0.0, seed) - np.log([sizes[r.family] for r in recipes])
    return [recipes[k] for k in np.argsort(-keys, kind="stable")]


def by_heads(settings: GenerationConfig) -> Triage:
    """Return quick judges that know what the heads say alone.

    The chance is exp(−η L_target / 0.1 eV), the factor by which guidance multiplies the density of the geometry, 0 for a sheet that
    is not valid.
    """

    def chance(sheets: Sequence[Sheet], properties: PropertyEstimate) -> np.ndarray:
        loss = np.round(target_loss(properties, settings).double().numpy(), 6)
        valid = [check_validity(sheet, settings) == "ok" for sheet in sheets]
        return np.where(valid, np.exp(-settings.guidance_scale * loss / TEMPERATURE_EV), 0.0)

    return chance


def exceeds_quota(recipes: Sequence[Recipe], settings: GenerationConfig, oversample: float = 1.0) -> np.ndarray:
    """Return whether each recipe exceeds the quota of its family, of its composition or of what is soluble, (M,).

    A recipe does so when as many earlier ones of the same family or composition, or as many halides and compounds of alkali metals,
    stand in the list as ``oversample`` times ``num_structures`` structures may hold. Recipes that exceed a quota do not count
    towards one.
    """
    structures = oversample * settings.num_structures
    limits = {
        "family": at_most(settings.max_family_share * structures),
        "composition": at_most(settings.max_per_composition * oversample) or len(recipes),
        "soluble": at_most(settings.max_soluble_share * structures),
    }
    counts: Counter[tuple[str, str]] = Counter()
    exceeding = []
    for recipe in recipes:
        groups = [("family", recipe.family), ("composition", reduced_formula(recipe.atomic_numbers))]
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

    Known compositions come last: what they give is no new hit. Where recipes can be changed, the best give further ones,
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
        known: their reduced formulas.
        redraw: gives recipes that come from others by a small change, for a number of the round.
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
