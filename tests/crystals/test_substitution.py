"""Substitution in known crystals: which comes first, its size, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import mx2
from ase.data import covalent_radii

from crystals.alignment import bond_counts, bond_length
from crystals.substitution import KnownCrystals, squared_distances
from crystals.symmetry import symmetrise
from crystals.templates import TemplateLibrary
from geo_utils import Sheet


def sheet_of(formula: str, kind: str = "2H", a: float = 3.2) -> Sheet:
    atoms = mx2(formula, kind, a=a, thickness=3.1, vacuum=10)
    atoms.pbc = (True, True, False)
    return Sheet.from_atoms(atoms)


FORMULAS = ("MoS2", "MoSe2", "PtS2", "PtSe2")
KNOWN = KnownCrystals(
    [sheet_of("MoS2"), sheet_of("MoSe2", a=3.3), sheet_of("PtS2", "1T", 3.5), sheet_of("PtSe2", "1T", 3.7)], FORMULAS
)


def test_the_nearest_crystal_comes_first_at_the_size_of_its_new_elements():
    found = KNOWN.nearest([34, 74, 34], 3)
    assert len(found) == 3 and sorted(found[0].atomic_numbers.tolist()) == [34, 34, 74]
    assert symmetrise(found[0], 1e-3)[1].layer_group_number == 78
    larger = (1.62 + 1.20) * 12 + 2 * 1.62 * 6, (1.54 + 1.20) * 12 + 2 * 1.54 * 6  # bonds of W and of Mo to Se and to each other
    assert covalent_radii[[74, 42, 34]].tolist() == [1.62, 1.54, 1.20]
    assert found[0].area / KNOWN.sheets[1].area == pytest.approx((larger[0] / larger[1]) ** 2, rel=1e-6)
    assert KNOWN.nearest([78, 52, 52], 1)[0].area > KNOWN.sheets[3].area


def test_only_crystals_with_as_many_atoms_of_each_element_count():
    assert KNOWN.nearest([6, 6], 3) == [] and KNOWN.nearest([42, 42, 16], 9)[0].atomic_numbers.tolist().count(42) == 2
    assert len(KNOWN.drawn([74, 34, 34], 9, np.random.default_rng(0))) == 4
    assert len(KNOWN.nearest([42, 16, 16], 9, without="MoS2")) == 3


def test_bonds_of_mos2():
    sheet = sheet_of("MoS2", a=3.18)
    counts = bond_counts(sheet)
    metal = int(np.flatnonzero(sheet.atomic_numbers == 42)[0])
    assert sorted(counts[metal].tolist()) == [3, 3, 6], "three S on either side, and six Mo within 1.25 times their radii"
    assert (counts == counts.T).all()
    assert bond_length(counts, sheet.atomic_numbers) == pytest.approx((12 * (1.54 + 1.05) + 6 * 2 * 1.54) / 18)


def test_the_distance_is_that_of_the_templates():
    library = TemplateLibrary([], [])
    for first, second in ((42, 74), (16, 34), (16, 92)):
        assert np.sqrt(squared_distances()[first, second]) == pytest.approx(library.chemical_distance(first, second))
