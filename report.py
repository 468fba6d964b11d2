"""Products of an evaluation: figures, ``comparison.csv``, ``report.json`` and ``report.html``, one self-contained page.

``report.json`` holds everything the page shows, so that the page can be written again when another set has been judged.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import html
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import config
import figures
import metrics
import structure_viewer
from evaluators import Evaluation
from judge_pool import without_paths
from judging import CandidateResult

log = logging.getLogger("her2d")

CONTROLS = ("unguided", "random decoration")
OURS = "ours"

FIGURES = {
    "generated_structures.png": "The best candidates after relaxation, top and side view; dashed: the primitive cell. In "
    "compounds, contacts between metals are not drawn.",
    "her_performance.png": "ΔG_H of every candidate by each judge, and their place on the HER volcano. A value beyond an axis is "
    "an arrow with its number.",
    "stability_curve.png": "How many candidates lie below a given E_above_hull.",
    "funnel.png": "Candidates left after each condition.",
    "comparison.png": "Our candidates beside the controls, judged alike.",
    "hull_parity.png": "E_above_hull beside that of a database, on the same monolayers; dashed: the limit of the verdict.",
    "truth_parity.png": "DimeNet++ and the potential against our own DFT values: how far ΔG_H can be trusted.",
    "loss_curve.png": "Training of the generator.",
}


def write_report(
    evaluation: Evaluation,
    cfg: config.Config,
    output_dir: str | os.PathLike,
    *,
    controls: Mapping[str, Evaluation | str] | None = None,
    truth: Mapping[str, Any] | None = None,
    her_provenance: Mapping[str, Any] | None = None,
    hull: Mapping[str, Any] | None = None,
    script: str,
) -> dict[str, Any]:
    """Writes figures, ``report.json``, ``comparison.*`` and ``report.html`` of one set; returns the content of ``report.json``.

    controls: label -> judged control, or one line that says why it was not run.
    """
    output_dir = Path(output_dir)
    settings = cfg.evaluation
    judged_controls = {label: found for label, found in (controls or {}).items() if isinstance(found, Evaluation)}
    best = figures.generated_structures(evaluation, settings, output_dir / "generated_structures.png")
    figures.her_performance(evaluation, settings, output_dir / "her_performance.png")
    figures.stability_curve([evaluation, *judged_controls.values()], settings, output_dir / "stability_curve.png")
    counts = figures.funnel(evaluation, settings, output_dir / "funnel.png")
    if truth and truth["n"]:
        figures.truth_parity(truth, output_dir / "truth_parity.png")
    copy_loss_curve(cfg, output_dir)

    content: dict[str, Any] = {
        "schema_version": config.SCHEMA_VERSION,
        "stage": script,
        "label": evaluation.label,
        "metrics": _metrics(evaluation.aggregates),
        "bulk": {"n": sum(row.is_bulk for row in evaluation.rows), "metrics": _metrics(evaluation.bulk_aggregates)},
        "funnel": counts,
        "best": best,
        "legacy": metrics.legacy_ranking(evaluation.rows, settings),
        "truth": dict(truth) if truth else {"n": 0, "mae_ev": None, "spearman": None, "rows": []},
        "hull_parity": dict(hull) if hull else None,
        "controls": {
            label: {"metrics": _metrics(found.aggregates), "cif_dir": config.relative_name(found.cif_dir), "note": ""}
            if isinstance(found, Evaluation)
            else {"metrics": None, "note": found}
            for label, found in (controls or {}).items()
        },
        "provenance": {
            "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "git_commit": config.git_commit(),
            "seed": cfg.run.seed,
            "cif_dir": config.relative_name(evaluation.cif_dir),
            "cif_dir_sha256": config.file_sha256(evaluation.cif_dir),
            "judges": evaluation.identity,
            "her": dict(her_provenance or {}),
            "settings": {k: v for k, v in dataclasses.asdict(settings).items() if not (isinstance(v, str) and os.path.isabs(v))},
            "seconds": evaluation.elapsed_seconds,
        },
        "candidates": [dataclasses.asdict(row) for row in evaluation.rows],
        "structures": {name: structure_viewer.encode(atoms) for name, atoms in sorted(evaluation.structures.items())},
    }
    # The page and every later reader see the same content: what JSON keeps.
    config.write_json(output_dir / "report.json", content)
    return json.loads((output_dir / "report.json").read_text(encoding="utf-8"))


def _metrics(found: Mapping[str, metrics.Metric]) -> dict[str, Any]:
    return {name: dataclasses.asdict(metric) for name, metric in found.items()}


def copy_loss_curve(cfg: config.Config, output_dir: Path) -> None:
    """Puts stage 3's ``loss_curve.png`` and ``.pdf`` beside the report, from the checkpoint's folder or from ``weights/``."""
    for folder in (Path(cfg.denoiser.checkpoint).parent, config.PROJECT_DIR / "weights"):
        if not (folder / "loss_curve.png").is_file() or folder.resolve() == output_dir.resolve():
            continue
        for name in ("loss_curve.png", "loss_curve.pdf"):
            # A PDF of another training must not stay beside the PNG.
            (output_dir / name).unlink(missing_ok=True)
            if (folder / name).is_file():
                with config.atomic_path(output_dir / name) as temporary:
                    shutil.copyfile(folder / name, temporary)
        return


# --------------------------------------------------------------------------------------------------------------- comparison


def read_report(output_dir: str | os.PathLike) -> dict[str, Any] | None:
    """``report.json`` of a folder; None where there is none of this schema."""
    path = Path(output_dir) / "report.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError):
        log.warning("%s is not readable and is left out of the comparison", config.relative_name(path))
        return None
    return content if isinstance(content, dict) and content.get("schema_version") == config.SCHEMA_VERSION else None


def update_comparison(cfg: config.Config) -> dict[str, Any]:
    """Brings together ours, both controls and the external set from the two ``report.json``, and writes ``comparison.csv``,
    ``comparison.png`` and ``report.html`` beside each of them. Sets judged by other judges or settings are not compared."""
    ours_dir, external_dir = Path(cfg.evaluation.output_dir), Path(cfg.external.output_dir)
    ours, external = read_report(ours_dir), read_report(external_dir)
    newest = max((r for r in (ours, external) if r), key=lambda r: r["provenance"]["created_utc"], default=None)
    name = cfg.external.name
    sets: dict[str, dict[str, Any]] = {}

    def put(label: str, source: Mapping[str, Any] | None, found: Mapping[str, Any] | None, hint: str) -> None:
        if source is None or found is None or found.get("metrics") is None:
            sets[label] = {"metrics": None, "note": (found or {}).get("note") or f"not run: {hint}"}
        elif _judged_by(source) != _judged_by(newest):
            sets[label] = {"metrics": None, "note": f"judged by other judges or settings: {hint}"}
        else:
            sets[label] = {"metrics": found["metrics"], "note": found.get("note", "")}

    put(OURS, ours, ours, "python test.py")
    for label in CONTROLS:
        put(label, ours, (ours or {}).get("controls", {}).get(label), "python test.py")
    put(name, external, external, "python evaluate_external.py")
    random_dir = Path(cfg.evaluation.random_cif_dir)
    if sets[name]["metrics"] and random_dir.is_dir() and external["provenance"]["cif_dir_sha256"] == config.file_sha256(random_dir):
        sets[name]["note"] = "these are the files of the random-decoration control"
    content = {
        "sets": sets,
        "verdicts": {
            label: metrics.compare(found["metrics"], sets[OURS]["metrics"])
            for label, found in sets.items()
            if label != OURS and found["metrics"] and sets[OURS]["metrics"]
        },
    }
    for folder, report in ((ours_dir, ours), (external_dir, external)):
        if report is None:
            continue
        write_comparison_table(content, folder / "comparison.csv")
        figures.comparison({label: found["metrics"] for label, found in sets.items()}, folder / "comparison.png")
        report["comparison"] = content
        report["summary"] = summary(report)
        last = ("provenance", "candidates", "structures")
        config.write_json(
            folder / "report.json",
            {k: report[k] for k in (*(k for k in report if k not in last), *(k for k in last if k in report))},
        )
        write_page(folder)
    return content


def _judged_by(report: Mapping[str, Any] | None) -> Any:
    provenance = (report or {}).get("provenance", {})
    ignored = ("workers", "top_k", "finalists", "hull_db", "hull_rows")
    settings = {key: value for key, value in provenance.get("settings", {}).items() if key not in ignored}
    return without_paths(provenance.get("judges", {})), settings


def write_comparison_table(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """One row per set: value, 95 % interval, n_ok and n of every compared metric, and where a control beats ours."""
    names = metrics.COMPARED
    columns = [f"{name}{part}" for name in names for part in ("", "_low", "_high", "_n_ok", "_n")]
    header = ["set", *columns, "better_than_ours_in", "note"]
    with config.atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        for label, found in content["sets"].items():
            cells: list[Any] = [label]
            for name in names:
                metric = (found["metrics"] or {}).get(name)
                cells += [_number(metric[k]) for k in ("value", "low", "high", "n_ok", "n")] if metric else ["", "", "", "", ""]
            writer.writerow([*cells, "; ".join(better_in(content["verdicts"].get(label, {}))), found["note"]])


def better_in(verdicts: Mapping[str, str]) -> list[str]:
    """Metrics in which a control beats ours, '(clear)' where the intervals part."""
    return [f"{name}{verdict.removeprefix('better')}" for name, verdict in verdicts.items() if verdict.startswith("better")]


def _number(value: float | None) -> str:
    return "nan" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.6g}"


# ------------------------------------------------------------------------------------------------------------------ summary


def summary(report: Mapping[str, Any]) -> list[str]:
    """The result in plain sentences."""
    found, funnel = report["metrics"], report["funnel"]
    n = found["hit_rate"]["n"]

    def count(name: str) -> int:
        return round((found[name]["value"] or 0.0) * n)

    settings = report["provenance"]["settings"]
    window, hull = f"{settings['hit_delta_g_ev']:g} eV", f"{settings['hit_e_hull_ev']:g} eV/atom"
    hits = [
        f"{count(name)} by {judge}"
        for name, judge in (
            ("hit_rate", "DimeNet++"),
            ("hit_rate_potential", "the potential's own ΔG_H"),
            ("hit_rate_corrected", "the same corrected from DFT"),
        )
        if name in found and found[name]["n_ok"]
    ]
    lines = [
        f"{next(iter(funnel.values()))} CIFs were judged: {count('rate_valid')} of {n} two-dimensional candidates are valid "
        f"monolayers, {count('rate_converged')} relax to convergence, {count('rate_metastable')} lie at most {hull} above the "
        "hull.",
        f"Hits (valid, |ΔG_H| ≤ {window}, E_above_hull ≤ {hull}): {', '.join(hits) or 'no verdict'}.",
        f"Mean |ΔG_H| {_text(found['mae_delta_g_ev'])} eV; Score_stab {_text(found['score_stab'])}; "
        f"Rate_synth {_text(found['rate_synth'])}; metastable S.U.N. {_text(found['rate_metastable_sun'])}.",
    ]
    if report["bulk"]["n"]:
        lines.append(
            f"{report['bulk']['n']} of the files are bulk crystals: flagged as not 2D, scored where a score is defined, in no "
            "average above."
        )
    if legacy := report.get("legacy"):
        lines.append(legacy_summary(legacy))
    truth = report["truth"]
    if truth.get("n"):
        corrected = truth.get("potential_corrected") or {}
        second = ""
        if corrected.get("n"):
            second = f", the corrected potential by {_plain(corrected['mae_ev'])} eV ({_plain(corrected['spearman'])})"
        lines.append(
            f"On {truth['n']} DFT values of hosts left out, DimeNet++ is off by {_plain(truth['mae_ev'])} eV on average (rank "
            f"correlation {_plain(truth['spearman'])}){second}: a single ΔG_H within ±{window} is a lead to verify, not a result."
        )
    else:
        lines.append("No DFT truth was at hand: ΔG_H is unverified.")
    if report["label"] == OURS:
        for label, verdicts in report.get("comparison", {}).get("verdicts", {}).items():
            lines.append(f"{label}: better than ours in {', '.join(better_in(verdicts)) or 'nothing that is compared'}.")
    return lines


def legacy_summary(legacy: Mapping[str, Any]) -> str:
    """What the ranking of the earlier public baseline has to do with ours, in one sentence."""
    verdicts = ", ".join(f"{count} {name}" for name, count in legacy["verdicts"].items())
    rank = f"rank correlation {_plain(legacy['spearman'])} over {legacy['n_both']} candidates with both scores, "
    return (
        f"Against the scoring of the earlier public baseline: {rank if legacy['n_both'] else ''}{legacy['overlap']} of its "
        f"{legacy['of']} favourites are among our first {metrics.LEGACY_TOP}; here they are: {verdicts}."
    )


def _text(metric: Mapping[str, Any]) -> str:
    values = {k: math.nan if metric[k] is None else metric[k] for k in ("value", "low", "high")}
    return metrics.Metric(**{**metric, **values}).text()


def _plain(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.2f}"


def _hull_text(hull: Mapping[str, Any] | None) -> str:
    if not hull or not hull["n_ok"]:
        return "It was not compared with a DFT hull (evaluation.hull_db)."
    agrees = f"the verdict at {hull['limit_ev']:g} eV/atom agrees for {100 * hull['agree']:.0f} %"
    return (
        f"On {hull['n_ok']} of {hull['n']} monolayers drawn from {hull['source']}: MAE {_plain(hull['mae_ev'])} eV/atom, "
        f"median error {_plain(hull['median_error_ev'])} eV/atom, Spearman {_plain(hull['spearman'])}; {agrees} "
        f"({hull['stable_ours_only']} stable only here, {hull['stable_theirs_only']} only there)."
    )


def trust(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How far each number can be trusted: (number, measured evidence)."""
    truth, judges, found = report["truth"], report["provenance"]["judges"], report["metrics"]
    potential = judges.get("potential", {}).get("name", "the potential")

    def errors(score: Mapping[str, Any]) -> str:
        mae, shift, rank = (_plain(score.get(key)) for key in ("mae_ev", "mean_error_ev", "spearman"))
        text = f"MAE {mae} eV, mean error {shift} eV, Spearman {rank} (n = {score.get('n', 0)})"
        order = score.get("inert_above_active") or {}
        if pairs := order.get("pairs"):
            right = pairs - len(order["violations"])
            text += f"; an inert sheet comes out above an active one in {right} of {pairs} pairs"
        return text

    rows = []
    if truth.get("n"):
        rows = [
            (
                "ΔG_H by DimeNet++",
                f"Against our DFT (PBE) values on the same geometries, {truth.get('source', '')}: {errors(truth)}; "
                f"{truth.get('protocol', '')}. Without it: {errors(truth.get('uncorrected', {}))}. Inside its training "
                f"domain: {_text(found['rate_her_in_domain'])}. ± is one calibrated standard error.",
            ),
            (
                "ΔG_H by the potential",
                f"{truth['potential'].get('name', '')} against the same values: {errors(truth['potential'])}. Potentials bind H "
                "too strongly on inert basal planes; this is a second opinion that did not guide the generator.",
            ),
        ]
        if corrected := truth.get("potential_corrected"):
            rows.append(
                (
                    "ΔG_H by the potential, corrected",
                    f"ΔE_H from {corrected.get('name', '')}, by a fit to the same DFT values, each host predicted by a fit without "
                    f"it: {errors(corrected)}.",
                )
            )
        if blind := truth.get("blind"):
            rows.append(
                (
                    "ΔG_H, blind",
                    f"{blind['n']} DFT values of {blind['source']} on sheets drawn at random, which nothing was fitted on: "
                    f"DimeNet++ {errors(blind)}; the potential {errors(blind['potential'])}; corrected "
                    f"{errors(blind['potential_corrected'])}.",
                )
            )
        if table := truth.get("table"):
            listed = f"{len(table['rows'])} rows of {table['source']}, those with a structure"
            rows.append(("ΔE_H, table of truth", f"{listed}: {errors(table)}."))
    else:
        rows.append(("ΔG_H", "No DFT truth was at hand: the numbers are unverified."))
    matcher = ", ".join(f"{key} {value}" for key, value in judges.get("structure_matcher", {}).items())
    synth = judges.get("synthesizability", {})
    auc = synth.get("test_roc_auc")
    rows += [
        (
            "E_form, E_above_hull",
            f"{potential} against elements and competing phases of the same potential only. A phase that is not among the "
            f"references cannot lower the hull: E_above_hull is a lower bound. {_hull_text(report.get('hull_parity'))}",
        ),
        (
            "P_synth",
            f"{synth.get('name', '')}: probability of the label 'synthesizable'"
            + (f"; ROC-AUC {auc:.2f} on held-out formulas" if auc else "")
            + ". It ranks; it is no promise that a synthesis exists.",
        ),
        (
            "unique, novel",
            f"StructureMatcher {matcher}; novel means absent from {_path(judges, 'training_set')}, not from the literature.",
        ),
        ("charge-neutral possible", "SMACT with alloys of metals allowed: necessary, not sufficient."),
        (
            "intervals",
            "95 %, bootstrap over candidates (Wilson where all candidates agree): they carry the luck of the draw, not the error "
            "of the judges.",
        ),
    ]
    return rows


def _path(judges: Mapping[str, Any], key: str) -> str:
    return str(judges.get(key, {}).get("path", "the training database"))


# --------------------------------------------------------------------------------------------------------------------- page

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
        raise config.StageError(f"no report.json in {config.relative_name(folder)}: run the evaluation first")
    title = f"2D HER catalysts: {report['label']}"
    candidates = sorted(report["candidates"], key=_best_first)
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
    with config.atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _best_first(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The order of ``figures.rank`` with the candidates that it leaves out at the end."""
    score = row["score_composite"]
    return not row["hit_corrected"], not row["hit"], not row["valid"], score is None, -(score or 0.0), row["id"]


def _cif_folder(report: Mapping[str, Any], folder: Path) -> str:
    """The folder of the CIFs as seen from the page."""
    relative = os.path.relpath(config.PROJECT_DIR / report["provenance"]["cif_dir"], folder.resolve())
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
        f"<tr><td>{_e(m['name'])}</td><td class=n>{_e(_text(m))}</td><td>{_e(m['unit'])}</td><td>{_e(m['doc'])}</td></tr>"
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
            cells.append(f'<td class="{css}">{_e(_text(metric) + mark if metric else "–")}</td>')
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
        numbers = ["–" if row[k] is None else f"{row[k]:.3f}" for k in ("score_composite", *metrics.LEGACY_COLUMNS)]
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


def log_summary(report: Mapping[str, Any], output_dir: str | os.PathLike, names: Sequence[str] = metrics.COMPARED) -> None:
    """One screen at the end of a stage."""
    for line in report["summary"]:
        log.info("%s", line)
    for name in names:
        if name in report["metrics"]:
            log.info("  %-26s %s", name, _text(report["metrics"][name]))
    log.info("%s", config.relative_name(Path(output_dir) / "report.html"))
