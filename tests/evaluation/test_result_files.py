"""Tables and structures of an evaluation: empty cells, energies, forces, verdicts, and one order of the atoms."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import simple_judges as simple
from ase.calculators.emt import EMT
from ase.io import read
from pymatgen.io.vasp import Poscar

from crystals import cif, cif_writer
from crystals.prototypes import honeycomb
from energetics.potentials import Potential
from energetics.relaxation import relax_sheet
from evaluation import evaluate, finalists, result_files
from evaluation.candidate import CandidateResult
from pipeline.tasks import Serial


class WithForces(simple.Springs):
    """A potential under which nothing moves, with forces on the sheet."""

    def relax(self, atoms, bulk):
        found = super().relax(atoms, bulk)
        return SimpleNamespace(**vars(found), forces=np.arange(3.0 * len(atoms)).reshape(-1, 3))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    root = tmp_path_factory.mktemp("judged")
    sheet = cif_writer.in_cif_setting(simple.sheet())
    (root / "cifs").mkdir()
    (root / "cifs" / "a.cif").write_text(cif_writer.symmetric_cif(sheet, "a"), encoding="utf-8")
    (root / "cifs" / "broken.cif").write_text("data_x\n", encoding="utf-8")
    judges = dataclasses.replace(simple.judges(), potential=WithForces())
    return root, evaluate.evaluate(root / "cifs", judges, simple.SETTINGS, root / "out", "ours")


def test_missing_cells_are_empty(judged):
    root, evaluation = judged
    with (root / "out" / "metrics.csv").open(encoding="utf-8", newline="") as handle:
        table = {row["id"]: row for row in csv.DictReader(handle)}
    broken = evaluation.rows[1]
    for field in dataclasses.fields(CandidateResult):
        value = getattr(broken, field.name)
        missing = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
        assert (table["broken"][field.name] == "") is missing, field.name
    assert not {"nan", "None"} & {cell for row in table.values() for cell in row.values()}
    assert float(table["a"]["delta_g_ev"]) == pytest.approx(evaluation.rows[0].delta_g_ev, rel=1e-5)


def test_structures_carry_energy_forces_and_verdicts(judged):
    root, evaluation = judged
    (atoms,) = read(root / "out" / "relaxed.extxyz", ":", format="extxyz")
    row = evaluation.rows[0]
    assert atoms.get_potential_energy() == pytest.approx(row.energy_ev_per_atom * 3) == pytest.approx(-12.0)
    np.testing.assert_allclose(atoms.get_forces(), np.arange(9.0).reshape(3, 3))
    for name in (
        "hit",
        "p_hit",
        "delta_g_ev",
        "delta_g_std_ev",
        "delta_g_source",
        "e_above_hull_ev",
        "p_synth",
        "dimensionality",
        "status",
    ):
        assert atoms.info[name] == (pytest.approx(value) if isinstance(value := getattr(row, name), float) else value), name
    assert "e_above_hull_std_ev" not in atoms.info and math.isnan(row.e_above_hull_std_ev), "what is not known is left out"


def test_records_without_forces_give_none(judged, tmp_path):
    """Records of earlier runs have no forces; their structures have an energy alone. The key of a record is the same."""
    root, _ = judged
    for path in (root / "out" / "cache").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({key: value for key, value in content.items() if key != "forces"}), encoding="utf-8")
    evaluate.evaluate(root / "cifs", simple.judges(), simple.SETTINGS, tmp_path, "ours", cache_dir=root / "out" / "cache")
    (atoms,) = read(tmp_path / "relaxed.extxyz", ":", format="extxyz")
    assert atoms.get_potential_energy() == pytest.approx(-12.0) and "forces" not in atoms.arrays
    assert set(atoms.calc.results) == {"energy"}


def test_texts_of_any_kind_survive_in_the_structures(tmp_path):
    row = CandidateResult(id="x", formula="C2", status="relaxation: \"not\" = 'converged' {1} \n [2]", delta_g_source="potential")
    result_files.write_structures([row], {"x": simple.graphene_sheet()}, tmp_path / "x.extxyz")
    (atoms,) = read(tmp_path / "x.extxyz", ":", format="extxyz")
    assert atoms.info["status"] == "relaxation: \"not\" = 'converged' {1} [2]" and "energy" not in atoms.info


def test_a_relaxation_tells_the_forces_at_its_end():
    sheet = honeycomb("C", "C")
    found = relax_sheet(sheet, Potential("emt", {"name": "emt"}, EMT()), max_steps=2)
    again = found.atoms.copy()
    again.calc = EMT()
    np.testing.assert_allclose(found.forces, again.get_forces(), atol=1e-10)
    assert found.energy == pytest.approx(again.get_potential_energy())


def test_the_files_of_a_finalist_keep_the_order(tmp_path):
    """Every element of the sheet stands together as in its CIF, H last, in POSCAR and in the structures for DFT alike."""
    sheet = cif_writer.in_cif_setting(honeycomb("N", "C"))
    assert sheet.get_chemical_symbols() == ["C", "N"]
    row = CandidateResult(id="a", formula="CN")
    assert finalists.export_finalists([row], {"a": sheet}, Serial(simple.emt_judges), tmp_path, 300) == ["a"]
    clean, with_h = read(tmp_path / "a" / "dft.extxyz", ":")[:2]
    expected = [symbol for symbol in "CN" for _ in range(len(clean) // 2)]
    assert clean.get_chemical_symbols() == expected and with_h.get_chemical_symbols() == [*expected, "H"]
    assert read(tmp_path / "a" / "sheet.cif").get_chemical_symbols() == ["C", "N"]
    for folder in (tmp_path / "a" / "vasp").iterdir():
        poscar = Poscar.from_file(folder / "POSCAR", check_for_potcar=False).structure
        atoms = clean if folder.name == "clean" else with_h
        assert [site.specie.symbol for site in poscar] == atoms.get_chemical_symbols()
    # EMT, which knows little of C and N, tears the sheet around H; the atoms farther away are held.
    away = np.linalg.norm(with_h.positions[:-1] - clean.positions, axis=1)
    assert np.count_nonzero(away < 1e-6) >= len(clean) // 4, "each atom of the sheet keeps its number"


def test_one_order_of_the_sites_everywhere(judged, tmp_path):
    """CIF, ``relaxed.extxyz`` and the finalist's files: electropositive element first, atoms of one element in the same order."""
    root, evaluation = judged
    sheet = cif_writer.in_cif_setting(simple.sheet())
    assert sheet.get_chemical_symbols() == ["Mo", "S", "S"]
    frame = read(root / "out" / "relaxed.extxyz", format="extxyz")
    for atoms in (cif.read_cif(root / "cifs" / "a.cif"), frame, evaluation.structures["a"]):
        assert atoms.get_chemical_symbols() == sheet.get_chemical_symbols()
        heights = atoms.positions[:, 2] - atoms.positions[:, 2].mean()
        np.testing.assert_allclose(heights, sheet.positions[:, 2] - sheet.positions[:, 2].mean(), atol=1e-3)
    clean = sheet.repeat((2, 2, 1))
    order = finalists.site_order(clean)
    ordered = clean[order]
    assert ordered.get_chemical_symbols() == ["Mo"] * 4 + ["S"] * 8
    for element, places in (("Mo", range(4)), ("S", range(4, 12))):
        assert [order[k] for k in places] == sorted(i for i, symbol in enumerate(clean.symbols) if symbol == element)
    from pymatgen.io.ase import AseAtomsAdaptor

    finalists.write_vasp(tmp_path / "vasp", AseAtomsAdaptor.get_structure(ordered))
    poscar = Poscar.from_file(tmp_path / "vasp" / "POSCAR", check_for_potcar=False).structure
    assert [site.specie.symbol for site in poscar] == ordered.get_chemical_symbols()
    np.testing.assert_allclose(poscar.frac_coords % 1.0, ordered.get_scaled_positions() % 1.0, atol=1e-6)
