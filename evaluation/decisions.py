"""Decides which judged candidates are unique, stable and hits, and ranks them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ase import Atoms
from pymatgen.core import Structure

from crystals import validity
from crystals.matching import match_structure, same_structure
from evaluation.candidate import CandidateResult
from pipeline.settings import EvaluationConfig

log = logging.getLogger("her2d")
Row = TypeVar("Row", CandidateResult, Mapping[str, Any])


def mark_unique(rows: Sequence[CandidateResult], structures: dict[str, Atoms]) -> None:
    """Set ``unique`` and ``duplicate_of`` of every row: among equal structures the first row is unique.

    Structures are compared where reduced formula and kind (sheet or bulk) are the same.

    Args:
        rows: sorted by id.
        structures: id -> structure as judged.
    """
    seen: dict[tuple[str, bool], list[tuple[str, Structure]]] = {}
    for row in rows:
        if row.id not in structures or not (row.is_sheet or row.is_bulk):
            continue
        try:
            own = match_structure(structures[row.id], row.is_sheet)
        except ValueError as error:
            log.debug("%s cannot be compared: %s", row.id, error)
            continue
        group = seen.setdefault((row.reduced_formula, row.is_sheet), [])
        row.duplicate_of = next((other for other, known in group if same_structure(own, known)), "")
        row.unique = not row.duplicate_of
        if row.unique:
            group.append((row.id, own))


def decide(rows: Sequence[CandidateResult], settings: EvaluationConfig) -> None:
    """Set the three kinds of ``hit``, ``sun`` and ``metastable_sun`` of every row.

    All of them ask for a valid sheet that is still one connected sheet after relaxation. A verdict is False when one of its
    conditions fails, None when none fails but one is not known.
    """

    def at_most(value: float, limit: float) -> bool | None:
        return None if math.isnan(value) else value <= limit

    for row in rows:
        if row.is_bulk:
            continue
        sheet = all_of(row.valid, row.sheet_relaxed)
        metastable = at_most(row.e_above_hull_ev, settings.hit_e_hull_ev)
        new = all_of(row.unique, row.novel)
        row.hit = all_of(sheet, metastable, at_most(abs(row.delta_g_h_ev), settings.hit_delta_g_ev))
        if settings.potential_h_sites:  # otherwise the potential judges no hydrogen and no hit
            row.hit_potential = all_of(sheet, metastable, at_most(abs(row.delta_g_h_potential_ev), settings.hit_delta_g_ev))
            row.hit_corrected = all_of(sheet, metastable, at_most(abs(row.delta_g_h_corrected_ev), settings.hit_delta_g_ev))
        row.sun = all_of(sheet, at_most(row.e_above_hull_ev, 0.0), new)
        row.metastable_sun = all_of(sheet, metastable, new)


def rank(rows: Iterable[Row], top_k: int | None = None) -> list[Row]:
    """Sort candidates, the best first: the one order in which they are drawn, exported and listed.

    Hits of the corrected potential come first, because it is the better judge of ΔG_H. Hits of DimeNet++ follow, then valid sheets,
    then the rest; within each group the higher composite score goes first, then the lower id. Candidates that are no sheet or have
    no composite score are last, in the same order.

    Args:
        rows: ``CandidateResult`` or their dictionaries as ``report.json`` has them (a missing score is NaN or None).
        top_k: keep this many of the sheets with a composite score, and nothing else; None: keep all rows.
    """
    ordered = sorted(rows, key=_rank_key)
    return ordered if top_k is None else [row for row in ordered if not _rank_key(row)[0]][:top_k]


def _rank_key(row: Any) -> tuple[Any, ...]:
    """Return what ``rank`` sorts by; its first item says whether a row is no sheet or has no composite score."""
    value = row.get if isinstance(row, Mapping) else partial(getattr, row)
    score = value("score_composite")
    scored = score is not None and not math.isnan(score)
    failed = tuple(value(name) is not True for name in ("hit_corrected", "hit", "valid"))
    last = not scored or value("dimensionality") not in validity.SHEET_KINDS
    return last, *failed, -score if scored else 0.0, value("id")


def all_of(*verdicts: bool | None) -> bool | None:
    """Return the three-valued AND: False if one is False, else None if one is None, else True."""
    return False if False in verdicts else None if None in verdicts else True


def verdict(row: Any, settings: Any) -> str:
    """Say in a few words what our judges found for a ``CandidateResult``: its first failure, or "hit"."""
    if not row.reduced_formula:
        return "unreadable"
    if row.is_bulk:
        return "not 2D"
    if not row.is_sheet:
        return f"not 2D: {row.dimensionality}"
    if row.valid is not True or row.sheet_relaxed is False:
        return "invalid"
    if math.isnan(row.e_above_hull_ev):
        return "no E_above_hull"
    if row.e_above_hull_ev > settings.hit_e_hull_ev:
        return "unstable"
    if math.isnan(row.delta_g_h_ev):
        return "no ΔG_H"
    return "hit" if row.hit else f"|ΔG_H| > {settings.hit_delta_g_ev:g} eV"
