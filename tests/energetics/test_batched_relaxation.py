"""Relaxing sheets together gives what ASE gives one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import graphene, mx2
from ase.neighborlist import neighbor_list

import geo_utils
from energetics import relaxation
from energetics.batched_network import BatchedNetwork, neighbour_pairs
from energetics.batched_relaxation import relax_batched
from energetics.potentials import Potential, load_potential

TOGETHER = 2e-3  # eV/atom, at most, between the two ways


@pytest.fixture(scope="module")
def judge() -> Potential:
    torch.set_num_threads(1)
    return load_potential("sevennet-0")


@pytest.fixture(scope="module")
def strained() -> list[Atoms]:
    rng = np.random.default_rng(0)
    sheets = [mx2("MoS2", a=3.3, thickness=3.05, vacuum=10), graphene(vacuum=10, a=2.5), mx2("WSe2", a=3.2, vacuum=10)]
    sheets = [geo_utils.standard_sheet(atoms) for atoms in sheets]
    for atoms in sheets:
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    return sheets


def held_hydrogen() -> Atoms:
    """A 3x1 cell of MoS2 with H above S, of which the atoms far from H are held."""
    atoms = geo_utils.standard_sheet(mx2("MoS2", a=3.18, thickness=3.13, vacuum=10)).repeat((3, 1, 1))
    top = atoms.positions[np.argmax(atoms.positions[:, 2])]
    atoms += Atoms("H", [top + [0.1, 0.1, 1.5]])
    atoms.set_tags([1] * (len(atoms) - 1) + [2])
    relaxation.hold_far_atoms(atoms)
    return atoms


def test_all_pairs_are_those_of_ase(strained):
    first, second = strained[0].copy(), strained[1].repeat((2, 1, 1))
    first.positions += [7.0, -5.0, 0.0]  # outside of the cell
    size = max(len(first), len(second))
    positions = torch.zeros(2, size, 3, dtype=torch.float64)
    for k, atoms in enumerate((first, second)):
        positions[k, : len(atoms)] = torch.as_tensor(atoms.positions)
    cells = torch.as_tensor(np.array([first.cell.array, second.cell.array]))
    counts = torch.tensor([len(first), len(second)])
    structure, i, j, vectors = neighbour_pairs(positions, cells, counts, 4.7)
    for k, atoms in enumerate((first, second)):
        expected = neighbor_list("ijD", atoms, 4.7)
        rows = [np.column_stack(expected), np.column_stack([part[structure == k] for part in (i, j, vectors)])]
        ordered = [part[np.lexsort(part.round(6).T)] for part in rows]
        np.testing.assert_allclose(ordered[0], ordered[1], atol=1e-6)


@pytest.mark.parametrize("max_edges", [10**6, 200])
def test_batched_sheets_end_where_ase_ends(judge, strained, max_edges):
    network = BatchedNetwork(judge, max_edges)
    alone = [relaxation.relax_sheet(atoms, judge) for atoms in strained]
    found = relax_batched(strained, network, 2, cell_free=True)  # the third takes the place of the one that converges first
    turned = relax_batched(strained[::-1], network, 3, cell_free=True)[::-1]
    for start, one, batched, again in zip(strained, alone, found, turned, strict=True):
        assert one.converged and batched.converged and (batched.status, again.status) == ("ok", "ok")
        assert batched.energy == pytest.approx(one.energy, abs=TOGETHER * len(start))
        assert batched.energy == pytest.approx(again.energy, abs=1e-4)
        assert batched.atoms.cell[2, 2] == pytest.approx(start.cell[2, 2], abs=1e-10), "c stays"
        assert batched.atoms.cell[0, 0] != pytest.approx(start.cell[0, 0], abs=1e-3)
        np.testing.assert_allclose(batched.atoms.cell.array, one.atoms.cell.array, atol=0.01)
        np.testing.assert_allclose(batched.forces, relaxation.relax_sheet(batched.atoms, judge, max_steps=0).forces, atol=1e-3)


def test_batched_hydrogen_moves_free_atoms_alone(judge):
    start = held_hydrogen()
    one = relaxation.relax_hydrogen(start, 0.0, judge)
    [batched] = relax_batched([start], BatchedNetwork(judge), 4, cell_free=False, max_steps=60)
    fixed = start.constraints[0].index
    assert 0 < len(fixed) < len(start) - 1
    assert batched.converged and batched.energy == pytest.approx(one.energy, abs=TOGETHER * len(start))
    np.testing.assert_array_equal(batched.atoms.positions[fixed], start.positions[fixed])
    np.testing.assert_array_equal(batched.atoms.cell.array, start.cell.array)
    assert np.abs(batched.atoms.positions[-1] - start.positions[-1]).max() > 0.01


def test_batches_end_as_ase_does_without_steps_and_refuse_bulk(judge, strained):
    network = BatchedNetwork(judge)
    alone = relaxation.relax_sheet(strained[0], judge, max_steps=0)
    still, short = (relax_batched(strained[:1], network, 8, cell_free=True, max_steps=steps)[0] for steps in (0, 1))
    assert (still.status, still.steps) == ("ok", 0) and still.energy == pytest.approx(alone.energy, abs=1e-4)
    np.testing.assert_allclose(still.atoms.positions, strained[0].positions, atol=1e-12)
    assert (short.status, short.steps, short.converged) == ("not converged", 1, False)
    assert relax_batched([], network, 8, cell_free=True) == []
    bulk = strained[0].copy()
    bulk.pbc = True
    with pytest.raises(ValueError, match="pbc"):
        relax_batched([bulk], network, 8, cell_free=True)


def test_an_exploded_sheet_leaves_the_others_alone(judge, strained):
    clashing = strained[1].copy()
    clashing.positions[1] = clashing.positions[0] + [0.02, 0.0, 0.0]
    first, second = relax_batched([clashing, strained[0]], BatchedNetwork(judge), 2, cell_free=True)
    assert first.status != "ok" or np.isfinite(first.energy)
    assert second.status == "ok" and np.isfinite(second.energy)
