"""Arrangements of atoms without elements: each the mean of the crystals of a training set that have it, at one bond length.

They say where atoms may sit, and no more: the diffusion of elements (``generation/element_diffusion.py``) fills them, and the
refiner moves atoms and cell to where these elements want them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from ase.data import covalent_radii

from crystals.symmetry import Template
from geo_utils import Sheet, lattice_to_vector, vector_to_lattice
from networks.element_denoiser import BOND_ANGSTROM, UNKNOWN
from networks.sheet_trunk import SheetState

LEAST_CRYSTALS = 3  # of which an arrangement is the mean; it is that of no single one
DIGITS = 2  # of the properties, of which a tenth matters
MEAN_SYMPREC = 0.05  # Å, within which a mean shows the symmetry of its crystals
LETTERS = "ABCDE"  # of the kinds of atoms, in names


@dataclass
class MeanArrangements:
    """P arrangements of at most W atoms at the bond length ``BOND_ANGSTROM``.

    Attributes:
        kinds: (P, W) number of the kind of each atom; atoms of one kind have one element.
        frac_coords: (P, W, 2).
        heights: (P, W) Å, with a mean of zero.
        cell: (P, 2, 2) Å.
        sizes: (P,) atoms of each.
        crystals: (P,) how many crystals have it.
        layer_group: (P,) its number.
        owner: (C,) the arrangement of each of these crystals.
        elements: (C, K) atomic numbers of the kinds of atoms of each of these crystals, 0 beyond them; those of an arrangement are
            sorted, so that they do not tell which of them has which properties.
        properties: (C, n) what each is, in the order of ``generation.elements.CONDITIONS``, rounded to ``DIGITS``, 0 where that
            is not known.
        known: (C, n) bool.
    """

    kinds: torch.Tensor
    frac_coords: torch.Tensor
    heights: torch.Tensor
    cell: torch.Tensor
    sizes: torch.Tensor
    crystals: torch.Tensor
    layer_group: torch.Tensor
    owner: torch.Tensor
    elements: torch.Tensor
    properties: torch.Tensor
    known: torch.Tensor

    def __len__(self) -> int:
        return len(self.sizes)

    def state(self, rows: torch.Tensor) -> SheetState:
        """Return the arrangements of the given numbers (B,) as a batch without elements."""
        width = int(self.sizes[rows].max())
        mask = torch.arange(width)[None] < self.sizes[rows][:, None]
        numbers = torch.full(mask.shape, UNKNOWN)
        return SheetState(numbers, self.frac_coords[rows, :width], self.heights[rows, :width], self.cell[rows], mask)

    def rows_of_at_most(self, most_atoms: int) -> torch.Tensor:
        """Return the numbers of the arrangements with so few atoms; layer group 1, no symmetry, is none of them."""
        return torch.nonzero((self.sizes <= most_atoms) & (self.layer_group > 1)).flatten()

    def made_of(self, allowed: torch.Tensor) -> torch.Tensor:
        """Return which rows of ``elements`` are made of allowed elements (119,) alone, (C,) bool."""
        return (allowed[self.elements.long()] | (self.elements == UNKNOWN)).all(1)

    def name(self, row: int) -> str:
        """Return a name for people, such as "A2B, layer group 78, arrangement 12"."""
        amounts = torch.bincount(self.kinds[row, : self.sizes[row]]).tolist()
        formula = "".join(letter + (str(n) if n > 1 else "") for letter, n in zip(LETTERS, amounts, strict=False))
        return f"{formula}, layer group {int(self.layer_group[row])}, arrangement {row}"

    @staticmethod
    def row(name: str) -> int:
        """Return the number of the arrangement that ``name`` calls so."""
        return int(name.rsplit(" ", 1)[1])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return plain tensors for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def mean_arrangements(
    members: Sequence[SheetState],
    kinds: Sequence[torch.Tensor],
    elements: Sequence[torch.Tensor],
    properties: Sequence[torch.Tensor],
) -> MeanArrangements:
    """Return the mean of each of some groups of sheets.

    Args:
        members: for each group, its sheets in the same order and basis, at the bond length ``BOND_ANGSTROM``.
        kinds: for each group, (N,) number of the kind of each atom.
        elements: for each group, (sheets, K) atomic number of each kind, the K of all groups the same, 0 beyond their kinds.
        properties: for each group, (sheets, n) what its sheets are, NaN where that is not known.
    """
    width = max(len(own) for own in kinds)
    pad = lambda x: torch.cat([x, x.new_zeros(width - len(x), *x.shape[1:])])  # noqa: E731
    every = torch.cat(list(properties))
    of_crystals = {
        "owner": torch.repeat_interleave(torch.arange(len(members)), torch.tensor([len(own) for own in properties])).int(),
        "elements": torch.tensor([row for own in elements for row in sorted(own.tolist())], dtype=torch.uint8),
        "properties": torch.nan_to_num(every).round(decimals=DIGITS).half(),
        "known": every.isfinite(),
    }
    columns: dict[str, list[torch.Tensor]] = {field.name: [] for field in fields(MeanArrangements) if field.name not in of_crystals}
    for group, own in zip(members, kinds, strict=True):
        shift = group.frac_coords - group.frac_coords[:1]
        shift = shift - shift[:, :1]  # a common shift of half a cell would wrap atoms apart
        shift = shift - torch.round(shift)
        shift = shift - shift.mean(1, keepdim=True)
        frac = group.frac_coords[0] + shift.mean(0)
        heights = (group.heights - group.heights.mean(1, keepdim=True)).mean(0)
        cell = vector_to_lattice(lattice_to_vector(group.cell.double()).mean(0)[None])[0]
        sheet = Sheet(own.numpy() + 1, frac.double().numpy() % 1.0, heights.double().numpy(), cell.numpy())
        columns["kinds"].append(pad(own))
        columns["frac_coords"].append(pad(frac.float()))
        columns["heights"].append(pad(heights.float()))
        columns["cell"].append(cell.float())
        columns["sizes"].append(torch.tensor(len(own)))
        columns["crystals"].append(torch.tensor(len(group.mask)))
        columns["layer_group"].append(torch.tensor(Template.of(sheet, MEAN_SYMPREC).layer_group))
    return MeanArrangements(**{name: torch.stack(values) for name, values in columns.items()}, **of_crystals)


def with_elements(state: SheetState, numbers: torch.Tensor, scale: torch.Tensor) -> list[Sheet]:
    """Return arrangements (B) with elements (B, N) as sheets in the standard setting.

    scale: (B,) by which lengths grow (``refiner_training.bond_ratio``).
    """
    sheets = []
    for k, size in enumerate(state.mask.sum(1).tolist()):
        frac, heights, cell = (x[k].double().numpy() for x in (state.frac_coords[:, :size], state.heights[:, :size], state.cell))
        factor = float(scale[k])
        plain = Sheet(numbers[k, :size].numpy(), frac % 1.0, heights * factor, cell * factor)
        sheets.append(Sheet.from_atoms(plain.to_atoms()))
    return sheets


def radii_of_known_and_unknown() -> torch.Tensor:
    """Return (119,) covalent radii in Å, and half of ``BOND_ANGSTROM`` for an unknown element."""
    radii = torch.as_tensor(np.where(np.isfinite(covalent_radii[:119]), covalent_radii[:119], BOND_ANGSTROM / 2)).float()
    radii[UNKNOWN] = BOND_ANGSTROM / 2
    return radii
