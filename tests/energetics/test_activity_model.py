"""ΔG_H of a sheet at once: known sheets, what the trees may know, what they refuse, and a training on a law that is known."""

from __future__ import annotations

import csv
import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, graphene, mx2
from sheet_settings import settings_of

from energetics import activity_training as training
from energetics.activity_model import KNOWN, ActivityModel, load_activity_model, within
from energetics.band_gap_model import GapColumns, gap_descriptors
from networks.checkpoints import CheckpointError
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR, file_sha256
from pipeline.loading import load_config
from pipeline.provenance import read_sidecar

WEIGHTS = PROJECT_DIR / "weights" / "activity.pth"
DENOISER, DIMENET_FILE = PROJECT_DIR / "weights" / "denoiser.pth", PROJECT_DIR / "weights" / "dimenet.pth"
JUDGED = PROJECT_DIR / "data" / "judged_candidates"


@pytest.fixture(scope="module")
def model() -> ActivityModel:
    return ActivityModel.load(WEIGHTS)


def dichalcogenide(formula: str, a: float, thickness: float = 3.13) -> Atoms:
    return mx2(formula, "2H", a=a, thickness=thickness, vacuum=10)


def test_known_sheets(model):
    """H hardly binds to MoS2 and graphene, and binds to NbS2, which has electrons to spare; the heads' value as they say it."""
    inert, active = dichalcogenide("MoS2", 3.18), dichalcogenide("NbS2", 3.34)
    assert model.delta_g(inert, 2.1)[0] > 0.9 and model.delta_g(graphene("C2", a=2.46, vacuum=10), 1.7)[0] > 1.0
    assert -0.5 < model.delta_g(active, 1.2)[0] < 0.6 < model.delta_g(inert, 1.2)[0]


def test_the_more_is_known_the_smaller_the_error(model):
    errors = [model.std_ev[name] for name in KNOWN]
    assert errors == sorted(errors, reverse=True) and 0.1 < errors[-1] < errors[0] < 0.7
    sheet = dichalcogenide("NbS2", 3.34)
    assert model.delta_g(sheet)[1] == model.std_ev["the sheet"]
    assert model.delta_g(sheet, 0.1)[1] == model.std_ev["heads"]
    assert model.delta_g(sheet, math.nan)[1] == model.std_ev["the sheet"], "where the heads say nothing"
    assert set(model.trees) == set(model.std_ev) == set(KNOWN)


def test_what_heads_say_counts(model):
    sheet = dichalcogenide("NbS2", 3.34)
    assert model.delta_g(sheet, 1.5)[0] > model.delta_g(sheet, -0.5)[0] + 0.1


def test_others_than_it_learnt_beside_are_not_asked(model, tmp_path):
    """Of another denoiser the trees know nothing; then they take the sheet alone."""
    sheet = dichalcogenide("NbS2", 3.34)
    other = tmp_path / "other.pth"
    other.write_bytes(b"other weights")
    assert model.beside(DENOISER).asks_heads and model.beside(DENOISER).delta_g(sheet, 0.3)[1] == model.std_ev["heads"]
    expected = model.trees["the sheet"].predict(gap_descriptors(sheet)[None])[0]
    for alone in (model.beside(other), model.beside(tmp_path / "none.pth")):
        assert not alone.asks_heads
        assert alone.delta_g(sheet, 0.3) == (pytest.approx(expected), model.std_ev["the sheet"])


def test_the_setting_of_a_sheet_does_not_matter(model):
    values = [model.delta_g(atoms, 0.2)[0] for atoms in settings_of(dichalcogenide("TaSe2", 3.43, 3.35), np.random.default_rng(0))]
    assert np.allclose(values, values[0], atol=1e-6)


def test_unknown_elements_and_no_sheets(model):
    assert all(map(math.isnan, model.delta_g(dichalcogenide("UTe2", 3.9, 3.6), 0.1)))
    with pytest.raises(ValueError):
        model.delta_g(bulk("Cu"))


def test_a_missing_or_foreign_file_is_named(tmp_path):
    assert load_activity_model("", DENOISER) is None
    with pytest.raises(StageError, match="evaluation.activity_checkpoint: no file"):
        load_activity_model(str(tmp_path / "none.pth"), DENOISER)
    content = torch.load(WEIGHTS, weights_only=True)
    del content["trees"]["heads"]
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_activity_model(str(tmp_path / "other.pth"), DENOISER)


def test_what_ships_learnt_beside_what_ships_and_is_better_than_what_it_replaces():
    model, sidecar = ActivityModel.load(WEIGHTS), read_sidecar(WEIGHTS, stage=training.STAGE)
    assert model.learnt_beside == file_sha256(DENOISER)
    assert model.std_ev == pytest.approx(sidecar["std_ev"])
    found = sidecar["metrics"][training.GENERATED]
    first = sidecar["put_first"]
    for other in ("all", "trees, composition", "ΔG_H by trees", "ΔG_H by heads"):
        assert first["all"][0] < first["trees"][0] > first[other][0], other
    best = found["trees, heads"]["mae_ev"]
    assert abs(found["trees, heads and DimeNet++"]["mae_ev"][0] - best[0]) < 0.02, "DimeNet++ adds nothing, so that it is not asked"
    for other in ("heads", "DimeNet++", "mean of heads and DimeNet++", "trees, composition", "median of the others"):
        assert best[0] < found[other]["mae_ev"][0], other
    assert best[2] < found["mean of heads and DimeNet++"]["mae_ev"][1], "the intervals are apart"


def table_of(delta_g: np.ndarray, formulas: np.ndarray, rng: np.random.Generator, columns: int = 0) -> training.ActivityTable:
    """A table whose heads say 0.8 of the truth with noise, whose DimeNet++ says nothing about it."""
    number = len(delta_g)
    return training.ActivityTable(
        rng.normal(size=(number, columns or len(GapColumns().names))),
        delta_g,
        within(delta_g, np.full(number, 0.2), 0.1),
        0.8 * delta_g + rng.normal(0, 0.1, number),
        rng.normal(size=number),
        formulas,
        np.full(number, training.GENERATED),
        (frozenset({"Mo", "S"}),) * number,
    )


@pytest.fixture(scope="module")
def cfg():
    base = load_config(None, ["run.threads=1", "evaluation.bootstrap=50", "activity.trees=60"])
    return dataclasses.replace(base, activity=dataclasses.replace(base.activity, max_features=1.0))


def test_trees_find_what_the_heads_miss_by(cfg):
    rng = np.random.default_rng(0)
    delta_g = rng.uniform(-1.5, 1.5, 400)
    table = table_of(delta_g, np.array([f"A{k}" for k in range(400)]), rng, 12)
    said = training.answers(table, cfg)
    found = training.measure(table, said, cfg)[training.GENERATED]
    assert found["n"] == 400
    assert found["trees, heads"]["mae_ev"][0] < found["heads"]["mae_ev"][0] < found["DimeNet++"]["mae_ev"][0]
    assert found["trees, the sheet"]["mae_ev"][0] > 0.6 > found["trees, heads"]["mae_ev"][0], "descriptors here are noise"
    assert found["heads"]["spearman"][0] > 0.95 and "spearman" not in found["median of the others"]
    low, high = found["heads"]["mae_ev"][1:]
    assert low < np.abs(table.heads - delta_g).mean() < high


def test_trees_learn_where_the_judge_is_sure(cfg):
    """Of all sheets ΔG_H is near zero. In half of them, which one descriptor names, the judge's error is small."""
    rng = np.random.default_rng(5)
    delta_g = rng.normal(0, 0.05, 300)
    table = table_of(delta_g, np.array([f"A{k}" for k in range(300)]), rng, 12)
    std = np.where(table.descriptors[:, 3] > 0, 0.1, 0.8)
    table = dataclasses.replace(table, chance=within(delta_g, std, 0.1), heads=rng.normal(0, 0.05, 300))
    said = {"trees, heads": table.heads, "heads": table.heads}
    first = training.measure_chance(table, said, {"heads": 0.3}, cfg)
    assert first["n"] == 300 and first["all"][0] == pytest.approx(table.chance.mean())
    for other in ("all", "trees, composition", "ΔG_H by trees", "ΔG_H by heads"):
        assert first["trees"][0] > first[other][0] + 0.05 or other == "trees, composition"
    assert first["judge"][0] >= first["trees"][0] and first["judge"][0] == pytest.approx(np.sort(table.chance)[-30:].mean())
    blank = dataclasses.replace(table, chance=np.where(np.arange(300) < 200, table.chance, np.nan))
    assert training.measure_chance(blank, said, {"heads": 0.3}, cfg)["n"] == 200, "where the error is not known"
    assert training.fit_trees(blank, np.ones(300, dtype=bool), cfg, (), of="chance").predict(table.columns(())).std() > 0.1


def test_the_chance_is_that_of_the_window_that_was_learnt(model):
    sheet = dichalcogenide("NbS2", 3.34)
    assert model.window_ev == load_config(None, []).evaluation.hit_delta_g_ev and set(model.chances) == set(KNOWN)
    columns = np.append(gap_descriptors(sheet), 0.1)[None]
    assert model.chance(sheet, 0.1, model.window_ev) == pytest.approx(np.clip(model.chances["heads"].predict(columns)[0], 0, 1))
    value, std = model.delta_g(sheet, 0.1)
    assert model.chance(sheet, 0.1, 0.3) == pytest.approx(within(value, std, 0.3)), "another window"
    assert 0 <= model.chance(dichalcogenide("MoS2", 3.18), 2.1, model.window_ev) < model.chance(sheet, 0.1, model.window_ev) <= 1
    assert math.isnan(model.chance(dichalcogenide("UTe2", 3.9, 3.6), 0.1, model.window_ev))
    without = dataclasses.replace(model, chances={})
    assert without.chance(sheet, 0.1, model.window_ev) == pytest.approx(within(value, std, model.window_ev))


def test_no_sheet_is_predicted_by_trees_that_saw_its_formula(cfg):
    """Descriptors name the formula, and its ΔG_H is drawn at random: whoever saw the formula would know it."""
    rng = np.random.default_rng(1)
    of_formula = rng.uniform(-1.5, 1.5, 40)
    number = np.repeat(np.arange(40), 10)
    table = table_of(of_formula[number], np.array([f"A{k}" for k in number]), rng, 3)
    table = dataclasses.replace(table, descriptors=np.column_stack([number, number % 7, number % 3]).astype(float))
    seen = training.fit_trees(table, np.ones(400, dtype=bool), cfg, ()).predict(table.columns(()))
    left_out = training.answers(table, cfg)["trees, the sheet"]
    assert np.abs(seen - table.delta_g).mean() < 0.3 < 0.6 < np.abs(left_out - table.delta_g).mean()


def test_sheets_without_a_value_are_passed_over(cfg):
    rng = np.random.default_rng(2)
    table = table_of(rng.uniform(-1, 1, 200), np.array([f"A{k}" for k in range(200)]), rng, 5)
    table.heads[:20] = math.nan
    said = training.answers(table, cfg)
    assert np.isnan(said["trees, heads"][:20]).all() and np.isfinite(said["trees, heads"][20:]).all()
    assert np.isfinite(said["trees, the sheet"]).all()
    assert training.measure(table, said, cfg)[training.GENERATED]["n"] == 180


def test_a_training_writes_what_was_measured(tmp_path):
    """On 60 judged sheets that ship: the sidecar says what the checkpoint holds, and a second training gives the same bytes."""
    folder = tmp_path / "judged"
    folder.mkdir()
    rows = list(csv.DictReader((JUDGED / "metrics.csv").open(encoding="utf-8")))
    kept = [row for row in rows if row["delta_g_h_corrected_ev"] != "nan"][:60]
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows([row for row in rows if row["id"] in {r["id"] for r in kept}])
    from ase.io import read, write

    names = {row["id"] for row in kept}
    write(folder / "relaxed.extxyz", [a for a in read(JUDGED / "relaxed.extxyz", ":") if a.info["id"] in names])
    given = [
        "run.threads=1",
        "evaluation.bootstrap=20",
        "activity.trees=20",
        f"activity.judged_dirs=[{folder}]",
        "activity.processed_dir=",
    ]
    given += [f"denoiser.checkpoint={DENOISER}", f"dimenet.checkpoint={DIMENET_FILE}", f"activity.checkpoint={tmp_path / 'a.pth'}"]
    config = load_config(None, given)
    training.train_stage(config)
    found, sidecar = ActivityModel.load(tmp_path / "a.pth"), read_sidecar(tmp_path / "a.pth", stage=training.STAGE)
    assert training.MIN_SHEETS <= sidecar["counts"][training.GENERATED] <= 60
    assert sidecar["metrics"][training.GENERATED]["heads"]["rmse_ev"] > 0
    assert found.std_ev == pytest.approx(sidecar["std_ev"]) and set(found.trees) == set(KNOWN)
    first = file_sha256(tmp_path / "a.pth")
    training.train_stage(config)
    assert file_sha256(tmp_path / "a.pth") == first
    few = dataclasses.replace(config, activity=dataclasses.replace(config.activity, judged_dirs=[]))
    with pytest.raises(StageError, match="0 sheets with ΔG_H of the potential are too few"):
        training.train_stage(few)
    shutil.rmtree(folder)
    with pytest.raises(StageError, match="^activity.judged_dirs: "):
        training.train_stage(config)


def test_labels_of_dimenet_are_refused(tmp_path, monkeypatch):
    config = load_config(None, ["run.threads=1", f"activity.processed_dir={tmp_path}"])
    monkeypatch.setattr(training, "read_split", lambda path: {})
    monkeypatch.setattr(training, "read_sidecar", lambda path, stage: {"settings": {"label_source": "dimenet"}})
    with pytest.raises(StageError, match="labels of dimenet: run material_dataset.py dataset.label_source=potential"):
        training.labelled_sheets(config)
