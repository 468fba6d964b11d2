"""Chooses the recipes of stage 4: where they come from, and in which order candidates take them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from crystals.formulas import composition_key
from crystals.recipes import Recipe, allowed_elements, parse_recipes, prototype_recipes, reduced_formula
from crystals.templates import TemplateLibrary
from generation.batch import Denoiser
from generation.candidates import uses_elements
from generation.elements import element_recipes, load_elements, redrawn_recipes
from generation.search import Screen, StartVerdicts, order_recipes
from pipeline.errors import StageError
from pipeline.settings import GenerationConfig
from pipeline.store import LineStore, Store
from pipeline.tasks import Processes


def choose_recipes(
    model: Denoiser,
    content: dict[str, Any],
    library: TemplateLibrary,
    settings: GenerationConfig,
    seed: int,
    screened: Screen | None = None,
    verdicts: StartVerdicts | None = None,
    store: LineStore | None = None,
    workers: Processes | None = None,
    drawn: Store | None = None,
) -> list[Recipe]:
    """Return the recipes of ``generation.recipes``; otherwise those that the diffusion of elements draws, or those of a screening.

    Args:
        screened: judges the sheets that recipes start from; not needed for those of ``generation.recipes``.
        drawn: store of elements drawn by this run.

    Everything else as in ``order_recipes``.

    Raises:
        StageError: no recipe is of elements of the training set and small enough.
    """
    elements = set(content["elements"])
    if settings.recipes:
        return parse_recipes(settings.recipes, elements)
    elements = allowed_elements(elements, settings.elements, settings.exclude_elements)
    known = known_compositions(content)
    if uses_elements(settings):
        recipes = drawn_recipes(settings, elements, seed, workers, drawn)
        # As they were drawn, new ones first: without guidance, the control of the diffusion, and where quick judges order them.
        if settings.guidance_scale == 0 or settings.prefilter:
            return sorted(recipes, key=lambda recipe: reduced_formula(recipe.atomic_numbers) in known)
        return order_recipes(model, recipes, known, settings, seed, screened, verdicts, None, store, workers)
    recipes = [*prototype_recipes(elements), *library.substitutions(elements)]
    recipes = [recipe for recipe in recipes if len(recipe.atomic_numbers) <= settings.max_recipe_atoms]
    if not recipes:
        raise StageError(
            f"generation.max_recipe_atoms: there is no recipe of at most {settings.max_recipe_atoms} atoms "
            "and of the elements that are allowed and that the model was trained on"
        )
    substituted = partial(library.further_substitutions, elements=elements)
    return order_recipes(model, recipes, known, settings, seed, screened, verdicts, substituted, store, workers)


def known_compositions(content: dict[str, Any]) -> set[str]:
    """Return the reduced formulas of the training set of a checkpoint of the denoiser."""
    return set(map(composition_key, content["formulas"]))


def drawn_recipes(
    settings: GenerationConfig, elements: set[int], seed: int, workers: Processes | None, store: Store | None = None
) -> list[Recipe]:
    """Return recipes by the diffusion of elements; as many processes draw as there are workers, where there is much to draw."""
    load = partial(load_elements, settings.elements_checkpoint)
    if workers is None or settings.guidance_scale == 0:
        return element_recipes(load(), settings, elements, seed, None, store)
    with Processes(workers.workers, load) as where:
        return element_recipes(load(), settings, elements, seed, where, store)


def drawn_anew(
    settings: GenerationConfig, content: dict[str, Any], seed: int, recipes: Sequence[Recipe], number: int
) -> list[Recipe]:
    """Return recipes that come from others by noise on a kind of atoms or the arrangement; number: of the round."""
    elements = allowed_elements(set(content["elements"]), settings.elements, settings.exclude_elements)
    model = load_elements(settings.elements_checkpoint)
    return redrawn_recipes(model, settings, elements, 1000 * seed + number, recipes)
