"""Charge balance of a composition."""

from __future__ import annotations

import warnings
from functools import lru_cache
from itertools import product

from pymatgen.core import Composition

from crystals.prototypes import CHALCOGENS, HALOGENS

# Common oxidation states in solids. SMACT's full lists hold so many rare ones that nearly every composition balances.
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
    """True when some combination of oxidation states sums to zero with cations less electronegative than anions.

    strict: with the common states in solids, one per element; otherwise with SMACT's full lists.
    """
    from pymatgen.core import Composition

    composition = Composition(formula)
    if strict:
        amounts = [(el.symbol, int(amount)) for el, amount in composition.items()]
        choices = product(*(_COMMON_STATES.get(symbol, ()) for symbol, _ in amounts))
        return any(sum(state * n for state, (_, n) in zip(states, amounts, strict=True)) == 0 for states in choices)
    from smact.screening import smact_validity

    return bool(smact_validity(composition, use_pauling_test=True, include_alloys=False))


def charge_neutral_possible(formula: str) -> bool:
    """Whether known oxidation states can balance the formula (SMACT 4, ICSD24 states, Pauling test).

    ``include_alloys=True``: single elements and compounds of metals alone pass, since they need no charge balance. Carbides and
    other metallic compounds with non-integer mixed valence can fail although they exist; the check is necessary, not sufficient.
    Raises ValueError for elements of which no oxidation state is known (beyond Lr).
    """
    from smact.screening import smact_validity

    if heavy := sorted(element.symbol for element in Composition(formula) if element.Z > 103):
        raise ValueError(f"no oxidation states are known of {', '.join(heavy)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(smact_validity(Composition(formula), use_pauling_test=True, include_alloys=True))
