"""Stage 3: products, resume, other starting weights, errors; on a data set of a few tiny sheets."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny_sheets import table_of, tiny_config
from undrawn import leave_figures_undrawn

import optimization
from generation import denoiser_training, loss, sheet_table
from generation.loss import TERMS
from models import load_denoiser
from networks.training import Trainer
from optimization import build_model
from pipeline.errors import StageError
from pipeline.provenance import read_sidecar, write_sidecar
from pipeline.settings import Config


@pytest.fixture
def cfg(tmp_path) -> Config:
    return tiny_config(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Few validation sheets, and figures where they are looked at."""
    if request.function is not test_products_of_a_training:
        leave_figures_undrawn(monkeypatch)
    monkeypatch.setattr(denoiser_training, "VALIDATION_SHEETS", 12)


def test_training_of_the_heads_leaves_the_noise_alone(cfg, tmp_path):
    optimization.main(cfg)
    first, _ = load_denoiser(cfg.denoiser.checkpoint, "")
    changes = {"init_from": cfg.denoiser.checkpoint, "train_only": "heads", "checkpoint": str(tmp_path / "next" / "denoiser.pth")}
    start = dataclasses.replace(cfg.denoiser, **changes)
    optimization.main(dataclasses.replace(cfg, denoiser=start))
    second, _ = load_denoiser(start.checkpoint, "")
    before, after = first.state_dict(), second.state_dict()
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"head_nodes", "heads"}


def test_training_resumes_bit_identically(cfg, tmp_path, monkeypatch):
    optimization.main(cfg)
    reference = torch.load(cfg.denoiser.checkpoint, weights_only=True)

    second = dataclasses.replace(
        cfg, denoiser=dataclasses.replace(cfg.denoiser, checkpoint=str(tmp_path / "again" / "denoiser.pth"))
    )
    calls, original = {"n": 0}, Trainer.train_step

    def dies_in_the_fourth_step(self):
        calls["n"] += 1
        if calls["n"] == 4:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", dies_in_the_fourth_step)
    with pytest.raises(KeyboardInterrupt):
        optimization.main(second)
    assert not Path(second.denoiser.checkpoint).exists(), "no product before the end"
    monkeypatch.setattr(Trainer, "train_step", original)
    torch.manual_seed(999)  # the state of the process must not matter
    optimization.main(second)
    resumed = torch.load(second.denoiser.checkpoint, weights_only=True)
    assert all(torch.equal(value, resumed["model"][name]) for name, value in reference["model"].items())
    folders = [Path(c.denoiser.checkpoint).parent for c in (cfg, second)]
    assert (folders[0] / "loss_curve.csv").read_text() == (folders[1] / "loss_curve.csv").read_text()
    assert not (folders[1] / "resume.pt").exists()


def test_products_of_a_training(cfg, capsys):
    optimization.main(cfg)
    checkpoint = Path(cfg.denoiser.checkpoint)
    rows = list(csv.DictReader((checkpoint.parent / "loss_curve.csv").open()))
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    assert {f"{split}_{name}" for split in ("train", "val") for name in ("total", *TERMS)} <= set(rows[0])
    assert (checkpoint.parent / "loss_curve.png").stat().st_size > 10_000
    sidecar = read_sidecar(checkpoint, stage=optimization.STAGE)
    best = min(rows, key=lambda row: float(row["val_total"]))
    assert sidecar["metrics"]["best_step"] == int(best["step"])
    assert sidecar["counts"]["train"] == 40
    assert sidecar["metrics"]["test"]["n_delta_g"] == 8
    model, content = load_denoiser(checkpoint, "")
    splits = [torch.load(Path(cfg.dataset.processed_dir) / f"{name}.pt", weights_only=True) for name in ("train", "val", "test")]
    assert content["elements"] == [6, 16, 42]
    assert content["formulas"] == sorted({formula for split in splits for formula in split["formula"]})
    assert float(model.schedule.lattice_spread.abs().sum()) > 0
    assert "best at step" in capsys.readouterr().out

    before = checkpoint.stat().st_mtime_ns
    optimization.main(cfg)
    assert checkpoint.stat().st_mtime_ns == before, "a finished stage does nothing"


def test_training_may_start_from_other_weights(cfg, tmp_path):
    """Weights are taken over, schedule and label scales are not; a network of another size is refused."""
    optimization.main(cfg)
    first, content = load_denoiser(cfg.denoiser.checkpoint, "")
    for name in ("train", "val", "test"):
        table = torch.load(Path(cfg.dataset.processed_dir) / f"{name}.pt", weights_only=True)
        table["lattice"] *= 1.5
        table["formula"] = [f"G{k}" for k in range(len(table["formula"]))]
        torch.save(table, Path(cfg.dataset.processed_dir) / f"{name}.pt")
        write_sidecar(Path(cfg.dataset.processed_dir) / f"{name}.pt", stage=sheet_table.DATASET_STAGE, seed=0, settings={})
    start = dataclasses.replace(cfg.denoiser, init_from=cfg.denoiser.checkpoint, checkpoint=str(tmp_path / "next" / "denoiser.pth"))
    fresh = build_model(start, table_of(cfg), 0)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), first.parameters(), strict=True))
    assert (fresh.schedule.lattice_mean - first.schedule.lattice_mean).abs().max() > 0.1
    optimization.main(dataclasses.replace(cfg, denoiser=start))
    after = load_denoiser(start.checkpoint, "")[1]
    assert after["formulas_of_init"] == content["formulas"] and not set(after["formulas"]) & set(content["formulas"])
    assert start.init_from.rsplit("/", 1)[-1] in str(read_sidecar(start.checkpoint, stage=optimization.STAGE)["inputs"])
    with pytest.raises(StageError, match="another size"):
        build_model(dataclasses.replace(start, hidden_channels=24), table_of(cfg), 0)
    with pytest.raises(StageError, match="init_from: no file"):
        optimization.main(dataclasses.replace(cfg, denoiser=dataclasses.replace(start, init_from="/nonexistent.pth")))


def test_a_loss_that_is_not_finite_stops_with_a_saved_state(cfg, monkeypatch):
    original = loss.loss_terms

    def breaks(model, sheets, *inputs):
        terms, properties = original(model, sheets, *inputs)
        return terms | {"frac": terms["frac"] * float("nan")}, properties

    monkeypatch.setattr(denoiser_training, "loss_terms", breaks)
    with pytest.raises(StageError, match="step 1: frac is not finite.*resume.pt"):
        optimization.main(cfg)
    assert (Path(cfg.denoiser.checkpoint).parent / "resume.pt").is_file()


def test_missing_and_stale_data_are_named(cfg):
    processed = Path(cfg.dataset.processed_dir)
    manifest = json.loads((processed / "train.json").read_text())
    manifest["inputs"] = {str(processed / "train.pt"): "0" * 64}
    (processed / "train.json").write_text(json.dumps(manifest))
    with pytest.raises(StageError, match="stale"):
        optimization.main(cfg)
    (processed / "val.pt").unlink()
    with pytest.raises(StageError, match="val.pt is missing: run material_dataset.py"):
        optimization.main(cfg)
    (processed / "val.pt").write_bytes(b"not a tensor file")
    with pytest.raises(StageError, match="val.pt is not a readable dataset"):
        optimization.main(cfg)
