"""Noise and samples within a template keep its symmetry."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from known_sheets import MOS2, SYMMETRIC, sheet_of

from crystals.symmetry import SymmetryConstraint, Template, find_operations, symmetrise
from generation.batch import PropertyEstimate
from generation.process import add_noise, physical_state
from generation.sampling import sample, sheets_to_batch
from generation.schedule import NoiseSchedule
from geo_utils import Sheet, vector_to_lattice
from models import DenoisingEGNN
from pipeline.settings import GenerationConfig


def test_noise_within_a_template_is_symmetric_and_leads_back(model):
    sheets = sheets_to_batch(SYMMETRIC)
    schedule, generator = model.schedule, torch.Generator().manual_seed(2)
    constraint = SymmetryConstraint([Template.of(s) for s in SYMMETRIC], sheets.num_atoms, sheets.frac_coords)
    t = torch.full((len(SYMMETRIC),), 30)
    count = len(sheets.batch)
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((count, 2), (count,), (len(SYMMETRIC), 3))]
    state = add_noise(schedule, sheets, t, *noise, constraint)
    heights, cell = physical_state(schedule, state.height, state.lattice, sheets)
    start = 0
    for k, sheet in enumerate(SYMMETRIC):
        atoms = slice(start, start + len(sheet))
        noised = Sheet(sheet.atomic_numbers, state.frac[atoms].numpy(), heights[atoms].numpy(), cell[k].numpy())
        assert len(find_operations(noised, 1e-3, -1.0)) >= len(find_operations(sheet, 1e-3, -1.0))
        start += len(sheet)
    a, s = schedule.alphas_cumprod[30].sqrt(), (1 - schedule.alphas_cumprod[30]).sqrt()
    clean = schedule.scale_lattice(sheets.lattice_vector, sheets.atomic_numbers, sheets.batch, sheets.num_atoms)
    torch.testing.assert_close(a * clean + s * state.lattice_target, state.lattice, atol=1e-5, rtol=0)
    torch.testing.assert_close(constraint.frac(state.frac_target), state.frac_target, atol=1e-10, rtol=0)


def test_the_network_answers_a_symmetric_sheet_within_its_symmetry(model):
    """Equivariance: nothing but noise has to be projected, so the restricted reverse process is that of the learnt density."""
    sheets = sheets_to_batch(SYMMETRIC)
    constraint = SymmetryConstraint([Template.of(s) for s in SYMMETRIC], sheets.num_atoms, sheets.frac_coords)
    cell = vector_to_lattice(sheets.lattice_vector)
    exact = dataclasses.replace(
        sheets,
        frac_coords=torch.cat([torch.as_tensor(symmetrise(s, 0.01)[0].frac_coords) for s in SYMMETRIC]),
        heights=constraint.height(sheets.heights),
    )
    encoded = model.encode(exact.atomic_numbers, exact.frac_coords, exact.heights, cell, exact.batch, torch.full((6,), 20))
    noise = model.noise(encoded)
    torch.testing.assert_close(constraint.frac(noise.frac), noise.frac, atol=1e-7, rtol=0)
    torch.testing.assert_close(constraint.height(noise.height), noise.height, atol=1e-7, rtol=0)


def test_samples_keep_the_symmetry_of_their_template(model):
    settings = dataclasses.replace(GenerationConfig(), num_steps=8, guidance_scale=0.5, cfg_scale=1.5)
    templates = [Template.of(s) for s in SYMMETRIC]
    numbers = [s.atomic_numbers.tolist() for s in SYMMETRIC]
    together = sample(model, numbers, range(6), settings, 0, templates=templates)
    for k, (found, sheet) in enumerate(zip(together, SYMMETRIC, strict=True)):
        assert len(find_operations(found, 1e-3, -1.0)) >= len(find_operations(sheet, 1e-3, -1.0)), k
        alone = sample(model, numbers[k : k + 1], [k], settings, 0, templates=templates[k : k + 1])[0]
        assert np.array_equal(alone.frac_coords, found.frac_coords) and np.array_equal(alone.heights, found.heights)
        assert np.array_equal(alone.lattice, found.lattice)


def test_guidance_does_not_depend_on_which_of_equal_atoms_the_heads_look_at(model, monkeypatch):
    """The maximum over atoms goes to any of those that symmetry makes equal, by the last digit of each. Six of CrI3's are, under
    threefold axes, which are no orthogonal maps of fractional coordinates."""
    sheet = sheet_of("MX3", "Cr", "I")
    settings = dataclasses.replace(GenerationConfig(), num_steps=8, guidance_scale=1.0, cfg_scale=0.0)

    def looking_at(atom):
        def head(self, encoded):
            seen = 10 * encoded.scalars[atom].sum()[None] + encoded.scaled_heights[atom]
            return PropertyEstimate(seen, torch.zeros_like(seen), torch.full_like(seen, 50.0))

        monkeypatch.setattr(DenoisingEGNN, "properties", head)
        return sample(model, [sheet.atomic_numbers.tolist()], [0], settings, 0, templates=[Template.of(sheet)])[0]

    upper = [k for k in range(len(sheet)) if sheet.atomic_numbers[k] == 53 and sheet.heights[k] > 0]
    first, *others = [looking_at(k) for k in upper]
    free = dataclasses.replace(settings, guidance_scale=0.0)
    unguided = sample(model, [sheet.atomic_numbers.tolist()], [0], free, 0, templates=[Template.of(sheet)])[0]
    assert np.abs(first.lattice - unguided.lattice).max() > 1e-4 and len(others) == 2
    for other in others:
        assert np.array_equal(first.lattice, other.lattice) and np.array_equal(first.heights, other.heights)
        assert np.array_equal(first.frac_coords, other.frac_coords)


def test_schedule_is_untouched_without_templates():
    schedule = NoiseSchedule(50, 1e-3, 0.2, 0.01, 0.5)
    sheets = sheets_to_batch([MOS2])
    noise = (torch.ones(3, 2).double(), torch.tensor([1.0, -1.0, 0.0]).double(), torch.ones(1, 3).double())
    state = add_noise(schedule, sheets, torch.tensor([10]), *noise)
    assert torch.equal(state.lattice_target, noise[2])
