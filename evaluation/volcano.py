"""Draws the HER volcano: ΔG_H of the candidates with its error, surfaces of metals and well-known sheets, each with its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation import scores
from pipeline.files import as_float

FLOOR = -12.0  # log10 of the smallest exchange current on the axis, in units of the largest
TOP = 1.0
KNOWN_COLOR = "#6a51a3"
NAME_HEIGHT = 0.5  # of a line of text, in decades
NAME_WIDTH = 0.022  # of an upright name, as a share of the axis
UPRIGHT_LENGTH = 3.4  # of the longest upright name above the floor, in decades


def height(delta_g: np.ndarray) -> np.ndarray:
    """Return the height on the volcano of ΔG_H (eV): log10 of i0 / i0(0), at least FLOOR."""
    return np.maximum(scores.log_exchange_current(delta_g), FLOOR)


def set_up(axis: Any, low: float, high: float, window: float) -> None:
    """Draw the volcano between two ΔG_H and the window of a hit (eV), and set the axes."""
    grid = np.linspace(low, high, 801)
    axis.axvspan(-window, window, color="0.85", zorder=0)
    axis.plot(grid, scores.log_exchange_current(grid), color="0.4", lw=1)
    axis.set_xlim(low, high)
    axis.set_ylim(FLOOR, TOP)


def mark_candidates(axis: Any, values: np.ndarray, errors: np.ndarray, marker: str, color: str) -> None:
    """Draw the candidates within the axis along ΔG_H, with ±1σ; one whose exchange current is below it is an arrowhead on its edge.

    Args:
        axis: of the volcano.
        values, errors: (N,) ΔG_H and its standard error, eV; NaN where there is none.
        marker, color: of the points.
    """
    low, high = axis.get_xlim()
    inside = (values >= low) & (values <= high)
    values, errors = values[inside], np.nan_to_num(errors[inside])
    heights = height(values)
    below = heights <= FLOOR
    axis.errorbar(
        values[~below],
        heights[~below],
        xerr=errors[~below],
        fmt="none",
        ecolor=color,
        elinewidth=0.8,
        capsize=1.5,
        alpha=0.45,
        zorder=2,
    )
    style = {"ls": "", "color": color, "mfc": "white" if marker == "D" else color, "zorder": 3}
    axis.plot(values[~below], heights[~below], marker=marker, ms=4.5, **style)
    (edge,) = axis.plot(values[below], heights[below], marker="v", ms=6, clip_on=False, **style)
    edge.set_in_layout(False)


def mark_moving(axis: Any, values: np.ndarray) -> int:
    """Cross the candidates whose H leaves, has not come to rest or changes the sheet: ΔG_H (eV) is no property of these.

    Returns:
        The number of crosses, those within the axis.
    """
    low, high = axis.get_xlim()
    inside = values[(values >= low) & (values <= high)]
    if len(inside):
        axis.plot(inside, height(inside), ls="", marker="x", ms=4.5, color="0.5", zorder=2)
    return len(inside)


def mark_known(axis: Any, known: Sequence[Mapping[str, Any]], limit: float, surfaces: Sequence[Mapping[str, Any]] = ()) -> int:
    """Mark and name well-known materials on the volcano, those with |ΔG_H| within the axis; return how many.

    No name stands on another. Where there is no room for all, those of the surfaces and of the first sheets of the table are
    written; the marks stay.

    Args:
        axis: of the volcano.
        known: judged sheets as ``known_sheets.known_rows`` gives them, full stars: at DFT's value, or at the judge's, with ±1σ
            where it stands on the curve.
        limit: eV, largest |ΔG_H| of the axis.
        surfaces: ``name`` and ``delta_g_ev`` of metal surfaces in the literature, open stars.
    """
    sheets = sorted(known, key=lambda row: row["place"])
    marks = [(row, face) for rows, face in ((surfaces, "white"), (sheets, KNOWN_COLOR)) for row in rows]
    shown = [(row, face, value) for row, face in marks if abs(value := best_value(row)) < limit]
    named = []
    for row, face, value in shown:
        y = float(height(np.array([value]))[0])
        (star,) = axis.plot([value], [y], marker="*", ms=8, color=face, mec=KNOWN_COLOR, mew=0.7, ls="", zorder=5, clip_on=False)
        star.set_in_layout(False)
        if (error := row.get("delta_g_std_ev")) and y > FLOOR and value == row["delta_g_ev"]:
            axis.errorbar([value], [y], xerr=[[error], [error]], fmt="none", ecolor=KNOWN_COLOR, elinewidth=0.8, alpha=0.45)
        named.append((row["name"], value, y))
    for side in (-1, 1):
        on_side = [mark for mark in named if (mark[1] > 0) == (side > 0)]
        _name(axis, [mark for mark in on_side if mark[2] <= FLOOR], _name_upright)
        _name(axis, [mark for mark in on_side if mark[2] > FLOOR], _name_beside)
    return len(shown)


def best_value(row: Mapping[str, Any]) -> float:
    """Return ΔG_H of a known material (eV), by DFT where it has a value."""
    dft, judge = as_float(row.get("delta_g_dft_ev")), as_float(row["delta_g_ev"])
    return judge if math.isnan(dft) else dft


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return places in [low, high] that are at least ``gap`` apart, close to the wanted ones and in their order.

    Raises:
        ValueError: there is no room for so many.
    """
    if (len(wanted) - 1) * gap > high - low + 1e-9:
        raise ValueError(f"no room for {len(wanted)} names")
    order = np.argsort(wanted, kind="stable")
    places = np.array(wanted, dtype=float)[order]
    # Each of the two has the gaps, and so has their mean, which leaves a crowd around its own middle.
    places = 0.5 * (_pushed(places, gap) - _pushed(-places[::-1], gap)[::-1])
    steps = gap * np.arange(len(places))
    places = np.maximum(_pushed(np.maximum(places, low), gap), low + steps)
    places = np.minimum(-_pushed(-np.minimum(places, high)[::-1], gap)[::-1], high - steps[::-1])
    result = np.empty(len(places))
    result[order] = places
    return result.tolist()


def _pushed(places: np.ndarray, gap: float) -> np.ndarray:
    """Return sorted places, each moved up as far as it has to be to stand ``gap`` above the one before."""
    steps = gap * np.arange(len(places))
    return np.maximum.accumulate(places - steps) + steps


def _name(axis: Any, marks: list[tuple[str, float, float]], write: Any) -> None:
    """Write as many names as there is room for, the first ones."""
    while marks:
        try:
            write(axis, marks)
            return
        except ValueError:
            marks = marks[:-1]


def _name_upright(axis: Any, marks: Sequence[tuple[str, float, float]]) -> None:
    """Write the names of materials below the axis, all on one side, upright above their marks and beyond the flank."""
    low, high = axis.get_xlim()
    gap = NAME_WIDTH * (high - low)
    room = (flank(FLOOR) + gap, high - gap / 2) if marks[0][1] > 0 else (low + gap / 2, -flank(FLOOR) - gap)
    for (name, value, y), x in zip(marks, spread([v for _, v, _ in marks], gap, *room), strict=True):
        _annotate(axis, name, (value, y), (x, FLOOR + 0.7), rotation=90, ha="center", va="bottom")


def _name_beside(axis: Any, marks: Sequence[tuple[str, float, float]]) -> None:
    """Write the names of materials on one flank beside it, one below the other."""
    side = 1 if marks[0][1] > 0 else -1
    places = spread([y for *_, y in marks], NAME_HEIGHT, FLOOR + UPRIGHT_LENGTH, TOP - NAME_HEIGHT / 2)
    for (name, value, y), place in zip(marks, places, strict=True):
        # The flank at the height of the name may be farther out than the mark.
        x = side * (max(abs(value), flank(place)) + 0.12)
        _annotate(axis, name, (value, y), (x, place), ha="left" if side > 0 else "right", va="center")


def flank(log_current: float) -> float:
    """Return |ΔG_H| (eV) at a height on the volcano; 0 above its top."""
    grid = np.linspace(0.0, 1.0, 2001)
    return float(np.interp(-log_current, -scores.log_exchange_current(grid), grid))


def _annotate(axis: Any, name: str, mark: tuple[float, float], place: tuple[float, float], **style: Any) -> None:
    line = {"arrowstyle": "-", "color": KNOWN_COLOR, "lw": 0.5, "shrinkA": 1, "shrinkB": 3, "alpha": 0.7}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.75}  # lifts a name off the errors behind it
    text = axis.annotate(name, mark, place, fontsize=7, color=KNOWN_COLOR, arrowprops=line, bbox=box, zorder=6, **style)
    text.set_in_layout(False)
