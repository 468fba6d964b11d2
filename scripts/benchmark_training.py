"""Measures how fast stage 1 reads, starts and steps, on synthetic records of the size of OC20's.

    python -m scripts.benchmark_training                     all of it; writes results/benchmark/training.json
    python -m scripts.benchmark_training --records 2000 --output x.json

It writes an LMDB of slabs with H to a temporary folder, and measures there: the start with and without an index; records per second
of 0, 1 and 2 loader workers; steps per second of 1 and 2 processes, by torchrun, of one thread each (on a GPU: of one process). The
graphs of records are built anew in every measurement. ``docs/cluster.md`` shows the result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import fcc111

from energetics.adsorption_data import AdsorptionData, read_entries, split_by_formula
from energetics.dimenet_training import MemberBatches, MemberJob, member_trainer
from energetics.is2re_lmdb import open_is2re, write_is2re
from energetics.record_index import RecordIndex
from networks.dimenet_layers import DimeNetPlusPlusConfig
from networks.loading import batches
from networks.ranks import Ranks, Share
from pipeline.cli import resolve_device, seed_everything
from pipeline.files import PROJECT_DIR, write_json
from pipeline.machine import machine
from pipeline.settings import DimenetConfig, RunConfig

METALS = ("Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Al", "Rh", "Ir", "Pb")
SIZES = ((4, 4, 4), (5, 4, 4), (5, 5, 3), (4, 4, 5))  # 65 to 81 atoms with H; those of OC20 have 78 on average
STRETCH = 1.0  # share of the lattice constant by which slabs differ, %
STEPS, WARM_STEPS = 12, 2


def synthetic_records(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield slabs of two metals at random with H on top, tagged and rattled; their energies are random."""
    rng = np.random.default_rng(seed)
    slabs = [fcc111(metal, size, vacuum=10.0) for metal in METALS for size in SIZES]
    for slab in slabs:
        slab.pbc = True
    for sid in range(count):
        slab = slabs[rng.integers(len(slabs))]
        numbers = np.append(slab.numbers, 1)
        first, second = slab.numbers[0], rng.choice(slabs[rng.integers(len(slabs))].numbers)
        numbers[:-1] = np.where(rng.random(len(slab)) < 0.5, first, second)
        top = slab.positions[int(np.argmax(slab.positions[:, 2]))]
        positions = np.vstack([slab.positions, top + [0.2, 0.1, 1.5]]) * (1 + STRETCH / 100 * rng.uniform(-1, 1))
        positions += rng.normal(scale=0.05, size=positions.shape)
        layers = slab.get_tags()
        yield {
            "pos": positions,
            "cell": slab.cell.array[None],
            "atomic_numbers": numbers,
            "tags": np.append((layers == 1).astype(int), 2),
            "fixed": np.append((layers > 2).astype(int), 0),
            "sid": sid,
            "y_init": rng.normal(),
            "y_relaxed": rng.normal(),
            "pos_relaxed": positions + rng.normal(scale=0.05, size=positions.shape),
            "bulk_formula": f"{slab.symbols[0]}{1 + sid % 60}H",
        }


def make_job(lmdb: Path, preset: str, batch_size: int, precision: str = "float32") -> tuple[MemberJob, dict[str, float]]:
    """Return one member of an ensemble on an LMDB, and how many seconds its parts took. The index lies beside the LMDB."""
    settings = DimenetConfig(lmdb_path=str(lmdb), batch_size=batch_size, ensemble_size=1)
    model = DimeNetPlusPlusConfig.preset(preset)
    times = {}

    def timed(name: str, made: Any) -> Any:
        nonlocal last
        times[name], last = time.perf_counter() - last, time.perf_counter()
        return made

    last = time.perf_counter()
    reader = timed("open", open_is2re(lmdb))
    index = RecordIndex(reader, lmdb.with_name("records.index.npz"))
    index.sha256()
    table = timed("index", index.table())
    entries, _ = read_entries([reader], settings, 94, [table])
    split = timed("split", split_by_formula(entries, settings, 0))
    data = AdsorptionData([reader], entries, model.cutoff_angstrom, model.max_neighbors)
    data.structures.cached_atoms = 0
    common = (settings, model, data, split, 0.0, 1.0, "benchmark", lmdb.with_name("resume.pt"))
    return MemberJob(0, 0, *common, precision == "bf16"), {name: round(value, 3) for name, value in times.items()}


def starts(lmdb: Path) -> dict[str, Any]:
    """Return the seconds that a start takes without an index and with one."""
    lmdb.with_name("records.index.npz").unlink(missing_ok=True)
    parts = {name: make_job(lmdb, "small", 16)[1] for name in ("without_index", "with_index")}
    seconds = {f"{name}_s": round(sum(times.values()), 2) for name, times in parts.items()}
    return seconds | {"parts_s": parts, "index_mb": round(lmdb.with_name("records.index.npz").stat().st_size / 1e6, 2)}


def loading(job: MemberJob, workers: int, seconds: float) -> dict[str, Any]:
    """Return the records per second of the loader alone, after its workers have started."""
    made = MemberBatches(job.data.structures, np.asarray(job.split["train"]), (0, 0), job.settings.batch_size, 0.25, Share())
    found = batches(made, 0, made.steps_per_epoch, workers)
    for _ in range(2 + 8 * workers):  # what was made before the clock starts must not count
        next(found)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds and (batch := next(found, None)) is not None:
        count += len(batch[7])
    rate = count / (time.perf_counter() - started)
    return {"records": count, "records_per_s": round(rate, 1), "load_average": round(os.getloadavg()[0], 2)}


def stepping(lmdb: Path, preset: str, batch_size: int, precision: str) -> None:
    """Print, in the first rank, the steps per second of a training; torchrun may have started several."""
    seed_everything(0)
    ranks = Ranks(resolve_device(RunConfig(threads=1, precision=precision), training=True))
    torch.set_num_threads(1)
    job, _ = make_job(lmdb, preset, batch_size, precision)
    job.data.structures.cached_atoms = 10**9
    trainer = member_trainer(job, ranks)
    for step in range(STEPS + WARM_STEPS):  # graphs stay in memory: the loader is measured by itself
        trainer.task.batch(step)
    for step in range(STEPS + WARM_STEPS):
        if step == WARM_STEPS:
            started = time.perf_counter()
        trainer.train_step()
    seconds = time.perf_counter() - started
    if ranks.is_first:
        peak = torch.cuda.max_memory_allocated() / 1e9 if ranks.device.type == "cuda" else None
        found = {"preset": preset, "precision": precision, "processes": ranks.share.count, "batch_size": batch_size}
        found |= {"steps_per_s": round(STEPS / seconds, 3), "records_per_s": round(STEPS * batch_size / seconds, 1)}
        print(json.dumps(found | {"peak_gpu_gb": peak}))


def run_steps(lmdb: Path, processes: int, preset: str, batch_size: int, precision: str) -> dict[str, Any]:
    """Measure ``stepping`` in processes of its own."""
    command = [sys.executable, "-m", "scripts.benchmark_training"]
    if processes > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
        command = [sys.executable, "-m", *torchrun, "scripts.benchmark_training"]
    command += ["--steps-on", str(lmdb), "--preset", preset, "--batch-size", str(batch_size), "--precision", precision]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure everything and write the table, after each part what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--output", type=Path, default=PROJECT_DIR / "results" / "benchmark" / "training.json")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement of the loader")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--steps-on", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--preset", default="small", help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, default=16, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.steps_on:
        stepping(chosen.steps_on, chosen.preset, chosen.batch_size, chosen.precision)
        return
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    table: dict[str, Any] = {
        "machine": machine(torch.cuda.get_device_name(device) if device.type == "cuda" else None),
        "load_average_before": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory() as folder:
        lmdb = Path(folder) / "data.lmdb"
        started = time.perf_counter()
        write_is2re(lmdb, synthetic_records(chosen.records))
        table["lmdb"] = {"records": chosen.records, "mb": round(lmdb.stat().st_size / 1e6, 1)}
        table["lmdb"]["written_in_s"] = round(time.perf_counter() - started, 1)
        table["start"] = starts(lmdb)
        table["loader"] = {}  # by preset and number of workers
        for preset in ("small", "oc20"):
            job, _ = make_job(lmdb, preset, 16)
            table["lmdb"]["mean_atoms"] = round(float(np.mean([entry.num_atoms for entry in job.data.entries])), 1)
            table["loader"][preset] = {str(workers): loading(job, workers, chosen.seconds) for workers in chosen.workers}
            write_json(chosen.output, table)
        kinds = [("small", 16, "float32")]
        if on_gpu:
            kinds += [("oc20", size, precision) for size in (16, 64) for precision in ("float32", "bf16")]
        table["steps"] = {}  # by preset, records of a batch and precision, and number of processes
        for kind in kinds:
            counts = [1] if on_gpu else chosen.processes
            table["steps"][" ".join(map(str, kind))] = {str(count): run_steps(lmdb, count, *kind) for count in counts}
            write_json(chosen.output, table)
    table["load_average_after"] = os.getloadavg()[0]
    write_json(chosen.output, table)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
