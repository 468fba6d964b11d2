"""Decides what a structure is before any model sees it: its dimensionality, and whether it is a valid monolayer.

Lengths are in Å, cells are row vectors. A sheet is standardised (in the xy plane, pbc (T, T, F), 20 Å of vacuum). A bulk crystal is
left as it is and named "bulk: not 2D"; it is never forced into a sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

from ase import Atoms
from ase.geometry import minkowski_reduce

import geo_utils
from crystals.charge_balance import charge_neutral_possible

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

    Attributes:
        dimensionality: one of the kinds of this module, such as ``SHEET``.
        min_distance_ratio: smallest ratio of a distance to the sum of the two covalent radii.
        no_clash: whether that ratio reaches the limit.
        single_sheet: whether the bonds join all atoms to one sheet.
        vacuum_angstrom: widest empty gap along a cell axis, Å.
        vacuum_ok: whether that gap reaches the limit.
        charge_neutral: whether known oxidation states can balance, or need not, as in elements and alloys.
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
        """Tell whether the structure is a valid monolayer: all checks hold."""
        return self.no_clash and self.single_sheet and self.vacuum_ok and self.charge_neutral


def standardise(atoms: Atoms, min_vacuum: float) -> tuple[Atoms, str, float]:
    """Bring a structure into the form that the judges see.

    Bonds that extend in two directions and a gap of at least ``min_vacuum`` make a sheet, which is standardised. A crystal that
    extends in three directions, or in two without that gap (a layered bulk crystal), stays as it is. So do chains and molecules.

    Args:
        atoms: a structure, taken as fully periodic.
        min_vacuum: least gap of a sheet, Å.

    Returns:
        (atoms, dimensionality, gap): the sheet or the fully periodic structure; its kind, such as ``SHEET``; its widest gap, Å.
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
            sheet = geo_utils.Sheet.from_atoms(atoms, min_vacuum=min_vacuum).to_atoms()
        except geo_utils.NotTwoDimensional:
            return atoms, {0: MOLECULE, 1: CHAIN}.get(connectivity.dimensionality, BULK), gap
        connectivity = geo_utils.sheet_connectivity(sheet)
        if connectivity.is_single_sheet:
            return sheet, SHEET, gap
        kind = {0: MOLECULE, 1: CHAIN}.get(connectivity.dimensionality, SHEET_IN_PIECES)
        return (sheet if kind == SHEET_IN_PIECES else atoms), kind, gap
    kind = {0: MOLECULE, 1: CHAIN, 2: LAYERED_BULK}.get(connectivity.dimensionality, BULK)
    return atoms, kind, gap


def sheet_fault(atoms: Atoms, clash_factor: float = geo_utils.CLASH_FACTOR, single: bool = True) -> str:
    """Return why atoms are no sheet, "clash" or "disconnected"; "" where they are one. The one definition of a valid sheet.

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
    """Check a structure that ``standardise`` returned.

    The limits are those of ``sheet_fault``: it finds no fault where there is no clash and a single sheet.

    Args:
        atoms, dimensionality, gap: as ``standardise`` returned them.
        min_vacuum: least gap of a sheet, Å.
        clash_factor: as in ``sheet_fault``.

    Raises:
        ValueError: the structure holds an element of which no oxidation state is known.
    """
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
