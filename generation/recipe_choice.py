"""Chooses the recipes of stage 4: where they come from, and in which order candidates take them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from crystals.formulas import composition_key
from crystals.recipes import Recipe, allowed_elements, parse_recipes, prototype_recipes, reduced_formula
from crystals.templates import TemplateLibrary
from generation.candidates import uses_elements
from generation.elements import element_recipes, load_elements, redrawn_recipes
from generation.search import in_random_order
from pipeline.errors import StageError
from pipeline.settings import GenerationConfig
from pipeline.store import Store
from pipeline.tasks import Processes


def choose_recipes(
    content: dict[str, Any],
    library: TemplateLibrary,
    settings: GenerationConfig,
    seed: int,
    workers: Processes | None = None,
    drawn: Store | None = None,
) -> list[Recipe]:
    """Return the recipes of ``generation.recipes``; otherwise those that the diffusion of elements draws, or those of a screening.

    The latter two are in the order in which they were drawn, but new compositions come before known ones. A screening draws
    ``element_draws`` for each structure, from all prototypes and the crystals of the training set with one element replaced.

    Args:
        content: of the denoiser's checkpoint, with elements and formulas of the training set.
        library: templates of the training set.
        settings: of the generation.
        seed: of the draws.
        workers: as many processes as these draw elements, where there is much to draw; None: this process.
        drawn: store of elements drawn by this run.

    Raises:
        StageError: no recipe is of elements of the training set and small enough.
    """
    elements = set(content["elements"])
    if settings.recipes:
        return parse_recipes(settings.recipes, elements)
    elements = allowed_elements(elements, settings.elements, settings.exclude_elements)
    if uses_elements(settings):
        recipes = drawn_recipes(settings, elements, seed, workers, drawn)
    else:
        recipes = [*prototype_recipes(elements), *library.substitutions(elements)]
        recipes = in_random_order([r for r in recipes if len(r.atomic_numbers) <= settings.max_recipe_atoms], seed)
        recipes = recipes[: settings.element_draws * settings.num_structures]
    if not recipes:
        raise StageError(
            f"generation.max_recipe_atoms: there is no recipe of at most {settings.max_recipe_atoms} atoms "
            "and of the elements that are allowed and that the model was trained on"
        )
    known = known_compositions(content)
    return sorted(recipes, key=lambda recipe: reduced_formula(recipe.atomic_numbers) in known)


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


def further_recipes(
    settings: GenerationConfig,
    content: dict[str, Any],
    library: TemplateLibrary,
    seed: int,
    recipes: Sequence[Recipe],
    number: int,
) -> list[Recipe]:
    """Return recipes that come from others by a small change.

    That is noise and the reverse process on a kind of atoms or the arrangement; in a screening, one more element is replaced.
    number: of the round.
    """
    elements = allowed_elements(set(content["elements"]), settings.elements, settings.exclude_elements)
    if not uses_elements(settings):
        return library.further_substitutions(recipes, elements)
    return redrawn_recipes(load_elements(settings.elements_checkpoint), settings, elements, 1000 * seed + number, recipes)
