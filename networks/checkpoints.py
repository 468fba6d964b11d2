"""Checkpoints: plain tensors and values, read with ``weights_only=True`` and checked for kind, schema and exact keys."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import StageError
from pipeline.files import atomic_path, missing_file, relative_name
from pipeline.provenance import SCHEMA_VERSION


class CheckpointError(StageError):
    """A checkpoint that cannot be used; the message names the file and what to do."""


def save_checkpoint(path: str | os.PathLike, kind: str, model_config: Any, state: dict[str, Any]) -> None:
    """Writes ``{schema_version, kind, model_config, **state}`` atomically. ``state`` holds tensors and plain Python values only."""
    content = {"schema_version": SCHEMA_VERSION, "kind": kind, "model_config": dataclasses.asdict(model_config), **state}
    # Through a handle, because torch.save writes the name of a path into the archive: equal contents give equal files.
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        torch.save(content, handle)


def load_checkpoint(path: str | os.PathLike, kind: str, hint: str, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint of one kind.

    Raises CheckpointError when the file is missing, truncated, not a plain checkpoint, of another kind or of another schema;
    ``hint`` says what the user can do about a missing one.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file(f"{kind} checkpoint", path, hint, CheckpointError)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... for damaged or hostile files
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{relative_name(path)} is not a readable {kind} checkpoint ({reason}): {hint}") from error
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str) or content["kind"] != kind:
        found = str(content.get("kind", "no kind"))[:40] if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{relative_name(path)} is not a {kind} checkpoint (found: {found}): {hint}")
    version = content.get("schema_version")
    if not isinstance(version, int) or version != SCHEMA_VERSION:
        raise CheckpointError(f"{relative_name(path)} has schema {str(version)[:40]}, expected {SCHEMA_VERSION}: {hint}")
    if not _is_finite(content):
        raise CheckpointError(f"{relative_name(path)} holds weights that are not finite: {hint}")
    return content


def _is_finite(value: Any) -> bool:
    """Whether all floating-point tensors of nested containers are free of NaN and infinity."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return all(_is_finite(item) for item in items)


def load_ocp_checkpoint(path: str | os.PathLike, model: nn.Module) -> tuple[float, float]:
    """Loads an official OCP/fairchem DimeNet++ IS2RE checkpoint into ``model``, strictly; returns its target mean and std (eV).

    Reads ``state_dict`` with any number of leading ``module.`` and ``normalizers.target`` or ``.energy`` (mean, std or rmsd).
    Raises CheckpointError naming the keys that are missing, unexpected or of another shape.
    """
    path, name = Path(path), relative_name(path)
    if not path.is_file():
        raise missing_file("dimenet.init_from", path, error=CheckpointError)
    numpy_types = [np.dtype, np.ndarray, np._core.multiarray.scalar, np._core.multiarray._reconstruct]
    numpy_types += [(t, t.__module__.replace("_core", "core") + "." + t.__name__) for t in numpy_types[2:]]
    numpy_types += [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
    try:
        with torch.serialization.safe_globals(numpy_types):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files raise many unrelated errors
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"dimenet.init_from: {name} is not a readable checkpoint ({reason})") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"dimenet.init_from: {name} has no 'state_dict', so it is no OCP checkpoint")
    state = {re.sub(r"^(module\.)+", "", str(key)): value for key, value in content["state_dict"].items()}
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"dimenet.init_from: {name} holds something else than tensors in its 'state_dict'")
    if not _is_finite(state):
        raise CheckpointError(f"dimenet.init_from: {name} holds weights that are not finite")
    expected = model.state_dict()
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"dimenet.init_from: {name} does not fit dimenet.preset: {'; '.join(problems[:3])}{more}")
    try:
        normalizers = content["normalizers"]
        normalizer = normalizers["target"] if "target" in normalizers else normalizers["energy"]
        spread = normalizer["std"] if "std" in normalizer else normalizer["rmsd"]
        mean, std = (float(torch.as_tensor(value).reshape(-1)[0]) for value in (normalizer["mean"], spread))
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"dimenet.init_from: {name} has no mean and std in normalizers.target or normalizers.energy"
        ) from error
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise CheckpointError(f"dimenet.init_from: {name} has an unusable normaliser (mean {mean}, std {std})")
    model.load_state_dict(state, strict=True)
    return mean, std
