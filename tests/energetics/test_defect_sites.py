"""Vacancies and single atoms in sheets: what is taken out, where the metal stands, and where H starts."""

import numpy as np
import pytest
from ase.build import graphene, mx2
from ase.data import atomic_numbers, covalent_radii
from ase.geometry import find_mic

from energetics.defect_sites import RIBBON_DISTANCE, hydrogen_above, single_atom, vacancy, zigzag_ribbon
from energetics.dft_calculation import kpoints
from energetics.sites import BESIDE_SITE, is_inside
from scripts.prepare_defects import EDGES, SINGLE_ATOMS, VACANCIES, all_systems


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


def neighbours(ribbon, symbol, of):
    """Return how many atoms ``of`` are bonded to every atom ``symbol``, in order across the ribbon."""
    distances = ribbon.get_all_distances(mic=True)
    order = [i for i in np.argsort(ribbon.positions[:, 1], kind="stable") if ribbon.symbols[i] == symbol]
    return [int((distances[i, ribbon.symbols == of] < 2.6).sum()) for i in order]


def mirrored(sheet):
    """Return the sheet with S on the other side of Mo, in the other of its two settings."""
    out = sheet.copy()
    out.positions[:, 1] *= -1
    out.cell[1, 1] *= -1
    out.cell[2] = [0, 0, sheet.cell.lengths()[2]]
    return out


@pytest.mark.parametrize("setting", [lambda sheet: sheet, mirrored, lambda sheet: sheet[[1, 0, 2]]])
def test_a_ribbon_has_one_edge_of_metals_and_one_of_chalcogens(setting):
    sheet = setting(molybdenum_disulfide())
    ribbon, starts = zigzag_ribbon(sheet, 4, 2)
    assert len(ribbon) == 24 and ribbon.cell.lengths()[0] == pytest.approx(6.36) and list(ribbon.pbc) == [True, True, False]
    assert neighbours(ribbon, "Mo", "S") == [4, 4, 6, 6, 6, 6, 6, 6], "two bonds are open at the edge of Mo"
    assert neighbours(ribbon, "S", "Mo") == [3] * 12 + [2] * 4, "and one of every S at the other"
    width = np.ptp(ribbon.positions[:, 1])
    assert ribbon.cell.lengths()[1] - width == pytest.approx(RIBBON_DISTANCE)
    bonds = ribbon.get_all_distances(mic=True)[np.ix_(ribbon.symbols == "Mo", ribbon.symbols == "S")]
    assert bonds.min() == pytest.approx(np.hypot(3.18 / 3**0.5, 3.13 / 2), abs=1e-6)
    assert set(starts) == {"Mo", "S-pair"}
    for kind, place in starts.items():
        distances = np.linalg.norm(ribbon.positions - place, axis=1)
        assert ribbon.symbols[distances.argmin()] == kind[: -5 if "pair" in kind else None] and 1.2 < distances.min() < 2.2
        assert not is_inside(hydrogen_above(ribbon, place)), "one side is open, however deep H is"


def test_monomers_bridge_two_metals_of_the_edge():
    ribbon, starts = zigzag_ribbon(molybdenum_disulfide(), 3, 2, with_monomers=True)
    assert len(ribbon) == 20 and set(starts) == {"S", "S-pair"}
    assert neighbours(ribbon, "S", "Mo")[:2] == [2, 2] and neighbours(ribbon, "Mo", "S")[:2] == [6, 6]
    monomer = ribbon.positions[np.argmin(ribbon.positions[:, 1])]
    mo = ribbon.positions[ribbon.symbols == "Mo"]
    assert monomer[2] == pytest.approx(mo[0, 2]) and np.linalg.norm(mo - monomer, axis=1).min() == pytest.approx(2.41, abs=0.01)


@pytest.mark.parametrize("sheet", [graphene(vacuum=8.0), mx2("MoS2", kind="1T", vacuum=8.0), molybdenum_disulfide() * (2, 1, 1)])
def test_what_is_not_of_the_2h_type_is_refused(sheet):
    with pytest.raises(ValueError, match="no sheet MX2 of the 2H type"):
        zigzag_ribbon(sheet, 2, 2)


def test_the_listed_defects_are_small_enough_for_dft_and_named_once():
    systems = list(all_systems())
    edges = 2 * sum(map(len, EDGES.values()))
    assert len(systems) == len(VACANCIES) + sum(len(metals) for metals, _, _ in SINGLE_ATOMS.values()) + edges >= 40
    assert len({name for name, *_ in systems}) == len(systems)
    for _, family, sheet, place, metal in systems:
        assert len(sheet) <= 20 and family.startswith(("vacancy in", "single atom in", "edge of"))
        shortest = min(np.linalg.norm(v) for v in (*sheet.cell[:2], sheet.cell[0] - sheet.cell[1], sheet.cell[0] + sheet.cell[1]))
        assert shortest > 5.6, "images of H are as far apart as in the other points"
        assert not metal or np.allclose(sheet.positions[-1], place)
        assert kpoints(sheet) == (3, 1) if family.startswith("edge") else min(kpoints(sheet)) >= 2
