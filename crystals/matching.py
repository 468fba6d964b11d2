"""Compares crystals: tells whether two are the same, and looks up training structures by formula."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

from ase import Atoms
from pymatgen.core import Composition, Structure

import geo_utils
from crystals.database import check_ase_database
from pipeline.files import relative_name

log = logging.getLogger("her2d")
# Sheets are compared in boxes of thickness + 4 Å. The site tolerance grows with the cube root of the volume per atom. With 20 Å of
# vacuum it is so wide that 1T and 2H match. Volumes are not rescaled, because the volume of a sheet is not defined.
MATCH_VACUUM = 4.0  # Å
MATCHER_SETTINGS = {"ltol": 0.15, "stol": 0.2, "angle_tol": 5, "primitive_cell": True, "scale": False, "attempt_supercell": False}


class KnownStructures:
    """The sheets of ASE databases by reduced formula. A file is read at the first call, a structure at each.

    Args:
        paths: of the databases, the first one that counts where several have the same structure.
    """

    def __init__(self, *paths: str | Path) -> None:
        self.paths = [Path(path) for path in paths]
        self._ids: dict[Path, dict[str, list[int]]] = {}

    def __call__(self, reduced_formula: str) -> list[tuple[str, Structure]]:
        """Return (uid, structure as ``match_structure`` returns it) of each sheet of a reduced formula."""
        found = []
        for path in self.paths:
            database = _connect(path)
            for row_id in self._rows_of(path).get(reduced_formula, []):
                row = database.get(id=row_id)
                try:
                    found.append((str(row.get("uid", f"row {row_id}")), match_structure(row.toatoms(), is_sheet=True)))
                except ValueError as error:
                    log.debug("%s row %d is no sheet: %s", path.name, row_id, error)
        return found

    def formulas(self) -> set[str]:
        """Return the reduced formulas of all rows."""
        return set().union(*(self._rows_of(path) for path in self.paths))

    def counts(self) -> dict[str, int]:
        """Return the number of rows of every database, by the name of its file in the project."""
        return {relative_name(path): sum(len(ids) for ids in self._rows_of(path).values()) for path in self.paths}

    def _rows_of(self, path: Path) -> dict[str, list[int]]:
        """Return the row ids of every reduced formula; a file is read once."""
        if path not in self._ids:
            ids: dict[str, list[int]] = {}
            for row in _connect(path).select(columns=["id", "numbers"], include_data=False):
                ids.setdefault(Composition(row.formula).reduced_formula, []).append(row.id)
            self._ids[path] = ids
        return self._ids[path]


def _connect(path: Path) -> Any:
    """Return an opened database; raises StageError for a file that is none."""
    import ase.db

    check_ase_database(path)
    return ase.db.connect(path)


def match_structure(atoms: Atoms, is_sheet: bool) -> Structure:
    """Return the form in which structures are compared: a sheet in a box of its thickness + 4 Å, a bulk crystal as it is."""
    from pymatgen.io.ase import AseAtomsAdaptor

    if is_sheet:
        return geo_utils.Sheet.from_atoms(atoms).to_structure(vacuum=MATCH_VACUUM)
    return AseAtomsAdaptor.get_structure(Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True))


def same_structure(first: Structure, second: Structure) -> bool:
    """Tell whether two structures match, by pymatgen's StructureMatcher with ``MATCHER_SETTINGS``."""
    return bool(_matcher().fit(first, second))


@cache
def _matcher() -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(**MATCHER_SETTINGS)


class DifferentStructures:
    """Structures no two of which match; finds the first of them that a new one matches.

    The outcome is that of ``same_structure`` with each of them. The work is less: every structure is reduced once, and the matcher
    is asked only about pairs that it may call equal. These have the same primitive cell up to the places of the atoms, so the same
    formula of it, and lattices that can be mapped on each other within the matcher's tolerances.
    """

    def __init__(self) -> None:
        self._known: dict[str, list[tuple[str, Structure]]] = {}  # formula of the primitive cell -> (name, reduced structure)

    def find_or_add(self, name: str, structure: Structure) -> str:
        """Return the name of the first structure that a new one matches; where there is none, "", and the new one is kept.

        Args:
            name: of the new one.
            structure: as ``match_structure`` returns it.

        Raises:
            ValueError: the structure cannot be reduced.
        """
        # What StructureMatcher does with every structure before it compares two.
        own = structure.get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
        known = self._known.setdefault(own.composition.formula, [])
        for other, reduced in known:
            if _lattices_match(own, reduced) and _matcher().fit(own, reduced, skip_structure_reduction=True):
                return other
        known.append((name, own))
        return ""


def _lattices_match(first: Structure, second: Structure) -> bool:
    """Tell whether the first lattice has a cell like that of the second, without which StructureMatcher finds no match."""
    tolerances = {"ltol": MATCHER_SETTINGS["ltol"], "atol": MATCHER_SETTINGS["angle_tol"]}
    mappings = first.lattice.find_all_mappings(second.lattice, **tolerances, skip_rotation_matrix=True)
    return next(mappings, None) is not None
