"""Vacancies and single atoms in sheets: what is taken out, where the metal stands, and where H starts."""

import numpy as np
import pytest
from ase.build import graphene, mx2
from ase.data import atomic_numbers, covalent_radii
from ase.geometry import find_mic

from energetics.defect_sites import hydrogen_above, single_atom, vacancy
from energetics.sites import BESIDE_SITE
from scripts.prepare_defects import SINGLE_ATOMS, VACANCIES, all_systems


def molybdenum_disulfide():
    return mx2("MoS2", kind="2H", a=3.18, thickness=3.13, vacuum=8.0)


def test_a_vacancy_is_one_atom_less_on_the_upper_face():
    sheet = molybdenum_disulfide()
    defect, place = vacancy(sheet, "S", (2, 2))
    assert defect.symbols.count("S") == 7 and defect.symbols.count("Mo") == 4
    assert place[2] == pytest.approx(sheet.positions[:, 2].max())
    _, distances = find_mic(defect.positions - place, defect.cell, defect.pbc)
    mo = defect.symbols == "Mo"
    assert np.allclose(np.sort(distances[mo])[:3], np.hypot(3.18 / 3**0.5, 3.13 / 2), atol=1e-6), "three bonds are open"


@pytest.mark.parametrize(("metal", "host", "symbol"), [("Pt", "graphene", "C"), ("Zr", "graphene", "C"), ("Pd", "MoS2", "S")])
def test_a_single_atom_stands_at_the_length_of_its_bonds_above_the_gap(metal, host, symbol):
    sheet = graphene(vacuum=8.0) if host == "graphene" else molybdenum_disulfide()
    cells = (3, 3) if host == "graphene" else (2, 2)
    defect = single_atom(sheet, metal, symbol, cells)
    assert defect.symbols[-1] == metal and len(defect) == len(sheet) * cells[0] * cells[1]
    distances = defect.get_distances(len(defect) - 1, range(len(defect) - 1), mic=True)
    neighbour = defect.symbols[int(distances.argmin())]
    bond = covalent_radii[atomic_numbers[metal]] + covalent_radii[atomic_numbers[neighbour]]
    assert np.allclose(np.sort(distances)[:3], bond, atol=0.02), "three equal bonds"


def test_h_touches_the_metal_or_starts_in_the_vacancy():
    defect = single_atom(graphene(vacuum=8.0), "Pt", "C", (3, 3))
    covered = hydrogen_above(defect, defect.positions[-1], "Pt")
    assert covered.get_distance(len(defect) - 1, len(defect)) == pytest.approx(1.36 + 0.31, abs=0.01)
    assert covered.get_tags()[-1] == 2 and len(covered) == len(defect) + 1
    empty, place = vacancy(graphene(vacuum=8.0), "C", (3, 3))
    assert np.allclose(hydrogen_above(empty, place).positions[-1] - place, BESIDE_SITE)


def test_an_element_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="has no Te"):
        vacancy(molybdenum_disulfide(), "Te", (2, 2))


def test_the_listed_defects_are_small_enough_for_dft_and_named_once():
    systems = list(all_systems())
    assert len(systems) == len(VACANCIES) + sum(len(metals) for metals, _, _ in SINGLE_ATOMS.values()) >= 20
    assert len({name for name, *_ in systems}) == len(systems)
    for _, family, sheet, place, metal in systems:
        assert len(sheet) <= 20 and family.startswith(("vacancy in", "single atom in"))
        shortest = min(np.linalg.norm(v) for v in (*sheet.cell[:2], sheet.cell[0] - sheet.cell[1], sheet.cell[0] + sheet.cell[1]))
        assert shortest > 5.6, "images of H are as far apart as in the other points"
        assert not metal or np.allclose(sheet.positions[-1], place)
