"""Reads the structures of Materials Project entries, as further competing phases.

The file (.json or .json.gz) holds the list that ``monty.serialization.dumpfn(entries, path)`` writes for the entries of
``MPRester.get_entries`` or ``get_entries_in_chemsys``. Only their structures are used, and are relaxed with the judging potential:
energies of one hull must be by one method. Those of the entries are PBE and PBE+U with the corrections of MP2020, and differ from
the potential's by tenths of an eV/atom.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from ase import Atoms
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from pipeline.errors import StageError
from pipeline.files import missing_file, relative_name

log = logging.getLogger("her2d")

MAX_ATOMS = 100
NO_STRUCTURE = "no structure"
WHY_STRUCTURES = (
    "energies of the Materials Project cannot stand beside those of the potential; write entries with structures "
    "(ComputedStructureEntry), which the potential can relax"
)


def read_entries(path: str | Path) -> tuple[list[tuple[str, Atoms]], dict[str, int]]:
    """Read the crystals of a file of entries.

    Returns:
        [(entry id, crystal), ...] sorted by id, each id once; and how many entries were left out by reason.

    Raises:
        StageError: the file is missing, is no list of entries, or has no usable structure.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file("demo.mp_entries_path", path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as handle:
            content = json.load(handle)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise StageError(f"{relative_name(path)} is not readable JSON ({type(error).__name__})") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise StageError(f"{relative_name(path)} is no list of entries, such as dumpfn(MPRester().get_entries(...), path) writes")
    crystals: dict[str, Atoms] = {}
    left_out: Counter[str] = Counter()
    for number, entry in enumerate(content):
        name = str(entry.get("entry_id") or f"entry {number}")
        try:
            atoms = _crystal(entry)
        except ValueError as error:
            left_out[str(error)] += 1
            continue
        if name in crystals:
            left_out["id given twice"] += 1
        else:
            crystals[name] = atoms
    if not crystals:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "it is empty"
        raise StageError(f"{relative_name(path)} has no entry that can be used ({reasons}): {WHY_STRUCTURES}")
    if left_out[NO_STRUCTURE]:
        count = f"{left_out[NO_STRUCTURE]} of {len(content)} entries"
        log.warning("%s: %s have no structure and are left out: %s", relative_name(path), count, WHY_STRUCTURES)
    return sorted(crystals.items()), dict(left_out)


def _crystal(entry: dict[str, Any]) -> Atoms:
    """Return the structure of an entry. Raises ValueError, which says why, where it cannot be used."""
    if not entry.get("structure"):
        raise ValueError(NO_STRUCTURE)
    try:
        # Not MontyDecoder: it imports whatever class a file names.
        structure = Structure.from_dict(entry["structure"])
    except Exception as error:  # a foreign dictionary fails in any way
        raise ValueError("unreadable structure") from error
    if not structure.is_ordered:
        raise ValueError("disordered structure")
    if len(structure) > MAX_ATOMS:
        raise ValueError(f"more than {MAX_ATOMS} atoms")
    atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
    return Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
