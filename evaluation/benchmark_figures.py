"""Draws the figures of ``scripts.benchmark_generator``: layer groups, and what guidance does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.plotting import figure


def draw_layer_groups(found: dict[str, Any], path: Path, most: int = 24) -> None:
    """Draw the shares of the layer groups among generated sheets and in the training set, for the commonest of both."""
    ours, known = ({int(k): v for k, v in found[name].items()} for name in ("layer_group_numbers", "training_layer_group_numbers"))
    share = {number: max(ours.get(number, 0) / max(sum(ours.values()), 1), known.get(number, 0) / max(sum(known.values()), 1))
             for number in {*ours, *known}}  # fmt: skip
    shown = sorted(sorted(share, key=lambda number: -share[number])[:most])
    with figure(path, figsize=(10, 4)) as (_, axis):
        for shift, (label, counts, color) in enumerate((("generated", ours, "0.2"), ("training set", known, "0.7"))):
            total = max(sum(counts.values()), 1)
            heights = [100 * counts.get(number, 0) / total for number in shown]
            axis.bar(np.arange(len(shown)) + 0.4 * (shift - 0.5), heights, 0.4, label=f"{label} ({total})", color=color)
        axis.set_xticks(range(len(shown)), [str(number) for number in shown])
        axis.set_xlabel("layer group (number)")
        axis.set_ylabel("share (%)")
        axis.grid(alpha=0.3, axis="y")
        axis.legend(fontsize=9)


def draw_guidance(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw hits, |ΔG_H|, E_above_hull, validity and diversity against the guidance scale, with 95 % intervals."""
    panels = (
        ("hit_rate_dimenet", "hits, other DimeNet++"),
        ("hit_rate_potential", "hits, potential"),
        ("hit_rate_corrected", "hits, potential corrected from DFT"),
        ("mae_delta_g_ev", "mean |ΔG_H|, other DimeNet++ (eV)"),
        ("mae_delta_g_corrected_ev", "mean |ΔG_H|, corrected potential (eV)"),
        ("median_e_above_hull_ev", "median E_above_hull (eV/atom)"),
        ("sampled_valid", "valid as sampled"),
        ("rate_unique", "unique"),
    )
    if not any(row["aggregates"]["mae_delta_g_corrected_ev"]["n_ok"] for row in rows):  # the potential relaxed no H
        panels = [(name, title) for name, title in panels if "potential" not in name and "corrected" not in name]
    series = {"gradient": ("guidance_scale", "o", "-"), "classifier-free": ("cfg_scale", "s", "--")}
    none = [row for row in rows if row["guidance_scale"] == 0 and row["cfg_scale"] == 0]
    both = [row for row in rows if row["series"] == "both"]
    with figure(path, nrows=2, ncols=4, figsize=(15, 7)) as (_, axes):
        for axis, (name, title) in zip(axes.flat, panels, strict=False):
            for label, (scale, marker, line) in series.items():
                points = none + [row for row in rows if row["series"] == label and row not in none]
                symbol = "η" if label == "gradient" else "w"
                if points:
                    _errorbars(axis, [row[scale] for row in points], points, name, marker, line, f"{label}, {symbol}")
            if both:
                text = f"both, η {both[0]['guidance_scale']:g}, w {both[0]['cfg_scale']:g}"
                _errorbars(axis, [both[0]["guidance_scale"]], both, name, "D", "", text)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("guidance scale (η or w)")
            axis.grid(alpha=0.3)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        axes.flat[0].legend(fontsize=8, loc="upper right")
        axes.flat[0].set_ylim(top=1.6 * axes.flat[0].get_ylim()[1])  # room for the legend


def _errorbars(axis: Any, scales: list[float], rows: Sequence[dict], name: str, marker: str, line: str, label: str) -> None:
    values = np.array([[row["aggregates"][name][key] for key in ("value", "low", "high")] for row in rows], dtype=float)
    errors = np.abs(values[:, 1:] - values[:, :1]).T
    axis.errorbar(scales, values[:, 0], errors, marker=marker, linestyle=line, capsize=3, label=label)
