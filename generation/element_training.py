"""Training task of the denoiser of elements: arrangements of atoms, some of whose elements are hidden, and the loss.

The forward process hides the elements of some kinds of atoms ("absorbing" diffusion; Austin et al., NeurIPS 2021). In continuous
time the loss is that of a model that reads the kinds in any order (Hoogeboom et al., ICLR 2022):

    L = K E_n [ 1/n Σ_hidden −log p(element | arrangement, elements that are seen, conditions) ],  n = 1..K hidden kinds

The arrangement is that of another crystal, at one size and with noise, so that lengths tell little of the elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from generation.mean_arrangements import LEAST_CRYSTALS, MeanArrangements, mean_arrangements
from generation.refiner_training import PairTable, bond_ratio
from generation.seeds import seeded_generator
from geo_utils import inverse_2x2
from networks.element_denoiser import BOND_ANGSTROM, UNKNOWN, ElementDenoiser
from networks.refiner import symmetric_exp
from networks.sheet_trunk import SheetState
from pipeline.errors import StageError
from pipeline.settings import ElementTrainingConfig

TRIES = 8  # crystals of an arrangement that are drawn to find one of another formula
NOISE = (0.06, 0.3)  # bond lengths of noise of the atoms at most: with a crystal of another formula, and without one
STRAIN_NOISE = 0.15  # strain for each bond length of noise
NOT_TOLD = (0.15, 0.35)  # shares of the sheets that are told nothing, and of the properties that are left out of the others
VALIDATION_ORDERS = 2  # states of each validation sheet
HIDDEN_LOGIT = -1e9
PRIOR_CRYSTALS = 5.0


@dataclass
class ElementTable:
    """Sheets with the kinds of their atoms and what the network is told of them.

    pairs: the sheets (M). kinds: (M, W) number of the kind of each atom. conditions: (M, n), NaN where unknown.
    """

    pairs: PairTable
    kinds: torch.Tensor
    conditions: torch.Tensor

    @classmethod
    def of(cls, pairs: PairTable, conditions: torch.Tensor) -> ElementTable:
        """Return the table of some pairs; atoms of one element are of one kind, numbered by first appearance."""
        numbers = pairs.atomic_numbers
        same = numbers[:, :, None] == numbers[:, None]
        first = same.int().argmax(2)  # the first atom with the same element
        founds = first == torch.arange(numbers.shape[1])
        kinds = (founds.cumsum(1) - 1).gather(1, first)
        inside = torch.arange(numbers.shape[1])[None] < pairs.sizes[:, None]
        return cls(pairs, kinds.where(inside, torch.zeros_like(kinds)), conditions)

    def to(self, device: torch.device) -> ElementTable:
        """Return the table on a device."""
        return ElementTable(self.pairs.to(device), self.kinds.to(device), self.conditions.to(device))


@dataclass
class HiddenElements:
    """B arrangements some of whose elements are hidden.

    state: without the hidden elements. kinds: (B, N). elements: (B, K) of each kind, ``UNKNOWN`` beyond its number of kinds.
    hidden: (B, K) bool. conditions: (B, n).
    """

    state: SheetState
    kinds: torch.Tensor
    elements: torch.Tensor
    hidden: torch.Tensor
    conditions: torch.Tensor


def arrangements_of(table: ElementTable) -> MeanArrangements:
    """Return the mean of the crystals of every arrangement that ``LEAST_CRYSTALS`` or more training crystals have."""
    pairs, members, kinds, elements, properties = table.pairs, [], [], [], []
    mask = torch.arange(table.kinds.shape[1])[None] < pairs.sizes[:, None]
    of_kinds = elements_of_kinds(pairs.atomic_numbers, table.kinds, mask)
    counts = pairs.first[1:] - pairs.first[:-1]
    for number in torch.nonzero(counts >= LEAST_CRYSTALS).flatten().tolist():
        rows = pairs.members[pairs.first[number] : pairs.first[number + 1]]
        members.append(at_bond_length(pairs.state(rows), pairs.radii))
        kinds.append(table.kinds[rows[0], : pairs.sizes[rows[0]]])
        elements.append(of_kinds[rows])
        properties.append(table.conditions[rows])
    return mean_arrangements(members, kinds, elements, properties)


def validation_rows(pairs: PairTable) -> torch.Tensor:
    """Return the numbers of the validation sheets whose elements the training sheets have: no network can tell of others.

    Raises:
        StageError: there are none.
    """
    known = torch.isin(pairs.atomic_numbers, pairs.atomic_numbers[pairs.training].unique()) | (pairs.atomic_numbers == UNKNOWN)
    rows = torch.nonzero(~pairs.training & known.all(1)).flatten()
    if not len(rows):
        raise StageError("no sheet of the validation split has an arrangement and elements of the training split")
    return rows


def frequency_loss(table: ElementTable) -> float:
    """Return the loss of the ``validation_rows``, in nats a sheet, by frequencies: what a network has to beat.

    Each kind of an arrangement has the elements that it has in training crystals, ``PRIOR_CRYSTALS`` more having those of all.
    """
    pairs = table.pairs
    mask = torch.arange(table.kinds.shape[1])[None] < pairs.sizes[:, None]
    elements = elements_of_kinds(pairs.atomic_numbers, table.kinds, mask)
    exists, size = elements != UNKNOWN, pairs.radii.shape[0]
    everywhere = torch.bincount(elements[pairs.training][exists[pairs.training]], minlength=size).double()
    everywhere = (everywhere + 1e-3) / (everywhere + 1e-3).sum()
    total, rows = [], validation_rows(pairs)
    for row in rows.tolist():
        number = pairs.arrangement[row]
        own = elements[pairs.members[pairs.first[number] : pairs.first[number + 1]]]
        for kind in torch.nonzero(exists[row]).flatten().tolist():
            share = torch.bincount(own[:, kind], minlength=size) + PRIOR_CRYSTALS * everywhere
            total.append(-torch.log(share[elements[row, kind]] / share.sum()))
    return float(torch.stack(total).sum() / len(rows))


def at_bond_length(state: SheetState, radii: torch.Tensor) -> SheetState:
    """Return sheets without their elements, scaled so that bonds as long as the sum of covalent radii are ``BOND_ANGSTROM`` long.

    How much longer or shorter than that the bonds of a crystal are is left: the mean sum of radii over the bonds is the unit.
    """
    sizes = radii.clone()
    sizes[UNKNOWN] = BOND_ANGSTROM / 2
    nothing = torch.full_like(state.atomic_numbers, UNKNOWN)
    scale = bond_ratio(state, nothing, sizes)
    return SheetState(nothing, state.frac_coords, state.heights * scale[:, None], state.cell * scale[:, None, None], state.mask)


def with_noise(state: SheetState, most: torch.Tensor, generator: torch.Generator) -> SheetState:
    """Return sheets with Gaussian noise of at most ``most`` (B,) bond lengths on the atoms, and of the cell."""
    device, (count, width) = state.cell.device, state.mask.shape
    normal = lambda *shape: torch.randn(*shape, generator=generator, device=device)  # noqa: E731
    amplitude = most * torch.rand(count, generator=generator, device=device)
    strain = STRAIN_NOISE * amplitude[:, None, None] * normal(count, 2, 2)
    cell = state.cell @ symmetric_exp(0.5 * (strain + strain.transpose(1, 2)))
    shift = BOND_ANGSTROM * amplitude[:, None, None] * normal(count, width, 3) * state.mask[..., None]
    frac = state.frac_coords + shift[..., :2] @ inverse_2x2(cell)
    return SheetState(state.atomic_numbers, frac, state.heights + shift[..., 2], cell, state.mask)


def elements_of_kinds(numbers: torch.Tensor, kinds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the element of each kind, (B, K), ``UNKNOWN`` beyond the kinds of a sheet; arguments (B, N)."""
    most = int(kinds.max()) + 1
    return numbers.new_full((len(numbers), most), UNKNOWN).scatter_reduce(1, kinds, numbers * mask, "amax")


def hide(
    state: SheetState, kinds: torch.Tensor, elements: torch.Tensor, conditions: torch.Tensor, generator: torch.Generator
) -> HiddenElements:
    """Hide the elements of n of the K kinds of each sheet, n drawn from 1..K and the kinds at random: the forward process."""
    exists = elements != UNKNOWN
    order = torch.rand(elements.shape, generator=generator, device=elements.device).masked_fill(~exists, 2.0).argsort(1).argsort(1)
    share = torch.rand(len(elements), generator=generator, device=elements.device)
    number = 1 + (share * exists.sum(1)).long().clamp(max=elements.shape[1] - 1)
    hidden = (order < number[:, None]) & exists
    return HiddenElements(seen(state, kinds, elements, hidden), kinds, elements, hidden, conditions)


def seen(state: SheetState, kinds: torch.Tensor, elements: torch.Tensor, hidden: torch.Tensor) -> SheetState:
    """Return the state with the elements (B, K) on its atoms, but for the hidden (B, K) ones."""
    shown = elements.masked_fill(hidden, UNKNOWN)
    numbers = shown.gather(1, kinds) * state.mask
    return SheetState(numbers, state.frac_coords, state.heights, state.cell, state.mask)


def log_probabilities(logits: torch.Tensor, elements: torch.Tensor, hidden: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Return log p of the elements, (B, K, 119): none but those allowed (119,), and none that another kind has already."""
    known = torch.zeros(logits.shape[0], logits.shape[2], dtype=torch.bool, device=logits.device)
    known = known.scatter(1, elements.masked_fill(hidden, UNKNOWN), True)
    barred = known[:, None] | ~allowed
    barred = barred.clone()
    barred[..., UNKNOWN] = True
    return torch.log_softmax(logits.masked_fill(barred, HIDDEN_LOGIT), -1)


def loss_of(model: ElementDenoiser, batch: HiddenElements, allowed: torch.Tensor) -> torch.Tensor:
    """Return the loss of each sheet of a batch, (B,), in nats: an upper bound of −log p of all its elements."""
    logits = model(batch.state, batch.kinds, batch.conditions)
    log_p = log_probabilities(logits, batch.elements, batch.hidden, allowed)
    nll = -log_p.gather(2, batch.elements[..., None])[..., 0]
    number = (batch.elements != UNKNOWN).sum(1)
    return number * (nll * batch.hidden).sum(1) / batch.hidden.sum(1)


class ElementTask:
    """Task of the training loop.

    Args:
        settings: of the training.
        table: sheets of the training and the validation split.
        seed: of the batches.
        device: of the network.
    """

    def __init__(self, settings: ElementTrainingConfig, table: ElementTable, seed: int, device: torch.device) -> None:
        self.settings, self.seed, self.device, self.table = settings, seed, device, table.to(device)
        pairs = self.table.pairs
        self._training = torch.nonzero(pairs.training).flatten()
        self._validation = validation_rows(pairs)
        self.allowed = torch.zeros(pairs.radii.shape[0], dtype=torch.bool, device=device)
        self.allowed[pairs.atomic_numbers[self._training].unique()] = True
        self.allowed[UNKNOWN] = False

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation (n,) of the conditions of the training sheets."""
        known = self.table.conditions[self._training]
        mean = known.nanmean(0)
        return mean, torch.sqrt(((known - mean) ** 2).nanmean(0)).clamp(min=1e-3)

    def _generator(self, *key: int) -> torch.Generator:
        seed = seeded_generator("elements", self.seed, *key).initial_seed()
        return torch.Generator(device=self.device).manual_seed(seed)

    def hidden(self, rows: torch.Tensor, conditions: torch.Tensor, generator: torch.Generator) -> HiddenElements:
        """Return states of the sheets of the given numbers (B,)."""
        pairs = self.table.pairs
        every = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        relatives, found = pairs.relatives(rows, every, TRIES, generator)
        state = at_bond_length(pairs.state(torch.where(found, relatives, rows)), pairs.radii)
        state = with_noise(state, torch.where(found, NOISE[0], NOISE[1]), generator)
        kinds = self.table.kinds[rows][:, : state.mask.shape[1]]
        elements = elements_of_kinds(pairs.atomic_numbers[rows][:, : state.mask.shape[1]], kinds, state.mask)
        return hide(state, kinds, elements, conditions, generator)

    def batch(self, step: int) -> HiddenElements:
        """Return the states of a step. Some sheets are told nothing, and the others a part of their properties."""
        generator, count = self._generator(2, step), self.settings.batch_size
        place = torch.randint(len(self._training), (count,), generator=generator, device=self.device)
        rows = self._training[place]
        conditions = self.table.conditions[rows]
        draw = lambda *shape: torch.rand(*shape, generator=generator, device=self.device)  # noqa: E731
        left_out = (draw(*conditions.shape) < NOT_TOLD[1]) | (draw(count, 1) < NOT_TOLD[0])
        return self.hidden(rows, conditions.masked_fill(left_out, torch.nan), generator)

    def loss(self, model: ElementDenoiser, batch: HiddenElements) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a batch, in nats a sheet, and the same as a number."""
        total = loss_of(model, batch, self.allowed).mean()
        return total, {"total": float(total.detach())}

    @torch.no_grad()
    def evaluate(self, model: ElementDenoiser, step: int, sums: dict[str, float], steps: int) -> tuple[dict[str, Any], float]:
        """Return a row of the history, and the validation loss where the properties are told."""
        row: dict[str, Any] = {"step": step, "train_total": sums.get("total", 0.0) / max(steps, 1)}
        for name, told in (("told", True), ("not_told", False)):
            losses = []
            for order in range(VALIDATION_ORDERS):
                for number, rows in enumerate(self._validation.split(512)):
                    conditions = self.table.conditions[rows]
                    conditions = conditions if told else torch.full_like(conditions, torch.nan)
                    batch = self.hidden(rows, conditions, self._generator(3, order, number))
                    losses.append(loss_of(model, batch, self.allowed))
            row[f"val_{name}"] = float(torch.cat(losses).mean())
        return row, row["val_told"]

    def not_finite(self, step: int, names: list[str], resume: str) -> str:
        """Return the message of a step without a finite loss."""
        return (
            f"training stopped at step {step + 1}: the loss or its gradient is not finite; the state before it is in {resume}; "
            "lower elements.learning_rate"
        )
