"""Equal and different crystals, and the structures of a training set."""

from __future__ import annotations

import ase.db
import numpy as np
import simple_judges as simple
from ase import Atoms
from ase.build import mx2

from crystals import matching


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
    training = matching.KnownStructures(tmp_path / "train.db")
    assert [uid for uid, _ in training("WS2")] == ["w"] and training("NbS2") == []


def test_several_databases_are_one_set_of_known_structures(tmp_path):
    for name, formulas in (("first.db", ("MoS2", "WS2")), ("second.db", ("MoS2", "NbS2"))):
        with ase.db.connect(tmp_path / name) as database:
            for formula in formulas:
                database.write(mx2(formula, vacuum=8), uid=f"{formula} of {name}")
    known = matching.KnownStructures(tmp_path / "first.db", tmp_path / "second.db")
    assert [uid for uid, _ in known("MoS2")] == ["MoS2 of first.db", "MoS2 of second.db"]
    assert [uid for uid, _ in known("NbS2")] == ["NbS2 of second.db"]
    assert known.formulas() == {"MoS2", "WS2", "NbS2"}
    assert list(known.counts().values()) == [2, 2] and [name.endswith(".db") for name in known.counts()] == [True, True]


def test_different_structures_are_those_of_comparing_every_pair():
    """Polymorphs, supercells, turned and mirrored sheets, strained and rattled ones, and atoms at random places."""
    rng = np.random.default_rng(0)
    sheets = [simple.sheet(), simple.sheet(kind="1T"), simple.sheet(a=3.9), simple.sheet(a=3.2).repeat((2, 1, 1))]
    for k in range(36):
        atoms = sheets[k % 4].copy()
        strain = np.eye(3)
        strain[:2, :2] += rng.normal(scale=(0.0, 0.05, 0.1)[k % 3], size=(2, 2))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += rng.normal(scale=(0.02, 0.3)[k % 2], size=atoms.positions.shape)
        atoms.rotate(10 * k, "z", rotate_cell=True)
        sheets.append(atoms)
    for _ in range(12):
        places = rng.random((6, 3)) * [1, 1, 0.15]
        sheets.append(Atoms("Mo2S4", scaled_positions=places, cell=(4.5 + rng.random(), 5 + rng.random(), 20), pbc=True))
    structures = {f"s{k}": matching.match_structure(atoms, True) for k, atoms in enumerate(sheets)}
    seen, expected, kept = matching.DifferentStructures(), {}, []
    for name, own in structures.items():
        expected[name] = next((other for other in kept if matching.same_structure(own, structures[other])), "")
        kept += [] if expected[name] else [name]
    assert {name: seen.find_or_add(name, own) for name, own in structures.items()} == expected
    assert 10 < len(kept) < len(sheets) - 10, "both outcomes are frequent"
