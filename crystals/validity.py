"""What a CIF holds before any model sees it: reading it, its dimensionality, its symmetry and whether it is a valid monolayer.

Å throughout; cells as row vectors. A sheet comes back standardised (in the xy plane, pbc (T, T, F), 20 Å of vacuum); a bulk crystal
stays as it is and is named "bulk: not 2D". It is never forced into a sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

from ase import Atoms
from ase.geometry import minkowski_reduce

import geo_utils
from crystals.charge_balance import charge_neutral_possible

VACUUM_ANGSTROM = 20.0

SHEET = "2D"
SHEET_IN_PIECES = "2D: several pieces"
BULK = "bulk: not 2D"
LAYERED_BULK = "layered bulk: not 2D"
CHAIN = "chain"
MOLECULE = "molecule"
BULK_KINDS = (BULK, LAYERED_BULK)
SHEET_KINDS = (SHEET, SHEET_IN_PIECES)


@dataclass(frozen=True)
class Validity:
    """Checks of one structure as it was given, before relaxation.

    ``min_distance_ratio``: shortest distance over the sum of covalent radii. ``vacuum_angstrom``: largest empty gap along a cell
    axis. ``charge_neutral``: some combination of known oxidation states is neutral (SMACT), or all elements are metals.
    """

    dimensionality: str
    min_distance_ratio: float
    no_clash: bool
    single_sheet: bool
    vacuum_angstrom: float
    vacuum_ok: bool
    charge_neutral: bool

    @property
    def valid(self) -> bool:
        """A valid monolayer: every check of SCIENCE's stage 5 holds."""
        return self.no_clash and self.single_sheet and self.vacuum_ok and self.charge_neutral


def standardise(atoms: Atoms, min_vacuum: float) -> tuple[Atoms, str, float]:
    """The structure as the judges see it, its dimensionality and its largest vacuum gap (Å).

    A structure with a gap of at least ``min_vacuum`` that extends in two directions becomes a standard sheet; a crystal that
    extends in three, or in two without that gap (a layered bulk crystal), stays fully periodic. Chains and molecules stay too.
    """
    atoms = atoms.copy()
    atoms.pbc = True
    gap, _ = geo_utils.vacuum_gap(atoms)
    if gap < min_vacuum:
        # A cell vector may cross both the sheet and the vacuum, so that no face of the cell is parallel to the sheet.
        reduced = atoms.copy()
        reduced.set_cell(minkowski_reduce(atoms.cell)[0])
        reduced.wrap()
        if (wider := geo_utils.vacuum_gap(reduced)[0]) >= min_vacuum:
            atoms, gap = reduced, wider
    connectivity = geo_utils.sheet_connectivity(atoms)
    if gap >= min_vacuum:
        try:
            sheet = geo_utils.Sheet.from_atoms(atoms, min_vacuum=min_vacuum).to_atoms(vacuum=VACUUM_ANGSTROM)
        except geo_utils.NotTwoDimensional:
            return atoms, {0: MOLECULE, 1: CHAIN}.get(connectivity.dimensionality, BULK), gap
        connectivity = geo_utils.sheet_connectivity(sheet)
        if connectivity.is_single_sheet:
            return sheet, SHEET, gap
        kind = {0: MOLECULE, 1: CHAIN}.get(connectivity.dimensionality, SHEET_IN_PIECES)
        return (sheet if kind == SHEET_IN_PIECES else atoms), kind, gap
    kind = {0: MOLECULE, 1: CHAIN, 2: LAYERED_BULK}.get(connectivity.dimensionality, BULK)
    return atoms, kind, gap


def sheet_fault(atoms: Atoms, clash_factor: float = 0.7, single: bool = True) -> str:
    """Say why atoms are no sheet: "clash", "disconnected", or empty where they are one.

    Args:
        atoms: the structure, with pbc (True, True, False) or enough vacuum.
        clash_factor: least distance of two atoms, as a share of the sum of their covalent radii.
        single: whether the bonds must join all atoms to one sheet; otherwise sheets in several pieces pass.
    """
    if geo_utils.has_clash(atoms, clash_factor):
        return "clash"
    connectivity = geo_utils.sheet_connectivity(atoms)
    is_sheet = connectivity.is_single_sheet if single else connectivity.dimensionality == 2
    return "" if is_sheet else "disconnected"


def check(atoms: Atoms, dimensionality: str, gap: float, min_vacuum: float, clash_factor: float) -> Validity:
    """Validity of a structure that ``standardise`` returned."""
    ratio = float(geo_utils.min_distance_ratio(atoms))
    return Validity(
        dimensionality=dimensionality,
        min_distance_ratio=ratio,
        no_clash=bool(ratio >= clash_factor),
        single_sheet=dimensionality == SHEET,
        vacuum_angstrom=float(gap),
        vacuum_ok=bool(gap >= min_vacuum),
        charge_neutral=charge_neutral_possible(atoms.get_chemical_formula()),
    )
