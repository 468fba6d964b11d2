"""Trains the trees of ``activity_model.py`` on what the judge said of sheets, and measures them beside what they replace."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from crystals.database import JUDGED_FILES, hash_share, read_judged
from crystals.descriptors import COMPOSITION_NAMES
from energetics.activity_model import HEADS, KIND, KNOWN, ActivityColumns, ActivityModel, within
from energetics.band_gap_model import gap_descriptors
from energetics.band_gap_training import interval
from energetics.hydrogen import HydrogenPredictor
from generation.sampling import predict_properties
from generation.sheet_table import DATASET_STAGE, read_split, sheet_of
from geo_utils import Sheet
from models import load_denoiser
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import save_checkpoint
from pipeline.cli import resolve_device
from pipeline.errors import StageError
from pipeline.files import file_sha256, relative_name
from pipeline.provenance import read_sidecar, write_sidecar
from pipeline.settings import Config

log = logging.getLogger("her2d")

STAGE = "train_activity.py"
SPLITS = ("train", "val", "test")
FOLDS = 10
MIN_SHEETS = 50
BEST = 0.1  # share of the sheets that is written, about
LIMIT_EV = 2.5  # larger |ΔG_H| counts as this: how far beyond it a sheet is does not matter to a hit, and would bend the trees
VACUUM_ANGSTROM = 15.0
GENERATED, DATABASE = "generated sheets", "sheets of the database"
DIMENET = "ΔG_H by DimeNet++"
COMPOSITION = "trees, composition"  # a way of answering: trees that know nothing else
COMPARED = {**KNOWN, "heads and DimeNet++": (HEADS, DIMENET)}  # to say what DimeNet++ would add


@dataclass(frozen=True)
class ActivityTable:
    """Sheets that the judge labelled, as arrays (N,): descriptors (N, columns) and the others (N,), energies in eV.

    delta_g: by the judge, within ±LIMIT_EV. chance: that |ΔG_H| is at most ``evaluation.hit_delta_g_ev``, by the judge's value and
    its standard error; NaN where that is not known. heads, dimenet: ΔG_H by these, NaN where they say nothing. source: GENERATED
    or DATABASE.
    """

    descriptors: np.ndarray
    delta_g: np.ndarray
    chance: np.ndarray
    heads: np.ndarray
    dimenet: np.ndarray
    formulas: np.ndarray
    source: np.ndarray
    symbols: tuple[frozenset[str], ...]

    def columns(self, known: tuple[str, ...], number: int | None = None) -> np.ndarray:
        """Return the descriptors (N, k), the first ``number`` of them, with what is known beside them."""
        beside = {HEADS: self.heads, DIMENET: self.dimenet}
        return np.column_stack([self.descriptors[:, :number], *(beside[name] for name in known)])


def labelled_sheets(cfg: Config) -> list[tuple[Sheet, float, float, str, str]]:
    """Return (sheet, ΔG_H by the judge and its standard error in eV, reduced formula, source) of ``activity.judged_dirs`` and
    ``activity.processed_dir``; the error is NaN for the latter.

    Raises:
        StageError: a folder that stage 5 or stage 2 has not written, or labels that are not the potential's.
    """
    settings = cfg.activity
    judged, labels = read_judged(dataclasses.replace(cfg.dataset, judged_dirs=settings.judged_dirs), "activity.judged_dirs")
    known = [(row, labels[row.key]) for row in judged if row.key in labels]
    found = [(row.sheet, label["delta_g"][0], label["std"][0], row.formula, GENERATED) for row, label in known]
    for split in SPLITS if settings.processed_dir else ():
        path = Path(settings.processed_dir) / f"{split}.pt"
        table = read_split(path)
        labeller = read_sidecar(path, stage=DATASET_STAGE)["settings"]["label_source"]
        if labeller != "potential":
            raise StageError(f"{relative_name(path)} has labels of {labeller}: run {DATASET_STAGE} dataset.label_source=potential")
        values = table["delta_g_h"].double().numpy()
        labelled = np.flatnonzero(np.isfinite(values))
        found += [(sheet_of(table, k), values[k], math.nan, table["formula"][k], DATABASE) for k in labelled]
    return found


def read_table(cfg: Config) -> tuple[ActivityTable, Counter]:
    """Describe the labelled sheets, ask heads and DimeNet++ about them, and count what became of them.

    Raises:
        StageError: as ``labelled_sheets``, or there are fewer than MIN_SHEETS.
    """
    counts: Counter = Counter()
    found: list[tuple[Sheet, Atoms, np.ndarray, float, float, str, str]] = []
    for sheet, delta_g, std, formula, source in labelled_sheets(cfg):
        atoms = sheet.to_atoms(VACUUM_ANGSTROM)
        try:
            found.append((sheet, atoms, gap_descriptors(atoms), delta_g, std, formula, source))
        except ValueError as error:  # NotTwoDimensional included
            counts[f"not described: {type(error).__name__}"] += 1
    if len(found) < MIN_SHEETS:
        raise StageError(
            f"{len(found)} sheets with ΔG_H of the potential are too few, {MIN_SHEETS} are needed: name folders of stage 5 in "
            "activity.judged_dirs, or a folder of stage 2 with labels of the potential in activity.processed_dir"
        )
    sheets, atoms, rows, delta_g, std, formulas, source = zip(*found, strict=True)
    counts.update(source)
    counts["beyond the limit"] = int((np.abs(delta_g) > LIMIT_EV).sum())
    table = ActivityTable(
        np.array(rows),
        np.clip(delta_g, -LIMIT_EV, LIMIT_EV),
        within(np.array(delta_g), np.array(std), cfg.evaluation.hit_delta_g_ev),
        by_heads(sheets, cfg),
        by_dimenet(atoms, cfg),
        np.array(formulas),
        np.array(source),
        tuple(frozenset(a.get_chemical_symbols()) for a in atoms),
    )
    return table, counts


def by_heads(sheets: tuple[Sheet, ...], cfg: Config) -> np.ndarray:
    """Return ΔG_H (N,) eV by the heads of the denoiser; NaN for elements that it does not know."""
    device = resolve_device(cfg.run)
    model, content = load_denoiser(cfg.denoiser.checkpoint, "set denoiser.checkpoint to a checkpoint of stage 3", device)
    elements = set(content["elements"])
    known = [k for k, sheet in enumerate(sheets) if set(sheet.atomic_numbers.tolist()) <= elements]
    values = np.full(len(sheets), np.nan)
    if known:
        values[known] = predict_properties(model.double(), [sheets[k] for k in known], device).delta_g.numpy()
    return values


def by_dimenet(sheets: tuple[Atoms, ...], cfg: Config) -> np.ndarray:
    """Return ΔG_H (N,) eV by DimeNet++, corrected from DFT without a band gap."""
    predictor = HydrogenPredictor.load(cfg.dimenet.checkpoint, resolve_device(cfg.run))
    return np.array([her.best_delta_g for her in predictor.predict_many(iter(sheets), cfg.dataset)])


def fit_trees(
    table: ActivityTable, rows: np.ndarray, cfg: Config, known: tuple[str, ...], number: int | None = None, of: str = "delta_g"
) -> BoostedTrees:
    """Fit trees to some rows (N,) bool.

    known: of HEADS and DIMENET. number: of the descriptors to use; None: all. of: what is fitted, "delta_g" or "chance".
    """
    settings, columns, values = cfg.activity, table.columns(known, number), getattr(table, of)
    rows = rows & np.isfinite(columns).all(1) & np.isfinite(values)
    about = {"min_samples_leaf": settings.min_samples_leaf, "max_features": settings.max_features, "l2_regularization": 5.0}
    return BoostedTrees.fit(columns[rows], values[rows], settings, cfg.run.seed, **about)


def answers(table: ActivityTable, cfg: Config) -> dict[str, np.ndarray]:
    """Return ΔG_H (N,) eV by trees that miss the formula of each sheet, by heads and DimeNet++, and by trivial answers."""
    found = {"heads": table.heads, "DimeNet++": table.dimenet, "mean of heads and DimeNet++": (table.heads + table.dimenet) / 2}
    ways = {f"trees, {name}": (known, None) for name, known in COMPARED.items()}
    for name, (known, number) in {**ways, COMPOSITION: ((), len(COMPOSITION_NAMES))}.items():
        found[name] = left_out(table, cfg, known, number)
    folds = folds_of(table)
    found["median of the others"] = np.array([np.median(table.delta_g[folds != fold]) for fold in folds])
    return found


def folds_of(table: ActivityTable) -> np.ndarray:
    """Return the fold (N,) of each sheet; sheets of one formula share theirs."""
    return np.array([int(FOLDS * hash_share(f"fold:{key}")) for key in table.formulas])


def left_out(
    table: ActivityTable, cfg: Config, known: tuple[str, ...], number: int | None = None, of: str = "delta_g"
) -> np.ndarray:
    """Return what trees say (N,) that miss the formula of each sheet; NaN where a column is. Arguments: as for ``fit_trees``."""
    folds, columns = folds_of(table), table.columns(known, number)
    said = np.full(len(folds), np.nan)
    for fold in np.unique(folds):
        own = (folds == fold) & np.isfinite(columns).all(1)
        if own.any():
            said[own] = fit_trees(table, folds != fold, cfg, known, number, of).predict(columns[own])
    return said


def measure_chance(
    table: ActivityTable, said: Mapping[str, np.ndarray], errors: Mapping[str, float], cfg: Config
) -> dict[str, Any]:
    """Return what the sheets are worth that each way puts first: the judge's mean chance of a hit's ΔG_H among BEST of all.

    Args:
        table: the sheets; those whose chance is known count.
        said: ``answers``.
        errors: root mean square errors of the trees, eV, for each of KNOWN.
        cfg: settings.

    Returns:
        ``{n, all, judge, ...}`` with [value, low, high] of ``interval`` for each way: of all sheets, of those that the judge itself
        puts first, by trees that learnt the chance, by ΔG_H and its error from the other trees and from the heads, and by trees on
        the composition alone. None of them has learnt from the formula of a sheet.
    """
    window, of_heads = cfg.evaluation.hit_delta_g_ev, float(np.sqrt(np.nanmean(np.square(said["heads"] - table.delta_g))))
    ways = {
        "all": np.zeros(len(table.chance)),
        "judge": table.chance,
        "trees": left_out(table, cfg, KNOWN["heads"], of="chance"),
        COMPOSITION: left_out(table, cfg, (), len(COMPOSITION_NAMES), of="chance"),
        "ΔG_H by trees": within(said["trees, heads"], errors["heads"], window),
        "ΔG_H by heads": within(said["heads"], of_heads, window),
    }
    rows = np.flatnonzero(np.isfinite(table.chance) & np.isfinite(table.heads))
    truth, formulas = table.chance[rows], table.formulas[rows]
    found: dict[str, Any] = {"n": len(rows), "best": BEST}
    for name, values in ways.items():
        own, share = values[rows], 1.0 if name == "all" else BEST

        def worth(drawn: np.ndarray, own: np.ndarray = own, share: float = share) -> float:
            first = drawn[np.argsort(-own[drawn], kind="stable")[: max(1, round(share * len(drawn)))]]
            return float(truth[first].mean())

        found[name] = list(interval(worth, formulas, cfg.run.seed, cfg.evaluation.bootstrap))
    return found


def measure(table: ActivityTable, said: Mapping[str, np.ndarray], cfg: Config) -> dict[str, Any]:
    """Return errors and rank correlation of ``answers``, for each source of sheets on which all of them say something.

    mae_ev and spearman are [value, low, high] of ``interval``.
    """
    from scipy.stats import spearmanr

    common, found = np.all([np.isfinite(values) for values in said.values()], axis=0), {}
    for source in sorted(set(table.source.tolist())):
        rows = np.flatnonzero(common & (table.source == source))
        if len(rows) < MIN_SHEETS:
            continue
        truth, formulas = table.delta_g[rows], table.formulas[rows]
        found[source] = {"n": len(rows), "formulas": len(set(formulas))}
        for name, values in said.items():
            own, error = values[rows], np.abs(values[rows] - truth)

            def order(drawn: np.ndarray, own: np.ndarray = own, truth: np.ndarray = truth) -> float:
                return float(spearmanr(own[drawn], truth[drawn])[0]) if np.ptp(own[drawn]) > 0 else math.nan

            def size(drawn: np.ndarray, error: np.ndarray = error) -> float:
                return float(error[drawn].mean())

            seed, resamples = cfg.run.seed, cfg.evaluation.bootstrap
            spearman = interval(order, formulas, seed, resamples) if np.ptp(own) > 1e-9 and "median" not in name else None
            found[source][name] = {
                "mae_ev": list(interval(size, formulas, seed, resamples)),
                "rmse_ev": float(np.sqrt(np.mean(np.square(error)))),
                **({"spearman": list(spearman)} if spearman else {}),
            }
    return found


def train_stage(cfg: Config) -> None:
    """Run the whole stage: descriptors, measurement, trees of all sheets, checkpoint and sidecar."""
    settings, checkpoint, started = cfg.activity, Path(cfg.activity.checkpoint), time.time()
    table, counts = read_table(cfg)
    said = answers(table, cfg)
    metrics = measure(table, said, cfg)
    everything = np.ones(len(table.delta_g), dtype=bool)
    # Stage 4 asks about generated sheets: where there are some, their errors are those that count.
    asked = table.source == GENERATED if (table.source == GENERATED).sum() >= MIN_SHEETS else everything
    errors = {name: said[f"trees, {name}"] - table.delta_g for name in KNOWN}
    counted = Counter(symbol for symbols in table.symbols for symbol in symbols)
    std_ev = {name: float(np.sqrt(np.nanmean(np.square(error[asked])))) for name, error in errors.items()}
    chances: dict[str, BoostedTrees] = {}
    first: dict[str, Any] = {}
    if np.isfinite(table.chance).sum() >= MIN_SHEETS:
        first = measure_chance(table, said, std_ev, cfg)
        chances = {name: fit_trees(table, everything, cfg, known, of="chance") for name, known in KNOWN.items()}
    model = ActivityModel(
        {name: fit_trees(table, everything, cfg, known) for name, known in KNOWN.items()},
        std_ev,
        file_sha256(cfg.denoiser.checkpoint),
        dict(sorted(counted.items())),
        chances,
        cfg.evaluation.hit_delta_g_ev,
    )
    save_checkpoint(checkpoint, KIND, ActivityColumns(), model.state())
    splits = [Path(settings.processed_dir) / f"{split}.pt" for split in SPLITS] if settings.processed_dir else []
    judged = [Path(folder) / name for folder in settings.judged_dirs for name in JUDGED_FILES]
    # The sidecar comes last, because it says that the product is complete.
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=[cfg.denoiser.checkpoint, cfg.dimenet.checkpoint, *splits, *judged],
        counts=dict(counts),
        metrics=metrics,
        std_ev=dict(model.std_ev),
        put_first=first,
        checkpoint_sha256=file_sha256(checkpoint),
    )
    for source, row in metrics.items():
        for name, values in row.items():
            if isinstance(values, dict):
                log.info("%s, %d, %s: MAE %.3f [%.3f, %.3f] eV", source, row["n"], name, *values["mae_ev"])
    for name, values in first.items():
        if isinstance(values, list):
            log.info("chance of a hit's ΔG_H among the first %.0f %% by %s: %.3f [%.3f, %.3f]", 100 * BEST, name, *values)
    log.info("%s in %.0f s", relative_name(checkpoint), time.time() - started)
