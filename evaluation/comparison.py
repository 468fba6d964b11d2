"""Compares our candidates with the controls and with somebody else's."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from energetics.potential_loading import without_paths
from evaluation import figures, metrics
from evaluation.known_sheets import KNOWN
from evaluation.page import write_page
from evaluation.report_files import CONTROLS, OURS, read_report
from evaluation.summary import better_in, number_text, summary
from pipeline.files import PROJECT_DIR, atomic_path, file_sha256, write_json
from pipeline.settings import Config


def update_comparison(cfg: Config, folder: str | os.PathLike) -> dict[str, Any]:
    """Compare ours, both controls and the external set, and write the comparison to the folder of one of the two reports.

    A set that other judges or other settings judged is not compared. Writes ``comparison.csv`` and ``comparison.png``, puts the
    comparison into ``report.json`` and writes ``report.html`` again. The other folder is only read.

    Args:
        cfg: the settings; both folders are named in it.
        folder: ``evaluation.output_dir`` or ``external.output_dir``.

    Returns:
        ``{"sets": label -> {metrics (None where not compared), note}, "verdicts": label -> metric -> the set against ours}``. An
        external set that has the files of another set has ``same_as``, the label of that set, and no verdicts of its own.
    """
    ours, external = read_report(cfg.evaluation.output_dir), read_report(cfg.external.output_dir)
    sets = _sets(cfg, ours, external)
    content = {
        "sets": sets,
        "verdicts": {
            label: metrics.compare(found["metrics"], sets[OURS]["metrics"])
            for label, found in sets.items()
            if label != OURS and found["metrics"] and sets[OURS]["metrics"] and "same_as" not in found
        },
    }
    report = external if Path(folder) == Path(cfg.external.output_dir) else ours
    if report is not None:
        _write_comparison(content, report, Path(folder))
    return content


def _sets(cfg: Config, ours: Mapping[str, Any] | None, external: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return metrics and note of every set by its label; no metrics where it was not run, or not judged as the newest set was."""
    newest = max((r for r in (ours, external) if r), key=lambda r: r["provenance"]["created_utc"], default=None)
    name = cfg.external.name
    sets: dict[str, dict[str, Any]] = {}

    def add(label: str, source: Mapping[str, Any] | None, found: Mapping[str, Any] | None, hint: str) -> None:
        if source is None or found is None or found.get("metrics") is None:
            sets[label] = {"metrics": None, "note": (found or {}).get("note") or f"not run: {hint}"}
        elif _judged_by(source) != _judged_by(newest):
            sets[label] = {"metrics": None, "note": f"judged by other judges or settings: {hint}"}
        else:
            sets[label] = {"metrics": found["metrics"], "note": found.get("note", "")}

    add(OURS, ours, ours, "python test.py")
    for label in CONTROLS:
        add(label, ours, (ours or {}).get("controls", {}).get(label), "python test.py")
    add(name, external, external, "python evaluate_external.py")
    if sets[name]["metrics"] and (other := _same_files(cfg, ours, external["provenance"]["cif_dir_sha256"])):
        what = f"{other.replace(' ', '-')} control" if other in CONTROLS else "set of ours"
        sets[name] |= {"note": f"these are the files of the {what}, see there", "same_as": other}
    return sets


def _same_files(cfg: Config, ours: Mapping[str, Any] | None, sha256: str) -> str:
    """Return the label of the set, ours or a control that was judged, whose folder has this hash; empty where none has."""
    if ours is None:
        return ""
    if ours["provenance"]["cif_dir_sha256"] == sha256:
        return OURS
    for label, found in ours.get("controls", {}).items():
        given = {"random decoration": cfg.evaluation.random_cif_dir, KNOWN: cfg.evaluation.known_cif_dir}.get(label)
        folder = PROJECT_DIR / (given or found.get("cif_dir") or "")
        if found.get("metrics") and folder != PROJECT_DIR and folder.is_dir() and file_sha256(folder) == sha256:
            return label
    return ""


def compared_sets(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the sets that stand side by side: all but one that has the files of another. content: of ``update_comparison``."""
    return {label: found for label, found in content["sets"].items() if not found.get("same_as")}


def _write_comparison(content: Mapping[str, Any], report: dict[str, Any], folder: Path) -> None:
    """Write the comparison beside one report, and the report again with the comparison in it."""
    write_comparison_table(content, folder / "comparison.csv")
    side_by_side = {label: found["metrics"] for label, found in compared_sets(content).items()}
    note = "; ".join(f"{label}: {found['note']}" for label, found in content["sets"].items() if found.get("same_as"))
    figures.comparison(side_by_side, folder / "comparison.png", note)
    report["comparison"] = content
    report["summary"] = summary(report)
    last = ("provenance", "candidates", "structures")
    order = (*(key for key in report if key not in last), *(key for key in last if key in report))
    write_json(folder / "report.json", {key: report[key] for key in order})
    write_page(folder)


def _judged_by(report: Mapping[str, Any] | None) -> Any:
    """Return what has to be equal for two sets to be compared: the judges without their paths, and the settings that matter."""
    provenance = (report or {}).get("provenance", {})
    finalists = ("finalists", "hazards", "leave_out_hazards", "max_price_usd_per_kg")
    places = ("relaxed_dir", "judged_before")  # where answers are kept, which does not change them
    # Further databases are named with the judges.
    ignored = ("workers", "shard", "top_k", "hull_db", "hull_rows", "known_db", *places, *finalists)
    settings = {key: value for key, value in provenance.get("settings", {}).items() if key not in ignored}
    return without_paths(provenance.get("judges", {})), settings


def write_comparison_table(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write one row per set: value, 95 % interval, n_ok and n of every compared metric, and the metrics in which it beats ours.

    A number that is missing is an empty cell, and so are all numbers of a set that has the files of another.
    """
    names = metrics.COMPARED
    columns = [f"{name}{part}" for name in names for part in ("", "_low", "_high", "_n_ok", "_n")]
    header = ["set", *columns, "better_than_ours_in", "note"]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        for label, found in content["sets"].items():
            cells: list[Any] = [label]
            for name in names:
                metric = None if found.get("same_as") else (found["metrics"] or {}).get(name)
                cells += [number_text(metric[k]) for k in ("value", "low", "high", "n_ok", "n")] if metric else ["", "", "", "", ""]
            writer.writerow([*cells, "; ".join(better_in(content["verdicts"].get(label, {}))), found["note"]])
