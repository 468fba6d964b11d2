"""Builds the compounds that compete with candidates beside the simple binaries of ``simple_phases``.

They are families of compounds that exist, as starting structures for the potential: high-valent halides and oxides, which are
molecules or chains; halides and hydrides of single metals; carbides, borides, oxyhalides, perovskites, carbonates and the like.
Each family is a ``prototypes.Prototype``: the elements of each site, and a builder with bond lengths from covalent radii. Ionic
families have only the decorations that common oxidation states balance. A molecule or chain in a box differs from its crystal by
the van der Waals energy, which PBE-trained potentials do not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import spglib
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.spacegroup import crystal

from crystals.charge_balance import charge_neutral
from crystals.elements import CHALCOGENS, GROUP4_TO_6, HALOGENS, HEAVY_CHALCOGENS, HEAVY_HALOGENS
from crystals.prototypes import Prototype

BOX = 14.0  # Å, molecules
GAP = 11.0  # Å, between chains
ALKALI = ("Li", "Na", "K", "Rb", "Cs")
RARE = ("Sc", "Y", "La")
CHAIN_METALS = ("Ti", "Zr", "Hf", "V", "Nb", "Ta", "Mo", "W", "Re", "Os", "Pt", "Te")
TETRAFLUORIDES = ("Ti", "Zr", "Hf", "V", "Nb", "Ta", "Mo", "Mn", "Ru", "Ir", "Pd", "Pt", "Ge", "Sn", "Pb")
HEXAFLUORIDES = ("S", "Se", "Te", "Mo", "W", "Re", "Os", "Ir", "Pt", "Ru", "Rh")


def bond(first: str, second: str) -> float:
    """Return the sum of covalent radii, Å."""
    return float(covalent_radii[atomic_numbers[first]] + covalent_radii[atomic_numbers[second]])


def _molecule(symbols: list[str], positions: np.ndarray | list) -> Atoms:
    atoms = Atoms(symbols, np.asarray(positions, dtype=float), cell=[BOX] * 3, pbc=False)
    atoms.center()
    return atoms


def _chain(symbols: list[str], positions: np.ndarray | list, period: float) -> Atoms:
    """Build a chain along x, far from its images along y and z."""
    atoms = Atoms(symbols, np.asarray(positions, dtype=float), cell=[period, GAP + 6, GAP + 6], pbc=(True, True, False))
    atoms.center(axis=(1, 2))
    return atoms


def _layer(symbols: list[str], positions: list, a: float, b: float) -> Atoms:
    """Build a rectangular layer in the xy plane; positions are fractional in x and y, Å in z."""
    cart = np.asarray(positions, dtype=float) * [a, b, 1.0]
    atoms = Atoms(symbols, cart, cell=[a, b, 20.0 + np.ptp(cart[:, 2])], pbc=(True, True, False))
    atoms.center(axis=2)
    return atoms


def _crystal(symbols: list[str], sites: list[tuple], group: int, cellpar: list[float], setting: int = 1) -> Atoms:
    """Build the primitive cell of a crystal. spglib finds it, because ASE's own cut loses atoms at the faces of some cells."""
    full = crystal(symbols, sites, spacegroup=group, setting=setting, cellpar=cellpar)
    cell, positions, numbers = spglib.find_primitive((full.cell.array, full.get_scaled_positions(), full.numbers), symprec=1e-3)
    return Atoms(numbers=numbers, scaled_positions=positions, cell=cell, pbc=True)


def _cubic(a: float) -> list[float]:
    return [a, a, a, 90, 90, 90]


TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
OCTAHEDRON = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=float)
ANGLES = 2 * np.pi * np.arange(3) / 3
TRIANGLE = np.column_stack([np.cos(ANGLES), np.sin(ANGLES), np.zeros(3)])
PYRAMID = np.column_stack([0.92 * TRIANGLE[:, :2], np.full(3, -0.4)])
BENT = np.array([[0.8, 0.6, 0], [-0.8, 0.6, 0]])


def _around(center: str, ligands: list[str], directions: np.ndarray, scale: float = 0.97) -> Atoms:
    lengths = np.array([[scale * bond(center, ligand)] for ligand in ligands])
    return _molecule([center, *ligands], np.vstack([np.zeros(3), directions * lengths]))


def diatomic(a: str, b: str) -> Atoms:
    """Build a molecule AB."""
    return _molecule([a, b], [[0, 0, 0], [0, 0, 0.97 * bond(a, b)]])


def linear_molecule(m: str, x: str) -> Atoms:
    """Build MX2, linear (CO2, HgCl2)."""
    return _around(m, [x] * 2, OCTAHEDRON[:2], 0.9)


def bent_molecule(m: str, x: str) -> Atoms:
    """Build MX2, bent (SO2, H2O as OH2)."""
    return _around(m, [x] * 2, BENT)


def planar_molecule(m: str, x: str) -> Atoms:
    """Build MX3, planar (BF3, SO3)."""
    return _around(m, [x] * 3, TRIANGLE, 0.93)


def pyramidal_molecule(m: str, x: str) -> Atoms:
    """Build MX3, pyramidal (PCl3)."""
    return _around(m, [x] * 3, PYRAMID)


def tetrahedral_molecule(m: str, x: str) -> Atoms:
    """Build MX4 (SiCl4, OsO4)."""
    return _around(m, [x] * 4, TETRAHEDRON)


def oxytrihalide(m: str, o: str, x: str) -> Atoms:
    """Build MOX3, tetrahedral (POCl3, VOCl3)."""
    return _around(m, [o, *[x] * 3], TETRAHEDRON)


def dioxydihalide(m: str, o: str, x: str) -> Atoms:
    """Build MO2X2, tetrahedral (SO2Cl2, CrO2Cl2)."""
    return _around(m, [o, o, x, x], TETRAHEDRON)


def carbonyl_halide(m: str, o: str, x: str) -> Atoms:
    """Build MOX2, planar (COCl2)."""
    return _around(m, [o, x, x], TRIANGLE, 0.93)


def oxytetrahalide(m: str, o: str, x: str) -> Atoms:
    """Build MOX4, a square pyramid (WOCl4)."""
    directions = OCTAHEDRON[[4, 0, 1, 2, 3]] - [[0, 0, 0], *[[0, 0, 0.2]] * 4]
    return _around(m, [o, *[x] * 4], directions)


def bipyramidal_molecule(m: str, x: str) -> Atoms:
    """Build MX5, a trigonal bipyramid (PF5)."""
    return _around(m, [x] * 5, np.vstack([TRIANGLE, OCTAHEDRON[4:]]))


def pentahalide_dimer(m: str, x: str) -> Atoms:
    """Build M2X10, two octahedra with a common edge (NbCl5)."""
    d = 0.97 * bond(m, x)
    h, c = d / 2**0.5, 0.85 * d
    ends = [[s * (c + h), t * h, 0] for s in (1, -1) for t in (1, -1)]
    axial = [[s * c, 0, t * d] for s in (1, -1) for t in (1, -1)]
    return _molecule([m] * 2 + [x] * 10, [[c, 0, 0], [-c, 0, 0], [0, h, 0], [0, -h, 0], *ends, *axial])


def octahedral_molecule(m: str, x: str) -> Atoms:
    """Build MX6 (WF6)."""
    return _around(m, [x] * 6, OCTAHEDRON)


def cage(m: str, x: str, terminal: int = 0) -> Atoms:
    """Build M4X6, a tetrahedron of M with bridges (As4O6); with terminal=1 M4X10 (P4O10)."""
    d = 0.97 * bond(m, x)
    corners = TETRAHEDRON * d * 1.05
    bridges = OCTAHEDRON * d * 1.2
    return _molecule(
        [m] * 4 + [x] * (6 + 4 * terminal), np.vstack([corners, bridges, *[corners + TETRAHEDRON * 0.9 * d] * terminal])
    )


def cage_with_terminals(m: str, x: str) -> Atoms:
    """Build M4X10 (P4O10)."""
    return cage(m, x, 1)


def corner_sharing_layer(m: str, b: str, x: str | None = None) -> Atoms:
    """Build MB2X2, octahedra that share their four corners B (SnF4; WO2Cl2 with B = O)."""
    d = 0.95 * bond(m, b)
    rise = 0.97 * bond(m, x or b)
    return _layer([m, b, b, x or b, x or b], [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, rise], [0, 0, -rise]], 2 * d, 2 * d)


def octahedra_chain(m: str, x: str) -> Atoms:
    """Build MX4, octahedra with common edges (ZrCl4, NbI4)."""
    d = 0.97 * bond(m, x)
    h = d / 2**0.5
    return _chain([m, x, x, x, x], [[0, 0, 0], [h, h, 0], [h, -h, 0], [0, 0, d], [0, 0, -d]], 2 * h * 1.05)


def face_sharing_chain(m: str, x: str) -> Atoms:
    """Build MX3, octahedra with common faces (ZrI3, TiI3)."""
    d = 0.97 * bond(m, x)
    rise, radius = d / 3**0.5, d * (2 / 3) ** 0.5
    ring = TRIANGLE[:, [2, 0, 1]] * radius
    first, second = ring + [rise, 0, 0], -ring + [3 * rise, 0, 0]
    return _chain([m, m, *[x] * 6], np.vstack([[[0, 0, 0], [2 * rise, 0, 0]], first, second]), 4 * rise)


def square_chain(m: str, x: str) -> Atoms:
    """Build MX2, squares with common edges (PdCl2)."""
    h = 0.97 * bond(m, x) / 2**0.5
    return _chain([m, x, x], [[0, 0, 0], [h, h, 0], [h, -h, 0]], 2 * h)


def tetrahedra_chain(m: str, x: str) -> Atoms:
    """Build MX2, tetrahedra with common edges (SiS2)."""
    d = 0.95 * bond(m, x)
    rise, half = d / 3**0.5, d * (2 / 3) ** 0.5
    positions = [[0, 0, 0], [2 * rise, 0, 0], [rise, half, 0], [rise, -half, 0], [3 * rise, 0, half], [3 * rise, 0, -half]]
    return _chain([m, m, x, x, x, x], positions, 4 * rise)


def vanadyl_dichloride(m: str, o: str, x: str) -> Atoms:
    """Build MOX2, chains M-O-M joined by edges of X (VOCl2, NbOI2)."""
    h = 0.97 * bond(m, x) / 2**0.5
    return _layer([m, o, x, x], [[0.05, 0, 0], [0.5, 0, 0], [0, 0.5, h], [0, 0.5, -h]], 1.95 * bond(m, o), 2 * h)


def boron_oxide(b: str, o: str) -> Atoms:
    """Build M2X3, a honeycomb of M with X on its edges (a layer of B2O3)."""
    a = 2 * 3**0.5 * 0.93 * bond(b, o)
    cell = np.array([[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, 20.0]])
    sites = [(1 / 3, 2 / 3, 0.5), (2 / 3, 1 / 3, 0.5), (0.5, 0, 0.5), (0, 0.5, 0.5), (0.5, 0.5, 0.5)]
    return Atoms([b, b, o, o, o], scaled_positions=sites, cell=cell, pbc=(True, True, False))


def zirconium_nitride_chloride(m: str, n: str, x: str) -> Atoms:
    """Build MNX, two buckled layers MN between X (beta-ZrNCl)."""
    inner, outer = 0.97 * bond(m, n), bond(m, x)
    a = 1.62 * inner
    half = inner / 2
    top = half + np.sqrt(max(outer**2 - a**2 / 3, 0.5))
    cell = np.array([[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, 20 + 2 * top]])
    xy = {"A": (0, 0), "B": (1 / 3, 2 / 3), "C": (2 / 3, 1 / 3)}
    layers = [(m, "A", half), (n, "B", half - 0.2), (m, "B", -half), (n, "A", 0.2 - half), (x, "C", top), (x, "C", -top)]
    atoms = Atoms([el for el, _, _ in layers], cell=cell, pbc=(True, True, False))
    atoms.set_scaled_positions([(*xy[place], 0.5 + height / cell[2, 2]) for _, place, height in layers])
    return atoms


def halogen_crystal(x: str) -> Atoms:
    """Build X2 molecules in the structure of solid iodine (Cmce)."""
    cell = {"Cl": (6.15, 4.40, 8.16), "Br": (6.57, 4.67, 8.02), "I": (7.18, 4.71, 9.81)}[x]
    y, z = {"Cl": (0.102, 0.115), "Br": (0.110, 0.119), "I": (0.154, 0.117)}[x]
    return _crystal([x], [(0, y, z)], 64, [*cell, 90, 90, 90])


def fluorite(m: str, x: str) -> Atoms:
    """Build MX2 (CaF2); with the two elements exchanged it is antifluorite, M2X."""
    return _crystal([m, x], [(0, 0, 0), (0.25, 0.25, 0.25)], 225, _cubic(4 * 0.97 * bond(m, x) / 3**0.5))


def cristobalite(m: str, x: str) -> Atoms:
    """Build MX2, tetrahedra with common corners (BeF2)."""
    a = 8 * 0.95 * bond(m, x) / 3**0.5
    return _crystal([m, x], [(0, 0, 0), (0.125, 0.125, 0.125)], 227, _cubic(a))


def magnesium_bismuthide(m: str, x: str) -> Atoms:
    """Build M3X2, the inverse of A-La2O3 (Mg3Bi2, a stand-in for Mg3N2)."""
    a = 1.6 * bond(m, x)
    sites = [(0, 0, 0), (1 / 3, 2 / 3, 0.63), (1 / 3, 2 / 3, 0.23)]
    return _crystal([m, m, x], sites, 164, [a, a, 1.58 * a, 90, 90, 120])


def antifluorite(m: str, x: str) -> Atoms:
    """Build M2X (Tl2S, Cu2Se)."""
    return fluorite(x, m)


def lithium_bismuthide(m: str, x: str) -> Atoms:
    """Build M3X (Li3Bi)."""
    sites = [(0.25, 0.25, 0.25), (0.5, 0.5, 0.5), (0, 0, 0)]
    return _crystal([m, m, x], sites, 225, _cubic(4 * 0.97 * bond(m, x) / 3**0.5))


def rocksalt(m: str, x: str) -> Atoms:
    """Build MX."""
    return _crystal([m, x], [(0, 0, 0), (0.5, 0.5, 0.5)], 225, _cubic(1.95 * bond(m, x)))


def caesium_chloride(m: str, x: str) -> Atoms:
    """Build MX (TlCl)."""
    return _crystal([m, x], [(0, 0, 0), (0.5, 0.5, 0.5)], 221, _cubic(2 * 0.97 * bond(m, x) / 3**0.5))


def paratellurite(m: str, x: str) -> Atoms:
    """Build MX2 with lone pairs (TeO2)."""
    s = bond(m, x) / 2.04
    return _crystal([m, x], [(0.0268, 0.0268, 0), (0.1386, 0.2576, 0.1862)], 92, [4.81 * s, 4.81 * s, 7.61 * s, 90, 90, 90])


def cuprite(m: str, x: str) -> Atoms:
    """Build M2X (Cu2O)."""
    return _crystal([x, m], [(0, 0, 0), (0.25, 0.25, 0.25)], 224, _cubic(4 * 0.95 * bond(m, x) / 3**0.5))


def cooperite(m: str, x: str) -> Atoms:
    """Build MX with square-planar M (PtS, PdO)."""
    d = 0.97 * bond(m, x)
    return _crystal([m, x], [(0, 0.5, 0), (0, 0, 0.25)], 131, [1.49 * d, 1.49 * d, 2.62 * d, 90, 90, 90])


def tungsten_carbide(m: str, x: str) -> Atoms:
    """Build MX (WC)."""
    a = 1.32 * bond(m, x)
    return _crystal([m, x], [(0, 0, 0), (1 / 3, 2 / 3, 0.5)], 187, [a, a, 0.98 * a, 90, 90, 120])


def ditantalum_carbide(m: str, x: str) -> Atoms:
    """Build M2X (Ta2C, W2C)."""
    a = 1.38 * bond(m, x)
    return _crystal([x, m], [(0, 0, 0), (1 / 3, 2 / 3, 0.25)], 164, [a, a, 1.59 * a, 90, 90, 120])


def aluminium_diboride(m: str, x: str) -> Atoms:
    """Build MX2 (TiB2)."""
    a = 3.05
    return _crystal([m, x], [(0, 0, 0), (1 / 3, 2 / 3, 0.5)], 191, [a, a, 1.45 * bond(m, x), 90, 90, 120])


def chromium_boride(m: str, x: str) -> Atoms:
    """Build MX (CrB)."""
    s = bond(m, x) / 2.23
    return _crystal([m, x], [(0, 0.146, 0.25), (0, 0.44, 0.25)], 63, [2.97 * s, 7.87 * s, 2.94 * s, 90, 90, 90])


def perovskite(a_: str, b_: str, x: str) -> Atoms:
    """Build ABX3, cubic."""
    return _crystal([a_, b_, x], [(0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0)], 221, _cubic(1.85 * bond(b_, x)))


def calcite(a_: str, b_: str, o: str) -> Atoms:
    """Build ABX3 with planar BX3 (CaCO3, FeBO3)."""
    s = bond(a_, o) / 2.3
    return _crystal([a_, b_, o], [(0, 0, 0), (0, 0, 0.25), (0.257, 0, 0.25)], 167, [4.9, 4.9, 16.0 * s, 90, 90, 120])


def delafossite(a_: str, b_: str, x: str) -> Atoms:
    """Build ABX2 with linear A (CuAlO2)."""
    a = 1.45 * bond(b_, x)
    return _crystal([a_, b_, x], [(0, 0, 0), (0, 0, 0.5), (0, 0, 0.108)], 166, [a, a, 17.2, 90, 90, 120])


def chalcopyrite(a_: str, b_: str, x: str) -> Atoms:
    """Build ABX2 (CuInS2)."""
    a = 2.3 * 0.48 * (bond(a_, x) + bond(b_, x))
    return _crystal([a_, b_, x], [(0, 0, 0), (0, 0, 0.5), (0.23, 0.25, 0.125)], 122, [a, a, 2 * a, 90, 90, 90])


def ordered_rhenium_trioxide(a_: str, b_: str, x: str) -> Atoms:
    """Build ABX6 (CaZrF6)."""
    d, e = 0.95 * bond(a_, x), 0.95 * bond(b_, x)
    return _crystal([a_, b_, x], [(0, 0, 0), (0.5, 0.5, 0.5), (d / (2 * (d + e)), 0, 0)], 225, _cubic(2 * (d + e)))


_FAMILIES = (
    # Elements and molecules
    Prototype("halogen crystal", (HEAVY_HALOGENS,), halogen_crystal, ionic=False),
    Prototype("linear molecule", (("C",), ("O", "S", "Se")), linear_molecule, ionic=False),
    Prototype("linear molecule", (("Hg", "Zn", "Be"), HALOGENS), linear_molecule, ionic=False),
    Prototype("bent molecule", (("S", "Se"), ("O",)), bent_molecule, ionic=False),
    Prototype("bent molecule", (CHALCOGENS, ("H",)), bent_molecule, ionic=False),
    Prototype("planar molecule", (("S", "Se"), ("O",)), planar_molecule, ionic=False),
    Prototype("planar molecule", (("B",), HALOGENS), planar_molecule, ionic=False),
    Prototype("pyramidal molecule", (("N", "P", "As", "Sb", "Bi"), HALOGENS), pyramidal_molecule, ionic=False),
    Prototype("pyramidal molecule", (("N", "P", "As"), ("H",)), pyramidal_molecule, ionic=False),
    Prototype(
        "tetrahedral molecule", (("C", "Si", "Ge", "Sn", "Ti", "Zr", "Hf", "V"), HALOGENS), tetrahedral_molecule, ionic=False
    ),
    Prototype("tetrahedral molecule", (("C", "Si"), ("H",)), tetrahedral_molecule, ionic=False),
    Prototype("tetrahedral molecule", (("Ru", "Os"), ("O",)), tetrahedral_molecule, ionic=False),
    Prototype("bipyramidal molecule", (("P", "As", "Sb", "V"), ("F", "Cl")), bipyramidal_molecule, ionic=False),
    Prototype("pentahalide dimer", (("Nb", "Ta", "Mo", "W", "Re"), HALOGENS), pentahalide_dimer, ionic=False),
    Prototype("octahedral molecule", (HEXAFLUORIDES, ("F",)), octahedral_molecule, ionic=False),
    Prototype("octahedral molecule", (("W", "Re"), ("Cl", "Br")), octahedral_molecule, ionic=False),
    Prototype("cage M4X10", (("P", "As"), ("O", "S")), cage_with_terminals, ionic=False),
    Prototype("cage M4X6", (("P", "As", "Sb"), ("O", "S")), cage, ionic=False),
    Prototype("diatomic molecule", (("H",), HALOGENS), diatomic, ionic=False),
    Prototype("diatomic molecule", (HALOGENS, HALOGENS), diatomic, ionic=False, distinct=(0, 1)),
    Prototype("molecule MOX3", (("P", "V"), ("O", "S"), ("F", "Cl", "Br")), oxytrihalide, ionic=False),
    Prototype("molecule MO2X2", (("S", "Cr"), ("O",), ("F", "Cl")), dioxydihalide, ionic=False),
    Prototype("molecule MOX2", (("C",), ("O", "S"), ("F", "Cl", "Br")), carbonyl_halide, ionic=False),
    Prototype("molecule MOX4", (("Mo", "W", "Re"), ("O",), ("F", "Cl", "Br")), oxytetrahalide, ionic=False),
    # Halides, oxides and sulfides
    Prototype("B2O3 layer", (("B",), CHALCOGENS), boron_oxide, ionic=False),
    Prototype("paratellurite", (("Te", "Se"), ("O",)), paratellurite, ionic=False),
    Prototype("SiS2 chain", (("Si", "Ge"), HEAVY_CHALCOGENS), tetrahedra_chain, ionic=False),
    Prototype("rocksalt", (("Ag", "In", "Tl"), HALOGENS), rocksalt, ionic=False),
    Prototype("CsCl", (("Tl",), HEAVY_HALOGENS), caesium_chloride, ionic=False),
    Prototype("SnF4 layer", (TETRAFLUORIDES, ("F",)), corner_sharing_layer, ionic=False),
    Prototype("cristobalite", (("Be",), ("F",)), cristobalite, ionic=False),
    Prototype("MX4 chain", (CHAIN_METALS, HALOGENS), octahedra_chain, ionic=False),
    Prototype("MX3 chain", (("Ti", "Zr", "Hf", "Mo"), HEAVY_HALOGENS), face_sharing_chain, ionic=False),
    Prototype("antifluorite", (("Tl", "Cu", "Ag"), HEAVY_CHALCOGENS), antifluorite, ionic=False),
    Prototype("PtS", (("Pd", "Pt"), ("O", "S")), cooperite, ionic=False),
    Prototype("cuprite", (("Cu", "Ag", "Tl"), ("O",)), cuprite, ionic=False),
    Prototype("PdCl2 chain", (("Pd", "Pt", "Cu"), HEAVY_HALOGENS), square_chain, ionic=False),
    Prototype("rocksalt", (ALKALI, HALOGENS), rocksalt, ionic=False),
    Prototype("antifluorite", (ALKALI, CHALCOGENS), antifluorite, ionic=False),
    Prototype("Li3Bi", (ALKALI, ("N", "P", "As", "Sb", "Bi")), lithium_bismuthide, ionic=False),
    # Carbides, nitrides, borides, hydrides
    Prototype("Ta2C", (("Ti", "V", "Nb", "Ta", "Mo", "W", "Cr"), ("C", "N")), ditantalum_carbide, ionic=False),
    Prototype("WC", (("Nb", "Ta", "Mo", "W"), ("C", "N")), tungsten_carbide, ionic=False),
    Prototype("AlB2", (("Sc", "Y", *GROUP4_TO_6), ("B",)), aluminium_diboride, ionic=False),
    Prototype("Mg3Bi2", (("Mg", "Ca", "Sr", "Ba", "Zn"), ("N",)), magnesium_bismuthide),
    Prototype("fluorite", ((*RARE, "Ti", "Zr", "Hf", "V", "Nb"), ("H",)), fluorite, ionic=False),
    Prototype("CrB", (("Ca", "Sr", "Ba"), ("Cu", "Ag", "Au")), chromium_boride, ionic=False),
    # Oxyhalides and oxyanions
    Prototype("WO2Cl2", (("Mo", "W"), ("O",), HALOGENS), corner_sharing_layer, ionic=False),
    Prototype("VOCl2", (("V", "Nb", "Mo"), ("O",), HEAVY_HALOGENS), vanadyl_dichloride, ionic=False),
    Prototype("ZrNCl", (("Zr", "Hf"), ("N",), HEAVY_HALOGENS), zirconium_nitride_chloride),
    Prototype("ABF6", (("Mg", "Ca", "Mn", "Ni", "Zn", "Pd"), ("Zr", "Hf"), ("F",)), ordered_rhenium_trioxide),
    Prototype("perovskite", (("Ca", "Sr", "Ba", "Pb"), ("Ti", "Zr", "Hf"), ("O",)), perovskite),
    Prototype("delafossite", (("Cu", "Ag"), ("Al", "Ga", "In", "Cr", "Fe"), ("O",)), delafossite, ionic=False),
    Prototype("chalcopyrite", (("Cu", "Ag"), ("Al", "Ga", "In"), HEAVY_CHALCOGENS), chalcopyrite, ionic=False),
    Prototype("calcite", (("Mg", "Ca", "Mn", "Zn", "Cd"), ("C",), ("O",)), calcite),
)
_BUILDERS = {family.name: family.build for family in _FAMILIES}


def compounds(elements: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (family, decoration) of every compound whose elements are all among ``elements``, most important first, each once."""
    seen = set()
    for family in _FAMILIES:
        for decoration in family.decorations():
            known = (family.name, decoration) in seen
            if known or not set(decoration) <= elements or len(set(decoration)) < len(decoration):
                continue
            seen.add((family.name, decoration))
            if not family.ionic or charge_neutral(family.build(*decoration).get_chemical_formula("hill"), strict=True):
                yield family.name, decoration


def build(family: str, decoration: Sequence[str]) -> Atoms:
    """Build one compound of ``compounds``, as a starting structure.

    A crystal is periodic in all directions, a layer in two, a molecule in none; a chain lies in a wide cell periodic in two.
    """
    return _BUILDERS[family](*decoration)
