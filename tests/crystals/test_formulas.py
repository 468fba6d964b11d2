"""Formulas are written in one way."""

import pytest
from ase import Atoms
from ase.data import chemical_symbols

from crystals.formulas import cell_formula, reduced_formula


@pytest.mark.parametrize(
    ("given", "cell", "reduced"),
    [
        ("S4Mo2", "Mo2S4", "MoS2"),
        ("Ag2K2Pd2", "K2Ag2Pd2", "KAgPd"),
        ("Br2CrGaO2", "CrGaBr2O2", "CrGa(BrO)2"),
        ("C2", "C2", "C"),
        ("Te4Pt2", "Pt2Te4", "PtTe2"),
        ("Te2Nb2Pd", "Nb2PdTe2", "Nb2PdTe2"),
        ("Te3As2", "As2Te3", "As2Te3"),
        ("B2Os", "OsB2", "OsB2"),
        ("H3N", "NH3", "NH3"),
        ("H2O", "H2O", "H2O"),
        ("F2Xe", "XeF2", "XeF2"),
        ("", "", ""),
    ],
)
def test_metals_first_and_non_metals_in_their_order(given, cell, reduced):
    assert (cell_formula(given), reduced_formula(given)) == (cell, reduced)
    assert cell_formula(cell) == cell


def test_every_spelling_gives_one_formula_with_the_same_atoms():
    for order in (["Xe", "F", "H"], ["F", "H", "Xe"], ["H", "Xe", "F"]):
        found = cell_formula("".join(order))
        assert Atoms(found).get_chemical_symbols() and sorted(Atoms(found).symbols) == ["F", "H", "Xe"]
        assert found == cell_formula("HFXe")
    for symbol in chemical_symbols[1:95]:
        assert cell_formula(f"{symbol}3") == f"{symbol}3"
