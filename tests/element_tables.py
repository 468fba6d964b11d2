"""Tables of sheets, and a network that looks its answer up, for tests of the diffusion of elements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from crystals.elements import covalent_radius_table
from crystals.substitution import squared_distances
from generation.element_training import ElementTable, elements_of_kinds
from generation.refinement import padded
from generation.refiner_training import PairTable
from geo_utils import Sheet
from networks.sheet_trunk import NUM_ELEMENTS, SheetState

HEXAGON = np.array([[1.0, 0.0], [-0.5, math.sqrt(3) / 2]])


def mx2(metal: int, anion: int, a: float = 3.18) -> Sheet:
    """Return a 2H sheet."""
    frac = np.array([[0.0, 0.0], [1 / 3, 2 / 3], [1 / 3, 2 / 3]])
    return Sheet(np.array([metal, anion, anion]), frac, np.array([0.0, 1.56, -1.56]), a * HEXAGON)


def flat_ab(first: int, second: int, bond: float = 1.45) -> Sheet:
    """Return a flat sheet like that of h-BN."""
    frac = np.array([[1 / 3, 2 / 3], [2 / 3, 1 / 3]])
    return Sheet(np.array([first, second]), frac, np.zeros(2), math.sqrt(3) * bond * HEXAGON)


def table_of(
    sheets: Sequence[Sheet], arrangement: Sequence[int], training: Sequence[bool], conditions: torch.Tensor
) -> ElementTable:
    """Return a table of sheets whose atoms stand in the order of their arrangements."""
    state, nothing = padded(sheets), torch.zeros(len(sheets))
    formulas = [tuple(sorted(sheet.atomic_numbers.tolist())) for sheet in sheets]
    pairs = PairTable(
        atomic_numbers=state.atomic_numbers,
        frac_coords=state.frac_coords,
        heights=state.heights,
        cell=state.cell,
        sizes=state.mask.sum(1),
        arrangement=torch.tensor(arrangement),
        formula=torch.tensor([sorted(set(formulas)).index(formula) for formula in formulas]),
        training=torch.tensor(training),
        e_form=nothing,
        e_hull=nothing,
        synth=nothing,
        distances=torch.as_tensor(squared_distances()).float(),
        radii=covalent_radius_table().float(),
    )
    return ElementTable.of(pairs, conditions)


def chosen(*elements: int) -> torch.Tensor:
    """Return (119,) bool that is true for some elements."""
    allowed = torch.zeros(NUM_ELEMENTS, dtype=torch.bool)
    allowed[list(elements)] = True
    return allowed


def chain(count: int, kinds: Sequence[int]) -> tuple[SheetState, torch.Tensor]:
    """Return equal sheets of one atom for each entry of ``kinds``, without elements, and the kinds (B, N)."""
    atoms = len(kinds)
    frac = torch.arange(atoms)[:, None].expand(-1, 2) / atoms
    parts = (torch.zeros(atoms, dtype=torch.long), frac, torch.zeros(atoms), 4.0 * torch.eye(2), torch.ones(atoms).bool())
    return SheetState(*(x.expand(count, *x.shape).clone() for x in parts)), torch.tensor(kinds).expand(count, -1).clone()


class LookupNetwork(nn.Module):
    """Gives each of K kinds logits that depend on the elements seen on each kind, and on one condition where it is told."""

    def __init__(self, kinds: int, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.base = torch.randn(kinds, NUM_ELEMENTS, generator=g)
        self.of_seen = torch.randn(kinds, kinds, NUM_ELEMENTS, NUM_ELEMENTS, generator=g)
        self.of_condition = torch.randn(kinds, NUM_ELEMENTS, generator=g)

    def answer(self, kind: int, shown: Sequence[int], condition: float) -> torch.Tensor:
        """Return the logits (119,) of one kind where ``shown`` is the element of each kind, 0 where it is hidden."""
        seen = torch.stack([self.of_seen[kind, k, element] for k, element in enumerate(shown)]).sum(0)
        told = torch.zeros(NUM_ELEMENTS) if math.isnan(condition) else condition * self.of_condition[kind]
        return self.base[kind] + seen + told

    def forward(self, state: SheetState, kinds: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        shown = elements_of_kinds(state.atomic_numbers, kinds, state.mask)
        count = torch.arange(shown.shape[1])
        seen = self.of_seen[count[:, None], count, shown[:, None]].sum(2)  # (B, K, 119)
        return self.base + seen + torch.nan_to_num(conditions)[:, :1, None] * self.of_condition


def log_p_of_order(
    network: LookupNetwork, order: Sequence[int], elements: Sequence[int], allowed: Sequence[int], condition: float, w: float = 1.0
) -> float:
    """Return log p of the elements of the kinds where they are drawn in an order, by the definition, one after the other."""
    shown, total = [0] * len(elements), 0.0
    for kind in order:
        untold, told = (network.answer(kind, shown, c).double() for c in (math.nan, condition))
        logits = untold + w * (told - untold)
        free = [z for z in allowed if z not in shown]
        total += float(logits[elements[kind]] - torch.logsumexp(logits[free], 0))
        shown[kind] = elements[kind]
    return total


def exact_distribution(
    network: LookupNetwork, kinds: int, allowed: Sequence[int], condition: float, w: float = 1.0
) -> dict[tuple[int, ...], float]:
    """Return the probability of each outcome, the mean over the orders."""
    orders = list(itertools.permutations(range(kinds)))
    return {
        elements: sum(math.exp(log_p_of_order(network, order, elements, allowed, condition, w)) for order in orders) / len(orders)
        for elements in itertools.permutations(allowed, kinds)
    }
