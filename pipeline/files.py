"""Writes files atomically, hashes them, and names them in messages."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import StageError


def _project_dir() -> Path:
    """Return the folder with config.yaml, data and weights: the checkout, or where an installation without one puts them."""
    checkout, installed = Path(__file__).resolve().parent.parent, Path(sys.prefix) / "share" / "her2d"
    return installed if not (checkout / "config.yaml").is_file() and installed.is_dir() else checkout


PROJECT_DIR = _project_dir()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and move it there when the block succeeds, so that no file is ever half-written."""
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    except StageError:
        raise
    except Exception as error:
        # torch, LMDB and SQLite have errors of their own for a disk that is full: an attempt to write says whether it is.
        try:
            with temporary.open("ab", buffering=0) as handle:
                handle.write(bytes(1 << 16))
        except OSError as reason:
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):  # a folder that became read-only
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that takes its place when the block succeeds."""
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        temporary.mkdir()
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_swept: set[tuple[int, Path]] = set()


def _temporary_beside(path: Path) -> Path:
    """Return a hidden name beside ``path``, after removing temporary files there of processes of this machine that have ended."""
    folder, host = path.parent, platform.node()
    folder.mkdir(parents=True, exist_ok=True)
    if (os.getpid(), folder) not in _swept:
        _swept.add((os.getpid(), folder))
        for left in folder.glob(".*"):
            match = re.search(rf"\.([0-9]+)@{re.escape(host)}\.(tmp|db)", left.name)
            if match and not _is_running(int(match[1])):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}@{host}.tmp")


def _is_running(pid: int) -> bool:
    """Return whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        pass
    return True


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write JSON atomically. NaN becomes null, so that every reader can parse it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_jsonable(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def as_float(value: float | None) -> float:
    """Return a number that ``write_json`` wrote, NaN where it is null."""
    return float("nan") if value is None else float(value)


def _jsonable(value: Any) -> Any:
    """Return a value as JSON can hold it: arrays as lists, dataclasses as objects, paths as text, NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _jsonable(dataclasses.asdict(value))
    if isinstance(value, Path):
        return str(value)
    return value


def missing_file(key: str, path: str | os.PathLike, hint: str = "", error: type[StageError] = StageError) -> StageError:
    """Return the error for a file that is not there.

    Args:
        key: setting that names the file; where several settings can, what the file is.
        path: where it should be; an empty one is shown as such.
        hint: what to do.
        error: class of the error.
    """
    shown = relative_name(path) if str(path) else "(empty)"
    return error(f"{key}: no file at {shown}" + (f": {hint}" if hint else ""))


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, or of the sorted list of (name, SHA-256) of the files of a folder."""
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_dir():
        for item in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{item.relative_to(path)} {file_sha256(item)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def relative_name(path: str | os.PathLike) -> str:
    """Return a path as it is shown and stored: relative to the project where it lies inside it."""
    path = Path(path)
    return str(path.relative_to(PROJECT_DIR)) if path.is_relative_to(PROJECT_DIR) else str(path)
