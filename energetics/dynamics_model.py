"""Estimates the probability that C2DB would call a sheet dynamically stable: phonons by a potential and boosted trees together.

The phonons of a potential agree with those of PBE for three sheets in four: it does not know what electrons do near an instability.
The trees learnt C2DB's verdicts from composition, bonds and E_above_hull. A logistic function of both decides.
"""

from __future__ import annotations

import dataclasses
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
from pipeline.files import missing_file, relative_name

KIND = "dynamics"
HINT = "run python -m scripts.phonon_benchmark, or set evaluation.dynamics_checkpoint= to do without"
MIN_ELEMENT_ROWS = 3  # elements of fewer training sheets are outside the domain
HESSIAN_SCALE = 0.3  # eV/Å², above which the lowest eigenvalue counts by its logarithm


@dataclasses.dataclass(frozen=True)
class DynamicsColumns:
    """What the columns of the trees are; trees of other columns cannot be used."""

    names: list[str] = dataclasses.field(default_factory=lambda: [*GapColumns().names, "E_above_hull"])


def descriptors(atoms: Atoms, e_above_hull: float) -> np.ndarray:
    """Return the descriptors of a sheet, in any setting, float64. e_above_hull: eV/atom.

    Raises:
        ValueError: no sheet, or an element without descriptors.
    """
    return np.append(gap_descriptors(atoms), e_above_hull)


def hessian_score(min_hessian: np.ndarray | float) -> np.ndarray:
    """Return what the logistic function takes of the lowest eigenvalue of the Hessian (eV/Å²)."""
    return np.arcsinh(np.asarray(min_hessian, dtype=float) / HESSIAN_SCALE)


@dataclasses.dataclass(frozen=True)
class DynamicsModel:
    """Trees, whose prediction is the log-odds without phonons, and the weights of the logistic function.

    weights: constant, factor of the log-odds, factor of ``hessian_score``. potential: name of the one whose phonons it was fitted
    to. element_counts: training sheets of each element.
    """

    trees: BoostedTrees
    weights: tuple[float, float, float]
    potential: str
    element_counts: Mapping[str, int]

    @classmethod
    def load(cls, path: str | os.PathLike) -> DynamicsModel:
        """Read a checkpoint. Raises CheckpointError, which says what to do, where it cannot be used."""
        content = load_checkpoint(path, kind=KIND, hint=HINT)
        try:
            if content["model_config"] != dataclasses.asdict(DynamicsColumns()):
                raise ValueError("its descriptors are not those of this version")
            constant, trees, hessian = (float(value) for value in content["weights"])
            counts = {str(symbol): int(count) for symbol, count in content["element_counts"].items()}
            return cls(BoostedTrees.from_state(content["trees"]), (constant, trees, hessian), str(content["potential"]), counts)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{relative_name(path)} does not fit ({first_line(error, 120)}): {HINT}") from error

    def state(self) -> dict[str, Any]:
        """Return plain values and tensors for ``networks.checkpoints``."""
        state = {"trees": self.trees.state(), "weights": [float(weight) for weight in self.weights], "potential": self.potential}
        return state | {"element_counts": dict(self.element_counts)}

    def without_phonons(self, atoms: Atoms, e_above_hull: float) -> float:
        """Return the probability by the trees alone; arguments, NaN and errors as of ``probability``."""
        if any(self.element_counts.get(symbol, 0) < MIN_ELEMENT_ROWS for symbol in set(atoms.get_chemical_symbols())):
            return math.nan
        return float(1 / (1 + np.exp(-self.trees.predict(descriptors(atoms, e_above_hull)[None])[0])))

    def probability(self, atoms: Atoms, e_above_hull: float, min_hessian: float) -> float:
        """Return the probability that a sheet is stable; NaN for an element of fewer than MIN_ELEMENT_ROWS training sheets.

        Args:
            atoms: a sheet in any setting.
            e_above_hull: eV/atom.
            min_hessian: lowest eigenvalue of its Hessian by the model's potential, eV/Å².

        Raises:
            ValueError: the crystal is no sheet.
        """
        if any(self.element_counts.get(symbol, 0) < MIN_ELEMENT_ROWS for symbol in set(atoms.get_chemical_symbols())):
            return math.nan
        odds = self.trees.predict(descriptors(atoms, e_above_hull)[None])[0]
        constant, of_trees, of_hessian = self.weights
        return float(1 / (1 + np.exp(-(constant + of_trees * odds + of_hessian * hessian_score(min_hessian)))))


def load_dynamics_model(path: str) -> DynamicsModel | None:
    """Return the model of a checkpoint, read once until it changes; None where none is named. Raises StageError as ``load``."""
    if not path:
        return None
    if not Path(path).is_file():
        raise missing_file("evaluation.dynamics_checkpoint", path, HINT)
    return _load(path, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=2)
def _load(path: str, written: int) -> DynamicsModel:
    return DynamicsModel.load(path)
