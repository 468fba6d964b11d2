"""Evaluates a folder of CIFs for stages 5 and 6: our candidates and anybody else's alike.

``evaluate`` returns one ``CandidateResult`` per file and the metrics of the set. Judges are passed in (``Judges``): the interatomic
potential with its references, DimeNet++ for hydrogen, the synthesizability model and the training structures. A judge that fails
leaves NaN and a status that says why. A file that cannot be read has a row too.

Every candidate is judged by itself and stored as ``cache/<hash of CIF, judges and settings>.json`` when it is done. So results do
not depend on the order of the files or the number of workers, and a run that is stopped goes on where it was.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ase import Atoms
from tqdm import tqdm

from crystals import cif
from evaluation import metrics, statistics
from evaluation.candidate import CandidateResult
from evaluation.decisions import decide, mark_unique
from evaluation.judge_pool import JudgePool, cache_key, judge_inline, record_store, result_from_dict
from evaluation.judging import Judges
from pipeline.errors import StageError
from pipeline.files import atomic_path, relative_name
from pipeline.settings import EvaluationConfig
from pipeline.store import FolderStore

log = logging.getLogger("her2d")


@dataclass
class Evaluation:
    """One judged set.

    ``rows``: sorted by id. ``aggregates``: metrics of all but the bulk crystals. ``bulk_aggregates``: metrics of the bulk crystals,
    empty without any. ``structures``: id -> structure as judged. ``identity``: names and hashes of the judges.
    """

    label: str
    cif_dir: str
    rows: list[CandidateResult]
    aggregates: dict[str, statistics.Metric]
    bulk_aggregates: dict[str, statistics.Metric]
    structures: dict[str, Atoms]
    identity: dict[str, Any]
    elapsed_seconds: float = math.nan

    @property
    def rows_2d(self) -> list[CandidateResult]:
        """All rows but the bulk crystals, unreadable files included."""
        return [row for row in self.rows if not row.is_bulk]


def find_cifs(cif_dir: str | os.PathLike) -> list[Path]:
    """Return the CIF files directly inside a folder, sorted by name.

    Raises:
        StageError: there is no folder, or no CIF in it.
    """
    folder = Path(cif_dir)
    if not folder.is_dir():
        raise StageError(f"no folder of CIFs at {relative_name(folder)}")
    found = sorted((p for p in folder.iterdir() if p.suffix.lower() == ".cif"), key=lambda p: p.name)
    if not found:
        raise StageError(f"no CIF in {relative_name(folder)}")
    return found


def evaluate(
    cif_dir: str | os.PathLike,
    judges: Judges | JudgePool,
    settings: EvaluationConfig,
    output_dir: str | os.PathLike,
    label: str,
    workers: int = 1,
    *,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    also_cached: Sequence[str | os.PathLike] = (),
) -> Evaluation:
    """Judge every CIF of a folder, and write ``metrics.csv`` and ``relaxed.extxyz`` to ``output_dir``.

    Identical files are judged once.

    Args:
        cif_dir: the folder.
        judges: ``Judges`` (used in this process, or pickled to ``workers`` processes) or a running ``JudgePool``, which serves
            several sets.
        settings: limits and switches of the evaluation.
        output_dir: where the files go.
        label: name of the set in tables and figures.
        workers: number of processes where ``judges`` is no pool.
        seed: of the bootstrap.
        cache_dir: where finished candidates are stored; ``output_dir/cache`` unless given.
        also_cached: folders of earlier runs that may hold finished candidates.

    Raises:
        StageError: there is nothing to judge.
    """
    started = time.perf_counter()
    paths = find_cifs(cif_dir)
    output_dir = Path(output_dir)
    cache = Path(cache_dir) if cache_dir is not None else output_dir / "cache"
    store = record_store(cache, [Path(p) for p in also_cached])
    keys = {path: cache_key(_content(path), judges.identity, settings) for path in paths}
    records = _records(keys, judges, settings, store, label, workers)
    rows, structures = _rows(keys, records)
    mark_unique(rows, structures)
    decide(rows, settings)
    rows_2d, bulk = [r for r in rows if not r.is_bulk], [r for r in rows if r.is_bulk]
    evaluation = Evaluation(
        label=label,
        cif_dir=str(cif_dir),
        rows=rows,
        aggregates=metrics.aggregate(rows_2d, settings, seed),
        bulk_aggregates=metrics.aggregate_bulk(bulk, settings, seed) if bulk else {},
        structures=structures,
        identity=judges.identity,
        elapsed_seconds=time.perf_counter() - started,
    )
    write_table(rows, output_dir / "metrics.csv")
    write_structures(evaluation, output_dir / "relaxed.extxyz")
    return evaluation


def _content(path: Path) -> bytes:
    """Return the bytes of a file, up to one more than a CIF may have; where it cannot be read, a text with its name."""
    try:
        if not path.is_file():  # reading a pipe or a device could wait for ever
            raise OSError(f"{path.name} is not a file")
        with path.open("rb") as handle:
            return handle.read(cif.MAX_CIF_BYTES + 1)
    except OSError:
        return b"unreadable " + os.fsencode(path.name)


def _records(
    keys: Mapping[Path, str], judges: Judges | JudgePool, settings: EvaluationConfig, store: FolderStore, label: str, workers: int
) -> dict[str, dict[str, Any]]:
    """Return key -> record of all files: from the store, or judged now where it has none."""
    records: dict[str, dict[str, Any]] = {}
    to_judge: dict[str, Path] = {}
    for path, key in keys.items():
        if key not in records and key not in to_judge:
            record = store.get(key)
            if record is None:
                to_judge[key] = path
            else:
                records[key] = record
    if records:
        log.info("%s: %d of %d candidates were judged before", label, len(records), len(set(keys.values())))
    own_pool = None
    if isinstance(judges, JudgePool):
        finished = judges.judge(to_judge, settings, store)
    elif workers > 1 and to_judge:
        own_pool = JudgePool(partial(_unchanged, judges), judges.identity, workers)
        finished = own_pool.judge(to_judge, settings, store)
    else:
        finished = judge_inline(judges, to_judge, settings, store)
    try:
        for key, record in tqdm(finished, total=len(to_judge), desc=label, unit="candidate", disable=not to_judge):
            records[key] = record
    finally:
        if own_pool is not None:
            own_pool.close()
    return records


def _rows(keys: Mapping[Path, str], records: Mapping[str, Mapping[str, Any]]) -> tuple[list[CandidateResult], dict[str, Atoms]]:
    """Return the rows, sorted by id, and id -> structure as judged."""
    rows, structures = [], {}
    for path, identifier in candidate_ids(list(keys)).items():
        record = records[keys[path]]
        row = result_from_dict(record["row"])
        row.id, row.source_file = identifier, os.fsencode(path.name).decode("utf-8", "replace")
        rows.append(row)
        if record["structure"] is not None:
            structures[row.id] = Atoms(**record["structure"])
    return sorted(rows, key=lambda row: row.id), structures


def _unchanged(judges: Judges) -> Judges:
    return judges


def candidate_ids(paths: Sequence[Path]) -> dict[Path, str]:
    """Return path -> id: the file name without suffix.

    The id is the whole name where two files share a stem, or where the stem is the whole name of another file. Bytes that are no
    UTF-8 become replacement characters; where that makes two names equal, the later one gets a number.
    """

    def text(name: str) -> str:
        return os.fsencode(name).decode("utf-8", "replace")

    stems, names = [text(path.stem) for path in paths], [text(path.name) for path in paths]
    ids: dict[Path, str] = {}
    for path, stem, name in zip(paths, stems, names, strict=True):
        candidate = stem if stems.count(stem) == 1 and stem not in names else name
        taken = set(ids.values())
        numbered = (f"{candidate} ({k})" for k in itertools.count(2))
        ids[path] = next(name for name in itertools.chain([candidate], numbered) if name not in taken)
    return ids


def write_table(rows: Sequence[CandidateResult], path: str | os.PathLike) -> None:
    """Write ``metrics.csv``: one row per candidate; a missing number is ``nan``, a missing verdict an empty field."""
    names = [f.name for f in dataclasses.fields(CandidateResult)]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(names)
        for row in rows:
            writer.writerow([_cell(getattr(row, name)) for name in names])


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    # A spreadsheet would run a text that begins like a formula; an apostrophe keeps it a text.
    return re.sub(r"^([=+\-@\t\r])", r"'\1", str(value))


def write_structures(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Write all structures, as judged, with their ids to one extended XYZ file."""
    from ase.io import write

    frames = []
    for row in evaluation.rows:
        if row.id in evaluation.structures:
            atoms = evaluation.structures[row.id].copy()
            atoms.info = {"id": " ".join(row.id.split()), "dimensionality": row.dimensionality}
            frames.append(atoms)
    if frames:
        with atomic_path(path) as temporary:
            write(temporary, frames, format="extxyz")
