"""Chooses among the prototypes of a composition by boosted trees on the descriptors of ``crystals/prototype_library.py``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from crystals.prototype_library import COLUMNS, DESCRIPTORS, Candidate, PrototypeLibrary, descriptors
from generation.sheet_table import sheet_of
from geo_utils import Sheet
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import CheckpointError, first_line, load_checkpoint, save_checkpoint
from pipeline.files import relative_name

KIND = "prototype_ranker"
HINT = "run python -m scripts.train_ranker, or set generation.ranker_checkpoint=weights/ranker.pth"


@dataclasses.dataclass(frozen=True)
class RankerConfig:
    """What the columns of a model are; a model of other columns cannot be used."""

    descriptors: tuple[str, ...] = DESCRIPTORS
    columns: int = COLUMNS


def prototype_library(table: dict[str, Any]) -> PrototypeLibrary:
    """Return the prototypes of the columns that ``read_split`` returns, with progress bars."""
    sheets = [sheet_of(table, row) for row in range(len(table["uid"]))]
    return PrototypeLibrary(sheets, table["formula"], table["e_hull"].double().numpy(), table["h_form"].double().numpy())


class RankedPrototypes:
    """Known crystals with the elements of a composition, the most probable first.

    Args:
        library: of the crystals.
        trees: that rank its candidates.
    """

    def __init__(self, library: PrototypeLibrary, trees: BoostedTrees) -> None:
        self.library, self.trees = library, trees
        self._ranked: dict[tuple[int, ...], list[Candidate]] = {}  # by the sorted atomic numbers

    def ranked(self, atomic_numbers: Sequence[int]) -> list[Candidate]:
        """Return the candidates of a composition, the best first; [] where no prototype fits."""
        key = tuple(sorted(int(z) for z in atomic_numbers))
        if key not in self._ranked:
            candidates = self.library.candidates(key)
            scores = self.trees.predict(descriptors(self.library, candidates)) if candidates else np.zeros(0)
            self._ranked[key] = [candidates[k] for k in np.argsort(-scores, kind="stable")]
        return self._ranked[key]

    def nearest(self, atomic_numbers: Sequence[int], most: int) -> list[Sheet]:
        """Return at most ``most`` sheets of a composition, the most probable first, as ``KnownCrystals.nearest`` does."""
        return [candidate.sheet() for candidate in self.ranked(atomic_numbers)[:most]]


def save_trees(path: str | os.PathLike, trees: BoostedTrees, **content: object) -> None:
    """Write trees as a checkpoint, with further plain values."""
    save_checkpoint(path, KIND, RankerConfig(), {"trees": trees.state(), **content})


def load_trees(path: str | os.PathLike) -> tuple[BoostedTrees, list[str]]:
    """Return the trees of a checkpoint and the formulas that they have seen.

    Raises:
        CheckpointError: the file is missing, damaged, or of other descriptors.
    """
    content = load_checkpoint(path, KIND, HINT)
    try:
        if content["model_config"] != dataclasses.asdict(RankerConfig()):
            raise ValueError("its descriptors are not those of this version")
        return BoostedTrees.from_state(content["trees"]), list(content["formulas_seen"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{relative_name(path)} does not fit this version ({first_line(error, 120)}): {HINT}") from error


def ranked_prototypes(table: dict[str, Any], trees: str | os.PathLike) -> RankedPrototypes:
    """Return the crystals of the columns that ``read_split`` returns, ranked by the trees of a checkpoint."""
    loaded = load_trees(trees)[0]  # first, because the library takes minutes
    return RankedPrototypes(prototype_library(table), loaded)
