"""Defines what a judge of synthesizability is, and how a language model gives a probability.

There are two judges: the 8B CSLLM where the user has it (``csllm``), and the embedded boosted trees (``embedded_trees``). CSLLM
reads its material string (Song et al., arXiv:2407.07016) inside its question. P(True) comes from the log-likelihoods of the two
labels, never from generated text. The probability of both labels together (label mass) is recorded too: a small mass means that the
model did not understand the question.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ase import Atoms
from pymatgen.core import Structure

from evaluation.material_strings import LABELS, prompt

MIN_LABEL_MASS = 0.5


@dataclass(frozen=True)
class SynthScore:
    """Answer of a judge for one structure.

    ``p_synth``: P(True) in [0, 1], NaN when the judge abstains. ``label_mass``: probability of True and False together.
    ``tolerance``: of the symmetry search in Å, NaN where none worked. ``status``: "ok", or why to doubt the answer. ``in_domain``:
    whether the judge was trained on this kind of material.
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
    """Compute the log-likelihoods of both labels after a prompt; that of a label of several tokens is the sum over them.

    The tokens of a label begin where the prompt with it differs from the prompt without it. So a tokenizer may join the space
    before a label with the label.

    Args:
        model: a causal language model of ``transformers``.
        encode: text -> token ids.
        text: a question or a material string.
        end_id: end-of-text token that ``encode`` appends, if any.

    Returns:
        (log P(True | prompt), log P(False | prompt)).

    Raises:
        ValueError: the tokenizer does not separate the two labels.
    """
    device = next(model.parameters()).device
    strip = lambda ids: ids[:-1] if end_id is not None and ids and ids[-1] == end_id else ids  # noqa: E731
    opened = strip(encode(prompt(text)))
    complete = [strip(encode(prompt(text, label))) for label in LABELS]
    start = min(_common_prefix(opened, complete[0]), _common_prefix(complete[0], complete[1]))
    if start == 0 or start >= min(len(ids) for ids in complete):
        raise ValueError("the tokenizer does not separate the two labels")
    # Labels of one token share one forward pass. Longer ones need one each, because later tokens depend on earlier ones.
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
    """Return the number of tokens that two sequences have in common at their start."""
    return next((i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), min(len(first), len(second)))


class SynthesizabilityJudge(ABC):
    """Interface of every synthesizability model. ``name`` is what tables show, ``identity`` what the report records.

    Structures are scored one at a time, so that a score does not depend on the other structures or their order.
    """

    name: str
    identity: dict[str, Any]

    def score(self, structures: Sequence[Structure | Atoms]) -> list[SynthScore]:
        """Return one score per structure; where there is none, it is NaN and its status says why."""
        return [self._score_one(structure) for structure in structures]

    @abstractmethod
    def _score_one(self, structure: Structure | Atoms) -> SynthScore:
        """Return the score of one structure."""


def normalised_odds(log_true: float, log_false: float) -> tuple[float, float, float]:
    """Return (log-odds, P(True) if there were only the two labels, label mass). log_true, log_false: log-likelihoods."""
    odds = log_true - log_false
    return odds, 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0, min(1.0, math.exp(log_true) + math.exp(log_false))
