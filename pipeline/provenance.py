"""Writes and reads sidecars: the JSON file beside every product that says which stage made it, how and from what."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import StageError, first_line
from pipeline.files import PROJECT_DIR, file_sha256, relative_name, write_json

SCHEMA_VERSION = 1


def git_commit() -> str:
    """Return the commit of the working tree, '+changes' when it is not clean, 'unknown' outside a checkout."""
    try:
        run = lambda *args: subprocess.run(["git", *args], cwd=PROJECT_DIR, capture_output=True, text=True, check=True).stdout  # noqa: E731
        return run("rev-parse", "--short=12", "HEAD").strip() + ("+changes" if run("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def sidecar_path(product: str | os.PathLike) -> Path:
    """Return the name of the sidecar: ``x.json`` of ``x.pth``, ``manifest.json`` in a folder."""
    product = Path(product)
    return product / "manifest.json" if product.is_dir() else product.with_suffix(".json")


def write_sidecar(
    product: str | os.PathLike,
    *,
    stage: str,
    seed: int,
    settings: Any,
    inputs: Sequence[str | os.PathLike] = (),
    counts: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Write the sidecar of a product.

    Args:
        product: file or folder; it exists already.
        stage: name of the script, such as "optimization.py".
        seed: of the run.
        settings: dataclass or dict; absolute paths are stored relative to the project.
        inputs: files and folders that the product depends on; stored with their SHA-256.
        counts: rows read, kept and dropped, by reason.
        metrics: what was measured on the product.
        extra: further keys.

    Returns:
        The content that was written.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "stage": stage,
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git_commit": git_commit(),
        "seed": seed,
        "settings": {
            key: _without_machine(value)
            for key, value in (dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) else dict(settings)).items()
        },
        "inputs": {relative_name(path): file_sha256(path) for path in inputs},
        "counts": counts or {},
        "metrics": metrics or {},
        **extra,
    }
    write_json(sidecar_path(product), content)
    return content


def _without_machine(value: Any) -> Any:
    """Return a setting, absolute paths relative to the project, in a list too."""
    if isinstance(value, list | tuple):
        return [_without_machine(one) for one in value]
    return relative_name(value) if isinstance(value, str) and os.path.isabs(value) else value


def read_sidecar(product: str | os.PathLike, *, stage: str) -> dict[str, Any]:
    """Read the sidecar of a product.

    Raises:
        StageError: it is missing, unreadable, of another schema or of another stage. The message names the stage to run.
    """
    path = sidecar_path(product)
    if not path.is_file():
        raise StageError(f"{relative_name(path)} is missing: rerun {stage}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(f"{relative_name(path)} is not readable JSON ({first_line(error)}): rerun {stage}") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise StageError(f"{relative_name(path)} has another schema version: rerun {stage}")
    if content.get("stage") != stage:
        raise StageError(f"{relative_name(path)} was written by {content.get('stage')}, not by {stage}")
    return content


def check_inputs_unchanged(content: dict[str, Any], product: str | os.PathLike) -> None:
    """Raise StageError when an input recorded in a sidecar is there but has changed since ('stale')."""
    for name, expected in content.get("inputs", {}).items():
        path = PROJECT_DIR / name
        if path.exists() and file_sha256(path) != expected:
            raise StageError(f"{relative_name(product)} is stale: {name} has changed since; rerun {content['stage']}")
