"""The reverse process: from noise and atomic numbers to sheets, with classifier-free and property-gradient guidance.

Each candidate has its own random generator, seeded with (seed, index), which gives all its random numbers before the first step.
Networks run in float64, and the final state is rounded to 1e-6. So a candidate does not depend on which others share its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from crystals.symmetry import SymmetryConstraint, Template
from generation.batch import Denoiser, NoiseEstimate, PropertyEstimate, SheetBatch
from generation.process import ancestral_step, guidance_shift, physical_state, symmetric_lattice, torus_corrector, torus_step
from generation.schedule import NoiseSchedule
from generation.seeds import seeded_generator
from geo_utils import Sheet, lattice_to_vector, vector_to_lattice
from networks.graph import center, scatter_max
from networks.sheet_layers import EncodedSheets
from pipeline.errors import StageError
from pipeline.settings import GenerationConfig

TEMPERATURE_EV = 0.1  # guidance_scale 1 multiplies the sampled density by exp(−L_target / 0.1 eV)
LATTICE_BOUND = 4.0  # scaled S stays within this many spreads
STATE_DECIMALS = 6  # of the final fractional coordinates, heights (Å) and S


def candidate_generator(seed: int, index: int) -> torch.Generator:
    """Return the random generator of one candidate."""
    return seeded_generator("candidate", seed, index)


def target_loss(properties: PropertyEstimate, settings: GenerationConfig) -> torch.Tensor:
    """Return the target loss (Eq. 7): L_target = |ΔG_H − target| + c1 relu(E_hull) + c2 (−log P_synth), (B,) eV."""
    return (
        (properties.delta_g - settings.target_delta_g).abs()
        + settings.weight_e_hull * torch.relu(properties.e_hull)
        + settings.weight_synth * torch.nn.functional.softplus(-properties.synth_logit)
    )


@dataclass
class _Noise:
    """Initial state of a batch, and the noise of its n steps."""

    frac: torch.Tensor  # (A, 2) uniform on the torus
    height: torch.Tensor  # (A,)
    lattice: torch.Tensor  # (B, 3)
    frac_steps: torch.Tensor  # (n, A, 2)
    height_steps: torch.Tensor  # (n, A)
    lattice_steps: torch.Tensor  # (n, B, 3)
    corrector_steps: torch.Tensor  # (n, k, A, 2)


def _sample_noise(
    compositions: Sequence[Sequence[int]], indices: Sequence[int], num_steps: int, corrector_steps: int, seed: int
) -> _Noise:
    """Sample the noise of every candidate from its own generator, in float64 on the CPU."""
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in _Noise.__dataclass_fields__}
    for numbers, index in zip(compositions, indices, strict=True):
        generator, n = candidate_generator(seed, index), len(numbers)
        shapes = {
            "height": (n,),
            "lattice": (1, 3),
            "frac_steps": (num_steps, n, 2),
            "height_steps": (num_steps, n),
            "lattice_steps": (num_steps, 1, 3),
            "corrector_steps": (num_steps, corrector_steps, n, 2),
        }
        parts["frac"].append(torch.rand(n, 2, generator=generator, dtype=torch.float64))
        for name, shape in shapes.items():
            parts[name].append(torch.randn(shape, generator=generator, dtype=torch.float64))
    axis = {"frac": 0, "height": 0, "lattice": 0, "frac_steps": 1, "height_steps": 1, "lattice_steps": 1, "corrector_steps": 2}
    return _Noise(**{name: torch.cat(values, axis[name]) for name, values in parts.items()})


def _composition_batch(compositions: Sequence[Sequence[int]]) -> SheetBatch:
    """Return a batch with the given atoms and everything else zero."""
    sizes = torch.tensor([len(numbers) for numbers in compositions])
    atoms = int(sizes.sum())
    return SheetBatch(
        atomic_numbers=torch.tensor([z for numbers in compositions for z in numbers]),
        frac_coords=torch.zeros(atoms, 2, dtype=torch.float64),
        heights=torch.zeros(atoms, dtype=torch.float64),
        lattice_vector=torch.zeros(len(sizes), 3, dtype=torch.float64),
        batch=torch.repeat_interleave(torch.arange(len(sizes)), sizes),
        num_atoms=sizes,
    )


def guided_noise(model: Denoiser, encoded, settings: GenerationConfig) -> NoiseEstimate:
    """Estimate noise with classifier-free guidance (Eq. 6): ε = ε_uncond + w (ε_cond − ε_uncond); one pass where w is 0 or 1."""
    w = settings.cfg_scale
    if w == 0:
        return model.noise(encoded)
    delta_g = torch.full_like(encoded.alpha_bar, settings.target_delta_g)
    e_hull = torch.full_like(encoded.alpha_bar, settings.target_e_hull)
    conditional = model.noise(encoded, delta_g, e_hull)
    if w == 1:
        return conditional
    free = model.noise(encoded)
    mix = lambda a, b: a + w * (b - a)  # noqa: E731
    return NoiseEstimate(
        mix(free.frac, conditional.frac), mix(free.height, conditional.height), mix(free.lattice, conditional.lattice)
    )


def guidance_strength(schedule: NoiseSchedule, t: int, settings: GenerationConfig) -> float:
    """Return η(t) in 1/eV: guidance_scale / 0.1 eV, times √ᾱ_t, which fades it out where the heads see only noise."""
    return settings.guidance_scale / TEMPERATURE_EV * float(schedule.alphas_cumprod[t].sqrt())


def _bounded_height(height: torch.Tensor, schedule: NoiseSchedule, sheets: SheetBatch, limit: float) -> torch.Tensor:
    """Return scaled heights (A,) with zero mean and |z| at most ``limit`` Å; sheets that exceed it are compressed."""
    height = center(height, sheets.batch, sheets.num_graphs)
    reach = scatter_max(height.abs(), sheets.batch, sheets.num_graphs)
    allowed = limit / schedule.height_scale(sheets.num_atoms).to(height.dtype)  # |z| <= limit leaves room while there is noise
    return height * (allowed / reach.clamp(min=1e-12)).clamp(max=1.0)[sheets.batch]


State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # F (N, 2), scaled z (N,), scaled S (B, 3)


class _ReverseProcess:
    """The reverse process of one batch: what its steps share, and the steps."""

    def __init__(
        self, model: Denoiser, sheets: SheetBatch, constraint: SymmetryConstraint, noise: _Noise, settings: GenerationConfig
    ) -> None:
        self.model, self.schedule, self.settings = model, model.schedule, settings
        self.sheets, self.batch, self.count = sheets, sheets.batch, sheets.num_graphs
        self.constraint, self.noise = constraint, noise
        buffers = (self.schedule.alphas_cumprod, self.schedule.sigmas, self.schedule.score_norm)
        self.alpha_bars, self.sigmas, self.norms = (b.tolist() for b in buffers)

    def start(self) -> State:
        """Return the state of pure noise."""
        height = self.constraint.height(center(self.noise.height, self.batch, self.count))
        return self.constraint.start(self.noise.frac), height, self._symmetric_lattice(self.noise.lattice)

    def step(self, i: int, t: int, s: int, state: State) -> State:
        """Return the state after reverse step ``i`` from t to s: Eqs. 4 and 5 with guidance, then the corrector of F at s."""
        gradients = None
        if self.settings.guidance_scale > 0 and s > 0:
            encoded, gradients = _target_gradients(self.model, lambda *x: self._encode_symmetric(*x, t), state, self.settings)
        with torch.no_grad():
            if gradients is None:
                encoded = self._encode(*state, t)
            frac, height, lattice = self._denoise(i, t, s, state, guided_noise(self.model, encoded, self.settings), gradients)
            if s > 0:
                frac = self._correct(i, s, frac, height, lattice)
        return frac, height, lattice

    def _encode(self, frac: torch.Tensor, height: torch.Tensor, lattice: torch.Tensor, t: int) -> EncodedSheets:
        heights, cell = physical_state(self.schedule, height, lattice, self.sheets)
        time = torch.full((self.count,), t, device=frac.device, dtype=torch.long)
        return self.model.encode(self.sheets.atomic_numbers, frac, heights, cell, self.batch, time)

    def _encode_symmetric(self, frac: torch.Tensor, height: torch.Tensor, lattice: torch.Tensor, t: int) -> EncodedSheets:
        return self._encode(frac, self.constraint.height(height), self._symmetric_lattice(lattice), t)

    def _symmetric_lattice(self, lattice: torch.Tensor) -> torch.Tensor:
        return symmetric_lattice(self.schedule, self.constraint, lattice, self.sheets)

    def _denoise(
        self, i: int, t: int, s: int, state: State, estimate: NoiseEstimate, gradients: Sequence[torch.Tensor] | None
    ) -> State:
        """Return the state at s: the steps of F, z and S, the shift of the guidance, and the bounds."""
        frac, height, lattice = state
        constraint, noise, alphas, settings = self.constraint, self.noise, (self.alpha_bars[t], self.alpha_bars[s]), self.settings
        score, step_noise = constraint.frac(estimate.frac * self.norms[t]), constraint.frac(noise.frac_steps[i])
        frac, tau_frac = torus_step(frac, score, self.sigmas[t], self.sigmas[s], step_noise)
        height_noise = center(noise.height_steps[i], self.batch, self.count)
        height, tau = ancestral_step(height, estimate.height, *alphas, height_noise)
        lattice, _ = ancestral_step(lattice, estimate.lattice, *alphas, noise.lattice_steps[i])
        if gradients is not None:
            strength, clip = guidance_strength(self.schedule, t, settings), settings.guidance_clip
            shift = guidance_shift(constraint.frac(gradients[0]), tau_frac, strength, clip, self.batch, self.count)
            frac = torch.remainder(frac + shift, 1.0)
            height = height + guidance_shift(gradients[1], tau, strength, clip, self.batch, self.count)
            lattice = lattice + guidance_shift(gradients[2], tau, strength, clip, None, self.count)
        height = _bounded_height(constraint.height(height), self.schedule, self.sheets, settings.max_thickness_angstrom)
        return frac, height, self._symmetric_lattice(lattice.clamp(-LATTICE_BOUND, LATTICE_BOUND))

    def _correct(self, i: int, s: int, frac: torch.Tensor, height: torch.Tensor, lattice: torch.Tensor) -> torch.Tensor:
        """Return F after the Langevin corrector at s (Eq. 5)."""
        for k in range(self.settings.corrector_steps):
            estimate = guided_noise(self.model, self._encode(frac, height, lattice, s), self.settings)
            score = self.constraint.frac(estimate.frac * self.norms[s])
            step_noise = self.constraint.frac(self.noise.corrector_steps[i, k])
            frac = torus_corrector(frac, score, self.sigmas[s], self.settings.corrector_snr, step_noise)
        return frac


def sample(
    model: Denoiser,
    compositions: Sequence[Sequence[int]],
    indices: Sequence[int],
    settings: GenerationConfig,
    seed: int,
    device: str | torch.device = "cpu",
    on_step: Callable[[], None] | None = None,
    templates: Sequence[Template | None] | None = None,
) -> list[Sheet]:
    """Sample one sheet per composition.

    Each reverse step t -> s is the DDPM step of heights and lattice (Eq. 4) and the torus step of F (Eq. 5), each with its guidance
    term. The Langevin corrector of F at s follows. Noise and steps of a sheet with a template stay within its symmetry.

    Args:
        model: in float64 (``model.double()``) for results that do not depend on the batch.
        compositions: atomic numbers of each sheet, in the order of the template's atoms.
        indices: numbers of the candidates, which with ``seed`` determine their random numbers.
        settings: steps and guidance.
        seed: see ``indices``.
        device: of the model.
        on_step: called after each reverse step.
        templates: one for each sheet, None for a sheet without.

    Raises:
        StageError: a state is not finite.
    """
    times = model.schedule.timesteps(settings.num_steps).tolist()
    noise = _sample_noise(compositions, indices, len(times) - 1, settings.corrector_steps, seed)
    noise = _Noise(**{name: value.to(device, next(model.parameters()).dtype) for name, value in vars(noise).items()})
    sheets = _composition_batch(compositions).to(device)
    constraint = SymmetryConstraint(templates or [None] * sheets.num_graphs, sheets.num_atoms, noise.frac)
    process = _ReverseProcess(model, sheets, constraint, noise, settings)
    state = process.start()
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        state = process.step(i, t, s, state)
        _check_finite(*state, sheets.batch, indices, t)
        if on_step is not None:
            on_step()
    return _to_sheets(model.schedule, sheets, *state)


def _target_gradients(
    model: Denoiser, encode: Callable[..., EncodedSheets], state: Sequence[torch.Tensor], settings: GenerationConfig
) -> tuple[EncodedSheets, tuple[torch.Tensor, ...]]:
    """Return the encoded sheets of a state (F, z, S), and the gradients of the target loss (Eq. 7) with respect to it.

    Of atoms that symmetry makes equal, the heads' maximum pooling picks one by rounding errors. ``encode`` projects the state on
    its symmetry, so that the gradient is the same whichever is picked.
    """
    with torch.enable_grad():
        state = [x.detach().requires_grad_() for x in state]
        encoded = encode(*state)
        loss = target_loss(model.properties(encoded), settings).sum()
        return encoded, torch.autograd.grad(loss, state, allow_unused=True, materialize_grads=True)


def _check_finite(
    frac: torch.Tensor, height: torch.Tensor, lattice: torch.Tensor, batch: torch.Tensor, indices: Sequence[int], t: int
) -> None:
    """Raise StageError, which names the candidates, where a state is not finite after the step from t."""
    atoms, cells = torch.isfinite(frac).all(1) & torch.isfinite(height), torch.isfinite(lattice).all(1)
    if bool(atoms.all() & cells.all()):
        return
    bad = sorted({indices[k] for k in [*batch[~atoms].tolist(), *torch.nonzero(~cells).flatten().tolist()]})
    names = ", ".join(f"gen_{index:05d}" for index in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    raise StageError(
        f"sampling from t = {t} gave numbers that are not finite for {names}; "
        "lower generation.guidance_scale or generation.cfg_scale, or train the denoiser anew"
    )


@torch.no_grad()
def _to_sheets(
    schedule: NoiseSchedule, sheets: SheetBatch, frac: torch.Tensor, height: torch.Tensor, lattice: torch.Tensor
) -> list[Sheet]:
    """Return scaled states as standardised sheets. States are rounded first, and all else follows from the rounded numbers."""
    heights = schedule.unscale_heights(height, sheets.batch, sheets.num_atoms)
    vector = schedule.unscale_lattice(lattice, sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    rounded = [torch.round(x.detach().cpu().double(), decimals=STATE_DECIMALS) for x in (frac, heights, vector)]
    cells = vector_to_lattice(rounded[2]).numpy()
    result, start = [], 0
    for k, size in enumerate(sheets.num_atoms.tolist()):
        atoms = slice(start, start + size)
        numbers = sheets.atomic_numbers[atoms].cpu().numpy()
        plain = Sheet(numbers, rounded[0][atoms].numpy() % 1.0, rounded[1][atoms].numpy(), cells[k])
        result.append(Sheet.from_atoms(plain.to_atoms()))
        start += size
    return result


def sheets_to_batch(sheets: Sequence[Sheet], dtype: torch.dtype = torch.float64) -> SheetBatch:
    """Return sheets as a batch without labels."""
    sizes = torch.tensor([len(sheet) for sheet in sheets])
    lattice = torch.as_tensor(np.stack([sheet.lattice for sheet in sheets]))
    return SheetBatch(
        atomic_numbers=torch.as_tensor(np.concatenate([sheet.atomic_numbers for sheet in sheets])),
        frac_coords=torch.as_tensor(np.concatenate([sheet.frac_coords for sheet in sheets])).to(dtype),
        heights=torch.as_tensor(np.concatenate([sheet.heights for sheet in sheets])).to(dtype),
        lattice_vector=lattice_to_vector(lattice).to(dtype),
        batch=torch.repeat_interleave(torch.arange(len(sizes)), sizes),
        num_atoms=sizes,
    )


@torch.no_grad()
def predict_properties(
    model: Denoiser, sheets: Sequence[Sheet], device: str | torch.device = "cpu", batch_size: int = 64
) -> PropertyEstimate:
    """Return the heads' predictions for M finished sheets (t = 1), (M,) each, on the CPU."""
    dtype = next(model.parameters()).dtype
    parts = []
    for start in range(0, len(sheets), batch_size):
        batch = sheets_to_batch(sheets[start : start + batch_size], dtype).to(device)
        time = torch.ones(batch.num_graphs, dtype=torch.long, device=device)
        cell = vector_to_lattice(batch.lattice_vector)
        parts.append(
            model.properties(model.encode(batch.atomic_numbers, batch.frac_coords, batch.heights, cell, batch.batch, time))
        )
    return PropertyEstimate(*(torch.cat([getattr(p, name).cpu() for p in parts]) for name in PropertyEstimate.__dataclass_fields__))
