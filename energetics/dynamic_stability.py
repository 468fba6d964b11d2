"""Decides whether a sheet is dynamically stable, and follows an unstable mode to where it leads.

The criterion is that of C2DB (Haastrup et al., 2D Mater. 5, 042002 (2018); Gjerding et al., 2D Mater. 8, 044002 (2021)): the
Hessian of a 2 x 2 supercell and the in-plane stiffness tensor have no negative eigenvalue. A sheet that fails is displaced along
its lowest mode in the smallest supercell that holds it, and relaxed again (Manti et al., npj Comput. Mater. 9, 33 (2023)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from energetics.phonons import REPEAT, Phonons, phonons, pushed, relax_within_symmetry, stiffness
from energetics.potentials import Potential
from energetics.relaxation import relax_sheet, single_point

MIN_HESSIAN = -0.1  # eV/Å²; lower eigenvalues are unstable. C2DB has -0.01; potentials are softer (docs/results.md)
MIN_STIFFNESS = 0.0  # N/m
PUSHED_FMAX = 0.02  # eV/Å
PUSHED_STEPS = 100


@dataclass(frozen=True)
class DynamicStability:
    """What phonons say about a sheet.

    stable: by the criterion. sheet: as relaxed for it. min_hessian: lowest eigenvalue of the Hessian without translations, eV/Å².
    min_thz: lowest frequency, negative where imaginary. q: (2,) wave vector of the lowest eigenvalue. stiffness_min: lowest
    eigenvalue of the stiffness tensor, N/m. distorted: an unstable sheet displaced along its lowest mode and relaxed; None for a
    stable one, and where that fails. gain: energy of the distorted sheet below it, eV/atom. distorted_stable: whether that one is
    stable at the wave vectors of the same 2 x 2 supercell.
    """

    stable: bool
    sheet: Atoms
    min_hessian: float
    min_thz: float
    q: tuple[float, float]
    stiffness_min: float
    distorted: Atoms | None = None
    gain: float = math.nan
    distorted_stable: bool | None = None


def dynamic_stability(atoms: Atoms, potential: Potential, follow: bool = True) -> DynamicStability:
    """Judge a sheet.

    Args:
        atoms: near a stationary point, pbc (T, T, F), c along z, a primitive cell.
        potential: judges.
        follow: whether an unstable mode is followed.

    Raises:
        ValueError: the potential leaves its domain.
    """
    sheet = relax_within_symmetry(atoms, potential)
    found = phonons(sheet, potential)
    stiff = _least_stiffness(sheet, potential, found)
    values = (sheet, found.lowest.eigenvalue, found.min_thz, found.lowest.q, stiff)
    stable = is_stable(found.lowest.eigenvalue, stiff)
    if stable or not follow or found.lowest.eigenvalue >= MIN_HESSIAN:  # a soft cell has no mode to follow
        return DynamicStability(stable, *values)
    return DynamicStability(stable, *values, *_distort(sheet, found, potential))


def is_stable(min_hessian: float, stiffness_min: float) -> bool:
    """Return whether both lowest eigenvalues pass. min_hessian: eV/Å². stiffness_min: N/m."""
    return min_hessian >= MIN_HESSIAN and stiffness_min > MIN_STIFFNESS


def _least_stiffness(sheet: Atoms, potential: Potential, found: Phonons) -> float:
    return float(np.linalg.eigvalsh(stiffness(sheet, potential, found.hessian))[0])


def _distort(sheet: Atoms, found: Phonons, potential: Potential) -> tuple[Atoms | None, float, bool | None]:
    """Follow the lowest mode of a sheet; the last three fields of ``DynamicStability``."""
    mode = found.lowest
    relaxed = relax_sheet(pushed(sheet, mode), potential, PUSHED_FMAX, PUSHED_STEPS)
    if relaxed.status in ("exploded", "collapsed"):
        return None, math.nan, None
    try:
        distorted = relax_within_symmetry(relaxed.atoms, potential)
        energy = single_point(distorted, potential.calculator) / len(distorted)
        same = np.round(REPEAT * np.linalg.inv(mode.cell)).astype(int)  # the 2 x 2 cell of the parent
        again = phonons(distorted, potential, same)
        stable = is_stable(again.lowest.eigenvalue, _least_stiffness(distorted, potential, again))
    except ValueError:
        return None, math.nan, None
    return distorted, single_point(sheet, potential.calculator) / len(sheet) - energy, stable
