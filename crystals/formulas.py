"""Writes chemical formulas in one way: the electropositive element first, as in MoS2 or K2Ag2Pd2."""

from __future__ import annotations

import math
from functools import lru_cache

from pymatgen.core import Composition, Element


@lru_cache(maxsize=100_000)
def cell_formula(formula: str) -> str:
    """Return the formula of a whole cell, "Mo2S4" for "S4Mo2"; the amounts stay as they are.

    Elements stand in the order of electronegativity, as in ``reduced_formula``; those without one stand last.

    Args:
        formula: any formula that pymatgen reads; "" stays "".
    """
    if not formula:
        return ""
    amounts = Composition(formula).get_el_amt_dict()
    return "".join(f"{symbol}{amounts[symbol]:g}" if amounts[symbol] != 1 else symbol for symbol in sorted(amounts, key=_place))


@lru_cache(maxsize=100_000)
def reduced_formula(formula: str) -> str:
    """Return pymatgen's reduced formula, "MoS2" for "S4Mo2"; an anion of several elements stands in brackets. "" stays ""."""
    return Composition(formula).reduced_formula if formula else ""


def _place(symbol: str) -> tuple[float, str]:
    """Return what elements are sorted by."""
    # pymatgen warns of noble gases, which have no electronegativity.
    value = Element(symbol).data.get("X") or math.nan
    return (math.inf if math.isnan(value) else value, symbol)
