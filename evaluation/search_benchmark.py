"""Compares ways of choosing candidates, on equal numbers of judged sheets: guidance, plain screening, and neither."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import judges
from evaluation.candidate import CandidateResult
from evaluation.decisions import all_of, without_dft
from evaluation.judge_pool import JudgePool
from evaluation.statistics import mean_metric, mean_ratio
from evaluation.water_verdict import DISSOLVES
from pipeline.settings import Config, EvaluationConfig

# Of a composition screening knows one crystal, whatever the recipe.
SCREENED = {"start": "screening", "max_per_composition": 1}
NO_QUOTA = {"prefilter": True, "max_soluble_share": 1.0}  # as many halides as the others may draw
# Name -> (η, w, further settings of stage 4); None stands for the η and w of the configuration.
SEARCHES: dict[str, tuple[float | None, float | None, dict[str, Any]]] = {
    "screening": (None, None, {"prefilter": False, **SCREENED}),
    "screening, prefilter": (None, None, {"prefilter": True, **SCREENED}),
    "elements, no guidance": (0.0, 0.0, {}),
    "elements, classifier-free guidance alone": (0.0, None, {}),
    "elements, gradient alone": (None, 0.0, {"prefilter": False}),
    "elements, guidance": (None, None, {"prefilter": False}),
    "elements, prefilter": (None, None, {"prefilter": True}),
    "screening, prefilter, any halides": (None, None, {**NO_QUOTA, **SCREENED}),
    "elements, prefilter, any halides": (None, None, NO_QUOTA),
}
# Whose hits to expect those of the others are divided by.
REFERENCES = ("elements, no guidance", "screening, prefilter", "screening, prefilter, any halides")
# Probabilities of each candidate -> what they are of.
PROBABILITIES = {
    "p_hits": "mean p_hit by the judges alone, whatever DFT has computed; no value counts as no hit",
    "new_p_hits": "the same, where a sheet counts that is new, that P_synth calls synthesizable and that water does not dissolve",
}

# Runs stage 4: (folder, η, w, further settings) -> its manifest.
Make = Callable[[Path, float, float, Mapping[str, Any]], dict[str, Any]]
# Judges a set: (pool, folder, counts of stage 4) -> its row, with ``probabilities`` of its candidates.
Judge = Callable[[Any, Path, dict[str, int]], dict[str, Any]]


def search_scores(cfg: Config, folder: Path, make: Make, judge: Judge) -> list[dict[str, Any]]:
    """Generate and judge by each of ``benchmark.searches``, all where none is named.

    Returns:
        A row for each, with every aggregate and its interval; see ``with_ratios``.
    """
    chosen, asked = cfg.generation, cfg.benchmark.searches or list(SEARCHES)
    plan = {
        name: (folder / "search" / name.replace(", ", "_").replace(" ", "_"), how)
        for name, how in SEARCHES.items()
        if name in asked
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (cifs, (eta, w, changes)) in plan.items():
        strengths = chosen.guidance_scale if eta is None else eta, chosen.cfg_scale if w is None else w
        found[name] = make(cifs, *strengths, changes)
    rows = []
    with JudgePool(partial(judges.load_judges, cfg), judges.judge_identity(cfg), cfg.evaluation.workers, cfg.run) as pool:
        for name, (cifs, _) in plan.items():
            about = {"name": name, "families": len({row["family"] for row in found[name]["candidates"]})}
            rows.append(about | judge(pool, cifs, found[name]["counts"]))
    return with_ratios(rows, cfg.evaluation.bootstrap, cfg.run.seed)


def probabilities(rows: Sequence[CandidateResult], settings: EvaluationConfig) -> dict[str, list[float]]:
    """Return ``PROBABILITIES`` of judged candidates.

    DFT has computed sheets that a search finds again and again; what it says of them would count as often as it was asked.
    """
    alone = [without_dft(row, settings) for row in rows]
    chances = [0.0 if math.isnan(row.p_hit) else row.p_hit for row in alone]
    wanted = [all_of(row.unique, row.novel, row.synthesizable, row.water != DISSOLVES) is True for row in alone]
    return {"p_hits": chances, "new_p_hits": [chance if own else 0.0 for chance, own in zip(chances, wanted, strict=True)]}


def with_ratios(rows: Sequence[dict[str, Any]], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Return rows with means of ``PROBABILITIES``, and ratios of these, in the place of the values of all candidates.

    ``expected``: for each of ``PROBABILITIES`` its mean, with a 95 % bootstrap interval, and ``ratios``: how many times as much
    as each of ``REFERENCES`` that is another row.
    """
    of_name = {row["name"]: row for row in rows}
    result = []
    for row in rows:
        expected = {}
        for key, doc in PROBABILITIES.items():
            rng = np.random.default_rng([seed, 42])
            mean = mean_metric(key, row[key], unit="share", better=1, doc=doc, resamples=resamples, rng=rng)
            ratios = {}
            for other in (name for name in REFERENCES if name in of_name and name != row["name"]):
                rng = np.random.default_rng([seed, 43])
                ratio = mean_ratio(row[key], of_name[other][key], resamples, rng)
                ratios[other] = dict(zip(("value", "low", "high"), ratio, strict=True))
            expected[key] = dataclasses.asdict(mean) | {"ratios": ratios}
        result.append({key: value for key, value in row.items() if key not in PROBABILITIES} | {"expected": expected})
    return result
