"""Predicts E_above_hull of a sheet by networks that learnt it from PBE, as a third opinion beside learnt hull and potential.

The networks are refiners (``networks/refiner.py``): beside the way to the relaxed sheet they learnt its E_above_hull, from the
sheet itself, with no potential between. So their errors are other ones than those of the learnt hull and of the potential, and the
mean of all three is better than each.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from generation.refinement import load_refiner, network_of, padded, weights_of
from geo_utils import Sheet
from networks.checkpoints import CheckpointError, first_line, load_checkpoint, save_checkpoint
from networks.refiner import SheetRefiner
from networks.sheet_trunk import TrunkConfig
from pipeline.files import relative_name
from pipeline.settings import EvaluationConfig

KIND = "hull_network"
HINT = "run python -m scripts.join_hull_network, or set evaluation.hull: both"
COMBINED = "combined"
BATCH = 32  # sheets
# Of the networks in the mean. On relaxed sheets of the validation split 0.7 and 0.8 are alike and the best of 0.4, 0.5 ... 1.
NETWORK_SHARE = 0.75


class HullNetwork:
    """The ensemble.

    Args:
        members: networks of one size.
        scale: factor that makes the size of an error, as the learnt hull expects it, the standard error of the mean.
    """

    def __init__(self, members: Sequence[SheetRefiner], scale: float) -> None:
        self.members, self.scale = [member.double().eval().requires_grad_(False) for member in members], scale

    @cached_property
    def _single(self) -> list[SheetRefiner]:
        """Return the members in single precision."""
        return [copy.deepcopy(member).float() for member in self.members]

    def combined(self, others: float, atoms: Atoms) -> float:
        """Return the weighted mean of E_above_hull by others and by the networks, eV/atom; errors as of ``e_above_hull``.

        others: the mean of learnt hull and potential.
        """
        return (1 - NETWORK_SHARE) * others + NETWORK_SHARE * self.e_above_hull(atoms)

    def e_above_hull(self, atoms: Atoms) -> float:
        """Return E_above_hull of a relaxed sheet, eV/atom.

        Raises:
            NotTwoDimensional: the crystal is no sheet.
        """
        return float(self.of_sheets([Sheet.from_atoms(atoms)])[0])

    @torch.no_grad()
    def of_sheets(self, sheets: Sequence[Sheet], dtype: torch.dtype = torch.float64) -> np.ndarray:
        """Return E_above_hull (M,) of M relaxed sheets, eV/atom: the mean of the members, not below 0.

        dtype: in double precision no sheet depends on the others of its batch; single precision takes half the time.
        """
        found, members = np.zeros(len(sheets)), self.members if dtype == torch.float64 else self._single
        # Sheets of about the same size share a batch, so that little of it is padding.
        order = np.argsort([len(sheet.atomic_numbers) for sheet in sheets], kind="stable").tolist()
        for first in range(0, len(order), BATCH):
            batch = order[first : first + BATCH]
            state = padded([sheets[k] for k in batch], dtype)
            found[batch] = torch.stack([member(state).e_hull for member in members]).mean(0).numpy()
        return np.maximum(0.0, found)


def save_hull_network(path: str | os.PathLike, members: Sequence[SheetRefiner], scale: float, **content: object) -> None:
    """Write an ensemble as a checkpoint, its weights in half precision, with further plain values."""
    state = {"members": [weights_of(member) for member in members], "scale": float(scale)}
    save_checkpoint(path, KIND, members[0].config, {**state, **content})


def load_hull_network(settings: EvaluationConfig) -> HullNetwork | None:
    """Return the ensemble that the configuration names, None where ``evaluation.hull`` does not ask for it or has no learnt hull.

    Raises:
        CheckpointError: the file is missing, damaged, or of another version.
    """
    asked = settings.hull == COMBINED and Path(settings.hull_checkpoint).is_file()
    return _load(settings.hull_network) if asked else None


def load_members(path: str | os.PathLike) -> list[SheetRefiner]:
    """Return the networks of an ensemble, or the one of a checkpoint of ``scripts.train_refiner``.

    Raises:
        CheckpointError: the file is neither.
    """
    try:
        return _load(path).members
    except CheckpointError:
        return [load_refiner(path)[0]]


def _load(path: str | os.PathLike) -> HullNetwork:
    """Read a checkpoint; see ``load_hull_network``."""
    content = load_checkpoint(Path(path), KIND, HINT)
    try:
        config = TrunkConfig(**content["model_config"])
        return HullNetwork([network_of(config, weights) for weights in content["members"]], float(content["scale"]))
    except Exception as error:  # settings and weights of another origin raise many unrelated errors
        raise CheckpointError(f"{relative_name(path)} does not fit this version ({first_line(error, 120)}): {HINT}") from error
