"""Stage 3: loss, masks, condition dropout, resume, errors; on a data set of a few tiny sheets."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import optimization
from generation import denoiser_training, loss, sheet_table
from generation.batch import SheetBatch
from generation.denoiser_training import learning_rate, roc_auc
from generation.loss import TERMS, loss_terms, sample_noise, total_loss
from generation.sheet_table import SheetTable, training_rows
from models import load_denoiser
from networks.training import Trainer
from optimization import build_model
from pipeline.errors import StageError
from pipeline.provenance import read_sidecar, write_sidecar
from pipeline.settings import Config, DenoiserConfig

TINY = {
    "hidden_channels": 16,
    "vector_channels": 4,
    "num_layers": 1,
    "num_rbf": 8,
    "max_neighbors": 8,
    "num_timesteps": 40,
    "beta_end": 0.3,
    "batch_size": 8,
    "warmup_steps": 2,
    "max_steps": 6,
    "eval_every": 2,
}


def write_split(path: Path, count: int, seed: int) -> None:
    """Hexagonal and square sheets of 1-3 atoms with partly missing labels."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, count)
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    lattice = np.stack([np.array([[1.0, 0.0], [-0.5, 0.866]]) * rng.uniform(2.5, 4.0) for _ in range(count)])
    heights = np.concatenate([h - h.mean() for h in (rng.normal(size=n) for n in sizes)])
    labels = {name: rng.normal(size=count) for name in ("delta_g_h", "e_hull")}
    labels["y_synth"] = rng.integers(0, 2, count).astype(float)
    for values in labels.values():
        values[::3] = np.nan
    content = (
        sheet_table.pack([], {})
        | {
            "atomic_numbers": torch.tensor(rng.choice([6, 16, 42], ptr[-1])),
            "frac_coords": torch.tensor(rng.random((ptr[-1], 2)), dtype=torch.float32),
            "heights": torch.tensor(heights, dtype=torch.float32),
            "ptr": torch.tensor(ptr),
            "lattice": torch.tensor(lattice, dtype=torch.float32),
            "formula": [f"F{k}" for k in range(count)],
            "uid": [f"u{k}" for k in range(count)],
        }
        | {name: torch.tensor(values, dtype=torch.float32) for name, values in labels.items()}
    )
    torch.save(content, path)


@pytest.fixture
def cfg(tmp_path) -> Config:
    processed = tmp_path / "processed"
    processed.mkdir()
    for seed, (name, count) in enumerate({"train": 40, "val": 12, "test": 12}.items()):
        write_split(processed / f"{name}.pt", count, seed)
        write_sidecar(processed / f"{name}.pt", stage=sheet_table.DATASET_STAGE, seed=0, settings={})
    base = Config()
    return dataclasses.replace(
        base,
        run=dataclasses.replace(base.run, device="cpu", threads=1),
        dataset=dataclasses.replace(base.dataset, processed_dir=str(processed)),
        denoiser=dataclasses.replace(base.denoiser, checkpoint=str(tmp_path / "out" / "denoiser.pth"), **TINY),
    )


@pytest.fixture(autouse=True)
def few_validation_draws(monkeypatch):
    monkeypatch.setattr(denoiser_training, "VALIDATION_DRAWS", 12)


def table_of(cfg: Config, name: str = "train") -> SheetTable:
    return SheetTable.load(Path(cfg.dataset.processed_dir) / f"{name}.pt")


def test_every_term_is_of_order_one_before_training(cfg):
    table = table_of(cfg)
    model = build_model(cfg.denoiser, table, 0)
    sheets = table.select(torch.arange(len(table)))
    keep = sheets.num_atoms > 1  # one atom has no position noise to speak of
    sheets = table.select(torch.arange(len(table))[keep])
    sums = dict.fromkeys(TERMS, 0.0)
    for draw in range(8):
        terms, _ = loss_terms(model, sheets, sample_noise(sheets, 40, 0.15, torch.Generator().manual_seed(draw)))
        for name, value in terms.items():
            sums[name] += float(value) / 8
    for name, value in sums.items():
        assert 0.2 < value < 3.0, (name, value)


def test_unknown_labels_neither_count_nor_poison_the_gradient(cfg):
    table = table_of(cfg)
    model = build_model(cfg.denoiser, table, 0)
    sheets = table.select(torch.arange(9))
    draw = sample_noise(sheets, 40, 0.0, torch.Generator().manual_seed(0))
    terms, properties = loss_terms(model, sheets, draw)
    known = torch.isfinite(sheets.delta_g)
    weight = model.schedule.alphas_cumprod[draw.t].float().clamp(min=loss.PROPERTY_WEIGHT_FLOOR)
    error = (properties.delta_g - sheets.delta_g).abs() / model.label_std[0]
    torch.testing.assert_close(terms["delta_g"], (error[known] * weight[known]).sum() / weight[known].sum())
    total_loss(terms, cfg.denoiser).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())

    nothing = dataclasses.replace(sheets, **{n: torch.full((9,), float("nan")) for n in ("delta_g", "e_hull", "synth")})
    terms, _ = loss_terms(model, nothing, draw)
    assert all(float(terms[name]) == 0 for name in ("delta_g", "e_hull", "synth"))
    assert all(torch.isfinite(value) for value in terms.values())


def test_condition_dropout_rate_and_times():
    count = 20000
    sheets = SheetBatch(
        torch.full((count,), 6), torch.zeros(count, 2), torch.zeros(count), torch.zeros(count, 3),
        torch.arange(count), torch.ones(count, dtype=torch.long),
    )  # fmt: skip
    draw = sample_noise(sheets, 1000, 0.15, torch.Generator().manual_seed(0))
    assert float(draw.drop.float().mean()) == pytest.approx(0.15, abs=0.01)
    assert draw.t.min() == 1 and draw.t.max() == 1000
    assert float(draw.t.float().mean()) == pytest.approx(500.5, abs=2)


def test_dropped_conditions_do_not_reach_the_noise(cfg):
    table = table_of(cfg)
    model = build_model(cfg.denoiser, table, 0)
    sheets = table.select(torch.arange(8))
    other = dataclasses.replace(sheets, delta_g=sheets.delta_g + 1.0)
    draw = sample_noise(sheets, 40, 1.0, torch.Generator().manual_seed(0))
    assert draw.drop.all()
    first, second = (loss_terms(model, s, draw)[0] for s in (sheets, other))
    assert first["frac"] == second["frac"] and first["lattice"] == second["lattice"]
    draw.drop[:] = False
    second = loss_terms(model, other, draw)[0]
    assert first["frac"] != second["frac"]


def test_batches_cover_an_epoch_once_and_differ_between_epochs(cfg):
    table = table_of(cfg)
    epochs = []
    for epoch in range(2):
        seen = [training_rows(table, epoch * 5 + k, 8, 3) for k in range(5)]
        epochs.append(torch.cat(seen))
        assert epochs[-1].sort().values.tolist() == list(range(len(table)))
    assert not torch.equal(*epochs)


def test_a_share_of_each_batch_is_labelled(cfg):
    table = table_of(cfg)
    table.sheets.delta_g[:] = float("nan")
    table.sheets.delta_g[[3, 7, 11]] = 0.5
    batches = [training_rows(table, k, 8, 3, labelled_share=0.25) for k in range(20)]
    assert all(len(batch) == 8 and set(batch[:2].tolist()) <= {3, 7, 11} for batch in batches)
    assert set(torch.cat([batch[:2] for batch in batches]).tolist()) == {3, 7, 11}
    assert set(torch.cat([batch[2:] for batch in batches]).tolist()) == set(range(len(table)))


def test_training_of_the_heads_leaves_the_noise_alone(cfg, tmp_path):
    optimization.main(cfg)
    first, _ = load_denoiser(cfg.denoiser.checkpoint, "")
    changes = {"init_from": cfg.denoiser.checkpoint, "train_only": "heads", "checkpoint": str(tmp_path / "next" / "denoiser.pth")}
    start = dataclasses.replace(cfg.denoiser, **changes)
    optimization.main(dataclasses.replace(cfg, denoiser=start))
    second, _ = load_denoiser(start.checkpoint, "")
    before, after = first.state_dict(), second.state_dict()
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"head_nodes", "heads"}


def test_selection_of_sheets_is_exact(cfg):
    table = table_of(cfg)
    picked = table.select(torch.tensor([5, 2]))
    atoms = torch.cat([torch.arange(table.ptr[k], table.ptr[k + 1]) for k in (5, 2)])
    assert torch.equal(picked.heights, table.sheets.heights[atoms])
    assert torch.equal(picked.batch, torch.repeat_interleave(torch.arange(2), table.sheets.num_atoms[[5, 2]]))


def test_learning_rate_warms_up_and_decays():
    settings = dataclasses.replace(DenoiserConfig(), learning_rate=1.0, warmup_steps=10, max_steps=110)
    assert learning_rate(5, settings) == pytest.approx(0.5)
    assert learning_rate(10, settings) == pytest.approx(1.0)
    assert learning_rate(60, settings) == pytest.approx(0.505)
    assert learning_rate(110, settings) == pytest.approx(0.01)


def test_auc():
    assert roc_auc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])) == 1.0
    assert roc_auc(np.array([0.5, 0.5, 0.5]), np.array([0, 1, 1])) == 0.5
    assert np.isnan(roc_auc(np.array([0.5]), np.array([1])))


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

    def breaks(model, sheets, noise, constraint):
        terms, properties = original(model, sheets, noise, constraint)
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
