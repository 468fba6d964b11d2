"""Sheets moved by the refiner: symmetry, storage, independence of the batch, and stage 4 with it and with known crystals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import ase.db
import numpy as np
import pytest
import torch
from ase.build import mx2
from tiny_sheets import make_schedule

from crystals import database
from crystals.prototypes import PROTOTYPES
from crystals.recipes import FORMULA, Recipe
from crystals.symmetry import symmetrise
from crystals.templates import TemplateLibrary
from generation import sheet_table
from generation.candidates import Plan, SampleStore, generation_fingerprint, plan_candidate, sample_candidates
from generation.generate import known_starts
from generation.refinement import load_refiner, new_refiner, padded, refined_sheets, save_refiner, unpadded
from geo_utils import Sheet
from networks.checkpoints import CheckpointError
from networks.sheet_trunk import TrunkConfig
from pipeline.errors import StageError
from pipeline.loading import load_config

SMALL = TrunkConfig(channels=16, vectors=4, tensors=4, layers=1, neighbours=12, rbf=8)


def sheet_of(formula: str, kind: str = "2H", a: float = 3.2) -> Sheet:
    atoms = mx2(formula, kind, a=a, thickness=3.1, vacuum=10)
    atoms.pbc = (True, True, False)
    return Sheet.from_atoms(atoms)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A random small network whose outputs are large enough to matter."""
    torch.manual_seed(0)
    network = new_refiner(SMALL).eval()
    torch.nn.init.normal_(network.gates[-1].weight, std=0.5)
    save_refiner(tmp_path / "refiner.pth", network, formulas_seen=["MoS2"])
    return tmp_path / "refiner.pth"


def test_moved_sheets_keep_their_symmetry(checkpoint):
    for kind, group in (("2H", 78), ("1T", 72)):
        start = sheet_of("WSe2", kind)
        found = refined_sheets(str(checkpoint), [start], 2)[0]
        assert sorted(found.atomic_numbers.tolist()) == [34, 34, 74]
        assert symmetrise(found, 1e-3)[1].layer_group_number == group
        assert not np.allclose(found.lattice, start.lattice, atol=1e-3), "the network moves the start"


def test_a_sheet_does_not_depend_on_its_batch(checkpoint):
    sheets = [sheet_of("WSe2"), Sheet.from_atoms(sheet_of("NbTe2", "1T", 3.6).repeat(2, 1))]
    together = refined_sheets(str(checkpoint), sheets, 2)
    for sheet, found in zip(sheets, together, strict=True):
        alone = refined_sheets(str(checkpoint), [sheet], 2)[0]
        assert (alone.frac_coords == found.frac_coords).all() and (alone.lattice == found.lattice).all()
        assert (alone.heights == found.heights).all()
    assert refined_sheets(str(checkpoint), [], 2) == []


def test_batches_are_padded_and_unpadded():
    sheets = [sheet_of("WSe2"), Sheet.from_atoms(sheet_of("MoS2").repeat(2, 1))]
    for before, after in zip(sheets, unpadded(padded(sheets, torch.float64)), strict=True):
        assert (before.atomic_numbers == after.atomic_numbers).all() and np.allclose(before.lattice, after.lattice, atol=1e-5)


def test_a_damaged_checkpoint_is_one_line(checkpoint, tmp_path):
    assert load_refiner(checkpoint)[1]["formulas_seen"] == ["MoS2"]
    content = torch.load(checkpoint, weights_only=True)
    del content["model"]["embed.weight"]
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit this version"):
        load_refiner(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="refiner checkpoint"):
        load_refiner(tmp_path / "none.pth")


def test_stage_four_moves_what_it_sampled(checkpoint, tmp_path, monkeypatch):
    sampled = [sheet_of("WSe2")]
    monkeypatch.setattr("generation.candidates.sample", lambda *arguments: sampled)
    plan = Plan(0, Recipe("WSe2", (74, 34, 34), FORMULA), None, (74, 34, 34))
    model = SimpleNamespace(schedule=make_schedule())
    found = []
    for asked in ("false", "true"):
        cfg = load_config(None, [f"generation.refiner_checkpoint={checkpoint}", f"generation.refine_samples={asked}"])
        found.append(sample_candidates(model, [plan], cfg, SampleStore(tmp_path / asked, "x"), "cpu")[0].sheet)
    assert np.allclose(found[0].lattice, sampled[0].lattice) and not np.allclose(found[1].lattice, sampled[0].lattice, atol=1e-3)
    assert symmetrise(found[1], 1e-3)[1].layer_group_number == 78


def processed_dir(folder: Path) -> Path:
    """Stage 2's training split with one 2H and its validation split with one 1T crystal."""
    sheets = [sheet_of("MoS2"), sheet_of("PtS2", "1T", 3.5)]
    rows = [
        database.Row(k, f"u{k}", s, f, "", 0.0, 0.0, 1.0) for k, (s, f) in enumerate(zip(sheets, ("MoS2", "PtS2"), strict=True))
    ]
    for name, row in zip(sheet_table.KNOWN_SPLITS, rows, strict=True):
        torch.save(sheet_table.pack([row], {}), folder / f"{name}.pt")
    return folder


def test_a_formula_starts_from_the_nearest_crystals_in_turn(tmp_path, monkeypatch):
    crystals = sheet_table.known_crystals(sheet_table.read_known(processed_dir(tmp_path)))
    recipes = [Recipe("WSe2", (74, 34, 34), FORMULA), Recipe("C2", (6, 6), FORMULA)]
    plans = [plan_candidate(k, recipes, TemplateLibrary([], []), 1.0, 0, crystals) for k in range(5)]
    groups = [symmetrise(plans[k].start, 1e-3)[1].layer_group_number for k in (0, 2, 4)]
    assert groups[:2] == [78, 72] and groups[2] in (72, 78), "W is nearer to Mo than to Pt; there are two crystals only"
    assert plans[1].start is None, "no crystal has two atoms of one element"
    monkeypatch.setattr("generation.candidates.sample", lambda *arguments: pytest.fail("no noise is needed"))
    model = SimpleNamespace(schedule=make_schedule())
    cfg = load_config(None, ["generation.refine_steps=0"])
    found = sample_candidates(model, plans[:1], cfg, SampleStore(tmp_path / "store", "x"), "cpu")
    assert np.allclose(found[0].sheet.lattice, plans[0].start.lattice)


def test_a_run_depends_on_the_refiner_and_the_crystals_where_it_uses_them(checkpoint, tmp_path):
    overrides = [f"dataset.processed_dir={processed_dir(tmp_path)}", f"generation.refiner_checkpoint={checkpoint}"]
    base = load_config(None, [*overrides, "generation.recipes=[MoS2]", "generation.ranker_checkpoint="])
    parts = [
        {"start": "noise"},
        {"start": "noise", "refiner_checkpoint": "other.pth"},
        {"start": "noise", "refine_samples": True},
        {},
        {"refine_steps": 3},
        {"refine_steps": 0},
        {"recipes": ["2H-MX2: Mo | S"]},
    ]
    configs = [dataclasses.replace(base, generation=dataclasses.replace(base.generation, **part)) for part in parts]
    prints = [generation_fingerprint(cfg, "model") for cfg in configs]
    assert prints[0] == prints[1] and len(set(prints)) == 6
    torch.save(sheet_table.pack([], {}), tmp_path / "val.pt")
    assert generation_fingerprint(configs[3], "model") != prints[3], "crystals of the validation split are among them"
    elsewhere = dataclasses.replace(base.dataset, processed_dir="/nonexistent")
    assert generation_fingerprint(dataclasses.replace(base, dataset=elsewhere), "model") not in prints, "the database stands in"
    missing = dataclasses.replace(base, dataset=dataclasses.replace(elsewhere, db_path="/nonexistent.db"))
    with pytest.raises(StageError, match="dataset.db_path: no file"):
        generation_fingerprint(missing, "model")
    for name in ("refiner", "ranker"):
        absent = dataclasses.replace(base.generation, **{f"{name}_checkpoint": "/nonexistent.pth"})
        with pytest.raises(StageError, match=f"generation.{name}_checkpoint: no file .*weights/{name}.pth"):
            generation_fingerprint(dataclasses.replace(base, generation=absent), "model")
    (tmp_path / "val.pt").unlink()
    with pytest.raises(StageError, match=r"^dataset\.processed_dir: no file at \S*val\.pt.*material_dataset\.py"):
        generation_fingerprint(configs[3], "model")


def test_without_data_of_stage_2_the_crystals_of_the_database_are_taken(tmp_path):
    with ase.db.connect(tmp_path / "x.db") as db:
        db.write(PROTOTYPES["1T-MX2"].build("Pt", "S"), uid="a", ehull=0.0, hform=-0.5)
    given = [f"dataset.processed_dir={tmp_path}", f"dataset.db_path={tmp_path / 'x.db'}", "generation.ranker_checkpoint="]
    assert known_starts(load_config(None, given)) is None, "nothing starts from a crystal"
    given.append("generation.recipes=[PtSe2]")
    (found,) = known_starts(load_config(None, given)).nearest([78, 34, 34], 5)
    assert symmetrise(found, 1e-3)[1].layer_group_number == 72
