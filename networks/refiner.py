"""Network that moves the atoms and the cell of a sheet to where its elements want them.

``SheetRefiner`` reads the displacement of an atom from the vectors of the trunk (``networks/sheet_trunk.py``), the strain of the
cell from tensors. A strain belongs to the sheet and not to a basis of its lattice, so that every choice of the cell gives the same
result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from geo_utils import inverse_2x2
from networks.sheet_trunk import SheetState, SheetTrunk, TrunkConfig

STRAIN_SCALE = 0.2
ENERGY_OFFSETS = (-0.5, 0.15)  # eV/atom, about the means of C2DB


@dataclass
class Refinement:
    """What the network says of a batch of sheets.

    Attributes:
        displacement: (B, N, 3) Å to the relaxed sheet, in the frame of the cell; its mean over the atoms is zero.
        strain: (B, 2, 2), symmetric: the relaxed cell is L exp(strain).
        e_form: (B,) heat of formation of the relaxed sheet, eV/atom.
        e_hull: (B,) eV/atom.
        synth_logit: (B,) of P_synth.
    """

    displacement: torch.Tensor
    strain: torch.Tensor
    e_form: torch.Tensor
    e_hull: torch.Tensor
    synth_logit: torch.Tensor


def symmetric_exp(strain: torch.Tensor) -> torch.Tensor:
    """Return the exponential of symmetric matrices (..., 2, 2), in closed form: exp(m) (cosh δ + sinh δ / δ (E − m))."""
    mean, half, off = (
        0.5 * (strain[..., 0, 0] + strain[..., 1, 1]),
        0.5 * (strain[..., 0, 0] - strain[..., 1, 1]),
        strain[..., 0, 1],
    )
    delta = torch.sqrt(half**2 + off**2 + 1e-24)
    cosh, sinhc = torch.cosh(delta), torch.sinh(delta) / delta
    rows = [torch.stack([cosh + sinhc * half, sinhc * off], -1), torch.stack([sinhc * off, cosh - sinhc * half], -1)]
    return torch.exp(mean)[..., None, None] * torch.stack(rows, -2)


def move(state: SheetState, refinement: Refinement) -> SheetState:
    """Return the sheets moved by displacement and strain; heights keep a mean of zero."""
    mask, shift = state.mask, refinement.displacement
    frac = state.frac_coords + (shift[..., :2] @ inverse_2x2(state.cell)) * mask[..., None]
    heights = (state.heights + shift[..., 2]) * mask
    heights = (heights - (heights.sum(1) / mask.sum(1))[:, None]) * mask
    return SheetState(state.atomic_numbers, frac, heights, state.cell @ symmetric_exp(refinement.strain), mask)


class SheetRefiner(SheetTrunk):
    """See the module; arguments as of ``SheetTrunk``."""

    def __init__(self, config: TrunkConfig, descriptors: torch.Tensor, radii: torch.Tensor) -> None:
        super().__init__(config, descriptors, radii)
        c, v, t = config.channels, config.vectors, config.tensors
        self.gates = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, v + t + 1))
        self.energy = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(c, 3))
        for head in (self.gates, self.energy):
            nn.init.normal_(head[-1].weight, std=1e-3)
            nn.init.zeros_(head[-1].bias)

    def forward(self, state: SheetState) -> Refinement:
        """Return what the network says of a batch."""
        s, v, t = self.encode(state)
        count, width = state.mask.shape
        owner = torch.nonzero(state.mask)[:, 0]
        sizes = state.mask.sum(1).to(s.dtype)[:, None]

        def mean(x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(count, x.shape[1]).index_add(0, owner, x) / sizes

        gv, gt, trace = self.gates(s).split([self.config.vectors, self.config.tensors, 1], -1)
        shift = (v * gv[:, None]).sum(-1)
        shift = shift - mean(shift)[owner]
        tensor = (t * gt[:, None]).sum(-1)
        xx, yy, xy = tensor[:, 0] + trace[:, 0], tensor[:, 1] + trace[:, 0], tensor[:, 3] / math.sqrt(2.0)
        xx, yy, xy = (STRAIN_SCALE * mean(torch.stack([xx, yy, xy], -1))).unbind(-1)
        strain = torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], -2)
        displacement = shift.new_zeros(count, width, 3)
        displacement[state.mask] = shift
        energy = mean(self.energy(s))
        e_form, e_hull = energy[:, 0] + ENERGY_OFFSETS[0], energy[:, 1] + ENERGY_OFFSETS[1]
        return Refinement(displacement, strain, e_form, e_hull, energy[:, 2])
