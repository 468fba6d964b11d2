"""DimeNet++: exact symmetries, periodic triplets, forces, intensive readout."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from ase import Atoms
from pyg_blocks import pyg_interaction
from small_dimenet import energy, make_model, sheet_with_h
from torch_geometric.nn.models.dimenet import DimeNetPlusPlus as PyGDimeNetPlusPlus
from torch_geometric.nn.models.dimenet import SphericalBasisLayer

from energetics.hydrogen import batch_atoms
from models import DimeNetPlusPlus
from networks.dimenet_layers import DimeNetPlusPlusConfig

TOLERANCE = 1e-10


@pytest.fixture(params=["adsorbate", "all"])
def model(request) -> DimeNetPlusPlus:
    return make_model(request.param)


def rotated(atoms: Atoms) -> Atoms:
    turned = atoms.copy()
    turned.rotate(37.0, "z", rotate_cell=True)
    return turned


def tumbled(atoms: Atoms) -> Atoms:
    turned = atoms.copy()
    turned.rotate(71.0, (1, 2, 3), rotate_cell=True)
    return turned


def mirrored(atoms: Atoms) -> Atoms:
    image = atoms.copy()
    image.set_cell(atoms.cell.array * [1, 1, -1])
    image.positions *= [1, 1, -1]
    return image


def shifted(atoms: Atoms) -> Atoms:
    moved = atoms.copy()
    moved.positions += [0.7, -3.1, 1.9]
    return moved


def wrapped(atoms: Atoms) -> Atoms:
    moved = atoms.copy()
    rng = np.random.default_rng(0)
    moved.positions += rng.integers(-3, 4, (len(atoms), 2)) @ atoms.cell.array[:2]
    return moved


def permuted(atoms: Atoms) -> Atoms:
    return atoms[np.random.default_rng(3).permutation(len(atoms))]


def other_basis(atoms: Atoms) -> Atoms:
    moved = atoms.copy()
    moved.set_cell(np.array([[2, 1, 0], [1, 1, 0], [0, 0, 1]]) @ atoms.cell.array)
    return moved


@pytest.mark.parametrize("change", [rotated, tumbled, mirrored, shifted, wrapped, permuted, other_basis])
def test_energy_is_invariant(model, change):
    atoms = sheet_with_h()
    before = energy(model, atoms)
    assert abs(before[0]) > 1e-3
    np.testing.assert_allclose(energy(model, change(atoms)), before, rtol=0, atol=TOLERANCE * max(1.0, abs(before[0])))


def test_energy_depends_on_geometry_and_element(model):
    atoms = sheet_with_h()
    moved, exchanged = atoms.copy(), atoms.copy()
    moved.positions[-1, 2] += 0.05
    exchanged.symbols[0] = "W"
    values = energy(model, atoms, moved, exchanged)
    assert abs(values[1] - values[0]) > 1e-5 and abs(values[2] - values[0]) > 1e-5


def test_a_batch_gives_what_its_members_give(model):
    first, second = sheet_with_h(), other_basis(rotated(sheet_with_h()))
    second.positions[-1, 2] += 0.3
    together = energy(model, first, second)
    apart = [energy(model, first)[0], energy(model, second)[0]]
    np.testing.assert_allclose(together, apart, rtol=0, atol=TOLERANCE * max(1, *map(abs, apart)))


def test_supercell_at_equal_coverage():
    """Repeating the cell with its H leaves an intensive ΔE unchanged; the published sum over atoms grows with the cell."""
    atoms = sheet_with_h()
    big = atoms.repeat((2, 2, 1))
    local = make_model("adsorbate")
    np.testing.assert_allclose(energy(local, big), energy(local, atoms), rtol=0, atol=TOLERANCE)
    total = make_model("all")
    np.testing.assert_allclose(energy(total, big), 4 * energy(total, atoms), rtol=1e-10)


@lru_cache
def pyg_angular_basis(*sizes):
    """PyG's basis, whose formulas SymPy derives for seconds."""
    return SphericalBasisLayer(*sizes).double()


@pytest.mark.parametrize("readout", ["adsorbate", "all"])
@pytest.mark.parametrize("max_neighbors", [None, 6])
def test_energy_is_the_explicit_sum_over_triplets(readout, max_neighbors):
    """PyG's own interaction block and angular basis on the triplets k -> j -> i (k != i, or k an image of i that is not i itself)
    found by loops over image atoms; every message of the cell is computed, read or not."""
    atoms = sheet_with_h()
    # PyG derives the formulas of the angular basis, for seconds where there are many.
    few = {"num_spherical": 4, "num_radial": 2}
    model = make_model(readout, cutoff_angstrom=3.6, readout_radius_angstrom=3.0, max_neighbors=max_neighbors, **few)
    z, pos, cell, batch, tags = batch_atoms([atoms], torch.float64, "cpu")
    graph = model.graph(pos, cell, batch)
    source, target = graph.edge_index
    edges = [(int(j), int(i), tuple(int(v) for v in o)) for (j, i), o in zip(graph.edge_index.T, graph.offsets, strict=True)]
    pairs = [
        (kj, ji)
        for ji, (j, i, at) in enumerate(edges)
        for kj, (k, middle, further) in enumerate(edges)
        if middle == j and (k != i or any(a + b for a, b in zip(at, further, strict=True)))
    ]
    idx_kj, idx_ji = torch.tensor(pairs).T
    lattice = torch.as_tensor(atoms.cell.array)
    vectors = torch.stack([pos[j] + torch.tensor(o, dtype=torch.float64) @ lattice - pos[i] for j, i, o in edges])
    distance = vectors.norm(dim=1)
    cosine = (vectors[idx_ji] * vectors[idx_kj]).sum(1) / (distance[idx_ji] * distance[idx_kj])
    settings = model.settings
    oracle = pyg_angular_basis(settings.num_spherical, settings.num_radial, settings.cutoff_angstrom)
    rbf, sbf = model.rbf(distance), oracle(distance, torch.arccos(cosine.clamp(-1, 1)), idx_kj)
    x = model.emb(z, rbf, target, source)
    atomic = model.output_blocks[0](x, rbf, target, len(atoms))
    for interaction, output in zip(model.interaction_blocks, model.output_blocks[1:], strict=True):
        x = pyg_interaction(interaction, model.settings)(x, rbf, sbf, idx_kj, idx_ji)
        atomic = atomic + output(x, rbf, target, len(atoms))
    if readout == "adsorbate":
        atomic = atomic[:, 0] * model.readout_weights(distance, batch, tags, graph, 1)
    expected = atomic.sum().item()
    # PyG rounds the roots of the Bessel functions to float32.
    assert energy(model, atoms)[0] == pytest.approx(expected, rel=2e-5) and abs(expected) > 1e-3


def test_neighbour_counts_of_graphene():
    """3 neighbours at 1.42 Å, 6 at 2.46 Å, 3 at 2.84 Å; a limit of 5 keeps the second shell whole."""
    a = 2.46
    atoms = Atoms("C2", [[0, 0, 5], [0, a / 3**0.5, 5]], cell=[[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, 10]], pbc=(1, 1, 0))
    _, pos, cell, batch, _ = batch_atoms([atoms], torch.float64, "cpu")
    for changes, expected in [({}, 12), ({"max_neighbors": 5}, 9), ({"max_neighbors": 3}, 3)]:
        model = make_model(cutoff_angstrom=3.0, readout_radius_angstrom=2.0, **changes)
        counts = torch.bincount(model.graph(pos, cell, batch).edge_index[1])
        assert counts.tolist() == [expected] * 2


def test_forces_against_finite_differences(model):
    atoms = sheet_with_h()
    z, pos, cell, batch, tags = batch_atoms([atoms], torch.float64, "cpu")
    pos.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(z, pos, cell, batch, tags).sum(), pos)
    step = 1e-4
    for atom, axis in [(0, 0), (1, 2), (6, 0), (6, 2)]:
        plus, minus = atoms.copy(), atoms.copy()
        plus.positions[atom, axis] += step
        minus.positions[atom, axis] -= step
        numerical = (energy(model, plus)[0] - energy(model, minus)[0]) / (2 * step)
        assert gradient[atom, axis].item() == pytest.approx(numerical, rel=1e-5, abs=1e-7)


def test_collinear_atoms_have_finite_gradients():
    """A linear chain with H at its end: every angle is 0 or 180°, where atan2 has no derivative."""
    atoms = Atoms("Cu2H", [[0, 0, 3], [0, 0, 5.4], [0, 0, 6.9]], cell=[12, 12, 20], pbc=(1, 1, 0), tags=[0, 1, 2])
    z, pos, cell, batch, tags = batch_atoms([atoms], torch.float64, "cpu")
    pos.requires_grad_(True)
    (gradient,) = torch.autograd.grad(make_model()(z, pos, cell, batch, tags).sum(), pos)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 1e-8
    assert gradient[:, :2].abs().max() < 1e-12


def test_energy_is_continuous_at_the_cutoff():
    model = make_model()
    atoms = sheet_with_h()
    heights = np.linspace(0.0, 3.0, 61)
    structures = []
    for height in heights:
        structures.append(atoms.copy())
        structures[-1].positions[-1, 2] += height
    values = energy(model, *structures)
    assert np.abs(np.diff(values, 2)).max() < 0.1 * np.ptp(values)


def test_adsorbate_readout_refuses_a_bare_sheet():
    model = make_model()
    bare = sheet_with_h()[:-1]
    with pytest.raises(ValueError, match="structure 1 of the batch has no adsorbate atom"):
        energy(model, sheet_with_h(), bare)
    with pytest.raises(ValueError, match="tags"):
        inputs = batch_atoms([bare], torch.float64, "cpu")
        model(*inputs[:4])


def test_oc20_preset_is_the_published_network(monkeypatch):
    """Names and shapes of PyG's DimeNet++ at OCP's IS2RE settings, plus the bias that OCP's output blocks have."""
    # The angular basis has no weights; its formulas would be derived for nothing.
    monkeypatch.setattr("torch_geometric.nn.models.dimenet.SphericalBasisLayer", lambda *_: torch.nn.Identity())
    model = DimeNetPlusPlus(DimeNetPlusPlusConfig.preset("oc20"))
    oracle = PyGDimeNetPlusPlus(256, 1, 3, int_emb_size=64, basis_emb_size=8, out_emb_channels=192, num_spherical=7, num_radial=6)
    expected = {key: value.shape for key, value in oracle.state_dict().items()}
    expected |= {f"output_blocks.{block}.lin_up.bias": torch.Size([192]) for block in range(4)}
    assert {key: value.shape for key, value in model.state_dict().items()} == expected
    assert (model.settings.readout, model.settings.cutoff_angstrom, model.settings.max_neighbors) == ("all", 6.0, 50)
    atoms = sheet_with_h()
    assert torch.isfinite(model(*batch_atoms([atoms], torch.float32, "cpu")[:4])).all()


def test_half_precision_messages_stay_close():
    """Mixed precision (a GPU's setting, tried here on the CPU) keeps geometry and sums in full precision."""
    model = make_model("adsorbate").float()
    inputs = batch_atoms([sheet_with_h()], torch.float32, "cpu")
    with torch.no_grad():
        full = model(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(*inputs)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, full, rtol=0.1, atol=0.05)
