"""Chooses recipes by drafts of their sheets, and breeds further ones under guidance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from crystals.recipes import Recipe, recipe_template, reduced_formula
from generation.batch import Denoiser
from generation.candidates import check_validity
from generation.sampling import TEMPERATURE_EV, draft
from pipeline.settings import GenerationConfig

# Of drafts, by recipe: whether it is a valid sheet, and L_target of the heads (eV).
DraftVerdicts = dict[Recipe, tuple[bool, float]]


def judge_drafts(
    model: Denoiser,
    recipes: Sequence[Recipe],
    settings: GenerationConfig,
    seed: int,
    device: Any,
    known: DraftVerdicts,
) -> tuple[np.ndarray, np.ndarray]:
    """(M,) whether the draft of each recipe is a valid sheet, and (M,) eV L_target of the heads for it; ``known`` is added to."""
    missing = [recipe for recipe in recipes if recipe not in known]
    if missing:
        templates = [recipe_template(recipe) if settings.template_share > 0 else None for recipe in missing]
        sheets, loss = draft(model, [recipe.atomic_numbers for recipe in missing], templates, settings, seed, device)
        checked = zip(
            missing, tqdm(sheets, desc="checking", unit="sheet", mininterval=1.0), np.round(loss, 6).tolist(), strict=True
        )
        known.update({recipe: (check_validity(sheet, settings) == "ok", value) for recipe, sheet, value in checked})
    return np.array([known[recipe][0] for recipe in recipes]), np.array([known[recipe][1] for recipe in recipes])


def order_recipes(
    model: Denoiser,
    recipes: list[Recipe],
    known_formulas: set[str],
    settings: GenerationConfig,
    seed: int,
    device: Any,
    drafts: DraftVerdicts | None = None,
    substituted: Callable[[list[Recipe]], list[Recipe]] | None = None,
) -> list[Recipe]:
    """Recipes in the order in which candidates take them: new compositions first, each group in seeded random order in which every
    family has the same weight, however many recipes it has.

    With guidance the first ``composition_pool`` of them per structure are drawn again without replacement with weights
    exp(−η L_target / 0.1 eV), L_target from the heads' answer to a draft of each: the tilt that guidance applies to the geometry.
    Of the new ones those come later whose family or composition has had its share; recipes whose draft is no valid sheet come last.
    ``search_rounds`` times the first ``num_structures`` of that order breed further recipes, which join the draw: a population that
    moves towards the target through compositions that lie several substitutions from any known crystal.

    drafts: what is known of drafts with this model, these settings and this seed. substituted: recipes -> those with one more
    element replaced.
    """
    order = _untilted_order(recipes, known_formulas, seed)
    if not (settings.guidance_scale > 0 and settings.guide_composition):
        return [recipes[i] for i in order]
    number = settings.composition_pool * settings.num_structures or len(recipes)
    pool = [recipes[i] for i in order[:number]]
    places = order[:number].tolist()
    drafts = {} if drafts is None else drafts
    seen = set(recipes)
    for round_number in range(settings.search_rounds + 1):
        valid, loss = judge_drafts(model, pool, settings, seed, device, drafts)
        keys = gumbel_keys(loss, places, settings.guidance_scale, seed + 1)
        known = _are_known(pool, known_formulas)
        ranked = np.lexsort((-keys, known, ~valid))
        late = exceeds_quota([pool[i] for i in ranked], settings, settings.oversample)
        ranked = ranked[np.lexsort((late, known[ranked], ~valid[ranked]))]
        if substituted is None or round_number == settings.search_rounds:
            break
        parents = [pool[i] for i in ranked[: settings.num_structures] if valid[i]]
        fresh = [r for r in substituted(parents) if r not in seen and len(r.atomic_numbers) <= settings.max_recipe_atoms]
        places += range(len(seen), len(seen) + len(fresh))
        pool += fresh
        seen.update(fresh)
    return [pool[i] for i in ranked] + [recipes[i] for i in order[number:]]


def _untilted_order(recipes: Sequence[Recipe], known_formulas: set[str], seed: int) -> np.ndarray:
    sizes = Counter(recipe.family for recipe in recipes)
    prior = gumbel_keys(np.zeros(len(recipes)), range(len(recipes)), 0.0, seed) - np.log([sizes[r.family] for r in recipes])
    return np.lexsort((-prior, _are_known(recipes, known_formulas)))


def _are_known(recipes: Sequence[Recipe], formulas: set[str]) -> np.ndarray:
    return np.array([reduced_formula(recipe.atomic_numbers) in formulas for recipe in recipes])


def exceeds_quota(recipes: Sequence[Recipe], settings: GenerationConfig, oversample: float = 1.0) -> np.ndarray:
    """(M,) whether a recipe comes after as many others of its family, or of its composition, as may be among ``oversample`` times
    the structures asked for. A recipe that exceeds a quota is not counted towards one."""
    of_family = math.ceil(settings.max_family_share * oversample * settings.num_structures)
    of_composition = math.ceil(settings.max_per_composition * oversample) or len(recipes)
    families: Counter[str] = Counter()
    compositions: Counter[str] = Counter()
    late = []
    for recipe in recipes:
        composition = reduced_formula(recipe.atomic_numbers)
        late.append(families[recipe.family] >= of_family or compositions[composition] >= of_composition)
        if not late[-1]:
            families[recipe.family] += 1
            compositions[composition] += 1
    return np.array(late, dtype=bool)


def gumbel_keys(loss: np.ndarray, numbers: Sequence[int], strength: float, seed: int) -> np.ndarray:
    """Keys whose k largest are a draw of k without replacement with weights exp(−strength L / 0.1 eV) (Gumbel top-k, Kool et al.,
    ICML 2019). The random part of an entry depends on the seed and its number alone."""
    gumbel = np.array([np.random.default_rng([seed, 0x5EED, int(k)]).gumbel() for k in numbers])
    return gumbel - strength * loss / TEMPERATURE_EV
