"""Sheets laid over each other, and the arrangements of atoms that they share."""

from __future__ import annotations

import dataclasses

import numpy as np
from ase.build import mx2

from crystals.alignment import Layout, align, kind_maps
from crystals.arrangements import arrange
from crystals.symmetry import Template, kinds_of
from geo_utils import Sheet


def mx2_sheet(formula: str = "MoS2", kind: str = "2H", a: float = 3.18, thickness: float = 3.13) -> Sheet:
    atoms = mx2(formula, kind, a=a, thickness=thickness, vacuum=10)
    atoms.pbc = (True, True, False)
    return Sheet.from_atoms(atoms)


def layout(sheet: Sheet) -> Layout:
    return Layout(kinds_of(sheet.atomic_numbers), sheet.frac_coords, sheet.heights, sheet.lattice)


def disguised(sheet: Sheet) -> Sheet:
    """The same crystal in another basis, order, origin and face."""
    basis = np.array([[1, 1], [0, 1]])
    order = np.array([2, 0, 1])
    frac = (sheet.frac_coords @ np.linalg.inv(basis) + [0.31, 0.77]) % 1.0
    return Sheet(sheet.atomic_numbers[order], frac[order], -sheet.heights[order], basis @ sheet.lattice)


def test_a_disguised_sheet_is_laid_back():
    sheet = mx2_sheet()
    sheet.heights = sheet.heights + np.array([0.1, -0.2, 0.1])  # no symmetry between the faces is left
    found = align(layout(sheet), layout(disguised(sheet)), 1.0)
    assert found.distance < 1e-6 and found.strain < 1e-6
    assert disguised(sheet).atomic_numbers[found.order].tolist() == sheet.atomic_numbers.tolist()
    assert np.allclose(found.layout.heights, sheet.heights)
    assert np.allclose(found.layout.lattice @ found.layout.lattice.T, sheet.lattice @ sheet.lattice.T)


def test_2h_and_1t_lie_far_apart_and_a_rattled_sheet_near():
    sheet, other = mx2_sheet(), mx2_sheet(kind="1T")
    assert align(layout(sheet), layout(other), 1.0).distance > 0.5
    rattled = dataclasses.replace(sheet, frac_coords=sheet.frac_coords + [[0.02, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert 0.01 < align(layout(sheet), layout(rattled), 1.0).distance < 0.1
    square = dataclasses.replace(sheet, lattice=np.eye(2) * 3.2)
    assert align(layout(sheet), layout(square), 1.0) is None


def test_kinds_are_matched_by_their_numbers():
    assert [m.tolist() for m in kind_maps(np.array([0, 1, 1]), np.array([0, 0, 1]))] == [[1, 0]]
    assert len(kind_maps(np.array([0, 1, 2]), np.array([0, 1, 2]))) == 6


def test_atoms_of_an_arrangement_stand_in_one_order():
    sheets = [
        mx2_sheet(),
        mx2_sheet("PtS2", "1T", 3.57, 2.46),
        disguised(mx2_sheet("MoSe2", a=3.32, thickness=3.34)),
        mx2_sheet("WS2"),
    ]
    members = arrange(sheets, [Template.of(sheet) for sheet in sheets], [True] * 4)
    assert [member.arrangement for member in members] == [0, 1, 0, 0]
    first, third = members[0].sheet, members[2].sheet
    assert (third.atomic_numbers == np.where(first.atomic_numbers == 16, 34, 42)).all()
    shift = third.frac_coords - first.frac_coords
    assert np.abs(shift - np.round(shift) - (shift - np.round(shift)).mean(0)).max() < 1e-6
    assert np.allclose(np.sort(np.linalg.norm(third.lattice, axis=1)), 3.32)


def test_a_sheet_that_founds_nothing_is_left_out():
    sheets = [mx2_sheet(), mx2_sheet("PtS2", "1T", 3.57, 2.46)]
    members = arrange(sheets, [Template.of(sheet) for sheet in sheets], [True, False])
    assert [member.row for member in members] == [0]
