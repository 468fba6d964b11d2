"""The denoiser of elements: exact symmetries in float64, null tokens, and what it sees and does not see of a sheet."""

from __future__ import annotations

import math

import pytest
import torch

from crystals.elements import element_descriptors
from networks.element_denoiser import BOND_ANGSTROM, UNKNOWN, ElementDenoiser, ElementDenoiserConfig
from networks.sheet_trunk import NUM_ELEMENTS, SheetState

EXACT = 1e-10
SMALL = ElementDenoiserConfig(channels=16, vectors=6, tensors=4, layers=2, neighbours=20, rbf=8, conditions=("first", "second"))
KINDS = torch.tensor([[0, 1, 1, 2, 3], [0, 1, 1, 1, 1], [0, 1, 1, 2, 0]])
TOLD = torch.tensor([[0.3, math.nan], [-1.0, 0.5], [math.nan, math.nan]], dtype=torch.float64)


@pytest.fixture(scope="module")
def network() -> ElementDenoiser:
    torch.manual_seed(0)
    network = ElementDenoiser(SMALL, element_descriptors()).double().eval()
    for parameter in network.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    network.condition_mean, network.condition_std = torch.tensor([0.1, 0.2]).double(), torch.tensor([0.5, 2.0]).double()
    return network


@pytest.fixture
def sheets() -> SheetState:
    """Three random sheets of five atoms; the elements of some kinds are hidden."""
    g = torch.Generator().manual_seed(1)
    numbers = torch.tensor([[42, 0, 0, 52, 0], [0, 8, 8, 8, 8], [0, 0, 0, 0, 0]])
    cell = 4.0 * (torch.eye(2, dtype=torch.float64) + 0.15 * torch.randn(3, 2, 2, generator=g, dtype=torch.float64))
    heights = torch.randn(3, 5, generator=g, dtype=torch.float64)
    frac = torch.rand(3, 5, 2, generator=g, dtype=torch.float64)
    return SheetState(numbers, frac, heights, cell, torch.ones(3, 5, dtype=torch.bool))


def changed(state: SheetState, **parts: torch.Tensor) -> SheetState:
    return SheetState(**(vars(state) | parts))


def logits(network: ElementDenoiser, state: SheetState, kinds: torch.Tensor = KINDS, told: torch.Tensor = TOLD) -> torch.Tensor:
    with torch.no_grad():
        return network(state, kinds, told)


def test_the_logits_are_of_each_kind_and_not_trivial(network, sheets):
    found = logits(network, sheets)
    assert found.shape == (3, 4, NUM_ELEMENTS)
    assert found[0].std(0).min() > 1e-3 and found.std(2).min() > 0.1, "they differ between kinds and between elements"


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_rotation_and_reflection_in_the_plane(network, sheets, mirror):
    c, s = math.cos(0.7), math.sin(0.7)
    turn = torch.tensor([[c, s], [-mirror * s, mirror * c]], dtype=torch.float64)
    assert (logits(network, changed(sheets, cell=sheets.cell @ turn)) - logits(network, sheets)).abs().max() < EXACT


def test_turned_over_shifted_and_wrapped(network, sheets):
    plain = logits(network, sheets)
    assert (logits(network, changed(sheets, heights=1.7 - sheets.heights)) - plain).abs().max() < EXACT
    frac = torch.remainder(sheets.frac_coords + torch.tensor([0.3, 0.8]), 1.0)
    assert (logits(network, changed(sheets, frac_coords=frac)) - plain).abs().max() < EXACT
    basis = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    other = changed(sheets, cell=basis @ sheets.cell, frac_coords=sheets.frac_coords @ torch.linalg.inv(basis))
    assert (logits(network, other) - plain).abs().max() < EXACT


def test_order_of_atoms_and_of_kinds(network, sheets):
    order = torch.tensor([3, 0, 4, 1, 2])
    parts = {name: getattr(sheets, name)[:, order] for name in ("atomic_numbers", "frac_coords", "heights")}
    plain, moved = logits(network, sheets), changed(sheets, **parts)
    assert (logits(network, moved, KINDS[:, order]) - plain).abs().max() < EXACT
    renamed = torch.tensor([2, 0, 1, 3])
    found = logits(network, moved, renamed[KINDS[:, order]])
    present = (KINDS[:, :, None] == torch.arange(4)).any(1)
    assert (found[:, renamed] - plain)[present].abs().max() < EXACT


def test_padding_and_neighbours_in_the_batch_change_nothing(network, sheets):
    pad = torch.nn.functional.pad
    wide = {name: pad(getattr(sheets, name), [0, 3]) for name in ("atomic_numbers", "heights", "mask")}
    wide["frac_coords"] = pad(sheets.frac_coords, [0, 0, 0, 3])
    plain = logits(network, sheets)
    assert (logits(network, changed(sheets, **wide), pad(KINDS, [0, 3])) - plain).abs().max() < EXACT
    alone = SheetState(*(x[1:2] for x in vars(sheets).values()))
    assert (logits(network, alone, KINDS[1:2], TOLD[1:2]) - plain[1:2, :2]).abs().max() < EXACT


def test_a_larger_cell_of_the_same_sheet_gives_the_same_logits(network, sheets):
    twice = {name: torch.cat([getattr(sheets, name)] * 2, 1) for name in ("atomic_numbers", "heights", "mask")}
    grown = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    frac = torch.cat([sheets.frac_coords, sheets.frac_coords + torch.tensor([1.0, 0.0])], 1) @ torch.linalg.inv(grown)
    found = logits(network, changed(sheets, **twice, frac_coords=frac, cell=grown @ sheets.cell), torch.cat([KINDS, KINDS], 1))
    assert (found - logits(network, sheets)).abs().max() < EXACT


def test_a_property_that_is_not_told_is_the_null_token(network, sheets):
    values = torch.tensor([-3.0, -0.4, 0.0, 0.1, 2.0], dtype=torch.float64)
    nothing = torch.full((3, 2), math.nan, dtype=torch.float64)
    untold = logits(network, sheets, told=nothing)
    for column in (0, 1):
        for value in values:
            told = nothing.clone()
            told[:, column] = value
            assert (logits(network, sheets, told=told) - untold).abs().amax((1, 2)).min() > 1e-3, "also the mean of a property"
    assert (network._tell(nothing) - network.null.sum(0)).abs().max() < EXACT
    infinite = torch.full_like(nothing, math.inf)
    assert (logits(network, sheets, told=infinite) - untold).abs().max() == 0
    assert logits(network, sheets).isfinite().all()


def test_a_network_without_conditions_is_told_nothing(sheets):
    network = ElementDenoiser(ElementDenoiserConfig(channels=8, vectors=2, tensors=2, layers=1, rbf=4), element_descriptors())
    network = network.double().eval()
    assert logits(network, sheets, told=torch.zeros(3, 0).double()).shape == (3, 4, NUM_ELEMENTS)


def test_elements_that_are_seen_matter(network, sheets):
    plain = logits(network, sheets)
    for number in (16, UNKNOWN):
        numbers = sheets.atomic_numbers.clone()
        numbers[0, 3] = number  # Te, which was seen, is another element or hidden
        difference = (logits(network, changed(sheets, atomic_numbers=numbers)) - plain).abs().amax((1, 2))
        assert difference[0] > 1e-2 and difference[1:].max() == 0


def test_what_the_trunk_is_told_is_added_to_the_first_scalars(network, sheets):
    zero = torch.zeros(15, SMALL.channels, dtype=torch.float64)
    shift = torch.linspace(-1, 1, SMALL.channels, dtype=torch.float64)
    with torch.no_grad():
        plain, same, told = (network.encode(sheets, x)[0] for x in (None, zero, zero + shift))
        network.embed.weight += shift
        moved = network.encode(sheets)[0]
        network.embed.weight -= shift
    assert (plain - same).abs().max() == 0 and (plain - told).abs().max() > 1e-2
    assert (moved - told).abs().max() < EXACT, "as if the embedding of every element were moved"


def test_the_size_of_every_atom_is_the_same(network):
    assert (network.radii == BOND_ANGSTROM / 2).all()
