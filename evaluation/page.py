"""Writes the report as one HTML page: ``report.html`` from ``report.json``, the figures beside it and ``templates/``."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation import metrics, page_materials, page_table, structure_viewer
from evaluation.decisions import rank
from evaluation.legacy import LEGACY_COLUMNS
from evaluation.page_table import COLUMNS
from evaluation.report_files import FIGURES, MOST_ROWS, read_report
from evaluation.summary import legacy_summary, metric_text
from evaluation.trust import trust
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR, atomic_path, relative_name

TEMPLATES = Path(__file__).with_name("templates")
SCRIPTS = ("viewer.js", "table.js", "downloads.js", "material.js")

# Files beside the page that hold every material, report.json up to MOST_ROWS -> what is said of them.
WHOLE_FILES = {"metrics.csv": "CSV", "relaxed.extxyz": "extxyz", "report.json": "JSON"}


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
    page = page_environment().get_template("report.html.j2").render(_page_content(report, folder))
    path = folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page + "\n", encoding="utf-8")
    return path


def candidate_table(candidates: Sequence[Mapping[str, Any]], cif_folder: str) -> str:
    """Return the table of candidates as HTML, without verdicts. cif_folder: path of the CIFs from the page's folder."""
    return page_environment().get_template("candidates.html.j2").render(table=page_table.table_content(candidates, cif_folder, []))


@cache
def page_environment() -> Environment:
    """Return what renders the files of ``templates/``: every text is escaped, and a name that is not given is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["metric_text"] = metric_text
    return environment


def _page_content(report: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the variables of ``report.html.j2``. Only files of ``templates/`` and escaped JSON are marked as safe."""
    candidates, cif_folder = rank(report["candidates"])[:MOST_ROWS], _cif_folder(report, folder)
    n_all = report.get("n_candidates", len(report["candidates"]))
    scripts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS]
    known = page_materials.known_sheets(report.get("known", []))
    words = page_table.verdicts(candidates, report["provenance"]["settings"])
    found = page_materials.materials(candidates, report.get("structures", {}), known)
    table = page_table.table_data(candidates, words)
    table["known"] = [{key: page_table.plain_value(value) for key, value in sheet.items()} for sheet in known]
    table["name"] = report["label"]
    return {
        "title": f"2D HER catalysts: {report['label']}",
        "policy": _content_security_policy(scripts),
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "summary": report.get("summary", []),
        "table": page_table.table_content(candidates, cif_folder, words),
        "n_all": n_all,
        "groups": {name: [page_table.column(key) for key in keys] for name, keys in page_table.GROUPS.items()},
        "n_columns": len(COLUMNS),
        "shown": table["shown"],
        "verdicts": sorted(Counter(words).items(), key=lambda pair: (pair[0] != "hit", -pair[1], pair[0])),
        "elements": page_materials.symbols_of("".join(sorted({symbol for c in found for symbol in c["elements"]}))),
        "whole_files": {
            name: kind
            for name, kind in WHOLE_FILES.items()
            if (folder / name).is_file() and (name != "report.json" or n_all == len(report["candidates"]))
        },
        "figures": _figures(folder),
        "metrics": report["metrics"].values(),
        "n_bulk": report["bulk"]["n"],
        "bulk_metrics": report["bulk"]["metrics"].values(),
        "comparison": _comparison_cells(report["comparison"]) if "comparison" in report else None,
        "known": known_cells(report.get("known", [])),
        "legacy": _legacy_cells(report["legacy"]) if report.get("legacy") else None,
        "trust": trust(report),
        "provenance": json.dumps(report["provenance"], indent=1, ensure_ascii=False),
        "structures": Markup(structure_viewer.page_data(found)),
        "values": Markup(structure_viewer.script_json(table)),
        "scripts": [Markup(script) for script in scripts],
    }


def _content_security_policy(scripts: Sequence[str]) -> str:
    """Return a policy that allows the scripts (by their hashes), and styles and images inside the page, but nothing else."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}"


def _cif_folder(report: Mapping[str, Any], folder: Path) -> str:
    """Return the path of the folder of the CIFs, or of the one file that was judged, from the page's folder."""
    place = PROJECT_DIR / report["provenance"]["cif_dir"]
    relative = os.path.relpath(place.parent if place.is_file() else place, folder.resolve())
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
