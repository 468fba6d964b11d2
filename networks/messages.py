"""What messages between neighbours are made of, for CPUs: loops that numba compiles.

PyTorch writes every step to memory: what the sources of edges have, its products with the geometry, their sums. Here each edge
takes what it needs from its atoms while that is in the cache; the gradients are written out. A linear layer W of products (x_j · r̂)
is applied to the atoms before, (W x_j) · r̂, which are a twentieth of the edges.

Tables of edges have a row of M edges for each of the A atoms, which are their targets; ``source`` (A, M) numbers the atoms at the
other end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable


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


@lru_cache(maxsize=1)
def _carrying() -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the loops of ``carry``, forward and backward, for values whose gates begin at ``first``."""
    from pipeline.loops import compiled

    @compiled
    def forward(out, first, values, source, gates, weights):
        for a in range(source.shape[0]):
            for m in range(source.shape[1]):
                weight, other = weights[a, m], values[source[a, m]]
                if weight:
                    for d in range(out.shape[1]):
                        for u in range(out.shape[2]):
                            out[a, d, u] += weight * gates[a, m, first + u] * other[d, u]

    @compiled
    def backward(of_out, first, values, source, gates, weights, of_values, of_gates, of_weights):
        for a in range(source.shape[0]):
            for m in range(source.shape[1]):
                weight, other, of_other = weights[a, m], values[source[a, m]], of_values[source[a, m]]
                for d in range(of_out.shape[1]):
                    for u in range(of_out.shape[2]):
                        of_gates[a, m, first + u] += weight * other[d, u] * of_out[a, d, u]
                        of_other[d, u] += weight * gates[a, m, first + u] * of_out[a, d, u]
                if len(of_weights):
                    for d in range(of_out.shape[1]):
                        for u in range(of_out.shape[2]):
                            of_weights[a, m] += gates[a, m, first + u] * other[d, u] * of_out[a, d, u]

    return forward, backward


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, source: torch.Tensor, gates: torch.Tensor, weights: torch.Tensor, *values: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(source, gates, weights, *values)
        edges, found, first = [x.numpy() for x in (source, gates, weights)], [], 0
        for value in values:
            found.append(torch.zeros_like(value))
            _carrying()[0](found[-1].numpy(), first, value.numpy(), *edges)
            first += value.shape[2]
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_found: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        source, gates, weights, *values = ctx.saved_tensors
        of_gates, of_values, first = torch.zeros_like(gates), [torch.zeros_like(x) for x in values], 0
        of_weights = torch.zeros_like(weights) if ctx.needs_input_grad[2] else weights.new_zeros(0, 0)
        edges, filled = [x.numpy() for x in (source, gates, weights)], [of_gates.numpy(), of_weights.numpy()]
        for value, of_value, of_out in zip(values, of_values, of_found, strict=True):
            given = of_out.contiguous().numpy(), first, value.numpy()
            _carrying()[1](*given, *edges, of_value.numpy(), *filled)
            first += value.shape[2]
        return None, of_gates, of_weights if ctx.needs_input_grad[2] else None, *of_values


def carry(source: torch.Tensor, gates: torch.Tensor, weights: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return Σ over the edges to each atom of w g x, with x of the source, for each of the values x.

    Args:
        source: (A, M).
        gates: (A, M, ΣU) g, those of all values one after the other.
        weights: (A, M) w.
        values: (A, D, U) each.
    """
    return _Carry.apply(*(x.contiguous() for x in (source, gates, weights, *values)))
