"""Forward and reverse process against independent oracles: numerical integration, finite differences, exactly solvable targets."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from generation.batch import SheetBatch
from generation.process import add_noise, ancestral_step, guidance_shift, physical_state, torus_corrector, torus_step
from generation.schedule import NoiseSchedule, expected_squared_score, wrap_displacement, wrapped_normal_score
from geo_utils import lattice_to_vector
from networks.graph import center, graph_mean


def log_density(x: float, sigma: float) -> float:
    """Independent of the module: a long direct sum over images."""
    return math.log(sum(math.exp(-((x + k) ** 2) / (2 * sigma**2)) for k in range(-30, 31)))


def make_schedule(num_timesteps: int = 200) -> NoiseSchedule:
    return NoiseSchedule(num_timesteps, 1e-4, 0.02 * 1000 / num_timesteps, 0.01, 0.5)


def make_sheets(count: int = 40) -> SheetBatch:
    g = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 9, (count,), generator=g)
    batch = torch.repeat_interleave(torch.arange(count), sizes)
    atoms = len(batch)
    numbers = torch.tensor([6, 16, 42, 52])[torch.randint(0, 4, (atoms,), generator=g)]
    area = sizes.double().sqrt()[:, None, None] * 2.0
    cell = area * (torch.eye(2, dtype=torch.float64) + 0.15 * torch.randn(count, 2, 2, generator=g, dtype=torch.float64))
    heights = center(torch.randn(atoms, generator=g, dtype=torch.float64) * 1.4, batch, count)
    frac = torch.rand(atoms, 2, generator=g, dtype=torch.float64)
    return SheetBatch(numbers, frac, heights, lattice_to_vector(cell), batch, sizes)


@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("x", [-0.49, -0.2, 0.01, 0.37])
def test_wrapped_normal_score_is_the_derivative_of_the_log_density(sigma, x):
    if abs(x) > 8 * sigma:
        x = 3 * sigma
    step = 1e-6 * sigma
    expected = (log_density(x + step, sigma) - log_density(x - step, sigma)) / (2 * step)
    score = wrapped_normal_score(torch.tensor([x], dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64))
    assert float(score) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_wrapped_normal_score_is_periodic_and_odd():
    x = torch.linspace(-0.45, 0.45, 19, dtype=torch.float64)
    sigma = torch.full_like(x, 0.3)
    score = wrapped_normal_score(x, sigma)
    torch.testing.assert_close(wrapped_normal_score(x + 3, sigma), score, rtol=0, atol=1e-10)
    torch.testing.assert_close(wrapped_normal_score(-x, sigma), -score, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.005, 0.1, 0.3, 0.5])
def test_expected_squared_score_by_adaptive_quadrature(sigma):
    """E[s²] = ∫ p s² / ∫ p on one period, by scipy with a numerical derivative."""
    reach = min(0.5, 10 * sigma)
    step = 1e-5 * sigma

    def squared(x: float) -> float:
        slope = (log_density(x + step, sigma) - log_density(x - step, sigma)) / (2 * step)
        return math.exp(log_density(x, sigma)) * slope**2

    expected = quad(squared, -reach, reach, limit=200)[0] / quad(lambda x: math.exp(log_density(x, sigma)), -reach, reach)[0]
    value = float(expected_squared_score(torch.tensor([sigma], dtype=torch.float64)))
    assert value == pytest.approx(expected, rel=1e-5)


def test_narrow_noise_has_the_score_of_a_normal():
    sigma = torch.tensor([0.005, 0.02], dtype=torch.float64)
    torch.testing.assert_close(expected_squared_score(sigma), 1 / sigma**2, rtol=1e-9, atol=0)


def test_schedule_values():
    schedule = NoiseSchedule(1000, 1e-4, 0.02, 0.005, 0.5)
    alpha_bar = 1.0
    for t in range(1, 1001):
        alpha_bar *= 1 - (1e-4 + (0.02 - 1e-4) * (t - 1) / 999)
        if t in (1, 10, 500, 1000):
            assert float(schedule.alphas_cumprod[t]) == pytest.approx(alpha_bar, rel=1e-10)
    ratio = schedule.sigmas[2:] / schedule.sigmas[1:-1]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-10, atol=0)
    assert float(schedule.sigmas[0]) == 0 and float(schedule.alphas_cumprod[0]) == 1
    assert float(schedule.sigmas[1]) == pytest.approx(0.005) and float(schedule.sigmas[-1]) == pytest.approx(0.5)


@pytest.mark.parametrize("num_steps", [1, 7, 100, 1000, 5000])
def test_strided_times(num_steps):
    times = NoiseSchedule(1000, 1e-4, 0.02, 0.005, 0.5).timesteps(num_steps)
    assert times[0] == 1000 and times[-1] == 0 and len(times) == min(num_steps, 1000) + 1
    assert (times[:-1] > times[1:]).all()


@pytest.mark.parametrize("bad", [(0.02, 0.01, 0.01, 0.5), (1e-4, 0.02, 0.5, 0.1), (1e-4, 0.02, 0.01, 0.9)])
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(ValueError, match="sigma|noise schedule"):
        NoiseSchedule(100, *bad)


def test_scaling_is_invertible_and_normalises():
    schedule, sheets = make_schedule(), make_sheets(400)
    schedule.fit(sheets)
    arguments = (sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    scaled = schedule.scale_lattice(sheets.lattice_vector, *arguments)
    assert scaled.mean(0).abs().max() < 0.1 and (scaled.std(0) - 1).abs().max() < 0.3
    torch.testing.assert_close(schedule.unscale_lattice(scaled, *arguments), sheets.lattice_vector, rtol=0, atol=1e-12)
    height = schedule.scale_heights(sheets.heights, sheets.batch, sheets.num_atoms)
    assert 0.5 < height[sheets.num_atoms[sheets.batch] > 2].std() < 1.6
    torch.testing.assert_close(schedule.unscale_heights(height, sheets.batch, sheets.num_atoms), sheets.heights)


def test_scaling_survives_a_data_set_of_one_composition():
    schedule, sheets = make_schedule(), make_sheets(1)
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
    schedule, sheets = make_schedule(), make_sheets(300)
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
