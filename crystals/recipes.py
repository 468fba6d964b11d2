"""Recipes: compositions to generate, from families of prototypes or as the user lists them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from pymatgen.core import Composition

from crystals.charge_balance import charge_neutral
from crystals.elements import NONMETALS
from crystals.prototypes import PROTOTYPE_LIST, PROTOTYPES, Prototype
from crystals.symmetry import Template, kinds_of
from geo_utils import Sheet
from pipeline.errors import StageError

log = logging.getLogger("her2d")
MAX_RECIPE_ATOMS = 40
FORMULA = "recipe"  # family of a recipe that is given by its formula alone


def parse_recipes(entries: Sequence[str], elements: set[int]) -> list[Recipe]:
    """Recipes from ``generation.recipes``: formulas, one cell holding the atoms as written (MoS2: 3 atoms, Mo2S4: 6), or families
    with the elements of each site, such as "2H-MX2: Mo W | S Se" ("*" for all that the family is known by).

    Raises StageError for what is no recipe, or has elements that the model was not trained on.
    """
    result = []
    for entry in entries:
        found = _family_entry(entry) if ":" in entry else [_formula_entry(entry)]
        known = [recipe for recipe in found if set(recipe.atomic_numbers) <= elements]
        if not known:
            unknown = sorted({ase.data.chemical_symbols[z] for recipe in found for z in recipe.atomic_numbers if z not in elements})
            raise StageError(f"generation.recipes: '{entry}': the model was not trained on {', '.join(unknown)}")
        if len(known) < len(found):
            log.warning(
                "generation.recipes: '%s': %d of %d hold elements that the model does not know",
                entry,
                len(found) - len(known),
                len(found),
            )
        result += known
    return result


def _formula_entry(formula: str) -> Recipe:
    try:
        amounts = Composition(formula, strict=True).get_el_amt_dict()
    except Exception as error:  # pymatgen raises ValueError, KeyError, CompositionError, ... by the kind of typo
        raise StageError(f"generation.recipes: '{formula}' is not a chemical formula") from error
    numbers: list[int] = []
    for symbol, amount in amounts.items():
        if amount != int(amount):
            raise StageError(f"generation.recipes: '{formula}' has fractional amounts")
        numbers += [ase.data.atomic_numbers[symbol]] * int(amount)
    if not 1 <= len(numbers) <= MAX_RECIPE_ATOMS:
        raise StageError(f"generation.recipes: '{formula}' has {len(numbers)} atoms, allowed are 1 to {MAX_RECIPE_ATOMS}")
    return Recipe(formula, tuple(numbers), FORMULA)


def _family_entry(entry: str) -> list[Recipe]:
    name, _, text = entry.partition(":")
    sites = tuple(() if site.strip() == "*" else tuple(site.replace(",", " ").split()) for site in text.split("|"))
    unknown = [symbol for site in sites for symbol in site if symbol not in ase.data.atomic_numbers]
    if unknown or any(not site and part.strip() != "*" for site, part in zip(sites, text.split("|"), strict=True)):
        raise StageError(f"generation.recipes: '{entry}': {unknown[0] if unknown else 'an empty site'} is no element")
    try:
        found = family_recipes(name.strip(), sites)
    except ValueError as error:
        raise StageError(f"generation.recipes: '{entry}': {error}") from error
    if not found:
        raise StageError(f"generation.recipes: '{entry}': no decoration can be charge-neutral")
    return found


@cache  # every round of the search asks for all recipes again
def reduced_formula(numbers: tuple[int, ...]) -> str:
    """pymatgen's reduced formula."""
    return Composition(Counter(ase.data.chemical_symbols[z] for z in numbers)).reduced_formula


MIXED = " mixed"  # ends the family name of recipes with half of a site's atoms replaced


@dataclass(frozen=True)
class Recipe:
    """A composition for the generator. atomic_numbers: one entry per atom of the cell. template: the symmetry that it comes with;
    None where the family has it."""

    formula: str
    atomic_numbers: tuple[int, ...]
    family: str
    template: Template | None = field(default=None, compare=False, repr=False)


def recipes(elements: set[int] | None = None, mixed: bool = False) -> list[Recipe]:
    """Compositions for the generator, in a fixed order.

    Every decoration of every prototype; in the ionic families also those with any other metal on the metal site, where common
    oxidation states balance. New materials are among those: the decorations listed are what the families are known by.
    elements: atomic numbers allowed; None: all. mixed: also the same with half of a site's atoms replaced by another of its
    elements, as in CuInP2S6 or double-metal MXenes (``_mixed``).
    """
    metals = sorted({el for p in PROTOTYPE_LIST for site in p.sites for el in site if el not in NONMETALS}, key=atomic_numbers.get)
    result: list[Recipe] = []
    further: dict[tuple[int, ...], Recipe] = {}
    for prototype in PROTOTYPES.values():
        sites = tuple(_widened(site, metals) for site in prototype.sites) if prototype.ionic else prototype.sites
        if elements is not None:
            sites = tuple(tuple(el for el in site if atomic_numbers[el] in elements) for site in sites)
        for decoration in replace(prototype, sites=sites).decorations():
            known = all(el in site for el, site in zip(decoration, prototype.sites, strict=True))
            atoms = prototype.build(*decoration)
            numbers = tuple(int(z) for z in atoms.numbers)
            for recipe in _mixed(prototype, sites, decoration, numbers) if mixed else ():
                further.setdefault(tuple(sorted(recipe.atomic_numbers)), recipe)
            formula = atoms.get_chemical_formula("metal")
            if prototype.ionic and not charge_neutral(formula, strict=not known):
                continue
            result.append(Recipe(formula, numbers, prototype.name))
    pure = {tuple(sorted(recipe.atomic_numbers)) for recipe in result}
    return result + [recipe for key, recipe in further.items() if key not in pure]


def _mixed(
    prototype: Prototype, sites: tuple[tuple[str, ...], ...], decoration: tuple[str, ...], numbers: tuple[int, ...]
) -> Iterator[Recipe]:
    """Recipes with half of one site's atoms replaced by a heavier element of that site; ionic ones balance in common states."""
    for element, site in zip(decoration, sites, strict=True):
        places = [k for k, z in enumerate(numbers) if z == atomic_numbers[element]]
        if decoration.count(element) > 1 or len(places) % 2:
            continue
        for other in site:
            if other in decoration or atomic_numbers[other] < atomic_numbers[element]:
                continue
            changed = list(numbers)
            for k in places[::2]:
                changed[k] = atomic_numbers[other]
            formula = Atoms(numbers=changed).get_chemical_formula("metal")
            if not prototype.ionic or charge_neutral(formula, strict=True):
                yield Recipe(formula, tuple(changed), f"{prototype.name}{MIXED}")


def recipe_template(recipe: Recipe) -> Template:
    """A recipe's own symmetry, or that of its family with its atoms. Raises KeyError where there is neither."""
    if recipe.template is not None:
        return recipe.template
    return _pattern_template(recipe.family.removesuffix(MIXED), tuple(kinds_of(recipe.atomic_numbers).tolist()))


@lru_cache(maxsize=1024)
def _pattern_template(family: str, kinds: tuple[int, ...]) -> Template:
    return Template.of(replace(_family_sheet(family), atomic_numbers=np.array(kinds, dtype=np.int64) + 1))


@cache
def _family_sheet(name: str) -> Sheet:
    """The first decoration of a family; its atoms stand in the order of the family's recipes."""
    prototype = PROTOTYPES[name]
    return Sheet.from_atoms(prototype.build(*next(prototype.decorations())))


def family_recipes(name: str, sites: tuple[tuple[str, ...], ...]) -> list[Recipe]:
    """Decorations of one family with the elements given for each of its sites (empty: those that the family is known by).

    Ionic families keep only what can be charge-neutral. Raises ValueError for an unknown family or a wrong number of sites.
    """
    if name not in PROTOTYPES:
        raise ValueError(f"no family '{name}'; there are {', '.join(PROTOTYPES)}")
    prototype = PROTOTYPES[name]
    if len(sites) != len(prototype.sites):
        raise ValueError(f"family {name} has {len(prototype.sites)} sites, not {len(sites)}")
    chosen = tuple(own or known for own, known in zip(sites, prototype.sites, strict=True))
    result = []
    for decoration in replace(prototype, sites=chosen).decorations():
        atoms = prototype.build(*decoration)
        formula = atoms.get_chemical_formula("metal")
        if not prototype.ionic or charge_neutral(formula):
            result.append(Recipe(formula, tuple(int(z) for z in atoms.numbers), name))
    return result


def _widened(site: tuple[str, ...], metals: list[str]) -> tuple[str, ...]:
    """All metals where a site holds metals only; otherwise the site as it is."""
    return site if any(el in NONMETALS for el in site) else (*site, *(el for el in metals if el not in site))
