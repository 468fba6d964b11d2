"""Leaves figures undrawn, in tests of stages that draw and whose figures another test looks at."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import plotting


def leave_figures_undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write every figure as empty files."""

    def save(_, path) -> None:
        for name in (Path(path), Path(path).with_suffix(".pdf")):
            name.touch()

    monkeypatch.setattr(plotting, "save", save)
