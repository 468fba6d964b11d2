"""The lock of an output folder: one holder at a time, and no trace of the dead."""

from __future__ import annotations

import signal

import pytest
from lock_holder import held

from pipeline.errors import StageError
from pipeline.locks import LOCK, locked_folder


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``tmp_path / "out"``."""
    with held(tmp_path / "out") as process:
        yield process


def test_a_second_process_is_told_who_holds_it(holder, tmp_path):
    with (
        pytest.raises(StageError, match=rf"in use by process {holder.pid} on .*set external.output_dir") as caught,
        locked_folder(tmp_path / "out", "external.output_dir"),
    ):
        pytest.fail("two holders")
    assert "\n" not in str(caught.value)
    with locked_folder(tmp_path / "another", "external.output_dir"):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_no_obstacle(holder, tmp_path, number):
    holder.send_signal(number)
    holder.wait()
    assert (tmp_path / "out" / LOCK).exists()
    with locked_folder(tmp_path / "out", "x.y"):
        pass
    assert not list((tmp_path / "out").iterdir())


def test_it_is_free_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked_folder(tmp_path / "a" / "b", "x.y"):
            raise ZeroDivisionError
    assert not list((tmp_path / "a" / "b").iterdir())
