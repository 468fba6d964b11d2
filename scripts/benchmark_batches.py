"""Measures how much faster sheets relax together, in one batch on one device, than one after the other with ASE.

    python -m scripts.benchmark_batches                       on the GPU where there is one; writes results/benchmark/batches.json
    python -m scripts.benchmark_batches --device cpu --batches 1 8 32 --output x.json

Two kinds of work, both on sheets of the embedded database, drawn at random. Bare: strained and rattled, in-plane cell free
(``relax_sheet``). Hydrogen: H beside a site of a supercell, atoms far from it held (``relax_hydrogen``). Every measurement begins
with the same structures, so that energies can be compared; a batch is filled up with new structures as some converge. Where the GPU
is measured, ASE runs on one core of the CPU too. Speed-ups are ratios of atoms x evaluations per second, since the structures of a
longer list are not of the same size on average. Where the CPU works, seconds are those of the process, of one thread, so that other
work on the machine does not count; where the GPU works, those of the clock. ``--seconds`` bounds each measurement: it takes fewer
structures where they would take longer, and a batch that cannot be filled once in twice this time is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.db import connect

from energetics.batched_network import MAX_EDGES, BatchedNetwork
from energetics.batched_relaxation import relax_batched
from energetics.potentials import Potential, load_potential
from energetics.relaxation import Relaxation, h2_energy, hold_far_atoms, relax_hydrogen, relax_sheet
from energetics.sites import adsorption_sites, beside_site, h_supercell
from geo_utils import standard_sheet
from pipeline.files import PROJECT_DIR, write_json
from pipeline.machine import machine
from pipeline.provenance import git_commit
from pipeline.settings import POTENTIALS, DatasetConfig

STRAIN, RATTLE = 0.03, 0.1  # standard deviations; the second in Å. The sheets of the database are relaxed
STEPS = {"bare": 150, "hydrogen": 60}  # at most, as the judges take
FMAX = 0.05  # eV/Å
SAME = 5.0  # meV/atom by which the energy of a batched relaxation may differ
ROUNDS = 2  # structures of a measurement over those of a batch
WARM_STEPS = 3
IMAGE_DISTANCE = DatasetConfig().h_image_distance_angstrom


def bare_sheet(sheet: Atoms, rng: np.random.Generator) -> Atoms:
    """Return a sheet with strain in the plane and rattled atoms."""
    atoms, cell = sheet.copy(), sheet.cell.array.copy()
    cell[:2, :2] = cell[:2, :2] @ (np.eye(2) + rng.normal(scale=STRAIN, size=(2, 2)))
    atoms.set_cell(cell, scale_atoms=True)
    atoms.positions += rng.normal(scale=RATTLE, size=atoms.positions.shape)
    return atoms


def with_hydrogen(sheet: Atoms, rng: np.random.Generator) -> Atoms | None:
    """Return a supercell with H beside a site and the atoms far from it held; None where the sheet has no site."""
    sites = adsorption_sites(sheet)
    if not sites:
        return None
    supercell = h_supercell(sheet, IMAGE_DISTANCE)
    atoms = beside_site(sheet, sites[rng.integers(len(sites))], supercell)
    hold_far_atoms(atoms)
    return atoms


def drawn(kind: str, count: int, database: Path, seed: int) -> list[Atoms]:
    """Draw so many structures of a kind; a longer list begins with the shorter one."""
    rng, found = np.random.default_rng(seed), []
    rows = [row.toatoms() for row in connect(database).select()]
    while len(found) < count:
        sheet = standard_sheet(rows[rng.integers(len(rows))])
        atoms = bare_sheet(sheet, rng) if kind == "bare" else with_hydrogen(sheet, rng)
        if atoms is not None:
            found.append(atoms)
    return found


def with_ase(kind: str, atoms: Atoms, potential: Potential, max_steps: int) -> Relaxation:
    """Relax one structure as the judges do."""
    if kind == "bare":
        return relax_sheet(atoms, potential, FMAX, max_steps)
    return relax_hydrogen(atoms, 0.0, potential, FMAX, max_steps)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return the clock that measures work on a device, in seconds."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def rates(found: Sequence[Relaxation], seconds: float) -> dict[str, Any]:
    """Return what a measurement says: times, evaluations of energy and forces, and how many structures converged."""
    evaluations = [result.steps + 1 for result in found]
    work = sum(count * len(result.atoms) for count, result in zip(evaluations, found, strict=True))
    return {
        "structures": len(found),
        "mean_atoms": round(float(np.mean([len(result.atoms) for result in found])), 1),
        "converged": sum(result.converged for result in found),
        "mean_steps": round(float(np.mean(evaluations)) - 1, 1),
        "seconds": round(seconds, 2),
        "seconds_per_structure": round(seconds / len(found), 4),
        "evaluations_per_s": round(sum(evaluations) / seconds, 1),
        "atom_evaluations_per_s": round(work / seconds, 1),
    }


def one_by_one(
    kind: str, structures: Sequence[Atoms], potential: Potential, seconds: float
) -> tuple[dict[str, Any], list[Relaxation]]:
    """Measure ASE, one structure after the other, until the time is up."""
    with_ase(kind, structures[0], potential, WARM_STEPS)
    h2_energy(potential)  # the judges compute it once
    clock = clock_of(potential.calculator.device)
    found, started = [], clock()
    for atoms in structures:
        found.append(with_ase(kind, atoms, potential, STEPS[kind]))
        if clock() - started > seconds:
            break
    return rates(found, clock() - started), found


def together(
    kind: str, structures: Sequence[Atoms], network: BatchedNetwork, batch_size: int
) -> tuple[dict[str, Any], list[Relaxation]]:
    """Measure batches of a size, after a few steps that warm up the device."""
    on_gpu, cell_free, clock = network.device.type == "cuda", kind == "bare", clock_of(network.device)
    try:
        relax_batched(structures[:batch_size], network, batch_size, cell_free, FMAX, WARM_STEPS)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(network.device)
        started = clock()
        found = relax_batched(structures, network, batch_size, cell_free, FMAX, STEPS[kind])
    except torch.OutOfMemoryError:
        return {"structures": len(structures), "failed": "out of memory"}, []
    measured = rates(found, clock() - started)
    peak = torch.cuda.max_memory_allocated(network.device) / 1e9 if on_gpu else None
    return measured | {"peak_gpu_gb": None if peak is None else round(peak, 2)}, found


def agreement(batched: Sequence[Relaxation], alone: Sequence[Relaxation]) -> dict[str, Any]:
    """Compare final energies of the structures that converged both ways, meV/atom."""
    pairs = [(a, b) for a, b in zip(batched, alone, strict=False) if a.converged and b.converged]
    differences = np.array([1000 * abs(a.energy - b.energy) / len(a.atoms) for a, b in pairs])
    if not len(differences):
        return {"compared": 0}
    return {
        "compared": len(pairs),
        "largest_difference_mev_per_atom": round(float(differences.max()), 4),
        "share_within_5_mev_per_atom": round(float((differences < SAME).mean()), 4),
    }


def number_to_relax(batch_size: int, at_least: int, per_structure: float, seconds: float) -> int:
    """Return how many structures a measurement takes; 0 where one batch would take too long.

    Args:
        batch_size: of the measurement.
        at_least: so many, where the time suffices.
        per_structure: seconds that one took in the measurement before.
        seconds: of the measurement.
    """
    if batch_size * per_structure > 2 * seconds:
        return 0
    return max(batch_size, min(max(ROUNDS * batch_size, at_least), int(seconds / per_structure)))


def measure_kind(kind: str, chosen: argparse.Namespace, save: Callable[[str, dict[str, Any]], None]) -> None:
    """Measure one kind of work, and hand over the table after each part."""
    longest = max(chosen.single, ROUNDS * max(chosen.batches))
    structures = drawn(kind, longest, chosen.database, chosen.seed)
    potential = load_potential(chosen.potential, device=chosen.device)
    table: dict[str, Any] = {"batches": {}}
    table["one_by_one"], alone = one_by_one(kind, structures[: chosen.single], potential, chosen.seconds)
    save(kind, table)
    cpu = table["one_by_one"]
    if chosen.device != "cpu":
        on_cpu = load_potential(chosen.potential, device="cpu")
        table["one_by_one_cpu_core"], _ = one_by_one(kind, structures[: chosen.single], on_cpu, chosen.seconds)
        cpu = table["one_by_one_cpu_core"]
        save(kind, table)
    network, last = BatchedNetwork(potential, chosen.max_edges), table["one_by_one"]["seconds_per_structure"]
    for size in chosen.batches:
        count = number_to_relax(size, chosen.single, last, chosen.seconds)
        if not count:
            table["batches"][str(size)] = {"failed": "would take too long"}
            save(kind, table)
            continue
        measured, found = together(kind, structures[:count], network, size)
        if found:
            last = measured["seconds_per_structure"]
            measured |= {
                "speed_up": round(measured["atom_evaluations_per_s"] / table["one_by_one"]["atom_evaluations_per_s"], 2),
                "speed_up_over_cpu_core": round(measured["atom_evaluations_per_s"] / cpu["atom_evaluations_per_s"], 2),
            }
            measured |= agreement(found, alone)
        table["batches"][str(size)] = measured
        save(kind, table)


def main() -> None:
    """Measure both kinds of work and write the table, after each part what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32, 128], help="structures that are relaxed at once")
    parser.add_argument("--single", type=int, default=16, help="structures that ASE relaxes one by one")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement, about")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--potential", default="sevennet-0", choices=POTENTIALS[:2])
    parser.add_argument("--max-edges", type=int, default=MAX_EDGES, help="pairs of atoms in one call of the network")
    parser.add_argument("--database", type=Path, default=PROJECT_DIR / "data" / "demo_c2db.db")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=PROJECT_DIR / "results" / "benchmark" / "batches.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, Any] = {
        "machine": machine(torch.cuda.get_device_name(chosen.device) if chosen.device != "cpu" else None),
        "git_commit": git_commit(),
        "potential": load_potential(chosen.potential, device=chosen.device).identity,
        "settings": {"seed": chosen.seed, "max_edges": chosen.max_edges, "fmax_ev_per_angstrom": FMAX, "max_steps": STEPS},
        "load_average_before": os.getloadavg()[0],
        "kinds": {},
    }

    def save(kind: str, found: dict[str, Any]) -> None:
        table["kinds"][kind] = found
        newest = found["batches"] or {name: found[name] for name in found if name != "batches"}
        print(kind, json.dumps(dict([list(newest.items())[-1]])), flush=True)
        write_json(chosen.output, table | {"load_average_after": os.getloadavg()[0]})

    for kind in chosen.kinds:
        measure_kind(kind, chosen, save)


if __name__ == "__main__":
    main()
