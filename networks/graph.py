"""Periodic neighbour graphs of batches of structures, and sums over them."""

from __future__ import annotations

import torch

from networks.periodic_pairs import nearest_shells, pairs_within

SHELL_TOLERANCE = 0.01  # Å, neighbours closer than this in distance belong to one shell


def radius_graph_pbc(
    pos: torch.Tensor,
    cell: torch.Tensor,
    batch: torch.Tensor,
    cutoff: float | torch.Tensor,
    max_neighbors: int | None = None,
    pbc: tuple[bool, bool, bool] = (True, True, False),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all directed edges j -> i of a batch of periodic structures, with image offsets.

    The vector of an edge is ``pos[j] + offset @ cell - pos[i]`` (see ``edge_vectors``). Each pair of an atom and an image within
    the cutoff appears exactly once per direction, an atom's own images included. Exact for skewed cells and unwrapped positions.

    Args:
        pos: (N, 3) Å.
        cell: (B, 3, 3) Å, row vectors, full rank.
        batch: (N,) structure of each atom, sorted.
        cutoff: Å, one number or (B,).
        max_neighbors: number of edges per target, nearest first; a shell of equal distances stays whole, so that no symmetry is
            broken. None: all within the cutoff.
        pbc: which lattice vectors are periodic.

    Returns:
        edge_index (2, E), row 0 the source j and row 1 the target i, sorted by target; and offsets (E, 3) in ``pos.dtype``. Both
        are without gradients, which flow through ``edge_vectors``.
    """
    with torch.no_grad():
        device = pos.device
        num_graphs = cell.shape[0]
        sizes = torch.bincount(batch, minlength=num_graphs)
        first = torch.cumsum(sizes, 0) - sizes
        cutoffs = torch.as_tensor(cutoff, dtype=pos.dtype, device=device).expand(num_graphs)
        # |df_k + o_k| <= cutoff |b*_k| bounds the image offsets; starting from -round(df) keeps the range smallest.
        reciprocal = torch.linalg.inv(cell).transpose(1, 2)  # rows b*_k, without 2π
        periodic = torch.tensor(pbc, device=device)
        reach = torch.floor(cutoffs[:, None] * reciprocal.norm(dim=-1) + 0.5 + 1e-9).long() * periodic
        frac = torch.einsum("nk,nck->nc", pos, reciprocal[batch])
        precise = {x.dtype for x in (pos, cell, frac)} in ({torch.float32}, {torch.float64})
        if device.type == "cpu" and precise and bool(torch.isfinite(frac).all()):
            given = (x.contiguous().numpy() for x in (pos, frac, cell, first, sizes, cutoffs, reach, periodic))
            i, j, offsets, distances = map(torch.from_numpy, pairs_within(*given))
            if max_neighbors is not None:
                nearest = torch.from_numpy(nearest_shells(i.numpy(), distances.numpy(), max_neighbors, SHELL_TOLERANCE))
                i, j, offsets = (x.index_select(0, nearest) for x in (i, j, offsets))
            return torch.stack([j, i]), offsets

        i, j, offsets, distances = _pairs_by_operations(pos, frac, cell, batch, cutoffs, reach, periodic)
        if max_neighbors is not None:
            nearest = _nearest_shells(i, distances, pos.shape[0], max_neighbors)
            i, j, offsets = i[nearest], j[nearest], offsets[nearest]
        return torch.stack([j, i]), offsets


def _pairs_by_operations(
    pos: torch.Tensor,
    frac: torch.Tensor,
    cell: torch.Tensor,
    batch: torch.Tensor,
    cutoffs: torch.Tensor,
    reach: torch.Tensor,
    periodic: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what ``pairs_within`` does, on any device, in the same order; arguments as there, batch (N,) sorted."""
    sizes = torch.bincount(batch, minlength=cell.shape[0])
    first = torch.cumsum(sizes, 0) - sizes
    # Pairs (target i, source j) inside each graph.
    sources_per_target = sizes[batch]
    i = torch.repeat_interleave(torch.arange(pos.shape[0], device=pos.device), sources_per_target)
    j = first[batch[i]] + _ranks(sources_per_target)

    base = -torch.round(frac[j] - frac[i]) * periodic

    widths = 2 * reach + 1  # (B, 3)
    images_per_graph = widths.prod(1)
    graph_of_pair = batch[i]
    repeats = images_per_graph[graph_of_pair]
    pair = torch.repeat_interleave(torch.arange(i.shape[0], device=pos.device), repeats)
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
    return i, j, offsets, distances


def _nearest_shells(target: torch.Tensor, distances: torch.Tensor, num_atoms: int, max_neighbors: int) -> torch.Tensor:
    """Return the indices of the nearest edges, sorted by target and distance: ``max_neighbors`` per target, the last shell whole.

    target (E,), distances (E,) Å.
    """
    order = torch.argsort(distances, stable=True)
    order = order[torch.argsort(target[order], stable=True)]
    target, distances = target[order], distances[order]
    degree = torch.bincount(target, minlength=num_atoms)
    start = torch.cumsum(degree, 0) - degree
    last = start + degree.clamp(max=max_neighbors) - 1
    limit = torch.full((num_atoms,), torch.inf, dtype=distances.dtype, device=distances.device)
    occupied = degree > 0
    limit[occupied] = distances[last[occupied]] + SHELL_TOLERANCE
    return order[distances <= limit[target]]


def _ranks(counts: torch.Tensor) -> torch.Tensor:
    """Return 0..count-1 for each entry of ``counts``, concatenated."""
    total = int(counts.sum())
    start = torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
    return torch.arange(total, device=counts.device) - start


def edge_vectors(
    pos: torch.Tensor, cell: torch.Tensor, batch: torch.Tensor, edge_index: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Return the vectors (E, 3) in Å from the target i to the source j; differentiable in ``pos`` and ``cell``."""
    source, target = edge_index
    return pos[source] + torch.einsum("ek,ekc->ec", offsets, cell[batch[target]]) - pos[target]


def reverse_edges(edge_index: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return, for each edge j -> i, the index of the edge i -> j between the same two images, (E,); E where there is none.

    edge_index (2, E) and offsets (E, 3) as ``radius_graph_pbc`` returns them.
    """
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
    position = torch.searchsorted(ordered, back).clamp(max=max(len(back) - 1, 0))
    return torch.where(ordered[position] == back, order[position], len(back))


def group_slots(index: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, int]:
    """Assign each entry its own cell of a (num_groups, depth) table, in the row of its group.

    Args:
        index: (E,) group of each entry.
        num_groups: number of rows.

    Returns:
        Slots (E,), indices into the flattened table, and depth, the size of the largest group.
    """
    order = torch.argsort(index, stable=True)
    counts = torch.bincount(index, minlength=num_groups)
    depth = max(int(counts.max()), 1) if len(counts) else 1
    rank = torch.empty_like(index)
    rank[order] = _ranks(counts)
    return index * depth + rank, depth


def edge_table(edge_index: torch.Tensor, offsets: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the edges of ``radius_graph_pbc`` as a table with a row for each of ``count`` atoms, the target.

    Returns:
        Sources (A, M), offsets (A, M, 3), and which entries are edges (A, M) bool; others are from an atom to itself.
    """
    source, target = edge_index
    degrees = torch.bincount(target, minlength=count)
    rank = torch.arange(max(int(degrees.max()), 1), device=source.device)
    is_edge = rank < degrees[:, None]
    place = (degrees.cumsum(0) - degrees)[:, None] + rank  # edges are sorted by target
    place = place.masked_fill(~is_edge, len(source)).flatten()
    own = torch.arange(count, device=source.device)[:, None]
    table = torch.cat([source, source.new_zeros(1)]).index_select(0, place).view(is_edge.shape)
    steps = torch.cat([offsets, offsets.new_zeros(1, 3)]).index_select(0, place).view(*is_edge.shape, 3)
    return torch.where(is_edge, table, own), steps, is_edge


def scatter_sum(values: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sums of values (N, ...) over the groups ``index`` (N,): (count, ...).

    As ``torch_geometric.utils.scatter``, whose package takes seconds to import; so do the next two.
    """
    return values.new_zeros(count, *values.shape[1:]).index_add(0, index, values)


def scatter_max(values: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """Return the largest of values (N, ...) in each group ``index`` (N,): (count, ...), zero where a group is empty."""
    largest = values.new_zeros(count, *values.shape[1:])
    return largest.scatter_reduce_(0, _expanded(index, values), values, "amax", include_self=False)


def graph_mean(values: torch.Tensor, batch: torch.Tensor, num_graphs: int) -> torch.Tensor:
    """Return the mean of node values over each graph: (A, ...) -> (B, ...), zero where a graph is empty."""
    sizes = torch.bincount(batch, minlength=num_graphs).clamp(min=1)
    return scatter_sum(values, batch, num_graphs) / sizes.view(-1, *[1] * (values.dim() - 1))


def _expanded(index: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return index.view(-1, *[1] * (values.dim() - 1)).expand_as(values)


def center(values: torch.Tensor, batch: torch.Tensor, num_graphs: int) -> torch.Tensor:
    """Return node values (A, ...) minus their mean over the graph."""
    return values - graph_mean(values, batch, num_graphs).index_select(0, batch)
