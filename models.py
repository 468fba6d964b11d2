"""Networks of the pipeline: DimeNet++ (hydrogen adsorption energies) and DenoisingEGNN (joint diffusion of 2D crystals).

A checkpoint holds the settings of its model and rebuilds it by itself; it is read with ``weights_only=True`` and checked for kind,
schema and exact keys, so that no other model's weights ever load under this name.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from config import SCHEMA_VERSION, StageError, atomic_path, relative_name


class CheckpointError(StageError):
    """A checkpoint that cannot be used; the message names the file and what to do."""


def save_checkpoint(path: str | os.PathLike, kind: str, model_config: Any, state: dict[str, Any]) -> None:
    """Writes ``{schema_version, kind, model_config, **state}`` atomically. ``state`` holds tensors and plain Python values only."""
    content = {"schema_version": SCHEMA_VERSION, "kind": kind, "model_config": dataclasses.asdict(model_config), **state}
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: str | os.PathLike, kind: str, hint: str, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint of one kind.

    Raises CheckpointError when the file is missing, truncated, not a plain checkpoint, of another kind or of another schema;
    ``hint`` says what the user can do about a missing one.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no {kind} checkpoint at {relative_name(path)}: {hint}")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... for damaged or hostile files
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{relative_name(path)} is not a readable {kind} checkpoint ({reason}): {hint}") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        found = content.get("kind", "no kind") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{relative_name(path)} is not a {kind} checkpoint (found: {found}): {hint}")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{relative_name(path)} has schema {content.get('schema_version')}, expected {SCHEMA_VERSION}: {hint}"
        )
    return content
