"""Synthesizability judges: the 8B CSLLM where the user has it, and the small embedded language model everywhere else.

Both read the same text, CSLLM's material string (Song et al., arXiv:2407.07016) inside CSLLM's question, and both are scored the
same way: P(True) from the log-likelihoods of the two labels, never from generated text. The share of probability that falls on the
two labels at all (label mass) is kept beside it: little mass means that the model did not understand the question.
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

from evaluation.material_strings import LABELS, MaterialString, material_string, prompt

MIN_LABEL_MASS = 0.5


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


def normalised_odds(log_true: float, log_false: float) -> tuple[float, float, float]:
    """(log-odds, P(True) among the two labels, label mass)."""
    odds = log_true - log_false
    return odds, 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0, min(1.0, math.exp(log_true) + math.exp(log_false))
