"""Measures the judges of ΔE_H against DFT; every report shows the errors."""

from __future__ import annotations

import csv
import logging
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from energetics import dft_correction, dft_points
from evaluation import metrics
from pipeline.errors import StageError
from pipeline.files import file_sha256, relative_name
from pipeline.memory import NO_MEMORY, Memory

log = logging.getLogger("her2d")

NAN = float("nan")
PREDICTION_VERSION = 1  # raised whenever a network predicts something else at the same points
# What is left out of the fits of the potential's correction, and the column of the values that these predict.
LEFT_OUT = {
    "host": "delta_e_potential_corrected_ev",
    "family": "delta_e_potential_family_left_out_ev",
    "chemistry": "delta_e_potential_chemistry_left_out_ev",
}


def dft_benchmark(
    her: Any,
    truth_db_path: str | os.PathLike,
    table_path: str | os.PathLike | None = None,
    potentials: Sequence[Any] = (),
    with_gap: bool = False,
    her_correction_ev: float = 0.27,
    memory: Memory = NO_MEMORY,
) -> dict[str, Any] | None:
    """Measure how well ΔE_H agrees with DFT.

    Where the judge carries a correction fitted on these points, each is predicted by a correction fitted without any point of its
    host, so that no row is judged by itself.

    Args:
        her: DimeNet++ as ``hydrogen.HydrogenPredictor``.
        truth_db_path: ASE database of DFT points (see ``dft_points.read_truth``).
        table_path: CSV of literature and DFT values (system, structure, site, coverage, delta_e_ev, delta_g_ev, method, source).
            Rows whose ``structure`` names a database row take its prediction, the others are listed without one. Its column
            ``activity`` marks sheets that everybody agrees on: every inert one must come out above every active one.
        potentials: those of the evaluation, the judge first; where none is given, those whose values the database holds.
        with_gap: whether the corrections may use the band gap.
        her_correction_ev: ΔG_H − ΔE_H, to tell which points are near zero.
        memory: of fits.

    Returns:
        ``{n, mae_ev, spearman, ..., coverage, uncorrected, potential, potential_corrected, rows, source}``; potential_corrected
        holds the errors with hosts left out of the fit, and as ``family_left_out`` and ``chemistry_left_out`` the others, all of
        them by chemistry of the site too. None without a database; the report then says "unverified".
    """
    path = Path(truth_db_path)
    points = _points_of(path)
    if not points:
        return None
    raw, predicted, std = _by_dimenet(her, points, path, with_gap, memory)
    stored = [name for name in dft_points.STORED_ENERGIES if all(name in point.energies for point in points)]
    potentials = potentials or [SimpleNamespace(name=name) for name in stored]
    energies = _by_potentials(points, potentials)
    latent = dft_points.judged_latent_change(points, potentials[0]) if potentials else None
    left_out = _left_out(points, energies, with_gap, memory, latent)
    columns = {
        "delta_e_dimenet_ev": predicted,
        "std_ev": std,
        "delta_e_uncorrected_ev": raw,
        "delta_e_potential_ev": energies[:, 0],
        **{key: left_out[by][0] for by, key in LEFT_OUT.items()},
    }
    besides = [*(["band gap"] if with_gap else []), *([] if latent is None else ["latent features"])]
    rows = _benchmark_rows(points, columns)
    table = read_table(table_path) if table_path is not None and Path(table_path).is_file() else []
    report = {
        "source": relative_name(path),
        "sha256": file_sha256(path),
        "protocol": "each host predicted by a correction fitted without it" if her.correction else "no DFT correction",
        "hosts": len({point.host for point in points}),
        **_scores(rows, table, columns, [potential.name for potential in potentials], besides),
        "families": len({point.family for point in points}),
        "rows": sorted(rows, key=lambda row: row["delta_e_dft_ev"]),
    }
    _add_coverage(report, points, (predicted, std), left_out, her_correction_ev)
    if table:
        report["table"] = literature_table(rows, table, table_path)
    return report


def _add_coverage(
    report: dict[str, Any],
    points: Sequence[Any],
    by_dimenet: tuple[np.ndarray, np.ndarray],
    left_out: dict[str, tuple[np.ndarray, np.ndarray]],
    her_correction_ev: float,
) -> None:
    """Add to the scores how many errors lie within their standard errors, by chemistry of the site and by origin of the sheet too.

    by_dimenet, and each of left_out: (prediction, standard error), (N,) eV each.
    """
    truth = np.array([point.delta_e for point in points])
    report["coverage"] = metrics.coverage(truth, *by_dimenet, her_correction_ev)
    corrected = report["potential_corrected"]
    for by, found in left_out.items():
        scores = corrected if by == "host" else corrected[f"{by}_left_out"]
        scores["coverage"] = metrics.coverage(truth, *found, her_correction_ev)
        scores["by_chemistry"] = by_label(points, "chemistry", *found, her_correction_ev)
    corrected["by_origin"] = by_label(points, "origin", *left_out["host"], her_correction_ev)


def _scores(
    rows: list[dict[str, Any]],
    table: list[dict[str, Any]],
    columns: dict[str, np.ndarray],
    potentials: Sequence[str],
    besides: Sequence[str],
) -> dict[str, Any]:
    """Return the agreement of every column of predictions with DFT, those of DimeNet++ at the top.

    besides: what the correction of the potentials knows besides their energies.
    """
    reference = [row["delta_e_dft_ev"] for row in rows]

    def agreement(key: str) -> dict[str, Any]:
        return {
            **metrics.agreement(reference, columns[key].tolist()),
            "inert_above_active": inert_above_active(rows, table, key),
        }

    return {
        **agreement("delta_e_dimenet_ev"),
        "uncorrected": agreement("delta_e_uncorrected_ev"),
        "potential": {"name": potentials[0] if potentials else "none", **agreement("delta_e_potential_ev")},
        "potential_corrected": {
            "name": " + ".join([*potentials, *besides]),
            **agreement(LEFT_OUT["host"]),
            "family_left_out": agreement(LEFT_OUT["family"]),
            "chemistry_left_out": agreement(LEFT_OUT["chemistry"]),
        },
    }


def _points_of(path: Path) -> list[Any]:
    """Return the DFT points of a database; none, and a warning, where there is no database or no point."""
    if not path.is_file():
        log.warning("no DFT truth at %s: ΔG_H stays unverified", relative_name(path))
        return []
    points = dft_points.read_truth(path)
    if not points:
        log.warning("%s holds no DFT point: ΔG_H stays unverified", relative_name(path))
    return points


def _raw_predictions(her: Any, points: Sequence[Any], path: Path, memory: Memory) -> tuple[np.ndarray, np.ndarray]:
    """Return ΔE_H by DimeNet++ and its standard error, uncorrected, (N,) eV each; path: the database of the points."""

    def find() -> dict[str, Any]:
        values, std = her.predict_raw([point.atoms for point in points])
        return {"delta_e_ev": np.asarray(values).tolist(), "std_ev": np.asarray(std).tolist()}

    about = {"version": PREDICTION_VERSION, "network": her.provenance.get("sha256"), "points": file_sha256(path)}
    found = memory.answer({"raw predictions": about}, find)
    return np.array(found["delta_e_ev"], dtype=float), np.array(found["std_ev"], dtype=float)


def _by_dimenet(
    her: Any, points: Sequence[Any], path: Path, with_gap: bool, memory: Memory
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predict ΔE_H with DimeNet++.

    Returns:
        (uncorrected, corrected by a fit without the point's host, standard error), each (N,) in eV.
    """
    raw, std = _raw_predictions(her, points, path, memory)
    correction = her.correction
    if correction is None:
        return raw, raw, std
    predicted, sigma = dft_correction.left_out_predictions(
        points, raw, with_gap=with_gap and correction.with_gap, teacher=correction.teacher, memory=memory
    )
    own_error = std if correction.teacher else 0.0  # a fit on the network's own values already contains its error
    return raw, predicted, np.where(np.isfinite(sigma), np.hypot(own_error, correction.error_scale(sigma)), std)


def _left_out(
    points: Sequence[Any], energies: np.ndarray, with_gap: bool, memory: Memory, latent: np.ndarray | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Correct every point by fits without its host, its family or its chemistry.

    Returns:
        Each of LEFT_OUT -> (prediction, standard error), (N,) eV each. The errors have the scale of the shipped fit, by which 68 %
        of the left-out hosts are within them; families and chemistries test it.
    """
    found = {
        by: dft_correction.left_out_predictions(points, energies, by, with_gap, with_place=True, memory=memory, latent=latent)
        for by in LEFT_OUT
    }
    predicted, sigma = found["host"]
    if not np.isfinite(predicted).any():
        return found
    scale = dft_correction.ErrorScale.fit(np.array([point.delta_e for point in points]), predicted, sigma)
    return {by: (values, scale(errors)) for by, (values, errors) in found.items()}


def by_label(
    points: Sequence[Any], label: str, predicted: np.ndarray, std: np.ndarray, her_correction_ev: float = 0.27
) -> dict[str, dict[str, Any]]:
    """Measure predictions by what H binds to, or by where the sheets are from.

    Args:
        points: N DFT points.
        label: "chemistry" or "origin".
        predicted, std: (N,) eV each.
        her_correction_ev: ΔG_H − ΔE_H.

    Returns:
        Label -> what ``metrics.agreement`` returns, and ``coverage``.
    """
    truth, labels = np.array([p.delta_e for p in points]), np.array([getattr(p, label) for p in points])
    found = {}
    for name in sorted(set(labels.tolist())):
        own = labels == name
        found[name] = metrics.agreement(truth[own].tolist(), predicted[own].tolist())
        found[name]["coverage"] = metrics.coverage(truth[own], predicted[own], std[own], her_correction_ev)
    return found


def _by_potentials(points: Sequence[Any], potentials: Sequence[Any]) -> np.ndarray:
    """Return ΔE_H (N, number of potentials) in eV; one column of NaN where there is no potential."""
    return dft_points.judged_delta_e(points, potentials) if potentials else np.full((len(points), 1), np.nan)


def _benchmark_rows(points: Sequence[Any], columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Make one dictionary per point: its name, DFT's value, the columns, its family, what H binds to and where it is from."""
    return [
        {"name": point.name, "host": point.host, "site": point.site, "delta_e_dft_ev": point.delta_e}
        | {key: float(values[k]) for key, values in columns.items()}
        | {"family": point.family, "chemistry": point.chemistry, "origin": point.origin}
        for k, point in enumerate(points)
    ]


def blind_report(
    her: Any,
    blind_path: str | os.PathLike,
    truth_path: str | os.PathLike,
    potentials: Sequence[Any],
    with_gap: bool = False,
    her_correction_ev: float = 0.27,
    memory: Memory = NO_MEMORY,
) -> dict[str, Any]:
    """Measure the judges, as they are used, against DFT points that no fit and no choice of a model has seen.

    Args:
        her: DimeNet++ as ``hydrogen.HydrogenPredictor``.
        blind_path: ASE database of these points.
        truth_path: database of the points that the corrections are fitted on.
        potentials: those of the evaluation, the judge first.
        with_gap: whether the corrections may use the band gap.
        her_correction_ev: ΔG_H − ΔE_H, to tell which points are near zero.
        memory: of fits.

    Returns:
        ``{n, mae_ev, ..., coverage, potential, potential_corrected, rows, source}``; the corrected potential also by where the
        sheets are from.

    Raises:
        StageError: a file is missing, or both have a host in common.
    """
    points = dft_points.read_truth(blind_path)
    known = {point.host for point in dft_points.read_truth(truth_path, with_unbound=True)}
    if seen := sorted({point.host for point in points} & known):
        raise StageError(f"{relative_name(blind_path)} is not blind: {', '.join(seen)} is in {Path(truth_path).name} too")
    structures = [point.atoms for point in points]
    gaps = dft_points.sheet_gaps(points) if with_gap else None
    truth = np.array([point.delta_e for point in points])
    predicted, std = her.predict_delta_e(structures, gaps=gaps)
    energies = dft_points.judged_delta_e(points, potentials)
    correction = dft_correction.fit_potential_correction(potentials, truth_path, with_gap, memory)
    corrected = corrected_std = np.full(len(points), NAN)
    if correction is not None:
        latent = dft_points.judged_latent_change(points, potentials[0]) if correction.latent else None
        corrected, corrected_std = correction.apply(structures, energies, np.zeros(len(points)), gaps, latent)

    def agreement(values: np.ndarray) -> dict[str, Any]:
        return metrics.agreement(truth.tolist(), np.asarray(values).tolist())

    columns = {
        "delta_e_dimenet_ev": predicted,
        "std_ev": std,
        "delta_e_potential_ev": energies[:, 0],
        "delta_e_potential_corrected_ev": corrected,
        "corrected_std_ev": corrected_std,
    }
    return {
        "source": relative_name(blind_path),
        "sha256": file_sha256(blind_path),
        **agreement(predicted),
        "coverage": metrics.coverage(truth, predicted, std, her_correction_ev),
        "potential": agreement(energies[:, 0]),
        "potential_corrected": {
            **agreement(corrected),
            "coverage": metrics.coverage(truth, corrected, corrected_std, her_correction_ev),
            "by_origin": by_label(points, "origin", corrected, corrected_std, her_correction_ev),
        },
        "rows": _blind_rows(points, columns),
    }


def _blind_rows(points: Sequence[Any], columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Make one dictionary per point: its name, site, DFT's value, and the columns."""
    return [
        {"name": point.name, "site": point.site, "delta_e_dft_ev": point.delta_e}
        | {key: float(values[k]) for key, values in columns.items()}
        for k, point in enumerate(points)
    ]


def read_table(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the CSV of literature and DFT values; ``delta_e_ev`` as a number, NaN where it is empty."""
    with Path(path).open(newline="", encoding="utf-8") as handle:
        return [{**entry, "delta_e_ev": _float(entry.get("delta_e_ev"))} for entry in csv.DictReader(handle)]


def named_row(entry: dict[str, Any]) -> str:
    """Return the name of the database row that a table entry points to: what follows the # in its ``structure``."""
    return re.split(r"[:#]", entry.get("structure") or "")[-1].strip()


def inert_above_active(rows: Sequence[dict[str, Any]], table: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    """Count how often an inert sheet comes out above an active one.

    Args:
        rows: points with their predictions; a sheet has the value of its most stable site.
        table: entries whose ``activity`` is "inert" or "active".
        key: name of the prediction.

    Returns:
        ``{"pairs": number of (inert, active) pairs, "violations": those in the wrong order}``.
    """
    lowest: dict[str, float] = {}
    for row in rows:
        lowest[row["name"]] = min(row[key], lowest.get(row["name"], math.inf))
    by_class = {
        kind: sorted({named_row(e) for e in table if (e.get("activity") or "").strip() == kind} & set(lowest))
        for kind in ("inert", "active")
    }
    pairs = [(i, a) for i in by_class["inert"] for a in by_class["active"]]
    return {"pairs": len(pairs), "violations": [f"{i} < {a}" for i, a in pairs if not lowest[i] > lowest[a]]}


def literature_table(rows: Sequence[dict[str, Any]], table: Sequence[dict[str, Any]], path: str | os.PathLike) -> dict[str, Any]:
    """Return the entries of the table with the predictions on the structures that they name, and the agreement of both."""
    by_name = {(str(row["name"]), str(row["site"])): row for row in rows}
    listed = []
    for entry in table:
        known = by_name.get((named_row(entry), str(entry.get("site") or "")))
        listed.append({**entry, "delta_e_dimenet_ev": known["delta_e_dimenet_ev"] if known else NAN})
    return {
        "source": relative_name(path),
        **metrics.agreement([e["delta_e_ev"] for e in listed], [e["delta_e_dimenet_ev"] for e in listed]),
        "rows": listed,
    }


def _float(text: str | None) -> float:
    try:
        return float(text) if text not in (None, "") else NAN
    except ValueError:
        return NAN
