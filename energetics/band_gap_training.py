"""Trains the band gap of ``band_gap_model.py`` on the PBE gaps of C2DB, and measures it beside trivial baselines."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import spglib
from ase import Atoms
from ase.db import connect

from crystals.database import check_ase_database, formula_key, hash_share, split_of
from crystals.descriptors import COMPOSITION_NAMES
from energetics.band_gap_model import KIND, METAL_EV, GapColumns, GapModel, gap_descriptors
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import save_checkpoint
from pipeline.errors import StageError
from pipeline.files import file_sha256, missing_file, relative_name
from pipeline.provenance import write_sidecar
from pipeline.settings import Config

log = logging.getLogger("her2d")

STAGE = "train_band_gap.py"
SOURCE = "C2DB (DTU; Haastrup et al., 2D Materials 5, 042002 (2018); Gjerding et al., 2D Materials 8, 044002 (2021)), PBE gaps"
FOLDS = 5
SPACE_GROUP_PRECISION = 0.05  # Å
MIN_SHEETS = 50  # of the training side, metals and semiconductors together


@dataclass(frozen=True)
class GapTable:
    """Sheets with a gap: descriptors (N, columns), gaps (N,) eV of the database, formula keys, sides and symbols of each sheet."""

    descriptors: np.ndarray
    gaps: np.ndarray
    formulas: np.ndarray
    sides: np.ndarray
    symbols: tuple[frozenset[str], ...]


def true_geometry(atoms: Atoms, space_group: int) -> Atoms | None:
    """Return a sheet with the positions that fit the space group on record.

    A copy of C2DB's 2022 release in circulation holds Cartesian positions over the lengths of the cell in place of fractional ones,
    which distorts every sheet whose cell is not a rectangle: h-BN with bonds of 1.0 Å. The space group, a value of its own in each
    row, tells such rows.

    Args:
        atoms: as stored.
        space_group: number on record.

    Returns:
        The sheet as stored where its space group is that one, or where its cell is a rectangle; the repaired one where that has it;
        None where neither has.
    """
    repaired = atoms.copy()
    repaired.positions = atoms.get_scaled_positions(wrap=False) * atoms.cell.lengths()
    if np.allclose(atoms.positions, repaired.positions, atol=1e-3):
        return atoms
    for candidate in (atoms, repaired):
        cell = (candidate.cell.array, candidate.get_scaled_positions(), candidate.numbers)
        found = spglib.get_symmetry_dataset(cell, symprec=SPACE_GROUP_PRECISION)
        if found is not None and found.number == space_group:
            return candidate
    return None


def read_table(path: Path, split: tuple[int, float, float]) -> tuple[GapTable, Counter]:
    """Read the sheets of an ASE database with key ``gap``, and describe them.

    Args:
        path: the database.
        split: arguments of ``database.split_of`` after the key.

    Returns:
        The table, and counts of rows by what became of them.

    Raises:
        StageError: the file is missing, no database, or has too few gaps on a side.
    """
    if not path.is_file():
        raise missing_file("band_gap.db_path", path, "name a release of C2DB with PBE gaps (key gap)")
    check_ase_database(path)
    counts: Counter = Counter()
    found = []
    for row in connect(path).select():
        gap = row.get("gap")
        if not isinstance(gap, int | float) or not 0 <= gap < np.inf:
            counts["no gap"] += 1
            continue
        try:
            atoms = stored = row.toatoms()
            if row.get("spgnum") is not None:
                atoms = true_geometry(stored, int(row.spgnum))
                if atoms is None:
                    counts["geometry and space group differ"] += 1
                    continue
                counts["geometry repaired"] += atoms is not stored
            descriptors = gap_descriptors(atoms)
        except ValueError as error:  # NotTwoDimensional included
            counts[f"not described: {type(error).__name__}"] += 1
            continue
        key = formula_key(row.formula)
        found.append((descriptors, float(gap), key, split_of(key, *split), frozenset(atoms.get_chemical_symbols())))
    columns = list(zip(*found, strict=True)) or [(), (), (), (), ()]
    table = GapTable(*(np.array(column) for column in columns[:4]), tuple(columns[4]))
    for side in ("train", "val", "test"):
        own = table.gaps[table.sides == side]
        counts[f"{side} sheets"], counts[f"{side} metals"] = len(own), int((own <= METAL_EV).sum())
        if not 0 < counts[f"{side} metals"] < len(own) or (side == "train" and len(own) < MIN_SHEETS):
            raise StageError(
                f"{relative_name(path)}: {len(own)} sheets with a gap on the {side} side, {counts[f'{side} metals']} of them "
                "metals, are too few: name a release of C2DB with PBE gaps (key gap)"
            )
    return table, counts


def fit_trees(table: GapTable, rows: np.ndarray, cfg: Config, columns: slice = slice(None)) -> GapModel:
    """Fit both ensembles.

    Args:
        table: all sheets.
        rows: (N,) bool, those to learn from.
        columns: descriptors to use.
    """
    settings, seed, chosen = cfg.band_gap, cfg.run.seed, table.descriptors[:, columns]
    leaf = {"min_samples_leaf": settings.min_samples_leaf}
    wide = rows & (table.gaps > METAL_EV)
    has_gap = BoostedTrees.fit(chosen[rows], table.gaps[rows] > METAL_EV, settings, seed, classify=True, **leaf)
    width = BoostedTrees.fit(chosen[wide], table.gaps[wide], settings, seed, **leaf)
    counted = Counter(symbol for k in np.flatnonzero(rows) for symbol in table.symbols[k])
    return GapModel(has_gap, width, dict(sorted(counted.items())))


def interval(
    statistic: Callable[[np.ndarray], float], formulas: np.ndarray, seed: int, resamples: int
) -> tuple[float, float, float]:
    """Return a statistic and its 95 % bootstrap interval over formulas, whose polymorphs are not independent.

    Args:
        statistic: (M,) row numbers, some of them several times -> value.
        formulas: (N,) formula of each row.
        seed: of the resamples.
        resamples: number of them.
    """
    groups = [np.flatnonzero(formulas == formula) for formula in np.unique(formulas)]
    rng = np.random.default_rng(seed)
    draws = [statistic(np.concatenate([groups[k] for k in rng.integers(0, len(groups), len(groups))])) for _ in range(resamples)]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(statistic(np.arange(len(formulas)))), float(low), float(high)


def scores(gaps: np.ndarray, order: np.ndarray, truth: np.ndarray, formulas: np.ndarray, cfg: Config) -> dict[str, Any]:
    """Compare gaps with PBE's; every value is [value, low, high] of ``interval``.

    Args:
        gaps: (N,) eV, predicted.
        order: (N,) what rises with the chance of a gap, for the ROC curve.
        truth: (N,) eV, PBE.
        formulas: (N,) of the sheets.
        cfg: seed, resamples, and the gap up to which a sheet conducts.
    """
    from sklearn.metrics import roc_auc_score

    limit, wide = cfg.evaluation.conductive_gap_ev, truth > METAL_EV
    right, conducts = (gaps > METAL_EV) == wide, (gaps <= limit) == (truth <= limit)
    error = np.abs(gaps - truth)

    def area(rows: np.ndarray) -> float:
        return float(roc_auc_score(wide[rows], order[rows])) if 0 < wide[rows].sum() < len(rows) else np.nan

    def of(statistic: Callable[[np.ndarray], float]) -> list[float]:
        return list(interval(statistic, formulas, cfg.run.seed, cfg.evaluation.bootstrap))

    return {
        "n": len(truth),
        "formulas": len(set(formulas)),
        "metals": int((~wide).sum()),
        "metal_or_not_accuracy": of(lambda rows: float(right[rows].mean())),
        "conductive_accuracy": of(lambda rows: float(conducts[rows].mean())),
        "roc_auc": of(area),
        "mae_ev": of(lambda rows: float(error[rows].mean())),
        "mae_of_semiconductors_ev": of(lambda rows: float(error[rows][wide[rows]].mean()) if wide[rows].any() else np.nan),
    }


def measure(table: GapTable, cfg: Config) -> dict[str, dict[str, Any]]:
    """Return ``scores`` on formulas not learnt from: of the model, of trees on the composition alone and of trivial answers.

    "test" is the test side, by trees fitted to the others; "cross-validation" the others, by trees that miss a fold of formulas.
    """
    known, folds = table.sides != "test", np.array([int(FOLDS * hash_share(f"fold:{key}")) for key in table.formulas])
    rounds = {"test": [(~known, known)], "cross-validation": [(known & (folds == f), known & (folds != f)) for f in range(FOLDS)]}
    found = {}
    for name, parts in rounds.items():
        answers = {key: np.full((2, len(folds)), np.nan) for key in ("trees", "trees on composition", "always a metal")}
        for held_out, learnt in parts:
            if not held_out.any():
                continue
            for key, columns in (("trees", slice(None)), ("trees on composition", slice(len(COMPOSITION_NAMES)))):
                model, rows = fit_trees(table, learnt, cfg, columns), table.descriptors[held_out][:, columns]
                answers[key][:, held_out] = model.gaps(rows), model.has_gap.predict(rows)
            answers["always a metal"][:, held_out] = 0.0
        rows = np.isfinite(answers["trees"][0])
        truth, formulas = table.gaps[rows], table.formulas[rows]
        found[name] = {key: scores(*values[:, rows], truth, formulas, cfg) for key, values in answers.items()}
        mean = float(table.gaps[known].mean())
        found[name]["mean gap, mae_ev"] = float(np.abs(mean - truth).mean())
    return found


def train_stage(cfg: Config) -> None:
    """Run the whole stage: descriptors, measurement, the model of all but the test side, checkpoint and sidecar."""
    settings, checkpoint, started = cfg.band_gap, Path(cfg.band_gap.checkpoint), time.time()
    table, counts = read_table(Path(settings.db_path), (cfg.run.seed, cfg.dataset.val_fraction, cfg.dataset.test_fraction))
    log.info("%s", ", ".join(f"{name}: {count}" for name, count in counts.items()))
    metrics = measure(table, cfg)
    model = fit_trees(table, table.sides != "test", cfg)
    save_checkpoint(checkpoint, KIND, GapColumns(), model.state())
    # The sidecar comes last, because it says that the product is complete.
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=[settings.db_path],
        counts=dict(counts),
        metrics=metrics,
        checkpoint_sha256=file_sha256(checkpoint),
        conductive_gap_ev=cfg.evaluation.conductive_gap_ev,
        metal_ev=METAL_EV,
        source=SOURCE,
    )
    for name in ("trees", "trees on composition", "always a metal"):
        row = metrics["test"][name]
        log.info(
            "%s, %d held-out sheets: metal or not %.1f %%, ROC-AUC %.3f, MAE %.3f eV",
            *(name, row["n"], 100 * row["metal_or_not_accuracy"][0], row["roc_auc"][0], row["mae_ev"][0]),
        )
    log.info("%s in %.0f s", relative_name(checkpoint), time.time() - started)
