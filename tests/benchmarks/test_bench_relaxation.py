"""Relaxing sheets with SevenNet-0: in worker processes (ours), and ASE one after the other, in one run."""

from functools import partial

import numpy as np
import pytest
import torch
from ase.db import connect
from ase.filters import FrechetCellFilter

from energetics.potentials import load_potential
from energetics.relaxation import bfgs, relax_sheet
from pipeline.files import PROJECT_DIR
from pipeline.tasks import Processes, cpu_count, run

GROUP = "5 steps of 8 sheets with SevenNet-0"
STEPS = 5


@pytest.fixture(scope="module")
def sheets():
    found = [row.toatoms() for row in connect(PROJECT_DIR / "data" / "demo_c2db.db").select("natoms=6")][::29][:8]
    rng = np.random.default_rng(0)
    for atoms in found:
        atoms.pbc = (True, True, False)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)  # none is at rest before the last step
    return dict(enumerate(found))


def relaxed_energy(potential, atoms):
    return relax_sheet(atoms, potential, fmax=1e-4, max_steps=STEPS).energy


def with_ase(potential, atoms):
    work = atoms.copy()
    work.calc = potential.calculator
    bfgs(FrechetCellFilter(work, mask=[1, 1, 0, 0, 0, 1])).run(fmax=1e-4, steps=STEPS)
    return work.get_potential_energy()


@pytest.mark.benchmark(group=GROUP)
def test_pool(benchmark, sheets):
    with Processes(cpu_count(), partial(load_potential, "sevennet-0")) as workers:
        found = benchmark.pedantic(lambda: dict(run(relaxed_energy, sheets, None, workers)), rounds=2, warmup_rounds=1)
    benchmark.extra_info["workers"] = cpu_count()
    assert found[0] == pytest.approx(with_ase(load_potential("sevennet-0"), sheets[0]), abs=1e-3)


@pytest.mark.benchmark(group=GROUP)
def test_ase_one_by_one(benchmark, sheets):
    torch.set_num_threads(1)
    potential = load_potential("sevennet-0")
    benchmark.pedantic(lambda: [with_ase(potential, atoms) for atoms in sheets.values()], rounds=2, warmup_rounds=1)
