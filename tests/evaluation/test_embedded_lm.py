"""The embedded language model as a judge."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from ase.build import bulk
from small_language_models import mos2

from evaluation import embedded_lm, judges, material_strings
from networks.checkpoints import CheckpointError, save_checkpoint
from pipeline.settings import EvaluationConfig


def embedded_checkpoint(path, *, seed=0, elements=("Mo", "S"), scale=1.0):
    tokenizer = material_strings.MaterialTokenizer()
    size = embedded_lm.EmbeddedLMConfig(len(tokenizer), 16, 1, 2)
    torch.manual_seed(seed)
    model = embedded_lm.build_embedded_lm(size)
    if scale != 1.0:  # ties the head to larger embeddings, so that the label tokens stand out
        with torch.no_grad():
            model.get_input_embeddings().weight[list(tokenizer.label_ids)] *= scale
    state = {
        "vocabulary": tokenizer.vocabulary,
        "model": model.state_dict(),
        "element_counts": {symbol: 5 for symbol in elements},
        "min_element_rows": 3,
        "calibration": {"temperature": 2.0, "bias": 0.25},
    }
    save_checkpoint(path, "synth_lm", size, state)
    return model.eval(), tokenizer


def test_embedded_score_equals_a_manual_computation(tmp_path):
    model, tokenizer = embedded_checkpoint(tmp_path / "lm.pth")
    judge = embedded_lm.EmbeddedLMJudge(tmp_path / "lm.pth")
    string = material_strings.material_string(mos2())
    ids = torch.tensor([tokenizer.encode(material_strings.prompt(string.text))])
    with torch.no_grad():
        probabilities = model(input_ids=ids).logits[0, -1].softmax(-1).double()
    p_true, p_false = (float(probabilities[label]) for label in tokenizer.label_ids)
    (score,) = judge.score([mos2()])
    assert score.label_mass == pytest.approx(p_true + p_false, rel=1e-5)
    assert score.p_synth == pytest.approx(1 / (1 + math.exp(-(math.log(p_true / p_false) / 2.0 + 0.25))), rel=1e-5)
    assert judge.name == "embedded-lm" and "csllm" not in json.dumps(judge.identity).lower()
    assert score.status == "low label mass" and not score.in_domain  # a random model spreads over the vocabulary


def test_embedded_judge_abstains_and_reports(tmp_path):
    embedded_checkpoint(tmp_path / "lm.pth", elements=("Mo", "S", "Cu"))
    judge = judges.load_judge(dataclasses.replace(EvaluationConfig(), embedded_checkpoint=str(tmp_path / "lm.pth")))
    odd = mos2()
    odd.symbols[0] = "W"
    broken = mos2()
    broken.positions[0, 0] = np.nan
    unknown, copper, nan, sheet = judge.score([odd, bulk("Cu"), broken, mos2()])
    assert math.isnan(unknown.p_synth) and unknown.status == "element not in training: W" and not unknown.in_domain
    assert not copper.in_domain
    assert math.isnan(nan.p_synth) and nan.status.startswith("no material string")
    assert judge.score([mos2()])[0] == sheet  # alone or in company: the same bits


def test_embedded_checkpoint_errors(tmp_path):
    with pytest.raises(CheckpointError, match="pretrain_csllm"):
        embedded_lm.EmbeddedLMJudge(tmp_path / "none.pth")
    embedded_checkpoint(tmp_path / "lm.pth")
    content = torch.load(tmp_path / "lm.pth", weights_only=True)
    content["model"].pop("model.norm.weight")
    torch.save(content, tmp_path / "lm.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        embedded_lm.EmbeddedLMJudge(tmp_path / "lm.pth")
