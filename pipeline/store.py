"""Stores of finished records, from which a stage that was stopped goes on.

Two layouts have one interface: ``store[key]``, ``key in store``, iteration over the keys, and ``store.add(key, record)``, which
returns the record as the next start would read it, so that products do not depend on when a run was stopped. ``LineStore`` is one
append-only file of JSON lines, for many small records of one process. ``FolderStore`` has one JSON file per key, for records that
several runs or processes share.

A damaged entry is missing, with one warning that names it; every other entry stays. A killed writer leaves at most one unfinished
line or a hidden temporary file. Reading changes nothing on the disk. A full or read-only disk is an OSError that names the file.

Imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import atomic_path, relative_name, write_json

log = logging.getLogger("her2d")

UNUSABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)  # what a damaged entry raises when read
MOST_NAMED = 5  # damaged lines that a warning names


class Store(Mapping):
    """Finished records by key."""

    @abstractmethod
    def add(self, key: Hashable, record: Any) -> Any:
        """Store a record, and return it as the next start would read it."""


def _keyed(key: Hashable, record: Any) -> Any:
    """Return the entry of a line: the record with its key in front."""
    return {"key": key, **record}


def _with_key(entry: Any) -> tuple[Hashable, Any]:
    """Return (key, record) of an entry."""
    record = dict(entry)
    return record.pop("key"), record


class LineStore(Store):
    """Records in an append-only file of JSON lines, all of them in memory.

    A key that is there twice has its last record. Only one process may write.

    Args:
        path: the file; made by the first ``add``.
        identity: what all records depend on, written in the first line; None for a file without such a line. The first ``add`` to a
            file of another identity starts it anew.
        pack: entry of a line from (key, record), a JSON object or list; ``{"key": key, **record}`` unless given.
        unpack: (key, record) from an entry, the inverse of ``pack``; raises one of UNUSABLE for an entry that is none.
        sync: whether every line is forced to the disk, where it survives a power cut: for records that take minutes.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any] | None = None,
        *,
        pack: Callable[[Hashable, Any], Any] = _keyed,
        unpack: Callable[[Any], tuple[Hashable, Any]] = _with_key,
        sync: bool = False,
    ) -> None:
        self.path, self.identity, self.sync = Path(path), identity, sync
        self._pack, self._unpack = pack, unpack
        self._records: dict[Hashable, Any] = {}
        self._damaged: list[int] = []  # numbers of lines, from 1
        self._last_start = 0  # offset of the last line
        self._lines = 0
        self._needs_newline = False
        self._head: str | None = None  # what is wrong with the first line: "missing", "other" or "damaged"
        self._is_mended = False
        self._read()

    def __getitem__(self, key: Hashable) -> Any:
        return self._records[key]

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def add(self, key: Hashable, record: Any) -> Any:
        """Append a record, and return it as the next start would read it; one that is there already is not written again.

        Raises:
            OSError: nothing can be written; the records of the file stay, and no part of a line is left in it.
        """
        line = json.dumps(self._pack(key, record))
        key, stored = self._unpack(json.loads(line))
        if key not in self._records or json.dumps(self._records[key]) != json.dumps(stored):  # as text, in which NaN is NaN
            self._mend()
            self._append((b"\n" if self._needs_newline else b"") + line.encode() + b"\n")
            self._needs_newline = False
            self._records[key] = stored
        return stored

    def _read(self) -> None:
        self._head = "missing" if self.identity is not None else None
        if not self.path.is_file():
            return
        offset = 0
        with self.path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                self._lines, self._last_start, self._needs_newline = number, offset, not line.endswith(b"\n")
                offset += len(line)
                if number == 1 and self.identity is not None:
                    self._head = self._head_fault(line)
                    if self._head is not None:
                        break
                else:
                    self._read_line(number, line)
        if self._head == "other":
            log.info("%s is of other settings or inputs and is made anew", relative_name(self.path))
        elif self._head == "damaged":
            log.warning("%s: line 1 is damaged; the file is made anew, the old one is kept beside it", relative_name(self.path))
        if self._damaged:
            named = ", ".join(str(number) for number in self._damaged[:MOST_NAMED])
            rest = f" and {len(self._damaged) - MOST_NAMED} more" if len(self._damaged) > MOST_NAMED else ""
            log.warning("%s: damaged and made anew: line %s%s", relative_name(self.path), named, rest)

    def _head_fault(self, line: bytes) -> str | None:
        try:
            head = json.loads(line)
        except UNUSABLE:
            return "damaged"
        return None if head == json.loads(json.dumps(self.identity)) else "other"

    def _read_line(self, number: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict | list):  # a number that is cut off is another number
                raise TypeError("no object")
            key, record = self._unpack(entry)
            self._records[key] = record
        except UNUSABLE:
            self._damaged.append(number)

    def _mend(self) -> None:
        """Give the file its first line and take damaged ones out, before the first record is added."""
        if self._is_mended:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._head is not None:
            if self._head == "damaged":
                os.replace(self.path, self.path.with_name(f"{self.path.name}.damaged"))
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(self.identity, sort_keys=True) + "\n", encoding="utf-8")
            self._head, self._needs_newline = None, False
        elif self._damaged == [self._lines]:
            os.truncate(self.path, self._last_start)
            self._needs_newline = False
        elif self._damaged:
            self._write_without_damaged()
        self._damaged, self._is_mended = [], True

    def _write_without_damaged(self) -> None:
        dropped = set(self._damaged)
        with atomic_path(self.path) as temporary, self.path.open("rb") as old, temporary.open("wb") as new:
            new.writelines(line for number, line in enumerate(old, 1) if number not in dropped)
        if self._lines in dropped:
            self._needs_newline = False

    def _append(self, content: bytes) -> None:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                try:
                    rest = memoryview(content)
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
                    if self.sync:
                        os.fsync(descriptor)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)
        except OSError as error:
            error.filename = str(self.path)
            raise


class FolderStore(Store):
    """Records in a folder, one JSON file per key, written atomically and read when they are asked for.

    Several processes may write; ``claim`` shares work between processes of one machine. NaN is stored as null.

    Args:
        folder: where records are written; made by the first ``add``.
        identity: fields that every record of this store has in its file; a file with other values is missing.
        check: raises one of UNUSABLE for a record that cannot be used.
        also: folders in which a record may be found that is not in ``folder``; nothing is written there.
        prefix: with which the names of the files begin.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any] | None = None,
        *,
        check: Callable[[Any], Any] | None = None,
        also: Sequence[Path] = (),
        prefix: str = "",
    ) -> None:
        self.folder, self.also, self.prefix = Path(folder), [Path(path) for path in also], prefix
        self.identity, self._check = json.loads(json.dumps(identity or {})), check
        self._warned: set[Path] = set()
        self._has_said_other = False

    def __getitem__(self, key: str) -> Any:
        for folder in (self.folder, *self.also):
            path = folder / f"{self.prefix}{key}.json"
            if path.is_file() and (record := self._read(path)) is not None:
                return record
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        paths = {path.name: path for folder in (*self.also, self.folder) for path in folder.glob(f"{self.prefix}*.json")}
        for name, path in sorted(paths.items()):
            if self._read(path) is not None:
                yield name.removeprefix(self.prefix).removesuffix(".json")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def add(self, key: str, record: Any) -> Any:
        """Write a record, an object, and return it as the next start would read it.

        Raises:
            OSError: nothing can be written; a record that was there stays.
        """
        write_json(self.folder / f"{self.prefix}{key}.json", {**self.identity, **record})
        return self[key]

    def take_over(self, folder: Path) -> int:
        """Take the files of another folder of records that this one lacks, and return how many; they are linked where that works.

        Raises:
            OSError: nothing can be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        there, taken = {path.name for path in self.folder.glob(f"{self.prefix}*.json")}, 0
        for path in sorted(folder.glob(f"{self.prefix}*.json")):
            if path.name not in there:
                with atomic_path(self.folder / path.name) as temporary:
                    try:
                        os.link(path, temporary)
                    except OSError:  # another file system, or one without links
                        shutil.copyfile(path, temporary)
                taken += 1
        return taken

    def _read(self, path: Path) -> Any:
        """Return the record of a file; None, and a message, for a damaged one and for one of another identity."""
        try:
            content = json.loads(path.read_bytes())
            found = {name: content.pop(name) for name in self.identity if name in content}
            if found == self.identity:
                if not isinstance(content, dict):
                    raise TypeError("no object")
                if self._check is not None:
                    self._check(content)
                return content
        except FileNotFoundError:  # another process took it away
            return None
        except UNUSABLE as error:
            if path not in self._warned:
                reason = " ".join(str(error).split())[:80]
                log.warning("%s: damaged and made anew (%s: %s)", relative_name(path), type(error).__name__, reason)
                self._warned.add(path)
            return None
        if not self._has_said_other:
            log.info("%s: records of other settings or inputs are made anew", relative_name(path.parent))
            self._has_said_other = True
        return None

    def claim(self, key: str) -> bool:
        """Return True when this process may make the record; KEY.lock then holds its id.

        The lock of a process that has ended is taken over.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock, own = self._lock(key), self.folder / f"{self.prefix}{key}.{os.getpid()}"
        try:
            own.write_text(str(os.getpid()), encoding="utf-8")
            for _ in range(2):
                try:
                    os.link(own, lock)  # appears with its content or not at all
                    return True
                except FileExistsError:
                    if _is_held(lock):
                        return False
                    lock.unlink(missing_ok=True)
            return False
        finally:
            with contextlib.suppress(OSError):
                own.unlink(missing_ok=True)

    def release(self, key: str) -> None:
        """Give a claim back."""
        self._lock(key).unlink(missing_ok=True)

    def _lock(self, key: str) -> Path:
        return self.folder / f"{self.prefix}{key}.lock"


def _is_held(lock: Path) -> bool:
    try:
        os.kill(int(lock.read_text(encoding="utf-8")), 0)
    except (ProcessLookupError, ValueError, OverflowError, FileNotFoundError):
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True
