"""What H changes in the features of a potential: extensive, of the adsorption alone, and the same by both implementations."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import graphene, mx2
from ase.calculators.emt import EMT

import geo_utils
from energetics.latent_features import has_latent_features, latent_change, latent_features
from energetics.potentials import Potential, load_potential


@pytest.fixture(scope="module")
def potential() -> Potential:
    return load_potential("sevennet-0")


def with_hydrogen(sheet: Atoms, height: float) -> Atoms:
    atoms = sheet.copy()
    atoms.append("H")
    atoms.positions[-1] = sheet.positions[0] + [0, 0, height]
    return atoms


def test_the_features_are_sums_over_atoms_that_do_not_depend_on_the_frame(potential):
    sheet = geo_utils.standard_sheet(mx2("MoS2", vacuum=8))
    own = latent_features(sheet, potential)
    assert own.shape == (5 * 128,) and np.abs(own).max() > 1
    np.testing.assert_allclose(latent_features(sheet.repeat((2, 1, 1)), potential), 2 * own, atol=1e-3)
    turned = sheet[[2, 0, 1]]
    turned.rotate(40, "z", rotate_cell=True)
    turned.positions += [0.4, 0.3, 0.2]
    np.testing.assert_allclose(latent_features(turned, potential), own, atol=1e-3)


def test_far_from_the_sheet_the_change_is_that_of_h_alone_and_near_it_is_not(potential):
    carbon = geo_utils.standard_sheet(graphene(vacuum=12)).repeat((3, 3, 1))
    alone = latent_features(Atoms("H", [[0, 0, 0]], cell=[12, 12, 30]), potential)
    np.testing.assert_allclose(latent_change(with_hydrogen(carbon, 8.0), carbon, potential), alone, atol=1e-3)
    assert np.abs(latent_change(with_hydrogen(carbon, 1.2), carbon, potential) - alone).max() > 1


def test_the_sheet_may_be_the_primitive_cell(potential):
    carbon = geo_utils.standard_sheet(graphene(vacuum=12))
    large = carbon.repeat((2, 2, 1))
    covered = with_hydrogen(large, 1.2)
    by_both = latent_change(covered, large, potential), latent_change(covered, carbon, potential, repeats=4)
    np.testing.assert_allclose(*by_both, atol=1e-3)


def test_the_loops_and_the_operations_of_e3nn_have_the_same_features(potential):
    from sevenn.calculator import SevenNetCalculator

    plain = Potential("sevennet-0", {"name": "sevennet-0"}, SevenNetCalculator("7net-0", device="cpu"))
    sheet = geo_utils.standard_sheet(mx2("MoS2", vacuum=8))
    covered = with_hydrogen(sheet, 1.4)
    np.testing.assert_allclose(latent_features(covered, plain), latent_features(covered, potential), atol=2e-3)


def test_reading_leaves_nothing_behind(potential):
    latent_features(geo_utils.standard_sheet(graphene(vacuum=12)), potential)
    assert not any(layer._forward_hooks for layer in potential.calculator.model.modules())


def test_which_potentials_have_features(potential):
    assert has_latent_features(potential)
    assert not has_latent_features(Potential("emt", {"name": "emt"}, EMT()))
    assert not has_latent_features(SimpleNamespace(name="sevennet-0")), "a name computes nothing"
