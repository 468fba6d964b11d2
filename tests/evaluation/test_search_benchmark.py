"""Ratios of hits to expect between ways of choosing candidates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.search_benchmark import REFERENCES, with_ratios
from evaluation.statistics import mean_ratio


def test_the_interval_of_a_ratio_is_that_of_error_propagation():
    """Var(log ratio) is the sum of the squared relative errors of both means, where these are small."""
    rng = np.random.default_rng(0)
    first, second = rng.exponential(3.0, 400), rng.exponential(1.0, 500)
    value, low, high = mean_ratio(first, second, 2000, np.random.default_rng(1))
    error = math.hypot(*(x.std() / math.sqrt(len(x)) / x.mean() for x in (first, second)))
    assert value == pytest.approx(first.mean() / second.mean())
    assert math.log(low / value) == pytest.approx(-1.96 * error, rel=0.1)
    assert math.log(high / value) == pytest.approx(1.96 * error, rel=0.1)


@pytest.mark.parametrize(("first", "second"), [([1.0], [0.0, 0.0]), ([], [1.0]), ([1.0], [])])
def test_no_ratio_where_there_is_nothing_to_divide_by(first, second):
    assert all(math.isnan(number) for number in mean_ratio(first, second, 100, np.random.default_rng(0)))


def test_an_end_that_may_be_infinite_is_not_given():
    value, low, high = mean_ratio([1.0, 1.0], [0.0, 1.0], 400, np.random.default_rng(0))
    assert value == 2.0 and low == 1.0 and math.isnan(high), "of two values both may be the zero"


def test_rows_have_the_ratios_to_the_references_that_were_run():
    rows = [{"name": REFERENCES[0], "p_hits": [0.01, 0.01]}, {"name": "other", "p_hits": [0.1, 0.1]}]
    first, second = with_ratios(rows, 100, 0)
    assert first == {"name": REFERENCES[0], "ratios": {}}
    assert second["ratios"] == {REFERENCES[0]: {key: pytest.approx(10.0) for key in ("value", "low", "high")}}
    assert "p_hits" not in second and "p_hits" in rows[1]
