"""Worker processes that judge candidates, and the store of what they found.

Workers load the judges once and serve any number of sets. Each finished candidate is one small JSON file, named by the hash of the
CIF, the judges and the settings, so that a stopped run goes on where it was and no result of other judges is ever read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from energetics.potential_loading import without_paths
from evaluation.candidate import JUDGED_SETTINGS, JUDGEMENT_VERSION, CandidateResult
from evaluation.judging import Judges, judge_candidate
from pipeline.errors import StageError
from pipeline.files import relative_name
from pipeline.settings import EvaluationConfig
from pipeline.tasks import prepare_worker

log = logging.getLogger("her2d")


def result_from_dict(values: dict[str, Any]) -> CandidateResult:
    """Inverse of ``dataclasses.asdict`` after JSON: null is NaN where a number belongs."""
    kinds = {f.name: f.type for f in dataclasses.fields(CandidateResult)}
    return CandidateResult(**{k: math.nan if v is None and kinds[k] == "float" else v for k, v in values.items() if k in kinds})


def cache_key(content: bytes, judges_identity: dict[str, Any], settings: EvaluationConfig) -> str:
    """SHA-256 over the CIF, the judges (their hashes, not their paths) and the settings that change a result."""
    about = {
        "version": JUDGEMENT_VERSION,
        "judges": without_paths(judges_identity),
        "settings": {name: getattr(settings, name) for name in JUDGED_SETTINGS},
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode() + b"\0" + content).hexdigest()


def read_cached(folders: Sequence[Path], key: str) -> dict[str, Any] | None:
    """The stored record of a candidate, from the first folder that has it; a damaged one is treated as missing."""
    for folder in folders:
        path = folder / f"{key}.json"
        if path.is_file():
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                result_from_dict(record["row"])
                return record
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                log.warning("%s is damaged and judged again (%s)", relative_name(path), error)
    return None


_judges: Judges | None = None
_loading_error: StageError | None = None


def _start_worker(factory: Callable[[], Judges]) -> None:
    global _judges, _loading_error
    prepare_worker()
    import torch

    try:
        _judges = factory()
    except Exception as error:  # reported by the first candidate: an exception here would only break the pool without a word
        reason = " ".join(str(error).split())[:200]
        _loading_error = error if isinstance(error, StageError) else StageError(f"{type(error).__name__}: {reason}")
    torch.set_num_threads(1)


def _judge_in_worker(path: str, settings: EvaluationConfig) -> dict[str, Any]:
    if _loading_error is not None:
        raise StageError(str(_loading_error))
    return judge_candidate(path, _judges, settings)


class JudgePool:
    """Worker processes that load the judges once and serve any number of sets; started when the first candidate needs them.

    factory: a picklable function that returns the judges. identity: what ``judge_identity`` says about them.
    """

    def __init__(self, factory: Callable[[], Judges], identity: dict[str, Any], workers: int) -> None:
        self.factory, self.identity, self.workers = factory, identity, max(1, workers)
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> JudgePool:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers at once; what they have not finished is judged by the next run."""
        if self._executor is not None:
            processes = list((getattr(self._executor, "_processes", None) or {}).values())
            self._executor.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            self._executor = None

    def _submit(self, path: Path, settings: EvaluationConfig) -> Future:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self.factory,),
            )
        return self._executor.submit(_judge_in_worker, str(path), settings)

    def judge(self, paths: Sequence[Path], settings: EvaluationConfig) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yields (path, record) as candidates finish.

        A worker that dies takes no other candidate with it: those under way are judged again one at a time, and only a candidate
        whose worker dies again is given up.
        """
        waiting, suspects = deque(paths), deque()
        while waiting or suspects:
            alone = bool(suspects)
            source = deque([suspects.popleft()]) if alone else waiting
            running: dict[Future, Path] = {}
            lost: list[Path] = []
            while (source or running) and not lost:
                while source and len(running) < self.workers and not lost:
                    path = source.popleft()
                    try:
                        running[self._submit(path, settings)] = path
                    except BrokenProcessPool:
                        lost.append(path)
                for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    path = running.pop(future)
                    try:
                        record = future.result()
                    except BrokenProcessPool:
                        lost.append(path)
                    else:
                        yield path, record
            if lost:
                lost.extend(running.values())
                self.close()
                if alone:
                    yield lost[0], _lost_candidate()
                else:
                    suspects.extend(lost)


def _lost_candidate() -> dict[str, Any]:
    row = CandidateResult(dimensionality="unreadable", status="not judged: the worker process died (out of memory?)")
    return {"row": dataclasses.asdict(row), "structure": None, "lost": True}


def judge_inline(judges: Judges, paths: Sequence[Path], settings: EvaluationConfig) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What ``JudgePool.judge`` does, in this process."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers: sums of another thread count differ in the last digits
    try:
        for path in paths:
            yield path, judge_candidate(path, judges, settings)
    finally:
        torch.set_num_threads(threads)
