"""Builds sheets with one defect at which H binds otherwise than on the perfect sheet: vacancies, and single metal atoms in them.

What a correction learns on perfect sheets need not hold there, so DFT points on defects belong to the fit
(``scripts.prepare_defects``).
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import find_mic

from energetics.sites import BESIDE_SITE, tag_last_hydrogen

SAME_LAYER = 0.2  # Å


def vacancy(sheet: Atoms, symbol: str, cells: tuple[int, int]) -> tuple[Atoms, np.ndarray]:
    """Take an atom out of a supercell.

    Args:
        sheet: a primitive cell, c along z.
        symbol: of the atom; of several, the uppermost goes.
        cells: numbers of cells along a and b.

    Returns:
        The supercell without it, and its place (3,) Å.

    Raises:
        ValueError: the sheet has no such atom.
    """
    supercell = sheet.repeat((*cells, 1))
    candidates = [atom.index for atom in supercell if atom.symbol == symbol]
    if not candidates:
        raise ValueError(f"{sheet.get_chemical_formula()} has no {symbol}")
    heights = supercell.positions[candidates, 2]
    index = next(i for i, height in zip(candidates, heights, strict=True) if height > heights.max() - SAME_LAYER)
    place = supercell.positions[index].copy()
    del supercell[index]
    return supercell, place


def single_atom(sheet: Atoms, metal: str, symbol: str, cells: tuple[int, int]) -> Atoms:
    """Put a metal atom, as the last one, in the place of an atom, as high above it as its bonds ask for.

    Args:
        sheet, symbol, cells: as of ``vacancy``.
        metal: symbol of the atom.
    """
    supercell, place = vacancy(sheet, symbol, cells)
    vectors, distances = find_mic(supercell.positions - place, supercell.cell, supercell.pbc)
    shell = distances < 1.15 * distances.min()
    lateral = np.linalg.norm(vectors[shell][:, :2], axis=1)
    bonds = covalent_radii[supercell.numbers[shell]] + covalent_radii[Atoms(metal).numbers[0]]
    lift = np.sqrt(np.maximum(bonds**2 - lateral**2, 0.0)) + vectors[shell][:, 2]
    supercell.append(metal)
    supercell.positions[-1] = place + [0.0, 0.0, max(0.0, float(lift.mean()))]
    return supercell


def hydrogen_above(sheet: Atoms, place: np.ndarray, symbol: str = "") -> Atoms:
    """Put H, as the last atom with OC20's tags, above a place of a sheet: on an atom there, or in a vacancy.

    Args:
        sheet: the supercell.
        place: (3,) Å.
        symbol: of the atom at the place, which H touches; empty: nothing is there, and H starts in it.
    """
    height = covalent_radii[Atoms(symbol).numbers[0]] + covalent_radii[1] if symbol else 0.0
    covered = sheet.copy()
    covered.append("H")
    covered.positions[-1] = np.asarray(place) + [0.0, 0.0, height] + BESIDE_SITE
    tag_last_hydrogen(covered)
    return covered
