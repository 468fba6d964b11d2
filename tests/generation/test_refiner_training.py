"""Training of the refiner: pairs, the way between two sheets, and the script, whose network moves sheets the right way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import mx2
from scipy.linalg import expm

from crystals import database
from crystals.alignment import bond_counts, bond_length
from crystals.elements import covalent_radius_table
from generation import sheet_table
from generation.refinement import load_refiner, padded
from generation.refiner_training import between, bond_ratio, strain_between, way
from generation.sheet_pairs import pair_table
from geo_utils import Sheet
from pipeline.errors import StageError
from pipeline.loading import load_config
from scripts import train_refiner

METALS = {"Mo": 3.18, "W": 3.18, "Nb": 3.35, "Ta": 3.33, "Cr": 3.04, "Ti": 3.34}


def sheet_of(formula: str, a: float, thickness: float = 3.1, kind: str = "2H") -> Sheet:
    atoms = mx2(formula, kind, a=a, thickness=thickness, vacuum=10)
    atoms.pbc = (True, True, False)
    return Sheet.from_atoms(atoms)


@pytest.fixture
def processed(tmp_path) -> Path:
    """Splits of stage 2 whose sheets are all thicker than the substituted ones of other formulas would be."""
    rows = [(f"{metal}S2", sheet_of(f"{metal}S2", a)) for metal, a in METALS.items()]
    for name, part in {"train": rows[:5], "val": rows[5:]}.items():
        table = [database.Row(k, f"{name}{k}", s, f, "", 0.1, -1.0, 1.0) for k, (f, s) in enumerate(part)]
        torch.save(sheet_table.pack(table, {}), tmp_path / f"{name}.pt")
    return tmp_path


def test_pairs_stand_in_one_order_and_never_are_of_one_formula(processed):
    table = pair_table(processed / "train.pt", processed / "val.pt")
    assert table.training.tolist() == [True] * 5 + [False] and table.arrangement.tolist() == [0] * 6
    rows, generator = torch.arange(6), torch.Generator().manual_seed(0)
    relatives, found = table.relatives(rows, torch.ones(6, dtype=torch.bool), 40, generator)
    assert found.all() and (relatives != rows).all() and table.training[relatives].all()
    names = [int(table.atomic_numbers[k].max()) for k in range(6)]
    nearest = {names[k]: names[relatives[k]] for k in range(6)}
    assert nearest[42] == 74 and nearest[74] == 42 and nearest[41] == 73, "neighbours in a group of the periodic table"
    starts = table.starts(relatives, rows)
    assert (starts.atomic_numbers == table.atomic_numbers[:, :3]).all()


def test_the_size_of_a_start_is_that_of_its_bonds():
    sheets = [sheet_of("MoS2", 3.18), sheet_of("PtSe2", 3.7, 2.6, "1T")]
    numbers = torch.tensor(
        [[74 if z == 42 else 34 for z in sheets[0].atomic_numbers], [22 if z == 78 else 8 for z in sheets[1].atomic_numbers]]
    )
    radii = covalent_radius_table()
    found = bond_ratio(padded(sheets, torch.float64), numbers, radii)
    for sheet, other, ratio in zip(sheets, numbers.numpy(), found.tolist(), strict=True):
        counts = bond_counts(sheet)
        assert ratio == pytest.approx(bond_length(counts, other) / bond_length(counts, sheet.atomic_numbers), rel=1e-6)


def test_the_way_leads_to_the_goal():
    first, second = padded([sheet_of("MoS2", 3.1)], torch.float64), padded([sheet_of("MoS2", 3.3, 3.4)], torch.float64)
    shift, strain = way(first, second)
    assert np.allclose(first.cell[0].numpy() @ expm(strain[0].numpy()), second.cell[0].numpy())
    assert torch.allclose(first.heights + shift[..., 2], second.heights) and shift[..., :2].abs().max() < 1e-9
    turned = torch.tensor([[[0.6, 0.8], [-0.8, 0.6]]], dtype=torch.float64)
    skewed = second.cell @ torch.tensor([[[1.1, 0.2], [0.1, 0.9]]], dtype=torch.float64)
    strain = strain_between(first.cell, skewed @ turned)
    moved = first.cell @ torch.linalg.matrix_exp(strain)
    assert torch.allclose(moved @ moved.transpose(1, 2), skewed @ skewed.transpose(1, 2))


def test_states_lie_on_the_line_or_have_noise():
    start, record = padded([sheet_of("MoS2", 3.1)] * 400), padded([sheet_of("MoS2", 3.3, 3.4)] * 400)
    found = between(start, record, torch.ones(400, dtype=torch.bool), torch.Generator().manual_seed(0))
    length = torch.linalg.det(found.cell).sqrt()
    ends = [float(torch.linalg.det(x.cell).sqrt()[0]) for x in (record, start)]
    t = (length - ends[0]) / (ends[1] - ends[0])
    shift = way(record, found)[0][..., :2].norm(dim=-1).amax(1)
    plain = shift < 1e-4
    assert 0.5 < plain.float().mean() < 0.8
    assert -0.01 < t[plain].min() and t[plain].max() < 2.3 and ((t[plain] - 1).abs() < 0.02).float().mean() > 0.3
    assert found.heights.mean(1).abs().max() < 1e-5


def test_the_script_trains_what_moves_sheets_towards_those_on_record(processed, tmp_path, capsys):
    """Every sheet on record is as thick as the others, whereas its start, scaled by the bonds, is not."""
    keys = {"channels": 24, "vectors": 6, "tensors": 4, "layers": 1, "neighbours": 12, "dropout": 0.0, "max_steps": 60,
            "batch_size": 12, "warmup_steps": 5, "learning_rate": 0.01, "ema_decay": 0.8, "eval_every": 30}  # fmt: skip
    options = [f"refiner.{key}={value}" for key, value in keys.items()] + [f"refiner.checkpoint={tmp_path / 'refiner.pth'}"]
    cfg = load_config(None, [*options, f"dataset.processed_dir={processed}", "run.device=cpu", "run.threads=1"])
    train_refiner.main(cfg)
    card = json.loads((tmp_path / "refiner.json").read_text())
    assert card["counts"]["train"] == 5 and card["counts"]["paired"] == 5
    assert card["metrics"]["moved_angstrom"] < card["metrics"]["start_angstrom"]
    assert load_refiner(tmp_path / "refiner.pth")[1]["formulas_seen"] == sorted(f"{metal}S2" for metal in METALS)
    assert "once moved" in capsys.readouterr().out and not (tmp_path / "resume.pt").exists()
    before = (tmp_path / "refiner.pth").stat().st_mtime_ns
    train_refiner.main(cfg)
    assert (tmp_path / "refiner.pth").stat().st_mtime_ns == before, "it is complete"


def test_splits_that_are_missing_are_one_line(tmp_path):
    cfg = load_config(None, ["dataset.processed_dir=/nonexistent", f"refiner.checkpoint={tmp_path / 'refiner.pth'}"])
    with pytest.raises(StageError, match="run material_dataset.py"):
        train_refiner.main(cfg)
    assert dataclasses.is_dataclass(cfg.refiner)
