"""Names what H binds to on a sheet."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from crystals.elements import electronegativity_and_group
from energetics.sites import adsorbed_hydrogen, is_inside

# Electronegativities (Pauling) that part H, B and O from the metals of group 1, from Al and its like, and from S and its like.
NONMETAL, OXYGEN = 2.0, 3.0
INSIDE = ", inside the sheet"  # after the name of a chemistry
BY_GROUP = {14: "carbon group", 15: "pnictogen", 16: "chalcogen", 17: "halogen"}


def bound_element(atoms: Atoms) -> str:
    """Return the element of the atom nearest to the one tagged H of a sheet."""
    hydrogen = adsorbed_hydrogen(atoms)
    others = [i for i in range(len(atoms)) if i != hydrogen]
    return str(atoms.symbols[others[int(np.argmin(atoms.get_distances(hydrogen, others, mic=True)))]])


def chemistry_of(electronegativity: float, group: float) -> str:
    """Name what an element is to H, from its electronegativity (Pauling) and its group.

    Returns:
        "hydrogen", "carbon group" (B, C, Si, Ge, Sn, Pb), "pnictogen", "oxygen", "chalcogen" (S and heavier), "halogen", "metal".
    """
    if group == 1 and electronegativity > NONMETAL:
        return "hydrogen"
    if group == 13 and electronegativity > NONMETAL:
        return "carbon group"
    if group == 16 and electronegativity > OXYGEN:
        return "oxygen"
    return BY_GROUP.get(int(group), "metal")


def site_chemistry(atoms: Atoms) -> str:
    """Name what the one tagged H of a sheet binds to, as ``chemistry_of`` does, with INSIDE where H is."""
    name = chemistry_of(*electronegativity_and_group(bound_element(atoms)))
    return f"{name}{INSIDE * is_inside(atoms, adsorbed_hydrogen(atoms))}"
