"""Forward and reverse process against exactly solvable targets."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_sheets import make_schedule, random_sheets

from generation.batch import SheetBatch
from generation.process import add_noise, ancestral_step, guidance_shift, physical_state, torus_corrector, torus_step
from generation.schedule import wrap_displacement
from networks.graph import graph_mean


def test_scaling_survives_a_data_set_of_one_composition():
    schedule, sheets = make_schedule(), random_sheets(1)
    schedule.fit(sheets)
    heights, cell = physical_state(schedule, torch.randn(len(sheets.batch)), torch.randn(1, 3), sheets)
    assert torch.isfinite(heights).all() and torch.isfinite(cell).all()


def test_forward_process_has_the_moments_of_the_schedule():
    schedule, count = make_schedule(), 4000
    t = torch.full((count,), 90)
    sheets = SheetBatch(
        torch.full((2 * count,), 16),
        torch.full((2 * count, 2), 0.25, dtype=torch.float64),
        torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(count),
        torch.full((count, 3), 0.3, dtype=torch.float64),
        torch.arange(count).repeat_interleave(2),
        torch.full((count,), 2),
    )
    g = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    state = add_noise(schedule, sheets, t, draw(2 * count, 2), draw(2 * count), draw(count, 3))
    alpha_bar = float(schedule.alphas_cumprod[90])
    clean = schedule.scale_lattice(sheets.lattice_vector, sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    torch.testing.assert_close(state.lattice.mean(0), math.sqrt(alpha_bar) * clean[0], rtol=0, atol=0.06)
    torch.testing.assert_close(state.lattice.var(0), torch.full((3,), 1 - alpha_bar, dtype=torch.float64), rtol=0.1, atol=0)
    assert float(wrap_displacement(state.frac - 0.25).std()) == pytest.approx(float(schedule.sigmas[90]), rel=0.03)
    assert graph_mean(state.height, sheets.batch, count).abs().max() < 1e-12
    assert (state.frac >= 0).all() and (state.frac < 1).all()


def test_targets_are_of_order_one_at_every_time():
    schedule, sheets = make_schedule(), random_sheets(300)
    g = torch.Generator().manual_seed(1)
    atoms = len(sheets.batch)
    for t in (1, 20, 100, 150, 200):
        noise = [torch.randn(*s, generator=g, dtype=torch.float64) for s in ((atoms, 2), (atoms,), (300, 3))]
        state = add_noise(schedule, sheets, torch.full((300,), t), *noise)
        for target in (state.frac_target, state.height_target, state.lattice_target):
            assert 0.5 < float((target**2).mean()) < 1.3, t


def test_stride_one_is_the_textbook_step():
    """x_{t−1} = (x_t − β_t/√(1−ᾱ_t) ε)/√α_t + √β̃_t ξ."""
    schedule = make_schedule()
    a = schedule.alphas_cumprod.tolist()
    x, epsilon, noise = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    new, spread = ancestral_step(x, epsilon, a[80], a[79], noise)
    beta = 1 - a[80] / a[79]
    variance = beta * (1 - a[79]) / (1 - a[80])
    torch.testing.assert_close(new, (x - beta / math.sqrt(1 - a[80]) * epsilon) / math.sqrt(1 - beta) + math.sqrt(variance) * noise)
    assert spread == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize(("num_steps", "tolerance"), [(20, 0.27), (60, 0.13), (200, 0.06)])
def test_reverse_process_recovers_a_gaussian_whatever_the_stride(num_steps, tolerance):
    """With the exact ε of a normal target N(m, s²), ε = √(1−ᾱ) (x − √ᾱ m) / (ᾱ s² + 1 − ᾱ).

    The mean is right at any stride. The variance of the step is the lower of DDPM's two choices, so that long strides end too
    narrow, by an amount that falls with the number of steps.
    """
    schedule, mean, spread = make_schedule(), 0.7, 0.4
    g = torch.Generator().manual_seed(2)
    x = torch.randn(20000, generator=g, dtype=torch.float64)
    times = schedule.timesteps(num_steps).tolist()
    for t, s in zip(times[:-1], times[1:], strict=True):
        a_t, a_s = float(schedule.alphas_cumprod[t]), float(schedule.alphas_cumprod[s])
        epsilon = math.sqrt(1 - a_t) * (x - math.sqrt(a_t) * mean) / (a_t * spread**2 + 1 - a_t)
        x, _ = ancestral_step(x, epsilon, a_t, a_s, torch.randn(20000, generator=g, dtype=torch.float64))
    assert float(x.mean()) == pytest.approx(mean, abs=0.02)
    assert spread * (1 - tolerance) < float(x.std()) < spread * 1.02


@pytest.mark.parametrize("corrector_steps", [0, 1])
def test_reverse_process_on_the_torus_recovers_two_sites(corrector_steps):
    """Exact score of two narrow sites at 0.1 (weight 3/4) and 0.6 (1/4), blurred by σ_t."""
    schedule, g, count, width = make_schedule(), torch.Generator().manual_seed(3), 8000, 0.03
    sites, weights = torch.tensor([0.1, 0.6], dtype=torch.float64), torch.tensor([0.75, 0.25], dtype=torch.float64)
    images = torch.arange(-4, 5, dtype=torch.float64)

    def score(x: torch.Tensor, sigma: float) -> torch.Tensor:
        variance = sigma**2 + width**2
        shifted = x[..., None, None] - sites[:, None] - images
        logits = torch.log(weights)[:, None] - shifted**2 / (2 * variance)
        share = torch.softmax(logits.flatten(-2), -1)
        return -(share * shifted.flatten(-2)).sum(-1) / variance

    x = torch.rand(count, 2, generator=g, dtype=torch.float64)
    times = schedule.timesteps(100).tolist()
    sigmas = schedule.sigmas.tolist()
    for t, s in zip(times[:-1], times[1:], strict=True):
        noise = torch.randn(count, 2, generator=g, dtype=torch.float64)
        x, _ = torus_step(x, score(x, sigmas[t]), sigmas[t], sigmas[s], noise)
        for _ in range(corrector_steps if s else 0):
            noise = torch.randn(count, 2, generator=g, dtype=torch.float64)
            x = torus_corrector(x, score(x, sigmas[s]), sigmas[s], 0.4, noise)
    near_first = wrap_displacement(x - 0.1).abs() < 0.15
    near_second = wrap_displacement(x - 0.6).abs() < 0.15
    assert (near_first | near_second).double().mean() > 0.999
    assert float(near_first.double().mean()) == pytest.approx(0.75, abs=0.03)
    assert float(wrap_displacement(x - 0.1)[near_first].std()) == pytest.approx(width, rel=0.1)


def test_guidance_goes_downhill_and_is_clipped():
    batch = torch.tensor([0, 0, 1])
    x = torch.tensor([[0.2], [-0.1], [5.0]], dtype=torch.float64)
    gradient = 2 * x  # of |x|²
    shift = guidance_shift(gradient, spread=0.1, strength=1.0, clip=0.5, batch=batch, num_graphs=2)
    assert ((x + shift).abs() < x.abs()).all()
    torch.testing.assert_close(shift[:2], -0.01 * gradient[:2])  # small enough not to be clipped
    assert float(shift[2].abs()) == pytest.approx(0.5 * 0.1)
    assert not guidance_shift(gradient, 0.1, 0.0, 1.0, batch, 2).any()
    broken = guidance_shift(torch.tensor([[float("nan")], [1.0], [1.0]]), 0.1, 1.0, 1.0, batch, 2)
    assert torch.isfinite(broken).all() and broken[0] == 0


def test_guidance_tilts_a_gaussian():
    """Guiding the exact reverse process of N(0, 1) with L = k x moves the mean to −strength · k and keeps the spread."""
    schedule, slope, strength = make_schedule(), 0.5, 1.0
    g = torch.Generator().manual_seed(6)
    x = torch.randn(20000, generator=g, dtype=torch.float64)
    times = schedule.timesteps(200).tolist()
    batch = torch.arange(20000)
    for t, s in zip(times[:-1], times[1:], strict=True):
        a_t, a_s = float(schedule.alphas_cumprod[t]), float(schedule.alphas_cumprod[s])
        noise = torch.randn(20000, generator=g, dtype=torch.float64)
        new, tau = ancestral_step(x, math.sqrt(1 - a_t) * x, a_t, a_s, noise)
        # x_0 given x_t is √ᾱ x_t on average: the tilt of the noised density has the slope √ᾱ k.
        gradient = torch.full_like(x, slope * math.sqrt(a_t))
        x = new + guidance_shift(gradient, tau, strength, 100.0, batch, 20000)
    assert float(x.mean()) == pytest.approx(-strength * slope, abs=0.06)
    assert float(x.std()) == pytest.approx(1.0, rel=0.05)
