"""What messages between neighbours are made of, for CPUs: loops that numba compiles.

PyTorch writes every step to memory: what the sources of edges have, its products with the geometry, their sums. Here each edge
takes what it needs from its atoms while that is in the cache; the gradients are written out. Linear layers are applied where rows
are fewest, which their linearity allows: to atoms before the product with the geometry of an edge, (W x_j) · r̂, and to sums of
messages over edges, of an atom or between the same two atoms of the cell, in place of the messages.

Tables of edges have a row of M edges for each of the A atoms, which are their targets; ``source`` (A, M) numbers the atoms at the
other end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable


def by_loops(values: torch.Tensor) -> bool:
    """Return whether values are where loops run. GPUs want few operations in their place."""
    return values.device.type == "cpu"


@lru_cache(maxsize=4)
def _adding(of_source: int, of_target: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the loops of ``add_terms``, forward and backward, for numbers of terms: the compiler unrolls what it knows."""
    from pipeline.loops import compiled

    @compiled
    def forward(out, source, sources, targets, geometry):
        for a in range(out.shape[0]):
            own = targets[a]
            for m in range(out.shape[1]):
                row, other, factor = out[a, m], sources[source[a, m]], geometry[a, m]
                for c in range(out.shape[2]):
                    total = row[c] + own[0, c] + other[0, c]
                    for k in range(of_source):
                        total += factor[k] * other[1 + k, c]
                    for k in range(of_target):
                        total += factor[k] * own[1 + k, c]
                    row[c] = total

    @compiled
    def backward(of_out, source, sources, targets, geometry, of_sources, of_targets, of_geometry):
        for a in range(of_out.shape[0]):
            own, of_own = targets[a], of_targets[a]
            for m in range(of_out.shape[1]):
                j = source[a, m]
                row, factor, other, of_other = of_out[a, m], geometry[a, m], sources[j], of_sources[j]
                for c in range(of_out.shape[2]):
                    of_own[0, c] += row[c]
                    of_other[0, c] += row[c]
                    for k in range(of_source):
                        of_other[1 + k, c] += factor[k] * row[c]
                    for k in range(of_target):
                        of_own[1 + k, c] += factor[k] * row[c]
                if len(of_geometry):
                    for k in range(of_source):
                        for c in range(of_out.shape[2]):
                            of_geometry[a, m, k] += row[c] * other[1 + k, c]
                    for k in range(of_target):
                        for c in range(of_out.shape[2]):
                            of_geometry[a, m, k] += row[c] * own[1 + k, c]

    return forward, backward


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        ctx.loops = _adding(given[1].shape[1] - 1, given[2].shape[1] - 1)
        ctx.mark_dirty(out)
        ctx.save_for_backward(*given)
        ctx.loops[0](out.numpy(), *(x.numpy() for x in given))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        given, of_out = ctx.saved_tensors, of_out.contiguous()
        of_sources, of_targets = (torch.zeros_like(x) for x in given[1:3])
        of_geometry = torch.zeros_like(given[3]) if ctx.needs_input_grad[4] else given[3].new_zeros(0, 0, 0)
        found = of_sources, of_targets, of_geometry
        ctx.loops[1](*(x.numpy() for x in (of_out, *given, *found)))
        return of_out, None, of_sources, of_targets, of_geometry if ctx.needs_input_grad[4] else None


def add_terms(
    out: torch.Tensor, source: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, geometry: torch.Tensor
) -> torch.Tensor:
    """Add to each edge, in place, s_0 + Σ_k g_k s_k of its source and t_0 + Σ_k g_k t_k of its target.

    Args:
        out: (A, M, C).
        source: (A, M).
        sources: (A, 1 + K, C) s.
        targets: (A, 1 + L, C) t.
        geometry: (A, M, G) g, of which the first K count for the sources and the first L for the targets.
    """
    return _Add.apply(out, *(x.contiguous() for x in (source, sources, targets, geometry)))


@dataclass
class AtomPairs:
    """The P pairs of atoms of a cell that edges join; several edges, to several images of the source, may join one pair.

    Attributes:
        of_edge: (A, M) pair of each edge.
        target: (P,) atom.
        source: (P,) atom.
    """

    of_edge: torch.Tensor
    target: torch.Tensor
    source: torch.Tensor


@lru_cache(maxsize=1)
def _pairing() -> Callable[..., int]:
    """Return the loop of ``atom_pairs``, which returns how many pairs it found."""
    from pipeline.loops import compiled

    @compiled
    def number(edge_source, of_edge, target, source, last):
        found = 0
        for a in range(edge_source.shape[0]):
            begin = found
            for m in range(edge_source.shape[1]):
                j = edge_source[a, m]
                if last[j] < begin:
                    target[found], source[found], last[j] = a, j, found
                    found += 1
                of_edge[a, m] = last[j]
        return found

    return number


def atom_pairs(source: torch.Tensor) -> AtomPairs:
    """Return the pairs of atoms that the edges of a table join, whose sources are (A, M)."""
    edges = source.contiguous().numpy()
    of_edge, target, other = np.empty_like(edges), *np.empty((2, edges.size), edges.dtype)
    count = _pairing()(edges, of_edge, target, other, np.full(len(edges), -1, edges.dtype))
    return AtomPairs(*(torch.from_numpy(x) for x in (of_edge, target[:count], other[:count])))


@lru_cache(maxsize=8)
def _summing(ranks: int, dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the loops of ``edge_sums``, forward and backward, for a number of moments."""
    from networks.sigmoid import sigmoid
    from pipeline.loops import compiled

    share = sigmoid(dtype)

    @compiled
    def forward(values, moments, pair, active, of_atoms, of_pairs):
        for a in range(values.shape[0]):
            for m in range(values.shape[1]):
                row, weight = values[a, m], moments[a, m, 0]
                if weight == 0:
                    continue
                for c in range(len(active)):
                    active[c] = row[c] * share(row[c])
                if len(of_pairs):
                    of_pair = of_pairs[pair[a, m]]
                    for c in range(len(active)):
                        of_pair[c] += weight * active[c]
                for k in range(ranks):
                    for c in range(len(active)):
                        of_atoms[a, k, c] += moments[a, m, k] * active[c]

    @compiled
    def backward(of_atoms, of_pairs, values, moments, pair, one, of_values, of_moments):
        for a in range(values.shape[0]):
            for m in range(values.shape[1]):
                row, of_row = values[a, m], of_values[a, m]
                if moments[a, m, 0] == 0 and not len(of_moments):
                    of_row[:] = 0
                    continue
                for c in range(values.shape[2]):
                    total = row[c] * 0
                    for k in range(ranks):
                        total += moments[a, m, k] * of_atoms[a, k, c]
                    of_row[c] = total
                if len(of_moments):
                    for k in range(ranks):
                        for c in range(values.shape[2]):
                            of_moments[a, m, k] += of_atoms[a, k, c] * row[c] * share(row[c])
                if len(of_pairs):
                    of_pair = of_pairs[pair[a, m]]
                    for c in range(values.shape[2]):
                        of_row[c] += moments[a, m, 0] * of_pair[c]
                    if len(of_moments):
                        for c in range(values.shape[2]):
                            of_moments[a, m, 0] += of_pair[c] * row[c] * share(row[c])
                for c in range(values.shape[2]):
                    of_row[c] *= share(row[c]) * (one + row[c] * (one - share(row[c])))

    return forward, backward


class _EdgeSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, moments: torch.Tensor, pair: torch.Tensor, pairs: int) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(values, moments, pair)
        of_atoms = values.new_zeros(len(values), moments.shape[2], values.shape[2])
        of_pairs = values.new_zeros(pairs, values.shape[2])
        given = values, moments, pair, values.new_empty(values.shape[2]), of_atoms, of_pairs
        _summing(moments.shape[2], values.dtype)[0](*(x.numpy() for x in given))
        return of_atoms, of_pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_atoms: torch.Tensor, of_pairs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, moments, pair = ctx.saved_tensors
        of_values = torch.empty_like(values)
        of_moments = torch.zeros_like(moments) if ctx.needs_input_grad[1] else moments.new_zeros(0, 0, 0)
        given = (x.contiguous().numpy() for x in (of_atoms, of_pairs, values, moments, pair))
        one = of_values.numpy().dtype.type(1)
        _summing(moments.shape[2], values.dtype)[1](*given, one, of_values.numpy(), of_moments.numpy())
        return of_values, of_moments if ctx.needs_input_grad[1] else None, None, None


def edge_sums(values: torch.Tensor, moments: torch.Tensor, pairs: AtomPairs | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Σ m_k silu(x) over the edges to each atom, (A, K, C), and Σ m_0 silu(x) over those of each pair of atoms, (P, C).

    Args:
        values: (A, M, C) x.
        moments: (A, M, K) m. An edge whose m_0 is zero counts nowhere.
        pairs: what edges join; None: no sums over them, P = 0.
    """
    of_edge = pairs.of_edge if pairs else torch.empty(0, 0, dtype=torch.long)
    return _EdgeSums.apply(values.contiguous(), moments.contiguous(), of_edge, len(pairs.target) if pairs else 0)


@lru_cache(maxsize=1)
def _carrying() -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the loops of ``carry``, forward and backward, for values whose gates begin at ``first``."""
    from pipeline.loops import compiled

    @compiled
    def forward(out, first, values, target, source, gates):
        for p in range(len(target)):
            own, other, gate = out[target[p]], values[source[p]], gates[p]
            for d in range(out.shape[1]):
                for u in range(out.shape[2]):
                    own[d, u] += gate[first + u] * other[d, u]

    @compiled
    def backward(of_out, first, values, target, source, gates, of_values, of_gates):
        for p in range(len(target)):
            of_own, other, of_other = of_out[target[p]], values[source[p]], of_values[source[p]]
            gate, of_gate = gates[p], of_gates[p]
            for d in range(of_out.shape[1]):
                for u in range(of_out.shape[2]):
                    of_gate[first + u] += other[d, u] * of_own[d, u]
                    of_other[d, u] += gate[first + u] * of_own[d, u]

    return forward, backward


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, target: torch.Tensor, source: torch.Tensor, gates: torch.Tensor, *values: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(target, source, gates, *values)
        given, found, first = [x.numpy() for x in (target, source, gates)], [], 0
        for value in values:
            found.append(torch.zeros_like(value))
            _carrying()[0](found[-1].numpy(), first, value.numpy(), *given)
            first += value.shape[2]
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_found: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        target, source, gates, *values = ctx.saved_tensors
        of_gates, of_values, first = torch.zeros_like(gates), [torch.zeros_like(x) for x in values], 0
        given = [x.numpy() for x in (target, source, gates)]
        for value, of_value, of_out in zip(values, of_values, of_found, strict=True):
            _carrying()[1](of_out.contiguous().numpy(), first, value.numpy(), *given, of_value.numpy(), of_gates.numpy())
            first += value.shape[2]
        return None, None, of_gates, *of_values


def carry(pairs: AtomPairs, gates: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return for each atom the sum over its pairs of g x, with x of the source, for each of the values x.

    Args:
        pairs: P of them.
        gates: (P, ΣU) g, those of all values one after the other.
        values: (A, D, U) each.
    """
    return _Carry.apply(pairs.target, pairs.source, *(x.contiguous() for x in (gates, *values)))
