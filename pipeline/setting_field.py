"""Declares one setting with its default, meaning and range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any


def setting(
    default: Any, doc: str, *, low: float | None = None, high: float | None = None, choices: Sequence[str] = (), path: bool = False
) -> Any:
    """Declare one setting.

    Args:
        default: value where the user gives none.
        doc: meaning, shown by ``--help``.
        low, high: allowed range, inclusive.
        choices: allowed words; empty: any.
        path: whether it names a file or a folder.
    """
    metadata = {"doc": doc, "low": low, "high": high, "choices": tuple(choices), "path": path}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
