"""Measures how many steps relaxations take from other first guesses of the curvature and with other longest steps.

    python -m scripts.benchmark_relaxation [--sheets 48] [--output results/benchmark/relaxation.json]

Sheets as the generator wrote them (``results/generated_cifs`` and ``results/controls/unguided_cifs``), and H at a random site of
relaxed sheets near the hull, both drawn at random. SevenNet-0 relaxes each in every way, with the limits of ``config.yaml``.
Energies are counted from the lowest of all ways, because a way may end in another minimum.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.io import read
from tqdm import tqdm

from crystals.cif import read_cif
from energetics.potentials import Potential, load_potential
from energetics.relaxation import bfgs, hold_far_atoms
from energetics.sites import adsorption_sites, beside_site, h_supercell
from pipeline.files import PROJECT_DIR, write_json
from pipeline.machine import machine
from pipeline.provenance import git_commit
from pipeline.settings import DatasetConfig, EvaluationConfig

RESULTS = PROJECT_DIR / "results"
TABLE = RESULTS / "benchmark" / "relaxation.json"
SETS = (("generated_cifs", "relaxed.extxyz"), ("controls/unguided_cifs", "controls/unguided/relaxed.extxyz"))
WAYS = ((70.0, 0.1), (70.0, 0.2), (25.0, 0.1), (25.0, 0.15), (15.0, 0.1), (15.0, 0.15), (15.0, 0.2), (10.0, 0.15))  # eV/Å², Å
NEAR_HULL_EV = 0.2
MOST_ATOMS = 45  # with H
OTHER_MINIMUM_EV = 0.01


def with_hydrogen(sheets: list[Atoms], rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield supercells with H at a random site, those of the smaller ones, in a random order."""
    for index in rng.permutation(len(sheets)):
        sheet = Atoms(sheets[index].numbers, sheets[index].positions, cell=sheets[index].cell, pbc=sheets[index].pbc)
        sites = adsorption_sites(sheet)
        supercell = h_supercell(sheet, DatasetConfig().h_image_distance_angstrom)
        if sites and supercell[0] * supercell[1] * len(sheet) < MOST_ATOMS:
            yield beside_site(sheet, sites[rng.integers(len(sites))], supercell)


def trial(start: Atoms, potential: Potential, way: tuple[float, float], steps: int, free_cell: bool) -> dict[str, Any]:
    """Relax in one way; return steps, whether it came to rest, and the energy in eV."""
    work = start.copy()
    if not free_cell:
        hold_far_atoms(work)
    work.calc = potential.calculator
    optimiser = bfgs(FrechetCellFilter(work, mask=[1, 1, 0, 0, 0, 1]) if free_cell else work, *way)
    try:
        converged = bool(optimiser.run(fmax=EvaluationConfig().fmax_ev_per_angstrom, steps=steps))
        energy = float(work.get_potential_energy())
    except (np.linalg.LinAlgError, ValueError, FloatingPointError, RuntimeError):  # as in relaxation.relax_hydrogen
        converged, energy = False, math.nan
    return {"steps": int(optimiser.nsteps), "converged": converged, "energy_ev": energy}


def compare(starts: list[Atoms], run: Callable[[Atoms, tuple[float, float]], dict[str, Any]]) -> dict[str, Any]:
    """Return what each of ``WAYS`` comes to over all starts."""
    found = [[run(start, way) for way in WAYS] for start in tqdm(starts, unit="start")]
    energies = np.array([[trial["energy_ev"] for trial in row] for row in found])
    above = energies - np.nanmin(energies, axis=1, keepdims=True)
    steps = np.array([[trial["steps"] for trial in row] for row in found], dtype=float)
    return {
        "starts": len(starts),
        "ways": [
            {
                "curvature_ev_per_angstrom2": curvature,
                "max_step_angstrom": max_step,
                "steps": int(steps[:, k].sum()),
                "median_speed_up": float(np.median(steps[:, 0] / np.maximum(steps[:, k], 1))),
                "not_converged": sum(not row[k]["converged"] for row in found),
                "mean_energy_above_lowest_ev": float(np.nanmean(above[:, k])),
                "in_other_minimum": int((above[:, k] > OTHER_MINIMUM_EV).sum()),
            }
            for k, (curvature, max_step) in enumerate(WAYS)
        ],
    }


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheets", type=int, default=48)
    parser.add_argument("--output", type=Path, default=TABLE)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    settings, potential, rng = EvaluationConfig(), load_potential("sevennet-0"), np.random.default_rng(0)
    paths = [path for folder, _ in SETS for path in sorted((RESULTS / folder).glob("*.cif"))]
    as_made = [read_cif(paths[k]) for k in rng.permutation(len(paths))[: chosen.sheets]]
    relaxed = [atoms for _, name in SETS for atoms in read(RESULTS / name, ":")]
    near = [atoms for atoms in relaxed if atoms.info.get("e_above_hull_ev", math.inf) <= NEAR_HULL_EV]
    hydrogen = [atoms for atoms, _ in zip(with_hydrogen(near, rng), range(chosen.sheets), strict=False)]
    steps = settings.max_h_steps + settings.more_h_steps
    table = {
        "machine": machine(),
        "commit": git_commit(),
        "potential": potential.identity,
        "hydrogen": compare(hydrogen, lambda atoms, way: trial(atoms, potential, way, steps, free_cell=False)),
        "sheets": compare(as_made, lambda atoms, way: trial(atoms, potential, way, settings.max_steps, free_cell=True)),
    }
    for name in ("hydrogen", "sheets"):
        print(f"{name}: {table[name]['starts']} starts")
        for way in table[name]["ways"]:
            start = f"{way['curvature_ev_per_angstrom2']:.0f} eV/Å², {way['max_step_angstrom']} Å"
            print(f"  {start}: {way['steps']} steps, {way['not_converged']} not at rest, {way['in_other_minimum']} in other minima")
    write_json(chosen.output, table)


if __name__ == "__main__":
    main()
