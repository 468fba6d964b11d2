"""Runs the design loop: generation, judges, DFT and learning in rounds, each step resumable.

    python -m scripts.design_loop loop.rounds=3 loop.dft_processes=2
    make loop ROUNDS=3

Reads   what stages 4 and 5 read; evaluation.dft_truth_path, the DFT points to begin with.
Writes  loop.output_dir/round_N: candidates, verdicts, the log of choices, DFT points, the refitted correction, results and a
sidecar.

The choice of a batch is described in evaluation/batch_choice.py, the files of a round in evaluation/design_loop.py, how to compute
with VASP or another calculator in docs/design_loop.md. A round judges with what the rounds before have learnt. The same command
goes on where it was stopped.
"""

from __future__ import annotations

from pipeline.cli import run_stage
from pipeline.settings import Config


def main(cfg: Config) -> None:
    """Run the loop."""
    from evaluation.design_loop import run_loop  # here, so that --help does not wait for torch

    run_loop(cfg)


if __name__ == "__main__":
    sections = ("run", "loop", "generation", "evaluation", "dimenet", "denoiser", "dataset")
    raise SystemExit(run_stage(main, __doc__, sections, resumes_in="loop.output_dir"))
