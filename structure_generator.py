"""Stage 4: samples sheets from recipes and noise under guidance, keeps the valid ones, symmetrises and exports them.

Reads ``denoiser.checkpoint`` (stage 3), and the judges of stage 5 where ``generation.prefilter`` asks them about the samples.
Writes to ``generation.output_dir`` one CIF per candidate (``gen_00017.cif``), ``candidates.extxyz`` with ids and predicted
properties, and ``manifest.json``. Sampled batches are kept until the products are complete, so that a killed run goes on where it
was; the same seed gives the same files whatever the batch size.

    python structure_generator.py generation.num_structures=32 generation.guidance_scale=1.0
    python structure_generator.py generation.shard=3/8    # one of eight parts, on any machine; merge/8 puts them together
"""

from __future__ import annotations

import logging
from functools import partial

from pipeline.cli import resolve_device, run_stage
from pipeline.settings import Config
from pipeline.shipped import with_shipped_weights


def main(cfg: Config) -> None:
    """Loads the denoiser, then samples, checks, selects and writes."""
    # Here, so that --help does not wait for torch.
    from evaluation.prefilter import Prefilter
    from generation.generate import CHECKPOINT_HINT, generate_structures, uses_prefilter
    from models import load_denoiser, load_for_sampling

    judged = uses_prefilter(cfg.generation)
    cfg, shipped = with_shipped_weights(cfg, ("dimenet", "denoiser") if judged else ("denoiser",))
    if shipped:
        logging.getLogger("her2d").info("%s", shipped)
    model, content = load_denoiser(cfg.denoiser.checkpoint, CHECKPOINT_HINT, resolve_device(cfg.run))
    prefilter = Prefilter(cfg) if judged else None
    generate_structures(cfg, model, content, load=partial(load_for_sampling, cfg.denoiser.checkpoint), prefilter=prefilter)


if __name__ == "__main__":
    raise SystemExit(
        run_stage(
            main,
            __doc__,
            ("run", "dataset", "denoiser", "generation", "dimenet", "evaluation"),
            resumes_in="generation.output_dir",
            workers_judge=lambda cfg: cfg.generation.guidance_scale > 0,
        )
    )
