"""Charge balance of recipes and of finished candidates."""

from __future__ import annotations

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
