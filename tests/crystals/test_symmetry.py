"""Symmetry of sheets: what a template leaves free, against spglib and against the invariance of the metric; symmetrisation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import simple_judges as simple
import torch
from known_sheets import FEOCL, MOS2, PDSE2, SYMMETRIC, TISE2, WTE2, pbe_mos2, same_sheet

from crystals import symmetry, validity
from crystals.symmetry import SymmetryConstraint, Template, find_operations, symmetrise
from geo_utils import Sheet, lattice_to_vector, vector_to_lattice


def low_symmetry(seed: int = 0) -> Sheet:
    rng = np.random.default_rng(seed)
    heights = rng.normal(size=4)
    return Sheet(np.array([6, 7, 8, 9]), rng.random((4, 2)), heights - heights.mean(), np.array([[3.3, 0.0], [-0.7, 4.1]]))


@pytest.mark.parametrize(
    "sheet, layer_group, free",
    [
        (MOS2, 78, (0, 1, 1)),  # p-6m2: S above Mo at ±z; one lattice constant
        (TISE2, 72, (0, 1, 1)),  # p-3m1
        (PDSE2, 17, (2, 1, 2)),  # p2_1/b11: Pd at an inversion centre, Se at x, y, z; a and b
        (WTE2, 15, (3, 3, 2)),  # p2_1/m11: each of the three kinds of site on the mirror at y, z
        (FEOCL, 46, (0, 3, 2)),  # pmmn: every atom at (0, 1/2, z) or its like
        (low_symmetry(), 1, (8, 3, 3)),
    ],
)
def test_free_numbers_by_hand(sheet, layer_group, free):
    template = Template.of(sheet)
    assert (template.layer_group, template.num_free) == (layer_group, free)


@pytest.mark.parametrize("sheet", SYMMETRIC, ids=lambda s: str(s.atomic_numbers.tolist()))
def test_every_symmetric_displacement_keeps_the_group_and_no_other_does(sheet):
    template, rng = Template.of(sheet), np.random.default_rng(1)
    operations = find_operations(sheet, 1e-3, -1.0)
    assert len(operations) > 1
    in_plane = (template.frac_projector @ rng.normal(size=2 * len(sheet))).reshape(-1, 2) * 0.02
    moved = dataclasses.replace(
        sheet,
        frac_coords=template.frac_origin
        + (template.frac_projector @ (sheet.frac_coords - template.frac_origin).reshape(-1)).reshape(-1, 2)
        + in_plane,
        heights=sheet.heights + template.height_projector @ rng.normal(size=len(sheet)) * 0.05,
    )
    assert len(find_operations(moved, 1e-3, -1.0)) == len(operations)
    broken = dataclasses.replace(sheet, frac_coords=sheet.frac_coords + rng.normal(size=(len(sheet), 2)) * 0.02)
    assert len(find_operations(broken, 1e-3, -1.0)) < len(operations)


@pytest.mark.parametrize("sheet", [*SYMMETRIC, low_symmetry()], ids=lambda s: str(s.atomic_numbers.tolist()))
def test_projected_lattices_are_invariant_and_keep_their_area(sheet):
    template = Template.of(sheet)
    constraint = SymmetryConstraint([template], torch.tensor([len(sheet)]), torch.zeros(1, dtype=torch.float64))
    vector = lattice_to_vector(torch.as_tensor(sheet.lattice))[None] + 0.2 * torch.randn(
        1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    projected = constraint.lattice(vector)
    metric = (lambda cell: cell @ cell.transpose(-1, -2))(vector_to_lattice(projected))[0].numpy()
    for rotation in template.rotations:
        np.testing.assert_allclose(rotation.T @ metric @ rotation, metric, atol=1e-10)
    assert float(projected[0, :2].sum()) == pytest.approx(float(vector[0, :2].sum()), abs=1e-10), "log area"
    torch.testing.assert_close(constraint.lattice(projected), projected, atol=1e-10, rtol=0)
    own = lattice_to_vector(torch.as_tensor(sheet.lattice))[None]
    torch.testing.assert_close(constraint.lattice(own), own, atol=1e-6, rtol=0)


def test_a_sheet_without_template_is_left_alone_beside_one_with():
    sizes = torch.tensor([4, 3])
    constraint = SymmetryConstraint([None, Template.of(MOS2)], sizes, torch.zeros(1, dtype=torch.float64))
    frac, height, lattice = torch.randn(7, 2).double(), torch.randn(7).double(), 0.3 * torch.randn(2, 3).double()
    assert torch.equal(constraint.frac(frac)[:4], frac[:4]) and float(constraint.frac(frac)[4:].abs().max()) < 1e-12
    assert torch.equal(constraint.height(height)[:4], height[:4])
    torch.testing.assert_close(constraint.lattice(lattice)[0], lattice[0])
    with pytest.raises(ValueError, match="template of 3 atoms"):
        SymmetryConstraint([Template.of(MOS2)], torch.tensor([4]), frac)


def test_symmetrisation_finds_the_group_of_a_rattled_sheet():
    clean = pbe_mos2()
    rng = np.random.default_rng(0)
    rattled = dataclasses.replace(
        clean,
        frac_coords=(clean.frac_coords + rng.normal(0, 0.008, (3, 2))) % 1.0,
        heights=clean.heights + rng.normal(0, 0.02, 3),
        lattice=clean.lattice * np.array([[1.01], [1.0]]),
    )
    result, found = symmetrise(rattled, 0.2)
    assert found.space_group_number == 187 and found.tolerance == 0.2
    assert found.layer_group_number == 78
    lengths = np.linalg.norm(result.lattice, axis=1)
    assert lengths[0] == pytest.approx(lengths[1], abs=1e-9)
    assert lengths.mean() == pytest.approx(3.2, abs=0.03)
    assert np.ptp(result.heights) == pytest.approx(3.12, abs=0.1)


def test_symmetrisation_leaves_a_sheet_without_symmetry_alone():
    rng = np.random.default_rng(1)
    sheet = Sheet.from_atoms(
        Sheet(np.array([42, 16, 34, 8]), rng.random((4, 2)), rng.normal(size=4), np.array([[3.0, 0.0], [-0.7, 4.1]])).to_atoms()
    )
    result, found = symmetrise(sheet, 0.1)
    assert found.space_group == "P1" and found.tolerance == 0
    assert same_sheet(result, sheet)
    assert symmetrise(pbe_mos2(), 0.0)[1].space_group_number == 187, "an exact symmetry is reported even when none is imposed"


def test_symmetry_of_known_sheets():
    standard, _, _ = validity.standardise(simple.sheet(), 10.0)
    assert symmetry.symmetry_symbols(standard, True) == ("P-6m2", "p-6m2")
    standard, _, _ = validity.standardise(simple.sheet(kind="1T"), 10.0)
    assert symmetry.symmetry_symbols(standard, True)[1] == "p-3m1"
