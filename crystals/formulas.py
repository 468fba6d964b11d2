"""Writes chemical formulas in one way, as chemists do: metals first, then the others up to fluorine, as in PtTe2 or K2Ag2Pd2."""

from __future__ import annotations

import math
from functools import lru_cache

from pymatgen.core import Composition, Element

# The order of non-metals in formulas of binary compounds (IUPAC Red Book 2005, IR-4.4.2.1 and table VI), with Ge between Si and C.
NON_METALS = ("B", "Si", "Ge", "C", "Sb", "As", "P", "N", "H", "Te", "Se", "S", "At", "I", "Br", "Cl", "O", "F")


@lru_cache(maxsize=100_000)
def cell_formula(formula: str) -> str:
    """Return the formula of a whole cell, "Mo2S4" for "S4Mo2"; the amounts stay as they are.

    Metals stand in the order of electronegativity, then noble gases, then NON_METALS in their order.

    Args:
        formula: any formula that pymatgen reads; "" stays "".
    """
    return _written(Composition(formula).get_el_amt_dict()) if formula else ""


@lru_cache(maxsize=100_000)
def reduced_formula(formula: str) -> str:
    """Return the reduced formula, "MoS2" for "S4Mo2". "" stays "".

    It is pymatgen's, with an anion of several elements in brackets, where that has the order of ``cell_formula``.
    """
    if not formula:
        return ""
    amounts = Composition(formula).reduced_composition.get_el_amt_dict()
    known = composition_key(formula)
    in_order = list(Composition(known).get_el_amt_dict()) == sorted(amounts, key=_place)
    return known if in_order or len(amounts) == 1 else _written(amounts)


@lru_cache(maxsize=100_000)
def composition_key(formula: str) -> str:
    """Return pymatgen's reduced formula, by which databases and checkpoints know a composition; "" stays ""."""
    return Composition(formula).reduced_formula if formula else ""


def _written(amounts: dict[str, float]) -> str:
    return "".join(f"{symbol}{amounts[symbol]:g}" if amounts[symbol] != 1 else symbol for symbol in sorted(amounts, key=_place))


def _place(symbol: str) -> tuple[int, float, str]:
    """Return what elements are sorted by."""
    if symbol in NON_METALS:
        return 1, NON_METALS.index(symbol), symbol
    # pymatgen warns of noble gases, which have no electronegativity.
    value = Element(symbol).data.get("X") or math.nan
    return 0, math.inf if math.isnan(value) or Element(symbol).is_noble_gas else value, symbol
