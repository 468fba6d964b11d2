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
from ase import Atoms

import config
import metrics
from geo_utils import H_TAG, SUBSURFACE_TAG, SURFACE_DEPTH, SURFACE_TAG

log = logging.getLogger("her2d")

NAN = float("nan")


def truth_report(her: Any, truth_db_path: str | os.PathLike, table_path: str | os.PathLike | None = None) -> dict[str, Any] | None:
    """How well ΔE_H agrees with DFT: ``{n, mae_ev, spearman, mean_error_ev, potential: {...}, rows, source}``.

    truth_db_path: ASE database whose rows ``kind=slab_H`` are sheets with H as the last atom, with ``dE_dft`` and, where known,
    ``dE_7net0`` in eV. DimeNet++ predicts on those very geometries. table_path: CSV of literature and DFT values (system,
    structure, site, coverage, delta_e_ev, delta_g_ev, method, source); rows whose ``structure`` names a database row take its
    geometry, the others are listed without a prediction. None when the database is not there: the report says "unverified".
    """
    import ase.db

    path = Path(truth_db_path)
    if not path.is_file():
        log.warning("no DFT truth at %s: ΔG_H stays unverified", config.relative_name(path))
        return None
    entries = [row for row in ase.db.connect(path).select(kind="slab_H") if "dE_dft" in row]
    atoms = [tagged(row.toatoms()) for row in entries]
    mean, std = her.predict_delta_e(atoms) if atoms else (np.empty(0), np.empty(0))
    rows = [
        {
            "name": row.get("name"),
            "host": row.get("host"),
            "site": row.get("site"),
            "delta_e_dft_ev": float(row.dE_dft),
            "delta_e_dimenet_ev": float(value),
            "std_ev": float(error),
            "delta_e_potential_ev": float(row.get("dE_7net0", NAN)),
        }
        for row, value, error in zip(entries, np.asarray(mean), np.asarray(std), strict=True)
    ]
    truth = [row["delta_e_dft_ev"] for row in rows]
    report = {
        "source": config.relative_name(path),
        "sha256": config.file_sha256(path),
        **metrics.agreement(truth, [row["delta_e_dimenet_ev"] for row in rows]),
        "potential": {"name": "sevennet-0", **metrics.agreement(truth, [row["delta_e_potential_ev"] for row in rows])},
        "rows": sorted(rows, key=lambda row: row["delta_e_dft_ev"]),
    }
    if table_path is not None and Path(table_path).is_file():
        report["table"] = truth_table(rows, table_path)
    return report


def tagged(atoms: Atoms) -> Atoms:
    """A sheet with H as its last atom, with OC20's tags as ``geo_utils.add_hydrogen`` sets them."""
    if atoms.numbers[-1] != 1:
        raise config.StageError(f"the last atom of {atoms.get_chemical_formula()} in the DFT truth is no H")
    heights = atoms.positions[:-1, 2]
    sign = 1.0 if atoms.positions[-1, 2] >= heights.mean() else -1.0
    surface = sign * heights >= (sign * heights).max() - SURFACE_DEPTH
    atoms.set_tags([*np.where(surface, SURFACE_TAG, SUBSURFACE_TAG), H_TAG])
    return atoms


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
