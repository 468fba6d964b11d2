"""Predicts the band gap that PBE gives a sheet: boosted trees that learnt it from C2DB, for the verdict whether a sheet conducts.

GFN2-xTB (``band_gap.py``) stays the descriptor of the correction from DFT, whose error these gaps in its place do not change within
the noise. As a gap it is the worse one at the few k-points that it samples: those of honeycomb cells leave out K.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

import geo_utils
from crystals.descriptors import (
    BOND_RATIO,
    COMPOSITION_NAMES,
    MIN_SHEET_GAP,
    NEIGHBOUR_CUTOFF,
    SHEET_NAMES,
    crystal_descriptors,
    element_row,
)
from crystals.elements import electronegativity_and_group
from energetics.coverage import repeats
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import CheckpointError, first_line, load_checkpoint
from pipeline.files import relative_name

KIND = "band_gap"
HINT = "run python -m scripts.train_band_gap, or set evaluation.band_gap_checkpoint= to do without"
METAL_EV = 0.01  # eV; PBE gaps up to this one are those of metals and semimetals
SYMPREC = 0.1  # Å, tolerance within which the primitive cell is found
MIN_ELEMENT_ROWS = 3  # elements of fewer training sheets are outside the domain
ANGLE_EDGES = (0, 65, 75, 84, 96, 105, 120, 140, 165, 180)  # degrees, edges of the histogram of bond angles

ANGLE_NAMES = tuple(
    f"{kind} element: share of bond angles from {low} to {high} degrees"
    for kind in ("least electronegative", "most electronegative")
    for low, high in zip(ANGLE_EDGES, ANGLE_EDGES[1:], strict=False)
)
ALLOY_ANGSTROM = 0.3  # an atom of an alloy is this close to its place in the lattice
PARITY_NAME = "odd number of electrons in the primitive cell"


def bond_angles(sheet: Atoms) -> np.ndarray:
    """Return ANGLE_NAMES of a sheet, float64: these tell prismatic from octahedral sites, whose coordination is equal.

    Args:
        sheet: a sheet in the xy plane.
    """
    flat = Atoms(sheet.numbers, sheet.positions, cell=sheet.cell, pbc=(True, True, False))
    numbers = flat.numbers
    electronegativity = np.array([element_row(int(number))[0] for number in numbers])
    first, second, images, distance = geo_utils.neighbours_within(flat, NEIGHBOUR_CUTOFF)
    vector = flat.positions[second] - flat.positions[first] + images @ flat.cell.array
    # Rounded, so that a bond or an angle on the edge of a class falls on the same side in every setting.
    bonded = np.round(distance / (covalent_radii[numbers[first]] + covalent_radii[numbers[second]]), 4) < BOND_RATIO
    first, direction = first[bonded], (vector / distance[:, None])[bonded]
    shares = np.zeros((len(flat), len(ANGLE_EDGES) - 1))
    for atom in range(len(flat)):
        own = direction[first == atom]
        if len(own) >= 2:
            cosines = np.clip((own @ own.T)[np.triu_indices(len(own), 1)], -1, 1)
            degrees = np.round(np.degrees(np.arccos(cosines)), 1)
            shares[atom] = np.histogram(degrees, ANGLE_EDGES)[0] / len(degrees)
    kinds = numbers[np.argmin(electronegativity)], numbers[np.argmax(electronegativity)]
    return np.round(np.concatenate([shares[numbers == kind].mean(0) for kind in kinds]), 4)


def gap_descriptors(atoms: Atoms) -> np.ndarray:
    """Describe a sheet for its band gap: composition, bonds, bond angles, and whether the electrons of its cell can pair.

    Args:
        atoms: a sheet with at least ``MIN_SHEET_GAP`` of vacuum, in any setting.

    Returns:
        COMPOSITION_NAMES, SHEET_NAMES, ANGLE_NAMES and PARITY_NAME, float64; equal for every setting of one sheet but for rounding.

    Raises:
        geo_utils.NotTwoDimensional: the crystal has no such gap.
        ValueError: an element without descriptors.
    """
    content = (atoms.numbers.tobytes(), atoms.positions.tobytes(), atoms.cell.array.tobytes(), tuple(atoms.pbc.tolist()))
    return _described(*content).copy()


@lru_cache(maxsize=8)
def _described(numbers: bytes, positions: bytes, cell: bytes, pbc: tuple[bool, ...]) -> np.ndarray:
    """Do the work of ``gap_descriptors``, once: the trees of band gap, ΔG_H and dynamic stability ask for one sheet in turn."""
    places = np.frombuffer(positions).reshape(-1, 3)
    atoms = Atoms(np.frombuffer(numbers, dtype=int), places, cell=np.frombuffer(cell).reshape(3, 3), pbc=pbc)
    sheet = geo_utils.primitive_sheet(atoms, SYMPREC, MIN_SHEET_GAP)
    return np.concatenate([crystal_descriptors(sheet), bond_angles(sheet), [float(not electrons_can_pair(sheet))]])


def electrons_can_pair(sheet: Atoms) -> bool:
    """Return whether a primitive cell has an even number of electrons.

    In an alloy (``coverage.repeats``) it is the cell of the lattice that has to have it, on average: an ordered alloy of two metals
    with an odd number each has an even number in its cell and is a metal all the same. A Peierls distortion moves atoms by more
    than ALLOY_ANGSTROM, and counts.
    """
    count = len(repeats(sheet, ALLOY_ANGSTROM))
    if count == 1:
        return sheet.numbers.sum() % 2 == 0
    electrons = sum(electronegativity_and_group(symbol)[1] for symbol in sheet.symbols)  # and full shells, equal in every cell
    return electrons % (2 * count) == 0


@dataclasses.dataclass(frozen=True)
class GapColumns:
    """What the columns of the trees are; trees of other columns cannot be used."""

    names: list[str] = dataclasses.field(default_factory=lambda: [*COMPOSITION_NAMES, *SHEET_NAMES, *ANGLE_NAMES, PARITY_NAME])


@dataclasses.dataclass(frozen=True)
class GapModel:
    """Two ensembles of trees: whether a sheet has a gap, and how wide it is where it has one.

    has_gap: gives the log-odds of a gap over METAL_EV. width: gives the gap of a semiconductor, eV. element_counts: training sheets
    of each element.
    """

    has_gap: BoostedTrees
    width: BoostedTrees
    element_counts: Mapping[str, int]

    @classmethod
    def load(cls, path: str | os.PathLike) -> GapModel:
        """Read a checkpoint. Raises CheckpointError, which says what to do, where it cannot be used."""
        content = load_checkpoint(path, kind=KIND, hint=HINT)
        try:
            if content["model_config"] != dataclasses.asdict(GapColumns()):
                raise ValueError("its descriptors are not those of this version")
            counts = {str(symbol): int(count) for symbol, count in content["element_counts"].items()}
            return cls(BoostedTrees.from_state(content["has_gap"]), BoostedTrees.from_state(content["width"]), counts)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{relative_name(path)} does not fit the band gap ({first_line(error, 120)}): {HINT}") from error

    def state(self) -> dict[str, Any]:
        """Return plain values and tensors for ``networks.checkpoints``."""
        return {"has_gap": self.has_gap.state(), "width": self.width.state(), "element_counts": dict(self.element_counts)}

    def gaps(self, rows: np.ndarray) -> np.ndarray:
        """Return the gaps (N,) eV of descriptors (N, columns); 0 where a metal is more likely than not."""
        return np.where(self.has_gap.predict(rows) >= 0, np.maximum(self.width.predict(rows), METAL_EV), 0.0)

    def band_gap(self, atoms: Atoms) -> float:
        """Return the gap of a sheet in eV, rounded to 1e-3.

        Args:
            atoms: without H on it, in any setting.

        Returns:
            NaN for an element of fewer than MIN_ELEMENT_ROWS training sheets.

        Raises:
            geo_utils.NotTwoDimensional: the crystal is no sheet.
        """
        if any(self.element_counts.get(symbol, 0) < MIN_ELEMENT_ROWS for symbol in set(atoms.get_chemical_symbols())):
            return math.nan
        return round(float(self.gaps(gap_descriptors(atoms)[None])[0]), 3)

    def rough_gap(self, atoms: Atoms) -> float:
        """Return ``band_gap``, for rare elements too; NaN for a ribbon, and for an element without descriptors.

        The correction towards DFT is better off with a rough gap than without any.
        """
        try:
            return round(float(self.gaps(gap_descriptors(atoms)[None])[0]), 3)
        except ValueError:  # NotTwoDimensional included
            return math.nan


def load_gap_model(path: str) -> GapModel | None:
    """Load the model that ``evaluation.band_gap_checkpoint`` names; None where it names none."""
    return GapModel.load(path) if path else None
