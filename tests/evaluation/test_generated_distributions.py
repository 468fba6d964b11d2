"""Distances between samples of sheets, against values known by hand, and the floor, which a sample of the crystals has."""

from __future__ import annotations

import numpy as np
import pytest
from element_tables import flat_ab, mx2

from evaluation.generated_distributions import FEATURES, compare, distance, features_of


def crystals(number: int, rng: np.random.Generator, shift: float = 0.0) -> dict[str, np.ndarray]:
    """Features of sheets of three layer groups. shift: of the bonds, and of the share of the first group."""
    share = np.array([0.5 + shift, 0.3 - shift, 0.2])
    return {
        "shortest_bond": rng.normal(0.95 + shift, 0.05, number),
        "layer_group": rng.choice([72, 78, 46], number, p=share),
        "number_of_elements": rng.integers(1, 4, number),
    }


def test_features_are_those_of_the_sheets():
    sheets = [mx2(42, 16), flat_ab(5, 7)]
    found = features_of(sheets, 0.1)
    assert set(found) == set(FEATURES)
    bond = np.hypot(3.18 / np.sqrt(3), 1.56)
    assert found["shortest_bond"] == pytest.approx([bond / (1.54 + 1.05), 1.45 / (0.84 + 0.71)], abs=1e-6)
    assert found["layer_group"].tolist() == [78, 78] and found["number_of_elements"].tolist() == [2, 2]


def test_distances_are_those_worked_out_by_hand():
    first, second = np.array([1, 1, 2, 3]), np.array([1, 2, 2, 9])
    assert distance(first, second, ordered=False) == pytest.approx((0.25 + 0.25 + 0.25 + 0.25) / 2)
    assert distance(np.array([0.0, 1.0]), np.array([0.5, 1.5]), ordered=True) == pytest.approx(0.5)
    assert distance(first, first, ordered=False) == distance(first, first, ordered=True) == 0
    assert distance(np.array([1]), np.array([2]), ordered=False) == 1


def test_a_sample_of_the_crystals_is_as_far_as_the_floor_and_other_sheets_are_farther():
    rng = np.random.default_rng(0)
    everything = crystals(3000, rng)
    same, other = (compare(crystals(300, rng, shift), everything, np.random.default_rng(1)) for shift in (0.0, 0.15))
    for name in ("shortest_bond", "layer_group"):
        assert same[name]["distance"] < 2 * same[name]["floor"] and other[name]["distance"] > 3 * other[name]["floor"]
        assert same[name]["floor"] == other[name]["floor"], "it is that of the crystals"
    few = compare(crystals(30, rng), everything, np.random.default_rng(1))
    assert few["layer_group"]["floor"] > 2 * same["layer_group"]["floor"], "few sheets cannot be nearer"


def test_as_many_crystals_as_sheets_are_too_few():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="20 crystals are too few to compare 20 sheets with"):
        compare(crystals(20, rng), crystals(20, rng), rng)
