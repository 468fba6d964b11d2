"""Elemental and binary phases as starting structures of the hull."""

from __future__ import annotations

from ase.data import atomic_numbers

import geo_utils as geo
from crystals.prototypes import PROTOTYPES
from energetics.simple_phases import binary_phases, cation_and_anion, elemental_phases, is_molecular


def test_elemental_and_binary_phases():
    names = dict(elemental_phases("Cu"))
    assert set(names) == {"fcc", "hcp", "bcc"}
    assert is_molecular(dict(elemental_phases("N"))["molecule"])
    assert len(dict(elemental_phases("S"))["S8 molecule"]) == 8
    assert len(dict(elemental_phases("B"))["alpha-B12"]) in (12, 36)
    assert cation_and_anion("S", "Mo") == ("Mo", "S")
    assert cation_and_anion("Mo", "W") is None and cation_and_anion("S", "Se") is None
    phases = dict(binary_phases("Ti", "O"))
    assert {"rocksalt", "rutile", "corundum"} <= set(phases)
    for name, atoms in phases.items():
        assert set(atoms.get_chemical_symbols()) == {"Ti", "O"}
        assert 0.7 < geo.min_distance_ratio(atoms) < 1.3, name
    assert phases["rutile"].get_chemical_formula("hill") == "O4Ti2"


def test_every_element_has_a_starting_structure():
    elements = {el for prototype in PROTOTYPES.values() for site in prototype.sites for el in site}
    for element in sorted(elements, key=atomic_numbers.get):
        phases = dict(elemental_phases(element))
        assert phases and all(set(atoms.get_chemical_symbols()) == {element} for atoms in phases.values()), element
