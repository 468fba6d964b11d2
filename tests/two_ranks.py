"""What the two processes of ``tests/networks/test_two_ranks.py`` do: each writes what it has seen.

They are copies of this process, which imports once for both, and have the variables that torchrun sets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import sys
from pathlib import Path
from unittest import mock

import torch
import torch._dynamo  # which the first optimiser imports: once for all ranks

import optimization
import pretrain_dimenet
from energetics import dimenet_stage
from energetics.dimenet_training import MemberBatches
from generation import denoiser_training
from generation.sheet_table import SheetTable
from networks.dimenet_layers import DimeNetPlusPlusConfig
from networks.training import Trainer
from pipeline import plotting, torchrun
from pipeline.errors import OtherRankError, StageError
from pipeline.settings import Config

SIZE = DimeNetPlusPlusConfig(
    hidden_channels=8, out_emb_channels=8, int_emb_size=4, num_blocks=1, num_spherical=2, num_radial=3, cutoff_angstrom=3.5
)
FIND, TEMPLATES = SheetTable.find_templates, {}
STAGES = {"denoiser": optimization.main, "dimenet": pretrain_dimenet.main}


def find_templates_once(table: SheetTable, name: str, silent: bool) -> None:
    """``SheetTable.find_templates``, which takes as long as the rest, for the first table of each name."""
    if name not in TEMPLATES:
        FIND(table, name, silent)
        TEMPLATES[name] = table.templates
    table.templates = TEMPLATES[name]


@contextlib.contextmanager
def small():
    """The stages as they are, with tiny networks and without figures."""
    figure = mock.MagicMock()  # axes, of which a legend is asked for
    figure.return_value.__enter__.return_value = None, mock.MagicMock()
    figure.return_value.__enter__.return_value[1].__getitem__.return_value.get_legend_handles_labels.return_value = [], []
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(plotting, "figure", figure))
        for name in ("draw_loss_curve", "draw_parity"):
            stack.enter_context(mock.patch.object(dimenet_stage, name))
        stack.enter_context(mock.patch.object(denoiser_training, "score_heads", lambda *_: {}))
        stack.enter_context(mock.patch.object(DimeNetPlusPlusConfig, "preset", classmethod(lambda cls, name: SIZE)))
        stack.enter_context(mock.patch.object(denoiser_training, "VALIDATION_SHEETS", 12))
        stack.enter_context(mock.patch.object(SheetTable, "find_templates", find_templates_once))
        yield


def is_last() -> bool:
    """Whether this is the last rank, to which alone something happens."""
    return torchrun.rank() == torchrun.world_size() - 1


@contextlib.contextmanager
def terminated(step: int):
    """Let the last rank have a SIGTERM before a step."""
    original = Trainer.train_step

    def train_step(trainer):
        if trainer.step == step and is_last():
            signal.raise_signal(signal.SIGTERM)
        return original(trainer)

    with mock.patch.object(Trainer, "train_step", train_step):
        yield


@contextlib.contextmanager
def damaged(step: int):
    """Let the last rank read a record that is damaged."""
    original = MemberBatches.__call__

    def batch(batches, number):
        if number == step and is_last():
            raise StageError("a damaged record")
        return original(batches, number)

    with mock.patch.object(MemberBatches, "__call__", batch):
        yield


def in_folder(cfg: Config, name: str) -> Config:
    """The settings with another folder for the products, beside the first."""
    moved = {}
    for section in STAGES:
        path = Path(getattr(cfg, section).checkpoint)
        moved[section] = dataclasses.replace(getattr(cfg, section), checkpoint=str(path.parent.with_name(name) / path.name))
    return dataclasses.replace(cfg, **moved)


def main(folder: Path, rank: int, count: int, port: int) -> None:
    """Do all of it as one rank of ``count``, with the variables that torchrun sets."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in numbers.items()}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    cfgs: dict[str, Config] = pickle.loads((folder / "configs.pkl").read_bytes())
    written, seen = [], {}
    sys.addaudithook(lambda event, args: written.append(str(args[0])) if is_write(event, args, str(folder)) else None)
    with small():
        for name, stage in STAGES.items():
            stage(in_folder(cfgs[name], f"{name}_two"))
            parts = in_folder(cfgs[name], f"{name}_parts")
            try:
                with terminated(3):
                    stage(parts)
            except KeyboardInterrupt:
                seen[name] = "stopped"
            if rank == 0:  # for one process that goes on; the others wait for the first at the start of the next run
                shutil.copytree(folder / f"{name}_parts", folder / f"{name}_one")
            stage(parts)
        try:
            with damaged(2):
                pretrain_dimenet.main(in_folder(cfgs["dimenet"], "broken"))
        except StageError as error:
            seen["broken"] = [isinstance(error, OtherRankError), error.of_one_rank]
    report = {"seen": seen, "written": written, "threads": torch.get_num_threads()}
    (folder.parent / f"rank{rank}.json").write_text(json.dumps(report))


def is_write(event: str, args: tuple, folder: str) -> bool:
    """Whether an event is about to change something below the folder."""
    if event == "open":
        return str(args[0]).startswith(folder) and any(mark in str(args[1] or "") for mark in "wax+")
    return event in ("os.mkdir", "os.rename", "os.remove") and str(args[0]).startswith(folder)


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [multiprocessing.get_context("fork").Process(target=main, args=(Path(sys.argv[1]), k, 2, port)) for k in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in ranks))
