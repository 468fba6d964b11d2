"""The formulas of ΔE_H and ΔG_H, by hand."""

import numpy as np
import pytest

from energetics.adsorption_energy import adsorption_energy, free_energy


def test_formulas_by_hand():
    assert adsorption_energy(-24.0, -20.0, -6.7) == pytest.approx(-24.0 + 20.0 + 3.35)
    assert free_energy(-0.27, 0.27) == 0.0
    np.testing.assert_allclose(free_energy(np.array([0.1, np.nan]), 0.24), [0.34, np.nan])
