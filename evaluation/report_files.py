"""Names the sets and figures of a report, and reads its ``report.json``."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation import statistics
from pipeline.files import relative_name
from pipeline.provenance import SCHEMA_VERSION

log = logging.getLogger("her2d")

CONTROLS = ("unguided", "random decoration", "known")
OURS = "ours"
MOST_ROWS = 1000  # candidates in report.json and on the page, the best; metrics.csv and relaxed.extxyz have all

FIGURES = {
    "generated_structures.png": "The best candidates after relaxation, top and side view; dashed: the primitive cell. In "
    "compounds, contacts between metals are not drawn.",
    "her_performance.png": "ΔG_H of every candidate by each judge, and the value of its best judge on the HER volcano, ±1σ. Full "
    "stars: sheets that every chemist knows, judged alike; open stars: published DFT values of metal surfaces. Marks on the lower "
    "edge of the volcano have an exchange current below 10⁻¹²; crosses: H leaves, has not come to rest or changes the sheet. Any "
    "other value beyond an axis is an arrow with its number.",
    "stability_curve.png": "How many candidates lie below a given E_above_hull.",
    "funnel.png": "Candidates left after each condition.",
    "comparison.png": "Our candidates beside the controls, judged alike. Shares are of all candidates asked for, means of those "
    "that have a value; both numbers stand above the bar.",
    "hull_parity.png": "E_above_hull beside that of a database, on the same monolayers; dashed: the limit of the verdict.",
    "truth_parity.png": "DimeNet++ and the potential against our own DFT values: how far ΔG_H can be trusted.",
    "loss_curve.png": "Training of the generator.",
}


def metric_dicts(found: Mapping[str, statistics.Metric]) -> dict[str, Any]:
    """Return metrics by name as ``report.json`` holds them."""
    return {name: dataclasses.asdict(metric) for name, metric in found.items()}


def read_report(output_dir: str | os.PathLike) -> dict[str, Any] | None:
    """Read ``report.json`` of a folder; None where there is none of this schema."""
    path = Path(output_dir) / "report.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError):
        log.warning("%s is not readable and is left out of the comparison", relative_name(path))
        return None
    return content if isinstance(content, dict) and content.get("schema_version") == SCHEMA_VERSION else None
