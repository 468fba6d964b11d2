"""Prototypes of a training set: which crystals share one, the candidates of a composition, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import mx2

from crystals.prototype_library import COLUMNS, DESCRIPTORS, PrototypeLibrary, descriptors
from crystals.symmetry import symmetrise
from crystals.templates import TemplateLibrary
from geo_utils import Sheet


def sheet_of(formula: str, kind: str = "2H", a: float = 3.2) -> Sheet:
    atoms = mx2(formula, kind, a=a, thickness=3.1, vacuum=10)
    atoms.pbc = (True, True, False)
    return Sheet.from_atoms(atoms)


KNOWN = {
    "MoS2": sheet_of("MoS2"),
    "WS2": sheet_of("WS2"),
    "MoSe2": sheet_of("MoSe2", a=3.3),
    "PtS2": sheet_of("PtS2", "1T", 3.5),
    "PtSe2": sheet_of("PtSe2", "1T", 3.7),
}
E_HULL = np.array([0.0, 0.01, 0.02, 0.03, 0.3])
TUNGSTEN = [34, 74, 34]  # WSe2


@pytest.fixture(scope="module")
def library() -> PrototypeLibrary:
    extra = [sheet_of("MoS2", "1T")]  # a polymorph of the first
    return PrototypeLibrary([*KNOWN.values(), *extra], [*KNOWN, "MoS2"], np.array([*E_HULL, 0.25]), np.full(6, -0.5))


def column(name: str, rows: np.ndarray) -> np.ndarray:
    return rows[:, DESCRIPTORS.index(name)]


def test_crystals_share_a_prototype_whatever_their_elements(library):
    assert sorted(len(prototype.rows) for prototype in library.prototypes) == [3, 3]
    assert {prototype.layer_group for prototype in library.prototypes} == {72, 78}
    assert library.polymorphs.tolist() == [2, 1, 1, 1, 1, 2] and library.is_lowest.tolist() == [True] * 5 + [False]


def test_candidates_come_by_votes_and_are_the_nearest_crystal_with_other_elements(library):
    found = library.candidates(TUNGSTEN)
    assert [candidate.prototype.layer_group for candidate in found] == [78, 72]
    sheet = found[0].sheet()
    assert sorted(sheet.atomic_numbers.tolist()) == sorted(TUNGSTEN)
    assert symmetrise(sheet, 1e-3)[1].layer_group_number == 78 and sheet.area > KNOWN["MoSe2"].area
    assert library.candidates([6, 6]) == []
    assert [c.prototype.layer_group for c in library.candidates([78, 52, 52])][0] == 72
    assert len(library.candidates([42, 16, 16], without="MoS2")[0].rows) == 2


def test_descriptors_by_hand(library):
    found = library.candidates(TUNGSTEN)
    rows = descriptors(library, found)
    assert rows.shape == (2, COLUMNS) and np.isfinite(rows).all() and (rows[:, -1] == 2).all()
    templates = TemplateLibrary([], [])
    tungsten, selenium = templates.chemical_distance(42, 74), templates.chemical_distance(16, 34)
    nearest = min(tungsten * (1 / 3) ** 0.5, selenium * (2 / 3) ** 0.5)  # MoSe2 and WS2 differ in one element
    assert column("distance of the nearest", rows)[0] == pytest.approx(nearest)
    assert column("log crystals", rows) == pytest.approx(np.log1p([3, 3]))
    assert column("log one exchanged", rows) == pytest.approx(np.log1p([2, 1])), "MoSe2 and WS2, and PtSe2"
    assert column("least one exchanged", rows)[0] == pytest.approx(min(tungsten, selenium))
    assert column("layer group", rows).tolist() == [78, 72] and column("atoms", rows).tolist() == [3, 3]
    assert column("e_hull of the nearest", rows)[0] in (0.01, 0.02)
    assert rows[0, len(DESCRIPTORS)] == 0 and rows[1, len(DESCRIPTORS)] < 0, "how far behind the best"


def test_elements_that_replace_each_other_are_told_from_chance(library):
    ratios = library.exchange_ratios()
    assert ratios[42, 74] > 0 and ratios[16, 34] > ratios[16, 42] == pytest.approx(ratios[42, 16])
    without = library.exchange_ratios(frozenset({"WS2"}))
    assert without[42, 74] == pytest.approx(np.log(2 / 2)), "no W is left"
