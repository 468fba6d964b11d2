"""Sums up a report in a few sentences: the first lines of the page and the last ones of the log."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation import metrics, statistics
from evaluation.legacy import LEGACY_TOP
from evaluation.report_files import OURS
from pipeline.files import relative_name

log = logging.getLogger("her2d")


def better_in(verdicts: Mapping[str, str]) -> list[str]:
    """Return the metrics in which a control beats ours, with "(clear)" where the intervals do not overlap."""
    return [f"{name}{verdict.removeprefix('better')}" for name, verdict in verdicts.items() if verdict.startswith("better")]


def number_text(value: float | None) -> str:
    """Return a number with six digits for a CSV; "" where it is missing."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.6g}"


def summary(report: Mapping[str, Any]) -> list[str]:
    """Return the result in plain sentences. report: the content of ``report.json``."""
    found, funnel = report["metrics"], report["funnel"]
    n = found["hit_rate"]["n"]

    def count(name: str) -> int:
        return round((found[name]["value"] or 0.0) * n)

    settings = report["provenance"]["settings"]
    window, hull = f"{settings['hit_delta_g_ev']:g} eV", f"{settings['hit_e_hull_ev']:g} eV/atom"
    hits = [
        f"{count(name)} by {judge}"
        for name, judge in (
            ("hit_rate", "the best judge of each"),
            ("hit_rate_dimenet", "DimeNet++"),
            ("hit_rate_potential", "the potential's own ΔG_H"),
            ("hit_rate_corrected", "the same corrected from DFT"),
        )
        if name in found and found[name]["n_ok"]
    ]
    lines = [
        f"{next(iter(funnel.values()))} files were judged: {count('rate_valid')} of {n} two-dimensional candidates are valid "
        f"monolayers, {count('rate_converged')} relax to convergence, {count('rate_metastable')} lie at most {hull} above the "
        "hull.",
        f"Hits (valid, |ΔG_H| ≤ {window}, E_above_hull ≤ {hull}): {', '.join(hits) or 'no verdict'}. From values and errors "
        f"{(found['expected_hit_rate']['value'] or 0.0) * n:.1f} are to be expected.",
        f"Mean |ΔG_H| {metric_text(found['mae_delta_g_ev'])} eV; Score_stab {metric_text(found['score_stab'])}; "
        f"Rate_synth {metric_text(found['rate_synth'])}; metastable S.U.N. {metric_text(found['rate_metastable_sun'])}.",
    ]
    if report["bulk"]["n"]:
        lines.append(
            f"{report['bulk']['n']} of the files are bulk crystals: flagged as not 2D, scored where a score is defined, in no "
            "average above."
        )
    if legacy := report.get("legacy"):
        lines.append(legacy_summary(legacy))
    lines.append(_truth_line(report["truth"], window))
    if report["label"] == OURS:
        for label, verdicts in report.get("comparison", {}).get("verdicts", {}).items():
            lines.append(f"{label}: better than ours in {', '.join(better_in(verdicts)) or 'nothing that is compared'}.")
    return lines


def _truth_line(truth: Mapping[str, Any], window: str) -> str:
    """Say how far ΔG_H is off on hosts with DFT values. window: the limit of a hit on |ΔG_H|, with its unit."""
    if not truth.get("n"):
        return "No DFT truth was at hand: ΔG_H is unverified."
    corrected = truth.get("potential_corrected") or {}
    second = ""
    if corrected.get("n"):
        mae, rank = plain_number(corrected["mae_ev"]), plain_number(corrected["spearman"])
        others = f", of {corrected['n']} values" if corrected["n"] != truth["n"] else ""
        second = f", the corrected potential by {mae} eV ({rank}{others})"
    return (
        f"On {truth['n']} DFT values of hosts left out, DimeNet++ is off by {plain_number(truth['mae_ev'])} eV on average (rank "
        f"correlation {plain_number(truth['spearman'])}){second}: a single ΔG_H within ±{window} is a lead to verify, not a result."
    )


def legacy_summary(legacy: Mapping[str, Any]) -> str:
    """Compare the ranking of the earlier public baseline with ours in one sentence. legacy: what ``legacy_ranking`` returns."""
    verdicts = ", ".join(f"{count} {name}" for name, count in legacy["verdicts"].items())
    rank = f"rank correlation {plain_number(legacy['spearman'])} over {legacy['n_both']} candidates with both scores, "
    return (
        f"Against the scoring of the earlier public baseline: {rank if legacy['n_both'] else ''}{legacy['overlap']} of its "
        f"{legacy['of']} favourites are among our first {LEGACY_TOP}; here they are: {verdicts}."
    )


def metric_text(metric: Mapping[str, Any]) -> str:
    """Return value, interval and counts of a metric of ``report.json`` as ``statistics.Metric.text`` writes them."""
    values = {k: math.nan if metric[k] is None else metric[k] for k in ("value", "low", "high")}
    return statistics.Metric(**{**metric, **values}).text()


def plain_number(value: float | None) -> str:
    """Return a number with two decimals, or a dash where it is missing."""
    return "–" if value is None or math.isnan(value) else f"{value:.2f}"


def log_summary(report: Mapping[str, Any], output_dir: str | os.PathLike, names: Sequence[str] = metrics.COMPARED) -> None:
    """Log the summary, the compared metrics and the path of the page at the end of a stage."""
    for line in report["summary"]:
        log.info("%s", line)
    for name in names:
        if name in report["metrics"]:
            log.info("  %-26s %s", name, metric_text(report["metrics"][name]))
    log.info("%s", relative_name(Path(output_dir) / "report.html"))
