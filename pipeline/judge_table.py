"""Writes the tables of the judges of ΔE_H for the documents."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from pipeline.number_texts import MISSING, formatted, interval, table

DEFECTS = "defects and edges"  # origin of DFT points, as energetics.dft_points names it
HEAD = ("judge", "measured on", "n", "MAE (eV)", "Spearman", "within 1σ", "within 2σ", "inert above active")


def judges(truth: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    """Return how the judges agree with values that they had not seen.

    Args:
        truth: key ``truth`` of ``report.json``.
        test: errors of DimeNet++ on held-out records of its potential.
    """
    left_out, corrected, blind = "DFT, hosts left out", truth["potential_corrected"], truth["blind"]
    rows: list[tuple[str, str, Mapping[str, Any]]] = [
        ("DimeNet++", "its potential's own values, formulas held out", test),
        ("DimeNet++, uncorrected", left_out, truth["uncorrected"]),
        ("DimeNet++, corrected", left_out, truth),
        (truth["potential"]["name"], left_out, truth["potential"]),
        (corrected["name"], left_out, corrected),
        *((corrected["name"], f"of these, {name}", found) for name, found in corrected.get("by_origin", {}).items()),
        (corrected["name"], "DFT, families left out", corrected["family_left_out"]),
    ]
    if by_site := corrected.get("chemistry_left_out"):
        rows.append((corrected["name"], "DFT, site chemistries left out", by_site))
        rows += [(corrected["name"], f"of these, H on {name}", found) for name, found in by_site["by_chemistry"].items()]
    rows += [
        ("DimeNet++, corrected", "DFT, blind", blind),
        (truth["potential"]["name"], "DFT, blind", blind["potential"]),
        (corrected["name"], "DFT, blind", blind["potential_corrected"]),
    ]
    if len(own := blind["potential_corrected"].get("by_origin", {})) > 1:
        rows += [(corrected["name"], f"of these, {name}", found) for name, found in own.items()]
    body = []
    for name, measured, m in rows:
        agreement = [str(m["n"]), formatted(m["mae_ev"]), formatted(m["spearman"])]
        body.append([name, measured, *agreement, _within(m, 1), _within(m, 2), _right_order(m)])
    return table(HEAD, body)


def origins(truth: Mapping[str, Any]) -> str:
    """Return the mean absolute errors of the corrected potential, hosts left out, and without correction, by where sheets are from.

    truth: key ``truth`` of ``report.json``.
    """
    keys = ("delta_e_potential_corrected_ev", "delta_e_potential_ev")
    body = []
    for name in truth["potential_corrected"]["by_origin"]:
        own = [row for row in truth["rows"] if row["origin"] == name]
        errors = [fmean(abs(row[key] - row["delta_e_dft_ev"]) for row in own) for key in keys]
        body.append([name, str(len(own)), *map(formatted, errors)])
    return table(("sheets", "n", "corrected, MAE (eV)", "potential alone, MAE (eV)"), body)


def defects(truth: Mapping[str, Any]) -> str:
    """Return ΔE_H by DFT and by the judges at vacancies, single metal atoms and edges, the host of each left out of the fits.

    truth: key ``truth`` of ``report.json``.
    """
    own = [row for row in truth["rows"] if row.get("origin") == DEFECTS]
    keys = ("delta_e_dft_ev", "delta_e_potential_corrected_ev", "delta_e_potential_ev", "delta_e_dimenet_ev")
    body = [[row["name"], row["site"], *(formatted(row[key], "+.2f") for key in keys)] for row in own]
    return table(("sheet", "H at", "DFT (eV)", "corrected potential", "potential", "DimeNet++"), body)


def runs_compared(content: Mapping[str, Any]) -> str:
    """Return what ``scripts.compare_runs`` found: a row for each pair of runs and table of theirs."""
    names = {"metrics.csv": "generated", "controls/known/metrics.csv": "known sheets"}
    names |= {"controls/unguided/metrics.csv": "unguided", "controls/random_decoration/metrics.csv": "random elements"}
    body = []
    for about, found in content.items():
        for path, name in names.items():
            if (own := found["tables"].get(path)) is None:
                continue
            same = f"{own['same_files']} of {own['in_both']}" if "same_files" in own else MISSING
            differ = f"{len(own['verdicts_that_differ'])} of {own['verdicts']:,}"
            hits = " and ".join(f"{value:.2f}" for value in own["hits_to_expect"])
            body.append([about, name, str(own["in_both"]), same, differ, str(len(own["delta_g_that_differs"])), hits])
    return table(["the other run", "sheets", "in both", "same file", "verdicts that differ", "other ΔG_H", "hits to expect"], body)


def _within(measured: Mapping[str, Any], sigmas: int) -> str:
    """Return the share of DFT values within so many standard errors, with its interval where the report has one."""
    found = measured.get("coverage")
    if not found:
        return MISSING
    low, high = found.get(f"within_{sigmas}_interval", (None, None))
    return interval({"value": found[f"within_{sigmas}"], "low": low, "high": high}, ".0%")


def _right_order(measured: Mapping[str, Any]) -> str:
    """Return how many pairs of an inert and an active sheet are in the right order."""
    pairs = measured.get("inert_above_active")
    return f"{pairs['pairs'] - len(pairs['violations'])} of {pairs['pairs']}" if pairs else MISSING
