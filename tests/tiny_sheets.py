"""Random sheets, their noise schedule, and a data set of tiny sheets with the settings of a training on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from generation import sheet_table
from generation.batch import SheetBatch
from generation.schedule import NoiseSchedule
from generation.sheet_table import SheetTable
from geo_utils import lattice_to_vector
from networks.graph import center
from pipeline.provenance import write_sidecar
from pipeline.settings import Config

TINY = {
    "hidden_channels": 16,
    "vector_channels": 4,
    "num_layers": 1,
    "num_rbf": 8,
    "max_neighbors": 8,
    "num_timesteps": 40,
    "beta_end": 0.3,
    "batch_size": 8,
    "warmup_steps": 2,
    "max_steps": 6,
    "eval_every": 2,
}


def write_split(path: Path, count: int, seed: int) -> None:
    """Write a split of hexagonal sheets of 1-3 atoms, a third of them without labels."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, count)
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    lattice = np.stack([np.array([[1.0, 0.0], [-0.5, 0.866]]) * rng.uniform(2.5, 4.0) for _ in range(count)])
    heights = np.concatenate([h - h.mean() for h in (rng.normal(size=n) for n in sizes)])
    labels = {name: rng.normal(size=count) for name in ("delta_g_h", "e_hull")}
    labels["y_synth"] = rng.integers(0, 2, count).astype(float)
    for values in labels.values():
        values[::3] = np.nan
    content = (
        sheet_table.pack([], {})
        | {
            "atomic_numbers": torch.tensor(rng.choice([6, 16, 42], ptr[-1])),
            "frac_coords": torch.tensor(rng.random((ptr[-1], 2)), dtype=torch.float32),
            "heights": torch.tensor(heights, dtype=torch.float32),
            "ptr": torch.tensor(ptr),
            "lattice": torch.tensor(lattice, dtype=torch.float32),
            "formula": [f"F{k}" for k in range(count)],
            "uid": [f"u{k}" for k in range(count)],
        }
        | {name: torch.tensor(values, dtype=torch.float32) for name, values in labels.items()}
    )
    torch.save(content, path)


def tiny_config(folder: Path) -> Config:
    """Write the three splits below a folder and return settings that train a tiny denoiser on them."""
    processed = folder / "processed"
    processed.mkdir()
    for seed, (name, count) in enumerate({"train": 40, "val": 12, "test": 12}.items()):
        write_split(processed / f"{name}.pt", count, seed)
        write_sidecar(processed / f"{name}.pt", stage=sheet_table.DATASET_STAGE, seed=0, settings={})
    base = Config()
    return dataclasses.replace(
        base,
        run=dataclasses.replace(base.run, device="cpu", threads=1),
        dataset=dataclasses.replace(base.dataset, processed_dir=str(processed)),
        denoiser=dataclasses.replace(base.denoiser, checkpoint=str(folder / "out" / "denoiser.pth"), **TINY),
    )


def table_of(cfg: Config, name: str = "train") -> SheetTable:
    """Return the sheets of one split."""
    return SheetTable.load(Path(cfg.dataset.processed_dir) / f"{name}.pt")


def make_schedule(num_timesteps: int = 200) -> NoiseSchedule:
    """Return a schedule whose ᾱ ends at the same value whatever its number of times."""
    return NoiseSchedule(num_timesteps, 1e-4, 0.02 * 1000 / num_timesteps, 0.01, 0.5)


def random_sheets(count: int = 40) -> SheetBatch:
    """Return unlabelled random sheets of 1-8 atoms in float64."""
    g = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 9, (count,), generator=g)
    batch = torch.repeat_interleave(torch.arange(count), sizes)
    atoms = len(batch)
    numbers = torch.tensor([6, 16, 42, 52])[torch.randint(0, 4, (atoms,), generator=g)]
    area = sizes.double().sqrt()[:, None, None] * 2.0
    cell = area * (torch.eye(2, dtype=torch.float64) + 0.15 * torch.randn(count, 2, 2, generator=g, dtype=torch.float64))
    heights = center(torch.randn(atoms, generator=g, dtype=torch.float64) * 1.4, batch, count)
    frac = torch.rand(atoms, 2, generator=g, dtype=torch.float64)
    return SheetBatch(numbers, frac, heights, lattice_to_vector(cell), batch, sizes)
