"""Trains the embedded synthesizability model: cross-validation, calibration, the products of the run.

``evaluation.embedded_trees`` is the judge, ``evaluation.synth_examples`` its examples.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from crystals import database
from crystals.descriptors import COMPOSITION_NAMES
from evaluation.embedded_trees import KIND, DescriptorTable, EmbeddedTreesJudge, probability
from evaluation.laboratory import laboratory_recall
from evaluation.statistics import wilson_interval
from evaluation.synth_calibration import balanced_weights, draw_calibration, fit_calibration, scores
from evaluation.synth_examples import Example, family, read_examples, side_of
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import save_checkpoint
from networks.training import fingerprint, is_complete
from pipeline.errors import StageError
from pipeline.files import file_sha256, missing_file, relative_name
from pipeline.provenance import write_sidecar
from pipeline.settings import Config

log = logging.getLogger("her2d")

STAGE = "pretrain_csllm.py"
FOLDS = 5


@dataclasses.dataclass
class Table:
    """The labelled examples as arrays: descriptors (N, columns), labels, reported, folds (N,), and the side of each formula."""

    examples: list[Example]
    descriptors: np.ndarray
    labels: np.ndarray
    reported: np.ndarray
    folds: np.ndarray
    side: np.ndarray

    @classmethod
    def of(cls, examples: list[Example]) -> Table:
        """Make the table; folds go by a hash of the formula."""
        return cls(
            examples,
            np.array([example.descriptors for example in examples]),
            np.array([example.label for example in examples]),
            np.array([example.reported for example in examples], dtype=bool),
            np.array([int(FOLDS * database.hash_share(f"fold:{example.formula}")) for example in examples]),
            np.array([example.split for example in examples]),
        )


def inputs_fingerprint(cfg: Config) -> str:
    """Return the hash of everything that decides the result: the databases, the seed and the settings (not the paths)."""
    databases = [file_sha256(path) for path in (cfg.synth_lm.db_path, *cfg.synth_lm.more_db_paths)]
    paths = ("db_path", "more_db_paths", "checkpoint")
    settings = {key: value for key, value in dataclasses.asdict(cfg.synth_lm).items() if key not in paths}
    read = ("synth_e_hull_max_ev", "unsynth_e_hull_min_ev", "val_fraction", "test_fraction")
    content = {"databases": databases, "seed": cfg.run.seed, **settings, **{key: getattr(cfg.dataset, key) for key in read}}
    return fingerprint(content | {"model": KIND})


def fit_trees(table: Table, rows: np.ndarray, cfg: Config, columns: slice = slice(None)) -> BoostedTrees:
    """Fit the trees to some rows, both labels weighing the same.

    Args:
        table: all examples.
        rows: (N,) bool, those to learn from.
        columns: descriptors to use.
    """
    labels = table.labels[rows]
    weights = balanced_weights(labels, table.reported[rows], cfg.synth_lm.reported_weight)
    chosen = table.descriptors[rows][:, columns]
    return BoostedTrees.fit(chosen, labels, cfg.synth_lm, cfg.run.seed, classify=True, weights=weights)


def cross_validated_odds(table: Table, cfg: Config, columns: slice = slice(None)) -> np.ndarray:
    """Return the log-odds (N,) of the examples, each by trees that have not seen its formula; NaN in the test part."""
    odds, usable = np.full(len(table.labels), np.nan), table.side != "test"
    for fold in range(FOLDS):
        left_out = usable & (table.folds == fold)
        learnt = usable & (table.folds != fold)
        if left_out.any() and len(np.unique(table.labels[learnt])) == 2:
            odds[left_out] = fit_trees(table, learnt, cfg, columns).predict(table.descriptors[left_out][:, columns])
    return odds


def families(table: Table, p: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return, by family, how many sheets with a synthesis on record have P_synth >= 0.5, with the Wilson interval.

    Args:
        p: (N,) cross-validated P_synth, NaN for examples without one.
    """
    found: dict[str, Counter] = {}
    for example, value in zip(table.examples, p, strict=True):
        if example.reported and np.isfinite(value):
            found.setdefault(family(example.atoms), Counter()).update(n=1, recalled=int(value >= 0.5))
    return {
        name: {"n": count["n"], "recalled": count["recalled"], "interval": wilson_interval(count["recalled"], count["n"])}
        for name, count in sorted(found.items(), key=lambda item: (-item[1]["n"], item[0]))
    }


def measure(
    table: Table, cfg: Config, columns: slice = slice(None)
) -> tuple[BoostedTrees, dict[str, float], dict[str, Any], np.ndarray]:
    """Fit the trees to the training part, calibrate them on cross-validated odds, and score every part.

    Returns:
        (trees, calibration, ``scores`` of "cross-validation", "val" and "test", P_synth (N,): cross-validated, in the test part
        of the trees).
    """
    odds = cross_validated_odds(table, cfg, columns)
    checked = np.isfinite(odds)
    calibration = fit_calibration(odds[checked], table.labels[checked], table.reported[checked], cfg.synth_lm.reported_weight)
    trees = fit_trees(table, table.side == "train", cfg, columns)
    p = probability(odds, calibration)
    metrics = {"cross-validation": scores(p[checked], table.labels[checked], table.reported[checked])}
    for side in ("val", "test"):
        rows = table.side == side
        own = probability(trees.predict(table.descriptors[rows][:, columns]), calibration)
        metrics[side] = scores(own, table.labels[rows], table.reported[rows])
        if side == "test":
            p[rows] = own
    return trees, calibration, metrics, p


def _read_table(cfg: Config) -> tuple[Table, Counter]:
    """Return the labelled examples and counts. Raises StageError where they are too few."""
    examples, counts = read_examples(cfg)
    table = Table.of([example for example in examples if example.label == example.label])
    for side in ("train", "val", "test"):
        rows = table.side == side
        counts[f"{side} sheets"], counts[f"{side} synthesizable"] = int(rows.sum()), int(table.labels[rows].sum())
        counts[f"{side} reported"] = int(table.reported[rows].sum())
    train = table.labels[table.side == "train"]
    if not {"train", "val", "test"} <= set(table.side) or len(set(train)) < 2:
        raise StageError(
            f"{relative_name(cfg.synth_lm.db_path)} has too few labelled sheets ({len(table.labels)}; synthesizable: "
            f"{int(table.labels.sum())}): training, validation and test need some each, and training both labels"
        )
    log.info("%s", ", ".join(f"{name}: {count}" for name, count in counts.items()))
    return table, counts


def train_stage(cfg: Config) -> None:
    """Run the whole stage: examples, trees, the baseline of composition alone, calibration, checkpoint, figure and sidecar."""
    settings, checkpoint = cfg.synth_lm, Path(cfg.synth_lm.checkpoint)
    for key, paths in (("synth_lm.db_path", [settings.db_path]), ("synth_lm.more_db_paths", settings.more_db_paths)):
        for path in paths:
            if not Path(path).is_file():
                raise missing_file(key, path, "name C2DB, or run python -m scripts.prepare_demo_data")
    started = time.time()
    mark = inputs_fingerprint(cfg)
    if is_complete(checkpoint, STAGE, mark):
        log.info("%s is complete for these inputs: nothing to do", relative_name(checkpoint))
        return
    table, counts = _read_table(cfg)
    log.info("%d-fold cross-validation and the final trees, with all descriptors and with those of the composition alone", FOLDS)
    trees, calibration, metrics, p = measure(table, cfg)
    *_, baseline, _ = measure(table, cfg, slice(len(COMPOSITION_NAMES)))
    metrics |= {"families": families(table, p), "composition alone": baseline}
    counted = Counter(s for e in table.examples if e.split == "train" for s in set(e.atoms.get_chemical_symbols()))
    state = {"trees": trees.state(), "calibration": calibration, "element_counts": dict(sorted(counted.items()))}
    state |= {"min_element_rows": settings.min_element_rows, "metrics": metrics, "fingerprint": mark}
    save_checkpoint(checkpoint, KIND, DescriptorTable(), state)
    figure_path = checkpoint.with_name("synth_lm_calibration.png")
    test = table.side == "test"
    draw_calibration(figure_path, p[test], table.labels[test], table.reported[test], metrics["test"])
    metrics["laboratory"] = laboratory_recall(EmbeddedTreesJudge(checkpoint), lambda formula: side_of(formula, cfg))
    # The sidecar comes last, because it says that the product is complete.
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=[settings.db_path, *settings.more_db_paths],
        counts=dict(counts),
        metrics={**metrics, "calibration": calibration},
        fingerprint=mark,
        checkpoint_sha256=file_sha256(checkpoint),
        trees=len(trees.roots),
    )
    for name, found in (("cross-validation", metrics["cross-validation"]), ("held-out formulas", metrics["test"])):
        log.info(
            "%s, n = %d (%d reported): ROC-AUC %.3f (composition alone %.3f), recall of reported %.0f %%, specificity %.0f %%",
            *(name, found["n"], found["n_reported"], found["roc_auc"]),
            baseline["cross-validation" if name == "cross-validation" else "test"]["roc_auc"],
            *(100 * found["recall_reported"], 100 * found["tnr"]),
        )
    log.info("%s and %s in %.0f s", relative_name(checkpoint), figure_path.name, time.time() - started)
