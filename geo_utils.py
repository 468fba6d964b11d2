"""Geometry of two-dimensional crystals: the periodic graph, the sheet convention, adsorption sites and structural checks.

Conventions: Å; row-vector cells, ``r = f @ cell``; a sheet lies in the xy plane with ``pbc = (True, True, False)``, c along z,
centred in the cell. In-plane lattices are Minkowski-reduced, right-handed, with γ in [90°, 120°] and a along x.
Nothing here knows about networks, files or metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import spglib
import torch
from ase import Atoms
from ase.data import atomic_numbers as ATOMIC_NUMBERS
from ase.data import chemical_symbols, covalent_radii
from ase.geometry.dimensionality.rank_determination import RDA
from ase.neighborlist import neighbor_list
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import Delaunay

DEFAULT_VACUUM = 20.0  # Å, cell height minus thickness at export
SHELL_TOLERANCE = 0.01  # Å, neighbours closer than this in distance belong to one shell
BOND_SCALE = 1.25  # bonded: distance below this times the sum of covalent radii
SURFACE_DEPTH = 1.0  # Å below the outermost atom that still counts as the surface layer
TOP_DEPTH = 2.5  # Å below the outermost atom to which an exposed atom may be an on-top site
HOLLOW_CLEARANCE = 0.5  # Å, smallest height of a starting H above the surface layer
H_TAG, SURFACE_TAG, SUBSURFACE_TAG = 2, 1, 0  # OC20 tags


class NotTwoDimensional(ValueError):
    """The structure is no sheet: no vacuum, or vacuum in more than one direction."""


# ------------------------------------------------------------------------------------------------------- periodic graph


def radius_graph_pbc(
    pos: torch.Tensor,
    cell: torch.Tensor,
    batch: torch.Tensor,
    cutoff: float | torch.Tensor,
    max_neighbors: int | None = None,
    pbc: tuple[bool, bool, bool] = (True, True, False),
) -> tuple[torch.Tensor, torch.Tensor]:
    """All directed edges j -> i of a batch of periodic structures, with image offsets.

    The vector of an edge is ``pos[j] + offset @ cell - pos[i]`` (see ``edge_vectors``); each pair of atom and image within the
    cutoff appears exactly once per direction, an atom's own images included. Exact on any cell, skewed or with unwrapped positions.

    pos: (N, 3) Å. cell: (B, 3, 3) Å, row vectors, full rank. batch: (N,) graph of each atom, sorted. cutoff: Å, one number or (B,).
    max_neighbors: edges kept per target, nearest first; a shell of equal distances is kept whole, so that no symmetry is broken.
    Returns edge_index (2, E), row 0 the source j and row 1 the target i, sorted by target; and offsets (E, 3) in ``pos.dtype``.
    Both are indices: gradients flow through ``edge_vectors``.
    """
    with torch.no_grad():
        device = pos.device
        num_graphs = cell.shape[0]
        sizes = torch.bincount(batch, minlength=num_graphs)
        first = torch.cumsum(sizes, 0) - sizes
        cutoffs = torch.as_tensor(cutoff, dtype=pos.dtype, device=device).expand(num_graphs)

        # Pairs (target i, source j) inside each graph.
        sources_per_target = sizes[batch]
        i = torch.repeat_interleave(torch.arange(pos.shape[0], device=device), sources_per_target)
        j = first[batch[i]] + _ranks(sources_per_target)

        # |df_k + o_k| <= cutoff |b*_k| bounds the image offsets; starting from -round(df) keeps the range smallest.
        reciprocal = torch.linalg.inv(cell).transpose(1, 2)  # rows b*_k, without 2π
        periodic = torch.tensor(pbc, device=device)
        reach = torch.floor(cutoffs[:, None] * reciprocal.norm(dim=-1) + 0.5 + 1e-9).long() * periodic
        frac = torch.einsum("nk,nck->nc", pos, reciprocal[batch])
        base = -torch.round(frac[j] - frac[i]) * periodic

        widths = 2 * reach + 1  # (B, 3)
        images_per_graph = widths.prod(1)
        graph_of_pair = batch[i]
        repeats = images_per_graph[graph_of_pair]
        pair = torch.repeat_interleave(torch.arange(i.shape[0], device=device), repeats)
        code = _ranks(repeats)
        graph = graph_of_pair[pair]
        w1, w2 = widths[graph, 1], widths[graph, 2]
        steps = torch.stack([code // (w1 * w2), (code // w2) % w1, code % w2], 1) - reach[graph]
        offsets = base[pair] + steps.to(pos.dtype)
        i, j = i[pair], j[pair]

        vectors = pos[j] + torch.einsum("ek,ekc->ec", offsets, cell[graph]) - pos[i]
        distances = vectors.norm(dim=-1)
        keep = (distances <= cutoffs[graph]) & ~((i == j) & (offsets == 0).all(1))
        i, j, offsets, distances = i[keep], j[keep], offsets[keep], distances[keep]

        if max_neighbors is not None:
            order = torch.argsort(distances, stable=True)
            order = order[torch.argsort(i[order], stable=True)]
            i, j, offsets, distances = i[order], j[order], offsets[order], distances[order]
            degree = torch.bincount(i, minlength=pos.shape[0])
            start = torch.cumsum(degree, 0) - degree
            last = start + degree.clamp(max=max_neighbors) - 1
            limit = torch.full((pos.shape[0],), torch.inf, dtype=pos.dtype, device=device)
            occupied = degree > 0
            limit[occupied] = distances[last[occupied]] + SHELL_TOLERANCE
            keep = distances <= limit[i]
            i, j, offsets = i[keep], j[keep], offsets[keep]
        return torch.stack([j, i]), offsets


def _ranks(counts: torch.Tensor) -> torch.Tensor:
    """0..count-1 for each entry of ``counts``, concatenated."""
    total = int(counts.sum())
    start = torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
    return torch.arange(total, device=counts.device) - start


def edge_vectors(
    pos: torch.Tensor, cell: torch.Tensor, batch: torch.Tensor, edge_index: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """(E, 3) vectors in Å from the target i to the source j; differentiable in ``pos`` and ``cell``."""
    source, target = edge_index
    return pos[source] + torch.einsum("ek,ekc->ec", offsets, cell[batch[target]]) - pos[target]


def reverse_edges(edge_index: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """(E,) index of the edge i -> j that runs back along each edge j -> i through the same image; E where the graph lacks it."""
    source, target = edge_index
    steps = offsets.long()
    width = 2 * int(steps.abs().max()) + 1 if len(steps) else 1
    num_nodes = int(edge_index.max()) + 1 if len(steps) else 1

    def key(first: torch.Tensor, second: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        code = first * num_nodes + second
        for k in range(3):
            code = code * width + image[:, k] + width // 2
        return code

    ordered, order = torch.sort(key(source, target, steps))
    back = key(target, source, -steps)
    place = torch.searchsorted(ordered, back).clamp(max=max(len(back) - 1, 0))
    return torch.where(ordered[place] == back, order[place], len(back))


def group_slots(index: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, int]:
    """Where each entry goes in a (num_groups, depth) table of each group's entries: slots (E,) in the flat table, and depth."""
    order = torch.argsort(index, stable=True)
    counts = torch.bincount(index, minlength=num_groups)
    depth = max(int(counts.max()), 1) if len(counts) else 1
    rank = torch.empty_like(index)
    rank[order] = _ranks(counts)
    return index * depth + rank, depth


# ------------------------------------------------------------------------------------------------------------ cell algebra


def reduce_lattice_2d(lattice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minkowski (Lagrange-Gauss) reduction of an in-plane lattice, right-handed.

    lattice: (2, 2) Å, row vectors. Returns (reduced, transform) with ``reduced = transform @ lattice``, |a| <= |b|,
    |a·b| <= |a|²/2 and det > 0; transform is an integer matrix of determinant ±1. Raises ValueError for a lattice without area.
    """
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


def lattice_to_vector(lattice: torch.Tensor) -> torch.Tensor:
    """S = ½ log(L Lᵀ) of in-plane lattices, as (S11, S22, S12).

    lattice: (..., 2, 2) Å, row vectors. Rotations of the sheet leave S unchanged: it holds the shape and nothing else.
    The closed form of the 2x2 logarithm has finite gradients where the eigenvalues meet.
    """
    metric = lattice @ lattice.transpose(-1, -2)
    area = torch.linalg.det(lattice).abs()
    half, off = 0.5 * (metric[..., 0, 0] - metric[..., 1, 1]) / area, metric[..., 0, 1] / area
    squared = half**2 + off**2  # sinh² of the difference of the eigenvalues of S
    small = squared < 1e-10
    root = torch.sqrt(torch.where(small, torch.ones_like(squared), squared))
    factor = 0.5 * torch.where(small, 1 - squared / 6, torch.asinh(root) / root)
    mean = 0.5 * torch.log(area)
    return torch.stack([mean + factor * half, mean - factor * half, factor * off], -1)


def vector_to_lattice(vector: torch.Tensor) -> torch.Tensor:
    """The symmetric lattice L = exp(S) with ½ log(L Lᵀ) = S. vector: (..., 3). Returns (..., 2, 2) Å, differentiable.

    The closed form of the 2x2 exponential, exp(m) (cosh δ + sinh δ / δ (S − m)), has finite gradients where the eigenvalues meet.
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


# ---------------------------------------------------------------------------------------------------------- sheet convention


def vacuum_gap(atoms: Atoms) -> tuple[float, int]:
    """Widest empty slab normal to a face of the cell: (width in Å, index of the lattice vector that crosses it)."""
    gaps = _gaps(atoms)
    axis = int(np.argmax([gap for gap, _ in gaps]))
    return gaps[axis][0], axis


def _gaps(atoms: Atoms) -> list[tuple[float, float]]:
    """For each lattice vector: width of the widest empty slab (Å) and the fractional coordinate of its middle."""
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

    atomic_numbers: (N,) int64. frac_coords: (N, 2) in [0, 1), in-plane. heights: (N,) Å, zero mean. lattice: (2, 2) Å, row vectors,
    Minkowski-reduced, a along x, γ in [90°, 120°].
    """

    atomic_numbers: np.ndarray
    frac_coords: np.ndarray
    heights: np.ndarray
    lattice: np.ndarray

    @classmethod
    def from_atoms(cls, atoms: Atoms, min_vacuum: float = 10.0) -> Sheet:
        """Finds the vacuum, unwraps the sheet across it and brings it into the convention.

        The vacuum axis is the one not periodic where exactly one is flagged so, otherwise the only one with a gap of at least
        ``min_vacuum`` Å. Raises NotTwoDimensional when there is none or more than one, ValueError for an unusable cell.
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
        reduced, transform = reduce_lattice_2d(lattice)
        frac = frac @ np.linalg.inv(transform)
        if np.dot(reduced[0], reduced[1]) > 1e-9 * np.dot(reduced[0], reduced[0]):
            # Acute basis: look at the sheet from its other face (a rotation by 180° about a), which makes it obtuse.
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
        """Distance in Å between the outermost nuclei."""
        return float(np.ptp(self.heights))

    @property
    def area(self) -> float:
        """In-plane cell area in Å²."""
        return float(abs(np.linalg.det(self.lattice)))

    @property
    def formula(self) -> str:
        """Formula of the cell in Hill order."""
        return Atoms(numbers=self.atomic_numbers).get_chemical_formula("hill")

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    def to_atoms(self, vacuum: float = DEFAULT_VACUUM) -> Atoms:
        """ASE atoms, pbc (T, T, F), centred in a cell of height thickness + ``vacuum``."""
        height = self.thickness + vacuum
        cell = np.zeros((3, 3))
        cell[:2, :2] = self.lattice
        cell[2, 2] = height
        middle = 0.5 * (self.heights.max() + self.heights.min())
        positions = np.column_stack([self.frac_coords @ self.lattice, self.heights - middle + height / 2])
        return Atoms(numbers=self.atomic_numbers, positions=positions, cell=cell, pbc=(True, True, False))

    def to_structure(self, vacuum: float = DEFAULT_VACUUM):
        """pymatgen Structure of ``to_atoms`` (fully periodic, as pymatgen expects)."""
        from pymatgen.io.ase import AseAtomsAdaptor

        atoms = self.to_atoms(vacuum)
        atoms.pbc = True
        return AseAtomsAdaptor.get_structure(atoms)

    def repeat(self, na: int, nb: int) -> Atoms:
        """ASE atoms of the na x nb supercell, in the same frame as ``to_atoms``."""
        return self.to_atoms().repeat((na, nb, 1))


def standard_sheet(atoms: Atoms, min_vacuum: float = 10.0, vacuum: float = DEFAULT_VACUUM) -> Atoms:
    """``Sheet.from_atoms(atoms).to_atoms()``: the same sheet in the convention of this project."""
    return Sheet.from_atoms(atoms, min_vacuum).to_atoms(vacuum)


def primitive_sheet(atoms: Atoms, symprec: float = 0.02, min_vacuum: float = 10.0) -> Atoms:
    """The symmetrised primitive cell of a sheet, in the convention of this project.

    Supercells, rotated, shifted and wrapped copies of one sheet all give the same crystal, so that everything computed from it
    (sites, coverage, ΔG_H) agrees. Where no symmetry is found within ``symprec`` Å the sheet comes back as it is.
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


# ---------------------------------------------------------------------------------------------------------- structural checks


def min_distance_ratio(atoms: Atoms) -> float:
    """Smallest interatomic distance over the sum of the covalent radii; inf when no pair is closer than twice that sum."""
    radii = covalent_radii[atoms.numbers]
    i, j, d = neighbor_list("ijd", atoms, list(2 * radii))
    return float(np.min(d / (radii[i] + radii[j]))) if len(d) else float("inf")


def has_clash(atoms: Atoms, factor: float = 0.7) -> bool:
    """True when two atoms are closer than ``factor`` times the sum of their covalent radii."""
    return min_distance_ratio(atoms) < factor


@dataclass(frozen=True)
class Connectivity:
    """Bonded components of a structure and the largest number of directions in which one is periodic (0 to 3)."""

    num_components: int
    dimensionality: int

    @property
    def is_single_sheet(self) -> bool:
        """One component, periodic in exactly two directions."""
        return self.num_components == 1 and self.dimensionality == 2


def sheet_connectivity(atoms: Atoms, scale: float = BOND_SCALE) -> Connectivity:
    """Components of the bond graph (distance < ``scale`` x sum of covalent radii) and their periodicity.

    The rank of the lattice translations that connect an atom to its own images, with ASE's rank determination algorithm
    (Larsen et al., Phys. Rev. Materials 3, 034003 (2019)).
    """
    i, j, offsets = neighbor_list("ijS", atoms, list(scale * covalent_radii[atoms.numbers]))
    ranks = RDA(len(atoms))
    for first, second, offset in zip(i, j, offsets, strict=True):
        ranks.insert_bond(int(first), int(second), tuple(int(o) for o in offset))
    counts = ranks.check()
    bonds = coo_array((np.ones(len(i)), (i, j)), shape=(len(atoms), len(atoms)))
    num_components, _ = connected_components(bonds, directed=False)
    return Connectivity(int(num_components), max((dim for dim, count in enumerate(counts) if count), default=0))


# ------------------------------------------------------------------------------------------------------------ adsorption sites


@dataclass(frozen=True)
class AdsorptionSite:
    """A starting position of H on a sheet.

    position: (3,) Å in the frame of the sheet's cell. kind: top, bridge or hollow. face: upper or lower. neighbors: indices of the
    atoms that define the site. multiplicity: equivalent sites per cell.
    """

    position: np.ndarray
    kind: str
    face: str
    neighbors: tuple[int, ...]
    multiplicity: int

    def label(self, atoms: Atoms) -> str:
        """Such as 'top S upper' or 'hollow S-S-S lower'."""
        return f"{self.kind} {'-'.join(sorted(atoms.symbols[i] for i in self.neighbors))} {self.face}"


def adsorption_sites(atoms: Atoms, symprec: float = 0.05) -> list[AdsorptionSite]:
    """Symmetry-distinct top, bridge and hollow sites on both faces of a standardised sheet.

    Surface atoms are those within 1 Å of the outermost one; bridges and hollows are the edges and the circumcentres of their
    periodic Delaunay triangulation, tops all exposed atoms down to 2.5 Å. H touches the covalent sphere (r_H + r_X) of whatever
    lies below it and starts at least 0.5 Å above the surface layer over a bridge or hollow. Sites that a symmetry of the sheet
    maps onto each other, mirror images on the other face included, are listed once.
    """
    found: list[AdsorptionSite] = []
    for face in ("upper", "lower"):
        for site in _face_sites(atoms, +1 if face == "upper" else -1):
            found.append(AdsorptionSite(site[0], site[1], face, site[2], 1))
    return _symmetry_distinct(atoms, found, symprec)


def _face_sites(atoms: Atoms, sign: int) -> list[tuple[np.ndarray, str, tuple[int, ...]]]:
    numbers, lattice = atoms.numbers, atoms.cell.array[:2, :2]
    reach_a, reach_b = (int(np.ceil(6.0 / h)) for h in _line_spacings(lattice))
    shifts = np.array(list(product(range(-reach_a, reach_a + 1), range(-reach_b, reach_b + 1))))
    xy = (atoms.positions[None, :, :2] + (shifts @ lattice)[:, None]).reshape(-1, 2)
    z = np.tile(sign * atoms.positions[:, 2], len(shifts))
    index = np.tile(np.arange(len(atoms)), len(shifts))
    contact = covalent_radii[numbers[index]] + covalent_radii[1]
    surface_z = z.max()

    def height_above(point: np.ndarray) -> float:
        """Height at which H touches the covalent spheres of the atoms below it; -inf over an open hole."""
        lateral = np.linalg.norm(xy - point, axis=1)
        below = lateral < contact
        return float(np.max(z[below] + np.sqrt(contact[below] ** 2 - lateral[below] ** 2))) if below.any() else -np.inf

    sites: list[tuple[np.ndarray, str, tuple[int, ...]]] = []
    for atom in range(len(atoms)):
        depth = surface_z - sign * atoms.positions[atom, 2]
        point = atoms.positions[atom, :2]
        if depth <= TOP_DEPTH:
            touching = sign * atoms.positions[atom, 2] + covalent_radii[numbers[atom]] + covalent_radii[1]
            if height_above(point) <= touching + 1e-6:  # nothing else is met first: the atom is exposed
                sites.append((np.array([*point, sign * touching]), "top", (atom,)))

    members = np.flatnonzero(z >= surface_z - SURFACE_DEPTH)
    if len(members) < 4:
        return sites
    # QJ joggles by far less than any tolerance here. Which way a square or hexagon is cut does not matter: all its triangles share
    # one circumcentre, and only edges without another atom on their own circle count as bridges.
    triangles = members[Delaunay(xy[members], qhull_options="Qbb Qc QJ Pp").simplices]
    candidates = [("hollow", centre) for centre in _acute_circumcentres(xy[triangles])]
    edges = np.unique(np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]]), 1), axis=0)
    candidates += [("bridge", xy[edge].mean(0)) for edge in edges]
    seen: set[tuple[str, int, int]] = set()
    for kind, point in candidates:
        f = np.round(np.linalg.solve(lattice.T, point), 4)
        if (f < 0).any() or (f >= 1).any():
            continue
        lateral = np.linalg.norm(xy[members] - point, axis=1)
        ring = members[lateral < lateral.min() + 0.1]
        key = (kind, *np.round(f * 200).astype(int) % 200)
        if key in seen or len(ring) < (3 if kind == "hollow" else 2) or (kind == "bridge" and len(ring) > 2):
            continue
        seen.add(key)
        height = max(height_above(point), float(z[ring].mean()) + HOLLOW_CLEARANCE)
        sites.append((np.array([*point, sign * height]), kind, tuple(int(index[atom]) for atom in ring)))
    return sites


def _acute_circumcentres(corners: np.ndarray) -> np.ndarray:
    """Circumcentres of the triangles (T, 3, 2) that are not obtuse: the points farthest from all atoms around them."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    squares = np.stack([((b - c) ** 2).sum(1), ((c - a) ** 2).sum(1), ((a - b) ** 2).sum(1)], 1)
    # Collinear slivers on the rim of the patch drop out here too.
    acute = 2 * squares.max(1) <= squares.sum(1) * (1 + 1e-3)
    squares, corners = squares[acute], corners[acute]
    weights = squares * (squares.sum(1, keepdims=True) - 2 * squares)
    return np.einsum("tk,tkc->tc", weights / weights.sum(1, keepdims=True), corners)


def _line_spacings(lattice: np.ndarray) -> np.ndarray:
    """Distance between lattice lines along each in-plane vector, Å."""
    return 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)


def _symmetry_distinct(atoms: Atoms, sites: list[AdsorptionSite], symprec: float) -> list[AdsorptionSite]:
    if not sites:
        return []
    symmetry = spglib.get_symmetry((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=symprec)
    rotations = [np.eye(3, dtype=int)] if symmetry is None else list(symmetry["rotations"])
    translations = [np.zeros(3)] if symmetry is None else list(symmetry["translations"])
    cell = atoms.cell.array
    scaled = np.linalg.solve(cell.T, np.array([site.position for site in sites]).T).T
    remaining = set(range(len(sites)))
    distinct = []
    for index, site in enumerate(sites):
        if index not in remaining:
            continue
        images = np.array([rotation @ scaled[index] + shift for rotation, shift in zip(rotations, translations, strict=True)])
        orbit = {index}
        for other in list(remaining):
            delta = images - scaled[other]
            delta[:, :2] -= np.round(delta[:, :2])
            # The third coordinate is compared modulo the cell as well: a mirror may map the sheet into the next image.
            delta[:, 2] -= np.round(delta[:, 2])
            if (np.linalg.norm(delta @ cell, axis=1) < 4 * symprec).any() and sites[other].kind == site.kind:
                orbit.add(other)
        remaining -= orbit
        distinct.append(AdsorptionSite(site.position, site.kind, site.face, site.neighbors, len(orbit)))
    return distinct


def h_supercell(atoms: Atoms, min_image_distance: float) -> tuple[int, int]:
    """Smallest na x nb supercell in which periodic images of H are at least ``min_image_distance`` Å apart.

    Among equal areas the one with the more distant images. Coverage is 1 / (na nb) H per cell.
    """
    a, b = atoms.cell.array[:2, :2]
    reach = [max(1, int(np.ceil(min_image_distance / h))) for h in _line_spacings(atoms.cell.array[:2, :2])]
    best = None
    for na, nb in product(range(1, reach[0] + 1), range(1, reach[1] + 1)):
        steps = [m * na * a + n * nb * b for m, n in product(range(-2, 3), repeat=2) if (m, n) != (0, 0)]
        shortest = min(np.linalg.norm(step) for step in steps)
        if shortest >= min_image_distance - 1e-6:
            key = (na * nb, -round(shortest, 6), na)
            if best is None or key < best[0]:
                best = (key, (na, nb))
    return best[1]


def add_hydrogen(atoms: Atoms, site: AdsorptionSite, supercell: tuple[int, int] = (1, 1)) -> Atoms:
    """The na x nb supercell of a sheet with one H at ``site`` as its last atom; OC20 tags, the vacuum kept around both.

    Tags: 2 for H, 1 for the atoms of the surface layer on its side, 0 for the rest.
    """
    slab = atoms.repeat((*supercell, 1))
    slab.append("H")
    slab.positions[-1] = site.position
    tag_last_hydrogen(slab)
    return slab


def tag_last_hydrogen(atoms: Atoms) -> None:
    """Sets OC20's tags on a sheet whose last atom is the H adatom: 2 for H, 1 for the surface layer on its side, 0 for the rest.

    Raises ValueError when the last atom is not H.
    """
    if len(atoms) < 2 or atoms.numbers[-1] != 1:
        raise ValueError(f"the last atom of {atoms.get_chemical_formula()} is not an H on a sheet")
    z = atoms.positions[:-1, 2]
    if atoms.positions[-1, 2] < z.mean():
        z = -z
    atoms.set_tags([*np.where(z >= z.max() - SURFACE_DEPTH, SURFACE_TAG, SUBSURFACE_TAG), H_TAG])


def adsorbed_hydrogen(atoms: Atoms) -> int:
    """Index of the H adatom. Raises ValueError unless exactly one atom has tag 2 and it is H: a bare sheet has no ΔE_H."""
    found = np.flatnonzero(atoms.get_tags() == H_TAG)
    if len(found) != 1 or atoms.numbers[found[0]] != 1:
        tagged = str(atoms.symbols[found]) if len(found) else "no atom"
        raise ValueError(f"{atoms.get_chemical_formula()}: {tagged} tagged as adsorbate, expected one H (a bare sheet has no ΔE_H)")
    return int(found[0])


def element_set(symbols: list[str] | tuple[str, ...]) -> set[int]:
    """Atomic numbers of element symbols. Raises ValueError, naming it, for an unknown one."""
    unknown = [symbol for symbol in symbols if symbol not in ATOMIC_NUMBERS or symbol == chemical_symbols[0]]
    if unknown:
        raise ValueError(f"unknown element: {', '.join(unknown)}")
    return {ATOMIC_NUMBERS[symbol] for symbol in symbols}
