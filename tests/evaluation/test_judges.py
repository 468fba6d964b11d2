"""What is known of the judges before they judge."""

from __future__ import annotations

import dataclasses

import ase.db
import pytest
import simple_judges as simple
from simple_judges import SETTINGS

from evaluation import trust
from evaluation.judges import judge_identity, known_formulas, novelty_sources
from pipeline.errors import StageError
from pipeline.loading import load_config
from pipeline.provenance import SCHEMA_VERSION


def test_formulas_of_a_generator_are_read_unless_the_training_set_has_them_all(tmp_path, caplog):
    import torch

    with ase.db.connect(tmp_path / "training.db") as database:
        database.write(simple.sheet())
        database.write(simple.sheet("WS2"))
    path = tmp_path / "denoiser.pth"

    def found(formulas, **content):
        torch.save({"schema_version": SCHEMA_VERSION, "kind": "denoiser", "formulas": formulas, **content}, path)
        return known_formulas(settings)

    settings = dataclasses.replace(
        SETTINGS, training_set=str(tmp_path / "training.db"), known_formulas_from=str(tmp_path / "denoiser.pth")
    )
    with caplog.at_level("INFO", logger="her2d"):
        assert known_formulas(settings) == frozenset()
    assert "no generator at" in caplog.text
    assert found(["MoS2", "S4W2"]) == frozenset(), "the training set has them all: its structures decide"
    assert found(["MoS2", "Se4Mo2"]) == {"MoS2", "MoSe2"}
    assert known_formulas(dataclasses.replace(settings, known_formulas_from="")) == frozenset()
    with pytest.raises(StageError, match="is not a denoiser checkpoint"):
        found([], kind="dimenet")


def test_further_databases_decide_novelty_and_belong_to_the_judges(tmp_path):
    for name, formula in (("training.db", "MoS2"), ("more.db", "WS2")):
        with ase.db.connect(tmp_path / name) as database:
            database.write(simple.sheet(formula))
    given = [f"evaluation.training_set={tmp_path / 'training.db'}", "dimenet.checkpoint=weights/dimenet.pth"]
    plain = load_config(None, [*given, "evaluation.known_formulas_from="])
    more = load_config(None, [*given, "evaluation.known_formulas_from=", f"evaluation.known_db=[{tmp_path / 'more.db'}]"])
    assert "known_db" not in judge_identity(plain), "results of before stay comparable"
    assert [found["path"].endswith("more.db") for found in judge_identity(more)["known_db"]] == [True]
    assert list(novelty_sources(more.evaluation).values()) == [1, 1]
    with pytest.raises(StageError, match="evaluation.known_db: no file"):
        judge_identity(load_config(None, [*given, f"evaluation.known_db=[{tmp_path / 'none.db'}]"]))
    (tmp_path / "text.db").write_text("no database")
    damaged = load_config(None, [*given, "evaluation.known_formulas_from=", f"evaluation.known_db=[{tmp_path / 'text.db'}]"])
    with pytest.raises(StageError, match="text.db"):
        novelty_sources(damaged.evaluation)


def test_a_hazard_that_is_no_element_is_one_line():
    with pytest.raises(StageError, match="^evaluation.hazards: Mox, X is no element$"):
        judge_identity(load_config(None, ["evaluation.hazards=[Cd, Mox, X]", "dimenet.checkpoint=weights/dimenet.pth"]))


def test_the_report_says_against_what_novelty_was_decided():
    provenance = {"judges": {}, "novelty": {"training.db": 1909, "weights/denoiser.pth": 12306}}
    rows = dict(trust.trust({"truth": {}, "metrics": {}, "provenance": provenance}))
    assert "absent from 1,909 rows of training.db and from 12,306 formulas of weights/denoiser.pth," in rows["unique, novel"]
