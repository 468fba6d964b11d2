"""The loops over edges against sums by einsum, and their gradients against finite differences."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import silu

from networks.inference_messages import message_sums, turned_edges
from networks.messages import add_terms, atom_pairs, carry, edge_sums
from networks.nearest_gaussians import all_gaussians, nearest_gaussians, rows_of_gaussians
from networks.sigmoid import sigmoid
from pipeline.files import PROJECT_DIR

ATOMS, EDGES, CHANNELS = 5, 7, 8


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.fixture
def source() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, ATOMS, (ATOMS, EDGES))


@pytest.mark.parametrize(("of_source", "of_target"), [(3, 0), (9, 9), (0, 2)])
def test_terms_of_both_atoms_are_added(source, of_source, of_target):
    largest = max(of_source, of_target)
    given = draw(ATOMS, EDGES, CHANNELS), draw(ATOMS, 1 + of_source, CHANNELS), draw(ATOMS, 1 + of_target, CHANNELS)
    given = *given, draw(ATOMS, EDGES, largest)

    def added(out, sources, targets, geometry):
        return add_terms(out.clone(), source, sources, targets, geometry)

    out, sources, targets, geometry = given
    expected = out + sources[source][:, :, 0] + targets[:, None, 0]
    expected = expected + torch.einsum("amk,amkc->amc", geometry[..., :of_source], sources[source][:, :, 1:])
    expected = expected + torch.einsum("amk,akc->amc", geometry[..., :of_target], targets[:, 1:])
    torch.testing.assert_close(added(*given), expected)
    assert gradcheck(added, given)
    fixed = *given[:3], geometry.detach()  # the gradient of the geometry is left out where nobody asks for it
    assert gradcheck(added, fixed)


def test_pairs_are_what_edges_join(source):
    pairs = atom_pairs(source)
    joined = {(a, j) for a in range(ATOMS) for j in source[a].tolist()}
    assert len(joined) < source.numel(), "some pairs are joined twice"
    assert set(zip(pairs.target.tolist(), pairs.source.tolist(), strict=True)) == joined and len(pairs.target) == len(joined)
    assert torch.equal(pairs.source[pairs.of_edge], source)
    assert torch.equal(pairs.target[pairs.of_edge], torch.arange(ATOMS)[:, None].expand(-1, EDGES))


@pytest.mark.parametrize("with_pairs", [True, False])
def test_messages_are_summed_over_the_edges_of_atoms_and_of_pairs(source, with_pairs):
    values, moments, pairs = draw(ATOMS, EDGES, CHANNELS), draw(ATOMS, EDGES, 4), atom_pairs(source) if with_pairs else None
    none = torch.rand(ATOMS, EDGES) < 0.3
    filled = moments.masked_fill(none[..., None], 0.0)
    assert none.any() and not none.all(), "some edges do not count"
    of_atoms, of_pairs = edge_sums(values, filled, pairs)
    torch.testing.assert_close(of_atoms, torch.einsum("amk,amc->akc", filled, silu(values)))
    if with_pairs:
        each = (filled[..., :1] * silu(values)).flatten(0, 1)
        expected = torch.zeros(len(pairs.target), CHANNELS, dtype=each.dtype).index_add(0, pairs.of_edge.flatten(), each)
        torch.testing.assert_close(of_pairs, expected)
    else:
        assert of_pairs.shape == (0, CHANNELS)
    assert gradcheck(lambda x: edge_sums(x, filled.detach(), pairs), (values,))
    assert gradcheck(lambda m: edge_sums(values.detach(), m, pairs), (moments,))


def test_values_of_the_sources_are_carried(source):
    pairs = atom_pairs(source)
    gates, vectors, tensors = draw(len(pairs.target), 6), draw(ATOMS, 3, 4), draw(ATOMS, 6, 2)
    found = carry(pairs, gates, vectors, tensors)
    for own, values, place in zip(found, (vectors, tensors), (slice(0, 4), slice(4, 6)), strict=True):
        each = gates[:, None, place] * values[pairs.source]
        torch.testing.assert_close(own, torch.zeros_like(values).index_add(0, pairs.target, each))
    assert gradcheck(lambda gates, *values: carry(pairs, gates, *values), (gates, vectors, tensors))


@pytest.mark.parametrize("with_pairs", [True, False])
def test_without_gradients_one_loop_finds_the_same_sums(source, with_pairs):
    pairs, counts = atom_pairs(source) if with_pairs else None, (9, 4)
    lengths, weight = 4 * torch.rand(ATOMS, ATOMS, 2), torch.randn(CHANNELS, sum(counts))
    scaled = (lengths + lengths.transpose(0, 1))[torch.arange(ATOMS)[:, None], source]
    sources, targets, geometry = torch.randn(ATOMS, 4, CHANNELS), torch.randn(ATOMS, 1, CHANNELS), torch.randn(ATOMS, EDGES, 3)
    counted = (torch.rand(ATOMS, EDGES) > 0.3).float()
    moments = torch.cat([counted[..., None], torch.randn(ATOMS, EDGES, 3)], -1)
    turned, own = turned_edges(source, scaled, counted), torch.arange(source.numel()).view(source.shape)
    assert (turned <= own).all() and 0 < (turned < own).sum() < own.numel()
    there = torch.arange(ATOMS)[:, None].expand(-1, EDGES).flatten()[turned]
    assert torch.equal(there[turned < own], source[turned < own])
    assert torch.equal(scaled.flatten(0, 1)[turned], scaled) and torch.equal(counted.flatten()[turned], counted)
    given = rows_of_gaussians(weight, counts), source, sources, targets, geometry, moments, pairs
    found = message_sums(nearest_gaussians(scaled, counts), turned, *given)
    hidden = add_terms(all_gaussians(scaled, counts) @ weight.T, source, sources, targets, geometry)
    for own, expected in zip(found, edge_sums(hidden, moments, pairs), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    assert found[0].abs().max() > 1 and found[1].shape == (len(pairs.target) if with_pairs else 0, CHANNELS)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 2e-7), (torch.float64, 1e-15)])
def test_the_logistic_function(dtype, largest):
    x = torch.linspace(-40.0, 40.0, 20001, dtype=dtype)
    share = sigmoid(dtype)
    found = torch.tensor([share(value) for value in x.numpy()], dtype=dtype)
    assert (found - torch.sigmoid(x.double())).abs().max() < largest


def test_a_second_process_compiles_nothing(tmp_path):
    """Loops that call a compiled function would be compiled by every process, and kept in a file of its own."""
    code = (
        "import torch\nfrom networks.messages import edge_sums\n"
        "from networks.inference_messages import message_sums, turned_edges\n"
        "from networks.nearest_gaussians import nearest_gaussians\n"
        "edges, x, atoms = torch.zeros(2, 3, dtype=torch.long), torch.rand(2, 3, 4), torch.rand(2, 4, 4)\n"
        "edge_sums(x.requires_grad_(), x.detach())[0].sum().backward(); x = x.detach()\n"
        "given = nearest_gaussians(x, (8,) * 4), turned_edges(edges, x, x[..., 0]), torch.rand(32, 4)\n"
        "message_sums(*given, edges, atoms, atoms[:, :1], x[..., :3], x)"
    )
    kept = []
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT_DIR, check=True, env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        )
        kept.append(sorted(path.name for path in tmp_path.rglob("*.nbc")))
    assert len(kept[0]) == 5 and kept[0] == kept[1]
