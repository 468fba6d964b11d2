"""Phonons, stiffness and the verdict, against finite differences of another code path and against known answers."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import mx2
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from crystals.symmetry import find_operations
from energetics import dynamic_stability as verdicts
from energetics.phonons import Mode, phonons, pushed, relax_within_symmetry, stiffness
from energetics.potentials import Potential, load_potential
from geo_utils import Sheet


def emt() -> Potential:
    return Potential("emt", {"name": "emt"}, EMT())


def hexagonal(symbol: str = "Cu", a: float = 2.5) -> Atoms:
    """One atom, a flat hexagonal sheet."""
    return Atoms(symbol, [[0, 0, 10]], cell=[[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, 20]], pbc=(True, True, False))


def two_layers() -> Atoms:
    """Two atoms of a (111) bilayer of an alloy, low enough in symmetry that the order of atoms and shifts matters."""
    cell = [[2.6, 0, 0], [-1.3, 2.6 * np.sqrt(3) / 2, 0], [0, 0, 20]]
    places = [[-0.1, 0.2, 0.45], [1 / 3 - 0.1, 2 / 3 + 0.2, 0.55]]
    return Atoms("CuAu", scaled_positions=places, cell=cell, pbc=(True, True, False))


def full_hessian(sheet: Atoms, potential: Potential, step: float = 0.01) -> np.ndarray:
    """Hessian of the 2 x 2 supercell by central differences over every atom, no symmetry used."""
    supercell = sheet.repeat((2, 2, 1))
    supercell.calc = potential.calculator
    count = 3 * len(supercell)
    hessian = np.zeros((count, count))
    for row in range(count):
        ends = []
        for sign in (1, -1):
            supercell.positions.flat[row] += sign * step
            ends.append(supercell.get_forces().ravel())
            supercell.positions.flat[row] -= sign * step
        hessian[row] = -(ends[0] - ends[1]) / (2 * step)
    return 0.5 * (hessian + hessian.T)


def test_the_lowest_mode_is_that_of_the_whole_supercell():
    potential = emt()
    sheet = relax_within_symmetry(two_layers(), potential)
    found = phonons(sheet, potential)
    values = np.linalg.eigvalsh(full_hessian(sheet, potential))
    others = np.delete(values, np.argsort(np.abs(values))[:3])
    assert found.lowest.eigenvalue == pytest.approx(others[0], rel=0.01)
    roots = np.sqrt(np.repeat(np.tile(sheet.get_masses(), 4), 3))
    squared = np.linalg.eigvalsh(full_hessian(sheet, potential) / np.outer(roots, roots))
    # As ase.phonons has it; 1 THz is 4.1357 meV.
    energies = units._hbar * 1e10 / np.sqrt(units._e * units._amu) * np.sqrt(np.abs(squared)) * np.sign(squared)
    others = np.delete(energies, np.argsort(np.abs(energies))[:3])
    assert found.min_thz == pytest.approx(others[0] / 4.135667e-3, abs=0.02)


def test_symmetry_of_other_sheets_is_found_as_before():
    """phonopy's import makes spglib raise where it had returned None."""
    assert phonons(relax_within_symmetry(two_layers(), emt()), emt()).hessian is not None
    twice = two_layers()
    twice += twice[0]
    assert find_operations(Sheet.from_atoms(twice), 0.1) == [], "atoms on one place have no symmetry, and that is no error"


def test_translations_cost_nothing():
    potential = emt()
    sheet = relax_within_symmetry(two_layers(), potential)
    hessian = phonons(sheet, potential).hessian
    assert np.allclose(hessian @ np.tile(np.eye(3), (len(sheet), 1)), 0, atol=1e-8)


@pytest.mark.parametrize("supercell", [[[2, 0], [0, 1]], [[1, 0], [0, 2]], [[1, 1], [-1, 1]]])
def test_a_smaller_supercell_has_some_of_the_wave_vectors(supercell):
    potential = emt()
    sheet = relax_within_symmetry(two_layers(), potential)
    part, whole = phonons(sheet, potential, np.array(supercell)), phonons(sheet, potential)
    assert part.lowest.eigenvalue >= whole.lowest.eigenvalue - 1e-3
    assert (np.array(supercell) @ part.lowest.q % 1 == 0).all()


def test_a_buckling_sheet_gains_energy_along_its_mode():
    """A flat sheet under compression buckles."""
    potential = emt()
    flat = hexagonal(a=2.2)
    found = phonons(flat, potential)
    assert found.lowest.eigenvalue < -0.1 and found.min_thz < 0
    moved = pushed(flat, found.lowest)
    assert len(moved) == 2 and np.abs(moved.positions[:, 2] - 10).max() == pytest.approx(0.1)
    moved.calc, flat.calc = potential.calculator, EMT()
    assert moved.get_potential_energy() / 2 < flat.get_potential_energy() - 1e-4


@pytest.mark.parametrize(("q", "atoms"), [((0.0, 0.0), 1), ((0.5, 0.0), 2), ((0.0, 0.5), 2), ((0.5, 0.5), 2)])
def test_the_cell_of_a_mode_holds_it(q, atoms):
    mode = Mode(q, -1.0, np.array([[0.0, 0.0, 1.0]]))
    moved = pushed(hexagonal(), mode)
    assert len(moved) == atoms
    heights = moved.positions[:, 2] - 10
    assert np.allclose(np.abs(heights), 0.1) and (atoms == 1 or np.isclose(heights.sum(), 0))


def test_stiffness_is_the_curvature_of_the_relaxed_energy():
    """Against energies of strained cells whose atoms a minimiser has relaxed."""
    from ase.optimize import BFGS

    potential = emt()
    sheet = relax_within_symmetry(two_layers(), potential)
    found = stiffness(sheet, potential, phonons(sheet, potential).hessian)
    area = np.linalg.norm(np.cross(sheet.cell[0], sheet.cell[1]))

    def energy(strain: np.ndarray) -> float:
        work = sheet.copy()
        full = np.zeros((3, 3))
        full[0, 0], full[1, 1], full[0, 1], full[1, 0] = strain[0], strain[1], strain[2] / 2, strain[2] / 2
        work.set_cell(sheet.cell.array @ (np.eye(3) + full), scale_atoms=True)
        work.calc = EMT()
        BFGS(work, logfile=None).run(fmax=1e-5, steps=200)
        return work.get_potential_energy()

    step = 0.005
    for axis in np.eye(3):
        curvature = (energy(step * axis) + energy(-step * axis) - 2 * energy(np.zeros(3))) / step**2 / area * 16.0217663
        assert axis @ found @ axis == pytest.approx(curvature, rel=0.04)


def test_a_hexagonal_sheet_is_isotropic():
    potential = Potential("lj", {"name": "lj"}, LennardJones(sigma=2.3, epsilon=0.3, rc=6.0, smooth=True))
    sheet = relax_within_symmetry(hexagonal("Ar", 2.55), potential)
    found = stiffness(sheet, potential, phonons(sheet, potential).hessian)
    assert found[0, 0] == pytest.approx(found[1, 1], rel=1e-3)
    assert found[0, 0] - found[0, 1] == pytest.approx(2 * found[2, 2], rel=1e-2)


def test_symmetry_is_kept_by_the_relaxation():
    """A flat compressed sheet does not buckle until it is pushed."""
    sheet = hexagonal(a=2.5)
    sheet = sheet.repeat((2, 1, 1))
    relaxed = relax_within_symmetry(sheet, emt())
    assert np.ptp(relaxed.positions[:, 2]) < 1e-6


@pytest.mark.slow
def test_known_sheets():
    """2H-MoS2 is stable; 1T-MoS2 falls apart at M, where it becomes 1T'."""
    potential = load_potential("sevennet-l3i5")
    for name in ("2H", "1T"):
        atoms = mx2("MoS2", name, 3.18, 3.13, vacuum=10)
        atoms.pbc = (True, True, False)
        found = verdicts.dynamic_stability(atoms, potential, follow=False)
        assert found.stable is (name != "1T") and found.stiffness_min > 15, name
        assert found.min_thz > 2 if found.stable else found.min_thz < -2 and any(found.q), name


def test_a_square_sheet_becomes_the_hexagonal_one():
    """Copper in a square net is unstable and too soft; its mode leads to the close-packed layer, which is stable."""
    square = Atoms("Cu", [[0, 0, 10]], cell=[2.4, 2.4, 20], pbc=(True, True, False))
    found = verdicts.dynamic_stability(square, emt())
    assert not found.stable and found.min_hessian < -1 and found.stiffness_min < 0
    hexagon = relax_within_symmetry(hexagonal(a=2.5), emt())
    assert len(found.distorted) == 2 and found.distorted_stable
    assert np.sort(found.distorted.cell.lengths())[0] == pytest.approx(hexagon.cell.lengths()[0], abs=0.01)
    energies = []
    for atoms in (found.sheet.copy(), hexagon):
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy() / len(atoms))
    assert found.gain == pytest.approx(energies[0] - energies[1], abs=2e-3)


def test_the_verdict_needs_both():
    assert verdicts.is_stable(0.5, 3.0) and not verdicts.is_stable(0.5, -3.0) and not verdicts.is_stable(-0.5, 3.0)
