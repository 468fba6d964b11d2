"""Tables of the elements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystals.elements import covalent_radius_table, electronegativity_and_group, element_descriptors


def test_element_descriptors():
    table = element_descriptors()
    assert table.shape[0] == 119 and torch.isfinite(table).all()
    distance = torch.cdist(table[1:97], table[1:97]) + 1e3 * torch.eye(96, dtype=torch.float64)
    assert distance.min() > 1e-3, "two elements share their descriptors"
    assert distance[41, 73] < distance[41, 16], "Mo is closer to W than to Cl"


def test_electronegativity_and_group():
    """Pauling's values; helium has none."""
    for symbol, electronegativity, group in (("S", 2.58, 16), ("Mo", 2.16, 6), ("C", 2.55, 14)):
        assert electronegativity_and_group(symbol) == (pytest.approx(electronegativity), group)
    assert np.isnan(electronegativity_and_group("He")[0])


def test_covalent_radius_table():
    table = covalent_radius_table()
    assert table.shape == (119,) and table.dtype == torch.float64
    assert table[[6, 16, 42]].tolist() == [0.76, 1.05, 1.54], "Cordero et al., Dalton Trans. 2832 (2008)"
