"""The joint loss of the denoiser (Eq. 3): noise of coordinates, heights and lattice, and the heads ΔG_H, E_hull and P_synth."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from crystals.symmetry import SymmetryConstraint
from generation.batch import Denoiser, PropertyEstimate, SheetBatch
from generation.process import add_noise, physical_state
from pipeline.settings import DenoiserConfig

DIFFUSION_TERMS = ("frac", "height", "lattice")
PROPERTY_TERMS = ("delta_g", "e_hull", "synth")
TERMS = (*DIFFUSION_TERMS, *PROPERTY_TERMS)
PROPERTY_WEIGHT_FLOOR = 0.05  # at full noise the heads still learn what the composition alone implies


@dataclass
class NoiseSample:
    """All random numbers of the loss of one batch."""

    t: torch.Tensor  # (B,) times in 1..T
    frac: torch.Tensor  # (A, 2)
    height: torch.Tensor  # (A,)
    lattice: torch.Tensor  # (B, 3)
    drop: torch.Tensor  # (B,) True: the network does not see the conditions
    symmetric: torch.Tensor  # (B,) True: the noise stays within the symmetry of the sheet

    def select(self, rows: torch.Tensor, atoms: torch.Tensor) -> NoiseSample:
        """Return the random numbers of some sheets: rows (b,) and their atoms (a,), indices."""
        index = {"frac": atoms, "height": atoms}
        return NoiseSample(**{f.name: getattr(self, f.name)[index.get(f.name, rows)] for f in fields(self)})


def sample_noise(
    sheets: SheetBatch, num_timesteps: int, p_uncond: float, generator: torch.Generator, symmetric_share: float = 0.0
) -> NoiseSample:
    """Sample the random numbers of one batch, on the CPU.

    Times are stratified: one per equal slice of 1..T, shuffled. Noise is standard normal.

    Args:
        sheets: the batch.
        num_timesteps: T.
        p_uncond: probability that a sheet's conditions are dropped.
        generator: on the CPU.
        symmetric_share: probability that a sheet is noised within its symmetry.
    """
    count, atoms = sheets.num_graphs, sheets.frac_coords.shape[0]
    strata = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return NoiseSample(
        t=1 + (strata * num_timesteps).long().clamp(max=num_timesteps - 1),
        frac=torch.randn(atoms, 2, generator=generator),
        height=torch.randn(atoms, generator=generator),
        lattice=torch.randn(count, 3, generator=generator),
        drop=torch.rand(count, generator=generator) < p_uncond,
        symmetric=torch.rand(count, generator=generator) < symmetric_share,
    )


def label_weights(schedule: Any, sheets: SheetBatch, t: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the weight (B,) of each sheet in each property term: ᾱ_t, but at least the floor; 0 where the label is unknown."""
    weight = schedule.alphas_cumprod[t].to(sheets.frac_coords.dtype).clamp(min=PROPERTY_WEIGHT_FLOOR)
    labels = {"delta_g": sheets.delta_g, "e_hull": sheets.e_hull, "synth": sheets.synth}
    return {name: torch.isfinite(label) * weight for name, label in labels.items()}


def loss_sizes(schedule: Any, sheets: SheetBatch, t: torch.Tensor) -> dict[str, float | torch.Tensor]:
    """Return what the sum of each term is divided by in its mean over the sheets of a batch, all on one device."""
    atoms, count = len(sheets.atomic_numbers), sheets.num_graphs
    sums = {name: weight.sum().clamp(min=1e-6) for name, weight in label_weights(schedule, sheets, t).items()}
    return {"frac": 2 * atoms, "height": atoms, "lattice": 3 * count, **sums}


def loss_terms(
    model: Denoiser,
    sheets: SheetBatch,
    noise_sample: NoiseSample,
    constraint: SymmetryConstraint | None = None,
    sizes: dict[str, float | torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], PropertyEstimate]:
    """Return the six terms of the joint loss (Eq. 3), each of order one for an untrained model, and the estimated properties.

    Noise terms: frac, squared error of the normalised score; height and lattice, squared error of ε over ᾱ_t, which is the squared
    error of v. Property terms: delta_g, |error|, and e_hull, error², both with the error over the spread of the label; synth,
    binary cross-entropy. Property terms are means over the known labels, weighted with ᾱ_t: the less noise, the more they count.

    Args:
        model: on the device of ``sheets``.
        sheets: clean sheets with their labels.
        noise_sample: random numbers, see ``sample_noise``.
        constraint: templates of the sheets that are noised within their symmetry.
        sizes: ``loss_sizes`` of the whole batch, of which ``sheets`` are a part: the terms are the parts of its terms. None: these
            sheets are the batch.
    """
    device = sheets.frac_coords.device
    t = noise_sample.t.to(device)
    schedule = model.schedule
    state = add_noise(
        schedule,
        sheets,
        t,
        noise_sample.frac.to(device),
        noise_sample.height.to(device),
        noise_sample.lattice.to(device),
        constraint,
    )
    heights, cell = physical_state(schedule, state.height, state.lattice, sheets)
    encoded = model.encode(sheets.atomic_numbers, state.frac, heights, cell, sheets.batch, t)
    drop = noise_sample.drop.to(device)
    nan = torch.full_like(sheets.delta_g, float("nan"))
    noise = model.noise(encoded, torch.where(drop, nan, sheets.delta_g), torch.where(drop, nan, sheets.e_hull))
    properties = model.properties(encoded)

    alpha_bar = encoded.alpha_bar
    sizes = loss_sizes(schedule, sheets, t) if sizes is None else sizes
    terms = {
        "frac": ((noise.frac - state.frac_target) ** 2).sum() / sizes["frac"],
        "height": ((noise.height - state.height_target) ** 2 / alpha_bar[sheets.batch]).sum() / sizes["height"],
        "lattice": ((noise.lattice - state.lattice_target) ** 2 / alpha_bar[:, None]).sum() / sizes["lattice"],
    }
    weights = label_weights(schedule, sheets, t)
    scale = model.label_std
    errors = {
        "delta_g": (sheets.delta_g, lambda y: (properties.delta_g - y).abs() / scale[0]),
        "e_hull": (sheets.e_hull, lambda y: ((properties.e_hull - y) / scale[1]) ** 2),
        "synth": (
            sheets.synth,
            lambda y: torch.nn.functional.binary_cross_entropy_with_logits(properties.synth_logit, y, reduction="none"),
        ),
    }
    for name, (label, error) in errors.items():
        known = torch.isfinite(label)
        # Unknown labels are replaced before the error is taken: nan times zero would still poison the gradient.
        terms[name] = (error(torch.where(known, label, torch.zeros_like(label))) * weights[name]).sum() / sizes[name]
    return terms, properties


def total_loss(terms: dict[str, torch.Tensor], settings: DenoiserConfig) -> torch.Tensor:
    """Return the weighted sum of the terms, Eq. 3: L = Σ_k w_k L_k."""
    weights = {
        "frac": settings.weight_frac,
        "height": settings.weight_height,
        "lattice": settings.weight_lattice,
        "delta_g": settings.lambda_delta_g,
        "e_hull": settings.lambda_e_hull,
        "synth": settings.lambda_synth,
    }
    return sum(weights[name] * terms[name] for name in TERMS)
