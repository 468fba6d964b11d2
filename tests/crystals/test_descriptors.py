"""Descriptors do not depend on how a crystal is written, and agree with counting by hand."""

import ase.db
import numpy as np
import pytest
from ase.build import bulk, graphene, mx2
from ase.neighborlist import neighbor_list
from sheet_settings import settings_of

from crystals import descriptors
from crystals.descriptors import COMPOSITION_NAMES, SHEET_NAMES, composition_descriptors, crystal_descriptors, sheet_descriptors
from geo_utils import NotTwoDimensional, standard_sheet


def mos2(kind="2H"):
    atoms = mx2("MoS2", kind, a=3.18, thickness=3.13, vacuum=10.0)
    atoms.pbc = (True, True, False)
    return atoms


def test_names_and_lengths_agree():
    assert len(composition_descriptors(np.array([42, 16, 16]))) == len(COMPOSITION_NAMES) == len(set(COMPOSITION_NAMES))
    assert len(sheet_descriptors(mos2())) == len(SHEET_NAMES) == len(set(SHEET_NAMES))


def test_mos2_by_hand():
    found = dict(zip(SHEET_NAMES, sheet_descriptors(mos2()), strict=True))
    assert found["thickness"] == pytest.approx(3.13) and found["atoms per area"] == pytest.approx(
        3 / (3.18**2 * np.sqrt(3) / 2), abs=1e-4
    )
    # By these radii molybdenum also touches its six neighbours of the same plane: 3.18 Å over 2 x 1.54 Å.
    assert found["coordination mean"] == pytest.approx((12 + 3 + 3) / 3) and found["coordination largest"] == 12
    assert found["like neighbours mean"] == pytest.approx(6 / 3) and found["anion-anion bonds"] == 0
    bond = np.sqrt((3.18 / np.sqrt(3)) ** 2 + (3.13 / 2) ** 2) / (1.54 + 1.05)  # covalent radii of Mo and S
    assert found["nearest neighbour least"] == pytest.approx(bond, abs=1e-4)
    assert found["metal-metal bonds"] == 0 and found["face electronegativity lower"] == pytest.approx(2.58)
    composition = dict(zip(COMPOSITION_NAMES, composition_descriptors(np.array([42, 16, 16])), strict=True))
    assert composition["electronegativity mean"] == pytest.approx((2.16 + 2 * 2.58) / 3)
    assert composition["fraction of element 16"] == pytest.approx(2 / 3) and composition["largest share"] == pytest.approx(2 / 3)


def test_polymorphs_differ_in_their_sheets_alone():
    assert np.array_equal(composition_descriptors(mos2("2H").numbers), composition_descriptors(mos2("1T").numbers))
    assert not np.array_equal(sheet_descriptors(mos2("2H")), sheet_descriptors(mos2("1T")))


def test_every_setting_of_the_embedded_sheets_has_the_same_descriptors():
    rng = np.random.default_rng(0)
    with ase.db.connect("data/demo_c2db.db") as db:
        rows = [row.toatoms() for row in db.select()][::9]
    for atoms in [*rows, mos2(), graphene(a=2.46, vacuum=10.0)]:
        first, *others = (crystal_descriptors(setting) for setting in settings_of(atoms, rng))
        for other in others:
            np.testing.assert_allclose(other, first, atol=2e-4, err_msg=str(atoms.symbols))


def test_what_has_no_descriptors_says_why():
    with pytest.raises(NotTwoDimensional):
        sheet_descriptors(bulk("Cu"))
    with pytest.raises(ValueError, match="element 99"):
        composition_descriptors(np.array([99]))


def test_neighbours_are_those_of_ase():
    with ase.db.connect("data/demo_c2db.db") as db:
        sheets = [standard_sheet(row.toatoms()) for row in db.select()][::60]
    for sheet in sheets:
        sheet.pbc = (True, True, False)
        expected = neighbor_list("ijd", sheet, descriptors.NEIGHBOUR_CUTOFF)
        found = descriptors.neighbours(sheet)
        assert sorted(zip(*(a.tolist() for a in found[:2]), found[2].round(6), strict=True)) == sorted(
            zip(*(a.tolist() for a in expected[:2]), expected[2].round(6), strict=True)
        )
