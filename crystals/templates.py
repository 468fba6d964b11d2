"""The symmetry templates of a training set, and which of them suit a composition.

A template is chosen for a composition as the crystals of similar composition suggest (the idea of CSPML, Kusaba et al., 2022):
every crystal of the training set with the same number of atoms of each kind votes for its template, with a weight that falls with
the chemical distance between its elements and those asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np
import torch
from ase import Atoms

from crystals.charge_balance import charge_neutral
from crystals.recipes import Recipe
from crystals.symmetry import Template
from geo_utils import Sheet

MIN_DECORATIONS = 5  # different ones of a template, below which it is no family
NEUTRAL_SAMPLE = 50  # decorations by which a template is called ionic or not
# Of element descriptors. Mo by W, Cr, Nb, Ru; S by Se, Te, P; Ba by Ca, Sr, Y. One limit for every substitution of a recipe: beyond
# it the sheets sampled are further from their relaxed ones and less often near the hull.
SUBSTITUTION_DISTANCE = 1.0
MAX_KINDS = 5  # elements; more have too many ways to be assigned
# Distance of element descriptors at which a vote has fallen to exp(−1/2). Of 0.15, 0.3, 0.6, 1 and 2, the one that most often names
# the right template of C2DB's validation split first.
SIMILARITY_WIDTH = 0.3


@dataclass(frozen=True)
class Suggestion:
    """A template for a composition, with its probability. atomic_numbers: the composition in the template's order of atoms."""

    template: Template
    atomic_numbers: tuple[int, ...]
    probability: float


@dataclass(frozen=True)
class _Family:
    """A template with its decorations in the training set, and whether most of them are charge-neutral in common states."""

    name: str
    template: Template
    known: list[tuple[int, ...]]
    ionic: bool


def decorated(template: Template, decoration: Sequence[int]) -> str:
    """Formula of a template with an element, by atomic number, for each of its kinds of atoms."""
    return Atoms(numbers=[decoration[kind] for kind in template.kinds]).get_chemical_formula("metal")


@dataclass
class TemplateLibrary:
    """templates, and for each the decorations (n, kinds) seen in training: the atomic numbers of its kinds of atoms."""

    templates: list[Template]
    decorations: list[np.ndarray]

    @classmethod
    def build(cls, sheets: Iterable[tuple[Sheet, Template]]) -> TemplateLibrary:
        """The distinct ones of the templates of some sheets, "no symmetry" among them."""
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
            # The kinds of this sheet and of the representative correspond in the order of their sites.
            own = {ours: elements[theirs] for ours, theirs in zip(kinds_in_order[place], order, strict=True)}
            seen[place].append(tuple(own[kind] for kind in range(len(own))))
        return cls(templates, [np.array(rows, dtype=np.int64) for rows in seen])

    def suggest(self, atomic_numbers: Sequence[int]) -> list[Suggestion]:
        """Templates that hold these atoms, the most probable first; [] where none does."""
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
        """Crystals of the training set with one element replaced by a similar one that occurs at the same site of its template.

        elements: atomic numbers allowed; H never is, because the adsorption of H on a sheet that holds H is not judged. Left out
        are the decorations of the training set, templates with fewer than ``MIN_DECORATIONS`` of them and, where most of a
        template's decorations are charge-neutral in common oxidation states, new ones that are not.
        """
        return [recipe for family in self._families(elements) for recipe in self._offspring(family, family.known)]

    def further_substitutions(self, recipes: Iterable[Recipe], elements: set[int]) -> list[Recipe]:
        """Recipes of ``substitutions``, or of this method, with one more element replaced by the same rules. Recipes of other
        origin have none."""
        parents: dict[int, list[tuple[int, ...]]] = {}
        for recipe in recipes:
            if recipe.template is not None:
                numbers = dict(zip(recipe.template.kinds.tolist(), recipe.atomic_numbers, strict=True))
                parents.setdefault(id(recipe.template), []).append(tuple(numbers[kind] for kind in range(len(numbers))))
        families = [family for family in self._families(elements) if id(family.template) in parents]
        return [recipe for family in families for recipe in self._offspring(family, parents[id(family.template)])]

    def _families(self, elements: set[int]) -> list[_Family]:
        """The templates that are families."""
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
        """Recipes of a family one substitution away from the decorations ``rows``, without the known ones."""
        sites = [sorted({row[kind] for row in family.known}) for kind in range(len(family.known[0]))]
        found = {
            (*row[:kind], other, *row[kind + 1 :])
            for row in rows
            for kind, site in enumerate(sites)
            for other in site
            if other not in row and self._distance(row[kind], other) <= SUBSTITUTION_DISTANCE
        }
        kinds, result = family.template.kinds, []
        for decoration in sorted(found - set(family.known)):
            name = decorated(family.template, decoration)
            if not family.ionic or charge_neutral(name, strict=True):
                result.append(Recipe(name, tuple(decoration[kind] for kind in kinds), family.name, family.template))
        return result

    def _distance(self, first: int, second: int) -> float:
        return float(np.linalg.norm(self._vectors[first] - self._vectors[second]))

    @cached_property
    def _by_counts(self) -> dict[tuple[int, ...], list[int]]:
        result: dict[tuple[int, ...], list[int]] = {}
        for place, template in enumerate(self.templates):
            result.setdefault(tuple(sorted(np.bincount(template.kinds).tolist())), []).append(place)
        return result

    @cached_property
    def _vectors(self) -> np.ndarray:
        """(119, D) what elements are compared by: the place in the periodic table, electronegativity and radius."""
        from crystals.elements import element_descriptors

        table = element_descriptors().numpy()
        return np.concatenate([0.15 * table[:, :18], 0.15 * table[:, 18:25], 0.5 * table[:, 25:]], 1)

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain tensors and numbers, for a checkpoint."""
        return [
            {name: torch.as_tensor(value) for name, value in vars_of(template).items()} | {"decorations": torch.as_tensor(rows)}
            for template, rows in zip(self.templates, self.decorations, strict=True)
        ]

    @classmethod
    def from_state_dict(cls, state: Sequence[dict[str, Any]]) -> TemplateLibrary:
        """The inverse of ``state_dict``."""
        templates = []
        for entry in state:
            arrays = {name: entry[name].numpy() for name in Template.__dataclass_fields__ if name != "layer_group"}
            templates.append(Template(**arrays, layer_group=int(entry["layer_group"])))
        return cls(templates, [entry["decorations"].numpy() for entry in state])


def vars_of(template: Template) -> dict[str, Any]:
    """The fields of a template."""
    return {name: getattr(template, name) for name in Template.__dataclass_fields__}


def spread_draw(suggestions: Sequence[Suggestion], number: int) -> Suggestion:
    """Suggestion ``number`` = 0, 1, 2, ... of a series that starts with the most probable and covers the others in proportion to
    their probabilities: the quantiles of van der Corput's sequence."""
    quantile, base = 0.0, 0.5
    while number:
        quantile += base * (number % 2)
        number, base = number // 2, base / 2
    cumulative = np.cumsum([s.probability for s in suggestions])
    return suggestions[min(int(np.searchsorted(cumulative, quantile, side="right")), len(suggestions) - 1)]


def template_key(template: Template) -> tuple[Any, list[int]]:
    """(key, kinds): equal keys for templates of the same layer group, free numbers, orbits and stacking, whatever the origin and
    the order of atoms; and the kinds of atoms in the order of their sites."""
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
