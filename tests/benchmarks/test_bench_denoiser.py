"""One estimate of the noise, the work of a reverse step: ours on its graph, and a network on all pairs of atoms, in one run."""

import pytest
import torch

from models import DenoiserModelConfig, DenoisingEGNN
from scripts.benchmark_messages import FullGraphDenoiser

SHEETS = 32
SIZES = [6, 12]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(group="noise of 32 sheets")
@pytest.mark.parametrize("size", SIZES)
def test_ours(benchmark, size):
    model = DenoisingEGNN(DenoiserModelConfig()).eval()
    batch = torch.arange(SHEETS).repeat_interleave(size)
    given = (torch.randint(1, 84, (SHEETS * size,)), torch.rand(SHEETS * size, 2), torch.randn(SHEETS * size))
    cell = torch.eye(2).expand(SHEETS, 2, 2) * (4.0 * size) ** 0.5
    t = torch.full((SHEETS,), 500)

    @torch.no_grad()
    def estimate():
        return model.noise(model.encode(*given, cell, batch, t))

    found = benchmark.pedantic(estimate, rounds=5, warmup_rounds=1)
    assert found.frac.shape == (SHEETS * size, 2) and found.lattice.shape == (SHEETS, 3)


@pytest.mark.benchmark(group="noise of 32 sheets")
@pytest.mark.parametrize("size", SIZES)
def test_all_pairs(benchmark, size):
    config = DenoiserModelConfig()
    model = FullGraphDenoiser(config.hidden_channels, config.num_layers + config.num_noise_layers).eval()
    given = (torch.randint(1, 84, (SHEETS, size)), torch.rand(SHEETS, size, 3), torch.eye(3).expand(SHEETS, 3, 3) * 5.0)

    @torch.no_grad()
    def estimate():
        return model(*given, torch.full((SHEETS,), 0.5))

    frac, lattice = benchmark.pedantic(estimate, rounds=5, warmup_rounds=1)
    assert frac.shape == (SHEETS, size, 3) and lattice.shape == (SHEETS, 9)
