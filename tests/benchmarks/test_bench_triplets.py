"""DimeNet++ with gradients, one interaction and the whole: triplets summed per atom (ours) and one by one (PyG's), in one run."""

import copy

import pytest
import torch
from ase.build import add_adsorbate, mx2
from pyg_blocks import pyg_interaction
from torch import nn

from energetics.hydrogen import batch_atoms
from models import DimeNetPlusPlus
from networks.dimenet_layers import DimeNetPlusPlusConfig
from networks.graph import edge_vectors

GROUP = "one interaction of DimeNet++ on 16 sheets with H"
WHOLE = "energies of 16 sheets with H by DimeNet++"


@pytest.fixture(scope="module")
def sheets():
    """z, pos, cell, batch and tags of the sheets."""
    torch.set_num_threads(1)
    sheet = mx2("MoS2", "2H", a=3.18, thickness=3.13, size=(3, 3, 1), vacuum=8.0)
    sheet.pbc = (True, True, False)
    add_adsorbate(sheet, "H", 1.4, position=(0.3, 0.4))
    sheet.set_tags([1] * 27 + [2])
    return batch_atoms([sheet] * 16, torch.float32, "cpu")


@pytest.fixture(scope="module")
def setup(sheets):
    torch.manual_seed(0)
    settings = DimeNetPlusPlusConfig.preset("small")
    model = DimeNetPlusPlus(settings)
    _, pos, cell, batch, _ = sheets
    graph = model.graph(pos, cell, batch)
    vectors = edge_vectors(pos, cell, batch, graph.edge_index, graph.offsets)
    distance = vectors.norm(dim=1)
    unit = vectors / distance[:, None]
    rbf = model.rbf(distance).detach()
    x = torch.randn(len(distance), settings.hidden_channels, requires_grad=True)
    return model, graph, unit, distance, rbf, x


def triplets(graph):
    """All (kj, ji) that do not run straight back, as PyG lists them."""
    source, target = graph.edge_index
    degree = torch.bincount(target)
    start = torch.cumsum(degree, 0) - degree
    repeats = degree[source]
    idx_ji = torch.repeat_interleave(torch.arange(len(source)), repeats)
    first = torch.repeat_interleave(torch.cumsum(repeats, 0) - repeats, repeats)
    idx_kj = torch.argsort(target, stable=True)[start[source[idx_ji]] + torch.arange(len(idx_ji)) - first]
    keep = graph.reverse[idx_ji] != idx_kj
    return idx_kj[keep], idx_ji[keep]


@pytest.mark.benchmark(group=GROUP)
def test_per_atom(benchmark, setup):
    model, graph, unit, distance, rbf, x = setup

    def run():
        tables = model._harmonics(unit, graph, int(graph.edge_index.max()) + 1)
        out = model.interaction_blocks[0](x, rbf, model.sbf.radial(distance), tables, graph, slice(None))
        out.sum().backward()
        return out

    ours = benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    assert torch.allclose(ours, per_triplet(setup), rtol=1e-4, atol=1e-5 * float(ours.abs().max()))


@pytest.mark.benchmark(group=GROUP)
def test_per_triplet(benchmark, setup):
    benchmark.pedantic(lambda: per_triplet(setup).sum().backward(), rounds=3, warmup_rounds=1)
    benchmark.extra_info["triplets"] = len(triplets(setup[1])[0])


def per_triplet(setup):
    model, graph, unit, distance, rbf, x = setup
    idx_kj, idx_ji = triplets(graph)
    basis = triplet_basis(model, unit, model.sbf.radial(distance), idx_kj, idx_ji)
    return pyg_interaction(model.interaction_blocks[0], model.settings)(x, rbf, basis, idx_kj, idx_ji)


def triplet_basis(model, unit, radial, idx_kj, idx_ji):
    cosine = (unit[idx_ji] * unit[idx_kj]).sum(1)
    legendre = [torch.ones_like(cosine), cosine]
    for degree in range(1, model.settings.num_spherical - 1):
        legendre.append(((2 * degree + 1) * cosine * legendre[degree] - degree * legendre[degree - 1]) / (degree + 1))
    return (radial[idx_kj] * torch.stack(legendre, 1)[:, :, None]).flatten(1)


class OneByOne(nn.Module):
    """PyG's block in the place of one of ours."""

    def __init__(self, block, settings):
        super().__init__()
        self.block = pyg_interaction(block, settings)

    def forward(self, x, rbf, radial, triplet_terms, graph, read):
        return self.block(x, rbf, *triplet_terms)[read]


@pytest.fixture(scope="module")
def models(setup):
    """Ours, and the same weights in PyG's blocks, which list the triplets of a graph and compute their basis once."""
    ours, graph, unit, distance, _, _ = setup
    plain = copy.deepcopy(ours)
    plain.interaction_blocks = nn.ModuleList(OneByOne(block, ours.settings) for block in ours.interaction_blocks)

    def terms(vectors, graph, num_nodes):
        idx_kj, idx_ji = triplets(graph)
        return triplet_basis(plain, vectors, plain.sbf.radial(distance), idx_kj, idx_ji), idx_kj, idx_ji

    plain._harmonics = terms
    return {"ours": ours, "PyG": plain}


def energies(model, sheets, graph):
    z, pos, cell, batch, tags = sheets
    pos = pos.clone().requires_grad_()
    found = model(z, pos, cell, batch, tags, graph)
    return found, torch.autograd.grad(found.sum(), pos)[0]


@pytest.mark.benchmark(group=WHOLE)
@pytest.mark.parametrize("name", ["ours", "PyG"])
def test_whole(benchmark, setup, sheets, models, name):
    found, _ = benchmark.pedantic(energies, (models[name], sheets, setup[1]), rounds=3, warmup_rounds=1)
    assert torch.allclose(found, energies(models["ours"], sheets, setup[1])[0], rtol=1e-3, atol=1e-4)
