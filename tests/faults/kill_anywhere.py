"""Kills every stage at random moments, starts it again, and compares its products with those of an uninterrupted run.

    python tests/faults/kill_anywhere.py [--stage NAME ...] [--kills 20] [--seed 0] [--judges real] [--json FILE]

For each stage, in a tiny setting on the embedded data: one uninterrupted run gives the reference products and their duration T.
Then the stage is started and killed (SIGKILL) after a random share of T, started again, and so on, until it has been killed often
enough; a run that finishes before its kill ends a trial, and the next trial starts in an empty folder. After every kill no file
under its final name may be truncated, and no process that the stage had started may live on or write. At the end of every trial
the products equal those of the reference, weights and figures bit for bit; only times, dates and commits may differ.

The stage runs in a process forked from this one, which has imported everything, so that kills fall into its work and not into its
imports. Worker processes are forked too. ``--judges simple`` replaces the judges and the potential by instant ones
(``simple_judges.py``), for a quick run.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import hashlib
import importlib.util
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

from kill_stages import Stage, stages  # noqa: E402 - after the path is set

TIMED = {"created_utc", "git_commit", "seconds", "unique_id", "ctime", "mtime"}  # what may differ between two equal runs
GRACE_S = 20.0  # within which the workers of a killed stage have to end
NOTHING: dict[str, Any] = {}


def _fork_workers() -> None:
    """Worker processes of the stage are forked from it: nothing is imported again."""
    from pipeline import tasks

    fork = multiprocessing.get_context("fork")
    tasks.multiprocessing = _Forking(fork)


class _Forking:
    """``multiprocessing`` whose every context forks."""

    def __init__(self, fork: Any) -> None:
        self.fork = fork

    def get_context(self, _: str) -> Any:
        return self.fork

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)


def start(stage: Stage, arguments: list[str], output: int, spawn: bool = False, largest_file: int = 0) -> int:
    """Forks the stage into a session of its own; returns its process id. Its exit code is that of the script.

    output: descriptor to which it prints. largest_file: bytes beyond which no file of the stage can grow; 0: no limit.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        sys.argv = [stage.script]
        from pipeline.cli import run_stage

        if not spawn:
            _fork_workers()
        for change in stage.patches:
            change()
        code = run_stage(_main(stage.script), "", stage.sections, arguments)
    except BaseException:  # nothing may return into the process that forked
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _main(script: str) -> Callable[[Any], None]:
    if script != "test.py":
        return importlib.import_module(script.removesuffix(".py")).main
    spec = importlib.util.spec_from_file_location("stage_5", ROOT / script)  # the standard library has a module named test
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def members(session: int) -> dict[int, str]:
    """Living processes of a session: id -> command."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                fields = rest.split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found[int(entry.name)] = name
    return found


def wait(pid: int, seconds: float) -> int | None:
    """Exit code of a child, or None when it still runs after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def is_temporary(path: Path) -> bool:
    """A file that an ``atomic_path`` of a killed process has left, or the journal of a database beside it."""
    return path.name.startswith(".") and (".tmp" in path.name or path.name.endswith((".db", ".db-journal")))


def products(folder: Path) -> Iterator[Path]:
    """Every file under its final name."""
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and not is_temporary(p))


def check_readable(path: Path) -> None:
    """Raises where a file is truncated or cannot be read."""
    kind = path.suffix
    if kind == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif kind == ".jsonl":
        # Records are appended: what a kill can leave is an unfinished last line, which the next start cuts off.
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            json.loads(line)
    elif kind in (".pth", ".pt"):
        import torch

        torch.load(path, weights_only=True)
    elif kind == ".cif":
        from crystals import cif

        assert len(cif.read_cif(path, 1000))
    elif kind == ".extxyz":
        from ase.io import read

        assert read(path, ":")
    elif kind == ".csv":
        text = path.read_text(encoding="utf-8")
        rows = list(csv.reader(text.splitlines()))
        assert text.endswith("\n") and rows and len({len(row) for row in rows}) == 1, "incomplete table"
    elif kind == ".db":
        with contextlib.closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    elif kind in (".lmdb", ".mdb"):
        from energetics.is2re_lmdb import open_is2re

        assert all(len(record.pos) for record in open_is2re(path))
    elif kind == ".gz":
        gzip.decompress(path.read_bytes())
    elif kind == ".png":
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), "incomplete image"
    elif kind == ".pdf":
        assert path.read_bytes().rstrip().endswith(b"%%EOF"), "incomplete PDF"
    elif kind == ".html":
        assert path.read_text(encoding="utf-8").endswith("</html>\n"), "incomplete page"


def _untimed(value: Any) -> Any:
    """Without times, and without hashes of databases: SQLite rows carry dates, pickled tensors the addresses at which they lay."""
    if isinstance(value, dict):
        return {key: _untimed(item) for key, item in value.items() if key not in TIMED and not key.endswith((".db", ".lmdb"))}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """What is compared of a file: everything but times, dates and commits."""
    kind = path.suffix
    if kind == ".json":
        return _untimed(json.loads(path.read_text(encoding="utf-8")))
    if kind == ".jsonl":  # in the order in which the workers finished
        return sorted(json.dumps(_untimed(json.loads(line)), sort_keys=True) for line in path.read_text("utf-8").splitlines())
    if kind == ".csv":
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        return [[cell for cell, name in zip(row, rows[0], strict=True) if name not in TIMED] for row in rows]
    if kind == ".db":
        from ase.db import connect

        rows = [(row.toatoms().todict(), row.key_value_pairs) for row in connect(path).select()]
        return json.dumps(rows, default=lambda value: value.tolist(), sort_keys=True)
    if kind in (".lmdb", ".mdb"):
        from energetics.is2re_lmdb import open_is2re

        return [str({k: getattr(v, "tolist", lambda v=v: v)() for k, v in vars(r).items()}) for r in open_is2re(path)]
    if kind == ".html":
        text = re.sub(r"(&#34;(created_utc|git_commit|seconds)&#34;: )[^,\n]*", r"\1", path.read_text(encoding="utf-8"))
        before, tag, rest = text.partition('<script type="application/json" id="values">')
        values, end, after = rest.partition("</script>")
        return [before, tag, _untimed_columns(json.loads(values)) if values else None, end, after]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _untimed_columns(page: dict[str, Any]) -> dict[str, Any]:
    """Return what a page holds of its materials, without the columns of times."""
    timed = {number for number, column in enumerate(page["columns"]) if column["key"] in TIMED}
    return page | {"values": [[v for k, v in enumerate(row) if k not in timed] for row in page["values"]]}


def snapshot(folder: Path) -> dict[str, Any]:
    """Contents of all products by name."""
    return {str(path.relative_to(folder)): content(path) for path in products(folder)}


def difference(reference: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of products that are missing, too many or different."""
    return [
        f"{name}: {'missing' if name not in found else 'too many' if name not in reference else 'differs'}"
        for name in sorted(set(reference) | set(found))
        if reference.get(name, NOTHING) != found.get(name, NOTHING)
    ]


class Violation(AssertionError):
    """A promise that a stage has broken."""


@dataclass
class Outcome:
    """What the kills of one stage have shown."""

    stage: str
    seconds: float
    products: int
    kills: int = 0
    trials: int = 0
    leftovers: int = 0
    longest_worker_s: float = 0.0
    cpu_s: float = 0.0
    disk: dict[str, str] = field(default_factory=dict)
    kill_shares: list[float] = field(default_factory=list)


class Trial:
    """A stage in its folder, which is the same for every run so that paths in the products are."""

    def __init__(self, name: str, stage: Stage, base: Path, spawn: bool = False) -> None:
        self.name, self.stage, self.base, self.spawn = name, stage, base, spawn
        self.run, self.given, self.log = base / name / "run", base / "given", base / name / "log.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        settings = {"run.threads": 1, "run.device": "cpu", "run.output_dir": "{run}", **stage.settings}
        places = {"run": self.run, "given": self.given}
        self.arguments = [f"{key}={str(value).format(**places)}" for key, value in settings.items()]

    def fresh(self) -> None:
        """An empty folder, with what the stage reads in it."""
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir(parents=True)
        for name, folder in self.stage.files:
            (self.run / folder).mkdir(exist_ok=True)
            shutil.copyfile(ROOT / "data" / "random_decoration" / name, self.run / folder / name)
        if "test" in self.stage.given:
            shutil.copytree(self.given / "test", self.run, dirs_exist_ok=True)

    def whole(self) -> float:
        """Runs the stage to its end; returns the seconds. Raises Violation where it fails."""
        started = time.monotonic()
        code = wait(start(self.stage, self.arguments, self.output, self.spawn), 900)
        if code != 0:
            raise Violation(f"{self.name}: exit code {code}\n{self.log.read_text(errors='replace')[-3000:]}")
        return time.monotonic() - started

    def killed_after(self, seconds: float, outcome: Outcome) -> bool:
        """Starts the stage and kills it after so many seconds; False when it has finished before."""
        pid = start(self.stage, self.arguments, self.output, self.spawn)
        code = wait(pid, seconds)
        if code is not None:
            if code != 0:
                raise Violation(f"{self.name}: exit code {code} after a kill\n{self.log.read_text(errors='replace')[-3000:]}")
            return False
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed = time.monotonic()
        while left := members(pid):
            if time.monotonic() - killed > GRACE_S:
                for orphan in left:
                    os.kill(orphan, signal.SIGKILL)
                raise Violation(f"{self.name}: {len(left)} worker processes live on: {left}")
            time.sleep(0.02)
        outcome.longest_worker_s = max(outcome.longest_worker_s, time.monotonic() - killed)
        for path in products(self.run):
            try:
                check_readable(path)
            except Exception as error:
                raise Violation(f"{self.name}: {path.relative_to(self.run)} after a kill at {seconds:.2f} s: {error!r}") from error
        return True


def kill_stage(
    name: str, kills: int, seed: int, base: Path, judges: str = "simple", spawn: bool = False, disk: bool = False
) -> Outcome:
    """Kills one stage so often and compares; raises Violation where anything is lost, broken or different.

    disk: the disk faults of ``disk_faults.py`` follow, on the finished products.
    """
    table = stages(judges, spawn)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    stage = table[name]
    trial = Trial(name, stage, base, spawn)
    for given in stage.given:
        if not (base / "given" / given).is_dir():
            earlier = Trial(given, table[given], base)
            earlier.fresh()
            earlier.whole()
            shutil.copytree(earlier.run, base / "given" / given)
    (base / "given").mkdir(parents=True, exist_ok=True)
    if stage.prepare:
        preparing = multiprocessing.get_context("fork").Process(target=stage.prepare, args=(base / "given",))
        preparing.start()  # in a process of its own: LMDB files that were open here could not be opened in the stage
        preparing.join()
    trial.fresh()
    seconds = trial.whole()
    reference = snapshot(trial.run)
    outcome = Outcome(name, seconds, len(reference))
    rng = random.Random(f"{name} {seed}")
    while outcome.kills < kills:
        trial.fresh()
        outcome.trials += 1
        while outcome.kills < kills:
            share = rng.random()
            if not trial.killed_after(share * seconds, outcome):
                break
            print(f"\r{name}: {outcome.kills + 1} kills", end="", file=sys.stderr, flush=True)
            outcome.kills += 1
            outcome.kill_shares.append(round(share, 3))
        else:
            trial.whole()
        if different := difference(reference, snapshot(trial.run)):
            raise Violation(f"{name}: after {outcome.kills} kills the products differ: {'; '.join(different[:8])}")
        outcome.leftovers += sum(is_temporary(path) for path in trial.run.rglob("*"))
    if disk:
        import disk_faults

        outcome.disk = disk_faults.check_stage(trial)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome.cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return outcome


def warm_up(judges: str) -> None:
    """Imports everything, on one thread: threads that were started here would be missing in a forked process."""
    import torch

    torch.set_num_threads(1)
    rooms = ("crystals", "energetics", "evaluation", "generation", "networks", "pipeline")
    for path in (path for room in rooms for path in sorted((ROOT / room).glob("*.py"))):
        importlib.import_module(f"{path.parent.name}.{path.stem}")
    importlib.import_module("simple_judges")
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_pdf  # noqa: F401
    import pymatgen.io.vasp.sets  # noqa: F401
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1, user_api="blas")
    for stage in stages(judges).values():
        _main(stage.script)
    if judges == "real":
        from energetics import potentials

        for name in ("sevennet-0", "sevennet-l3i5"):
            potentials.load_potential(name)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=list(stages("simple")), default=list(stages("simple")))
    parser.add_argument(
        "--kills", type=int, default=20, help="kills of each stage; 0 with --disk: the row of FILE gets the disk faults alone"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judges", choices=("real", "simple"), default="real")
    parser.add_argument("--spawn", action="store_true", help="worker processes are spawned, as in a real run: slow")
    parser.add_argument("--disk", action="store_true", help="full, limited and read-only disks follow (see disk_faults.py)")
    parser.add_argument("--json", type=Path, help="file into which the table is written; rows of other stages in it stay")
    arguments = parser.parse_args(argv)
    from pipeline.files import write_json

    warm_up(arguments.judges)
    failed = 0
    print(f"{'stage':<20}{'kills':>7}{'trials':>8}{'files':>7}{'T (s)':>8}{'workers end (s)':>17}  verdict", flush=True)
    for name in arguments.stage:
        with tempfile.TemporaryDirectory(prefix="kill anywhere é ") as base:
            try:
                found = kill_stage(
                    name, arguments.kills, arguments.seed, Path(base), arguments.judges, arguments.spawn, arguments.disk
                )
            except Violation as error:
                failed += 1
                print(f"{name:<20}{error}", flush=True)
                row: dict[str, Any] = {"verdict": str(error)}
            else:
                row = {
                    "verdict": "identical",
                    "kills": found.kills,
                    "trials": found.trials,
                    "products_compared": found.products,
                    "temporary_files_left": found.leftovers,
                    "uninterrupted_seconds": round(found.seconds, 2),
                    "workers_end_within_seconds": round(found.longest_worker_s, 2),
                    "killed_at_share_of_the_run": found.kill_shares,
                } | ({"disk": found.disk} if found.disk else {})
                print(
                    f"{name:<20}{found.kills:>7}{found.trials:>8}{found.products:>7}{found.seconds:>8.1f}"
                    f"{found.longest_worker_s:>17.2f}  identical; {found.leftovers} temporary files; {found.cpu_s:.0f} s of CPU",
                    flush=True,
                )
        row |= {"judges": arguments.judges, "workers": "spawned" if arguments.spawn else "forked", "seed": arguments.seed}
        if arguments.json:
            old = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.is_file() else {}
            if not arguments.kills and row["verdict"] == "identical":
                row = old.get(name, {}) | {"disk": row["disk"]}
            write_json(arguments.json, old | {name: row})
    return 1 if failed else 0


if __name__ == "__main__":
    import kill_anywhere  # under its own name, so that its classes are those that disk_faults.py knows

    raise SystemExit(kill_anywhere.main())
