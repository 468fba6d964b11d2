"""The export of candidates."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from known_sheets import pbe_mos2
from pymatgen.core import Structure

from crystals.cif import cif_text
from generation.candidates import export_atoms


def test_cif_and_extxyz_agree(tmp_path):
    atoms = export_atoms(pbe_mos2(), 20.0)
    (tmp_path / "a.cif").write_text(cif_text(atoms, "gen_00001"))
    ase.io.write(tmp_path / "a.extxyz", atoms, format="extxyz")
    structure = Structure.from_file(tmp_path / "a.cif")
    again = ase.io.read(tmp_path / "a.extxyz")
    assert [s.Z for s in structure.species] == again.numbers.tolist()
    difference = structure.frac_coords - again.get_scaled_positions(wrap=False)
    difference -= np.round(difference)
    assert np.abs(difference @ again.cell.array).max() < 1e-4
    np.testing.assert_allclose(np.sort(structure.lattice.abc), np.sort(again.cell.lengths()), atol=1e-4)
    assert again.cell.lengths()[2] == pytest.approx(3.12 + 20.0, abs=1e-4)
    assert "data_gen_00001" in (tmp_path / "a.cif").read_text()
