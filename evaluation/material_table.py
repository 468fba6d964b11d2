"""Prints what was found for each material: the last lines of stage 6."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.candidate import CandidateResult
from evaluation.decisions import rank, verdict
from evaluation.known_sheets import described
from evaluation.summary import plain_number
from pipeline.settings import EvaluationConfig

TABLE_HEAD = ("id", "formula", "layer group", "E_hull", "ΔG_H ± σ by", "P_synth", "verdict")
TABLE_UNITS = ("", "", "", "eV/atom", "eV", "", "")
KNOWN_SHOWN = 5


def print_table(
    rows: Sequence[CandidateResult], settings: EvaluationConfig, known: Sequence[Mapping[str, Any]] = (), most: int = 50
) -> None:
    """Print one line per material, the best first, and below them well-known sheets to compare with.

    Args:
        rows: the judged set.
        settings: limits of the verdict.
        known: what the same judges say of well-known sheets, as ``known_sheets.known_rows`` gives it.
        most: lines; further materials are only counted.
    """
    ranked = rank(rows)
    lines = [TABLE_HEAD, TABLE_UNITS, *(_table_cells(row, settings) for row in ranked[:most])]
    beside = [_known_cells(row) for row in sorted(known, key=lambda row: row["place"])[:KNOWN_SHOWN]]
    widths = [max(len(line[k]) for line in (*lines, *beside)) for k in range(len(TABLE_HEAD))]

    def show(line: tuple[str, ...]) -> None:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    for line in lines:
        show(line)
    if len(ranked) > most:
        print(f"and {len(ranked) - most} more in metrics.csv")
    if beside:
        print("well-known sheets by the same judges:")
        for line in beside:
            show(line)


def _table_cells(row: CandidateResult, settings: EvaluationConfig) -> tuple[str, ...]:
    """Return the cells of one material; the ΔG_H is that of the best judge at hand."""
    word = row.status if row.dimensionality == "unreadable" else verdict(row, settings)
    group = row.layer_group_relaxed or row.layer_group
    found = (
        row.id[:40],
        row.reduced_formula,
        group,
        plain_number(row.e_above_hull_ev).replace("-0.00", "0.00"),
        _delta_g(row.delta_g_ev, row.delta_g_std_ev, row.delta_g_source),
        plain_number(row.p_synth),
        word,
    )
    return tuple(" ".join(text.split()) or "–" for text in found)


def _delta_g(value: float, std: float, source: str) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f} ± {plain_number(std)} {source}"


def _known_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one well-known sheet, with its DFT value in the place of a verdict."""
    group = next((sheet["layer_group"] for sheet in described() if sheet["name"] == row["name"]), "")
    found = (
        row["name"],
        row["formula"],
        group,
        plain_number(row["e_above_hull_ev"]),
        _delta_g(row["delta_g_ev"], row["delta_g_std_ev"], row["delta_g_source"]),
        plain_number(row["p_synth"]),
        "" if math.isnan(row["delta_g_dft_ev"]) else f"ΔG_H by DFT {row['delta_g_dft_ev']:+.2f}",
    )
    return tuple(text or "–" for text in found)
