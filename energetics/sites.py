"""Puts hydrogen on a sheet: adsorption sites, supercell, position of H, and the predictions at each site."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import spglib
from ase import Atoms
from ase.data import covalent_radii
from scipy.spatial import Delaunay

from geo_utils import H_TAG, SUBSURFACE_TAG, SURFACE_TAG, neighbours_within

SURFACE_DEPTH = 1.0  # Å below the outermost atom that still counts as the surface layer
TOP_DEPTH = 2.5  # Å below the outermost atom to which an exposed atom may be an on-top site
LAYER_DEPTH = 0.5  # Å, atoms of a layer inside a sheet are this close to each other
INNER = "inner"  # face of a site inside a sheet
OPEN_CHANNEL = 0.8  # Å, lateral distance from any atom of a place that H can reach through the faces
AROUND, ABOVE = 4.0, 0.3  # Å: atoms this near to H are around it, those nearer to the vertical through it are above or below
FITS_FROM = 0.95  # times the sum of the covalent radii: the nearest that an atom may be to H inside a sheet
HOLLOW_CLEARANCE = 0.5  # Å, smallest height of a starting H above the surface layer
# Å, by which H starts off its site: exactly on top of an atom or in a hollow, symmetry can hold it where it is not stable.
BESIDE_SITE = (0.08, 0.06, 0.0)


@dataclass(frozen=True)
class AdsorptionSite:
    """A starting position of H on a sheet.

    position: (3,) Å in the frame of the sheet's cell. kind: top, bridge or hollow. face: upper, lower or inner. neighbors: indices
    of the atoms that define the site. multiplicity: equivalent sites per cell.
    """

    position: np.ndarray
    kind: str
    face: str
    neighbors: tuple[int, ...]
    multiplicity: int

    def label(self, atoms: Atoms) -> str:
        """Name the site, such as 'top S upper' or 'hollow S-S-S lower'."""
        return f"{self.kind} {'-'.join(sorted(atoms.symbols[i] for i in self.neighbors))} {self.face}"


def adsorption_sites(atoms: Atoms, symprec: float = 0.05) -> list[AdsorptionSite]:
    """Find the symmetry-distinct top, bridge and hollow sites on both faces of a standardised sheet.

    Surface atoms are those within 1 Å of the outermost one; bridges and hollows are the edges and the circumcentres of their
    periodic Delaunay triangulation, tops all exposed atoms down to 2.5 Å. H touches the covalent sphere (r_H + r_X) of whatever
    lies below it and starts at least 0.5 Å above the surface layer over a bridge or hollow. Sites that a symmetry of the sheet
    maps onto each other, mirror images on the other face included, are listed once.
    """
    all_sites = [
        AdsorptionSite(position, kind, face, neighbors, 1)
        for face, sign in (("upper", +1), ("lower", -1))
        for position, kind, neighbors in _face_sites(atoms, sign)
    ]
    return _symmetry_distinct(atoms, all_sites, symprec)


def inner_sites(atoms: Atoms, symprec: float = 0.05) -> list[AdsorptionSite]:
    """Find the symmetry-distinct hollows of the layers inside a standardised sheet that H can reach and fits into.

    A hollow is a circumcentre of the periodic Delaunay triangulation of a layer, such as the metal layer of 2H-NbSe2, where H is
    more stable than on the chalcogens. No atom stands above or below it, and none is nearer than bonds are long. The positions of
    ``adsorption_sites`` are on the faces; a relaxation from there gets inside only by chance.
    """
    xy, z, index, contact = _repeated(atoms, +1)
    found: list[AdsorptionSite] = []
    for height in _inner_layers(atoms.positions[:, 2]):
        members = np.flatnonzero(np.abs(z - height) < LAYER_DEPTH)
        triangles = members[Delaunay(xy[members], qhull_options="Qbb Qc QJ Pp").simplices]
        for centre, corners in _in_cell(_acute_circumcentres(xy[triangles]), atoms, xy[members]):
            ring, lateral = members[corners], np.linalg.norm(xy - centre, axis=1)
            point = np.array([*centre, z[ring].mean()])
            fits = np.hypot(lateral, z - point[2]) >= FITS_FROM * contact
            if len(ring) >= 3 and lateral.min() >= OPEN_CHANNEL and fits.all():
                found.append(AdsorptionSite(point, "hollow", INNER, tuple(int(index[atom]) for atom in ring), 1))
    return _symmetry_distinct(atoms, found, symprec)


def _inner_layers(z: np.ndarray) -> list[float]:
    """Return the mean heights of the layers that are no surface. z: (N,) Å."""
    ordered = np.sort(z)
    layers = np.split(ordered, np.flatnonzero(np.diff(ordered) > LAYER_DEPTH) + 1)
    inner = [layer for layer in layers if layer.min() > z.min() + SURFACE_DEPTH and layer.max() < z.max() - SURFACE_DEPTH]
    return [float(layer.mean()) for layer in inner]


def _in_cell(points: np.ndarray, atoms: Atoms, xy: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the points (2,) Å that lie in the cell, each once, with the indices of the atoms (xy) nearest to it."""
    found: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
    for point in points:
        f = np.round(np.linalg.solve(atoms.cell.array[:2, :2].T, point), 4)
        if (f >= 0).all() and (f < 1).all():
            lateral = np.linalg.norm(xy - point, axis=1)
            found.setdefault(tuple(np.round(f * 200).astype(int) % 200), (point, np.flatnonzero(lateral < lateral.min() + 0.1)))
    return list(found.values())


def _repeated(atoms: Atoms, sign: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the atoms of a patch of cells, at least 6 Å around the first one: xy (P, 2) Å, z times ``sign``, their numbers in the
    cell, and the sums of their covalent radii with H's, Å."""
    lattice = atoms.cell.array[:2, :2]
    reach_a, reach_b = (int(np.ceil(6.0 / h)) for h in _line_spacings(lattice))
    shifts = np.array(list(product(range(-reach_a, reach_a + 1), range(-reach_b, reach_b + 1))))
    xy = (atoms.positions[None, :, :2] + (shifts @ lattice)[:, None]).reshape(-1, 2)
    index = np.tile(np.arange(len(atoms)), len(shifts))
    contact = covalent_radii[atoms.numbers[index]] + covalent_radii[1]
    return xy, np.tile(sign * atoms.positions[:, 2], len(shifts)), index, contact


def _face_sites(atoms: Atoms, sign: int) -> list[tuple[np.ndarray, str, tuple[int, ...]]]:
    numbers = atoms.numbers
    xy, z, index, contact = _repeated(atoms, sign)
    surface_z = z.max()

    def height_above(point: np.ndarray) -> float:
        """Return the height at which H touches the covalent spheres of the atoms below it; -inf over an open hole."""
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
    edges = np.unique(np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]]), 1), axis=0)
    for kind, points in (("hollow", _acute_circumcentres(xy[triangles])), ("bridge", xy[edges].mean(1))):
        for point, corners in _in_cell(points, atoms, xy[members]):
            ring = members[corners]
            if len(ring) >= 3 if kind == "hollow" else len(ring) == 2:
                height = max(height_above(point), float(z[ring].mean()) + HOLLOW_CLEARANCE)
                sites.append((np.array([*point, sign * height]), kind, tuple(int(index[atom]) for atom in ring)))
    return sites


def _acute_circumcentres(corners: np.ndarray) -> np.ndarray:
    """Return the circumcentres of the triangles (T, 3, 2) that are not obtuse: the points farthest from all atoms around them."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    squares = np.stack([((b - c) ** 2).sum(1), ((c - a) ** 2).sum(1), ((a - b) ** 2).sum(1)], 1)
    # Collinear slivers on the rim of the patch drop out here too.
    acute = 2 * squares.max(1) <= squares.sum(1) * (1 + 1e-3)
    squares, corners = squares[acute], corners[acute]
    weights = squares * (squares.sum(1, keepdims=True) - 2 * squares)
    return np.einsum("tk,tkc->tc", weights / weights.sum(1, keepdims=True), corners)


def _line_spacings(lattice: np.ndarray) -> np.ndarray:
    """Return the distance between lattice lines along each in-plane vector, Å."""
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
    """Find the smallest na x nb supercell (na, nb) in which periodic images of H are at least ``min_image_distance`` Å apart.

    Of supercells of equal area, the one with the more distant images is taken. The coverage is 1 / (na nb) H per cell.
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
    """Make the na x nb supercell of a sheet with one H at ``site`` as its last atom, with OC20's tags; the vacuum stays.

    Tags: 2 for H, 1 for the atoms of the surface layer on its side, 0 for the rest.
    """
    slab = atoms.repeat((*supercell, 1))
    slab.append("H")
    slab.positions[-1] = site.position
    tag_last_hydrogen(slab)
    return slab


def beside_site(atoms: Atoms, site: AdsorptionSite, supercell: tuple[int, int]) -> Atoms:
    """Make what ``add_hydrogen`` makes, with H where its relaxation starts: displaced by BESIDE_SITE."""
    slab = add_hydrogen(atoms, site, supercell)
    slab.positions[-1] += BESIDE_SITE
    return slab


def tag_last_hydrogen(atoms: Atoms) -> None:
    """Set OC20's tags on a sheet whose last atom is the H adatom: 2 for H, 1 for the surface layer on its side, 0 for the rest.

    Raises ValueError when the last atom is not H.
    """
    if len(atoms) < 2 or atoms.numbers[-1] != 1:
        raise ValueError(f"the last atom of {atoms.get_chemical_formula()} is not an H on a sheet")
    z = atoms.positions[:-1, 2]
    if atoms.positions[-1, 2] < z.mean():
        z = -z
    atoms.set_tags([*np.where(z >= z.max() - SURFACE_DEPTH, SURFACE_TAG, SUBSURFACE_TAG), H_TAG])


def is_inside(atoms: Atoms, hydrogen: int = -1) -> bool:
    """Return whether H lies in the sheet: deeper than SURFACE_DEPTH below the outermost atoms of both faces, and atoms all around.

    At the edge of a ribbon H may be as deep, but one side is open.

    Args:
        atoms: a sheet with H.
        hydrogen: its index.
    """
    hydrogen %= len(atoms)
    z, height = np.delete(atoms.positions[:, 2], hydrogen), atoms.positions[hydrogen, 2]
    if not z.min() + SURFACE_DEPTH < height < z.max() - SURFACE_DEPTH:
        return False
    first, second, images, _ = neighbours_within(atoms, AROUND)
    around = first == hydrogen
    lateral = (atoms.positions[second[around]] + images[around] @ atoms.cell.array - atoms.positions[hydrogen])[:, :2]
    angles = np.sort([math.atan2(y, x) for x, y in lateral if math.hypot(x, y) > ABOVE])
    return len(angles) > 2 and bool(np.diff([*angles, angles[0] + 2 * math.pi]).max() < math.pi)


def adsorbed_hydrogen(atoms: Atoms) -> int:
    """Return the index of the H adatom.

    Raises:
        ValueError: not exactly one atom has tag 2, or it is not H; a bare sheet has no ΔE_H.
    """
    adsorbate = np.flatnonzero(atoms.get_tags() == H_TAG)
    if len(adsorbate) != 1 or atoms.numbers[adsorbate[0]] != 1:
        tagged = str(atoms.symbols[adsorbate]) if len(adsorbate) else "no atom"
        raise ValueError(f"{atoms.get_chemical_formula()}: {tagged} tagged as adsorbate, expected one H (a bare sheet has no ΔE_H)")
    return int(adsorbate[0])


@dataclass
class SheetHER:
    """Hydrogen on a sheet: every symmetry-distinct site, and the material's value at the site with the lowest ΔE_H.

    sheet: the primitive cell that the positions of the sites refer to. coverage: 1 / (na nb), H per such cell. band_gap: of the
    sheet, eV, NaN where none was computed. delta_e, delta_g, std: (S,) eV, std the calibrated standard error.
    complaints: per site, why it is outside the training domain, empty inside.
    status: "ok", or why there is no value.
    """

    sheet: Atoms | None
    sites: list[AdsorptionSite] = field(default_factory=list)
    supercell: tuple[int, int] = (1, 1)
    coverage: float = math.nan
    band_gap: float = math.nan
    delta_e: np.ndarray = field(default_factory=lambda: np.zeros(0))
    delta_g: np.ndarray = field(default_factory=lambda: np.zeros(0))
    std: np.ndarray = field(default_factory=lambda: np.zeros(0))
    complaints: list[str] = field(default_factory=list)
    status: str = "ok"

    @property
    def best(self) -> int | None:
        """Return the index of the most stable site; None where there is no value."""
        return int(np.argmin(self.delta_e)) if len(self.delta_e) else None

    @property
    def best_delta_g(self) -> float:
        """Return ΔG_H of the most stable site, eV."""
        return math.nan if self.best is None else float(self.delta_g[self.best])

    @property
    def best_std(self) -> float:
        """Return the standard error of ``best_delta_g``, eV."""
        return math.nan if self.best is None else float(self.std[self.best])

    @property
    def in_domain(self) -> bool:
        """Return whether the training records cover the most stable site."""
        return self.best is not None and not self.complaints[self.best]

    @property
    def domain_reason(self) -> str:
        """Return why the training records do not cover the most stable site; empty where they do."""
        return self.status if self.best is None else self.complaints[self.best]
