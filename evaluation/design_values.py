"""What DFT says of the sheets near zero of a loop: single points at all competing sites, and minima.

``designs`` delivers those that are hits.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.db import connect
from ase.io import read

from energetics.adsorption_energy import free_energy
from energetics.dft_points import TruthPoint, read_truth
from energetics.dft_relaxation import FMAX
from energetics.dft_rows import CLEAN
from evaluation.candidate import CandidateResult
from evaluation.finalists import read_finalist
from evaluation.loop_tools import POINTS_DB, RELAXED_DB, Tools
from evaluation.relaxation_change import UNKNOWN_CHANGE, RelaxationChange
from pipeline.errors import StageError, first_line
from pipeline.files import relative_name
from pipeline.records import from_json
from pipeline.settings import Config

log = logging.getLogger("her2d")

DESIGNS = "designs"  # folder of a loop with the sheets near zero: their inputs and what DFT says
NO_VALUE = "no DFT value at a competing site"
UNRELAXED = "and no relaxation by DFT"


@dataclass(frozen=True)
class SiteValue:
    """H at one site, eV, NaN where there is no value.

    delta_e_potential_ev: ΔE_H by the potential. delta_g_single_ev: ΔG_H by single points of DFT. delta_g_relaxed_ev: in minima of
    DFT.
    """

    site: str
    delta_e_potential_ev: float
    delta_g_single_ev: float
    delta_g_relaxed_ev: float = math.nan

    @property
    def delta_g_dft_ev(self) -> float:
        """ΔG_H by DFT: of the minimum where there is one, else of the single points."""
        return self.delta_g_single_ev if math.isnan(self.delta_g_relaxed_ev) else self.delta_g_relaxed_ev

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name, with the one that counts."""
        return dataclasses.asdict(self) | {"delta_g_dft_ev": self.delta_g_dft_ev}


@dataclass(frozen=True)
class Near:
    """A sheet of a round that may be a hit. folder: of the round. outcome: what DFT said there. row, sheet: of its choice."""

    folder: Path
    outcome: Mapping[str, Any]
    row: CandidateResult
    sheet: Atoms


def near_sheets(folder: Path, cfg: Config) -> dict[str, Near]:
    """Return the sheets of a round that may be hits, by name: those that DFT relaxes, or hits where it relaxes nothing."""
    choices = read_json(folder / "choices.json")
    found = {}
    for outcome in sheets_of(folder):
        name = outcome["name"]
        if outcome["hit_dft"] is not None and is_near(outcome["delta_g_dft_ev"], cfg) and is_stable(outcome, cfg):
            row = dataclasses.replace(from_json(CandidateResult, choices["rows"][name]), id=name)
            found[name] = Near(folder, outcome, row, Atoms(**choices["sheets"][name]))
    return found


def is_near(delta_g_ev: float | None, cfg: Config) -> bool:
    """Return whether ΔG_H by single points is such that the minima of DFT may be a hit; without relaxations, whether it is one."""
    window = cfg.evaluation.hit_delta_g_ev
    return delta_g_ev is not None and -window <= delta_g_ev <= (cfg.loop.relax_below_ev if cfg.loop.relax_steps else window)


def is_stable(outcome: Mapping[str, Any], cfg: Config) -> bool:
    """Return whether E_above_hull, as judged when DFT was asked, is that of a hit."""
    return outcome["e_above_hull_ev"] is not None and outcome["e_above_hull_ev"] <= cfg.evaluation.hit_e_hull_ev


def single_points(
    cfg: Config, names: Iterable[str], rounds: Mapping[str, Path], work: Path, tools: Tools
) -> dict[str, list[TruthPoint]]:
    """Return name -> single points of DFT at all competing sites; what the rounds have computed is not computed again."""
    folder = work / "dft"
    folder.mkdir(parents=True, exist_ok=True)
    for path in rounds.values():
        for record in (path / "dft").glob("*.json"):
            if not (folder / record.name).is_file():
                shutil.copyfile(record, folder / record.name)
    inputs = {name: work / "inputs" / name for name in names}
    with_sites = {
        name: path / "dft.extxyz"
        for name, path in inputs.items()
        if (path / "finalist.json").is_file() and read_finalist(path)["sites"]
    }
    if with_sites:
        tools.compute(cfg, with_sites, folder)
    return {name: [] for name in inputs} | _by_name(folder / POINTS_DB)


def _by_name(path: Path) -> dict[str, list[TruthPoint]]:
    """Return the points of a database by the name of the sheet, lowest first; none where it is not there."""
    found: dict[str, list[TruthPoint]] = {}
    for point in read_truth(path, with_unbound=True) if path.is_file() else []:
        found.setdefault(point.name, []).append(point)
    return {name: sorted(own, key=lambda point: point.delta_e) for name, own in found.items()}


def relaxed_points(
    cfg: Config, points: Mapping[str, Sequence[TruthPoint]], work: Path, tools: Tools
) -> dict[str, list[TruthPoint]]:
    """Relax the sheets whose single points at all competing sites are still near zero; return name -> minima of DFT.

    Where atoms are not at rest after ``loop.relax_steps``, there is no minimum yet.
    """
    if not cfg.loop.relax_steps:
        return {}
    lowest = {name: free_energy(own[0].delta_e, cfg.dataset.her_correction_ev) for name, own in points.items() if own}
    inputs = {name: work / "inputs" / name / "dft.extxyz" for name, delta_g in lowest.items() if is_near(delta_g, cfg)}
    if inputs:
        tools.relax(cfg, inputs, work / "dft")
    path = work / "dft" / RELAXED_DB
    for name, site in _moving(path):
        log.warning("%s %s: not at rest after loop.relax_steps of DFT, so it is left open; give it more", name, site)
    found = _minima(path)
    return {name: found[name] for name in inputs if name in found}


def _moving(path: Path) -> list[tuple[str, str]]:
    """Return name and site of the relaxations of a database that have not come to rest."""
    return [(row.name, row.site) for row in connect(path).select(f"fmax_dft>{FMAX}")] if path.is_file() else []


def _minima(path: Path) -> dict[str, list[TruthPoint]]:
    """Return the points of a database of relaxations that are at rest, by name."""
    moving = _moving(path)
    found = {name: [point for point in own if (name, point.site) not in moving] for name, own in _by_name(path).items()}
    return {name: own for name, own in found.items() if own}


def relaxation_change(folder: Path, her_correction_ev: float, before: RelaxationChange = UNKNOWN_CHANGE) -> RelaxationChange:
    """Return what the relaxations of DFT have changed so far.

    Args:
        folder: with the points and the relaxed points of the sheets near zero.
        her_correction_ev: ΔG_H − ΔE_H.
        before: change at other sites, which count too.
    """
    given = _by_name(folder / POINTS_DB).values()
    singles = {(point.name, point.site): free_energy(point.delta_e, her_correction_ev) for own in given for point in own}
    minima = [point for own in _minima(folder / RELAXED_DB).values() for point in own]
    return RelaxationChange.of(singles, minima, her_correction_ev).with_others(before)


def gaps_of(path: Path) -> dict[str, float]:
    """Return the PBE gaps of the sheets that DFT relaxed, eV, by name."""
    rows = connect(path).select(kind=CLEAN) if path.is_file() else ()
    return {str(row.name): float(row.gap_dft) for row in rows if "gap_dft" in row}


def site_values(
    folder: Path, points: Sequence[TruthPoint], relaxed: Sequence[TruthPoint], her_correction_ev: float
) -> list[SiteValue]:
    """Return the competing sites of a sheet, lowest by DFT first, those without a DFT value last.

    Args:
        folder: of its inputs.
        points: its single points of DFT.
        relaxed: its minima of DFT.
        her_correction_ev: ΔG_H − ΔE_H.
    """
    single, minimum = ({point.site: free_energy(point.delta_e, her_correction_ev) for point in some} for some in (points, relaxed))
    path = folder / "dft.extxyz"
    frames = read(path, index="1:") if path.is_file() else []
    given = {str(frame.info["site"]): float(frame.info.get("delta_e_potential_ev", math.nan)) for frame in frames}
    sites = [
        SiteValue(site, given.get(site, math.nan), single.get(site, math.nan), minimum.get(site, math.nan))
        for site in {**given, **single}
    ]
    return sorted(sites, key=lambda s: (math.isnan(s.delta_g_dft_ev), s.delta_g_dft_ev))


def why_no_hit(values: Sequence[SiteValue], cfg: Config) -> str:
    """Return why a sheet near zero is no hit; empty where it is one."""
    if not values or math.isnan(values[0].delta_g_dft_ev):
        return NO_VALUE
    lowest = values[0]
    how = "single points of DFT" if cfg.loop.relax_steps and math.isnan(lowest.delta_g_relaxed_ev) else "DFT"
    said = f"ΔG_H {lowest.delta_g_dft_ev:+z.2f} eV by {how} at {lowest.site}"
    if how != "DFT" and is_near(lowest.delta_g_dft_ev, cfg):
        return f"{said}, {UNRELAXED}"
    return said if abs(lowest.delta_g_dft_ev) > cfg.evaluation.hit_delta_g_ev else ""


def is_hit(sheet: Mapping[str, Any], values: Mapping[str, Sequence[SiteValue]], cfg: Config) -> bool | None:
    """Return whether a sheet of a round is a hit by DFT; None where DFT has no value, or has not relaxed a sheet near zero."""
    own = values.get(sheet["name"])
    if own is None:
        return None if sheet["hit"] is None else False
    if not own or math.isnan(own[0].delta_g_dft_ev):
        return None
    if cfg.loop.relax_steps and math.isnan(own[0].delta_g_relaxed_ev) and is_near(own[0].delta_g_dft_ev, cfg):
        return None
    return not why_no_hit(own, cfg)


def sheets_of(folder: Path) -> list[dict[str, Any]]:
    """Return the outcomes of a round. Raises StageError."""
    return read_json(folder / "results.json")["sheets"]


def numbers_of(folder: Path) -> dict[str, Any]:
    """Return ``loop_report.summary`` of a round, by single points. Raises StageError."""
    return {key: value for key, value in read_json(folder / "results.json").items() if key != "sheets"}


def read_json(path: Path) -> Any:
    """Return the content of a file of the loop. Raises StageError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{relative_name(path)} cannot be read ({first_line(error)})") from error


def lowest_atoms(values: Sequence[SiteValue], points: Sequence[TruthPoint], relaxed: Sequence[TruthPoint]) -> Atoms:
    """Return the cell with H at the lowest site: the minimum of DFT, or the geometry of the single point."""
    known = {point.site: point.atoms for point in (*points, *relaxed)}
    return known[values[0].site]
