"""ΔE_H of potentials at the minima of the one that judges, with harmonic wells in the place of potentials."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect
from test_dft_inputs import Wells

from crystals.prototypes import honeycomb
from energetics import dft_points
from energetics.dft_rows import AT_MINIMUM_OF, LATENT_CHANGE_OF, potential_values
from energetics.latent_features import latent_change
from energetics.potentials import Potential, load_potential

JUDGE, OTHER = "sevennet-l3i5", "sevennet-0"
SHEET = honeycomb("C", "C").repeat((2, 2, 1))
PLACE = SHEET.positions[0] + [0, 0, 1.2]


def covered(shift) -> Atoms:
    """Graphene with H, shifted from the well of the judge."""
    atoms = SHEET.copy()
    atoms.append("H")
    atoms.positions[-1] = PLACE + shift
    return atoms


@pytest.fixture
def wells() -> list[Potential]:
    """The judge's well, and one that lies 0.5 Å above it."""
    return [Potential(n, {"name": f"well {n}"}, Wells(p)) for n, p in ((JUDGE, PLACE), (OTHER, PLACE + [0, 0, 0.5]))]


@pytest.fixture
def database(tmp_path) -> Path:
    """Three sites: near the well, 1 Å from it, and one whose sheet is not known."""
    path = tmp_path / "points.db"
    with connect(path) as db:
        db.write(SHEET, kind="clean", name="near")
        db.write(SHEET, kind="clean", name="far")
        for name, shift in (("near", [0.3, 0, 0]), ("far", [1.0, 0, 0]), ("alone", [0.3, 0, 0])):
            db.write(covered(shift), kind="slab_H", name=name, site="topC", dE_dft=0.1, dE_7netl3i5=0.7, dE_7net0=0.8)
    return path


def test_the_minimum_of_the_judge_is_found_once_and_both_say_what_they_think_of_it(database, wells):
    assert dft_points.store_at_minima(database, *wells) == 1
    near, far, alone = dft_points.read_truth(database)
    found = near.at_minimum_of[JUDGE]
    assert found[JUDGE] == pytest.approx(0, abs=1e-3) and found[OTHER] == pytest.approx(0.5 * 4.0 * 0.5**2, abs=0.05)
    assert not far.at_minimum_of[JUDGE] and not alone.at_minimum_of[JUDGE], "at another site; without its sheet"
    rows = {row.name: row for row in connect(database).select(kind="slab_H")}
    assert rows["far"].get(dft_points.NO_MINIMUM) and dft_points.NO_MINIMUM not in rows["alone"]
    assert dft_points.store_at_minima(database, *wells) == 0, "what is known is not asked again"
    assert near.energies == {JUDGE: 0.7, OTHER: 0.8}, "the values at the geometry of DFT stay"


def test_a_judge_takes_its_own_minima_and_another_what_dft_was_asked_about(database, wells):
    dft_points.store_at_minima(database, *wells)
    points = dft_points.read_truth(database)
    judged = dft_points.judged_delta_e(points, wells)
    np.testing.assert_allclose(judged[0], [0, 0.5], atol=0.05)
    np.testing.assert_allclose(judged[1:], [[0.7, 0.8], [0.7, 0.8]])
    np.testing.assert_allclose(dft_points.judged_delta_e(points, wells[::-1]), [[0.8, 0.7]] * 3)
    np.testing.assert_allclose(dft_points.potential_delta_e(points, wells[0]), 0.7)


def test_a_potential_beyond_its_domain_has_no_minimum(database):
    steep = Potential(JUDGE, {"name": "steep"}, Wells(PLACE, stiffness=400.0))
    elsewhere = Potential(OTHER, {"name": "elsewhere"}, Wells(PLACE + [0, 0, 5.0]))
    assert dft_points.store_at_minima(database, steep, elsewhere) == 0, "the other is at 50 eV there"
    assert connect(database).get(name="near", kind="slab_H").get(dft_points.NO_MINIMUM)


def test_what_the_judge_found_before_dft_is_of_its_own_minimum():
    info = {"potential": JUDGE, "delta_e_potential_ev": -0.2, "dE_7net0": 0.4}
    assert potential_values(info) == {AT_MINIMUM_OF[JUDGE][JUDGE]: -0.2, AT_MINIMUM_OF[JUDGE][OTHER]: 0.4}
    info = {"potential": OTHER, "delta_e_potential_ev": -0.2, "dE_7netl3i5": 0.4}
    assert potential_values(info) == {"dE_7net0": -0.2, "dE_7netl3i5": 0.4}


def test_the_latent_features_join_at_the_minimum_or_where_there_is_none(database):
    """Energies that are there stay; H that goes elsewhere is described where DFT was asked."""
    judge, key = load_potential(JUDGE), LATENT_CHANGE_OF[JUDGE]
    known = dict.fromkeys(AT_MINIMUM_OF[JUDGE].values(), 0.33)
    db = connect(database)
    db.update(db.get(name="near", kind="slab_H").id, **known)
    db.update(db.get(name="far", kind="slab_H").id, **{dft_points.NO_MINIMUM: True})
    assert dft_points.store_at_minima(database, judge) == 0
    points = {point.name: point for point in dft_points.read_truth(database)}
    rows = {row.name: row for row in db.select(kind="slab_H")}
    assert points["near"].at_minimum_of[JUDGE] == {JUDGE: 0.33, OTHER: 0.33} and dft_points.NO_MINIMUM not in rows["near"]
    far = latent_change(covered([1.0, 0, 0]), SHEET, judge)
    np.testing.assert_allclose(points["far"].latent_change_of[JUDGE], far, rtol=1e-3, atol=1e-3)
    at_dft = latent_change(covered([0.3, 0, 0]), SHEET, judge)
    assert np.abs(points["near"].latent_change_of[JUDGE] - at_dft).max() > 0.1, "there H is on top of C"
    assert key not in rows["alone"].data
    before = {name: row.data for name, row in rows.items()}
    assert dft_points.store_at_minima(database, judge) == 0
    assert all(np.array_equal(row.data.get(key, 0), before[row.name].get(key, 0)) for row in db.select(kind="slab_H"))
