"""Relaxations of H on a sheet: against ASE and SciPy with EMT, and from places where the energy bends downwards."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from scipy.optimize import minimize

import geo_utils
from energetics.potentials import Potential
from energetics.relaxation import GIVE_UP_AFTER, bfgs, h2_energy, hold_far_atoms, relax_hydrogen, single_point

EMT_POTENTIAL = Potential("sevennet-0", {"name": "emt", "sha256": "emt"}, EMT())
FMAX = 0.01


def with_hydrogen(sheet: Atoms, position) -> Atoms:
    atoms = sheet + Atoms("H", [position])
    atoms.set_tags([0] * len(sheet) + [geo_utils.H_TAG])
    return atoms


@pytest.fixture(scope="module")
def copper() -> Atoms:
    """Two layers of copper, 3 x 3."""
    atoms = fcc111("Cu", (3, 3, 2), vacuum=8.0)
    atoms.pbc = (True, True, False)
    return atoms


def starts(sheet: Atoms, count: int):
    """H above random points of the cell."""
    rng, top = np.random.default_rng(0), sheet.positions[:, 2].max()
    for _ in range(count):
        yield with_hydrogen(sheet, [*(rng.random(2) @ sheet.cell.array[:2, :2]), top + rng.uniform(0.8, 1.8)])


def test_starts_come_to_rest_where_scipy_sees_a_minimum(copper):
    clean, above = single_point(copper, EMT()), []
    for atoms in starts(copper, 12):
        found = relax_hydrogen(atoms, clean, EMT_POTENTIAL, fmax=FMAX, max_steps=100)
        assert (found.status, found.converged, found.desorbed) == ("ok", True, False) and found.delta_e <= found.initial_delta_e
        assert found.delta_e == pytest.approx(found.energy - clean - h2_energy(EMT_POTENTIAL) / 2)
        held = atoms.copy()
        hold_far_atoms(held)
        fixed = held.constraints[0].index
        free = np.setdiff1d(np.arange(len(atoms)), fixed)
        assert 0 < len(fixed) and len(atoms) - 1 in free and not found.atoms.constraints
        np.testing.assert_array_equal(found.atoms.positions[fixed], atoms.positions[fixed])
        trial = found.atoms.copy()
        trial.calc = EMT()

        def energy_and_slope(x, trial=trial, free=free):
            trial.positions[free] = x.reshape(-1, 3)
            return trial.get_potential_energy(), -trial.get_forces()[free].ravel()

        best = minimize(energy_and_slope, trial.positions[free].ravel(), jac=True, method="BFGS", options={"gtol": 1e-3})
        above.append(found.energy - best.fun)
        trial.positions[:] = found.atoms.positions
        assert np.linalg.norm(trial.get_forces()[free], axis=1).max() <= FMAX
    above.sort()
    assert above[0] >= 0 and above[-3] < 0.02, "within fmax of the bottom of the same valley, but for two that rest on bridges"
    assert above[-1] < 0.06, "the bridge is that much higher"


def test_the_steps_are_those_of_one_run_of_ase(copper):
    """The pause in which a site may be given up changes nothing."""
    atoms = next(starts(copper, 1))
    found = relax_hydrogen(atoms, single_point(copper, EMT()), EMT_POTENTIAL, fmax=0.01, max_steps=100)
    whole = atoms.copy()
    hold_far_atoms(whole)
    whole.calc = EMT()
    optimiser = bfgs(whole)
    assert optimiser.run(fmax=0.01, steps=100) and optimiser.nsteps == found.steps > GIVE_UP_AFTER
    np.testing.assert_allclose(found.atoms.positions, whole.positions, atol=1e-9)
    clean = single_point(copper, EMT())
    given_up = relax_hydrogen(atoms, clean, EMT_POTENTIAL, fmax=0.01, max_steps=100, give_up_above=found.delta_e - 1.0)
    assert (given_up.status, given_up.steps, given_up.converged) == ("given up", GIVE_UP_AFTER, False)
    short = relax_hydrogen(atoms, clean, EMT_POTENTIAL, fmax=0.001, max_steps=GIVE_UP_AFTER + 1)
    assert (short.status, short.steps) == ("not converged", GIVE_UP_AFTER + 1)


class EggBox(Calculator):
    """H (the last atom) on an egg box of depth 2 A, above atoms that springs hold; every second extremum is a saddle or a top."""

    implemented_properties = ["energy", "forces"]
    depth, period, rest = 0.4, 2.5, 1.0

    def __init__(self, sites: np.ndarray) -> None:
        super().__init__()
        self.sites = sites

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        if set(atoms.symbols) == {"H"}:
            self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}  # the H2 molecule
            return
        moved = atoms.positions[:-1] - self.sites
        x, k = atoms.positions[-1] - [0, 0, self.sites[:, 2].max() + self.rest], 2 * np.pi / self.period
        forces = np.vstack([-5.0 * moved, [*(self.depth * k * np.sin(k * x[:2])), -8.0 * x[2]]])
        energy = 2.5 * (moved**2).sum() + self.depth * np.cos(k * x[:2]).sum() + 4.0 * x[2] ** 2
        self.results = {"energy": float(energy), "forces": forces}


# From the last three, ASE's LBFGS, which checks no curvature, comes to rest on a saddle, 0.8 eV above the bottom.
PLACES = [(0.1, 0.05, 1.1), (0.02, 0.6, 1.1), (0.9, 0.03, 1.1), (0.82, 0.48, 0.99), (0.81, 0.56, 1.02), (0.49, 0.98, 1.21)]


@pytest.mark.parametrize("place", PLACES)
def test_hydrogen_leaves_tops_and_saddles(copper, place):
    """Near a top of the egg box the energy bends downwards in two directions, near a saddle in one."""
    calculator = EggBox(copper.positions.copy())
    potential = Potential("sevennet-0", {"name": "egg box", "sha256": "egg"}, calculator)
    position = [EggBox.period * place[0], EggBox.period * place[1], copper.positions[:, 2].max() + place[2]]
    found = relax_hydrogen(with_hydrogen(copper, position), 0.0, potential, fmax=0.01, max_steps=60)
    assert found.converged and found.energy == pytest.approx(-2 * EggBox.depth, abs=1e-3)
