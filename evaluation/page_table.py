"""Says what the page's table of materials shows: its columns with units and meaning, and its cells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from evaluation.candidate import QUANTITIES, CandidateResult
from evaluation.decisions import verdict
from evaluation.page_words import ABOUT
from pipeline.records import from_json

# Fields of ``CandidateResult`` by the group in which the chooser of columns has them. A table has its columns in this order.
GROUPS = {
    "Material": ("id", "reduced_formula", "formula", "natoms", "source_file"),
    "Structure": (
        "dimensionality", "layer_group_relaxed", "space_group_relaxed", "layer_group", "space_group", "valid", "no_clash",
        "single_sheet", "vacuum_ok", "charge_neutral", "min_distance_ratio", "vacuum_angstrom",
    ),
    "Stability": (
        "e_above_hull_ev", "e_above_hull_std_ev", "e_above_hull_potential_ev", "e_above_hull_source", "decomposition", "e_form_ev",
        "energy_ev_per_atom", "score_stab", "dynamically_stable", "p_dynamic", "min_hessian_ev_per_a2", "min_phonon_thz",
        "stiffness_min_n_per_m", "distortion_gain_ev", "distorted_stable", "exfoliable", "exfoliation_mev_per_a2",
        "layer_distance_angstrom",
    ),
    "Hydrogen": (
        "delta_g_ev", "delta_g_std_ev", "delta_g_source", "delta_g_h_dft_ev", "delta_g_h_corrected_ev",
        "delta_g_h_corrected_std_ev", "correction_in_domain", "correction_domain_note", "delta_g_h_potential_ev", "delta_g_h_ev",
        "delta_g_h_std_ev", "h_site_dft", "h_sites_dft", "h_site_kind", "h_site_face", "h_in_domain", "h_domain_note", "h_n_sites",
        "h_sites_relaxed", "h_coverage", "h_desorbed", "h_relax_converged",
        "h_rest_ev", "h_changes_sheet",
    ),
    "Water": ("water", "dg_pbx_ev", "dg_pbx_ph0_ev", "dg_pbx_ph7_ev", "dg_pbx_ph14_ev", "water_products"),
    "Elements": ("price_usd_per_kg", "hhi_reserve", "hazards"),
    "Electrons": ("conductive", "band_gap_ev"),
    "Synthesis": ("p_synth", "synthesizable", "p_synth_label_mass", "synthesis_method", "synthesis_precursors"),
    "Verdict": (
        "hit", "p_hit", "hit_corrected", "hit_potential", "hit_dimenet", "score_composite", "metastable_sun", "sun", "unique",
        "duplicate_of", "novel", "novel_match",
    ),
    "Relaxation": ("relax_converged", "relax_steps", "relax_rmsd_angstrom", "relax_area_change", "sheet_relaxed"),
    "Earlier baseline": ("legacy_delta_g_ev", "legacy_energy_ev_per_atom", "legacy_score_stab", "legacy_score_composite"),
    "Run": ("seconds", "status"),
}  # fmt: skip
_FIELD_TYPES = {field.name: field.type for field in dataclasses.fields(CandidateResult)}
# A field that is in no group is a column too, so that none is lost.
if further := tuple(key for key in _FIELD_TYPES if not any(key in keys for keys in GROUPS.values())):
    GROUPS["Further"] = further
COLUMNS = tuple(key for keys in GROUPS.values() for key in keys)
SHOWN = (
    "id", "reduced_formula", "layer_group_relaxed", "e_above_hull_ev", "delta_g_ev", "delta_g_source", "delta_g_h_corrected_ev",
    "delta_g_h_ev", "h_site_kind", "h_in_domain", "dynamically_stable", "water", "p_synth", "synthesis_method",
    "synthesis_precursors", "p_hit", "score_composite", "metastable_sun", "status",
)  # fmt: skip
# value -> what its cell says beside it: a standard error, or a second text.
ERRORS = {
    "e_above_hull_ev": "e_above_hull_std_ev",
    "delta_g_ev": "delta_g_std_ev",
    "delta_g_h_ev": "delta_g_h_std_ev",
    "delta_g_h_corrected_ev": "delta_g_h_corrected_std_ev",
}
BESIDE = {"h_site_kind": "h_site_face", "h_in_domain": "h_domain_note", "correction_in_domain": "correction_domain_note"}
# Single values beside the 3D view.
FACTS = (
    "formula", "layer_group_relaxed", "e_above_hull_ev", "e_above_hull_source", "delta_g_ev", "delta_g_source",
    "delta_g_h_dft_ev", "delta_g_h_corrected_ev", "correction_in_domain", "delta_g_h_potential_ev", "delta_g_h_ev", "h_site_kind",
    "h_sites_relaxed",
    "h_in_domain", "h_coverage", "dynamically_stable", "p_dynamic", "min_phonon_thz", "exfoliation_mev_per_a2", "exfoliable",
    "water", "dg_pbx_ev", "water_products", "price_usd_per_kg", "hazards", "band_gap_ev", "p_synth", "synthesis_method",
    "synthesis_precursors", "p_hit", "novel_match", "status",
)  # fmt: skip
# What the search looks at: not what names other materials, such as the products of decomposition.
SEARCHED = (
    "id", "source_file", "reduced_formula", "formula", "dimensionality", "layer_group_relaxed", "space_group_relaxed",
    "layer_group", "space_group", "delta_g_source", "h_site_kind", "h_site_face", "h_domain_note", "correction_domain_note",
    "synthesis_method", "synthesis_precursors", "duplicate_of", "novel_match", "status",
)  # fmt: skip
LONG_TEXT = 24  # characters; a longer one gets a wider column
VERDICT_ABOUT = "What our judges found: the first condition of a hit that fails, or hit"


@dataclass(frozen=True)
class Cell:
    """A cell of the table."""

    key: str
    text: str
    css_class: str = ""


def is_number(key: str) -> bool:
    """Return whether a field holds numbers."""
    return _FIELD_TYPES[key] in ("float", "int")


def plain_value(value: Any) -> Any:
    """Return a value as the page embeds it: six digits of a number, None where it is missing."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def cell_text(row: Mapping[str, Any], key: str) -> str:
    """Return what a cell says; empty without a value. ``templates/table.js`` says the same of columns that are shown later."""
    value = row.get(key)
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if key in BESIDE and (more := row.get(BESIDE[key])):
        return f"{_text(value)}, {more}" if key == "h_site_kind" else f"{_text(value)}: {more}"
    std = row.get(ERRORS.get(key, ""))
    return _text(value) + (f" ± {std:.3f}" if std is not None and math.isfinite(std) else "")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def verdicts(candidates: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """Return the verdict on each candidate in a few words. settings: section ``evaluation`` as the report has it."""
    limits = SimpleNamespace(**settings)
    return [verdict(from_json(CandidateResult, dict(row)), limits) for row in candidates]


def verdict_class(word: str) -> str:
    """Return the CSS class of the badge of a verdict."""
    if word == "hit":
        return "good"
    if word.startswith("|ΔG_H|"):
        return "near"
    return "weak" if word in ("unstable", "H desorbs", "H not relaxed") else "none"


def shown_columns(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns that are shown at first."""
    # Only CSLLM suggests routes; without it their columns would be empty and are left out.
    routes = any(row.get("synthesis_method") or row.get("synthesis_precursors") for row in candidates)
    return [key for key in COLUMNS if key in SHOWN and (routes or not key.startswith("synthesis_"))]


def table_content(candidates: Sequence[Mapping[str, Any]], cif_folder: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the variables of ``candidates.html.j2``.

    Args:
        candidates: in the order of the table.
        cif_folder: path of the CIFs as they were given from the page's folder.
        words: verdict on each candidate; empty where there are none.
    """
    shown = shown_columns(candidates)

    def cell(row: Mapping[str, Any], key: str) -> Cell:
        text = cell_text(row, key)
        long = "long" if len(text) > LONG_TEXT else ""
        return Cell(key, text, "n" if is_number(key) else long)

    return {
        "columns": [column(key) for key in shown],
        "verdict_about": VERDICT_ABOUT,
        "rows": [
            {
                "id": row["id"],
                "fragment": quote(row["id"]),
                "given": quote(f"{cif_folder}/{row['source_file']}"),
                "hit": row["hit"],
                "verdict": word,
                "verdict_class": verdict_class(word),
                "cells": [cell(row, key) for key in shown if key != "id"],
            }
            for row, word in zip(candidates, words or [""] * len(candidates), strict=True)
        ],
    }


def column(key: str) -> dict[str, Any]:
    """Return what the page knows of a column."""
    quantity = QUANTITIES[key]
    return {
        "key": key,
        "title": quantity.column,
        "unit": quantity.unit,
        "label": quantity.label,
        "about": ABOUT.get(key, quantity.label),
        "number": is_number(key),
        "integer": _FIELD_TYPES[key] == "int",
    }


def table_data(candidates: Sequence[Mapping[str, Any]], words: Sequence[str]) -> dict[str, Any]:
    """Return what ``templates/table.js`` reads: all columns and all values of the candidates, in the order of the table."""
    return {
        "columns": [column(key) for key in COLUMNS],
        "shown": shown_columns(candidates),
        "errors": ERRORS,
        "beside": BESIDE,
        "facts": FACTS,
        "searched": SEARCHED,
        "long": LONG_TEXT,
        "verdicts": list(words),
        "badges": {word: verdict_class(word) for word in dict.fromkeys(words)},
        "values": [[plain_value(row.get(key)) for key in COLUMNS] for row in candidates],
    }
