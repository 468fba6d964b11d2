"""Starting structures of competing compounds: composition, chemistry, and how each is periodic."""

import itertools

import numpy as np
import pytest

from energetics import compound_phases
from geo_utils import min_distance_ratio


@pytest.mark.parametrize(
    ("family", "decoration", "formula", "periodic"),
    [
        ("cage M4X10", "P O", "O10P4", 0),
        ("pentahalide dimer", "Nb Cl", "Cl10Nb2", 0),
        ("molecule MOX3", "P O Cl", "Cl3OP", 0),
        ("MX4 chain", "Zr Cl", "Cl4Zr", 2),
        ("MX3 chain", "Ti I", "I6Ti2", 2),
        ("B2O3 layer", "B O", "B2O3", 2),
        ("SiS2 chain", "Si S", "S4Si2", 2),
        ("ZrNCl", "Zr N Cl", "Cl2N2Zr2", 2),
        ("VOCl2", "V O Cl", "Cl2OV", 2),
        ("halogen crystal", "I", "I4", 3),
        ("paratellurite", "Te O", "O8Te4", 3),
        ("perovskite", "Sr Ti O", "O3SrTi", 3),
        ("delafossite", "Cu Al O", "AlCuO2", 3),
        ("chalcopyrite", "Cu In S", "Cu2In2S4", 3),
        ("calcite", "Ca C O", "C2Ca2O6", 3),
    ],
)
def test_stoichiometry_and_periodicity(family, decoration, formula, periodic):
    atoms = compound_phases.build(family, decoration.split())
    assert atoms.get_chemical_formula("hill") == formula
    assert int(atoms.pbc.sum()) == periodic
    assert 0.6 < min_distance_ratio(atoms) < 1.3


@pytest.mark.parametrize(
    ("family", "decoration", "center", "ligand", "number", "length"),
    [
        ("perovskite", "Sr Ti O", "Ti", "O", 6, 1.95),
        ("calcite", "Ca C O", "C", "O", 3, 1.28),
        ("cage M4X10", "P O", "P", "O", 4, 1.60),
        ("chalcopyrite", "Cu In S", "In", "S", 4, 2.47),
        ("ABF6", "Ca Zr F", "Zr", "F", 6, 2.0),
        ("AlB2", "Ti B", "Ti", "B", 12, 2.38),
        ("PtS", "Pt S", "Pt", "S", 4, 2.31),
        ("B2O3 layer", "B O", "B", "O", 3, 1.37),
    ],
)
def test_coordination_is_that_of_the_named_structure(family, decoration, center, ligand, number, length):
    """Neighbours within 1.3 times the known bond length (Å)."""
    atoms = compound_phases.build(family, decoration.split()).repeat(
        [3 if periodic else 1 for periodic in atoms_pbc(family, decoration)]
    )
    index = [k for k in range(len(atoms)) if atoms.symbols[k] == center]
    middle = index[len(index) // 2]
    others = [k for k in range(len(atoms)) if atoms.symbols[k] == ligand]
    near = np.sort(atoms.get_distances(middle, others, mic=True))
    assert (near < 1.3 * length).sum() == number
    assert near[:number].mean() == pytest.approx(length, rel=0.12)


def atoms_pbc(family, decoration):
    return compound_phases.build(family, decoration.split()).pbc


def test_compounds_hold_only_the_elements_asked_for_and_each_once():
    elements = {"Ti", "Ca", "O", "Cl", "C", "H", "Mo", "F"}
    found = list(compound_phases.compounds(elements))
    assert len(found) == len(set(found)) and all(set(decoration) <= elements for _, decoration in found)
    names = {(name, "-".join(decoration)) for name, decoration in found}
    assert {("perovskite", "Ca-Ti-O"), ("MX3 chain", "Ti-Cl"), ("linear molecule", "C-O"), ("calcite", "Ca-C-O")} <= names
    assert not any(len(set(decoration)) < len(decoration) for _, decoration in found)


def test_one_name_is_one_builder():
    for name, families in itertools.groupby(sorted(compound_phases._FAMILIES, key=lambda f: f.name), key=lambda f: f.name):
        assert len({family.build for family in families}) == 1, name
