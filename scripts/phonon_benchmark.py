"""Measures verdicts of dynamic stability against those of C2DB, and fits the model that decides in the evaluation.

Reads   phonon_benchmark.db_path (a release of C2DB with dynamic_stability_phonons as ASE db).
Writes  results/benchmark/phonons.json, which docs/results.md shows; phonon_benchmark.checkpoint and its sidecar .json.
Run     python -m scripts.phonon_benchmark phonon_benchmark.db_path=c2db.db

Sheets drawn at random get phonons by both potentials of the evaluation. Boosted trees learn the verdicts from composition, bonds
and E_above_hull, without the formula that they are asked about. Limits and weights are fitted to one half of the formulas and
measured on the other. A run that is stopped goes on where it was.
"""

from __future__ import annotations

from pipeline.cli import run_stage
from pipeline.files import PROJECT_DIR
from pipeline.settings import Config

TABLE = PROJECT_DIR / "results" / "benchmark" / "phonons.json"


def main(cfg: Config) -> None:
    """Compute the phonons, measure and fit: ``energetics.dynamics_training``."""
    from energetics.dynamics_training import benchmark  # here, because scikit-learn takes seconds and --help does not need it

    benchmark(cfg, TABLE)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "evaluation", "phonon_benchmark"), resumes_in="phonon_benchmark.work_dir"))
