"""Trains the learnt hull of a potential, with which E_above_hull agrees with PBE.

Reads   learnt_hull.db_path (C2DB as ASE db): structures, hform and ehull; evaluation.references_path: phases of the potential.
Writes  learnt_hull.checkpoint, its sidecar .json, and a parity figure beside it.
Run     python -m scripts.train_hull learnt_hull.db_path=c2db.db [evaluation.potential=...]

Every single point and relaxation is one line in learnt_hull.work_dir; a run that is stopped goes on where it was. What the model is
worth on formulas that it has not seen stands in the sidecar, beside the potential's hull and trivial baselines.
"""

from __future__ import annotations

from pipeline.cli import run_stage
from pipeline.settings import Config


def main(cfg: Config) -> None:
    """Compute what is missing and write the products: ``energetics.learnt_hull_training``."""
    from energetics.learnt_hull_training import train_stage  # here, because --help does not need the potential

    train_stage(cfg)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "evaluation", "learnt_hull")))
