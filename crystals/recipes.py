"""Recipes: the compositions to generate, from families of prototypes or as the user lists them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from pymatgen.core import Composition

from crystals.charge_balance import charge_neutral
from crystals.elements import ALKALI_METALS, HALOGENS, NONMETALS
from crystals.prototypes import PROTOTYPE_LIST, PROTOTYPES
from crystals.symmetry import Template, kinds_of
from geo_utils import Sheet
from pipeline.errors import StageError

log = logging.getLogger("her2d")
MAX_RECIPE_ATOMS = 40
FORMULA = "recipe"  # family of a recipe that is given by its formula alone


def parse_recipes(entries: Sequence[str], elements: set[int]) -> list[Recipe]:
    """Return the recipes that the setting ``generation.recipes`` lists.

    Args:
        entries: formulas or families. A formula gives one cell with the atoms as written (MoS2: 3 atoms, Mo2S4: 6). A family is
            given with the elements of each site, such as "2H-MX2: Mo W | S Se"; "*" stands for all elements of ``Prototype.sites``.
        elements: atomic numbers that the model was trained on.

    Raises:
        StageError: an entry is neither formula nor family, or the model knows none of its recipes.
    """
    result = []
    for entry in entries:
        found = [_formula_entry(entry)] if is_formula(entry) else _family_entry(entry)
        known = [recipe for recipe in found if set(recipe.atomic_numbers) <= elements]
        if not known:
            unknown = sorted({chemical_symbols[z] for recipe in found for z in recipe.atomic_numbers if z not in elements})
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


def is_formula(entry: str) -> bool:
    """Return whether an entry of ``generation.recipes`` is a formula, and not a family with the elements of its sites."""
    return ":" not in entry


def _formula_entry(formula: str) -> Recipe:
    """Return the recipe of a formula; raises StageError where it is none, or its cell is too large."""
    try:
        amounts = Composition(formula, strict=True).get_el_amt_dict()
    except Exception as error:  # pymatgen raises ValueError, KeyError, CompositionError, ... by the kind of typo
        raise StageError(f"generation.recipes: '{formula}' is not a chemical formula") from error
    numbers: list[int] = []
    for symbol, amount in amounts.items():
        if amount != int(amount):
            raise StageError(f"generation.recipes: '{formula}' has fractional amounts")
        numbers += [atomic_numbers[symbol]] * int(amount)
    if not 1 <= len(numbers) <= MAX_RECIPE_ATOMS:
        raise StageError(f"generation.recipes: '{formula}' has {len(numbers)} atoms, allowed are 1 to {MAX_RECIPE_ATOMS}")
    return Recipe(formula, tuple(numbers), FORMULA)


def _family_entry(entry: str) -> list[Recipe]:
    """Return the recipes of an entry "family: elements | elements ..."; raises StageError where it is none."""
    name, _, text = entry.partition(":")
    sites = tuple(() if site.strip() == "*" else tuple(site.replace(",", " ").split()) for site in text.split("|"))
    unknown = [symbol for site in sites for symbol in site if symbol not in atomic_numbers]
    if unknown or any(not site and part.strip() != "*" for site, part in zip(sites, text.split("|"), strict=True)):
        raise StageError(f"generation.recipes: '{entry}': {unknown[0] if unknown else 'an empty site'} is no element")
    try:
        found = family_recipes(name.strip(), sites)
    except ValueError as error:
        raise StageError(f"generation.recipes: '{entry}': {error}") from error
    if not found:
        raise StageError(f"generation.recipes: '{entry}': no decoration can be charge-neutral")
    return found


@lru_cache(maxsize=100_000)  # every round of the search asks for all recipes again
def reduced_formula(numbers: tuple[int, ...]) -> str:
    """Return pymatgen's reduced formula of atomic numbers."""
    return Composition(Counter(chemical_symbols[z] for z in numbers)).reduced_formula


SOLUBLE = frozenset((*HALOGENS, *ALKALI_METALS))  # most compounds of these elements dissolve in water


def is_soluble(elements: Iterable[str]) -> bool:
    """Return whether one of the elements makes a halide or a compound of an alkali metal, most of which water dissolves."""
    return not SOLUBLE.isdisjoint(elements)


def allowed_elements(trained: set[int], only: Sequence[str], never: Sequence[str]) -> set[int]:
    """Return the atomic numbers that recipes may hold.

    Args:
        trained: those that the model was trained on.
        only: symbols, ``generation.elements``; none: all.
        never: symbols, ``generation.exclude_elements``.

    Raises:
        StageError: a symbol is no element, or nothing is left.
    """
    for setting, symbols in (("elements", only), ("exclude_elements", never)):
        if unknown := [symbol for symbol in symbols if symbol not in atomic_numbers]:
            raise StageError(f"generation.{setting}: {', '.join(unknown)} is no element")
    chosen = trained & {atomic_numbers[symbol] for symbol in only} if only else trained
    left = chosen - {atomic_numbers[symbol] for symbol in never}
    if not left:
        raise StageError("generation.elements and generation.exclude_elements leave no element that the model was trained on")
    return left


@dataclass(frozen=True)
class Recipe:
    """A composition for the generator.

    Attributes:
        formula: formula of the cell.
        atomic_numbers: one entry per atom of the cell.
        family: name of the prototype or of the family of substitutions, or ``FORMULA``.
        template: the symmetry to sample within; None where it is that of the prototype.
        start: a sheet with these elements that the refiner starts from, instead of noise.
    """

    formula: str
    atomic_numbers: tuple[int, ...]
    family: str
    template: Template | None = field(default=None, compare=False, repr=False)
    start: Sheet | None = field(default=None, compare=False, repr=False)

    @property
    def is_soluble(self) -> bool:
        """Return whether it is a halide or a compound of an alkali metal, most of which water dissolves."""
        return is_soluble(chemical_symbols[number] for number in self.atomic_numbers)


def prototype_recipes(elements: set[int] | None = None) -> list[Recipe]:
    """Return the recipes that the prototypes give, in a fixed order.

    These are all decorations of every prototype. Ionic families also get those with any other metal on the metal site whose common
    oxidation states balance. The elements that a prototype lists occur in known monolayers, so new materials are among the latter.

    Args:
        elements: atomic numbers allowed; None: all.
    """
    metals = sorted({el for p in PROTOTYPE_LIST for site in p.sites for el in site if el not in NONMETALS}, key=atomic_numbers.get)
    result: list[Recipe] = []
    for prototype in PROTOTYPES.values():
        sites = tuple(_widened(site, metals) for site in prototype.sites) if prototype.ionic else prototype.sites
        if elements is not None:
            sites = tuple(tuple(el for el in site if atomic_numbers[el] in elements) for site in sites)
        for decoration in replace(prototype, sites=sites).decorations():
            known = all(el in site for el, site in zip(decoration, prototype.sites, strict=True))
            atoms = prototype.build(*decoration)
            formula = atoms.get_chemical_formula("metal")
            if prototype.ionic and not charge_neutral(formula, strict=not known):
                continue
            result.append(Recipe(formula, tuple(int(z) for z in atoms.numbers), prototype.name))
    return result


def recipe_template(recipe: Recipe) -> Template:
    """Return the template of a recipe: its own, otherwise that of its prototype. Raises KeyError where it has neither."""
    if recipe.template is not None:
        return recipe.template
    return _pattern_template(recipe.family, tuple(kinds_of(recipe.atomic_numbers).tolist()))


@lru_cache(maxsize=1024)
def _pattern_template(family: str, kinds: tuple[int, ...]) -> Template:
    """Return the template of a prototype whose atoms are of the given kinds, as ``kinds_of`` numbers them."""
    return Template.of(replace(_family_sheet(family), atomic_numbers=np.array(kinds, dtype=np.int64) + 1))


@cache
def _family_sheet(name: str) -> Sheet:
    """Return the first decoration of a prototype, its atoms in the order of the prototype's recipes."""
    prototype = PROTOTYPES[name]
    return Sheet.from_atoms(prototype.build(*next(prototype.decorations())))


def family_recipes(name: str, sites: tuple[tuple[str, ...], ...]) -> list[Recipe]:
    """Return the decorations of one prototype with given elements; of an ionic one, those that can be charge-neutral.

    Args:
        name: name of the prototype.
        sites: element symbols for each site; an empty tuple stands for the elements that the prototype lists.

    Raises:
        ValueError: an unknown prototype, or a wrong number of sites.
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
    """Return a site of metals with all other metals added; any other site unchanged."""
    return site if any(el in NONMETALS for el in site) else (*site, *(el for el in metals if el not in site))
