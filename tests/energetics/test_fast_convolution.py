"""The convolution for CPUs against e3nn's own, path by path, and against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import mx2
from sevenn.nn.convolution import IrrepsConvolution

from energetics import potentials
from energetics.fast_convolution import FastConvolution, use_fast_convolutions

CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # e3nn keeps its coefficients in single precision
EDGES = torch.tensor([[0, 1, 1, 2, 0, 3, 3, 3], [1, 0, 2, 1, 0, 0, 1, 2]])  # to and from; a node to itself, and 3 from many


def case(features: str, harmonics: str, outputs: str):
    """Return the tensor product of a layer as SevenNet makes it, and random arguments of double precision."""
    from e3nn.o3 import Irreps

    layer = IrrepsConvolution(Irreps(features), Irreps(harmonics), Irreps(outputs), [4, 4], torch.nn.functional.silu)
    layer.instantiate()
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    product = layer.convolution.double()
    return product, (draw(4, product.irreps_in1.dim), draw(8, product.irreps_in2.dim), draw(8, product.weight_numel))


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
    theirs = theirs.index_add(0, EDGES[0], product(x[EDGES[1]], harmonics, weight))
    ours = FastConvolution(product)(x, harmonics, weight, EDGES)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert theirs.abs().amax(0).min() > 0, "every output is reached"
    along = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for own, expected in zip(
        torch.autograd.grad(ours, (x, harmonics, weight), along),
        torch.autograd.grad(theirs, (x, harmonics, weight), along),
        strict=True,
    ):
        torch.testing.assert_close(own, expected, **CLOSE)


def test_gradients_are_finite_differences():
    product, arguments = case("2x0e+2x1e", "1x0e+1x1e+1x2e", "2x0e+2x1e+1x2e")
    ours = FastConvolution(product)
    assert torch.autograd.gradcheck(lambda *values: ours(*values, EDGES), arguments)


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
    assert use_fast_convolutions(theirs.model) == 5 and use_fast_convolutions(theirs.model) == 0
