"""Lays one sheet over another with as many atoms of each kind: which basis, face, origin and order of atoms fit best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from ase.data import covalent_radii
from scipy.optimize import linear_sum_assignment

from geo_utils import BOND_SCALE, Sheet

MAX_STRAIN = 0.18  # logarithmic shear beyond which two cells are different
STRAIN_WEIGHT = 2.0  # Å, what a strain of 1 counts beside the distance of the atoms
TRIALS = 3  # best origins and faces of each assignment of kinds that are examined in full
_BASES = np.array([m for m in product((-1, 0, 1), repeat=4) if abs(m[0] * m[3] - m[1] * m[2]) == 1]).reshape(-1, 2, 2)
_IMAGES = np.array(list(product((-2, -1, 0, 1, 2), repeat=2)))


@dataclass(frozen=True)
class Layout:
    """A sheet without its elements: kinds of its atoms (N,), frac_coords (N, 2), heights (N,) Å, lattice (2, 2) Å."""

    kinds: np.ndarray
    frac_coords: np.ndarray
    heights: np.ndarray
    lattice: np.ndarray


@dataclass(frozen=True)
class Alignment:
    """How a sheet lies over another, ``layout`` being in that one's basis and order of atoms.

    Attributes:
        distance: root mean square distance of the atoms, Å.
        largest: the largest of them, Å.
        strain: logarithmic shear between the cells.
        layout: the sheet with its own cell and heights.
        order: (N,) which atom of the sheet stands in each place.
    """

    distance: float
    largest: float
    strain: float
    layout: Layout
    order: np.ndarray

    @property
    def misfit(self) -> float:
        """Return distance and strain as one number, Å."""
        return self.distance + STRAIN_WEIGHT * self.strain


def bond_counts(sheet: Sheet) -> np.ndarray:
    """Return (N, N), how many bonds each pair of atoms has, both ways.

    Bonded are two atoms nearer than ``BOND_SCALE`` times the sum of their covalent radii, and each atom with its nearest.
    """
    radii = covalent_radii[sheet.atomic_numbers]
    delta = sheet.frac_coords[:, None] - sheet.frac_coords[None]
    delta -= np.round(delta)
    plane = ((delta[:, :, None] + _IMAGES) @ sheet.lattice) ** 2
    distance = np.sqrt(plane.sum(-1) + ((sheet.heights[:, None] - sheet.heights[None]) ** 2)[..., None])
    distance[distance < 1e-3] = np.inf
    ratio = distance / (radii[:, None] + radii[None])[..., None]
    nearest = ratio.reshape(len(radii), -1).min(1)[:, None, None]
    return ((ratio < BOND_SCALE) | (ratio <= nearest + 1e-3)).sum(-1)


def bond_length(counts: np.ndarray, numbers: np.ndarray) -> float:
    """Return the mean sum of covalent radii, Å, over the bonds ``counts`` (N, N) of atoms with the given atomic numbers (N,)."""
    radii = covalent_radii[numbers]
    return float((counts * (radii[:, None] + radii[None])).sum() / counts.sum())


def kind_maps(first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    """Return every way of naming the kinds of ``second`` (N,) as those of ``first`` (N,) with as many atoms of each."""
    wanted, found = np.bincount(first), np.bincount(second)
    maps = permutations(range(len(wanted)))
    return [np.array(m) for m in maps if all(wanted[m[kind]] == count for kind, count in enumerate(found))]


def align(target: Layout, sheet: Layout, scale: float, maps: Sequence[np.ndarray] | None = None) -> Alignment | None:
    """Return the alignment with the smallest misfit, or None where no basis of the two lattices agrees.

    Cells of different area are compared by their shape. A sheet may be turned over and mirrored.

    Args:
        target: what the sheet is laid over.
        sheet: has as many atoms of each kind.
        scale: its heights are multiplied by this before they are compared.
        maps: ways of naming its kinds, as ``kind_maps`` returns them; all of them if None.
    """
    bases, shear = _matching_bases(target.lattice, sheet.lattice)
    if not len(bases):
        return None
    frac = sheet.frac_coords @ np.linalg.inv(bases)  # (M, N, 2)
    best: Alignment | None = None
    for kind_map in kind_maps(target.kinds, sheet.kinds) if maps is None else maps:
        kinds = kind_map[sheet.kinds]
        cost, origin = _costs(target, kinds, frac, sheet.heights * scale)
        total = cost.min(-1).sum(-1) + cost.min(-2).sum(-1) + 5.0 * shear[:, None, None] ** 2
        for place in np.argsort(total, axis=None)[:TRIALS]:
            m, p, face = np.unravel_index(place, total.shape)
            order = linear_sum_assignment(cost[m, p, face])[1]
            if (kinds[order] != target.kinds).any():
                continue
            gram = bases[m] @ sheet.lattice @ sheet.lattice.T @ bases[m].T
            heights = (1 - 2 * face) * sheet.heights[order]
            moved = Layout(target.kinds, frac[m][order] + origin[m, p], heights, np.linalg.cholesky(gram))
            found = _measured(target, moved, scale, float(shear[m]), order)
            if best is None or found.misfit < best.misfit - 1e-6:
                best = found
    return best


def _matching_bases(target: np.ndarray, lattice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bases (M, 2, 2) of a lattice that have the shape of the target's, and the shear (M,) of each."""
    grams = [x @ x.T / abs(np.linalg.det(x)) for x in (target, lattice)]
    root = np.linalg.inv(np.linalg.cholesky(grams[0]))
    stretch = root @ (_BASES @ grams[1] @ _BASES.transpose(0, 2, 1)) @ root.T
    shear = 0.5 * np.arccosh(np.maximum(0.5 * np.trace(stretch, axis1=1, axis2=2), 1.0))
    return _BASES[shear < MAX_STRAIN], shear[shear < MAX_STRAIN]


def _costs(target: Layout, kinds: np.ndarray, frac: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return squared distances (M, P, 2, N, N) of atoms for each basis, origin and face, and the origins (M, P, 2).

    Each origin puts an atom of the rarest kind on the target's first one.
    """
    rare = int(np.argmin(np.bincount(target.kinds)))
    first = int(np.flatnonzero(target.kinds == rare)[0])
    origin = target.frac_coords[first] - frac[:, np.flatnonzero(kinds == rare)]
    delta = (frac[:, None] + origin[:, :, None])[:, :, None] - target.frac_coords[:, None]
    plane = (((delta - np.round(delta)) @ target.lattice) ** 2).sum(-1)  # (M, P, N, N)
    rise = np.stack([heights, -heights])[:, None, :] - target.heights[None, :, None]
    cost = plane[:, :, None] + rise**2
    return np.where(kinds[None] != target.kinds[:, None], 1e3, cost), origin


def _measured(target: Layout, moved: Layout, scale: float, shear: float, order: np.ndarray) -> Alignment:
    """Return the alignment of a sheet in the target's order, after its origin is put where the mean distance vanishes."""
    delta = moved.frac_coords - target.frac_coords
    for _ in range(2):
        delta = delta - np.round(delta)
        delta = delta - delta.mean(0)
    layout = Layout(moved.kinds, target.frac_coords + delta, moved.heights, moved.lattice)
    squared = ((delta @ target.lattice) ** 2).sum(-1) + (moved.heights * scale - target.heights) ** 2
    return Alignment(float(np.sqrt(squared.mean())), float(np.sqrt(squared.max())), shear, layout, order)
