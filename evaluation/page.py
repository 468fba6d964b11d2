"""The report as one HTML page."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from evaluation import metrics, structure_viewer
from evaluation.candidate import CandidateResult
from evaluation.decisions import rank
from evaluation.legacy import LEGACY_COLUMNS
from evaluation.report_files import FIGURES, read_report
from evaluation.summary import legacy_summary, metric_text, trust
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR, atomic_path, relative_name

STYLE = (
    """body{font:15px/1.5 system-ui,sans-serif;max-width:1320px;margin:2em auto;padding:0 1em;color:#1a1a1a}
h1{font-size:1.6em}h2{font-size:1.2em;margin-top:2em;border-bottom:1px solid #ccc}img{max-width:100%}figure{margin:1.5em 0}
figure img{max-height:640px}figure:first-of-type img{max-height:none}
figcaption{color:#555;font-size:.9em}table{border-collapse:collapse;font-size:.85em}
th,td{padding:.25em .6em;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
.scroll{overflow:auto;max-height:34em;border:1px solid #ccc}
table.sortable{border-collapse:separate;border-spacing:0}
table.sortable th{background:#f2f2f2;position:sticky;top:0;vertical-align:bottom}
th button{all:unset;cursor:pointer}th button:focus-visible{outline:2px solid #08519c}
th[aria-sort=ascending] button::after{content:" \\25b2"}th[aria-sort=descending] button::after{content:" \\25bc"}
tr[data-i]{cursor:pointer}tr[data-i]:hover td{background:#f4f7fa}tr.hit td{background:#eaf3e6}tr.shown td{background:#dbe9f6}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}td.long{min-width:14em}
.better{font-weight:bold}pre{overflow:auto;font-size:.8em}
"""
    + structure_viewer.STYLE
)

# Rows without a value come last in both directions; among equal values the order before the click is kept.
SORT_SCRIPT = """document.querySelectorAll("table.sortable").forEach(table => {
  const heads = Array.from(table.querySelectorAll("th"));
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1, body = table.tBodies[0];
    const numeric = head.dataset.type === "number", value = row => row.cells[column].dataset.v;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const compare = (x, y) => numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", {numeric: true});
    const rows = Array.from(body.rows).sort((one, other) => {
      const x = value(one), y = value(other);
      return x === "" || y === "" ? (x === "") - (y === "") : sign * compare(x, y);
    });
    body.append(...rows);
  }));
});"""

COLUMNS = (
    ("id", "id"),
    ("reduced_formula", "formula"),
    ("dimensionality", "kind"),
    ("layer_group_relaxed", "layer group"),
    ("valid", "valid"),
    ("delta_g_h_ev", "ΔG_H (eV)"),
    ("delta_g_h_std_ev", "± (eV)"),
    ("delta_g_h_potential_ev", "ΔG_H potential (eV)"),
    ("delta_g_h_corrected_ev", "ΔG_H corrected (eV)"),
    ("h_in_domain", "in domain"),
    ("e_form_ev", "E_form (eV/atom)"),
    ("e_above_hull_ev", "E_hull (eV/atom)"),
    ("p_synth", "P_synth"),
    ("synthesis_method", "method"),
    ("synthesis_precursors", "precursors"),
    ("relax_rmsd_angstrom", "RMSD (Å)"),
    ("unique", "unique"),
    ("novel", "novel"),
    ("metastable_sun", "metastable S.U.N."),
    ("hit", "hit"),
    ("score_composite", "score"),
    ("legacy_score_composite", "earlier baseline's score"),
    ("seconds", "s"),
    ("status", "status"),
)


def write_page(output_dir: str | os.PathLike) -> Path:
    """``report.html`` from ``report.json`` and the figures beside it: one file that needs no network and no server.

    Every text from a file or a setting is escaped, and the page's own policy lets no script run but the two written here.
    """
    folder = Path(output_dir)
    report = read_report(folder)
    if report is None:
        raise StageError(f"no report.json in {relative_name(folder)}: run the evaluation first")
    title = f"2D HER catalysts: {report['label']}"
    candidates = rank(report["candidates"])
    parts = [f"<h1>{_e(title)}</h1>", "<ul>", *(f"<li>{_e(line)}</li>" for line in report.get("summary", [])), "</ul>"]
    parts += ["<h2>Candidates</h2>", structure_viewer.MARKUP]
    parts.append("<p>Click a row to see its structure, a column title to sort. The id links to the CIF as it was given.</p>")
    parts += [_candidate_table(candidates, _cif_folder(report, folder)), "<h2>Figures</h2>"]
    for name, caption in FIGURES.items():
        path = folder / name
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            image = f'<img alt="{_e(caption)}" src="data:image/png;base64,{data}">'
            pdf = path.with_suffix(".pdf")
            link = f' <a href="{_e(quote(pdf.name))}">PDF</a>' if pdf.is_file() else ""
            parts.append(f"<figure>{image}<figcaption>{_e(caption)}{link}</figcaption></figure>")
    parts += ["<h2>Metrics</h2>", _metrics_table(report["metrics"])]
    if report["bulk"]["n"]:
        parts += [f"<h2>Bulk crystals (n = {report['bulk']['n']}, not 2D)</h2>", _metrics_table(report["bulk"]["metrics"])]
    if "comparison" in report:
        parts += ["<h2>Beside the controls</h2>", _comparison_table(report["comparison"])]
    if report.get("legacy"):
        parts += ["<h2>Beside the scoring of the earlier public baseline</h2>", _legacy_table(report["legacy"])]
    parts += ["<h2>How far to trust each number</h2>", "<table>"]
    parts += [f"<tr><th>{_e(name)}</th><td>{_e(text)}</td></tr>" for name, text in trust(report)]
    parts += ["</table>", "<h2>Provenance</h2>", f"<pre>{_e(json.dumps(report['provenance'], indent=1, ensure_ascii=False))}</pre>"]
    structures = structure_viewer.page_data(_viewed(candidates, report.get("structures", {}), _cif_folder(report, folder)))
    parts.append(f'<script type="application/json" id="structures">{structures}</script>')
    scripts = (SORT_SCRIPT, structure_viewer.SCRIPT)
    parts += [f"<script>{script}</script>" for script in scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><title>{_e(title)}</title><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )
    path = folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _cif_folder(report: Mapping[str, Any], folder: Path) -> str:
    """The folder of the CIFs as seen from the page."""
    relative = os.path.relpath(PROJECT_DIR / report["provenance"]["cif_dir"], folder.resolve())
    return Path(relative).as_posix()


def _viewed(candidates: Sequence[Mapping[str, Any]], structures: Mapping[str, Any], cif_folder: str) -> list[dict[str, Any]]:
    """What the 3D view shows of every candidate."""

    def number(row: Mapping[str, Any], key: str, unit: str, std: str = "") -> str:
        if row.get(key) is None:
            return "–"
        error = f" ± {row[std]:.2f}" if std and row.get(std) is not None else ""
        return f"{row[key]:.2f}{error} {unit}".strip()

    return [
        {
            "id": row["id"],
            "href": quote(f"{cif_folder}/{row['source_file']}"),
            "structure": structures.get(row["id"]),
            "note": "" if row["status"] == "ok" else row["status"],
            "facts": [
                ["formula", row["formula"] or "–"],
                ["symmetry", row["layer_group_relaxed"] or row["space_group_relaxed"] or "–"],
                ["ΔG_H, DimeNet++", number(row, "delta_g_h_ev", "eV", "delta_g_h_std_ev")],
                ["ΔG_H, potential", number(row, "delta_g_h_potential_ev", "eV")],
                ["ΔG_H, corrected", number(row, "delta_g_h_corrected_ev", "eV", "delta_g_h_corrected_std_ev")],
                ["band gap, GFN2-xTB", number(row, "band_gap_ev", "eV")],
                ["E_above_hull", number(row, "e_above_hull_ev", "eV/atom")],
                ["P_synth", number(row, "p_synth", "")],
                *([["method", row["synthesis_method"]]] if row.get("synthesis_method") else []),
                *([["precursors", row["synthesis_precursors"]]] if row.get("synthesis_precursors") else []),
                ["hit", {True: "yes", False: "no", None: "–"}[row["hit"]]],
            ],
        }
        for row in candidates
    ]


def _e(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _metrics_table(found: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{_e(m['name'])}</td><td class=n>{_e(metric_text(m))}</td><td>{_e(m['unit'])}</td><td>{_e(m['doc'])}</td></tr>"
        for m in found.values()
    ]
    head = "<tr><th>metric</th><th>value [95 %] (n_ok/n)</th><th>unit</th><th>meaning</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _comparison_table(content: Mapping[str, Any]) -> str:
    labels = list(content["sets"])
    rows = []
    for name in metrics.COMPARED:
        cells = []
        for label in labels:
            metric = (content["sets"][label]["metrics"] or {}).get(name)
            verdict = content["verdicts"].get(label, {}).get(name, "")
            mark = f" ▲ {verdict} than ours" if verdict.startswith("better") else ""
            css = "n better" if mark else "n"
            cells.append(f'<td class="{css}">{_e(metric_text(metric) + mark if metric else "–")}</td>')
        rows.append(f"<tr><td>{_e(name)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{_e(label)}</th>" for label in labels)
    notes = "".join(f"<li>{_e(label)}: {_e(found['note'])}</li>" for label, found in content["sets"].items() if found["note"])
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table><ul>{notes}</ul>"


LEGACY_NOTE = (
    "For comparison only. The earlier public baseline took the output of DimeNet++ for the structure WITHOUT hydrogen, plus "
    "0.27 eV, for ΔG_H (here: our network, its atomic outputs summed over the cell; the number means nothing), and the TOTAL "
    "energy per atom after at most {steps} steps with a fixed cell for the formation energy in max(0, 1 − exp(e + 0.5)) (near 1 "
    "for every crystal). Its score: 0.4·max(0, 1−2|ΔG|) + 0.3·stability + 0.3·P_synth."
)
LEGACY_TITLES = ("rank there", "rank here", "id", "formula", "verdict here", "score here", "score there", "ΔG_H there (eV)",
                 "E there (eV/atom)", "stability there", "P_synth")  # fmt: skip


def _legacy_table(legacy: Mapping[str, Any]) -> str:
    """The favourites of the earlier public baseline's scoring with our verdicts."""
    rows = []
    for row in legacy["rows"]:
        ours = "–" if row["our_rank"] is None else row["our_rank"]
        texts = [row["rank"], ours, row["id"], row["formula"], row["verdict"]]
        numbers = ["–" if row[k] is None else f"{row[k]:.3f}" for k in ("score_composite", *LEGACY_COLUMNS)]
        cells = [f"<td>{_e(text)}</td>" for text in texts] + [f"<td class=n>{_e(number)}</td>" for number in numbers]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{_e(title)}</th>" for title in LEGACY_TITLES)
    note = f"<p>{_e(legacy_summary(legacy))}</p><p>{_e(LEGACY_NOTE.format(steps=legacy['max_steps']))}</p>"
    return f"{note}<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _candidate_table(candidates: Sequence[Mapping[str, Any]], cif_folder: str) -> str:
    """One row per candidate, ``data-i`` its place in the list; ``data-v`` is what is sorted by, empty without a value."""
    kinds = {field.name: field.type for field in dataclasses.fields(CandidateResult)}
    # Only CSLLM suggests routes: without it their columns would be empty.
    routes = any(row.get("synthesis_method") or row.get("synthesis_precursors") for row in candidates)
    columns = [column for column in COLUMNS if routes or not column[0].startswith("synthesis_")]
    numeric = [kinds[key] in ("float", "int") for key, _ in columns]
    rows = []
    for index, row in enumerate(candidates):
        cells = []
        for (key, _), is_number in zip(columns, numeric, strict=True):
            value = row.get(key)
            if key == "id":
                link = quote(f"{cif_folder}/{row['source_file']}")
                cells.append(f'<td data-v="{_e(value)}"><a href="{_e(link)}">{_e(value)}</a></td>')
            elif isinstance(value, bool) or value is None:
                text = "" if value is None else "yes" if value else "no"
                cells.append(f'<td data-v="{text}">{text}</td>')
            elif is_number:
                cells.append(f'<td class=n data-v="{value!r}">{value:.3f}</td>')
            else:
                cells.append(f'<td{" class=long" if len(value) > 30 else ""} data-v="{_e(value)}">{_e(value)}</td>')
        rows.append(f'<tr data-i="{index}" tabindex=0{" class=hit" if row["hit"] else ""}>{"".join(cells)}</tr>')
    head = "".join(
        f'<th data-type="{"number" if is_number else "text"}"><button type=button>{_e(title)}</button></th>'
        for (_, title), is_number in zip(columns, numeric, strict=True)
    )
    return f"<div class=scroll><table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
