"""Computes phonons and the in-plane stiffness of a sheet with an interatomic potential.

The wave vectors are those of a 2 x 2 supercell: Γ and three on the edge of the Brillouin zone, as in C2DB
(``dynamic_stability``). There the eigenvalues are exact for the potential, whatever the range of its forces, because all images of
an atom fold onto one. The flexural branch of a sheet is quadratic near Γ, where the least errors of the forces make it imaginary.
None of these wave vectors is near Γ, and at Γ itself the acoustic sum rule holds. So such a pocket is never taken for an
instability, and no rotational sum rule is needed. An instability at another wave vector, such as K, is not seen.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.constraints import FixSymmetry
from ase.data import atomic_masses
from ase.spacegroup.symmetrize import refine_symmetry

from energetics.potentials import Potential
from energetics.relaxation import relax_sheet

# Where spglib fails it returns None, which crystals.symmetry looks for. ASE's refinement of symmetry and phonopy's import would
# make it raise in the whole process, but keep to a value that is set.
os.environ.setdefault("SPGLIB_OLD_ERROR_HANDLING", "true")
REPEAT = 2  # cells along a and b
DISPLACEMENT = 0.02  # Å; single precision makes forces noisy by about 1e-5 eV/Å
SYMPREC = 0.02  # Å, within which a relaxed sheet is put on its symmetry before it is relaxed further
SYMPREC_PHONOPY = 1e-3  # Å, for a sheet that has been put on it
FMAX = 0.005  # eV/Å, of that relaxation
MAX_STEPS = 100
STRAIN = 0.005  # of the stiffness
SOFT = 0.01  # eV/Å²; modes up to it are left out of the inverse Hessian
PUSH = 0.1  # Å, largest displacement of an atom along an unstable mode
N_PER_M = 16.0217663  # N/m in 1 eV/Å²
THZ = 15.6333  # frequency of a mode whose eigenvalue is 1 eV/(Å² u): sqrt(e / u) / (2π · 1e-10 m · 1e12 Hz)


@dataclass(frozen=True)
class Mode:
    """A mode of a sheet.

    q: (2,) in reciprocal vectors, each 0 or 1/2. eigenvalue: of the Hessian, eV/Å². vectors: (N, 3) displacements of the atoms of
    one cell, norm 1; those of a cell at R are multiplied by cos(2π q·R).
    """

    q: tuple[float, float]
    eigenvalue: float
    vectors: np.ndarray

    @property
    def cell(self) -> np.ndarray:
        """The smallest supercell in which the mode is periodic: (2, 2) whole numbers, rows are its vectors in cells."""
        if all(self.q):
            return np.array([[1, 1], [-1, 1]])
        return np.diag([2 if q else 1 for q in self.q])


@dataclass(frozen=True)
class Phonons:
    """Phonons of a sheet at the wave vectors of a supercell, without the three translations.

    lowest: mode of the lowest eigenvalue of the Hessian. min_thz: lowest frequency, negative where it is imaginary. hessian:
    (3N, 3N) at Γ, eV/Å². displacements: number of displaced supercells.
    """

    lowest: Mode
    min_thz: float
    hessian: np.ndarray
    displacements: int


def relax_within_symmetry(atoms: Atoms, potential: Potential) -> Atoms:
    """Put a sheet on its symmetry and relax it within it, so that a saddle point stays one, as in C2DB.

    Raises:
        ValueError: the relaxation leaves the domain of the potential.
    """
    sheet = atoms.copy()
    sheet.set_constraint()
    refine_symmetry(sheet, SYMPREC)
    sheet.set_constraint(FixSymmetry(sheet, symprec=SYMPREC / 2))
    result = relax_sheet(sheet, potential, FMAX, MAX_STEPS)
    if result.status in ("exploded", "collapsed"):
        raise ValueError(f"relaxation {result.status}")
    return result.atoms


def phonons(sheet: Atoms, potential: Potential, supercell: np.ndarray | None = None) -> Phonons:
    """Compute phonons by finite displacements, as few as the symmetry allows (phonopy).

    Forces of the undisplaced sheet are subtracted. The force constants obey the acoustic sum rule and are symmetric.

    Args:
        sheet: relaxed, pbc (T, T, F), c along z.
        potential: gives the forces.
        supercell: (2, 2) whole numbers, rows are its vectors in cells; 2 x 2 unless given. All its wave vectors have to be 0 or 1/2
            along each axis.
    """
    matrix = REPEAT * np.eye(2, dtype=int) if supercell is None else np.asarray(supercell)
    phonon = _phonopy(sheet, matrix)
    cells = phonon.supercell
    place = {atom: number for number, atom in enumerate(cells.u2s_map)}
    own = np.array([place[atom] for atom in cells.s2u_map])  # atom of the cell that each atom of the supercell is an image of
    rest = _forces(sheet, potential)[own]
    found = [_forces(_to_ase(displaced, sheet), potential) - rest for displaced in phonon.supercells_with_displacements]
    phonon.forces = [forces - forces.mean(axis=0) for forces in found]
    phonon.produce_force_constants(calculate_full_force_constants=False)
    phonon.symmetrize_force_constants()
    shifts = np.round((cells.positions - sheet.positions[own]) @ np.linalg.inv(sheet.cell.array))[:, :2]
    masses = atomic_masses[sheet.numbers]
    modes, squares, hessians = [], [], {}
    for q in itertools.product((0.0, 0.5), repeat=2):
        if (matrix @ q % 1).any():
            continue  # no wave vector of this supercell
        hessian = hessians[q] = _hessian(phonon.force_constants, own, shifts - shifts[cells.u2s_map][:, None], np.array(q))
        value, vector = _lowest(hessian, np.ones(len(sheet)), at_gamma=not any(q))
        modes.append(Mode(q, value, vector.reshape(-1, 3)))
        squares.append(_lowest(hessian, masses, at_gamma=not any(q))[0])
    square = min(squares)
    lowest = min(modes, key=lambda mode: mode.eigenvalue)
    return Phonons(lowest, float(np.sign(square) * np.sqrt(abs(square)) * THZ), hessians[(0.0, 0.0)], len(found))


def _phonopy(sheet: Atoms, matrix: np.ndarray) -> Any:
    """Return phonopy's object with its displaced supercells."""
    from phonopy import Phonopy  # here, because its import takes time that most starts do not need
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(symbols=sheet.get_chemical_symbols(), cell=sheet.cell.array, positions=sheet.positions)
    whole = np.eye(3, dtype=int)
    whole[:2, :2] = matrix.T  # phonopy's columns are our rows
    phonon = Phonopy(cell, supercell_matrix=whole, primitive_matrix=np.eye(3), symprec=SYMPREC_PHONOPY, log_level=0)
    phonon.generate_displacements(distance=DISPLACEMENT)
    return phonon


def _to_ase(cell: Any, sheet: Atoms) -> Atoms:
    return Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=sheet.pbc)


def _forces(atoms: Atoms, potential: Potential) -> np.ndarray:
    """Return the forces (N, 3) in eV/Å."""
    work = atoms.copy()
    work.set_constraint()
    work.calc = potential.calculator
    return np.array(work.get_forces(), dtype=float)


def _hessian(constants: np.ndarray, own: np.ndarray, shifts: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the Hessian (3N, 3N) at one wave vector, real because q is half a reciprocal vector.

    constants: (N, n, 3, 3) eV/Å² between the atoms of a cell and of the supercell. own: (n,) atom of the cell that each is an image
    of. shifts: (N, n, 2) cells between them. q: (2,).
    """
    count = len(constants)
    blocks = np.zeros((count, count, 3, 3))
    weighted = constants * np.cos(2 * np.pi * shifts @ q)[:, :, None, None]
    for atom, image_of in enumerate(own):
        blocks[:, image_of] += weighted[:, atom]
    hessian = blocks.transpose(0, 2, 1, 3).reshape(3 * count, 3 * count)
    return 0.5 * (hessian + hessian.T)


def _lowest(hessian: np.ndarray, masses: np.ndarray, at_gamma: bool) -> tuple[float, np.ndarray]:
    """Return the lowest eigenvalue of a Hessian divided by the roots of masses (N,), and its vector (3N,).

    At Γ the three translations do not count.
    """
    roots = np.sqrt(np.repeat(masses, 3))
    matrix = hessian / np.outer(roots, roots)
    if at_gamma:
        translations = np.linalg.qr(np.tile(np.eye(3), (len(masses), 1)) * roots[:, None])[0]
        matrix = matrix + 1e6 * translations @ translations.T
    values, vectors = np.linalg.eigh(matrix)
    return float(values[0]), vectors[:, 0]


def stiffness(sheet: Atoms, potential: Potential, hessian: np.ndarray) -> np.ndarray:
    """Return the in-plane stiffness tensor (3, 3) in N/m, in the order xx, yy, xy, with relaxed atoms.

    Strained cells whose atoms are carried along give the clamped tensor. Forces on these atoms and the Hessian give what their
    relaxation takes off: C = C_clamped − Λᵀ Φ⁻¹ Λ / A, with Λ = −∂F/∂ε (Wu, Vanderbilt and Hamann, Phys. Rev. B 72, 035105 (2005)).

    Args:
        sheet: relaxed, pbc (T, T, F), c along z.
        potential: gives forces and stress.
        hessian: (3N, 3N) at Γ, eV/Å². Modes up to SOFT are left out of its inverse.
    """
    area = np.linalg.norm(np.cross(sheet.cell[0], sheet.cell[1]))
    clamped, internal = np.zeros((3, 3)), np.zeros((3 * len(sheet), 3))
    for column, (i, j) in enumerate(((0, 0), (1, 1), (0, 1))):
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * STRAIN / 2
            strain[j, i] += sign * STRAIN / 2
            work = sheet.copy()
            work.set_constraint()
            work.set_cell(sheet.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            work.calc = potential.calculator
            clamped[:, column] += sign * work.get_stress()[[0, 1, 5]] * work.get_volume() / (2 * STRAIN)
            internal[:, column] -= sign * work.get_forces().ravel() / (2 * STRAIN)
    values, vectors = np.linalg.eigh(hessian)
    firm = values > SOFT
    projected = vectors[:, firm].T @ internal
    relaxed = clamped - projected.T @ (projected / values[firm, None])
    return 0.5 * (relaxed + relaxed.T) / area * N_PER_M


def pushed(sheet: Atoms, mode: Mode) -> Atoms:
    """Return the smallest supercell in which a mode is periodic, its atoms displaced along it by at most PUSH."""
    matrix = np.eye(3, dtype=int)
    matrix[:2, :2] = mode.cell
    supercell = make_supercell(sheet, matrix, order="cell-major")
    copies = len(supercell) // len(sheet)
    apart = supercell.positions - np.tile(sheet.positions, (copies, 1))
    shifts = np.round(apart @ np.linalg.inv(sheet.cell.array))[:, :2]
    along = np.tile(mode.vectors, (copies, 1)) * np.cos(2 * np.pi * shifts @ mode.q)[:, None]
    supercell.positions += PUSH * along / np.linalg.norm(along, axis=1).max()
    return supercell
