"""Neighbours of sheets that DFT has computed: what is replaced by what, in which cells, and which sheets are looked around."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import mx2

from crystals.cif import read_cif
from crystals.matching import match_structure, same_structure
from energetics.dft_points import read_truth
from evaluation.batch_choice import dft_atoms
from evaluation.neighbours import NEAR_ZERO_EV, changed, neighbours, parents_of, write_neighbours
from geo_utils import min_distance_ratio, primitive_sheet
from pipeline.errors import ConfigError

POINTS = Path(__file__).resolve().parents[2] / "data" / "h_on_2d_dft.db"
MAGNETIC = ("V", "Cr", "Mn", "Fe", "Co", "Ni")


@pytest.fixture(scope="module")
def niobium_sulfide():
    return primitive_sheet(mx2("NbS2", "2H", a=3.35, thickness=3.14, vacuum=8.0))


@pytest.fixture(scope="module")
def around(niobium_sulfide):
    return list(changed("NbS2", niobium_sulfide, MAGNETIC))


def test_one_element_or_one_atom_is_replaced_by_a_related_one(around):
    formulas = {one.atoms.get_chemical_formula("metal") for one in around}
    assert {"TaS2", "TiS2", "MoS2", "NbSe2", "NbSSe", "NbTaS4", "MoNbS4", "Nb3TiS8", "Nb2S3Se", "Nb4S7Se"} <= formulas
    for one in around:
        symbols = set(one.atoms.symbols)
        assert len(symbols - {"Nb", "S"}) == 1 and not symbols & set(MAGNETIC)
    metals = {(symbols - {"Nb", "S"}).pop() for one in around if "S" in (symbols := set(one.atoms.symbols)) and "Nb" not in symbols}
    assert metals == {"Ta", "Ti", "Zr", "Hf", "Mo", "W"}, "groups 4 to 6, without vanadium and chromium"


def test_the_nearest_come_first_and_say_what_they_are(around):
    assert around[0].change == "1 of 1 Nb -> Ta" and around[0].parent == "NbS2"
    first_of_another_group = next(k for k, one in enumerate(around) if one.change.split()[-1] not in ("Ta", "Se", "Te", "O", "Po"))
    assert all(one.change.split()[-1] not in ("Ta", "Se", "Te") for one in around[first_of_another_group:])


def test_dft_costs_no_more_than_for_the_parent(niobium_sulfide, around):
    assert {len(one.atoms) for one in around} == {3, 6, 12} and {dft_atoms(one.atoms) for one in around} == {
        dft_atoms(niobium_sulfide)
    }


def test_the_size_follows_the_new_elements(niobium_sulfide, around):
    by_change = {one.change: one.atoms for one in around}
    grown = by_change["2 of 2 S -> Te"].cell.lengths()[0] / niobium_sulfide.cell.lengths()[0]
    assert grown == pytest.approx(3.68 / 3.35, rel=0.03), "2H-NbTe2 and 2H-NbS2, PBE"
    assert min(min_distance_ratio(one.atoms) for one in around) > 0.8 * min_distance_ratio(niobium_sulfide)


def test_no_two_neighbours_are_alike_and_all_parents_take_turns(niobium_sulfide):
    parents = {"first": niobium_sulfide, "again": niobium_sulfide, "MoS2": primitive_sheet(mx2("MoS2", vacuum=8.0))}
    found = neighbours(parents, 30, lambda sheet: len(sheet) < 12, MAGNETIC)
    structures = [match_structure(one.atoms, is_sheet=True) for one in found]
    assert len(found) == 30 and max(len(one.atoms) for one in found) == 6
    assert not any(same_structure(structures[i], structures[j]) for i in range(30) for j in range(i))
    assert {one.parent for one in found} == {"first", "MoS2"}, "the second copy has nothing new"


def test_parents_are_near_zero_and_small_or_named():
    points = read_truth(POINTS)
    lowest = {}
    for point in points:
        lowest[point.name] = min(lowest.get(point.name, np.inf), point.delta_e + 0.27)
    found = parents_of(points, [], 0.27)
    sizes = [abs(lowest[name]) for name in found]
    assert "TaSe2_2H-MX2" in found and len(found["TaSe2_2H-MX2"]) == 3 and "MoS2_2H" not in found
    assert not any("vacancy" in name or "edge" in name for name in found), "no defects"
    with pytest.raises(ConfigError, match=r"neighbours_of: 2H-MoS2-edge-Mo is no sheet: vacuum in more than one direction"):
        parents_of(points, ["2H-MoS2-edge-Mo"], 0.27)
    assert sizes == sorted(sizes) and max(sizes) <= NEAR_ZERO_EV
    assert list(parents_of(points, ["MoS2_2H", "NbS2_2H"], 0.27)) == ["NbS2_2H", "MoS2_2H"]
    with pytest.raises(ConfigError, match=r"loop.neighbours_of: the DFT points have no sheet MoS3"):
        parents_of(points, ["NbS2_2H", "MoS3"], 0.27)
    assert parents_of([], [], 0.27) == {}


def test_their_files_hold_the_sheets_and_say_where_they_come_from(around, tmp_path):
    write_neighbours(around[:5], tmp_path)
    about = json.loads((tmp_path / "neighbours.json").read_text())
    assert list(about) == [f"near_{k:05d}" for k in range(5)] and about["near_00000"] == {
        "parent": "NbS2",
        "change": "1 of 1 Nb -> Ta",
    }
    for name, one in zip(about, around, strict=False):
        written = match_structure(read_cif(tmp_path / f"{name}.cif"), is_sheet=True)
        assert same_structure(written, match_structure(one.atoms, is_sheet=True))
