"""Groups sheets that have one arrangement of atoms, and puts the atoms of each in the order and basis of its group.

A template (``crystals/symmetry.py``) says what a layer group leaves free. Sheets share an arrangement where their templates are
equal and they lie over each other within ``SAME_DISTANCE``, whatever their elements. Atom k of one then corresponds to atom k of
another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from crystals.alignment import Alignment, Layout, align, bond_counts, bond_length
from crystals.symmetry import Template
from crystals.templates import MAX_KINDS, template_key
from geo_utils import Sheet

SAME_DISTANCE, SAME_LARGEST = 0.45, 0.9  # Å, root mean square and largest distance of atoms within an arrangement
GOOD_MISFIT = 0.12  # Å, below which no better arrangement is looked for


@dataclass(frozen=True)
class Member:
    """A sheet with its atoms in the order and basis of its arrangement.

    Attributes:
        row: its number among the sheets that were given.
        arrangement: the number of its arrangement.
        sheet: not in the standard setting.
    """

    row: int
    arrangement: int
    sheet: Sheet


@dataclass(frozen=True)
class _First:
    """The first sheet of an arrangement, with its bond length (Å), which others are compared with."""

    number: int
    layout: Layout
    size: float


def arrange(sheets: Sequence[Sheet], templates: Sequence[Template], founding: Sequence[bool]) -> list[Member]:
    """Return the sheets that belong to an arrangement, in their order, with a progress bar.

    Args:
        sheets: those that stand first found the arrangements.
        templates: of the sheets.
        founding: whether a sheet that belongs to none founds one; a sheet that does not is left out.
    """
    known: dict[Any, list[_First]] = {}
    members, count = [], 0
    for row, (sheet, template) in enumerate(
        zip(tqdm(sheets, desc="arrangements", unit="sheet", mininterval=1.0), templates, strict=True)
    ):
        if template.kinds.max() >= MAX_KINDS:
            continue
        firsts = known.setdefault((template_key(template)[0], tuple(sorted(np.bincount(template.kinds)))), [])
        layout = Layout(template.kinds, sheet.frac_coords, sheet.heights, sheet.lattice)
        size = bond_length(bond_counts(sheet), sheet.atomic_numbers)
        found = _find(firsts, layout, size)
        if found is not None:
            first, alignment = found
            members.append(Member(row, first.number, _placed(sheet, alignment)))
        elif founding[row]:
            firsts.append(_First(count, layout, size))
            members.append(Member(row, count, sheet))
            count += 1
    return members


def _find(firsts: Sequence[_First], layout: Layout, size: float) -> tuple[_First, Alignment] | None:
    """Return the arrangement that a sheet belongs to and how it lies over its first sheet, or None."""
    best = None
    for first in firsts:
        found = align(first.layout, layout, first.size / size)
        if found is None or found.distance > SAME_DISTANCE or found.largest > SAME_LARGEST:
            continue
        if best is None or found.misfit < best[1].misfit:
            best = first, found
            if found.misfit < GOOD_MISFIT:
                break
    return best


def _placed(sheet: Sheet, alignment: Alignment) -> Sheet:
    """Return a sheet in the order and basis that an alignment has found."""
    layout = alignment.layout
    return Sheet(sheet.atomic_numbers[alignment.order], layout.frac_coords, layout.heights, layout.lattice)
