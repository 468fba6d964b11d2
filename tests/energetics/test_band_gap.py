"""Band gaps: known sheets, invariances, and what is not found."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import graphene, mx2

from energetics import band_gap

pytestmark = pytest.mark.skipif(not band_gap.is_installed(), reason="tblite is not installed")


def sheet(kind: str = "2H", metal: str = "Mo") -> Atoms:
    atoms = mx2(f"{metal}S2", kind, a=3.18, thickness=3.13, vacuum=10)
    atoms.pbc = (True, True, False)
    return atoms


def test_semiconductors_and_metals():
    # PBE: 2H-MoS2 1.6, WS2 1.5, h-BN 4.7 eV; graphene, 1T-MoS2 and NbS2 are metals or semimetals.
    assert band_gap.band_gap(sheet()) > 1.0 and band_gap.band_gap(sheet(metal="W")) > 1.0
    assert band_gap.band_gap(sheet("1T")) < 0.5 and band_gap.band_gap(sheet(metal="Nb")) < 0.1
    carbon = graphene(a=2.46, vacuum=10)
    nitride = graphene("BN", a=2.50, vacuum=10)
    assert band_gap.band_gap(carbon) < 0.1 and band_gap.band_gap(nitride) > 3.0


def test_the_setting_of_the_cell_does_not_matter():
    given = sheet()
    value = band_gap.band_gap(given)
    turned = given.copy()
    turned.rotate(37, "z", rotate_cell=True)
    moved = given.copy()
    moved.positions += [0.4, -0.9, 5.0]
    moved.wrap()
    basis = Atoms(given.numbers, given.positions, cell=[given.cell[0], given.cell[0] + given.cell[1], given.cell[2]], pbc=given.pbc)
    for other in (turned, moved, given.repeat((2, 2, 1)), given[[2, 0, 1]], basis):
        assert band_gap.band_gap(other) == pytest.approx(value, abs=2e-3)


def test_what_has_no_gap(monkeypatch):
    assert np.isnan(band_gap.band_gap(sheet().repeat((7, 6, 1))))  # too large
    beyond = sheet()
    beyond.numbers[0] = 92  # the method ends at Z = 86
    assert np.isnan(band_gap.band_gap(beyond))
    monkeypatch.setattr(band_gap, "MAX_ITERATIONS", 2)
    assert np.isnan(band_gap.band_gap(sheet()))  # not self-consistent
