"""Exfoliation energies against sums over a lattice, experiment, and D3 between far layers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import graphene, mx2
from ase.calculators.lj import LennardJones

from energetics import exfoliation
from energetics.exfoliation import dispersion, exfoliate, stacked
from energetics.potentials import load_potential

SIGMA, EPSILON, CUTOFF = 2.9, 0.01, 9.0


def one_atom(symbol: str = "Ar", a: float = 2.7) -> Atoms:
    """A flat hexagonal sheet."""
    return Atoms(symbol, [[0, 0, 10]], cell=[[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, 20]], pbc=(True, True, False))


def binding_by_sums(a: float, shift: tuple[float, float], distance: float) -> float:
    """Energy in meV/Å² that binds layers of ``one_atom`` at a distance, by a sum over pairs of all layers within the cutoff."""
    vectors = np.array([[a, 0], [-a / 2, a * np.sqrt(3) / 2]])
    cells = np.array(list(itertools.product(range(-6, 7), repeat=2))) @ vectors
    total, energy_at_cutoff = 0.0, 4 * EPSILON * ((SIGMA / CUTOFF) ** 12 - (SIGMA / CUTOFF) ** 6)
    for layer in (1, 2, 3):  # those below count half, as these do
        lateral = cells + layer * np.array(shift) @ vectors
        r = np.sqrt((lateral**2).sum(1) + (layer * distance) ** 2)
        r = r[r < CUTOFF]
        total += (4 * EPSILON * ((SIGMA / r) ** 12 - (SIGMA / r) ** 6) - energy_at_cutoff).sum()
    return -1e3 * total / abs(np.linalg.det(vectors))


def test_the_best_stacking_is_that_of_a_sum_over_pairs(monkeypatch):
    monkeypatch.setattr(exfoliation, "dispersion", lambda atoms: 0.0)
    found = exfoliate(one_atom(), LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF))
    grid = [(shift, d) for shift in exfoliation.SHIFTS for d in np.arange(1.8, 3.9, 0.01)]
    energies = [binding_by_sums(2.7, *place) for place in grid]
    best = int(np.argmax(energies))
    assert found.energy == pytest.approx(energies[best], rel=1e-3)
    assert found.distance == pytest.approx(grid[best][1], abs=exfoliation.TOLERANCE + 0.01)
    hollows = exfoliation.SHIFTS[1:3]
    assert found.shift in hollows and grid[best][0] in hollows, "close packing"


def test_layers_are_as_far_apart_as_asked():
    sheet = mx2("MoS2", a=3.18, thickness=3.13, vacuum=8)
    crystal = stacked(sheet, (1 / 3, 2 / 3), 2.9)
    assert crystal.pbc.all() and crystal.cell[2, 2] == pytest.approx(3.13 + 2.9)
    top, bottom = np.argmax(sheet.positions[:, 2]), np.argmin(sheet.positions[:, 2])
    offset = crystal.positions[bottom] + crystal.cell[2] - crystal.positions[top]
    expected = sheet.positions[bottom, :2] + np.array([1 / 3, 2 / 3]) @ sheet.cell.array[:2, :2] - sheet.positions[top, :2]
    assert offset == pytest.approx([*expected, 2.9])


def test_dispersion_between_far_layers_falls_with_the_fourth_power():
    """As between two plates of atoms with −C6/r⁶: twice the distance, a sixteenth of the energy."""
    sheet = one_atom("C", 1.42 * np.sqrt(3))
    alone = dispersion(sheet)

    def between(distance: float) -> float:
        two = Atoms("C2", [[0, 0, 0], [0, 0, distance]], cell=sheet.cell, pbc=(True, True, False))
        return dispersion(two) - 2 * alone

    assert between(6.0) / between(12.0) == pytest.approx(16, rel=0.15)
    assert between(6.0) < 0


def test_neither_the_setting_nor_the_face_matters(monkeypatch):
    sheet = mx2("MoS2", a=3.18, thickness=3.13, vacuum=8)
    calculator = LennardJones(sigma=2.5, epsilon=0.01, rc=7)
    first = exfoliate(sheet, calculator)
    turned = sheet.copy()
    turned.positions[:, 2] *= -1
    turned.rotate(40, "z", rotate_cell=True)
    again = exfoliate(turned, calculator)
    assert again.energy == pytest.approx(first.energy, rel=1e-4) and again.distance == pytest.approx(first.distance, abs=0.02)


@pytest.mark.slow
def test_known_layers(monkeypatch):
    """Distances between planes from X-rays: c/2 of graphite; of MoS2, less the thickness of a layer."""
    monkeypatch.setattr(exfoliation, "SHIFTS", [(1 / 3, 2 / 3)])  # the close packing of all three
    calculator = load_potential("sevennet-0").calculator
    carbon = exfoliate(graphene(a=2.464, vacuum=8), calculator)
    assert carbon.distance == pytest.approx(3.355, abs=0.1) and 10 < carbon.energy < 35
    sulfide = exfoliate(mx2("MoS2", a=3.18, thickness=3.13, vacuum=8), calculator)
    assert sulfide.distance == pytest.approx(2.98, abs=0.2) and 15 < sulfide.energy < 45
    cell = [[3.0, 0, 0], [-1.5, 3.0 * np.sqrt(3) / 2, 0], [0, 0, 20]]
    carbide = Atoms("CMo2", scaled_positions=[[0, 0, 0.5], [1 / 3, 2 / 3, 0.5585], [2 / 3, 1 / 3, 0.4415]], cell=cell)
    carbide.pbc = (True, True, False)
    assert exfoliate(carbide, calculator).energy > 130, "bare metal faces bond to each other"


def test_an_element_without_parameters_is_named_as_such():
    with pytest.raises(ValueError, match="D3"):
        dispersion(one_atom("Og"))
    with pytest.raises(ValueError, match="finite"):
        exfoliate(one_atom(), _Broken())


class _Broken(LennardJones):
    def calculate(self, *arguments, **named):
        super().calculate(*arguments, **named)
        self.results["energy"] = np.nan
