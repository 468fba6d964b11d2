"""Draws the best candidates from above and from the side."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data.colors import jmol_colors
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.lines import Line2D

from evaluation.candidate import CandidateResult
from evaluation.decisions import BY_DIMENET, rank
from evaluation.evaluate import Evaluation
from evaluation.figures import subscripts
from evaluation.structure_viewer import ball_radii, drawn_bonds
from pipeline.plotting import figure
from pipeline.settings import EvaluationConfig


def generated_structures(evaluation: Evaluation, settings: EvaluationConfig, path: str | os.PathLike) -> list[str]:
    """Draw top and side view of the ``settings.top_k`` best candidates after relaxation, and return their ids."""
    rows = rank(evaluation.rows, settings.top_k)
    shown = []
    for row in rows:
        group = row.layer_group_relaxed or row.space_group_relaxed
        chance = "" if math.isnan(row.p_hit) else f", p_hit = {row.p_hit:.2f}"
        title = (
            f"{row.id}: {subscripts(row.reduced_formula or row.formula)}, {group}\n{delta_g_text(row)}\n"
            f"E_hull = {row.e_above_hull_ev:+.2f} eV/atom{chance}{'   hit' if row.hit else ''}"
        )
        shown.append((title, evaluation.structures[row.id]))
    heading = (
        f"{evaluation.label}: best {len(rows)} of {len(evaluation.rows_2d)} after relaxation",
        "from above and from the side",
        "dashed: primitive cell",
    )
    draw_grid(shown, heading, "no sheet could be scored", path)
    return [row.id for row in rows]


def draw_grid(shown: Sequence[tuple[str, Atoms]], heading: Sequence[str], if_none: str, path: str | os.PathLike) -> None:
    """Draw sheets from above and from the side, in lines of four.

    Args:
        shown: title and sheet of each.
        heading: its parts, on one line where there is room.
        if_none: what is written where there is no sheet.
        path: of the PNG.
    """
    columns = min(4, max(1, len(shown)))
    lines = max(1, math.ceil(len(shown) / columns))
    with figure(path, nrows=2 * lines, ncols=columns, figsize=(max(3.1 * columns, 4.6), 4.9 * lines), squeeze=False,
                gridspec_kw={"height_ratios": [3, 1.5] * lines}) as (fig, axes):  # fmt: skip
        for axis in axes.flat:
            axis.set_axis_off()
        for index, (title, sheet) in enumerate(shown):
            top, side = axes[2 * (index // columns), index % columns], axes[2 * (index // columns) + 1, index % columns]
            draw_sheet(top, side, sheet)
            top.set_title(title, fontsize=9)
        if not shown:
            axes[0, 0].text(0.5, 0.5, if_none, ha="center", transform=axes[0, 0].transAxes)
        fig.suptitle((", " if columns > 2 else "\n").join(heading), fontsize=10)


def delta_g_text(row: CandidateResult) -> str:
    """Write ΔG_H of a candidate by its best judge and, where that is another one, by DimeNet++, with standard errors (eV)."""
    text = f"ΔG_H = {row.delta_g_ev:+.2f} ± {row.delta_g_std_ev:.2f} eV ({row.delta_g_source})"
    if row.delta_g_source == BY_DIMENET or math.isnan(row.delta_g_h_ev):
        return text
    return f"{text}\n{BY_DIMENET}: {row.delta_g_h_ev:+.2f} ± {row.delta_g_h_std_ev:.2f} eV"


def draw_sheet(top: Any, side: Any, atoms: Atoms) -> None:
    """Draw a standardised sheet from above and from the side, with bonds, cell, a scale bar (Å) and the elements.

    The window is three cells wide, but at least 11 Å and at most 24 Å.
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
    bonded = drawn_bonds(view.numbers, first, second, lengths)
    bonds = list(zip(first[bonded].tolist(), second[bonded].tolist(), strict=True))
    _draw_atoms(top, view, bonds, axes=(0, 1), depth=view.positions[:, 2])
    outline = np.array([[0, 0], cell[0], cell[0] + cell[1], cell[1], [0, 0]])
    # White below black, so that the outline stays visible on bonds and on dark atoms.
    top.plot(outline[:, 0], outline[:, 1], color="white", lw=2.6, zorder=3)
    top.plot(outline[:, 0], outline[:, 1], color="black", lw=1.3, ls="--", zorder=3.5)
    top.set_xlim(corner[0], corner[0] + width)
    top.set_ylim(corner[1], corner[1] + width)
    top.set_aspect("equal")
    # From the side only one slice is drawn, because rows of atoms behind it would hide the bonds.
    slice_depth = max(np.linalg.norm(cell[1]), 3.0)
    near = np.flatnonzero((view.positions[:, 1] > -0.3) & (view.positions[:, 1] < slice_depth + 0.3))
    index = {int(old): new for new, old in enumerate(near)}
    slab = view[near]
    slab_bonds = [(index[a], index[b]) for a, b in bonds if a in index and b in index]
    _draw_atoms(side, slab, slab_bonds, axes=(0, 2), depth=-slab.positions[:, 1])
    height = max(float(np.ptp(atoms.positions[:, 2])) + 2.5, width * 0.4)
    middle = 0.5 * (slab.positions[:, 2].max() + slab.positions[:, 2].min())
    for x in (0.0, cell[0, 0]):
        side.plot([x, x], [middle - height / 2, middle + height / 2], color="black", lw=1, ls="--", zorder=0.5)
    side.set_xlim(corner[0], corner[0] + width)
    side.set_ylim(middle - height / 2, middle + height / 2)
    side.set_aspect("equal")
    bar = 5.0
    left, bottom = corner[0], -0.06
    side.plot([left, left + bar], [bottom] * 2, color="black", lw=2, clip_on=False, transform=side.get_xaxis_transform())
    side.text(left + bar + 0.2, bottom, f"{bar:g} Å", va="center", fontsize=8, transform=side.get_xaxis_transform())
    handles = [
        Line2D([], [], marker="o", ls="", ms=7, markerfacecolor=jmol_colors[z], markeredgecolor="black", label=symbol)
        for symbol, z in sorted({(atom.symbol, atom.number) for atom in atoms})
    ]
    side.legend(handles=handles, loc="upper right", bbox_to_anchor=(1, -0.1), ncols=len(handles), fontsize=9,
                handletextpad=0.1, columnspacing=0.8, borderaxespad=0.1)  # fmt: skip


def _draw_atoms(axis: Any, atoms: Atoms, bonds: Sequence[tuple[int, int]], axes: tuple[int, int], depth: np.ndarray) -> None:
    """Draw atoms and bonds projected on two axes; atoms of greater ``depth`` (N,) cover those of smaller."""
    flat = atoms.positions[:, list(axes)]
    if bonds:
        lines = flat[np.array(bonds)]
        axis.add_collection(LineCollection(lines, colors="0.25", linewidths=2.6, zorder=1))
        axis.add_collection(LineCollection(lines, colors="0.75", linewidths=1.4, zorder=1.5))
    order = np.argsort(depth, kind="stable")
    diameters = 2 * ball_radii(atoms.numbers[order])
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
