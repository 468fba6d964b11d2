"""Describes a crystal by numbers that do not depend on how it is written: composition and bonding, for models on tables."""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

import geo_utils

ELEMENT_PROPERTIES = (
    "electronegativity",
    "covalent radius",
    "group",
    "period",
    "ionisation energy",
    "electron affinity",
    "Mendeleev number",
    "melting point",
    "molar volume",
    "s electrons",
    "d electrons",
    "p electrons",
    "f block",
    "atomic number",
)
MAX_ATOMIC_NUMBER = 94
NEIGHBOUR_CUTOFF = 6.0  # Å
BOND_RATIO = 1.25  # a bond: distance over the sum of the covalent radii at most
SOFTNESS = 0.15  # width of the soft coordination number, in the same ratio
SHELLS = (0.0, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)  # edges of the histogram of these ratios
MIN_SHEET_GAP = 8.0  # Å, least empty gap of a sheet, as in CSLLM's strings
FACE_DEPTH = 0.3  # Å, atoms this near to the outermost one form the face
METAL_ELECTRONEGATIVITY, ANION_ELECTRONEGATIVITY = 2.1, 2.5

_STATISTICS = (("mean", np.mean), ("spread", np.std), ("least", np.min), ("largest", np.max))
COMPOSITION_NAMES = (
    *(f"{name} {statistic}" for statistic, _ in _STATISTICS for name in ELEMENT_PROPERTIES),
    *(f"fraction of element {number}" for number in range(1, MAX_ATOMIC_NUMBER + 1)),
    "elements",
    "atoms of the formula",
    *(f"count {rank}" for rank in range(1, 7)),
    "largest share",
)
SHEET_NAMES = (
    *("atoms per area", "thickness", "packing"),
    *(f"nearest neighbour {statistic}" for statistic in ("least", "mean", "largest", "spread")),
    *(f"coordination {statistic}" for statistic in ("mean", "spread", "least", "largest")),
    *(f"soft coordination {statistic}" for statistic in ("mean", "spread", "least", "largest")),
    *(
        "like neighbours mean",
        "like neighbours largest",
        "electronegativity difference mean",
        "electronegativity difference spread",
    ),
    *("anion-anion bonds", "metal-metal bonds"),
    *("face electronegativity lower", "face electronegativity higher"),
    *(
        f"{kind} element: {name}"
        for kind in ("least electronegative", "most electronegative")
        for name in ("coordination", "soft coordination", "coordination spread", "height spread")
    ),
    *(f"neighbours in shell {rank}" for rank in range(1, len(SHELLS))),
)


@functools.cache
def element_row(number: int) -> np.ndarray:
    """Return ELEMENT_PROPERTIES of an element, (14,) float64; what is not known is 0.

    Raises:
        ValueError: the atomic number is not in 1..94.
    """
    from pymatgen.core import Element

    if not 1 <= number <= MAX_ATOMIC_NUMBER:
        raise ValueError(f"no descriptors of element {number}: 1 to {MAX_ATOMIC_NUMBER} are known")
    element = Element.from_Z(number)
    group, f_block = element.group, bool(element.is_lanthanoid or element.is_actinoid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns for every value that it does not have
        known = (
            element.ionization_energy,
            element.electron_affinity,
            element.mendeleev_no,
            element.melting_point,
            element.molar_volume,
        )
        measured = [0.0 if value is None or value != value else float(value) for value in known]
        electronegativity = 0.0 if element.X != element.X else float(element.X)
    shells = [min(group, 2), 0 if f_block else min(max(group - 2, 0), 10), max(group - 12, 0), float(f_block)]
    return np.array([electronegativity, covalent_radii[number], group, element.row, *measured, *shells, number], dtype=float)


def composition_descriptors(numbers: np.ndarray) -> np.ndarray:
    """Describe a composition.

    Args:
        numbers: (N,) atomic numbers of any multiple of the formula, in any order.

    Returns:
        COMPOSITION_NAMES, float64: statistics of element properties, atomic fractions, and the counts of the reduced formula from
        the smallest to the largest.

    Raises:
        ValueError: an element outside 1..94.
    """
    counts = Counter(int(number) for number in sorted(numbers))
    divisor = math.gcd(*counts.values())
    formula = [number for number, count in counts.items() for _ in range(count // divisor)]  # equal bits for equal formulas
    table = np.array([element_row(number) for number in formula])
    fractions = np.bincount(formula, minlength=MAX_ATOMIC_NUMBER + 1)[1:] / len(formula)
    amounts = sorted(count // divisor for count in counts.values())
    padded = (amounts + [0] * 6)[:6]
    statistics = [statistic(table, axis=0) for _, statistic in _STATISTICS]
    return np.concatenate([*statistics, fractions, [len(counts), len(formula)], padded, [max(amounts) / len(formula)]])


def sheet_descriptors(atoms: Atoms) -> np.ndarray:
    """Describe how the atoms of a sheet are bonded.

    Distances enter as ratios to the sum of the covalent radii (Cordero et al. 2008), counts as counts per atom, so that repeating,
    shifting, turning over or rewriting the sheet changes nothing but rounding.

    Args:
        atoms: a sheet with at least MIN_SHEET_GAP of vacuum, in any setting.

    Returns:
        SHEET_NAMES, float64.

    Raises:
        geo_utils.NotTwoDimensional: the crystal has no such gap.
    """
    sheet = geo_utils.standard_sheet(atoms, min_vacuum=MIN_SHEET_GAP)
    sheet.pbc = (True, True, False)
    numbers, heights, count = sheet.numbers, sheet.positions[:, 2], len(sheet)
    radii = covalent_radii[numbers]
    electronegativity = np.array([element_row(int(number))[0] for number in numbers])
    first, second, distance = neighbours(sheet)
    # Rounded, so that a ratio on the edge of a class falls on the same side in every setting.
    ratio = np.round(distance / (radii[first] + radii[second]), 5)
    bonded = ratio < BOND_RATIO
    nearest = np.full(count, 2.0 * SHELLS[-1])
    np.minimum.at(nearest, first, ratio)
    coordination = np.bincount(first[bonded], minlength=count).astype(float)
    soft = np.bincount(first, np.exp(-(np.clip((ratio - 1) / SOFTNESS, 0, None) ** 2)), minlength=count)
    like = np.bincount(first[bonded & (numbers[first] == numbers[second])], minlength=count)
    contrast = np.abs(electronegativity[first] - electronegativity[second])
    difference = np.bincount(first[bonded], contrast[bonded], minlength=count) / np.maximum(coordination, 1)
    area = float(np.linalg.norm(np.cross(sheet.cell[0], sheet.cell[1])))
    thickness = float(np.ptp(heights))
    packing = float((4 / 3 * np.pi * radii**3).sum() / (area * (thickness + 3.0)))
    faces = (heights > heights.max() - FACE_DEPTH, heights < heights.min() + FACE_DEPTH)
    found = [count / area, thickness, packing, nearest.min(), nearest.mean(), nearest.max(), nearest.std()]
    for values in (coordination, soft):
        found += [values.mean(), values.std(), values.min(), values.max()]
    found += [like.mean(), like.max(), difference.mean(), difference.std()]
    lower, higher = np.minimum(*electronegativity[[first, second]]), np.maximum(*electronegativity[[first, second]])
    found += [
        (bonded & (lower > ANION_ELECTRONEGATIVITY)).sum() / count,
        (bonded & (higher < METAL_ELECTRONEGATIVITY)).sum() / count,
    ]
    found += sorted(float(electronegativity[face].mean()) for face in faces)
    for number in (numbers[np.argmin(electronegativity)], numbers[np.argmax(electronegativity)]):
        chosen = numbers == number
        found += [coordination[chosen].mean(), soft[chosen].mean(), coordination[chosen].std(), heights[chosen].std()]
    found += list(np.histogram(ratio, SHELLS)[0] / count)
    return np.round(np.array(found, dtype=float), 4)


def neighbours(sheet: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (first atom, second atom, distance in Å), each (E,), of all pairs within NEIGHBOUR_CUTOFF, in both directions."""
    first, second, _, distance = geo_utils.neighbours_within(sheet, NEIGHBOUR_CUTOFF)
    return first, second, distance


def crystal_descriptors(atoms: Atoms) -> np.ndarray:
    """Return the descriptors of composition and sheet, one after the other (see there for the errors)."""
    return np.concatenate([composition_descriptors(atoms.numbers), sheet_descriptors(atoms)])
