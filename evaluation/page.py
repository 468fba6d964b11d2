"""Writes the report as one HTML page: ``report.html`` from ``report.json``, the figures beside it and ``templates/``."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation import metrics, structure_viewer
from evaluation.candidate import QUANTITIES, CandidateResult
from evaluation.decisions import rank
from evaluation.legacy import LEGACY_COLUMNS
from evaluation.report_files import FIGURES, read_report
from evaluation.summary import legacy_summary, metric_text
from evaluation.trust import trust
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR, atomic_path, relative_name

TEMPLATES = Path(__file__).with_name("templates")
SCRIPTS = ("sort.js", "viewer.js")

# Fields of ``CandidateResult`` that are columns of the candidates' table, in this order; QUANTITIES has their titles.
COLUMNS = (
    "id",
    "reduced_formula",
    "dimensionality",
    "layer_group_relaxed",
    "valid",
    "delta_g_ev",
    "delta_g_std_ev",
    "delta_g_source",
    "delta_g_h_ev",
    "delta_g_h_potential_ev",
    "delta_g_h_corrected_ev",
    "h_in_domain",
    "e_form_ev",
    "e_above_hull_ev",
    "p_synth",
    "synthesis_method",
    "synthesis_precursors",
    "relax_rmsd_angstrom",
    "unique",
    "novel",
    "metastable_sun",
    "hit",
    "p_hit",
    "score_composite",
    "legacy_score_composite",
    "seconds",
    "status",
)


def write_page(output_dir: str | os.PathLike) -> Path:
    """Write ``report.html`` of a folder: one file that needs no network and no server.

    The template escapes every text from a file or a setting. The page's content security policy allows no script but ``SCRIPTS``.

    Args:
        output_dir: holds ``report.json`` and the figures.

    Returns:
        The path of the page.

    Raises:
        StageError: there is no ``report.json`` of this schema.
    """
    folder = Path(output_dir)
    report = read_report(folder)
    if report is None:
        raise StageError(f"no report.json in {relative_name(folder)}: run the evaluation first")
    page = _environment().get_template("report.html.j2").render(_page_content(report, folder))
    path = folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page + "\n", encoding="utf-8")
    return path


def candidate_table(candidates: Sequence[Mapping[str, Any]], cif_folder: str) -> str:
    """Return the sortable table of candidates as HTML. cif_folder: path of the CIFs from the page's folder."""
    return _environment().get_template("candidates.html.j2").render(table=_candidate_cells(candidates, cif_folder))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["metric_text"] = metric_text
    return environment


def _page_content(report: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the variables of ``report.html.j2``. Only files of ``templates/`` and escaped JSON are marked as safe."""
    candidates, cif_folder = rank(report["candidates"]), _cif_folder(report, folder)
    scripts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS]
    shown = _viewer_candidates(candidates, report.get("structures", {}), cif_folder)
    return {
        "title": f"2D HER catalysts: {report['label']}",
        "policy": _content_security_policy(scripts),
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "summary": report.get("summary", []),
        "table": _candidate_cells(candidates, cif_folder),
        "figures": _figures(folder),
        "metrics": report["metrics"].values(),
        "n_bulk": report["bulk"]["n"],
        "bulk_metrics": report["bulk"]["metrics"].values(),
        "comparison": _comparison_cells(report["comparison"]) if "comparison" in report else None,
        "known": known_cells(report.get("known", [])),
        "legacy": _legacy_cells(report["legacy"]) if report.get("legacy") else None,
        "trust": trust(report),
        "provenance": json.dumps(report["provenance"], indent=1, ensure_ascii=False),
        "structures": Markup(structure_viewer.page_data(shown)),
        "scripts": [Markup(script) for script in scripts],
    }


def _content_security_policy(scripts: Sequence[str]) -> str:
    """Return a policy that allows the scripts (by their hashes), and styles and images inside the page, but nothing else."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}"


def _cif_folder(report: Mapping[str, Any], folder: Path) -> str:
    """Return the path of the CIFs from the page's folder."""
    relative = os.path.relpath(PROJECT_DIR / report["provenance"]["cif_dir"], folder.resolve())
    return Path(relative).as_posix()


def _figures(folder: Path) -> list[dict[str, str]]:
    """Return caption, PNG in base64 and link to the PDF (empty without one) of every figure in a folder."""
    found = []
    for name, caption in FIGURES.items():
        path = folder / name
        if path.is_file():
            pdf = path.with_suffix(".pdf")
            png = base64.b64encode(path.read_bytes()).decode()
            found.append({"caption": caption, "png": png, "pdf": quote(pdf.name) if pdf.is_file() else ""})
    return found


def _viewer_candidates(
    candidates: Sequence[Mapping[str, Any]], structures: Mapping[str, Any], cif_folder: str
) -> list[dict[str, Any]]:
    """Return what the 3D view shows of every candidate, as ``structure_viewer.page_data`` takes it."""

    def fact(key: str, text: str) -> list[str]:
        return [QUANTITIES[key].label, text]

    def number(row: Mapping[str, Any], key: str, std: str = "") -> list[str]:
        if row.get(key) is None:
            return fact(key, "–")
        error = f" ± {row[std]:.2f}" if std and row.get(std) is not None else ""
        return fact(key, f"{row[key]:.2f}{error} {QUANTITIES[key].unit}".strip())

    return [
        {
            "id": row["id"],
            "href": quote(f"{cif_folder}/{row['source_file']}"),
            "structure": structures.get(row["id"]),
            "note": "" if row["status"] == "ok" else row["status"],
            "facts": [
                fact("formula", row["formula"] or "–"),
                fact("layer_group_relaxed", row["layer_group_relaxed"] or row["space_group_relaxed"] or "–"),
                number(row, "delta_g_ev", "delta_g_std_ev"),
                *(fact("delta_g_source", row["delta_g_source"]) for _ in range(1) if row["delta_g_source"]),
                number(row, "delta_g_h_ev", "delta_g_h_std_ev"),
                number(row, "delta_g_h_potential_ev"),
                number(row, "delta_g_h_corrected_ev", "delta_g_h_corrected_std_ev"),
                number(row, "band_gap_ev"),
                number(row, "e_above_hull_ev"),
                number(row, "p_synth"),
                *(fact(key, row[key]) for key in ("synthesis_method", "synthesis_precursors") if row.get(key)),
                fact("hit", {True: "yes", False: "no", None: "–"}[row["hit"]]),
                number(row, "p_hit"),
            ],
        }
        for row in candidates
    ]


@dataclass(frozen=True)
class Cell:
    """A cell of the candidates' table. ``sort_value``: what its column is sorted by; empty without a value."""

    text: str
    sort_value: str
    css_class: str = ""
    href: str = ""


def _candidate_cells(candidates: Sequence[Mapping[str, Any]], cif_folder: str) -> dict[str, Any]:
    """Return the columns and rows of the table of candidates."""
    types = {field.name: field.type for field in dataclasses.fields(CandidateResult)}
    # Only CSLLM suggests routes; without it their columns would be empty and are left out.
    routes = any(row.get("synthesis_method") or row.get("synthesis_precursors") for row in candidates)
    columns = [column for column in COLUMNS if routes or not column.startswith("synthesis_")]
    numeric = {key for key in columns if types[key] in ("float", "int")}

    def cell(row: Mapping[str, Any], key: str) -> Cell:
        value = row.get(key)
        if key == "id":
            return Cell(value, value, href=quote(f"{cif_folder}/{row['source_file']}"))
        if value is None or isinstance(value, bool):
            text = "" if value is None else "yes" if value else "no"
            return Cell(text, text)
        if key in numeric:
            return Cell(f"{value:.3f}", repr(value), css_class="n")
        return Cell(value, value, css_class="long" if len(value) > 30 else "")

    return {
        "columns": [{"title": QUANTITIES[key].heading, "type": "number" if key in numeric else "text"} for key in columns],
        "rows": [{"hit": row["hit"], "cells": [cell(row, key) for key in columns]} for row in candidates],
    }


def known_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of the table of well-known sheets: name, E_hull, ΔG_H ± and its judge, DFT's ΔG_H, P_synth."""

    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    return [
        [
            row["name"],
            text(row["e_above_hull_ev"]),
            text(row["delta_g_ev"]) + (f" ± {row['delta_g_std_ev']:.2f}" if row["delta_g_std_ev"] is not None else ""),
            row["delta_g_source"] or "–",
            text(row["delta_g_dft_ev"]),
            text(row["p_synth"]),
        ]
        for row in rows
    ]


def _comparison_cells(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return labels, rows and notes of the table that compares the sets; one that has the files of another has a note alone."""
    sets = {label: found for label, found in content["sets"].items() if not found.get("same_as")}
    rows = []
    for name in metrics.COMPARED:
        cells = []
        for label, found in sets.items():
            metric = (found["metrics"] or {}).get(name)
            verdict = content["verdicts"].get(label, {}).get(name, "")
            mark = f" ▲ {verdict} than ours" if verdict.startswith("better") else ""
            cells.append({"text": metric_text(metric) + mark if metric else "–", "css_class": "n better" if mark else "n"})
        rows.append({"name": name, "cells": cells})
    notes = [(label, found["note"]) for label, found in content["sets"].items() if found["note"]]
    return {"labels": list(sets), "rows": rows, "notes": notes}


def _legacy_cells(legacy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of the earlier public baseline's favourites with our verdicts."""
    rows = []
    for row in legacy["rows"]:
        ours = "–" if row["our_rank"] is None else row["our_rank"]
        numbers = ["–" if row[key] is None else f"{row[key]:.3f}" for key in ("score_composite", *LEGACY_COLUMNS)]
        rows.append({"texts": [row["rank"], ours, row["id"], row["formula"], row["verdict"]], "numbers": numbers})
    headings = list(LEGACY_COLUMNS.values())
    return {"summary": legacy_summary(legacy), "max_steps": legacy["max_steps"], "headings": headings, "rows": rows}
