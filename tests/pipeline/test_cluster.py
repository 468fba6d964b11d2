"""Tasks on a Dask cluster: the same results as in this process, and what a worker, a scheduler or a queue that fails costs."""

from __future__ import annotations

import operator
import os
import subprocess
import sys
import threading
import time
from functools import partial

import processes
import pytest
import simple_judges as simple
from cluster_tasks import about_worker, counting, deadly, fail, no_model, product, slow, square

from evaluation.judge_pool import JudgePool, cache_key, record_store
from pipeline import tasks
from pipeline.errors import ConfigError, StageError
from pipeline.files import PROJECT_DIR
from pipeline.loading import load_config
from pipeline.settings import EvaluationConfig, RunConfig
from pipeline.store import LineStore

NUMBERS = {f"n{k}": k for k in range(7)}
SQUARES = {key: {"value": k**2} for key, k in NUMBERS.items()}


@pytest.fixture(scope="module")
def own():
    """A cluster of two workers of this machine."""
    with tasks.start_workers(RunConfig(scheduler="dask", gpus_per_worker=2), 2) as where:
        yield where


@pytest.fixture(scope="module")
def address(own):
    """Where the scheduler of that cluster listens."""
    dict(tasks.run(square, {"a": 1}, None, own))
    return own._client.scheduler.address


@pytest.fixture
def joined(address):
    """Tasks on the running cluster, with a factory or without."""
    made = []

    def join(factory=None):
        made.append(tasks.start_workers(RunConfig(scheduler=address), 1, factory))
        return made[-1]

    yield join
    for where in made:
        where.close()


def test_results_are_those_of_this_process(joined, tmp_path):
    store = LineStore(tmp_path / "x.jsonl")
    assert dict(tasks.run(square, NUMBERS, store, joined())) == SQUARES == dict(LineStore(store.path))
    assert dict(tasks.run(fail, NUMBERS, store, joined(no_model))) == {}, "nothing is loaded where nothing is missing"
    assert list(dict(tasks.run(square, NUMBERS, None, joined(), in_order=True))) == list(NUMBERS)


def test_workers_load_once_and_serve_several_sets(joined, tmp_path):
    where = joined(partial(counting, tmp_path))
    for _ in range(3):
        assert dict(tasks.run(product, NUMBERS, None, where)) == {key: {"value": 10 * k} for key, k in NUMBERS.items()}
    loaded = {int(path.name) for path in tmp_path.iterdir()}
    assert loaded and loaded <= set(where.process_ids()), "once in each worker"


def test_each_worker_has_one_thread_and_its_gpus(own):
    found = dict(tasks.run(about_worker, {str(k): k for k in range(12)}, None, own)).values()
    assert {record["threads"] for record in found} == {"1"}
    assert {record["pid"] for record in found} <= set(own.process_ids()) and os.getpid() not in own.process_ids()
    assert {record["gpus"] for record in found} <= {"0,1", "2,3"}


def test_errors_are_those_of_this_process(joined, tmp_path):
    with pytest.raises(ZeroDivisionError, match="task 3"):
        dict(tasks.run(fail, {"a": 3}, None, joined()))
    with pytest.raises(StageError) as error:
        dict(tasks.run(product, NUMBERS, None, joined(no_model)))
    assert str(error.value) == "ValueError: the weights are not there"


def test_a_dying_worker_costs_one_task_and_is_replaced(own, joined, tmp_path):
    before = set(own.process_ids())
    store = LineStore(tmp_path / "x.jsonl")
    found = dict(tasks.run(partial(deadly, tmp_path), NUMBERS, store, joined(), if_lost=lambda task: f"lost {task}"))
    assert found == SQUARES | {"n2": "lost 2"}, "the one that dies once is run again"
    assert "n2" not in LineStore(store.path), "a lost one is for the next run"
    assert dict(tasks.run(square, NUMBERS, None, own)) == SQUARES
    for _ in range(200):
        if len(now := own.process_ids()) == 2:
            break
        time.sleep(0.1)
    assert len(now) == 2 and set(now) != before


@pytest.mark.slow
def test_a_set_is_judged_as_in_this_process(joined, tmp_path):
    simple.write_cifs(tmp_path / "cifs", {"a": simple.sheet(), "b": simple.bulk_copper(), "c": simple.sheet("WS2")})
    settings, identity = EvaluationConfig(bootstrap=10), simple.judges().identity
    files = {cache_key(path.read_bytes(), identity, settings): path for path in sorted((tmp_path / "cifs").glob("*.cif"))}

    def judged(scheduler):
        with JudgePool(simple.judges, identity, 1, RunConfig(scheduler=scheduler)) as pool:
            found = dict(pool.judge(files, settings, record_store(tmp_path / scheduler.replace("/", ""))))
        for record in found.values():
            record["row"].pop("seconds")
        return found

    everywhere = judged("processes"), judged(joined().settings.scheduler)
    assert str(everywhere[0]) == str({key: everywhere[1][key] for key in everywhere[0]}) and len(everywhere[0]) == 3


@pytest.mark.slow
def test_a_scheduler_that_dies_is_one_line_and_what_is_finished_stays(tmp_path):
    from pipeline.cluster import _local_cluster

    cluster = _local_cluster(1)
    store = LineStore(tmp_path / "x.jsonl")
    with tasks.start_workers(RunConfig(scheduler=cluster.scheduler_address), 1) as where:
        assert dict(tasks.run(square, {"a": 1}, store, where)) == {"a": {"value": 1}}
        threading.Timer(0.5, cluster.close).start()
        with pytest.raises(StageError, match="the Dask scheduler is gone; start the stage again"):
            dict(tasks.run(slow, {"a": 1, "b": 2}, store, where))
    assert dict(LineStore(store.path)) == {"a": {"value": 1}}


def test_what_cannot_be_used_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="run.scheduler=pbs: choose processes, dask, slurm or tcp://HOST:PORT"):
        load_config(None, ["run.scheduler=pbs"])
    monkeypatch.setattr("pipeline.cluster.CONNECT_SECONDS", 1)
    with pytest.raises(StageError, match="no Dask scheduler answers at tcp://127.0.0.1:1"):
        dict(tasks.run(square, NUMBERS, None, tasks.start_workers(RunConfig(scheduler="tcp://127.0.0.1:1"), 1)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch"):
        dict(tasks.run(square, NUMBERS, None, tasks.start_workers(RunConfig(scheduler="slurm"), 1)))


SBATCH = """#!/bin/sh
cp "$1" {folder}/job_$$.sh  # Slurm copies it too: the caller deletes its own
setsid sh {folder}/job_$$.sh > {folder}/out_$$ 2>&1 &
echo $! >> {folder}/pids
echo "Submitted batch job $$"
"""
SCANCEL = """#!/bin/sh
for pid in $(cat {folder}/pids); do kill -TERM -- -$pid 2>/dev/null; done
exit 0
"""


@pytest.mark.slow
def test_workers_as_jobs_of_slurm(monkeypatch, tmp_path):
    """Stand-ins for sbatch and scancel that run the job on this machine."""
    for name, script in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(script.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    settings = RunConfig(
        scheduler="slurm", output_dir=str(tmp_path / "out"), walltime="00:30:00", queue="short", account="chem", gpus_per_worker=1
    )
    with tasks.start_workers(settings, 1) as where:
        assert dict(tasks.run(operator.neg, NUMBERS, None, where)) == {key: -k for key, k in NUMBERS.items()}
        (pid,) = where.process_ids()
    (job,) = tmp_path.glob("job_*.sh")
    directives = [line.split(maxsplit=1)[1] for line in job.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"-p short", "-A chem", "-t 00:30:00", "--cpus-per-task=1", "--gres=gpu:1", "--mem=4G"} <= set(directives)
    processes.assert_ends(pid)


@pytest.mark.slow
@processes.WATCHED
def test_workers_end_with_a_killed_parent(tmp_path):
    script = (
        "import operator, time\n"
        "from pipeline import tasks\n"
        "from pipeline.settings import RunConfig\n"
        "if __name__ == '__main__':\n"
        "    where = tasks.start_workers(RunConfig(scheduler='dask'), 1)\n"
        "    dict(tasks.run(operator.neg, {'a': 1}, None, where))\n"
        "    print(*where.process_ids(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "run.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], stdout=subprocess.PIPE, text=True, env=environment)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    processes.assert_ends(worker)
