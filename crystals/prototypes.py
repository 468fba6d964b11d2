"""Prototypes: families of known two-dimensional crystals, with the elements of each site and a function that builds the sheet.

A builder places atoms with bond lengths from covalent radii. The structures are starting points for a relaxation, not results. They
serve three purposes: the embedded database, the random-decoration baseline, and the recipes and templates of the generator.

Builders take element symbols, one per site, and return a standard sheet (Å). Their docstrings name the space group of the sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.neighborlist import neighbor_list

from crystals.elements import CHALCOGENS, GROUP4_TO_6, HALOGENS, HEAVY_CHALCOGENS, HEAVY_HALOGENS
from geo_utils import Sheet

A, B, C = (0.0, 0.0), (1 / 3, 2 / 3), (2 / 3, 1 / 3)  # the three positions of a hexagonal layer
METAL_REACH = 12.0  # Å, within which the six metals nearest to a metal are looked for
PAIRED_SPREAD = 0.15  # the longest of these distances is larger than the shortest by more than this share in a 1T' sheet
DISTORTED_NAME, OCTAHEDRAL_NAME = "1Tprime-MX2", "1T-MX2"
Layer = tuple[str, tuple[float, float], float]  # element, fractional xy, height in Å


@dataclass(frozen=True)
class Prototype:
    """A family of monolayers.

    Attributes:
        name: name of the family, as in ``generation.recipes``.
        sites: for each site, the elements that occur there in known monolayers.
        build: builder of the sheet; takes one element per site.
        ionic: whether only charge-neutral decorations exist. MXenes, elemental sheets and the like are metallic or covalent.
        distinct: indices of sites that must hold different elements.
    """

    name: str
    sites: tuple[tuple[str, ...], ...]
    build: Callable[..., Atoms]
    ionic: bool = True
    distinct: tuple[int, ...] = ()

    def decorations(self) -> Iterator[tuple[str, ...]]:
        """Yield all allowed tuples of elements, one per site, in a fixed order."""
        for elements in product(*self.sites):
            chosen = [elements[index] for index in self.distinct]
            if len(set(chosen)) == len(chosen) and chosen == sorted(chosen, key=lambda el: atomic_numbers[el]):
                yield elements


def _r(*elements: str) -> float:
    """Return the sum of covalent radii, Å."""
    return float(sum(covalent_radii[atomic_numbers[element]] for element in elements))


def _sheet(layers: list[Layer], lattice: np.ndarray) -> Atoms:
    """Return the sheet with the given atoms and in-plane lattice, (2, 2) Å."""
    numbers = np.array([atomic_numbers[element] for element, _, _ in layers])
    frac = np.array([xy for _, xy, _ in layers])
    heights = np.array([height for _, _, height in layers])
    return Sheet(numbers, frac % 1.0, heights - heights.mean(), np.asarray(lattice, dtype=float)).to_atoms()


def _hexagonal(a: float) -> np.ndarray:
    """Return a hexagonal in-plane lattice, (2, 2) Å."""
    return np.array([[a, 0.0], [-a / 2, a * np.sqrt(3) / 2]])


def _rise(bond: float, lateral: float, least: float = 0.3) -> float:
    """Return the height difference (Å) of a bond of given length and in-plane length, at least ``least``."""
    return float(np.sqrt(max(bond**2 - lateral**2, least**2)))


def trigonal_prismatic(m: str, x: str, y: str | None = None) -> Atoms:
    """Build 2H MX2 (P-6m2) or its Janus form MXY (P3m1)."""
    y = y or x
    a = 0.5 * (_r(m, x) + _r(m, y)) * 1.27
    return _sheet(
        [(m, B, 0), (x, C, _rise(0.97 * _r(m, x), a / 3**0.5)), (y, C, -_rise(0.97 * _r(m, y), a / 3**0.5))], _hexagonal(a)
    )


def octahedral(m: str, x: str, y: str | None = None) -> Atoms:
    """Build 1T MX2 (P-3m1) or its Janus form MXY such as BiTeI (P3m1)."""
    y = y or x
    a = 0.5 * (_r(m, x) + _r(m, y)) * 1.38
    return _sheet(
        [(m, A, 0), (x, B, _rise(0.97 * _r(m, x), a / 3**0.5)), (y, C, -_rise(0.97 * _r(m, y), a / 3**0.5))], _hexagonal(a)
    )


def distorted_octahedral(m: str, x: str) -> Atoms:
    """Build 1T' MX2: 1T in a 1 x √3 cell with the metals paired along b (P2_1/m)."""
    a = _r(m, x) * 1.38
    b, h = a * 3**0.5, _rise(0.97 * _r(m, x), a / 3**0.5)
    up, down = 1 / 3, 2 / 3
    layers = [(m, (0, 0.05), 0.1), (m, (0.5, 0.45), -0.1)]
    layers += [(x, (0.5, up / 2 + 0.02), h + 0.2), (x, (0.0, up / 2 + 0.5), h - 0.2)]
    layers += [(x, (0.0, down / 2 - 0.02), -h - 0.2), (x, (0.5, down / 2 + 0.5), -h + 0.2)]
    return _sheet(layers, np.array([[a, 0], [0, b]]))


def metal_distances(atoms: Atoms, metals: Sequence[str]) -> np.ndarray:
    """Return the distances (6,) Å from a metal to the six metals nearest to it, ascending, each a mean over the sheet's metals.

    Six equal distances are the triangular net of 2H and 1T; in 1T' each metal is close to two others (zigzag chains).

    Args:
        atoms: a sheet, periodic in its plane.
        metals: symbols of the metals.

    Raises:
        ValueError: there is none of them, or fewer than six others are within 12 Å of one.
    """
    sheet = atoms.copy()
    sheet.pbc = (True, True, False)
    found = [index for index in range(len(sheet)) if sheet.symbols[index] in metals]
    if not found:
        raise ValueError(f"{atoms.get_chemical_formula()} has none of {', '.join(metals)}")
    sheet = sheet[found]
    first, distances = neighbor_list("id", sheet, METAL_REACH)
    nearest = [np.sort(distances[first == index])[:6] for index in range(len(sheet))]
    if any(len(row) < 6 for row in nearest):
        raise ValueError(f"{atoms.get_chemical_formula()}: a metal has fewer than six others within {METAL_REACH:g} Å")
    return np.mean(nearest, axis=0)


def name_as_relaxed(prototype: str, atoms: Atoms) -> str:
    """Return the name that a relaxed sheet deserves: a 1T' whose metals are no longer paired is 1T.

    A potential may undo the distortion that a builder starts from. Of the 15 sheets of the embedded database built as 1T', four
    end with distances within 6 % of each other, and 28 % and more lie between those of the others. PAIRED_SPREAD lies in between.

    Args:
        prototype: name of the family that was built.
        atoms: the sheet after relaxation.
    """
    if prototype != DISTORTED_NAME:
        return prototype
    distances = metal_distances(atoms, PROTOTYPES[DISTORTED_NAME].sites[0])
    return prototype if distances[-1] / distances[0] > 1 + PAIRED_SPREAD else OCTAHEDRAL_NAME


def mxene(m: str, x: str) -> Atoms:
    """Build the bare MXene M2X (P-3m1)."""
    bond = _r(m, x) * 0.93
    a = bond * 1.42
    h = _rise(bond, a / 3**0.5)
    return _sheet([(x, A, 0), (m, B, h), (m, C, -h)], _hexagonal(a))


def terminated_mxene(m: str, x: str, t: str) -> Atoms:
    """Build the MXene M2XT2 with each termination above the metal of the other face (P-3m1)."""
    bond = _r(m, x) * 0.93
    a = bond * 1.42
    h, h2 = _rise(bond, a / 3**0.5), _rise(_r(m, t) * 0.98, a / 3**0.5, 0.6)
    return _sheet([(x, A, 0), (m, B, h), (m, C, -h), (t, C, h + h2), (t, B, -h - h2)], _hexagonal(a))


def terminated_mxene_32(m: str, x: str, t: str) -> Atoms:
    """Build the MXene M3X2T2 (P-3m1)."""
    bond = _r(m, x) * 0.93
    a = bond * 1.42
    h, h2 = _rise(bond, a / 3**0.5), _rise(_r(m, t) * 0.98, a / 3**0.5, 0.6)
    layers = [(m, A, 0), (x, B, h), (x, C, -h), (m, C, 2 * h), (m, B, -2 * h), (t, A, 2 * h + h2), (t, A, -2 * h - h2)]
    return _sheet(layers, _hexagonal(a))


def honeycomb(a_: str, b_: str, buckling: float = 0.0) -> Atoms:
    """Build an AB honeycomb, planar (h-BN; P-6m2) or buckled by ``buckling`` times the bond length (P3m1)."""
    bond = _r(a_, b_) * 0.97
    h = buckling * bond
    return _sheet([(a_, B, h / 2), (b_, C, -h / 2)], _hexagonal(3**0.5 * _rise(bond, h)))


def buckled_honeycomb(a_: str, b_: str) -> Atoms:
    """Build a low-buckled honeycomb AB (P3m1)."""
    return honeycomb(a_, b_, 0.3)


def elemental_planar(a_: str) -> Atoms:
    """Build a planar honeycomb of one element (graphene; P6/mmm)."""
    return honeycomb(a_, a_)


def elemental_buckled(a_: str) -> Atoms:
    """Build a buckled honeycomb of one element: silicene, or blue phosphorus (the A7 structure) for group 15 (P-3m1)."""
    return honeycomb(a_, a_, 0.5 if a_ in ("P", "As", "Sb", "Bi", "N") else 0.22)


def gallium_selenide(m: str, x: str, y: str | None = None) -> Atoms:
    """Build M2X2 with an M-M pair (GaSe; P-6m2) or its Janus form M2XY (P3m1)."""
    y = y or x
    bond = 0.5 * (_r(m, x) + _r(m, y)) * 0.97
    a = bond * 1.52
    k = _r(m) * 1.0
    return _sheet([(m, B, k), (m, B, -k), (x, C, k + _rise(bond, a / 3**0.5)), (y, C, -k - _rise(bond, a / 3**0.5))], _hexagonal(a))


def puckered(a_: str, b_: str | None = None) -> Atoms:
    """Build a puckered sheet: black phosphorus (Pmna) or GeS (Pmn2_1)."""
    b_ = b_ or a_
    bond = _r(a_, b_)
    layers = [(a_, (0, 0.08), bond / 2), (b_, (0, -0.08), -bond / 2), (a_, (0.5, 0.58), -bond / 2), (b_, (0.5, 0.42), bond / 2)]
    return _sheet(layers, np.array([[1.5 * bond, 0], [0, 2.05 * bond]]))


def _octahedral_honeycomb(m: str, x: str, scale: float) -> tuple[list[Layer], float]:
    """Return a honeycomb of edge-sharing MX6 octahedra and its lattice constant (Å); bonds are ``scale`` x the covalent radii."""
    bond = _r(m, x) * scale
    a, h = bond * 6**0.5, bond / 3**0.5
    layers = [(m, B, 0.0), (m, C, 0.0)]
    layers += [(x, xy, h) for xy in ((1 / 3, 0), (0, 1 / 3), (2 / 3, 2 / 3))]
    layers += [(x, xy, -h) for xy in ((2 / 3, 0), (0, 2 / 3), (1 / 3, 1 / 3))]
    return layers, a


def trihalide(m: str, x: str) -> Atoms:
    """Build MX3 of the BiI3 and CrI3 type: a honeycomb of edge-sharing octahedra (P-31m)."""
    layers, a = _octahedral_honeycomb(m, x, 0.96)
    return _sheet(layers, _hexagonal(a))


def thiophosphate(m: str, p: str, x: str) -> Atoms:
    """Build M2P2X6 or M2Ge2X6 (FePS3, CrGeTe3): the trihalide net with a pair of atoms in its holes (P-31m)."""
    layers, a = _octahedral_honeycomb(m, x, 1.0)
    a = max(a, 3.05 * _r(p, x) * 0.95)
    half = _r(p)
    return _sheet([*layers, (p, A, half), (p, A, -half)], _hexagonal(a))


def pentagonal(m: str, x: str) -> Atoms:
    """Build MX2 of the penta-PdSe2 type (P2_1/c)."""
    d = _r(m, x)
    z = 0.27 * d
    sites = ((0.113, 0.382, z), (-0.113, -0.382, -z), (0.613, 0.118, -z), (0.387, 0.882, z))
    layers: list[Layer] = [(m, (0, 0), 0), (m, (0.5, 0.5), 0)]
    return _sheet(layers + [(x, (u, v), w) for u, v, w in sites], np.array([[2.27 * d, 0], [0, 2.35 * d]]))


def iron_selenide(m: str, x: str) -> Atoms:
    """Build tetragonal MX: FeSe or litharge PbO (P4/nmm)."""
    d = _r(m, x) * 0.95
    a = 1.57 * d
    h = _rise(d, a / 2)
    return _sheet([(m, (0, 0), 0), (m, (0.5, 0.5), 0), (x, (0, 0.5), h), (x, (0.5, 0), -h)], np.diag([a, a]))


def tetrahedral_dihalide(m: str, x: str) -> Atoms:
    """Build MX2 of corner-sharing tetrahedra, one layer of HgI2 (P-4m2)."""
    d = _r(m, x) * 0.95
    a = 1.63 * d
    h = _rise(d, a / 2)
    return _sheet([(m, (0, 0), 0), (x, (0.5, 0), h), (x, (0, 0.5), -h)], np.diag([a, a]))


def iron_oxychloride(m: str, o: str, x: str) -> Atoms:
    """Build MOX of the FeOCl type (Pmmn)."""
    d, dx = _r(m, o), _r(m, x) * 0.97
    b = 1.85 * d
    rise = _rise(d, b / 2)
    a = max(1.38 * dx, 1.55 * d)
    z1 = 0.45 * d
    z2 = z1 + _rise(dx, a / 2)
    layers = [(m, (0, 0), z1), (m, (0.5, 0.5), -z1), (o, (0, 0.5), z1 - rise), (o, (0.5, 0), rise - z1), (x, (0.5, 0), z2)]
    return _sheet([*layers, (x, (0, 0.5), -z2)], np.array([[a, 0], [0, b]]))


def bismuth_oxychloride(m: str, o: str, x: str) -> Atoms:
    """Build MOX of the BiOCl (PbFCl) type (P4/nmm)."""
    d, dx = _r(m, o) * 0.97, _r(m, x)
    a = 1.68 * d
    z1 = _rise(d, a / 2)
    z2 = z1 + _rise(dx, a / 2**0.5, 0.5)
    layers = [(o, (0, 0), 0), (o, (0.5, 0.5), 0), (m, (0.5, 0), z1), (m, (0, 0.5), -z1), (x, (0, 0.5), z2), (x, (0.5, 0), -z2)]
    return _sheet(layers, np.diag([a, a]))


def quintuple(m: str, x: str) -> Atoms:
    """Build an M2X3 quintuple layer (Bi2Te3; P-3m1)."""
    bond = _r(m, x) * 0.99
    a = bond * 1.42
    h1, h2 = _rise(bond * 1.03, a / 3**0.5), _rise(bond * 0.97, a / 3**0.5)
    return _sheet([(x, A, 0), (m, B, h1), (m, C, -h1), (x, C, h1 + h2), (x, B, -h1 - h2)], _hexagonal(a))


def mosi2n4(m: str, a_: str, z: str) -> Atoms:
    """Build an MA2Z4 septuple layer (MoSi2N4; P-6m2): a 2H MZ2 core between two A-Z bilayers."""
    core, vertical = _r(m, z) * 0.95, _r(a_, z) * 0.96
    a = 0.5 * (core * 1.4 + vertical * 1.66)
    h1 = _rise(core, a / 3**0.5, 0.8)
    h2, h3 = h1 + vertical, h1 + vertical + _rise(vertical, a / 3**0.5, 0.4)
    layers = [(m, B, 0.0)]
    for sign in (1, -1):
        layers += [(z, C, sign * h1), (a_, C, sign * h2), (z, A, sign * h3)]
    return _sheet(layers, _hexagonal(a))


PROTOTYPE_LIST = (
    Prototype("2H-MX2", ((*GROUP4_TO_6, "Re", "Sc", "Mn", "Fe"), CHALCOGENS), trigonal_prismatic),
    Prototype(
        "1T-MX2",
        (
            ("Ti", "Zr", "Hf", "V", "Nb", "Ta", "Cr", "Mo", "W", "Mn", "Re", "Fe", "Co", "Ni", "Pd", "Pt", "Rh", "Ir", "Sn", "Ge"),
            CHALCOGENS,
        ),
        octahedral,
    ),
    Prototype(
        "1T-dihalide",
        (("Mg", "Ca", "Sr", "Ba", "Zn", "Cd", "Mn", "Fe", "Co", "Ni", "V", "Ti", "Pb", "Ge", "Sn", "Cu"), HEAVY_HALOGENS),
        octahedral,
    ),
    Prototype(
        "Janus-2H",
        (("Mo", "W", "Nb", "Ta", "Cr", "V", "Zr", "Hf"), HEAVY_CHALCOGENS, HEAVY_CHALCOGENS),
        trigonal_prismatic,
        distinct=(1, 2),
    ),
    Prototype(
        "Janus-1T",
        (("Pt", "Pd", "Ti", "Zr", "Hf", "Sn", "V", "Ni"), HEAVY_CHALCOGENS, HEAVY_CHALCOGENS),
        octahedral,
        distinct=(1, 2),
    ),
    Prototype("BiTeI", (("Bi", "Sb", "Sc", "Y", "In"), HEAVY_CHALCOGENS, HEAVY_HALOGENS), octahedral),
    Prototype("1Tprime-MX2", (("Mo", "W", "Re", "Ru", "Os"), HEAVY_CHALCOGENS), distorted_octahedral),
    Prototype("MXene-M2X", (("Sc", "Y", *GROUP4_TO_6), ("C", "N")), mxene, ionic=False),
    Prototype("MXene-M2XT2", (("Sc", "Y", *GROUP4_TO_6), ("C", "N"), ("O", "F", "S", "Cl")), terminated_mxene, ionic=False),
    Prototype(
        "MXene-M3X2T2", (("Ti", "Zr", "Hf", "V", "Nb", "Ta", "Mo"), ("C", "N"), ("O", "F")), terminated_mxene_32, ionic=False
    ),
    Prototype("hBN", (("B", "Al", "Ga", "In", "Be", "Mg", "Zn", "Cd"), ("N", "O", "P")), honeycomb),
    Prototype("IV-IV", (("C", "Si", "Ge", "Sn"), ("C", "Si", "Ge", "Sn")), buckled_honeycomb, ionic=False, distinct=(0, 1)),
    Prototype("buckled-AB", (("B", "Al", "Ga", "In", "Zn", "Cd"), ("P", "As", "Sb", "S", "Se", "Te")), buckled_honeycomb),
    Prototype("graphene", (("C", "B", "N", "Si"),), elemental_planar, ionic=False),
    Prototype("Xene", (("Si", "Ge", "Sn", "Pb", "P", "As", "Sb", "Bi"),), elemental_buckled, ionic=False),
    Prototype("GaSe", (("Ga", "In", "Al", "Tl"), CHALCOGENS), gallium_selenide, ionic=False),
    Prototype(
        "Janus-GaSe", (("Ga", "In", "Al"), HEAVY_CHALCOGENS, HEAVY_CHALCOGENS), gallium_selenide, ionic=False, distinct=(1, 2)
    ),
    Prototype("phosphorene", (("P", "As", "Sb", "Bi"),), puckered, ionic=False),
    Prototype("GeS", (("Si", "Ge", "Sn", "Pb"), CHALCOGENS), puckered),
    Prototype(
        "MX3",
        (("Sc", "Y", "Ti", "V", "Cr", "Mo", "Fe", "Ru", "Rh", "Ir", "Al", "Ga", "In", "Bi", "Sb", "As", "La"), HALOGENS),
        trihalide,
    ),
    Prototype("penta-MX2", (("Pd", "Pt", "Ni"), HEAVY_CHALCOGENS), pentagonal),
    Prototype("FeSe", (("Fe", "Co", "Ni", "Mn", "Cr", "V", "Zn", "Cd", "Sn", "Pb", "Ge", "Mg", "Cu"), CHALCOGENS), iron_selenide),
    Prototype("HgI2", (("Zn", "Cd", "Be", "Mg", "Hg"), HEAVY_HALOGENS), tetrahedral_dihalide),
    Prototype("FeOCl", (("Ti", "V", "Cr", "Fe", "Sc", "Al", "In", "Ga"), ("O", "N"), HEAVY_HALOGENS), iron_oxychloride),
    Prototype("BiOCl", (("Bi", "Sb", "La", "Y", "Sc", "In"), ("O", "S"), HALOGENS), bismuth_oxychloride),
    Prototype("Bi2Te3", (("Bi", "Sb", "As", "In", "Ga", "Al", "Sc", "Y"), HEAVY_CHALCOGENS), quintuple),
    Prototype("MoSi2N4", (GROUP4_TO_6, ("Si", "Ge"), ("N", "P", "As")), mosi2n4),
    Prototype(
        "MPX3", (("Mn", "Fe", "Ni", "Co", "Zn", "Cd", "Mg", "Cr", "V", "Ca"), ("P", "Ge", "Si"), HEAVY_CHALCOGENS), thiophosphate
    ),
)
PROTOTYPES: dict[str, Prototype] = {prototype.name: prototype for prototype in PROTOTYPE_LIST}
