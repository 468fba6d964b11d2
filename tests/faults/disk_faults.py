"""Disks that are full, limited or read-only: every stage ends with one line, and its earlier products stay as they are.

Called by ``kill_anywhere.py --disk``. The finished products of a stage are copied to a small file system in memory (tmpfs), and the
stage is started with another seed, so that it has work to do, while

- the file system is full,
- half of the space that the products take is left,
- the file system is read-only,
- no file can grow beyond 2 kB (RLIMIT_FSIZE, which needs no rights).

A file system can only be mounted by root; elsewhere the first three are skipped, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kill_anywhere as harness

LIMIT = 2048


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of so many bytes. Raises PermissionError with the reason where it cannot be mounted."""
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"no tmpfs can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, leave: int) -> None:
    """Leaves so many bytes of the file system."""
    state = os.statvfs(folder)
    with (folder / "filler").open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        for _ in range(max(0, state.f_bavail * state.f_frsize - leave) >> 12):
            handle.write(bytes(4096))
        while not leave:
            handle.write(bytes(4096))


def attempt(trial: harness.Trial, run: Path, largest_file: int = 0) -> tuple[int, str]:
    """Exit code and output of the stage, started with another seed on what lies in ``run``."""
    arguments = [argument.replace(str(trial.run), str(run)) for argument in trial.arguments]
    reading, writing = os.pipe()
    pid = harness.start(trial.stage, [*arguments, "run.seed=1"], writing, largest_file=largest_file)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), text


def check(trial: harness.Trial, fault: str, run: Path, before: dict[str, Any], largest_file: int = 0) -> str:
    """The line with which the stage ends; raises Violation where it does not end well or products have changed."""
    code, text = attempt(trial, run, largest_file)
    if code == 0 and fault == "nearly full":
        return "enough for the new products"
    named = f"{trial.stage.script}: "
    lines = [line for line in text.splitlines() if line.startswith(named)]
    if code != 1 or len(lines) != 1 or "Traceback" in text:
        raise harness.Violation(f"{trial.name} on a disk that is {fault}: exit code {code}, {len(lines)} lines\n{text[-3000:]}")
    after = {name: harness.content(run / name) for name in before if (run / name).is_file()}
    # Where a stage has parts, one that was complete before the disk was full has its new product; all are read below.
    if changed := [name for name in before if after.get(name) != before[name] and not (trial.stage.in_parts and name in after)]:
        raise harness.Violation(f"{trial.name} on a disk that is {fault}: products have changed: {', '.join(changed[:8])}")
    for path in harness.products(run):
        if path.name != "filler":
            harness.check_readable(path)
    return lines[0].removeprefix(named).replace(f"{trial.base}/", "")


def check_stage(trial: harness.Trial) -> dict[str, str]:
    """fault -> the line with which the stage ends, or why the fault could not be made."""
    # What is appended to while a stage works is no finished product.
    working = {p for p in harness.products(trial.run) if p.suffix == ".jsonl" or p.parent.name == "cache"}
    before = {str(p.relative_to(trial.run)): harness.content(p) for p in harness.products(trial.run) if p not in working}
    size = sum(path.stat().st_size + 4096 for path in harness.products(trial.run))
    found = {}
    for fault, leave in (("full", 0), ("nearly full", size // 2), ("read-only", 0)):
        try:
            with small_disk(trial.base / trial.name / fault, 2 * size + (1 << 20)) as disk:
                run = disk / "run"
                shutil.copytree(trial.run, run)
                if fault == "read-only":
                    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
                else:
                    fill(disk, leave)
                found[fault] = check(trial, fault, run, before)
        except PermissionError as error:
            found[fault] = f"skipped: {error}"
    found["limited"] = check(trial, f"limited to files of {LIMIT} bytes", trial.run, before, LIMIT)
    return found
