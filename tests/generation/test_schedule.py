"""The noise schedule against independent oracles: numerical integration and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from tiny_sheets import make_schedule, random_sheets

from generation.schedule import NoiseSchedule, expected_squared_score, wrapped_normal_score


def log_density(x: float, sigma: float) -> float:
    """Independent of the module: a long direct sum over images."""
    return math.log(sum(math.exp(-((x + k) ** 2) / (2 * sigma**2)) for k in range(-30, 31)))


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
    schedule, sheets = make_schedule(), random_sheets(400)
    schedule.fit(sheets)
    arguments = (sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    scaled = schedule.scale_lattice(sheets.lattice_vector, *arguments)
    assert scaled.mean(0).abs().max() < 0.1 and (scaled.std(0) - 1).abs().max() < 0.3
    torch.testing.assert_close(schedule.unscale_lattice(scaled, *arguments), sheets.lattice_vector, rtol=0, atol=1e-12)
    height = schedule.scale_heights(sheets.heights, sheets.batch, sheets.num_atoms)
    assert 0.5 < height[sheets.num_atoms[sheets.batch] > 2].std() < 1.6
    torch.testing.assert_close(schedule.unscale_heights(height, sheets.batch, sheets.num_atoms), sheets.heights)
