"""How the adsorption energy of H changes as more sites of one kind are filled, by an interatomic potential.

A site repeats with the lattice, so that its full coverage is one monolayer: one H per repeat unit. In an alloy the lattice is that
of the crystal in which related elements are one, and its sites are only nearly equal. The differential adsorption energy, of one
further H, is the one that decides at which coverage H2 evolves (Nørskov et al., J. Electrochem. Soc. 152, J23 (2005)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from crystals.elements import are_related
from energetics.adsorption_energy import adsorption_energy
from energetics.potentials import Potential
from energetics.relaxation import h2_energy, has_desorbed, relax_positions

H2_BELOW = 1.0  # Å, two H this close are a molecule
NEAR_ANGSTROM = 0.5  # an atom of an alloy is this close to its place in the lattice
STAYS, DESORBS, H2_FORMS, FAILS = "ok", "H desorbs", "H2 forms", "not relaxed"


@dataclass(frozen=True)
class Coverage:
    """n H on a supercell.

    coverage: H per repeat unit. mean: ΔE_H per H, eV. differential: that of the last H, eV. status: STAYS, or why both are NaN.
    """

    n: int
    coverage: float
    mean: float
    differential: float
    status: str


def coverage_curve(clean: Atoms, with_h: Atoms, potential: Potential, fmax: float = 0.05, max_steps: int = 150) -> list[Coverage]:
    """Fill the equivalent sites of a supercell one after another, each next H as far from the others as can be.

    All atoms relax in the fixed cell, the clean sheet too. The curve ends where H does not stay.

    Args:
        clean: the supercell without H.
        with_h: the same cell with one H as its last atom, at the site.
        potential: gives energies and forces.
        fmax: eV/Å, the largest force at the end.
        max_steps: of each relaxation.

    Returns:
        Coverages 1/M, 2/M ... 1, of M repeat units, as far as H stays.
    """
    hydrogen = with_h.positions[-1] + _frame_shift(clean, with_h)
    places = spread_sites(clean, hydrogen)
    count = len(places)
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


def spread_sites(clean: Atoms, hydrogen: np.ndarray) -> np.ndarray:
    """Return the copies (M, 3) Å of an H in every repeat unit, each next one as far from those before as can be.

    hydrogen: (3,) Å, the first.
    """
    left = list(hydrogen + repeats(clean))
    chosen = [left.pop(0)]
    while left:
        gaps = [find_mic(place - np.array(chosen), clean.cell, (True, True, False))[1].min() for place in left]
        chosen.append(left.pop(int(np.argmax(np.round(gaps, 6)))))
    return np.array(chosen)


def repeats(clean: Atoms, near: float = NEAR_ANGSTROM) -> np.ndarray:
    """Return the translations (M, 3) Å in plane, zero first, that put every atom near one of a related element.

    In a supercell these are the translations between its primitive cells, and in an alloy those of the lattice that it decorates.
    Where they are no group, because atoms are too far from their places for some of them, only zero is left.

    Args:
        clean: a sheet.
        near: Å, how far from the place an atom may be.
    """
    positions, symbols = clean.positions, clean.get_chemical_symbols()
    alike = np.array([[are_related(one, other) for other in symbols] for one in symbols])
    steps = positions[alike[0]] - positions[0]
    found = [np.zeros(3)]
    for step in steps[np.abs(steps[:, 2]) < near] * [1, 1, 0]:
        gaps = positions[:, None] + step - positions[None]
        distances = find_mic(gaps.reshape(-1, 3), clean.cell, (True, True, False))[1].reshape(alike.shape)
        is_new = find_mic(step - np.array(found), clean.cell, (True, True, False))[1].min() > near
        if is_new and ((distances < near) & alike).any(axis=1).all():
            found.append(step)
    sums = np.array([one + other for one in found for other in found])
    away = [find_mic(total - np.array(found), clean.cell, (True, True, False))[1].min() for total in sums]
    return np.array(found if max(away) < 2 * near else found[:1])


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
