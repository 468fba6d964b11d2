"""Layers of DimeNet++: PyTorch Geometric's blocks, and SciPy's functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyg_blocks import pyg_interaction
from scipy.special import eval_legendre, spherical_jn
from torch.nn import functional as F
from torch_geometric.nn.models import dimenet as pyg

from networks.dimenet_layers import (
    DimeNetPlusPlusConfig,
    EmbeddingBlock,
    Envelope,
    RadialBasis,
    ResidualLayer,
    SphericalBasis,
    TripletInteraction,
)

SETTINGS = DimeNetPlusPlusConfig(
    hidden_channels=12, int_emb_size=6, basis_emb_size=4, num_spherical=3, num_radial=5, num_before_skip=1, num_after_skip=2
)
PAIRS = {
    "radial basis": (lambda: RadialBasis(6, 4.5, 5), lambda: pyg.BesselBasisLayer(6, 4.5, 5)),
    "embedding": (lambda: EmbeddingBlock(6, 8), lambda: pyg.EmbeddingBlock(6, 8, F.silu)),
    "residual": (lambda: ResidualLayer(8), lambda: pyg.ResidualLayer(8, F.silu)),
    "interaction": (lambda: TripletInteraction(SETTINGS), lambda: pyg.InteractionPPBlock(12, 6, 4, 3, 5, 1, 2, F.silu)),
}
INPUTS = {
    "radial basis": (torch.linspace(0.6, 4.6, 20),),
    "embedding": (
        torch.tensor([1, 42, 16]),
        torch.linspace(-1, 1, 24).view(4, 6),
        torch.tensor([0, 1, 2, 2]),
        torch.tensor([1, 0, 0, 1]),
    ),
    "residual": (torch.linspace(-2, 2, 24).view(3, 8),),
}


def of_one_seed(name):
    made = []
    for build in PAIRS[name]:
        torch.manual_seed(7)
        made.append(build())
        made.append(torch.rand(1))
    return made


@pytest.mark.parametrize("name", PAIRS)
def test_blocks_start_as_those_of_pyg(name):
    """The same names, shapes and random numbers, to the last bit: no training changes."""
    ours, after_ours, oracle, after_oracle = of_one_seed(name)
    expected = oracle.state_dict()
    assert list(ours.state_dict()) == list(expected) and after_ours == after_oracle
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("name", INPUTS)
def test_blocks_give_what_those_of_pyg_give(name):
    ours, _, oracle, _ = of_one_seed(name)
    assert torch.equal(ours(*INPUTS[name]), oracle(*INPUTS[name]))
    assert ours(*INPUTS[name]).abs().max() > 0.1


def test_interaction_of_pyg_takes_our_weights():
    block = TripletInteraction(SETTINGS).double()
    assert pyg_interaction(block, SETTINGS).lin_up.weight.dtype == torch.float64


def harmonics_product(basis, one, other):
    """Σ_m Y_lm(a) Y_lm(b), (E, L)."""
    terms = basis.angular(one) * basis.angular(other)
    return torch.stack([terms[:, degree**2 : (degree + 1) ** 2].sum(1) for degree in range(basis.num_spherical)], 1)


@pytest.fixture(scope="module")
def angles():
    """Angles (60,), and pairs of unit vectors (60, 3) that enclose them."""
    angle = torch.linspace(0, np.pi, 60, dtype=torch.float64)
    one = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64).expand(60, 3) / 3
    across = torch.tensor([[2.0, -2.0, 1.0]], dtype=torch.float64) / 3
    return angle, one, torch.cos(angle)[:, None] * one + torch.sin(angle)[:, None] * across


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_spherical_basis_against_scipy(angles, dtype):
    """At the published size. Zeros of j_l are those of J_{l+1/2}, found here on a fine grid and by Newton steps."""
    basis, cutoff = SphericalBasis(7, 6, 6.0, 5), 6.0
    distance = torch.linspace(0.9, 6.2, 60, dtype=torch.float64)
    x = (distance / cutoff).numpy()
    grid = np.linspace(0.5, 30, 60001)
    expected = np.zeros((60, 7, 6))
    for degree in range(7):
        signs = np.sign(spherical_jn(degree, grid))
        zeros = grid[:-1][signs[1:] != signs[:-1]][:6] + (grid[1] - grid[0]) / 2
        for _ in range(2):
            zeros -= spherical_jn(degree, zeros) / spherical_jn(degree, zeros, derivative=True)
        norm = np.sqrt(2) / np.abs(spherical_jn(degree + 1, zeros)) * np.sqrt((2 * degree + 1) / (4 * np.pi))
        expected[:, degree] = spherical_jn(degree, zeros * x[:, None]) * norm
    expected *= Envelope(5)(torch.from_numpy(x)).numpy()[:, None, None]
    found = basis.radial(distance.to(dtype)).double().numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale * (1e-10 if dtype == torch.float64 else 1e-5))
    angle, one, other = angles
    legendre = np.stack([eval_legendre(degree, np.cos(angle.numpy())) for degree in range(7)], 1)
    product = harmonics_product(basis, one.to(dtype), other.to(dtype)).numpy()
    np.testing.assert_allclose(product, legendre, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


def test_spherical_basis_against_pyg(angles):
    """The product that the network uses, at a size for which PyG derives its formulas in a second."""
    basis, oracle = SphericalBasis(4, 2, 6.0, 5), pyg.SphericalBasisLayer(4, 2, 6.0, 5)
    distance = torch.linspace(0.9, 6.2, 60, dtype=torch.float64)
    index = torch.arange(59, -1, -1)
    angle, one, other = angles
    found = (basis.radial(distance)[index] * harmonics_product(basis, one, other)[:, :, None]).flatten(1)
    # PyG rounds the roots of the Bessel functions to float32.
    torch.testing.assert_close(found, oracle(distance, angle, index), rtol=1e-3, atol=1e-5)
