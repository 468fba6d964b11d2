"""Properties of the elements, and groups of elements that behave alike in layered crystals."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING

from ase.data import covalent_radii

if TYPE_CHECKING:
    import torch  # imported where it is used, so that prototypes and recipes do not wait for it

NONMETALS = frozenset({"H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Ge", "As", "Se", "Br", "Sb", "Te", "I"})
CHALCOGENS = ("O", "S", "Se", "Te")
HEAVY_CHALCOGENS = ("S", "Se", "Te")
HALOGENS = ("F", "Cl", "Br", "I")
ALKALI_METALS = ("Li", "Na", "K", "Rb", "Cs", "Fr")
HEAVY_HALOGENS = ("Cl", "Br", "I")
GROUP4_TO_6 = ("Ti", "Zr", "Hf", "V", "Nb", "Ta", "Cr", "Mo", "W")


@cache
def electronegativity_and_group(symbol: str) -> tuple[float, float]:
    """Return the electronegativity (Pauling; NaN for an element without one) and the group (1 to 18) of an element."""
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns where it has no electronegativity; NaN says so
        return float(Element(symbol).X), float(Element(symbol).group)


@cache
def are_related(first: str, second: str) -> bool:
    """Return whether two elements are of one block of the periodic table and at most one group apart; an element is to itself."""
    from pymatgen.core import Element

    one, other = Element(first), Element(second)
    return one.block == other.block and abs(one.group - other.group) <= 1


def covalent_radius_table() -> torch.Tensor:
    """Return the covalent radii of ASE in Å, (119,) float64, entry Z; entry 0 is unused."""
    import torch

    return torch.as_tensor(covalent_radii, dtype=torch.float64).clone()


def element_descriptors() -> torch.Tensor:
    """Return descriptors of the elements, (119, 31) float64, row Z; row 0 is unused.

    Columns: group and period (one-hot), electronegativity, ionisation energy, covalent radius, valence electrons by shell. They are
    standardised over the first 96 elements, so that an element absent from training is still placed near its relatives.
    """
    import torch
    from pymatgen.core import Element

    rows = torch.zeros(119, 31, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns for every noble gas that it has no electronegativity
        for number in range(1, 119):
            element = Element.from_Z(number)
            group, period = int(element.group), int(element.row)
            electronegativity = float(element.X)
            ionisation = float(element.ionization_energy or 0.0)
            is_f = element.is_lanthanoid or element.is_actinoid
            rows[number, group - 1] = 1
            rows[number, 18 + period - 1] = 1
            rows[number, 25:] = torch.tensor(
                [
                    electronegativity if electronegativity == electronegativity else 0.0,
                    ionisation,
                    float(covalent_radii[number]),
                    float(min(group, 2)),
                    float(group - 2 if 3 <= group <= 12 else group - 12 if group > 12 else 0),
                    float(number - (57 if number < 80 else 89)) if is_f else 0.0,
                ],
                dtype=torch.float64,
            )
    known = rows[1:97]
    return ((rows - known.mean(0)) / known.std(0).clamp(min=0.05)).clamp(-4, 4)
