"""Reads and writes OC20 IS2RE databases: LMDB files with one pickled PyG ``Data`` per key ``b"0", b"1", ...``.

A pickle can run code when it is loaded, and these files are downloads. Only tensors, NumPy arrays, plain containers and PyG's
containers are unpickled; the last become attribute tables that run nothing (``pipeline.safe_pickle``). Files of every age are read:
PyG 1.x (attributes in ``__dict__``) and PyG 2 (``_store._mapping``), with or without a ``length`` key (pickled or in digits), keys
with or without leading zeros, ``cell`` as (1, 3, 3) or (3, 3), atomic numbers as floats. ASE-LMDB files of fairchem v2 hold total
energies, not adsorption energies; they are refused by name.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import numbers
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import lmdb
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StageError
from pipeline.files import atomic_path, missing_file, relative_name
from pipeline.safe_pickle import AttributeBag, RefusedClassError, safe_loads

log = logging.getLogger("her2d")

EXTRA_FIELDS = ("bulk_formula", "family", "site", "face", "coverage", "desorbed", "converged", "name")
MIN_CELL_HEIGHT = 1.0  # Å between opposite faces of the cell
MIN_DISTANCE = 0.1  # Å between two atoms of a cell
MAX_CELLS_AWAY = 50  # image offsets are stored in eight bits
_MAP_SIZE = 1 << 40  # address space reserved while writing; the file grows only by the pages in use


@dataclass
class Is2reRecord:
    """One adsorption record of OC20's IS2RE schema.

    pos, pos_relaxed: (N, 3) Å, initial and relaxed. cell: (1, 3, 3) Å, row vectors. atomic_numbers: (N,) int64.
    tags: (N,) int64, 0 below the surface, 1 surface, 2 adsorbate. fixed: (N,) int64, 1 where the atom was held.
    y_init, y_relaxed: adsorption energies of both geometries (eV; nan where absent). extra: plain strings, numbers and booleans.
    """

    pos: Tensor
    cell: Tensor
    atomic_numbers: Tensor
    tags: Tensor
    fixed: Tensor
    sid: int | str
    y_relaxed: float
    y_init: float = math.nan
    pos_relaxed: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def natoms(self) -> int:
        """Return the number of atoms N."""
        return int(self.pos.shape[0])

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Is2reRecord:
        """Check and convert the attributes of one record. Raises ValueError, which says what is wrong, where it cannot be used."""
        for name in ("pos", "cell", "atomic_numbers"):
            if values.get(name) is None:
                raise ValueError(f"it has no '{name}'")
        pos = _tensor(values["pos"], torch.float32)
        cell = _tensor(values["cell"], torch.float32)
        if pos.ndim != 2 or pos.shape[1] != 3 or pos.shape[0] == 0:
            raise ValueError(f"pos has shape {tuple(pos.shape)}, expected (N, 3)")
        if cell.shape not in ((1, 3, 3), (3, 3)):
            raise ValueError(f"cell has shape {tuple(cell.shape)}, expected (1, 3, 3) or (3, 3)")
        num_atoms = pos.shape[0]
        fields = {
            "atomic_numbers": values["atomic_numbers"],
            "tags": values.get("tags") if values.get("tags") is not None else torch.zeros(num_atoms),
            "fixed": values.get("fixed") if values.get("fixed") is not None else torch.zeros(num_atoms),
        }
        columns = {name: _tensor(value, torch.float64).reshape(-1) for name, value in fields.items()}
        for name, column in columns.items():
            if column.shape[0] != num_atoms:
                raise ValueError(f"{name} has {column.shape[0]} entries for {num_atoms} atoms")
            if not torch.isfinite(column).all() or not torch.equal(column, column.round()):
                raise ValueError(f"{name} holds values that are not whole numbers")
        if not (torch.isfinite(pos).all() and torch.isfinite(cell).all()):
            raise ValueError("pos or cell is not finite")
        _check_geometry(pos, cell.reshape(3, 3))
        if (columns["atomic_numbers"] < 1).any() or (columns["atomic_numbers"] > 118).any():
            raise ValueError("atomic_numbers are outside 1..118")
        relaxed = values.get("pos_relaxed")
        if relaxed is not None:
            relaxed = _tensor(relaxed, torch.float32)
            if relaxed.shape != pos.shape:
                raise ValueError(f"pos_relaxed has shape {tuple(relaxed.shape)} beside pos {tuple(pos.shape)}")
            if not torch.isfinite(relaxed).all():
                raise ValueError("pos_relaxed is not finite")
            _check_geometry(relaxed, cell.reshape(3, 3))
        stated = _number(values.get("natoms"))
        if not math.isnan(stated) and stated != num_atoms:
            raise ValueError(f"natoms is {stated:g} beside {num_atoms} positions")
        sid = values.get("sid", -1)
        extra = {name: _plain(values[name]) for name in EXTRA_FIELDS if values.get(name) is not None}
        more = values.get("extra") or {}
        if not isinstance(more, Mapping):
            raise ValueError(f"extra is a {type(more).__name__}, not a table of names")
        extra.update({str(name): _plain(value) for name, value in more.items()})
        return cls(
            pos=pos,
            cell=cell.reshape(1, 3, 3),
            atomic_numbers=columns["atomic_numbers"].long(),
            tags=columns["tags"].long(),
            fixed=columns["fixed"].long(),
            sid=sid if isinstance(sid, str) else int(_number(sid, -1)),
            y_init=_number(values.get("y_init")),
            y_relaxed=_number(values.get("y_relaxed")),
            pos_relaxed=relaxed,
            extra=extra,
        )


def _check_geometry(pos: Tensor, cell: Tensor) -> None:
    """Raise ValueError where no periodic graph of sensible size exists. pos: (N, 3) Å, finite. cell: (3, 3) Å, finite."""
    if abs(float(torch.linalg.det(cell.double()))) < MIN_CELL_HEIGHT**3:
        raise ValueError("cell has no volume")
    reciprocal = torch.linalg.inv(cell.double())
    if float(1 / reciprocal.norm(dim=0).max()) < MIN_CELL_HEIGHT:
        raise ValueError(f"cell is flatter than {MIN_CELL_HEIGHT:g} Å")
    if float((pos.double() @ reciprocal).abs().max()) > MAX_CELLS_AWAY:
        raise ValueError(f"an atom lies more than {MAX_CELLS_AWAY} cells away from the origin")
    if pos.shape[0] > 1 and float(torch.nn.functional.pdist(pos).min()) < MIN_DISTANCE:
        raise ValueError("two atoms stand at the same place")


def _tensor(value: Any, dtype: torch.dtype) -> Tensor:
    """Return numbers of any kind as a tensor. Raises ValueError for anything else."""
    if not isinstance(value, Tensor | np.ndarray | list | tuple | numbers.Number):
        raise ValueError(f"a {type(value).__name__} stands where numbers belong")
    try:
        tensor = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value).detach()
    except (ValueError, TypeError) as error:  # ragged lists, strings
        raise ValueError("something else stands where numbers belong") from error
    if tensor.is_complex():
        raise ValueError("complex numbers stand where real ones belong")
    return tensor.to(dtype)


def _number(value: Any, default: float = math.nan) -> float:
    """Return the one number that ``value`` holds; ``default`` for text, nothing, or several numbers."""
    if value is None or isinstance(value, str | bytes | Mapping):
        return default
    flat = _tensor(value, torch.float64).reshape(-1)
    return float(flat[0]) if flat.numel() == 1 else default


def _plain(value: Any) -> Any:
    """Return a value as plain Python. Raises ValueError for what cannot be stored so."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.item() if value.size == 1 else value.tolist()
    if isinstance(value, str | bool | int | float | list | tuple):
        return value
    raise ValueError(f"an extra attribute is a {type(value).__name__}; only strings, numbers and booleans are stored")


class Is2reReader:
    """Records of one or several IS2RE LMDB files, read from disk one at a time: ``len(reader)``, ``reader[i]``, iteration.

    A reader can be sent to another process, which opens the files itself.
    """

    def __init__(self, path: str | os.PathLike, key: str = "dimenet.lmdb_path") -> None:
        self.path = Path(path)
        self.files = _lmdb_files(self.path, key)
        self._environments: dict[int, lmdb.Environment] = {}
        found = [_record_keys(self._environment(number), file) for number, file in enumerate(self.files)]
        self._keys, self._widths = [keys for keys, _ in found], [width for _, width in found]
        self._starts = np.cumsum([0] + [len(keys) for keys in self._keys])
        if not len(self):
            raise StageError(f"{relative_name(self.path)} holds no record (keys '0', '1', ...)")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def where(self, index: int) -> tuple[Path, str]:
        """Return file and key of a record, for messages."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.files[number], str(self._keys[number][index - self._starts[number]]).zfill(self._widths[number])

    def __getitem__(self, index: int) -> Is2reRecord:
        """Read a record. Raises StageError, which names file and key, where it is hostile, damaged or not of the IS2RE schema."""
        file, key = self.where(index)
        place = f"{relative_name(file)}, key {key}"
        try:
            with self._environment(self.files.index(file)).begin(write=False) as transaction:
                content = transaction.get(key.encode())
        except lmdb.Error as error:
            raise StageError(f"{place}: the file is damaged ({error})") from error
        try:
            data = safe_loads(content)
        except RefusedClassError as error:
            raise StageError(
                f"{place}: refused, its pickle asks for {error}, which no IS2RE record needs; do not trust this file"
            ) from error
        except Exception as error:  # a damaged pickle can raise almost anything while it is rebuilt
            reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
            raise StageError(f"{place}: not a readable record ({reason})") from error
        attributes = data.attributes() if isinstance(data, AttributeBag) else data if isinstance(data, dict) else None
        if attributes is None:
            raise StageError(f"{place}: holds a {type(data).__name__}, not a PyG Data")
        try:
            return Is2reRecord.from_mapping(attributes)
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise StageError(f"{place}: not an IS2RE record: {str(error).splitlines()[0][:160]}") from error

    def __iter__(self) -> Iterator[Is2reRecord]:
        for index in range(len(self)):
            yield self[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environments": {}}

    def _environment(self, number: int) -> lmdb.Environment:
        if number not in self._environments:
            self._environments[number] = _open_environment(self.files[number])
        return self._environments[number]


def open_is2re(path: str | os.PathLike, key: str = "dimenet.lmdb_path") -> Is2reReader:
    """Open an IS2RE LMDB.

    Args:
        path: file, or folder whose ``*.lmdb`` files are read in the order of their names.
        key: setting that names it, for the message where nothing is there.

    Raises:
        StageError: there is no such file, or it is damaged, truncated or without a record.
    """
    return Is2reReader(path, key)


def _lmdb_files(path: Path, key: str) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(p / "data.mdb" if p.is_dir() else p for p in path.glob("*.lmdb"))
        if missing := [file for file in files if not file.is_file()]:
            raise missing_file(key, missing[0])
        if not files and (path / "data.mdb").is_file():
            files = [path / "data.mdb"]
        if files:
            return files
        if any(path.glob("*.aselmdb")):
            raise StageError(
                f"{relative_name(path)} holds ASE-LMDB files of fairchem v2 (.aselmdb), which have total energies and no "
                "adsorption energies; name OC20's is2re data.lmdb"
            )
        raise StageError(f"{relative_name(path)} is a folder without *.lmdb files")
    raise missing_file(key, path, "name an IS2RE LMDB, or run python -m scripts.prepare_demo_data")


_OPEN: WeakValueDictionary[tuple[int, int, int], lmdb.Environment] = WeakValueDictionary()


def _open_environment(file: Path) -> lmdb.Environment:
    """Open a file, once in a process: LMDB refuses a second environment, so that readers of one file share it."""
    identity = (os.getpid(), file.stat().st_dev, file.stat().st_ino)
    if identity in _OPEN:
        return _OPEN[identity]
    try:
        environment = lmdb.open(str(file), subdir=False, readonly=True, lock=False, readahead=False, meminit=False, max_readers=1)
    except lmdb.Error as error:
        raise StageError(f"{relative_name(file)} is not a readable LMDB file ({error})") from error
    # The pages are memory-mapped: touching one beyond the end of a truncated file would kill the process with SIGBUS.
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.stat().st_size < needed:
        environment.close()
        raise StageError(f"{relative_name(file)} is truncated: {file.stat().st_size} of {needed} bytes")
    _OPEN[identity] = environment
    return environment


def _record_keys(environment: lmdb.Environment, file: Path) -> tuple[np.ndarray, int]:
    """Return the keys of the records, (n,) sorted integers, and the digits of a key; 0: no leading zeros.

    Keys with leading zeros count where every numbered key has as many digits. Other keys, or another n in ``length``, warn.
    """
    try:
        with environment.begin(write=False) as transaction:
            keys = [bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)]
            stated = transaction.get(b"length")
    except lmdb.Error as error:
        raise StageError(f"{relative_name(file)} is damaged ({error})") from error
    if {b"nextid", b"deleted_ids"} & set(keys):
        raise StageError(
            f"{relative_name(file)} is an ASE-LMDB of fairchem v2 (.aselmdb): it holds total energies, not the adsorption energies "
            "of an IS2RE LMDB; name OC20's is2re data.lmdb"
        )
    numbered = [key for key in keys if re.fullmatch(rb"[0-9]{1,18}", key)]
    padded = len({len(key) for key in numbered}) == 1 and any(key[:1] == b"0" and len(key) > 1 for key in numbered)
    record_keys = sorted(int(key) for key in numbered if padded or key == b"0" or key[:1] != b"0")
    record_keys = np.array(record_keys, dtype=np.int64)
    if others := len(keys) - len(record_keys) - (stated is not None):
        log.warning("%s: %d keys are no record numbers (0, 1, ...) and are left out", relative_name(file), others)
    if stated is not None:
        try:
            length = int(stated) if re.fullmatch(rb"[0-9]{1,18}", stated) else safe_loads(stated)
        except Exception as error:  # hostile or damaged: the keys themselves say how many there are
            raise StageError(f"{relative_name(file)}, key length: refused or damaged ({error})") from error
        if _stated_length(length) != len(record_keys):
            log.warning("%s states %s records and holds %d", relative_name(file), str(length)[:40], len(record_keys))
    return record_keys, len(numbered[0]) if padded else 0


def _stated_length(length: Any) -> float:
    """Return a number of records that may be stored as any kind of number; NaN for what is no number."""
    try:
        return _number(length)
    except ValueError:
        return math.nan


def write_is2re(path: str | os.PathLike, records: Iterable[Is2reRecord | Mapping[str, Any]]) -> int:
    """Write records in OC20's IS2RE schema (pickled PyG ``Data``, keys ``b"0"``.. and ``b"length"``).

    Args:
        path: the LMDB file, which appears when it is complete.
        records: as read, or mappings, which are checked by ``Is2reRecord.from_mapping``.

    Returns:
        How many were written.
    """
    from torch_geometric.data import Data

    count = 0
    with atomic_path(path) as temporary:
        temporary.unlink(missing_ok=True)
        environment = lmdb.open(str(temporary), subdir=False, map_size=_MAP_SIZE, lock=False, meminit=False, map_async=True)
        try:
            with environment.begin(write=True) as transaction:
                for item in records:
                    record = item if isinstance(item, Is2reRecord) else Is2reRecord.from_mapping(item)
                    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "extra"}
                    values["atomic_numbers"] = record.atomic_numbers.to(torch.float32)
                    values["fixed"] = record.fixed.to(torch.float32)
                    values = {key: value for key, value in values.items() if value is not None}
                    data = Data(**values, natoms=record.natoms, **record.extra)
                    transaction.put(str(count).encode(), pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL))
                    count += 1
                transaction.put(b"length", pickle.dumps(count, protocol=pickle.HIGHEST_PROTOCOL))
            environment.sync(True)
        finally:
            environment.close()
    return count
