"""CSLLM as a judge: its layouts, its synthesis routes, and folders that are not CSLLM."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from small_language_models import manual_scores, mos2, save_adapter, save_base, tiny_llama, tiny_tokenizer

from evaluation import csllm, judges, material_strings
from pipeline.errors import StageError
from pipeline.settings import EvaluationConfig


@pytest.mark.parametrize("layout", ["adapters", "parts with adapters", "merged parts", "merged", "adapter", "adapter beside base"])
def test_csllm_layouts_load_through_transformers_and_peft(tmp_path, layout):
    tokenizer = tiny_tokenizer()
    root = tmp_path / "csllm folder"
    if layout == "adapters":
        base = save_base(root / "llama3-8bf-hf", tokenizer)
        model = save_adapter(root / "synthesis_llm_llama3", tokenizer, 1)
        save_adapter(root / "method_llm_llama3", tokenizer, 2)
        save_adapter(root / "precursor_llm_llama3", tokenizer, 3)
    elif layout == "parts with adapters":
        base = save_base(root / "llama3-8bf-hf", tokenizer)
        model = save_adapter(root / "synthesis_llm", tokenizer, 1)
    elif layout == "merged parts":
        base = tiny_llama(tokenizer)
        model = save_base(root / "synthesis_llm", tokenizer, seed=5)
        save_base(root / "method_llm", tokenizer, seed=6)
    elif layout == "merged":
        base = tiny_llama(tokenizer)
        model = save_base(root, tokenizer, seed=5)
    elif layout == "adapter":
        base = save_base(tmp_path / "elsewhere", tokenizer)
        model = save_adapter(root, tokenizer, 1, base_name=str(tmp_path / "elsewhere"))
    else:
        base = save_base(tmp_path / "llama3-8bf-hf", tokenizer)
        model = save_adapter(root, tokenizer, 1)
    settings = dataclasses.replace(EvaluationConfig(), synthesizability="csllm", csllm_path=str(root))
    judge = judges.load_judge(settings)
    text = material_strings.material_string(mos2()).text
    log_true, log_false = manual_scores(model, tokenizer, text)
    (score,) = judge.score([mos2()])
    assert score.p_synth == pytest.approx(1 / (1 + math.exp(log_false - log_true)), rel=1e-4)
    assert score.label_mass == pytest.approx(math.exp(log_true) + math.exp(log_false), rel=1e-4)
    assert score.status == "low label mass" and not score.in_domain
    assert not np.allclose(manual_scores(base, tokenizer, text), [log_true, log_false], atol=1e-3)  # the base alone says otherwise
    assert judge.name == "csllm" and len(judge.identity["sha256"]) == 64


def test_method_and_precursors_are_validated(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    save_base(tmp_path / "llama3-8bf-hf", tokenizer)
    for number, task in enumerate(("synthesis", "method", "precursor")):
        save_adapter(tmp_path / f"{task}_llm_llama3", tokenizer, number)
    judge = csllm.CSLLMJudge(tmp_path)
    route = judge.method_and_precursors("MoS2")  # random models really generate, and their noise is refused
    assert route.method is None and route.precursors == [] and "not understood" in route.status
    answers = {"method": "solid_state&solution", "precursor": "['Mo', 'S', '<b>Xx</b>']"}
    monkeypatch.setattr(judge, "_generate", lambda task, asked, n: answers[task])
    route = judge.method_and_precursors("MoS2")
    assert (route.method, route.precursors) == ("solid_state&solution", ["Mo", "S"]) and "precursors" in route.status


@pytest.mark.parametrize("layout", ["{}_llm_llama3", "{}_llm"])
def test_routes_come_from_their_own_adapters_and_the_trained_question(tmp_path, layout, monkeypatch):
    tokenizer = tiny_tokenizer()
    save_base(tmp_path / "llama3-8bf-hf", tokenizer)
    save_adapter(tmp_path / layout.format("synthesis"), tokenizer, 1)
    assert not csllm.CSLLMJudge(tmp_path).suggests_routes
    for number, task in enumerate(("method", "precursor"), 2):
        save_adapter(tmp_path / layout.format(task), tokenizer, number)
    judge = csllm.CSLLMJudge(tmp_path)
    assert judge.suggests_routes
    ids = torch.tensor([tokenizer(material_strings.prompt('How can this material structure be synthesized "MoS2"?'))["input_ids"]])
    logits = [judge._load(task)[0](input_ids=ids).logits[0, -1].detach() for task in ("synthesis", "method", "precursor")]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3) and not torch.allclose(logits[1], logits[2], atol=1e-3)
    seen = []
    generate = judge._generate
    monkeypatch.setattr(judge, "_generate", lambda task, asked, n: seen.append((task, asked)) or generate(task, asked, 2))
    judge.method_and_precursors("MoS2")
    question = 'How can this material structure be synthesized "MoS2"?'
    assert seen == [("method", question), ("precursor", question)]


@pytest.mark.parametrize(
    ("answer", "formulas", "refused"),
    [
        ("['SrO', 'Fe2O3', 'MoO3']", ["SrO", "Fe2O3", "MoO3"], 0),
        ("['NH4H2PO4', 'LiOH·H2O', 'Fe3(PO4)2·6.5H2O', 'SnO2·nH2O']", ["NH4H2PO4", "LiOH·H2O", "Fe3(PO4)2·6.5H2O", "SnO2·nH2O"], 0),
        ("['Xx2', 3, 'hello', 'S']", ["S"], 3),
        ("__import__('os')", [], 0),
        ("['S', ", [], 0),
    ],
)
def test_precursor_lists(answer, formulas, refused):
    assert csllm.parse_precursors(answer) == (formulas, refused)


def test_missing_folders_give_one_clear_line(tmp_path):
    for path in (str(tmp_path / "csllm"), "./csllm", "a/b/c"):
        with pytest.raises(StageError, match="no CSLLM folder at") as error:
            csllm.CSLLMJudge(path)
        assert "\n" not in str(error.value) and "Repo id" not in str(error.value)
    with pytest.raises(StageError, match="holds no CSLLM"):
        csllm.CSLLMJudge(tmp_path)
    assert csllm.find_csllm("someone/csllm-merged").local is False
    save_adapter(tmp_path / "synthesis_llm_llama3", tiny_tokenizer(), 1)
    with pytest.raises(StageError, match="base model of .* is missing"):
        csllm.CSLLMJudge(tmp_path)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tokenizer = tiny_tokenizer()
    save_base(tmp_path / "llama3-8bf-hf", tokenizer)
    save_adapter(tmp_path / "synthesis_llm_llama3", tokenizer, 1)
    path = tmp_path / "synthesis_llm_llama3" / "adapter_model.safetensors"
    save_file({key.replace("layers.0", "layers.7"): value for key, value in load_file(path).items()}, path)
    with pytest.raises(StageError, match="does not fit its base model"):
        csllm.CSLLMJudge(tmp_path)
