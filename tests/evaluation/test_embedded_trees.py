"""The embedded synthesizability model as a judge."""

import dataclasses
import json
import math

import ase.db
import numpy as np
import pytest
import torch
from ase.build import bulk
from sheet_settings import settings_of
from sklearn.ensemble import HistGradientBoostingClassifier
from small_language_models import mos2

from crystals.descriptors import crystal_descriptors
from evaluation import embedded_trees, judges
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import CheckpointError, save_checkpoint
from pipeline.settings import EvaluationConfig


def embedded_checkpoint(path, elements=("Mo", "S")):
    """Write trees fitted to noise around MoS2, and return the scikit-learn model."""
    rng = np.random.default_rng(0)
    rows = crystal_descriptors(mos2())[None] + rng.normal(size=(200, len(crystal_descriptors(mos2()))))
    fitted = HistGradientBoostingClassifier(max_iter=10, random_state=0).fit(rows, rows[:, 0] > rows[:, 0].mean())
    state = {
        "trees": BoostedTrees.from_sklearn(fitted).state(),
        "element_counts": {symbol: 5 for symbol in elements},
        "min_element_rows": 3,
        "calibration": {"threshold": 0.25, "temperature": 2.0},
    }
    save_checkpoint(path, embedded_trees.KIND, embedded_trees.DescriptorTable(), state)
    return fitted


def test_embedded_score_equals_a_manual_computation(tmp_path):
    fitted = embedded_checkpoint(tmp_path / "trees.pth")
    judge = embedded_trees.EmbeddedTreesJudge(tmp_path / "trees.pth")
    odds = float(fitted.decision_function(crystal_descriptors(mos2())[None])[0])
    (score,) = judge.score([mos2()])
    assert score.p_synth == pytest.approx(1 / (1 + math.exp(-(odds - 0.25) / 2)), rel=1e-9)
    assert score.status == "ok" and score.in_domain and math.isnan(score.label_mass)
    assert judge.name == "embedded-trees" and "csllm" not in json.dumps(judge.identity).lower()


def test_embedded_judge_abstains_and_reports(tmp_path):
    embedded_checkpoint(tmp_path / "trees.pth", elements=("Mo", "S", "Cu"))
    judge = judges.load_judge(dataclasses.replace(EvaluationConfig(), embedded_checkpoint=str(tmp_path / "trees.pth")))
    odd = mos2()
    odd.symbols[0] = "W"
    broken = mos2()
    broken.positions[0, 0] = np.nan
    unknown, copper, nan, sheet = judge.score([odd, bulk("Cu"), broken, mos2()])
    assert math.isnan(unknown.p_synth) and unknown.status == "element not in training: W" and not unknown.in_domain
    assert math.isnan(copper.p_synth) and copper.status.startswith("not a monolayer") and not copper.in_domain
    assert math.isnan(nan.p_synth) and nan.status.startswith("no descriptors")
    assert repr(judge.score([mos2()])[0]) == repr(sheet)  # alone or in company: the same bits


def test_embedded_checkpoint_errors(tmp_path):
    with pytest.raises(CheckpointError, match="pretrain_csllm"):
        embedded_trees.EmbeddedTreesJudge(tmp_path / "none.pth")
    embedded_checkpoint(tmp_path / "trees.pth")
    content = torch.load(tmp_path / "trees.pth", weights_only=True)
    torch.save({**content, "trees": {**content["trees"], "left": content["trees"]["left"][:-1]}}, tmp_path / "trees.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        embedded_trees.EmbeddedTreesJudge(tmp_path / "trees.pth")
    torch.save({**content, "model_config": {**content["model_config"], "sheet": ["thickness"]}}, tmp_path / "trees.pth")
    with pytest.raises(CheckpointError, match="descriptors are not those of this version"):
        embedded_trees.EmbeddedTreesJudge(tmp_path / "trees.pth")


def test_every_embedded_sheet_has_one_verdict_in_every_setting():
    """P_synth of the shipped model belongs to the crystal: spread below 1e-3 over six settings, and no verdict flips."""
    judge = judges.load_judge(EvaluationConfig())
    rng = np.random.default_rng(1)
    with ase.db.connect("data/demo_c2db.db") as db:
        sheets = [row.toatoms() for row in db.select()]
    for atoms in sheets:
        found = np.array([score.p_synth for score in judge.score(list(settings_of(atoms, rng)))])
        if np.isfinite(found).any():
            assert np.ptp(found) < 1e-3 and len(set(found >= 0.5)) == 1, str(atoms.symbols)
        else:
            assert np.isnan(found).all()
