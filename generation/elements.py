"""Recipes from the diffusion of elements: arrangements of a training set, filled by ``generation/element_diffusion.py``."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from ase.symbols import Symbols
from tqdm import tqdm

from crystals.elements import element_descriptors
from crystals.recipes import Recipe
from generation.element_diffusion import arrangement_weights, draw_elements, redraw_elements
from generation.mean_arrangements import MeanArrangements, radii_of_known_and_unknown, with_elements
from generation.refiner_training import bond_ratio
from generation.seeds import seeded_generator
from networks.checkpoints import CheckpointError, first_line, load_checkpoint, save_checkpoint
from networks.element_denoiser import ElementDenoiser, ElementDenoiserConfig
from networks.sheet_trunk import BUFFERS, NUM_ELEMENTS
from pipeline.errors import StageError
from pipeline.files import relative_name
from pipeline.settings import GenerationConfig
from pipeline.store import Store
from pipeline.tasks import Backend, Serial, run

KIND = "element_denoiser"
HINT = "run python -m scripts.train_elements, or set generation.elements_checkpoint=weights/elements.pth"
CONDITIONS = ("delta_g", "e_hull", "conducts", "p_dynamic", "dissolves")
WIDTHS = (0.3, 0.1, 0.3, 0.3, 0.3)  # of these, within which a crystal is as asked for: eV, eV/atom, and three from 0 to 1
# What a sheet is asked to be beside target_delta_g and target_e_hull: a conductor, dynamically stable, not dissolved by water.
ASKED = {"conducts": 1.0, "p_dynamic": 0.95, "dissolves": 0.0}
BATCH = 512
LAST = 3  # elements that are drawn for the last kind of atoms of a sheet, where there is much to choose from
REDRAWS = 8  # elements that are drawn for each kind of atoms of a sheet whose chance is good
UNGUIDED_DRAWS = 4  # for each structure, without guidance by gradients, which needs no more to choose from


@dataclass
class ElementModel:
    """The trained network, the arrangements that it fills, and the elements that it has seen (119,) bool."""

    network: ElementDenoiser
    arrangements: MeanArrangements
    seen: torch.Tensor


def new_element_denoiser(config: ElementDenoiserConfig) -> ElementDenoiser:
    """Return an untrained network."""
    return ElementDenoiser(config, element_descriptors().float())


def save_elements(path: str | os.PathLike, model: ElementModel, **content: Any) -> None:
    """Write a model as a checkpoint, its weights in half precision, with further plain values."""
    weights = {
        name: x.half() if x.is_floating_point() else x for name, x in model.network.state_dict().items() if name not in BUFFERS
    }
    parts = {"model": weights, "arrangements": model.arrangements.state_dict(), "seen": model.seen}
    save_checkpoint(path, KIND, model.network.config, parts | content)


def load_elements(path: str | os.PathLike) -> ElementModel:
    """Return the model of a checkpoint, frozen.

    Raises:
        CheckpointError: the file is missing, damaged, or of another version.
    """
    content = load_checkpoint(path, KIND, HINT)
    try:
        settings = content["model_config"] | {"conditions": tuple(content["model_config"]["conditions"])}
        network = new_element_denoiser(ElementDenoiserConfig(**settings))
        weights = {name: x.float() if x.is_floating_point() else x for name, x in content["model"].items()}
        network.load_state_dict({name: getattr(network, name) for name in BUFFERS} | weights, strict=True)
        model = ElementModel(network.eval().requires_grad_(False), MeanArrangements(**content["arrangements"]), content["seen"])
        if network.config.conditions != CONDITIONS or model.seen.shape != (NUM_ELEMENTS,):
            raise ValueError("its conditions are not those of this version")
        if model.arrangements.properties.shape[1] != len(CONDITIONS):
            raise ValueError("its arrangements have other properties")
    except Exception as error:  # settings and weights of another origin raise many unrelated errors
        raise CheckpointError(f"{relative_name(path)} does not fit this version ({first_line(error, 120)}): {HINT}") from error
    return model


def conditions_of(settings: GenerationConfig, told: Collection[str] = CONDITIONS) -> torch.Tensor:
    """Return what the network is told, (n,), in the order of ``CONDITIONS``; NaN for those that are not among ``told``."""
    asked = {"delta_g": settings.target_delta_g, "e_hull": settings.target_e_hull, **ASKED}
    return torch.tensor([asked[name] if name in told else math.nan for name in CONDITIONS])


def element_recipes(
    model: ElementModel,
    settings: GenerationConfig,
    elements: set[int],
    seed: int,
    where: Backend | None = None,
    store: Store | None = None,
    told: Collection[str] = CONDITIONS,
) -> list[Recipe]:
    """Draw arrangements by their weight in the training set, and elements on them; return the different ones, as drawn.

    Where heads and judges choose among the draws (``generation.guidance_scale`` above 0), arrangements are drawn by the number of
    their crystals of allowed elements alone: there are several times as many new compositions to choose from then, and the best of
    these are better. ``LAST`` draws each differ in one kind of atoms then: half the time for as many compositions.

    Args:
        model: the trained model.
        settings: number of structures and of draws, w, targets.
        elements: atomic numbers allowed. H never is, because the adsorption of H on a sheet that holds H is not judged.
        seed: of the draws.
        where: the draws are made, whose factory loads the same model; None: this process.
        store: of the elements drawn, by the number of the batch, of a run with the same model and settings; None keeps nothing.
        told: which of ``CONDITIONS`` are asked for.

    Returns:
        Recipes whose ``start`` is the arrangement at the size of its elements.

    Raises:
        StageError: no arrangement is small enough, or fewer elements are allowed than a sheet may need.
    """
    arrangements = model.arrangements
    rows = arrangements.rows_of_at_most(settings.max_recipe_atoms)
    allowed = _allowed(model, elements)
    rows = rows[arrangements.kinds[rows].amax(1) < int(allowed.sum())] if len(rows) else rows
    if not len(rows):
        raise StageError(
            f"generation.max_recipe_atoms: there is no arrangement of at most {settings.max_recipe_atoms} atoms and so few elements"
        )
    chooses = settings.guidance_scale > 0
    last = min(LAST, int(allowed.sum()) - int(arrangements.kinds[rows].max())) if chooses else 1
    draws = -(-settings.num_structures * (settings.element_draws if chooses else UNGUIDED_DRAWS) // last)
    generator = seeded_generator("elements", seed)
    conditions = conditions_of(settings, told)
    of_arrangements = 0.0 if chooses else settings.cfg_scale
    weights = arrangement_weights(arrangements, conditions, torch.tensor(WIDTHS), of_arrangements, allowed)
    chosen = rows[torch.multinomial(weights[rows], draws, replacement=True, generator=generator)]
    by_arrangement = torch.argsort(chosen, stable=True)  # those of one arrangement together: they are alike at first
    parts = dict(enumerate(chosen[by_arrangement].split(BATCH)))
    drawn = {number: store[number] for number in parts if store is not None and number in store}
    done = sum(len(parts[k]) for k in drawn)
    with tqdm(total=last * draws, desc="elements", unit="sheet", mininterval=1.0, initial=last * done) as bar:
        tasks = {number: (number, part) for number, part in parts.items()}
        for number, record in run(
            partial(_drawn, settings, conditions, allowed, seed, last), tasks, store, where or Serial(lambda: model)
        ):
            drawn[number] = record
            bar.update(last * len(parts[number]))
    compositions = [row for number in parts for row in drawn[number]["atomic_numbers"]]
    as_drawn = [last * place + k for place in torch.argsort(by_arrangement).tolist() for k in range(last)]
    return _different(arrangements, chosen[by_arrangement].repeat_interleave(last), compositions, as_drawn)


def redrawn_recipes(
    model: ElementModel,
    settings: GenerationConfig,
    elements: set[int],
    seed: int,
    recipes: Sequence[Recipe],
    told: Collection[str] = CONDITIONS,
) -> list[Recipe]:
    """Hide a kind of atoms of recipes again, or their arrangement, draw ``REDRAWS`` others for it, and return what differs.

    Args:
        recipes: as ``element_recipes`` returns them.
        model, settings, elements, told: as of ``element_recipes``.
        seed: of the draws.
    """
    if not recipes:
        return []
    allowed, conditions = _allowed(model, elements), conditions_of(settings, told)
    rows = torch.tensor([model.arrangements.row(recipe.family) for recipe in recipes], dtype=torch.long)
    most = int(model.arrangements.kinds.max()) + 1
    of_kinds = torch.zeros(len(recipes), most, dtype=torch.long)
    for k, recipe in enumerate(recipes):
        own = torch.tensor(recipe.atomic_numbers)
        of_kinds[k, model.arrangements.kinds[rows[k], : len(own)]] = own
    sheet, place = torch.nonzero(of_kinds, as_tuple=True)
    draws = min(REDRAWS, int(allowed.sum()) - int((of_kinds > 0).sum(1).max()))
    found, compositions = [], []
    for number, (k, own) in enumerate(zip(sheet.split(BATCH), place.split(BATCH), strict=True) if draws > 0 else ()):
        generator = seeded_generator("elements anew", seed, number)
        state = model.arrangements.state(rows[k])
        kinds = model.arrangements.kinds[rows[k]][:, : state.mask.shape[1]]
        given = state, kinds, of_kinds[k], own, conditions, settings.cfg_scale, allowed, generator
        compositions += redraw_elements(model.network, *given, draws).tolist()
        found.append(rows[k].repeat_interleave(draws))
    others, of_others = _other_arrangements(model.arrangements, settings.max_recipe_atoms, rows, of_kinds, seed)
    found, compositions = [*found, others], compositions + of_others
    return _different(model.arrangements, torch.cat(found), compositions, range(len(compositions)))


def _other_arrangements(
    arrangements: MeanArrangements, most_atoms: int, rows: torch.Tensor, of_kinds: torch.Tensor, seed: int
) -> tuple[torch.Tensor, list[list[int]]]:
    """Draw ``REDRAWS`` other arrangements for each of B sheets, of as many atoms of each kind, by the number of their crystals.

    Args:
        arrangements: to choose from.
        most_atoms: of an arrangement.
        rows: (B,) numbers of their arrangements.
        of_kinds: (B, K) element of each kind, 0 where there is none.
        seed: of the draws.

    Returns:
        Numbers of the arrangements (M,), and atomic numbers.
    """
    by_amounts: dict[tuple[int, ...], list[int]] = {}
    amounts = {row: torch.bincount(arrangements.kinds[row, : arrangements.sizes[row]]) for row in range(len(arrangements))}
    for row in arrangements.rows_of_at_most(most_atoms).tolist():
        by_amounts.setdefault(tuple(amounts[row].sort().values.tolist()), []).append(row)
    generator = seeded_generator("arrangements anew", seed)
    found, compositions = [], []
    for row, elements in zip(rows.tolist(), of_kinds, strict=True):
        own = amounts[row].argsort(stable=True)
        others = [other for other in by_amounts.get(tuple(amounts[row][own].tolist()), []) if other != row]
        if not others:
            continue
        weights = arrangements.crystals[others].double()
        for k in torch.multinomial(weights, min(REDRAWS, len(others)), generator=generator).tolist():
            placed = torch.zeros(len(own), dtype=torch.long)
            placed[amounts[others[k]].argsort(stable=True)] = elements[own]
            found.append(others[k])
            compositions.append(placed[arrangements.kinds[others[k], : arrangements.sizes[others[k]]]].tolist())
    return torch.tensor(found, dtype=torch.long), compositions


def _allowed(model: ElementModel, elements: set[int]) -> torch.Tensor:
    """Return which elements may be drawn, (119,) bool: those given that the model has seen, but for H."""
    allowed = torch.zeros(NUM_ELEMENTS, dtype=torch.bool)
    allowed[list(elements - {1})] = True
    return allowed & model.seen


def _different(
    arrangements: MeanArrangements, rows: torch.Tensor, compositions: Sequence[Sequence[int]], order: Sequence[int]
) -> list[Recipe]:
    """Return the different ones among M draws, by an order (M,): arrangements (M,) with atomic numbers, 0 beyond theirs."""
    first: dict[tuple[int, ...], int] = {}
    numbers = rows.tolist()
    for place in order:
        first.setdefault((numbers[place], *sorted(filter(None, compositions[place]))), place)
    together = sorted(first.values())  # those of one arrangement
    recipes: dict[int, Recipe] = {}
    for part in (together[start : start + BATCH] for start in range(0, len(together), BATCH)):
        recipes.update(zip(part, _filled(arrangements, rows[part], [compositions[k] for k in part]), strict=True))
    return [recipes[place] for place in first.values()]


def _drawn(
    settings: GenerationConfig,
    conditions: torch.Tensor,
    allowed: torch.Tensor,
    seed: int,
    last: int,
    model: ElementModel,
    task: tuple[int, torch.Tensor],
) -> dict[str, Any]:
    """Return the elements (B·last, N) drawn on arrangements. task: number of the batch, and numbers (B,) of the arrangements."""
    number, rows = task
    generator = seeded_generator("elements", seed, number)
    state = model.arrangements.state(rows)
    kinds = model.arrangements.kinds[rows][:, : state.mask.shape[1]]
    numbers, _ = draw_elements(model.network, state, kinds, conditions, settings.cfg_scale, allowed, generator, last)
    return {"atomic_numbers": numbers.tolist()}


def _filled(arrangements: MeanArrangements, rows: torch.Tensor, compositions: Sequence[Sequence[int]]) -> list[Recipe]:
    """Return the recipes of arrangements, numbers (B,), with atomic numbers of B sheets, 0 beyond theirs."""
    state = arrangements.state(rows)
    numbers = torch.zeros(state.mask.shape, dtype=torch.long)
    for k, own in enumerate(compositions):
        numbers[k, : len(own)] = torch.tensor(own[: numbers.shape[1]])
    sheets = with_elements(state, numbers, bond_ratio(state, numbers, radii_of_known_and_unknown()))
    result = []
    for row, sheet in zip(rows.tolist(), sheets, strict=True):
        composition = tuple(sheet.atomic_numbers.tolist())
        name = Symbols(composition).get_chemical_formula("metal")
        result.append(Recipe(name, composition, arrangements.name(row), start=sheet))
    return result
