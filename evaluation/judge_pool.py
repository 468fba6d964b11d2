"""Judges candidates in worker processes, and stores what they find.

Workers load the judges once and serve any number of sets. Each finished candidate is one small JSON file, named by the hash of the
CIF, the judges and the settings. So a stopped run goes on where it was, and results of other judges are not read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from energetics.potential_loading import without_paths
from evaluation.candidate import JUDGED_SETTINGS, JUDGEMENT_VERSION, CandidateResult
from evaluation.judging import Judges, judge_candidate
from pipeline.records import from_json
from pipeline.settings import EvaluationConfig, RunConfig
from pipeline.store import FolderStore
from pipeline.tasks import Processes, Serial, run, start_workers

THIS_MACHINE = RunConfig()
Finished = Iterator[tuple[str, dict[str, Any]]]  # (key, record) of candidates


def cache_key(content: bytes, judges_identity: dict[str, Any], settings: EvaluationConfig) -> str:
    """Return the SHA-256 of the CIF, the judges (their hashes, not their paths) and the settings that change a result."""
    about = {
        "version": JUDGEMENT_VERSION,
        "judges": without_paths(judges_identity),
        "settings": {name: getattr(settings, name) for name in JUDGED_SETTINGS},
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode() + b"\0" + content).hexdigest()


def record_store(folder: Path, also: Sequence[Path] = ()) -> FolderStore:
    """Open the store of judged candidates: ``cache_key`` -> record. also: folders of earlier runs that may hold some."""
    return FolderStore(folder, check=lambda record: from_json(CandidateResult, record["row"]), also=also)


class JudgePool:
    """Workers that load the judges once and serve any number of sets; the first candidate starts them.

    Args:
        factory: a picklable function that returns the judges.
        identity: what ``judge_identity`` returns for them.
        workers: number of them.
        scheduling: where they are.
    """

    def __init__(
        self, factory: Callable[[], Judges], identity: dict[str, Any], workers: int, scheduling: RunConfig = THIS_MACHINE
    ) -> None:
        self.identity, self.workers = identity, start_workers(scheduling, workers, factory)

    def __enter__(self) -> JudgePool:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def start(self) -> None:
        """Let workers of this machine load the judges while this process does something else."""
        if isinstance(self.workers, Processes):
            self.workers.start()

    def close(self) -> None:
        """End the workers at once; the next run judges what they have not finished."""
        self.workers.close()

    def judge(self, paths: Mapping[str, Path], settings: EvaluationConfig, store: FolderStore) -> Finished:
        """Judge files and store their records.

        A candidate whose worker dies twice is not stored: its record says so, and the next run tries it again.

        Args:
            paths: ``cache_key`` -> file, for the files that the store lacks.
            settings: limits and switches of the evaluation.
            store: where the records go.

        Yields:
            (key, record) of each candidate when it is stored.
        """
        return run(
            partial(_judge_file, settings),
            {key: path.absolute() for key, path in paths.items()},
            store,
            self.workers,
            if_lost=_lost_candidate,
        )


def judge_inline(judges: Judges, paths: Mapping[str, Path], settings: EvaluationConfig, store: FolderStore) -> Finished:
    """Do in this process what ``JudgePool.judge`` does in workers."""
    return run(partial(_judge_file, settings), paths, store, Serial(lambda: judges))


def _judge_file(settings: EvaluationConfig, judges: Judges, path: Path) -> dict[str, Any]:
    return judge_candidate(str(path), judges, settings)


def _lost_candidate(_: Path) -> dict[str, Any]:
    row = CandidateResult(dimensionality="unreadable", status="not judged: the worker process died (out of memory?)")
    return {"row": dataclasses.asdict(row), "structure": None}
