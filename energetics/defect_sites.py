"""Builds sheets with defects at which H binds otherwise than on the perfect sheet: vacancies, single metal atoms in them, edges.

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
RIBBON_DISTANCE = 10.0  # Å between a ribbon and its images in plane
HYDRIDE_BOND = 1.4  # Å, of S-H and its like, from which H at an edge relaxes


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


def zigzag_ribbon(sheet: Atoms, rows: int, periods: int, with_monomers: bool = False) -> tuple[Atoms, dict[str, np.ndarray]]:
    """Cut a ribbon with zigzag edges out of a sheet MX2 of the 2H type.

    One edge ends with a row of M that lack two of six bonds, the other one with pairs of X on two instead of three bonds: the
    metal edge and the chalcogen edge of J. V. Lauritsen et al., Nanotechnology 14, 385 (2003).

    Args:
        sheet: the primitive cell MX2, M in the mirror plane, c along z.
        rows: of M across the ribbon.
        periods: cells along it.
        with_monomers: whether one X bridges every two M of the metal edge (a coverage of 50 %), as at the edges where H2 evolves:
            B. Hinnemann et al., J. Am. Chem. Soc. 127, 5308 (2005).

    Returns:
        The ribbon along x in a cell with RIBBON_DISTANCE in plane, and where H starts at either edge, (3,) Å by the symbol that it
        meets there: M, or X of the monomers, and at the other edge "X pair" as X-pair.

    Raises:
        ValueError: the sheet is not of that type.
    """
    counts = sheet.symbols.formula.count()
    metal, anion = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    lengths, angle = sheet.cell.lengths()[:2], sheet.cell.angles()[2]
    anions = sheet.positions[sheet.symbols == anion]
    hexagonal = abs(lengths[0] - lengths[1]) < 0.01 and min(abs(angle - 60), abs(angle - 120)) < 0.1
    if sorted(counts.values()) != [1, 2] or not hexagonal or np.ptp(anions[:, :2], axis=0).max() > SAME_LAYER:
        raise ValueError(f"{sheet.get_chemical_formula()} is no sheet MX2 of the 2H type in its primitive cell")
    a, plane = float(lengths.mean()), sheet.positions[sheet.symbols == metal][0, 2]
    spacing, half = a * np.sqrt(3) / 2, np.ptp(anions[:, 2]) / 2
    symbols, places = [], []
    for row in range(rows):
        for period in range(periods):
            x, y = (period + row % 2 / 2) * a, row * spacing
            symbols += [metal, anion, anion]
            places += [[x, y, plane], *([x + a / 2, y + spacing / 3, plane + side * half] for side in (1, -1))]
    bond = np.hypot(a / np.sqrt(3), half)
    outwards = np.sqrt(bond**2 - (a / 2) ** 2)  # of an atom that bridges two M of the edge
    if with_monomers:
        symbols += [anion] * periods
        places += [[(period + 0.5) * a, -outwards, plane] for period in range(periods)]
    positions = np.array(places)
    width = np.ptp(positions[:, 1])
    shift = [0.0, RIBBON_DISTANCE / 2 - positions[:, 1].min(), 0.0]
    cell = [periods * a, width + RIBBON_DISTANCE, sheet.cell.lengths()[2]]
    ribbon = Atoms(symbols, positions + shift, cell=cell, pbc=sheet.pbc)
    pair = positions[3 * periods * (rows - 1) + 1]
    touching = covalent_radii[Atoms(metal).numbers[0]] + covalent_radii[1]
    at_metal = [a / 2, -np.sqrt(max(touching**2 - (a / 2) ** 2, 0.25)), plane]
    at_monomer = [a / 2, -outwards - HYDRIDE_BOND, plane]
    starts = {
        anion if with_monomers else metal: np.array(at_monomer if with_monomers else at_metal) + shift,
        f"{anion}-pair": pair + shift + HYDRIDE_BOND * np.array([0.0, np.sqrt(0.5), np.sqrt(0.5)]),
    }
    return ribbon, starts
