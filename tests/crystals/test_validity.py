"""The kind of a structure, and whether it is a valid sheet."""

from __future__ import annotations

import pytest
import simple_judges as simple
from ase import Atoms
from ase.build import mx2

from crystals import matching, validity


@pytest.mark.parametrize(
    ("atoms", "kind"),
    [
        (simple.sheet(), validity.SHEET),
        (simple.graphene_sheet(), validity.SHEET),
        (simple.bulk_copper(), validity.BULK),
        (mx2("MoS2", vacuum=1.5), validity.LAYERED_BULK),
        (Atoms("C", cell=[15, 15, 15], pbc=True), validity.MOLECULE),
        (Atoms("C", cell=[1.3, 20, 20], pbc=True), validity.CHAIN),
    ],
)
def test_dimensionality(atoms, kind):
    assert validity.standardise(atoms, 10.0)[1] == kind


def test_vacuum_axis_and_boundary_do_not_matter():
    atoms = simple.sheet()
    turned = atoms.copy()
    turned.set_cell(atoms.cell[[2, 0, 1]])
    turned.positions[:] = atoms.positions
    shifted = atoms.copy()
    shifted.positions[:, 2] += 0.5 * atoms.cell[2, 2]
    shifted.wrap()
    for other in (turned, shifted):
        standard, kind, _ = validity.standardise(other, 10.0)
        assert kind == validity.SHEET
        assert matching.same_structure(matching.match_structure(standard, True), matching.match_structure(atoms, True))


def test_checks_before_relaxation_and_sheet_fault_agree():
    squeezed, apart = simple.sheet(), simple.sheet(a=5.5)
    squeezed.positions[1] = squeezed.positions[0] + [0, 0, 1.2]
    for atoms, expected in ((simple.sheet(), ""), (squeezed, "clash"), (apart, "disconnected")):
        standard, kind, gap = validity.standardise(atoms, 10.0)
        checks = validity.check(standard, kind, gap, min_vacuum=10.0, clash_factor=0.7)
        assert validity.sheet_fault(standard, 0.7) == expected
        assert checks.no_clash == (expected != "clash")
        assert (checks.no_clash and checks.single_sheet) == (expected == "")


def test_a_sheet_in_two_pieces_is_no_single_sheet():
    two = simple.sheet(vacuum=15.0)
    other = two.copy()
    other.positions[:, 2] += 6.5
    two.extend(other)
    assert validity.standardise(two, 10.0)[1] == validity.SHEET_IN_PIECES
    assert validity.sheet_fault(two) == "disconnected" and validity.sheet_fault(two, single=False) == ""
