"""Batches made by workers are those made here, in the same order; what goes wrong in a worker is one line."""

from __future__ import annotations

import os

import pytest
import torch
from loading_batches import Squares

from networks.loading import batches
from pipeline.errors import StageError


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_from_any_step(workers):
    state = torch.get_rng_state()
    found = list(batches(Squares(), 3, 20, workers))
    assert [(int(tensor), square) for tensor, square, _ in found] == [(step, step**2) for step in range(3, 20)]
    makers = {process for *_, process in found}
    assert len(makers) == max(1, workers) and (os.getpid() in makers) == (workers == 0)
    assert torch.equal(torch.get_rng_state(), state), "the state that a resumed run restores"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_is_named_at_its_step(workers):
    found = batches(Squares(fails_at=2), 0, 5, workers)
    assert [square for _, square, _ in (next(found), next(found))] == [0, 1]
    with pytest.raises(StageError, match="^data.lmdb, key 5: damaged$"):
        next(found)


def test_a_worker_that_dies_is_named():
    with pytest.raises(StageError, match="a loader worker has died"):
        list(batches(Squares(dies_at=1), 0, 3, 1))
