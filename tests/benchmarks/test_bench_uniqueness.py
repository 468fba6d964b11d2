"""Which sheets of one formula are alike: each reduced once and only likely pairs compared (ours), and every pair, in one run."""

import pytest

from crystals.matching import DifferentStructures, match_structure, same_structure
from scripts.benchmark_growth import sheets_of_one_formula

GROUP = "uniqueness of 24 different sheets of one formula, 12 atoms"


@pytest.fixture(scope="module")
def sheets():
    return {name: match_structure(atoms, True) for name, atoms in sheets_of_one_formula(24)[1].items()}


def every_pair(sheets):
    kept = []
    for name, own in sheets.items():
        if not any(same_structure(own, sheets[other]) for other in kept):
            kept.append(name)
    return kept


def likely_pairs(sheets):
    seen = DifferentStructures()
    return [name for name, own in sheets.items() if not seen.find_or_add(name, own)]


@pytest.mark.benchmark(group=GROUP)
def test_likely_pairs(benchmark, sheets):
    assert benchmark.pedantic(likely_pairs, (sheets,), rounds=2) == every_pair(sheets)


@pytest.mark.benchmark(group=GROUP)
def test_every_pair(benchmark, sheets):
    benchmark.pedantic(every_pair, (sheets,), rounds=2)
