"""Single DFT calculations and the folder that keeps them: settings, k-points, cells, GPAW or another ASE calculator.

``scripts/verify_dft.py`` runs in a system Python that has only ase, numpy and GPAW. Therefore this module and those that it needs
import nothing else but the standard library.

A calculation is of one kind. ENERGY: the total energy of a geometry. FORCES: energy and forces with tighter convergence, for
relaxations and vibrations. GAP: the band gap, with the lowest empty bands converged too. Kind, method and geometry are in the key
of a calculation, so that results of different settings are never taken for each other.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from pipeline.errors import StageError
from pipeline.store import FolderStore

# Converged to about 0.05 eV in ΔE_H against denser k-points, a larger basis and literature values.
SETTINGS = {"mode": "PW", "ecut_ev": 350, "xc": "PBE", "smearing_ev": 0.1, "vacuum_angstrom": 6.0, "h2_bond_angstrom": 0.7514}
NEAR_ANGSTROM = 0.3  # moves of atoms after which the density before is still a good start
KPOINT_LENGTH = 18.0  # Å; k-points along a vector = ceil(18 Å / its length), at least 2
MAGNETIC = {"V", "Cr", "Mn", "Fe", "Co", "Ni"}  # elements for which an unstated spin means "polarised"

HESSIANS = "_hessians.npz"  # NAME_hessians.npz beside NAME.extxyz
GPAW = "gpaw"
ENERGY, FORCES, GAP = "energy", "forces", "gap"
# FORCES: GPAW's own defaults for density and eigenstates, because errors of forces are of first order in the density, those of
# energies of second. GAP: bands up to half an eV above the lowest empty state, so that this state is converged itself.
CONVERGENCE: dict[str, dict[str, Any]] = {
    ENERGY: {"energy": 1e-4, "density": 1e-3, "eigenstates": 4e-6, "bands": "occupied"},
    FORCES: {"energy": 1e-5, "density": 1e-4, "eigenstates": 4e-8, "bands": "occupied"},
    GAP: {"energy": 1e-4, "density": 1e-3, "eigenstates": 4e-6, "bands": "CBM+0.5"},
}


class InputError(StageError):
    """A structure or a calculator that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Task:
    """One calculation: atoms in the cell of the calculation, k-points in plane (None: a molecule in a box), spin and kind."""

    atoms: Atoms
    kpts: tuple[int, int] | None
    polarised: bool
    kind: str = ENERGY


@dataclass(frozen=True)
class Method:
    """A calculator. name: "gpaw", or MODULE:FUNCTION. make: (task, path of the log) -> ASE calculator. about: name and version."""

    name: str
    make: Callable[[Task, Path], Any]
    about: str

    def key(self, task: Task) -> str:
        """Return the key of a calculation: a hash of everything that decides its results."""
        content: list[Any] = [SETTINGS, list(task.kpts or ()), task.polarised, task.atoms.get_chemical_symbols()]
        content += [np.round(task.atoms.positions, 4).tolist(), np.round(task.atoms.cell.array, 4).tolist()]
        if self.name != GPAW or task.kind != ENERGY:  # GPAW's energies keep the keys of the points that exist
            content.append({"method": self.name, "kind": task.kind, "convergence": CONVERGENCE[task.kind]})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def load_method(name: str) -> Method:
    """Load the calculator of a name.

    Args:
        name: "gpaw", or MODULE:FUNCTION. The function is called as ``function(atoms, kpts, polarised, log_path)`` and returns
            an ASE calculator; kpts is (n, n), or None for a molecule in a box.

    Raises:
        InputError: it is not installed, or there is no such function.
    """
    if name == GPAW:
        try:
            import gpaw
        except ImportError as error:
            raise InputError(
                "GPAW is not installed in this Python; on Debian or Ubuntu: apt-get install --no-install-recommends gpaw "
                "gpaw-data, then /usr/bin/python3 scripts/verify_dft.py"
            ) from error
        return Method(GPAW, gpaw_calculator, f"GPAW {gpaw.__version__}")
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise InputError(f"calculator {name}: choose {GPAW}, or MODULE:FUNCTION")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"calculator {name}: {error}; the module has to be in the working folder or on PYTHONPATH") from error
    return Method(name, lambda task, log: make(task.atoms, task.kpts, task.polarised, log), name)


def gpaw_calculator(task: Task, log_path: Path) -> Any:
    """Make GPAW for a calculation, PBE with plane waves, and give the atoms of magnetic elements their initial moments."""
    from gpaw import GPAW as Gpaw
    from gpaw import PW, FermiDirac, Mixer, MixerSum

    arguments = {
        "mode": PW(SETTINGS["ecut_ev"]),
        "xc": SETTINGS["xc"],
        "basis": "dzp",
        "occupations": FermiDirac(SETTINGS["smearing_ev"]),
        "mixer": MixerSum(0.1, 5, 50) if task.polarised else Mixer(0.1, 5, 50),
        "symmetry": {"tolerance": 0.01},
        "maxiter": 200,
        "convergence": CONVERGENCE[task.kind],
        "txt": str(log_path),
    }
    if task.kind == GAP:
        arguments["nbands"] = "130%"  # enough empty bands for those that are converged
    if task.kpts is not None:  # a dipole across the sheet must not act on its own image
        arguments |= {"poissonsolver": {"dipolelayer": "xy"}, "kpts": {"size": (*task.kpts, 1), "gamma": True}}
    if task.polarised:
        arguments["spinpol"] = True
        task.atoms.set_initial_magnetic_moments([2.0 if symbol in MAGNETIC else 0.1 for symbol in task.atoms.symbols])
    return Gpaw(**arguments)


class Warm:
    """GPAW with density and orbitals of the last calculation of forces, a start from which the next geometry converges sooner.

    Energies agree with those of a cold start within the convergence asked for.
    """

    def __init__(self) -> None:
        self._of: tuple[Any, ...] | None = None
        self._calculator: Any = None

    def take(self, task: Task) -> Any:
        """Return the calculator where the last task differs from this one by a small move of the atoms only; None otherwise."""
        calculator, of = self._calculator, self._of
        self._of = self._calculator = None
        if calculator is None or of is None or of[:-1] != _fixed_parts(task):
            return None
        return calculator if np.abs(task.atoms.positions - of[-1]).max() < NEAR_ANGSTROM else None

    def keep(self, task: Task, calculator: Any) -> None:
        """Remember the calculator of a finished task."""
        self._of, self._calculator = (*_fixed_parts(task), task.atoms.positions.copy()), calculator


def _fixed_parts(task: Task) -> tuple[Any, ...]:
    cell = tuple(np.round(task.atoms.cell.array, 6).ravel().tolist())
    return tuple(task.atoms.get_chemical_symbols()), cell, task.kpts, task.polarised, task.kind


def calculate(method: Method, task: Task, log_path: Path, warm: Warm | None = None) -> dict[str, Any]:
    """Run one calculation.

    Args:
        method: the calculator.
        task: what to compute.
        log_path: of the calculator.
        warm: what was computed before; only GPAW's forces start from it.

    Returns:
        ``energy`` in eV; of kind FORCES also ``forces``, (N, 3) eV/Å; of kind GAP ``gap`` in eV, 0 for a metal.

    Raises:
        Exception: whatever the calculator raises where it does not converge.
    """
    task = Task(task.atoms.copy(), task.kpts, task.polarised, task.kind)
    atoms = task.atoms
    warm = warm if method.name == GPAW and task.kind == FORCES else None
    if (before := warm and warm.take(task)) is not None:
        try:
            before.set(txt=str(log_path))
            atoms.calc = before
            atoms.get_potential_energy()
        except Exception:  # such as a symmetry that is lost: a cold start decides
            before = None
    if before is None:
        atoms.calc = method.make(task, log_path)
    found: dict[str, Any] = {"energy": float(atoms.get_potential_energy())}
    if not math.isfinite(found["energy"]):
        raise ValueError("the energy is not finite")
    if task.kind == FORCES:
        found["forces"] = np.asarray(atoms.get_forces(apply_constraint=False), dtype=float).tolist()
        if warm is not None:
            warm.keep(task, atoms.calc)
    if task.kind == GAP:
        from ase.dft.bandgap import bandgap

        found["gap"] = float(bandgap(atoms.calc, output=None)[0])
    return found


class WorkFolder:
    """Calculations on disk: KEY.json is a result, KEY.lock (the process's id inside) one in work, KEY.txt the calculator's log.

    Args:
        path: the folder, which is made.
        method: the calculator.
        deadline: time (``time.time``) after which no calculation is started.
    """

    def __init__(self, path: Path, method: Method, deadline: float = math.inf) -> None:
        self.path, self.method, self.store, self.deadline = path, method, FolderStore(path), deadline
        self.warm = Warm()
        path.mkdir(parents=True, exist_ok=True)

    def result(self, label: str, task: Task) -> dict | None:
        """Return the finished calculation, or None. label is not used; the interface is that of ``compute``."""
        return self.store.get(self.method.key(task))

    def compute(self, label: str, task: Task) -> dict | None:
        """Return the result, computed here unless it exists; None while another process works on it, or after the deadline.

        A calculation that fails is a result too: its ``error`` says why, and its ``energy`` is None.
        """
        key = self.method.key(task)
        if (found := self.store.get(key)) is not None:
            return found
        if time.time() > self.deadline or not self.store.claim(key):
            return None
        started = time.time()
        about = {"label": label, "kpts": list(task.kpts or ()), "spin": task.polarised, "natoms": len(task.atoms)}
        result: dict[str, Any] = {**about, "kind": task.kind, "energy": None, "error": None}
        try:
            if (found := self.store.get(key)) is not None:  # another process has finished it in the meantime
                return found
            try:
                result |= calculate(self.method, task, self.path / f"{key}.txt", self.warm)
            except Exception as error:  # a calculation that does not converge is a result; the next one must not wait for it
                result["error"] = f"{type(error).__name__}: {str(error)[:200]}"
            result["seconds"] = round(time.time() - started, 1)
            result = self.store.add(key, result)
        finally:
            self.store.release(key)
        outcome = f"{result['energy']:.4f} eV" if result["error"] is None else f"failed ({result['error']})"
        print(f"{label}: {outcome}, {result['seconds']:.0f} s", flush=True)
        return result


def kpoints(atoms: Atoms) -> tuple[int, int]:
    """Return the numbers of Γ-centred k-points along both in-plane vectors: ``info['kpts']`` (one or two), else from the cell.

    Raises:
        InputError: ``info['kpts']`` is something else.
    """
    given = atoms.info.get("kpts")
    if given is not None:
        try:
            first, second = (int(number) for number in np.broadcast_to(given, 2))
        except ValueError as error:
            raise InputError(f"{atoms.info.get('name', atoms.symbols)}: kpts={given} is not one or two whole numbers") from error
        return first, second
    first, second = (max(2, int(np.ceil(KPOINT_LENGTH / length - 0.05))) for length in atoms.cell.lengths()[:2])
    return first, second


def is_polarised(atoms: Atoms) -> bool:
    """Return ``info['spin']`` where given, else whether a 3d metal that can be magnetic is there."""
    given = atoms.info.get("spin")
    return bool(given) if given is not None else bool(MAGNETIC & set(atoms.symbols))


def boxed(atoms: Atoms) -> Atoms:
    """Return the sheet in a cell with SETTINGS' vacuum on both sides, periodic in plane, without constraints and old results.

    Raises:
        InputError: the sheet does not lie in the xy plane.
    """
    out = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=(True, True, False))
    normal = np.cross(out.cell[0], out.cell[1])
    if not np.allclose(normal[:2], 0, atol=1e-6):
        raise InputError(f"{atoms.info.get('name', atoms.symbols)}: the sheet does not lie in the xy plane")
    cell = out.cell.array.copy()
    cell[2] = [0, 0, np.ptp(out.positions[:, 2]) + 2 * SETTINGS["vacuum_angstrom"]]
    out.set_cell(cell)
    out.positions[:, 2] += SETTINGS["vacuum_angstrom"] - out.positions[:, 2].min()
    return out


def hydrogen_molecule() -> Atoms:
    """Build H2 at its PBE bond length in a periodic box with 5 Å of vacuum."""
    molecule = Atoms("H2", [[0, 0, 0], [0, 0, SETTINGS["h2_bond_angstrom"]]])
    molecule.center(vacuum=5.0)
    molecule.positions += 0.03  # off the real-space grid, so that no direction is special
    molecule.pbc = True
    return molecule
