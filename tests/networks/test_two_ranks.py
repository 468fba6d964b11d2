"""Two processes train both networks as one does, stop together, and leave the writing to the first."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_ranks
from emt_records import records
from tiny_sheets import tiny_config
from two_ranks import STAGES, in_folder, small

from energetics.is2re_lmdb import write_is2re
from pipeline.files import PROJECT_DIR
from pipeline.settings import Config

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def weights(cfg: Config, name: str) -> dict[str, torch.Tensor]:
    """Return the weights in the product of a stage."""
    content = torch.load(getattr(cfg, name).checkpoint, weights_only=True)
    if name == "denoiser":
        return content["model"]
    return {f"{number} {key}": value for number, member in enumerate(content["members"]) for key, value in member.items()}


def curve(cfg: Config, name: str) -> list[list[float]]:
    """Return the numbers of the loss curve."""
    (path,) = Path(getattr(cfg, name).checkpoint).parent.glob("*loss_curve.csv")
    return [[float(value) for value in row.values()] for row in csv.DictReader(path.open())]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the settings of both stages and what the ranks have seen, with a run of one process beside those of two."""
    folder = tmp_path_factory.mktemp("ranks") / "work"
    folder.mkdir()
    cfg = tiny_config(folder)
    # Seven rows for two ranks: an uneven share, and in the last batch of an epoch a rank may have none.
    cfg = dataclasses.replace(cfg, denoiser=dataclasses.replace(cfg.denoiser, batch_size=7, max_steps=4))
    write_is2re(folder / "data.lmdb", records(24))
    dimenet = {"epochs": 2, "ensemble_size": 1, "batch_size": 7, "target_abs_max_ev": 50.0, "dft_path": ""}
    paths = {"lmdb_path": str(folder / "data.lmdb"), "checkpoint": str(folder / "out" / "dimenet.pth")}
    cfgs = {"denoiser": cfg, "dimenet": dataclasses.replace(cfg, dimenet=dataclasses.replace(cfg.dimenet, **dimenet, **paths))}
    (folder / "configs.pkl").write_bytes(pickle.dumps(cfgs))
    torch.set_num_threads(1)
    with small():
        for name, stage in STAGES.items():
            stage(in_folder(cfgs[name], f"{name}_alone"))
    env = os.environ | {"PYTHONPATH": f"{PROJECT_DIR}:{PROJECT_DIR / 'tests'}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, two_ranks.__file__, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return cfgs, [json.loads((folder.parent / f"rank{k}.json").read_text()) for k in range(2)]


@pytest.mark.parametrize("name", STAGES)
def test_losses_and_weights_are_those_of_one_process(trained, name):
    one, two = (in_folder(trained[0][name], f"{name}_{which}") for which in ("alone", "two"))
    torch.testing.assert_close(torch.tensor(curve(two, name)), torch.tensor(curve(one, name)), **TOLERANCE)
    expected, found = weights(one, name), weights(two, name)
    assert expected.keys() == found.keys() and any(not torch.equal(found[key], expected[key]) for key in expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, **TOLERANCE, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", STAGES)
def test_a_stopped_run_of_two_goes_on_bit_identically(trained, name):
    cfgs, ranks = trained
    assert all(rank["seen"][name] == "stopped" for rank in ranks), "by a signal that one rank alone has had"
    whole, parts = (in_folder(cfgs[name], f"{name}_{which}") for which in ("two", "parts"))
    first, second = weights(whole, name), weights(parts, name)
    assert all(torch.equal(second[key], value) for key, value in first.items()) and curve(parts, name) == curve(whole, name)


@pytest.mark.parametrize("name", STAGES)
def test_one_process_goes_on_with_what_two_have_left(trained, name, caplog):
    cfg = in_folder(trained[0][name], f"{name}_one")
    with small(), caplog.at_level("INFO", "her2d"):
        STAGES[name](cfg)
    assert "going on after step 3 of" in caplog.text
    expected, found = weights(in_folder(trained[0][name], f"{name}_two"), name), weights(cfg, name)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, **TOLERANCE, msg=lambda text, key=key: f"{key}: {text}")


def test_the_first_rank_alone_writes(trained):
    first, second = trained[1]
    assert second["written"] == [] and first["threads"] == second["threads"] == 1
    kinds = {Path(name).suffix for name in first["written"]}
    assert {".tmp", ""} <= kinds and sum(name.endswith(".lock") for name in first["written"]) > 4


def test_a_rank_that_fails_takes_the_others_along(trained):
    first, second = (rank["seen"]["broken"] for rank in trained[1])
    assert first == [True, False] and second == [False, True]
