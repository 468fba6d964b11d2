"""Judges sheets of anybody. ``from evaluation import score; score(atoms)`` judges one as stage 6 does."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Import ``score`` when it is asked for, because it brings the judges' libraries along."""
    if name == "score":
        from evaluation.evaluate import score

        return score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
