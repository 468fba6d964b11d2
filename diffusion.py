"""Joint diffusion of a two-dimensional crystal: the noise schedule, the forward process and the steps of the reverse process.

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
from torch import nn
from torch_geometric.utils import scatter

from geo_utils import vector_to_lattice
from symmetry import SymmetryConstraint

NUM_IMAGES = 5  # images on each side in the sums of the wrapped normal; exact to 1e-16 up to σ = 0.6
SMALLEST_SPREAD = 0.03  # of S and relative to a typical sheet: keeps the scaling usable for data sets of one prototype
RIDGE = 1e-3  # regularisation of the linear fits behind the scaling


# ------------------------------------------------------------------------------------------------------------- wrapped normal


def wrap_displacement(frac: torch.Tensor) -> torch.Tensor:
    """Nearest periodic image: fractional displacements into [-0.5, 0.5)."""
    return frac - torch.floor(frac + 0.5)


def wrapped_normal_score(displacement: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """d log p / dx of the wrapped normal p(x) ∝ Σ_k exp(−(x + k)² / 2σ²) with period 1, element by element.

    displacement, sigma: broadcastable, fractional units. Returns the score in 1/fractional units.
    """
    displacement = wrap_displacement(displacement)
    images = torch.arange(-NUM_IMAGES, NUM_IMAGES + 1, dtype=displacement.dtype, device=displacement.device)
    shifted = displacement[..., None] + images
    variance = sigma[..., None] ** 2
    weights = torch.softmax(-(shifted**2) / (2 * variance), dim=-1)
    return -(weights * shifted).sum(-1) / variance[..., 0]


def expected_squared_score(sigma: torch.Tensor, num_points: int = 201) -> torch.Tensor:
    """(T,) E[score²] of wrapped normals of widths sigma (T,), by the trapezoid rule, which converges exponentially on a period."""
    # The noise is integrated in units of σ while it is narrow, and over the period once it is wide.
    half_width = torch.clamp(12 * sigma, max=0.5)[:, None]
    x = torch.linspace(-1, 1, num_points, dtype=sigma.dtype, device=sigma.device)[None, :] * half_width
    images = torch.arange(-NUM_IMAGES, NUM_IMAGES + 1, dtype=sigma.dtype, device=sigma.device)
    density = torch.exp(-((x[..., None] + images) ** 2) / (2 * sigma[:, None, None] ** 2)).sum(-1)
    score = wrapped_normal_score(x, sigma[:, None].expand_as(x))
    weights = torch.ones(num_points, dtype=sigma.dtype, device=sigma.device)
    weights[0] = weights[-1] = 0.5
    return (weights * density * score**2).sum(1) / (weights * density).sum(1)


# ------------------------------------------------------------------------------------------------------------------ batches


def graph_mean(values: torch.Tensor, batch: torch.Tensor, num_graphs: int) -> torch.Tensor:
    """Mean of node values over each graph: (A, ...) -> (B, ...)."""
    return scatter(values, batch, dim=0, dim_size=num_graphs, reduce="mean")


def center(values: torch.Tensor, batch: torch.Tensor, num_graphs: int) -> torch.Tensor:
    """Node values minus their mean over the graph."""
    return values - graph_mean(values, batch, num_graphs)[batch]


@dataclass
class SheetBatch:
    """A batch of sheets. atomic_numbers (A,), frac_coords (A, 2), heights (A,) Å, lattice_vector (B, 3) = S, batch (A,) sorted,
    num_atoms (B,); labels (B,), nan where unknown: delta_g (eV), e_hull (eV/atom), synth (0 or 1)."""

    atomic_numbers: torch.Tensor
    frac_coords: torch.Tensor
    heights: torch.Tensor
    lattice_vector: torch.Tensor
    batch: torch.Tensor
    num_atoms: torch.Tensor
    delta_g: torch.Tensor | None = None
    e_hull: torch.Tensor | None = None
    synth: torch.Tensor | None = None

    @property
    def num_graphs(self) -> int:
        return self.num_atoms.shape[0]

    def to(self, device: str | torch.device) -> SheetBatch:
        return SheetBatch(**{name: value if value is None else value.to(device) for name, value in vars(self).items()})


# ----------------------------------------------------------------------------------------------------------------- schedule


class NoiseSchedule(nn.Module):
    """Widths of the noise at t = 0..T and the scaling of heights and lattice; a part of the model, used by training and sampling.

    Heights are divided by a spread that depends on N. S has a mean and a spread that depend on N and, as the elements are given, on
    their covalent radii: S − mean is about how a sheet differs from what its composition suggests, so that pure noise is already a
    cell of sensible size. Both are linear fits to the training set (``fit``).
    """

    def __init__(self, num_timesteps: int, beta_start: float, beta_end: float, sigma_min: float, sigma_max: float):
        super().__init__()
        if not (0 < beta_start < beta_end < 1 and 0 < sigma_min < sigma_max and num_timesteps >= 2):
            raise ValueError("noise schedule needs 0 < beta_start < beta_end < 1, 0 < sigma_min < sigma_max and two or more steps")
        if sigma_max > 0.6:
            raise ValueError("sigma_max beyond 0.6 is uniform on the torus; choose a smaller one")
        self.num_timesteps = num_timesteps
        betas = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
        alphas_cumprod = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)])
        exponent = torch.linspace(0, 1, num_timesteps, dtype=torch.float64)
        sigmas = torch.cat([torch.zeros(1, dtype=torch.float64), sigma_min * (sigma_max / sigma_min) ** exponent])
        score_norm = torch.cat([torch.ones(1, dtype=torch.float64), torch.sqrt(expected_squared_score(sigmas[1:]))])
        self.register_buffer("alphas_cumprod", alphas_cumprod)
        self.register_buffer("sigmas", sigmas)
        self.register_buffer("score_norm", score_norm)
        # Linear coefficients on the features of `_composition_features`; the defaults describe a typical monolayer.
        self.register_buffer("radii", _covalent_radii())
        self.register_buffer("height_coefficients", torch.tensor([1.5, 0.0], dtype=torch.float64))
        self.register_buffer(
            "lattice_mean", torch.tensor([[0.4, 0.4, -0.1], [0.5, 0.5, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
        )
        self.register_buffer("lattice_spread", torch.tensor([[0.15, 0.15, 0.12], [0.0, 0.0, 0.0]], dtype=torch.float64))

    def _size_features(self, num_atoms: torch.Tensor) -> torch.Tensor:
        """(B, 2): one, and log(N / 4)."""
        size = torch.log(num_atoms.to(self.radii.dtype) / 4)
        return torch.stack([torch.ones_like(size), size], -1)

    def _composition_features(self, atomic_numbers: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor) -> torch.Tensor:
        """(B, 3): one, log(N / 4), log of the root mean square covalent radius."""
        radius = 0.5 * torch.log(graph_mean(self.radii[atomic_numbers] ** 2, batch, num_atoms.shape[0]))
        return torch.cat([self._size_features(num_atoms), radius[:, None]], -1)

    def height_scale(self, num_atoms: torch.Tensor) -> torch.Tensor:
        """(B,) spread of the heights in Å."""
        return torch.clamp(self._size_features(num_atoms) @ self.height_coefficients, min=0.3)

    def lattice_moments(
        self, atomic_numbers: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3) mean and (B, 3) spread of S."""
        mean = self._composition_features(atomic_numbers, batch, num_atoms) @ self.lattice_mean
        spread = torch.clamp(self._size_features(num_atoms) @ self.lattice_spread, min=SMALLEST_SPREAD)
        return mean, spread

    @torch.no_grad()
    def fit(self, sheets: SheetBatch) -> None:
        """Fits the scaling to the sheets of the training set."""
        dtype = self.radii.dtype
        count = sheets.num_graphs
        size = self._size_features(sheets.num_atoms)
        composition = self._composition_features(sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
        squared = graph_mean(sheets.heights.to(dtype) ** 2, sheets.batch, count)
        self.height_coefficients.copy_(_ridge(size, torch.sqrt(squared)[:, None])[:, 0])
        lattice = sheets.lattice_vector.to(dtype)
        self.lattice_mean.copy_(_ridge(composition, lattice))
        residual = (lattice - composition @ self.lattice_mean).abs()
        self.lattice_spread.copy_(_ridge(size, residual) * math.sqrt(math.pi / 2))  # E|x| = σ √(2/π) for a normal

    # The scaled variables that the variance-preserving noise acts on.

    def scale_heights(self, heights: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor) -> torch.Tensor:
        return heights / self.height_scale(num_atoms).to(heights.dtype)[batch]

    def unscale_heights(self, scaled: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor) -> torch.Tensor:
        return scaled * self.height_scale(num_atoms).to(scaled.dtype)[batch]

    def scale_lattice(
        self, lattice_vector: torch.Tensor, atomic_numbers: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor
    ) -> torch.Tensor:
        mean, spread = self.lattice_moments(atomic_numbers, batch, num_atoms)
        return (lattice_vector - mean.to(lattice_vector.dtype)) / spread.to(lattice_vector.dtype)

    def unscale_lattice(
        self, scaled: torch.Tensor, atomic_numbers: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor
    ) -> torch.Tensor:
        mean, spread = self.lattice_moments(atomic_numbers, batch, num_atoms)
        return scaled * spread.to(scaled.dtype) + mean.to(scaled.dtype)

    def timesteps(self, num_steps: int) -> torch.Tensor:
        """Descending strided subset T = t_0 > t_1 > ... > t_n = 0 of the schedule with n = min(num_steps, T) steps, (n + 1,)."""
        steps = min(num_steps, self.num_timesteps)
        return torch.linspace(self.num_timesteps, 0, steps + 1, dtype=torch.float64).round().long()


def _covalent_radii() -> torch.Tensor:
    from ase.data import covalent_radii

    return torch.as_tensor(covalent_radii, dtype=torch.float64).clone()


def _ridge(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Least squares with a small penalty, so that a data set of one size or one element is no singular case."""
    penalty = RIDGE * features.shape[0] * torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
    penalty[0, 0] = 0
    return torch.linalg.solve(features.T @ features + penalty, features.T @ target)


# ----------------------------------------------------------------------------------------------------------- forward process


@dataclass
class NoisedState:
    """The state at time t, in scaled variables, and what the network is asked for.

    frac (A, 2) in [0, 1), height (A,), lattice (B, 3): the noised state. *_target: the normalised score of F, and the noise ε of
    the heights and of the lattice.
    """

    frac: torch.Tensor
    height: torch.Tensor
    lattice: torch.Tensor
    frac_target: torch.Tensor
    height_target: torch.Tensor
    lattice_target: torch.Tensor


def add_noise(
    schedule: NoiseSchedule,
    sheets: SheetBatch,
    t: torch.Tensor,
    frac_noise: torch.Tensor,
    height_noise: torch.Tensor,
    lattice_noise: torch.Tensor,
    kept: SymmetryConstraint | None = None,
) -> NoisedState:
    """Forward process q(x_t | x_0). t: (B,) in 1..T. The noises are standard normal: (A, 2), (A,), (B, 3).

    kept: templates of the sheets, whose noise stays within their symmetry. There the lattice target is the noise that leads from
    the clean lattice to the noised one, which was projected on the symmetric ones.

    The height noise is projected to zero mean. So is the score target of F: a crystal's density does not change under a common
    translation, the true score has no such component, and the target's only adds variance.
    """
    batch, count, dtype = sheets.batch, sheets.num_graphs, sheets.frac_coords.dtype
    sigma = schedule.sigmas[t].to(dtype)[batch, None]
    if kept is not None:
        frac_noise, height_noise = kept.frac(frac_noise), kept.height(height_noise)
    displacement = sigma * frac_noise
    frac = torch.remainder(sheets.frac_coords + displacement, 1.0)
    frac_target = wrapped_normal_score(displacement, sigma.expand_as(displacement)) / schedule.score_norm[t].to(dtype)[batch, None]
    alpha_bar = schedule.alphas_cumprod[t].to(dtype)
    height_noise = center(height_noise, batch, count)
    clean_height = schedule.scale_heights(center(sheets.heights, batch, count), batch, sheets.num_atoms)
    clean_lattice = schedule.scale_lattice(sheets.lattice_vector, sheets.atomic_numbers, batch, sheets.num_atoms)
    lattice = alpha_bar.sqrt()[:, None] * clean_lattice + (1 - alpha_bar).sqrt()[:, None] * lattice_noise
    if kept is not None:
        frac_target, clean_height = kept.frac(frac_target), kept.height(clean_height)
        clean_lattice = symmetric_lattice(schedule, kept, clean_lattice, sheets)
        lattice = symmetric_lattice(schedule, kept, lattice, sheets)
        effective = (lattice - alpha_bar.sqrt()[:, None] * clean_lattice) / (1 - alpha_bar).sqrt()[:, None]
        lattice_noise = torch.where(kept.is_template[:, None], effective, lattice_noise)
    return NoisedState(
        frac=frac,
        height=alpha_bar.sqrt()[batch] * clean_height + (1 - alpha_bar).sqrt()[batch] * height_noise,
        lattice=lattice,
        frac_target=center(frac_target, batch, count),
        height_target=height_noise,
        lattice_target=lattice_noise,
    )


def symmetric_lattice(schedule: NoiseSchedule, kept: SymmetryConstraint, lattice: torch.Tensor, sheets: SheetBatch) -> torch.Tensor:
    """The scaled S (B, 3) projected on the symmetric lattices; unchanged where a sheet has no template."""
    vector = schedule.unscale_lattice(lattice, sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    projected = schedule.scale_lattice(kept.lattice(vector), sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    return torch.where(kept.is_template[:, None], projected, lattice)


def physical_state(
    schedule: NoiseSchedule, height: torch.Tensor, lattice: torch.Tensor, sheets: SheetBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Heights (A,) in Å and in-plane cells (B, 2, 2) in Å of a scaled state; differentiable."""
    heights = schedule.unscale_heights(height, sheets.batch, sheets.num_atoms)
    vector = schedule.unscale_lattice(lattice, sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    return heights, vector_to_lattice(vector)


# ----------------------------------------------------------------------------------------------------------- reverse process


def ancestral_step(
    x: torch.Tensor, epsilon: torch.Tensor, alpha_bar_t: float, alpha_bar_s: float, noise: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """One DDPM step t -> s < t of a variance-preserving variable, any stride.

    x_s = (x_t − (1 − α)/√(1 − ᾱ_t) ε) / √α + τ ξ with α = ᾱ_t/ᾱ_s and τ² = (1 − α)(1 − ᾱ_s)/(1 − ᾱ_t); the textbook step at stride
    one. Returns the new state and τ, the noise of the step (0 for the last).
    """
    alpha = alpha_bar_t / alpha_bar_s
    spread = math.sqrt(max((1 - alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t), 0.0))
    mean = (x - (1 - alpha) / math.sqrt(1 - alpha_bar_t) * epsilon) / math.sqrt(alpha)
    return mean + spread * noise, spread


def torus_step(
    frac: torch.Tensor, score: torch.Tensor, sigma_t: float, sigma_s: float, noise: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """One reverse step t -> s < t of the variance-exploding noise of F: score (A, 2) in 1/fractional units.

    F_s = F_t + (σ_t² − σ_s²) score + τ ξ with τ = (σ_s/σ_t) √(σ_t² − σ_s²), wrapped. Returns the new state and τ.
    """
    drift = sigma_t**2 - sigma_s**2
    spread = sigma_s / sigma_t * math.sqrt(drift)
    return torch.remainder(frac + drift * score + spread * noise, 1.0), spread


def torus_corrector(frac: torch.Tensor, score: torch.Tensor, sigma: float, snr: float, noise: torch.Tensor) -> torch.Tensor:
    """One Langevin step at fixed noise: F + δ score + √(2δ) ξ with δ = (snr σ)², wrapped."""
    step = (snr * sigma) ** 2
    return torch.remainder(frac + step * score + math.sqrt(2 * step) * noise, 1.0)


def guidance_shift(
    gradient: torch.Tensor, spread: float, strength: float, clip: float, batch: torch.Tensor | None, num_graphs: int
) -> torch.Tensor:
    """−strength τ² ∇L, the step towards a lower L that tilts the sampled density by exp(−strength L), clipped per structure.

    gradient: ∂L/∂x of nodes (A, ...) with their ``batch``, or of graphs (B, k) without. spread: τ of this reverse step. The root
    mean square of the shift over a structure's components is at most ``clip`` τ. Components that are not finite count as zero.
    """
    gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    shift = -strength * spread**2 * gradient
    flat = (shift**2).reshape(shift.shape[0], -1).mean(1)
    squared = flat if batch is None else graph_mean(flat, batch, num_graphs)
    factor = torch.clamp(clip * spread / torch.sqrt(squared + 1e-30), max=1.0)
    factor = factor if batch is None else factor[batch]
    return shift * factor.reshape(-1, *([1] * (shift.dim() - 1)))
