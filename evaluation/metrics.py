"""Computes the metrics of a judged set: rates and means with intervals, the comparison of sets, and agreement with true values.

``METRICS`` defines every metric once; tables, figures and pages take their words from it. A candidate without a verdict never
counts as a success and never enters a mean. So every metric carries ``n_ok`` (candidates that have a verdict) and ``n`` (candidates
asked for).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.decisions import all_of
from evaluation.statistics import Metric, mean_metric, rate_metric, wilson_interval
from evaluation.water_verdict import DISSOLVES


@dataclass(frozen=True)
class Definition:
    """How a metric is computed, and the words for it.

    ``kind``: "mean", "median" or "rate" over candidates, or "count" of distinct things. ``value``: function of a candidate
    (``CandidateResult``) and the evaluation settings; it returns a number, for a rate a verdict, for a count a set. ``doc``: the
    meaning, with ``{dg:g}`` and ``{hull:g}`` for the limits of a hit (eV, eV/atom). ``better``: +1 where larger is better, -1 where
    smaller is, 0 where neither is. ``title``: heading of its panel in figures, empty where it has none.
    """

    name: str
    kind: str
    value: Callable[[Any, Any], Any]
    doc: str
    unit: str = "share"
    better: int = 1
    title: str = ""


def _below(value: float, limit: float) -> bool | None:
    """Return whether a value is at most a limit; None where it is NaN."""
    return None if math.isnan(value) else bool(value <= limit)


# The order is that of every list of metrics. It also decides which random numbers the bootstrap of a metric draws.
_DEFINITIONS = (
    Definition(
        "mae_delta_g_ev",
        "mean",
        lambda r, _: abs(r.delta_g_ev),
        "MAE_ΔG = mean |ΔG_H|, each by its best judge",
        "eV",
        -1,
        "mean |ΔG_H|",
    ),
    Definition("mae_delta_g_dimenet_ev", "mean", lambda r, _: abs(r.delta_g_h_ev), "mean |ΔG_H|, DimeNet++", "eV", -1),
    Definition(
        "mae_delta_g_potential_ev", "mean", lambda r, _: abs(r.delta_g_h_potential_ev), "mean |ΔG_H|, the potential's own", "eV", -1
    ),
    Definition(
        "mae_delta_g_corrected_ev",
        "mean",
        lambda r, _: abs(r.delta_g_h_corrected_ev),
        "mean |ΔG_H|, the potential's after its correction from DFT",
        "eV",
        -1,
    ),
    Definition(
        "score_stab", "mean", lambda r, _: r.score_stab, "Score_stab = mean exp(−max(0, E_form − E_ref))", "", title="Score_stab"
    ),
    Definition("rate_synth", "rate", lambda r, _: r.synthesizable, "Rate_synth: predicted synthesizable", title="Rate_synth"),
    Definition(
        "hit_rate",
        "rate",
        lambda r, _: r.hit,
        "valid, |ΔG_H| ≤ {dg:g} eV by the best judge with H at rest, E_above_hull ≤ {hull:g} eV/atom",
        title="hits",
    ),
    Definition(
        "expected_hit_rate",
        "mean",
        lambda r, _: 0.0 if math.isnan(r.p_hit) else r.p_hit,
        "mean p_hit: the share of hits to expect from values and errors; no value counts as no hit",
        title="hits to expect",
    ),
    Definition("hit_rate_dimenet", "rate", lambda r, _: r.hit_dimenet, "the same with DimeNet++'s ΔG_H"),
    Definition(
        "hit_rate_potential",
        "rate",
        lambda r, _: r.hit_potential,
        "the same with the potential's own ΔG_H",
    ),
    Definition(
        "hit_rate_corrected",
        "rate",
        lambda r, _: r.hit_corrected,
        "the same with the potential's ΔG_H corrected from DFT",
    ),
    Definition("rate_sun", "rate", lambda r, _: r.sun, "valid, stable (E_above_hull ≤ 0), unique and novel"),
    Definition(
        "rate_metastable_sun",
        "rate",
        lambda r, _: r.metastable_sun,
        "valid, E_above_hull ≤ {hull:g} eV/atom, unique and novel",
        title="metastable S.U.N.",
    ),
    Definition(
        "score_composite",
        "mean",
        lambda r, _: r.score_composite,
        "mean 0.4·max(0, 1−2|ΔG_H|) + 0.3·stab + 0.3·P_synth",
        "",
        title="composite score",
    ),
    Definition(
        "legacy_score_composite",
        "mean",
        lambda r, _: r.legacy_score_composite,
        "mean score of the earlier public baseline's scoring, for comparison only",
        "",
        0,
    ),
    Definition(
        "rate_valid", "rate", lambda r, _: r.valid, "no clash, one connected sheet, vacuum, charge-neutral possible", title="valid"
    ),
    Definition("rate_no_clash", "rate", lambda r, _: r.no_clash, "no pair closer than the clash factor x covalent radii"),
    Definition("rate_single_sheet", "rate", lambda r, _: r.single_sheet, "one connected, two-periodic sheet"),
    Definition("rate_charge_neutral", "rate", lambda r, _: r.charge_neutral, "charge-neutral possible (SMACT)"),
    Definition("rate_converged", "rate", lambda r, _: r.relax_converged, "relaxation converges within the step cap"),
    Definition("rate_sheet_relaxed", "rate", lambda r, _: r.sheet_relaxed, "still one connected sheet after relaxation"),
    Definition("median_rmsd_angstrom", "median", lambda r, _: r.relax_rmsd_angstrom, "median RMSD to the relaxed sheet", "Å", -1),
    Definition("median_e_above_hull_ev", "median", lambda r, _: r.e_above_hull_ev, "median E_above_hull", "eV/atom", -1),
    Definition(
        "rate_metastable", "rate", lambda r, s: _below(r.e_above_hull_ev, s.hit_e_hull_ev), "E_above_hull ≤ {hull:g} eV/atom"
    ),
    Definition(
        "rate_metastable_dynamic",
        "rate",
        lambda r, s: all_of(_below(r.e_above_hull_ev, s.hit_e_hull_ev), r.dynamically_stable),
        "E_above_hull ≤ {hull:g} eV/atom and dynamically stable",
        title="metastable and dynamically stable",
    ),
    Definition("rate_not_dissolved", "rate", lambda r, _: r.water != DISSOLVES if r.water else None, "water does not dissolve it"),
    Definition("rate_unique", "rate", lambda r, _: r.unique, "first of its kind in the set (StructureMatcher)"),
    Definition("rate_novel", "rate", lambda r, _: r.novel, "not in the training database (StructureMatcher)"),
    Definition("rate_her_in_domain", "rate", lambda r, _: r.h_in_domain, "inside the training domain of DimeNet++", better=0),
    Definition("unique_formulas", "count", lambda r, _: {r.reduced_formula} - {""}, "distinct reduced formulas", "count", 0),
    Definition("unique_elements", "count", lambda r, _: r.elements(), "distinct elements", "count", 0),
)
METRICS = {definition.name: definition for definition in _DEFINITIONS}

# Metrics that are defined for bulk crystals, with other words where those of monolayers do not fit.
_BULK_DOCS = {
    "score_stab": "Score_stab of the bulk crystals",
    "rate_synth": "predicted synthesizable",
    "rate_metastable": METRICS["rate_metastable"].doc,
    "median_e_above_hull_ev": METRICS["median_e_above_hull_ev"].doc,
    "legacy_score_composite": METRICS["legacy_score_composite"].doc,
}


def aggregate(rows: Sequence[Any], settings: Any, seed: int) -> dict[str, Metric]:
    """Compute the metrics of the two-dimensional candidates of one set.

    Asked for (``n``) is every file of the set that is not a bulk crystal: a file that cannot be read, a molecule or a sheet that no
    judge could score stays in the denominator of every rate. Means run over the ``n_ok`` candidates that have the number.

    Args:
        rows: ``CandidateResult`` of these files.
        settings: those of the evaluation.
        seed: of the bootstrap.

    Returns:
        name -> metric, for all of METRICS.
    """
    return _compute({name: definition.doc for name, definition in METRICS.items()}, rows, settings, seed)


def aggregate_bulk(rows: Sequence[Any], settings: Any, seed: int) -> dict[str, Metric]:
    """Compute the metrics of the bulk crystals of a set, for which ΔG_H is not defined. Arguments as for ``aggregate``."""
    return _compute(_BULK_DOCS, rows, settings, seed)


def _compute(docs: Mapping[str, str], rows: Sequence[Any], settings: Any, seed: int) -> dict[str, Metric]:
    """Compute the metrics that ``docs`` names, in its order and with its words."""
    resampling = {"resamples": settings.bootstrap, "rng": np.random.default_rng(seed)}
    n_read = sum(bool(row.reduced_formula) for row in rows)
    found = {}
    for name, template in docs.items():
        definition = METRICS[name]
        values = [definition.value(row, settings) for row in rows]
        doc = template.format(dg=settings.hit_delta_g_ev, hull=settings.hit_e_hull_ev)
        unit, better = definition.unit, definition.better
        if definition.kind == "rate":
            found[name] = rate_metric(name, values, better=better, doc=doc, **resampling)
        elif definition.kind == "count":
            count = float(len(set().union(*values)))
            found[name] = Metric(name, count, math.nan, math.nan, n_read, len(rows), unit, better, doc)
        else:
            median = definition.kind == "median"
            found[name] = mean_metric(name, values, unit=unit, better=better, doc=doc, median=median, **resampling)
    return found


# Metrics in which sets are compared, in the order of every table.
COMPARED = (
    "hit_rate",
    "expected_hit_rate",
    "hit_rate_dimenet",
    "hit_rate_potential",
    "hit_rate_corrected",
    "mae_delta_g_ev",
    "mae_delta_g_dimenet_ev",
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
    """Compare a control with ours.

    Args:
        control, ours: name -> metric as ``dataclasses.asdict`` gives it; a missing value may be None or NaN.

    Returns:
        name -> "better", "worse" or "equal" (the control against ours), with " (clear)" where the 95 % intervals do not overlap.
        Metrics that lack a value or have no better direction are left out.
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
    """Return a value of a metric, NaN where it is None."""
    value = metric.get(key)
    return math.nan if value is None else float(value)


NEAR_ZERO_EV = 0.5  # |ΔG_H| below which a value matters for a hit


def coverage(truth: Sequence[float], predicted: Sequence[float], std: Sequence[float], free_energy_ev: float) -> dict[str, Any]:
    """Count the true values within one and two standard errors of their predictions: 68 % and 95 % for normal errors.

    Args:
        truth, predicted, std: ΔE_H by DFT and by a judge, and its standard errors, (N,) in eV; what is not finite is left out.
        free_energy_ev: ΔG_H − ΔE_H.

    Returns:
        ``{n, within_1, within_1_interval, within_2, within_2_interval}``, with 95 % Wilson intervals [low, high], over all, and the
        same as ``near_zero`` over those with |ΔG_H| by DFT below NEAR_ZERO_EV; NaN where there is no value.
    """
    t, p, s = (np.asarray(values, dtype=float) for values in (truth, predicted, std))
    usable = np.isfinite(t) & np.isfinite(p) & np.isfinite(s) & (s > 0)

    def shares(chosen: np.ndarray) -> dict[str, Any]:
        away = np.abs(p - t)[chosen] / s[chosen]
        found: dict[str, Any] = {"n": len(away)}
        for k in (1, 2):
            inside = int((away <= k).sum())
            found[f"within_{k}"] = inside / len(away) if len(away) else math.nan
            found[f"within_{k}_interval"] = list(wilson_interval(inside, len(away)))
        return found

    return {**shares(usable), "near_zero": shares(usable & (np.abs(t + free_energy_ev) < NEAR_ZERO_EV))}


def agreement(truth: Sequence[float], predicted: Sequence[float]) -> dict[str, float | int]:
    """Measure how well predictions agree with true values (eV), over the pairs that have both.

    Returns:
        ``{n, mae_ev (mean absolute error), mean_error_ev (of predicted − truth), spearman (rank correlation)}``.
    """
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
