"""Synthesizability judges: the 8B CSLLM where the user has it, and the small embedded language model everywhere else.

Both read the same text, CSLLM's material string (Song et al., arXiv:2407.07016) inside CSLLM's question, and both are scored the
same way: P(True) from the log-likelihoods of the two labels, never from generated text. The share of probability that falls on the
two labels at all (label mass) is kept beside it: little mass means that the model did not understand the question.
"""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from pymatgen.core import Structure
from pymatgen.core.periodic_table import Element

from config import EvaluationConfig, StageError, file_sha256, relative_name
from material_strings import LABELS, MaterialString, MaterialTokenizer, material_string, prompt
from models import CheckpointError, load_checkpoint

log = logging.getLogger("her2d")

METHODS = ("solid_state", "solution", "solid_state&solution")
MIN_LABEL_MASS = 0.5

# ----------------------------------------------------------------------------------------------------------------------- labels

_REPORTED_KEYS = ("doi", "icsd_id", "cod_id")
_STABILITY_KEYS = ("thermodynamic_stability_level", "dynamic_stability_phonons", "dynamic_stability_stiffness", "dyn_stab")


def synth_label(row_kvp: Mapping[str, Any], synth_e_hull_max_ev: float, unsynth_e_hull_min_ev: float) -> float:
    """1.0 synthesizable, 0.0 not, NaN unlabelled, from the keys of one C2DB row (energies in eV/atom).

    1: a monolayer or layered parent is reported (doi, icsd_id, cod_id), or thermodynamic stability level 3 and dynamically stable.
    0: ehull above ``unsynth_e_hull_min_ev``, or dynamically unstable. A row that has none of those keys: 1 if ehull is at most
    ``synth_e_hull_max_ev``, 0 above ``unsynth_e_hull_min_ev``. Old (low/high, 1..3) and new (Yes/No/Unknown) values are read.
    """
    words = {key: str(row_kvp[key]).strip().lower() for key in (*_REPORTED_KEYS, *_STABILITY_KEYS) if row_kvp.get(key) is not None}
    if any(_is_reported(words.get(key, "")) for key in _REPORTED_KEYS):
        return 1.0
    try:
        e_hull = float(row_kvp.get("ehull", math.nan))
    except (TypeError, ValueError):
        e_hull = math.nan
    if not words:
        return 1.0 if e_hull <= synth_e_hull_max_ev else 0.0 if e_hull > unsynth_e_hull_min_ev else math.nan
    phonons, stiffness = words.get("dynamic_stability_phonons", ""), words.get("dynamic_stability_stiffness", "")
    unstable = "low" in (phonons, stiffness) or words.get("dyn_stab", "") in ("no", "false")
    stable = not unstable and (phonons == "high" or words.get("dyn_stab", "") in ("yes", "true"))
    if words.get("thermodynamic_stability_level", "") in ("3", "3.0", "high") and stable:
        return 1.0
    return 0.0 if unstable or e_hull > unsynth_e_hull_min_ev else math.nan


def _is_reported(word: str) -> bool:
    """Whether a doi/icsd_id/cod_id value names something; some exports prefix ids with 'id:'."""
    return word.removeprefix("id:").strip() not in ("", "-", "none", "nan", "no", "false", "unknown", "0")


# ------------------------------------------------------------------------------------------------------------- embedded model


@dataclass(frozen=True)
class EmbeddedLMConfig:
    """Size of the embedded Llama-type decoder."""

    vocab_size: int
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    max_tokens: int = 512


def build_embedded_lm(config: EmbeddedLMConfig) -> torch.nn.Module:
    """``transformers.LlamaForCausalLM`` of that size with weights drawn from torch's global generator."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=3 * config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_tokens,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=None,
            use_cache=False,
        )
    )


# ----------------------------------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True)
class SynthScore:
    """``p_synth``: P(True) in [0, 1], NaN when the judge abstains. ``label_mass``: probability on True and False together.

    ``tolerance``: Å of the symmetry search (NaN: none). ``in_domain``: whether the judge was trained on this kind of material.
    """

    p_synth: float
    label_mass: float
    tolerance: float
    status: str
    in_domain: bool


@torch.no_grad()
def label_log_likelihoods(
    model: torch.nn.Module, encode: Callable[[str], list[int]], text: str, end_id: int | None = None
) -> tuple[float, float]:
    """(log P(True | prompt), log P(False | prompt)) of a language model; a label of several tokens is the sum of its tokens.

    ``text``: a question or material string. The label's tokens begin where the tokens of the complete prompt leave those of the
    open prompt, so that tokenizers that join the space and the word are read as they were trained. ``end_id``: end-of-text token
    that ``encode`` appends, if any.
    """
    device = next(model.parameters()).device
    strip = lambda ids: ids[:-1] if end_id is not None and ids and ids[-1] == end_id else ids  # noqa: E731
    opened = strip(encode(prompt(text)))
    complete = [strip(encode(prompt(text, label))) for label in LABELS]
    start = min(_common_prefix(opened, complete[0]), _common_prefix(complete[0], complete[1]))
    if start == 0 or start >= min(len(ids) for ids in complete):
        raise ValueError("the tokenizer does not separate the two labels")
    # Labels of one token share one pass; longer ones need a pass each, because later tokens see earlier ones.
    single = all(len(ids) == start + 1 for ids in complete)
    scores = []
    log_probabilities = None
    for ids in complete:
        if log_probabilities is None or not single:
            inputs = torch.tensor([ids[:start] if single else ids[:-1]], device=device)
            log_probabilities = torch.log_softmax(model(input_ids=inputs).logits[0, start - 1 :].float(), dim=-1)
        scores.append(sum(float(log_probabilities[offset, token]) for offset, token in enumerate(ids[start:])))
    return scores[0], scores[1]


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), min(len(first), len(second)))


class SynthesizabilityJudge(ABC):
    """One interface for every synthesizability model. ``name`` is what tables show, ``identity`` what the report records.

    Structures are scored one at a time, so that a score does not depend on the company or the order in which it is computed.
    """

    name: str
    identity: dict[str, Any]

    def score(self, structures: Sequence[Structure | Atoms]) -> list[SynthScore]:
        """One score per structure; a structure that cannot be scored gets NaN and a status that says why."""
        return [self._score_one(structure) for structure in structures]

    def _score_one(self, structure: Structure | Atoms) -> SynthScore:
        try:
            string = material_string(structure)
        except ValueError as error:
            return SynthScore(math.nan, math.nan, math.nan, f"no material string: {error}", False)
        return self.score_string(string)

    @abstractmethod
    def score_string(self, string: MaterialString) -> SynthScore:
        """The score of a material string."""


def _normalised(log_true: float, log_false: float) -> tuple[float, float, float]:
    """(log-odds, P(True) among the two labels, label mass)."""
    odds = log_true - log_false
    return odds, 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0, min(1.0, math.exp(log_true) + math.exp(log_false))


class EmbeddedLMJudge(SynthesizabilityJudge):
    """The small Llama-type decoder that ``pretrain_csllm.py`` trains.

    It abstains (NaN) on elements that it was not trained on: their embeddings are whatever initialisation left there. Crystals
    that are not monolayers are scored and marked as outside its domain.
    """

    name = "embedded-lm"

    def __init__(self, checkpoint: str | os.PathLike, device: str | torch.device = "cpu") -> None:
        hint = "run pretrain_csllm.py or set evaluation.embedded_checkpoint"
        content = load_checkpoint(checkpoint, kind="synth_lm", hint=hint)
        try:
            self.config = EmbeddedLMConfig(**content["model_config"])
            self.tokenizer = MaterialTokenizer(content["vocabulary"])
            self.model = build_embedded_lm(self.config)
            self.model.load_state_dict(content["model"])
            self.element_counts: dict[str, int] = dict(content["element_counts"])
            self.min_element_rows = int(content["min_element_rows"])
            self.temperature, self.bias = float(content["calibration"]["temperature"]), float(content["calibration"]["bias"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0][:120]
            raise CheckpointError(f"{relative_name(checkpoint)} does not fit the embedded model ({reason}): {hint}") from error
        self.model.to(device).eval()
        self.metrics: dict[str, Any] = dict(content.get("metrics", {}))
        self.identity = {
            "name": self.name,
            "checkpoint": relative_name(checkpoint),
            "sha256": file_sha256(checkpoint),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "test_roc_auc": self.metrics.get("test", {}).get("roc_auc"),
        }

    def score_string(self, string: MaterialString) -> SynthScore:
        elements = set(re.findall(r"\(([A-Z][a-z]?)-", string.text))
        unknown = sorted(symbol for symbol in elements if self.element_counts.get(symbol, 0) < self.min_element_rows)
        if unknown:
            return SynthScore(math.nan, math.nan, string.tolerance, f"element not in training: {', '.join(unknown)}", False)
        if len(self.tokenizer.encode(prompt(string.text, LABELS[0]))) > self.config.max_tokens:
            return SynthScore(math.nan, math.nan, string.tolerance, "material string longer than the model's context", False)
        odds, _, mass = _normalised(*label_log_likelihoods(self.model, self.tokenizer.encode, string.text))
        p_synth = float(torch.sigmoid(torch.tensor(odds / self.temperature + self.bias, dtype=torch.float64)))
        if mass < MIN_LABEL_MASS:
            return SynthScore(p_synth, mass, string.tolerance, "low label mass", False)
        if not string.is_sheet:
            return SynthScore(p_synth, mass, string.tolerance, "not a monolayer: outside the training domain", False)
        return SynthScore(p_synth, mass, string.tolerance, "ok", True)


# ------------------------------------------------------------------------------------------------------------------------- CSLLM


@dataclass(frozen=True)
class SynthesisRoute:
    """CSLLM's suggestion for a formula. ``method`` is one of METHODS or None; ``status`` says what was missing or unreadable."""

    method: str | None
    precursors: list[str]
    status: str


@dataclass(frozen=True)
class _Part:
    """Where one of CSLLM's three models lies: ``base`` a transformers model, ``adapter`` its LoRA adapter or None."""

    base: str
    adapter: Path | None = None


@dataclass(frozen=True)
class CSLLMLayout:
    """What was found under ``evaluation.csllm_path``."""

    kind: str
    synthesis: _Part
    method: _Part | None = None
    precursor: _Part | None = None
    local: bool = True


def find_csllm(path: str | os.PathLike) -> CSLLMLayout:
    """Recognises CSLLM's published layouts without loading anything.

    ``synthesis_llm/ method_llm/ precursor_llm/`` (each merged or an adapter); ``llama3-8bf-hf/`` with ``*_llm_llama3/`` adapters; a
    merged model (``config.json``); one adapter (``adapter_config.json``, base beside it or named in it). Anything that is no
    folder is a hub id if it looks like ``owner/name``. Raises StageError, one line, otherwise.
    """
    given, folder = str(path), Path(path).expanduser()
    if not folder.exists():
        owner, _, name = given.partition("/")
        if re.fullmatch(r"[\w.-]+/[\w.-]+", given) and owner not in (".", "..") and name and not Path(owner).exists():
            return CSLLMLayout("hub", _Part(given), local=False)
        raise StageError(f"no CSLLM folder at {given}: set evaluation.csllm_path to the downloaded folder or a hub id (owner/name)")
    if not folder.is_dir():
        raise StageError(f"evaluation.csllm_path={given} is a file; CSLLM is a folder")
    bases = [item.parent for item in sorted(folder.glob("*/config.json")) if not item.parent.name.endswith(("_llm", "_llm_llama3"))]
    named = [item for item in bases if "llama" in item.name.lower()] or bases

    def part(task: str) -> _Part | None:
        for candidate in (folder / f"{task}_llm", folder / f"{task}_llm_llama3"):
            if (candidate / "adapter_config.json").is_file():
                return _Part(_base_of(candidate, named), candidate)
            if (candidate / "config.json").is_file():
                return _Part(str(candidate))
        return None

    if (synthesis := part("synthesis")) is not None:
        kind = "adapters" if synthesis.adapter else "merged parts"
        return CSLLMLayout(kind, synthesis, part("method"), part("precursor"))
    if (folder / "adapter_config.json").is_file():
        siblings = [item.parent for item in sorted(folder.parent.glob("*llama*/config.json")) if item.parent != folder]
        return CSLLMLayout("adapter", _Part(_base_of(folder, named or siblings), folder))
    if (folder / "config.json").is_file():
        return CSLLMLayout("merged", _Part(given))
    raise StageError(
        f"{given} holds no CSLLM: expected synthesis_llm/, or llama3-8bf-hf/ with synthesis_llm_llama3/, or config.json, "
        "or adapter_config.json"
    )


def _base_of(adapter: Path, found: Sequence[Path]) -> str:
    """The base model of an adapter: a folder found beside it, else what the adapter names. Authors' own paths are often dead."""
    if found:
        return str(found[0])
    try:
        named = str(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    except (ValueError, AttributeError) as error:
        raise StageError(f"{adapter}/adapter_config.json is not readable JSON ({error})") from error
    for candidate in (Path(named).expanduser(), adapter.parent / named, adapter.parent / Path(named).name):
        if named and (candidate / "config.json").is_file():
            return str(candidate)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", named):
        return named
    raise StageError(f"the base model of {adapter} is missing ({named or 'not named'}): put llama3-8bf-hf/ beside the adapter")


class CSLLMJudge(SynthesizabilityJudge):
    """The published CSLLM through transformers and peft, from a local folder or a hub id. No remote code is ever run.

    A local folder is read with ``local_files_only``. The synthesizability model is loaded at once, the method and precursor models
    when they are asked for. Its training set is bulk and layered crystals of every kind, so ``in_domain`` is judged by label mass.
    """

    name = "csllm"

    def __init__(self, path: str | os.PathLike, device: str | torch.device = "cpu") -> None:
        self.layout, self.device = find_csllm(path), torch.device(device)
        self._models: dict[str, tuple[Any, Any]] = {}
        self.model, self.tokenizer = self._load("synthesis")
        part = self.layout.synthesis
        self.identity = {
            "name": self.name,
            "layout": self.layout.kind,
            "path": relative_name(path) if self.layout.local else str(path),
            "model": Path(part.base).name if Path(part.base).is_dir() else part.base,
            "sha256": file_sha256(part.adapter or part.base) if self.layout.local else None,
        }

    def _load(self, task: str) -> tuple[Any, Any]:
        if task in self._models:
            return self._models[task]
        from transformers import AutoModelForCausalLM, AutoTokenizer

        part: _Part = getattr(self.layout, task)
        options = {"trust_remote_code": False, "local_files_only": self.layout.local and Path(part.base).exists()}
        log.info("loading CSLLM (%s) from %s", task, part.adapter or part.base)
        try:
            with_tokenizer = part.adapter is not None and (part.adapter / "tokenizer_config.json").is_file()
            tokenizer = AutoTokenizer.from_pretrained(str(part.adapter) if with_tokenizer else part.base, **options)
            model = AutoModelForCausalLM.from_pretrained(part.base, dtype="auto", **options)
            if part.adapter is not None:
                model = _with_adapter(model, part.adapter)
        except StageError:
            raise
        except Exception as error:  # transformers, peft, safetensors and the hub client raise unrelated families of errors
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise StageError(f"CSLLM ({task}) at {part.adapter or part.base} cannot be loaded: {reason}") from error
        self._models[task] = (model.to(self.device).eval(), tokenizer)
        return self._models[task]

    def score_string(self, string: MaterialString) -> SynthScore:
        encode = lambda text: list(self.tokenizer(text)["input_ids"])  # noqa: E731
        try:
            log_true, log_false = label_log_likelihoods(self.model, encode, string.text, self.tokenizer.eos_token_id)
        except ValueError as error:
            return SynthScore(math.nan, math.nan, string.tolerance, str(error), False)
        if not (math.isfinite(log_true) and math.isfinite(log_false)):
            return SynthScore(math.nan, math.nan, string.tolerance, "likelihood is not finite", False)
        _, p_synth, mass = _normalised(log_true, log_false)
        enough = mass >= MIN_LABEL_MASS
        return SynthScore(p_synth, mass, string.tolerance, "ok" if enough else "low label mass", enough)

    @property
    def suggests_routes(self) -> bool:
        """Whether a method or a precursor model is there."""
        return self.layout.method is not None or self.layout.precursor is not None

    def method_and_precursors(self, formula: str) -> SynthesisRoute:
        """CSLLM's synthesis method and precursors of a formula: generated greedily, kept only where they pass validation."""
        method, precursors, remarks = None, [], []
        asked = f'How can this material structure be synthesized "{formula}"?'
        if self.layout.method is None:
            remarks.append("no method model")
        else:
            answer = self._generate("method", asked, 16)
            method = answer if answer in METHODS else None
            if method is None:
                remarks.append(f"method not understood: {answer[:40]!r}")
        if self.layout.precursor is None:
            remarks.append("no precursor model")
        else:
            answer = self._generate("precursor", asked, 96)
            precursors, refused = parse_precursors(answer)
            if refused or not precursors:
                remarks.append(f"precursors not understood: {answer[:40]!r}")
        return SynthesisRoute(method, precursors, "; ".join(remarks) or "ok")

    @torch.no_grad()
    def _generate(self, task: str, asked: str, max_new_tokens: int) -> str:
        model, tokenizer = self._load(task)
        inputs = tokenizer(prompt(asked), return_tensors="pt").to(self.device)
        inputs.pop("token_type_ids", None)
        end = tokenizer.eos_token_id
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=end if end is not None else 0)
        answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        return answer.splitlines()[0].strip() if answer else ""


def _with_adapter(model: Any, adapter: Path) -> Any:
    """The base with its LoRA adapter; refuses an adapter whose weights do not all land in the base (peft only warns)."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    saved, present = load_peft_weights(str(adapter), device="cpu"), get_peft_model_state_dict(adapted)
    if set(saved) != set(present):
        odd = sorted(set(saved) ^ set(present))[0]
        raise StageError(f"the adapter {adapter} does not fit its base model (for one: {odd})")
    return adapted


def parse_precursors(answer: str) -> tuple[list[str], int]:
    """(precursor formulas, entries refused) from CSLLM's answer ``['SrO', 'Fe2O3']``; hydrates (``LiOH·H2O``) are formulas too."""
    match = re.search(r"\[[^\[\]]*\]", answer)
    try:
        items = ast.literal_eval(match[0]) if match else []
    except (ValueError, SyntaxError):
        items = []
    formulas = [item for item in items if isinstance(item, str) and _is_formula(item)]
    return list(dict.fromkeys(formulas)), len(items) - len(formulas)


def _is_formula(text: str) -> bool:
    """Element symbols, numbers, brackets, and hydrate parts such as ``·6.5H2O`` or ``·nH2O``."""
    parts = [re.sub(r"^[\d.]*n?(?=[A-Z(])", "", part) for part in text.split("·")]
    plain = all(re.fullmatch(r"(?:[A-Z][a-z]?|[()\[\]-]|[\d.]+)+", part) for part in parts)
    return plain and all(Element.is_valid_symbol(symbol) for part in parts for symbol in re.findall(r"[A-Z][a-z]?", part))


def load_judge(evaluation: EvaluationConfig, device: str | torch.device = "cpu") -> SynthesizabilityJudge:
    """The judge that ``evaluation.synthesizability`` names. Raises StageError with one line when its files are not there."""
    if evaluation.synthesizability == "csllm":
        return CSLLMJudge(evaluation.csllm_path, device)
    return EmbeddedLMJudge(evaluation.embedded_checkpoint, device)
