"""Reading CIFs, the kind of a structure, its symmetry, charge balance and matching."""

from __future__ import annotations

import ase.db
import numpy as np
import pytest
import simple_judges as simple
from ase import Atoms
from ase.build import mx2
from simple_judges import GOOD, MALFORMED

from crystals import charge_balance, cif, matching, symmetry, validity


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_cifs_are_named(tmp_path, kind):
    content, expected = MALFORMED[kind]
    path = tmp_path / f"{kind}.cif"
    path.write_bytes(content)
    with pytest.raises(cif.UnreadableCif, match=expected):
        cif.read_cif(path)


def test_good_cif_is_read_exactly(tmp_path):
    path = tmp_path / "good.cif"
    path.write_text(GOOD)
    atoms = cif.read_cif(path)
    assert atoms.get_chemical_formula() == "MoS2"
    np.testing.assert_allclose(atoms.cell.lengths(), [3.18, 3.18, 23.0], atol=1e-6)


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


def test_symmetry_of_known_sheets():
    standard, _, _ = validity.standardise(simple.sheet(), 10.0)
    assert symmetry.symmetry_symbols(standard, True) == ("P-6m2", "p-6m2")
    standard, _, _ = validity.standardise(simple.sheet(kind="1T"), 10.0)
    assert symmetry.symmetry_symbols(standard, True)[1] == "p-3m1"


def test_charge_neutrality():
    assert charge_balance.charge_neutral_possible("MoS2")
    assert charge_balance.charge_neutral_possible("CuAu")
    assert not charge_balance.charge_neutral_possible("NaF4")


def test_polymorphs_differ_and_equal_sheets_match():
    match = lambda atoms: matching.match_structure(atoms, True)  # noqa: E731
    h, t = simple.sheet(), simple.sheet(kind="1T")
    mirrored = h.copy()
    mirrored.positions[:, 2] = h.cell[2, 2] - h.positions[:, 2]
    double = h.repeat((2, 1, 1))
    rotated = h.copy()
    rotated.rotate(37, "z", rotate_cell=True)
    assert not matching.same_structure(match(h), match(t))
    for other in (mirrored, double, rotated, simple.sheet(vacuum=14.0), simple.sheet(a=3.2)):
        assert matching.same_structure(match(h), match(other))
    assert not matching.same_structure(match(h), match(simple.sheet(a=3.9)))


def test_training_structures_are_read_by_formula(tmp_path):
    with ase.db.connect(tmp_path / "train.db") as database:
        database.write(mx2("MoS2", vacuum=8), uid="mo")
        database.write(mx2("WS2", vacuum=8).repeat((2, 1, 1)), uid="w")
    training = matching.TrainingStructures(tmp_path / "train.db")
    assert [uid for uid, _ in training("WS2")] == ["w"] and training("NbS2") == []
