"""Prototypes: the sheets that their builders return."""

from __future__ import annotations

import numpy as np
import pytest
import spglib

import geo_utils as geo
from crystals.prototypes import PROTOTYPES


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
