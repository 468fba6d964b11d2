import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, mx2
from pymatgen.core import Structure

from crystals import database
from evaluation import csllm, embedded_lm, judges, material_strings
from evaluation import synthesizability as synth
from networks.checkpoints import CheckpointError, save_checkpoint
from pipeline.errors import StageError
from pipeline.settings import EvaluationConfig

warnings.filterwarnings("ignore")


def mos2(vacuum: float = 10.0) -> Atoms:
    atoms = mx2("MoS2", "2H", a=3.16, thickness=3.17, vacuum=vacuum)
    atoms.pbc = (True, True, False)
    return atoms


# ------------------------------------------------------------------------------------------------------------ material strings


def test_string_of_a_2h_monolayer_by_hand():
    # P-6m2 with the mirror plane at z = 1/2: the metal on 1b, 1d or 1f, both S on 2g, 2h or 2i at z = 1/2 ± (3.17/2)/23.17.
    string = material_strings.material_string(mos2())
    header, _, sites = string.text.partition("| (")
    assert header == "187 |3.160,3.160,23.170,90.00,90.00,120.00"
    assert (string.spacegroup, string.tolerance, string.is_sheet) == (187, 1e-3, True)
    metal, chalcogen = ("(" + sites).split("->")
    assert metal in (
        "(Mo-1b[0.  0.  0.5])",
        "(Mo-1d[0.33333333 0.66666667 0.5       ])",
        "(Mo-1f[0.66666667 0.33333333 0.5       ])",
    )
    assert chalcogen[:4] == "(S-2" and chalcogen[4] in "ghi"
    z = float(chalcogen.rstrip("])").split()[-1])
    assert abs(abs(z - 0.5) - 1.585 / 23.17) < 1e-7
    assert metal[5] != {"g": "b", "h": "d", "i": "f"}[chalcogen[4]]  # trigonal prism: S is not on top of the metal


def test_prompt_is_csllms():
    text = "225 |6.118,6.118,6.118,90.00,90.00,90.00| (Be-4b[0.5 0.5 0.5])"
    assert material_strings.question(text) == f'Can this material structure be synthesized "{text}"?'
    assert material_strings.prompt(text, "True") == f'Input: Can this material structure be synthesized "{text}"? \n Output: True'
    assert material_strings.prompt(text) + " True" == material_strings.prompt(text, "True")


def test_bulk_keeps_its_cell_and_csllms_published_example_is_reproduced():
    # The example printed in CSLLM's repository: 225 |6.118,...| (Be-4b[0.5 0.5 0.5])->(In-4a[0. 0. 0.])->(Ru-8c[0.25 0.25 0.25])
    lattice = np.eye(3) * 6.118
    fcc = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    frac = np.concatenate([fcc + 0.5, fcc, fcc + 0.25, fcc + 0.75]) % 1
    string = material_strings.material_string(Structure(lattice, ["Be"] * 4 + ["In"] * 4 + ["Ru"] * 8, frac))
    assert not string.is_sheet
    assert string.text.startswith("225 |6.118,6.118,6.118,90.00,90.00,90.00| ")
    assert "(Ru-8c[0.25 0.25 0.25])" in string.text
    assert {"(Be-4b[0.5 0.5 0.5])", "(In-4a[0. 0. 0.])"} <= set(string.text.split("| ")[1].split("->")) or {
        "(Be-4a[0. 0. 0.])",
        "(In-4b[0.5 0.5 0.5])",
    } <= set(string.text.split("| ")[1].split("->"))


@pytest.mark.parametrize("vacuum", [6.0, 10.0, 17.5])
def test_string_does_not_depend_on_the_export(vacuum):
    expected = material_strings.material_string(mos2())
    moved = mos2(vacuum)
    moved.positions[:, 2] += moved.cell[2, 2] / 2 - 0.3  # cut by the boundary
    moved.pbc = True
    moved.wrap()
    moved = moved[[2, 0, 1]]
    found = material_strings.material_string(moved)
    assert found.text.split("| ")[0] == expected.text.split("| ")[0]
    assert found.is_sheet


def test_vacuum_along_another_axis_gives_the_same_lattice():
    atoms = mos2()
    order = [2, 0, 1]
    scaled = atoms.get_scaled_positions()[:, order]
    turned = Atoms(atoms.numbers, cell=atoms.cell.array[order], scaled_positions=scaled, pbc=True)
    assert material_strings.material_string(turned).text.split("| ")[0] == "187 |3.160,3.160,23.170,90.00,90.00,120.00"


@pytest.mark.parametrize(("stdev", "tolerance"), [(0.0, 1e-3), (0.001, 1e-2), (0.01, 1e-1)])
def test_rattled_sheet_falls_to_a_coarser_tolerance_and_says_so(stdev, tolerance):
    atoms = mos2().repeat((2, 1, 1))
    atoms.rattle(stdev, seed=3)
    string = material_strings.material_string(atoms)
    assert (string.spacegroup, string.tolerance) == (187, tolerance)


def test_p1_is_p1():
    rng = np.random.default_rng(0)
    atoms = Atoms(
        "MoSSeTe", positions=rng.random((4, 3)) * [3.5, 4.1, 3.0] + [0, 0, 10], cell=[3.5, 4.1, 23], pbc=(True, True, False)
    )
    string = material_strings.material_string(atoms)
    assert string.spacegroup == 1 and string.text.startswith("1 |") and string.text.count("->") == 3


def test_pyxtal_refusing_is_labelled(monkeypatch):
    from pyxtal import pyxtal

    def refuse(*args, **kwargs):
        raise RuntimeError("Cannot extract the mapping from spglib")

    monkeypatch.setattr(pyxtal, "_from_pymatgen", refuse)
    string = material_strings.material_string(mos2())
    assert string.spacegroup == 1 and math.isnan(string.tolerance) and string.text.count("1a[") == 3


@pytest.mark.parametrize("broken", ["empty", "flat", "nan", "partial"])
def test_no_string_without_a_crystal(broken):
    atoms = mos2()
    if broken == "empty":
        atoms = atoms[:0]
    elif broken == "flat":
        atoms.cell[2] = 0
    elif broken == "nan":
        atoms.positions[0, 0] = np.nan
    structure = Structure(np.eye(3) * 4, [{"Mo": 0.5, "W": 0.5}], [[0, 0, 0]]) if broken == "partial" else atoms
    with pytest.raises(ValueError):
        material_strings.material_string(structure)


def test_equivalent_sheets_have_the_same_distances():
    boxed, _ = material_strings.standard_box(material_strings.as_structure(mos2()))
    rng = np.random.default_rng(1)
    texts = set()
    for _ in range(8):
        other = material_strings.equivalent_sheet(boxed, rng)
        molybdenum = [(s, site) for s in (boxed, other) for site in s if site.specie.symbol == "Mo"]
        shells = [np.sort([near.nn_distance for near in s.get_neighbors(site, 5.0)]) for s, site in molybdenum]
        np.testing.assert_allclose(shells[0], shells[1], atol=1e-8)
        texts.add(material_strings.material_string(other).text)
    assert len(texts) > 2


# ----------------------------------------------------------------------------------------------------------------------- labels

STABLE = {"thermodynamic_stability_level": 3, "dynamic_stability_phonons": "high", "dynamic_stability_stiffness": "high"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"ehull": 0.05}, 1),
        ({"ehull": 0.051}, None),
        ({"ehull": 0.2}, None),
        ({"ehull": 0.201}, 0),
        ({}, None),
        ({"ehull": float("nan")}, None),
        ({"ehull": "high"}, None),
        ({"ehull": 0.5, "icsd_id": "id:22388"}, 1),
        ({"ehull": 0.5, "cod_id": 9013111, "dynamic_stability_phonons": "low"}, 1),
        ({"ehull": 0.5, "doi": "10.1126/science.1102896"}, 1),
        ({"ehull": 0.01, "doi": ""}, None),
        ({"ehull": 0.3, "icsd_id": "id:None", "thermodynamic_stability_level": 1}, 0),
        ({"ehull": 0.03, **STABLE}, 1),
        ({"ehull": 0.03, **STABLE, "dynamic_stability_stiffness": "low"}, 0),
        ({"ehull": 0.03, **STABLE, "thermodynamic_stability_level": 2}, None),
        ({"ehull": 0.01, "thermodynamic_stability_level": 3}, None),
        ({"ehull": 0.01, "thermodynamic_stability_level": 3, "dyn_stab": "Yes"}, 1),
        ({"ehull": 0.01, "thermodynamic_stability_level": 3, "dyn_stab": "Unknown"}, None),
        ({"ehull": 0.01, "dyn_stab": "No"}, 0),
        ({"ehull": 0.25, "dyn_stab": "Yes"}, 0),
    ],
)
def test_labels(keys, expected):
    label = database.synth_label(keys, 0.05, 0.2)
    assert math.isnan(label) if expected is None else label == expected


# ------------------------------------------------------------------------------------------------------------- embedded judge


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


def test_tokens_of_a_prompt():
    text = "187 |3.160,3.160,23.170,90.00,90.00,120.00| (Mo-1b[0.  0.  0.5])->(S-2i[0.66666667 0.33333333 0.999])"
    tokenizer = material_strings.MaterialTokenizer()
    tokens = tokenizer.tokens(material_strings.prompt(text, "False"))
    assert tokens[:2] == ["Input:", "Can this material structure be synthesized"] and tokens[-3:] == ["\n", "Output:", "False"]
    assert tokens[2:12] == ["group 187", *["length 3", "tenth 2"] * 2, "length 23", "tenth 2", "angle 90", "angle 90", "angle 120"]
    assert tokens[12:18] == ["element Mo", "multiplicity 1", "letter b", "coordinate 0", "coordinate 0", "coordinate 50"]
    assert tokens[18:24] == ["element S", "multiplicity 2", "letter i", "coordinate 67", "coordinate 33", "coordinate 0"]
    assert tokenizer.unknown_id not in tokenizer.encode(material_strings.prompt(text, "False"))


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


# ------------------------------------------------------------------------------------------------------------------------- CSLLM


def tiny_tokenizer(split_labels: bool = False):
    """Words and single characters; with ``split_labels`` the labels have two tokens each."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "Input", "Output", "Can", "this", "material", "structure", "be", "synthesized", "How", "can"]
    words += ["Tr", "ue", "Fal", "se"] if split_labels else ["True", "False"]
    words += [chr(code) for code in range(33, 127)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    pieces = "|".join(sorted(filter(str.isalpha, words[3:]), key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{pieces}|\S"), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def tiny_llama(tokenizer, seed=0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()


def save_base(folder, tokenizer, seed=0):
    model = tiny_llama(tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def save_adapter(folder, tokenizer, seed, base_name="/home/author/llama_hf/llama3-8bf-hf"):
    """A LoRA adapter with weights that matter (peft starts B at zero) and the author's dead path to the base."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_llama(tokenizer), LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 2.0)
    adapted.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = base_name
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return adapted.eval()


def manual_scores(model, tokenizer, text):
    """log P of both labels by the chain rule, one forward pass per token."""
    context = tokenizer(material_strings.prompt(text))["input_ids"]
    found = []
    for label in material_strings.LABELS:
        ids = tokenizer(material_strings.prompt(text, label))["input_ids"]
        assert ids[: len(context)] == context
        total = 0.0
        for position in range(len(context), len(ids)):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[:position]])).logits[0, -1]
            total += float(torch.log_softmax(logits, -1)[ids[position]])
        found.append(total)
    return found


@pytest.mark.parametrize("split_labels", [False, True])
def test_label_likelihood_is_the_sum_over_its_tokens(split_labels):
    tokenizer = tiny_tokenizer(split_labels)
    model = tiny_llama(tokenizer)
    text = material_strings.material_string(mos2()).text
    assert len(tokenizer(" True")["input_ids"]) == (2 if split_labels else 1)
    encode = lambda string: list(tokenizer(string)["input_ids"])  # noqa: E731
    np.testing.assert_allclose(synth.label_log_likelihoods(model, encode, text), manual_scores(model, tokenizer, text), atol=1e-5)
    with_end = lambda string: [*encode(string), 2]  # noqa: E731
    np.testing.assert_allclose(
        synth.label_log_likelihoods(model, with_end, text, end_id=2), synth.label_log_likelihoods(model, encode, text), atol=1e-6
    )


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
