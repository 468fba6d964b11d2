"""Loops over arrays that numba compiles."""

from __future__ import annotations

from collections.abc import Callable

from numba import njit

OPTIONS = {"fastmath": True, "error_model": "numpy"}


def compiled(loops: Callable[..., None]) -> Callable[..., None]:
    """Return loops compiled by numba, which keeps them on disk where it finds a folder that it may write to."""
    try:
        return njit(cache=True, **OPTIONS)(loops)
    except RuntimeError:  # numba finds none
        return njit(**OPTIONS)(loops)
