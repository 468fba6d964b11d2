"""Runs independent tasks on a Dask cluster: one of this machine, one that is running, or jobs of Slurm.

``DaskWorkers`` is a backend of ``pipeline.tasks.run``. Only the process that starts it writes files, so that neither a worker nor a
scheduler that dies leaves anything behind. https://distributed.dask.org, https://jobqueue.dask.org.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import dask
from distributed import Client, Future, LocalCluster, WorkerPlugin, as_completed, get_worker
from distributed.client import FutureCancelledError
from distributed.deploy import Cluster
from distributed.scheduler import KilledWorker

from pipeline.errors import ConfigError, StageError
from pipeline.files import PROJECT_DIR
from pipeline.settings import RunConfig
from pipeline.tasks import LOST, Function, end_with_parent, make_shared, one_thread

log = logging.getLogger("her2d")

# One task at a time on each worker, so that a worker that dies costs no other; a task is tried twice, as in ``tasks.Processes``.
POLICY = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.allowed-failures": 1,
    "distributed.scheduler.work-stealing": False,
    "logging.distributed": "critical",  # of the workers; their remarks would tear the progress bar apart
}
AHEAD = 2  # tasks sent for every worker, of which one waits
CONNECT_SECONDS = 10
LOST_CONNECTION = "the Dask scheduler is gone; start the stage again, it goes on from what is finished"


class DaskWorkers:
    """Tasks on the workers of a Dask cluster; a context manager, as ``tasks.Processes`` is, with the same ``results``.

    The cluster starts, or is joined, with the first task. Each worker runs the factory once, before its first task.

    Args:
        settings: ``run.scheduler`` says which cluster, and the other settings how Slurm is asked.
        workers: number of workers to start; a running cluster has its own.
        factory: makes what all tasks share, such as a model; picklable.
    """

    def __init__(self, settings: RunConfig, workers: int, factory: Callable[[], Any] | None = None) -> None:
        self.settings, self.workers, self.factory = settings, max(1, workers), factory
        self._name = f"her2d-{uuid.uuid4().hex}"
        self._cluster: Cluster | None = None
        self._client: Client | None = None

    def __enter__(self) -> DaskWorkers:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """End what was started; what is not finished is for the next run. A cluster that was joined goes on."""
        with warnings.catch_warnings(), contextlib.suppress(OSError, TimeoutError):
            warnings.simplefilter("ignore")
            if self._client is not None:
                if self._cluster is None:
                    self._client.unregister_worker_plugin(self._name)
                self._client.close()
            if self._cluster is not None:
                self._cluster.close()
        self._client = self._cluster = None

    def process_ids(self) -> list[int]:
        """Return the ids of the running workers' processes."""
        return sorted(self._client.run(os.getpid).values()) if self._client is not None else []

    def results(self, function: Function, tasks: Mapping[Hashable, Any]) -> Iterator[tuple[Hashable, Any]]:
        """Yield (key, result) of every task as it finishes; LOST is the result of one whose worker died twice.

        Raises:
            StageError: the factory failed, or the scheduler is gone.
        """
        if not tasks:
            return
        client = self._connect()
        waiting, running = iter(tasks), {}
        finished = as_completed(loop=client.loop)
        try:
            while True:
                for key in itertools.islice(waiting, max(0, AHEAD * self._size() - len(running))):
                    future = client.submit(_run_on_worker, self._name, function, tasks[key], key=f"task-{uuid.uuid4().hex}")
                    running[future.key] = key
                    finished.add(future)
                if not running:
                    return
                future = next(finished)
                yield running.pop(future.key), _result(future)
        finally:
            with contextlib.suppress(Exception):  # the connection may be what failed
                client.cancel(list(finished.futures), reason="the stage ends")

    def _size(self) -> int:
        """Return the number of workers, or of those that are to come."""
        return max(self.workers, len(self._client.scheduler_info()["workers"]))

    def _connect(self) -> Client:
        if self._client is None:
            where = self.settings.scheduler
            with dask.config.set(POLICY):
                if where == "dask":
                    self._cluster = _local_cluster(self.workers)
                elif where == "slurm":
                    self._cluster = slurm_cluster(self.settings, self.workers)
                try:
                    self._client = Client(self._cluster or where, timeout=CONNECT_SECONDS, set_as_default=False)
                except (OSError, TimeoutError) as error:
                    raise StageError(f"run.scheduler: no Dask scheduler answers at {where}") from error
            plugin = _Worker(self.factory, self.settings.gpus_per_worker if where == "dask" else 0)
            self._client.register_plugin(plugin, name=self._name)
            log.info("tasks run on the Dask cluster %s, scheduler %s", where, self._client.scheduler.address)
        return self._client


def _local_cluster(workers: int) -> LocalCluster:
    return LocalCluster(
        n_workers=workers, threads_per_worker=1, memory_limit=0, silence_logs=logging.CRITICAL, dashboard_address=None
    )


def slurm_cluster(settings: RunConfig, workers: int) -> Cluster:
    """Return a cluster whose workers are jobs of Slurm, of one core each. What else a site needs is in Dask's own configuration.

    Raises:
        ConfigError: there is no ``sbatch``.
    """
    from shutil import which

    from dask_jobqueue import SLURMCluster

    if which("sbatch") is None:
        raise ConfigError("run.scheduler=slurm: there is no sbatch on this machine; start the stage where jobs are submitted")
    folder = PROJECT_DIR if not os.path.isabs(settings.output_dir) else settings.output_dir
    cluster = SLURMCluster(
        cores=1,
        processes=1,
        memory=f"{settings.worker_memory_gb}GB",
        walltime=settings.walltime,
        queue=settings.queue or None,
        account=settings.account or None,
        job_extra_directives=[f"--gres=gpu:{settings.gpus_per_worker}"] if settings.gpus_per_worker else [],
        job_script_prologue=[f"export PYTHONPATH={PROJECT_DIR}:$PYTHONPATH", "export OMP_NUM_THREADS=1"],
        log_directory=os.path.join(folder, "slurm"),
        python=sys.executable,
    )
    cluster.scale(jobs=workers)
    return cluster


def _result(future: Future) -> Any:
    """Return the result of a finished task, or LOST."""
    try:
        return future.result()
    except KilledWorker:
        return LOST
    except FutureCancelledError as error:
        raise StageError(LOST_CONNECTION) from error


class _Worker(WorkerPlugin):
    """What a worker has while the tasks of one ``DaskWorkers`` run."""

    def __init__(self, factory: Callable[[], Any] | None, gpus: int) -> None:
        self.factory, self.gpus = factory, gpus

    def setup(self, worker: Any) -> None:
        warnings.simplefilter("ignore")
        self.lock, self.shared, self.error = threading.Lock(), None, None
        if self.gpus and isinstance(worker.name, int):  # of this machine; Slurm gives each job its own
            first = worker.name * self.gpus
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(first + k) for k in range(self.gpus))
        if multiprocessing.parent_process() is not None:
            end_with_parent()
            with contextlib.suppress(ValueError):  # only the main thread may
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def run(self, function: Function, task: Any) -> Any:
        """Run one task, after the factory where it is the first."""
        with self.lock:  # workers of a cluster of others may have several threads
            if self.shared is None and self.error is None:
                try:
                    self.shared = make_shared(self.factory)
                except StageError as error:
                    self.error = str(error)
            if self.error is not None:
                raise StageError(self.error)
            with one_thread():
                return function(*self.shared, task)


def _run_on_worker(name: str, function: Function, task: Any) -> Any:
    return get_worker().plugins[name].run(function, task)
