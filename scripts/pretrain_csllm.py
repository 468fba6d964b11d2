"""Trains the embedded synthesizability model, which judges where the 8B CSLLM is not installed.

Reads   synth_lm.db_path and synth_lm.more_db_paths (C2DB or the embedded database as ASE db): structures, ehull, keys of synthesis
        and stability.
Writes  synth_lm.checkpoint, its sidecar .json, and synth_lm_calibration.png beside it.
Run     python -m scripts.pretrain_csllm [synth_lm.db_path=c2db.db] [synth_lm.more_db_paths=[c2db_2022.db]]

Boosted trees learn from the composition and the bonds of a sheet whether it can be made. Sheets whose synthesis is on record weigh
most. Split by reduced formula, both labels weigh the same, and P_synth is calibrated by cross-validation on formulas.
"""

from __future__ import annotations

from pipeline.cli import run_stage
from pipeline.settings import Config


def main(cfg: Config) -> None:
    """Train what is missing and write the products: ``evaluation.synth_training``."""
    from evaluation.synth_training import train_stage  # here, because scikit-learn takes seconds and --help does not need it

    train_stage(cfg)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "synth_lm")))
