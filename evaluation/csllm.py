"""Judges synthesizability with the 8B CSLLM (Song et al., Nat. Commun. 16, 6530 (2025))."""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from pymatgen.core import Structure
from pymatgen.core.periodic_table import Element

from evaluation.material_strings import MaterialString, material_string, prompt
from evaluation.synthesizability import MIN_LABEL_MASS, SynthesizabilityJudge, SynthScore, label_log_likelihoods, normalised_odds
from pipeline.errors import StageError
from pipeline.files import file_sha256, relative_name

log = logging.getLogger("her2d")

METHODS = ("solid_state", "solution", "solid_state&solution")


@dataclass(frozen=True)
class SynthesisRoute:
    """CSLLM's suggestion for a formula.

    ``method``: one of METHODS, or None. ``precursors``: formulas. ``status``: "ok", or what was missing or not understood.
    """

    method: str | None
    precursors: list[str]
    status: str


@dataclass(frozen=True)
class _Part:
    """Location of one of CSLLM's three models.

    ``base``: folder or hub id of a transformers model. ``adapter``: folder of its LoRA adapter, None where ``base`` is merged.
    """

    base: str
    adapter: Path | None = None


@dataclass(frozen=True)
class CSLLMLayout:
    """Models found under ``evaluation.csllm_path``; ``method`` and ``precursor`` are None where they are missing."""

    kind: str
    synthesis: _Part
    method: _Part | None = None
    precursor: _Part | None = None
    local: bool = True


def find_csllm(path: str | os.PathLike) -> CSLLMLayout:
    """Find CSLLM's models without loading any.

    These layouts are known:

    - ``synthesis_llm/``, ``method_llm/``, ``precursor_llm/``, each a merged model or an adapter;
    - ``llama3-8bf-hf/`` with adapters ``synthesis_llm_llama3/`` and so on;
    - one merged model (``config.json``);
    - one adapter (``adapter_config.json``) with its base beside it or named in it.

    Args:
        path: a folder, or a hub id ``owner/name``.

    Raises:
        StageError: the path is neither, or the folder has none of these layouts.
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
    """Return the base model of an adapter: the first folder of ``found``, else what the adapter names.

    Adapters often name a path on their author's machine, so folders beside the adapter come first.
    """
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
    """Judge that loads the published CSLLM with transformers and peft, from a local folder or a hub id.

    No remote code is run, and a local folder is read with ``local_files_only``. The synthesizability model is loaded at once, the
    method and precursor models at their first use. CSLLM learnt from bulk and layered crystals of every kind, so only the label
    mass decides ``in_domain``.
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
        """Return (model, tokenizer) of "synthesis", "method" or "precursor", loaded at the first call."""
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

    def _score_one(self, structure: Structure | Atoms) -> SynthScore:
        try:
            return self.score_string(material_string(structure))
        except ValueError as error:
            return SynthScore(math.nan, math.nan, math.nan, f"no material string: {error}", False)

    def score_string(self, string: MaterialString) -> SynthScore:
        """Return the score of a material string."""
        encode = lambda text: list(self.tokenizer(text)["input_ids"])  # noqa: E731
        try:
            log_true, log_false = label_log_likelihoods(self.model, encode, string.text, self.tokenizer.eos_token_id)
        except ValueError as error:
            return SynthScore(math.nan, math.nan, string.tolerance, str(error), False)
        if not (math.isfinite(log_true) and math.isfinite(log_false)):
            return SynthScore(math.nan, math.nan, string.tolerance, "likelihood is not finite", False)
        _, p_synth, mass = normalised_odds(log_true, log_false)
        enough = mass >= MIN_LABEL_MASS
        return SynthScore(p_synth, mass, string.tolerance, "ok" if enough else "low label mass", enough)

    @property
    def suggests_routes(self) -> bool:
        """Whether there is a method model or a precursor model."""
        return self.layout.method is not None or self.layout.precursor is not None

    def method_and_precursors(self, formula: str) -> SynthesisRoute:
        """Suggest a synthesis method and precursors for a formula.

        The answers are generated greedily. An answer that is no known method, or no list of formulas, is dropped and named in the
        status.
        """
        method, precursors, remarks = None, [], []
        question = f'How can this material structure be synthesized "{formula}"?'
        if self.layout.method is None:
            remarks.append("no method model")
        else:
            answer = self._generate("method", question, 16)
            method = answer if answer in METHODS else None
            if method is None:
                remarks.append(f"method not understood: {answer[:40]!r}")
        if self.layout.precursor is None:
            remarks.append("no precursor model")
        else:
            answer = self._generate("precursor", question, 96)
            precursors, refused = parse_precursors(answer)
            if refused or not precursors:
                remarks.append(f"precursors not understood: {answer[:40]!r}")
        return SynthesisRoute(method, precursors, "; ".join(remarks) or "ok")

    @torch.no_grad()
    def _generate(self, task: str, question: str, max_new_tokens: int) -> str:
        """Return the first line of the answer of the model of a task."""
        model, tokenizer = self._load(task)
        inputs = tokenizer(prompt(question), return_tensors="pt").to(self.device)
        inputs.pop("token_type_ids", None)
        end = tokenizer.eos_token_id
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=end if end is not None else 0)
        answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        return answer.splitlines()[0].strip() if answer else ""


def _with_adapter(model: Any, adapter: Path) -> Any:
    """Return the base model with its LoRA adapter.

    Raises StageError where a weight of the adapter has no place in the base, of which peft only warns.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    saved, present = load_peft_weights(str(adapter), device="cpu"), get_peft_model_state_dict(adapted)
    if set(saved) != set(present):
        odd = sorted(set(saved) ^ set(present))[0]
        raise StageError(f"the adapter {adapter} does not fit its base model (for one: {odd})")
    return adapted


def parse_precursors(answer: str) -> tuple[list[str], int]:
    """Read the list in an answer of CSLLM such as ``['SrO', 'LiOH·H2O']``.

    Returns:
        (precursor formulas, number of entries that are no formula).
    """
    match = re.search(r"\[[^\[\]]*\]", answer)
    try:
        items = ast.literal_eval(match[0]) if match else []
    except (ValueError, SyntaxError):
        items = []
    formulas = [item for item in items if isinstance(item, str) and _is_formula(item)]
    return list(dict.fromkeys(formulas)), len(items) - len(formulas)


def _is_formula(text: str) -> bool:
    """Return whether a text is a formula: symbols, numbers, brackets, and hydrate parts such as ``·6.5H2O`` or ``·nH2O``."""
    parts = [re.sub(r"^[\d.]*n?(?=[A-Z(])", "", part) for part in text.split("·")]
    plain = all(re.fullmatch(r"(?:[A-Z][a-z]?|[()\[\]-]|[\d.]+)+", part) for part in parts)
    return plain and all(Element.is_valid_symbol(symbol) for part in parts for symbol in re.findall(r"[A-Z][a-z]?", part))
