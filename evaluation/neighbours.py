"""Neighbours of sheets that DFT has computed: the same crystal with one element, or one atom, replaced by a related one.

Where DFT finds ΔG_H near zero, a small change of the chemistry moves it by a few tenths of an eV, and the judges, whose correction
was fitted to the parent too, should err less than on a sheet of a new kind. Substitution makes the neighbours, without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import spglib
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from crystals.cif_writer import in_cif_setting, symmetric_cif
from crystals.elements import are_related, electronegativity_and_group
from crystals.matching import DifferentStructures, match_structure
from crystals.substitution import squared_distances, substituted
from energetics.adsorption_energy import free_energy
from energetics.dft_inputs import IMAGE_DISTANCE
from energetics.dft_points import TruthPoint
from energetics.sites import h_supercell
from geo_utils import NotTwoDimensional, Sheet, primitive_sheet
from pipeline.errors import ConfigError
from pipeline.files import write_json
from pipeline.judge_table import DEFECTS

NEAR_ZERO_EV = 0.3  # |ΔG_H| of a parent that nobody has named
MAX_PARENT_ATOMS = 8  # of the primitive cell: defects and single atoms on a support are no parents
NUM_ELEMENTS = 97  # up to Cm
NOBLE_GASES = ("He", "Ne", "Ar", "Kr", "Xe", "Rn")
FAR = 100.0  # above every squared chemical distance
SYMPREC_ANGSTROM = 0.02
VACUUM_ANGSTROM = 15.0


@dataclass(frozen=True)
class Neighbour:
    """A sheet next to one that DFT has computed. parent: its name. change: such as "1 of 4 Nb -> Ti"."""

    atoms: Atoms
    parent: str
    change: str


def parents_of(points: Iterable[TruthPoint], names: Sequence[str], her_correction_ev: float) -> dict[str, Atoms]:
    """Return the primitive cells of sheets to look around, by name, those with the smallest |ΔG_H| at their lowest site first.

    Args:
        points: of DFT.
        names: of the sheets; none: all without defects and with |ΔG_H| of at most ``NEAR_ZERO_EV`` and ``MAX_PARENT_ATOMS`` atoms.
        her_correction_ev: ΔG_H − ΔE_H.

    Raises:
        ConfigError: there is no sheet of a name, or it is a ribbon.
    """
    lowest: dict[str, TruthPoint] = {}
    for point in points:
        if point.clean is not None and point.delta_e < getattr(lowest.get(point.name), "delta_e", np.inf):
            lowest[point.name] = point
    if unknown := [name for name in names if name not in lowest]:
        raise ConfigError(f"loop.neighbours_of: the DFT points have no sheet {unknown[0]}")
    size = {name: abs(free_energy(point.delta_e, her_correction_ev)) for name, point in lowest.items()}
    wanted = names or [name for name in lowest if size[name] <= NEAR_ZERO_EV and lowest[name].origin != DEFECTS]
    cells: dict[str, Atoms] = {}
    for name in sorted(wanted, key=lambda name: (size[name], name)):
        try:
            cells[name] = primitive_sheet(lowest[name].clean)
        except NotTwoDimensional as error:
            raise ConfigError(f"loop.neighbours_of: {name} is no sheet: {error}") from error
    return {name: cell for name, cell in cells.items() if names or len(cell) <= MAX_PARENT_ATOMS}


def neighbours(
    parents: Mapping[str, Atoms], most: int, allowed: Callable[[Atoms], bool], without: Collection[str]
) -> list[Neighbour]:
    """Return at most ``most`` neighbours, no two alike: in turns one of each parent, its chemically nearest first.

    Args:
        parents: name -> primitive cell.
        most: number of sheets.
        allowed: whether a sheet is wanted.
        without: symbols that no sheet may have.
    """
    different = DifferentStructures()
    found: list[Neighbour] = []
    for one in chain.from_iterable(zip_longest(*(changed(name, cell, without) for name, cell in parents.items()))):
        if len(found) == most:
            break
        if (
            one is not None
            and allowed(one.atoms)
            and not different.find_or_add(one.change, match_structure(one.atoms, is_sheet=True))
        ):
            found.append(one)
    return found


def changed(name: str, cell: Atoms, without: Collection[str]) -> Iterator[Neighbour]:
    """Yield the neighbours of a sheet, the chemically nearest first.

    In the primitive cell every kind of atom is replaced, all of it or one atom; in the supercells up to the one in which H is
    computed one atom of each kind, so that DFT costs no more than for the parent.

    Args:
        name: of the sheet.
        cell: its primitive cell.
        without: symbols that no neighbour may have.
    """
    reach = h_supercell(cell, IMAGE_DISTANCE)
    changes = []
    for repeats in sorted({(1, 1), (reach[0], 1), (1, reach[1]), reach}):
        large = Sheet.from_atoms(cell.repeat((*repeats, 1)))
        for kind in _kinds(large):
            for places in {tuple(kind), (kind[0],)} if repeats == (1, 1) else {(kind[0],)}:
                symbol = chemical_symbols[large.atomic_numbers[kind[0]]]
                for distance, other in _related(symbol, without):
                    changes.append((distance, len(large), len(places), other, large, places, f"of {len(kind)} {symbol} -> {other}"))
    for *_, other, large, places, words in sorted(changes, key=lambda change: change[:4]):
        numbers = large.atomic_numbers.copy()
        numbers[list(places)] = atomic_numbers[other]
        yield Neighbour(substituted(large, numbers).to_atoms(VACUUM_ANGSTROM), name, f"{len(places)} {words}")


def _kinds(sheet: Sheet) -> list[list[int]]:
    """Return the atoms of a sheet that symmetry makes equal, each kind in the order of the atoms."""
    atoms = sheet.to_atoms(VACUUM_ANGSTROM)
    data = spglib.get_symmetry_dataset((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=SYMPREC_ANGSTROM)
    equal = range(len(atoms)) if data is None else data.equivalent_atoms.tolist()
    kinds: dict[int, list[int]] = {}
    for atom, kind in enumerate(equal):
        kinds.setdefault(kind, []).append(atom)
    return list(kinds.values())


def _related(symbol: str, without: Collection[str]) -> list[tuple[float, str]]:
    """Return the related elements of one, those of its group first, each with its place in the order."""
    found = []
    for other in chemical_symbols[1:NUM_ELEMENTS]:
        if other not in (symbol, "H", *NOBLE_GASES, *without) and are_related(symbol, other):
            step = abs(electronegativity_and_group(symbol)[1] - electronegativity_and_group(other)[1])
            distance = float(squared_distances()[atomic_numbers[symbol], atomic_numbers[other]])
            found.append((step + distance / FAR, other))
    return sorted(found)


def write_neighbours(found: Sequence[Neighbour], folder: Path) -> None:
    """Write the CIFs of neighbours to an empty folder, and ``neighbours.json``, which says what each one is."""
    about = {}
    for number, one in enumerate(found):
        name = f"near_{number:05d}"
        (folder / f"{name}.cif").write_text(symmetric_cif(in_cif_setting(one.atoms), name), encoding="utf-8")
        about[name] = {"parent": one.parent, "change": one.change}
    write_json(folder / "neighbours.json", about)
