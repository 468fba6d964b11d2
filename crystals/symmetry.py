"""Symmetry of sheets: its detection, the average of a sheet over it, and templates that keep it while a sheet is generated.

A template says which in-plane coordinates, heights and lattices a layer group leaves free for the atoms of one crystal. A sheet
that is sampled within a template keeps its atoms on their Wyckoff positions and its cell in the lattice system. Only the free
numbers are generated, as in DiffCSP++ (Jiao et al., ICLR 2024). The network needs no change for this. It is equivariant, so the
score at a symmetric sheet is symmetric, and the reverse process stays on the symmetric subspace if its noise does. With noise that
is isotropic on the subspace, it samples the learnt density restricted to symmetric sheets.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import spglib
import torch
from ase import Atoms

from geo_utils import Sheet, lattice_to_vector, vector_to_lattice

log = logging.getLogger("her2d")

EXACT = 1e-3  # Å, tolerance for the symmetry of a sheet that has been symmetrised
ANGLE_TOLERANCE = 8.0  # degrees
SYMPREC_ANGSTROM = 0.1  # tolerance for the symmetry of a structure as it was read or relaxed


@dataclass(frozen=True)
class Symmetry:
    """The groups of a sheet, and the tolerance (Å) within which its symmetry was imposed; 0 where none beyond P1 was imposed."""

    space_group: str
    space_group_number: int
    layer_group_number: int
    tolerance: float


@dataclass(frozen=True)
class Operation:
    """One operation of a sheet's group.

    Attributes:
        rotation: (2, 2) integers, in-plane: f' = R f + t for fractional coordinates.
        translation: (2,) fractional, in-plane.
        flip: ±1, the sign of z' = ± z.
        partner: (N,) atom k is mapped onto atom partner[k] or a periodic copy of it.
    """

    rotation: np.ndarray
    translation: np.ndarray
    flip: int
    partner: np.ndarray


def symmetrise(sheet: Sheet, symprec: float, angle_tolerance: float = ANGLE_TOLERANCE) -> tuple[Sheet, Symmetry]:
    """Average a sheet over its symmetry operations.

    Only operations that map the plane onto itself count. The cell's metric and the coordinates are averaged over the group. The
    number of atoms does not change.

    Args:
        sheet: the sheet.
        symprec: tolerance of spglib, Å; 0 imposes nothing.
        angle_tolerance: tolerance of spglib, degrees.

    Returns:
        (sheet, symmetry): the averaged sheet, or the same sheet where spglib finds nothing beyond P1; and the symmetry that it has.
    """
    result, tolerance = sheet, 0.0
    if symprec > 0 and (averaged := _averaged(sheet, symprec, angle_tolerance)) is not None:
        result, tolerance = Sheet.from_atoms(averaged.to_atoms()), symprec
    cell = _spglib_cell(result)
    dataset = spglib.get_symmetry_dataset(cell, symprec=EXACT, angle_tolerance=-1.0)
    if dataset is None:
        return sheet, Symmetry("P1", 1, 1, 0.0)
    return result, Symmetry(
        dataset.international, int(dataset.number), layer_group_number(result), tolerance if dataset.number > 1 else 0.0
    )


def layer_group_number(sheet: Sheet) -> int:
    """Return the number of the layer group, 1 to 80, of a sheet whose symmetry is exact; 1 where spglib finds none."""
    layer = _layer_group(_spglib_cell(sheet), EXACT)
    return int(layer.number) if layer is not None else 1


def _layer_group(cell: tuple[np.ndarray, np.ndarray, np.ndarray], symprec: float) -> Any:
    """Return spglib's layer group (``number``, ``international``) of (lattice, scaled positions, numbers), c aperiodic, or None."""
    return spglib.get_layergroup(cell, aperiodic_dir=2, symprec=symprec)


def _spglib_cell(sheet: Sheet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (lattice (3, 3) Å, scaled positions (N, 3), numbers (N,)) as spglib takes them."""
    atoms = sheet.to_atoms()
    return atoms.cell.array, atoms.get_scaled_positions(wrap=False), atoms.numbers


def find_operations(sheet: Sheet, symprec: float, angle_tolerance: float = ANGLE_TOLERANCE) -> list[Operation]:
    """Return the operations that map the sheet onto itself, the identity included.

    Args:
        sheet: the sheet.
        symprec: tolerance of spglib, Å.
        angle_tolerance: tolerance of spglib, degrees; negative: spglib's own.

    Returns:
        The operations; [] where spglib finds none, or where an operation does not permute the atoms.
    """
    lattice, scaled, numbers = _spglib_cell(sheet)
    found = spglib.get_symmetry((lattice, scaled, numbers), symprec=symprec, angle_tolerance=angle_tolerance)
    operations = []
    for rotation, translation in zip(found["rotations"], found["translations"], strict=True) if found else ():
        if rotation[:2, 2].any() or rotation[2, :2].any():
            continue  # mixes the plane and its normal
        # The partner of an atom is the atom of its element nearest to its image, periodic copies included.
        delta = (scaled @ rotation.T + translation)[:, None] - scaled[None]
        delta -= np.round(delta)
        distance = np.linalg.norm(delta @ lattice, axis=-1)
        distance[numbers[:, None] != numbers[None]] = np.inf
        partner = distance.argmin(1)
        if len(set(partner.tolist())) != len(numbers) or distance.min(1).max() > 3 * symprec:
            return []
        operations.append(Operation(rotation[:2, :2].astype(np.int64), translation[:2], int(rotation[2, 2]), partner))
    return operations


def _averaged(sheet: Sheet, symprec: float, angle_tolerance: float = ANGLE_TOLERANCE) -> Sheet | None:
    """Return the sheet averaged over its group, in the same basis; None where the group is P1."""
    result = None
    for _ in range(2):  # the second pass works on the cleaned lattice
        operations = find_operations(result or sheet, symprec, angle_tolerance)
        if len(operations) < 2:
            break
        result = _average_over(result or sheet, operations)
    return result


def _average_over(sheet: Sheet, operations: Sequence[Operation]) -> Sheet:
    """Return the mean of the images of a sheet under the operations of a group."""
    # With r = f @ L, the map f' = R f keeps distances if Rᵀ G R = G, where G = L Lᵀ.
    gram = sheet.lattice @ sheet.lattice.T
    gram = np.mean([g.rotation.T @ gram @ g.rotation for g in operations], axis=0)
    length = math.sqrt(gram[0, 0])
    cell = np.array([[length, 0.0], [gram[0, 1] / length, math.sqrt(np.linalg.det(gram)) / length]])
    frac, heights = np.zeros_like(sheet.frac_coords), np.zeros_like(sheet.heights)
    for g in operations:
        # The image of atom k is added to atom partner[k], as the periodic copy nearest to it.
        delta = sheet.frac_coords @ g.rotation.T + g.translation - sheet.frac_coords[g.partner]
        frac[g.partner] += sheet.frac_coords[g.partner] + delta - np.round(delta)
        heights[g.partner] += g.flip * sheet.heights
    frac, heights = frac / len(operations), heights / len(operations)
    return Sheet(sheet.atomic_numbers, frac % 1.0, heights - heights.mean(), cell)


@dataclass(frozen=True)
class Template:
    """The degrees of freedom that a layer group leaves to N atoms and their cell.

    Attributes:
        kinds: (N,) atoms of one element share a number: 0, 1, ... in the order of first appearance.
        orbits: (N,) atoms that the group maps onto each other share a number.
        frac_origin: (N, 2) a symmetric set of in-plane fractional coordinates.
        frac_basis: (2N, k) orthonormal columns. Symmetric coordinates are frac_origin + frac_basis u, modulo 1.
        height_basis: (N, m) orthonormal columns of zero mean, which span the symmetric heights.
        rotations: (n, 2, 2) in-plane parts of the operations. A metric G = L Lᵀ is symmetric if Rᵀ G R = G for all of them.
        layer_group: its number; 1 is no constraint.
    """

    kinds: np.ndarray
    orbits: np.ndarray
    frac_origin: np.ndarray
    frac_basis: np.ndarray
    height_basis: np.ndarray
    rotations: np.ndarray
    layer_group: int

    @property
    def num_free(self) -> tuple[int, int, int]:
        """Return the number of free in-plane coordinates (common translations included), heights and lattice parameters."""
        lattice = int(np.linalg.matrix_rank(self.metric_average[1], tol=1e-6))
        return self.frac_basis.shape[1], self.height_basis.shape[1], lattice

    @cached_property
    def frac_projector(self) -> np.ndarray:
        """Return the (2N, 2N) orthogonal projection of displacements on the symmetric ones."""
        return self.frac_basis @ self.frac_basis.T

    @cached_property
    def height_projector(self) -> np.ndarray:
        """Return the (N, N) orthogonal projection of heights on the symmetric ones of zero mean."""
        return self.height_basis @ self.height_basis.T

    @cached_property
    def metric_average(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ``metric_average`` of the template's rotations."""
        return metric_average(self.rotations)

    @classmethod
    def of(cls, sheet: Sheet, symprec: float = 0.1) -> Template:
        """Return the template of a sheet, in the sheet's own basis and order of atoms.

        The template depends on the symmetry that spglib finds within ``symprec`` (Å), not on the values of the sheet's free
        coordinates or the size of its cell.
        """
        averaged = _averaged(sheet, symprec)
        operations = [] if averaged is None else find_operations(averaged, EXACT, -1.0)
        count = len(sheet)
        if len(operations) < 2:
            layer_group, operations = 1, [_identity(count)]
        else:
            sheet, layer_group = averaged, layer_group_number(averaged)
        frac_rows, height_rows = [np.zeros((1, 2 * count))], [np.ones((1, count))]
        for g in operations:
            rotated, flipped = np.zeros((2 * count, 2 * count)), np.zeros((count, count))
            for k, partner in enumerate(g.partner):
                rotated[2 * partner : 2 * partner + 2, 2 * k : 2 * k + 2] = g.rotation
                flipped[partner, k] = g.flip
            frac_rows.append(rotated - np.eye(2 * count))
            height_rows.append(flipped - np.eye(count))
        basis = _null_space(np.concatenate(frac_rows))
        flat = sheet.frac_coords.reshape(-1)
        return cls(
            kinds=kinds_of(sheet.atomic_numbers),
            orbits=kinds_of(np.min([g.partner for g in operations], axis=0)),
            frac_origin=(flat - basis @ (basis.T @ flat)).reshape(-1, 2),
            frac_basis=basis,
            height_basis=_null_space(np.concatenate(height_rows)),
            rotations=np.unique([g.rotation for g in operations], axis=0),
            layer_group=layer_group,
        )


def _identity(count: int) -> Operation:
    """Return the identity for ``count`` atoms."""
    return Operation(np.eye(2, dtype=np.int64), np.zeros(2), 1, np.arange(count))


def _null_space(matrix: np.ndarray) -> np.ndarray:
    """Return (n, k) orthonormal columns that span the null space of a matrix (m, n) of small integers."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    return vectors[:, values < 1e-8]


def kinds_of(numbers: Sequence[int]) -> np.ndarray:
    """Return (N,) labels of atomic numbers: equal numbers share a label, 0, 1, ... in the order of first appearance."""
    order: dict[int, int] = {}
    return np.array([order.setdefault(int(z), len(order)) for z in numbers], dtype=np.int64)


def metric_average(rotations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the group average of metrics, as a linear map of logarithmic strains.

    The strain of a metric G against the invariant metric W² is X = ½ log(W⁻¹ G W⁻¹). Averaging X keeps the area of the cell.

    Args:
        rotations: (n, 2, 2) in-plane rotations of the group, in fractional coordinates.

    Returns:
        (W, M): W (2, 2), the square root of an invariant metric of determinant 1; M (3, 3), which maps (X11, X22, X12) to its
        average.
    """
    base = np.mean([r.T @ r for r in rotations], axis=0)
    base /= math.sqrt(np.linalg.det(base))
    values, vectors = np.linalg.eigh(base)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    average = np.zeros((3, 3))
    for rotation in rotations:
        q = np.linalg.solve(root, rotation.T @ root)  # orthogonal
        for column, unit in enumerate(([[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 1], [1, 0]])):
            image = q @ np.array(unit, dtype=float) @ q.T
            average[:, column] += [image[0, 0], image[1, 1], image[0, 1]]
    return root, average / len(rotations)


class SymmetryConstraint:
    """The templates of a batch of sheets as projections on symmetric states; the identity for sheets without a template.

    The atoms of a sheet are consecutive, in the order of its template.

    Attributes:
        is_template: (B,) bool, which sheets have a template.
    """

    def __init__(self, templates: Sequence[Template | None], num_atoms: torch.Tensor, like: torch.Tensor) -> None:
        """Build the projections.

        Args:
            templates: one per sheet, or None.
            num_atoms: (B,) atoms of each sheet.
            like: a tensor with the dtype and device of the projections.

        Raises:
            ValueError: a template has another number of atoms than its sheet.
        """
        sizes = [int(n) for n in num_atoms]
        widest, count = max(sizes), len(sizes)
        frac = np.tile(np.eye(2 * widest), (count, 1, 1))
        height = np.tile(np.eye(widest), (count, 1, 1))
        root, average = np.tile(np.eye(2), (count, 1, 1)), np.tile(np.eye(3), (count, 1, 1))
        origin, fixed = np.zeros((sum(sizes), 2)), np.zeros(sum(sizes), dtype=bool)
        start = 0
        for k, (template, size) in enumerate(zip(templates, sizes, strict=True)):
            if template is not None:
                if len(template.kinds) != size:
                    raise ValueError(f"a template of {len(template.kinds)} atoms for a sheet of {size}")
                frac[k, : 2 * size, : 2 * size] = template.frac_projector
                height[k, :size, :size] = template.height_projector
                root[k], average[k] = template.metric_average
                origin[start : start + size], fixed[start : start + size] = template.frac_origin, True
            start += size
        self._frac, self._height, self._root, self._average, self._origin = (
            torch.as_tensor(x).to(like) for x in (frac, height, root, average, origin)
        )
        self._fixed = torch.as_tensor(fixed).to(like.device)
        self.is_template = torch.tensor([template is not None for template in templates], device=like.device)
        self._batch = torch.repeat_interleave(torch.arange(count, device=like.device), num_atoms.to(like.device))
        first = torch.cumsum(num_atoms, 0) - num_atoms
        self._slot = torch.arange(len(self._batch), device=like.device) - first.to(like.device)[self._batch]

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        """Return symmetric in-plane coordinates (A, 2) from uniform ones; the free directions stay uniform on the torus."""
        return torch.where(self._fixed[:, None], torch.remainder(self._origin + self.frac(noise), 1.0), noise)

    def frac(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return in-plane displacements (A, 2) projected on the symmetric ones."""
        return self._apply(self._frac, vectors)

    def height(self, heights: torch.Tensor) -> torch.Tensor:
        """Return heights (A,) projected on the symmetric ones."""
        return self._apply(self._height, heights[:, None])[:, 0]

    def lattice(self, vector: torch.Tensor) -> torch.Tensor:
        """Return S = ½ log(L Lᵀ), (B, 3), of the group average of the given lattices S (B, 3); the area is kept."""
        stretch = lattice_to_vector(torch.linalg.solve(self._root, vector_to_lattice(vector)))
        return lattice_to_vector(self._root @ vector_to_lattice(torch.einsum("bij,bj->bi", self._average, stretch)))

    def _apply(self, matrices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Multiply the matrix of each sheet, (B, wN, wN), with the values of its atoms, (A, w); return (A, w)."""
        width = values.shape[1]
        padded = values.new_zeros(matrices.shape[0], matrices.shape[1] // width, width)
        padded[self._batch, self._slot] = values
        return torch.einsum("bij,bj->bi", matrices, padded.flatten(1)).view_as(padded)[self._batch, self._slot]


def symmetry_symbols(atoms: Atoms, is_sheet: bool, symprec: float = SYMPREC_ANGSTROM) -> tuple[str, str]:
    """Return the international symbols of the space group and the layer group, "" for one that spglib does not find.

    Args:
        atoms: a standard sheet or a bulk crystal.
        is_sheet: whether to look for a layer group.
        symprec: tolerance of spglib, Å.
    """
    cell = (np.asarray(atoms.cell), atoms.get_scaled_positions(), atoms.numbers)
    space, layer = "", ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
            space = dataset.international if dataset is not None else ""
            if is_sheet:
                dataset = _layer_group(cell, symprec)
                layer = dataset.international if dataset is not None else ""
        except (spglib.SpglibError, RuntimeError, TypeError) as error:
            log.debug("no symmetry of %s: %s", atoms.get_chemical_formula(), error)
    return space, layer
