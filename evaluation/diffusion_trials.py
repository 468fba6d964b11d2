"""Measures the diffusion of coordinates alone: what one step of its network removes at each time, and what the sampler makes of it.

The composition is given, and nothing is guided. What no setting mends is what the network has learnt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.structure_ladder import LADDER_SAMPLES, REFINE_STEPS, SUBSTITUTION, lay_out
from evaluation.structure_match import CLOSE_MATCH, HeldOut, diffusion_samples, match_distance, match_rates
from generation.batch import Denoiser, SheetBatch
from generation.generate import CHECKPOINT_HINT
from generation.process import add_noise, physical_state
from generation.refinement import refine
from generation.sampling import sheets_to_batch
from generation.schedule import NoiseSchedule, wrap_displacement
from geo_utils import Sheet, vector_to_lattice
from models import load_denoiser
from networks.graph import center
from pipeline.cli import resolve_device
from pipeline.settings import Config

TIMES = (1, 20, 50, 100, 200, 400, 950)  # of 1,000
SHIPPED = "as configured"
# Name -> settings of stage 4 that differ.
TRIALS: dict[str, dict[str, Any]] = {
    SHIPPED: {},
    "10 steps": {"num_steps": 10},
    "20 steps": {"num_steps": 20},
    "150 steps": {"num_steps": 150},
    "no corrector": {"corrector_steps": 0},
    "three corrector steps": {"corrector_steps": 3},
    "smaller corrector steps": {"corrector_snr": 0.1},
    "no template": {"template_share": 0.0},
}


def diffusion_trials(cfg: Config, folder: Path) -> dict[str, Any]:
    """Return ``denoising`` (``denoising_by_time``) and, for each of ``TRIALS``, how often the first sample is the sheet on record.

    The rows are those of part ladder for which the diffusion is sampled. Substitution stands beside the trials.

    Args:
        cfg: settings; those of part ladder are read.
        folder: where samples are kept, for a run that is stopped.
    """
    ladder = lay_out(cfg, folder)
    rows = ladder.rows[: cfg.benchmark.ladder_diffusion_rows]
    model, content = load_denoiser(cfg.denoiser.checkpoint, CHECKPOINT_HINT, resolve_device(cfg.run))
    known = [row for row in ladder.rows if set(row.composition) <= set(content["elements"])]
    sampled: dict[str, dict[int, list[Sheet]]] = {}
    for name, changes in TRIALS.items():
        changed = dataclasses.replace(cfg, generation=dataclasses.replace(cfg.generation, **changes))
        own_folder = folder / "diffusion_trials" / name.replace(" ", "_") if changes else folder / LADDER_SAMPLES
        sampled[name] = diffusion_samples(changed, rows, 1, own_folder)
    own = sorted(sampled[SHIPPED])
    substitution = next(method.predict for method in ladder.methods if method.name == SUBSTITUTION)
    trials = {SUBSTITUTION: _rates([substitution(k)[:1] for k in own], [rows[k] for k in own], cfg)}
    for name, sheets in sampled.items():
        first = [sheets[k] for k in own]
        refined = [refine(ladder.network, found, REFINE_STEPS) for found in first]
        trials[name] = _rates(first, [rows[k] for k in own], cfg)
        trials[f"{name}, refined"] = _rates(refined, [rows[k] for k in own], cfg)
    return {"n": len(own), "trials": trials, "denoising": denoising_by_time(model.double(), [r.sheet for r in known], cfg.run.seed)}


def denoising_by_time(model: Denoiser, sheets: Sequence[Sheet], seed: int) -> list[dict[str, float]]:
    """Return root mean square errors of noised sheets and of x_0 as one step of the network estimates it, at each of ``TIMES``.

    The noise is free, within no symmetry, and the network sees no conditions. A common shift of all atoms is no error.

    Args:
        model: in double precision.
        sheets: clean ones.
        seed: of the noise.

    Returns:
        For each time ``t``, and for ``height`` (Å), ``in_plane`` (Å, each direction) and ``lattice`` (S, about the relative error
        of a length), ``_before`` and ``_after``. Before, z and S are the noised ones over √ᾱ.
    """
    schedule, device = model.schedule, model.schedule.alphas_cumprod.device
    batch = sheets_to_batch(sheets, torch.float64).to(device)
    generator = torch.Generator().manual_seed(seed)
    atoms, count = len(batch.atomic_numbers), batch.num_graphs
    shapes = ((atoms, 2), (atoms,), (count, 3))
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes]
    result = []
    for t in (time for time in TIMES if time <= schedule.num_timesteps):
        times = torch.full((count,), t, device=device)
        state = add_noise(schedule, batch, times, *noise)
        heights, cell = physical_state(schedule, state.height, state.lattice, batch)
        with torch.no_grad():
            encoded = model.encode(batch.atomic_numbers, state.frac, heights, cell, batch.batch, times)
            estimate = model.noise(encoded)
        alpha_bar, score = schedule.alphas_cumprod[t], estimate.frac * schedule.score_norm[t]
        row: dict[str, float] = {"t": t}
        found = {
            "before": (state.frac, state.height / alpha_bar.sqrt(), state.lattice / alpha_bar.sqrt()),
            "after": (
                state.frac + schedule.sigmas[t] ** 2 * score,
                (state.height - (1 - alpha_bar).sqrt() * estimate.height) / alpha_bar.sqrt(),
                (state.lattice - (1 - alpha_bar).sqrt() * estimate.lattice) / alpha_bar.sqrt(),
            ),
        }
        for when, (frac, height, lattice) in found.items():
            errors = _errors(schedule, batch, frac, height, lattice)
            row |= {f"{name}_{when}": float(value) for name, value in errors.items()}
        result.append(row)
    return result


def _errors(
    schedule: NoiseSchedule, clean: SheetBatch, frac: torch.Tensor, height: torch.Tensor, lattice: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return root mean square errors of F, scaled z and scaled S against the clean sheets; see ``denoising_by_time``."""
    index, count = clean.batch, clean.num_graphs
    heights = schedule.unscale_heights(height, index, clean.num_atoms) - clean.heights
    vector = schedule.unscale_lattice(lattice, clean.atomic_numbers, index, clean.num_atoms)
    shift = center(wrap_displacement(frac - clean.frac_coords), index, count)
    in_plane = (shift[:, None] @ vector_to_lattice(clean.lattice_vector)[index])[:, 0]
    errors = {"height": center(heights, index, count), "in_plane": in_plane, "lattice": vector - clean.lattice_vector}
    return {name: (error**2).mean().sqrt() for name, error in errors.items()}


def _rates(found: Sequence[Sequence[Sheet]], rows: Sequence[HeldOut], cfg: Config) -> dict[str, list[float]]:
    """Return the share of rows whose first sheet is the one on record, strictly and loosely, each with its 95 % interval."""
    distances = np.array([[match_distance(own[0], row.sheet) if own else np.nan] for own, row in zip(found, rows, strict=True)])
    sizes = np.array([len(row.sheet) for row in rows])
    result = {}
    for name, limit in (("strict", CLOSE_MATCH), ("loose", np.inf)):
        rates = match_rates(np.where(distances <= limit, distances, np.nan), sizes, cfg.run.seed, cfg.evaluation.bootstrap)
        result[name] = [rates["match@1"], *rates["match@1_interval"]]
    return result
