"""How far ΔE_H can be trusted: the hydrogen judge against DFT, printed with every report."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import config
import dft_correction
import metrics

log = logging.getLogger("her2d")

NAN = float("nan")


def truth_report(her: Any, truth_db_path: str | os.PathLike, table_path: str | os.PathLike | None = None) -> dict[str, Any] | None:
    """How well ΔE_H agrees with DFT: ``{n, mae_ev, spearman, ..., uncorrected: {...}, potential: {...}, rows, source}``.

    truth_db_path: ASE database of DFT points (see ``dft_correction.read_truth``). Where the judge carries a correction fitted on
    such points, each is predicted by a correction fitted without any point of its host, so that no row is judged by itself.
    table_path: CSV of literature and DFT values (system, structure, site, coverage, delta_e_ev, delta_g_ev, method, source); rows
    whose ``structure`` names a database row take its prediction, the others are listed without one. None when the database is not
    there: the report says "unverified".
    """
    path = Path(truth_db_path)
    if not path.is_file():
        log.warning("no DFT truth at %s: ΔG_H stays unverified", config.relative_name(path))
        return None
    points = dft_correction.read_truth(path)
    if not points:
        log.warning("%s holds no DFT point: ΔG_H stays unverified", config.relative_name(path))
        return None
    truth = np.array([point.delta_e for point in points])
    raw, std = (np.asarray(values) for values in her.predict_raw([point.atoms for point in points]))
    predicted = raw
    if her.correction is not None:
        features = np.array([dft_correction.descriptors(p.atoms, value) for p, value in zip(points, raw, strict=True)])
        predicted = dft_correction.leave_hosts_out(features, truth, [point.host for point in points])
        std = np.hypot(her.correction.weights[0] * std, her.correction.rmse_ev)
    rows = [
        {
            "name": point.name,
            "host": point.host,
            "site": point.site,
            "delta_e_dft_ev": point.delta_e,
            "delta_e_dimenet_ev": float(value),
            "std_ev": float(error),
            "delta_e_uncorrected_ev": float(uncorrected),
            "delta_e_potential_ev": point.potential_delta_e,
        }
        for point, value, error, uncorrected in zip(points, predicted, std, raw, strict=True)
    ]
    report = {
        "source": config.relative_name(path),
        "sha256": config.file_sha256(path),
        "protocol": "each host predicted by a correction fitted without it" if her.correction else "no DFT correction",
        **metrics.agreement(truth.tolist(), predicted.tolist()),
        "uncorrected": metrics.agreement(truth.tolist(), raw.tolist()),
        "potential": {"name": "sevennet-0", **metrics.agreement(truth.tolist(), [p.potential_delta_e for p in points])},
        "rows": sorted(rows, key=lambda row: row["delta_e_dft_ev"]),
    }
    if table_path is not None and Path(table_path).is_file():
        report["table"] = truth_table(rows, table_path)
    return report


def truth_table(rows: Sequence[dict[str, Any]], table_path: str | os.PathLike) -> dict[str, Any]:
    """The rows of ``her_truth.csv`` beside the predictions on the structures they name; agreement over the rows that have both."""
    by_name = {str(row["name"]): row for row in rows}
    with Path(table_path).open(newline="", encoding="utf-8") as handle:
        table = [dict(entry) for entry in csv.DictReader(handle)]
    for entry in table:
        known = by_name.get(re.split(r"[:#]", entry.get("structure") or "")[-1].strip())
        entry["delta_e_ev"] = _float(entry.get("delta_e_ev"))
        entry["delta_e_dimenet_ev"] = known["delta_e_dimenet_ev"] if known else NAN
    return {
        "source": config.relative_name(table_path),
        **metrics.agreement([e["delta_e_ev"] for e in table], [e["delta_e_dimenet_ev"] for e in table]),
        "rows": table,
    }


def _float(text: str | None) -> float:
    try:
        return float(text) if text not in (None, "") else NAN
    except ValueError:
        return NAN
