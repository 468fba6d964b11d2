"""Draws the designs: a card for each, an overview, hit rates over the rounds, and one page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.batch_choice import family_of
from evaluation.figures import subscripts
from evaluation.loop_report import CHOSEN, NEIGHBOUR, RANDOM, RANDOM_NEIGHBOUR, SETS, UNGUIDED, rate_text
from evaluation.page import page_environment
from evaluation.structure_figures import draw_grid, draw_sheet
from pipeline.files import atomic_path
from pipeline.plotting import figure
from pipeline.settings import Config

if TYPE_CHECKING:
    from evaluation.designs import Design

IN_OVERVIEW = 12  # designs that the overview shows at most
COLORS = {CHOSEN: "#1f5fa8", NEIGHBOUR: "#1d7a46", RANDOM_NEIGHBOUR: "#8fbf6a", UNGUIDED: "#d08a1d", RANDOM: "#7a7a7a"}


def title_of(design: Design) -> str:
    """Return formula, layer group, ΔG_H by DFT and E_hull in two lines."""
    row = design.row
    return (
        f"{subscripts(row.reduced_formula)}, {row.layer_group_relaxed or row.layer_group}\n"
        f"ΔG_H = {design.delta_g_dft_ev:+z.2f} eV (DFT), E_hull = {row.e_above_hull_ev:.2f} eV/atom"
    )


def facts_of(design: Design) -> list[tuple[str, str]]:
    """Return the lines of a card: what it is of, and the value with its unit."""
    row, before = design.row, design.before
    sites = ", ".join(f"{s.site} {_number(s.delta_g_dft_ev, '+z.2f')}" for s in design.sites)
    stable = {True: "yes", False: "no", None: "not known"}
    facts = [
        ("ΔG_H by DFT (eV)", sites),
        ("by the judge before", f"{_number(before['delta_g_ev'], '+z.2f')} ± {_number(before['delta_g_std_ev'])} eV"),
        ("E_hull", f"{row.e_above_hull_ev:.2f} ± {_number(row.e_above_hull_std_ev)} eV/atom ({row.e_above_hull_source})"),
        ("dynamically stable", f"{stable[row.dynamically_stable]} (p {_number(row.p_dynamic)})"),
        ("conducts", f"{stable[row.conductive]} (gap {_number(row.band_gap_ev)} eV{', PBE' if design.gap_by_dft else ''})"),
        ("in water", row.water or "not known"),
        ("P_synth", _number(row.p_synth)),
        ("peeling off", f"{_number(row.exfoliation_mev_per_a2, '.0f')} meV/Å² ({row.exfoliable or 'not known'})"),
        ("elements", f"{_number(row.price_usd_per_kg, ',.0f')} US dollars per kg"),
        ("family", family_of(row)),
    ]
    return facts


def draw_card(design: Design, path: str | os.PathLike) -> None:
    """Draw a card: the sheet with H from above and from the side, what is known, coverage, and what argues against it."""
    with figure(path, ncols=2, nrows=2, figsize=(10.5, 7.2), gridspec_kw={"height_ratios": [3, 2], "width_ratios": [1, 1.15]}) as (
        fig,
        axes,
    ):
        (top, text), (side, curve) = axes
        for axis in (top, side, text):
            axis.set_axis_off()
        draw_sheet(top, side, design.with_h)
        top.set_title(title_of(design))
        lines = [f"{name}: {value}" for name, value in facts_of(design)]
        against = [f"– {_wrapped(reason)}" for reason in design.against] or ["– nothing that these judges see"]
        block = "\n".join([*map(_wrapped, lines), "", "What argues against it", *against])
        text.text(0.0, 1.0, block, va="top", ha="left", fontsize=8.5, transform=text.transAxes, linespacing=1.4)
        draw_coverage(curve, design)
        fig.suptitle(design.name, fontsize=9, color="0.4")


def draw_coverage(axis: Any, design: Design) -> None:
    """Draw ΔG_H of the next H over coverage: the DFT value, and the potential's change from it."""
    known = [point for point in design.coverage if not math.isnan(point.differential)]
    if not known:
        axis.set_axis_off()
        axis.text(0.5, 0.5, "no coverage dependence: H does not stay", ha="center", transform=axis.transAxes)
        return
    values = [design.delta_g_dft_ev + point.differential - known[0].differential for point in known]
    axis.axhspan(-0.1, 0.1, color="0.93", zorder=0)
    axis.plot([point.coverage for point in known], values, "o-", color=COLORS[CHOSEN])
    axis.plot([known[0].coverage], [values[0]], "o", ms=9, mfc="none", mec="black", label="DFT")
    axis.set_xlabel("coverage (H per repeat unit of the lattice)")
    axis.set_ylabel("ΔG_H of the next H (eV)")
    axis.set_xlim(0, 1.05)
    axis.margins(y=0.25)
    axis.legend(loc="best", fontsize=8)
    axis.set_title("change with coverage by the potential", fontsize=9)


def draw_overview(designs: Sequence[Design], path: str | os.PathLike) -> None:
    """Draw the first designs, at most ``IN_OVERVIEW``, with H, from above and from the side."""
    first = designs[:IN_OVERVIEW]
    shown = [(title_of(design).replace(", E_hull", "\nE_hull"), design.with_h) for design in first]  # columns are narrow
    which = "designs" if len(first) == len(designs) else f"{len(first)} of {len(designs)} designs, the nearest to zero,"
    heading = (f"{which} with H at the lowest site by DFT", "from above and from the side", "dashed: cell of the calculation")
    draw_grid(shown, heading, "", path)


def draw_hit_rates(rounds: Mapping[str, Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Draw the share of DFT hits of the chosen sheets and of the controls, round by round and together.

    rounds: name -> numbers as ``loop_report.summary`` gives them; "all" last.
    """
    names = list(rounds)
    with figure(path, figsize=(1.6 + 1.3 * len(names), 3.2)) as (_, axis):
        shown = [drawn_as for drawn_as in SETS if any(drawn_as in found["sets"] for found in rounds.values())]
        for k, drawn_as in enumerate(shown):
            found = {i: rounds[name]["sets"][drawn_as]["hit"] for i, name in enumerate(names) if drawn_as in rounds[name]["sets"]}
            found = {i: rate for i, rate in found.items() if rate["n"]}
            places = [i + 0.22 * (k - (len(shown) - 1) / 2) for i in found]
            shares = [100 * rate["rate"] for rate in found.values()]
            below = [share - 100 * rate["low"] for share, rate in zip(shares, found.values(), strict=True)]
            above = [100 * rate["high"] - share for share, rate in zip(shares, found.values(), strict=True)]
            axis.errorbar(places, shares, [below, above], fmt="o", color=COLORS[drawn_as], capsize=3, label=drawn_as, clip_on=False)
            for place, share, rate in zip(places, shares, found.values(), strict=True):
                axis.annotate(f"{rate['hits']}/{rate['n']}", (place, share), (5, 4), textcoords="offset points", fontsize=7)
        axis.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
        axis.set_xlim(-0.5, len(names) - 0.4)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("hits by DFT (%)")
        axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)


def write_page(
    designs: Sequence[Design],
    left_out: Mapping[str, str],
    rounds: Mapping[str, Mapping[str, Any]],
    cfg: Config,
    path: Path,
) -> None:
    """Write the page of all designs."""
    rates = {
        name: {drawn_as: rate_text(found["sets"][drawn_as]["hit"]) if drawn_as in found["sets"] else "–" for drawn_as in COLORS}
        for name, found in rounds.items()
    }
    content = {
        "designs": [(design, subscripts(design.row.reduced_formula), facts_of(design)) for design in designs],
        "left_out": left_out,
        "rates": rates,
        "ratios": rounds["all"]["ratios"],
        "window": cfg.evaluation.hit_delta_g_ev,
        "limit": cfg.evaluation.hit_e_hull_ev,
        "correction": cfg.dataset.her_correction_ev,
        "steps": cfg.loop.relax_steps,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(page_environment().get_template("designs.html.j2").render(content) + "\n", encoding="utf-8")


def _wrapped(text: str, width: int = 74) -> str:
    import textwrap

    return "\n   ".join(textwrap.wrap(text, width))


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None or math.isnan(value) else format(value, form)
