"""Layers of DimeNet++: the spherical basis."""

from __future__ import annotations

import numpy as np
import torch
from torch_geometric.nn.models.dimenet import SphericalBasisLayer

from networks.dimenet_layers import SphericalBasis


def test_spherical_basis_against_pyg():
    basis, oracle = SphericalBasis(7, 3, 6.0, 5), SphericalBasisLayer(7, 3, 6.0, 5)
    distance = torch.linspace(0.9, 6.2, 60, dtype=torch.float64)
    angle = torch.linspace(0, np.pi, 60, dtype=torch.float64)
    one = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64).expand(60, 3) / 3
    across = torch.tensor([[2.0, -2.0, 1.0]], dtype=torch.float64) / 3
    other = torch.cos(angle)[:, None] * one + torch.sin(angle)[:, None] * across
    index = torch.arange(59, -1, -1)
    expected = oracle(distance, angle, index)

    def product(dtype):
        legendre = torch.stack(
            [
                (basis.angular(one.to(dtype)) * basis.angular(other.to(dtype)))[:, degree**2 : (degree + 1) ** 2].sum(1)
                for degree in range(7)
            ],
            1,
        )
        return (basis.radial(distance.to(dtype))[index] * legendre[:, :, None]).flatten(1)

    # PyG rounds the roots of the Bessel functions to float32.
    torch.testing.assert_close(product(torch.float64), expected, rtol=1e-3, atol=1e-5)
    # float32 distances keep six digits, where closed forms in float32 lose them.
    torch.testing.assert_close(product(torch.float32).double(), expected, rtol=1e-3, atol=2e-5)
