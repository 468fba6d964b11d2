"""Declares the settings of the models of single properties: the learnt hull, the band gap, the activity and dynamic stability."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.setting_field import setting


@dataclass(frozen=True)
class LearntHullConfig:
    """Settings of the learnt hull and its training."""

    db_path: str = setting("${dataset.db_path}", "C2DB as an ASE database, with hform and ehull", path=True)
    checkpoint: str = setting("${run.output_dir}/learnt_hull/hull_${evaluation.potential}.pth", "trained model", path=True)
    work_dir: str = setting("${run.output_dir}/learnt_hull/work", "resumable energies, one line per sheet", path=True)
    train_rows: int = setting(3600, "training sheets that get a single point; 0: all", low=0)
    test_rows: int = setting(0, "sheets of held-out formulas that get one; 0: all", low=0)
    relaxed_rows: int = setting(150, "sheets of held-out formulas that are relaxed as candidates are", low=1)
    calibration_rows: int = setting(48, "training sheets that are relaxed too, to learn what relaxation adds", low=0)
    max_atoms: int = setting(20, "larger cells are left out", low=1)
    trees: int = setting(400, "boosted trees of each model", low=1)
    learning_rate: float = setting(0.06, "weight of each tree", low=1e-4, high=1.0)
    max_leaf_nodes: int = setting(24, "leaves of a tree", low=2)
    min_element_rows: int = setting(5, "elements of fewer training sheets are outside the domain", low=1)


@dataclass(frozen=True)
class BandGapConfig:
    """Settings of the learnt band gap and its training."""

    db_path: str = setting("${dataset.db_path}", "release of C2DB with PBE gaps (key gap) as an ASE database", path=True)
    checkpoint: str = setting("${run.output_dir}/band_gap/band_gap.pth", "trained model", path=True)
    trees: int = setting(300, "boosted trees of each model", low=1)
    learning_rate: float = setting(0.06, "weight of each tree", low=1e-4, high=1.0)
    max_leaf_nodes: int = setting(24, "leaves of a tree", low=2)
    min_samples_leaf: int = setting(5, "least sheets in a leaf", low=1)


@dataclass(frozen=True)
class ActivityConfig:
    """Settings of the trees that say ΔG_H at once, and their training."""

    judged_dirs: list[str] = setting([], "folders of stage 5 (metrics.csv, relaxed.extxyz) with sheets to learn from", path=True)
    processed_dir: str = setting(
        "${dataset.processed_dir}", "folder of stage 2 with labels of the potential to learn from; empty: none", path=True
    )
    checkpoint: str = setting("${run.output_dir}/activity/activity.pth", "fitted trees", path=True)
    trees: int = setting(300, "boosted trees of each model", low=1)
    learning_rate: float = setting(0.04, "weight of each tree", low=1e-4, high=1.0)
    max_leaf_nodes: int = setting(15, "leaves of a tree", low=2)
    min_samples_leaf: int = setting(8, "least sheets in a leaf", low=1)
    max_features: float = setting(0.3, "share of the descriptors that each split looks at", low=0.01, high=1.0)


@dataclass(frozen=True)
class PhononBenchmarkConfig:
    """Settings of the benchmark of dynamic stability and of the model that it fits."""

    db_path: str = setting("${dataset.db_path}", "release of C2DB with dynamic_stability_phonons as an ASE database", path=True)
    checkpoint: str = setting("${run.output_dir}/phonon_benchmark/dynamics.pth", "trained model", path=True)
    work_dir: str = setting("${run.output_dir}/phonon_benchmark", "resumable phonons, one line per sheet", path=True)
    rows: int = setting(240, "sheets that get phonons, drawn at random", low=20)
    max_atoms: int = setting(6, "largest cell of these", low=1)
    trees: int = setting(300, "boosted trees", low=1)
    learning_rate: float = setting(0.06, "weight of each tree", low=1e-4, high=1.0)
    max_leaf_nodes: int = setting(24, "leaves of a tree", low=2)
