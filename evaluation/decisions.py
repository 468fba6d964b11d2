"""Decides which ΔG_H of a candidate counts, which candidates are unique, stable and hits, and ranks them."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ase import Atoms

from crystals import validity
from crystals.matching import DifferentStructures, match_structure
from energetics.dft_points import DFT_ERROR_EV
from evaluation.candidate import CandidateResult
from evaluation.scores import composite_score
from pipeline.settings import EvaluationConfig

log = logging.getLogger("her2d")
Row = TypeVar("Row", CandidateResult, Mapping[str, Any])


def mark_unique(rows: Sequence[CandidateResult], structures: Mapping[str, Atoms]) -> None:
    """Set ``unique`` and ``duplicate_of`` of every row: among equal structures the first row is unique.

    Structures are compared where reduced formula and kind (sheet or bulk) are the same.

    Args:
        rows: sorted by id.
        structures: id -> structure as judged.
    """
    groups: dict[tuple[str, bool], list[CandidateResult]] = {}
    for row in rows:
        if row.id in structures and (row.is_sheet or row.is_bulk):
            groups.setdefault((row.reduced_formula, row.is_sheet), []).append(row)
    for group in groups.values():
        seen = DifferentStructures()  # of one formula at a time, so that the memory stays small
        for row in group:
            try:
                row.duplicate_of = seen.find_or_add(row.id, match_structure(structures[row.id], row.is_sheet))
            except ValueError as error:
                log.debug("%s cannot be compared: %s", row.id, error)
                continue
            row.unique = not row.duplicate_of


BY_DFT, BY_CORRECTED_POTENTIAL, BY_DIMENET = "DFT", "corrected potential", "DimeNet++"


def choose_delta_g(row: CandidateResult) -> None:
    """Set ``delta_g_ev``, ``delta_g_std_ev`` and ``delta_g_source`` to those of the best judge that has a value, and the composite
    score, which follows from it.

    DFT is the best one, where it has computed the sheet (``dft_verdict.mark_dft``). The potential corrected from DFT is the better
    of the others (docs/results.md); DimeNet++, which looks at a sheet without relaxing H, is asked where that one has none.
    """
    if math.isfinite(row.delta_g_h_dft_ev):
        row.delta_g_ev, row.delta_g_std_ev, row.delta_g_source = row.delta_g_h_dft_ev, DFT_ERROR_EV, BY_DFT
    elif math.isfinite(row.delta_g_h_corrected_ev):
        row.delta_g_ev, row.delta_g_std_ev = row.delta_g_h_corrected_ev, row.delta_g_h_corrected_std_ev
        row.delta_g_source = BY_CORRECTED_POTENTIAL
    elif math.isfinite(row.delta_g_h_ev):
        row.delta_g_ev, row.delta_g_std_ev, row.delta_g_source = row.delta_g_h_ev, row.delta_g_h_std_ev, BY_DIMENET
    row.score_composite = composite_score(row.delta_g_ev, row.score_stab, row.p_synth)


def without_dft(row: CandidateResult, settings: EvaluationConfig) -> CandidateResult:
    """Return what the judges say of a sheet that DFT has computed: the row with the ΔG_H and p_hit that it would have otherwise."""
    alone = dataclasses.replace(row, delta_g_h_dft_ev=math.nan, delta_g_ev=math.nan, delta_g_std_ev=math.nan, delta_g_source="")
    choose_delta_g(alone)
    alone.p_hit = hit_probability(alone, settings)
    return alone


def hit_probability(row: CandidateResult, settings: EvaluationConfig, active: float | None = None) -> float:
    """Return P(|ΔG_H| <= hit_delta_g_ev and E_above_hull <= hit_e_hull_ev) of a valid sheet from values and standard errors.

    Both errors are taken as normal and independent. A value without a standard error is taken as exact. active: the chance of the
    first condition, where it is known otherwise.

    Returns:
        The probability; 0 for a candidate that is no valid sheet, whose H leaves, does not come to rest or takes the sheet to
        another structure; NaN where a value is missing.
    """
    if False in (row.valid, row.sheet_relaxed, h_at_rest(row)):
        return 0.0
    if math.isnan(row.delta_g_ev) or math.isnan(row.e_above_hull_ev):
        return math.nan
    if active is None:
        window, value, std = settings.hit_delta_g_ev, row.delta_g_ev, row.delta_g_std_ev
        active = probability_below(window, value, std) - probability_below(-window, value, std, inclusive=False)
    return active * probability_below(settings.hit_e_hull_ev, row.e_above_hull_ev, getattr(row, "e_above_hull_std_ev", math.nan))


def probability_below(limit: float, value: float, std: float, inclusive: bool = True) -> float:
    """Return P(x <= limit) for x normal around ``value`` with standard error ``std``; a step where there is no error."""
    if not (math.isfinite(std) and std > 0):
        return float(value <= limit if inclusive else value < limit)
    return 0.5 * (1 + math.erf((limit - value) / (std * math.sqrt(2))))


def h_at_rest(row: CandidateResult) -> bool | None:
    """Return whether the potential's H stays on the sheet, its relaxation ended, and the sheet stays what it is; None where the
    potential was not asked.

    Where DFT has computed the sheet, H is where DFT found it bound.
    """
    if row.delta_g_source == BY_DFT:
        return True
    if row.h_desorbed or row.h_changes_sheet:
        return False
    return row.h_relax_converged


def decide(rows: Sequence[CandidateResult], settings: EvaluationConfig) -> None:
    """Set ``hit`` by the best judge, ``p_hit``, ``hit`` by each judge, ``sun`` and ``metastable_sun`` of every row.

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
        at_rest = h_at_rest(row) is not False  # a relaxation of H that has not ended is no verdict, and never a hit
        row.hit = all_of(sheet, metastable, at_most(abs(row.delta_g_ev), settings.hit_delta_g_ev), at_rest)
        row.p_hit = hit_probability(row, settings)
        row.hit_dimenet = all_of(sheet, metastable, at_most(abs(row.delta_g_h_ev), settings.hit_delta_g_ev))
        if settings.potential_h_sites:  # otherwise the potential judges no hydrogen and no hit
            row.hit_potential = all_of(sheet, metastable, at_most(abs(row.delta_g_h_potential_ev), settings.hit_delta_g_ev))
            row.hit_corrected = all_of(sheet, metastable, at_most(abs(row.delta_g_h_corrected_ev), settings.hit_delta_g_ev))
        row.sun = all_of(sheet, at_most(row.e_above_hull_ev, 0.0), new)
        row.metastable_sun = all_of(sheet, metastable, new)


def rank(rows: Iterable[Row], top_k: int | None = None) -> list[Row]:
    """Sort candidates, the best first: the one order in which they are drawn, exported and listed.

    Hits come first, then valid sheets, then the rest. Within each group the higher probability of a hit goes first, then the higher
    composite score, then the lower id. Candidates that are no sheet or have no composite score are last, in the same order.

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
    failed = tuple(value(name) is not True for name in ("hit", "valid"))
    chance = value("p_hit")
    chance = 0.0 if chance is None or math.isnan(chance) else chance
    last = not scored or value("dimensionality") not in validity.SHEET_KINDS
    return last, *failed, -chance, -score if scored else 0.0, value("id")


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
    if math.isnan(row.delta_g_ev):
        return "no ΔG_H"
    if h_at_rest(row) is False:
        return "H desorbs" if row.h_desorbed else "H changes the sheet" if row.h_changes_sheet else "H not relaxed"
    return "hit" if row.hit else f"|ΔG_H| > {settings.hit_delta_g_ev:g} eV"
