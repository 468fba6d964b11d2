"""What a CIF holds before any model sees it: reading it, its dimensionality, its symmetry and whether it is a valid monolayer.

Å throughout; cells as row vectors. A sheet comes back standardised (in the xy plane, pbc (T, T, F), 20 Å of vacuum); a bulk crystal
stays as it is and is named "bulk: not 2D". It is never forced into a sheet.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from pymatgen.core import Composition

import geo_utils

log = logging.getLogger("her2d")

MAX_CIF_BYTES = 5_000_000
VACUUM_ANGSTROM = 20.0
SYMPREC_ANGSTROM = 0.1

SHEET = "2D"
SHEET_IN_PIECES = "2D: several pieces"
BULK = "bulk: not 2D"
LAYERED_BULK = "layered bulk: not 2D"
CHAIN = "chain"
MOLECULE = "molecule"
BULK_KINDS = (BULK, LAYERED_BULK)
SHEET_KINDS = (SHEET, SHEET_IN_PIECES)


class UnreadableCif(ValueError):
    """A file that holds no single, ordered, finite crystal; the message says why in a few words."""


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


def read_cif(path: str | Path, max_atoms: int = 500) -> Atoms:
    """The one crystal of a CIF, fully periodic, cell and positions in Å.

    Raises UnreadableCif for anything else: an empty or binary file, no cell or no atoms, numbers that are not finite, partial
    occupancy or disorder, unknown elements, several structures, atoms on top of each other, or more than ``max_atoms`` atoms.
    pymatgen reads it because ASE drops the second species of a mixed site without a word.
    """
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.io.cif import CifParser

    path = Path(path)
    if not path.is_file():
        raise UnreadableCif("not a regular file")
    size = path.stat().st_size
    if size > MAX_CIF_BYTES:
        raise UnreadableCif(f"larger than {MAX_CIF_BYTES // 1_000_000} MB")
    content = path.read_bytes()
    if not content.strip():
        raise UnreadableCif("empty file")
    if b"\0" in content:
        raise UnreadableCif("binary file, not text")
    text = content.decode("utf-8", errors="replace")
    lowered = text.lower()
    if "data_" not in lowered:
        raise UnreadableCif("no CIF data block")
    if "_cell_length_a" not in lowered:
        raise UnreadableCif("no unit cell")
    if "_atom_site_" not in lowered:
        raise UnreadableCif("no atoms")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            structures = CifParser.from_str(text, occupancy_tolerance=1.01).parse_structures(primitive=False, on_error="raise")
        except Exception as error:  # pymatgen and its number parsing raise many unrelated types for malformed files
            raise UnreadableCif(_reading_error(error)) from error
    if len(structures) != 1:
        raise UnreadableCif(f"{len(structures)} structures in one file" if structures else "no structure")
    structure = structures[0]
    lattice = np.asarray(structure.lattice.matrix, dtype=float)
    if not np.isfinite(lattice).all():
        raise UnreadableCif("cell is not finite")
    if not np.isfinite(structure.frac_coords).all():
        raise UnreadableCif("coordinates are not finite")
    if abs(np.linalg.det(lattice)) < 1.0 or min(structure.lattice.abc) < 1.0:
        raise UnreadableCif("cell without volume")
    if len(structure) > max_atoms:
        raise UnreadableCif(f"{len(structure)} atoms, more than {max_atoms}")
    if not structure.is_ordered:
        raise UnreadableCif("partial occupancy or mixed sites")
    for symbol in {site.specie.symbol for site in structure}:
        if not _is_element(symbol):
            raise UnreadableCif(f"unknown element {symbol[:12]}")
    structure.remove_oxidation_states()
    atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
    return Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)


def _is_element(symbol: str) -> bool:
    from pymatgen.core import Element

    return Element.is_valid_symbol(symbol)


def _reading_error(error: Exception) -> str:
    """A parser's message in a few words of plain text."""
    message = " ".join(str(error).replace("No structure parsed for section 1 in CIF.", "").split()) or type(error).__name__
    if "exceeded tolerance" in message:
        return "atoms on top of each other (occupancy above 1)"
    if "Singular matrix" in message:
        return "cell without volume"
    if "_atom_site" in message:
        return "no atoms with fractional coordinates"
    return f"not a readable CIF ({message[:100]})"


def standardise(atoms: Atoms, min_vacuum: float) -> tuple[Atoms, str, float]:
    """The structure as the judges see it, its dimensionality and its largest vacuum gap (Å).

    A structure with a gap of at least ``min_vacuum`` that extends in two directions becomes a standard sheet; a crystal that
    extends in three, or in two without that gap (a layered bulk crystal), stays fully periodic. Chains and molecules stay too.
    """
    atoms = atoms.copy()
    atoms.pbc = True
    gap, _ = geo_utils.vacuum_gap(atoms)
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


def charge_neutral_possible(formula: str) -> bool:
    """Whether known oxidation states can balance the formula (SMACT 4, ICSD24 states, Pauling test).

    ``include_alloys=True``: single elements and compounds of metals alone pass, since they need no charge balance. Carbides and
    other metallic compounds with non-integer mixed valence can fail although they exist; the check is necessary, not sufficient.
    """
    from smact.screening import smact_validity

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(smact_validity(Composition(formula), use_pauling_test=True, include_alloys=True))


def symmetry_symbols(atoms: Atoms, is_sheet: bool, symprec: float = SYMPREC_ANGSTROM) -> tuple[str, str]:
    """International symbols (space group, layer group) by spglib; an empty string where there is none to be found."""
    import spglib

    cell = (np.asarray(atoms.cell), atoms.get_scaled_positions(), atoms.numbers)
    space, layer = "", ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
            space = dataset.international if dataset is not None else ""
            if is_sheet:
                dataset = spglib.get_layergroup(cell, aperiodic_dir=2, symprec=symprec)
                layer = dataset.international if dataset is not None else ""
        except (spglib.SpglibError, RuntimeError, TypeError) as error:
            log.debug("no symmetry of %s: %s", atoms.get_chemical_formula(), error)
    return space, layer
