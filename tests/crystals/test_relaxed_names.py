"""Sheets are called 1T' where their metals are paired, and only there."""

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect

from crystals.prototypes import DISTORTED_NAME, PROTOTYPES, metal_distances, name_as_relaxed
from energetics.is2re_lmdb import open_is2re
from geo_utils import H_TAG
from pipeline.files import PROJECT_DIR

METALS = PROTOTYPES[DISTORTED_NAME].sites[0]
DATABASES = ("data/demo_c2db.db", "data/h_on_2d_dft.db", "data/h_on_2d_blind.db")


def test_six_distances_of_a_triangular_net_are_equal_and_those_of_zigzag_chains_are_not():
    plain = PROTOTYPES["1T-MX2"].build("Mo", "S")
    np.testing.assert_allclose(metal_distances(plain, ("Mo",)), plain.cell.lengths()[0], rtol=1e-6)
    chains = PROTOTYPES[DISTORTED_NAME].build("Mo", "S")
    found = metal_distances(chains, ("Mo",))
    assert found[0] == pytest.approx(found[1]) and found[-1] > 1.15 * found[0]
    np.testing.assert_allclose(metal_distances(chains.repeat((2, 2, 1)), ("Mo",)), found, atol=1e-6)
    with pytest.raises(ValueError, match="none of W"):
        metal_distances(plain, ("W",))


def test_a_sheet_whose_distortion_has_gone_takes_the_name_of_what_it_is():
    chains = PROTOTYPES[DISTORTED_NAME].build("W", "Te")
    assert name_as_relaxed(DISTORTED_NAME, chains) == DISTORTED_NAME
    plain = PROTOTYPES["1T-MX2"].build("W", "Te").repeat((2, 1, 1))
    assert name_as_relaxed(DISTORTED_NAME, plain) == "1T-MX2"
    assert name_as_relaxed("2H-MX2", plain) == "2H-MX2", "only what was built as 1T' is looked at"


def test_no_record_of_h_is_of_a_family_that_its_sheet_is_not():
    found = [record for record in open_is2re(PROJECT_DIR / "data/demo_is2re/data.lmdb") if record.extra["family"] == DISTORTED_NAME]
    assert found
    for record in found:
        sheet = record.tags.numpy() != H_TAG
        numbers, positions = record.atomic_numbers.numpy()[sheet], record.pos.numpy()[sheet]
        atoms = Atoms(numbers, positions, cell=record.cell.numpy().reshape(3, 3))
        assert name_as_relaxed(DISTORTED_NAME, atoms) == DISTORTED_NAME, record.extra["bulk_formula"]


@pytest.mark.parametrize("name", DATABASES)
def test_nothing_shipped_is_called_1t_prime_that_is_not(name):
    with connect(PROJECT_DIR / name) as database:
        for row in database.select():
            keys = row.key_value_pairs
            if DISTORTED_NAME in " ".join(str(keys.get(key, "")) for key in ("uid", "name", "prototype", "family")):
                distances = metal_distances(row.toatoms(), METALS)
                assert distances[-1] > 1.15 * distances[0], (keys, distances)
