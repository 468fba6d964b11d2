"""Numbers of a judged set: rates and means with bootstrap intervals, the comparison of sets, and agreement with truth.

A candidate without a verdict never counts as a success and never enters a mean: every number carries ``n_ok`` (candidates that have
a verdict) and ``n`` (candidates asked for).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evaluation.legacy import LEGACY_DOC
from evaluation.statistics import Metric, mean_metric, rate_metric


def aggregate(rows: Sequence[Any], settings: Any, seed: int) -> dict[str, Metric]:
    """The metrics of the two-dimensional candidates of one set (``CandidateResult``).

    Asked for (``n``) is every file of the set that is not a bulk crystal: a file that cannot be read, a molecule or a sheet that no
    judge could score stays in the denominator of every rate. Means run over the ``n_ok`` candidates that have the number.
    """
    rng = np.random.default_rng(seed)
    common = {"resamples": settings.bootstrap, "rng": rng}
    found: list[Metric] = []

    def rate(name: str, verdict: Callable[[Any], bool | None], doc: str, better: int = 1) -> None:
        found.append(rate_metric(name, [verdict(row) for row in rows], better=better, doc=doc, **common))

    def mean(name: str, value: Callable[[Any], float], unit: str, better: int, doc: str, median: bool = False) -> None:
        found.append(mean_metric(name, [value(row) for row in rows], unit=unit, better=better, doc=doc, median=median, **common))

    dg_limit, hull_limit = settings.hit_delta_g_ev, settings.hit_e_hull_ev
    mean("mae_delta_g_ev", lambda r: abs(r.delta_g_h_ev), "eV", -1, "MAE_ΔG = mean |ΔG_H|, DimeNet++")
    mean("mae_delta_g_potential_ev", lambda r: abs(r.delta_g_h_potential_ev), "eV", -1, "mean |ΔG_H|, the potential's own")
    corrected = "mean |ΔG_H|, the potential's after its correction from DFT"
    mean("mae_delta_g_corrected_ev", lambda r: abs(r.delta_g_h_corrected_ev), "eV", -1, corrected)
    mean("score_stab", lambda r: r.score_stab, "", 1, "Score_stab = mean exp(−max(0, E_form − E_ref))")
    rate("rate_synth", lambda r: r.synthesizable, "Rate_synth: predicted synthesizable")
    rate("hit_rate", lambda r: r.hit, f"valid, |ΔG_H| ≤ {dg_limit:g} eV (DimeNet++), E_above_hull ≤ {hull_limit:g} eV/atom")
    rate("hit_rate_potential", lambda r: r.hit_potential, "the same with the potential's own ΔG_H")
    rate("hit_rate_corrected", lambda r: r.hit_corrected, "the same with the potential's ΔG_H corrected from DFT")
    rate("rate_sun", lambda r: r.sun, "valid, stable (E_above_hull ≤ 0), unique and novel")
    rate("rate_metastable_sun", lambda r: r.metastable_sun, f"valid, E_above_hull ≤ {hull_limit:g} eV/atom, unique and novel")
    mean("score_composite", lambda r: r.score_composite, "", 1, "mean 0.4·max(0, 1−2|ΔG_H|) + 0.3·stab + 0.3·P_synth")
    mean("legacy_score_composite", lambda r: r.legacy_score_composite, "", 0, LEGACY_DOC)
    rate("rate_valid", lambda r: r.valid, "no clash, one connected sheet, vacuum, charge-neutral possible")
    rate("rate_no_clash", lambda r: r.no_clash, "no pair closer than the clash factor x covalent radii")
    rate("rate_single_sheet", lambda r: r.single_sheet, "one connected, two-periodic sheet")
    rate("rate_charge_neutral", lambda r: r.charge_neutral, "charge-neutral possible (SMACT)")
    rate("rate_converged", lambda r: r.relax_converged, "relaxation converges within the step cap")
    rate("rate_sheet_relaxed", lambda r: r.sheet_relaxed, "still one connected sheet after relaxation")
    mean("median_rmsd_angstrom", lambda r: r.relax_rmsd_angstrom, "Å", -1, "median RMSD to the relaxed sheet", median=True)
    mean("median_e_above_hull_ev", lambda r: r.e_above_hull_ev, "eV/atom", -1, "median E_above_hull", median=True)
    rate("rate_metastable", lambda r: _below(r.e_above_hull_ev, hull_limit), f"E_above_hull ≤ {hull_limit:g} eV/atom")
    rate("rate_unique", lambda r: r.unique, "first of its kind in the set (StructureMatcher)")
    rate("rate_novel", lambda r: r.novel, "not in the training database (StructureMatcher)")
    rate("rate_her_in_domain", lambda r: r.h_in_domain, "inside the training domain of DimeNet++", better=0)
    formulas = {r.reduced_formula for r in rows if r.reduced_formula}
    elements = {symbol for r in rows for symbol in r.elements()}
    n_read = sum(bool(r.reduced_formula) for r in rows)
    for name, count, doc in (
        ("unique_formulas", len(formulas), "distinct reduced formulas"),
        ("unique_elements", len(elements), "distinct elements"),
    ):
        found.append(Metric(name, float(count), math.nan, math.nan, n_read, len(rows), "count", 0, doc))
    return {metric.name: metric for metric in found}


def aggregate_bulk(rows: Sequence[Any], settings: Any, seed: int) -> dict[str, Metric]:
    """Scores of the bulk crystals of a set; ΔG_H is not defined for them."""
    common = {"resamples": settings.bootstrap, "rng": np.random.default_rng(seed)}
    hull = [r.e_above_hull_ev for r in rows]
    limit = settings.hit_e_hull_ev
    metastable = [_below(e, limit) for e in hull]
    legacy = [r.legacy_score_composite for r in rows]
    found = [
        mean_metric("score_stab", [r.score_stab for r in rows], unit="", better=1, doc="Score_stab of the bulk crystals", **common),
        rate_metric("rate_synth", [r.synthesizable for r in rows], better=1, doc="predicted synthesizable", **common),
        rate_metric("rate_metastable", metastable, better=1, doc=f"E_above_hull ≤ {limit:g} eV/atom", **common),
        mean_metric("median_e_above_hull_ev", hull, unit="eV/atom", better=-1, doc="median E_above_hull", median=True, **common),
        mean_metric("legacy_score_composite", legacy, unit="", better=0, doc=LEGACY_DOC, **common),
    ]
    return {metric.name: metric for metric in found}


def _below(value: float, limit: float) -> bool | None:
    return None if math.isnan(value) else bool(value <= limit)


COMPARED = (
    "hit_rate",
    "hit_rate_potential",
    "hit_rate_corrected",
    "mae_delta_g_ev",
    "mae_delta_g_potential_ev",
    "mae_delta_g_corrected_ev",
    "score_stab",
    "rate_synth",
    "rate_metastable",
    "rate_sun",
    "rate_metastable_sun",
    "score_composite",
    "rate_valid",
    "rate_converged",
    "median_rmsd_angstrom",
    "unique_formulas",
)


def compare(control: dict[str, dict[str, Any]], ours: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Per metric: 'better', 'worse' or 'equal' (the control against ours), with ' (clear)' where the 95 % intervals part.

    control, ours: metrics as dictionaries (``dataclasses.asdict(Metric)``; a missing value may be None or NaN).
    """
    verdicts = {}
    for name in COMPARED:
        if name not in control or name not in ours:
            continue
        a, b, better = _number(control[name], "value"), _number(ours[name], "value"), ours[name]["better"]
        if math.isnan(a) or math.isnan(b) or better == 0:
            continue
        if math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12):
            verdicts[name] = "equal"
            continue
        apart = _number(control[name], "low") > _number(ours[name], "high") or _number(control[name], "high") < _number(
            ours[name], "low"
        )
        verdicts[name] = ("better" if (a - b) * better > 0 else "worse") + (" (clear)" if apart else "")
    return verdicts


def _number(metric: dict[str, Any], key: str) -> float:
    value = metric.get(key)
    return math.nan if value is None else float(value)


def agreement(truth: Sequence[float], predicted: Sequence[float]) -> dict[str, float | int]:
    """n, mean absolute error, mean signed error (predicted − truth) and Spearman rank correlation over the pairs that have both."""
    from scipy.stats import spearmanr

    t, p = np.asarray(truth, dtype=float), np.asarray(predicted, dtype=float)
    both = np.isfinite(t) & np.isfinite(p)
    t, p = t[both], p[both]
    enough = len(t) >= 3 and np.ptp(t) > 0 and np.ptp(p) > 0
    return {
        "n": len(t),
        "mae_ev": float(np.mean(np.abs(p - t))) if len(t) else math.nan,
        "mean_error_ev": float(np.mean(p - t)) if len(t) else math.nan,
        "spearman": float(spearmanr(t, p).statistic) if enough else math.nan,
    }
