"""Measures how much faster SevenNet is on one core by ``energetics/fast_convolution.py`` than by e3nn's tensor products.

    python -m scripts.benchmark_convolution [--repeats 9] [--output results/benchmark/convolution.json]

Energy and forces of H on 2H-MoS2, in cells of 13, 28 and 49 atoms, by every potential of the sevenn wheel. Both ways take turns,
and the fastest of the repeats counts, in seconds of the process, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import mx2

from energetics.potentials import MODALITIES, load_potential
from pipeline.files import PROJECT_DIR, write_json
from pipeline.machine import machine
from pipeline.provenance import git_commit
from pipeline.settings import POTENTIALS

TABLE = PROJECT_DIR / "results" / "benchmark" / "convolution.json"
REPEATS = 9
CELLS = (2, 3, 4)  # repeats of MoS2 along both axes


def with_hydrogen(repeats: int) -> Atoms:
    """Return a sheet of MoS2 with H on one S."""
    atoms = mx2("MoS2", vacuum=10).repeat((repeats, repeats, 1))
    atoms += Atoms("H", [atoms.positions[1] + [0.0, 0.0, 1.4]])
    atoms.pbc = (True, True, False)
    return atoms


def measure(atoms: Atoms, calculators: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Return the seconds of a call by each calculator, their ratio, and by how much energy (eV) and forces (eV/Å) differ."""
    seconds: dict[str, list[float]] = {name: [] for name in calculators}
    found = {}
    for _ in range(repeats):
        for name, calculator in calculators.items():
            atoms.calc = calculator
            calculator.reset()
            started = time.process_time()
            found[name] = atoms.get_potential_energy(), atoms.get_forces()
            seconds[name].append(time.process_time() - started)
    (energy, forces), (other_energy, other_forces) = found.values()
    fastest = {name: min(own) for name, own in seconds.items()}
    return {
        "natoms": len(atoms),
        **{f"{name}_seconds": round(value, 4) for name, value in fastest.items()},
        "speed_up": round(fastest["e3nn"] / fastest["fast"], 2),
        "energy_difference_ev": float(abs(energy - other_energy)),
        "largest_force_difference_ev_per_angstrom": float(np.abs(forces - other_forces).max()),
    }


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--output", type=Path, default=TABLE)
    chosen = parser.parse_args()
    from sevenn.calculator import SevenNetCalculator

    torch.set_num_threads(1)
    table: dict[str, Any] = {"machine": machine(), "commit": git_commit(), "repeats": chosen.repeats, "potentials": {}}
    for name in POTENTIALS[:3]:
        theirs = SevenNetCalculator(name.replace("sevennet", "7net"), device="cpu", modal=MODALITIES.get(name))
        calculators = {"e3nn": theirs, "fast": load_potential(name).calculator}
        rows = [measure(with_hydrogen(size), calculators, chosen.repeats) for size in CELLS]
        table["potentials"][name] = {str(row["natoms"]): row for row in rows}
        for row in rows:
            both = f"{row['e3nn_seconds']:.3f} -> {row['fast_seconds']:.3f} s"
            print(f"{name}, {row['natoms']} atoms: {both}, {row['speed_up']:.1f} times")
    write_json(chosen.output, table)


if __name__ == "__main__":
    main()
