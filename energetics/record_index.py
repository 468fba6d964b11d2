"""What the training needs to know of every adsorption record, in arrays, and its index on the disk.

Reading all records of OC20 takes minutes. The index holds what split, filter and targets need, and the SHA-256 of the LMDB. It lies
in the output folder, never beside the LMDB, which may be read-only. It is of the files as they were: another name, size or time of
change of any file, and all records are read anew. A damaged record is not indexed: it ends the stage by its name, as it always did.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from tqdm import tqdm

from crystals.database import formula_key
from energetics.is2re_lmdb import Is2reReader, Is2reRecord
from geo_utils import H_TAG
from pipeline.files import atomic_path, file_sha256, relative_name

log = logging.getLogger("her2d")

VERSION = 1
ONE_H, NO_ADSORBATE, OTHER_ADSORBATE = range(3)  # what a record has as adsorbate
LABELS = ("formula", "family", "elements")


@dataclasses.dataclass
class RecordTable:
    """Facts about the n records of one reader, in its order.

    ``formula``, ``family`` and ``elements`` are numbers of entries in ``labels``, lists by the name of the column.
    """

    delta_e: np.ndarray  # (n,) y_relaxed, eV; not finite where it is missing
    num_atoms: np.ndarray  # (n,)
    adsorbate: np.ndarray  # (n,) ONE_H, NO_ADSORBATE or OTHER_ADSORBATE
    converged: np.ndarray  # (n,) bool, whether the relaxation ended
    formula: np.ndarray  # (n,) reduced, of the clean surface
    family: np.ndarray  # (n,)
    elements: np.ndarray  # (n,) sorted atomic numbers, H included
    labels: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.delta_e)


COLUMNS = tuple(f.name for f in dataclasses.fields(RecordTable) if f.name != "labels")


def reduced_formula(record: Is2reRecord) -> str:
    """Return the formula key of the clean surface: ``bulk_formula`` where the record has it, otherwise the atoms without tag 2."""
    stated = str(record.extra.get("bulk_formula", ""))
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", stated)
    counts: Counter[str] = Counter()
    if "".join(symbol + count for symbol, count in parts) == stated:
        for symbol, count in parts:
            counts[symbol] += int(count or 1)
    if not any(counts.values()):
        numbers = record.atomic_numbers[record.tags != H_TAG].tolist() or record.atomic_numbers.tolist()
        counts = Counter(chemical_symbols[n] for n in numbers)
    return formula_key("".join(f"{symbol}{count}" for symbol, count in counts.items() if count))


class _Labels:
    """Numbers distinct values in the order of their first use."""

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int] = {}

    def __call__(self, value: Hashable) -> int:
        return self.numbers.setdefault(value, len(self.numbers))


def table_of(records: Iterable[Is2reRecord]) -> RecordTable:
    """Read every record and return the table. Raises StageError at a record that cannot be read."""
    labels = {name: _Labels() for name in LABELS}
    rows = []
    for record in records:
        adsorbate = record.atomic_numbers[record.tags == H_TAG].tolist()
        rows.append(
            (
                record.y_relaxed,
                record.natoms,
                ONE_H if adsorbate == [1] else OTHER_ADSORBATE if adsorbate else NO_ADSORBATE,
                bool(record.extra.get("converged", True)),
                labels["formula"](reduced_formula(record)),
                labels["family"](str(record.extra.get("family", "unspecified"))),
                labels["elements"](tuple(sorted(set(record.atomic_numbers.tolist())))),
            )
        )
    kinds = (np.float64, np.int32, np.int8, bool, np.int32, np.int32, np.int32)
    columns = [np.array(column, dtype=kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    return RecordTable(*columns, labels={name: list(found.numbers) for name, found in labels.items()})


class RecordIndex:
    """The index of one LMDB, or of a folder of them, in a file.

    Args:
        reader: of the LMDB.
        path: the index.
    """

    def __init__(self, reader: Is2reReader, path: Path) -> None:
        self.reader, self.path = reader, path
        self.state = {"version": VERSION, "records": len(reader), "files": _file_states(reader.path)}
        self._head, self._table = self._read()

    def _read(self) -> tuple[dict[str, Any], RecordTable | None]:
        """Return what the file holds, {} and None where it is missing, damaged or of files that were other ones."""
        if not self.path.is_file():
            return {}, None
        try:
            with np.load(self.path, allow_pickle=False) as content:
                head = json.loads(content["head"].tobytes().decode())
                if {key: head[key] for key in self.state} != self.state:
                    log.info("%s has changed since its index was written: reading all records", relative_name(self.reader.path))
                    return {}, None
                labels = head["labels"] | {"elements": [tuple(numbers) for numbers in head["labels"]["elements"]]}
                table = RecordTable(**{name: content[name] for name in COLUMNS}, labels=labels)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            log.warning("%s is damaged (%s): reading all records", relative_name(self.path), type(error).__name__)
            return {}, None
        return head, table

    def sha256(self) -> str:
        """Return the SHA-256 of the LMDB, as ``pipeline.files.file_sha256`` gives it."""
        if "sha256" not in self._head:
            self._head["sha256"] = file_sha256(self.reader.path)
        return self._head["sha256"]

    def table(self) -> RecordTable:
        """Return the facts about all records. Without an index of these files it reads every record and writes the index."""
        if self._table is None:
            self._table = table_of(tqdm(self.reader, desc="reading records", disable=None))
            head = self.state | {"sha256": self.sha256(), "labels": self._table.labels}
            columns = {name: getattr(self._table, name) for name in COLUMNS}
            with atomic_path(self.path) as temporary, temporary.open("wb") as handle:
                np.savez_compressed(handle, head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8), **columns)
        return self._table


def _file_states(path: Path) -> list[list[Any]]:
    """Return [absolute name, bytes, time of the last change in ns] of the file, or of every file below the folder."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    return [[str(file.resolve()), (found := file.stat()).st_size, found.st_mtime_ns] for file in files]
