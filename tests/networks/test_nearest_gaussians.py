"""The nearest Gaussians of lengths against all of them in double precision."""

from __future__ import annotations

import pytest
import torch

from networks.nearest_gaussians import WINDOW, all_gaussians, nearest_gaussians, rows_of_gaussians


@pytest.fixture
def scaled() -> torch.Tensor:
    """Return numbers before the first Gaussian, on it, between two, at the last of eight or of twelve, and far beyond."""
    values = torch.cat([torch.linspace(-12.0, 40.0, 777), torch.arange(-2.0, 25.0), torch.tensor([1e4])])
    return torch.stack([values, values.flip(0)], -1)[None]


@pytest.mark.parametrize("counts", [(12, 8), (24, 3)])
def test_products_with_a_matrix(scaled, counts):
    weight = torch.randn(5, sum(counts), generator=torch.Generator().manual_seed(0))
    first, values = nearest_gaussians(scaled, counts)
    rows = rows_of_gaussians(weight, counts)
    assert values.shape[-1] == WINDOW and len(rows) == sum(max(count, WINDOW) for count in counts)
    found = torch.einsum("amnk,amnkc->amc", values, rows[first.long()[..., None] + torch.arange(WINDOW)])
    parts = zip(scaled.double().split(1, -1), counts, strict=True)
    expected = torch.cat([torch.exp(-((x - torch.arange(count)) ** 2)) for x, count in parts], -1) @ weight.T.double()
    assert found.abs().max() > 1 and (found - expected).abs().max() < 3e-6


@pytest.mark.parametrize("counts", [(12, 8), (24, 3)])
def test_all_gaussians_are_the_same_with_and_without_a_gradient(scaled, counts):
    free = scaled.clone().requires_grad_()
    found, followed = all_gaussians(scaled, counts), all_gaussians(free, counts)
    assert not found.requires_grad and followed.requires_grad and found.shape[-1] == sum(counts)
    assert (found - followed).abs().max() < 1e-6
    precise = all_gaussians(scaled.double(), counts)
    assert (found - precise).abs().max() < 1e-6 and precise.dtype == torch.float64
