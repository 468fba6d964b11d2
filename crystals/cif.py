"""Reads CIF files of any origin and refuses unsafe or ambiguous ones; writes the CIF text of the candidates."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from pymatgen.core import Composition
from pymatgen.io.cif import CifWriter

MAX_CIF_BYTES = 5_000_000
MAX_LINE = 2048  # characters, the limit of the CIF standard
MAX_CELL_ANGSTROM = 1000.0


def cif_text(atoms: Atoms, name: str) -> str:
    """Return a CIF with every atom listed (P1), so that no reader has to rebuild the sheet from symmetry operations.

    Args:
        atoms: the structure, Å.
        name: name of the data block.
    """
    from pymatgen.core import Lattice, Structure

    structure = Structure(Lattice(atoms.cell.array), atoms.numbers, atoms.get_scaled_positions(wrap=False))
    text = str(CifWriter(structure, significant_figures=8))
    return text.replace(text.split("\n", 2)[1], f"data_{name}", 1) if text.startswith("#") else text


class UnreadableCif(ValueError):
    """The file does not hold one ordered, finite crystal; the message says why in a few words."""


def read_cif(path: str | Path, max_atoms: int = 500) -> Atoms:
    """Return the one crystal of a CIF, fully periodic, cell and positions in Å.

    pymatgen parses the file, because ASE drops the second species of a mixed site without a warning. Files in which pymatgen would
    guess or leave something out are refused before.

    Raises:
        UnreadableCif: the file is empty or binary; has no cell, no atoms, several structures or more than ``max_atoms`` atoms; or
            holds numbers that are not finite, unknown elements, partial occupancy, disorder or atoms on top of each other.
    """
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.io.cif import CifFile, CifParser

    text = _crystal_block(Path(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            (block,) = CifFile.from_str(text).data.values()
            _refuse_guesses(block.data, max_atoms)
            parser = CifParser.from_str(text, occupancy_tolerance=1.01)
            structures = parser.parse_structures(primitive=False, on_error="raise")
        except UnreadableCif:
            raise
        except Exception as error:  # pymatgen and its number parsing raise many unrelated types for malformed files
            raise UnreadableCif(_reading_error(error)) from error
    if len(structures) != 1:
        raise UnreadableCif("no structure")
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
    if any("Defaulting to P1" in warning for warning in parser.warnings) and (group := _stated_space_group(block.data)):
        raise UnreadableCif(f"unknown space group {group[:20]}, and no symmetry operations")
    structure.remove_oxidation_states()
    if not _adds_up(structure.composition, str(block.data.get("_chemical_formula_sum", ""))):
        raise UnreadableCif(f"atoms are {structure.composition.reduced_formula}, not the formula that the file states")
    atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
    return Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)


def _crystal_block(path: Path) -> str:
    """Return the one data block of a CIF that holds a cell, as ASCII text. Raises UnreadableCif for any other number of them."""
    try:
        if not path.is_file():
            raise UnreadableCif("not a regular file")
        if path.stat().st_size > MAX_CIF_BYTES:
            raise UnreadableCif(f"larger than {MAX_CIF_BYTES // 1_000_000} MB")
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableCif(f"cannot be opened ({error.strerror or type(error).__name__})") from error
    if not content.strip():
        raise UnreadableCif("empty file")
    if b"\0" in content:
        raise UnreadableCif("binary file, not text")
    # pymatgen deletes characters that are not ASCII, which can turn a number or a symbol into another one. A question mark in their
    # place is neither a number nor an element, so that such a file is refused.
    text = re.sub(r"[^\x00-\x7f]", "?", content.decode("utf-8-sig", errors="replace"))
    if any(len(line) > MAX_LINE for line in text.splitlines()):
        raise UnreadableCif(f"a line longer than {MAX_LINE} characters")
    blocks = re.split(r"^\s*data_", text, flags=re.MULTILINE)[1:]
    if not blocks:
        raise UnreadableCif("no CIF data block")
    crystals = [block for block in blocks if "_cell_length_a" in block]
    if not crystals:
        raise UnreadableCif("no unit cell")
    if len(crystals) > 1:
        raise UnreadableCif(f"{len(crystals)} structures in one file")
    if "_atom_site_" not in crystals[0]:
        raise UnreadableCif("no atoms")
    return f"data_{crystals[0]}"


def _refuse_guesses(data: Mapping[str, Any], max_atoms: int) -> None:
    """Raise UnreadableCif where pymatgen would read something else than the data block of a CIF says.

    pymatgen drops sites without occupancy and sites whose name it cannot read. It cuts names down to an element (Uuo: U). It takes
    symmetry operations with an unknown letter, negative lengths and angles above 180°. It leaves out hydrogen without positions.
    """
    lengths = [_number(data.get(f"_cell_length_{axis}")) for axis in "abc"]
    angles = [_number(data.get(f"_cell_angle_{angle}", "90")) for angle in ("alpha", "beta", "gamma")]
    if not np.isfinite(lengths + angles).all():
        raise UnreadableCif("cell is not finite (a length or angle is missing or no number)")
    if min(lengths) <= 0 or min(angles) <= 0 or max(angles) >= 180:
        raise UnreadableCif("cell without volume (lengths are positive, angles between 0 and 180 degrees)")
    if max(lengths) > MAX_CELL_ANGSTROM:
        raise UnreadableCif(f"a cell longer than {MAX_CELL_ANGSTROM:g} angstrom")
    if any(isinstance(value, str) for key, value in data.items() if key.startswith(("_atom_site_label", "_atom_site_fract_"))):
        raise UnreadableCif("not a readable CIF (atoms that stand in no table)")
    names = _column(data, "_atom_site_type_symbol") or _column(data, "_atom_site_label")
    if len(names) > max_atoms:
        raise UnreadableCif(f"{len(names)} atoms, more than {max_atoms}")
    for name in names:
        symbol = re.match(r"[A-Za-z]{1,2}(?![A-Za-z?])", name)
        if symbol is None or not _is_element(symbol.group().capitalize()):
            raise UnreadableCif(f"unknown element {name[:12]}")
    if not np.isfinite([_number(value) for axis in "xyz" for value in _column(data, f"_atom_site_fract_{axis}")]).all():
        raise UnreadableCif("not a readable CIF (a coordinate that is no finite number)")
    for occupancy in map(_number, _column(data, "_atom_site_occupancy")):
        if math.isnan(occupancy):
            raise UnreadableCif("an occupancy that is not a number")
        if occupancy <= 0:
            raise UnreadableCif("a site of occupancy 0 or below")
    if any(group not in (".", "?", "0") for group in _column(data, "_atom_site_disorder_group")):
        raise UnreadableCif("disordered (alternative positions)")
    if any(number not in (".", "?", "0") for number in _column(data, "_atom_site_attached_hydrogens")):
        raise UnreadableCif("hydrogen atoms without positions")
    for key in ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz"):
        for operation in _column(data, key):
            if not _is_symmetry_operation(operation):
                raise UnreadableCif(f"not a symmetry operation: {operation[:40]}")


def _column(data: Mapping[str, Any], key: str) -> list[str]:
    """Return the values of a CIF item, which may stand in a loop or alone."""
    value = data.get(key, [])
    return [value] if isinstance(value, str) else list(value)


def _number(value: Any) -> float:
    """Return a number of a CIF without its standard uncertainty in brackets; NaN for text that is no number."""
    try:
        return float(re.sub(r"\(\d+\)?$", "", value))
    except (TypeError, ValueError):
        return math.nan


def _is_symmetry_operation(text: str) -> bool:
    """Tell whether a text is an operation such as "-x, y+1/2, z" with a rotation of determinant ±1."""
    from pymatgen.core.operations import SymmOp

    if not re.fullmatch(r"[xyz\d+\-*/., ]+", text.lower()):
        return False
    try:
        rotation = SymmOp.from_xyz_str(text).rotation_matrix
    except (ValueError, ZeroDivisionError, IndexError):
        return False
    return text.count(",") == 2 and abs(abs(np.linalg.det(rotation)) - 1) < 1e-6


def _stated_space_group(data: Mapping[str, Any]) -> str:
    """Return the name or number of the space group that a block states; "" where it states none or P 1."""
    keys = [key for key in data if re.search(r"space_group_(name|IT_number)|Int_Tables_number", key, re.IGNORECASE)]
    return next((str(data[key]) for key in keys if re.sub(r"[\s_]", "", str(data[key])) not in ("", "?", ".", "1", "P1")), "")


def _adds_up(composition: Composition, stated: str) -> bool:
    """Tell whether atoms have the proportions of the stated formula; True where the formula cannot be read."""
    try:
        expected = Composition(stated).fractional_composition
    except (ValueError, KeyError, ZeroDivisionError):
        return True
    return not expected or composition.fractional_composition.almost_equals(expected, rtol=0.0, atol=0.01)


def _is_element(symbol: str) -> bool:
    """Tell whether a symbol is that of an element."""
    from pymatgen.core import Element

    return Element.is_valid_symbol(symbol)


def _reading_error(error: Exception) -> str:
    """Return a parser's message in a few words of plain text."""
    message = " ".join(str(error).replace("No structure parsed for section 1 in CIF.", "").split()) or type(error).__name__
    if "exceeded tolerance" in message:
        return "atoms on top of each other (occupancy above 1)"
    if "Singular matrix" in message or "below threshold" in message:
        return "cell without volume"
    if "_atom_site" in message:
        return "no atoms with fractional coordinates"
    if "zip()" in message or "is not a multiple of" in message:
        return "not a readable CIF (a table with a value too few or too many)"
    return f"not a readable CIF ({message[:100]})"
