"""The interactions for CPUs against e3nn's own, path by path, and against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import mx2
from ase.neighborlist import neighbor_list
from sevenn.nn.convolution import IrrepsConvolution

from energetics import potentials
from energetics.fast_convolution import FastConvolution, shared_lengths, use_fast_interactions

CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # e3nn keeps its coefficients in single precision
EDGES = torch.tensor([[0, 1, 1, 2, 0, 3, 3, 3], [1, 0, 2, 1, 0, 0, 1, 2]])  # to and from; a node to itself, and 3 from many
LENGTHS = np.array([0, 0, 1, 1, 2, 3, 4, 5])  # the first edges are the two directions of one each


def case(features: str, harmonics: str, outputs: str):
    """Return the tensor product of a layer as SevenNet makes it, and random arguments of double precision."""
    from e3nn.o3 import Irreps

    layer = IrrepsConvolution(Irreps(features), Irreps(harmonics), Irreps(outputs), [4, 4], torch.nn.functional.silu)
    layer.instantiate()
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    product = layer.convolution.double()
    return product, (draw(4, product.irreps_in1.dim), draw(8, product.irreps_in2.dim), draw(6, product.weight_numel))


def by_l(x: torch.Tensor, irreps) -> list[torch.Tensor]:
    """Return (N, 2l + 1, channels) of every l, from e3nn's order of all features."""
    parts = [x[:, place].view(len(x), mul, irrep.dim).mT for place, (mul, irrep) in zip(irreps.slices(), irreps, strict=True)]
    ls = [irrep.l for _, irrep in irreps]
    of = [[part for part, own in zip(parts, ls, strict=True) if own == degree] for degree in range(max(ls) + 1)]
    return [torch.cat(own, 2).contiguous() for own in of]


def convolved(product, x: torch.Tensor, harmonics: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Return what the convolution for CPUs makes of features in e3nn's order."""
    return FastConvolution(product, 2.0)(by_l(x, product.irreps_in1), harmonics, weight, LENGTHS, EDGES)


@pytest.mark.parametrize(
    ("features", "outputs"),
    [
        ("6x0e", "6x0e+4x1e+2x2e"),  # the first layer
        ("6x0e+4x1e+2x2e", "6x0e+4x1e+2x2e"),
        ("4x0e+2x1e+3x2e+2x3e", "4x0e+2x1e+3x2e+2x3e"),
        ("6x0e+4x1e+2x2e", "6x0e"),  # the last layer, where some paths end
    ],
)
def test_values_and_gradients_are_those_of_e3nn(features, outputs):
    product, (x, harmonics, weight) = case(features, "1x0e+1x1e+1x2e", outputs)
    theirs = torch.zeros(4, product.irreps_out.dim, dtype=torch.float64)
    theirs = theirs.index_add(0, EDGES[0], product(x[EDGES[1]], harmonics, weight[LENGTHS])) / 2
    assert theirs.abs().amax(0).min() > 0, "every output is reached"
    ours, expected = convolved(product, x, harmonics, weight), by_l(theirs, product.irreps_out)
    generator = torch.Generator().manual_seed(2)
    along = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in expected]
    torch.testing.assert_close(ours, expected, **CLOSE)
    found, right = (torch.autograd.grad(values, (x, harmonics, weight), along) for values in (ours, expected))
    torch.testing.assert_close(found, right, **CLOSE)


def test_gradients_are_finite_differences():
    product, arguments = case("2x0e+2x1e", "1x0e+1x1e+1x2e", "2x0e+2x1e+1x2e")
    assert torch.autograd.gradcheck(lambda *values: tuple(convolved(product, *values)), arguments)


def test_the_two_directions_of_an_edge_share_their_weights():
    sheet = mx2("MoS2", vacuum=10).repeat((2, 2, 1))
    to, source, vectors = neighbor_list("ijD", sheet, 5.0)
    vectors = vectors.astype(np.float32)
    of_length, lengths = shared_lengths(vectors, np.array([to, source]))
    assert len(of_length) == len(to) / 2, "each edge has its other direction"
    of_length = of_length.numpy()
    assert set(np.bincount(lengths)) == {2}
    like, other = of_length[lengths], np.arange(len(to))
    turned = like != other
    assert np.array_equal(vectors[like[turned]], -vectors[other[turned]])
    assert np.array_equal(to[like[turned]], source[other[turned]]) and np.array_equal(source[like[turned]], to[other[turned]])


@pytest.mark.parametrize("vectors", [[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0], [-1.0, 0.0, 1e-3]]])
def test_edges_of_one_direction_are_their_own(vectors):
    of_length, lengths = shared_lengths(np.array(vectors, np.float32), np.array([[0, 1], [1, 0]]))
    assert of_length.tolist() == lengths.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["sevennet-0", "sevennet-l3i5", "sevennet-mf-0"])
def test_a_potential_gives_the_same_energies_forces_and_stress(name):
    from sevenn.calculator import SevenNetCalculator

    sheet = mx2("MoS2", vacuum=10)
    sheet = sheet.repeat((2, 2, 1)) + Atoms("H", [sheet.positions[1] + [0.2, 0.1, 1.4]])
    sheet.pbc = (True, True, False)
    sheet.rattle(0.1, seed=3)
    modality = potentials.MODALITIES.get(name)
    theirs = SevenNetCalculator(name.replace("sevennet", "7net"), device="cpu", modal=modality)
    ours = potentials.load_potential(name).calculator
    assert sum(isinstance(layer, IrrepsConvolution) for layer in theirs.model.children()) == 5
    assert not any(isinstance(layer, IrrepsConvolution) for layer in ours.model.children())
    for atoms in (sheet, Atoms("H", cell=[15, 15, 15], pbc=True)):  # an atom alone has no edge
        found = {}
        for calculator in (theirs, ours):
            atoms.calc = calculator
            found[calculator] = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        for own, expected, tolerance in zip(found[ours], found[theirs], (1e-4, 1e-5, 1e-7), strict=True):
            np.testing.assert_allclose(own, expected, atol=tolerance)
    assert use_fast_interactions(theirs.model) == 5 and use_fast_interactions(theirs.model) == 0
