"""Writes the tables of ``results/designs/designs.json`` for the documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.number_texts import formatted, interval, table


def designs(content: Mapping[str, Any]) -> str:
    """Return the designs, each with DFT's value and what the judges say."""
    body = []
    for design in content["designs"]:
        row, before, sites = design["judged"], design["before"], design["sites"]
        body.append(
            [
                row["reduced_formula"],
                row["layer_group_relaxed"],
                f"{design['delta_g_dft_ev']:+z.2f}",
                formatted(sites[0].get("delta_g_single_ev"), "+z.2f"),
                f"{sites[0]['site']} ({sum(site['delta_g_dft_ev'] is not None for site in sites)} of {len(sites)})",
                f"{formatted(before['delta_g_ev'], '+z.2f')} ± {formatted(before['delta_g_std_ev'])}",
                f"{formatted(row['e_above_hull_ev'])} ± {formatted(row['e_above_hull_std_ev'])}",
                row["water"] or "not known",
                formatted(row["p_synth"]),
                f"[{design['name']}](../results/designs/{design['name']}/card.png)",
            ]
        )
    head = ["sheet", "layer group", "ΔG_H, DFT (eV)", "its single point (eV)", "lowest site (computed)", "judge before (eV)"]
    return table([*head, "E_hull (eV/atom)", "in water", "P_synth", "card"], body)


def rounds(content: Mapping[str, Any]) -> str:
    """Return hits by DFT and errors of the judge, round by round."""
    body = []
    for name, found in content["rounds"].items():
        for drawn_as, numbers in found["sets"].items():
            error = numbers["judge"]
            body.append(
                [
                    name.replace("_", " "),
                    drawn_as,
                    f"{numbers['computed']} of {numbers['asked']}",
                    _rate(numbers["hit_dft"]),
                    _rate(numbers.get("hit_single", numbers["hit"])),
                    _rate(numbers["hit"]) if "hit_single" in numbers else "–",
                    formatted(error["mae_ev"]),
                    formatted(error["bias_ev"], "+z.2f"),
                    formatted(error["within_1_sigma"], ".0%"),
                    f"{formatted(error['mae_near_zero_ev'])} (n {error['n_near_zero']})",
                ]
            )
    head = ["round", "sheets", "computed", "in the window by single points", "hits by single points", "hits, relaxed by DFT"]
    head += ["judge's MAE (eV)", "bias (eV)", "within 1σ"]
    return table([*head, "MAE, ΔG_H within 0.5 eV"], body)


def _rate(found: Mapping[str, Any]) -> str:
    """Return hits of all with the share and its interval."""
    if not found["n"]:
        return "–"
    share = interval({"value": found["rate"], "low": found["low"], "high": found["high"]}, ".0%")
    return f"{found['hits']} of {found['n']}: {share}"
