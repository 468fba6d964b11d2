"""Declares the settings of what predicts structures without diffusion: the refiner and the ranker of prototypes."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.setting_field import setting


@dataclass(frozen=True)
class RefinerTrainingConfig:
    """Settings of the training of the refiner."""

    checkpoint: str = setting("${run.output_dir}/refiner/refiner.pth", "trained network", path=True)
    channels: int = setting(128, "scalars of an atom", low=8)
    vectors: int = setting(32, "vectors of an atom", low=1)
    tensors: int = setting(24, "second-rank tensors of an atom", low=1)
    layers: int = setting(4, "rounds of messages", low=1)
    neighbours: int = setting(24, "nearest neighbours of an atom", low=4)
    dropout: float = setting(0.1, "in training", low=0, high=0.9)
    energy_weight: float = setting(0.5, "weight of the errors of heat of formation and E_hull in the loss (Å per eV/atom)", low=0)
    max_steps: int = setting(9000, "optimiser steps", low=1)
    batch_size: int = setting(384, "sheets per step", low=3)
    learning_rate: float = setting(1e-3, "peak learning rate (cosine with warm-up)", low=1e-8, high=1.0)
    warmup_steps: int = setting(300, "linear warm-up", low=0)
    weight_decay: float = setting(0.05, "AdamW weight decay of matrices", low=0)
    ema_decay: float = setting(0.999, "exponential moving average of the weights", low=0, high=0.999999)
    grad_clip: float = setting(1.0, "largest gradient norm", low=1e-6)
    eval_every: int = setting(500, "steps between validations (and resume points)", low=1)


@dataclass(frozen=True)
class ElementTrainingConfig:
    """Settings of the training of the denoiser of elements."""

    checkpoint: str = setting("${run.output_dir}/elements/elements.pth", "trained network", path=True)
    channels: int = setting(192, "scalars of an atom", low=8)
    vectors: int = setting(32, "vectors of an atom", low=1)
    tensors: int = setting(24, "second-rank tensors of an atom", low=1)
    layers: int = setting(4, "rounds of messages", low=1)
    neighbours: int = setting(24, "nearest neighbours of an atom", low=4)
    dropout: float = setting(0.3, "in training", low=0, high=0.9)
    max_steps: int = setting(6500, "optimiser steps", low=1)
    batch_size: int = setting(384, "sheets per step", low=1)
    learning_rate: float = setting(1e-3, "peak learning rate (cosine with warm-up)", low=1e-8, high=1.0)
    warmup_steps: int = setting(300, "linear warm-up", low=0)
    weight_decay: float = setting(0.1, "AdamW weight decay of matrices", low=0)
    ema_decay: float = setting(0.999, "exponential moving average of the weights", low=0, high=0.999999)
    grad_clip: float = setting(1.0, "largest gradient norm", low=1e-6)
    eval_every: int = setting(500, "steps between validations (and resume points)", low=1)


@dataclass(frozen=True)
class RankerConfig:
    """Settings of the trees that choose among prototypes."""

    checkpoint: str = setting("${run.output_dir}/ranker/ranker.pth", "fitted trees", path=True)
    max_atoms: int = setting(12, "largest cell of the compositions that they learn from", low=1)
    trees: int = setting(400, "boosted trees", low=1)
    learning_rate: float = setting(0.04, "weight of each tree", low=1e-4, high=1.0)
    max_leaf_nodes: int = setting(31, "leaves of a tree", low=2)


@dataclass(frozen=True)
class HullNetworkConfig:
    """Settings of the networks that stand beside the learnt hull."""

    checkpoint: str = setting("${run.output_dir}/hull_network/hull_network.pth", "the joined networks", path=True)
    members: list[str] = setting([], "trained refiners, of different seeds, or joined networks", path=True)
    work_dir: str = setting("${run.output_dir}/hull_network/work", "resumable relaxations, one line per sheet", path=True)
    calibration_rows: int = setting(200, "sheets of the validation split that are relaxed, for the standard error", low=10)
    test_rows: int = setting(300, "sheets of the test split that are relaxed, to measure on", low=10)
    max_atoms: int = setting(12, "largest of their cells", low=1)
