"""Computes means and rates of a set with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = math.erf(1.959964 / math.sqrt(2))  # 95 % with the rounded z of earlier reports, whose numbers stay
RESAMPLED_AT_ONCE = 4_000_000  # values of a bootstrap in memory


@dataclass(frozen=True)
class Metric:
    """One number of a set.

    ``low``, ``high``: 95 % interval, NaN where there is none. ``n_ok``: candidates that have a value or verdict. ``n``: candidates
    asked for. ``better``: +1 where larger is better, -1 where smaller is, 0 where neither is. ``doc``: what the number means.
    """

    name: str
    value: float
    low: float
    high: float
    n_ok: int
    n: int
    unit: str
    better: int
    doc: str

    def text(self) -> str:
        """Return a text such as ``0.31 [0.19, 0.44] (30/32)``."""
        if math.isnan(self.value):
            return f"– ({self.n_ok}/{self.n})"
        numbers = (self.value, self.low, self.high)
        value, low, high = (0.0 if abs(number) < 1e-12 else number for number in numbers)  # 0 and not 5.55e-17
        interval = "" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]"
        return f"{value:.3g}{interval} ({self.n_ok}/{self.n})"


def bootstrap_interval(
    values: Sequence[float], statistic: Callable[..., np.ndarray], resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of ``statistic(values, axis=-1)``; (nan, nan) for fewer than two values."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return math.nan, math.nan
    # scipy.stats.bootstrap draws the same samples but sums them in another order, which would change last digits of a report. Drawn
    # in parts the numbers are the same, and a set of a million candidates fits in the memory.
    rows = max(1, RESAMPLED_AT_ONCE // len(array))
    parts = [min(rows, resamples - done) for done in range(0, resamples, rows)]
    found = [statistic(array[rng.integers(0, len(array), size=(part, len(array)))], axis=-1) for part in parts]
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return float(low), float(high)


def mean_ratio(
    values: Sequence[float], other: Sequence[float], resamples: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Return mean(values) / mean(other) and its 95 % percentile bootstrap interval, both sets drawn anew.

    NaN where the other mean is zero or a set is empty, also for one end alone.
    """

    def means(array: np.ndarray) -> np.ndarray:
        return np.array([array[rng.integers(0, len(array), len(array))].mean() for _ in range(resamples)])

    first, second = np.asarray(values, dtype=float), np.asarray(other, dtype=float)
    if not (len(first) and len(second) and second.any()):
        return math.nan, math.nan, math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.percentile(means(first) / means(second), [2.5, 97.5], method="nearest")
    found = (float(first.mean() / second.mean()), float(low), float(high))
    return tuple(number if math.isfinite(number) else math.nan for number in found)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion (Wilson, JASA 22, 209 (1927)); (nan, nan) for n = 0."""
    if n == 0:
        return math.nan, math.nan
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    # The bounds at 0 and n are exact; rounding would leave 5.55e-17.
    return 0.0 if successes == 0 else float(interval.low), 1.0 if successes == n else float(interval.high)


def rate_ratio_interval(successes: int, n: int, other_successes: int, other_n: int) -> tuple[float, float]:
    """Return the 95 % credible interval of p/p_other of two proportions, finite where the other one has no success.

    Each proportion has the posterior of Jeffreys' prior, Beta(successes + 1/2, failures + 1/2) (Brown, Cai & DasGupta,
    Stat. Sci. 16, 101 (2001)); (nan, nan) where either n is 0.
    """
    if n == 0 or other_n == 0:
        return math.nan, math.nan
    from scipy.integrate import quad
    from scipy.optimize import brentq
    from scipy.stats import beta

    own, other = beta(successes + 0.5, n - successes + 0.5), beta(other_successes + 0.5, other_n - other_successes + 0.5)

    def below(log_ratio: float) -> float:
        """P(p/p_other <= ratio), over the quantiles of p_other."""
        return quad(lambda q: own.cdf(math.exp(log_ratio) * other.ppf(q)), 0.0, 1.0, limit=200, points=[0.01, 0.1, 0.9, 0.99])[0]

    tails = (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)
    low, high = (math.exp(brentq(lambda x, tail=tail: below(x) - tail, -15.0, 15.0, xtol=1e-4)) for tail in tails)
    return low, high


def mean_metric(
    name: str,
    values: Sequence[float],
    *,
    unit: str,
    better: int,
    doc: str,
    resamples: int,
    rng: np.random.Generator,
    median: bool = False,
) -> Metric:
    """Return the mean (or median) over the finite values; NaN stands for a candidate without a value."""
    array = np.asarray(values, dtype=float)
    finite = array[np.isfinite(array)]
    statistic = np.median if median else np.mean
    value = float(statistic(finite)) if len(finite) else math.nan
    low, high = bootstrap_interval(finite, statistic, resamples, rng)
    return Metric(name, value, low, high, len(finite), len(array), unit, better, doc)


def rate_metric(
    name: str, verdicts: Sequence[bool | None], *, better: int, doc: str, resamples: int, rng: np.random.Generator
) -> Metric:
    """Return the share of True over ALL candidates, where None (no verdict) counts as not True; NaN without any verdict.

    Where all candidates agree, a bootstrap interval has no width and would claim certainty; there the Wilson interval is used.
    """
    hits = np.array([verdict is True for verdict in verdicts], dtype=float)
    n_ok = sum(verdict is not None for verdict in verdicts)
    if not n_ok:
        return Metric(name, math.nan, math.nan, math.nan, 0, len(hits), "share", better, doc)
    value = float(hits.mean())
    if 0 < hits.sum() < len(hits):
        low, high = bootstrap_interval(hits, np.mean, resamples, rng)
    else:
        low, high = wilson_interval(int(hits.sum()), len(hits))
    return Metric(name, value, low, high, n_ok, len(hits), "share", better, doc)
