"""Reads and writes checkpoints: plain tensors and values, loaded with ``weights_only=True`` and checked for kind and schema."""

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


def first_line(error: Exception, length: int = 160) -> str:
    """Return the first line of a message, cut to ``length`` characters; the name of the error where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:length]


def save_checkpoint(path: str | os.PathLike, kind: str, model_config: Any, state: dict[str, Any]) -> None:
    """Write ``{schema_version, kind, model_config, **state}`` atomically.

    Args:
        path: the checkpoint.
        kind: name of the network, which ``load_checkpoint`` asks for.
        model_config: dataclass that rebuilds the network.
        state: tensors and plain Python values only.
    """
    content = {"schema_version": SCHEMA_VERSION, "kind": kind, "model_config": dataclasses.asdict(model_config), **state}
    # Through a handle, because torch.save writes the name of a path into the archive: equal contents give equal files.
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        torch.save(content, handle)


def load_checkpoint(path: str | os.PathLike, kind: str, hint: str, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the content of a checkpoint.

    Args:
        path: the checkpoint.
        kind: name of the network that it must be of.
        hint: what the user can do about a checkpoint that cannot be used; ends every message.
        device: where its tensors are put.

    Raises:
        CheckpointError: the file is missing, damaged, not a plain checkpoint, of another kind or schema, or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file(f"{kind} checkpoint", path, hint, CheckpointError)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... for damaged or hostile files
        raise CheckpointError(f"{relative_name(path)} is not a readable {kind} checkpoint ({first_line(error)}): {hint}") from error
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
    """Return whether all floating-point tensors of nested containers are free of NaN and infinity."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return all(_is_finite(item) for item in items)


def load_ocp_checkpoint(path: str | os.PathLike, model: nn.Module) -> tuple[float, float]:
    """Load an official OCP/fairchem checkpoint of DimeNet++ on IS2RE into ``model``.

    Of the file are read ``state_dict``, its keys without any leading ``module.``, and ``normalizers.target`` or ``.energy``, with
    the mean and the std or rmsd of the target.

    Returns:
        Mean and standard deviation of the target (eV).

    Raises:
        CheckpointError: the file cannot be read, or keys are missing, unexpected or of another shape; the message names them.
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
        raise CheckpointError(f"dimenet.init_from: {name} is not a readable checkpoint ({first_line(error)})") from error
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
