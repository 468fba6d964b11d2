"""Runs stages in processes of their own, forked from one that has imported the packages: to import them takes each stage seconds.

The parent has none of the project's modules, no thread and no model, so that a stage still finds what it needs in files alone.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torch_geometric",
    "sevenn.calculator",
    "scipy.stats",
    "sklearn.ensemble",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
    "pymatgen.core",
    "pymatgen.io.ase",
    "pymatgen.io.cif",
    "pymatgen.io.vasp.sets",
    "ase.build",
    "ase.db",
    "ase.io",
)
LONGEST_S = 600


class StageStarter:
    """The parent of the stages; a context manager. environment: of the parent, and so of every stage."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> StageStarter:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.parent.stdin.close()
        self.parent.wait(timeout=LONGEST_S)
        self.parent.stdout.close()

    def run(self, program: str, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess:
        """Run a script (a path, or the name of a module) to its end, as ``subprocess.run`` does."""
        written = {name: str(self.folder / name) for name in ("stdout", "stderr")}
        order = {"program": program, "arguments": arguments, "cwd": str(cwd), **written}
        self.parent.stdin.write(json.dumps(order) + "\n")
        self.parent.stdin.flush()
        code = int(self.parent.stdout.readline())
        texts = {name: Path(path).read_text(encoding="utf-8") for name, path in written.items()}
        return subprocess.CompletedProcess([program, *arguments], code, **texts)


def serve() -> None:
    """Fork a process for every line of stdin, and print its exit code."""
    for package in PACKAGES:
        importlib.import_module(package)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(order)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _become(order: dict[str, Any]) -> None:
    """Run the script as if this process had been started for it."""
    signal.alarm(LONGEST_S)
    for descriptor, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY)] + [(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("stdout", "stderr")]
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(order["cwd"])
    program = order["program"]
    sys.argv = [program, *order["arguments"]]
    if program.endswith(".py"):
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path[0] = order["cwd"]
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
