"""Writes what is found about the candidates: ``metrics.csv`` and ``relaxed.extxyz``."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from evaluation.candidate import CandidateResult
from pipeline.files import atomic_path

# Fields of a candidate in the information line of its structure.
STRUCTURE_FIELDS = (
    "formula", "reduced_formula", "dimensionality", "layer_group_relaxed", "hit", "p_hit", "delta_g_ev", "delta_g_std_ev",
    "delta_g_source", "e_above_hull_ev", "e_above_hull_std_ev", "e_above_hull_source", "p_synth", "status",
)  # fmt: skip


def write_table(rows: Sequence[CandidateResult], path: str | os.PathLike) -> None:
    """Write ``metrics.csv``: one row per candidate; a number or a verdict that is missing is an empty cell."""
    names = [f.name for f in dataclasses.fields(CandidateResult)]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(names)
        for row in rows:
            writer.writerow([table_cell(getattr(row, name)) for name in names])


def table_cell(value: Any) -> str:
    """Return the text of a cell: six digits of a number, "true" or "false", "" for None and NaN."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    # A spreadsheet would run a text that begins like a formula; an apostrophe keeps it a text.
    return re.sub(r"^([=+\-@\t\r])", r"'\1", str(value))


def write_structures(rows: Sequence[CandidateResult], structures: Mapping[str, Atoms], path: str | os.PathLike) -> None:
    """Write all structures, as judged, to one extended XYZ file.

    The information line has the id, STRUCTURE_FIELDS as far as they are known, and the energy (eV); the atoms have their forces
    (eV/Å) where they are known. Energy and forces are the potential's.

    Args:
        rows: the candidates, in the order of the file.
        structures: id -> structure, with energy and forces as its results.
        path: where the file goes.
    """
    from ase.io import write

    frames = []
    for row in rows:
        if row.id in structures:
            atoms = structures[row.id].copy()
            atoms.calc = structures[row.id].calc
            values = {name: getattr(row, name) for name in STRUCTURE_FIELDS}
            atoms.info = {"id": _one_line(row.id)} | {name: _one_line(v) for name, v in values.items() if not _is_missing(v)}
            frames.append(atoms)
    if frames:
        with atomic_path(path) as temporary:
            write(temporary, frames, format="extxyz")


def write_distorted(sheets: Mapping[str, Atoms], path: str | os.PathLike) -> None:
    """Write the stable sheets to which unstable candidates lead, with their ids; no file where there is none.

    Stage 6 judges such a file as it does any other set.
    """
    from ase.io import write

    Path(path).unlink(missing_ok=True)
    if sheets:
        frames = [atoms.copy() for atoms in sheets.values()]
        for atoms, name in zip(frames, sheets, strict=True):
            atoms.info = {"id": _one_line(name)}
        with atomic_path(path) as temporary:
            write(temporary, frames, format="extxyz")


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _one_line(value: Any) -> Any:
    """Return a text without line breaks; anything else as it is."""
    return " ".join(value.split()) if isinstance(value, str) else value
