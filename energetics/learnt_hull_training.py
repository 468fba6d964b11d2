"""Trains the learnt hull, and measures what it is worth on formulas that it has not seen.

``energetics.learnt_hull_data`` reads what it learns from, ``energetics.learnt_hull`` is the judge.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from crystals.descriptors import COMPOSITION_NAMES
from energetics.hull import References
from energetics.learnt_hull import BOTH, KIND, LEARNT, LEAST_STD, HullColumns, HullModels, count_elements, error_descriptors
from energetics.learnt_hull_data import FOLDS, Fact, Formulas, Sheets, describe_formulas, read_facts, read_sheets
from energetics.potentials import Potential, load_potential
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import save_checkpoint
from networks.training import fingerprint, is_complete
from pipeline.cli import resolve_device
from pipeline.files import file_sha256, relative_name
from pipeline.provenance import write_sidecar
from pipeline.settings import Config

log = logging.getLogger("her2d")

STAGE = "train_hull.py"
WITHIN_ONE = math.erf(1 / math.sqrt(2))  # share of errors within one standard error
SOURCE = (
    "Hull energies and formation energies are facts of C2DB (Haastrup et al., 2D Materials 5, 042002 (2018); Gjerding et al., 2D "
    "Materials 8, 044002 (2021); CC BY 4.0). The file holds trees that were fitted to them, and no row."
)


def fit(descriptors: np.ndarray, target: np.ndarray, cfg: Config, *, small: bool = False) -> BoostedTrees:
    """Fit boosted trees. small: fewer and smaller ones, for the size of errors."""
    fewer = {"max_iter": max(1, cfg.learnt_hull.trees // 4), "max_leaf_nodes": 8} if small else {}
    return BoostedTrees.fit(descriptors, target, cfg.learnt_hull, cfg.run.seed, **fewer)


def fit_hull(formulas: Formulas, rows: np.ndarray, cfg: Config) -> BoostedTrees:
    """Fit the difference of the hull energies of database and potential. rows: (F,) bool, the formulas to learn from."""
    return fit(formulas.descriptors[rows], (formulas.truth - formulas.potential)[rows], cfg)


def fit_e_form(sheets: Sheets, rows: np.ndarray, cfg: Config) -> BoostedTrees:
    """Fit the correction of E_form. rows: (N,) bool, the sheets to learn from."""
    return fit(sheets.descriptors[rows], (sheets.h_form - sheets.start)[rows], cfg)


def predict(sheets: Sheets, formulas: Formulas, hull: BoostedTrees, e_form: BoostedTrees) -> np.ndarray:
    """Return the learnt E_above_hull (N,) of sheets before it is cut at 0, eV/atom."""
    places, at = np.unique(sheets.place, return_inverse=True)
    hulls = formulas.potential[places] + hull.predict(formulas.descriptors[places])
    return sheets.start + e_form.predict(sheets.descriptors) - hulls[at]


def cross_validate(train: Sheets, relaxed: Sheets, formulas: Formulas, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return ``predict`` of training sheets, (N,) as the database has them and (R,) relaxed, by models without their formula."""
    found = [np.full(len(sheets), np.nan) for sheets in (train, relaxed)]
    fold = formulas.fold[train.place]
    for left_out in np.unique(fold):
        log.info("cross-validation, part %d of %d", left_out + 1, FOLDS)
        hull = fit_hull(formulas, (formulas.side == "train") & (formulas.fold != left_out), cfg)
        e_form = fit_e_form(train, fold != left_out, cfg)
        for sheets, values in zip((train, relaxed), found, strict=True):
            rows = formulas.fold[sheets.place] == left_out
            values[rows] = predict(sheets, formulas, hull, e_form)[rows]
    return found[0], found[1]


def potential_e_hull(sheets: Sheets, formulas: Formulas) -> np.ndarray:
    """Return E_above_hull (N,) by the potential and its phases, eV/atom."""
    return sheets.e_form - formulas.potential[sheets.place]


def _error_columns(sheets: Sheets, formulas: Formulas, value: np.ndarray) -> np.ndarray:
    own = potential_e_hull(sheets, formulas)
    return np.array([error_descriptors(*row) for row in zip(sheets.descriptors, value, own, strict=True)])


def fit_errors(
    train: Sheets, value: np.ndarray, relaxed: Sheets, value_relaxed: np.ndarray, formulas: Formulas, cfg: Config
) -> tuple[BoostedTrees, dict[str, float], float]:
    """Fit the size of the error of E_above_hull to what cross-validation found, and scale it on relaxed sheets.

    Args:
        train, value: training sheets and their cross-validated E_above_hull (N,).
        relaxed, value_relaxed: the same after relaxation, (R,).
        formulas: all formulas.
        cfg: all settings.

    Returns:
        (trees; factors that make the size a standard error, with 68 % of the errors of relaxed sheets within it; what is added to
        E_form of relaxed sheets, so that their E_above_hull is right on average).
    """
    own = np.maximum(0.0, value)
    error = fit(_error_columns(train, formulas, own), np.abs(own - train.e_hull), cfg, small=True)
    known = np.isfinite(value_relaxed)
    relaxation = float((relaxed.e_hull - value_relaxed)[known].mean()) if known.any() else 0.0
    cut = np.maximum(0.0, value_relaxed + relaxation)
    size = np.maximum(error.predict(_error_columns(relaxed, formulas, cut)), LEAST_STD)
    both = (cut + np.maximum(0.0, potential_e_hull(relaxed, formulas))) / 2
    scales = {
        name: float(np.quantile((np.abs(found - relaxed.e_hull) / size)[known], WITHIN_ONE))
        for name, found in ((LEARNT, cut), (BOTH, both))
    }
    return error, scales, relaxation


def agreement(value: np.ndarray, truth: np.ndarray, limit: float, seed: int, resamples: int) -> dict[str, Any]:
    """Compare E_above_hull (N,) with the database's (N,), in eV/atom, with 95 % bootstrap intervals.

    Returns:
        ``{n, mae_ev, bias_ev, spearman, agree}``, each of the last four as [value, low, high]; ``agree`` is the share of equal
        verdicts at ``limit``. None where a value is not defined.
    """

    def measures(rows: np.ndarray) -> list[float]:
        ours, theirs = value[rows], truth[rows]
        varied = np.ptp(ours) > 0 and np.ptp(theirs) > 0
        rank = float(spearmanr(ours, theirs).statistic) if varied else math.nan
        error = ours - theirs
        return [np.abs(error).mean(), error.mean(), rank, ((ours <= limit) == (theirs <= limit)).mean()]

    rng = np.random.default_rng([seed, 17])
    draws = np.array([measures(rng.integers(0, len(value), len(value))) for _ in range(resamples)])
    names = ("mae_ev", "bias_ev", "spearman", "agree")
    found: dict[str, Any] = {"n": len(value), "limit_ev": limit}
    for name, own, column in zip(names, measures(np.arange(len(value))), draws.T, strict=True):
        finite = column[np.isfinite(column)]
        whole = [own, *np.quantile(finite, [0.025, 0.975])] if math.isfinite(own) and len(finite) else None
        found[name] = [float(number) for number in whole] if whole else None
    return found


def fit_direct(facts: Sequence[Fact], formulas: Formulas, cfg: Config) -> BoostedTrees:
    """Fit a trivial baseline to all training rows: E_above_hull from the composition alone."""
    index = formulas.index
    rows = [fact for fact in facts if fact.side == "train" and fact.formula in index]
    composition = formulas.descriptors[:, : len(COMPOSITION_NAMES)]
    return fit(composition[[index[fact.formula] for fact in rows]], np.array([fact.e_hull for fact in rows]), cfg)


def measure(
    test: Sheets, relaxation: float, direct: BoostedTrees, mean: float, formulas: Formulas, models: HullModels, cfg: Config
) -> tuple[dict[str, Any], np.ndarray]:
    """Measure E_above_hull on sheets of held-out formulas, beside the potential's, parts of the method and trivial baselines.

    Args:
        test: the sheets.
        relaxation: added to E_form, eV/atom: that of ``models`` for relaxed sheets, otherwise 0.
        direct: of ``fit_direct``.
        mean: E_above_hull of the training rows, eV/atom.
        formulas: all formulas.
        models: what is measured.
        cfg: all settings.

    Returns:
        (metrics by method, with the calibration of the standard error; the learnt E_above_hull (N,)).
    """
    value = np.maximum(0.0, predict(test, formulas, models.hull, models.e_form) + relaxation)
    own, truth = potential_e_hull(test, formulas), test.e_hull
    learnt_hull = formulas.potential + models.hull.predict(formulas.descriptors)
    corrected = test.start + models.e_form.predict(test.descriptors) + relaxation
    composition = formulas.descriptors[test.place, : len(COMPOSITION_NAMES)]
    both = (value + np.maximum(0.0, own)) / 2
    methods = {
        LEARNT: value,
        "potential": own,
        BOTH: both,
        "learnt hull alone": np.maximum(0.0, test.e_form - learnt_hull[test.place]),
        "correction of E_form alone": np.maximum(0.0, corrected - formulas.potential[test.place]),
        "trees on composition": direct.predict(composition),
        "mean of training": np.full(len(test), mean),
    }
    settings = cfg.evaluation
    found: dict[str, Any] = {
        name: agreement(values, truth, settings.hit_e_hull_ev, cfg.run.seed, settings.bootstrap) for name, values in methods.items()
    }
    size = models.error.predict(_error_columns(test, formulas, value))
    for name, values in ((LEARNT, value), (BOTH, both)):
        std, error = np.maximum(LEAST_STD, models.scales[name] * size), np.abs(values - truth)
        found[name] |= {
            "within one standard error": float((error <= std).mean()),
            "within two": float((error <= 2 * std).mean()),
            "spearman of error and standard error": float(spearmanr(error, std).statistic) if np.ptp(std) else None,
        }
    found["E_form, mae_ev"] = {
        name: float(np.abs(values - test.h_form).mean())
        for name, values in (("potential", test.e_form), ("mixing shift", test.start), (LEARNT, corrected))
    }
    return found, value


def measure_hull(formulas: Formulas, hull: BoostedTrees) -> dict[str, Any]:
    """Return the mean absolute errors (eV/atom) of hull energies on all held-out formulas: learnt, potential, mean of training."""
    rows, train = formulas.side == "test", formulas.side == "train"
    own, truth = formulas.potential[rows], formulas.truth[rows]
    found = {
        LEARNT: own + hull.predict(formulas.descriptors[rows]),
        "potential": own,
        "mean of training": np.full(len(truth), formulas.truth[train].mean()),
    }
    return {"n": len(truth), **{name: float(np.abs(values - truth).mean()) for name, values in found.items()}}


def inputs_fingerprint(cfg: Config, potential: Potential) -> str:
    """Return the hash of everything that decides the result: database, references, potential, seed and settings (not the paths)."""
    settings = {k: v for k, v in dataclasses.asdict(cfg.learnt_hull).items() if k not in ("db_path", "checkpoint", "work_dir")}
    read = {name: getattr(cfg.evaluation, name) for name in ("fmax_ev_per_angstrom", "max_steps", "hit_e_hull_ev", "bootstrap")}
    files = [file_sha256(path) for path in (cfg.learnt_hull.db_path, cfg.evaluation.references_path)]
    split = [cfg.run.seed, cfg.dataset.val_fraction, cfg.dataset.test_fraction]
    return fingerprint({"kind": KIND, "files": files, "potential": potential.identity, "split": split, **settings, **read})


def train_stage(cfg: Config) -> None:
    """Run the whole stage: facts, single points, fits, weight file, figure and sidecar."""
    settings, checkpoint, started = cfg.learnt_hull, Path(cfg.learnt_hull.checkpoint), time.time()
    split = (cfg.run.seed, cfg.dataset.val_fraction, cfg.dataset.test_fraction)
    facts = read_facts(Path(settings.db_path), split)
    potential = load_potential(cfg.evaluation.potential, cfg.evaluation.potential_checkpoint, str(resolve_device(cfg.run)))
    references = References.load(cfg.evaluation.references_path, potential)
    mark = inputs_fingerprint(cfg, potential)
    if is_complete(checkpoint, STAGE, mark):
        log.info("%s is complete for these inputs: nothing to do", relative_name(checkpoint))
        return
    formulas = describe_formulas(facts, references)
    (train, test), (teaching, relaxed), counts = read_sheets(facts, formulas, potential, references, cfg)
    models, value = fit_models(train, teaching, formulas, cfg, split)
    direct, mean = fit_direct(facts, formulas, cfg), float(np.mean([fact.e_hull for fact in facts if fact.side == "train"]))
    metrics: dict[str, Any] = {"cross-validation": _cross_validated(train, formulas, value, cfg)}
    metrics["test, geometry of the database"], _ = measure(test, 0.0, direct, mean, formulas, models, cfg)
    metrics["test, relaxed"], found = measure(relaxed, models.relaxation, direct, mean, formulas, models, cfg)
    metrics["relaxation_ev"] = models.relaxation
    metrics["hull energy of test formulas, mae_ev"] = measure_hull(formulas, models.hull)
    state = models.state() | {"potential_sha256": potential.identity.get("sha256"), "fingerprint": mark}
    save_checkpoint(checkpoint, KIND, HullColumns(), state)
    figure_path = checkpoint.with_name(f"{checkpoint.stem}_parity.png")
    draw_parity(relaxed, potential_e_hull(relaxed, formulas), found, cfg.evaluation.hit_e_hull_ev, figure_path)
    sides = Counter(formulas.side.tolist())
    # The sidecar comes last, because it says that the product is complete.
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=[settings.db_path, cfg.evaluation.references_path],
        counts={"rows": len(facts), **{f"{side} formulas": n for side, n in sides.items()}, **counts},
        metrics=metrics,
        fingerprint=mark,
        checkpoint_sha256=file_sha256(checkpoint),
        potential=potential.identity,
        source=SOURCE,
    )
    for name in (LEARNT, "potential", "trees on composition"):
        row = metrics["test, relaxed"][name]
        log.info("%s, %d relaxed: MAE %.3f eV/atom, agreement %.0f %%", name, row["n"], row["mae_ev"][0], 100 * row["agree"][0])
    log.info("%s and %s in %.0f s", relative_name(checkpoint), figure_path.name, time.time() - started)


def fit_models(
    train: Sheets, relaxed: Sheets, formulas: Formulas, cfg: Config, split: tuple[int, float, float]
) -> tuple[HullModels, np.ndarray]:
    """Fit all parts to the training formulas; return them and the cross-validated E_above_hull (N,) of the training sheets."""
    value, value_relaxed = cross_validate(train, relaxed, formulas, cfg)
    error, scales, relaxation = fit_errors(train, value, relaxed, value_relaxed, formulas, cfg)
    everything = np.ones(len(train), dtype=bool)
    models = HullModels(
        fit_hull(formulas, formulas.side == "train", cfg),
        fit_e_form(train, everything, cfg),
        error,
        scales,
        count_elements([formulas.keys[place] for place in train.place]),
        cfg.learnt_hull.min_element_rows,
        (float(train.e_form.min()), float(train.e_form.max())),
        split,
        relaxation,
    )
    return models, np.maximum(0.0, value)


def _cross_validated(train: Sheets, formulas: Formulas, value: np.ndarray, cfg: Config) -> dict[str, Any]:
    """Return the agreement of learnt and potential's E_above_hull on the training sheets, models without their formula."""
    known, own = np.isfinite(value), potential_e_hull(train, formulas)
    return {
        name: agreement(found[known], train.e_hull[known], cfg.evaluation.hit_e_hull_ev, cfg.run.seed, cfg.evaluation.bootstrap)
        for name, found in ((LEARNT, value), ("potential", own), (BOTH, (value + np.maximum(0.0, own)) / 2))
    }


def draw_parity(sheets: Sheets, potential: np.ndarray, learnt: np.ndarray, limit: float, path: Path) -> None:
    """Draw E_above_hull by the potential and by the learnt hull (N,) against the database's, eV/atom; dashed: the verdict."""
    from pipeline.plotting import figure

    top = float(np.quantile(np.concatenate([sheets.e_hull, potential, learnt]), 0.99)) + 0.05
    with figure(path, figsize=(7.4, 3.9), ncols=2, sharey=True) as (_, axes):
        for axis, name, values in zip(axes, ("potential and its phases", "learnt hull"), (potential, learnt), strict=True):
            axis.plot([0, top], [0, top], color="0.5", lw=0.9)
            for line in (axis.axhline, axis.axvline):
                line(limit, color="0.6", lw=0.8, ls="--")
            axis.plot(sheets.e_hull, values, "o", ms=3, color="#08519c", alpha=0.6)
            error, agree = np.abs(values - sheets.e_hull).mean(), ((values <= limit) == (sheets.e_hull <= limit)).mean()
            axis.set(xlim=(-0.05, top), ylim=(-0.2, top), xlabel="E_above_hull of the database (eV/atom)")
            axis.set_title(f"{name}: MAE {error:.3f} eV/atom,\nverdict at {limit:g} eV/atom agrees for {100 * agree:.0f} %")
        axes[0].set_ylabel("E_above_hull here (eV/atom)")
