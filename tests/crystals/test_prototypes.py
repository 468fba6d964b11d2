"""Prototypes, recipes and competing phases as starting structures."""

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.data import atomic_numbers

import geo_utils as geo
from crystals.charge_balance import charge_neutral
from crystals.prototypes import PROTOTYPES
from crystals.recipes import recipes
from energetics.simple_phases import binary_phases, cation_and_anion, elemental_phases, is_molecular


@pytest.mark.parametrize("name", sorted(PROTOTYPES))
def test_every_family_is_a_connected_sheet_in_the_convention(name):
    prototype = PROTOTYPES[name]
    decorations = list(prototype.decorations())
    assert decorations and len(set(decorations)) == len(decorations)
    for decoration in decorations[:: max(len(decorations) // 6, 1)]:
        atoms = prototype.build(*decoration)
        assert len(atoms) <= 12 and set(atoms.get_chemical_symbols()) == set(decoration)
        assert geo.min_distance_ratio(atoms) > 0.7, decoration
        sheet = geo.Sheet.from_atoms(atoms)
        np.testing.assert_allclose(np.sort(sheet.to_atoms().cell.lengths()), np.sort(atoms.cell.lengths()), atol=1e-9)
        assert geo.sheet_connectivity(atoms).is_single_sheet, decoration


@pytest.mark.parametrize(
    "name, decoration, spacegroup",
    [
        ("2H-MX2", ("Mo", "S"), 187),
        ("1T-MX2", ("Pt", "Se"), 164),
        ("Janus-2H", ("Mo", "S", "Se"), 156),
        ("MXene-M2XT2", ("Ti", "C", "O"), 164),
        ("hBN", ("B", "N"), 187),
        ("graphene", ("C",), 191),
        ("Xene", ("Si",), 164),
        ("GaSe", ("Ga", "Se"), 187),
        ("MX3", ("Cr", "I"), 162),
        ("MPX3", ("Fe", "P", "S"), 162),
        ("FeSe", ("Fe", "Se"), 129),
        ("BiOCl", ("Bi", "O", "Cl"), 129),
        ("HgI2", ("Hg", "I"), 115),
        ("Bi2Te3", ("Bi", "Te"), 164),
        ("MoSi2N4", ("Mo", "Si", "N"), 187),
        ("FeOCl", ("Fe", "O", "Cl"), 59),
        ("penta-MX2", ("Pd", "Se"), 14),
    ],
)
def test_families_have_the_symmetry_of_their_namesake(name, decoration, spacegroup):
    atoms = PROTOTYPES[name].build(*decoration)
    dataset = spglib.get_symmetry_dataset((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=1e-3)
    assert dataset.number == spacegroup


def test_bond_lengths_are_sensible():
    """Starting bonds against PBE: MoS2 2.41 Å, graphene 1.42 Å, h-BN 1.45 Å."""
    for name, decoration, bond in (("2H-MX2", ("Mo", "S"), 2.41), ("graphene", ("C",), 1.42), ("hBN", ("B", "N"), 1.45)):
        atoms = PROTOTYPES[name].build(*decoration)
        shortest = min(atoms.get_distance(i, j, mic=True) for i in range(len(atoms)) for j in range(i))
        assert shortest == pytest.approx(bond, rel=0.12)


def test_recipes_cover_chemistry_and_obey_the_element_list():
    everything = recipes()
    assert len({recipe.family for recipe in everything}) >= 14
    assert len({z for recipe in everything for z in recipe.atomic_numbers}) >= 40
    allowed = geo.element_set(["Mo", "W", "S", "Se"])
    few = recipes(allowed)
    assert few and all(set(recipe.atomic_numbers) <= allowed for recipe in few)
    assert {recipe.formula for recipe in few} >= {"MoS2", "WSe2", "MoSSe"}
    listed = sum(len(list(prototype.decorations())) for prototype in PROTOTYPES.values())
    assert len(everything) > 1.3 * listed, "metals beyond the listed decorations are tried"
    formulas = {recipe.formula for recipe in everything}
    assert "RuS2" in formulas or "OsSe2" in formulas


def test_mixed_recipes_are_real_chemistry():
    """CuInP2S6, a double-metal MXene and a Janus-like chalcogenide are among them; ionic ones balance; none comes twice."""
    everything = recipes(geo.element_set(["Cu", "In", "P", "S", "Ti", "Mo", "C", "O", "Sn", "Se"]), mixed=True)
    mixed = {tuple(sorted(r.atomic_numbers)): r for r in everything if r.family.endswith("mixed")}
    for formula in ("CuInP2S6", "TiMoCO2", "Sn2SSe"):
        numbers = tuple(sorted(Atoms(formula).numbers.tolist()))
        assert numbers in mixed, formula
    for recipe in mixed.values():
        if PROTOTYPES[recipe.family.removesuffix(" mixed")].ionic:
            assert charge_neutral(recipe.formula, strict=True), recipe.formula
    compositions = [tuple(sorted(r.atomic_numbers)) for r in everything if r.family.endswith("mixed")]
    assert len(compositions) == len(set(compositions)) and len(compositions) > 30


def test_charge_neutrality():
    assert charge_neutral("MoS2") and charge_neutral("Ti2CO2") and charge_neutral("BN")
    assert not charge_neutral("KCl3") and not charge_neutral("NaS3")
    assert charge_neutral("RhS2", strict=True) and charge_neutral("Sc2I6", strict=True) and charge_neutral("BiTeI", strict=True)
    assert not charge_neutral("ScS2", strict=True) and not charge_neutral("YCl2", strict=True)


def test_competing_phases():
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
