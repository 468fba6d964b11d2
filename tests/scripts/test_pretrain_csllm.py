import json
import logging
from pathlib import Path

import ase.db
import numpy as np
import pytest
import torch
from ase.build import mx2

from evaluation import embedded_lm, material_strings, synth_calibration, synth_examples, synth_training
from pipeline.errors import StageError
from pipeline.files import file_sha256
from pipeline.loading import load_config
from pipeline.provenance import read_sidecar, sidecar_path
from scripts import pretrain_csllm as stage

SYNTHESIZABLE = ("Mo", "W", "Nb", "Ta", "Ti", "Zr", "Hf")
NOT = ("Mg", "Ca", "Zn", "Cd", "Mn", "Fe", "Co")


@pytest.fixture(scope="module")
def toy_db(tmp_path_factory):
    """MX2 sheets whose label is decided by the metal, one row without a label and one that is not a sheet."""
    path = tmp_path_factory.mktemp("db") / "toy.db"
    rng = np.random.default_rng(0)
    with ase.db.connect(str(path)) as db:
        for metal in SYNTHESIZABLE + NOT:
            for chalcogen in ("O", "S", "Se", "Te"):
                for kind in ("2H", "1T"):
                    sheet = mx2(metal + (chalcogen + "2"), kind, a=3.0 + 0.6 * rng.random(), thickness=3.1, vacuum=9.0)
                    sheet.pbc = (True, True, False)
                    db.write(sheet, key_value_pairs={"ehull": 0.01 if metal in SYNTHESIZABLE else 0.4})
        db.write(sheet, key_value_pairs={"ehull": 0.1})
        sheet.cell[2, 2] = 6.0
        sheet.pbc = True
        db.write(sheet, key_value_pairs={"ehull": 0.4})
    return path


def settings(db, folder, *overrides):
    return load_config(
        None,
        [
            f"synth_lm.db_path={db}",
            f"synth_lm.checkpoint={folder}/synth_lm.pth",
            "run.device=cpu",
            "run.seed=8",  # a seed with every metal among the learnt formulas and both labels held out
            "run.threads=1",
            "dataset.val_fraction=0.2",
            "dataset.test_fraction=0.25",
            "synth_lm.hidden_size=32",
            "synth_lm.num_layers=1",
            "synth_lm.num_heads=2",
            "synth_lm.augmentations=2",
            "synth_lm.batch_size=8",
            "synth_lm.learning_rate=0.004",
            "synth_lm.epochs=14",
            "synth_lm.min_element_rows=1",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def trained(toy_db, tmp_path_factory):
    cfg = settings(toy_db, tmp_path_factory.mktemp("synth"))
    stage.main(cfg)
    return cfg


def weights(cfg):
    return torch.load(cfg.synth_lm.checkpoint, weights_only=True)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first["model"].items():
        assert torch.equal(value, second["model"][key]), key
    assert json.dumps(first["metrics"]) == json.dumps(second["metrics"]) and first["calibration"] == second["calibration"]


def test_a_separable_set_is_learned_and_reported(trained):
    sidecar = read_sidecar(trained.synth_lm.checkpoint, stage=synth_training.STAGE)
    test = sidecar["metrics"]["test"]
    assert test["roc_auc"] > 0.9 and test["n"] >= 12
    assert {"tpr", "tnr", "accuracy", "ece", "reliability"} <= set(test)
    assert sum(point["n"] for point in test["reliability"]) == test["n"]
    assert sidecar["counts"]["rows"] == 114 and sidecar["counts"]["unlabelled"] == 1 and sidecar["counts"]["not 2D"] == 1
    assert sum(sidecar["counts"][f"{part} crystals"] for part in ("train", "val", "test")) == 112
    assert (sidecar_path(trained.synth_lm.checkpoint).parent / "synth_lm_calibration.png").stat().st_size > 10_000
    assert not synth_training.resume_path(Path(trained.synth_lm.checkpoint)).exists()


def test_the_judge_reproduces_the_reported_scores(trained):
    judge = embedded_lm.EmbeddedLMJudge(trained.synth_lm.checkpoint)
    rows, counts = synth_examples.select_rows(trained)
    examples = synth_examples.labelled_examples(trained, rows, file_sha256(trained.synth_lm.db_path), counts)
    held_out = [example for example in examples if example.split == "test"]
    with ase.db.connect(trained.synth_lm.db_path) as db:
        found = judge.score([db.get(id=example.row_id).toatoms() for example in held_out])
    p, labels = np.array([score.p_synth for score in found]), np.array([float(example.label) for example in held_out])
    again = synth_calibration.scores(p, labels, np.array([score.label_mass for score in found]))
    assert again["roc_auc"] == pytest.approx(judge.metrics["test"]["roc_auc"], abs=1e-9)
    assert again["log_loss"] == pytest.approx(judge.metrics["test"]["log_loss"], rel=1e-3)
    assert all(score.status == "ok" and score.in_domain and score.label_mass > 0.9 for score in found)
    gold = mx2("AuS2", "2H", a=3.4, thickness=3.1, vacuum=9.0)
    assert judge.score([gold])[0].status == "element not in training: Au"


def test_formulas_never_straddle_the_split(trained):
    rows, counts = synth_examples.select_rows(trained)
    examples = synth_examples.labelled_examples(trained, rows, file_sha256(trained.synth_lm.db_path), counts)
    splits = {}
    for example in examples:
        splits.setdefault(example.formula, set()).add(example.split)
    assert all(len(found) == 1 for found in splits.values()) and len(splits) == 56


def test_complete_means_nothing_to_do_and_a_changed_setting_does_not(trained, caplog, monkeypatch):
    monkeypatch.setattr(synth_training, "select_rows", lambda cfg: pytest.fail("worked again"))
    with caplog.at_level(logging.INFO, logger="her2d"):
        stage.main(trained)
    assert "nothing to do" in caplog.text
    changed = settings(trained.synth_lm.db_path, Path(trained.synth_lm.checkpoint).parent, "synth_lm.epochs=15")
    with pytest.raises(pytest.fail.Exception):
        stage.main(changed)


def test_killed_and_started_again_ends_bit_identical(trained, toy_db, tmp_path, monkeypatch):
    cfg = settings(toy_db, tmp_path)
    real_loss, real_string, calls = synth_training.training_loss, material_strings.material_string, {"loss": 0, "string": 0}

    def string_then_kill(structure):
        calls["string"] += 1
        if calls["string"] == 50:
            raise KeyboardInterrupt
        return real_string(structure)

    def loss_then_kill(*args):
        calls["loss"] += 1
        if calls["loss"] == 40:
            raise KeyboardInterrupt
        return real_loss(*args)

    monkeypatch.setattr(material_strings, "material_string", string_then_kill)
    with pytest.raises(KeyboardInterrupt):
        stage.main(cfg)
    cache = tmp_path / "strings.jsonl"
    cached = cache.read_bytes().count(b"\n") - 1
    with cache.open("ab") as handle:
        handle.write(b'[25, ["187 |3.1')  # a line cut by the kill
    monkeypatch.setattr(synth_training, "training_loss", loss_then_kill)
    with pytest.raises(KeyboardInterrupt):
        stage.main(cfg)
    assert cached > 5 and calls["string"] <= 50 + 2 * (113 - cached) + 2  # cached strings are not made again
    assert not Path(cfg.synth_lm.checkpoint).exists()
    stage.main(cfg)
    assert_same(weights(cfg), weights(trained))


def test_a_loss_that_is_not_finite_stops_with_a_saved_state(toy_db, trained, tmp_path, monkeypatch):
    (tmp_path / "strings.jsonl").write_bytes((Path(trained.synth_lm.checkpoint).parent / "strings.jsonl").read_bytes())
    cfg = settings(toy_db, tmp_path)
    real, calls = synth_training.training_loss, []

    def poisoned(*args):
        calls.append(1)
        loss, label_loss = real(*args)
        return (loss * float("nan"), label_loss) if len(calls) == 30 else (loss, label_loss)

    monkeypatch.setattr(synth_training, "training_loss", poisoned)
    with pytest.raises(StageError, match="not finite in epoch") as error:
        stage.main(cfg)
    assert "\n" not in str(error.value)
    saved = torch.load(tmp_path / "synth_lm.resume.pth", weights_only=True)
    assert (
        saved["step"] == 29
        and saved["history"][-1]["epoch"] >= 1
        and all(torch.isfinite(value).all() for value in saved["model"].values())
    )
    assert not (tmp_path / "synth_lm.pth").exists()


def test_user_errors_are_one_line(tmp_path, toy_db):
    with pytest.raises(StageError, match="synth_lm.db_path: no file at"):
        stage.main(settings(tmp_path / "none.db", tmp_path))
    (tmp_path / "broken.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StageError, match="not a readable ASE database") as error:
        stage.main(settings(tmp_path / "broken.db", tmp_path))
    assert "\n" not in str(error.value)
    with ase.db.connect(str(tmp_path / "small.db")) as db:
        db.write(mx2("MoS2", vacuum=9.0), key_value_pairs={"ehull": 0.0})
    with pytest.raises(StageError, match="too few labelled crystals"):
        stage.main(settings(tmp_path / "small.db", tmp_path))


def test_calibration_recovers_a_known_temperature_and_bias():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 4, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(odds / 2.5 - 0.7)))).astype(float)
    temperature, bias = synth_calibration.fit_calibration(odds, labels)
    assert temperature == pytest.approx(2.5, rel=0.1) and bias == pytest.approx(-0.7, abs=0.08)
    p = 1 / (1 + np.exp(-(odds / temperature + bias)))
    assert synth_calibration.scores(p, labels, np.ones(20_000))["ece"] < 0.015
    assert synth_calibration.scores(1 / (1 + np.exp(-odds)), labels, np.ones(20_000))["ece"] > 0.05


def test_scores_by_hand():
    found = synth_calibration.scores(np.array([0.9, 0.6, 0.4, 0.2]), np.array([1.0, 0.0, 1.0, 0.0]), np.ones(4))
    assert (found["roc_auc"], found["tpr"], found["tnr"], found["accuracy"]) == (0.75, 0.5, 0.5, 0.5)
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.6 + 0.2) / 4)


def test_padding_and_batching_change_nothing(trained):
    judge = embedded_lm.EmbeddedLMJudge(trained.synth_lm.checkpoint)
    rows, counts = synth_examples.select_rows(trained)
    examples = synth_examples.labelled_examples(trained, rows, file_sha256(trained.synth_lm.db_path), counts)
    encoder = synth_examples.Encoder(judge.tokenizer, examples)
    alone, _ = synth_training.log_odds(judge.model, encoder, [3], 1)
    together, mass = synth_training.log_odds(judge.model, encoder, list(range(len(examples))), 8)
    assert together[3] == pytest.approx(alone[0], abs=1e-4)
    assert encoder.prompt_ids(3)[0] == judge.tokenizer.encode(material_strings.prompt(examples[3].strings[0]))
    assert (mass <= 1 + 1e-9).all()
