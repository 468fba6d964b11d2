"""The symmetry templates of a training set: which of them suit a composition, and which new compositions they suggest.

A template is chosen for a composition from crystals of similar composition, the idea of CSPML (Kusaba et al., 2022). Every crystal
of the training set with the same number of atoms of each kind votes for its template. Its weight falls with the chemical distance
between its elements and those of the composition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import permutations
from typing import Any

import numpy as np
import torch
from ase.symbols import Symbols

from crystals.charge_balance import charge_neutral
from crystals.elements import element_descriptors
from crystals.recipes import Recipe
from crystals.symmetry import Template
from geo_utils import Sheet

MIN_DECORATIONS = 5  # a template with fewer different decorations is no family
NEUTRAL_SAMPLE = 50  # number of decorations that decide whether a family is ionic
# Largest distance of element descriptors for a substitution: Mo by W, Cr, Nb, Ru; S by Se, Te, P; Ba by Ca, Sr, Y. Sheets sampled
# from substitutions beyond it are further from their relaxed structures and less often near the hull.
SUBSTITUTION_DISTANCE = 1.0
MAX_KINDS = 5  # elements of a template; the assignments of elements to kinds grow with the factorial
# Distance of element descriptors at which a vote has fallen to exp(−1/2). Of 0.15, 0.3, 0.6, 1 and 2, this one most often ranks the
# right template of C2DB's validation split first.
SIMILARITY_WIDTH = 0.3


@dataclass(frozen=True)
class Suggestion:
    """A template for a composition, with its probability; the atomic numbers stand in the template's order of atoms."""

    template: Template
    atomic_numbers: tuple[int, ...]
    probability: float


@dataclass(frozen=True)
class _Family:
    """A template with its decorations in the training set; ionic where most of them are charge-neutral in common states."""

    name: str
    template: Template
    known: list[tuple[int, ...]]
    ionic: bool


def decorated(template: Template, decoration: Sequence[int]) -> str:
    """Return the formula of a template with the given atomic number for each of its kinds of atoms."""
    return Symbols([decoration[kind] for kind in template.kinds.tolist()]).get_chemical_formula("metal")


@dataclass
class TemplateLibrary:
    """The distinct templates of a training set.

    Attributes:
        templates: the templates; layer group 1 (no symmetry) may be among them.
        decorations: for each template (n, kinds), the atomic numbers of its kinds of atoms in the n crystals that have it.
    """

    templates: list[Template]
    decorations: list[np.ndarray]

    @classmethod
    def build(cls, sheets: Iterable[tuple[Sheet, Template]]) -> TemplateLibrary:
        """Return the library of the distinct templates of some sheets."""
        known: dict[Any, int] = {}
        templates: list[Template] = []
        kinds_in_order: list[list[int]] = []
        seen: list[list[tuple[int, ...]]] = []
        for sheet, template in sheets:
            if template.kinds.max() >= MAX_KINDS:
                continue
            key, order = template_key(template)
            place = known.setdefault(key, len(templates))
            if place == len(templates):
                templates.append(template)
                kinds_in_order.append(order)
                seen.append([])
            elements = {int(kind): int(z) for kind, z in zip(template.kinds, sheet.atomic_numbers, strict=True)}
            # Kinds are numbered by first appearance in each sheet. The order of their sites relates them to those of the first.
            own = {ours: elements[theirs] for ours, theirs in zip(kinds_in_order[place], order, strict=True)}
            seen[place].append(tuple(own[kind] for kind in range(len(own))))
        return cls(templates, [np.array(rows, dtype=np.int64) for rows in seen])

    def suggest(self, atomic_numbers: Sequence[int]) -> list[Suggestion]:
        """Return the templates with as many atoms of each kind as the composition, the most probable first."""
        amounts = Counter(int(z) for z in atomic_numbers)
        elements, counts = list(amounts), tuple(sorted(amounts.values()))
        votes: dict[tuple[int, tuple[int, ...]], float] = {}
        for place in self._by_counts.get(counts, ()):
            needed = np.bincount(self.templates[place].kinds)
            known = self._vectors[self.decorations[place]]
            for assigned in permutations(elements):
                if any(amounts[z] != n for z, n in zip(assigned, needed, strict=True)):
                    continue
                squared = ((known - self._vectors[list(assigned)]) ** 2).sum(-1) @ needed / needed.sum()
                votes[place, assigned] = float(np.exp(-squared / (2 * SIMILARITY_WIDTH**2)).sum())
        total = sum(votes.values())
        if not total:
            return []
        ranked = sorted(votes.items(), key=lambda item: (-item[1], item[0]))
        return [
            Suggestion(self.templates[place], tuple(assigned[kind] for kind in self.templates[place].kinds), vote / total)
            for (place, assigned), vote in ranked
        ]

    def substitutions(self, elements: set[int]) -> list[Recipe]:
        """Return crystals of the training set with one element replaced by a similar one that occurs at its site.

        Decorations of the training set are left out, as are templates with fewer than ``MIN_DECORATIONS`` of them. In an ionic
        family only decorations that are charge-neutral in common oxidation states remain.

        Args:
            elements: atomic numbers allowed. H never is, because the adsorption of H on a sheet that holds H is not judged.
        """
        return [recipe for family in self._families(elements) for recipe in self._offspring(family, family.known)]

    def further_substitutions(self, recipes: Iterable[Recipe], elements: set[int]) -> list[Recipe]:
        """Return recipes with one more element replaced, by the rules of ``substitutions``.

        Args:
            recipes: results of ``substitutions`` or of this method. Recipes without a template of this library are passed over.
            elements: atomic numbers allowed.
        """
        parents: dict[int, list[tuple[int, ...]]] = {}
        for recipe in recipes:
            if recipe.template is not None:
                numbers = dict(zip(recipe.template.kinds.tolist(), recipe.atomic_numbers, strict=True))
                parents.setdefault(id(recipe.template), []).append(tuple(numbers[kind] for kind in range(len(numbers))))
        families = [family for family in self._families(elements) if id(family.template) in parents]
        return [recipe for family in families for recipe in self._offspring(family, parents[id(family.template)])]

    def _families(self, elements: set[int]) -> list[_Family]:
        """Return the templates with enough decorations of the allowed elements, as families."""
        elements, result = elements - {1}, []
        for template, rows in zip(self.templates, self.decorations, strict=True):
            known = sorted({row for row in map(tuple, rows.tolist()) if set(row) <= elements})
            if len(known) < MIN_DECORATIONS or template.layer_group == 1:
                continue
            neutral = [charge_neutral(decorated(template, row), strict=True) for row in known[:NEUTRAL_SAMPLE]]
            name = f"{decorated(template, known[0])}, layer group {template.layer_group}"
            result.append(_Family(name, template, known, 2 * sum(neutral) > len(neutral)))
        return result

    def _offspring(self, family: _Family, rows: Iterable[tuple[int, ...]]) -> list[Recipe]:
        """Return the recipes of a family that are one substitution away from the decorations ``rows`` and not known."""
        sites = [sorted({row[kind] for row in family.known}) for kind in range(len(family.known[0]))]
        near = cache(lambda first, other: self.chemical_distance(first, other) <= SUBSTITUTION_DISTANCE)
        found = {
            (*row[:kind], other, *row[kind + 1 :])
            for row in rows
            for kind, site in enumerate(sites)
            for other in site
            if other not in row and near(row[kind], other)
        }
        kinds, result = family.template.kinds, []
        for decoration in sorted(found - set(family.known)):
            name = decorated(family.template, decoration)
            if not family.ionic or charge_neutral(name, strict=True):
                result.append(Recipe(name, tuple(decoration[kind] for kind in kinds), family.name, family.template))
        return result

    def chemical_distance(self, first: int, second: int) -> float:
        """Return the chemical distance of two elements."""
        return float(np.linalg.norm(self._vectors[first] - self._vectors[second]))

    @cached_property
    def _by_counts(self) -> dict[tuple[int, ...], list[int]]:
        """Return the indices of the templates by their sorted numbers of atoms of each kind."""
        result: dict[tuple[int, ...], list[int]] = {}
        for place, template in enumerate(self.templates):
            result.setdefault(tuple(sorted(np.bincount(template.kinds).tolist())), []).append(place)
        return result

    @cached_property
    def _vectors(self) -> np.ndarray:
        """Return (119, D) element descriptors, scaled so that their Euclidean distance is the chemical distance."""
        table = element_descriptors().numpy()
        return np.concatenate([0.15 * table[:, :18], 0.15 * table[:, 18:25], 0.5 * table[:, 25:]], 1)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the library as plain tensors and numbers, for a checkpoint."""
        return [
            {name: torch.as_tensor(getattr(template, name)) for name in Template.__dataclass_fields__}
            | {"decorations": torch.as_tensor(rows)}
            for template, rows in zip(self.templates, self.decorations, strict=True)
        ]

    @classmethod
    def from_state_dict(cls, state: Sequence[dict[str, Any]]) -> TemplateLibrary:
        """Return the library that ``state_dict`` returned the state of."""
        templates = []
        for entry in state:
            arrays = {name: entry[name].numpy() for name in Template.__dataclass_fields__ if name != "layer_group"}
            templates.append(Template(**arrays, layer_group=int(entry["layer_group"])))
        return cls(templates, [entry["decorations"].numpy() for entry in state])


def quasirandom_suggestion(suggestions: Sequence[Suggestion], number: int) -> Suggestion:
    """Return member ``number`` = 0, 1, 2, ... of a quasi-random series of suggestions.

    The series takes the quantiles of van der Corput's sequence. It starts with the most probable suggestion. Its shares approach
    the probabilities faster than those of random draws.

    Args:
        suggestions: as ``TemplateLibrary.suggest`` returns them, the most probable first.
        number: member of the series.
    """
    quantile, base = 0.0, 0.5
    while number:
        quantile += base * (number % 2)
        number, base = number // 2, base / 2
    cumulative = np.cumsum([s.probability for s in suggestions])
    return suggestions[min(int(np.searchsorted(cumulative, quantile, side="right")), len(suggestions) - 1)]


def template_key(template: Template) -> tuple[Any, list[int]]:
    """Return a key that equal templates share, whatever their origin and order of atoms.

    Returns:
        (key, kinds): the key holds the layer group, the free coordinates and the orbits of each kind of atoms, and which kinds are
        stacked above each other; kinds are listed in the order in which the key holds them.
    """
    count = len(template.kinds)
    # Symmetry ties the atoms of an orbit: for each atom, the free in-plane directions and heights, and the size of its orbit.
    free = (template.frac_basis.reshape(count, -1) ** 2).sum(1)
    rise = (template.height_basis**2).sum(1)
    sites: dict[int, list[tuple[float, float, int]]] = {}
    for atom, kind in enumerate(template.kinds.tolist()):
        size = int((template.orbits == template.orbits[atom]).sum())
        sites.setdefault(kind, []).append((round(float(free[atom]), 3) + 0.0, round(float(rise[atom]), 3) + 0.0, size))
    signature = {kind: tuple(sorted(found)) for kind, found in sites.items()}
    columns: dict[tuple[float, ...], list[Any]] = {}
    for atom in np.flatnonzero(free < 1e-6):
        place = tuple(np.round(template.frac_origin[atom] % 1.0, 2) % 1.0)
        columns.setdefault(place, []).append(signature[int(template.kinds[atom])])
    stacking = tuple(sorted(tuple(sorted(column)) for column in columns.values()))
    order = sorted(signature, key=lambda kind: (signature[kind], kind))
    return (template.layer_group, tuple(signature[kind] for kind in order), stacking), order
