"""Trains the band gap that decides whether a sheet conducts.

Reads   band_gap.db_path (a release of C2DB with PBE gaps as ASE db): structures and key gap.
Writes  band_gap.checkpoint and its sidecar .json.
Run     python -m scripts.train_band_gap band_gap.db_path=c2db.db

Boosted trees learn from the composition, the bonds and the bond angles of a sheet whether PBE gives it a gap, and how wide. The
test formulas of the common split are left out. What the model is worth on them stands in the sidecar, beside trivial baselines.
"""

from __future__ import annotations

from pipeline.cli import run_stage
from pipeline.settings import Config


def main(cfg: Config) -> None:
    """Fit the trees and write the products: ``energetics.band_gap_training``."""
    from energetics.band_gap_training import train_stage  # here, because scikit-learn takes seconds and --help does not need it

    train_stage(cfg)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "evaluation", "band_gap")))
