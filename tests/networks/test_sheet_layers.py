"""Messages between the atoms of sheets: tables and sums over them against one edge after the other."""

from __future__ import annotations

import pytest
import torch

from models import DenoiserModelConfig, DenoisingEGNN
from networks.graph import edge_table, edge_vectors, radius_graph_pbc
from networks.sheet_layers import NEIGHBOURS, SheetEdges, SheetInteraction


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return DenoisingEGNN(DenoiserModelConfig(hidden_channels=8, vector_channels=3, num_layers=2, max_neighbors=6)).double().eval()


@pytest.fixture(scope="module")
def encoded(model):
    """Return three sheets of one, two and five atoms, so that atoms have different numbers of neighbours."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    batch = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])
    cell = torch.eye(2, dtype=torch.float64) * torch.tensor([2.5, 3.5, 5.0])[:, None, None] + 0.5 * draw(3, 2, 2)
    numbers = torch.tensor([6, 42, 16, 41, 16, 34, 41, 9])
    return model.encode(numbers, draw(8, 2), 3 * draw(8), cell, batch, torch.tensor([1, 300, 900]))


def sums_by_edges(layer: SheetInteraction, scalars, vectors, odd, edges: SheetEdges):
    """Return the sums of messages to the atoms, each edge on its own, as the equations of PaiNN have them."""
    x, message_of = layer.edge.norm(scalars), layer.edge
    totals = [torch.zeros_like(scalars), torch.zeros_like(vectors), torch.zeros_like(odd)]
    for target in range(len(scalars)):
        for k in torch.nonzero(edges.envelope[target]).flatten().tolist():
            source, direction, rise = edges.source[target, k], edges.direction[target, k], edges.rise[target, k]
            along, above = direction @ vectors[source], odd[source] * rise
            edge = message_of.from_edge(torch.cat([edges.features[target, k], along, above]))
            hidden = torch.nn.functional.silu(message_of.from_source(x[source]) + message_of.from_target(x[target]) + edge)
            gates = layer.gates(hidden) * edges.envelope[target, k]
            message, keep, point, keep_odd, gate_rise = torch.split(gates, layer.sizes)
            totals[0][target] += message
            totals[1][target] += vectors[source] * keep + direction[:, None] * point
            totals[2][target] += odd[source] * keep_odd + rise * gate_rise
    return [total * NEIGHBOURS for total in totals]


def test_sums_are_those_of_single_edges(model, encoded):
    layer, edges = model.trunk[1], encoded.edges
    filled = (edges.envelope == 0).sum(1)
    assert filled.min() == 0 < filled.max(), "some rows are filled up"
    values = encoded.scalars, encoded.vectors, encoded.odd
    with torch.no_grad():
        found = layer.sums(*values, edges)
        for own, expected in zip(found, sums_by_edges(layer, *values, edges), strict=True):
            torch.testing.assert_close(own, expected)
            assert expected.abs().max() > 1e-3


def test_gpus_compute_the_same_sums(model, encoded):
    layer, parameters = model.trunk[1], [*model.trunk[1].edge.parameters(), *model.trunk[1].gates.parameters()]
    given = [x.detach().requires_grad_() for x in (encoded.scalars, encoded.vectors, encoded.odd)]
    names = ("direction", "rise", "scaled", "envelope")
    geometry = [getattr(encoded.edges, name).detach().requires_grad_() for name in names]
    found = []
    for gathered in (False, True):
        edges = SheetEdges(
            encoded.edges.source, *geometry[:3], encoded.edges.counts, geometry[3]
        )  # new ones, because moments are kept
        sums = (layer.gathered_sums if gathered else layer.sums)(*given, edges)
        total = sum((x * torch.arange(x.numel()).view(x.shape).cos()).sum() for x in sums)
        found.append((*sums, *torch.autograd.grad(total, [*given, *geometry, *parameters])))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected)
        assert expected.abs().max() > 1e-4


def test_a_table_has_every_edge_once():
    generator = torch.Generator().manual_seed(5)
    batch = torch.tensor([0, 0, 0, 1])
    pos = torch.rand(4, 3, generator=generator, dtype=torch.float64) * 4
    cell = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1) * torch.tensor([4.0, 2.5])[:, None, None]
    edge_index, offsets = radius_graph_pbc(pos, cell, batch, 4.0)
    source, steps, is_edge = edge_table(edge_index, offsets, 4)
    assert int(is_edge.sum()) == edge_index.shape[1] and source.shape[1] == int(torch.bincount(edge_index[1]).max())
    vectors = (pos[source] - pos[:, None] + steps @ cell[batch])[is_edge]
    torch.testing.assert_close(vectors, edge_vectors(pos, cell, batch, edge_index, offsets))
    assert bool((source == torch.arange(4)[:, None])[~is_edge].all()) and not steps[~is_edge].any()
    assert not is_edge.all()
