"""The periodic neighbour graph against ASE neighbour lists and brute force."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import graphene, mx2
from ase.neighborlist import neighbor_list

import geo_utils as geo
from networks import graph
from networks.graph import edge_vectors, group_slots, radius_graph_pbc, reverse_edges


def molybdenum_disulfide() -> Atoms:
    return geo.standard_sheet(mx2("MoS2", a=3.18, thickness=3.13, vacuum=10))


def random_structure(rng: np.random.Generator, pbc: tuple[bool, bool, bool]) -> Atoms:
    while True:
        cell = np.diag(rng.uniform(2.5, 7, 3)) + rng.normal(0, 1.2, (3, 3))
        if abs(np.linalg.det(cell)) > 20:
            break
    n = int(rng.integers(1, 6))
    return Atoms(numbers=rng.integers(1, 50, n), positions=rng.normal(0, 6, (n, 3)), cell=cell, pbc=pbc)


def edge_set(atoms: Atoms, cutoff: float) -> set[tuple[int, ...]]:
    i, j, offsets = neighbor_list("ijS", atoms, cutoff)
    return {(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, offsets, strict=True)}


@pytest.mark.parametrize("pbc", [(True, True, False), (True, True, True), (True, False, True), (False, False, False)])
def test_batched_graph_equals_ase_on_skewed_cells(pbc):
    rng = np.random.default_rng(3)
    structures = [random_structure(rng, pbc) for _ in range(12)]
    pos = torch.tensor(np.concatenate([a.positions for a in structures]))
    cell = torch.tensor(np.array([a.cell.array for a in structures]))
    batch = torch.repeat_interleave(torch.arange(12), torch.tensor([len(a) for a in structures]))
    edge_index, offsets = radius_graph_pbc(pos, cell, batch, 5.0, pbc=pbc)
    first = np.cumsum([0, *(len(a) for a in structures)])
    for number, atoms in enumerate(structures):
        mask = batch[edge_index[1]] == number
        got = [
            (int(i) - first[number], int(j) - first[number], *map(int, o))
            for (j, i), o in zip(edge_index[:, mask].T.tolist(), offsets[mask].tolist(), strict=True)
        ]
        assert len(got) == len(set(got)), "an edge appears twice"
        assert set(got) == edge_set(atoms, 5.0)
    distances = edge_vectors(pos, cell, batch, edge_index, offsets).norm(dim=1)
    assert (distances <= 5.0).all() and (distances > 0).all()


@pytest.mark.parametrize("max_neighbors", [None, 1, 7, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gpus_find_the_same_edges(max_neighbors, dtype, monkeypatch):
    """The loops for CPUs against the operations for GPUs; rounding decides the order of edges of one length."""
    rng = np.random.default_rng(5)
    pbc = (True, True, False)
    structures = [random_structure(rng, pbc) for _ in range(9)]
    pos = torch.tensor(np.concatenate([a.positions for a in structures])).to(dtype)
    cell = torch.tensor(np.array([a.cell.array for a in structures])).to(dtype)
    batch = torch.repeat_interleave(torch.arange(9), torch.tensor([len(a) for a in structures]))
    cutoff = torch.linspace(4.0, 9.0, 9, dtype=dtype)
    given = pos, cell, batch, cutoff, max_neighbors, pbc
    by_loops = radius_graph_pbc(*given)
    assert len(by_loops[1]) > 200 or max_neighbors is not None
    asked = []
    monkeypatch.setattr(graph, "pairs_within", lambda *_: asked.append(1))
    monkeypatch.setattr(torch, "isfinite", lambda x: torch.zeros(1, dtype=torch.bool))
    by_operations = radius_graph_pbc(*given)
    assert not asked
    rows = [torch.cat([edges.T.to(offsets.dtype), offsets], 1) for edges, offsets in (by_loops, by_operations)]
    assert torch.equal(*(edges[1] for edges, _ in (by_loops, by_operations))) and rows[0].dtype == rows[1].dtype == dtype
    assert sorted(map(tuple, rows[0].tolist())) == sorted(map(tuple, rows[1].tolist()))
    if max_neighbors is None:
        assert torch.equal(*rows)


def test_positions_that_are_not_finite_have_no_edges():
    pos, cell = torch.tensor([[0.0, 0.0, 0.0], [1.0, float("nan"), 0.0]]), 3.0 * torch.eye(3)[None]
    edge_index, _ = radius_graph_pbc(pos, cell, torch.zeros(2, dtype=torch.long), 2.9)
    assert edge_index.shape == (2, 0)


def test_graph_takes_a_cutoff_per_structure():
    atoms = molybdenum_disulfide()
    pos = torch.tensor(np.tile(atoms.positions, (2, 1)))
    cell = torch.tensor(np.array([atoms.cell.array] * 2))
    batch = torch.tensor([0] * 3 + [1] * 3)
    edge_index, _ = radius_graph_pbc(pos, cell, batch, torch.tensor([3.0, 5.0], dtype=pos.dtype))
    assert int((edge_index[1] < 3).sum()) == len(edge_set(atoms, 3.0))
    assert int((edge_index[1] >= 3).sum()) == len(edge_set(atoms, 5.0))


def test_max_neighbors_keeps_whole_shells():
    atoms = geo.standard_sheet(graphene(vacuum=10))
    pos, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)[None]
    batch = torch.zeros(2, dtype=torch.long)
    for wanted, kept in ((1, 3), (3, 3), (4, 9), (9, 9), (10, 12)):  # shells of graphene: 3, 6, 3, 6
        edge_index, _ = radius_graph_pbc(pos, cell, batch, 6.0, wanted)
        assert torch.bincount(edge_index[1]).tolist() == [kept, kept]


def test_edge_vectors_are_differentiable():
    atoms = molybdenum_disulfide()
    pos = torch.tensor(atoms.positions, requires_grad=True)
    cell = torch.tensor(atoms.cell.array[None], requires_grad=True)
    batch = torch.zeros(3, dtype=torch.long)
    edge_index, offsets = radius_graph_pbc(pos, cell, batch, 4.0)
    function = lambda p, c: edge_vectors(p, c, batch, edge_index, offsets)  # noqa: E731
    assert torch.autograd.gradcheck(function, (pos, cell))


@pytest.mark.parametrize("max_neighbors", [None, 4])
def test_reverse_edges_equal_brute_force(max_neighbors):
    """With a limit on neighbours the graph is directed: some edges have no way back."""
    atoms = molybdenum_disulfide()
    atoms.rattle(0.2, seed=3)
    pos, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)[None]
    edge_index, offsets = radius_graph_pbc(pos, cell, torch.zeros(len(atoms), dtype=torch.long), 4.5, max_neighbors)
    edges = [(int(j), int(i), *map(int, o)) for (j, i), o in zip(edge_index.T, offsets, strict=True)]
    expected = [edges.index(back) if (back := (i, j, -a, -b, -c)) in edges else len(edges) for j, i, a, b, c in edges]
    assert reverse_edges(edge_index, offsets).tolist() == expected
    assert (len(edges) in expected) == (max_neighbors is not None)


def test_group_slots_are_rows_of_a_table():
    index = torch.tensor([2, 0, 2, 2, 4, 0])
    slots, depth = group_slots(index, 6)
    assert depth == 3 and len(set(slots.tolist())) == len(index)
    assert (slots // depth).tolist() == index.tolist() and bool((slots % depth < torch.bincount(index)[index]).all())
