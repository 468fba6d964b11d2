"""Geometry of two-dimensional crystals: in-plane lattices, the sheet convention and structural checks.

Conventions: Å; row-vector cells, ``r = f @ cell``; a sheet lies in the xy plane with ``pbc = (True, True, False)``, c along z,
centred in the cell. In-plane lattices are Minkowski-reduced, right-handed, with γ in [90°, 120°] and a along x.
Nothing here knows about networks, files or metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import spglib
import torch
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry.dimensionality.rank_determination import RDA
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

DEFAULT_VACUUM = 20.0  # Å, cell height minus thickness at export
BOND_SCALE = 1.25  # bonded: distance below this times the sum of covalent radii
CLASH_FACTOR = 0.7  # clash: distance below this times the sum of covalent radii
H_TAG, SURFACE_TAG, SUBSURFACE_TAG = 2, 1, 0  # OC20 tags


class NotTwoDimensional(ValueError):
    """The structure is no sheet: no vacuum, or vacuum in more than one direction."""


def reduce_lattice_2d(lattice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Minkowski-reduced basis of an in-plane lattice (Lagrange-Gauss reduction), right-handed.

    Args:
        lattice: (2, 2) Å, row vectors.

    Returns:
        (reduced, transform) with ``reduced = transform @ lattice``, |a| <= |b|, |a·b| <= |a|²/2 and det > 0. transform is an
        integer matrix of determinant ±1.

    Raises:
        ValueError: the lattice has no area, or is not finite.
    """
    # ``ase.geometry.minkowski_reduce`` is not used because it has no tolerance on ties. It changes the basis of 35 of the 909
    # lattices of data/demo_c2db.db that are reduced already (|a| = |b| within 1e-6 Å); this function leaves them as they are.
    transform = np.eye(2, dtype=int)
    reduced = np.asarray(lattice, dtype=float).copy()
    if not np.isfinite(reduced).all() or abs(np.linalg.det(reduced)) < 1e-6:
        raise ValueError("in-plane lattice has no area")
    for _ in range(1000):
        if np.dot(reduced[1], reduced[1]) < np.dot(reduced[0], reduced[0]) * (1 - 1e-9):
            transform = transform[::-1].copy()
        shift = int(np.rint(np.dot(reduced[0], reduced[1]) / np.dot(reduced[0], reduced[0]) * (1 - 1e-9)))
        if shift == 0 and np.allclose(transform @ lattice, reduced):
            break
        reduced = transform @ lattice
        shift = int(np.rint(np.dot(reduced[0], reduced[1]) / np.dot(reduced[0], reduced[0]) * (1 - 1e-9)))
        transform[1] -= shift * transform[0]
        reduced = transform @ lattice
    if np.linalg.det(reduced) < 0:
        transform[1] *= -1
        reduced = transform @ lattice
    return reduced, transform


def determinant_2x2(matrix: torch.Tensor) -> torch.Tensor:
    """Return the determinants (...) of matrices (..., 2, 2), in closed form: a fraction of the time of LAPACK's."""
    a, b, c, d = matrix.flatten(-2).unbind(-1)
    return a * d - b * c


def inverse_2x2(matrix: torch.Tensor) -> torch.Tensor:
    """Return the inverses of matrices (..., 2, 2), in closed form."""
    a, b, c, d = matrix.flatten(-2).unbind(-1)
    return torch.stack([d, -b, -c, a], -1).view(matrix.shape) / (a * d - b * c)[..., None, None]


def lattice_to_vector(lattice: torch.Tensor) -> torch.Tensor:
    """Return S = ½ log(L Lᵀ) of in-plane lattices, which describes the size and shape of the cell but not its orientation.

    The closed form of the 2x2 logarithm has finite gradients where the eigenvalues meet.

    Args:
        lattice: (..., 2, 2) Å, row vectors.

    Returns:
        (..., 3): S11, S22, S12. A rotation of the sheet leaves them unchanged.
    """
    metric = lattice @ lattice.transpose(-1, -2)
    area = determinant_2x2(lattice).abs()
    half, off = 0.5 * (metric[..., 0, 0] - metric[..., 1, 1]) / area, metric[..., 0, 1] / area
    squared = half**2 + off**2  # sinh² of the difference of the eigenvalues of S
    small = squared < 1e-10
    root = torch.sqrt(torch.where(small, torch.ones_like(squared), squared))
    factor = 0.5 * torch.where(small, 1 - squared / 6, torch.asinh(root) / root)
    mean = 0.5 * torch.log(area)
    return torch.stack([mean + factor * half, mean - factor * half, factor * off], -1)


def vector_to_lattice(vector: torch.Tensor) -> torch.Tensor:
    """Return the symmetric lattice L = exp(S), for which ½ log(L Lᵀ) = S.

    The closed form of the 2x2 exponential, exp(m) (cosh δ + sinh δ / δ (S − m)), has finite gradients where the eigenvalues meet.

    Args:
        vector: (..., 3): S11, S22, S12 as ``lattice_to_vector`` returns them.

    Returns:
        (..., 2, 2) Å, row vectors, differentiable.
    """
    s11, s22, s12 = vector.unbind(-1)
    mean, half = 0.5 * (s11 + s22), 0.5 * (s11 - s22)
    squared = half**2 + s12**2
    small = squared < 1e-10
    delta = torch.sqrt(torch.where(small, torch.ones_like(squared), squared))
    cosh = torch.where(small, 1 + squared / 2, torch.cosh(delta))
    sinhc = torch.where(small, 1 + squared / 6, torch.sinh(delta) / delta)
    matrix = torch.stack(
        [torch.stack([cosh + sinhc * half, sinhc * s12], -1), torch.stack([sinhc * s12, cosh - sinhc * half], -1)], -2
    )
    return torch.exp(mean)[..., None, None] * matrix


def vacuum_gap(atoms: Atoms) -> tuple[float, int]:
    """Return the widest empty slab parallel to a face of the cell: its width in Å and the index of the lattice vector across it."""
    gaps = _gaps(atoms)
    axis = int(np.argmax([gap for gap, _ in gaps]))
    return gaps[axis][0], axis


def _gaps(atoms: Atoms) -> list[tuple[float, float]]:
    """Return, for each lattice vector, the width of the widest empty slab (Å) and the fractional coordinate of its middle."""
    cell = atoms.cell.complete()
    heights = 1 / np.linalg.norm(np.linalg.inv(cell.array), axis=0)
    scaled = np.linalg.solve(cell.array.T, atoms.positions.T).T % 1.0
    result = []
    for axis in range(3):
        f = np.sort(scaled[:, axis])
        steps = np.diff(np.append(f, f[0] + 1))
        widest = int(np.argmax(steps))
        result.append((float(steps[widest] * heights[axis]), float((f[widest] + steps[widest] / 2) % 1)))
    return result


@dataclass
class Sheet:
    """A two-dimensional crystal in the convention of this project.

    Attributes:
        atomic_numbers: (N,) int64.
        frac_coords: (N, 2) in [0, 1), in-plane.
        heights: (N,) Å, zero mean.
        lattice: (2, 2) Å, row vectors, Minkowski-reduced, a along x, γ in [90°, 120°].
    """

    atomic_numbers: np.ndarray
    frac_coords: np.ndarray
    heights: np.ndarray
    lattice: np.ndarray

    @classmethod
    def from_atoms(cls, atoms: Atoms, min_vacuum: float = 10.0) -> Sheet:
        """Find the vacuum, unwrap the sheet across it and return it in the convention.

        The vacuum axis is the one without periodicity, if ``pbc`` names exactly one. Otherwise it is the only one with a gap of at
        least ``min_vacuum``.

        Args:
            atoms: a sheet in any orientation.
            min_vacuum: Å.

        Raises:
            NotTwoDimensional: no axis has vacuum, or more than one has.
            ValueError: there are no atoms, positions or cell are not finite, or the cell has no volume.
        """
        if len(atoms) == 0:
            raise ValueError("no atoms")
        if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell.array).all():
            raise ValueError("positions or cell are not finite")
        cell = atoms.cell.complete().array
        if abs(np.linalg.det(cell)) < 1e-6:
            raise ValueError("cell has no volume")
        gaps = _gaps(atoms)
        open_axes = [axis for axis in range(3) if not atoms.pbc[axis]]
        if len(open_axes) != 1:
            open_axes = [axis for axis in range(3) if gaps[axis][0] >= min_vacuum]
        if len(open_axes) != 1:
            found = "no vacuum" if not open_axes else "vacuum in more than one direction"
            raise NotTwoDimensional(f"{found} of at least {min_vacuum:g} Å (widest gap {max(g for g, _ in gaps):.1f} Å)")

        axis = open_axes[0]
        rows = [(axis + 1) % 3, (axis + 2) % 3, axis]
        scaled = np.linalg.solve(cell.T, atoms.positions.T).T[:, rows]
        cell = cell[rows]
        if atoms.pbc[axis]:
            middle = gaps[axis][1]
            scaled[:, 2] = (scaled[:, 2] - middle) % 1.0
        cart = scaled @ cell
        x = cell[0] / np.linalg.norm(cell[0])
        normal = np.cross(cell[0], cell[1])
        normal /= np.linalg.norm(normal)
        frame = np.stack([x, np.cross(normal, x), normal])
        local = cart @ frame.T
        lattice = (cell[:2] @ frame.T)[:, :2]
        frac = np.linalg.solve(lattice.T, local[:, :2].T).T
        return cls._standard(np.asarray(atoms.numbers, dtype=np.int64), frac, local[:, 2], lattice)

    @classmethod
    def _standard(cls, numbers: np.ndarray, frac: np.ndarray, heights: np.ndarray, lattice: np.ndarray) -> Sheet:
        """Return the sheet with its lattice reduced and obtuse, a along x, and heights of zero mean."""
        reduced, transform = reduce_lattice_2d(lattice)
        frac = frac @ np.linalg.inv(transform)
        if np.dot(reduced[0], reduced[1]) > 1e-9 * np.dot(reduced[0], reduced[0]):
            # The basis is acute. A rotation of the sheet by 180° about a makes it obtuse.
            frac, heights = frac * [1.0, -1.0], -heights
            reduced = reduced * np.array([[1.0], [-1.0]])
            reduced[:, 1] *= -1
        a, b = reduced
        length = np.linalg.norm(a)
        lattice = np.array([[length, 0.0], [np.dot(a, b) / length, abs(np.linalg.det(reduced)) / length]])
        frac = frac % 1.0
        frac[frac > 1 - 1e-12] = 0.0
        return cls(np.asarray(numbers, dtype=np.int64), frac, heights - heights.mean(), lattice)

    @property
    def thickness(self) -> float:
        """Return the distance in Å between the outermost nuclei along z."""
        return float(np.ptp(self.heights))

    @property
    def area(self) -> float:
        """Return the area of the in-plane cell in Å²."""
        return float(abs(np.linalg.det(self.lattice)))

    @property
    def formula(self) -> str:
        """Return the formula of the cell in Hill order."""
        return Atoms(numbers=self.atomic_numbers).get_chemical_formula("hill")

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    def to_atoms(self, vacuum: float = DEFAULT_VACUUM) -> Atoms:
        """Return ASE atoms with pbc (T, T, F), centred in a cell of height thickness + ``vacuum`` (Å)."""
        height = self.thickness + vacuum
        cell = np.zeros((3, 3))
        cell[:2, :2] = self.lattice
        cell[2, 2] = height
        middle = 0.5 * (self.heights.max() + self.heights.min())
        positions = np.column_stack([self.frac_coords @ self.lattice, self.heights - middle + height / 2])
        return Atoms(numbers=self.atomic_numbers, positions=positions, cell=cell, pbc=(True, True, False))

    def to_structure(self, vacuum: float = DEFAULT_VACUUM):
        """Return ``to_atoms(vacuum)`` as a pymatgen Structure, periodic in three directions as pymatgen expects."""
        from pymatgen.io.ase import AseAtomsAdaptor

        atoms = self.to_atoms(vacuum)
        atoms.pbc = True
        return AseAtomsAdaptor.get_structure(atoms)

    def repeat(self, na: int, nb: int) -> Atoms:
        """Return ASE atoms of the na x nb supercell, in the frame of ``to_atoms``."""
        return self.to_atoms().repeat((na, nb, 1))


def standard_sheet(atoms: Atoms, min_vacuum: float = 10.0, vacuum: float = DEFAULT_VACUUM) -> Atoms:
    """Return the same sheet in the convention of this project: ``Sheet.from_atoms(atoms).to_atoms()``; lengths in Å."""
    return Sheet.from_atoms(atoms, min_vacuum).to_atoms(vacuum)


def primitive_sheet(atoms: Atoms, symprec: float = 0.02, min_vacuum: float = 10.0) -> Atoms:
    """Return the symmetrised primitive cell of a sheet, in the convention of this project.

    Supercells and rotated, shifted or wrapped copies of one sheet give the same cell, so that everything computed from it (sites,
    coverage, ΔG_H) agrees.

    Args:
        atoms: the sheet.
        symprec: tolerance of spglib, Å. Where it finds no symmetry, the sheet is returned in its own cell.
        min_vacuum: see ``Sheet.from_atoms``, Å.
    """
    standard = standard_sheet(atoms, min_vacuum)
    cell = spglib.standardize_cell(
        (standard.cell.array, standard.get_scaled_positions(), standard.numbers),
        to_primitive=True,
        no_idealize=False,
        symprec=symprec,
    )
    if cell is None:
        return standard
    lattice, scaled, numbers = cell
    primitive = Atoms(numbers=numbers, scaled_positions=scaled, cell=lattice, pbc=True)
    return standard_sheet(primitive, min_vacuum)


def neighbours_within(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return all pairs of atoms closer than ``cutoff`` Å, in both directions, as ASE's list does in fifty times the time.

    Returns:
        (first atom (E,), second atom (E,), images (E, 3), distance (E,) Å): the second atom of a pair is its image
        ``positions[second] + images @ cell``. No pairs where there is no atom, or a position is not finite.
    """
    from pymatgen.optimization.neighbors import find_points_in_spheres  # here, because few need it: it imports slowly

    positions, cell = np.ascontiguousarray(atoms.positions), np.ascontiguousarray(atoms.cell.complete().array)
    if not (len(atoms) and np.isfinite(positions).all() and np.isfinite(cell).all()):
        return np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3), int), np.zeros(0)
    periodic = np.array(atoms.pbc, dtype=np.int64)
    first, second, images, distance = find_points_in_spheres(positions, positions, cutoff, periodic, cell, 1e-8)
    images = np.rint(images).astype(int)
    others = ((first != second) | images.any(1)) & (distance < cutoff)  # a point is within its own sphere
    return first[others], second[others], images[others], distance[others]


def min_distance_ratio(atoms: Atoms) -> float:
    """Return the smallest ratio of an interatomic distance to the sum of the two covalent radii; inf where all are above 2."""
    radii = covalent_radii[atoms.numbers]
    first, second, _, distance = neighbours_within(atoms, 4 * radii.max(initial=0.0))
    ratio = distance / (radii[first] + radii[second])
    return float(ratio.min()) if (ratio < 2).any() else float("inf")


def has_clash(atoms: Atoms, factor: float = CLASH_FACTOR) -> bool:
    """Tell whether two atoms are closer than ``factor`` times the sum of their covalent radii."""
    return min_distance_ratio(atoms) < factor


@dataclass(frozen=True)
class Connectivity:
    """Number of bonded components of a structure, and the largest number of directions (0 to 3) in which one is periodic."""

    num_components: int
    dimensionality: int

    @property
    def is_single_sheet(self) -> bool:
        """Tell whether there is one component, periodic in exactly two directions."""
        return self.num_components == 1 and self.dimensionality == 2


def sheet_connectivity(atoms: Atoms, scale: float = BOND_SCALE) -> Connectivity:
    """Return the components of the bond graph and their periodicity.

    Two atoms are bonded where their distance is below ``scale`` times the sum of their covalent radii. A component is periodic in
    as many directions as the rank of the lattice translations that connect an atom to its own images. ASE determines that rank
    (Larsen et al., Phys. Rev. Materials 3, 034003 (2019)).
    """
    radii = scale * covalent_radii[atoms.numbers]
    i, j, offsets, distance = neighbours_within(atoms, 2 * radii.max(initial=0.0))
    bonded = distance < radii[i] + radii[j]
    i, j, offsets = i[bonded], j[bonded], offsets[bonded]
    ranks = RDA(len(atoms))
    for first, second, offset in zip(i, j, offsets, strict=True):
        ranks.insert_bond(int(first), int(second), tuple(int(o) for o in offset))
    counts = ranks.check()
    bonds = coo_array((np.ones(len(i)), (i, j)), shape=(len(atoms), len(atoms)))
    num_components, _ = connected_components(bonds, directed=False)
    return Connectivity(int(num_components), max((dim for dim, count in enumerate(counts) if count), default=0))
