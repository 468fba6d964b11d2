"""Sheets of known symmetry."""

from __future__ import annotations

import numpy as np

from crystals.prototypes import PROTOTYPES
from geo_utils import Sheet


def sheet_of(family: str, *elements: str) -> Sheet:
    """Return a decoration of a prototype."""
    return Sheet.from_atoms(PROTOTYPES[family].build(*elements))


def pbe_mos2() -> Sheet:
    """Return MoS2 of exact symmetry with the size that PBE gives it: a = 3.18 Å, thickness 3.12 Å."""
    lattice = np.array([[3.18, 0.0], [-1.59, 3.18 * np.sqrt(3) / 2]])
    frac = np.array([[0.0, 0.0], [1 / 3, 2 / 3], [1 / 3, 2 / 3]])
    return Sheet(np.array([42, 16, 16]), frac, np.array([0.0, 1.56, -1.56]), lattice)


def same_sheet(first: Sheet, second: Sheet) -> bool:
    """Tell whether two sheets are equal to the last bit."""
    return all(np.array_equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


MOS2, TISE2, WTE2 = sheet_of("2H-MX2", "Mo", "S"), sheet_of("1T-MX2", "Ti", "Se"), sheet_of("1Tprime-MX2", "W", "Te")
PDSE2, FEOCL, GES = sheet_of("penta-MX2", "Pd", "Se"), sheet_of("FeOCl", "Fe", "O", "Cl"), sheet_of("GeS", "Ge", "S")
SYMMETRIC = [MOS2, TISE2, WTE2, PDSE2, FEOCL, GES]
