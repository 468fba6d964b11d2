"""Predicts ΔG_H of a sheet at once, as the judge would say it: boosted trees on composition, bonds, heads and DimeNet++.

The judge (``potential_adsorption.py``, corrected from DFT) takes half a minute for a sheet. What it said of sheets that stage 4 had
drawn teaches trees to say it beforehand, so that stage 4 knows which of thousands of sheets to refine and which to write. They take
the heads' and DimeNet++'s ΔG_H as descriptors where these are the ones that they learnt beside.
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

from energetics.band_gap_model import GapColumns, gap_descriptors
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import CheckpointError, first_line, load_checkpoint
from pipeline.files import file_sha256, missing_file, relative_name

log = logging.getLogger("her2d")

KIND = "activity"
HINT = "run python -m scripts.train_activity, or set evaluation.activity_checkpoint= to do without"
MIN_ELEMENT_ROWS = 3  # elements of fewer training sheets are outside the domain
HEADS, DIMENET = "ΔG_H by the heads", "ΔG_H by DimeNet++"
# What the trees know beside the sheet; the more, the better.
KNOWN = {"the sheet": (), "heads": (HEADS,), "heads and DimeNet++": (HEADS, DIMENET)}


@dataclasses.dataclass(frozen=True)
class ActivityColumns:
    """What the columns of the trees are; trees of other columns cannot be used."""

    names: list[str] = dataclasses.field(default_factory=lambda: [*GapColumns().names, HEADS, DIMENET])


@dataclasses.dataclass(frozen=True)
class ActivityModel:
    """Trees for each of KNOWN, and the root mean square error (eV) of each on formulas that it had not learnt from.

    learnt_beside: hashes of the files with the heads and with DimeNet++. element_counts: training sheets of each element. usable:
    those of HEADS and DIMENET whose files are at hand.
    """

    trees: Mapping[str, BoostedTrees]
    std_ev: Mapping[str, float]
    learnt_beside: Mapping[str, str]
    element_counts: Mapping[str, int]
    usable: frozenset[str] = frozenset((HEADS, DIMENET))

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
                {name: str(content["learnt_beside"][name]) for name in (HEADS, DIMENET)},
                {str(symbol): int(count) for symbol, count in content["element_counts"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{relative_name(path)} does not fit ({first_line(error, 120)}): {HINT}") from error

    def state(self) -> dict[str, Any]:
        """Return plain values and tensors for ``networks.checkpoints``."""
        return {
            "trees": {name: trees.state() for name, trees in self.trees.items()},
            "std_ev": dict(self.std_ev),
            "learnt_beside": dict(self.learnt_beside),
            "element_counts": dict(self.element_counts),
        }

    def beside(self, denoiser: str | os.PathLike, dimenet: str | os.PathLike) -> ActivityModel:
        """Return the model for the heads and the DimeNet++ of two checkpoints, without those that it did not learn beside."""
        files = {HEADS: denoiser, DIMENET: dimenet}
        same = {name for name, path in files.items() if Path(path).is_file() and file_sha256(path) == self.learnt_beside[name]}
        for name in sorted(set(files) - same):
            log.info("the trees of ΔG_H learnt beside others than %s: without %s", relative_name(files[name]), name)
        return dataclasses.replace(self, usable=frozenset(same))

    def delta_g(self, atoms: Atoms, by_heads: float = math.nan, by_dimenet: float = math.nan) -> tuple[float, float]:
        """Return ΔG_H of a sheet and its standard error, eV.

        Args:
            atoms: without H on it, in any setting.
            by_heads: ΔG_H by the heads of the denoiser, eV; NaN where they say nothing.
            by_dimenet: ΔG_H by DimeNet++, corrected from DFT, eV; NaN where it says nothing.

        Returns:
            (NaN, NaN) for an element of fewer than MIN_ELEMENT_ROWS training sheets.

        Raises:
            geo_utils.NotTwoDimensional: the crystal is no sheet.
            ValueError: an element without descriptors.
        """
        if any(self.element_counts.get(symbol, 0) < MIN_ELEMENT_ROWS for symbol in set(atoms.get_chemical_symbols())):
            return math.nan, math.nan
        said = {name: value for name, value in ((HEADS, by_heads), (DIMENET, by_dimenet)) if self._counts(name, value)}
        best = [name for name, needed in KNOWN.items() if set(needed) <= set(said)][-1]
        row = np.append(gap_descriptors(atoms), [said[name] for name in KNOWN[best]])
        return float(self.trees[best].predict(row[None])[0]), self.std_ev[best]

    def _counts(self, name: str, value: float) -> bool:
        return name in self.usable and math.isfinite(value)


def load_activity_model(path: str, denoiser: str | os.PathLike, dimenet: str | os.PathLike) -> ActivityModel | None:
    """Return the model of a checkpoint beside the heads and the DimeNet++ of two others; None where none is named.

    Raises:
        StageError: there is no such file, or it cannot be used.
    """
    if not path:
        return None
    if not Path(path).is_file():
        raise missing_file("evaluation.activity_checkpoint", path, HINT)
    return _load(path, os.stat(path).st_mtime_ns).beside(denoiser, dimenet)


@lru_cache(maxsize=2)
def _load(path: str, written: int) -> ActivityModel:
    return ActivityModel.load(path)
