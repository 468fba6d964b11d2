"""Tables of the elements."""

from __future__ import annotations

import torch

from crystals.elements import element_descriptors


def test_element_descriptors():
    table = element_descriptors()
    assert table.shape[0] == 119 and torch.isfinite(table).all()
    distance = torch.cdist(table[1:97], table[1:97]) + 1e3 * torch.eye(96, dtype=torch.float64)
    assert distance.min() > 1e-3, "two elements share their descriptors"
    assert distance[41, 73] < distance[41, 16], "Mo is closer to W than to Cl"
