"""Writes a crystal as a CIF with its space group, operations and asymmetric unit, and puts atoms into the setting of such a CIF.

The cell stays that of the crystal, so the operations may be those of another setting than the standard one: of a primitive cell, or
of other axes. Readers follow the operations. The origin is moved to that of International Tables, because ASE takes it for granted
that an inversion centre of the group stands there.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
import spglib
from ase import Atoms
from pymatgen.core import Composition, Lattice, Structure

SYMPREC = 1e-3  # Å; reading a CIF moves no atom by more than about this


@dataclass(frozen=True)
class _Symmetry:
    """Space group of a crystal in its own cell.

    ``rotations`` (n, 3, 3) and ``translations`` (n, 3): the operations, the identity first. ``to_origin`` (3,): shift of the atoms,
    in cell vectors, that brings the symmetry elements to the origin.
    """

    symbol: str
    number: int
    rotations: np.ndarray
    translations: np.ndarray
    to_origin: np.ndarray


def in_cif_setting(atoms: Atoms) -> Atoms:
    """Return a sheet with the origin and the order of atoms in which its CIF gives it back.

    The electropositive element stands first. Within an element, the atoms that symmetry makes equal stand together. The sheet moves
    along itself, so that its symmetry elements stand at the origin, and along z only where its middle is not one of them.

    Args:
        atoms: the sheet, Å, z along the vacuum.
    """
    moved = atoms.copy()
    moved.set_scaled_positions((atoms.get_scaled_positions(wrap=False) + _symmetry(atoms).to_origin) % 1.0)
    return moved[[index for orbit in _orbits(moved, _symmetry(moved)) for index in orbit]]


def symmetric_cif(atoms: Atoms, name: str) -> str:
    """Return a CIF with the space group, its operations and the asymmetric unit.

    Args:
        atoms: the crystal, Å; the cell is taken as fully periodic. ``read_cif`` gives it back as it is after ``in_cif_setting``.
        name: name of the data block.
    """
    symmetry = _symmetry(atoms)
    composition = Composition(Counter(atoms.get_chemical_symbols()))
    reduced, units = composition.get_reduced_formula_and_factor()
    a, b, c, alpha, beta, gamma = atoms.cell.cellpar()
    lines = [f"data_{name}", f"_symmetry_space_group_name_H-M   '{symmetry.symbol}'"]
    lines += [f"_cell_length_{axis}   {value:.8f}" for axis, value in zip("abc", (a, b, c), strict=True)]
    lines += [f"_cell_angle_{axis}   {v:.8f}" for axis, v in zip(("alpha", "beta", "gamma"), (alpha, beta, gamma), strict=True)]
    lines += [f"_symmetry_Int_Tables_number   {symmetry.number}", f"_chemical_formula_structural   {reduced}"]
    lines += [f"_chemical_formula_sum   '{composition.formula}'", f"_cell_volume   {abs(atoms.cell.volume):.8f}"]
    lines += [f"_cell_formula_units_Z   {int(units)}", "loop_", " _symmetry_equiv_pos_site_id", " _symmetry_equiv_pos_as_xyz"]
    operations = zip(symmetry.rotations, symmetry.translations, strict=True)
    lines += [f"  {k}  '{operation_text(rotation, shift)}'" for k, (rotation, shift) in enumerate(operations, 1)]
    lines += ["loop_", *(f" _atom_site_{tag}" for tag in ("type_symbol", "label", "symmetry_multiplicity"))]
    lines += [*(f" _atom_site_fract_{axis}" for axis in "xyz"), " _atom_site_occupancy"]
    # 0.0 is added because zeros have signs, which differ from machine to machine.
    scaled, symbols = np.round(atoms.get_scaled_positions(wrap=False), 8) + 0.0, atoms.get_chemical_symbols()
    for number, orbit in enumerate(_orbits(atoms, symmetry)):
        symbol, (x, y, z) = symbols[orbit[0]], scaled[orbit[0]]
        lines.append(f"  {symbol}  {symbol}{number}  {len(orbit)}  {x:.8f}  {y:.8f}  {z:.8f}  1")
    return "\n".join(lines) + "\n"


def operation_text(rotation: np.ndarray, shift: np.ndarray) -> str:
    """Return an operation as in "-y, x-y, z+1/2". rotation: (3, 3) integers. shift: (3,), in cell vectors."""
    texts = []
    for row, value in zip(rotation, shift, strict=True):
        terms = "".join(f"{'+' if factor > 0 else '-'}{axis}" for factor, axis in zip(row, "xyz", strict=True) if factor)
        texts.append(terms.removeprefix("+") + _shift_text(value % 1.0))
    return ", ".join(texts)


def _shift_text(value: float) -> str:
    """Return a part of a cell vector in [0, 1]: "" for none, "+1/2" for a fraction of International Tables, else decimals."""
    for denominator in (1, 2, 3, 4, 6):
        numerator = round(value * denominator)
        if abs(value - numerator / denominator) < 1e-6:
            return "" if numerator in (0, denominator) else f"+{numerator}/{denominator}"
    return f"+{value:.8f}"


def _symmetry(atoms: Atoms) -> _Symmetry:
    """Find the space group in the cell as it is; P 1 where spglib finds none."""
    cell = (np.asarray(atoms.cell), atoms.get_scaled_positions(), atoms.numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = spglib.get_symmetry_dataset(cell, symprec=SYMPREC)
        except (spglib.SpglibError, RuntimeError, TypeError):
            found = None
    if found is None:
        return _Symmetry("P1", 1, np.eye(3, dtype=int)[None], np.zeros((1, 3)), np.zeros(3))
    # The order of spglib's operations follows that of the atoms; this one does not, so that a second sorting changes nothing.
    shifts = np.round(found.translations % 1.0, 5) % 1.0
    rotations = [rotation.ravel().tolist() for rotation in found.rotations]
    identity = np.eye(3, dtype=int).ravel().tolist()
    keys = [(r != identity or any(shift), r, shift) for r, shift in zip(rotations, shifts.tolist(), strict=True)]
    order = sorted(range(len(keys)), key=lambda k: keys[k])
    to_origin = np.linalg.solve(found.transformation_matrix, found.origin_shift)
    # Along z an origin in the middle between two others serves as well, so the sheet stays in the middle of its cell. Where no
    # operation turns the sheet over, any height is an origin.
    turned_over = (found.rotations[:, 2, 2] < 0).any()
    to_origin[2] = to_origin[2] - round(2 * to_origin[2]) / 2 if turned_over else 0.0
    return _Symmetry(found.international, int(found.number), found.rotations[order], found.translations[order], to_origin)


def _orbits(atoms: Atoms, symmetry: _Symmetry) -> list[list[int]]:
    """Return the atoms that operations make equal: each orbit in the order of the operations, elements as pymatgen sorts them."""
    scaled = atoms.get_scaled_positions()
    lattice = Lattice(atoms.cell.array)
    numbered = Structure(lattice, atoms.numbers, scaled, site_properties={"index": list(range(len(atoms)))})
    left = [site.properties["index"] for site in numbered.get_sorted_structure()]
    orbits = []
    while left:
        images = symmetry.rotations @ scaled[left[0]] + symmetry.translations
        same = [index for index in left if atoms.numbers[index] == atoms.numbers[left[0]]]
        away = images[:, None] - scaled[same]
        distances = np.linalg.norm((away - np.round(away)) @ atoms.cell.array, axis=-1)
        nearest = distances.argmin(axis=1)
        orbit = list(dict.fromkeys([left[0], *(same[k] for k in nearest[distances.min(axis=1) < 10 * SYMPREC])]))
        orbits.append(orbit)
        left = [index for index in left if index not in orbit]
    return orbits
