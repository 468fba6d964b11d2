"""The embedded synthesizability model as a judge: boosted trees on the composition and the bonds of a sheet."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import numpy as np
import torch
from ase import Atoms
from pymatgen.core import Structure

from crystals.descriptors import COMPOSITION_NAMES, SHEET_NAMES, crystal_descriptors
from evaluation.material_strings import as_structure
from evaluation.synthesizability import SynthesizabilityJudge, SynthScore
from geo_utils import NotTwoDimensional
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import CheckpointError, first_line, load_checkpoint
from pipeline.files import file_sha256, relative_name

KIND = "synth_trees"


@dataclasses.dataclass(frozen=True)
class DescriptorTable:
    """What the columns of the model are; a model of other columns cannot be used."""

    composition: list[str] = dataclasses.field(default_factory=lambda: list(COMPOSITION_NAMES))
    sheet: list[str] = dataclasses.field(default_factory=lambda: list(SHEET_NAMES))


def probability(odds: np.ndarray, calibration: dict[str, float]) -> np.ndarray:
    """Return P_synth of log-odds of the trees: sigmoid((odds − threshold) / temperature).

    Args:
        odds: (N,) of ``BoostedTrees.predict``.
        calibration: ``threshold`` and ``temperature``, both in log-odds, as ``synth_calibration.fit_calibration`` returns them.
    """
    return 1 / (1 + np.exp(-np.clip((odds - calibration["threshold"]) / calibration["temperature"], -700, 700)))


class EmbeddedTreesJudge(SynthesizabilityJudge):
    """The boosted trees that ``scripts.pretrain_csllm`` fits, where CSLLM is not installed.

    They abstain (NaN) on crystals that are not monolayers and on elements of which they saw too few sheets. There is no label mass,
    for this is no language model.
    """

    name = "embedded-trees"

    def __init__(self, checkpoint: str | os.PathLike, device: str | torch.device = "cpu") -> None:
        hint = "run python -m scripts.pretrain_csllm or set evaluation.embedded_checkpoint"
        content = load_checkpoint(checkpoint, kind=KIND, hint=hint)
        try:
            if content["model_config"] != dataclasses.asdict(DescriptorTable()):
                raise ValueError("its descriptors are not those of this version")
            self.trees = BoostedTrees.from_state(content["trees"])
            self.element_counts: dict[str, int] = dict(content["element_counts"])
            self.min_element_rows = int(content["min_element_rows"])
            self.calibration = {key: float(content["calibration"][key]) for key in ("threshold", "temperature")}
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            message = f"{relative_name(checkpoint)} does not fit the embedded model ({first_line(error, 120)}): {hint}"
            raise CheckpointError(message) from error
        self.metrics: dict[str, Any] = dict(content.get("metrics", {}))
        self.identity = {
            "name": self.name,
            "checkpoint": relative_name(checkpoint),
            "sha256": file_sha256(checkpoint),
            "trees": len(self.trees.roots),
            "test_roc_auc": self.metrics.get("test", {}).get("roc_auc"),
        }

    def _score_one(self, structure: Structure | Atoms) -> SynthScore:
        try:
            ordered = as_structure(structure)
            atoms = ordered.to_ase_atoms()
            unknown = sorted(s for s in set(atoms.get_chemical_symbols()) if self.element_counts.get(s, 0) < self.min_element_rows)
            if unknown:
                return _abstain(f"element not in training: {', '.join(unknown)}")
            descriptors = crystal_descriptors(atoms)
        except NotTwoDimensional:
            return _abstain("not a monolayer: outside the training domain")
        except ValueError as error:
            return _abstain(f"no descriptors: {error}")
        return SynthScore(
            float(probability(self.trees.predict(descriptors[None]), self.calibration)[0]), math.nan, math.nan, "ok", True
        )


def _abstain(reason: str) -> SynthScore:
    return SynthScore(math.nan, math.nan, math.nan, reason, False)
