"""Joins refiners to the networks that stand beside the learnt hull in E_above_hull (evaluation.hull: combined).

Reads   hull_network.members: checkpoints of scripts.train_refiner, or of this script, to measure with another potential;
        dataset.processed_dir (stage 2): the validation and the test split; evaluation.hull_checkpoint: the learnt hull.
Writes  hull_network.checkpoint and its sidecar .json.
Run     python -m scripts.train_refiner run.seed=1 refiner.energy_weight=2 refiner.checkpoint=1.pth   and with other seeds, then
        python -m scripts.join_hull_network 'hull_network.members=[1.pth,2.pth,3.pth]'

Relaxed sheets of the validation split give the standard error of the mean with the learnt hull, those of the test split say what it
is worth. Each relaxation is one line in hull_network.work_dir; a run that is stopped goes on where it was.
"""

from __future__ import annotations

from pipeline.cli import run_stage
from pipeline.settings import Config


def main(cfg: Config) -> None:
    """Measure and write the products: ``energetics.hull_network_joining``."""
    from energetics.hull_network_joining import join_stage  # here, because --help does not need PyTorch

    join_stage(cfg)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "evaluation", "hull_network")))
