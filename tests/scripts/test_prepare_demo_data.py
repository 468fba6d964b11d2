"""The embedded data: how it is built, that building resumes, and what is committed."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.data import chemical_symbols
from ase.db import connect

import geo_utils as geo
from crystals.prototypes import PROTOTYPES
from energetics import adsorption_records
from energetics import embedded_data as stage0
from energetics.hull import References
from pipeline.loading import load_config
from pipeline.settings import DemoConfig, RunConfig

ROOT = Path(__file__).resolve().parents[2]
DEMO_DB = ROOT / "data" / "demo_c2db.db"
DEMO_LMDB = ROOT / "data" / "demo_is2re" / "data.lmdb"


def settings(tmp_path, **values):
    overrides = [
        f"demo.db_path={tmp_path / 'demo.db'}",
        f"demo.lmdb_path={tmp_path / 'is2re' / 'data.lmdb'}",
        f"demo.references_path={tmp_path / 'references.json.gz'}",
        f"demo.random_cif_dir={tmp_path / 'random'}",
        f"demo.known_cif_dir={tmp_path / 'known'}",
        f"demo.baseline_cif_dir={tmp_path / 'baseline'}",
        f"demo.work_dir={tmp_path / 'work'}",
        "demo.workers=1",
        "demo.num_monolayers=2",
        "demo.num_adsorption=3",
        "demo.num_random=4",
        "demo.max_steps=12",
        "demo.max_h_steps=4",
    ]
    return load_config(None, overrides + [f"demo.{key}={value}" for key, value in values.items()])


def test_tasks_are_balanced_seeded_and_unique():
    demo = DemoConfig(num_monolayers=56)
    tasks = stage0.monolayer_tasks(demo, 0)
    assert len({task["key"] for task in tasks}) == len(tasks) == 56
    assert {task["prototype"] for task in tasks} == set(PROTOTYPES)
    assert tasks == stage0.monolayer_tasks(demo, 0) and tasks != stage0.monolayer_tasks(demo, 1)


def test_reference_tasks_cover_every_element_and_pair():
    tasks = stage0.reference_tasks([{"elements": ["Mo", "S"]}, {"elements": ["Ti", "C", "O"]}])
    elements = {task["elements"][0] for task in tasks if task["kind"] == "element"}
    pairs = {tuple(task["elements"]) for task in tasks if task["kind"] == "binary"}
    assert {"Mo", "S", "Ti", "C", "O", "H"} <= elements
    assert {("Mo", "S"), ("Ti", "C"), ("Ti", "O")} <= pairs
    assert {("Mo", "O"), ("Ti", "S"), ("Pt", "S")} <= pairs, "pairs that no monolayer has are competitors of new compositions"
    assert not {("Mo", "Ti"), ("H", "O"), ("S", "O")} & pairs


def potential_number(name, checkpoint):
    """Stands in for a potential."""
    return len(name)


def relax_once(potential, settings, key, number):
    """Leaves a trace of every call."""
    with (Path(settings.work_dir) / "calls").open("a") as handle:
        handle.write(key)
    return {"key": key, "energy": potential + number / 3}


def test_unfinished_lines_are_relaxed_again_and_done_ones_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(stage0, "load_potential", potential_number)
    demo = DemoConfig(work_dir=str(tmp_path), workers=2, potential="four")
    tasks = [{"key": key, "number": n} for n, key in enumerate("abc")]
    expected = [{"key": key, "energy": 4 + n / 3} for n, key in enumerate("abc")]
    assert stage0.relax_all("x", relax_once, tasks, demo, RunConfig()) == expected
    path = tmp_path / "x.jsonl"
    lines = sorted(path.read_text().splitlines())
    assert [json.loads(line) for line in lines] == expected, "one line with its key for every task"
    (tmp_path / "calls").unlink()
    path.write_text(lines[0] + "\n{damaged\n" + lines[2] + "\n" + lines[1][:-5])
    assert stage0.relax_all("x", relax_once, tasks, demo, RunConfig()) == expected
    assert (tmp_path / "calls").read_text() == "b" and sorted(path.read_text().splitlines()) == lines
    assert stage0.relax_all("x", relax_once, tasks, demo, RunConfig()) == expected and (tmp_path / "calls").read_text() == "b"


def test_metal_surfaces_carry_one_hydrogen_and_a_fixed_layer():
    task = {"surface": "fcc111", "element": "Pt", "site": "fcc", "lattice": {"a": 3.97}, "height": 0.95, "seed": [0, 1]}
    atoms, description = adsorption_records.surface_with_hydrogen(task)
    assert atoms.get_tags().tolist().count(geo.H_TAG) == 1 and atoms.symbols[-1] == "H"
    assert len(atoms.constraints[0].index) == 4 and atoms.positions[:, 2].min() >= 0
    assert description["bulk_formula"] == "Pt" and description["coverage"] == 0.25
    assert atoms.pbc.tolist() == [True, True, False]


@pytest.mark.slow
def test_a_small_build_and_its_repetition(tmp_path, monkeypatch):
    from energetics.is2re_lmdb import open_is2re

    for module in (stage0, adsorption_records):
        monkeypatch.setattr(module, "SURFACE_METALS", ["Cu"])
    tasks_of = stage0.reference_tasks

    def one_phase_each(monolayers):
        """The first phase of every element and pair: the others cost time and add nothing here."""
        return list({(task["kind"], *task["elements"]): task for task in reversed(tasks_of(monolayers))}.values())

    monkeypatch.setattr(stage0, "reference_tasks", one_phase_each)
    stage0.build_parts(settings(tmp_path))
    rows = list(connect(tmp_path / "demo.db").select())
    assert rows and {"uid", "hform", "ehull", "prototype"} <= set(rows[0].key_value_pairs)
    references = References.load(tmp_path / "references.json.gz")
    for row in rows:
        atoms = row.toatoms()
        assert geo.sheet_connectivity(atoms).is_single_sheet
        assert row.ehull == pytest.approx(references.e_above_hull(atoms, row.energy_potential)) and row.ehull >= -1e-9
    records = list(open_is2re(tmp_path / "is2re" / "data.lmdb"))
    assert len(records) == 3
    assert len(list((tmp_path / "random").glob("*.cif"))) == 4
    products = {p: p.read_bytes() for p in [tmp_path / "references.json.gz", *sorted((tmp_path / "random").glob("*.cif"))]}
    # Cut the last line of every intermediate file as a kill would, and start again.
    for path in (tmp_path / "work").glob("*.jsonl"):
        path.write_bytes(path.read_bytes()[:-20])
    stage0.build_parts(settings(tmp_path))
    for path, content in products.items():
        assert path.read_bytes() == content, path.name


# ------------------------------------------------------------------------------------------------------ the committed products


def test_the_committed_database():
    rows = list(connect(DEMO_DB).select())
    assert len(rows) >= 600
    assert len({row.prototype for row in rows}) >= 14
    assert len({symbol for row in rows for symbol in row.symbols}) >= 40
    assert max(row.natoms for row in rows) <= 12
    assert len({row.uid for row in rows}) == len(rows)
    assert max(row.ehull for row in rows) < 3
    references = References.load(ROOT / "data" / "references_sevennet-l3i5.json.gz")
    for row in rows[::25]:
        atoms = row.toatoms()
        assert geo.sheet_connectivity(atoms).is_single_sheet and not geo.has_clash(atoms)
        assert row.hform == pytest.approx(references.e_form(atoms, row.energy_potential), abs=1e-6)
        assert row.ehull == pytest.approx(references.e_above_hull(atoms, row.energy_potential), abs=1e-6)
        assert row.ehull >= -1e-9, "the monolayers themselves are among the competing phases"


def test_the_committed_database_against_pbe():
    """In-plane lattice constants (Å) of C2DB/PBE and formation energies (eV/atom) of well-known sheets."""
    known = {"MoS2-2H-MX2": (3.18, -0.90), "BN-hBN": (2.51, -1.32), "PtSe2-1T-MX2": (3.75, -0.39), "HfS2-1T-MX2": (3.64, None)}
    found = 0
    for row in connect(DEMO_DB).select():
        if row.uid in known:
            lattice, hform = known[row.uid]
            found += 1
            assert np.linalg.norm(row.cell[0]) == pytest.approx(lattice, rel=0.02), row.uid
            if hform is not None:
                assert row.hform == pytest.approx(hform, abs=0.15), row.uid
    assert found >= 2


def test_the_committed_adsorption_records():
    from energetics.is2re_lmdb import open_is2re

    energies, families, count = [], set(), 0
    for record in open_is2re(DEMO_LMDB):
        count += 1
        numbers, tags = np.asarray(record.atomic_numbers), np.asarray(record.tags)
        assert (tags == geo.H_TAG).sum() == 1 and chemical_symbols[int(numbers[tags == geo.H_TAG][0])] == "H"
        assert np.asarray(record.cell).shape == (1, 3, 3)
        assert record.pos_relaxed.shape == record.pos.shape and record.fixed.shape == tags.shape
        assert np.isfinite([record.y_init, record.y_relaxed]).all()
        energies.append(record.y_relaxed)
        families.add(record.extra["family"])
    assert count >= 800 and len(families) >= 14
    assert any(family.startswith("metal") for family in families)
    assert np.isfinite(energies).all() and -3 < np.median(energies) < 3
