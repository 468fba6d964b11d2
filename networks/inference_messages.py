"""Sums of messages without gradients, for CPUs in single precision: everything of an edge in one loop, which numba compiles.

The hidden state of an edge stays in the cache from its first term to the sums that it belongs to. What depends on the lengths of
an edge alone is computed once for the two directions between two atoms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from networks.messages import AtomPairs
from networks.nearest_gaussians import WINDOW


@lru_cache(maxsize=1)
def _matching() -> Callable[..., None]:
    """Return the loop of ``turned_edges``."""
    from pipeline.loops import compiled

    @compiled
    def match(source, scaled, weights, turned):
        most = source.shape[1]
        for a in range(len(source)):
            for m in range(most):
                turned[a, m], j = a * most + m, source[a, m]
                for k in range(most if j < a else m if j == a else 0):
                    equal = source[j, k] == a and weights[j, k] == weights[a, m]
                    for b in range(scaled.shape[2]):
                        equal = equal and scaled[j, k, b] == scaled[a, m, b]
                    if equal:
                        turned[a, m] = j * most + k
                        break

    return match


def turned_edges(source: torch.Tensor, scaled: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return for each edge i -> j the place in the table of an earlier edge j -> i of equal lengths, or its own, (A, M).

    Args:
        source: (A, M).
        scaled: (A, M, N) lengths.
        weights: (A, M), which are equal too.
    """
    given = [x.detach().contiguous().numpy() for x in (source, scaled, weights)]
    turned = np.empty(source.shape, np.int32)
    _matching()(*given, turned)
    return torch.from_numpy(turned)


@lru_cache(maxsize=4)
def _passing(of_source: int, ranks: int) -> Callable[..., None]:
    """Return the loop of ``message_sums`` for numbers of terms and moments: the compiler unrolls what it knows."""
    from networks.sigmoid import sigmoid
    from pipeline.loops import compiled

    share = sigmoid(torch.float32)

    @compiled
    def passed(first, values, turned, rows, source, sources, targets, geometry, moments, pair, products, of_atoms, of_pairs):
        channels, edge = rows.shape[1], -1
        hidden = np.empty(channels, np.float32)
        for a in range(source.shape[0]):
            own = targets[a, 0]
            for m in range(source.shape[1]):
                weight, edge = moments[a, m, 0], edge + 1
                if weight == 0:
                    continue
                product = products[turned[a, m]]
                if turned[a, m] == edge:
                    for c in range(channels):
                        hidden[c] = 0
                    for b in range(first.shape[2]):
                        value, row = values[a, m, b], rows[first[a, m, b] : first[a, m, b] + WINDOW]
                        for c in range(channels):
                            total = hidden[c]
                            for k in range(WINDOW):
                                total += value[k] * row[k, c]
                            hidden[c] = total
                    for c in range(channels):
                        product[c] = hidden[c]
                other, factor = sources[source[a, m]], geometry[a, m]
                for c in range(channels):
                    total = product[c] + own[c] + other[0, c]
                    for k in range(of_source):
                        total += factor[k] * other[1 + k, c]
                    hidden[c] = total
                for c in range(channels):
                    hidden[c] *= share(hidden[c])
                if len(of_pairs):
                    of_pair = of_pairs[pair[a, m]]
                    for c in range(channels):
                        of_pair[c] += weight * hidden[c]
                for k in range(ranks):
                    of_atom, moment = of_atoms[a, k], moments[a, m, k]
                    for c in range(channels):
                        of_atom[c] += moment * hidden[c]

    return passed


def message_sums(
    gaussians: tuple[torch.Tensor, torch.Tensor],
    turned: torch.Tensor,
    rows: torch.Tensor,
    source: torch.Tensor,
    sources: torch.Tensor,
    targets: torch.Tensor,
    geometry: torch.Tensor,
    moments: torch.Tensor,
    pairs: AtomPairs | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``edge_sums`` does of products of Gaussians to which ``add_terms`` has added s_0 + Σ_k g_k s_k and t.

    Args:
        gaussians: as ``nearest_gaussians`` returns them.
        turned: (A, M), as ``turned_edges`` returns them.
        rows: (R, C), as ``rows_of_gaussians`` returns them.
        source: (A, M).
        sources: (A, 1 + K, C) s.
        targets: (A, 1, C) t.
        geometry: (A, M, K) g.
        moments: (A, M, L). An edge whose first one is zero counts nowhere.
        pairs: what edges join; None: no sums over them, P = 0.
    """
    of_edge = pairs.of_edge if pairs else torch.empty(0, 0, dtype=torch.long)
    of_atoms = targets.new_zeros(len(targets), moments.shape[2], targets.shape[2])
    of_pairs = targets.new_zeros(len(pairs.target) if pairs else 0, targets.shape[2])
    products = targets.new_empty(source.numel(), rows.shape[1])
    given = (*gaussians, turned, rows, source, sources, targets, geometry, moments, of_edge, products)
    _passing(sources.shape[1] - 1, moments.shape[2])(*(x.contiguous().numpy() for x in given), of_atoms.numpy(), of_pairs.numpy())
    return of_atoms, of_pairs
