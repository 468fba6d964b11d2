"""Rounds that were delivered before: a loop goes on from a folder of designs, though the files of its rounds are gone.

``designs.deliver`` leaves DESIGNS/rounds/round_N with the log of choices, what DFT said and its points. With
``loop.earlier_designs=DESIGNS`` the rounds of a new loop are numbered after these, know their compositions, and learn from their
points. A later delivery carries the designs over, counts the hits of all rounds together, and asks once more about the sheets near
zero whose minima were not known.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import read

from crystals.formulas import composition_key
from energetics.adsorption_energy import free_energy
from energetics.dft_points import TruthPoint, read_truth
from evaluation.design_values import NO_VALUE, UNRELAXED, numbers_of, read_json, sheets_of
from evaluation.loop_tools import POINTS_DB, RELAXED_DB, Tools, join_points
from evaluation.relaxation_change import RelaxationChange
from pipeline.errors import StageError
from pipeline.files import atomic_folder, relative_name
from pipeline.settings import Config

DESIGNS_JSON = "designs.json"
CONTENT = {"designs": list, "left_out": dict, "rounds": dict, "relaxation_change": dict}
EARLIER = "earlier"  # folder of a loop with what was learnt from delivered rounds


@dataclass(frozen=True)
class EarlierDesigns:
    """A folder of designs. content: of its designs.json."""

    folder: Path
    content: Mapping[str, Any]

    @property
    def rounds(self) -> dict[str, Path]:
        """Return name -> folder of every delivered round, in order."""
        return {name: self.folder / "rounds" / name for name in self.content["rounds"] if name != "all"}

    @property
    def left_out(self) -> dict[str, str]:
        """Return the sheets near zero that are no designs and why, without those whose minima are not known."""
        return {name: reason for name, reason in self.content["left_out"].items() if not is_open(reason)}

    def change(self, her_correction_ev: float) -> RelaxationChange:
        """Return how far the minima of DFT lay from single points, of the rounds and of the designs.

        her_correction_ev: ΔG_H − ΔE_H.
        """
        singles = {
            (design["round_name"], site["site"]): site["delta_g_single_ev"]
            for design in self.content["designs"]
            for site in design["sites"]
            if site["delta_g_single_ev"] is not None
        }
        for path in self.rounds.values():
            for point in _points(path / POINTS_DB):
                singles.setdefault((point.name, point.site), free_energy(point.delta_e, her_correction_ev))
        return RelaxationChange.of(singles, _points(self.folder / RELAXED_DB), her_correction_ev)

    def is_decided(self, name: str) -> bool:
        """Return whether a sheet near zero is a design, or is known to be none."""
        return name in self.left_out or any(design["round_name"] == name for design in self.content["designs"])

    def verdict(self, sheet: Mapping[str, Any]) -> bool | None:
        """Return whether a sheet of these rounds is a hit; None where DFT has no value, or has not relaxed it near zero."""
        name = sheet["name"]
        if reason := self.content["left_out"].get(name):
            return None if is_open(reason) else not reason.startswith("ΔG_H")  # other reasons are faults of hits
        return True if self.is_decided(name) else None if sheet["hit"] is None else False

    def numbers(self) -> dict[str, dict[str, Any]]:
        """Return name -> ``loop_report.summary`` of every round, by single points."""
        return {name: numbers_of(path) for name, path in self.rounds.items()}

    def compositions(self) -> set[str]:
        """Return the compositions (``composition_key``) that these rounds have asked DFT about."""
        return {composition_key(sheet["formula"]) for path in self.rounds.values() for sheet in sheets_of(path)}

    def with_h(self, design: Mapping[str, Any]) -> Atoms:
        """Return the cell of a design with H at the lowest site. Raises StageError where its files are not there."""
        site = design["sites"][0]["site"]
        for name in ("relaxed.extxyz", "dft.extxyz"):
            path = self.folder / design["name"] / name
            for frame in read(path, index=":") if path.is_file() else ():
                if frame.info.get("site") == site:
                    return frame
        raise StageError(f"{relative_name(self.folder / design['name'])} has no geometry of {site}")


def earlier_designs(cfg: Config) -> EarlierDesigns | None:
    """Return what ``loop.earlier_designs`` names; None where it is empty. Raises StageError where it is no folder of designs."""
    if not cfg.loop.earlier_designs:
        return None
    folder = Path(cfg.loop.earlier_designs)
    content = read_json(folder / DESIGNS_JSON)
    if not isinstance(content, dict) or not all(isinstance(content.get(name), kind) for name, kind in CONTENT.items()):
        raise StageError(f"loop.earlier_designs: {relative_name(folder / DESIGNS_JSON)} is not what scripts.deliver_designs writes")
    found = EarlierDesigns(folder, content)
    if missing := [path for path in found.rounds.values() if not (path / "results.json").is_file()]:
        raise StageError(f"loop.earlier_designs: {relative_name(missing[0])} has no results.json")
    return found


def is_open(reason: str) -> bool:
    """Return whether a sheet was left out because DFT has not relaxed it."""
    return reason == NO_VALUE or reason.endswith(UNRELAXED)


def learnt_from(earlier: EarlierDesigns, cfg: Config, folder: Path, tools: Tools) -> Config:
    """Return the settings with the points of delivered rounds and DimeNet++'s correction fitted to them.

    Rounds whose points ``evaluation.dft_truth_path`` has already are not joined once more.

    Args:
        earlier: the delivered rounds.
        cfg: the settings of the loop.
        folder: of the loop; FOLDER/earlier holds what is made.
        tools: what fits.
    """
    new = {name: path for name, path in earlier.rounds.items() if (path / POINTS_DB).is_file()}
    truth = Path(cfg.evaluation.dft_truth_path)
    known = _names(truth)
    new = {name: path for name, path in new.items() if not _names(path / POINTS_DB) <= known}
    if not new:
        return cfg
    points, dimenet = folder / EARLIER / "points", folder / EARLIER / "dimenet"
    if not points.is_dir():
        with atomic_folder(points) as target:
            _join(truth, new, target)
            tools.complete(cfg, target / POINTS_DB)
    settings = dataclasses.replace(cfg.dimenet, dft_path=str(points / POINTS_DB))
    if not dimenet.is_dir():
        tools.refit(dataclasses.replace(cfg, dimenet=settings), Path(cfg.dimenet.checkpoint), dimenet)
    return dataclasses.replace(
        cfg,
        dimenet=dataclasses.replace(settings, checkpoint=str(dimenet / "dimenet.pth")),
        evaluation=dataclasses.replace(cfg.evaluation, dft_truth_path=str(points / POINTS_DB)),
    )


def _points(path: Path) -> list[TruthPoint]:
    return read_truth(path, with_unbound=True) if path.is_file() else []


def _names(path: Path) -> set[str]:
    return {point.name for point in _points(path)}


def _join(truth: Path, rounds: Mapping[str, Path], target: Path) -> None:
    """Write the points of a database and of some rounds into one."""
    before = truth
    for name, path in rounds.items():
        number = int(name.removeprefix("round_"))
        about = {
            sheet["name"]: {"round": number, "drawn_as": sheet["drawn_as"], "family": sheet["family"]} for sheet in sheets_of(path)
        }
        joined = target / f"{name}.db"
        join_points(before, path / POINTS_DB, joined, about)
        if before != truth:
            before.unlink()
        before = joined
    os.replace(before, target / POINTS_DB)
