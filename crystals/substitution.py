"""Structure prediction by substitution: the crystals of a training set with the elements of a composition, nearest first.

No network has a part in it. It is the reference that a learnt generator has to beat, and what the refiner starts from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import permutations

import numpy as np

from crystals.alignment import bond_counts, bond_length
from crystals.elements import element_descriptors
from crystals.symmetry import kinds_of
from crystals.templates import MAX_KINDS
from geo_utils import Sheet


@cache
def squared_distances() -> np.ndarray:
    """Return (119, 119) squared chemical distances of the elements, those of ``TemplateLibrary``."""
    table = element_descriptors().numpy()
    vectors = np.concatenate([0.15 * table[:, :25], 0.5 * table[:, 25:]], 1)
    return ((vectors[:, None] - vectors[None]) ** 2).sum(-1)


def substituted(sheet: Sheet, atomic_numbers: np.ndarray) -> Sheet:
    """Return a sheet with other elements (N,) on its atoms, at the size of these, in the standard setting."""
    bonds = bond_counts(sheet)
    scale = bond_length(bonds, atomic_numbers) / bond_length(bonds, sheet.atomic_numbers)
    scaled = Sheet(atomic_numbers, sheet.frac_coords % 1.0, sheet.heights * scale, sheet.lattice * scale)
    return Sheet.from_atoms(scaled.to_atoms())


class KnownCrystals:
    """Crystals whose elements can be replaced by those of a composition with as many atoms of each.

    Args:
        sheets: the crystals.
        formulas: their reduced formulas, by which some can be left out.
    """

    def __init__(self, sheets: Iterable[Sheet], formulas: Iterable[str]) -> None:
        self.sheets, self.formulas = list(sheets), list(formulas)
        self._elements: list[np.ndarray] = []  # of each crystal, in the order of its kinds
        self._amounts: list[np.ndarray] = []
        self._by_counts: dict[tuple[int, ...], list[int]] = {}
        for row, sheet in enumerate(self.sheets):
            amounts = Counter(sheet.atomic_numbers.tolist())
            self._elements.append(np.array(list(amounts)))
            self._amounts.append(np.array(list(amounts.values())))
            if len(amounts) <= MAX_KINDS:
                self._by_counts.setdefault(tuple(sorted(amounts.values())), []).append(row)

    def nearest(self, atomic_numbers: Sequence[int], most: int, without: str = "") -> list[Sheet]:
        """Return at most ``most`` crystals with the elements of a composition, the chemically nearest first; [] where none fits.

        Args:
            atomic_numbers: of the atoms of the cell, in any order.
            most: number of sheets.
            without: crystals of this reduced formula are left out.
        """
        found = []
        for row, assigned in self._assignments(atomic_numbers, without):
            weights = self._amounts[row]
            distance = squared_distances()[self._elements[row], assigned] @ weights / weights.sum()
            found.append((float(distance), row, assigned))
        return [self._substituted(row, assigned) for _, row, assigned in sorted(found)[:most]]

    def drawn(self, atomic_numbers: Sequence[int], most: int, rng: np.random.Generator) -> list[Sheet]:
        """Return at most ``most`` crystals drawn at random, with the elements of a composition."""
        found = self._assignments(atomic_numbers)
        return [self._substituted(*found[k]) for k in rng.permutation(len(found))[:most]]

    def _assignments(self, atomic_numbers: Sequence[int], without: str = "") -> list[tuple[int, tuple[int, ...]]]:
        """Return (row, elements in the order of its kinds) of every crystal and way of putting the elements on it."""
        amounts = Counter(int(z) for z in atomic_numbers)
        orders = list(permutations(sorted(amounts))) if len(amounts) <= MAX_KINDS else []
        return [
            (row, assigned)
            for row in self._by_counts.get(tuple(sorted(amounts.values())), ())
            if self.formulas[row] != without
            for assigned in orders
            if all(amounts[z] == n for z, n in zip(assigned, self._amounts[row], strict=True))
        ]

    def _substituted(self, row: int, assigned: Sequence[int]) -> Sheet:
        """Return a crystal with other elements, at the size of these, in the standard setting."""
        sheet = self.sheets[row]
        return substituted(sheet, np.array(assigned)[kinds_of(sheet.atomic_numbers)])
