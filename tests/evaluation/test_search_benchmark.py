"""Ratios of hits to expect between ways of choosing candidates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.candidate import CandidateResult
from evaluation.search_benchmark import REFERENCES, probabilities, with_ratios
from evaluation.statistics import mean_ratio
from evaluation.water_verdict import AS_STABLE, DISSOLVES
from pipeline.settings import EvaluationConfig


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


def test_rows_have_means_and_ratios_to_the_references_that_were_run():
    rows = [
        {"name": REFERENCES[0], "p_hits": [0.01, 0.01], "new_p_hits": [0.01, 0.0]},
        {"name": "other", "p_hits": [0.1, 0.1], "new_p_hits": [0.1, 0.1]},
    ]
    first, second = with_ratios(rows, 100, 0)
    assert set(first) == {"name", "expected"} and first["expected"]["p_hits"]["ratios"] == {}
    assert first["expected"]["new_p_hits"]["value"] == 0.005 and first["expected"]["new_p_hits"]["n"] == 2
    found = second["expected"]["p_hits"]
    assert (found["value"], found["low"], found["high"]) == (0.1, 0.1, 0.1)
    assert found["ratios"] == {REFERENCES[0]: {key: pytest.approx(10.0) for key in ("value", "low", "high")}}
    assert second["expected"]["new_p_hits"]["ratios"][REFERENCES[0]]["value"] == pytest.approx(20.0)
    assert "p_hits" not in second and "p_hits" in rows[1]


def _judged(**changes):
    """A candidate that is a likely hit, new and lasting."""
    about = {"valid": True, "unique": True, "novel": True, "synthesizable": True, "water": AS_STABLE, "e_above_hull_ev": 0.0}
    about |= {"delta_g_h_corrected_ev": 0.0, "delta_g_h_corrected_std_ev": 0.1, "h_desorbed": False, "h_relax_converged": True}
    return CandidateResult("id", "id.cif", **(about | changes))


def test_what_a_user_can_make_counts_as_new_and_dft_counts_for_nothing():
    """A window of one standard deviation on each side holds 68 %."""
    rows = [_judged()] + [_judged(**{name: False}) for name in ("unique", "novel", "synthesizable")]
    rows += [
        _judged(water=DISSOLVES),
        _judged(synthesizable=None),
        _judged(delta_g_h_dft_ev=2.0),
        _judged(valid=False),
        _judged(h_desorbed=True),
    ]
    rows += [_judged(delta_g_h_corrected_ev=math.nan)]
    found = probabilities(rows, EvaluationConfig(hit_delta_g_ev=0.1))
    assert found["p_hits"] == pytest.approx([0.6827] * 7 + [0.0] * 3, abs=1e-4)
    assert found["new_p_hits"] == pytest.approx([0.6827, 0, 0, 0, 0, 0, 0.6827, 0, 0, 0], abs=1e-4)
