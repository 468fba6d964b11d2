"""Gaussians that describe the distances of edges, for CPUs in single precision: the nearest few, others are below the rounding.

A product of all of them with a matrix is then a sum of few of its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

WINDOW = 8  # Gaussians of a number that count; others are below 2e-7
FAR = np.float32(9.0)  # spacings beyond the last Gaussian where none counts
ZERO, ONE = np.float32(0.0), np.float32(1.0)
DECAY = np.exp(-(np.arange(WINDOW) ** 2.0)).astype(np.float32)  # exp(−k²)


@lru_cache(maxsize=1)
def _finding() -> Callable[..., None]:
    """Return the loop of ``nearest_gaussians``, by exp(−(f − k)²) = exp(−f²) exp(2f)^k exp(−k²) around one of the nearest."""
    from pipeline.loops import compiled

    @compiled
    def find(scaled, rows, first, values):
        for a in range(scaled.shape[0]):
            for m in range(scaled.shape[1]):
                begin = 0
                for b in range(scaled.shape[2]):
                    near = int(np.floor(scaled[a, m, b]))
                    start = min(max(near - WINDOW // 2 + 1, 0), rows[b] - WINDOW)
                    first[a, m, b], begin = begin + start, begin + rows[b]
                    center = min(max(near - start, 0), WINDOW - 1)
                    value, f = values[a, m, b], scaled[a, m, b] - np.float32(start + center)
                    if abs(f) > FAR:
                        for k in range(WINDOW):
                            value[k] = ZERO
                        continue
                    up = np.exp(f + f)
                    down, rising = ONE / up, np.exp(-f * f)
                    falling = value[center] = rising
                    for k in range(1, WINDOW - center):
                        rising *= up
                        value[center + k] = rising * DECAY[k]
                    for k in range(1, center + 1):
                        falling *= down
                        value[center - k] = falling * DECAY[k]

    return find


def nearest_gaussians(scaled: torch.Tensor, counts: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``WINDOW`` nearest of Gaussians exp(−(x − k)²), k = 0, 1, ..., of each number of each edge.

    Args:
        scaled: (A, M, N) x.
        counts: (N,) Gaussians of each number; where they are fewer than ``WINDOW``, ``rows_of_gaussians`` has rows of zeros.

    Returns:
        The first of each, counted through all numbers (A, M, N), and their values (A, M, N, ``WINDOW``).
    """
    first, values = np.empty(scaled.shape, np.int32), np.empty((*scaled.shape, WINDOW), np.float32)
    _finding()(scaled.contiguous().numpy(), np.maximum(counts, WINDOW), first, values)
    return torch.from_numpy(first), torch.from_numpy(values)


def rows_of_gaussians(weight: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
    """Return the rows of a weight (C, Σ counts) by which ``nearest_gaussians`` are multiplied, (R, C)."""
    if min(counts) >= WINDOW:
        return weight.T.contiguous()
    blocks = [torch.nn.functional.pad(x, (0, max(WINDOW - x.shape[1], 0))) for x in weight.split(counts, -1)]
    return torch.cat(blocks, -1).T.contiguous()


def all_gaussians(scaled: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
    """Return all Gaussians exp(−(x − k)²), k = 0, 1, ..., of each number of each edge, one after the other, (A, M, Σ counts).

    scaled (A, M, N); counts (N,).
    """
    if scaled.device.type == "cpu" and scaled.dtype == torch.float32 and not scaled.requires_grad and min(counts) >= WINDOW:
        first, values = nearest_gaussians(scaled, counts)
        places = first.long()[..., None] + torch.arange(WINDOW)
        return scaled.new_zeros(*scaled.shape[:2], sum(counts)).scatter_(2, places.flatten(2), values.flatten(2))
    each = zip(scaled.split(1, -1), counts, strict=True)
    return torch.cat([torch.exp(-((x - torch.arange(count, dtype=x.dtype, device=x.device)) ** 2)) for x, count in each], -1)
