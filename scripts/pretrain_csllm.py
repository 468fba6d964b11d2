"""Trains the small embedded synthesizability model that stands in where the 8B CSLLM is not installed.

Reads   synth_lm.db_path (C2DB or the embedded database as an ASE db): structures, ehull, experimental and stability keys.
Writes  synth_lm.checkpoint, its sidecar .json, and synth_lm_calibration.png beside it.
Run     python -m scripts.pretrain_csllm [synth_lm.db_path=c2db.db]

A Llama-type decoder of about a million parameters learns CSLLM's own task on monolayers: it reads the material string inside
CSLLM's question and answers True or False. Split by reduced formula, classes weighted to balance, best epoch by validation loss,
then temperature and bias fitted on the validation part. Started again after a kill it ends with the same weights (CPU).
"""

from __future__ import annotations

from pipeline.cli import run_stage
from pipeline.settings import Config


def main(cfg: Config) -> None:
    """Train what is missing and write the products: ``evaluation.synth_training``, the loop in ``networks.training``."""
    from evaluation.synth_training import train_stage  # here, because PyTorch takes seconds and --help does not need it

    train_stage(cfg)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "synth_lm")))
