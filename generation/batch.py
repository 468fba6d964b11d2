"""A batch of sheets, and the noise and properties that a network estimates for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass
class NoiseEstimate:
    """Estimated noise of a batch of noised sheets."""

    frac: torch.Tensor  # (A, 2) score of the fractional coordinates over its root mean square, zero mean per sheet
    height: torch.Tensor  # (A,) ε of the scaled heights, zero mean per sheet
    lattice: torch.Tensor  # (B, 3) ε of the scaled S


@dataclass
class PropertyEstimate:
    """Predicted properties of a batch of sheets."""

    delta_g: torch.Tensor  # (B,) ΔG_H, eV
    e_hull: torch.Tensor  # (B,) eV/atom
    synth_logit: torch.Tensor  # (B,) P_synth = sigmoid(synth_logit)


@dataclass
class SheetBatch:
    """B sheets with A atoms in all, and their labels, nan where unknown."""

    atomic_numbers: torch.Tensor  # (A,)
    frac_coords: torch.Tensor  # (A, 2) in the plane
    heights: torch.Tensor  # (A,) Å
    lattice_vector: torch.Tensor  # (B, 3) S11, S22, S12 of S = ½ log(L Lᵀ)
    batch: torch.Tensor  # (A,) sheet of each atom, sorted
    num_atoms: torch.Tensor  # (B,)
    delta_g: torch.Tensor | None = None  # (B,) ΔG_H, eV
    e_hull: torch.Tensor | None = None  # (B,) eV/atom
    synth: torch.Tensor | None = None  # (B,) 0 or 1

    @property
    def num_graphs(self) -> int:
        """Return the number of sheets."""
        return self.num_atoms.shape[0]

    def to(self, device: str | torch.device) -> SheetBatch:
        """Return the batch on a device."""
        return SheetBatch(**{name: value if value is None else value.to(device) for name, value in vars(self).items()})


class Denoiser(Protocol):
    """Interface of a network for the loss and the sampler; ``models.DenoisingEGNN`` implements it.

    ``encode`` reads noised sheets; ``noise`` and ``properties`` take what it returns.
    """

    schedule: Any  # the noise schedule that the network was trained with
    label_std: torch.Tensor  # (2,) spread of ΔG_H (eV) and E_hull (eV/atom) in its training set

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
