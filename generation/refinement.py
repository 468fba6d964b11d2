"""Moves sheets to where their elements want them, by the network of ``networks/refiner.py`` in a few steps.

The steps keep the symmetry of a sheet, because the network is equivariant and nothing is drawn at random.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from crystals.elements import covalent_radius_table, element_descriptors
from geo_utils import Sheet
from networks.checkpoints import CheckpointError, first_line, load_checkpoint, save_checkpoint
from networks.refiner import SheetRefiner, move
from networks.sheet_trunk import BUFFERS, SheetState, TrunkConfig
from pipeline.files import relative_name

KIND = "refiner"
HINT = "run python -m scripts.train_refiner, or set generation.refiner_checkpoint=weights/refiner.pth"
STATE_DECIMALS = 6
BATCH = 256  # sheets at a time, so that thousands fit in the memory


def new_refiner(config: TrunkConfig) -> SheetRefiner:
    """Return an untrained network."""
    return SheetRefiner(config, element_descriptors().float(), covalent_radius_table().float())


def padded(sheets: Sequence[Sheet], dtype: torch.dtype = torch.float32) -> SheetState:
    """Return sheets as one padded batch."""
    width = max(len(sheet) for sheet in sheets)
    sizes = torch.tensor([len(sheet) for sheet in sheets])
    pad = lambda x: np.concatenate([x, np.zeros((width - len(x), *x.shape[1:]), dtype=x.dtype)])  # noqa: E731
    names = ("atomic_numbers", "frac_coords", "heights")
    stacked = [torch.as_tensor(np.stack([pad(getattr(sheet, name)) for sheet in sheets])) for name in names]
    cell = torch.as_tensor(np.stack([sheet.lattice for sheet in sheets])).to(dtype)
    mask = torch.arange(width)[None] < sizes[:, None]
    return SheetState(stacked[0], stacked[1].to(dtype), stacked[2].to(dtype), cell, mask)


def unpadded(state: SheetState) -> list[Sheet]:
    """Return the sheets of a batch in the standard setting, rounded so that they do not depend on the batch."""
    result = []
    for k, size in enumerate(state.mask.sum(1).tolist()):
        frac, heights, cell = (
            np.round(x.double().cpu().numpy(), STATE_DECIMALS)
            for x in (state.frac_coords[k, :size], state.heights[k, :size], state.cell[k])
        )
        plain = Sheet(state.atomic_numbers[k, :size].cpu().numpy(), frac % 1.0, heights, cell)
        result.append(Sheet.from_atoms(plain.to_atoms()))
    return result


@torch.no_grad()
def refine(network: SheetRefiner, sheets: Sequence[Sheet], steps: int) -> list[Sheet]:
    """Return sheets moved by a network in its own precision, in the standard setting and the same order."""
    if not sheets:
        return []
    like = next(network.parameters())
    state = SheetState(*(x.to(like.device) for x in vars(padded(sheets, like.dtype)).values()))
    for _ in range(steps):
        state = move(state, network(state))
    return unpadded(state)


def weights_of(network: SheetRefiner) -> dict[str, torch.Tensor]:
    """Return the weights of a network in half precision, without what follows from the elements and the configuration."""
    state = network.state_dict()
    return {name: x.half() if x.is_floating_point() else x for name, x in state.items() if name not in BUFFERS}


def network_of(config: TrunkConfig, weights: dict[str, torch.Tensor]) -> SheetRefiner:
    """Return the network that has the weights of ``weights_of``; RuntimeError and others where they do not fit."""
    network = new_refiner(config)
    own = {name: x.float() if x.is_floating_point() else x for name, x in weights.items()}
    network.load_state_dict({name: getattr(network, name) for name in BUFFERS} | own, strict=True)
    return network.eval().requires_grad_(False)


def save_refiner(path: str | os.PathLike, network: SheetRefiner, **content: Any) -> None:
    """Write a network as a checkpoint, its weights in half precision, with further plain values and tensors."""
    save_checkpoint(path, KIND, network.config, {"model": weights_of(network), **content})


def load_refiner(path: str | os.PathLike, device: str | torch.device = "cpu") -> tuple[SheetRefiner, dict[str, Any]]:
    """Return a trained network in evaluation mode, frozen, and the content of its checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, or of another version.
    """
    content = load_checkpoint(path, KIND, HINT)
    try:
        network = network_of(TrunkConfig(**content["model_config"]), content["model"])
    except Exception as error:  # settings and weights of another origin raise many unrelated errors
        raise CheckpointError(f"{relative_name(path)} does not fit this version ({first_line(error, 120)}): {HINT}") from error
    return network.to(device), content


@lru_cache(maxsize=2)
def _network(path: str, dtype: torch.dtype) -> SheetRefiner:
    """Return the network of a file in a precision, read once."""
    return load_refiner(path)[0].to(dtype)


def refined_sheets(path: str, sheets: Sequence[Sheet], steps: int, dtype: torch.dtype = torch.float64) -> list[Sheet]:
    """Return sheets moved by the network of a checkpoint, in double precision so that none depends on the others of its batch.

    dtype: single precision takes half the time, where sheets are only put in an order.
    """
    parts = [sheets[start : start + BATCH] for start in range(0, len(sheets), BATCH)]
    return [sheet for part in parts for sheet in refine(_network(path, dtype), part, steps)]
