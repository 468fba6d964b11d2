"""Speed of the generator on one thread: training steps and sampling against the number of atoms."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from generation.batch import SheetBatch
from generation.loss import loss_terms, sample_noise, total_loss
from generation.sampling import sample
from models import DenoiserModelConfig, DenoisingEGNN
from pipeline.settings import DenoiserConfig, GenerationConfig


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_atoms", [3, 6, 12])
def test_training_step(benchmark, num_atoms):
    torch.manual_seed(0)
    model, count, settings = DenoisingEGNN(DenoiserModelConfig()), 64, DenoiserConfig()
    atoms = count * num_atoms
    sheets = SheetBatch(
        torch.randint(1, 84, (atoms,)), torch.rand(atoms, 2), torch.randn(atoms), torch.tensor([[1.3, 1.4, -0.2]]).repeat(count, 1),
        torch.arange(count).repeat_interleave(num_atoms), torch.full((count,), num_atoms),
        torch.randn(count), torch.rand(count), torch.randint(0, 2, (count,)).float(),
    )  # fmt: skip

    def step():
        draw = sample_noise(sheets, settings.num_timesteps, settings.p_uncond, torch.Generator().manual_seed(0))
        total_loss(loss_terms(model, sheets, draw)[0], settings).backward()

    benchmark.pedantic(step, rounds=3, warmup_rounds=1)
    benchmark.extra_info["sheets_per_second"] = count / benchmark.stats.stats.mean


@pytest.mark.parametrize("guidance", [0.0, 1.0])
@pytest.mark.parametrize("num_atoms", [3, 6, 12])
def test_sampling(benchmark, num_atoms, guidance):
    torch.manual_seed(0)
    model, count = DenoisingEGNN(DenoiserModelConfig()).double().eval(), 16
    settings = dataclasses.replace(GenerationConfig(), num_steps=10, guidance_scale=guidance)
    compositions = [tuple([42, 16, 16] * 4)[:num_atoms]] * count
    benchmark.pedantic(lambda: sample(model, compositions, range(count), settings, 0), rounds=2, warmup_rounds=0)
    default = GenerationConfig().num_steps
    benchmark.extra_info["seconds_per_structure_at_default_steps"] = benchmark.stats.stats.mean / count * default / 10
