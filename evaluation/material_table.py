"""Prints what was found for each material: the last lines of stage 6."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluation.candidate import CandidateResult
from evaluation.decisions import rank, verdict
from evaluation.summary import plain_number
from pipeline.settings import EvaluationConfig

TABLE_HEAD = ("id", "formula", "layer group", "E_hull", "ΔG_H ± σ by", "P_synth", "verdict")
TABLE_UNITS = ("", "", "", "eV/atom", "eV", "", "")


def print_table(rows: Sequence[CandidateResult], settings: EvaluationConfig, most: int = 50) -> None:
    """Print one line per material, the best first.

    Args:
        rows: the judged set.
        settings: limits of the verdict.
        most: lines; further materials are only counted.
    """
    ranked = rank(rows)
    lines = [TABLE_HEAD, TABLE_UNITS, *(_table_cells(row, settings) for row in ranked[:most])]
    widths = [max(len(line[k]) for line in lines) for k in range(len(TABLE_HEAD))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if len(ranked) > most:
        print(f"and {len(ranked) - most} more in metrics.csv")


def _table_cells(row: CandidateResult, settings: EvaluationConfig) -> tuple[str, ...]:
    """Return the cells of one material; the ΔG_H is that of the best judge at hand."""
    value, std, source = row.delta_g_ev, row.delta_g_std_ev, row.delta_g_source
    delta_g = "–" if math.isnan(value) else f"{value:+.2f} ± {plain_number(std)} {source}"
    word = row.status if row.dimensionality == "unreadable" else verdict(row, settings)
    group = row.layer_group_relaxed or row.layer_group
    found = (
        row.id[:40],
        row.reduced_formula,
        group,
        plain_number(row.e_above_hull_ev).replace("-0.00", "0.00"),
        delta_g,
        plain_number(row.p_synth),
        word,
    )
    return tuple(" ".join(text.split()) or "–" for text in found)
