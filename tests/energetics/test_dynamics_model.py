"""The learnt part of dynamic stability: known sheets, the halves of its measurement, and what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, graphene, mx2
from sheet_settings import settings_of

from energetics import dynamics_training as training
from energetics.dynamics_model import DynamicsModel, load_dynamics_model
from networks.checkpoints import CheckpointError
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.loading import load_config
from pipeline.provenance import read_sidecar

WEIGHTS = PROJECT_DIR / "weights" / "dynamics.pth"


@pytest.fixture(scope="module")
def model() -> DynamicsModel:
    return DynamicsModel.load(WEIGHTS)


def dichalcogenide(kind: str) -> Atoms:
    return mx2("MoS2", kind, a=3.18, thickness=3.13, vacuum=10)


def test_known_sheets(model):
    """2H-MoS2 and graphene are stable, 1T-MoS2 is not; eigenvalues as sevennet-l3i5 gives them."""
    assert model.probability(dichalcogenide("2H"), 0.0, 2.99) > 0.8
    assert model.probability(graphene("C2", a=2.46, vacuum=10), 0.05, 6.4) > 0.5
    assert model.probability(dichalcogenide("1T"), 0.28, -6.99) < 0.2


def test_a_softer_mode_makes_it_less_likely(model):
    sheet = dichalcogenide("2H")
    chances = [model.probability(sheet, 0.1, value) for value in (3.0, 0.3, -0.3, -3.0)]
    assert chances == sorted(chances, reverse=True) and chances[0] > chances[-1]


def test_the_setting_of_a_sheet_does_not_matter(model):
    chances = [model.probability(atoms, 0.05, 1.0) for atoms in settings_of(dichalcogenide("1T"), np.random.default_rng(0))]
    assert np.allclose(chances, chances[0], atol=1e-6)


def test_unknown_elements_get_no_probability(model):
    assert math.isnan(model.probability(mx2("UTe2", "2H", a=3.9, thickness=3.6, vacuum=10), 0.05, 1.0))
    with pytest.raises(ValueError):
        model.probability(bulk("Cu"), 0.0, 1.0)


def test_a_missing_or_foreign_file_is_named(tmp_path):
    assert load_dynamics_model("") is None
    with pytest.raises(StageError, match="dynamics_checkpoint"):
        load_dynamics_model(str(tmp_path / "none.pth"))
    content = torch.load(WEIGHTS, weights_only=True)
    content["weights"] = [1.0]
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_dynamics_model(str(tmp_path / "other.pth"))


def test_limits_come_from_the_other_half():
    """On one half of the values 1 is the limit, on the other 5: each half is judged by the limit of the other."""
    rng = np.random.default_rng(0)
    values, half = rng.uniform(0, 6, 400), np.arange(400) % 2 == 0
    stable = values > np.where(half, 1.0, 5.0)
    verdicts, limits = training.calibrated(values, stable, half)
    assert limits[0] == pytest.approx(1.0, abs=0.2) and limits[1] == pytest.approx(5.0, abs=0.2)
    assert (verdicts[half] == (values[half] >= limits[1])).all() and (verdicts[~half] == (values[~half] >= limits[0])).all()


def test_the_logistic_function_finds_a_known_law():
    rng = np.random.default_rng(1)
    columns = rng.normal(size=(4000, 2))
    odds = 0.5 + 2.0 * columns[:, 0] - 1.0 * columns[:, 1]
    stable = rng.random(4000) < 1 / (1 + np.exp(-odds))
    assert np.allclose(training.fit_logistic(columns, stable), [0.5, 2.0, -1.0], atol=0.2)
    chances = training.crossed(columns, stable, np.arange(4000) % 2 == 0)
    assert np.abs(chances - 1 / (1 + np.exp(-odds))).max() < 0.1


def test_what_is_committed_is_what_was_measured():
    table = json.loads((PROJECT_DIR / "results" / "benchmark" / "phonons.json").read_text(encoding="utf-8"))
    measured = read_sidecar(WEIGHTS, stage="phonon_benchmark")["metrics"]
    assert measured == table and table["n"] >= 200
    assert {"always stable", "E_above_hull alone", "trees"} <= set(table["agreement"])
    assert all(low <= value <= high for shares in table["agreement"].values() for value, low, high in shares.values())


def test_a_database_without_verdicts_is_refused(tmp_path):
    cfg = load_config(None, [f"phonon_benchmark.db_path={PROJECT_DIR / 'data' / 'demo_c2db.db'}"])
    with pytest.raises(StageError, match="dynamic_stability_phonons"):
        training.benchmark(cfg, tmp_path / "x.json")
