"""Writes the figures and ``report.json`` of an evaluation.

``report.json`` holds everything that the page shows, so that ``comparison`` can add a set and have the page written again. Of the
candidates these are the best MOST_ROWS, so that it stays small however many there are.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation import figures, structure_figures, structure_viewer
from evaluation.decisions import rank
from evaluation.evaluate import Evaluation
from evaluation.known_sheets import KNOWN, known_rows, literature_surfaces
from evaluation.legacy import legacy_ranking
from evaluation.report_files import MOST_ROWS, metric_dicts
from pipeline.files import PROJECT_DIR, atomic_path, file_sha256, relative_name, write_json
from pipeline.provenance import SCHEMA_VERSION, git_commit
from pipeline.settings import Config


def write_report(
    evaluation: Evaluation,
    cfg: Config,
    output_dir: str | os.PathLike,
    *,
    controls: Mapping[str, Evaluation | str] | None = None,
    truth: Mapping[str, Any] | None = None,
    her_provenance: Mapping[str, Any] | None = None,
    hull: Mapping[str, Any] | None = None,
    known: Sequence[Mapping[str, Any]] = (),
    novelty: Mapping[str, int] | None = None,
    script: str,
) -> dict[str, Any]:
    """Write figures and ``report.json`` of one set.

    Args:
        evaluation: the judged set.
        cfg: the whole configuration; its evaluation settings go into the provenance.
        output_dir: where the files go.
        controls: label -> judged control, or one line that says why it was not run.
        truth: errors of the judges of ΔG_H against DFT.
        her_provenance: where the weights of DimeNet++ come from.
        hull: comparison of E_above_hull with a database.
        known: what the judges say of well-known sheets, as ``known_sheets.known_rows`` gives it, where no control has them.
        novelty: against what it was decided, as ``judges.novelty_sources`` gives it.
        script: the stage that calls, such as "test.py".

    Returns:
        The content of ``report.json``.
    """
    output_dir = Path(output_dir)
    settings = cfg.evaluation
    judged_controls = [found for found in (controls or {}).values() if isinstance(found, Evaluation)]
    control = next((found for found in judged_controls if found.label == KNOWN), None)
    known_sheets = known_rows(control, settings) if control else list(known)
    best, counts = _draw(evaluation, cfg, output_dir, judged_controls, truth, known_sheets)
    shown = sorted(rank(evaluation.rows)[:MOST_ROWS], key=lambda row: row.id)
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "stage": script,
        "label": evaluation.label,
        "metrics": metric_dicts(evaluation.aggregates),
        "bulk": {"n": sum(row.is_bulk for row in evaluation.rows), "metrics": metric_dicts(evaluation.bulk_aggregates)},
        "funnel": counts,
        "best": best,
        "legacy": legacy_ranking(evaluation.rows, settings),
        "truth": dict(truth) if truth else {"n": 0, "mae_ev": None, "spearman": None, "rows": []},
        "hull_parity": dict(hull) if hull else None,
        "controls": {label: _control(found) for label, found in (controls or {}).items()},
        "known": known_sheets,
        "provenance": _provenance(evaluation, cfg, her_provenance or {}, novelty or {}),
        "n_candidates": len(evaluation.rows),
        "candidates": [dataclasses.asdict(row) for row in shown],
        "structures": {
            row.id: structure_viewer.encode(evaluation.structures[row.id]) for row in shown if row.id in evaluation.structures
        },
    }
    # Read back, so that the page gets what every later reader of the file gets.
    write_json(output_dir / "report.json", content)
    return json.loads((output_dir / "report.json").read_text(encoding="utf-8"))


def _draw(
    evaluation: Evaluation,
    cfg: Config,
    output_dir: Path,
    controls: Sequence[Evaluation],
    truth: Mapping[str, Any] | None,
    known_sheets: Sequence[Mapping[str, Any]],
) -> tuple[list[str], dict[str, int]]:
    """Draw the figures, and return which candidates are the best and how many are left after each condition."""
    settings = cfg.evaluation
    best = structure_figures.generated_structures(evaluation, settings, output_dir / "generated_structures.png")
    surfaces = literature_surfaces(truth, cfg.dataset.her_correction_ev)
    figures.her_performance(evaluation, settings, output_dir / "her_performance.png", known_sheets, surfaces)
    figures.stability_curve([evaluation, *controls], settings, output_dir / "stability_curve.png")
    counts = figures.funnel(evaluation, settings, output_dir / "funnel.png")
    if truth and truth["n"]:
        figures.truth_parity(truth, output_dir / "truth_parity.png")
    copy_loss_curve(cfg, output_dir)
    return best, counts


def _control(found: Evaluation | str) -> dict[str, Any]:
    """Return what ``report.json`` holds of a control: its metrics, or why there are none."""
    if isinstance(found, Evaluation):
        return {"metrics": metric_dicts(found.aggregates), "cif_dir": relative_name(found.cif_dir), "note": ""}
    return {"metrics": None, "note": found}


def _provenance(evaluation: Evaluation, cfg: Config, her: Mapping[str, Any], novelty: Mapping[str, int]) -> dict[str, Any]:
    """Return which files, judges, settings and code gave the numbers."""
    settings = dataclasses.asdict(cfg.evaluation)
    return {
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git_commit": git_commit(),
        "seed": cfg.run.seed,
        "cif_dir": relative_name(evaluation.cif_dir),
        "cif_dir_sha256": file_sha256(evaluation.cif_dir),
        "judges": evaluation.identity,
        "novelty": dict(novelty),
        "her": dict(her),
        "settings": {k: v for k, v in settings.items() if not (isinstance(v, str) and os.path.isabs(v))},
        "seconds": evaluation.elapsed_seconds,
    }


def copy_loss_curve(cfg: Config, output_dir: Path) -> None:
    """Copy stage 3's ``loss_curve.png`` and ``.pdf`` beside the report, from the checkpoint's folder or from ``weights/``."""
    for folder in (Path(cfg.denoiser.checkpoint).parent, PROJECT_DIR / "weights"):
        if not (folder / "loss_curve.png").is_file() or folder.resolve() == output_dir.resolve():
            continue
        for name in ("loss_curve.png", "loss_curve.pdf"):
            # Where this training has no PDF, that of another training must not stay beside the PNG.
            (output_dir / name).unlink(missing_ok=True)
            if (folder / name).is_file():
                with atomic_path(output_dir / name) as temporary:
                    shutil.copyfile(folder / name, temporary)
        return
