"""Trains the trees that say the judge's ΔG_H of a sheet at once, for stage 4 to choose by.

Reads   activity.judged_dirs, folders of stage 5 or of the search benchmark with sheets that the potential judged;
        activity.processed_dir, a folder of stage 2 with labels of the potential (dataset.label_source=potential);
        denoiser.checkpoint, whose ΔG_H the trees take as a descriptor, and dimenet.checkpoint to compare with.
Writes  activity.checkpoint and its sidecar .json.
Run     python -m scripts.train_activity "activity.judged_dirs=[results/run]" activity.processed_dir=

Boosted trees learn from composition, bonds and bond angles, and from what the heads say. What they are worth on formulas that they
had not learnt from stands in the sidecar, beside heads, DimeNet++, trees that know DimeNet++ as well, and trivial answers.
"""

from __future__ import annotations

from pipeline.cli import run_stage
from pipeline.settings import Config


def main(cfg: Config) -> None:
    """Fit the trees and write the products: ``energetics.activity_training``."""
    from energetics.activity_training import train_stage  # here, because scikit-learn takes seconds and --help does not need it

    train_stage(cfg)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "denoiser", "dimenet", "evaluation", "activity")))
