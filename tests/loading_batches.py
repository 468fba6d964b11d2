"""Batches for ``tests/networks/test_loading.py``, made in loader workers."""

from __future__ import annotations

import os
import signal

import torch

from pipeline.errors import StageError


class Squares:
    """The step and its square; some steps cannot be made, or take the worker along."""

    def __init__(self, fails_at: int = -1, dies_at: int = -1) -> None:
        self.fails_at, self.dies_at = fails_at, dies_at

    def __call__(self, step: int) -> tuple[torch.Tensor, int, int]:
        if step == self.fails_at:
            raise StageError("data.lmdb, key 5: damaged")
        if step == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([step]), step**2, os.getpid()
