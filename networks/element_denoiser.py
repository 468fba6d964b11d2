"""Network that says which elements belong on the atoms of an arrangement, where some of them are not yet known.

It sees the arrangement at one size, so that lengths tell little of the elements, those elements that are known, and properties that
the sheet shall have. It is invariant under every symmetry of the arrangement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from networks.sheet_trunk import NUM_ELEMENTS, SheetState, SheetTrunk, TrunkConfig

BOND_ANGSTROM = 2.5  # mean sum of covalent radii of the bonds, to which every arrangement is scaled
UNKNOWN = 0  # "atomic number" of an atom whose element is not known


@dataclass(frozen=True)
class ElementDenoiserConfig(TrunkConfig):
    """Size of an ``ElementDenoiser``. conditions: names of the properties that it is told."""

    conditions: tuple[str, ...] = ()


class ElementDenoiser(SheetTrunk):
    """See the module.

    Each condition has a learned null token, for "not told".

    Args:
        config: sizes and conditions.
        descriptors: (119, D) of the elements; row 0 is zero.
    """

    def __init__(self, config: ElementDenoiserConfig, descriptors: torch.Tensor) -> None:
        super().__init__(config, descriptors, torch.full((NUM_ELEMENTS,), BOND_ANGSTROM / 2))
        c, count = config.channels, len(config.conditions)
        self.register_buffer("condition_mean", torch.zeros(count))
        self.register_buffer("condition_std", torch.ones(count))
        self.condition = nn.ModuleList(nn.Sequential(nn.Linear(2, c), nn.SiLU(), nn.Linear(c, c)) for _ in range(count))
        self.null = nn.Parameter(0.1 * torch.randn(count, c))
        self.logits = nn.Sequential(nn.Linear(2 * c, c), nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(c, NUM_ELEMENTS))

    def forward(self, state: SheetState, kinds: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        """Return logits of the elements of each kind of atoms, (B, K, 119).

        Args:
            state: arrangements of B sheets at the bond length ``BOND_ANGSTROM``; unknown elements are ``UNKNOWN``.
            kinds: (B, N) number of the kind of each atom; atoms of one kind have one element. K is the largest number plus one.
            conditions: (B, C) in their own units, NaN for "not told".
        """
        told = self._tell(conditions)
        owner = torch.nonzero(state.mask)[:, 0]
        scalars, _, _ = self.encode(state, told[owner])
        count, most = len(kinds), int(kinds.max()) + 1
        place = owner * most + kinds[state.mask]
        sums = scalars.new_zeros(count * most, scalars.shape[1]).index_add(0, place, scalars)
        atoms = torch.bincount(place, minlength=count * most).clamp(min=1)
        of_kind = (sums / atoms[:, None]).view(count, most, -1)
        return self.logits(torch.cat([of_kind, told[:, None].expand(-1, most, -1)], -1))

    def _tell(self, conditions: torch.Tensor) -> torch.Tensor:
        """Return (B, C) what the network is told of conditions (B, n)."""
        known = torch.isfinite(conditions)
        scaled = torch.nan_to_num((conditions - self.condition_mean) / self.condition_std)
        features = torch.stack([scaled, torch.tanh(2 * scaled)], -1)
        parts = [torch.where(known[:, k, None], embed(features[:, k]), self.null[k]) for k, embed in enumerate(self.condition)]
        return torch.stack(parts).sum(0) if parts else scaled.new_zeros(len(conditions), self.config.channels)
