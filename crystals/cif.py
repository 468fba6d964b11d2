"""Reads CIF files of any origin and refuses unsafe or ambiguous ones; writes the CIF text of the candidates."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.cell import Cell
from ase.data import atomic_numbers, chemical_symbols
from pymatgen.core import Composition
from pymatgen.io.cif import CifWriter

from crystals.cif_symmetry import OPERATION_TAGS, all_sites, is_operation
from crystals.cif_tokens import MAX_CIF_BYTES, UnreadableCif, crystal_block

__all__ = ["MAX_CIF_BYTES", "UnreadableCif", "cif_text", "read_cif"]

MAX_CELL_ANGSTROM = 1000.0
_HEAVY_HYDROGEN = {"D": "H", "T": "H"}


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


def read_cif(path: str | Path, max_atoms: int = 500) -> Atoms:
    """Return the one crystal of a CIF, fully periodic, cell and positions in Å.

    pymatgen parses the file, because ASE drops the second species of a mixed site without a warning. Files in which pymatgen would
    guess or leave something out are refused before, and the atoms that symmetry adds come from ``crystals.cif_symmetry``.

    Raises:
        UnreadableCif: the file is empty or binary; has no cell, no atoms, several structures or more than ``max_atoms`` atoms;
            holds numbers that are not finite, unknown elements, partial occupancy, disorder or atoms on top of each other; or
            leaves open which setting of its space group it means.
    """
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.io.cif import CifFile, CifParser

    text = crystal_block(Path(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            (block,) = CifFile.from_str(text).data.values()
            _refuse_guesses(block.data, max_atoms)
            parser = CifParser.from_str(_with_all_atoms(text, block.data, max_atoms), occupancy_tolerance=1.01)
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
    structure.remove_oxidation_states()
    if not _adds_up(structure.composition, str(block.data.get("_chemical_formula_sum", ""))):
        raise UnreadableCif(f"atoms are {structure.composition.reduced_formula}, not the formula that the file states")
    atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
    return Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)


def _with_all_atoms(text: str, data: Mapping[str, Any], max_atoms: int) -> str:
    """Return the CIF of a data block with every atom listed, in P 1; the text as it is where symmetry adds no atom.

    Magnetic operations are left to pymatgen.
    """
    scaled = np.array([[_number(value) for value in _column(data, f"_atom_site_fract_{axis}")] for axis in "xyz"]).T
    if any(key.startswith("_space_group_symop_magn") for key in data) or not scaled.size:
        return text
    names = _names(data)
    labels = _column(data, "_atom_site_label") or names
    occupancies = _column(data, "_atom_site_occupancy") or ["1"] * len(names)
    if not len(names) == len(labels) == len(occupancies) == len(scaled):
        return text  # pymatgen says what is missing
    tags = [*(f"_cell_length_{axis}" for axis in "abc"), *(f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma"))]
    cell = Cell.fromcellpar([_number(data[tag]) for tag in tags]).array
    numbers = [atomic_numbers[_HEAVY_HYDROGEN.get(_symbol(name), _symbol(name))] for name in names]

    def adds_up(kinds: Sequence[int]) -> bool:
        return _adds_up(Composition(Counter(chemical_symbols[z] for z in kinds)), str(data.get("_chemical_formula_sum", "")))

    images = all_sites(data, cell, scaled, numbers, max_atoms, adds_up)
    if images is None and "." not in occupancies:
        return text
    images = images or [site[None] for site in scaled]
    occupancies = ["1" if occupancy == "." else occupancy for occupancy in occupancies]  # the default of the standard
    lines = ["data_x", *(f"{tag} {data[tag]}" for tag in tags), "loop_", "_atom_site_label", "_atom_site_type_symbol"]
    lines += [*(f"_atom_site_fract_{axis}" for axis in "xyz"), "_atom_site_occupancy"]
    for label, name, occupancy, sites in zip(labels, names, occupancies, images, strict=True):
        lines += [f"'{label}' '{name}' {x:.12f} {y:.12f} {z:.12f} {occupancy}" for x, y, z in sites]
    return "\n".join(lines) + "\n"


def _refuse_guesses(data: Mapping[str, Any], max_atoms: int) -> None:
    """Raise UnreadableCif where pymatgen would read something else than the data block of a CIF says.

    pymatgen drops sites without occupancy and sites whose name it cannot read. It cuts names down to an element (Uuo: U). It takes
    symmetry operations with an unknown letter, negative lengths and angles above 180°. It leaves out hydrogen without positions.
    """
    lengths = {tag: _number(data.get(tag)) for tag in (f"_cell_length_{axis}" for axis in "abc")}
    angles = {tag: _number(data.get(tag)) for tag in (f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma"))}
    if wrong := [tag for tag, value in (lengths | angles).items() if not math.isfinite(value)]:
        raise UnreadableCif(f"cell is not finite ({', '.join(wrong)} missing or no number)")
    lengths, angles = list(lengths.values()), list(angles.values())
    cosines = np.cos(np.radians(angles))
    if min(lengths) <= 0 or min(angles) <= 0 or max(angles) >= 180 or 1 + 2 * cosines.prod() - (cosines**2).sum() <= 0:
        raise UnreadableCif("cell without volume (lengths are positive, angles between 0 and 180 degrees)")
    if max(lengths) > MAX_CELL_ANGSTROM:
        raise UnreadableCif(f"a cell longer than {MAX_CELL_ANGSTROM:g} angstrom")
    if any(isinstance(value, str) for key, value in data.items() if key.startswith(("_atom_site_label", "_atom_site_fract_"))):
        raise UnreadableCif("not a readable CIF (atoms that stand in no table)")
    names = _names(data)
    if len(names) > max_atoms:
        raise UnreadableCif(f"{len(names)} atoms, more than {max_atoms}")
    for name in names:
        if not _is_element(_symbol(name)):
            raise UnreadableCif(f"unknown element {name[:12]}")
    if not np.isfinite([_number(value) for axis in "xyz" for value in _column(data, f"_atom_site_fract_{axis}")]).all():
        raise UnreadableCif("not a readable CIF (a coordinate that is no finite number)")
    for occupancy in (1.0 if text == "." else _number(text) for text in _column(data, "_atom_site_occupancy")):
        if math.isnan(occupancy):
            raise UnreadableCif("an occupancy that is not a number")
        if occupancy <= 0:
            raise UnreadableCif("a site of occupancy 0 or below")
    if any(group not in (".", "?", "0") for group in _column(data, "_atom_site_disorder_group")):
        raise UnreadableCif("disordered (alternative positions)")
    if any(number not in (".", "?", "0") for number in _column(data, "_atom_site_attached_hydrogens")):
        raise UnreadableCif("hydrogen atoms without positions")
    for key in OPERATION_TAGS:
        for operation in _column(data, key):
            if not is_operation(operation):
                raise UnreadableCif(f"not a symmetry operation: {operation[:40]}")


def _column(data: Mapping[str, Any], key: str) -> list[str]:
    """Return the values of a CIF item, which may stand in a loop or alone."""
    value = data.get(key, [])
    return [value] if isinstance(value, str) else list(value)


def _names(data: Mapping[str, Any]) -> list[str]:
    """Return what each listed atom is called: its type, or where the block has no types its label."""
    return _column(data, "_atom_site_type_symbol") or _column(data, "_atom_site_label")


def _symbol(name: str) -> str:
    """Return the symbol with which the name of an atom begins, such as "Mo" of "MO4+"; empty where it does not begin with one."""
    match = re.match(r"[A-Za-z]{1,2}(?![A-Za-z?])", name)
    return match.group().capitalize() if match else ""


def _number(value: Any) -> float:
    """Return a number of a CIF without its standard uncertainty in brackets; NaN for text that is no number."""
    try:
        return float(re.sub(r"\(\d+\)?$", "", value))
    except (TypeError, ValueError):
        return math.nan


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
