"""One estimate of the noise, the work of a reverse step: ours on its graph, and a network on all pairs of atoms, in one run.

The other one has the layers of CSPNet (Jiao et al., NeurIPS 2023, DiffCSP) with its 128 frequencies, our width and depth. It has
no symmetry but that of permutation and translation, and builds no graph.
"""

import pytest
import torch
from torch import nn

from models import DenoiserModelConfig, DenoisingEGNN

SHEETS = 32
SIZES = [6, 12]
FREQUENCIES = 128


class FullGraphLayer(nn.Module):
    """A layer of CSPNet: messages between all atoms of a crystal, their mean, and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(2 * width + 9 + 6 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.node = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.norm = nn.LayerNorm(width)

    def forward(self, h: torch.Tensor, lattice: torch.Tensor, waves: torch.Tensor) -> torch.Tensor:
        """h: (B, n, width). lattice: (B, n, n, 9). waves: (B, n, n, 6 FREQUENCIES)."""
        x = self.norm(h)
        n = x.shape[1]
        pairs = torch.cat([x[:, :, None].expand(-1, -1, n, -1), x[:, None].expand(-1, n, -1, -1), lattice, waves], -1)
        return h + self.node(torch.cat([x, self.edge(pairs).mean(2)], -1))


class FullGraphDenoiser(nn.Module):
    """Estimates the noise of coordinates and lattice, from all pairs of atoms."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed, self.time = nn.Embedding(119, width), nn.Linear(1, width)
        self.layers = nn.ModuleList(FullGraphLayer(width) for _ in range(layers))
        self.coordinates, self.lattice = nn.Linear(width, 3, bias=False), nn.Linear(width, 9, bias=False)

    def forward(self, numbers, frac, lattice, t):
        """numbers: (B, n). frac: (B, n, 3). lattice: (B, 3, 3). t: (B,). Returns (B, n, 3) and (B, 9)."""
        n = numbers.shape[1]
        h = self.embed(numbers) + self.time(t[:, None, None])
        angles = (frac[:, None] - frac[:, :, None])[..., None] * (2 * torch.pi * torch.arange(FREQUENCIES))
        waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(3)
        metric = (lattice @ lattice.transpose(1, 2)).flatten(1)[:, None, None].expand(-1, n, n, -1)
        for layer in self.layers:
            h = layer(h, metric, waves)
        return self.coordinates(h), self.lattice(h.mean(1))


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
