"""Locks an output folder, so that two runs do not write to it at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import StageError
from pipeline.files import relative_name

log = logging.getLogger("her2d")

LOCK = ".lock"


@contextlib.contextmanager
def locked_folder(folder: str | os.PathLike, setting: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made where it is missing.

    The system frees the lock of a process that ends in any way, so that a file that is left over is no obstacle. Where the file
    system has no locks, the log says so and the run goes on.

    Args:
        folder: where the stage writes.
        setting: name of the setting that chooses the folder, for the message.

    Raises:
        StageError: another process holds the lock.
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked_file(path, setting)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # while it is held: whoever waits with the old file sees that it has gone
        os.close(descriptor)


def _locked_file(path: Path, setting: str) -> int:
    """Return the descriptor of the lock file, locked and with the name of this process in it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(descriptor)
            place = relative_name(path.parent)
            raise StageError(f"{place} is in use by {holder}: wait for it, or set {setting} to another folder") from error
        except OSError as error:
            log.warning("%s: no lock on this file system (%s)", relative_name(path.parent), error.strerror)
            return descriptor
        if _is_still(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)  # the holder before removed the file in the meantime


def _is_still(path: Path, descriptor: int) -> bool:
    """Tell whether a path still is the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
