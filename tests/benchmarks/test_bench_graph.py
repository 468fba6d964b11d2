"""Periodic graphs of a batch of sheets: ours, batched, beside ASE's neighbour list structure by structure, in one run."""

import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list

from crystals.prototypes import PROTOTYPES
from networks import graph

SHEETS = [PROTOTYPES["2H-MX2"].build(*decoration).repeat((3, 3, 1)) for decoration in list(PROTOTYPES["2H-MX2"].decorations())[:32]]
CUTOFF = 6.0


@pytest.mark.benchmark(group="graphs of 32 sheets of 27 atoms, 6 Å")
def test_batched(benchmark):
    torch.set_num_threads(1)
    pos = torch.tensor(np.concatenate([a.positions for a in SHEETS]))
    cell = torch.tensor(np.array([a.cell.array for a in SHEETS]))
    batch = torch.repeat_interleave(torch.arange(len(SHEETS)), torch.tensor([len(a) for a in SHEETS]))
    edge_index, _ = benchmark(graph.radius_graph_pbc, pos, cell, batch, CUTOFF)
    assert edge_index.shape[1] == sum(len(neighbor_list("i", a, CUTOFF)) for a in SHEETS)


@pytest.mark.benchmark(group="graphs of 32 sheets of 27 atoms, 6 Å")
def test_ase_one_by_one(benchmark):
    benchmark(lambda: [neighbor_list("ijS", atoms, CUTOFF) for atoms in SHEETS])
