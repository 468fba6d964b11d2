"""Lattices, the sheet convention and structural checks, against independent references and known crystals."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell, mx2
from ase.neighborlist import neighbor_list

import geo_utils as geo


def molybdenum_disulfide() -> Atoms:
    return geo.standard_sheet(mx2("MoS2", a=3.18, thickness=3.13, vacuum=10))


def test_lattice_reduction():
    rng = np.random.default_rng(0)
    reference = np.array([[3.0, 0.0], [-1.4, 4.2]])
    for _ in range(50):
        shear = np.array([[1, rng.integers(-4, 5)], [0, 1]]) @ np.array([[1, 0], [rng.integers(-4, 5), 1]])
        angle = rng.uniform(0, 2 * np.pi)
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        lattice = shear @ reference @ rotation
        reduced, transform = geo.reduce_lattice_2d(lattice)
        np.testing.assert_allclose(transform @ lattice, reduced, atol=1e-9)
        a, b = reduced
        assert np.linalg.det(reduced) > 0
        assert np.dot(a, a) <= np.dot(b, b) + 1e-9 and 2 * abs(np.dot(a, b)) <= np.dot(a, a) + 1e-9
        np.testing.assert_allclose(np.linalg.norm(a), 3.0)
    with pytest.raises(ValueError, match="no area"):
        geo.reduce_lattice_2d(np.array([[1.0, 1.0], [2.0, 2.0]]))


def test_lattice_vector_round_trip_and_matrix_exponential():
    generator = torch.Generator().manual_seed(0)
    lattice = torch.randn(200, 2, 2, generator=generator, dtype=torch.float64) + 3 * torch.eye(2, dtype=torch.float64)
    vector = geo.lattice_to_vector(lattice)
    back = geo.vector_to_lattice(vector)
    torch.testing.assert_close(back @ back.mT, lattice @ lattice.mT, rtol=1e-9, atol=1e-9)
    matrix = torch.stack([torch.stack([vector[:, 0], vector[:, 2]], -1), torch.stack([vector[:, 2], vector[:, 1]], -1)], -2)
    torch.testing.assert_close(back, torch.linalg.matrix_exp(matrix), rtol=1e-9, atol=1e-9)


def test_lattice_vector_is_the_matrix_logarithm_and_has_its_gradient_where_eigenvalues_meet():
    generator = torch.Generator().manual_seed(1)
    random = 2 * torch.randn(50, 2, 2, generator=generator, dtype=torch.float64)
    hexagonal = torch.tensor([[[3.0, 0.0], [-1.5, 1.5 * 3**0.5]]], dtype=torch.float64)
    lattice = torch.cat([random[torch.linalg.det(random).abs() > 0.1], hexagonal, 3 * torch.eye(2, dtype=torch.float64)[None]])
    values, vectors = np.linalg.eigh((lattice @ lattice.mT).numpy())
    expected = np.einsum("nij,nj,nkj->nik", vectors, 0.5 * np.log(values), vectors)
    found = geo.lattice_to_vector(lattice).numpy()
    np.testing.assert_allclose(found, expected[:, [0, 1, 0], [0, 1, 1]], atol=1e-10)
    assert torch.autograd.gradcheck(geo.lattice_to_vector, (lattice.requires_grad_(),))


def test_lattice_vector_gradient_is_finite_for_a_square_lattice():
    vector = torch.tensor([[1.2, 1.2, 0.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(geo.vector_to_lattice, (vector,))


def test_sheet_is_the_same_from_every_description():
    reference = geo.Sheet.from_atoms(molybdenum_disulfide())
    base = mx2("MoS2", a=3.18, thickness=3.13, vacuum=10)
    base.pbc = True
    rotated = base.copy()
    rotated.rotate(40, "x", rotate_cell=True)
    rotated.rotate(77, "y", rotate_cell=True)
    permuted = Atoms(base.symbols, scaled_positions=base.get_scaled_positions()[:, [2, 0, 1]], cell=_permuted_cell(base), pbc=True)
    cut = base.copy()
    cut.positions[:, 2] += 9.5
    cut.wrap()
    sheared = base.copy()
    sheared.cell[2] += 2 * base.cell[0] + base.cell[1]
    flipped = base.copy()
    flipped.positions[:, 2] *= -1
    for atoms in (rotated, permuted, cut, sheared, flipped):
        sheet = geo.Sheet.from_atoms(atoms)
        np.testing.assert_allclose(sheet.lattice, reference.lattice, atol=1e-8)
        np.testing.assert_allclose(np.sort(sheet.heights), np.sort(reference.heights), atol=1e-8)
        np.testing.assert_allclose(_distances(sheet), _distances(reference), atol=1e-8)


def _permuted_cell(atoms: Atoms) -> np.ndarray:
    return atoms.cell.array[[2, 0, 1]]


def _distances(sheet: geo.Sheet) -> np.ndarray:
    return np.sort(neighbor_list("d", sheet.to_atoms(), 6.0))


def test_sheet_convention():
    sheet = geo.Sheet.from_atoms(mx2("WSe2", a=3.3, thickness=3.3, vacuum=12))
    atoms = sheet.to_atoms()
    assert atoms.pbc.tolist() == [True, True, False]
    assert atoms.cell[2, 2] == pytest.approx(3.3 + 20)
    assert atoms.positions[:, 2].mean() == pytest.approx(atoms.cell[2, 2] / 2)
    assert sheet.heights.mean() == pytest.approx(0, abs=1e-12)
    assert 90 - 1e-6 <= atoms.cell.angles()[2] <= 120 + 1e-6
    structure = sheet.to_structure()
    assert structure.composition.reduced_formula == "WSe2" and structure.lattice.c == pytest.approx(23.3)


@pytest.mark.parametrize(
    "atoms, complaint",
    [
        (bulk("Cu"), "no vacuum"),
        (Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[15] * 3, pbc=True), "more than one direction"),
        (Atoms("Cu", cell=[3, 3, 0], pbc=(True, True, False)), None),
    ],
)
def test_what_is_no_sheet(atoms, complaint):
    if complaint is None:  # a missing c vector is completed, as ASE does
        assert len(geo.Sheet.from_atoms(atoms)) == 1
    else:
        with pytest.raises(geo.NotTwoDimensional, match=complaint):
            geo.Sheet.from_atoms(atoms)


def test_unusable_cells_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        geo.Sheet.from_atoms(Atoms("Cu", [[np.nan, 0, 0]], cell=[3, 3, 20], pbc=True))
    with pytest.raises(ValueError, match="no atoms"):
        geo.Sheet.from_atoms(Atoms(cell=[3, 3, 20], pbc=True))


def test_primitive_sheet_undoes_supercells():
    reference = molybdenum_disulfide()
    for matrix in ([[2, 0, 0], [0, 2, 0], [0, 0, 1]], [[2, 1, 0], [-1, 1, 0], [0, 0, 1]]):
        supercell = make_supercell(reference, matrix)
        supercell.rotate(17, "z", rotate_cell=True)
        primitive = geo.primitive_sheet(supercell)
        assert len(primitive) == 3
        np.testing.assert_allclose(primitive.cell.lengths()[:2], reference.cell.lengths()[:2], atol=1e-5)


def test_connectivity_and_clash():
    sheet = molybdenum_disulfide()
    assert geo.sheet_connectivity(sheet).is_single_sheet
    assert geo.sheet_connectivity(sheet.repeat((2, 3, 1))).is_single_sheet
    assert geo.sheet_connectivity(bulk("Cu")).dimensionality == 3
    two = sheet.copy()
    other = sheet.copy()
    other.positions[:, 2] += 6.5
    two.extend(other)
    assert geo.sheet_connectivity(two).num_components == 2
    chain = Atoms("C", cell=[1.4, 8, 20], pbc=(True, True, False))
    assert geo.sheet_connectivity(chain).dimensionality == 1
    assert not geo.has_clash(sheet)
    squeezed = sheet.copy()
    squeezed.positions[0] = squeezed.positions[1] + [0, 0, -1.5]
    assert geo.has_clash(squeezed)
    image = Atoms("C", cell=[0.9, 3, 20], pbc=(True, True, False))
    assert geo.has_clash(image), "an atom too close to its own image"


@pytest.mark.parametrize("pbc", [(True, True, False), True, False])
def test_neighbours_are_those_of_ase(pbc):
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 9):
        cell = np.diag([4.0, 5.0, 20.0]) + rng.uniform(-1, 1, (3, 3)) * [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
        atoms = Atoms("Mo" * size, rng.uniform(-9, 9, (size, 3)), cell=cell, pbc=pbc)
        first, second, images, distance = geo.neighbours_within(atoms, 5.5)
        found = zip(first.tolist(), second.tolist(), map(tuple, images.tolist()), distance.round(6).tolist(), strict=True)
        i, j, offsets, d = neighbor_list("ijSd", atoms, 5.5)
        expected = zip(i.tolist(), j.tolist(), map(tuple, offsets.tolist()), d.round(6).tolist(), strict=True)
        assert sorted(found) == sorted(expected)
        reached = atoms.positions[second] + images @ atoms.cell.array - atoms.positions[first]
        np.testing.assert_allclose(np.linalg.norm(reached, axis=1), distance, atol=1e-9)


def test_atoms_on_top_of_each_other_are_neighbours_and_no_number_is_none():
    atoms = Atoms("H2", np.zeros((2, 3)), cell=[4, 4, 20], pbc=(True, True, False))
    assert geo.min_distance_ratio(atoms) == 0 and geo.has_clash(atoms)
    atoms.positions[1, 2] = np.nan
    assert len(geo.neighbours_within(atoms, 5.0)[0]) == 0
    for alone in (Atoms("H", cell=[4, 4, 20], pbc=True), Atoms(cell=[4, 4, 20], pbc=True)):
        assert geo.min_distance_ratio(alone) == np.inf
