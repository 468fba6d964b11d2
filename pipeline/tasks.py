"""Runs many independent tasks, in this process or in workers.

``run(function, tasks, store, where)`` runs the tasks whose results the store lacks. ``where`` is ``Serial`` for this process,
``Processes`` for several of this machine, or ``pipeline.cluster.DaskWorkers`` for a Dask cluster, as ``run.scheduler`` says
(``start_workers``). A factory makes what all tasks share,
such as a model, once in every process. Every task has one thread: sums of another number of threads differ in the last digits.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import StageError
from pipeline.heap import keep_freed_memory
from pipeline.settings import RunConfig
from pipeline.store import Store

if TYPE_CHECKING:
    from pipeline.cluster import DaskWorkers

Function = Callable[..., Any]  # (task), or (what the factory has made, task)
FORK_SERVERS = sys.platform == "linux"  # elsewhere libraries of the system do not survive a fork
# Of a process from which workers are forked, and of what it imports.
SERVER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
_for_workers: list[str] = []  # modules that this process imports, where workers are forked
LOST = object()  # in place of the result of a task whose worker process died twice


def cpu_count() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def import_for_workers(modules: Sequence[str]) -> None:
    """Let ``Processes`` fork its workers from a process that imports modules once, from now on, beside this one.

    Workers that import PyTorch and a potential themselves take ten seconds of a core each, in every pool that a stage opens.
    Modules that are not installed are left out. Does nothing where workers cannot be forked.
    """
    _for_workers[:] = modules if FORK_SERVERS else ()
    _start_method()


def _start_method() -> str:
    """Return how workers are started; the process that they are forked from runs then."""
    if not _for_workers:
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(_for_workers))
    before = {name: os.environ.get(name) for name in SERVER_ENVIRONMENT}
    # The process inherits that Ctrl-C is ignored: it is this one's to handle. Only the main thread may say so.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    os.environ.update(SERVER_ENVIRONMENT)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        if in_main:
            signal.signal(signal.SIGINT, handler)
    return "forkserver"


class Backend(Protocol):
    """Where tasks run."""

    def results(self, function: Function, tasks: Mapping[Hashable, Any]) -> Iterator[tuple[Hashable, Any]]:
        """Yield (key, result) of every task as it finishes; the result of a task that took its process along is LOST."""


def start_workers(settings: RunConfig, workers: int, factory: Callable[[], Any] | None = None) -> Serial | Processes | DaskWorkers:
    """Return the backend that ``run.scheduler`` names; its workers start with the first task.

    Args:
        settings: which backend.
        workers: number of workers, of one thread each; 0: this process does the work itself.
        factory: makes what all tasks share, once in every worker; picklable.
    """
    if settings.scheduler == "processes":
        return Processes(workers, factory) if workers else Serial(factory)
    from pipeline.cluster import DaskWorkers

    return DaskWorkers(settings, workers, factory)


def run(
    function: Function,
    tasks: Mapping[Hashable, Any],
    store: Store | None,
    where: Backend,
    *,
    in_order: bool = False,
    if_lost: Callable[[Any], Any] | None = None,
) -> Iterator[tuple[Hashable, Any]]:
    """Run the tasks that the store lacks, and yield (key, result) of each when it is finished and stored.

    Args:
        function: called with a task, after what the factory of ``where`` has made, if it has one; importable by its name.
        tasks: by key; each independent of the others.
        store: of finished results; None keeps nothing.
        where: a backend.
        in_order: results are stored and yielded in the order of the tasks.
        if_lost: the result, not stored, of a task (its argument) whose worker process died and died again in a second try; without
            it such a task is an error.

    Raises:
        StageError: the factory failed, or a task is lost. An error of ``function`` is raised as it is.
    """
    missing = {key: task for key, task in tasks.items() if store is None or key not in store}
    found = where.results(function, missing)
    for key, result in _sorted_as(missing, found) if in_order else found:
        if result is LOST:
            if if_lost is None:
                raise StageError("a worker process died (out of memory?); start the stage again, it goes on there")
            yield key, if_lost(missing[key])
        else:
            yield key, result if store is None else store.add(key, result)


def _sorted_as(tasks: Mapping[Hashable, Any], found: Iterator[tuple[Hashable, Any]]) -> Iterator[tuple[Hashable, Any]]:
    early: dict[Hashable, Any] = {}
    for key in tasks:
        while key not in early:
            finished, result = next(found)
            early[finished] = result
        yield key, early.pop(key)


class Serial:
    """Tasks one after the other in this process; a context manager, as ``Processes`` is.

    Args:
        factory: makes what all tasks share, before the first one; None where they share nothing.
    """

    def __init__(self, factory: Callable[[], Any] | None = None) -> None:
        self.factory = factory
        self._shared: tuple[Any, ...] | None = None

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what the factory has made."""
        self._shared = None

    def process_ids(self) -> list[int]:
        """Return the ids of the running workers: none."""
        return []

    def results(self, function: Function, tasks: Mapping[Hashable, Any]) -> Iterator[tuple[Hashable, Any]]:
        """Yield (key, result) of every task."""
        if tasks and self._shared is None:
            self._shared = make_shared(self.factory)
        with one_thread():
            for key, task in tasks.items():
                yield key, function(*self._shared, task)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Give PyTorch one thread, where it is in use, as it has in the workers."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    try:
        if torch:
            torch.set_num_threads(1)
        yield
    finally:
        if torch:
            torch.set_num_threads(threads)


class Processes:
    """Tasks in worker processes of one thread each, which serve any number of sets of tasks; a context manager.

    The workers start with the first task, each runs the factory once, and they end with this process. A worker that dies takes no
    other task with it: those under way run again one at a time, and only one whose worker dies again is LOST.

    Args:
        workers: number of processes, at least 1.
        factory: as in ``Serial``; picklable. Its error is raised, as one line, by the first task.
    """

    def __init__(self, workers: int, factory: Callable[[], Any] | None = None) -> None:
        self.workers, self.factory = max(1, workers), factory
        _start_method()  # what workers need is imported meanwhile
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def start(self) -> None:
        """Let the workers run the factory while this process does something else; an error of it is for the first task."""
        with contextlib.suppress(BrokenProcessPool):  # a worker that died: tasks find out
            for _ in range(self.workers):
                self._submit(_nothing, None)

    def close(self) -> None:
        """End the workers at once; what they have not finished is for the next run."""
        if self._executor is not None:
            processes = list((getattr(self._executor, "_processes", None) or {}).values())
            self._executor.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            self._executor = None

    def process_ids(self) -> list[int]:
        """Return the ids of the running workers."""
        return list(self._executor._processes or ()) if self._executor is not None else []

    def results(self, function: Function, tasks: Mapping[Hashable, Any]) -> Iterator[tuple[Hashable, Any]]:
        """Yield (key, result) of every task as it finishes; LOST is the result of one whose worker died twice."""
        waiting, suspects = deque(tasks), deque()
        while waiting or suspects:
            alone = bool(suspects)
            source = deque([suspects.popleft()]) if alone else waiting
            lost: list[Hashable] = []
            yield from self._until_a_worker_dies(function, tasks, source, lost)
            if lost:
                self.close()
                if alone:
                    yield lost[0], LOST
                else:
                    suspects.extend(lost)

    def _until_a_worker_dies(
        self, function: Function, tasks: Mapping[Hashable, Any], source: deque[Hashable], lost: list[Hashable]
    ) -> Iterator[tuple[Hashable, Any]]:
        """Yield results of the tasks named in ``source`` until a worker dies; ``lost`` then has the keys of those under way."""
        running: dict[Future, Hashable] = {}
        while (source or running) and not lost:
            while source and len(running) < self.workers and not lost:
                key = source.popleft()
                try:
                    running[self._submit(function, tasks[key])] = key
                except BrokenProcessPool:
                    lost.append(key)
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                key = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    lost.append(key)
                else:
                    yield key, result
        lost.extend(running.values())

    def _submit(self, function: Function, task: Any) -> Future:
        if self._executor is None:
            context = multiprocessing.get_context(_start_method())
            self._executor = ProcessPoolExecutor(self.workers, context, initializer=_start_worker, initargs=(self.factory,))
        return self._executor.submit(_run_in_worker, function, task)


_shared: tuple[Any, ...] = ()  # in a worker process: what the factory has made
_error: StageError | None = None


def _start_worker(factory: Callable[[], Any] | None) -> None:
    global _shared, _error
    prepare_worker()
    try:
        _shared = make_shared(factory)
    except StageError as error:  # reported by the first task: an exception here would only break the pool without a word
        _error = error
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def make_shared(factory: Callable[[], Any] | None) -> tuple[Any, ...]:
    """Return what all tasks share; raises StageError, in one line, whatever the factory raises."""
    try:
        return () if factory is None else (factory(),)
    except StageError:
        raise
    except Exception as error:
        raise StageError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _run_in_worker(function: Function, task: Any) -> Any:
    if _error is not None:
        raise StageError(str(_error))
    with one_thread():
        return function(*_shared, task)


def _nothing(*_: Any) -> None:
    """Do nothing, in a worker that has started."""


def end_with_parent() -> None:
    """End this worker process when its parent is gone: one that is killed cannot tell it. To be called once, at its start."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def prepare_worker() -> None:
    """Make a process a worker: the first thing that it does."""
    keep_freed_memory()
    os.environ["OMP_NUM_THREADS"] = "1"  # for a PyTorch that the first task imports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    end_with_parent()
    warnings.simplefilter("ignore")  # the libraries' remarks would tear the progress bar apart
