"""Export of finalists: files that DFT codes and verify_dft.py read."""

import json

import numpy as np
import pytest
import simple_judges as simple
from ase.io import read
from pymatgen.io.vasp import Incar, Kpoints, Poscar

from crystals.prototypes import honeycomb
from evaluation import finalists
from evaluation.candidate import CandidateResult
from pipeline.tasks import Serial
from scripts import verify_dft


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finalists")
    sheet = honeycomb("C", "C")
    stale = folder / "gen_0009"
    stale.mkdir()
    (stale / "finalist.json").write_text("{}")
    foreign = folder / "my notes"
    foreign.mkdir()
    row = CandidateResult(id="gen_0001", formula="C2", delta_g_h_ev=0.1)
    ids = finalists.export_finalists([row], {"gen_0001": sheet}, Serial(simple.emt_judges), folder, 400)
    return folder, ids


def test_old_finalists_go_and_foreign_folders_stay(exported):
    folder, ids = exported
    assert ids == ["gen_0001"]
    assert sorted(p.name for p in folder.iterdir()) == ["gen_0001", "my notes"]


def test_verify_dft_reads_the_export(exported):
    folder, _ = exported
    name, clean, sites = verify_dft.read_system(folder / "gen_0001" / "dft.extxyz")
    content = json.loads((folder / "gen_0001" / "finalist.json").read_text())
    assert name == "gen_0001" and list(sites) == [site["site"] for site in content["sites"]]
    assert content["candidate"]["formula"] == "C2" and "scripts/verify_dft.py" in content["next"]
    for label, atoms in sites.items():
        cif = read(folder / "gen_0001" / f"H_{label}.cif")
        assert cif.get_chemical_formula() == atoms.get_chemical_formula() and len(atoms) == len(clean) + 1


def test_vasp_inputs_fit_the_structure(exported):
    folder, _ = exported
    runs = sorted(p.name for p in (folder / "gen_0001" / "vasp").iterdir())
    assert runs[0].startswith("H_") and runs[-1] == "clean"
    for run in runs:
        path = folder / "gen_0001" / "vasp" / run
        structure = Poscar.from_file(path / "POSCAR", check_for_potcar=False).structure
        incar, kpoints = Incar.from_file(path / "INCAR"), Kpoints.from_file(path / "KPOINTS")
        assert incar["ISIF"] == 2 and incar["IDIPOL"] == 3 and incar.get("LDAU") is False
        assert len(incar["MAGMOM"]) == len(structure)
        assert kpoints.kpts[0][2] == 1
        lengths = np.array(structure.lattice.abc[:2])
        np.testing.assert_array_equal(kpoints.kpts[0][:2], np.ceil(25.0 / lengths))
        assert (path / "POTCAR.spec").read_text().split() == list(dict.fromkeys(str(s.specie) for s in structure))
        assert ("H" in structure.symbol_set) == run.startswith("H_")
