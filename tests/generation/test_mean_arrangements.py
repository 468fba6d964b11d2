"""Means of crystals of one arrangement: symmetry, size, names, storage, and sheets made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list
from element_tables import flat_ab, mx2, table_of

from crystals.elements import covalent_radius_table
from crystals.symmetry import Template, symmetrise
from generation.element_training import arrangements_of, at_bond_length
from generation.mean_arrangements import MeanArrangements, mean_arrangements, radii_of_known_and_unknown, with_elements
from generation.refinement import padded
from generation.refiner_training import bond_ratio
from geo_utils import Sheet
from networks.element_denoiser import BOND_ANGSTROM, UNKNOWN
from networks.sheet_trunk import SheetState

COPIES = 60
RADII = covalent_radius_table().double()
BN = float(RADII[5] + RADII[7])


def noisy_copies(sheet: Sheet, seed: int = 0, noise: float = 0.03) -> SheetState:
    """Copies of a sheet with noise of atoms and cell (Å), each moved along the plane by another shift and wrapped."""
    g = torch.Generator().manual_seed(seed)
    clean = padded([sheet] * COPIES, torch.float64)
    shape = clean.frac_coords.shape
    move = (noise * torch.randn(shape, generator=g).double()) @ torch.linalg.inv(clean.cell)
    shift = torch.rand(COPIES, 1, 2, generator=g).double()
    frac = torch.remainder(clean.frac_coords + move + shift, 1.0)
    heights = clean.heights + noise * torch.randn(shape[:2], generator=g) + torch.randn(COPIES, 1, generator=g)
    cell = clean.cell + noise * torch.randn(COPIES, 2, 2, generator=g)
    return SheetState(clean.atomic_numbers, frac, heights, cell, clean.mask)


@pytest.fixture(scope="module")
def means() -> MeanArrangements:
    sheets = [mx2(42, 16), flat_ab(5, 7, BN)]
    members = [at_bond_length(noisy_copies(sheet), RADII) for sheet in sheets]
    properties = [torch.zeros(COPIES, 2), torch.full((COPIES, 2), math.nan)]
    elements = [torch.tensor([[42, 16]]).repeat(COPIES, 1), torch.tensor([[5, 7]]).repeat(COPIES, 1)]
    return mean_arrangements(members, [torch.tensor([0, 1, 1]), torch.tensor([0, 1])], elements, properties)


def distances(state: SheetState) -> torch.Tensor:
    """(N, N) shortest distances of the atoms of the first sheet."""
    steps = torch.arange(-2.0, 3)
    delta = state.frac_coords[0][None] - state.frac_coords[0][:, None]
    plane = (delta[:, :, None] + torch.cartesian_prod(steps, steps)) @ state.cell[0]
    rise = state.heights[0][None] - state.heights[0][:, None]
    return torch.sqrt((plane**2).sum(-1) + rise[..., None] ** 2).amin(-1)


def test_the_mean_of_noisy_copies_is_the_clean_sheet(means):
    for row, sheet in enumerate([mx2(42, 16), flat_ab(5, 7, BN)]):
        state = means.state(torch.tensor([row]))
        clean = at_bond_length(padded([sheet], torch.float64), RADII)
        assert int(means.layer_group[row]) == Template.of(sheet, 1e-3).layer_group == 78
        assert abs(float(state.heights.mean())) < 1e-6
        assert (distances(state) - distances(clean)).abs().max() < 0.05
        areas = [float(torch.linalg.det(x.cell.double())) for x in (state, clean)]
        assert areas[0] == pytest.approx(areas[1], rel=0.02)
        assert (state.atomic_numbers == UNKNOWN).all() and int(means.crystals[row]) == COPIES
    assert any(
        Template.of(Sheet(s.atomic_numbers, f.numpy(), h.numpy(), c.numpy()), 0.05).layer_group != 78
        for s in [mx2(42, 16)]
        for f, h, c in zip(*(vars(noisy_copies(s))[name][:3] for name in ("frac_coords", "heights", "cell")), strict=True)
    ), "a single copy has lost its symmetry"


def test_bonds_are_of_one_length_in_units_of_the_covalent_radii(means):
    """Bonds of BN are as long as the sum of its radii. Bonded in MoS2 are Mo and S, and Mo and Mo."""
    assert float(distances(means.state(torch.tensor([1])))[0, 1]) == pytest.approx(BOND_ANGSTROM, abs=0.02)
    atoms, radii = mx2(42, 16).to_atoms(), RADII.numpy()
    i, j, distance = neighbor_list("ijd", atoms, 5.0)
    sums = (radii[atoms.numbers[i]] + radii[atoms.numbers[j]])[
        distance < 1.25 * (radii[atoms.numbers[i]] + radii[atoms.numbers[j]])
    ]
    assert len(sums) == 12 + 6
    bond = math.hypot(3.18 / math.sqrt(3), 1.56)
    assert float(distances(means.state(torch.tensor([0])))[0, 1]) == pytest.approx(BOND_ANGSTROM * bond / sums.mean(), abs=0.02)


def test_atoms_half_a_cell_apart_are_not_averaged_to_the_middle():
    sheet = Sheet(np.array([5, 7]), np.array([[0.0, 0.0], [0.5, 0.5]]), np.zeros(2), 2.6 * np.eye(2))
    elements = [torch.tensor([[5, 7]]).repeat(COPIES, 1)]
    found = mean_arrangements([noisy_copies(sheet, 2, 0.03)], [torch.tensor([0, 1])], elements, [torch.zeros(COPIES, 1)])
    delta = (found.frac_coords[0, 1] - found.frac_coords[0, 0]).abs() % 1.0
    assert torch.allclose(delta, torch.full((2,), 0.5), atol=0.02)


def test_rows_names_and_padding(means):
    assert len(means) == 2 and means.sizes.tolist() == [3, 2]
    assert means.rows_of_at_most(3).tolist() == [0, 1] and means.rows_of_at_most(2).tolist() == [1]
    assert means.rows_of_at_most(1).tolist() == []
    assert means.name(0) == "AB2, layer group 78, arrangement 0" and means.name(1) == "AB, layer group 78, arrangement 1"
    both = means.state(torch.tensor([1, 0]))
    assert both.mask.tolist() == [[True, True, False], [True, True, True]]
    assert means.state(torch.tensor([1])).frac_coords.shape == (1, 2, 2)
    low = MeanArrangements(**(means.state_dict() | {"layer_group": torch.tensor([78, 1])}))
    assert low.rows_of_at_most(3).tolist() == [0], "an arrangement without symmetry is none"


def test_storage(means, tmp_path):
    torch.save(means.state_dict(), tmp_path / "x.pt")
    again = MeanArrangements(**torch.load(tmp_path / "x.pt", weights_only=True))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in means.state_dict().items())
    assert set(means.state_dict()) == set(vars(means))


def test_sheets_have_their_elements_and_size(means):
    state = means.state(torch.tensor([0, 1, 0]))
    numbers = torch.tensor([[74, 34, 34], [13, 15, 0], [22, 8, 8]])
    sheets = with_elements(state, numbers, torch.tensor([1.0, 0.9, 1.2]))
    for k, (sheet, factor) in enumerate(zip(sheets, (1.0, 0.9, 1.2), strict=True)):
        assert sorted(sheet.atomic_numbers.tolist()) == sorted(z for z in numbers[k].tolist() if z)
        area = float(torch.linalg.det(state.cell[k].double()).abs())
        assert abs(np.linalg.det(sheet.lattice)) == pytest.approx(factor**2 * area, rel=1e-5)
        assert np.ptp(sheet.heights) == pytest.approx(factor * float(np.ptp(state.heights[k][state.mask[k]].numpy())), rel=1e-5)
        assert symmetrise(sheet, 0.1)[1].layer_group_number == 78
        assert (0 <= sheet.frac_coords).all() and (sheet.frac_coords < 1).all()


def test_the_size_is_that_of_the_elements(means):
    state, numbers = means.state(torch.tensor([1])), torch.tensor([[13, 15]])
    sheet = with_elements(state, numbers, bond_ratio(state, numbers, radii_of_known_and_unknown()))[0]
    bond = np.linalg.norm(sheet.lattice[0]) / math.sqrt(3)
    assert bond == pytest.approx(float(RADII[13] + RADII[15]), rel=0.01)
    assert radii_of_known_and_unknown()[UNKNOWN] == BOND_ANGSTROM / 2 and radii_of_known_and_unknown().isfinite().all()
    assert torch.allclose(radii_of_known_and_unknown()[1:90].double(), RADII[1:90])


def test_an_arrangement_of_few_crystals_is_left_out():
    """Three training crystals make an arrangement, two do not, and those of the validation split do not count."""
    sheets = [mx2(42, 16), mx2(74, 16), mx2(42, 34), flat_ab(5, 7), flat_ab(13, 15), flat_ab(13, 7)]
    table = table_of(sheets, [0, 0, 0, 1, 1, 1], [True] * 5 + [False], torch.zeros(6, 1))
    found = arrangements_of(table)
    assert found.crystals.tolist() == [3] and found.kinds.tolist() == [[0, 1, 1]]
    assert found.elements.tolist() == [[42, 16], [42, 34], [74, 16]], "of each crystal, by its kinds, sorted"
    allowed = torch.zeros(119, dtype=torch.bool)
    allowed[[42, 16, 5, 7]] = True
    assert found.made_of(allowed).tolist() == [True, False, False]
