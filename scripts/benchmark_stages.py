"""Measures how long the stages behind ``make run`` and ``make pipeline`` take.

    python -m scripts.benchmark_stages run --out /tmp/run
    python -m scripts.benchmark_stages pipeline --out /tmp/pipeline

The commands are those that make would run, one after the other, with new folders for what they write; the installation does not
count. The table, ``results/benchmark/stages.json`` unless ``--output`` names another, keeps what it says of the other target.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR, relative_name, write_json
from pipeline.machine import machine
from pipeline.provenance import git_commit

TABLE = PROJECT_DIR / "results" / "benchmark" / "stages.json"
# Runs a command and waits for all that it leaves behind: on Linux workers are children of a process that the stage does not wait
# for, and count only where somebody does. 36 is PR_SET_CHILD_SUBREAPER.
WAITING = """
import ctypes, os, subprocess, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
code = subprocess.run(sys.argv[1:]).returncode
try:
    while True:
        os.wait()
except ChildProcessError:
    sys.exit(code)
"""
FOLDERS = ("output_dir=", "embedded_checkpoint=")  # settings that say where products go or are


def commands(target: str, out: Path, folder: Path = PROJECT_DIR) -> list[list[str]]:
    """Return the Python commands of a target of the Makefile in ``folder``, by this Python; what is written goes to ``out``.

    Raises:
        StageError: make fails.
    """
    call = ["make", "-n", target, f"OUT={out}", f"EXTERNAL_OUT={out}_external", "PY=her2d-python"]
    try:
        found = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise StageError(f"make {target}: {said.strip().splitlines()[-1]}") from error
    lines = [line for line in found.stdout.splitlines() if line.startswith("her2d-python ") and " -m pip " not in line]
    return [[sys.executable, *shlex.split(line)[1:]] for line in lines]


def label(command: list[str]) -> str:
    """Return what a command runs, with the settings that change what is computed."""
    words = [word for word in command[1:] if word != "-m" and not any(name in word for name in FOLDERS)]
    return " ".join(words)


def measure(command: list[str], folder: Path = PROJECT_DIR) -> dict[str, Any]:
    """Run a command; return its label, its seconds, and the processor seconds of it and of its workers.

    Raises:
        StageError: it ends with an error.
    """
    before, started = _processor_seconds(), time.perf_counter()
    code = subprocess.run([sys.executable, "-c", WAITING, *command], cwd=folder).returncode
    if code:
        raise StageError(f"{label(command)} ended with status {code}")
    return {
        "command": label(command),
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(_processor_seconds() - before, 1),
    }


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: list[str] | None = None) -> int:
    """Run a target's commands and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("run", "pipeline"))
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for products; must not exist, so that nothing is taken over"
    )
    parser.add_argument("--output", type=Path, default=TABLE)
    chosen = parser.parse_args(arguments)
    out = chosen.out.absolute()
    try:
        if taken := [path for path in (out, Path(f"{out}_external")) if path.exists()]:
            raise StageError(f"--out: {relative_name(taken[0])} exists, so that its products would be taken over")
        load = os.getloadavg()[0]
        stages = [measure(command) for command in commands(chosen.target, out)]
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    table = json.loads(chosen.output.read_text(encoding="utf-8")) if chosen.output.is_file() else {}
    seconds = sum(stage["seconds"] for stage in stages)
    table[chosen.target] = {
        "machine": machine(),
        "commit": git_commit(),
        "load_before": round(load, 2),
        "seconds": round(seconds, 1),
        "minutes": round(seconds / 60, 1),
        "processor_seconds": round(sum(stage["processor_seconds"] for stage in stages), 1),
        "stages": stages,
    }
    write_json(chosen.output, table)
    for stage in stages:
        print(f"{stage['seconds']:8.1f} s  {stage['processor_seconds']:8.1f} s of the processors  {stage['command']}")
    print(f"{table[chosen.target]['seconds']:8.1f} s  in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
