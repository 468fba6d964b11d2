"""Compares sheets drawn without guidance with the crystals that the generator learnt from.

What is compared is the shortest bond of a sheet, its layer group and its number of elements. A sample of the crystals themselves
differs from them as well: its mean distance to the other crystals, with as many sheets, is the floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance

from crystals.symmetry import Template
from geo_utils import Sheet, min_distance_ratio

FLOOR_SAMPLES = 200
# name -> whether its values have an order
FEATURES = {"shortest_bond": True, "layer_group": False, "number_of_elements": False}


def features_of(sheets: Sequence[Sheet], symprec: float) -> dict[str, np.ndarray]:
    """Return the ``FEATURES`` (M,) of sheets: the shortest distance over the sum of covalent radii, and two numbers.

    symprec: Å, within which a sheet shows its layer group.
    """
    return {
        "shortest_bond": np.array([min_distance_ratio(sheet.to_atoms()) for sheet in sheets]),
        "layer_group": np.array([Template.of(sheet, symprec).layer_group for sheet in sheets]),
        "number_of_elements": np.array([len(set(sheet.atomic_numbers.tolist())) for sheet in sheets]),
    }


def distance(first: np.ndarray, second: np.ndarray, ordered: bool) -> float:
    """Return how far two samples are apart: the Wasserstein distance of ordered values, else the total variation (0 to 1)."""
    if ordered:
        return float(wasserstein_distance(first, second))
    values = np.union1d(first, second)
    shares = [(sample[:, None] == values).mean(0) for sample in (first, second)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def compare(drawn: dict[str, np.ndarray], crystals: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Return for each of ``FEATURES`` the distance of sheets that were drawn to the crystals, and the floor.

    Args:
        drawn: the features of the sheets.
        crystals: those of the crystals, of which there must be more.
        rng: draws the samples of the floor.

    Raises:
        ValueError: there are not more crystals than sheets.
    """
    number, total = len(drawn["layer_group"]), len(crystals["layer_group"])
    if total <= number:
        raise ValueError(f"{total} crystals are too few to compare {number} sheets with")
    samples = [rng.permutation(total) for _ in range(FLOOR_SAMPLES)]
    found = {}
    for name, ordered in FEATURES.items():
        own = crystals[name]
        floor = np.mean([distance(own[order[:number]], own[order[number:]], ordered) for order in samples])
        found[name] = {"distance": distance(drawn[name], own, ordered), "floor": float(floor)}
        if ordered:
            found[name] |= {"mean": float(drawn[name].mean()), "mean_of_crystals": float(own.mean())}
    return found
