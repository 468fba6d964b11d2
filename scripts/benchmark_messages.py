"""Measures the networks of sheets on one core, by the loops of ``networks/messages.py`` and by PyTorch's operations alone.

    python -m scripts.benchmark_messages [--repeats 9] [--output results/benchmark/messages.json]

32 sheets of 6 and of 12 atoms, in single precision. "noise" is one estimate by the denoiser, the work of a reverse step, "training"
its loss with gradients, "moves" is one pass of the refiner and "elements" one of the denoiser of elements, at the sizes of the
configuration. "all pairs" estimates noise by the layers of CSPNet (Jiao et al., NeurIPS 2023) with its 128 frequencies and our
width and depth: messages between all pairs of atoms, no graph, no symmetry but that of permutation and translation. All take
turns of three calls, and the fastest call counts, in seconds of the process, so that other work on the machine matters little.

"gflops" is the rate of training: the work of the matrix products of the network as it is written down, which the way by operations
carries out, over the seconds of either way. The loops need "share_executed" of these products.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from generation.elements import CONDITIONS, new_element_denoiser
from generation.refinement import new_refiner
from models import DenoiserModelConfig, DenoisingEGNN
from networks import sheet_layers, sheet_trunk
from networks.element_denoiser import ElementDenoiserConfig
from networks.messages import by_loops
from networks.sheet_trunk import SheetState, TrunkConfig
from pipeline.files import PROJECT_DIR, write_json
from pipeline.heap import keep_freed_memory
from pipeline.machine import machine
from pipeline.provenance import git_commit
from pipeline.settings import ElementTrainingConfig

TABLE = PROJECT_DIR / "results" / "benchmark" / "messages.json"
REPEATS, CALLS, SHEETS, SIZES, FREQUENCIES = 9, 3, 32, (6, 12), 128


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

    def forward(
        self, numbers: torch.Tensor, frac: torch.Tensor, lattice: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, n, 3) and (B, 9) for numbers (B, n), frac (B, n, 3), lattice (B, 3, 3) and t (B,)."""
        n = numbers.shape[1]
        h = self.embed(numbers) + self.time(t[:, None, None])
        angles = (frac[:, None] - frac[:, :, None])[..., None] * (2 * torch.pi * torch.arange(FREQUENCIES))
        waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(3)
        metric = (lattice @ lattice.transpose(1, 2)).flatten(1)[:, None, None].expand(-1, n, n, -1)
        for layer in self.layers:
            h = layer(h, metric, waves)
        return self.coordinates(h), self.lattice(h.mean(1))


@contextlib.contextmanager
def by_operations() -> Iterator[None]:
    """Let all layers compute as they do on a GPU, by PyTorch's operations alone."""
    modules = sheet_layers, sheet_trunk
    for module in modules:
        module.by_loops = lambda values: False
    try:
        yield
    finally:
        for module in modules:
            module.by_loops = by_loops


def works(size: int) -> dict[str, tuple[Callable[[], Any], bool]]:
    """Return name -> (what is timed, whether it has messages by loops) for ``SHEETS`` sheets of ``size`` atoms."""
    torch.manual_seed(0)
    config = DenoiserModelConfig()
    model = DenoisingEGNN(config)
    batch, t = torch.arange(SHEETS).repeat_interleave(size), torch.full((SHEETS,), 500)
    numbers, frac, heights = torch.randint(1, 84, (SHEETS, size)), torch.rand(SHEETS, size, 2), torch.randn(SHEETS, size)
    cell = torch.eye(2).repeat(SHEETS, 1, 1) * (4.0 * size) ** 0.5
    given = numbers.flatten(), frac.flatten(0, 1), heights.flatten(), cell, batch, t
    state = SheetState(numbers, frac, heights, cell, torch.ones(SHEETS, size, dtype=torch.bool))
    own = ElementTrainingConfig()
    names = ("channels", "vectors", "tensors", "layers", "neighbours")
    elements = new_element_denoiser(ElementDenoiserConfig(**{n: getattr(own, n) for n in names}, conditions=CONDITIONS)).eval()
    hidden = SheetState(torch.zeros_like(numbers), *list(vars(state).values())[1:])
    kinds, told = torch.arange(size).expand(SHEETS, -1), torch.zeros(SHEETS, len(CONDITIONS))
    refiner = new_refiner(TrunkConfig()).eval()
    full = FullGraphDenoiser(config.hidden_channels, config.num_layers + config.num_noise_layers)
    everywhere = numbers, torch.rand(SHEETS, size, 3), 5.0 * torch.eye(3).repeat(SHEETS, 1, 1), torch.full((SHEETS,), 0.5)

    def train() -> None:
        model.zero_grad()
        noise, properties = model(*given)
        sum((x**2).mean() for x in (*vars(noise).values(), *vars(properties).values())).backward()

    return {
        "noise": (torch.no_grad()(lambda: model.noise(model.encode(*given))), True),
        "training": (train, True),
        "moves": (torch.no_grad()(lambda: refiner(state)), True),
        "elements": (torch.no_grad()(lambda: elements(hidden, kinds, told)), True),
        "all pairs": (torch.no_grad()(lambda: full(*everywhere)), False),
    }


def measure(size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return by name the fastest seconds of each work, and how many times as fast the loops are."""
    timed: dict[str, dict[str, list[float]]] = {}
    parts = works(size)
    for repeat in range(repeats + 1):
        for name, (work, has_loops) in parts.items():
            for way in ("loops", "operations") if has_loops else ("operations",):
                with by_operations() if way == "operations" else contextlib.nullcontext():
                    for _ in range(CALLS):
                        started = time.process_time()
                        work()
                        if repeat:  # the first time loops are compiled
                            timed.setdefault(name, {}).setdefault(way, []).append(time.process_time() - started)
    found = {}
    for name, ways in timed.items():
        fastest = {way: min(seconds) for way, seconds in ways.items()}
        found[name] = {f"{way}_seconds": round(value, 5) for way, value in fastest.items()}
        if len(fastest) > 1:
            found[name]["speed_up"] = round(fastest["operations"] / fastest["loops"], 2)
    found["noise"]["of_all_pairs"] = round(found["noise"]["loops_seconds"] / found["all pairs"]["operations_seconds"], 2)
    work, training = parts["training"][0], found["training"]
    products = {way: _matrix_products(work, way) for way in ("loops", "operations")}
    for way in products:
        training[f"{way}_gflops"] = round(products["operations"] / training[f"{way}_seconds"] / 1e9, 1)
    training["share_executed"] = round(products["loops"] / products["operations"], 2)
    return found


def _matrix_products(work: Callable[[], Any], way: str) -> int:
    """Return how many floating-point operations the matrix products of work take."""
    with by_operations() if way == "operations" else contextlib.nullcontext(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--output", type=Path, default=TABLE)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    table: dict[str, Any] = {"machine": machine(), "commit": git_commit(), "repeats": chosen.repeats, "sheets": SHEETS, "sizes": {}}
    for size in SIZES:
        rows = table["sizes"][str(size)] = measure(size, chosen.repeats)
        for name, row in rows.items():
            print(f"{size} atoms, {name}: " + ", ".join(f"{key} {value}" for key, value in row.items()))
    write_json(chosen.output, table)


if __name__ == "__main__":
    main()
