"""Forward noise and reverse steps of the joint diffusion of a two-dimensional crystal.

``add_noise``: forward noise, Eq. 1 (heights, lattice) and Eq. 2 (fractional coordinates). ``ancestral_step``, ``guidance_shift``:
reverse step with guidance, Eq. 4. ``torus_step``, ``torus_corrector``: reverse step of fractional coordinates, Eq. 5. The loss
(Eq. 3) is in ``generation.loss``; classifier-free guidance (Eq. 6), the target loss (Eq. 7) and the sampler that calls these steps
are in ``generation.sampling``; the widths of the noise are in ``generation.schedule``. ``docs/method.md`` has the same numbers.

State of a sheet with N atoms, atomic numbers given: in-plane fractional coordinates F (N, 2) on the torus, heights z (N,) in Å with
zero mean, and the in-plane lattice as S = ½ log(L Lᵀ), three numbers (S11, S22, S12). F receives wrapped normal noise of width σ(t)
(log-spaced, as in DiffCSP, Jiao et al. 2023); z and S are scaled to unit spread and receive variance-preserving noise with the
linear β schedule of DDPM (Ho et al. 2020). t = 0 is the clean sheet, t = T pure noise. The schedule is part of the model and is
saved with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from crystals.symmetry import SymmetryConstraint
from generation.batch import SheetBatch
from generation.schedule import NoiseSchedule, wrapped_normal_score
from geo_utils import vector_to_lattice
from networks.graph import center, graph_mean


@dataclass
class NoisedState:
    """The state at time t, in scaled variables, and the targets of the network."""

    frac: torch.Tensor  # (A, 2) in [0, 1)
    height: torch.Tensor  # (A,)
    lattice: torch.Tensor  # (B, 3)
    frac_target: torch.Tensor  # (A, 2) normalised score of F
    height_target: torch.Tensor  # (A,) noise ε of the heights
    lattice_target: torch.Tensor  # (B, 3) noise ε of the lattice


def add_noise(
    schedule: NoiseSchedule,
    sheets: SheetBatch,
    t: torch.Tensor,
    frac_noise: torch.Tensor,
    height_noise: torch.Tensor,
    lattice_noise: torch.Tensor,
    constraint: SymmetryConstraint | None = None,
) -> NoisedState:
    """Sample the noised state x_t given the clean one, q(x_t | x_0), from standard normal noise.

    Eq. 1, scaled heights and scaled S: x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε with ε ~ N(0, 1) (variance preserving).
    Eq. 2, fractional coordinates: F_t = (F_0 + σ_t ε) mod 1, a wrapped normal of width σ_t; the target is its score
    ∇ log q(F_t | F_0) over the root mean square of that score.

    The height noise is projected to zero mean, and so is the score target of F. The density of a crystal does not change under a
    common translation: the true score has no such component, and in the target it would only add variance.

    Args:
        schedule: widths of the noise.
        sheets: clean sheets.
        t: (B,) times in 1..T.
        frac_noise, height_noise, lattice_noise: (A, 2), (A,), (B, 3) standard normal numbers.
        constraint: templates of the sheets; their noise stays within their symmetry. The lattice target is then the noise that
            leads from the clean lattice to the noised one after projection on the symmetric lattices.

    Returns:
        The noised state and the targets of the network.
    """
    batch, count, dtype = sheets.batch, sheets.num_graphs, sheets.frac_coords.dtype
    sigma = schedule.sigmas[t].to(dtype)[batch, None]
    if constraint is not None:
        frac_noise, height_noise = constraint.frac(frac_noise), constraint.height(height_noise)
    displacement = sigma * frac_noise
    frac = torch.remainder(sheets.frac_coords + displacement, 1.0)
    frac_target = wrapped_normal_score(displacement, sigma.expand_as(displacement)) / schedule.score_norm[t].to(dtype)[batch, None]
    alpha_bar = schedule.alphas_cumprod[t].to(dtype)
    height_noise = center(height_noise, batch, count)
    clean_height = schedule.scale_heights(center(sheets.heights, batch, count), batch, sheets.num_atoms)
    clean_lattice = schedule.scale_lattice(sheets.lattice_vector, sheets.atomic_numbers, batch, sheets.num_atoms)
    lattice = alpha_bar.sqrt()[:, None] * clean_lattice + (1 - alpha_bar).sqrt()[:, None] * lattice_noise
    if constraint is not None:
        frac_target, clean_height = constraint.frac(frac_target), constraint.height(clean_height)
        clean_lattice = symmetric_lattice(schedule, constraint, clean_lattice, sheets)
        lattice = symmetric_lattice(schedule, constraint, lattice, sheets)
        effective = (lattice - alpha_bar.sqrt()[:, None] * clean_lattice) / (1 - alpha_bar).sqrt()[:, None]
        lattice_noise = torch.where(constraint.is_template[:, None], effective, lattice_noise)
    return NoisedState(
        frac=frac,
        height=alpha_bar.sqrt()[batch] * clean_height + (1 - alpha_bar).sqrt()[batch] * height_noise,
        lattice=lattice,
        frac_target=center(frac_target, batch, count),
        height_target=height_noise,
        lattice_target=lattice_noise,
    )


def symmetric_lattice(
    schedule: NoiseSchedule, constraint: SymmetryConstraint, lattice: torch.Tensor, sheets: SheetBatch
) -> torch.Tensor:
    """Project the scaled S (B, 3) on the lattices that the template allows; without a template it is unchanged."""
    vector = schedule.unscale_lattice(lattice, sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    projected = schedule.scale_lattice(constraint.lattice(vector), sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    return torch.where(constraint.is_template[:, None], projected, lattice)


def physical_state(
    schedule: NoiseSchedule, height: torch.Tensor, lattice: torch.Tensor, sheets: SheetBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return heights (A,) in Å and in-plane cells (B, 2, 2) in Å, row vectors, of a scaled state. Differentiable."""
    heights = schedule.unscale_heights(height, sheets.batch, sheets.num_atoms)
    vector = schedule.unscale_lattice(lattice, sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    return heights, vector_to_lattice(vector)


def ancestral_step(
    x: torch.Tensor, epsilon: torch.Tensor, alpha_bar_t: float, alpha_bar_s: float, noise: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Take one DDPM step t -> s < t of a variance-preserving variable, of any stride (Eq. 4; Ho et al. 2020).

    x_s = (x_t − (1 − α)/√(1 − ᾱ_t) ε) / √α + τ ξ with α = ᾱ_t/ᾱ_s and τ² = (1 − α)(1 − ᾱ_s)/(1 − ᾱ_t). At stride one this is the
    textbook step. Returns the new state and τ, the width of the step's noise (0 in the last step).
    """
    alpha = alpha_bar_t / alpha_bar_s
    spread = math.sqrt(max((1 - alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t), 0.0))
    mean = (x - (1 - alpha) / math.sqrt(1 - alpha_bar_t) * epsilon) / math.sqrt(alpha)
    return mean + spread * noise, spread


def torus_step(
    frac: torch.Tensor, score: torch.Tensor, sigma_t: float, sigma_s: float, noise: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Take one reverse step t -> s < t of the fractional coordinates on the torus (Eq. 5). score: (A, 2), 1/fractional units.

    F_s = F_t + (σ_t² − σ_s²) score + τ ξ with τ = (σ_s/σ_t) √(σ_t² − σ_s²), wrapped. Returns the new state and τ.
    """
    drift = sigma_t**2 - sigma_s**2
    spread = sigma_s / sigma_t * math.sqrt(drift)
    return torch.remainder(frac + drift * score + spread * noise, 1.0), spread


def torus_corrector(frac: torch.Tensor, score: torch.Tensor, sigma: float, snr: float, noise: torch.Tensor) -> torch.Tensor:
    """Take one Langevin step at fixed noise, the corrector of Eq. 5: F + δ score + √(2δ) ξ with δ = (snr σ)², wrapped."""
    step = (snr * sigma) ** 2
    return torch.remainder(frac + step * score + math.sqrt(2 * step) * noise, 1.0)


def guidance_shift(
    gradient: torch.Tensor, spread: float, strength: float, clip: float, batch: torch.Tensor | None, num_graphs: int
) -> torch.Tensor:
    """Return the guidance term of Eqs. 4 and 5, −strength τ² ∇L, which multiplies the sampled density by exp(−strength L).

    Components of the gradient that are not finite count as zero.

    Args:
        gradient: ∂L/∂x, of nodes (A, ...) or of graphs (B, k).
        spread: τ of this reverse step.
        strength: η, the inverse of the unit of L.
        clip: upper bound on the root mean square of the shift over the components of one structure, in units of τ.
        batch: (A,) structure of each node; None for graphs.
        num_graphs: number of structures.
    """
    gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    shift = -strength * spread**2 * gradient
    flat = (shift**2).reshape(shift.shape[0], -1).mean(1)
    squared = flat if batch is None else graph_mean(flat, batch, num_graphs)
    factor = torch.clamp(clip * spread / torch.sqrt(squared + 1e-30), max=1.0)
    factor = factor if batch is None else factor[batch]
    return shift * factor.reshape(-1, *([1] * (shift.dim() - 1)))
