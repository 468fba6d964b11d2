"""Computes what it costs to peel a sheet off a crystal of such sheets: the exfoliation energy, by a potential with D3 dispersion.

The energy to exfoliate a layer is the binding energy of the layered crystal per area, E_exf = (E_sheet − E_crystal) / A (Jung, Park
& Ihm, Nano Lett. 18, 2759 (2018)). The crystal stacks the sheet itself, one in each cell, with the lateral shift and the distance
that bind it most. Layers are rigid and not turned against each other: stackings with turned layers, as of 2H-MoS2, differ by about
1 meV/Å². Where a layered phase of another structure is more stable, E_above_hull says so.

Potentials learn from PBE, which has no dispersion. DFT-D3 adds it, with rational damping and the parameters for PBE (Grimme,
Antony, Ehrlich & Krieg, J. Chem. Phys. 132, 154104 (2010); Grimme, Ehrlich & Goerigk, J. Comput. Chem. 32, 1456 (2011)).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers
from ase.units import Bohr, Hartree
from scipy.optimize import minimize_scalar

from energetics.relaxation import single_point

# Fractions of the in-plane vectors: on top, on the hollows of a hexagonal cell, halfway.
SHIFTS = ((0.0, 0.0), (1 / 3, 2 / 3), (2 / 3, 1 / 3), (0.5, 0.5), (0.5, 0.0), (0.0, 0.5))
DISTANCES = (2.2, 2.6, 3.0, 3.4)  # Å between the outermost planes of two layers, of which the best starts the search
REACH = 0.5  # Å around it
TOLERANCE = 0.02  # Å
CUTOFF = 30.0  # Å, of dispersion between two atoms
LAST_ELEMENT = 94  # plutonium; for later ones D3 has no parameters, and the library reads beyond its tables
CUTOFF_COORDINATION = 15.0  # Å, of the coordination numbers on which its coefficients depend


@dataclass(frozen=True)
class Exfoliation:
    """What binds a sheet to others like it.

    energy: meV/Å², positive where layers bind. distance: Å between the outermost planes of two layers. shift: (2,) of a layer
    against the one below, in fractions of the in-plane vectors.
    """

    energy: float
    distance: float
    shift: tuple[float, float]


def exfoliate(sheet: Atoms, calculator: Calculator) -> Exfoliation:
    """Find the stacking of a sheet that binds most, and its energy.

    Args:
        sheet: relaxed, pbc (T, T, F), c along z.
        calculator: of the potential.

    Raises:
        ValueError: the energy is not finite, or D3 has no parameters for an element.
    """

    def total(atoms: Atoms) -> float:
        energy = single_point(atoms, calculator) + dispersion(atoms)
        if not math.isfinite(energy):
            raise ValueError("the energy is not finite")
        return energy

    alone, area = total(sheet), float(np.linalg.norm(np.cross(*sheet.cell.array[:2])))

    def binding(shift: tuple[float, float], distance: float) -> float:
        return 1e3 * (alone - total(stacked(sheet, shift, distance))) / area

    shift, start = max(itertools.product(SHIFTS, DISTANCES), key=lambda place: binding(*place))
    found = minimize_scalar(
        lambda distance: -binding(shift, distance),
        bounds=(start - REACH, start + REACH),
        method="bounded",
        options={"xatol": TOLERANCE},
    )
    return Exfoliation(float(-found.fun), float(found.x), shift)


def stacked(sheet: Atoms, shift: tuple[float, float], distance: float) -> Atoms:
    """Return the crystal of a sheet: one layer in each cell.

    Args:
        sheet: pbc (T, T, F), c along z.
        shift: of a layer against the one below, in fractions of the in-plane vectors.
        distance: Å between the outermost planes of two layers.
    """
    cell = sheet.cell.array.copy()
    cell[2] = shift @ cell[:2]
    cell[2, 2] = np.ptp(sheet.positions[:, 2]) + distance
    return Atoms(sheet.numbers, positions=sheet.positions, cell=cell, pbc=True)


def dispersion(atoms: Atoms) -> float:
    """Return the D3 energy of a crystal in eV, without three-body terms.

    Raises:
        ValueError: D3 has no parameters for an element.
    """
    if beyond := sorted({symbol for symbol in atoms.symbols if atomic_numbers[symbol] > LAST_ELEMENT}):
        raise ValueError(f"D3 has no parameters for {', '.join(beyond)}")
    dftd3, damping = _library()
    model = dftd3.DispersionModel(atoms.numbers, atoms.positions / Bohr, atoms.cell.array / Bohr, atoms.pbc)
    model.set_realspace_cutoff(CUTOFF / Bohr, CUTOFF_COORDINATION / Bohr, CUTOFF_COORDINATION / Bohr)
    return float(model.get_dispersion(damping, grad=False)["energy"]) * Hartree


@cache
def _library() -> tuple[Any, Any]:
    """Return the library and PBE's damping."""
    from dftd3 import interface

    return interface, interface.RationalDampingParam(method="pbe", atm=False)
