"""Measures what classifier-free guidance does to the diffusion of elements, and how much draws without it are like crystals.

Reads   generation.elements_checkpoint, generation.refiner_checkpoint, denoiser.checkpoint, the quick judges of evaluation, and the
        training split of dataset.processed_dir where there is one.
Writes  elements.json to benchmark.output_dir: for each strength w, shares and means of benchmark.num_structures draws; and how far
        bonds, layer groups and numbers of elements are from those of the training split.
Run     python -m scripts.benchmark_elements denoiser.checkpoint=weights/denoiser.pth benchmark.num_structures=256
"""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.cli import run_stage
from pipeline.settings import Config

log = logging.getLogger("her2d")

STAGE = "benchmark_elements.py"


def main(cfg: Config) -> None:
    """Draw, judge and write."""
    from evaluation.element_guidance import element_guidance, unguided_distributions
    from generation.generate import CHECKPOINT_HINT
    from generation.sheet_table import read_split
    from models import load_denoiser
    from pipeline.files import file_sha256, relative_name, write_json
    from pipeline.provenance import git_commit

    denoiser, content = load_denoiser(cfg.denoiser.checkpoint, CHECKPOINT_HINT)
    split, distributions = Path(cfg.dataset.processed_dir) / "train.pt", None
    if split.is_file():
        distributions = unguided_distributions(cfg, content, read_split(split))
    else:
        log.info("draws are not compared with crystals: %s is missing (run material_dataset.py)", relative_name(split))
    rows = element_guidance(cfg, denoiser, content)
    generation, evaluation = cfg.generation, cfg.evaluation
    inputs = [generation.elements_checkpoint, generation.refiner_checkpoint, cfg.denoiser.checkpoint]
    inputs += [evaluation.hull_network, evaluation.band_gap_checkpoint, evaluation.dynamics_checkpoint]
    path = Path(cfg.benchmark.output_dir) / "elements.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"stage": STAGE, "git_commit": git_commit(), "seed": cfg.run.seed}
    inputs += [split] if distributions else []
    about |= {"inputs": {relative_name(p): file_sha256(p) for p in inputs}}
    write_json(path, about | {"guidance": rows, "distributions": distributions})
    for row in rows:
        near, delta_g = row["aggregates"]["near_hull"], row["aggregates"]["abs_delta_g_ev"]
        print(f"w {row['cfg_scale']:g}: near the hull {near['value']:.0%}, mean |ΔG_H| {delta_g['value']:.2f} eV")


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "denoiser", "generation", "evaluation", "benchmark")))
