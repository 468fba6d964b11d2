"""Pairs of atoms within a cutoff in a batch of periodic structures, for CPUs: loops that numba compiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

PAIRS_PER_ATOM = 80  # that there is room for at first


@lru_cache(maxsize=1)
def _loops() -> tuple[Callable[..., int], Callable[..., int]]:
    from pipeline.loops import compiled

    @compiled
    def search(pos, frac, cell, first, sizes, cutoffs, reach, periodic, target, source, offsets, distances):
        found = 0
        base, start = np.zeros(3, pos.dtype), np.zeros(3, pos.dtype)
        for graph in range(len(sizes)):
            lattice, cutoff, steps = cell[graph], cutoffs[graph], reach[graph]
            beyond = cutoff * cutoff * (1 + 1e-4)
            for i in range(first[graph], first[graph] + sizes[graph]):
                for j in range(first[graph], first[graph] + sizes[graph]):
                    for k in range(3):  # starting from the nearest image keeps the range smallest
                        base[k] = -np.rint(frac[j, k] - frac[i, k]) if periodic[k] else 0
                    for c in range(3):
                        start[c] = pos[j, c] - pos[i, c]
                        for k in range(3):
                            start[c] += base[k] * lattice[k, c]
                    for a in range(-steps[0], steps[0] + 1):
                        for b in range(-steps[1], steps[1] + 1):
                            for d in range(-steps[2], steps[2] + 1):
                                x = start[0] + a * lattice[0, 0] + b * lattice[1, 0] + d * lattice[2, 0]
                                y = start[1] + a * lattice[0, 1] + b * lattice[1, 1] + d * lattice[2, 1]
                                z = start[2] + a * lattice[0, 2] + b * lattice[1, 2] + d * lattice[2, 2]
                                squared = x * x + y * y + z * z
                                if squared > beyond:
                                    continue
                                distance = np.sqrt(squared)
                                if distance > cutoff or (i == j and base[0] + a == 0 and base[1] + b == 0 and base[2] + d == 0):
                                    continue
                                if found < len(target):
                                    target[found], source[found], distances[found] = i, j, distance
                                    offsets[found, 0], offsets[found, 1], offsets[found, 2] = base[0] + a, base[1] + b, base[2] + d
                                found += 1
        return found

    @compiled
    def nearest(target, distances, most, tolerance, order):
        kept = begin = 0
        while begin < len(target):
            end = begin
            while end < len(target) and target[end] == target[begin]:
                end += 1
            sorted_ones = begin + np.argsort(distances[begin:end], kind="mergesort")
            limit = distances[sorted_ones[min(most, end - begin) - 1]] + tolerance
            for edge in sorted_ones:
                if distances[edge] <= limit:
                    order[kept] = edge
                    kept += 1
            begin = end
        return kept

    return search, nearest


def pairs_within(
    pos: np.ndarray,
    frac: np.ndarray,
    cell: np.ndarray,
    first: np.ndarray,
    sizes: np.ndarray,
    cutoffs: np.ndarray,
    reach: np.ndarray,
    periodic: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return target (E,), source (E,), image offsets (E, 3) and distance (E,) of every pair within the cutoff, sorted by target.

    Args:
        pos: (N, 3).
        frac: (N, 3) the same in units of the cell.
        cell: (B, 3, 3), row vectors.
        first, sizes: (B,) first atom and number of atoms of each structure.
        cutoffs: (B,).
        reach: (B, 3) images on each side of the nearest that may be within the cutoff.
        periodic: (3,) bool.
    """
    room = PAIRS_PER_ATOM * len(pos)
    while True:
        target, source = np.empty(room, np.int64), np.empty(room, np.int64)
        offsets, distances = np.empty((room, 3), pos.dtype), np.empty(room, pos.dtype)
        count = _loops()[0](pos, frac, cell, first, sizes, cutoffs, reach, periodic, target, source, offsets, distances)
        if count <= room:
            return target[:count], source[:count], offsets[:count], distances[:count]
        room = count


def nearest_shells(target: np.ndarray, distances: np.ndarray, most: int, tolerance: float) -> np.ndarray:
    """Return the indices of the ``most`` nearest pairs of each target, by distance; the last shell of equal distances is whole.

    Args:
        target: (E,) sorted.
        distances: (E,).
        most: at least 1.
        tolerance: distances that differ by less are of one shell.
    """
    order = np.empty(len(target), np.int64)
    return order[: _loops()[1](target, distances, most, tolerance, order)]
