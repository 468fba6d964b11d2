"""Compares ways of choosing candidates, on equal numbers of judged sheets: guidance, plain screening, and neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import judges
from evaluation.judge_pool import JudgePool
from evaluation.statistics import mean_ratio
from pipeline.settings import Config

FAMILIES = {"recipe_source": "all"}
# Of a composition screening knows one crystal, whatever the recipe.
SCREENED = {**FAMILIES, "start": "screening", "max_per_composition": 1}
ELEMENTS = {"recipe_source": "elements"}
# Name -> (η, w, further settings of stage 4); None stands for the η and w of the configuration.
SEARCHES: dict[str, tuple[float | None, float | None, dict[str, Any]]] = {
    "no guidance": (0.0, 0.0, FAMILIES),
    "guidance": (None, None, {"prefilter": False, **FAMILIES}),
    "screening": (None, None, {"prefilter": False, **SCREENED}),
    "guidance, prefilter": (None, None, {"prefilter": True, **FAMILIES}),
    "screening, prefilter": (None, None, {"prefilter": True, **SCREENED}),
    "elements, no guidance": (0.0, 0.0, ELEMENTS),
    "elements, classifier-free guidance alone": (0.0, None, ELEMENTS),
    "elements, gradient alone": (None, 0.0, {"prefilter": False, **ELEMENTS}),
    "elements, guidance": (None, None, {"prefilter": False, **ELEMENTS}),
    "elements, prefilter": (None, None, {"prefilter": True, **ELEMENTS}),
}
REFERENCES = ("elements, no guidance", "screening, prefilter")  # whose hits to expect those of the others are divided by

# Runs stage 4: (folder, η, w, verdicts on recipes of runs that start alike, further settings) -> its manifest.
Make = Callable[[Path, float, float, dict, Mapping[str, Any]], dict[str, Any]]
# Judges a set: (pool, folder, counts of stage 4) -> its row, with "p_hits" of its candidates.
Judge = Callable[[Any, Path, dict[str, int]], dict[str, Any]]


def search_scores(cfg: Config, folder: Path, make: Make, judge: Judge) -> list[dict[str, Any]]:
    """Generate and judge by each of ``benchmark.searches``, all where none is named.

    Returns:
        A row for each, with every aggregate and its interval, and ``ratios``: how many times as many hits are to be expected as
        from each of ``REFERENCES`` that was asked for.
    """
    chosen, asked = cfg.generation, cfg.benchmark.searches or list(SEARCHES)
    plan = {
        name: (folder / "search" / name.replace(", ", "_").replace(" ", "_"), how)
        for name, how in SEARCHES.items()
        if name in asked
    }
    found: dict[str, dict[str, Any]] = {}
    verdicts: dict[str, dict] = {}
    for name, (cifs, (eta, w, changes)) in plan.items():
        strengths = chosen.guidance_scale if eta is None else eta, chosen.cfg_scale if w is None else w
        found[name] = make(cifs, *strengths, verdicts.setdefault(_start_key(changes), {}), changes)
    rows = []
    with JudgePool(partial(judges.load_judges, cfg), judges.judge_identity(cfg), cfg.evaluation.workers, cfg.run) as pool:
        for name, (cifs, _) in plan.items():
            about = {"name": name, "families": len({row["family"] for row in found[name]["candidates"]})}
            rows.append(about | judge(pool, cifs, found[name]["counts"]))
    return with_ratios(rows, cfg.evaluation.bootstrap, cfg.run.seed)


def with_ratios(rows: Sequence[dict[str, Any]], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Return rows with their ``ratios`` to those of ``REFERENCES``, with 95 % bootstrap intervals, in the place of ``p_hits``."""
    of_name = {row["name"]: row["p_hits"] for row in rows}
    result = []
    for row in rows:
        ratios = {}
        for other in REFERENCES:
            if other in of_name and other != row["name"]:
                rng = np.random.default_rng([seed, 43])
                ratios[other] = dict(
                    zip(("value", "low", "high"), mean_ratio(row["p_hits"], of_name[other], resamples, rng), strict=True)
                )
        result.append({key: value for key, value in row.items() if key != "p_hits"} | {"ratios": ratios})
    return result


def _start_key(changes: Mapping[str, Any]) -> str:
    """Return a key that runs share whose recipes are judged by the same sheets."""
    return f"{changes['recipe_source']}, {changes.get('start', '')}"
