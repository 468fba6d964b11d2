"""What surrounds a program: variables of the environment, CPUs, backends of figures."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import venv
import weakref

import matplotlib
import pytest

from pipeline.cli import run_stage
from pipeline.files import PROJECT_DIR
from pipeline.plotting import figure

STAGE = """
import os, sys, warnings
from pipeline import tasks
from pipeline.cli import resolve_device, run_stage


def task(number):
    import matplotlib

    warnings.warn("of a library")
    return number + 1


def main(cfg):
    from pipeline.plotting import figure

    warnings.warn("of a library", DeprecationWarning)
    with figure(sys.argv[1], figsize=(2, 2)) as (_, axis):
        axis.plot([0, 1])
    with tasks.Processes(1) as pool:
        print(dict(tasks.run(task, {"a": 1}, None, pool)))
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    resolve_device(cfg.run)
    import torch

    print("threads", torch.get_num_threads())


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run",), []))
"""


def test_variables_meant_for_other_programs_do_not_reach_a_stage(tmp_path):
    """A backend that is installed for notebooks only, warnings as errors, and no docstrings; one CPU of many."""
    (tmp_path / "stage.py").write_text(STAGE)
    odd = {"MPLBACKEND": "module://no_such_module.backend", "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2"}
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | odd | {"PYTHONPATH": str(PROJECT_DIR)}
    command = [sys.executable, str(tmp_path / "stage.py"), str(tmp_path / "x.png")]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n") == ["{'a': 2}", "threads 1", ""]
    assert "arn" not in run.stderr and "semaphore" not in run.stderr
    assert (tmp_path / "x.png").stat().st_size > 1000 and (tmp_path / "x.pdf").is_file()


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")])
def test_a_signal_in_the_callback_of_a_weak_reference_still_ends_the_stage(number, code, word, capsys):
    """Python drops what such a callback raises."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that was started in the background ignores it

    def send(_):
        os.kill(os.getpid(), number)
        for _ in range(1000):  # the handler of the signal runs between two steps of Python code
            pass

    def main(_):
        what = {1}
        reference = weakref.ref(what, send)
        del what
        assert reference() is None
        time.sleep(20)

    started = time.monotonic()
    try:
        assert run_stage(main, __doc__, ("run",), []) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 10
    assert f"{word}; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_figure_leaves_the_backend_of_a_notebook_alone(tmp_path):
    before = matplotlib.rcParams["backend"]
    matplotlib.rcParams["backend"] = "svg"
    try:
        with figure(tmp_path / "x.png", ncols=2, figsize=(3, 2), sharex=True) as (drawn, (left, right)):
            left.plot([1, 2])
            right.set_title("x")
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.rcParams["backend"] = before
    assert tuple(drawn.get_size_inches()) == (3, 2)


def test_a_figure_that_fails_is_not_written(tmp_path):
    with pytest.raises(ZeroDivisionError), figure(tmp_path / "x.png"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_the_packages_are_found_where_python_leaves_the_scripts_folder_out(tmp_path):
    """PYTHONSAFEPATH=1, with what the Makefile writes into its environment."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (code,) = re.findall(r"-c '(.*her2d\.pth.*)'", (PROJECT_DIR / "Makefile").read_text(encoding="utf-8"))
    code = code.replace("$(CURDIR)", str(PROJECT_DIR))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"}
    stage = [python, str(PROJECT_DIR / "test.py"), "run.sead=1"]
    assert b"No module named" in subprocess.run(stage, env=env, cwd=PROJECT_DIR, capture_output=True, check=False).stderr
    subprocess.run([python, "-c", code], check=True)
    asked = subprocess.run(
        [python, "-c", "import scripts, pipeline.tasks as t; print(t.__file__)"], env=env, cwd=tmp_path, capture_output=True
    )
    assert asked.stdout.decode().strip() == str(PROJECT_DIR / "pipeline" / "tasks.py"), asked.stderr
