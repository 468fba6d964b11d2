"""What is known of the judges before they judge."""

from __future__ import annotations

import dataclasses

import ase.db
import pytest
import simple_judges as simple
from simple_judges import SETTINGS

from evaluation.judges import known_formulas
from pipeline.errors import StageError
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
