"""The report in words."""

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
    """Metrics in which a control beats ours, '(clear)' where the intervals part."""
    return [f"{name}{verdict.removeprefix('better')}" for name, verdict in verdicts.items() if verdict.startswith("better")]


def number_text(value: float | None) -> str:
    return "nan" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.6g}"


def summary(report: Mapping[str, Any]) -> list[str]:
    """The result in plain sentences."""
    found, funnel = report["metrics"], report["funnel"]
    n = found["hit_rate"]["n"]

    def count(name: str) -> int:
        return round((found[name]["value"] or 0.0) * n)

    settings = report["provenance"]["settings"]
    window, hull = f"{settings['hit_delta_g_ev']:g} eV", f"{settings['hit_e_hull_ev']:g} eV/atom"
    hits = [
        f"{count(name)} by {judge}"
        for name, judge in (
            ("hit_rate", "DimeNet++"),
            ("hit_rate_potential", "the potential's own ΔG_H"),
            ("hit_rate_corrected", "the same corrected from DFT"),
        )
        if name in found and found[name]["n_ok"]
    ]
    lines = [
        f"{next(iter(funnel.values()))} CIFs were judged: {count('rate_valid')} of {n} two-dimensional candidates are valid "
        f"monolayers, {count('rate_converged')} relax to convergence, {count('rate_metastable')} lie at most {hull} above the "
        "hull.",
        f"Hits (valid, |ΔG_H| ≤ {window}, E_above_hull ≤ {hull}): {', '.join(hits) or 'no verdict'}.",
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
    truth = report["truth"]
    if truth.get("n"):
        corrected = truth.get("potential_corrected") or {}
        second = ""
        if corrected.get("n"):
            second = f", the corrected potential by {_plain(corrected['mae_ev'])} eV ({_plain(corrected['spearman'])})"
        lines.append(
            f"On {truth['n']} DFT values of hosts left out, DimeNet++ is off by {_plain(truth['mae_ev'])} eV on average (rank "
            f"correlation {_plain(truth['spearman'])}){second}: a single ΔG_H within ±{window} is a lead to verify, not a result."
        )
    else:
        lines.append("No DFT truth was at hand: ΔG_H is unverified.")
    if report["label"] == OURS:
        for label, verdicts in report.get("comparison", {}).get("verdicts", {}).items():
            lines.append(f"{label}: better than ours in {', '.join(better_in(verdicts)) or 'nothing that is compared'}.")
    return lines


def legacy_summary(legacy: Mapping[str, Any]) -> str:
    """What the ranking of the earlier public baseline has to do with ours, in one sentence."""
    verdicts = ", ".join(f"{count} {name}" for name, count in legacy["verdicts"].items())
    rank = f"rank correlation {_plain(legacy['spearman'])} over {legacy['n_both']} candidates with both scores, "
    return (
        f"Against the scoring of the earlier public baseline: {rank if legacy['n_both'] else ''}{legacy['overlap']} of its "
        f"{legacy['of']} favourites are among our first {LEGACY_TOP}; here they are: {verdicts}."
    )


def metric_text(metric: Mapping[str, Any]) -> str:
    values = {k: math.nan if metric[k] is None else metric[k] for k in ("value", "low", "high")}
    return statistics.Metric(**{**metric, **values}).text()


def _plain(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.2f}"


def _hull_text(hull: Mapping[str, Any] | None) -> str:
    if not hull or not hull["n_ok"]:
        return "It was not compared with a DFT hull (evaluation.hull_db)."
    agrees = f"the verdict at {hull['limit_ev']:g} eV/atom agrees for {100 * hull['agree']:.0f} %"
    return (
        f"On {hull['n_ok']} of {hull['n']} monolayers drawn from {hull['source']}: MAE {_plain(hull['mae_ev'])} eV/atom, "
        f"median error {_plain(hull['median_error_ev'])} eV/atom, Spearman {_plain(hull['spearman'])}; {agrees} "
        f"({hull['stable_ours_only']} stable only here, {hull['stable_theirs_only']} only there)."
    )


def trust(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How far each number can be trusted: (number, measured evidence)."""
    truth, judges, found = report["truth"], report["provenance"]["judges"], report["metrics"]
    potential = judges.get("potential", {}).get("name", "the potential")

    def errors(score: Mapping[str, Any]) -> str:
        mae, shift, rank = (_plain(score.get(key)) for key in ("mae_ev", "mean_error_ev", "spearman"))
        text = f"MAE {mae} eV, mean error {shift} eV, Spearman {rank} (n = {score.get('n', 0)})"
        order = score.get("inert_above_active") or {}
        if pairs := order.get("pairs"):
            right = pairs - len(order["violations"])
            text += f"; an inert sheet comes out above an active one in {right} of {pairs} pairs"
        return text

    rows = []
    if truth.get("n"):
        rows = [
            (
                "ΔG_H by DimeNet++",
                f"Against our DFT (PBE) values on the same geometries, {truth.get('source', '')}: {errors(truth)}; "
                f"{truth.get('protocol', '')}. Without it: {errors(truth.get('uncorrected', {}))}. Inside its training "
                f"domain: {metric_text(found['rate_her_in_domain'])}. ± is one calibrated standard error.",
            ),
            (
                "ΔG_H by the potential",
                f"{truth['potential'].get('name', '')} against the same values: {errors(truth['potential'])}. Potentials bind H "
                "too strongly on inert basal planes; this is a second opinion that did not guide the generator.",
            ),
        ]
        if corrected := truth.get("potential_corrected"):
            rows.append(
                (
                    "ΔG_H by the potential, corrected",
                    f"ΔE_H from {corrected.get('name', '')}, by a fit to the same DFT values, each host predicted by a fit without "
                    f"it: {errors(corrected)}.",
                )
            )
        if blind := truth.get("blind"):
            rows.append(
                (
                    "ΔG_H, blind",
                    f"{blind['n']} DFT values of {blind['source']} on sheets drawn at random, which nothing was fitted on: "
                    f"DimeNet++ {errors(blind)}; the potential {errors(blind['potential'])}; corrected "
                    f"{errors(blind['potential_corrected'])}.",
                )
            )
        if table := truth.get("table"):
            listed = f"{len(table['rows'])} rows of {table['source']}, those with a structure"
            rows.append(("ΔE_H, table of truth", f"{listed}: {errors(table)}."))
    else:
        rows.append(("ΔG_H", "No DFT truth was at hand: the numbers are unverified."))
    matcher = ", ".join(f"{key} {value}" for key, value in judges.get("structure_matcher", {}).items())
    synth = judges.get("synthesizability", {})
    auc = synth.get("test_roc_auc")
    rows += [
        (
            "E_form, E_above_hull",
            f"{potential} against elements and competing phases of the same potential only. A phase that is not among the "
            f"references cannot lower the hull: E_above_hull is a lower bound. {_hull_text(report.get('hull_parity'))}",
        ),
        (
            "P_synth",
            f"{synth.get('name', '')}: probability of the label 'synthesizable'"
            + (f"; ROC-AUC {auc:.2f} on held-out formulas" if auc else "")
            + ". It ranks; it is no promise that a synthesis exists.",
        ),
        (
            "unique, novel",
            f"StructureMatcher {matcher}; novel means absent from {_path(judges, 'training_set')}, not from the literature.",
        ),
        ("charge-neutral possible", "SMACT with alloys of metals allowed: necessary, not sufficient."),
        (
            "intervals",
            "95 %, bootstrap over candidates (Wilson where all candidates agree): they carry the luck of the draw, not the error "
            "of the judges.",
        ),
    ]
    return rows


def _path(judges: Mapping[str, Any], key: str) -> str:
    return str(judges.get(key, {}).get("path", "the training database"))


def log_summary(report: Mapping[str, Any], output_dir: str | os.PathLike, names: Sequence[str] = metrics.COMPARED) -> None:
    """One screen at the end of a stage."""
    for line in report["summary"]:
        log.info("%s", line)
    for name in names:
        if name in report["metrics"]:
            log.info("  %-26s %s", name, metric_text(report["metrics"][name]))
    log.info("%s", relative_name(Path(output_dir) / "report.html"))
