"""Makes the batches of a training, in this process or ahead of time in workers.

A batch is a function of its step alone. So it does not matter who makes it, and a resumed run has nothing to restore.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipeline.errors import StageError

PREFETCH = 4  # batches that each worker makes ahead

MakeBatch = Callable[[int], Any]  # the batch of a step; with workers picklable, and its batches tuples of tensors and numbers


def batches(make: MakeBatch, first: int, end: int, workers: int = 0, pin: bool = False) -> Iterator[Any]:
    """Yield the batches of the steps ``first`` to ``end`` - 1.

    Args:
        make: makes the batch of a step.
        first: number of the first step.
        end: number of the step after the last one.
        workers: processes that make batches ahead of time; 0: this one makes each when it is asked for.
        pin: whether tensors go to memory from which a GPU copies while it computes.

    Raises:
        StageError: as ``make`` raises it, at its step; or a worker has died.
    """
    if workers == 0 or multiprocessing.current_process().daemon:  # a daemon, such as a worker of Dask, may have no workers
        yield from map(make, range(first, end))
        return
    # Workers come from a process that has only imported PyTorch: a copy of this one could stop at a lock that another thread holds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", type(make).__module__])
    loader = torch.utils.data.DataLoader(
        _Steps(make),
        batch_size=None,
        sampler=range(first, end),
        num_workers=workers,
        prefetch_factor=PREFETCH,
        multiprocessing_context=context,
        pin_memory=pin,
        worker_init_fn=_leave_interrupt_to_parent,
        generator=torch.Generator(),  # else it draws from the global one, whose state a resumed run restores
    )
    found = iter(loader)
    for _ in range(first, end):
        try:
            batch = next(found)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):  # PyTorch's words for one that is gone
                raise
            raise StageError("a loader worker has died (out of memory?); start the stage again, it goes on there") from error
        if isinstance(batch, _Failure):
            raise StageError(batch.reason)
        yield batch


def _leave_interrupt_to_parent(_: int) -> None:
    """Ignore Ctrl-C in a worker: whoever asks for batches may still need one to end its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Failure:
    """A message in place of a batch, because an exception in a worker would arrive with its whole traceback as its text."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class _Steps(torch.utils.data.Dataset):
    """Batches by step, as PyTorch's loader asks for them."""

    def __init__(self, make: MakeBatch) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Any:
        try:
            return self.make(step)
        except StageError as error:
            return _Failure(str(error))
