"""The refiner's network: exact symmetries in float64, closed forms, and independence of padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from crystals.elements import covalent_radius_table, element_descriptors
from geo_utils import Sheet, inverse_2x2
from networks.refiner import SheetRefiner, move, symmetric_exp
from networks.sheet_trunk import SheetState, TrunkConfig

EXACT = 1e-10
SMALL = TrunkConfig(channels=16, vectors=6, tensors=4, layers=2, neighbours=20, rbf=8)


@pytest.fixture(scope="module")
def network() -> SheetRefiner:
    torch.manual_seed(0)
    network = SheetRefiner(SMALL, element_descriptors(), covalent_radius_table()).double().eval()
    for parameter in network.parameters():  # heads start near zero, where every test would pass
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return network


@pytest.fixture
def sheets() -> SheetState:
    """Three random sheets of five atoms."""
    g = torch.Generator().manual_seed(1)
    numbers = torch.tensor([[42, 16, 16, 52, 6], [22, 8, 8, 8, 8], [78, 34, 34, 17, 1]])
    cell = 4.0 * (torch.eye(2, dtype=torch.float64) + 0.15 * torch.randn(3, 2, 2, generator=g, dtype=torch.float64))
    heights = torch.randn(3, 5, generator=g, dtype=torch.float64)
    frac = torch.rand(3, 5, 2, generator=g, dtype=torch.float64)
    return SheetState(numbers, frac, heights - heights.mean(1, keepdim=True), cell, torch.ones(3, 5, dtype=torch.bool))


def changed(state: SheetState, **parts: torch.Tensor) -> SheetState:
    return SheetState(**(vars(state) | parts))


def outputs(network: SheetRefiner, state: SheetState):
    with torch.no_grad():
        return network(state)


def assert_invariant(first, second):
    for name in ("e_form", "e_hull", "synth_logit"):
        assert (getattr(first, name) - getattr(second, name)).abs().max() < EXACT, name


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_rotation_and_reflection_in_the_plane(network, sheets, mirror):
    angle = 0.7
    turn = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-mirror * math.sin(angle), mirror * math.cos(angle)]], dtype=torch.float64
    )
    plain, turned = outputs(network, sheets), outputs(network, changed(sheets, cell=sheets.cell @ turn))
    assert (turned.displacement[..., :2] - plain.displacement[..., :2] @ turn).abs().max() < EXACT
    assert (turned.displacement[..., 2] - plain.displacement[..., 2]).abs().max() < EXACT
    assert (turned.strain - turn.T @ plain.strain @ turn).abs().max() < EXACT
    assert_invariant(plain, turned)
    assert plain.displacement.abs().max() > 1e-2 and plain.strain.abs().max() > 1e-3, "the outputs are not trivial"


def test_turned_over_shifted_and_wrapped(network, sheets):
    plain = outputs(network, sheets)
    frac = torch.remainder(sheets.frac_coords + torch.tensor([0.3, 0.8]), 1.0)
    moved = outputs(network, changed(sheets, frac_coords=frac, heights=-sheets.heights))
    sign = torch.tensor([1.0, 1.0, -1.0])
    assert (moved.displacement - plain.displacement * sign).abs().max() < EXACT
    assert (moved.strain - plain.strain).abs().max() < EXACT
    assert_invariant(plain, moved)


def test_order_of_atoms(network, sheets):
    order = torch.tensor([3, 0, 4, 1, 2])
    parts = {name: getattr(sheets, name)[:, order] for name in ("atomic_numbers", "frac_coords", "heights")}
    plain, other = outputs(network, sheets), outputs(network, changed(sheets, **parts))
    assert (other.displacement - plain.displacement[:, order]).abs().max() < EXACT
    assert_invariant(plain, other)


def test_basis_of_the_lattice(network, sheets):
    basis = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    other = changed(sheets, cell=basis @ sheets.cell, frac_coords=sheets.frac_coords @ torch.linalg.inv(basis))
    plain, found = outputs(network, sheets), outputs(network, other)
    assert (found.displacement - plain.displacement).abs().max() < EXACT
    assert (found.strain - plain.strain).abs().max() < EXACT
    assert_invariant(plain, found)


def hexagonal_and_orthogonal() -> tuple[Sheet, Sheet]:
    """1T-MoS2 with S off its site along z, in its hexagonal cell and in an orthogonal one of twice the size."""
    a = 3.2
    lattice = a * np.array([[1.0, 0.0], [-0.5, math.sqrt(3) / 2]])
    frac = np.array([[0.0, 0.0], [1 / 3, 2 / 3], [2 / 3, 1 / 3]])
    heights = np.array([0.1, 1.5, -1.6])
    big = np.array([lattice[0], lattice[0] + 2 * lattice[1]])
    places = np.concatenate([frac @ lattice, (frac + [0, 1]) @ lattice]) @ np.linalg.inv(big)
    numbers = np.array([42, 16, 34])
    return Sheet(numbers, frac, heights, lattice), Sheet(np.tile(numbers, 2), places % 1.0, np.tile(heights, 2), big)


def test_hexagonal_and_orthogonal_settings_agree(network):
    states = [
        SheetState(
            *(torch.as_tensor(x)[None] for x in (s.atomic_numbers, s.frac_coords, s.heights, s.lattice)),
            torch.ones(1, len(s), dtype=torch.bool),
        )
        for s in hexagonal_and_orthogonal()
    ]
    small, large = (outputs(network, state) for state in states)
    assert (large.displacement[0, :3] - small.displacement[0]).abs().max() < EXACT
    assert (large.displacement[0, 3:] - small.displacement[0]).abs().max() < EXACT
    assert (large.strain - small.strain).abs().max() < EXACT
    assert (large.e_form - small.e_form).abs().max() < EXACT


def test_symmetry_is_kept(network):
    state = SheetState(
        torch.tensor([[42, 16, 16]]),
        torch.tensor([[[0.0, 0.0], [1 / 3, 2 / 3], [2 / 3, 1 / 3]]], dtype=torch.float64),
        torch.tensor([[0.0, 1.5, -1.5]], dtype=torch.float64),
        3.2 * torch.tensor([[[1.0, 0.0], [-0.5, math.sqrt(3) / 2]]], dtype=torch.float64),
        torch.ones(1, 3, dtype=torch.bool),
    )
    with torch.no_grad():
        found = network(state)
        moved = move(state, found)
    assert found.displacement[..., :2].abs().max() < EXACT, "atoms on threefold axes stay there"
    assert found.displacement[0, 0, 2].abs() < EXACT and (found.displacement[0, 1, 2] + found.displacement[0, 2, 2]).abs() < EXACT
    gram = (moved.cell @ moved.cell.transpose(1, 2))[0]
    assert abs(gram[0, 0] - gram[1, 1]) < EXACT and abs(gram[0, 1] / gram[0, 0] + 0.5) < EXACT, "the cell stays hexagonal"
    assert found.displacement[0, 1, 2].abs() > 1e-3 and found.strain.abs().max() > 1e-3


def test_padding_and_neighbours_in_the_batch_change_nothing(network, sheets):
    wide = {
        "atomic_numbers": torch.nn.functional.pad(sheets.atomic_numbers, [0, 3]),
        "frac_coords": torch.nn.functional.pad(sheets.frac_coords, [0, 0, 0, 3]),
        "heights": torch.nn.functional.pad(sheets.heights, [0, 3]),
        "mask": torch.nn.functional.pad(sheets.mask, [0, 3]),
    }
    plain, padded = outputs(network, sheets), outputs(network, changed(sheets, **wide))
    assert (padded.displacement[:, :5] - plain.displacement).abs().max() < EXACT
    assert padded.displacement[:, 5:].abs().max() == 0
    alone = SheetState(*(x[1:2] for x in vars(sheets).values()))
    with torch.no_grad():
        assert (network(alone).displacement - plain.displacement[1]).abs().max() < EXACT


def test_closed_forms_against_torch():
    torch.manual_seed(0)
    matrices = torch.randn(20, 2, 2, dtype=torch.float64)
    symmetric = matrices + matrices.transpose(1, 2)
    assert torch.allclose(symmetric_exp(symmetric), torch.linalg.matrix_exp(symmetric))
    assert torch.allclose(inverse_2x2(matrices), torch.linalg.inv(matrices))


def test_gpus_compute_the_same(network, sheets, monkeypatch):
    found = []
    for gathered in (False, True):
        if gathered:
            for layer in network.layers:
                monkeypatch.setattr(layer, "sums", layer.gathered_sums)
        given = changed(sheets, **{name: getattr(sheets, name).clone().requires_grad_() for name in ("heights", "frac_coords")})
        result = network(given)
        total = sum((x * torch.arange(x.numel()).view(x.shape).cos()).sum() for x in vars(result).values())
        gradients = torch.autograd.grad(total, [given.heights, given.frac_coords, *network.layers.parameters()])
        found.append((*vars(result).values(), *gradients))
    names = [*vars(result), "heights", "frac_coords", *(name for name, _ in network.layers.named_parameters())]
    for name, own, expected in zip(names, *found, strict=True):
        torch.testing.assert_close(own, expected)
        starts_from_nothing = name in ("0.mv.weight", "0.mt.weight")  # there are no vectors and tensors before the first layer
        assert expected.abs().max() > 1e-6 or starts_from_nothing, name
