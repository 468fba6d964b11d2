"""Grades how a sheet fares in water beside MoS2. The verdict filters nothing and is no part of a hit.

Thermodynamics alone decides, and by it few sheets last for ever: oxide skins and slow reactions protect many of those that should
corrode. So a sheet is measured at the pH that is kindest to it, and against MoS2, which lasts.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from energetics.hull import read_phases
from energetics.water import NON_METALS, PH_VALUES, Decomposition, NoWaterData, Water
from evaluation.candidate import CandidateResult
from pipeline.files import relative_name
from pipeline.settings import EvaluationConfig

log = logging.getLogger("her2d")

AS_STABLE, CORRODES, DISSOLVES = "as stable as MoS2", "likely corrodes", "dissolves"
MOS2_E_ABOVE_HULL = 0.05  # eV/atom, of the 2H sheet by the default judge
MARGIN_EV = 0.1  # eV/atom above MoS2 that is no difference: about the error of ΔG_f of a computed solid
DISSOLVES_EV = 0.25  # eV/atom; CdI2, the least eager of the salts that are known to dissolve, is just above it
NAME_LIMIT = 160  # characters of the products


def mark_water(rows: Iterable[CandidateResult], settings: EvaluationConfig) -> None:
    """Set ΔG_pbx and the verdict in water of every row with an E_above_hull, from what the row says already.

    Nothing is set where ``evaluation.water`` is off or the reference phases are not at hand.
    """
    rows = [row for row in rows if not math.isnan(row.e_above_hull_ev)]
    path = settings.references_path
    if not settings.water or not rows:
        return
    if not Path(path).is_file():
        log.info("no reference phases at %s: nothing is said about water", relative_name(path))
        return
    water = load_water(path)
    for row in rows:
        judge_water(row, water)


def load_water(path: str | os.PathLike) -> Water:
    """Return the solids and ions for a file of reference phases. It is read once, until it changes."""
    return _load(os.fspath(path), os.stat(path).st_mtime_ns)


@lru_cache(maxsize=2)
def _load(path: str, written: int) -> Water:
    return Water(read_phases(path)[1])


def judge_water(row: CandidateResult, water: Water) -> None:
    """Set the fields of a row about water; without data its numbers stay NaN and ``water_products`` says why."""
    try:
        worst = worst_at_each_ph(water.decompose(row.reduced_formula, row.e_above_hull_ev))
    except NoWaterData as error:
        row.water_products = f"unknown: {error}"
        return
    row.dg_pbx_ph0_ev, row.dg_pbx_ph7_ev, row.dg_pbx_ph14_ev = (found.delta_g for found in worst)
    row.dg_pbx_ev = max(found.delta_g for found in worst)
    kindest = min(worst, key=lambda found: found.delta_g)
    row.water = verdict_in_water(worst, row.elements(), reference_at_each_ph(water))
    row.water_products = f"pH {kindest.ph:g}, {kindest.u_rhe:g} V: {kindest.text}"[:NAME_LIMIT]


def worst_at_each_ph(found: Sequence[Decomposition]) -> list[Decomposition]:
    """Return, for each pH, the decomposition at the potential that drives it most."""
    return [max((d for d in found if d.ph == ph), key=lambda d: round(d.delta_g, 6)) for ph in PH_VALUES]


@lru_cache(maxsize=4)
def reference_at_each_ph(water: Water) -> tuple[float, ...]:
    """Return ΔG_pbx of a MoS2 sheet in eV/atom at each pH, at the potential that drives it most."""
    return tuple(found.delta_g for found in worst_at_each_ph(water.decompose("MoS2", MOS2_E_ABOVE_HULL)))


def verdict_in_water(worst: Sequence[Decomposition], elements: Iterable[str], reference: Sequence[float]) -> str:
    """Return the verdict on a sheet.

    "as stable as MoS2": at one pH or more, ΔG_pbx is at most MARGIN_EV above that of MoS2. "dissolves": at its kindest pH ΔG_pbx is
    above DISSOLVES_EV, and at least half of one of its metals (of all atoms, without a metal) goes into solution. "likely
    corrodes": the rest, which turns into other solids, or dissolves with little drive.

    Args:
        worst: one decomposition for each pH.
        elements: of the sheet.
        reference: ΔG_pbx of MoS2 at each pH, eV/atom.
    """
    if any(found.delta_g <= limit + MARGIN_EV for found, limit in zip(worst, reference, strict=True)):
        return AS_STABLE
    kindest = min(worst, key=lambda found: found.delta_g)
    reacting = set(elements) - {"H", "O"}
    metals = [{metal} for metal in reacting - NON_METALS] or [reacting]
    lost = max(kindest.dissolved_share(metal) for metal in metals)
    return DISSOLVES if kindest.delta_g > DISSOLVES_EV and lost >= 0.5 else CORRODES
