"""The processes of one training: this one alone, or those that ``torchrun`` has started, joined by Lightning Fabric.

A process is called a rank, as in MPI and PyTorch. Each has the whole model. ``Share`` says which rows of a batch a rank computes,
``Ranks`` joins what the ranks have found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch

from pipeline import torchrun
from pipeline.errors import StageError
from pipeline.locks import locked_folder

Found = TypeVar("Found")
PATIENCE = timedelta(hours=2)  # a rank waits so long for the first one, which may read a whole database or draw figures


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of each batch that is one rank's: every ``count``-th row from row ``rank`` on."""

    rank: int = 0
    count: int = 1

    def rows(self, total: int) -> list[int]:
        """Return the rows of a batch of ``total`` rows. A rank for which none is left takes row 0, with ``weight`` 0."""
        return list(range(self.rank, total, self.count)) or [0]

    def weight(self, total: int) -> float:
        """Return 1, or 0 where the rows of this rank are another's."""
        return float(self.rank < total)


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Let imports of a package fail: Fabric only looks at its version, for what is not used here, and it takes three seconds."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None
    try:
        yield
    finally:
        del sys.modules[package]


def make_fabric(device: torch.device) -> Any:
    """Return a silent Lightning Fabric: for one device, or for all ranks, of which this one has ``device``."""
    with warnings.catch_warnings(), _without("torchmetrics"):
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric

        for name in ("lightning_fabric", "lightning_utilities"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if torchrun.is_used():
            from lightning_fabric.strategies import DDPStrategy

            strategy = DDPStrategy(broadcast_buffers=False, timeout=PATIENCE)
            local = torchrun.local_world_size()
            nodes = torchrun.world_size() // local
            fabric = Fabric(accelerator=device.type, strategy=strategy, devices=local, num_nodes=nodes)
            fabric.launch()
            return fabric
        if device.type == "cpu":
            return Fabric(accelerator="cpu", devices=1)
        return Fabric(accelerator=device.type, devices=[device.index or 0])


@contextlib.contextmanager
def _others_may_be_gone() -> Iterator[None]:
    """Say in one line that another process has been killed, or its machine lost."""
    try:
        yield
    except RuntimeError as error:  # of gloo or nccl
        raise StageError(
            f"no word from another process of the training ({str(error).splitlines()[0][:100]}); start it again"
        ) from error


class Ranks:
    """All processes of a training.

    Args:
        device: of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.share = device, Share(torchrun.rank(), torchrun.world_size())
        if self.are_joined:
            self.fabric  # noqa: B018 - joins the others

    @functools.cached_property
    def fabric(self) -> Any:
        """Return the engine; one process alone imports it when it trains, not before."""
        return make_fabric(self.device)

    @property
    def are_joined(self) -> bool:
        """Return whether ``torchrun`` has started the processes, so that they can speak to each other."""
        return torchrun.is_used()

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that writes."""
        return self.share.rank == 0

    def sum(self, values: torch.Tensor, largest: bool = False) -> torch.Tensor:
        """Return the sum of what the ranks have, or the largest, element by element and the same for all.

        Raises:
            StageError: another rank is gone.
        """
        if not self.are_joined:
            return values
        total = values.to(self.device, copy=True)
        with _others_may_be_gone():
            # Not Fabric's all_reduce, which waits for all ranks once more before each sum.
            torch.distributed.all_reduce(total, torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM)
        return total.to(values.device)

    def from_first(self, make: Callable[[], Found]) -> Found:
        """Return what ``make`` returns in the first rank, which alone calls it; picklable. Its error is raised in every rank."""
        if not self.are_joined:
            return make()
        found: Any = None
        if self.is_first:
            try:
                found = make()
            except Exception as error:
                found = error
        with _others_may_be_gone():
            found = self.fabric.broadcast(found)
        if isinstance(found, Exception):
            raise found
        return found

    @contextlib.contextmanager
    def locked(self, folder: str | os.PathLike, setting: str) -> Iterator[None]:
        """Hold the lock of an output folder, which the first rank takes for all; raises in all as ``locked_folder`` does."""
        with contextlib.ExitStack() as held:
            self.from_first(lambda: held.enter_context(locked_folder(folder, setting)))
            yield
