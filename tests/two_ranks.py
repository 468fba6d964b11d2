"""What the two processes of ``tests/networks/test_two_ranks.py`` do, which torchrun starts: it writes what each has seen."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import signal
import sys
from pathlib import Path
from unittest import mock

import torch

import optimization
import pretrain_dimenet
from energetics import dimenet_stage
from energetics.dimenet_training import MemberBatches
from generation import denoiser_training
from networks.dimenet_layers import DimeNetPlusPlusConfig
from networks.training import Trainer
from pipeline import plotting, torchrun
from pipeline.errors import OtherRankError, StageError
from pipeline.settings import Config

SIZE = DimeNetPlusPlusConfig(
    hidden_channels=8, out_emb_channels=8, int_emb_size=4, num_blocks=1, num_spherical=2, num_radial=3, cutoff_angstrom=3.5
)
STAGES = {"denoiser": optimization.main, "dimenet": pretrain_dimenet.main}


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
        stack.enter_context(mock.patch.object(DimeNetPlusPlusConfig, "preset", classmethod(lambda cls, name: SIZE)))
        stack.enter_context(mock.patch.object(denoiser_training, "VALIDATION_SHEETS", 12))
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


def main(folder: Path) -> None:
    cfgs: dict[str, Config] = pickle.loads((folder / "configs.pkl").read_bytes())
    written, seen = [], {}
    folder_name = str(folder)
    sys.addaudithook(lambda event, args: written.append(str(args[0])) if is_write(event, args, folder_name) else None)
    with small():
        for name, stage in STAGES.items():
            cfg = cfgs[name]
            stage(in_folder(cfg, f"{name}_two"))
            for where in (f"{name}_parts", f"{name}_one"):
                try:
                    with terminated(3):
                        stage(in_folder(cfg, where))
                except KeyboardInterrupt:
                    seen[where] = "stopped"
            stage(in_folder(cfg, f"{name}_parts"))
        try:
            with damaged(2):
                pretrain_dimenet.main(in_folder(cfgs["dimenet"], "broken"))
        except StageError as error:
            seen["broken"] = [isinstance(error, OtherRankError), error.of_one_rank]
    report = {"seen": seen, "written": written, "threads": torch.get_num_threads()}
    (folder.parent / f"rank{torchrun.rank()}.json").write_text(json.dumps(report))


def is_write(event: str, args: tuple, folder: str) -> bool:
    """Whether an event is about to change something below the folder."""
    if event == "open":
        return str(args[0]).startswith(folder) and any(mark in str(args[1] or "") for mark in "wax+")
    return event in ("os.mkdir", "os.rename", "os.remove") and str(args[0]).startswith(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
