"""Builds the simple competing phases: elements in their ground-state forms and bulk prototypes of binary compounds.

They are starting structures for the potential. PBE-trained potentials have no dispersion, so a molecule in a box stands for its
molecular crystal and a monolayer for its layered parent; both differ from the crystal only by the missing van der Waals energy.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii
from ase.spacegroup import crystal

from crystals.elements import HALOGENS, NONMETALS
from crystals.prototypes import elemental_planar, puckered

DIATOMIC_BONDS = {"H": 0.74, "N": 1.10, "O": 1.21, "F": 1.42, "Cl": 1.99, "Br": 2.28, "I": 2.67}  # Å
TETRAHEDRAL = ("B", "Al", "Ga", "In", "Be", "Mg", "Zn", "Cd", "Hg", "Cu", "Si", "Ge", "C")
NONMETAL_CATIONS = ("B", "Si", "Ge", "As", "Sb")  # non-metals whose compounds with more electronegative elements compete


def is_molecular(atoms: Atoms) -> bool:
    """Return whether a starting structure is a molecule in a box."""
    return not atoms.pbc.any()


def elemental_phases(element: str) -> Iterator[tuple[str, Atoms]]:
    """Yield (name, starting structure) of the candidate ground states of one element; the lowest is its reference.

    α-Mn (58 atoms) is missing; the best close-packed form stands in for it.
    """
    if element in DIATOMIC_BONDS:
        yield "molecule", _molecule(Atoms(f"{element}2", [[0, 0, 0], [0, 0, DIATOMIC_BONDS[element]]]))
        return
    r = covalent_radii[atomic_numbers[element]]
    if element == "C":
        yield "graphene", elemental_planar("C")
        yield "diamond", bulk("C", "diamond", a=3.57)
        return
    if element == "S":
        angles = np.arange(8) * np.pi / 4
        ring = np.column_stack([2.34 * np.cos(angles), 2.34 * np.sin(angles), 0.5 * (-1.0) ** np.arange(8)])
        yield "S8 molecule", _molecule(Atoms("S8", ring))
        return
    if element in ("Se", "Te"):
        a, c, u = {"Se": (4.40, 4.95, 0.225), "Te": (4.46, 5.93, 0.27)}[element]
        yield "trigonal chains", crystal(element, [(u, 0, 1 / 3)], spacegroup=152, cellpar=[a, a, c, 90, 90, 120])
        return
    if element == "B":
        sites = [(0.0104, 0.0104, -0.3427), (0.2206, 0.2206, -0.3677)]
        yield "alpha-B12", crystal(["B", "B"], sites, spacegroup=166, setting=2, cellpar=[5.06] * 3 + [58.06] * 3)
        return
    if element == "P":
        yield "black phosphorus layer", puckered("P")
        return
    if element in ("As", "Sb", "Bi"):
        a, c, z = {"As": (3.76, 10.55, 0.227), "Sb": (4.31, 11.27, 0.234), "Bi": (4.55, 11.86, 0.234)}[element]
        yield "A7", crystal(element, [(0, 0, z)], spacegroup=166, cellpar=[a, a, c, 90, 90, 120], primitive_cell=True)
        return
    if element in ("Si", "Ge", "Sn"):
        yield "diamond", bulk(element, "diamond", a=8 * r / 3**0.5)
    if element == "Sn":
        yield "beta-Sn", crystal("Sn", [(0, 0, 0)], spacegroup=141, cellpar=[5.83, 5.83, 3.18, 90, 90, 90], primitive_cell=True)
    if element == "Ga":
        lattice = [4.52, 7.66, 4.53, 90, 90, 90]
        yield "alpha-Ga", crystal("Ga", [(0, 0.1539, 0.081)], spacegroup=64, cellpar=lattice, primitive_cell=True)
    if element == "In":
        yield "bct", bulk("In", "bct", a=3.25, c=4.95)
    if element not in ("Si", "Ge"):
        yield "fcc", bulk(element, "fcc", a=2 * 2**0.5 * r)
        yield "hcp", bulk(element, "hcp", a=2 * r, c=1.62 * 2 * r)
        yield "bcc", bulk(element, "bcc", a=4 / 3**0.5 * r * 0.98)


def _molecule(atoms: Atoms) -> Atoms:
    atoms.set_cell([14.0] * 3)
    atoms.center()
    atoms.pbc = False
    return atoms


def binary_phases(cation: str, anion: str) -> Iterator[tuple[str, Atoms]]:
    """Yield (prototype, starting structure) of bulk compounds of one pair, chosen by the anion's usual stoichiometries."""
    d = 0.95 * (covalent_radii[atomic_numbers[cation]] + covalent_radii[atomic_numbers[anion]])

    def build(symbols: list[str], sites: list[tuple], group: int, cellpar: list[float]) -> Atoms:
        return crystal(symbols, sites, spacegroup=group, cellpar=cellpar, primitive_cell=True)

    cubic = lambda a: [a, a, a, 90, 90, 90]  # noqa: E731
    pair = [cation, anion]
    rutile = [(0, 0, 0), (0.305, 0.305, 0)]
    rutile_cell = [2.36 * d, 2.36 * d, 1.52 * d, 90, 90, 90]
    if anion not in HALOGENS or cation == "Cu":
        yield "rocksalt", build(pair, [(0, 0, 0), (0.5, 0.5, 0.5)], 225, cubic(2.05 * d))
    if anion in ("P", "As", "Sb") or (anion not in HALOGENS and cation in TETRAHEDRAL):
        yield "zincblende", build(pair, [(0, 0, 0), (0.25, 0.25, 0.25)], 216, cubic(4 * d / 3**0.5))
    if anion in ("S", "Se", "Te", "P", "As", "Sb"):
        a = 1.42 * d
        yield "NiAs", build(pair, [(0, 0, 0), (1 / 3, 2 / 3, 0.25)], 194, [a, a, 1.5 * a, 90, 90, 120])
    if anion in ("O", "F"):
        yield "fluorite", build(pair, [(0, 0, 0), (0.25, 0.25, 0.25)], 225, cubic(4 * d / 3**0.5))
        yield "ReO3", build(pair, [(0, 0, 0), (0.5, 0, 0)], 221, cubic(2 * d))
    if anion in HALOGENS or anion == "O":
        yield "rutile", build(pair, rutile, 136, rutile_cell)
    if anion == "O":
        lattice = [2.48 * d, 2.48 * d, 6.77 * d, 90, 90, 120]
        yield "corundum", build(pair, [(0, 0, 0.352), (0.306, 0, 0.25)], 167, lattice)
    if anion in ("S", "Se", "Te"):
        u = 0.385
        yield "pyrite", build(pair, [(0, 0, 0), (u, u, u)], 205, cubic(2.35 * d))
    if anion in ("Si", "Ge"):
        a = 1.24 * d
        yield "C11b", build(pair, [(0, 0, 0), (0, 0, 1 / 3)], 139, [a, a, 2.45 * a, 90, 90, 90])
        yield "B20", build(pair, [(0.137, 0.137, 0.137), (0.842, 0.842, 0.842)], 198, cubic(1.87 * d))
    if anion == "N" and cation in ("Si", "Ge"):
        a = 7.61 * (1.0 if cation == "Si" else 1.05)
        sites = [(0.1748, 0.7691, 0.25), (1 / 3, 2 / 3, 0.25), (0.3298, 0.0304, 0.25)]
        yield "beta-Si3N4", build([cation, anion, anion], sites, 176, [a, a, 0.382 * a, 90, 90, 120])
    if anion == "O" and cation in ("Si", "Ge"):
        sites = [(0.4697, 0, 2 / 3), (0.4135, 0.2669, 0.7858)]
        yield "quartz", build(pair, sites, 154, [4.95, 4.95, 5.43, 90, 90, 120])


def cation_and_anion(first: str, second: str) -> tuple[str, str] | None:
    """Return a pair as (cation, anion) by Pauling electronegativity; None where it has no compound among the competing phases."""
    from pymatgen.core import Element

    cation, anion = sorted((first, second), key=lambda el: Element(el).X)
    if anion not in NONMETALS or (cation in NONMETALS and cation not in NONMETAL_CATIONS):
        return None
    return cation, anion
