"""CIFs with their symmetry: other programs find every atom, and reading gives the same crystal in the same order."""

from __future__ import annotations

import warnings

import ase.io
import numpy as np
import pytest
import spglib
from ase import Atoms
from pymatgen.io.cif import CifParser

from crystals import cif, cif_writer
from crystals.matching import match_structure, same_structure
from crystals.prototypes import PROTOTYPES
from pipeline.files import PROJECT_DIR

GENERATED = PROJECT_DIR / "results" / "generated_cifs"


def space_group(atoms: Atoms) -> int:
    return spglib.get_symmetry_dataset((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=1e-3).number


def same_in_order(one: Atoms, other: Atoms) -> bool:
    """Whether both have the same cell, and each atom of one lies within 2e-3 Å of the atom of that number of the other."""
    away = one.get_scaled_positions() - other.get_scaled_positions()
    metric_of = [atoms.cell.array @ atoms.cell.array.T for atoms in (one, other)]
    return (
        one.numbers.tolist() == other.numbers.tolist()
        and np.allclose(*metric_of, atol=1e-4)
        and bool((np.linalg.norm((away - np.round(away)) @ one.cell.array, axis=1) < 2e-3).all())
    )


def first_sheets() -> list[tuple[str, Atoms]]:
    return [(name, prototype.build(*next(prototype.decorations()))) for name, prototype in PROTOTYPES.items()]


def check(atoms: Atoms, path) -> None:
    """Write a sheet with shuffled atoms, and read it with our reader, with ASE and with pymatgen."""
    shuffled = atoms[np.random.default_rng(0).permutation(len(atoms))]
    written = cif_writer.in_cif_setting(shuffled)
    assert same_structure(match_structure(written, True), match_structure(atoms, True)), "a sheet is only moved"
    path.write_text(cif_writer.symmetric_cif(written, "x"), encoding="utf-8")
    read = cif.read_cif(path)
    assert same_in_order(read, written)
    assert f"_symmetry_Int_Tables_number   {space_group(atoms)}\n" in path.read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_ase = ase.io.read(path)
        by_pymatgen = CifParser(path).parse_structures(primitive=False)[0].to_ase_atoms()
    for other in (read, by_ase, by_pymatgen):
        assert sorted(other.numbers) == sorted(atoms.numbers) and space_group(other) == space_group(atoms)


def test_every_generated_cif(tmp_path):
    frames = ase.io.read(GENERATED / "candidates.extxyz", ":")
    assert len(frames) >= 30
    for atoms in frames:
        check(cif.read_cif(GENERATED / f"{atoms.info['id']}.cif"), tmp_path / "x.cif")
        check(atoms, tmp_path / "x.cif")


def test_every_prototype(tmp_path):
    for _, atoms in first_sheets():
        check(atoms, tmp_path / "x.cif")


def test_the_text_of_molybdenum_disulfide(tmp_path):
    atoms = PROTOTYPES["2H-MX2"].build("Mo", "S")
    text = cif_writer.symmetric_cif(atoms, "gen_00000")
    assert text.startswith("data_gen_00000\n_symmetry_space_group_name_H-M   'P-6m2'\n")
    assert "_chemical_formula_structural   MoS2\n" in text and "'Mo1 S2'" in text
    assert text.count("\n  12  '") == 1 and "\n  13  '" not in text, "P-6m2 has twelve operations"
    assert text.count("  Mo0  1  ") == 1 and text.count("  S1  2  ") == 1


def test_crystals_without_symmetry_are_p1(tmp_path):
    rng = np.random.default_rng(1)
    scaled = rng.random((4, 3)) * [1, 1, 0.08] + [0, 0, 0.46]
    atoms = Atoms("SMoTeW", scaled_positions=scaled, cell=[[7, 0, 0], [1.1, 8, 0], [0, 0, 24]], pbc=True)
    check(atoms, tmp_path / "x.cif")
    assert "'P1'" in cif_writer.symmetric_cif(atoms, "x")
    assert cif_writer.in_cif_setting(atoms).get_chemical_symbols() == ["Te", "Mo", "W", "S"]  # 2.10, 2.16, 2.36, 2.58


@pytest.mark.parametrize(
    ("rotation", "shift", "text"),
    [
        (np.eye(3, dtype=int), (0, 0, 0), "x, y, z"),
        ([[0, -1, 0], [1, -1, 0], [0, 0, 1]], (1 / 3, 2 / 3, 0.5), "-y+1/3, x-y+2/3, z+1/2"),
        (-np.eye(3, dtype=int), (0.374778, 1 - 1e-9, -0.25), "-x+0.37477800, -y, -z+3/4"),
    ],
)
def test_operations_as_text(rotation, shift, text):
    assert cif_writer.operation_text(np.array(rotation), np.array(shift)) == text
