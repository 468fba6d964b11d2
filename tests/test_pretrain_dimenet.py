"""Stage 1: filter, split, training, resume, products."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.db import connect
from emt_records import records
from undrawn import leave_figures_undrawn

import pretrain_dimenet as stage
from energetics import adsorption_data, dimenet_stage, dimenet_training, record_index
from energetics.is2re_lmdb import open_is2re, write_is2re
from models import DimeNetPlusPlus, load_initial_weights
from networks import training
from networks.checkpoints import CheckpointError, load_checkpoint
from networks.dimenet_layers import DimeNetPlusPlusConfig
from networks.ranks import Ranks
from pipeline.errors import StageError
from pipeline.files import relative_name
from pipeline.loading import load_config
from pipeline.settings import Config, DimenetConfig

SCHEMA_SAMPLE = Path(os.environ.get("HER2D_IS2RE_SAMPLE", "nowhere"))  # LMDBs of 68 and 38 records of one K atom
TINY = DimeNetPlusPlusConfig(
    hidden_channels=16, out_emb_channels=16, int_emb_size=8, num_blocks=1, num_spherical=3, num_radial=4, cutoff_angstrom=3.5
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch, request):
    """The stage as it is, with a network of a few thousand weights on one thread."""
    torch.set_num_threads(1)
    if request.function is not test_stage_writes_its_products_and_knows_when_it_is_done:
        leave_figures_undrawn(monkeypatch)
    monkeypatch.setattr(DimeNetPlusPlusConfig, "preset", classmethod(lambda cls, name: TINY))


@pytest.fixture(scope="module")
def lmdb_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("is2re") / "data.lmdb"
    write_is2re(path, records(60))
    return path


DFT = load_config().dimenet.dft_path


def make_config(lmdb_path: Path, output: Path, **changes) -> Config:
    settings = {"epochs": 3, "ensemble_size": 2, "batch_size": 8, "target_abs_max_ev": 50.0, "dft_path": ""} | changes
    overrides = [f"dimenet.{key}={value}" for key, value in settings.items()]
    return load_config(
        None, [f"dimenet.lmdb_path={lmdb_path}", f"run.output_dir={output}", "run.threads=1", "run.device=cpu", *overrides]
    )


def make_job(cfg: Config, resume: Path) -> dimenet_training.MemberJob:
    readers = [open_is2re(cfg.dimenet.lmdb_path)]
    entries, _ = adsorption_data.read_entries(readers, cfg.dimenet, 94)
    split = adsorption_data.split_by_formula(entries, cfg.dimenet, 0)
    data = adsorption_data.AdsorptionData(readers, entries, TINY.cutoff_angstrom, None)
    values = np.array([entries[n].delta_e for n in split["train"]])
    return dimenet_training.MemberJob(
        0, 0, cfg.dimenet, TINY, data, split, float(values.mean()), float(values.std()), "mark", resume
    )


def same_weights(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ------------------------------------------------------------------------------------------------------------ records


def variants() -> list[dict]:
    """Five usable records and one of every kind that must be dropped."""
    good = records(12)
    bare, oxygen, missing, huge, heavy, unconverged = (dict(record) for record in good[5:11])
    bare["tags"] = np.minimum(bare["tags"], 1)
    oxygen["atomic_numbers"] = np.where(oxygen["tags"] == 2, 8, oxygen["atomic_numbers"])
    missing["y_relaxed"] = math.nan
    huge["y_relaxed"] = -80.0
    heavy["atomic_numbers"] = np.where(heavy["tags"] == 1, 98, heavy["atomic_numbers"])
    unconverged["converged"] = 0
    return [*good[:5], bare, oxygen, missing, huge, heavy, unconverged]


def test_records_are_kept_and_dropped_with_reasons(tmp_path):
    write_is2re(tmp_path / "data.lmdb", variants())
    readers = [open_is2re(tmp_path / "data.lmdb")]
    cfg = make_config(tmp_path / "data.lmdb", tmp_path).dimenet
    entries, counts = adsorption_data.read_entries(readers, cfg, 94)
    assert len(entries) == counts["kept"] == 5 and counts["records"] == 11
    assert counts["dropped"] == {
        "no adsorbate atom (tag 2)": 1,
        "adsorbate is not one H": 1,
        "y_relaxed missing or not finite": 1,
        "|y_relaxed| above 50 eV": 1,
        "element outside the network": 1,
        "relaxation not converged": 1,
    }
    with_unconverged, counts = adsorption_data.read_entries(readers, dataclasses.replace(cfg, train_on_unconverged=True), 94)
    assert counts["kept"] == 6 and [entry.converged for entry in with_unconverged].count(False) == 1
    everything, counts = adsorption_data.read_entries(readers, dataclasses.replace(cfg, adsorbate="all"), 94)
    assert len(everything) == 7 and "adsorbate is not one H" not in counts["dropped"]


def test_records_without_h_are_refused_with_a_count(tmp_path):
    bare = [dict(record, tags=np.zeros(3, dtype=int)) for record in records(4)]
    write_is2re(tmp_path / "data.lmdb", bare)
    with pytest.raises(StageError, match=r"0 of 4 records hold one H adsorbate; dropped: no adsorbate atom \(tag 2\): 4"):
        stage.main(make_config(tmp_path / "data.lmdb", tmp_path / "out"))


@pytest.mark.skipif(not SCHEMA_SAMPLE.is_dir(), reason="HER2D_IS2RE_SAMPLE names no folder with the sample LMDBs")
def test_sample_of_another_adsorbate_reads_and_is_refused_for_h(tmp_path):
    assert [len(open_is2re(file)) for file in sorted(SCHEMA_SAMPLE.glob("*.lmdb"))] == [68, 38]
    with pytest.raises(StageError, match="0 of 106 records hold one H adsorbate"):
        stage.main(make_config(SCHEMA_SAMPLE, tmp_path))


def test_split_keeps_formulas_together(lmdb_path, tmp_path):
    cfg = make_config(lmdb_path, tmp_path, val_fraction=0.2, test_fraction=0.2).dimenet
    entries, _ = adsorption_data.read_entries([open_is2re(lmdb_path)], cfg, 94)
    split = adsorption_data.split_by_formula(entries, cfg, 0)
    formulas = {part: {entries[n].formula for n in numbers} for part, numbers in split.items()}
    assert sorted(n for numbers in split.values() for n in numbers) == list(range(len(entries)))
    assert (
        not formulas["train"] & formulas["val"]
        and not formulas["train"] & formulas["test"]
        and not formulas["val"] & formulas["test"]
    )
    assert {"Ag", "CuNi", "AgAu"} <= set.union(*formulas.values())
    assert adsorption_data.split_by_formula(entries, cfg, 1) != split


def test_nothing_is_measured_on_relaxations_that_did_not_converge(lmdb_path, tmp_path):
    cfg = make_config(lmdb_path, tmp_path, val_fraction=0.2, test_fraction=0.2).dimenet
    entries, _ = adsorption_data.read_entries([open_is2re(lmdb_path)], cfg, 94)
    entries = [dataclasses.replace(entry, converged=k % 3 > 0) for k, entry in enumerate(entries)]
    split = adsorption_data.split_by_formula(entries, cfg, 0)
    assert all(entries[n].converged for part in ("val", "test") for n in split[part])
    formulas = {entries[n].formula for n in split["train"]}
    assert split["train"] == [n for n, entry in enumerate(entries) if entry.formula in formulas], "learnt from all the same"


def test_reduced_formula_of_stated_and_counted_formulas(lmdb_path):
    record = open_is2re(lmdb_path)[0]
    record.extra["bulk_formula"] = "Mo2S4"
    assert record_index.reduced_formula(record) == "MoS2"
    record.extra["bulk_formula"] = "<b>x</b>"
    assert record_index.reduced_formula(record) == "Cu"


def test_rate_warms_up_and_falls_at_the_milestones():
    settings = dataclasses.replace(load_config().dimenet, epochs=10, warmup_epochs=1.0, lr_milestones=[0.5, 0.8], lr_gamma=0.1)
    factors = [dimenet_training.learning_rate_factor(step, 4, settings) for step in range(40)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[19:21] == pytest.approx([1.0, 0.1]) and factors[-1] == pytest.approx(0.01)


# ----------------------------------------------------------------------------------------------------------- training


def test_resume_is_bit_identical(lmdb_path, tmp_path, monkeypatch):
    """Stopped in the middle of an epoch, at an epoch's end, and not at all: the same weights and the same history."""
    cfg = make_config(lmdb_path, tmp_path)
    whole = dimenet_training.train_member(make_job(cfg, tmp_path / "whole.pt"))

    class Stopped(BaseException):
        pass

    monkeypatch.setattr(training, "RESUME_EVERY_S", 0.0)
    stops = iter([3, 9, 14])
    at = next(stops)

    def stop(step):
        if step == at:
            raise Stopped

    for at_next in [9, 14, None]:
        with pytest.raises(Stopped):
            dimenet_training.train_member(make_job(cfg, tmp_path / "parts.pt"), on_step=stop)
        at = at_next
    parts = dimenet_training.train_member(make_job(cfg, tmp_path / "parts.pt"))
    assert parts["history"] == whole["history"] and parts["epoch"] == whole["epoch"]
    assert same_weights(parts["state"], whole["state"])
    last = [torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "parts.pt")]
    assert same_weights(last[0]["model"], last[1]["model"]) and all(map(torch.equal, last[0]["ema"], last[1]["ema"]))


def test_members_differ_and_seeds_repeat(lmdb_path, tmp_path):
    cfg = make_config(lmdb_path, tmp_path, epochs=1)
    job = make_job(cfg, tmp_path / "a.pt")
    first = dimenet_training.train_member(job)
    again = dimenet_training.train_member(dataclasses.replace(job, resume_path=tmp_path / "b.pt"))
    other = dimenet_training.train_member(dataclasses.replace(job, number=1, resume_path=tmp_path / "c.pt"))
    assert same_weights(first["state"], again["state"]) and not same_weights(first["state"], other["state"])


def test_a_loss_that_is_not_finite_stops_with_the_state_saved(lmdb_path, tmp_path, monkeypatch):
    cfg = make_config(lmdb_path, tmp_path)
    forward, calls = DimeNetPlusPlus.forward, []

    def failing(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(DimeNetPlusPlus, "forward", failing)
    with pytest.raises(StageError, match="member 0, epoch 1, step 3: the loss is not finite"):
        dimenet_training.train_member(make_job(cfg, tmp_path / "nan.pt"))
    saved = torch.load(tmp_path / "nan.pt", weights_only=True)
    assert saved["step"] == 2
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


def test_learns_the_adsorption_energy_and_not_shuffled_labels(tmp_path):
    """EMT's ΔE_H of three metals at four sites is learnt; the same records with shuffled labels give no correlation."""
    rng = np.random.default_rng(0)
    data = [r for r in records(200, seed=2) if r["y_relaxed"] < 8]
    shuffled = [dict(r, y_relaxed=float(y)) for r, y in zip(data, rng.permutation([r["y_relaxed"] for r in data]), strict=True)]
    found = {}
    for name, items in [("true", data), ("shuffled", shuffled)]:
        write_is2re(tmp_path / f"{name}.lmdb", items)
        cfg = make_config(tmp_path / f"{name}.lmdb", tmp_path, epochs=20, ema_decay=0.98, learning_rate=0.005, test_fraction=0.3)
        job = make_job(cfg, tmp_path / f"{name}.pt")
        model = DimeNetPlusPlus(TINY)
        model.load_state_dict(dimenet_training.train_member(job)["state"])
        predicted = dimenet_training.predict(model, job.data, job.split["test"], 32, torch.device("cpu")) * job.std + job.mean
        truth = np.array([job.data.entries[n].delta_e for n in job.split["test"]])
        found[name] = (np.corrcoef(truth, predicted)[0, 1], np.abs(truth - predicted).mean(), np.abs(truth - job.mean).mean())
    assert found["true"][0] > 0.8 and found["true"][1] < 0.6 * found["true"][2]
    assert not found["shuffled"][0] > 0.35


# ----------------------------------------------------------------------------------------------------------- the stage


def test_stage_writes_its_products_and_knows_when_it_is_done(lmdb_path, tmp_path, caplog):
    caplog.set_level("INFO", logger="her2d")
    cfg = make_config(lmdb_path, tmp_path, dft_path=DFT)
    stage.main(cfg)
    folder = tmp_path / "dimenet"
    figures = {f"dimenet_{name}.{kind}" for name in ("loss_curve", "parity") for kind in ("png", "pdf")}
    others = {"dimenet.json", "dimenet.pth", "dimenet_loss_curve.csv", "records.index.npz"}
    assert {p.name for p in folder.iterdir()} == others | figures
    card = json.loads((folder / "dimenet.json").read_text(encoding="utf-8"))
    assert card["counts"]["kept"] == 60 == sum(card["counts"][part] for part in ("train", "val", "test"))
    for part in ("val", "test"):
        metrics = card["metrics"][part]
        assert metrics["n"] == card["counts"][part] and metrics["mae_ev"] > 0 and metrics["baseline_mae_ev"] > 0
        assert sum(family["n"] for family in metrics["by_family"].values()) == metrics["n"]
    assert 0.5 <= card["metrics"]["val"]["share_within_one_std"] <= 0.85
    assert len((folder / "dimenet_loss_curve.csv").read_text().splitlines()) == 1 + 2 * 3
    assert len(load_checkpoint(folder / "dimenet.pth", "dimenet", "")["members"]) == 2

    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    stage.main(cfg)
    assert "nothing to do" in caplog.text
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    stage.main(make_config(lmdb_path, tmp_path, epochs=1, dft_path=DFT))
    assert "starting anew" in caplog.text
    assert len((folder / "dimenet_loss_curve.csv").read_text().splitlines()) == 1 + 2 * 1


def test_a_changed_input_starts_anew(lmdb_path, tmp_path, caplog):
    caplog.set_level("INFO", logger="her2d")
    copy = tmp_path / "copy.lmdb"
    shutil.copy(lmdb_path, copy)
    job = make_job(make_config(copy, tmp_path, epochs=1), tmp_path / "member.pt")
    first = dimenet_training.train_member(job)
    again = dimenet_training.train_member(dataclasses.replace(job, fingerprint="another"))
    assert "starts anew" in caplog.text and same_weights(first["state"], again["state"])
    cfg = make_config(copy, tmp_path)
    assert dimenet_stage.fingerprint(cfg, {"lmdb_path": "a"}) != dimenet_stage.fingerprint(cfg, {"lmdb_path": "b"})
    assert dimenet_stage.fingerprint(cfg, {}) == dimenet_stage.fingerprint(make_config(copy, tmp_path / "elsewhere"), {})
    assert dimenet_stage.fingerprint(cfg, {}) != dimenet_stage.fingerprint(make_config(copy, tmp_path, epochs=9), {})


def test_validation_file_and_fine_tuning_from_an_official_checkpoint(lmdb_path, tmp_path):
    write_is2re(tmp_path / "val.lmdb", records(8, seed=9))
    torch.manual_seed(4)
    source = DimeNetPlusPlus(TINY)
    state = {f"module.module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state, "normalizers": {"target": {"mean": 1.5, "std": 2.0}}}, tmp_path / "ocp.pt")
    changes = {"val_lmdb_path": tmp_path / "val.lmdb", "init_from": tmp_path / "ocp.pt", "epochs": 1, "learning_rate": 1e-8}
    stage.main(make_config(lmdb_path, tmp_path, **changes))
    content = load_checkpoint(tmp_path / "dimenet" / "dimenet.pth", "dimenet", "")
    assert content["normalizer"] == {"mean": 1.5, "std": 2.0}
    for key, value in content["members"][0].items():
        torch.testing.assert_close(value, source.state_dict()[key], rtol=0, atol=1e-4)
    assert json.loads((tmp_path / "dimenet" / "dimenet.json").read_text(encoding="utf-8"))["counts"]["val"] == 8


def test_new_dft_points_change_the_correction_and_nothing_else(lmdb_path, tmp_path, caplog):
    caplog.set_level("INFO", logger="her2d")
    cfg = make_config(lmdb_path, tmp_path, epochs=1, dft_path=DFT)
    stage.main(cfg)
    before, card = (
        load_checkpoint(cfg.dimenet.checkpoint, "dimenet", ""),
        json.loads((tmp_path / "dimenet/dimenet.json").read_text()),
    )
    points = tmp_path / "points.db"
    shutil.copy(cfg.dimenet.dft_path, points)
    rows = [row.id for row in connect(points).select(kind="slab_H")]
    connect(points).delete(rows[::3])
    changed = make_config(lmdb_path, tmp_path, epochs=1, dft_path=points)
    stage.main(changed)
    assert "fitted anew" in caplog.text and "starting anew" not in caplog.text
    after, new_card = (
        load_checkpoint(cfg.dimenet.checkpoint, "dimenet", ""),
        json.loads((tmp_path / "dimenet/dimenet.json").read_text()),
    )
    assert all(same_weights(a, b) for a, b in zip(before["members"], after["members"], strict=True))
    assert len(after["correction"]["truth"]) < len(before["correction"]["truth"])
    assert new_card["metrics"]["test"] == card["metrics"]["test"] and new_card["metrics"]["dft"]["n"] < card["metrics"]["dft"]["n"]
    assert list(new_card["inputs"]) == [relative_name(lmdb_path), relative_name(points)]
    caplog.clear()
    stage.main(changed)
    assert "nothing to do" in caplog.text
    stage.main(make_config(lmdb_path, tmp_path, epochs=1, dft_path="", only_correction=True))
    assert load_checkpoint(cfg.dimenet.checkpoint, "dimenet", "")["correction"] is None


def test_the_teacher_is_named_by_the_file_beside_the_records_and_remembered_by_the_checkpoint(lmdb_path, tmp_path):
    cfg = make_config(lmdb_path, tmp_path, epochs=1, dft_path=DFT)
    assert dimenet_stage.records_teacher(lmdb_path) == "", "no file beside these records"
    stage.main(cfg)

    def teacher() -> str:
        return load_checkpoint(cfg.dimenet.checkpoint, "dimenet", "")["correction"]["teacher"]

    assert teacher() == ""
    embedded = Path(stage.__file__).parent / "data" / "demo_is2re"
    assert dimenet_stage.records_teacher(embedded / "data.lmdb") == dimenet_stage.records_teacher(embedded) == "sevennet-0"
    stage.main(make_config(lmdb_path, tmp_path, epochs=1, dft_path=DFT, dft_teacher="sevennet-0"))
    assert teacher() == "sevennet-0"
    stage.main(make_config(lmdb_path, tmp_path, epochs=1, dft_path=DFT, only_correction=True))
    assert teacher() == "sevennet-0", "as its card says"
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for source in (lmdb_path, embedded / "data.lmdb", embedded / "data.json"):
        shutil.copy(source, mixed / (source.name if source.parent == embedded else "other.lmdb"))
    assert dimenet_stage.records_teacher(mixed) == "", "of some records it is not known"


def test_fine_tuning_from_an_own_checkpoint_member_by_member(lmdb_path, tmp_path):
    first = make_config(lmdb_path, tmp_path / "a", epochs=1, ensemble_size=2)
    stage.main(first)
    source = load_checkpoint(first.dimenet.checkpoint, "dimenet", "")
    start = {"init_from": first.dimenet.checkpoint, "epochs": 1, "learning_rate": 1e-8, "ensemble_size": 3}
    second = make_config(lmdb_path, tmp_path / "b", **start)
    stage.main(second)
    content = load_checkpoint(second.dimenet.checkpoint, "dimenet", "")
    assert content["normalizer"] == source["normalizer"]
    for k, member in enumerate(content["members"]):
        for key, value in member.items():
            torch.testing.assert_close(value, source["members"][k % 2][key], rtol=0, atol=1e-4)
    other = dataclasses.replace(TINY, cutoff_angstrom=TINY.cutoff_angstrom + 0.5)
    with pytest.raises(CheckpointError, match="another size"):
        load_initial_weights(first.dimenet.checkpoint, DimeNetPlusPlus(other), other)


def test_a_formula_falls_on_the_same_side_in_every_set(tmp_path):
    def entry(formula):
        return adsorption_data.Entry(0, 0, 0.0, formula, "x", 3, (1,))

    formulas = [f"X{k}" for k in range(300)]
    cfg = DimenetConfig()
    part = {}
    for chosen in (formulas, formulas[::2], formulas[100:]):
        split = adsorption_data.split_by_formula([entry(f) for f in chosen], cfg, 0)
        sides = {chosen[n]: name for name, numbers in split.items() for n in numbers}
        assert all(part.setdefault(f, side) == side for f, side in sides.items())
    shares = [sum(side == name for side in part.values()) / 300 for name in ("val", "test")]
    np.testing.assert_allclose(shares, [0.1, 0.1], atol=0.05)


@pytest.mark.slow
def test_worker_processes_give_the_same_weights(lmdb_path, tmp_path):
    cfg = make_config(lmdb_path, tmp_path, epochs=1, dft_path=DFT)
    jobs = [dataclasses.replace(make_job(cfg, tmp_path / f"p{k}.pt"), number=k) for k in range(2)]
    torch.set_num_threads(2)
    parallel = dimenet_training.train_ensemble(jobs, Ranks(torch.device("cpu")), cfg.run)
    alone = [dimenet_training.train_member(dataclasses.replace(job, resume_path=tmp_path / f"s{job.number}.pt")) for job in jobs]
    assert all(same_weights(a["state"], b["state"]) for a, b in zip(parallel, alone, strict=True))


def test_too_few_formulas_are_refused(tmp_path):
    write_is2re(tmp_path / "data.lmdb", [dict(r, bulk_formula="Cu") for r in records(6)])
    with pytest.raises(StageError, match="1 bulk formulas are too few"):
        stage.main(make_config(tmp_path / "data.lmdb", tmp_path / "out"))
