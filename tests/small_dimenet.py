"""A small DimeNet++ and a structure to try it on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from ase import Atoms
from ase.build import mx2

from energetics.hydrogen import batch_atoms
from models import DimeNetPlusPlus
from networks.dimenet_layers import DimeNetPlusPlusConfig


def sheet_with_h() -> Atoms:
    """Return a rattled 2H-MoS2 cell with H above one S: no symmetry that could hide an error."""
    atoms = mx2("MoS2", "2H", a=3.18, thickness=3.13, size=(2, 1, 1), vacuum=8.0)
    atoms.pbc = (True, True, False)
    atoms.rattle(0.1, seed=1)
    top = int(np.argmax(atoms.positions[:, 2]))
    atoms.append("H")
    atoms.positions[-1] = atoms.positions[top] + [0.2, 0.1, 1.4]
    atoms.set_tags([1, 0, 1, 1, 0, 1, 2])
    return atoms


def make_model(readout: str = "adsorbate", **changes) -> DimeNetPlusPlus:
    """Return a narrow untrained network in float64; changes: further fields of its settings."""
    torch.manual_seed(0)
    settings = replace(DimeNetPlusPlusConfig.preset("small"), hidden_channels=16, out_emb_channels=16, int_emb_size=8)
    return DimeNetPlusPlus(replace(settings, readout=readout, **changes)).double().eval()


@torch.no_grad()
def energy(model: DimeNetPlusPlus, *structures: Atoms) -> np.ndarray:
    """Return the energy of each structure, (B,)."""
    return model(*batch_atoms(structures, torch.float64, "cpu")).numpy()
