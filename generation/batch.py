"""A batch of sheets, and what a network says of it: noise and properties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass
class NoiseEstimate:
    """frac (A, 2): score of the fractional coordinates over its root mean square, zero mean per sheet. height (A,): ε of the scaled
    heights, zero mean per sheet. lattice (B, 3): ε of the scaled S."""

    frac: torch.Tensor
    height: torch.Tensor
    lattice: torch.Tensor


@dataclass
class PropertyEstimate:
    """(B,) each: delta_g (eV), e_hull (eV/atom), synth_logit (P_synth = sigmoid)."""

    delta_g: torch.Tensor
    e_hull: torch.Tensor
    synth_logit: torch.Tensor


@dataclass
class SheetBatch:
    """A batch of sheets. atomic_numbers (A,), frac_coords (A, 2), heights (A,) Å, lattice_vector (B, 3) = S, batch (A,) sorted,
    num_atoms (B,); labels (B,), nan where unknown: delta_g (eV), e_hull (eV/atom), synth (0 or 1)."""

    atomic_numbers: torch.Tensor
    frac_coords: torch.Tensor
    heights: torch.Tensor
    lattice_vector: torch.Tensor
    batch: torch.Tensor
    num_atoms: torch.Tensor
    delta_g: torch.Tensor | None = None
    e_hull: torch.Tensor | None = None
    synth: torch.Tensor | None = None

    @property
    def num_graphs(self) -> int:
        return self.num_atoms.shape[0]

    def to(self, device: str | torch.device) -> SheetBatch:
        return SheetBatch(**{name: value if value is None else value.to(device) for name, value in vars(self).items()})


class Denoiser(Protocol):
    """What the loss and the sampler need of a network; ``models.DenoisingEGNN`` is one.

    schedule: the noise schedule that it was trained with. label_std (2,): spread of ΔG_H (eV) and E_hull (eV/atom) in its training
    set. ``encode`` reads noised sheets; ``noise`` and ``properties`` take what it returns.
    """

    schedule: Any
    label_std: torch.Tensor

    def encode(
        self,
        atomic_numbers: torch.Tensor,
        frac_coords: torch.Tensor,
        heights: torch.Tensor,
        cell: torch.Tensor,
        batch: torch.Tensor,
        t: torch.Tensor,
    ) -> Any: ...

    def noise(self, encoded: Any, delta_g: torch.Tensor | None = None, e_hull: torch.Tensor | None = None) -> NoiseEstimate: ...

    def properties(self, encoded: Any) -> PropertyEstimate: ...

    def parameters(self) -> Any: ...

    def double(self) -> Any: ...
