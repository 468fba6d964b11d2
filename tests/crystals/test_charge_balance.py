"""Charge balance of recipes and of finished candidates."""

from __future__ import annotations

import pytest
from pymatgen.core import Composition
from smact.screening import smact_validity

from crystals.charge_balance import charge_neutral, charge_neutral_possible


def test_charge_neutral_recipes():
    assert charge_neutral("MoS2") and charge_neutral("Ti2CO2") and charge_neutral("BN")
    assert not charge_neutral("KCl3") and not charge_neutral("NaS3")
    assert charge_neutral("RhS2", strict=True) and charge_neutral("Sc2I6", strict=True) and charge_neutral("BiTeI", strict=True)
    assert not charge_neutral("ScS2", strict=True) and not charge_neutral("YCl2", strict=True)


def test_charge_neutral_candidates():
    assert charge_neutral_possible("MoS2")
    assert charge_neutral_possible("CuAu")
    assert not charge_neutral_possible("NaF4")


def test_a_metal_that_is_more_electronegative_than_its_anion_is_no_objection():
    """SMACT refuses them, though Te of charge -2 balances a metal of charge 4, and both have been made."""
    for formula in ("MoTe2", "PdTe2", "Mo2Te4"):
        assert charge_neutral_possible(formula) and not charge_neutral(formula)
    for formula in ("NaF4", "KCl3", "PdTe9"):
        assert not charge_neutral_possible(formula)
    with pytest.raises(ValueError, match="no oxidation states are known of Og"):
        charge_neutral_possible("OgTe2")


def test_candidates_pass_by_either_rule():
    formulas = ("MoS2", "Al2Te2", "As4", "PtTe2", "WTe2", "NbSe2", "CrI3", "TiC", "Bi2Te3", "NaS3", "ScS2")
    for formula in formulas:
        by_smact = smact_validity(Composition(formula), use_pauling_test=True, include_alloys=True)
        assert charge_neutral_possible(formula) == (by_smact or charge_neutral(formula, strict=True)), formula
