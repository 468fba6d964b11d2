"""Single points by VASP: the inputs that are written, and the results that are read back."""

import gzip

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.db import connect
from ase.io import read
from pymatgen.io.vasp import Incar, Kpoints, Poscar
from vasp_files import outcar, vasprun

from crystals.prototypes import honeycomb
from energetics import dft_inputs
from energetics.dft_calculation import boxed, hydrogen_molecule
from energetics.dft_points import read_truth
from energetics.dft_rows import GIVEN, add_points
from energetics.potentials import Potential
from evaluation import vasp_points
from pipeline.errors import StageError

ENERGIES = {"clean": -70.0, "H_a": -73.1, "H_b": -72.9, "H2": -6.75}


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    """Graphene with two sites as an input for DFT; its file."""
    potential = Potential("emt", {"name": "emt"}, EMT())
    clean, found = dft_inputs.relaxed_sites(honeycomb("C", "C"), potential, 4.0, fmax=0.3, max_steps=30)
    path = tmp_path_factory.mktemp("input") / "dft.extxyz"
    first = found[0][1]
    dft_inputs.write_dft_input(path, "r1-gen_00001", clean, [("a", first), ("b", first)], "sevennet-0")
    return path


def written(sheet, folder):
    names = vasp_points.write_calculations({"r1-gen_00001": sheet}, folder)
    assert names == ["H2", "r1-gen_00001/clean", "r1-gen_00001/H_a", "r1-gen_00001/H_b"]
    return names


def answer(folder, names, text=vasprun, file="vasprun.xml", **arguments):
    """Write the results of VASP into the folders of the inputs."""
    for name in names:
        atoms = read(folder / name / "POSCAR")
        (folder / name / file).write_text(text(atoms, ENERGIES[name.split("/")[-1]], **arguments))


def test_inputs_are_single_points_with_the_names_of_the_potentials(sheet, tmp_path):
    for name in written(sheet, tmp_path):
        folder = tmp_path / name
        incar, structure = Incar.from_file(folder / "INCAR"), Poscar.from_file(folder / "POSCAR", check_for_potcar=False).structure
        assert incar["NSW"] == 0 and incar["IBRION"] == -1 and "ISIF" not in incar and incar.get("LDAU") is False
        assert ("LDIPOL" in incar) == (name != "H2") and len(incar["MAGMOM"]) == len(structure)
        assert (folder / "POTCAR.spec").read_text().split() == list(dict.fromkeys(str(s.specie) for s in structure))
        assert not (folder / "POTCAR").exists()
    lengths = read(sheet, index=0).cell.lengths()[:2]
    kpoints = Kpoints.from_file(tmp_path / "r1-gen_00001/clean/KPOINTS").kpts[0]
    assert list(kpoints) == [*np.ceil(25.0 / lengths), 1] and Kpoints.from_file(tmp_path / "H2" / "KPOINTS").kpts[0][2] == 1


def test_inputs_that_are_there_stay(sheet, tmp_path):
    names = written(sheet, tmp_path)
    (tmp_path / names[1] / "INCAR").write_text("NCORE = 4\n")
    written(sheet, tmp_path)
    assert (tmp_path / names[1] / "INCAR").read_text() == "NCORE = 4\n"


@pytest.mark.parametrize("how", ["vasprun", "outcar", "compressed"])
def test_results_make_the_points_of_the_database(sheet, tmp_path, how):
    names = written(sheet, tmp_path)
    answer(tmp_path, names, *((outcar, "OUTCAR") if how == "outcar" else ()))
    if how == "compressed":
        for name in names:
            path = tmp_path / name / "vasprun.xml"
            path.with_name("vasprun.xml.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    found = vasp_points.read_calculations({"r1-gen_00001": sheet}, tmp_path)
    assert not found.missing and not found.failed
    add_points(tmp_path / "points.db", found.systems, GIVEN, vasp_points.VASP)
    rows = list(connect(tmp_path / "points.db").select())
    assert [row.kind for row in rows] == ["clean", "slab_H", "slab_H"] and {row.dft_by for row in rows} == {"vasp"}
    points = read_truth(tmp_path / "points.db")
    assert [point.delta_e for point in points] == pytest.approx([-73.1 + 70 + 3.375, -72.9 + 70 + 3.375])
    assert points[0].host == "C" and points[0].energies["sevennet-0"] == read(sheet, index=1).info["delta_e_potential_ev"]
    np.testing.assert_allclose(points[0].atoms.positions, boxed(read(sheet, index=1)).positions, atol=1e-6)


def test_what_is_missing_and_what_failed_is_named(sheet, tmp_path):
    names = written(sheet, tmp_path)
    answer(tmp_path, names[:2])
    answer(tmp_path, names[3:], steps=60)
    found = vasp_points.read_calculations({"r1-gen_00001": sheet}, tmp_path)
    assert found.missing == ["r1-gen_00001/H_a"] and not found.systems
    assert "have not converged" in found.failed["r1-gen_00001/H_b"]


@pytest.mark.parametrize(
    ("text", "file", "complaint"),
    [
        (lambda a: vasprun(a, -1.0)[:900], "vasprun.xml", "cannot be read"),
        (lambda a: "", "OUTCAR", "cannot be read"),
        (lambda a: vasprun(a, -1.0, steps=60), "vasprun.xml", "have not converged"),
        (lambda a: outcar(a, -1.0, converged=False), "OUTCAR", "have not converged"),
        (lambda a: vasprun(a[[0]], -1.0), "vasprun.xml", "is of H, not of H2"),
        (lambda a: vasprun(shifted(a), -1.0), "vasprun.xml", "0.30 Å from its place"),
        (lambda a: vasprun(a, float("nan")), "vasprun.xml", "not finite"),
    ],
)
def test_a_result_that_cannot_be_used_says_why(tmp_path, text, file, complaint):
    atoms = hydrogen_molecule()
    (tmp_path / file).write_text(text(atoms))
    with pytest.raises(vasp_points.NoResult, match=complaint):
        vasp_points.read_result(tmp_path / file, atoms)


def shifted(atoms):
    out = atoms.copy()
    out.positions[1, 0] += 0.3
    return out


def test_an_atom_on_the_other_side_of_the_cell_is_the_same_atom(tmp_path):
    atoms = hydrogen_molecule()
    moved = atoms.copy()
    moved.positions[0] += atoms.cell[0]
    (tmp_path / "vasprun.xml").write_text(vasprun(moved, -6.75))
    assert vasp_points.read_result(tmp_path / "vasprun.xml", atoms)[0] == pytest.approx(-6.75)


def test_relaxed_results_are_of_the_last_places_of_the_atoms(sheet, tmp_path):
    vasp_points.write_calculations({"x": sheet}, tmp_path, 5)
    assert Incar.from_file(tmp_path / "x" / "clean" / "INCAR")["NSW"] == 5
    frames = vasp_points.frames_of(sheet)
    for label, energy in zip(frames, (-70.0, -73.2, -72.9), strict=True):
        (tmp_path / "x" / label / "vasprun.xml").write_text(vasprun(shifted(frames[label]), energy))
    (tmp_path / "H2" / "vasprun.xml").write_text(vasprun(hydrogen_molecule(), -6.75))
    found = vasp_points.read_calculations({"x": sheet}, tmp_path, relaxed=True)
    assert not found.missing and not found.failed
    (system,) = found.systems
    assert system.sites[0].delta_e == pytest.approx(-73.2 + 70 + 3.375)
    for atoms, label in ((system.clean, "clean"), (system.sites[0].atoms, list(frames)[1])):
        np.testing.assert_allclose(atoms.positions, boxed(shifted(frames[label])).positions, atol=1e-6)


def test_a_file_that_is_no_input_is_named(tmp_path):
    (tmp_path / "dft.extxyz").write_text("nonsense")
    with pytest.raises(StageError, match="is no input for DFT"):
        vasp_points.write_calculations({"x": tmp_path / "dft.extxyz"}, tmp_path / "out")
