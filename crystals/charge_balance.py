"""Judges whether the charges of a composition can balance: by common oxidation states for new recipes, by SMACT for verdicts.

There are two rules because there are two questions. ``charge_neutral(formula, strict=True)`` asks whether a composition without a
known crystal is worth sampling. It allows one common oxidation state per element, because SMACT's lists hold so many rare states
that nearly every composition passes. ``charge_neutral_possible`` asks whether a finished candidate must be refused. There rare
states, elements and alloys count in its favour, and common states too where SMACT refuses these: of the 823 formulas of
``data/demo_c2db.db`` 187 balance by SMACT alone (Al2Te2, As4) and 9 in common states alone (MoTe2, PdTe2: the metal is more
electronegative than the anion).
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from itertools import product

from pymatgen.core import Composition

from crystals.elements import CHALCOGENS, HALOGENS

# Common oxidation states in solids; a formula with another element does not balance.
_COMMON_STATES = {
    **dict.fromkeys(("Be", "Mg", "Ca", "Sr", "Ba", "Zn", "Cd", "Hg"), (2,)),
    **dict.fromkeys(("Sc", "Y", "La", "Al", "Ga", "In"), (3,)),
    **dict.fromkeys(("Zr", "Hf"), (4,)),
    **{"Ti": (3, 4), "V": (3, 4, 5), "Nb": (3, 4, 5), "Ta": (3, 4, 5), "Cr": (2, 3, 4), "Mo": (3, 4, 6), "W": (4, 6)},
    **{"Mn": (2, 3, 4), "Re": (4,), "Fe": (2, 3), "Co": (2, 3), "Ni": (2, 4), "Cu": (1, 2), "Ru": (3, 4), "Os": (4,)},
    **{"Rh": (3, 4), "Ir": (3, 4), "Pd": (2, 4), "Pt": (2, 4), "Tl": (1, 3), "Ge": (2, 4), "Sn": (2, 4), "Pb": (2, 4)},
    **{"B": (3,), "Si": (4,), "C": (-4, 4), "N": (-3,), "P": (-3, 4), "As": (-3, 3), "Sb": (-3, 3), "Bi": (3,)},
    **dict.fromkeys(CHALCOGENS, (-2,)),
    **dict.fromkeys(HALOGENS, (-1,)),
}


@lru_cache(maxsize=16384)
def charge_neutral(formula: str, strict: bool = False) -> bool:
    """Tell whether a recipe can be charge-neutral.

    Args:
        formula: of one cell, with whole amounts.
        strict: decide by the common states, one per element, without a test of electronegativities; meant for compositions without
            a known crystal. Otherwise decide by SMACT, where alloys need to balance as well.
    """
    if not strict:
        return _balances_by_smact(formula, include_alloys=False)
    amounts = [(el.symbol, int(amount)) for el, amount in Composition(formula).items()]
    choices = product(*(_COMMON_STATES.get(symbol, ()) for symbol, _ in amounts))
    return any(sum(state * n for state, (_, n) in zip(states, amounts, strict=True)) == 0 for states in choices)


def charge_neutral_possible(formula: str) -> bool:
    """Tell whether known oxidation states can balance a candidate, by SMACT or in common states.

    Single elements and compounds of metals alone pass, since they need no charge balance. Carbides and other metallic compounds
    with non-integer mixed valence can fail although they exist.

    Raises:
        ValueError: an element beyond Lr, of which no oxidation state is known.
    """
    if heavy := sorted(element.symbol for element in Composition(formula) if element.Z > 103):
        raise ValueError(f"no oxidation states are known of {', '.join(heavy)}")
    return _balances_by_smact(formula, include_alloys=True) or charge_neutral(formula, strict=True)


def _balances_by_smact(formula: str, include_alloys: bool) -> bool:
    """Tell whether SMACT 4 (ICSD24 states) finds states that sum to zero, with cations less electronegative than anions."""
    from smact.screening import smact_validity

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(smact_validity(Composition(formula), use_pauling_test=True, include_alloys=include_alloys))
