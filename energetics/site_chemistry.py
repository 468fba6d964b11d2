"""Says what H binds to on a sheet, and where it is."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from crystals.elements import electronegativity_and_group
from energetics.sites import adsorbed_hydrogen, is_inside

# Electronegativities (Pauling) that part H, B and O from the metals of group 1, from Al and its like, and from S and its like.
NONMETAL, OXYGEN = 2.0, 3.0
INSIDE = ", inside the sheet"  # after the name of a chemistry
BOND_VALENCE_LENGTH = 0.37  # Å: Brown, Altermatt, Acta Cryst. B 41, 244 (1985)
PLACE = ("bond-valence sum", "height", "inside")  # what ``place_of_hydrogen`` returns
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


def site_descriptors(atoms: Atoms, with_place: bool = True) -> tuple[float, ...]:
    """Describe what the one tagged H of a sheet binds to, and where it is.

    Returns:
        Electronegativity (Pauling) and group of the element that H binds to; mean covalent radius (Å) of the other elements, each
        counted once; with the place, what ``place_of_hydrogen`` returns as well. In a sheet of one element the element itself
        stands for the others. NaN for elements without an electronegativity.
    """
    host = bound_element(atoms)
    sheet = atoms.symbols[np.arange(len(atoms)) != adsorbed_hydrogen(atoms)]
    rest = sorted(set(sheet) - {host}) or [host]
    radius = np.mean([covalent_radii[atomic_numbers[symbol]] for symbol in rest])
    return (*electronegativity_and_group(host), float(radius), *(place_of_hydrogen(atoms) if with_place else ()))


def place_of_hydrogen(atoms: Atoms) -> tuple[float, float, float]:
    """Return where the one tagged H of a sheet is.

    Returns:
        The bond-valence sum of H, Σ exp((r_H + r_X − d) / 0.37 Å) with covalent radii; its height above the outermost atom on its
        side (Å); 1 inside the sheet, else 0.
    """
    hydrogen = adsorbed_hydrogen(atoms)
    others = np.delete(np.arange(len(atoms)), hydrogen)
    distances = atoms.get_distances(hydrogen, others, mic=True)
    touching = covalent_radii[atoms.numbers[others]] + covalent_radii[1]
    heights = atoms.positions[others, 2]
    side = 1.0 if atoms.positions[hydrogen, 2] > heights.mean() else -1.0
    height = side * atoms.positions[hydrogen, 2] - (side * heights).max()
    valence = np.exp((touching - distances) / BOND_VALENCE_LENGTH).sum()
    return float(valence), float(height), float(is_inside(atoms, hydrogen))
