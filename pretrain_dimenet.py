"""Stage 1: trains DimeNet++ on hydrogen adsorption energies.

    python pretrain_dimenet.py [--config config.yaml] [section.key=value ...]
    torchrun --nproc-per-node 8 pretrain_dimenet.py dimenet.loader_workers=2      eight GPUs; docs/cluster.md has more

reads   dimenet.lmdb_path         OC20 IS2RE LMDB (a file or a folder); dimenet.val_lmdb_path and dimenet.init_from, where given
        dimenet.dft_path          DFT values of ΔE_H on sheets, towards which the network's are corrected
writes  dimenet.checkpoint        ensemble with normaliser, calibration and training domain
        beside it                 sidecar JSON, parity plot, loss curve (CSV, PNG), index of the records

From the initial geometry of sheet and H (IS2RE) it learns y_relaxed = ΔE_H. Held-out records are split off by bulk formula. Killed
at any moment, it goes on where it was and, on a CPU, ends with the same weights.
"""

from __future__ import annotations

from pipeline.cli import run_stage
from pipeline.settings import Config


def main(cfg: Config) -> None:
    """Train what is missing and write the products: ``energetics.dimenet_stage``, the loop in ``networks.training``."""
    from energetics.dimenet_stage import train_stage  # here, because PyTorch takes seconds and --help does not need it

    train_stage(cfg)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dimenet"), under_torchrun=True))
