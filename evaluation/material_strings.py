"""Writes crystals as CSLLM's text (Song et al., arXiv:2407.07016) and its question."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from pymatgen.core import Element, Lattice, Structure

import geo_utils

log = logging.getLogger("her2d")

LABELS = ("True", "False")
TOLERANCES = (1e-3, 1e-2, 1e-1)  # Å, of the search for symmetry
SHEET_VACUUM = 20.0  # Å
MIN_SHEET_GAP = 8.0  # Å, least empty gap of a sheet


@dataclass(frozen=True)
class MaterialString:
    """CSLLM's text of a crystal.

    ``tolerance``: in Å, at which the symmetry was found; NaN where pyxtal refused and the text is P1.
    """

    text: str
    tolerance: float
    spacegroup: int
    is_sheet: bool


def as_structure(structure: Structure | Atoms) -> Structure:
    """Return an ordered pymatgen Structure without site properties.

    Raises:
        ValueError: partial occupancy, no atoms, an unknown element, a cell without volume, or numbers that are not finite.
    """
    if isinstance(structure, Atoms):
        lattice, frac = structure.cell.array, structure.get_scaled_positions(wrap=False)
        species: list[Any] = list(structure.get_chemical_symbols())
    else:
        if not structure.is_ordered:
            raise ValueError("partial occupancy")
        lattice, frac = structure.lattice.matrix, structure.frac_coords
        species = [site.specie.symbol for site in structure]
    if not len(species):
        raise ValueError("no atoms")
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all()) or abs(np.linalg.det(lattice)) < 1e-3:
        raise ValueError("cell without volume or coordinates that are not finite")
    if any(symbol == "X" for symbol in species):
        raise ValueError("unknown element")
    return Structure(Lattice(lattice), species, frac, to_unit_cell=True)


def standard_box(structure: Structure) -> tuple[Structure, bool]:
    """Put a sheet into a cell of fixed vacuum, so that its string does not depend on how the CIF was exported.

    A crystal with an empty gap of at least MIN_SHEET_GAP between nuclei is a sheet. It is standardised as ``geo_utils.Sheet`` does
    (reduced in-plane cell, c along the normal, centred), with |c| = distance of its outermost nuclei + SHEET_VACUUM. A bulk crystal
    stays as it is.

    Returns:
        (structure, whether it is a sheet).
    """
    atoms = Atoms([site.specie.symbol for site in structure], cell=structure.lattice.matrix, scaled_positions=structure.frac_coords)
    atoms.pbc = True
    try:
        sheet = geo_utils.standard_sheet(atoms, min_vacuum=MIN_SHEET_GAP, vacuum=SHEET_VACUUM)
    except geo_utils.NotTwoDimensional:
        return structure, False
    lattice = Lattice(sheet.cell.array)
    return Structure(lattice, sheet.get_chemical_symbols(), sheet.get_scaled_positions(), to_unit_cell=True), True


def _coordinates(position: np.ndarray) -> str:
    """Write coordinates as NumPy prints an array, as CSLLM's training strings do: ``[0.33333333 0.66666667 0.5       ]``."""
    position = np.round(np.asarray(position, dtype=float) % 1.0, 8) % 1.0 + 0.0
    return np.array2string(position, precision=8, suppress_small=True, floatmode="maxprec")


def _text(spacegroup: int, parameters: Sequence[float], sites: Sequence[tuple[str, int, str, np.ndarray]]) -> str:
    a, b, c, alpha, beta, gamma = (float(value) for value in parameters)
    lattice = f"|{a:.3f},{b:.3f},{c:.3f},{alpha:.2f},{beta:.2f},{gamma:.2f}|"
    return f"{spacegroup} {lattice} " + "->".join(f"({el}-{mult}{letter}{_coordinates(xyz)})" for el, mult, letter, xyz in sites)


def material_string(structure: Structure | Atoms) -> MaterialString:
    """Write a crystal as ``{space group} |a,b,c,alpha,beta,gamma| (El-{mult}{letter}[x y z])->(...)``, in Å and degrees.

    Sheets are put into ``standard_box`` first. Wyckoff sites come from pyxtal, at that of TOLERANCES which finds the most symmetry
    operations (the tightest among equals): a relaxed crystal a few hundredths of an Å from an ideal one so has the text of the
    ideal one. Sites are ordered by electronegativity, letter and position, so that the order of atoms in a file does not matter. A
    crystal without symmetry is P1 at 1e-3 Å. Where pyxtal refuses every tolerance, the text is P1 and the tolerance NaN.

    Raises:
        ValueError: the structure has no such text (see ``as_structure``).
    """
    from pyxtal import pyxtal

    boxed, is_sheet = standard_box(as_structure(structure))
    boxed = boxed.get_sorted_structure()
    for tolerance in _tolerances(boxed):
        crystal = pyxtal()
        try:
            # pyxtal prints warnings that tell no more than the tolerance does.
            with contextlib.redirect_stdout(io.StringIO()):
                crystal._from_pymatgen(boxed, tol=tolerance)
            break
        except Exception as error:  # pyxtal and spglib raise unrelated types for a symmetry that they cannot settle
            log.debug("pyxtal at %g Å: %s", tolerance, error)
    else:
        sites = [(site.specie.symbol, 1, "a", site.frac_coords) for site in boxed]
        return MaterialString(_text(1, boxed.lattice.parameters, sites), math.nan, 1, is_sheet)
    sites = [(str(site.specie), site.wp.multiplicity, site.wp.letter, np.asarray(site.position)) for site in crystal.atom_sites]
    sites.sort(key=lambda s: (Element(s[0]).X if Element(s[0]).X == Element(s[0]).X else 9.0, s[0], s[2], *np.round(s[3], 4)))
    text = _text(crystal.group.number, crystal.lattice.get_para(degree=True), sites)
    return MaterialString(text, tolerance, int(crystal.group.number), is_sheet)


def _tolerances(structure: Structure) -> list[float]:
    """Return TOLERANCES sorted by the symmetry operations that they find, most first; tighter ones first among equals."""
    import spglib

    cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    operations = []
    for tolerance in TOLERANCES:
        found = spglib.get_symmetry(cell, symprec=tolerance, angle_tolerance=5.0)
        operations.append(0 if found is None else len(found["rotations"]))
    return [TOLERANCES[i] for i in sorted(range(len(TOLERANCES)), key=lambda i: (-operations[i], i))]


def question(text: str) -> str:
    """Return CSLLM's question about a material string."""
    return f'Can this material structure be synthesized "{text}"?'


def prompt(text: str, label: str = "") -> str:
    """Return CSLLM's training text ``Input: {question} \\n Output: {label}``; without a label, the text that a model completes.

    Args:
        text: a material string, or a question (anything that ends in ``?``).
        label: one of LABELS, or empty.
    """
    sentence = text if text.endswith("?") else question(text)
    return f"Input: {sentence} \n Output: {label}" if label else f"Input: {sentence} \n Output:"
