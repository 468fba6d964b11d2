"""Leaves figures undrawn, in tests of stages that draw and whose figures another test looks at."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipeline import plotting


def leave_figures_undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a PNG of one pixel and an empty PDF in the place of every figure."""

    def save(_, path) -> None:
        Image.new("RGB", (1, 1)).save(path, "png")
        Path(path).with_suffix(".pdf").touch()

    monkeypatch.setattr(plotting, "save", save)
