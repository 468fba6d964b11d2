"""Loops that numba compiles."""

from __future__ import annotations

import numba
import numpy as np

from pipeline import loops


def test_loops_are_compiled_where_nothing_can_be_kept(monkeypatch):
    def no_folder(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(loops, "njit", no_folder)

    @loops.compiled
    def add(x, out):
        for k in range(len(x)):
            out[k] = x[k] + 1

    out = np.zeros(3)
    add(np.arange(3.0), out)
    assert out.tolist() == [1, 2, 3]
