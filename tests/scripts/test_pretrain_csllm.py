"""Training of the embedded synthesizability model."""

import json
import logging
from pathlib import Path

import ase.db
import numpy as np
import pytest
import torch
from ase.build import mx2

from evaluation import embedded_trees, synth_calibration, synth_examples, synth_training
from pipeline.errors import StageError
from pipeline.loading import load_config
from pipeline.provenance import read_sidecar, sidecar_path
from scripts import pretrain_csllm as stage

SYNTHESIZABLE = ("Mo", "W", "Nb", "Ta", "Ti", "Zr", "Hf")
NOT = ("Mg", "Ca", "Zn", "Cd", "Mn", "Fe", "Co")


def sheet(metal, chalcogen, kind, rng):
    atoms = mx2(metal + (chalcogen + "2"), kind, a=3.0 + 0.6 * rng.random(), thickness=3.1, vacuum=9.0)
    atoms.pbc = (True, True, False)
    return atoms


@pytest.fixture(scope="module")
def toy_db(tmp_path_factory):
    """MX2 sheets whose label is decided by the metal, one row without a label and one that is not a sheet."""
    path = tmp_path_factory.mktemp("db") / "toy.db"
    rng = np.random.default_rng(0)
    with ase.db.connect(str(path)) as db:
        for metal in SYNTHESIZABLE + NOT:
            for chalcogen in ("O", "S", "Se", "Te"):
                for kind in ("2H", "1T"):
                    atoms = sheet(metal, chalcogen, kind, rng)
                    db.write(atoms, key_value_pairs={"ehull": 0.01 if metal in SYNTHESIZABLE else 0.4})
        db.write(atoms, key_value_pairs={"ehull": 0.1})
        atoms.cell[2, 2] = 6.0
        atoms.pbc = True
        db.write(atoms, key_value_pairs={"ehull": 0.4})
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
            "synth_lm.trees=40",
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


def test_a_separable_set_is_learned_and_reported(trained):
    sidecar = read_sidecar(trained.synth_lm.checkpoint, stage=synth_training.STAGE)
    test = sidecar["metrics"]["test"]
    assert test["roc_auc"] > 0.9 and test["n"] >= 12
    assert {"tpr", "tnr", "recall_reported", "ece", "reliability", "roc_auc_interval"} <= set(test)
    assert sum(point["n"] for point in test["reliability"]) == test["n"]
    counts = sidecar["counts"]
    assert counts["rows"] == 114 and counts["unlabelled"] == 1 and counts["not 2D"] == 1
    assert sum(counts[f"{part} sheets"] for part in ("train", "val", "test")) == 112
    assert sidecar["metrics"]["composition alone"]["test"]["n"] == test["n"]
    assert (sidecar_path(trained.synth_lm.checkpoint).parent / "synth_lm_calibration.png").stat().st_size > 10_000


def test_the_judge_reproduces_the_reported_scores(trained):
    judge = embedded_trees.EmbeddedTreesJudge(trained.synth_lm.checkpoint)
    examples, _ = synth_examples.read_examples(trained)
    held_out = [example for example in examples if example.split == "test" and example.label == example.label]
    found = judge.score([example.atoms for example in held_out])
    p, labels = np.array([score.p_synth for score in found]), np.array([example.label for example in held_out])
    again = synth_calibration.scores(p, labels, np.zeros(len(labels), dtype=bool))
    assert again["roc_auc"] == pytest.approx(judge.metrics["test"]["roc_auc"], abs=1e-9)
    assert again["log_loss"] == pytest.approx(judge.metrics["test"]["log_loss"], rel=1e-6)
    assert all(score.status == "ok" and score.in_domain for score in found)
    gold = mx2("AuS2", "2H", a=3.4, thickness=3.1, vacuum=9.0)
    assert judge.score([gold])[0].status == "element not in training: Au"


def test_formulas_never_straddle_the_split(trained):
    examples, _ = synth_examples.read_examples(trained)
    splits = {}
    for example in examples:
        splits.setdefault(example.formula, set()).add(example.split)
    assert all(len(found) == 1 for found in splits.values()) and len(splits) == 56


def test_cross_validated_odds_come_from_trees_that_have_not_seen_the_formula(trained, monkeypatch):
    table = synth_training.Table.of([e for e in synth_examples.read_examples(trained)[0] if e.label == e.label])
    seen, fit = [], synth_training.fit_trees
    monkeypatch.setattr(synth_training, "fit_trees", lambda t, rows, *rest: (seen.append(rows.copy()), fit(t, rows, *rest))[1])
    odds = synth_training.cross_validated_odds(table, trained)
    formulas = np.array([example.formula for example in table.examples])
    assert np.isnan(odds[table.side == "test"]).all() and np.isfinite(odds[table.side != "test"]).all()
    for fold, rows in zip(sorted(set(table.folds[table.side != "test"])), seen, strict=True):
        assert not set(formulas[rows]) & set(formulas[(table.folds == fold) | (table.side == "test")])


def test_complete_means_nothing_to_do_and_a_changed_setting_does_not(trained, caplog, monkeypatch):
    monkeypatch.setattr(synth_training, "read_examples", lambda cfg: pytest.fail("worked again"))
    with caplog.at_level(logging.INFO, logger="her2d"):
        stage.main(trained)
    assert "nothing to do" in caplog.text
    changed = settings(trained.synth_lm.db_path, Path(trained.synth_lm.checkpoint).parent, "synth_lm.trees=41")
    with pytest.raises(pytest.fail.Exception):
        stage.main(changed)


def test_a_second_run_gives_the_same_model(trained, toy_db, tmp_path):
    cfg = settings(toy_db, tmp_path)
    stage.main(cfg)
    first, second = weights(cfg), weights(trained)
    assert first.keys() == second.keys() and json.dumps(first["metrics"]) == json.dumps(second["metrics"])
    for key, value in first["trees"].items():
        assert torch.equal(value, second["trees"][key]) if isinstance(value, torch.Tensor) else value == second["trees"][key]


def test_a_synthesis_on_record_decides_and_the_later_database_adds_it(toy_db, tmp_path):
    """The same sheet in a second database is one example, and reported; instability near the hull is no label."""
    rng = np.random.default_rng(0)
    first = sheet("Mo", "O", "2H", rng)  # the first row of the first database
    with ase.db.connect(str(tmp_path / "later.db")) as db:
        db.write(first, key_value_pairs={"ehull": 0.7, "doi": "id:10.1000/x"})
        db.write(sheet("Re", "S", "1T", rng), key_value_pairs={"ehull": 0.02, "dynamic_stability_phonons": "low"})
        db.write(sheet("Re", "Se", "1T", rng), key_value_pairs={"ehull": 0.5, "dynamic_stability_phonons": "low"})
    alone, _ = synth_examples.read_examples(settings(toy_db, tmp_path))
    examples, counts = synth_examples.read_examples(settings(toy_db, tmp_path, f"synth_lm.more_db_paths=[{tmp_path / 'later.db'}]"))
    assert len(examples) == len(alone) + 2 and counts["also in an earlier database"] == 1
    reported = [example for example in examples if example.reported]
    assert [(example.formula, example.label) for example in reported] == [("MoO2", 1.0)]
    labels = {example.formula: example.label for example in examples if "Re" in example.formula}
    assert np.isnan(labels["ReS2"]) and labels["ReSe2"] == 0.0


def test_families_have_the_names_of_the_field():
    rng = np.random.default_rng(0)
    assert synth_examples.family(mx2("MoS2", "2H", vacuum=9.0)) == "MX2 2H"
    assert synth_examples.family(mx2("ZrS2", "1T", vacuum=9.0)) == "MX2 1T"
    iodide = sheet("Mg", "S", "1T", rng)
    iodide.symbols[iodide.symbols == "S"] = "I"
    assert synth_examples.family(iodide) == "dihalide"


def test_user_errors_are_one_line(tmp_path, toy_db):
    with pytest.raises(StageError, match="synth_lm.db_path: no file at"):
        stage.main(settings(tmp_path / "none.db", tmp_path))
    with pytest.raises(StageError, match="synth_lm.more_db_paths: no file at"):
        stage.main(settings(toy_db, tmp_path, f"synth_lm.more_db_paths=[{tmp_path / 'none.db'}]"))
    (tmp_path / "broken.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StageError, match="not a readable ASE database") as error:
        stage.main(settings(tmp_path / "broken.db", tmp_path))
    assert "\n" not in str(error.value)
    with ase.db.connect(str(tmp_path / "small.db")) as db:
        db.write(mx2("MoS2", vacuum=9.0), key_value_pairs={"ehull": 0.0})
    with pytest.raises(StageError, match="too few labelled sheets"):
        stage.main(settings(tmp_path / "small.db", tmp_path))


def test_calibration_recovers_a_known_temperature_and_balances_both_errors():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 4, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(odds / 2.5)))).astype(float)
    none = np.zeros(20_000, dtype=bool)
    found = synth_calibration.fit_calibration(odds, labels, none, 5.0)
    assert found["temperature"] == pytest.approx(2.5, rel=0.1) and found["threshold"] == pytest.approx(0.0, abs=0.15)
    p = embedded_trees.probability(odds, found)
    measured = synth_calibration.scores(p, labels, none)
    assert measured["tpr"] == pytest.approx(measured["tnr"], abs=0.01) and measured["ece"] < 0.02
    assert (
        synth_calibration.scores(embedded_trees.probability(odds, {"threshold": 0, "temperature": 1}), labels, none)["ece"] > 0.05
    )
    reported = (labels == 1) & (odds < 2)
    shifted = synth_calibration.fit_calibration(odds, labels, reported, 5.0)
    p = embedded_trees.probability(odds, shifted)
    assert shifted["threshold"] < found["threshold"]
    assert (p[reported] >= 0.5).mean() == pytest.approx((p[labels == 0] < 0.5).mean(), abs=0.01)


def test_scores_by_hand():
    p, labels, reported = np.array([0.9, 0.6, 0.4, 0.2]), np.array([1.0, 0.0, 1.0, 0.0]), np.array([True, False, False, False])
    found = synth_calibration.scores(p, labels, reported)
    assert (found["roc_auc"], found["tpr"], found["tnr"], found["recall_reported"]) == (0.75, 0.5, 0.5, 1.0)
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.6 + 0.2) / 4)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.4, 0.8]).mean())
