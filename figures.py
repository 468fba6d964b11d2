"""Figures of an evaluation: one style, units on every axis, n in every title, readable in grey."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

import config
import metrics
from evaluators import Evaluation
from geo_utils import BOND_SCALE
from judging import CandidateResult

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "text.parse_math": False,
}
# Differ in lightness as well as in hue, so that they stay apart in grey.
SET_COLORS = {"ours": "#08519c", "unguided": "#74a9cf", "random decoration": "#fdae61", "external": "#b2182b"}
SET_MARKERS = {"ours": "o", "unguided": "s", "random decoration": "^", "external": "D"}


@contextmanager
def figure(path: str | os.PathLike, **arguments: Any) -> Iterator[tuple[Any, Any]]:
    """A figure in the common style, written atomically as PNG when the block ends."""
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(layout="constrained", **arguments)
        try:
            yield fig, axes
            with config.atomic_path(path) as temporary:
                fig.savefig(temporary, format="png")
        finally:
            plt.close(fig)


def set_color(label: str) -> str:
    """The colour of a set in every figure."""
    return SET_COLORS.get(label, SET_COLORS["external"])


def rank(rows: Sequence[CandidateResult], top_k: int) -> list[CandidateResult]:
    """The ``top_k`` best two-dimensional candidates: hits first, then valid ones, then by composite score, then by id."""
    scored = [row for row in rows if row.is_sheet and not math.isnan(row.score_composite)]
    scored.sort(key=lambda row: (row.hit is not True, row.valid is not True, -row.score_composite, row.id))
    return scored[:top_k]


def her_performance(evaluation: Evaluation, settings: config.EvaluationConfig, path: str | os.PathLike) -> None:
    """ΔG_H of every candidate, sorted, with its uncertainty and the potential's own value; and the candidates on the volcano."""
    rows = sorted((r for r in evaluation.rows_2d if not math.isnan(r.delta_g_h_ev)), key=lambda r: r.delta_g_h_ev)
    window = settings.hit_delta_g_ev
    with figure(path, ncols=2, figsize=(10, 4.2), width_ratios=(3, 2)) as (_, (left, right)):
        left.axhspan(-window, window, color="0.85", zorder=0)
        left.axhline(0, color="0.4", lw=0.8)
        x = np.arange(len(rows))
        values = np.array([r.delta_g_h_ev for r in rows])
        own = np.array([r.delta_g_h_potential_ev for r in rows])
        color = set_color(evaluation.label)
        errors = np.nan_to_num([r.delta_g_h_std_ev for r in rows])
        judge = "DimeNet++, best site (±1σ)"
        left.errorbar(x, values, errors, fmt="o", ms=5, color=color, capsize=2, lw=1, label=judge)
        left.plot(x, own, "x", ms=6, color="0.25", label="potential, H relaxed")
        left.set_xticks(x, [r.formula for r in rows], rotation=90, fontsize=6 if len(rows) > 40 else 7)
        left.set_xlim(-0.8, max(len(rows), 1) - 0.2)
        left.set_ylabel("ΔG_H (eV)")
        left.set_title(f"{evaluation.label}: ΔG_H, n = {len(rows)} of {len(evaluation.rows_2d)}; grey: |ΔG_H| ≤ {window:g} eV")
        left.legend(loc="best")
        _robust_limits(left, np.concatenate([values - errors, values + errors, own]), 0.6)

        limit = max(0.6, min(2.5, float(np.nanmax(np.abs(np.concatenate([values, own, [0.6]]))))))
        grid = np.linspace(-limit, limit, 401)
        right.axvspan(-window, window, color="0.85", zorder=0)
        right.plot(grid, metrics.log_exchange_current(grid), color="0.4", lw=1)
        right.plot(values, metrics.log_exchange_current(values), "o", ms=5, color=color, label="DimeNet++")
        right.plot(own, metrics.log_exchange_current(own), "x", ms=6, color="0.25", label="potential")
        right.set_xlim(-limit, limit)
        right.set_ylim(metrics.log_exchange_current(limit), 1)
        right.set_xlabel("ΔG_H (eV)")
        right.set_ylabel("log10 i0 / i0(ΔG_H = 0)")
        right.set_title("HER volcano, 298 K (Nørskov 2005)")
        right.legend(loc="lower center")
        if not rows:
            left.text(0.5, 0.5, "no candidate has a ΔG_H", transform=left.transAxes, ha="center")


def _robust_limits(axis: Any, values: np.ndarray, least: float) -> None:
    """Limits that keep 0 and the bulk of the values in view when a few are extreme."""
    finite = values[np.isfinite(values)]
    if len(finite):
        low, high = np.percentile(finite, [2, 98])
        axis.set_ylim(max(min(low, -least) * 1.15, -6), min(max(high, least) * 1.25, 6))


def stability_curve(evaluations: Sequence[Evaluation], settings: config.EvaluationConfig, path: str | os.PathLike) -> None:
    """Share of the candidates asked for whose E_above_hull lies below a threshold, and E_above_hull sorted."""
    limit = settings.hit_e_hull_ev
    with figure(path, ncols=2, figsize=(10, 4)) as (_, (left, right)):
        spread, lowest = [0.3], -0.3
        for evaluation in evaluations:
            rows = evaluation.rows_2d
            hull = np.sort([r.e_above_hull_ev for r in rows if not math.isnan(r.e_above_hull_ev)])
            if not len(hull):
                continue
            spread.append(float(np.percentile(hull, 90)))
            lowest = min(lowest, max(float(hull[0]) - 0.05, -1.0))
            color, marker = set_color(evaluation.label), SET_MARKERS.get(evaluation.label, "D")
            label = f"{evaluation.label} (n = {len(hull)}/{len(rows)})"
            left.step(hull, np.arange(1, len(hull) + 1) / len(rows), where="post", color=color, lw=1.6, label=label)
            right.plot(np.arange(1, len(hull) + 1), hull, marker, ms=3.5, color=color, label=label)
        top = min(max(spread) * 1.2, 3.0)
        for value, style in ((0.0, "-"), (limit, "--")):
            left.axvline(value, color="0.3", lw=0.9, ls=style)
            right.axhline(value, color="0.3", lw=0.9, ls=style)
        left.set_xlim(lowest, top)
        left.set_ylim(0, 1)
        left.set_xlabel("E_above_hull threshold (eV/atom)")
        left.set_ylabel("share of candidates asked for")
        left.set_title(f"Share below a threshold (lines: 0 and {limit:g} eV/atom)")
        right.set_ylim(lowest, top)
        right.set_xlabel("candidate, sorted")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set_ylabel("E_above_hull (eV/atom)")
        right.set_title("E_above_hull of each candidate")
        if left.get_legend_handles_labels()[0]:
            left.legend(loc="lower right")
        else:
            left.text(0.5, 0.5, "no candidate has an E_above_hull", transform=left.transAxes, ha="center")


def funnel(evaluation: Evaluation, settings: config.EvaluationConfig, path: str | os.PathLike) -> dict[str, int]:
    """Candidates left after each condition, every one counted among those that passed all before. Returns the counts."""
    counts = funnel_counts(evaluation, settings)
    with figure(path, figsize=(7, 3.6)) as (_, axis):
        names, values = list(counts), list(counts.values())
        axis.barh(names, values, color=set_color(evaluation.label))
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        total = max(values[0], 1)
        for index, value in enumerate(values):
            axis.text(value + total * 0.01, index, f"{value} ({value / total:.0%})", va="center")
        axis.set_xlim(0, total * 1.15)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("candidates")
        axis.set_title(f"{evaluation.label}: from CIF to hit, n = {values[0]}")
    return counts


def funnel_counts(evaluation: Evaluation, settings: config.EvaluationConfig) -> dict[str, int]:
    """generated -> read -> 2D -> valid -> relaxed sheet -> unique -> novel -> metastable -> hit."""
    left = list(evaluation.rows)
    counts = {"CIFs": len(left)}
    for name, passes in (
        ("readable", lambda r: bool(r.formula)),
        ("two-dimensional", lambda r: r.is_sheet),
        ("valid", lambda r: r.valid is True),
        ("sheet when relaxed", lambda r: r.sheet_relaxed is True),
        ("unique", lambda r: r.unique is True),
        ("novel", lambda r: r.novel is True),
        (f"E_hull ≤ {settings.hit_e_hull_ev:g} eV/atom", lambda r: r.e_above_hull_ev <= settings.hit_e_hull_ev),
        (f"|ΔG_H| ≤ {settings.hit_delta_g_ev:g} eV", lambda r: abs(r.delta_g_h_ev) <= settings.hit_delta_g_ev),
    ):
        left = [row for row in left if passes(row)]
        counts[name] = len(left)
    return counts


def truth_parity(truth: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Predicted against DFT ΔE_H for DimeNet++ and for the potential."""
    rows = truth["rows"]
    with figure(path, figsize=(5.4, 5)) as (_, axis):
        dft = np.array([_nan(r["delta_e_dft_ev"]) for r in rows])
        panels = (
            ("delta_e_dimenet_ev", "o", SET_COLORS["ours"], "DimeNet++", truth),
            ("delta_e_potential_ev", "x", "0.35", truth["potential"]["name"], truth["potential"]),
        )
        everything = [dft]
        for key, marker, color, name, score in panels:
            values = np.array([_nan(r[key]) for r in rows])
            if not np.isfinite(values).any():
                continue
            everything.append(values)
            text = f"{name}: MAE {_nan(score['mae_ev']):.2f} eV, Spearman {_nan(score['spearman']):.2f}, n = {score['n']}"
            axis.plot(dft, values, marker, color=color, ms=5, label=text)
            if marker == "o":
                errors = [_nan(r["std_ev"]) for r in rows]
                axis.errorbar(dft, values, errors, fmt="none", ecolor=color, elinewidth=0.8, capsize=2)
        finite = np.concatenate(everything)
        finite = finite[np.isfinite(finite)]
        low, high = (finite.min() - 0.3, finite.max() + 0.3) if len(finite) else (-1, 1)
        axis.plot([low, high], [low, high], color="0.4", lw=0.8)
        axis.set_xlim(low, high)
        axis.set_ylim(low, high)
        axis.set_aspect("equal")
        axis.set_xlabel("ΔE_H by DFT (eV)")
        axis.set_ylabel("ΔE_H predicted (eV)")
        axis.set_title(f"H on sheets, same geometries, n = {truth['n']}")
        axis.legend(loc="upper left", fontsize=7)


COMPARISON_PANELS = (
    ("hit_rate", "hit rate"),
    ("hit_rate_potential", "hit rate by the potential"),
    ("mae_delta_g_ev", "mean |ΔG_H| (eV)"),
    ("score_stab", "Score_stab"),
    ("rate_synth", "Rate_synth"),
    ("rate_metastable_sun", "metastable S.U.N."),
    ("rate_valid", "valid"),
    ("score_composite", "composite score"),
)


def comparison(sets: Mapping[str, Mapping[str, Any] | None], path: str | os.PathLike) -> None:
    """The sets side by side with 95 % intervals. sets: label -> metrics as dictionaries, None where a set was not run."""
    with figure(path, nrows=2, ncols=4, figsize=(11, 5)) as (fig, axes):
        for axis, (name, title) in zip(axes.flat, COMPARISON_PANELS, strict=True):
            for position, (label, found) in enumerate(sets.items()):
                metric = (found or {}).get(name)
                value = _nan(metric["value"]) if metric else math.nan
                if math.isnan(value):
                    axis.text(
                        position,
                        0.02,
                        "not run" if found is None else "no value",
                        rotation=90,
                        ha="center",
                        va="bottom",
                        color="0.4",
                        fontsize=7,
                        transform=axis.get_xaxis_transform(),
                    )
                    continue
                low, high = _nan(metric["low"]), _nan(metric["high"])
                error = [[max(0.0, value - low)], [max(0.0, high - value)]] if not math.isnan(low) else None
                axis.bar(
                    position, value, 0.7, yerr=error, capsize=3, color=set_color(label), edgecolor="0.2", lw=0.5, error_kw={"lw": 1}
                )
                axis.text(
                    position,
                    0.98,
                    f"{metric['n_ok']}/{metric['n']}",
                    ha="center",
                    va="top",
                    fontsize=6,
                    color="0.3",
                    transform=axis.get_xaxis_transform(),
                )
            better = next((f[name]["better"] for f in sets.values() if f and name in f), 0)
            axis.set_title(title + {1: "  (↑ better)", -1: "  (↓ better)"}.get(better, ""), fontsize=8)
            axis.set_xticks(range(len(sets)), [label.replace(" ", "\n") for label in sets], fontsize=7)
            axis.set_xlim(-0.6, len(sets) - 0.4)
            axis.grid(axis="x", visible=False)
            axis.margins(y=0.18)
            axis.set_ylim(bottom=0)
        fig.suptitle("Same judges for every set; bars: 95 % intervals; numbers: candidates with a verdict / asked for", fontsize=9)


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


# --------------------------------------------------------------------------------------------------------------- structures


def generated_structures(evaluation: Evaluation, settings: config.EvaluationConfig, path: str | os.PathLike) -> list[str]:
    """Top and side view of the best candidates as they are after relaxation. Returns their ids."""
    rows = rank(evaluation.rows, settings.top_k)
    columns = min(4, max(1, len(rows)))
    lines = max(1, math.ceil(len(rows) / columns))
    with figure(path, nrows=2 * lines, ncols=columns, figsize=(3.1 * columns, 4.6 * lines), squeeze=False,
                gridspec_kw={"height_ratios": [3, 1.25] * lines}) as (fig, axes):  # fmt: skip
        for axis in axes.flat:
            axis.set_axis_off()
        for index, row in enumerate(rows):
            top, side = axes[2 * (index // columns), index % columns], axes[2 * (index // columns) + 1, index % columns]
            atoms = evaluation.structures[row.id]
            draw_sheet(top, side, atoms)
            group = row.layer_group_relaxed or row.space_group_relaxed
            top.set_title(
                f"{row.id}\n{row.formula}  {group}\nΔG_H = {row.delta_g_h_ev:+.2f} ± {row.delta_g_h_std_ev:.2f} eV\n"
                f"E_hull = {row.e_above_hull_ev:+.2f} eV/atom" + ("   hit" if row.hit else ""),
                fontsize=8,
            )
        if not rows:
            axes[0, 0].text(0.5, 0.5, "no sheet could be scored", ha="center", transform=axes[0, 0].transAxes)
        fig.suptitle(f"{evaluation.label}: best {len(rows)} of {len(evaluation.rows_2d)}, relaxed; top and side view", fontsize=10)
    return [row.id for row in rows]


def draw_sheet(top: Any, side: Any, atoms: Atoms) -> None:
    """Draws a standardised sheet from above and from the side, with bonds, the cell outline and an element legend.

    The window shows at least 3 x 3 cells or 11 Å, whichever is larger (at most 24 Å).
    """
    cell = atoms.cell.array[:2, :2]
    width = float(np.clip(3 * max(np.linalg.norm(cell, axis=1)), 11.0, 24.0))
    reach = [math.ceil((0.75 * width + 2.5) * s) + 1 for s in np.linalg.norm(np.linalg.inv(cell), axis=0)]
    corner = -0.5 * (np.array([width, width]) - cell.sum(0))
    wide = atoms.repeat((2 * reach[0] + 1, 2 * reach[1] + 1, 1))
    wide.positions[:, :2] -= reach[0] * cell[0] + reach[1] * cell[1]
    wide.positions[:, 2] -= atoms.positions[:, 2].mean()
    wide.pbc = False
    margin = 2.5
    inside = ((wide.positions[:, :2] > corner - margin) & (wide.positions[:, :2] < corner + width + margin)).all(1)
    view = wide[inside]
    first, second = np.triu_indices(len(view), k=1)
    lengths = np.linalg.norm(view.positions[first] - view.positions[second], axis=1)
    radii = covalent_radii[view.numbers]
    bonded = lengths < BOND_SCALE * (radii[first] + radii[second])
    bonds = list(zip(first[bonded].tolist(), second[bonded].tolist(), strict=True))
    _draw(top, view, bonds, axes=(0, 1), depth=view.positions[:, 2])
    outline = np.array([[0, 0], cell[0], cell[0] + cell[1], cell[1], [0, 0]])
    top.plot(outline[:, 0], outline[:, 1], color="black", lw=1.2, ls="--", zorder=3)
    top.set_xlim(corner[0], corner[0] + width)
    top.set_ylim(corner[1], corner[1] + width)
    top.set_aspect("equal")
    # From the side only one slice is drawn: rows of atoms behind each other hide the bonds.
    slice_depth = max(np.linalg.norm(cell[1]), 3.0)
    near = np.flatnonzero((view.positions[:, 1] > -0.3) & (view.positions[:, 1] < slice_depth + 0.3))
    keep = {int(old): new for new, old in enumerate(near)}
    slab = view[near]
    _draw(side, slab, [(keep[a], keep[b]) for a, b in bonds if a in keep and b in keep], axes=(0, 2), depth=-slab.positions[:, 1])
    height = max(float(np.ptp(atoms.positions[:, 2])) + 2.5, width * 0.4)
    middle = 0.5 * (slab.positions[:, 2].max() + slab.positions[:, 2].min())
    side.set_xlim(corner[0], corner[0] + width)
    side.set_ylim(middle - height / 2, middle + height / 2)
    side.set_aspect("equal")
    handles = [
        Line2D([], [], marker="o", ls="", ms=6, markerfacecolor=jmol_colors[z], markeredgecolor="black", label=symbol)
        for symbol, z in sorted({(atom.symbol, atom.number) for atom in atoms})
    ]
    side.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=len(handles), fontsize=7, handletextpad=0.1)


def _draw(axis: Any, atoms: Atoms, bonds: Sequence[tuple[int, int]], axes: tuple[int, int], depth: np.ndarray) -> None:
    """Atoms and bonds projected on two axes; what lies higher in ``depth`` covers what lies lower."""
    flat = atoms.positions[:, list(axes)]
    if bonds:
        lines = flat[np.array(bonds)]
        axis.add_collection(LineCollection(lines, colors="0.25", linewidths=2.6, zorder=1))
        axis.add_collection(LineCollection(lines, colors="0.75", linewidths=1.4, zorder=1.5))
    order = np.argsort(depth, kind="stable")
    diameters = 0.84 * covalent_radii[atoms.numbers[order]] + 0.24
    circles = EllipseCollection(
        diameters,
        diameters,
        np.zeros(len(order)),
        units="xy",
        offsets=flat[order],
        offset_transform=axis.transData,
        facecolors=jmol_colors[atoms.numbers[order]],
        edgecolors="black",
        linewidths=0.6,
        zorder=2,
    )
    axis.add_collection(circles)
