"""The structures of the baseline: the table, the CIFs written from it, and what they are."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from ase.io import read
from pymatgen.core import Composition

from energetics.baseline_set import TABLE, baseline_structures, write_baseline
from evaluation.reading import find_structures
from pipeline.files import PROJECT_DIR
from pipeline.loading import load_config
from pipeline.settings import DemoConfig

CIFS = PROJECT_DIR / "data" / "baseline"


@pytest.fixture(scope="module")
def structures():
    return baseline_structures()


def test_the_table_names_its_source_and_holds_sound_crystals(structures):
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    assert "github.com/Reinhard-Liu/2Dmaterial_gen" in content["source"] and "licence" in content
    assert len(structures) == 52 == len(content["structures"])
    formulas = Counter(Composition(str(atoms.symbols)).reduced_formula for atoms in structures.values())
    assert formulas[Composition("Tl2Ge2Cs4Ga").reduced_formula] == 1, "the first of them"
    assert sum(map(len, structures.values())) == sum(len(row["elements"]) for row in content["structures"]) == 541
    for name, atoms in structures.items():
        distances = atoms.get_all_distances(mic=True)[~np.eye(len(atoms), dtype=bool)]
        assert distances.min() > 1.2 and 5 < atoms.get_volume() / len(atoms) < 150, name


def test_the_committed_cifs_are_those_of_the_table(structures):
    assert [path.stem for path in find_structures(CIFS)] == sorted(structures)
    for name, atoms in structures.items():
        cif = read(CIFS / f"{name}.cif")  # by ASE, where pymatgen has written
        assert cif.symbols.get_chemical_formula() == atoms.symbols.get_chemical_formula(), name
        np.testing.assert_allclose(cif.cell.cellpar(), atoms.cell.cellpar(), atol=1e-5)
        order = [int(np.argmin(np.linalg.norm(residue(atoms.get_scaled_positions() - site), axis=1))) for site in sites(cif)]
        assert sorted(order) == list(range(len(atoms))), f"{name}: every atom once"
        assert list(atoms.symbols[order]) == list(cif.symbols), name
        assert np.abs(residue(atoms.get_scaled_positions()[order] - sites(cif))).max() < 1e-6, name


def sites(atoms):
    return atoms.get_scaled_positions()


def residue(difference):
    """Difference of fractional coordinates, to the nearest image."""
    return difference - np.round(difference)


def test_writing_again_gives_the_same_files_and_counts_the_kinds(tmp_path):
    counts = write_baseline(dataclasses.replace(DemoConfig(), baseline_cif_dir=str(tmp_path)), 0)
    assert counts == json.loads((CIFS / "manifest.json").read_text(encoding="utf-8"))["counts"]
    assert counts == {"cifs": 52, "sheet": 0, "bulk": 48, "layered bulk": 3, "chain": 1}
    for path in CIFS.glob("*.cif"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_it_is_what_stage_6_judges_unless_another_set_is_named(tmp_path, monkeypatch):
    default = load_config(None)
    assert default.external.cif_dir == str(CIFS) and default.external.name == "baseline"
    assert default.external.output_dir.endswith("external/baseline")
    monkeypatch.chdir(tmp_path)
    mine = load_config(None, ["external.cif_dir=my_cifs"])
    assert mine.external.name == "external" and mine.external.output_dir.endswith("external/external")
    assert load_config(None, ["external.cif_dir=my_cifs", "external.name=mine"]).external.name == "mine"
    assert load_config(None, [f"external.cif_dir={CIFS}"]).external.name == "baseline"
