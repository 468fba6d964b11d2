"""How the adsorption energy of H changes as more sites of one kind are filled, by an interatomic potential.

A site repeats once in every primitive cell, so that its full coverage is one monolayer: one H per primitive cell. The differential
adsorption energy, of one further H, is the one that decides at which coverage H2 evolves (Nørskov et al., J. Electrochem. Soc. 152,
J23 (2005)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from energetics.adsorption_energy import adsorption_energy
from energetics.potentials import Potential
from energetics.relaxation import h2_energy, has_desorbed, relax_positions

H2_BELOW = 1.0  # Å, two H this close are a molecule
STAYS, DESORBS, H2_FORMS, FAILS = "ok", "H desorbs", "H2 forms", "not relaxed"


@dataclass(frozen=True)
class Coverage:
    """n H on a supercell.

    coverage: H per primitive cell. mean: ΔE_H per H, eV. differential: that of the last H, eV. status: STAYS, or why both are NaN.
    """

    n: int
    coverage: float
    mean: float
    differential: float
    status: str


def coverage_curve(
    clean: Atoms, with_h: Atoms, cells: tuple[int, int], potential: Potential, fmax: float = 0.05, max_steps: int = 150
) -> list[Coverage]:
    """Fill the equivalent sites of a supercell one after another, each next H as far from the others as can be.

    All atoms relax in the fixed cell, the clean sheet too. The curve ends where H does not stay.

    Args:
        clean: the supercell without H.
        with_h: the same cell with one H as its last atom, at the site.
        cells: numbers (na, nb) of primitive cells of which ``clean`` consists along both vectors.
        potential: gives energies and forces.
        fmax: eV/Å, the largest force at the end.
        max_steps: of each relaxation.

    Returns:
        Coverages 1/(na nb), 2/(na nb) ... 1, as far as H stays.
    """
    count = cells[0] * cells[1]
    hydrogen = with_h.positions[-1] + _frame_shift(clean, with_h)
    places = spread_sites(clean, hydrogen, cells)
    sheet = relax_positions(clean, potential, fmax, max_steps)
    h2, curve, before = h2_energy(potential), [], sheet.energy
    for n in range(1, count + 1):
        covered = clean.copy()
        covered.extend(Atoms("H" * n, places[:n]))
        relaxed = relax_positions(covered, potential, fmax, max_steps)
        status = _status(relaxed.atoms, n) if relaxed.converged and sheet.converged else FAILS
        mean = differential = math.nan
        if status == STAYS:
            mean = adsorption_energy(relaxed.energy, sheet.energy, n * h2) / n
            differential = adsorption_energy(relaxed.energy, before, h2)
        curve.append(Coverage(n, n / count, mean, differential, status))
        if status != STAYS:
            break
        before = relaxed.energy
    return curve


def spread_sites(clean: Atoms, hydrogen: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """Return the copies (na nb, 3) Å of an H in every primitive cell, each next one as far from those before as can be.

    hydrogen: (3,) Å, the first.
    """
    a, b = clean.cell.array[0] / cells[0], clean.cell.array[1] / cells[1]
    left = [hydrogen + i * a + j * b for i, j in product(range(cells[0]), range(cells[1]))]
    chosen = [left.pop(0)]
    while left:
        gaps = [find_mic(place - np.array(chosen), clean.cell, (True, True, False))[1].min() for place in left]
        chosen.append(left.pop(int(np.argmax(np.round(gaps, 6)))))
    return np.array(chosen)


def _frame_shift(clean: Atoms, with_h: Atoms) -> np.ndarray:
    """Return by what (3,) Å ``with_h`` has to move to stand where ``clean`` stands: most atoms of the sheet feel no H."""
    shifts, _ = find_mic(clean.positions - with_h.positions[:-1], clean.cell, (True, True, False))
    return np.median(shifts, axis=0)


def _status(atoms: Atoms, n: int) -> str:
    """Say whether the last n atoms, which are H, stay on the sheet as single atoms."""
    hydrogens = range(len(atoms) - n, len(atoms))
    pairs = [(i, j) for i in hydrogens for j in hydrogens if i < j]
    if any(atoms.get_distance(i, j, mic=True) < H2_BELOW for i, j in pairs):
        return H2_FORMS
    sheet = atoms[: len(atoms) - n]
    alone = [sheet + atoms[[index]] for index in hydrogens]
    return DESORBS if any(has_desorbed(one, len(one) - 1) for one in alone) else STAYS
