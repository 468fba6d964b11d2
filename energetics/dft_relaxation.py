"""Relaxes a sheet and H on it by DFT, finds the zero-point energy of H, and reads the band gap of the clean sheet.

Every force comes from a calculation of ``dft_calculation``, asked for through a function ``ask(label, task) -> result or None``.
The relaxation is deterministic, so that one that was stopped repeats its finished steps from the work folder and goes on.

All atoms move, in a fixed cell, with H and without, so that ΔE_H compares two minima. BFGS starts from the Hessian of a potential
where the inputs have one (``dft_inputs.write_hessians``), which saves steps, else from one typical stiffness per
element. Where the potential is soft or unstable, the Hessian is made stiff enough for a step to be short.

ΔZPE = ½ Σ ħω_i − ½ ZPE(H2), i over the three modes of H with all other atoms at rest. They are those of the Hessian of H by central
differences of its forces; H2's is measured. H is at least six times lighter than any atom that it binds to, so that the motion of
the others is a small part.

Imports ase and numpy only; ``scripts/verify_dft.py`` runs where nothing else is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_masses, atomic_numbers
from ase.geometry import find_mic
from ase.optimize import BFGS

from energetics.adsorption_energy import H2_ZERO_POINT_EV
from energetics.dft_calculation import FORCES, GAP, InputError, Task

Ask = Callable[[str, Task], "dict[str, Any] | None"]

FMAX = 0.05  # eV/Å, at which a relaxation ends before its steps are used up
MAX_STEP = 0.15  # Å, longest step of an atom
STIFFNESS = {"H": 5.0}  # eV/Å², of an atom among resting ones
STIFFNESS_OF_OTHERS = 20.0
SOFTEST = 1.0  # eV/Å²
DISPLACEMENT = 0.02  # Å, of H for the Hessian: large against the noise of forces, small against anharmonicity
HYDROGEN_MASS = float(atomic_masses[atomic_numbers["H"]])
# ħ sqrt(1 eV/Å² / 1 u) in eV
QUANTUM = units._hbar * 1e10 / (units._e * units._amu) ** 0.5


class NotFinished(Exception):
    """A calculation is not there yet: another process works on it, or the time is over."""


class CalculationFailed(Exception):
    """A calculation ended without a result; the message says why."""


class StoredForces(Calculator):
    """An ASE calculator whose every energy is a calculation of the work folder.

    Args:
        ask: returns the result of a task, or None.
        label: of the calculations in messages.
        like: a task with the k-points and the spin of all calculations.
    """

    implemented_properties = ["energy", "forces"]

    def __init__(self, ask: Ask, label: str, like: Task) -> None:
        super().__init__()
        self._ask, self.label, self._like = ask, label, like

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = all_changes
    ) -> None:
        """Set energy (eV) and forces (N, 3; eV/Å).

        Raises:
            NotFinished: there is no result yet.
            CalculationFailed: the calculation ended without.
        """
        super().calculate(atoms, properties, system_changes)
        plain = Atoms(self.atoms.symbols, self.atoms.positions, cell=self.atoms.cell, pbc=self.atoms.pbc)
        found = finished(self._ask(self.label, replace(self._like, atoms=plain, kind=FORCES)))
        self.results = {"energy": found["energy"], "forces": np.array(found["forces"])}


def finished(result: dict[str, Any] | None) -> dict[str, Any]:
    """Return a result that can be used; raises NotFinished or CalculationFailed."""
    if result is None:
        raise NotFinished
    if result.get("error") is not None:
        raise CalculationFailed(str(result["error"]))
    return result


@dataclass(frozen=True)
class Relaxed:
    """End of a relaxation: atoms, energy (eV), largest force on an atom that moves (eV/Å), steps taken."""

    atoms: Atoms
    energy: float
    fmax: float
    steps: int


def check_same_order(name: str, sheet: Atoms, covered: Atoms) -> None:
    """Raise InputError where the atoms of the sheet do not stand in the same order in the frame with H."""
    if sheet.get_chemical_symbols() != covered.get_chemical_symbols()[:-1]:
        raise InputError(f"{name}: the atoms of the frame with H stand in another order than those of the sheet")


def first_hessian(atoms: Atoms, known: np.ndarray | None = None) -> np.ndarray:
    """Return the Hessian (3N, 3N), eV/Å², that BFGS starts from.

    Args:
        atoms: N atoms.
        known: Hessian of a potential; None: not known.

    Raises:
        InputError: it is not of these atoms.
    """
    if known is None:
        return np.diag(np.repeat([STIFFNESS.get(symbol, STIFFNESS_OF_OTHERS) for symbol in atoms.symbols], 3))
    if known.shape != (3 * len(atoms), 3 * len(atoms)) or not np.isfinite(known).all():
        raise InputError(f"the Hessian of {atoms.symbols} has the shape {known.shape}: write it anew, or remove its file")
    stiffness, modes = np.linalg.eigh((known + known.T) / 2)
    return (modes * np.maximum(np.abs(stiffness), SOFTEST)) @ modes.T


def relax(task: Task, max_steps: int, ask: Ask, label: str, hessian: np.ndarray | None = None) -> Relaxed:
    """Relax all atoms in a fixed cell by BFGS.

    Args:
        task: geometry, k-points and spin.
        max_steps: at most; 0 gives energy and forces as they are.
        ask: returns the result of a task, or None.
        label: of the calculations.
        hessian: (3N, 3N) eV/Å², of a potential at this geometry; None: not known.

    Raises:
        NotFinished: a calculation has no result yet.
        CalculationFailed: one ended without.
        InputError: the Hessian is of other atoms.
    """
    work = task.atoms.copy()
    work.calc = StoredForces(ask, label, task)
    optimiser = BFGS(work, logfile=None, maxstep=MAX_STEP)
    optimiser.H0 = first_hessian(work, hessian)
    if max_steps:
        optimiser.run(fmax=FMAX, steps=max_steps)
    energy, forces = float(work.get_potential_energy()), work.get_forces()
    final = Atoms(work.symbols, work.positions, cell=work.cell, pbc=work.pbc)
    return Relaxed(final, energy, float(np.linalg.norm(forces, axis=1).max()), int(optimiser.nsteps))


def move_of_hydrogen(before: Atoms, after: Atoms) -> float:
    """Return how far the last atom has moved, Å, by the shortest way through the cell."""
    vectors, lengths = find_mic(after.positions[-1:] - before.positions[-1:], after.cell, after.pbc)
    return float(lengths[0])


def vibrational_energies(hessian: np.ndarray, mass: float = HYDROGEN_MASS) -> np.ndarray:
    """Return ħω of the modes, eV, lowest first; that of an unstable mode is negative.

    hessian: (n, n) eV/Å², of coordinates of one mass. mass: u.
    """
    stiffness = np.linalg.eigvalsh(hessian)
    return np.sign(stiffness) * QUANTUM * np.sqrt(np.abs(stiffness) / mass)


def hydrogen_hessian(task: Task, ask: Ask, label: str) -> np.ndarray:
    """Return the Hessian (3, 3) eV/Å² of the last atom by central differences of its forces, all other atoms at rest.

    Raises:
        NotFinished: a calculation has no result yet.
        CalculationFailed: one ended without.
    """
    rows = np.zeros((3, 3))
    for axis in range(3):
        for sign in (1, -1):
            work = task.atoms.copy()
            work.positions[-1, axis] += sign * DISPLACEMENT
            work.calc = StoredForces(ask, f"{label} {'-+'[sign > 0]}{'xyz'[axis]}", task)
            rows[axis] -= sign * work.get_forces()[-1] / (2 * DISPLACEMENT)
    return (rows + rows.T) / 2


@dataclass(frozen=True)
class ZeroPoint:
    """Vibrations of H on a sheet. energies: ħω of its three modes, eV, negative where unstable. change: ΔZPE, eV; None then."""

    energies: tuple[float, ...]
    change: float | None


def zero_point(task: Task, ask: Ask, label: str) -> ZeroPoint:
    """Find ΔZPE of H, the last atom, at the geometry of a task, which is that of a minimum.

    Raises:
        NotFinished: a calculation has no result yet.
        CalculationFailed: one ended without.
    """
    energies = vibrational_energies(hydrogen_hessian(task, ask, label))
    change = 0.5 * float(energies.sum()) - 0.5 * H2_ZERO_POINT_EV if (energies > 0).all() else None
    return ZeroPoint(tuple(float(energy) for energy in energies), change)


def band_gap(task: Task, ask: Ask, label: str) -> float:
    """Return the PBE band gap of a sheet at the k-points of its task, eV, 0 for a metal.

    An odd number of electrons without spin fills a band by half: a metal, also where few k-points leave a gap between levels.

    Raises:
        NotFinished: the calculation has no result yet.
        CalculationFailed: it ended without.
    """
    if not task.polarised and int(task.atoms.numbers.sum()) % 2:
        return 0.0
    return float(finished(ask(f"{label} gap", replace(task, kind=GAP)))["gap"])
