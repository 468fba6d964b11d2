"""The sampler: independence of the batch, bounds and guidance, with a tiny model of random weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from known_sheets import same_sheet

from generation.batch import NoiseEstimate, PropertyEstimate
from generation.sampling import guidance_strength, guided_noise, sample, target_loss
from models import DenoisingEGNN

COMPOSITIONS = [(42, 16, 16), (6, 6), (22, 22, 6, 8, 8), (16,), (42, 52, 16)]


def test_samples_do_not_depend_on_the_batch(model, settings):
    together = sample(model, COMPOSITIONS, range(5), settings, seed=3)
    for k in (0, 2, 3):
        alone = sample(model, [COMPOSITIONS[k]], [k], settings, seed=3)[0]
        assert same_sheet(alone, together[k]), k
    other = sample(model, COMPOSITIONS[:1], [0], settings, seed=4)[0]
    assert not same_sheet(other, together[0])


def test_samples_are_sheets(model, settings):
    for sheet, numbers in zip(sample(model, COMPOSITIONS, range(5), settings, seed=0), COMPOSITIONS, strict=True):
        assert sheet.atomic_numbers.tolist() == list(numbers)
        assert abs(sheet.heights.mean()) < 1e-9 and (sheet.frac_coords >= 0).all() and (sheet.frac_coords < 1).all()
        assert sheet.thickness <= 2 * settings.max_thickness_angstrom and np.linalg.det(sheet.lattice) > 0


def test_thickness_is_bounded(model, settings):
    thin = dataclasses.replace(settings, max_thickness_angstrom=1.0)
    sheets = sample(model, COMPOSITIONS, range(5), thin, seed=0)
    assert max(sheet.thickness for sheet in sheets) <= 2.0 + 1e-6


def test_classifier_free_guidance_extrapolates(model, settings):
    class Encoded:
        alpha_bar = torch.zeros(2)

    class Network:
        def noise(self, encoded, delta_g=None, e_hull=None):
            value = torch.tensor([1.0]) if delta_g is None else torch.tensor([3.0])
            return NoiseEstimate(value, value, value)

    for w, expected in ((0.0, 1.0), (1.0, 3.0), (1.5, 4.0)):
        estimate = guided_noise(Network(), Encoded(), dataclasses.replace(settings, cfg_scale=w))
        assert float(estimate.frac) == expected and float(estimate.lattice) == expected


def test_target_loss(settings):
    settings = dataclasses.replace(settings, target_delta_g=0.1, weight_e_hull=2.0, weight_synth=0.5)
    properties = PropertyEstimate(torch.tensor([0.4, 0.1]), torch.tensor([-0.3, 0.2]), torch.tensor([0.0, 50.0]))
    expected = torch.tensor([0.3 + 0.5 * np.log(2), 0.4], dtype=torch.float32)
    torch.testing.assert_close(target_loss(properties, settings), expected)


def test_guidance_is_off_at_pure_noise_and_grows(model, settings):
    strengths = [guidance_strength(model.schedule, t, settings) for t in (60, 30, 1)]
    assert strengths[0] < strengths[1] < strengths[2] and strengths[0] < 0.1 * strengths[2]


def test_guidance_on_a_quadratic_head_moves_the_right_way(model, settings, monkeypatch):
    """A head that wants a large cell: guided cells must be larger than unguided ones from the same noise."""

    def head(self, encoded):
        area = torch.linalg.det(encoded.cell).abs()
        return PropertyEstimate((torch.log(area) - 4.0) ** 2, torch.zeros_like(area), torch.full_like(area, 50.0))

    monkeypatch.setattr(DenoisingEGNN, "properties", head)
    areas = []
    for scale in (0.0, 0.3):
        chosen = dataclasses.replace(settings, guidance_scale=scale, num_steps=40, cfg_scale=0.0)
        areas.append(np.array([s.area for s in sample(model, COMPOSITIONS, range(5), chosen, seed=1)]))
    before, after = ((np.log(a) - 4.0) ** 2 for a in areas)
    assert after.mean() < before.mean() and (after < before).sum() >= 4
