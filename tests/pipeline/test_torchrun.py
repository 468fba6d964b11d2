"""Stages under torchrun: which may be, and who says what."""

from __future__ import annotations

import pytest

from networks.ranks import Share
from pipeline import torchrun
from pipeline.cli import resolve_device, run_stage
from pipeline.errors import ConfigError, OtherRankError, StageError
from pipeline.settings import RunConfig

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def rank(monkeypatch):
    """Return a function that makes this process one of the ranks of a machine with four."""

    def become(number: int) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        for name, value in zip(NAMES, (number, 4, number, 4), strict=True):
            monkeypatch.setenv(name, str(value))

    return become


def test_rows_are_shared_and_each_counts_once():
    for total in (1, 2, 7, 8):
        for count in (1, 2, 4):
            shares = [Share(rank, count) for rank in range(count)]
            rows = [row for share in shares for row in share.rows(total) if share.weight(total)]
            assert sorted(rows) == list(range(total)) and all(share.rows(total) for share in shares)


def test_variables_of_other_launchers_do_not_count(monkeypatch, rank):
    for name in NAMES:
        monkeypatch.setenv(name, "3")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert torchrun.is_first() and (torchrun.rank(), torchrun.world_size(), torchrun.local_world_size()) == (0, 1, 1)
    rank(3)
    assert not torchrun.is_first() and (torchrun.rank(), torchrun.local_rank(), torchrun.local_world_size()) == (3, 3, 4)


def test_a_stage_of_one_process_refuses_torchrun(rank, capsys):
    rank(0)
    assert run_stage(lambda cfg: None, "doc", ("run",), []) == 2
    assert "start it without torchrun" in capsys.readouterr().err
    assert run_stage(lambda cfg: None, "doc", ("run",), [], under_torchrun=True) == 0


@pytest.mark.parametrize(
    ("number", "error", "own", "said"),
    [
        (0, StageError("x"), False, "x\n"),
        (3, StageError("x"), False, ""),
        (3, StageError("x"), True, "process 3: x\n"),
        (0, OtherRankError("x"), False, ""),
        (3, KeyboardInterrupt(), False, ""),
    ],
)
def test_an_error_is_said_once(rank, capsys, number, error, own, said):
    rank(number)
    if own:
        error.of_one_rank = True

    def fail(_):
        raise error

    assert run_stage(fail, "doc", ("run",), [], under_torchrun=True) in (1, 130)
    assert capsys.readouterr().err.partition(": ")[2] == said


def test_bfloat16_is_for_training_on_gpus():
    settings = RunConfig(device="cpu", precision="bf16", threads=1)
    assert resolve_device(settings).type == "cpu"
    with pytest.raises(ConfigError, match="run.precision=bf16 is for GPUs"):
        resolve_device(settings, training=True)
