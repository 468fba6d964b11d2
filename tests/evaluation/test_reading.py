"""Users' files: every kind gives the same crystal, and one that cannot be read is named while the rest goes on."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest
import simple_judges as simple
from ase import Atoms
from ase.build import molecule
from ase.db import connect
from ase.io import write

from crystals.cif import UnreadableCif, read_cif
from evaluation import evaluate, reading
from pipeline.errors import StageError


def write_kinds(folder) -> dict[str, str]:
    """Write one MoS2 as every kind of file, and return file -> id."""
    atoms = simple.sheet()
    simple.write_cifs(folder, {"plain": atoms})
    (folder / "packed.cif.gz").write_bytes(gzip.compress((folder / "plain.cif").read_bytes()))
    for name in ("POSCAR_mos2", "CONTCAR", "relaxed.vasp"):
        write(folder / name, atoms, format="vasp")
    write(folder / "one.extxyz", atoms, format="extxyz")
    write(folder / "two.xyz", [atoms, atoms], format="extxyz")
    (folder / "some.xyz.gz").write_bytes(gzip.compress((folder / "one.extxyz").read_bytes()))
    with connect(folder / "rows.db") as database:
        database.write(atoms)
    return {
        "plain.cif": "plain", "packed.cif.gz": "packed", "POSCAR_mos2": "POSCAR_mos2", "CONTCAR": "CONTCAR",
        "relaxed.vasp": "relaxed", "one.extxyz": "one", "some.xyz.gz": "some", "rows.db": "rows-1",
    }  # fmt: skip


def test_every_kind_of_file_is_the_same_crystal(tmp_path):
    ids = write_kinds(tmp_path / "in")
    sources = reading.sources_of(reading.find_structures(tmp_path / "in"), tmp_path / "out" / "made")
    evaluation = evaluate.evaluate(tmp_path / "in", simple.judges(), simple.SETTINGS, tmp_path / "out", "mine", sources=sources)
    rows = {row.id: row for row in evaluation.rows}
    assert set(rows) == {*ids.values(), "two-1", "two-2"}
    assert {rows[name].source_file for name in ids.values()} == set(ids) and rows["two-2"].source_file == "two.xyz"
    expected = evaluation.structures["plain"]
    distances = np.sort(expected.get_all_distances(mic=True), axis=None)
    for name, row in rows.items():
        found = evaluation.structures[name]
        assert row.status == "ok" and row.valid and row.reduced_formula == "MoS2", name
        assert row.layer_group == rows["plain"].layer_group, name
        np.testing.assert_allclose(np.sort(found.get_all_distances(mic=True), axis=None), distances, atol=1e-4)
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == sorted([*ids, "two.xyz"]), "nothing is written beside the input"


def test_a_file_that_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path, caplog):
    folder = tmp_path / "in"
    simple.write_cifs(folder, {"good": simple.sheet()})
    write(folder / "molecule.xyz", molecule("H2O"), format="extxyz")
    (folder / "POSCAR_old").write_text("MoS2\n1.0\n3.2 0 0\n-1.6 2.8 0\n0 0 20\n1 2\nDirect\n0 0 0\n0 0 0.4\n0 0 0.6\n")
    (folder / "broken.cif.gz").write_bytes(b"\x1f\x8b not gzip")
    (folder / "bomb.vasp.gz").write_bytes(gzip.compress(b" " * 6_000_000))
    (folder / "no.db").write_bytes(b"not a database")
    (folder / "prose.extxyz").write_text("this is no crystal\n")
    (folder / "empty.vasp").write_text("")
    (folder / "notes.txt").write_text("x")
    caplog.set_level("INFO", logger="her2d")
    sources = reading.sources_of(reading.find_structures(folder), tmp_path / "out" / "made")
    assert "'notes.txt'" in caplog.text
    evaluation = evaluate.evaluate(folder, simple.judges(), simple.SETTINGS, tmp_path / "out", "mine", sources=sources)
    status = {row.source_file: row.status for row in evaluation.rows}
    assert status.pop("good.cif") == "ok" and len(status) == 7
    for name, reason in {
        "molecule.xyz": "no unit cell", "POSCAR_old": "names no elements", "broken.cif.gz": "gzip", "bomb.vasp.gz": "larger than",
        "no.db": "", "prose.extxyz": "no readable XYZ", "empty.vasp": "empty",
    }.items():  # fmt: skip
        assert status[name].startswith("unreadable: ") and reason in status[name], name
    assert evaluation.aggregates["rate_valid"].value == pytest.approx(1 / 8)


def test_a_sheet_without_a_third_cell_vector_gets_vacuum(tmp_path):
    bare = simple.sheet()
    bare.pbc = (True, True, False)
    for cell in (np.diag([1.0, 1.0, 0.0]), np.diag([1.0, 1.0, 0.2])):
        atoms = bare.copy()
        atoms.set_cell(bare.cell.array @ cell)
        path = tmp_path / "x.cif"
        path.write_text(reading.crystal_text(atoms))
        made = read_cif(path)
        assert made.cell.lengths()[2] == pytest.approx(2 * reading.SIDE_VACUUM + np.ptp(atoms.positions[:, 2]), abs=1e-4)
        np.testing.assert_allclose(made.get_distance(0, 1, mic=True), bare.get_distance(0, 1, mic=True), atol=1e-4)
    for wrong, reason in (
        (Atoms("H", cell=[3, 3, 0], pbc=True), "no unit cell"),
        (Atoms("X", cell=[3, 3, 9], pbc=True), "unknown element"),
        (Atoms(cell=[3, 3, 9]), "no atoms"),
        (Atoms("C", positions=[(np.nan, 0, 0)], cell=[3, 3, 9]), "finite"),
    ):
        with pytest.raises(UnreadableCif, match=reason):
            reading.crystal_text(wrong)


def test_a_copy_beside_its_cifs_is_left_out(tmp_path):
    atoms = simple.sheet()
    simple.write_cifs(tmp_path, {"gen_00001": atoms})
    atoms.info["id"] = "gen_00001"
    write(tmp_path / "candidates.extxyz", atoms, format="extxyz")
    files = reading.find_structures(tmp_path)
    assert [s.file.name for s in reading.sources_of(files, tmp_path / "made")] == ["gen_00001.cif"]
    atoms.info["id"] = "another"
    write(tmp_path / "candidates.extxyz", atoms, format="extxyz")
    assert len(reading.sources_of(files, tmp_path / "made")) == 2


def test_one_file_is_a_set_and_nothing_to_read_is_one_line(tmp_path):
    with connect(tmp_path / "rows.db") as database:
        for formula in ("MoS2", "WS2"):
            database.write(simple.sheet(formula))
    sources = reading.sources_of(reading.find_structures(tmp_path / "rows.db"), tmp_path / "made")
    assert [source.stem for source in sources] == ["rows-1", "rows-2"]
    (tmp_path / "in").mkdir()
    for place, reason in (("in", "no structure in"), ("none", "no folder of CIFs"), ("in/x.pdf", "of no kind that is read")):
        (tmp_path / "in" / "x.pdf").write_text("x")
        with pytest.raises(StageError, match=reason):
            reading.find_structures(tmp_path / place)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "x.xyz")
    with pytest.raises(StageError, match="no structure"):
        reading.find_structures(tmp_path)
