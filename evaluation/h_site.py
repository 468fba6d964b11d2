"""Finds where the H of a result sits on the structure that was judged: for the 3D view of the page.

ΔG_H is predicted on the symmetrised primitive cell, whose axes and origin are not those of the judged structure. A site is found
again by what surrounds it.
"""

from __future__ import annotations

import logging

import numpy as np
from ase import Atoms
from ase.geometry import get_distances

from energetics.sites import AdsorptionSite, adsorption_sites

log = logging.getLogger("her2d")

REACH = 5.0  # Å around H within which its surroundings are compared
SAME_SURROUNDINGS = 0.15  # Å, largest mean difference of the distances
RIM = 0.5  # Å


def place_on(judged: Atoms, sheet: Atoms, site: AdsorptionSite) -> list[float] | None:
    """Return the place of a site on another cell of the same sheet.

    Args:
        judged: the cell to find it on.
        sheet: the cell that the site refers to.
        site: the site.

    Returns:
        (3,) Å in the cell of ``judged``; None where no site of the same kind has the same surroundings.
    """
    wanted = surroundings(sheet, site.position)
    found = [(difference(wanted, surroundings(judged, s.position)), s) for s in _sites(judged) if s.kind == site.kind]
    closest = min(found, key=lambda pair: pair[0], default=None)
    if closest is None or closest[0] > SAME_SURROUNDINGS:
        return None
    return [float(x) for x in closest[1].position]


def only_place(judged: Atoms, kind: str, face: str, num_sites: int) -> list[float] | None:
    """Return the place of H where kind and face of its site leave one choice; None where they leave several.

    Args:
        judged: the structure that was judged.
        kind, face: of the best site.
        num_sites: symmetry-distinct sites that were tried.

    Returns:
        (3,) Å in the cell of ``judged``.
    """
    sites = _sites(judged) if kind else []
    fitting = [site for site in sites if site.kind == kind]
    # Which face is the upper one can differ between two cells of a sheet, so that the face alone tells no two sites apart.
    if len(sites) != num_sites or len(fitting) != 1 or fitting[0].face != face:
        return None
    return [float(x) for x in fitting[0].position]


def _sites(atoms: Atoms) -> list[AdsorptionSite]:
    """Return the sites of a structure; none where they cannot be found, because a drawing must not change a verdict."""
    try:
        return adsorption_sites(atoms)
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        log.debug("no sites on %s to draw H on: %s", atoms.symbols, error)
        return []


def surroundings(atoms: Atoms, position: np.ndarray) -> list[tuple[int, float]]:
    """Return atomic number and distance (Å) of every atom within REACH of a place (3,) Å above a sheet, sorted."""
    lengths = np.linalg.norm(atoms.cell.array[:2], axis=1)
    angle = abs(np.cross(*atoms.cell.array[:2])[2])
    copies = [int(np.ceil(REACH / (angle / other))) + 1 for other in lengths[::-1]]
    shifts = [[a, b, 0] for a in range(-copies[0], copies[0] + 1) for b in range(-copies[1], copies[1] + 1)]
    images = (atoms.positions[None] + (np.array(shifts) @ atoms.cell.array)[:, None]).reshape(-1, 3)
    inside = position + _into_cell(atoms, position)
    distances = get_distances(inside[None], images)[1][0]
    numbers = np.tile(atoms.numbers, len(shifts))
    near = distances < REACH
    return sorted((int(z), float(d)) for z, d in zip(numbers[near], distances[near], strict=True))


def _into_cell(atoms: Atoms, position: np.ndarray) -> np.ndarray:
    """Return the shift along the sheet that brings a place into the cell of the atoms' mean."""
    fractional = np.linalg.solve(atoms.cell.array.T, position - atoms.positions.mean(0))
    return -np.round(fractional * [1, 1, 0]) @ atoms.cell.array


def difference(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> float:
    """Return the mean difference of the distances (Å) of two surroundings, and inf where one has an atom that the other lacks.

    An atom at the rim may be within reach in one and just beyond it in the other, so that one is no difference.
    """
    pairs: list[tuple[float, float]] = []
    for number in {z for z, _ in one + other}:
        a, b = ([d for z, d in found if z == number] for found in (one, other))
        common = min(len(a), len(b))
        if any(d < REACH - RIM for d in (*a[common:], *b[common:])):
            return float("inf")
        pairs += zip(a[:common], b[:common], strict=True)
    return float(np.mean([abs(x - y) for x, y in pairs])) if pairs else float("inf")
