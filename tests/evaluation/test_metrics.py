"""Scores, rates, means and intervals against hand-computed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simple_judges import SETTINGS

from evaluation import candidate, figures, metrics, page, scores, statistics


def test_aggregates_against_hand_computed_numbers():
    def row(**values):
        return candidate.CandidateResult(formula="MoS2", reduced_formula="MoS2", dimensionality="2D", **values)

    good = row(delta_g_ev=0.1, p_hit=0.6, e_above_hull_ev=0.02, score_stab=0.9, relax_rmsd_angstrom=0.1)
    good.synthesizable, good.valid, good.hit = True, True, True
    poor = row(delta_g_ev=-0.3, p_hit=0.0, e_above_hull_ev=0.3, score_stab=0.7, relax_rmsd_angstrom=0.3)
    poor.synthesizable, poor.valid, poor.hit = False, True, False
    rows = [
        good,
        poor,
        row(e_above_hull_ev=-0.1, score_stab=1.0, valid=False, relax_rmsd_angstrom=0.2, hit=False),
        candidate.CandidateResult(dimensionality="unreadable", status="unreadable: empty file"),
    ]
    found = metrics.aggregate(rows, SETTINGS, seed=0)
    assert found["mae_delta_g_ev"].value == pytest.approx(0.2)
    assert (found["mae_delta_g_ev"].n_ok, found["mae_delta_g_ev"].n) == (2, 4)
    assert found["score_stab"].value == pytest.approx((0.9 + 0.7 + 1.0) / 3)
    assert found["rate_synth"].value == pytest.approx(1 / 4) and found["rate_synth"].n_ok == 2
    assert found["rate_valid"].value == pytest.approx(2 / 4)
    assert found["hit_rate"].value == pytest.approx(1 / 4)
    assert found["expected_hit_rate"].value == pytest.approx(0.6 / 4) and found["expected_hit_rate"].n == 4
    assert found["rate_metastable"].value == pytest.approx(2 / 4)
    assert found["median_rmsd_angstrom"].value == pytest.approx(0.2)
    assert found["unique_formulas"].value == 1 and found["unique_elements"].value == 2


def test_every_table_and_figure_has_its_words():
    assert set(metrics.COMPARED) <= set(metrics.METRICS)
    assert all(metrics.METRICS[name].title for name in figures.COMPARISON_PANELS)
    assert list(metrics.aggregate([], SETTINGS, seed=0)) == list(metrics.METRICS)
    assert set(page.COLUMNS) <= set(candidate.QUANTITIES) <= set(candidate.CandidateResult.__dataclass_fields__)
    assert candidate.QUANTITIES["e_above_hull_ev"].heading == "E_hull (eV/atom)"
    assert (candidate.QUANTITIES["e_above_hull_ev"].label, candidate.QUANTITIES["hit"].label) == ("E_above_hull", "hit")


def test_scores_by_formula():
    assert scores.stability_score(-0.5, -0.6) == pytest.approx(math.exp(-0.1))
    assert scores.stability_score(-0.7, -0.6) == 1.0
    assert math.isnan(scores.stability_score(math.nan, 0.0))
    assert scores.composite_score(0.25, 0.5, 0.5) == pytest.approx(0.4 * 0.5 + 0.3)
    assert scores.composite_score(2.0, 1.0, 0.0) == pytest.approx(0.3)
    assert math.isnan(scores.composite_score(0.0, math.nan, 1.0)) and math.isnan(scores.composite_score(math.nan, 1.0, 1.0))
    # kT = 25.69 meV at 298.15 K; far from zero the volcano falls by |ΔG| / (kT ln 10).
    assert scores.log_exchange_current(0.0) == pytest.approx(0.0)
    assert scores.log_exchange_current(-0.5) == pytest.approx(scores.log_exchange_current(0.5))
    slope = scores.log_exchange_current(1.0) - scores.log_exchange_current(0.5)
    assert slope == pytest.approx(-0.5 / (0.025693 * math.log(10)), rel=1e-3)


def test_bootstrap_in_parts_draws_the_same_samples(monkeypatch):
    values = np.random.default_rng(2).normal(size=37)
    found = {}
    for at_once in (10**9, 37 * 7, 1):
        monkeypatch.setattr(statistics, "RESAMPLED_AT_ONCE", at_once)
        rng = np.random.default_rng(5)
        found[at_once] = (*statistics.bootstrap_interval(values, np.median, 100, rng), rng.random())
    assert len(set(found.values())) == 1, "the generator goes on from the same place, too"


def test_bootstrap_interval_covers_like_the_normal_interval():
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    low, high = statistics.bootstrap_interval(values, np.mean, 4000, np.random.default_rng(0))
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.015) and high == pytest.approx(values.mean() + half, abs=0.015)
    assert (low, high) == statistics.bootstrap_interval(values, np.mean, 4000, np.random.default_rng(0))
    assert all(math.isnan(x) for x in statistics.bootstrap_interval([1.0], np.mean, 10, np.random.default_rng(0)))


def test_unanimous_rate_is_not_certain():
    rate = statistics.rate_metric("x", [False] * 32, better=1, doc="", resamples=50, rng=np.random.default_rng(0))
    assert rate.value == 0 and rate.low == 0 and rate.high == pytest.approx(0.1072, abs=1e-3)


def test_bounds_of_a_unanimous_rate_are_exact():
    for n in range(1, 200):
        assert statistics.wilson_interval(0, n)[0] == 0.0 and statistics.wilson_interval(n, n)[1] == 1.0


def test_rounding_errors_are_not_written():
    made = statistics.Metric("x", -1e-17, 5.55e-17, 0.561, 3, 3, "share", 1, "")
    assert made.text() == "0 [0, 0.561] (3/3)"
    small = statistics.Metric("x", 1.2e-5, math.nan, math.nan, 3, 4, "eV", 1, "")
    assert small.text() == "1.2e-05 (3/4)"


def test_agreement_by_hand():
    score = metrics.agreement([0.0, 1.0, 2.0, math.nan], [0.5, 1.5, 1.0, 3.0])
    assert score["n"] == 3 and score["mae_ev"] == pytest.approx(2 / 3) and score["mean_error_ev"] == pytest.approx(0.0)
    assert score["spearman"] == pytest.approx(0.5)


def test_a_control_that_is_better_is_called_better():
    def of(value, low, high, better):
        return {"value": value, "low": low, "high": high, "better": better}

    ours = {"hit_rate": of(0.1, 0.0, 0.2, 1), "mae_delta_g_ev": of(0.5, 0.4, 0.6, -1), "rate_valid": of(0.9, 0.8, 1.0, 1)}
    control = {"hit_rate": of(0.15, 0.1, 0.3, 1), "mae_delta_g_ev": of(0.2, 0.1, 0.3, -1), "rate_valid": of(None, None, None, 1)}
    assert metrics.compare(control, ours) == {"hit_rate": "better", "mae_delta_g_ev": "better (clear)"}
    assert metrics.compare(ours, control)["mae_delta_g_ev"] == "worse (clear)"


def test_coverage_of_normal_errors_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    truth = rng.uniform(-1.5, 1.5, 20_000)
    std = rng.uniform(0.1, 0.4, 20_000)
    found = metrics.coverage(truth, truth + std * rng.normal(size=20_000), std, 0.27)
    assert found["n"] == 20_000 and found["within_1"] == pytest.approx(0.683, abs=0.01)
    assert found["within_2"] == pytest.approx(0.954, abs=0.005)
    low, high = found["within_1_interval"]
    assert low < found["within_1"] < high and high - low == pytest.approx(2 * 1.96 * (0.683 * 0.317 / 20_000) ** 0.5, rel=0.02)
    assert found["near_zero"]["n"] == (abs(truth + 0.27) < 0.5).sum()
    none = metrics.coverage([0.0, 1.0], [math.nan, 1.0], [0.1, 0.0], 0.27)
    assert none["n"] == 0 and math.isnan(none["within_1"]) and np.isnan(none["within_2_interval"]).all()
