"""Judges synthesizability with the small embedded language model."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.material_strings import LABELS, MaterialString, MaterialTokenizer, prompt
from evaluation.synthesizability import MIN_LABEL_MASS, SynthesizabilityJudge, SynthScore, label_log_likelihoods, normalised_odds
from networks.checkpoints import CheckpointError, load_checkpoint
from pipeline.files import file_sha256, relative_name


@dataclass(frozen=True)
class EmbeddedLMConfig:
    """Size of the embedded Llama-type decoder."""

    vocab_size: int
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    max_tokens: int = 512


def build_embedded_lm(config: EmbeddedLMConfig) -> torch.nn.Module:
    """Build a ``transformers.LlamaForCausalLM`` of that size; torch's global generator draws the weights."""
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


class EmbeddedLMJudge(SynthesizabilityJudge):
    """Judge that loads the small Llama-type decoder of ``scripts.pretrain_csllm``.

    It abstains (NaN) on elements that are rare in its training data, because their embeddings have hardly moved from their initial
    values. Crystals that are no monolayers are scored and marked as outside its domain.
    """

    name = "embedded-lm"

    def __init__(self, checkpoint: str | os.PathLike, device: str | torch.device = "cpu") -> None:
        hint = "run python -m scripts.pretrain_csllm or set evaluation.embedded_checkpoint"
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
        odds, _, mass = normalised_odds(*label_log_likelihoods(self.model, self.tokenizer.encode, string.text))
        p_synth = float(torch.sigmoid(torch.tensor(odds / self.temperature + self.bias, dtype=torch.float64)))
        if mass < MIN_LABEL_MASS:
            return SynthScore(p_synth, mass, string.tolerance, "low label mass", False)
        if not string.is_sheet:
            return SynthScore(p_synth, mass, string.tolerance, "not a monolayer: outside the training domain", False)
        return SynthScore(p_synth, mass, string.tolerance, "ok", True)
