"""Draws the figures of an evaluation, each as PNG and as PDF: one style, units on every axis, n in every title, readable in grey.

A value beyond an axis is shown as an arrow at its edge with the number beside it.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from evaluation import metrics, volcano
from evaluation.candidate import CandidateResult
from evaluation.decisions import BY_CORRECTED_POTENTIAL, BY_DFT, BY_DIMENET, h_at_rest, rank
from evaluation.evaluate import Evaluation
from evaluation.water_verdict import DISSOLVES
from pipeline.files import as_float
from pipeline.plotting import figure
from pipeline.settings import EvaluationConfig

DELTA_G = r"$\Delta G_\mathrm{H}$"
DELTA_E = r"$\Delta E_\mathrm{H}$"
E_HULL = r"$E_\mathrm{above\ hull}$"
MAX_DELTA_G = 4.0  # eV, largest |ΔG_H| on an axis
MAX_E_HULL = 3.0  # eV/atom, largest E_above_hull on an axis
MOST_DRAWN = 100  # candidates that have a place of their own on an axis; of a larger set the best are drawn
MOST_POINTS = 1000  # of a sorted curve
MOST_ARROWS = 20  # values beyond one edge of an axis that are named; of more their number is
# The colours differ in lightness as well as in hue, so that they can be told apart in grey.
SET_COLORS = {
    "ours": "#08519c",
    "unguided": "#74a9cf",
    "random decoration": "#fdae61",
    "known": volcano.KNOWN_COLOR,
    "external": "#b2182b",
}
CORRECTED_COLOR = "#e6850e"  # of the potential's ΔG_H after its correction
DFT_COLOR = "#7a1f7a"
SET_MARKERS = {"ours": "o", "unguided": "s", "random decoration": "^", "known": "*", "external": "D"}
SET_LINES = {"ours": "-", "unguided": "--", "random decoration": "-.", "known": (0, (5, 1, 1, 1, 1, 1)), "external": ":"}


def subscripts(formula: str) -> str:
    """Return a formula with its numbers as subscripts."""
    return formula.translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def set_color(label: str) -> str:
    """Return the colour that a set has in every figure."""
    return SET_COLORS.get(label, SET_COLORS["external"])


def her_performance(
    evaluation: Evaluation,
    settings: EvaluationConfig,
    path: str | os.PathLike,
    known: Sequence[Mapping[str, Any]] = (),
    surfaces: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Draw ΔG_H of every candidate by each judge, sorted by the value of its best judge, and that value on the HER volcano.

    Of more than MOST_DRAWN candidates the best are drawn.

    Args:
        evaluation: the candidates.
        settings: the window of a hit.
        path: the PNG; the PDF goes beside it.
        known, surfaces: well-known materials for the volcano, as ``volcano.mark_known`` takes them.
    """
    judged = [r for r in evaluation.rows_2d if not math.isnan(r.delta_g_ev)]
    rows = sorted(judged if len(judged) <= MOST_DRAWN else rank(judged)[:MOST_DRAWN], key=lambda r: r.delta_g_ev)
    shown = f"the {len(rows)}" if len(rows) == len(judged) else f"the best {len(rows)} of the {len(judged)}"
    color = set_color(evaluation.label)
    with figure(path, ncols=2, figsize=(13, 5.2), width_ratios=(1, 1)) as (_, (left, right)):
        _delta_g_by_judge(left, rows, settings.hit_delta_g_ev, color)
        left.set_title(
            f"{evaluation.label}: {shown} of {len(evaluation.rows_2d)} with a ΔG_H; grey: hits, within "
            f"±{settings.hit_delta_g_ev:g} eV"
        )
        _volcano(right, rows, settings.hit_delta_g_ev, color, known, surfaces)


def _delta_g_by_judge(axis: Any, rows: Sequence[CandidateResult], window: float, color: str) -> None:
    """Draw ΔG_H of each candidate by every judge, with ±1σ where the judge has an error."""
    judges = (  # label, marker, colour, offset along x, ΔG_H, its standard error
        ("DimeNet++, best site (±1σ)", "o", color, -0.12, "delta_g_h_ev", "delta_g_h_std_ev"),
        ("potential, H relaxed", "x", "0.25", 0.12, "delta_g_h_potential_ev", None),
        ("potential, corrected from DFT (±1σ)", "D", CORRECTED_COLOR, 0.12, "delta_g_h_corrected_ev", "delta_g_h_corrected_std_ev"),
        ("DFT", "P", DFT_COLOR, 0.0, "delta_g_h_dft_ev", None),
    )
    x = np.arange(len(rows))
    axis.axhspan(-window, window, color="0.85", zorder=0)
    axis.axhline(0, color="0.4", lw=0.8)
    drawn = []
    for label, marker, shade, offset, name, error_name in judges:
        values = np.array([getattr(r, name) for r in rows], dtype=float)
        errors = np.array([getattr(r, error_name) if error_name else 0.0 for r in rows], dtype=float)
        if np.isfinite(values).any():
            drawn.append((label, marker, shade, offset, values, np.nan_to_num(errors), error_name is not None))
    reach = np.concatenate([np.zeros(1), *(v + sign * e for *_, v, e, _ in drawn for sign in (-1, 1))])
    low, high = padded_limits(reach, -0.6, 0.6, MAX_DELTA_G)
    for label, marker, shade, offset, values, errors, has_errors in drawn:
        style = {"fmt": marker, "ms": 4.5, "color": shade, "mfc": "white" if marker == "D" else shade, "label": label}
        axis.errorbar(x + offset, values, errors if has_errors else None, capsize=1.5, lw=0.9, **style)
        mark_off_scale(axis, x + offset, values, low, high, shade)
    fontsize = 8 if len(rows) <= 40 else 6 if len(rows) <= 70 else 4.5
    axis.set_xticks(x, [subscripts(r.reduced_formula or r.formula) for r in rows], rotation=90, fontsize=fontsize)
    axis.set_xlim(-0.8, max(len(rows), 1) - 0.2)
    axis.set_ylim(low, high)
    axis.set_ylabel(f"{DELTA_G} (eV)", parse_math=True)
    if drawn:
        # Below the formulas, where it covers no value.
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=8)
    else:
        axis.text(0.5, 0.5, "no candidate has a ΔG_H", transform=axis.transAxes, ha="center")


def _volcano(
    axis: Any,
    rows: Sequence[CandidateResult],
    window: float,
    color: str,
    known: Sequence[Mapping[str, Any]],
    surfaces: Sequence[Mapping[str, Any]],
) -> None:
    """Draw the candidates on the volcano, each by its best judge, and well-known materials."""
    values, errors = (np.array([getattr(r, name) for r in rows], dtype=float) for name in ("delta_g_ev", "delta_g_std_ev"))
    others = np.array([volcano.best_value(row) for row in (*known, *surfaces)])
    low, high = padded_limits(np.concatenate([values, others, np.zeros(1)]), -0.8, 0.8, MAX_DELTA_G)
    volcano.set_up(axis, low, high, window)
    source = np.array([row.delta_g_source for row in rows], dtype=str)
    moving = np.array([h_at_rest(row) is False for row in rows], dtype=bool)
    for judge, marker, shade in (
        (BY_DIMENET, "o", color),
        (BY_CORRECTED_POTENTIAL, "D", CORRECTED_COLOR),
        (BY_DFT, "P", DFT_COLOR),
    ):
        chosen = (source == judge) & ~moving
        volcano.mark_candidates(axis, values[chosen], errors[chosen], marker, shade)
        list_off_scale(axis, values[chosen], low, high, shade)
    crossed = volcano.mark_moving(axis, values[moving])
    volcano.mark_known(axis, known, max(-low, high), surfaces)
    axis.set_xlabel(f"{DELTA_G} by the best judge (eV)", parse_math=True)
    axis.set_ylabel(r"$\log_{10}\, i_0\,/\,i_0(\Delta G_\mathrm{H} = 0)$", parse_math=True)
    below = int((volcano.height(values) <= volcano.FLOOR).sum())
    crosses = f"; crosses: H not at rest ({crossed})" if crossed else ""
    stars = "\nstars: known sheets, by DFT where it has them; open: metal surfaces" if len(others) else ""
    axis.set_title(
        f"HER volcano, 298 K (Nørskov 2005): n = {len(rows)}, each by its best judge, ±1σ\n"
        f"on the lower edge: below $10^{{{volcano.FLOOR:g}}}$ ({below} of {len(rows)}){crosses}{stars}",
        parse_math=True,
        fontsize=9,
    )


def padded_limits(values: np.ndarray, low: float, high: float, largest: float) -> tuple[float, float]:
    """Return axis limits that hold [low, high] and every finite value with a margin of 5 %, but end at ±largest."""
    finite = values[np.isfinite(values)]
    low, high = float(min(low, *finite)) if len(finite) else low, float(max(high, *finite)) if len(finite) else high
    margin = 0.05 * (high - low)
    return max(low - margin, -largest), min(high + margin, largest)


def mark_off_scale(axis: Any, x: np.ndarray, values: np.ndarray, low: float, high: float, color: str) -> int:
    """Draw an arrow at the lower or upper edge, with the number, for every value along y outside [low, high].

    Where more than MOST_ARROWS are beyond an edge, one arrow says how many.

    Args:
        x, values: (N,) coordinates along x and y.

    Returns:
        The number of values outside.
    """
    outside = [(position, value) for position, value in zip(x, values, strict=True) if value < low or value > high]
    for up in (False, True):
        beyond = [(position, f"{value:.1f}") for position, value in outside if (value > high) == up]
        if len(beyond) > MOST_ARROWS:
            beyond = [(beyond[len(beyond) // 2][0], f"{len(beyond)} values")]
        for position, text in beyond:
            _off_scale_arrow(axis, text, (position, high if up else low), (0, -16 if up else 16), color, rotation=90,
                             ha="center", va="top" if up else "bottom")  # fmt: skip
    return len(outside)


def list_off_scale(axis: Any, values: np.ndarray, low: float, high: float, color: str) -> int:
    """Draw an arrow at the left or right edge, with the number, for every value along x outside [low, high].

    Where more than MOST_ARROWS are beyond an edge, one arrow says how many.

    Args:
        values: (N,) coordinates along x.

    Returns:
        The number of values outside; several arrows at one edge stand one above the other.
    """
    outside = [value for value in values if value < low or value > high]
    for right in (False, True):
        beyond = [f"{value:.1f}" for value in outside if (value > high) == right]
        for text in beyond if len(beyond) <= MOST_ARROWS else [f"{len(beyond)} values"]:
            # On the volcano such a point lies below the axis too, so the height of its arrow means nothing and is free to choose.
            height = 0.4 + 0.05 * sum(text.xy[0] == (high if right else low) for text in axis.texts)
            _off_scale_arrow(axis, text, (high if right else low, height), (-20 if right else 20, 0), color,
                             xycoords=axis.get_xaxis_transform(), ha="right" if right else "left", va="center")  # fmt: skip
    return len(outside)


def _off_scale_arrow(axis: Any, text: str, tip: tuple[float, float], offset: tuple[float, float], color: str, **style: Any) -> None:
    """Draw an arrow to ``tip`` with a text, on white, at its other end; ``offset``: (x, y) of the text from the tip in points."""
    arrow = {"arrowstyle": "-|>", "color": color, "lw": 1, "shrinkA": 0, "shrinkB": 0}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axis.annotate(
        text, tip, offset, textcoords="offset points", fontsize=7, color=color, arrowprops=arrow, bbox=box, zorder=5, **style
    )


def stability_curve(evaluations: Sequence[Evaluation], settings: EvaluationConfig, path: str | os.PathLike) -> None:
    """Draw the share of the candidates whose E_above_hull lies below a threshold, and E_above_hull of every candidate, sorted.

    Both are drawn at MOST_POINTS at most, evenly along the order.
    Shares are of all candidates asked for, those without an E_above_hull included.
    """
    limit = settings.hit_e_hull_ev
    sets = []
    for evaluation in evaluations:
        hull = np.sort([r.e_above_hull_ev for r in evaluation.rows_2d if not math.isnan(r.e_above_hull_ev)])
        if len(hull):
            sets.append((evaluation.label, hull, len(evaluation.rows_2d)))
    with figure(path, ncols=2, figsize=(10, 4.2)) as (_, (left, right)):
        low, high = padded_limits(np.concatenate([np.zeros(1), *(hull for _, hull, _ in sets)]), -0.3, 0.3, MAX_E_HULL)
        for value, style in ((0.0, "-"), (limit, ":")):
            left.axvline(value, color="0.3", lw=0.9, ls=style)
            right.axhline(value, color="0.3", lw=0.9, ls=style)
        for label, hull, n in sets:
            color = set_color(label)
            name = f"{label} (n = {len(hull)}/{n})"
            order = _thinned(len(hull)) + 1
            hull = hull[order - 1]
            # The curve begins at zero and ends below one where candidates have no E_above_hull.
            share = np.concatenate([[0], order, order[-1:]]) / n
            thresholds = np.concatenate([[min(low, hull[0])], hull, [max(high, hull[-1])]])
            left.step(thresholds, share, where="post", color=color, lw=1.6, ls=SET_LINES.get(label, ":"), label=name)
            right.plot(order, hull, SET_MARKERS.get(label, "D"), ms=4, color=color, label=name)
            mark_off_scale(right, order, hull, low, high, color)
        left.set_xlim(low, high)
        left.set_ylim(0, 1.02)
        left.set_xlabel(f"{E_HULL} threshold (eV/atom)", parse_math=True)
        left.set_ylabel("share of the candidates")
        left.set_title(f"Share below a threshold; lines: 0 and {limit:g} eV/atom")
        right.set_ylim(low, high)
        right.set_xlabel("candidate, sorted")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set_ylabel(f"{E_HULL} (eV/atom)", parse_math=True)
        right.set_title("Every candidate")
        if sets:
            left.legend(loc="lower right")
        else:
            left.text(0.5, 0.5, "no candidate has an E_above_hull", transform=left.transAxes, ha="center")


def _thinned(count: int) -> np.ndarray:
    """Return at most MOST_POINTS of the indices of a sorted curve, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))


def funnel(evaluation: Evaluation, settings: EvaluationConfig, path: str | os.PathLike) -> dict[str, int]:
    """Draw how many candidates are left after each condition, and return ``funnel_counts``."""
    counts = funnel_counts(evaluation, settings)
    with figure(path, figsize=(7.4, 3.8)) as (_, axis):
        names, values = list(counts), list(counts.values())
        total = max(values[0], 1)
        axis.barh(names, total, color="0.93")
        axis.barh(names, values, color=set_color(evaluation.label))
        axis.invert_yaxis()
        axis.grid(visible=False)
        for index, value in enumerate(values):
            lost = f"  −{values[index - 1] - value}" if index and values[index - 1] > value else ""
            axis.text(total * 1.015, index, f"{value} ({value / total:.0%}){lost}", va="center")
        axis.set_xlim(0, total * 1.22)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= total])
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("candidates that pass this condition and all above")
        axis.set_title(f"{evaluation.label}: from CIF to hit, n = {values[0]}")
    return counts


def funnel_counts(evaluation: Evaluation, settings: EvaluationConfig) -> dict[str, int]:
    """Return condition -> number of candidates that pass it and all conditions before it.

    "two-dimensional" is part of "valid" and stands before it, so that the counts tell who fails by dimensionality alone.
    """
    left = list(evaluation.rows)
    # A step stands only where its judge was asked about some candidate.
    further = (
        (lambda r: r.dynamically_stable is not None, "dynamically stable", lambda r: r.dynamically_stable is True),
        (lambda r: r.water, "not dissolved by water", lambda r: r.water not in ("", DISSOLVES)),
        (lambda r: r.conductive is not None, "conducts", lambda r: r.conductive is True),
    )
    counts = {"CIFs": len(left)}
    for name, passes in (
        ("readable", lambda r: bool(r.formula)),
        ("two-dimensional", lambda r: r.is_sheet),
        ("valid", lambda r: r.valid is True),
        ("sheet when relaxed", lambda r: r.sheet_relaxed is True),
        ("unique", lambda r: r.unique is True),
        ("novel", lambda r: r.novel is True),
        (f"metastable: E_hull ≤ {settings.hit_e_hull_ev:g} eV/atom", lambda r: r.e_above_hull_ev <= settings.hit_e_hull_ev),
        *(step for asked, *step in further if any(asked(row) for row in left)),
        (f"hit: |ΔG_H| ≤ {settings.hit_delta_g_ev:g} eV", lambda r: r.hit is True),
    ):
        left = [row for row in left if passes(row)]
        counts[name] = len(left)
    return counts


LEGEND_WIDTH = 66  # characters


def truth_parity(truth: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draw predicted against DFT ΔE_H: DimeNet++, the potential as it is and corrected, and the blind points.

    Args:
        truth: what ``dft_benchmark`` returns.
        path: the PNG; the PDF goes beside it.
    """
    rows = truth["rows"]
    own, corrected = truth["potential"], truth.get("potential_corrected") or {}
    judges = (
        ("delta_e_dimenet_ev", "o", SET_COLORS["ours"], "DimeNet++ (±1σ)", truth),
        ("delta_e_potential_ev", "x", "0.35", own["name"], own),
        ("delta_e_potential_corrected_ev", "D", CORRECTED_COLOR, f"{corrected.get('name')}, corrected", corrected),
    )
    with figure(path, figsize=(6.4, 7.8)) as (_, axis):
        dft = np.array([as_float(r["delta_e_dft_ev"]) for r in rows])
        everything = [dft]
        for key, marker, color, name, score in judges:
            values = np.array([as_float(r.get(key)) for r in rows])
            if not np.isfinite(values).any():
                continue
            everything.append(values)
            mae, rank_correlation = as_float(score["mae_ev"]), as_float(score["spearman"])
            text = f"{name}: MAE {mae:.2f} eV, Spearman {rank_correlation:.2f}, n = {score['n']}"
            text = textwrap.fill(text, LEGEND_WIDTH)
            axis.plot(dft, values, marker, color=color, mfc="none" if marker == "D" else color, ms=3.5, label=text)
            if marker == "o":
                errors = np.nan_to_num([as_float(r["std_ev"]) for r in rows])
                axis.errorbar(dft, values, errors, fmt="none", ecolor=color, elinewidth=0.5, alpha=0.3)
                everything += [values - errors, values + errors]
        if (blind := truth.get("blind")) and blind["potential_corrected"]["n"]:
            points = [
                np.array([as_float(r[key]) for r in blind["rows"]]) for key in ("delta_e_dft_ev", "delta_e_potential_corrected_ev")
            ]
            everything += points
            score = blind["potential_corrected"]
            text = (
                f"the same on sheets of no fit: MAE {as_float(score['mae_ev']):.2f} eV, Spearman {as_float(score['spearman']):.2f}"
            )
            axis.plot(*points, "*", color="#b2182b", ms=9, label=f"{text}, n = {score['n']}")
        low, high = padded_limits(np.concatenate(everything), 0.0, 0.0, math.inf)
        axis.plot([low, high], [low, high], color="0.4", lw=0.8)
        axis.set_xlim(low, high)
        axis.set_ylim(low, high)
        axis.set_aspect("equal")
        axis.set_xlabel(f"{DELTA_E} by DFT (eV)", parse_math=True)
        axis.set_ylabel(f"{DELTA_E} predicted (eV)", parse_math=True)
        axis.set_title(f"H on sheets by DFT and by the judges, n = {len(rows)}")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), fontsize=8)


# Metrics that have a panel, in this order; ``metrics.METRICS`` has their titles.
COMPARISON_PANELS = (
    "hit_rate",
    "expected_hit_rate",
    "mae_delta_g_ev",
    "score_stab",
    "rate_synth",
    "rate_metastable_sun",
    "rate_valid",
    "score_composite",
)


SELECTION = {"rate": "share of all", "mean": "mean of those with a value", "median": "median of those with a value"}


def comparison(sets: Mapping[str, Mapping[str, Any] | None], path: str | os.PathLike, note: str = "") -> None:
    """Draw the sets side by side with 95 % intervals, one panel for each metric.

    A metric for which no set has a single verdict gets no panel.

    Args:
        sets: label -> metrics as dictionaries, None where a set was not run.
        path: the PNG; the PDF goes beside it.
        note: a line below the title, such as which set is not drawn.
    """
    shown = [name for name in COMPARISON_PANELS if any(_has_verdict(found, name) for found in sets.values())]
    shown = shown or list(COMPARISON_PANELS)
    columns = math.ceil(len(shown) / 2)
    with figure(path, nrows=2, ncols=columns, figsize=(3.2 * columns, 5.8), squeeze=False) as (fig, axes):
        for axis in axes.flat[len(shown) :]:
            axis.set_axis_off()
        for axis, name in zip(axes.flat, shown, strict=False):
            _comparison_panel(axis, name, sets)
        title = "Same judges for every set; bars: 95 % intervals; numbers: value, candidates with a value / asked for; ↑ ↓: better"
        fig.suptitle(f"{title}\n{note}" if note else title, fontsize=9)


def _has_verdict(found: Mapping[str, Any] | None, name: str) -> bool:
    return bool(found and name in found and found[name]["n_ok"] and found[name]["value"] is not None)


def _comparison_panel(axis: Any, name: str, sets: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Draw one metric of every set, with the candidates over which it is taken."""
    highest = 0.0
    for position, (label, found) in enumerate(sets.items()):
        across = {"ha": "center", "transform": axis.get_xaxis_transform(), "fontsize": 7}
        if not _has_verdict(found, name):
            axis.text(position, 0.02, "not run" if found is None else "no value", rotation=90, va="bottom", **across)
            continue
        metric = found[name]
        value = float(metric["value"])
        low, high = as_float(metric["low"]), as_float(metric["high"])
        error = [[max(0.0, value - low)], [max(0.0, high - value)]] if not math.isnan(low) else None
        axis.bar(position, value, 0.7, yerr=error, capsize=3, color=set_color(label), edgecolor="0.2", lw=0.5, error_kw={"lw": 1})
        highest = max(highest, value, value if math.isnan(high) else high)
        axis.text(position, 0.99, f"{value:.2f}\n{metric['n_ok']}/{metric['n']}", va="top", **across)
    metric = next((found[name] for found in sets.values() if found and name in found), {"better": 0, "unit": ""})
    unit = f" ({metric['unit']})" if metric["unit"] not in ("", "share") else ""
    axis.set_title(metrics.METRICS[name].title + unit + {1: "  ↑", -1: "  ↓"}.get(metric["better"], ""), fontsize=9)
    axis.set_ylabel(SELECTION[metrics.METRICS[name].kind], fontsize=8)
    axis.set_xticks(range(len(sets)), [label.replace(" ", "\n") for label in sets], fontsize=7.5)
    axis.set_xlim(-0.6, len(sets) - 0.4)
    axis.grid(axis="x", visible=False)
    axis.set_ylim(0, 1.25 * highest or 1.0)  # the numbers stand above the highest interval
