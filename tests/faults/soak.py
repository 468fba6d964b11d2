"""Memory of an evaluation over many candidates.

    python tests/faults/soak.py CIFS NUMBER OUTPUT.json [--every 50] [section.key=value ...]

Judges NUMBER candidates with ``evaluation.evaluate`` and the ordinary pool of judges, and records after every 50 finished ones the
resident memory of the main process and of its workers (sum over workers; pages that they share count in each). Where the folder
holds fewer CIFs, the others are made from them by small strains. A run that is stopped goes on where it was; memory belongs to a
process, so each start has its own series in OUTPUT.json, and its own slope after the first hundred candidates.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from evaluation import evaluate, judges
from evaluation.judge_pool import JudgePool
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR, write_json
from pipeline.loading import load_config
from pipeline.provenance import git_commit
from pipeline.settings import Config

SETTLED = 100  # candidates after which memory should no longer grow
MIB = 2**20


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it has ended."""
    try:
        import psutil
    except ImportError:
        with contextlib.suppress(OSError):
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return 0
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


class WatchedPool(JudgePool):
    """A pool that looks at memory whenever so many candidates are finished."""

    def __init__(self, factory: Callable, identity: dict[str, Any], workers: int, every: int, seen: Callable[[dict], None]) -> None:
        super().__init__(factory, identity, workers)
        self.every, self.seen, self.finished, self.started = every, seen, 0, time.monotonic()

    def look(self) -> None:
        """Reports what the processes hold now."""
        workers = self.workers.process_ids()
        self.seen(
            {
                "finished": self.finished,
                "seconds": round(time.monotonic() - self.started, 1),
                "main_mib": round(resident_bytes(os.getpid()) / MIB, 2),
                "workers_mib": round(sum(resident_bytes(pid) for pid in workers) / MIB, 2),
                "worker_pids": sorted(workers),
            }
        )

    def judge(self, *arguments: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        for finished in super().judge(*arguments):
            yield finished
            self.finished += 1
            if self.finished % self.every == 0:
                self.look()


def candidates(source: Path, number: int, folder: Path) -> None:
    """``number`` CIFs in ``folder``: links to those of ``source``, then strained copies of them."""
    found = evaluate.find_cifs(source)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.cif"):
        old.unlink()
    for k in range(number):
        path, copy = found[k % len(found)], k // len(found)
        if copy == 0:
            (folder / path.name).symlink_to(path.resolve())
            continue
        from ase.io import read, write

        atoms = read(path)
        strain = 1 + 0.0005 * copy
        atoms.set_cell(atoms.cell.array * np.array([[strain], [1 / strain], [1.0]]), scale_atoms=True)
        write(folder / f"{path.stem}_{copy:04d}.cif", atoms, format="cif")


def slope(rows: Sequence[dict[str, Any]], key: str, settled: int = SETTLED) -> float | None:
    """MiB per thousand candidates after the first ``settled`` ones, by least squares; None with fewer than three points."""
    points = [(row["finished"], row[key]) for row in rows if row["finished"] >= settled]
    return round(1000 * float(np.polyfit(*np.array(points, dtype=float).T, 1)[0]), 3) if len(points) >= 3 else None


def soak(
    cfg: Config,
    source: Path,
    number: int,
    output: Path,
    every: int,
    factory: Callable | None = None,
    identity: dict[str, Any] | None = None,
    settled: int = SETTLED,
) -> dict[str, Any]:
    """Judges, records, and returns the series of this start. factory, identity: other judges than those of the configuration."""
    import json

    work = output.with_name(f"{output.stem}_work")
    candidates(source, number, work / "cifs")
    earlier = json.loads(output.read_text(encoding="utf-8"))["runs"] if output.is_file() else []
    run: dict[str, Any] = {"asked_for": number, "workers": cfg.evaluation.workers, "rows": []}

    def write() -> None:
        for key in ("main_mib", "workers_mib"):
            run[f"slope_{key}_per_1000"] = slope(run["rows"], key, settled)
        write_json(output, {"settled_after": settled, "git_commit": git_commit(), "runs": [*earlier, run]})

    def seen(row: dict[str, Any]) -> None:
        run["rows"].append(row)
        print(f"{row['finished']:>8} {row['seconds']:>10.0f} {row['main_mib']:>10.1f} {row['workers_mib']:>12.1f}", flush=True)
        write()

    factory = factory or partial(judges.load_judges, cfg)
    print(f"{'finished':>8} {'seconds':>10} {'main MiB':>10} {'workers MiB':>12}", flush=True)
    identity = judges.judge_identity(cfg) if identity is None else identity
    with WatchedPool(factory, identity, cfg.evaluation.workers, every, seen) as pool:
        evaluation = evaluate.evaluate(work / "cifs", pool, cfg.evaluation, work, "soak", seed=cfg.run.seed)
        run["statuses_ok"] = sum(row.status == "ok" for row in evaluation.rows)
        pool.look()  # with the table, the metrics and the comparison of structures in memory
    write()
    for key, name in (("main_mib", "main process"), ("workers_mib", "workers")):
        found = run[f"slope_{key}_per_1000"]
        print(f"{name}: {'too few points for a slope' if found is None else f'{found:+.1f} MiB per 1000 candidates'}")
    return run


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifs", type=Path)
    parser.add_argument("number", type=int)
    parser.add_argument("output", type=Path)
    parser.add_argument("--every", type=int, default=50, help="finished candidates between two looks")
    parser.add_argument("overrides", nargs="*", help="settings: section.key=value")
    arguments = parser.parse_args(argv)
    try:
        cfg = load_config(PROJECT_DIR / "config.yaml", arguments.overrides)
        soak(cfg, arguments.cifs, arguments.number, arguments.output, arguments.every)
    except StageError as error:
        print(f"soak.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
