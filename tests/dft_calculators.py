"""Calculators in the place of DFT: EMT, a spring for H with an analytic zero-point energy, and one with given bands."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT

CALLS: list[tuple[str, tuple | None, bool]] = []  # formula, k-points and spin of every calculation of this process
STIFFNESS = np.array([[3.0, 0.7, 0.0], [0.7, 5.0, -0.4], [0.0, -0.4, 22.0]])  # eV/Å², of H about its place
H2_STIFFNESS, H2_BOND = 36.0, 0.7514  # eV/Å², Å
HEIGHT = 1.5  # Å, of the place of H above the atom with index 0
BINDING = -2.0  # eV, of H at its place


def emt(atoms: Atoms, kpts: tuple | None, polarised: bool, log_path: Path) -> Calculator:
    """Return EMT, and note the call."""
    CALLS.append((str(atoms.symbols), kpts, polarised))
    return EMT()


def dying(atoms: Atoms, kpts: tuple | None, polarised: bool, log_path: Path) -> Calculator:
    """Return EMT; the process ends without a word at the calculation whose number DIE_AT names."""
    CALLS.append((str(atoms.symbols), kpts, polarised))
    if len(CALLS) == int(os.environ.get("DIE_AT", "0")):
        os._exit(9)
    return EMT()


def slow(atoms: Atoms, kpts: tuple | None, polarised: bool, log_path: Path) -> Calculator:
    """Return EMT after a twentieth of a second, so that processes side by side meet."""
    time.sleep(0.05)
    return EMT()


class Springs(Calculator):
    """H hangs on springs above atom 0; the other atoms are springs about where they were put; H2 is a spring along its bond."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, stiffness: np.ndarray = STIFFNESS) -> None:
        super().__init__()
        self.stiffness = stiffness

    def calculate(self, atoms=None, properties=("energy",), system_changes=()) -> None:
        super().calculate(atoms, properties, system_changes)
        positions, forces, energy = self.atoms.positions, np.zeros((len(self.atoms), 3)), 0.0
        if str(self.atoms.symbols) == "H2":
            bond = positions[1] - positions[0]
            length = float(np.linalg.norm(bond))
            energy = 0.5 * H2_STIFFNESS * (length - H2_BOND) ** 2
            forces[1] = -H2_STIFFNESS * (length - H2_BOND) * bond / length
            forces[0] = -forces[1]
        elif self.atoms.symbols[-1] == "H":
            away = positions[-1] - positions[0] - [0, 0, HEIGHT]
            energy = BINDING + 0.5 * float(away @ self.stiffness @ away)
            forces[-1] = -self.stiffness @ away
            forces[0] = -forces[-1]
        self.results = {"energy": energy, "forces": forces}


def springs(atoms: Atoms, kpts: tuple | None, polarised: bool, log_path: Path) -> Calculator:
    """Return the springs."""
    return Springs()


def saddle(atoms: Atoms, kpts: tuple | None, polarised: bool, log_path: Path) -> Calculator:
    """Return springs of which one pushes H away."""
    return Springs(np.diag([-1.0, 5.0, 22.0]))


class Bands(EMT):
    """EMT with two spins of bands around a Fermi level of 0.2 eV: gap 0.9 eV, or none for silver."""

    def get_fermi_level(self) -> float:
        return 0.2

    def get_number_of_spins(self) -> int:
        return 2

    def get_spin_polarized(self) -> bool:
        return True

    def get_bz_k_points(self) -> np.ndarray:
        return np.zeros((2, 3))

    get_ibz_k_points = get_bz_k_points

    def get_k_point_weights(self) -> np.ndarray:
        return np.full(2, 0.5)

    def get_eigenvalues(self, kpt: int = 0, spin: int = 0) -> np.ndarray:
        if "Ag" in self.atoms.symbols:
            return np.array([-3.0, 0.1 + 0.2 * kpt, 2.0])
        # Highest occupied: -0.1 (spin 1, k 1). Lowest empty: 0.8 (spin 0, k 0).
        return np.array([-3.0, -0.5 + 0.2 * kpt + 0.2 * spin, 0.8 + 0.3 * kpt + 0.1 * spin])


def bands(atoms: Atoms, kpts: tuple | None, polarised: bool, log_path: Path) -> Calculator:
    """Return EMT with bands."""
    return Bands()
