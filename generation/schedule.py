"""The noise schedule of the diffusion, which training and sampling share."""

from __future__ import annotations

import math

import torch
from torch import nn

from crystals.elements import covalent_radius_table
from generation.batch import SheetBatch
from networks.graph import graph_mean

NUM_IMAGES = 5  # images on each side in the sums of the wrapped normal; exact to 1e-16 up to σ = 0.6
SMALLEST_SPREAD = 0.03  # lower bound on the spread of S, so that a training set of one prototype can be scaled
RIDGE = 1e-3  # regularisation of the linear fits behind the scaling


def wrap_displacement(frac: torch.Tensor) -> torch.Tensor:
    """Return fractional displacements to the nearest periodic image, in [-0.5, 0.5)."""
    return frac - torch.floor(frac + 0.5)


def wrapped_normal_score(displacement: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the score d log p / dx of the wrapped normal p(x) ∝ Σ_k exp(−(x + k)² / 2σ²) of period 1, element by element.

    displacement x and sigma are broadcastable, in fractional units; the score is in 1/fractional units.
    """
    displacement = wrap_displacement(displacement)
    images = torch.arange(-NUM_IMAGES, NUM_IMAGES + 1, dtype=displacement.dtype, device=displacement.device)
    shifted = displacement[..., None] + images
    variance = sigma[..., None] ** 2
    weights = torch.softmax(-(shifted**2) / (2 * variance), dim=-1)
    return -(weights * shifted).sum(-1) / variance[..., 0]


def expected_squared_score(sigma: torch.Tensor, num_points: int = 201) -> torch.Tensor:
    """Return E[score²], (T,), of wrapped normals of widths sigma (T,).

    The trapezoid rule integrates it, which converges exponentially on a period.
    """
    # The noise is integrated in units of σ while it is narrow, and over the period once it is wide.
    half_width = torch.clamp(12 * sigma, max=0.5)[:, None]
    x = torch.linspace(-1, 1, num_points, dtype=sigma.dtype, device=sigma.device)[None, :] * half_width
    images = torch.arange(-NUM_IMAGES, NUM_IMAGES + 1, dtype=sigma.dtype, device=sigma.device)
    density = torch.exp(-((x[..., None] + images) ** 2) / (2 * sigma[:, None, None] ** 2)).sum(-1)
    score = wrapped_normal_score(x, sigma[:, None].expand_as(x))
    weights = torch.ones(num_points, dtype=sigma.dtype, device=sigma.device)
    weights[0] = weights[-1] = 0.5
    return (weights * density * score**2).sum(1) / (weights * density).sum(1)


class NoiseSchedule(nn.Module):
    """Widths of the noise at t = 0..T, and the scaling of heights and lattice; a part of the model and of its checkpoint.

    Heights are divided by a spread that depends on the number of atoms N. The lattice S is scaled by a mean that depends on N and
    on the covalent radii of the given elements, and by a spread that depends on N. Scaled S therefore says how a sheet differs from
    what its composition suggests, and pure noise is already a cell of sensible size. ``fit`` fits all three to the training set,
    linearly.

    Args:
        num_timesteps: T.
        beta_start, beta_end: ends of the linear β schedule of heights and lattice.
        sigma_min, sigma_max: ends of the geometric σ schedule of the fractional coordinates.

    Raises:
        ValueError: the widths do not grow with t, or ``sigma_max`` exceeds 0.6.
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
        self.register_buffer("radii", covalent_radius_table())
        self.register_buffer("height_coefficients", torch.tensor([1.5, 0.0], dtype=torch.float64))
        self.register_buffer(
            "lattice_mean", torch.tensor([[0.4, 0.4, -0.1], [0.5, 0.5, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
        )
        self.register_buffer("lattice_spread", torch.tensor([[0.15, 0.15, 0.12], [0.0, 0.0, 0.0]], dtype=torch.float64))

    def _size_features(self, num_atoms: torch.Tensor) -> torch.Tensor:
        """Return (B, 2): one, and log(N / 4)."""
        size = torch.log(num_atoms.to(self.radii.dtype) / 4)
        return torch.stack([torch.ones_like(size), size], -1)

    def _composition_features(self, atomic_numbers: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor) -> torch.Tensor:
        """Return (B, 3): one, log(N / 4), log of the root mean square covalent radius (Å)."""
        radius = 0.5 * torch.log(graph_mean(self.radii[atomic_numbers] ** 2, batch, num_atoms.shape[0]))
        return torch.cat([self._size_features(num_atoms), radius[:, None]], -1)

    def height_scale(self, num_atoms: torch.Tensor) -> torch.Tensor:
        """Return the spread of the heights in Å, (B,), for numbers of atoms (B,)."""
        return torch.clamp(self._size_features(num_atoms) @ self.height_coefficients, min=0.3)

    def lattice_moments(
        self, atomic_numbers: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and spread of S, (B, 3) each, for atoms (A,) of B sheets."""
        mean = self._composition_features(atomic_numbers, batch, num_atoms) @ self.lattice_mean
        spread = torch.clamp(self._size_features(num_atoms) @ self.lattice_spread, min=SMALLEST_SPREAD)
        return mean, spread

    @torch.no_grad()
    def fit(self, sheets: SheetBatch) -> None:
        """Fit the scaling to the sheets of the training set."""
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

    def scale_heights(self, heights: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor) -> torch.Tensor:
        """Scale heights (A,) in Å to unit spread, as the noise acts on them."""
        return heights / self.height_scale(num_atoms).to(heights.dtype)[batch]

    def unscale_heights(self, scaled: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor) -> torch.Tensor:
        """Return heights (A,) in Å from scaled ones."""
        return scaled * self.height_scale(num_atoms).to(scaled.dtype)[batch]

    def scale_lattice(
        self, lattice_vector: torch.Tensor, atomic_numbers: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor
    ) -> torch.Tensor:
        """Scale S (B, 3) to zero mean and unit spread, as the noise acts on it."""
        mean, spread = self.lattice_moments(atomic_numbers, batch, num_atoms)
        return (lattice_vector - mean.to(lattice_vector.dtype)) / spread.to(lattice_vector.dtype)

    def unscale_lattice(
        self, scaled: torch.Tensor, atomic_numbers: torch.Tensor, batch: torch.Tensor, num_atoms: torch.Tensor
    ) -> torch.Tensor:
        """Return S (B, 3) from the scaled one."""
        mean, spread = self.lattice_moments(atomic_numbers, batch, num_atoms)
        return scaled * spread.to(scaled.dtype) + mean.to(scaled.dtype)

    def timesteps(self, num_steps: int) -> torch.Tensor:
        """Return the times T = t_0 > t_1 > ... > t_n = 0 of n = min(num_steps, T) reverse steps, evenly spaced, (n + 1,)."""
        steps = min(num_steps, self.num_timesteps)
        return torch.linspace(self.num_timesteps, 0, steps + 1, dtype=torch.float64).round().long()


def _ridge(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the coefficients (F, K) of a least-squares fit of target (M, K) on features (M, F).

    A small penalty keeps it solvable for a data set of one size or one element.
    """
    penalty = RIDGE * features.shape[0] * torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
    penalty[0, 0] = 0
    return torch.linalg.solve(features.T @ features + penalty, features.T @ target)
