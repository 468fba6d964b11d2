"""Running independent tasks: the same results in this process and in workers, and what a dying worker costs."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial

import pytest

from pipeline import tasks
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.settings import RunConfig
from pipeline.store import FolderStore, LineStore

NUMBERS = {f"n{k}": k for k in range(7)}


def ten():
    return 10


def product(shared, number):
    return {"value": shared * number}


def square(number):
    return {"value": number**2}


def process_id(number):
    time.sleep(0.05)
    return {"pid": os.getpid()}


def process_id_beside(shared, number):
    return process_id(number) | {"shared": shared}


def no_model():
    raise ValueError("the weights\nare not there")


def no_file():
    raise StageError("demo.potential: no file at x.pth")


def fail(number):
    raise ZeroDivisionError(f"task {number}")


def counting(folder):
    """Leaves a file for every process that makes it."""
    (folder / str(os.getpid())).touch()
    return 10


def deadly(folder, number):
    """Ends its process for number 2 every time, for number 4 the first time."""
    first = folder / str(number)
    if number == 2 or (number == 4 and not first.exists()):
        first.touch()
        os._exit(9)
    time.sleep(0.02)
    return {"value": number**2}


def slow_first(number):
    time.sleep(0.3 if number == 0 else 0)
    return {"value": number}


def threads_of(number):
    import torch

    return {"threads": torch.get_num_threads()}


def interrupted(number):
    os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C, which reaches every process of a terminal
    return {"value": number}


def warned(number):
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("a library's remark", UserWarning, stacklevel=1)
    return {"filters": [action for action, *_ in warnings.filters][:1], "caught": len(caught)}


BACKENDS = {"serial": tasks.Serial, "processes": partial(tasks.Processes, 2)}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


def run(where, function, given=NUMBERS, store=None, **options):
    try:
        return dict(tasks.run(function, given, store, where, **options))
    finally:
        if isinstance(where, tasks.Processes):
            where.close()


def test_results_are_the_same_everywhere(backend):
    assert run(backend(), square) == {key: {"value": k**2} for key, k in NUMBERS.items()}
    assert run(backend(ten), product) == {key: {"value": 10 * k} for key, k in NUMBERS.items()}


@pytest.mark.parametrize("layout", ["lines", "folder"])
def test_what_the_store_holds_is_not_run_again(backend, tmp_path, layout):
    def opened():
        return LineStore(tmp_path / "x.jsonl") if layout == "lines" else FolderStore(tmp_path / "x")

    half = {key: k for key, k in NUMBERS.items() if k < 3}
    assert set(run(backend(), square, half, opened())) == set(half)
    store = opened()
    assert set(run(backend(), square, NUMBERS, store)) == set(NUMBERS) - set(half)
    assert dict(opened()) == {key: {"value": k**2} for key, k in NUMBERS.items()} == dict(store)
    assert run(backend(no_model), fail, NUMBERS, opened()) == {}, "nothing is loaded where nothing is missing"


def test_a_finished_result_is_in_the_store_when_it_is_yielded(backend, tmp_path):
    where, store = backend(), LineStore(tmp_path / "x.jsonl")
    for key, result in tasks.run(square, NUMBERS, store, where):
        assert LineStore(tmp_path / "x.jsonl")[key] == result
    if isinstance(where, tasks.Processes):
        where.close()


def test_the_order_of_the_tasks_where_it_is_asked_for(backend, tmp_path):
    store = LineStore(tmp_path / "x.jsonl")
    assert list(run(backend(), slow_first, store=store, in_order=True)) == list(NUMBERS) == list(LineStore(store.path))


def test_an_error_of_a_task_is_raised_and_finished_ones_stay(backend, tmp_path):
    store = LineStore(tmp_path / "x.jsonl")
    run(backend(), square, {"a": 1}, store)
    with pytest.raises(ZeroDivisionError, match="task 0"):
        run(backend(), fail, {"a": 1, "b": 0}, store)
    assert dict(LineStore(store.path)) == {"a": {"value": 1}}


def test_an_error_of_loading_is_one_line(backend):
    for factory, message in ((no_model, "ValueError: the weights are not there"), (no_file, "demo.potential: no file at x.pth")):
        with pytest.raises(StageError) as error:
            run(backend(factory), product)
        assert str(error.value) == message


def test_workers_load_once_and_serve_several_sets(tmp_path):
    with tasks.Processes(2, partial(counting, tmp_path)) as pool:
        assert not pool.process_ids(), "they start with the first task"
        for _ in range(3):
            assert len(dict(tasks.run(product, NUMBERS, None, pool))) == 7
            pids = {str(pid) for pid in pool.process_ids()}
        loaded = {path.name for path in tmp_path.iterdir()}
        assert loaded and loaded <= pids and len(pids) == 2, "a fast worker may leave nothing to do for the other"
    assert not pool.process_ids()


def test_workers_load_before_the_first_task_where_they_are_started(tmp_path):
    with tasks.Processes(2, partial(counting, tmp_path)) as pool:
        pool.start()
        for _ in range(600):
            if len(started := {int(path.name) for path in tmp_path.iterdir()}) == 2:
                break
            time.sleep(0.05)
        assert started == set(pool.process_ids()) and len(started) == 2
        found = run(pool, process_id_beside)
        assert {record["pid"] for record in found.values()} <= started and len(list(tmp_path.iterdir())) == 2
    for factory, message in ((no_model, "ValueError: the weights are not there"), (no_file, "demo.potential: no file at x.pth")):
        with tasks.Processes(2, factory) as pool:
            pool.start()
            with pytest.raises(StageError, match=message):
                run(pool, process_id_beside)


def test_workers_run_at_the_same_time():
    found = run(tasks.Processes(2), process_id)
    pids = {record["pid"] for record in found.values()}
    assert len(pids) == 2 and os.getpid() not in pids


def test_a_dying_worker_takes_no_other_task_with_it(tmp_path):
    store = LineStore(tmp_path / "x.jsonl")
    found = run(tasks.Processes(2), partial(deadly, tmp_path), store=store, if_lost=lambda task: f"lost {task}")
    squares = {key: {"value": k**2} for key, k in NUMBERS.items()}
    assert found == squares | {"n2": "lost 2"}, "the one that dies once is run again"
    assert dict(LineStore(store.path)) == {key: squares[key] for key in squares if key != "n2"}, "a lost one is for the next run"


def test_a_lost_task_is_an_error_unless_something_stands_in_for_it(tmp_path):
    with pytest.raises(StageError, match="a worker process died .* start the stage again"):
        run(tasks.Processes(1), partial(deadly, tmp_path))


def test_without_workers_this_process_does_the_work():
    with tasks.start_workers(RunConfig(), 0, ten) as where:
        assert run(where, process_id_beside)["n0"] == {"pid": os.getpid(), "shared": 10} and where.process_ids() == []


def test_every_task_has_one_thread(backend):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert {record["threads"] for record in run(backend(), threads_of).values()} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_ctrl_c_is_the_parents_to_handle():
    assert set(run(tasks.Processes(2), interrupted)) == set(NUMBERS)


def test_remarks_of_libraries_are_not_shown():
    assert run(tasks.Processes(1), warned, {"a": 1}) == {"a": {"filters": ["ignore"], "caught": 0}}


@pytest.fixture
def ctrl_c():
    """Makes Ctrl-C raise KeyboardInterrupt: programs that a shell starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_run_ends_its_workers(ctrl_c):
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), tasks.Processes(2) as pool:
        next(found := tasks.run(process_id, {str(k): k for k in range(20_000)}, None, pool))
        pids = pool.process_ids()
        timer.start()
        list(found)
    for pid in pids:
        for _ in range(100):
            try:
                os.waitpid(pid, os.WNOHANG)
                os.kill(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                break
            time.sleep(0.05)
        else:
            pytest.fail("a worker lives on")


def test_the_number_of_cpus_is_that_of_this_process():
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from pipeline.tasks import cpu_count; print(cpu_count())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    assert run.stdout == "1\n"


def test_it_does_not_import_torch():
    code = "import sys, pipeline.tasks; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR).returncode == 0


FORKING = """
import os, signal, sys, time
from pipeline import tasks

def found(number):
    return {"n": number, "imported": "colorsys" in sys.modules, "threads": os.environ["OMP_NUM_THREADS"], "parent": os.getppid()}

def deadly(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"n": number}

def sleeping(number):
    os.write(1, f"{os.getpid()} {os.getppid()}\\n".encode())  # in one piece, beside the other worker
    time.sleep(60)

if __name__ == "__main__":
    environment = dict(os.environ)
    tasks.import_for_workers(["colorsys", "no_such_module"])
    assert dict(os.environ) == environment and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    given = {str(k): k for k in range(5)}
    with tasks.Processes(2) as pool:
        if sys.argv[1] == "sleep":
            list(tasks.run(sleeping, given, None, pool))
        records = dict(tasks.run(found, given, None, pool))
        assert {record["n"] for record in records.values()} == set(range(5))
        assert all(record["imported"] and record["threads"] == "1" for record in records.values())
        parents = {record["parent"] for record in records.values()}
        assert len(parents) == 1 and parents != {os.getpid()}, "workers are forked from one process beside this one"
        lost = dict(tasks.run(deadly, given, None, pool, if_lost=lambda task: "lost"))
        assert lost == {str(k): "lost" if k == 2 else {"n": k} for k in range(5)}
    with tasks.Processes(2) as pool:
        assert {record["parent"] for record in dict(tasks.run(found, given, None, pool)).values()} == parents, "a second pool too"
    print("done")
"""


@pytest.fixture
def forking(tmp_path):
    """Starts a program whose workers are forked; its argument says what they do."""
    (tmp_path / "program.py").write_text(FORKING, encoding="utf-8")
    started = []

    def start(does):
        command = [sys.executable, str(tmp_path / "program.py"), does]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not tasks.FORK_SERVERS, reason="workers are spawned on this system")
def test_workers_are_forked_from_a_process_that_has_imported_what_they_need(forking, ctrl_c):
    out, errors = forking("work").communicate(timeout=60)
    assert (out, errors) == ("done\n", "")


@pytest.mark.skipif(not tasks.FORK_SERVERS, reason="workers are spawned on this system")
def test_forked_workers_and_the_process_they_come_from_end_with_a_parent_that_is_killed(forking, ctrl_c):
    process = forking("sleep")
    pids = {int(pid) for _ in range(2) for pid in process.stdout.readline().split()}
    process.kill()
    errors = process.communicate(timeout=20)[1]
    assert len(pids) == 3, f"two workers and the process that they were forked from; {errors}"
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.05)


def is_running(pid):
    """Return whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as handle:
            return handle.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
