"""Writes the tables that compare potentials, of ``results/benchmark/potentials.json`` and of the cards of the learnt hulls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.number_texts import MISSING, formatted, interval, table

TRIPLE = ("value", "low", "high")
ROWS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("1T′, 1T″ and CDW kept", ("phases", "kept"), ".0%"),
    ("their metal–metal distances, MAE (Å)", ("phases", "distance_mae_angstrom"), ".2f"),
    ("phases above 2H, MAE (eV/atom)", ("phases", "energy_mae_ev"), ".3f"),
    ("phases above 2H, mean error (eV/atom)", ("phases", "energy_error_ev"), ".3f"),
    ("in-plane lengths, MAE (%)", ("lattice", "mae_percent"), ".2f"),
    ("in-plane lengths, median (%)", ("lattice", "median_percent"), ".2f"),
    ("in-plane lengths, mean error (%)", ("lattice", "mean_error_percent"), ".2f"),
    ("polymorphs at C2DB's geometry, MAE (eV/atom)", ("pairs", "fixed", "mae_ev"), ".3f"),
    ("polymorphs relaxed, MAE (eV/atom)", ("pairs", "relaxed", "mae_ev"), ".3f"),
    ("polymorphs relaxed, same order", ("pairs", "relaxed", "same_order"), ".0%"),
    ("ΔE_H, DFT points, MAE (eV)", ("delta_e", "DFT points", "mae_ev"), ".2f"),
    ("ΔE_H, DFT points, mean error (eV)", ("delta_e", "DFT points", "mean_error_ev"), ".2f"),
    ("ΔE_H, DFT points, Spearman", ("delta_e", "DFT points", "spearman"), ".2f"),
    ("ΔE_H, corrected without the host, MAE (eV)", ("delta_e", "DFT points", "corrected", "mae_ev"), ".2f"),
    ("ΔE_H, corrected without the host, Spearman", ("delta_e", "DFT points", "corrected", "spearman"), ".2f"),
    ("ΔE_H, blind points, MAE (eV)", ("delta_e", "blind", "mae_ev"), ".2f"),
    ("ΔE_H, blind points, mean error (eV)", ("delta_e", "blind", "mean_error_ev"), ".2f"),
    ("ΔE_H, blind points, Spearman", ("delta_e", "blind", "spearman"), ".2f"),
)


def _at(content: Any, path: Sequence[str]) -> Any:
    for part in path:
        content = content[part]
    return content


def _text(values: Sequence[float | None], style: str) -> str:
    return interval(dict(zip(TRIPLE, values, strict=True)), style)


def potentials(content: Mapping[str, Any]) -> str:
    """Return the comparison of the potentials: one row for each measure, one column for each potential."""
    found = content["potentials"]
    body = [[label, *(_text(_at(own, path), style) for own in found.values())] for label, path, style in ROWS]
    natoms = next(iter(found.values()))["seconds_per_call"]["natoms"]
    seconds: tuple[tuple[str, Callable[[str], float]], ...] = (
        (f"s per energy and forces, {natoms:.0f} atoms", lambda name: found[name]["seconds_per_call"]["median"]),
        ("s per relaxation, mean", lambda name: content["seconds_per_relaxation"][name]["mean_seconds"]),
        ("steps per relaxation, mean", lambda name: content["seconds_per_relaxation"][name]["mean_steps"]),
    )
    body += [[label, *(formatted(value(name)) for name in found)] for label, value in seconds]
    return table(["", *found], body)


def paired(content: Mapping[str, Any]) -> str:
    """Return by how much the mean absolute error of one potential exceeds another's on the same things."""
    found = content["paired"]
    pairs = list(next(iter(found.values())))
    names = [" − ".join(pair.split(" - ")) for pair in pairs]
    return table(["MAE of", *names], [[name, *(_text(own[pair], ".3f") for pair in pairs)] for name, own in found.items()])


def hulls(cards: Mapping[str, Any]) -> str:
    """Return E_form and E_above_hull by several potentials on sheets of held-out formulas. cards: metrics of the learnt hulls."""
    body = []
    for geometry in ("relaxed", "geometry of the database"):
        found = {name: card[f"test, {geometry}"] for name, card in cards.items()}
        for label, key in (("E_form of the potential", "potential"), ("E_form, corrected", "learnt")):
            cells = [formatted(own["E_form, mae_ev"][key], ".3f") for own in found.values()]
            body.append([f"{label}, MAE (eV/atom)", geometry, *cells])
        for label, key in (("the potential and its phases", "potential"), ("learnt hull", "learnt"), ("mean of both", "both")):
            for measure, name, style in (("MAE (eV/atom)", "mae_ev", ".3f"), ("same verdict", "agree", ".0%")):
                cells = [_text(own[key][name], style) for own in found.values()]
                body.append([f"E_hull, {label}, {measure}", geometry, *cells])
    return table(["", "sheets", *cards], body)


def phases(content: Mapping[str, Any]) -> str:
    """Return the distorted phases by every potential: metal-metal distances, and what they and 1T lie above 2H."""
    found, body = content["potentials"], []
    rows = zip(*(own["phases"]["sheets"] for own in found.values()), strict=True)
    for own in rows:
        first = next((row for row in own if "metal_c2db_angstrom" in row), own[0])
        if first["phase"] == "2H":
            continue
        cells = [f"{first['phase']}-{first['formula']}", _distances(first.get("metal_c2db_angstrom"))]
        cells += [_distances(row.get("metal_angstrom")) for row in own]
        cells.append(formatted(first.get("above_2h_c2db_ev")))
        body.append([*cells, *(formatted(row.get("above_2h_ev")) for row in own)])
    head = ["sheet", "M–M, C2DB (Å)", *found, "above 2H, C2DB (eV/atom)", *found]
    return table(head, body)


def _distances(values: Sequence[float] | None) -> str:
    """Return six distances as the three means of neighbouring ones."""
    if values is None:
        return MISSING
    return " / ".join(f"{(values[k] + values[k + 1]) / 2:.2f}" for k in (0, 2, 4))


def published(content: Mapping[str, Any]) -> str:
    """Return published ΔE_H beside ours by DFT."""
    body = []
    for row in content["published"]:
        own = row["delta_e_dft_ev"]
        difference = None if own is None else own - row["published_ev"]
        body.append([row["name"], formatted(row["published_ev"]), formatted(own), row["site"] or MISSING, str(row["sites"])])
        body[-1].append(formatted(difference, "+.2f"))
    return table(["sheet", "published (eV)", "ours (eV)", "at", "sites computed", "difference (eV)"], body)
