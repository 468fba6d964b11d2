"""Predicts ΔG_H of a sheet at once, as the judge would say it: boosted trees on composition, bonds and what the heads say.

The judge (``potential_adsorption.py``, corrected from DFT) takes seconds for a sheet. What it said of sheets that stage 4 had drawn
teaches trees to say it beforehand, so that stage 4 knows which of thousands of sheets to refine and which to write. They take the
heads' ΔG_H as a descriptor where these are the ones that they learnt beside. Other trees learn the chance that the judge gives a
sheet to have a ΔG_H within the window of a hit: they know where the judge is sure of itself, and do not believe an extreme value.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from scipy.stats import norm

from energetics.band_gap_model import GapColumns, gap_descriptors
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import CheckpointError, first_line, load_checkpoint
from pipeline.files import file_sha256, missing_file, relative_name

log = logging.getLogger("her2d")

KIND = "activity"
HINT = "run python -m scripts.train_activity, or set evaluation.activity_checkpoint= to do without"
MIN_ELEMENT_ROWS = 3  # elements of fewer training sheets are outside the domain
HEADS = "ΔG_H by the heads"
# What the trees know beside the sheet; the more, the better.
KNOWN = {"the sheet": (), "heads": (HEADS,)}


@dataclasses.dataclass(frozen=True)
class ActivityColumns:
    """What the columns of the trees are; trees of other columns cannot be used."""

    names: list[str] = dataclasses.field(default_factory=lambda: [*GapColumns().names, HEADS])


@dataclasses.dataclass(frozen=True)
class ActivityModel:
    """Trees for each of KNOWN, and the root mean square error (eV) of each on formulas that it had not learnt from.

    chances: trees for the chance that |ΔG_H| is at most window_ev (eV), for each of KNOWN; none where no errors were known.
    learnt_beside: hash of the file with the heads. element_counts: training sheets of each element. asks_heads: whether these
    heads are at hand.
    """

    trees: Mapping[str, BoostedTrees]
    std_ev: Mapping[str, float]
    learnt_beside: str
    element_counts: Mapping[str, int]
    chances: Mapping[str, BoostedTrees] = dataclasses.field(default_factory=dict)
    window_ev: float = math.nan
    asks_heads: bool = True

    @classmethod
    def load(cls, path: str | os.PathLike) -> ActivityModel:
        """Read a checkpoint. Raises CheckpointError, which says what to do, where it cannot be used."""
        content = load_checkpoint(path, kind=KIND, hint=HINT)
        try:
            if content["model_config"] != dataclasses.asdict(ActivityColumns()):
                raise ValueError("its descriptors are not those of this version")
            return cls(
                {name: BoostedTrees.from_state(content["trees"][name]) for name in KNOWN},
                {name: float(content["std_ev"][name]) for name in KNOWN},
                str(content["learnt_beside"]),
                {str(symbol): int(count) for symbol, count in content["element_counts"].items()},
                {name: BoostedTrees.from_state(trees) for name, trees in content["chances"].items()},
                float(content["window_ev"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{relative_name(path)} does not fit ({first_line(error, 120)}): {HINT}") from error

    def state(self) -> dict[str, Any]:
        """Return plain values and tensors for ``networks.checkpoints``."""
        return {
            "trees": {name: trees.state() for name, trees in self.trees.items()},
            "std_ev": dict(self.std_ev),
            "learnt_beside": self.learnt_beside,
            "element_counts": dict(self.element_counts),
            "chances": {name: trees.state() for name, trees in self.chances.items()},
            "window_ev": self.window_ev,
        }

    def beside(self, denoiser: str | os.PathLike) -> ActivityModel:
        """Return the model for the heads of a checkpoint; it asks none but those that it learnt beside."""
        same = Path(denoiser).is_file() and file_sha256(denoiser) == self.learnt_beside
        if not same:
            log.info("the trees of ΔG_H learnt beside other heads than those of %s: without them", relative_name(denoiser))
        return dataclasses.replace(self, asks_heads=same)

    def delta_g(self, atoms: Atoms, by_heads: float = math.nan) -> tuple[float, float]:
        """Return ΔG_H of a sheet and its standard error, eV.

        Args:
            atoms: without H on it, in any setting.
            by_heads: ΔG_H by the heads of the denoiser, eV; NaN where they say nothing.

        Returns:
            (NaN, NaN) for an element of fewer than MIN_ELEMENT_ROWS training sheets.

        Raises:
            geo_utils.NotTwoDimensional: the crystal is no sheet.
            ValueError: an element without descriptors.
        """
        if not self._knows(atoms):
            return math.nan, math.nan
        name, columns = self._columns(atoms, by_heads)
        return float(self.trees[name].predict(columns)[0]), self.std_ev[name]

    def chance(self, atoms: Atoms, by_heads: float, window_ev: float) -> float:
        """Return the chance that |ΔG_H| of a sheet is at most ``window_ev`` (eV); NaN where ``delta_g`` is.

        By the trees for it where they learnt this window, else from ΔG_H and its standard error. The others: as for ``delta_g``.
        """
        if self.chances and math.isclose(window_ev, self.window_ev) and self._knows(atoms):
            name, columns = self._columns(atoms, by_heads)
            return float(np.clip(self.chances[name].predict(columns)[0], 0.0, 1.0))
        return float(within(*self.delta_g(atoms, by_heads), window_ev))

    def _knows(self, atoms: Atoms) -> bool:
        return all(self.element_counts.get(symbol, 0) >= MIN_ELEMENT_ROWS for symbol in set(atoms.get_chemical_symbols()))

    def _columns(self, atoms: Atoms, by_heads: float) -> tuple[str, np.ndarray]:
        """Return which of KNOWN is known of a sheet, and its descriptors (1, columns)."""
        said = [by_heads] if self.asks_heads and math.isfinite(by_heads) else []
        return list(KNOWN)[len(said)], np.append(gap_descriptors(atoms), said)[None]


def within(value: np.ndarray | float, std: np.ndarray | float, window: float) -> np.ndarray | float:
    """Return the chance that a normal variable is within ±window. value, std: its mean and standard deviation."""
    return norm.cdf((window - value) / std) - norm.cdf((-window - value) / std)


def load_activity_model(path: str, denoiser: str | os.PathLike) -> ActivityModel | None:
    """Return the model of a checkpoint beside the heads of another; None where none is named.

    Raises:
        StageError: there is no such file, or it cannot be used.
    """
    if not path:
        return None
    if not Path(path).is_file():
        raise missing_file("evaluation.activity_checkpoint", path, HINT)
    return _load(path, os.stat(path).st_mtime_ns).beside(denoiser)


@lru_cache(maxsize=2)
def _load(path: str, written: int) -> ActivityModel:
    return ActivityModel.load(path)
