"""Filling of equivalent H sites: where the next H goes, energies against single calculations, and H that does not stay."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc111, mx2
from ase.calculators.emt import EMT
from ase.geometry import find_mic

from energetics import coverage
from energetics.coverage import DESORBS, FAILS, H2_FORMS, STAYS, coverage_curve, repeats, spread_sites
from energetics.potentials import Potential
from energetics.relaxation import h2_energy, relax_positions

EFFECTIVE_MEDIUM = Potential("emt", {"name": "emt"}, EMT())


def copper(cells=(2, 2)):
    """One layer of copper, and the same with H in a hollow."""
    clean = fcc111("Cu", size=(*cells, 1), vacuum=6.0)
    clean.pbc = (True, True, False)
    covered = clean.copy()
    add_adsorbate(covered, "H", 0.9, "fcc")
    return Atoms(clean.symbols, clean.positions, cell=clean.cell, pbc=clean.pbc), covered


def test_sites_repeat_with_the_primitive_cell_and_the_next_is_the_farthest():
    clean, covered = copper((3, 2))
    places = spread_sites(clean, covered.positions[-1])
    assert places.shape == (6, 3) and np.allclose(places[0], covered.positions[-1])
    a, b = clean.cell.array[0] / 3, clean.cell.array[1] / 2
    shifts = np.linalg.solve(np.array([a, b])[:, :2].T, (places - places[0])[:, :2].T).T
    assert sorted(map(tuple, np.round(shifts).astype(int))) == [(i, j) for i in range(3) for j in range(2)]
    assert np.allclose(shifts, np.round(shifts))

    def nearest(place, others):
        return find_mic(place - others, clean.cell, (True, True, False))[1].min()

    for n in range(1, 6):
        assert nearest(places[n], places[:n]) == pytest.approx(max(nearest(place, places[:n]) for place in places[n:]))


def test_related_elements_share_a_lattice_and_others_do_not():
    sheet = mx2("NbSe2", "2H", a=3.47, thickness=3.36, vacuum=8.0).repeat((2, 2, 1))
    alloy = sheet.copy()
    alloy.symbols[0] = "W"
    alloy.positions[0, :2] += 0.1
    assert len(repeats(sheet)) == len(repeats(alloy)) == 4 and np.allclose(repeats(alloy)[0], 0.0)
    other = sheet.copy()
    other.symbols[0] = "Pt"
    assert len(repeats(other)) == 1, "platinum is no relative of niobium"
    checkerboard = Atoms("CuPt", [[0, 0, 5], [1.9, 1.9, 5]], cell=[3.8, 3.8, 10], pbc=(True, True, False))
    assert len(repeats(checkerboard)) == 2
    checkerboard.symbols[1] = "S"
    assert len(repeats(checkerboard)) == 1


def test_the_curve_is_that_of_single_relaxations():
    clean, covered = copper()
    curve = coverage_curve(clean, covered, EFFECTIVE_MEDIUM)
    assert [point.n for point in curve] == [1, 2, 3, 4] and [point.coverage for point in curve] == [0.25, 0.5, 0.75, 1.0]
    assert {point.status for point in curve} == {STAYS}
    sheet = relax_positions(clean, EFFECTIVE_MEDIUM).energy
    full = clean.copy()
    full.extend(Atoms("H4", spread_sites(clean, covered.positions[-1])))
    energy = relax_positions(full, EFFECTIVE_MEDIUM).energy
    assert 4 * curve[-1].mean == pytest.approx(energy - sheet - 2 * h2_energy(EFFECTIVE_MEDIUM), abs=1e-6)
    assert sum(point.differential for point in curve) == pytest.approx(4 * curve[-1].mean, abs=1e-6)


def test_a_frame_with_another_vacuum_gives_the_same_curve():
    clean, covered = copper()
    moved = covered.copy()
    moved.positions += [0.3, -0.2, 4.0]
    moved.cell[2, 2] += 9.0
    one, other = (coverage_curve(clean, frame, EFFECTIVE_MEDIUM) for frame in (covered, moved))
    assert [point.mean for point in one] == pytest.approx([point.mean for point in other], abs=1e-4)


@pytest.mark.parametrize(
    ("height", "distance", "status"),
    [(6.0, None, DESORBS), (1.0, 0.75, H2_FORMS)],
    ids=["far above the sheet", "two H at a bond length"],
)
def test_h_that_does_not_stay_ends_the_curve(monkeypatch, height, distance, status):
    clean, covered = copper()
    covered.positions[-1, 2] = clean.positions[:, 2].max() + height
    if distance:
        near = np.array([covered.positions[-1], covered.positions[-1] + [distance, 0, 0]])
        monkeypatch.setattr(coverage, "spread_sites", lambda *_: near)
    monkeypatch.setattr(coverage, "relax_positions", lambda atoms, *_: relax_positions(atoms, EFFECTIVE_MEDIUM, 1e3, 1))
    curve = coverage_curve(clean, covered, EFFECTIVE_MEDIUM)
    assert curve[-1].status == status and np.isnan(curve[-1].mean) and np.isnan(curve[-1].differential)
    assert len(curve) == (2 if distance else 1)


def test_a_relaxation_that_does_not_end_gives_no_value():
    clean, covered = copper()
    covered.positions[-1, 0] += 0.5
    curve = coverage_curve(clean, covered, EFFECTIVE_MEDIUM, fmax=1e-6, max_steps=2)
    assert [point.status for point in curve] == [FAILS] and np.isnan(curve[0].differential)
