"""Measures how time and memory of a big set grow with the number of its judged candidates.

    python -m scripts.benchmark_growth                                              all of it; writes results/benchmark/growth.json
    python -m scripts.benchmark_growth --one-formula --rows 1000 --parts report     measures one part anew
    python -m scripts.benchmark_growth --one-formula --rows --generate 10000        lets stage 4 make so many real sheets

The rows are copies of the committed ones (``results/metrics.csv``), the structures copies of ``data/judged_candidates`` with strain
and rattled atoms. Every part runs in a process of its own, so that the largest memory is that of the part: the names of the
candidates, the store of finished ones, uniqueness, metrics, the tables, the report with its figures; on request (--parts together)
all of them as ``test.py`` does them where every candidate is judged. Uniqueness on sheets of one formula is its worst case. Stage 4
runs with the shipped weights and classifier-free guidance alone, which needs few draws for each sheet.
``docs/cluster.md`` shows the result.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read

from evaluation import comparison, metrics, report
from evaluation.candidate import CandidateResult, atoms_to_dict
from evaluation.decisions import mark_unique
from evaluation.evaluate import Evaluation, evaluate, unique_ids
from evaluation.judge_pool import cache_key, record_store
from evaluation.judging import Judges
from evaluation.result_files import write_structures, write_table
from pipeline.files import PROJECT_DIR, write_json
from pipeline.machine import machine
from pipeline.records import from_json
from pipeline.settings import Config, EvaluationConfig

ROWS, SHEETS = PROJECT_DIR / "results", PROJECT_DIR / "data" / "judged_candidates"
STRAIN, RATTLE = 0.02, 0.03  # standard deviations; the second in Å
SETTINGS = EvaluationConfig(phonons=False, exfoliation=False)
COUNTS = (1_000, 10_000, 100_000)
ONE_FORMULA = (30, 100, 300)


def name(k: int) -> str:
    """Return the name of candidate k."""
    return f"gen_{k:06d}"


def committed_rows() -> list[CandidateResult]:
    """Return the rows of the committed run."""
    kinds = {f.name: f.type for f in dataclasses.fields(CandidateResult)}

    def value(key: str, text: str) -> Any:
        if kinds[key] == "float":
            return float(text or "nan")
        return (
            int(text) if kinds[key] == "int" else {"true": True, "false": False, "": None}[text] if "bool" in kinds[key] else text
        )

    with (ROWS / "metrics.csv").open(newline="", encoding="utf-8") as handle:
        return [CandidateResult(**{key: value(key, text) for key, text in row.items()}) for row in csv.DictReader(handle)]


def candidates(count: int) -> Iterator[tuple[CandidateResult, Atoms]]:
    """Yield rows with their sheets; values that a figure draws differ from row to row."""
    rng, rows, sheets = np.random.default_rng(0), committed_rows(), read(SHEETS / "relaxed.extxyz", index=":")
    for k in range(count):
        given = sheets[k % len(sheets)]
        cell = given.cell.array.copy()
        cell[:2, :2] = cell[:2, :2] @ (np.eye(2) + rng.normal(scale=STRAIN, size=(2, 2)))
        atoms = Atoms(numbers=given.numbers, scaled_positions=given.get_scaled_positions(), cell=cell, pbc=(True, True, False))
        atoms.positions += rng.normal(scale=RATTLE, size=atoms.positions.shape)
        atoms.info["h_position"] = (atoms.positions[0] + [0, 0, 1.5]).tolist()
        atoms.calc = SinglePointCalculator(atoms, energy=-5.0 * len(atoms), forces=np.zeros((len(atoms), 3)))
        formula = given.info.get("reduced_formula") or atoms.symbols.formula.reduce()[0].format("metal")
        own = {"id": name(k), "source_file": f"{name(k)}.cif", "formula": str(atoms.symbols), "reduced_formula": formula}
        changed = {
            key: getattr(rows[k % len(rows)], key) + rng.normal(scale=0.3) for key in ("delta_g_ev", "e_above_hull_ev", "p_hit")
        }
        yield dataclasses.replace(rows[k % len(rows)], **own, natoms=len(atoms), **changed), atoms


def judged(count: int) -> Evaluation:
    """Return a set of so many candidates, without metrics."""
    rows, structures = [], {}
    for row, atoms in candidates(count):
        rows.append(row)
        structures[row.id] = atoms
    return Evaluation("ours", str(ROWS / "generated_cifs"), rows, {}, {}, structures, {})


def sheets_of_one_formula(count: int) -> tuple[list[CandidateResult], dict[str, Atoms]]:
    """Return sheets of four Mo and eight S at random places, no two of which are alike."""
    rng, rows, structures = np.random.default_rng(0), [], {}
    for k in range(count):
        places = rng.random((12, 3)) * [1, 1, 0.175]
        cell = np.diag([5.5, 6.3, 20.0])
        cell[:2, :2] = cell[:2, :2] @ (np.eye(2) + rng.normal(scale=0.1, size=(2, 2)))
        structures[name(k)] = Atoms("Mo4S8", scaled_positions=places, cell=cell, pbc=(True, True, False))
        rows.append(CandidateResult(id=name(k), reduced_formula="MoS2", dimensionality="2D"))
    return rows, structures


def write_stored(count: int, folder: Path) -> list[str]:
    """Write so many CIFs, of which nothing but the name is read, and what the judges found; return the keys of the records."""
    store, keys = record_store(folder / "out" / "cache"), []
    (folder / "cifs").mkdir()
    for row, atoms in candidates(count):
        content = f"data_{row.id}\n".encode()
        (folder / "cifs" / f"{row.id}.cif").write_bytes(content)
        keys.append(cache_key(content, {}, SETTINGS))
        found = {"structure": atoms_to_dict(atoms), "forces": atoms.get_forces(), "h_position": atoms.info["h_position"]}
        write_json(store.folder / f"{keys[-1]}.json", {"row": dataclasses.asdict(row), **found})
    return keys


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write report, figures, comparison and page of a set."""
    cfg = dataclasses.replace(Config(), evaluation=dataclasses.replace(SETTINGS, output_dir=str(folder)))
    report.write_report(evaluation, cfg, folder, script="test.py")
    comparison.update_comparison(cfg, folder)


def prepared(part: str, count: int, folder: Path) -> Callable[[], Any]:
    """Make the input of a part, and return the work that is measured."""
    if part == "names":
        given = [(name(k), f"{name(k)}.cif") for k in range(count)]
        return lambda: unique_ids(given)
    if part == "store":
        keys, store = write_stored(count, folder), record_store(folder / "out" / "cache")
        return lambda: [from_json(CandidateResult, store[key]["row"]).id for key in keys]
    if part == "together":
        write_stored(count, folder)
        judges = Judges(*[None] * 5)
        return lambda: write_report(evaluate(folder / "cifs", judges, SETTINGS, folder / "out", "ours"), folder / "out")
    if part == "one formula":
        rows, structures = sheets_of_one_formula(count)
        return lambda: mark_unique(rows, structures)
    found = judged(count)
    if part == "uniqueness":
        return lambda: mark_unique(found.rows, found.structures)
    if part == "metrics":
        return lambda: metrics.aggregate(found.rows, SETTINGS, 0)
    if part == "tables":
        return lambda: (
            write_table(found.rows, folder / "metrics.csv"),
            write_structures(found.rows, found.structures, folder / "x.extxyz"),
        )
    found.aggregates = metrics.aggregate(found.rows, dataclasses.replace(SETTINGS, bootstrap=10), 0)
    return lambda: write_report(found, folder)


PARTS = ("names", "store", "uniqueness", "metrics", "tables", "report")


def measure(part: str, count: int) -> dict[str, Any]:
    """Return the seconds of a part by the clock and of the CPU, and the memory before it and at most (MiB)."""
    with tempfile.TemporaryDirectory() as folder:
        work = prepared(part, count, Path(folder))
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        started, cpu = time.perf_counter(), time.process_time()
        work()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        sizes = {path.name: path.stat().st_size for path in Path(folder).rglob("report.*")}
    before = pages * resource.getpagesize() / 2**20
    peak = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # counted another way, and a little less
    found = {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "before_mib": round(before),
        "peak_mib": round(peak),
    }
    return found | {f"{key}_mb": round(size / 1e6, 2) for key, size in sorted(sizes.items())}


def measured(part: str, count: int) -> dict[str, Any]:
    """Measure a part in a process of its own."""
    command = [sys.executable, "-m", "scripts.benchmark_growth", "--part", part, "--rows", str(count)]
    done = subprocess.run(
        command, cwd=PROJECT_DIR, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def generated(count: int) -> dict[str, Any]:
    """Let stage 4 write so many sheets; return its seconds, the largest memory of one of its processes (MiB), and what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"run.output_dir={folder}",
            "denoiser.checkpoint=weights/denoiser.pth",
            "dimenet.checkpoint=weights/dimenet.pth",
        ]
        settings += [f"generation.num_structures={count}", "generation.guidance_scale=0"]
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "structure_generator.py", *settings]
        done = subprocess.run(command, cwd=PROJECT_DIR, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        manifest = json.loads((Path(folder) / "generated_cifs" / "manifest.json").read_text(encoding="utf-8"))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mib": round(after.ru_maxrss / 1024),
        "mb": round(size / 1e6, 3),
        "sheets": len(manifest["candidates"]),
        "sampled": manifest["counts"]["sampled"],
        "valid": manifest["counts"]["valid"],
        "formulas": len({row["formula"] for row in manifest["candidates"]}),
    }


def main() -> None:
    """Measure everything and write the table, after each part what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=list(COUNTS))
    parser.add_argument("--one-formula", type=int, nargs="*", default=list(ONE_FORMULA))
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=[*PARTS, "together"])
    parser.add_argument("--generate", type=int, nargs="*", default=[])
    parser.add_argument("--output", type=Path, default=PROJECT_DIR / "results" / "benchmark" / "growth.json")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        print(json.dumps(measure(chosen.part, chosen.rows[0])))
        return
    table: dict[str, Any] = {"machine": machine(), "load_average_before": os.getloadavg()[0], "rows": {}, "one_formula": {}}
    if chosen.output.is_file():  # parts that are measured anew replace those of this machine
        before = json.loads(chosen.output.read_text(encoding="utf-8"))
        table |= before if before.get("machine") == table["machine"] else {}
    tasks = [(table["one_formula"], "one formula", count) for count in chosen.one_formula]
    tasks += [(table["rows"].setdefault(str(count), {}), part, count) for count in chosen.rows for part in chosen.parts]
    tasks += [(table.setdefault("generated", {}), "stage 4", count) for count in chosen.generate]
    for found, part, count in tasks:
        key = part if part in (*PARTS, "together") else str(count)
        found[key] = generated(count) if part == "stage 4" else measured(part, count)
        print(count, part, found[key], flush=True)
        write_json(chosen.output, table | {"load_average_after": os.getloadavg()[0]})


if __name__ == "__main__":
    main()
