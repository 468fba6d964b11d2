"""Puts sheets that every chemist knows beside the candidates: judged alike, with their own DFT values.

``data/known_sheets.csv`` lists them: name, row of the embedded database from which ``scripts.prepare_demo_data`` writes the CIF,
and the lowest ΔG_H among the sites of ``data/h_on_2d_dft.db``. The correction of the judges was fitted on these DFT values, so the
comparison shows that the judges know them, not how well they do on others.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from crystals.cif import read_cif
from crystals.formulas import reduced_formula
from crystals.symmetry import symmetry_symbols
from crystals.validity import standardise
from energetics.potential_loading import without_paths
from evaluation.decisions import without_dft
from evaluation.evaluate import Evaluation
from evaluation.report_files import read_report
from pipeline.files import PROJECT_DIR
from pipeline.settings import EvaluationConfig

KNOWN = "known"
TABLE = PROJECT_DIR / "data" / "known_sheets.csv"
CIFS = PROJECT_DIR / "data" / "known_sheets"
FIELDS = (
    "e_above_hull_ev",
    "delta_g_ev",
    "delta_g_std_ev",
    "delta_g_source",
    "p_synth",
    "band_gap_ev",
    "p_hit",
    "exfoliation_mev_per_a2",
)


def listed(table: Path = TABLE) -> dict[str, dict[str, str]]:
    """Return the rows of the table by name."""
    with table.open(newline="", encoding="utf-8") as handle:
        return {row["name"]: row for row in csv.DictReader(handle)}


@lru_cache(maxsize=1)
def described() -> tuple[dict[str, Any], ...]:
    """Return ``name``, ``formula`` and ``layer_group`` of every sheet of the table, the last two from its CIF.

    A sheet without a CIF is left out.
    """
    found = []
    for name in listed():
        path = CIFS / f"{name}.cif"
        if path.is_file():
            atoms, _, _ = standardise(read_cif(path), EvaluationConfig().min_vacuum_angstrom)
            _, group = symmetry_symbols(atoms, is_sheet=True)
            found.append({"name": name, "formula": reduced_formula(str(atoms.symbols)), "layer_group": group})
    return tuple(found)


def literature_surfaces(truth: Mapping[str, Any] | None, free_energy_ev: float) -> list[dict[str, Any]]:
    """Return name and ΔG_H (eV) of the metal surfaces in the table of truth: published DFT values, judged by nobody here.

    Args:
        truth: what ``dft_benchmark`` returns.
        free_energy_ev: ΔG_H − ΔE_H.
    """
    rows = ((truth or {}).get("table") or {}).get("rows", [])
    surfaces = [row for row in rows if row["system"].endswith("(111)") and math.isfinite(row["delta_e_ev"] or math.nan)]
    return [{"name": row["system"], "delta_g_ev": row["delta_e_ev"] + free_energy_ev} for row in surfaces]


def known_of_earlier_runs(folders: Sequence[str | os.PathLike], identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the same judges said of the well-known sheets in an earlier run, for a set that is judged without them.

    Args:
        folders: of reports; the first that has such sheets by these judges counts.
        identity: of the judges.

    Returns:
        Rows as ``known_rows`` gives them; none where other judges judged.
    """
    same = without_paths(json.loads(json.dumps(identity, default=str)))
    for folder in folders:
        report = read_report(folder) or {}
        rows = report.get("known")
        if rows and without_paths(report["provenance"]["judges"]) == same:
            known = [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]
            return [row | {"formula": reduced_formula(row["formula"])} for row in known]
    return []


def known_rows(evaluation: Evaluation, settings: EvaluationConfig) -> list[dict[str, Any]]:
    """Return what the judges say of every sheet of a judged control, with its DFT value beside it where the table has one.

    Args:
        evaluation: of a folder of CIFs whose names are those of the table; other names have no DFT value.
        settings: limits of a hit.

    Returns:
        ``name``, ``formula``, FIELDS without what DFT decides, ``delta_g_dft_ev`` (eV, NaN where there is none) and ``place`` in
        the table of each, in the order of ΔG_H.
    """
    table = listed()
    places = {name: place for place, name in enumerate(table)}
    rows = []
    for row in (without_dft(judged, settings) for judged in evaluation.rows):
        dft = table.get(row.id, {}).get("delta_g_dft_ev", "")
        values = {field: getattr(row, field) for field in FIELDS}
        own = {"delta_g_dft_ev": float(dft) if dft else math.nan, "place": places.get(row.id, len(places))}
        rows.append({"name": row.id, "formula": row.reduced_formula, **values, **own})
    return sorted(rows, key=lambda row: (math.isnan(row["delta_g_ev"]), row["delta_g_ev"], row["name"]))
