"""Layers of the denoiser: the transformation of the lattice noise."""

from __future__ import annotations

import torch

from geo_utils import lattice_to_vector
from networks.sheet_layers import strain_to_lattice_vector


def test_strain_carries_over_to_the_lattice_vector():
    """Against finite differences of S under L -> L (1 + ε)."""
    g = torch.Generator().manual_seed(2)
    cell = torch.randn(20, 2, 2, generator=g, dtype=torch.float64) * 2 + 4 * torch.eye(2, dtype=torch.float64)
    strain = torch.randn(20, 2, 2, generator=g, dtype=torch.float64)
    strain = strain + strain.transpose(1, 2)
    step = 1e-5
    identity = torch.eye(2, dtype=torch.float64)
    expected = (lattice_to_vector(cell @ (identity + step * strain)) - lattice_to_vector(cell @ (identity - step * strain))) / (
        2 * step
    )
    torch.testing.assert_close(strain_to_lattice_vector(strain, cell), expected, rtol=1e-6, atol=1e-7)
