"""Compares the potentials inside the sevenn wheel as judges: phases, lattice constants, polymorphs, ΔE_H, seconds.

Reads   --c2db (a release of C2DB with lgnum and hform as ASE db), --laboratory (the release of 2022, with the uids of
        data/laboratory_sheets.csv), data/h_on_2d_dft.db, h_on_2d_blind.db, published_delta_e.csv.
Writes  results/benchmark/potentials.json, which docs/results.md shows; relaxations in --work-dir, one line each.
Run     python -m scripts.benchmark_potentials --c2db c2db.db --laboratory c2db_2022.db

One thread; a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from energetics.potentials import load_potential
from evaluation.potential_benchmark import PAIRS, benchmark
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.settings import POTENTIALS

TABLE = PROJECT_DIR / "results" / "benchmark" / "potentials.json"


def main() -> None:
    """Relax what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--c2db", type=Path, required=True, help="release of C2DB with lgnum")
    parser.add_argument("--laboratory", type=Path, required=True, help="release of C2DB of 2022")
    parser.add_argument("--potentials", nargs="*", default=list(POTENTIALS[:3]), choices=POTENTIALS[:3])
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of polymorphs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-dir", type=Path, default=PROJECT_DIR / "results" / "benchmark" / "potentials")
    parser.add_argument("--output", type=Path, default=TABLE)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    try:
        potentials = [load_potential(name) for name in chosen.potentials]
        benchmark(chosen.c2db, chosen.laboratory, potentials, chosen.pairs, chosen.seed, chosen.work_dir, chosen.output)
    except StageError as error:
        parser.exit(1, f"benchmark_potentials.py: {error}\n")


if __name__ == "__main__":
    main()
