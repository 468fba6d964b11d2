"""Writing that succeeds whole or not at all, and says why."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import sqlite3
import subprocess
import sys
import time

import pytest
import torch

from pipeline import files
from pipeline.cli import run_stage
from pipeline.errors import StageError
from pipeline.files import atomic_folder, atomic_path, write_json
from pipeline.tasks import end_with_parent


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.fixture(autouse=True)
def unswept(monkeypatch):
    """As in a process that has written nothing yet."""
    monkeypatch.setattr(files, "_swept", set())


def test_what_a_killed_process_has_left_goes_with_the_next_write_beside_it(tmp_path, dead):
    host = platform.node()
    (tmp_path / f".a.pth.{dead}@{host}.tmp").write_bytes(b"half")
    (tmp_path / f".demo.db.{dead}@{host}.db").write_bytes(b"half")
    (tmp_path / f".gen_00001.{dead}@{host}.tmp").mkdir()
    kept = [f".a.pth.{os.getppid()}@{host}.tmp", f".a.pth.{dead}@another-machine.tmp", ".hidden", "a.tmp"]
    for name in kept:
        (tmp_path / name).write_text("somebody's")
    write_json(tmp_path / "b.json", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "b.json"])


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "gen_00001"
    with atomic_folder(target) as folder:
        (folder / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:
        (folder / "x").write_text("half")
        assert (target / "x").read_text() == "old"
        raise ZeroDivisionError
    assert (target / "x").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["gen_00001"]
    with atomic_folder(target) as folder:
        (folder / "y").write_text("new")
    assert [p.name for p in target.iterdir()] == ["y"]


def test_a_disk_that_is_too_small_is_named_with_the_file_also_by_torch(tmp_path):
    product = tmp_path / "weights.pth"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught, atomic_path(product) as temporary:
            torch.save({"x": torch.zeros(4096)}, temporary)
        assert caught.value.filename == str(product)
        with pytest.raises(OSError, match="File too large") as caught:
            write_json(tmp_path / "x.json", "x" * 5000)
        assert caught.value.filename == str(tmp_path / "x.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_errors_that_are_no_disks_stay_what_they_are(tmp_path):
    with pytest.raises(KeyError), atomic_path(tmp_path / "x") as temporary:
        raise KeyError(temporary)
    with pytest.raises(StageError, match="mine"), atomic_path(tmp_path / "x"):
        raise StageError("mine")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_found_by_sqlite_is_one_line(capsys):
    def stage(_):
        raise sqlite3.OperationalError("database or disk is full")

    assert run_stage(stage, "doc", ("run",), []) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(": database or disk is full")


def _worker(path: str) -> None:
    end_with_parent()
    while True:
        with open(path, "a") as handle:
            handle.write(".")
        time.sleep(0.02)


def _stage(path: str) -> None:
    multiprocessing.get_context("spawn").Process(target=_worker, args=(path,)).start()
    time.sleep(60)


def test_a_worker_writes_nothing_after_its_parent_is_gone(tmp_path):
    path = tmp_path / "written"
    parent = multiprocessing.get_context("spawn").Process(target=_stage, args=(str(path),))
    parent.start()
    for _ in range(3000):
        if path.is_file():
            break
        time.sleep(0.02)
    parent.kill()
    parent.join()
    for _ in range(100):
        size = path.stat().st_size
        time.sleep(0.2)
        if path.stat().st_size == size:
            return
    pytest.fail("the worker goes on writing")
