"""Geometry against independent references: ASE neighbour lists, brute force, known crystals."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, graphene, make_supercell, mx2
from ase.neighborlist import neighbor_list

import geo_utils as geo
from energetics.sites import add_hydrogen, adsorption_sites, h_supercell
from networks.graph import edge_vectors, group_slots, radius_graph_pbc, reverse_edges


def molybdenum_disulfide() -> Atoms:
    return geo.standard_sheet(mx2("MoS2", a=3.18, thickness=3.13, vacuum=10))


def random_structure(rng: np.random.Generator, pbc: tuple[bool, bool, bool]) -> Atoms:
    while True:
        cell = np.diag(rng.uniform(2.5, 7, 3)) + rng.normal(0, 1.2, (3, 3))
        if abs(np.linalg.det(cell)) > 20:
            break
    n = int(rng.integers(1, 6))
    return Atoms(numbers=rng.integers(1, 50, n), positions=rng.normal(0, 6, (n, 3)), cell=cell, pbc=pbc)


def edge_set(atoms: Atoms, cutoff: float) -> set[tuple[int, ...]]:
    i, j, offsets = neighbor_list("ijS", atoms, cutoff)
    return {(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, offsets, strict=True)}


@pytest.mark.parametrize("pbc", [(True, True, False), (True, True, True), (True, False, True), (False, False, False)])
def test_batched_graph_equals_ase_on_skewed_cells(pbc):
    rng = np.random.default_rng(3)
    structures = [random_structure(rng, pbc) for _ in range(12)]
    pos = torch.tensor(np.concatenate([a.positions for a in structures]))
    cell = torch.tensor(np.array([a.cell.array for a in structures]))
    batch = torch.repeat_interleave(torch.arange(12), torch.tensor([len(a) for a in structures]))
    edge_index, offsets = radius_graph_pbc(pos, cell, batch, 5.0, pbc=pbc)
    first = np.cumsum([0, *(len(a) for a in structures)])
    for graph, atoms in enumerate(structures):
        mask = batch[edge_index[1]] == graph
        got = [
            (int(i) - first[graph], int(j) - first[graph], *map(int, o))
            for (j, i), o in zip(edge_index[:, mask].T.tolist(), offsets[mask].tolist(), strict=True)
        ]
        assert len(got) == len(set(got)), "an edge appears twice"
        assert set(got) == edge_set(atoms, 5.0)
    distances = edge_vectors(pos, cell, batch, edge_index, offsets).norm(dim=1)
    assert (distances <= 5.0).all() and (distances > 0).all()


def test_graph_takes_a_cutoff_per_structure():
    atoms = molybdenum_disulfide()
    pos = torch.tensor(np.tile(atoms.positions, (2, 1)))
    cell = torch.tensor(np.array([atoms.cell.array] * 2))
    batch = torch.tensor([0] * 3 + [1] * 3)
    edge_index, _ = radius_graph_pbc(pos, cell, batch, torch.tensor([3.0, 5.0], dtype=pos.dtype))
    assert int((edge_index[1] < 3).sum()) == len(edge_set(atoms, 3.0))
    assert int((edge_index[1] >= 3).sum()) == len(edge_set(atoms, 5.0))


def test_max_neighbors_keeps_whole_shells():
    atoms = geo.standard_sheet(graphene(vacuum=10))
    pos, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)[None]
    batch = torch.zeros(2, dtype=torch.long)
    for wanted, kept in ((1, 3), (3, 3), (4, 9), (9, 9), (10, 12)):  # shells of graphene: 3, 6, 3, 6
        edge_index, _ = radius_graph_pbc(pos, cell, batch, 6.0, wanted)
        assert torch.bincount(edge_index[1]).tolist() == [kept, kept]


def test_edge_vectors_are_differentiable():
    atoms = molybdenum_disulfide()
    pos = torch.tensor(atoms.positions, requires_grad=True)
    cell = torch.tensor(atoms.cell.array[None], requires_grad=True)
    batch = torch.zeros(3, dtype=torch.long)
    edge_index, offsets = radius_graph_pbc(pos, cell, batch, 4.0)
    function = lambda p, c: edge_vectors(p, c, batch, edge_index, offsets)  # noqa: E731
    assert torch.autograd.gradcheck(function, (pos, cell))


@pytest.mark.parametrize("max_neighbors", [None, 4])
def test_reverse_edges_equal_brute_force(max_neighbors):
    """With a limit on neighbours the graph is directed: some edges have no way back."""
    atoms = molybdenum_disulfide()
    atoms.rattle(0.2, seed=3)
    pos, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)[None]
    edge_index, offsets = radius_graph_pbc(pos, cell, torch.zeros(len(atoms), dtype=torch.long), 4.5, max_neighbors)
    edges = [(int(j), int(i), *map(int, o)) for (j, i), o in zip(edge_index.T, offsets, strict=True)]
    expected = [edges.index(back) if (back := (i, j, -a, -b, -c)) in edges else len(edges) for j, i, a, b, c in edges]
    assert reverse_edges(edge_index, offsets).tolist() == expected
    assert (len(edges) in expected) == (max_neighbors is not None)


def test_group_slots_are_rows_of_a_table():
    index = torch.tensor([2, 0, 2, 2, 4, 0])
    slots, depth = group_slots(index, 6)
    assert depth == 3 and len(set(slots.tolist())) == len(index)
    assert (slots // depth).tolist() == index.tolist() and bool((slots % depth < torch.bincount(index)[index]).all())


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


def test_sites_of_known_sheets():
    sites = adsorption_sites(molybdenum_disulfide())
    labels = sorted(site.label(molybdenum_disulfide()) for site in sites)
    assert labels == ["bridge S-S upper", "hollow S-S-S upper", "hollow S-S-S upper", "top Mo upper", "top S upper"]
    carbon = geo.standard_sheet(graphene(vacuum=10))
    found = {site.kind: site.multiplicity for site in adsorption_sites(carbon)}
    assert found == {"top": 4, "hollow": 2, "bridge": 6}, "both faces of graphene are one by its mirror plane"


def test_janus_faces_differ():
    janus = molybdenum_disulfide()
    janus.symbols[int(np.argmax(janus.positions[:, 2]))] = "Se"
    tops = {site.label(janus) for site in adsorption_sites(janus) if site.kind == "top"}
    assert {"top Se upper", "top S lower"} <= tops


def test_sites_do_not_depend_on_cell_or_orientation():
    sheet = molybdenum_disulfide()
    turned = sheet.repeat((2, 2, 1))
    turned.rotate(25, "z", rotate_cell=True)
    turned.positions += [0.3, -1.7, 0.0]
    reference, other = (adsorption_sites(geo.primitive_sheet(atoms)) for atoms in (sheet, turned))
    assert sorted((s.kind, s.multiplicity) for s in reference) == sorted((s.kind, s.multiplicity) for s in other)


def test_hydrogen_is_placed_on_its_face_with_tags():
    janus = molybdenum_disulfide()
    janus.symbols[int(np.argmax(janus.positions[:, 2]))] = "Se"
    for site in adsorption_sites(janus):
        atoms = add_hydrogen(janus, site, (2, 2))
        assert atoms.symbols[-1] == "H" and len(atoms) == 13
        assert atoms.get_tags()[-1] == geo.H_TAG and (atoms.get_tags()[:-1] != geo.H_TAG).all()
        middle = atoms.positions[:-1, 2].mean()
        assert (atoms.positions[-1, 2] > middle) == (site.face == "upper")
        assert geo.min_distance_ratio(atoms) > 0.7


@pytest.mark.parametrize("distance", [3.0, 5.0, 7.0, 9.0])
def test_supercell_keeps_images_apart_and_is_smallest(distance):
    sheet = molybdenum_disulfide()
    na, nb = h_supercell(sheet, distance)
    lone = Atoms("H", [[0, 0, 5]], cell=sheet.cell, pbc=(True, True, False))

    def image_distance(a: int, b: int) -> float:
        cell = np.array(lone.cell) * np.array([[a], [b], [1]])
        return min(np.linalg.norm(m * cell[0] + n * cell[1]) for m in range(-3, 4) for n in range(-3, 4) if (m, n) != (0, 0))

    assert image_distance(na, nb) >= distance - 1e-6
    smaller = [(a, b) for a in range(1, 5) for b in range(1, 5) if a * b < na * nb]
    assert all(image_distance(a, b) < distance for a, b in smaller)
