"""The joint loss: size of its terms, masks of unknown labels, dropout of the conditions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_sheets import table_of, tiny_config

from generation import loss
from generation.batch import SheetBatch
from generation.loss import TERMS, loss_terms, sample_noise, total_loss
from optimization import build_model
from pipeline.settings import Config


@pytest.fixture
def cfg(tmp_path) -> Config:
    return tiny_config(tmp_path)


def test_every_term_is_of_order_one_before_training(cfg):
    table = table_of(cfg)
    model = build_model(cfg.denoiser, table, 0)
    sheets = table.select(torch.arange(len(table)))
    keep = sheets.num_atoms > 1  # one atom has no position noise to speak of
    sheets = table.select(torch.arange(len(table))[keep])
    sums = dict.fromkeys(TERMS, 0.0)
    for seed in range(8):
        terms, _ = loss_terms(model, sheets, sample_noise(sheets, 40, 0.15, torch.Generator().manual_seed(seed)))
        for name, value in terms.items():
            sums[name] += float(value) / 8
    for name, value in sums.items():
        assert 0.2 < value < 3.0, (name, value)


def test_unknown_labels_neither_count_nor_poison_the_gradient(cfg):
    table = table_of(cfg)
    model = build_model(cfg.denoiser, table, 0)
    sheets = table.select(torch.arange(9))
    noise = sample_noise(sheets, 40, 0.0, torch.Generator().manual_seed(0))
    terms, properties = loss_terms(model, sheets, noise)
    known = torch.isfinite(sheets.delta_g)
    weight = model.schedule.alphas_cumprod[noise.t].float().clamp(min=loss.PROPERTY_WEIGHT_FLOOR)
    error = (properties.delta_g - sheets.delta_g).abs() / model.label_std[0]
    torch.testing.assert_close(terms["delta_g"], (error[known] * weight[known]).sum() / weight[known].sum())
    total_loss(terms, cfg.denoiser).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())

    nothing = dataclasses.replace(sheets, **{n: torch.full((9,), float("nan")) for n in ("delta_g", "e_hull", "synth")})
    terms, _ = loss_terms(model, nothing, noise)
    assert all(float(terms[name]) == 0 for name in ("delta_g", "e_hull", "synth"))
    assert all(torch.isfinite(value) for value in terms.values())


def test_condition_dropout_rate_and_times():
    count = 20000
    sheets = SheetBatch(
        torch.full((count,), 6), torch.zeros(count, 2), torch.zeros(count), torch.zeros(count, 3),
        torch.arange(count), torch.ones(count, dtype=torch.long),
    )  # fmt: skip
    noise = sample_noise(sheets, 1000, 0.15, torch.Generator().manual_seed(0))
    assert float(noise.drop.float().mean()) == pytest.approx(0.15, abs=0.01)
    assert noise.t.min() == 1 and noise.t.max() == 1000
    assert float(noise.t.float().mean()) == pytest.approx(500.5, abs=2)


def test_dropped_conditions_do_not_reach_the_noise(cfg):
    table = table_of(cfg)
    model = build_model(cfg.denoiser, table, 0)
    sheets = table.select(torch.arange(8))
    other = dataclasses.replace(sheets, delta_g=sheets.delta_g + 1.0)
    noise = sample_noise(sheets, 40, 1.0, torch.Generator().manual_seed(0))
    assert noise.drop.all()
    first, second = (loss_terms(model, s, noise)[0] for s in (sheets, other))
    assert first["frac"] == second["frac"] and first["lattice"] == second["lattice"]
    noise.drop[:] = False
    second = loss_terms(model, other, noise)[0]
    assert first["frac"] != second["frac"]
