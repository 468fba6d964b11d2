"""Looks up which candidates DFT has computed: their ΔG_H is DFT's, the best judge that there is.

A candidate has a DFT value where its relaxed structure matches a sheet of the DFT points (``crystals.matching.same_structure``),
those kept for a blind test included. The lowest of the computed sites counts. What the other judges say stays beside it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ase import Atoms
from pymatgen.core import Structure

from crystals.formulas import composition_key
from crystals.matching import match_structure, same_structure
from energetics.adsorption_energy import free_energy
from energetics.dft_points import TruthPoint, read_truth
from evaluation.candidate import CandidateResult
from evaluation.decisions import choose_delta_g
from pipeline.settings import EvaluationConfig

log = logging.getLogger("her2d")


@dataclass(frozen=True)
class ComputedSheet:
    """A sheet of the DFT points. structure: to be matched. lowest: the point of the lowest ΔE_H. sites: how many there are."""

    structure: Structure
    lowest: TruthPoint
    sites: int


def mark_dft(
    rows: Iterable[CandidateResult], structures: Mapping[str, Atoms], settings: EvaluationConfig, her_correction_ev: float
) -> None:
    """Set DFT's ΔG_H of every sheet that the DFT points have, and what follows from it.

    Nothing is set where ``evaluation.dft_truth_path`` names no file.

    Args:
        rows: judged candidates.
        structures: id -> structure as judged.
        settings: the databases of DFT points.
        her_correction_ev: ΔG_H − ΔE_H.
    """
    if not settings.dft_truth_path:
        return
    computed: dict[str, list[ComputedSheet]] = {}
    for path in (settings.dft_truth_path, settings.dft_blind_path):
        if path and Path(path).is_file():
            for formula, sheets in computed_sheets(path).items():
                computed.setdefault(formula, []).extend(sheets)
    for row in rows:
        sheets = computed.get(composition_key(row.formula), []) if row.is_sheet and row.id in structures else []
        if found := _lowest_match(structures[row.id], sheets) if sheets else None:
            row.delta_g_h_dft_ev = free_energy(found.lowest.delta_e, her_correction_ev)
            row.h_site_dft, row.h_sites_dft = found.lowest.site, found.sites
            choose_delta_g(row)


def _lowest_match(atoms: Atoms, sheets: Iterable[ComputedSheet]) -> ComputedSheet | None:
    """Return the sheet that matches, of several the one with the lowest ΔE_H; None where none does."""
    try:
        own = match_structure(atoms, is_sheet=True)
    except ValueError as error:
        log.debug("%s cannot be compared with the DFT points: %s", atoms.get_chemical_formula(), error)
        return None
    matches = [sheet for sheet in sheets if same_structure(own, sheet.structure)]
    return min(matches, key=lambda sheet: sheet.lowest.delta_e, default=None)


def computed_sheets(path: str | os.PathLike) -> Mapping[str, list[ComputedSheet]]:
    """Return composition (``composition_key``) -> sheets of a database of DFT points. It is read once, until it changes.

    Sheets on which DFT finds H nowhere bound (``dft_points.UNBOUND_EV``) have none.

    Raises:
        StageError: the file is no such database.
    """
    return _computed_sheets(os.fspath(path), os.stat(path).st_mtime_ns)


@lru_cache(maxsize=4)
def _computed_sheets(path: str, written: int) -> Mapping[str, list[ComputedSheet]]:
    points: dict[str, list[TruthPoint]] = {}
    for point in read_truth(path):
        if point.clean is not None and math.isfinite(point.delta_e):
            points.setdefault(point.name, []).append(point)
    found: dict[str, list[ComputedSheet]] = {}
    for own in points.values():
        lowest = min(own, key=lambda point: point.delta_e)
        sheet = ComputedSheet(match_structure(lowest.clean, is_sheet=True), lowest, len(own))
        found.setdefault(composition_key(str(lowest.clean.symbols)), []).append(sheet)
    return found
