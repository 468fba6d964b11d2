"""Training task of the refiner: pairs of a start and the sheet on record, states between them, loss and validation.

A start is a sheet of another formula and the same arrangement of atoms, with its elements replaced, at the size of the new ones.
The network learns the way from any state near the line between the two to the sheet on record. Part of the states are what the
network itself made of another one, so that it learns what its later steps will see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from generation.seeds import seeded_generator
from geo_utils import BOND_SCALE, inverse_2x2
from networks.refiner import Refinement, SheetRefiner, move, symmetric_exp
from networks.sheet_trunk import SheetState
from pipeline.settings import ElementTrainingConfig, RefinerTrainingConfig

NEAREST_SHARE = 0.6  # of the starts are the nearest of ``TRIES`` sheets drawn; the others are any
TRIES, VALIDATION_TRIES = 16, 48
SIZE_POWER = 0.35  # a sheet is drawn with weight n^-0.35, n the sheets of its arrangement
RECYCLED = 1 / 3  # share of a batch that the network moves once before it learns from it
NOISY = 0.35  # share of the states with Gaussian noise
WAYS = (0.45, 0.8)  # shares of the states at the start, and between start and record; the others are up to 2.2 beyond
STRAIN_NOISE = 0.2  # strain per Å of noise of the atoms
SHIFT_KNEE, STRAIN_KNEE = 0.03, 0.005  # Å and strain where the Huber norms become linear
STRAIN_WEIGHT = 6.0  # Å
SYNTH_WEIGHT = 0.1
MOST_LOSS = 6.0  # Å, of one sheet: alignments that are wrong must not lead


@dataclass
class PairTable:
    """M sheets of at most W atoms, in the order and basis of their arrangements (``crystals/arrangements.py``).

    Attributes:
        atomic_numbers: (M, W), 0 beyond the atoms of a sheet.
        frac_coords: (M, W, 2).
        heights: (M, W) Å.
        cell: (M, 2, 2) Å.
        sizes: (M,) atoms of each.
        arrangement: (M,) its number.
        formula: (M,) a number for each formula.
        training: (M,) whether a sheet is of the training split; only those are starts.
        e_form, e_hull, synth: (M,) eV/atom, eV/atom and 0 or 1; NaN where unknown.
        distances: (119, 119) squared chemical distances of the elements.
        radii: (119,) covalent radii, Å.
    """

    atomic_numbers: torch.Tensor
    frac_coords: torch.Tensor
    heights: torch.Tensor
    cell: torch.Tensor
    sizes: torch.Tensor
    arrangement: torch.Tensor
    formula: torch.Tensor
    training: torch.Tensor
    e_form: torch.Tensor
    e_hull: torch.Tensor
    synth: torch.Tensor
    distances: torch.Tensor
    radii: torch.Tensor

    def __post_init__(self) -> None:
        """List the training sheets by arrangement: ``members`` (T,), of arrangement a from ``first[a]`` to ``first[a + 1]``."""
        own = torch.nonzero(self.training).flatten()
        self.members = own[torch.argsort(self.arrangement[own], stable=True)]
        counts = torch.bincount(self.arrangement[own], minlength=int(self.arrangement.max()) + 1)
        self.first = torch.cat([counts.new_zeros(1), torch.cumsum(counts, 0)])

    def to(self, device: torch.device) -> PairTable:
        """Return the table on a device."""
        return PairTable(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def state(self, rows: torch.Tensor) -> SheetState:
        """Return the sheets of the given numbers (B,)."""
        width = int(self.sizes[rows].max())
        mask = torch.arange(width, device=rows.device)[None] < self.sizes[rows][:, None]
        parts = (self.atomic_numbers, self.frac_coords, self.heights)
        return SheetState(*(part[rows, :width] for part in parts), self.cell[rows], mask)

    def relatives(
        self, rows: torch.Tensor, nearest: torch.Tensor, tries: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a training sheet of the same arrangement and another formula for each of some sheets.

        Args:
            rows: (B,) numbers of the sheets.
            nearest: (B,) bool, whether the nearest by chemical distance of those drawn is taken, or any.
            tries: how many are drawn.
            generator: on the device of the table.

        Returns:
            (relatives, found): (B,) numbers, and (B,) bool, whether there is one; the number of another sheet where not.
        """
        group = self.arrangement[rows]
        share = torch.rand(len(rows), tries, generator=generator, device=rows.device)
        place = self.first[group][:, None] + (share * (self.first[group + 1] - self.first[group])[:, None]).long()
        drawn = self.members[place.clamp(max=len(self.members) - 1)]
        numbers = self.atomic_numbers[rows][:, None].expand(-1, tries, -1)
        mean = self.distances[self.atomic_numbers[drawn], numbers].sum(-1) / self.sizes[rows][:, None]
        order = torch.where(nearest[:, None], mean, torch.rand(mean.shape, generator=generator, device=rows.device))
        own = self.formula[drawn] == self.formula[rows][:, None]
        best = (order + 1e6 * own).argmin(1, keepdim=True)
        return drawn.gather(1, best)[:, 0], ~own.gather(1, best)[:, 0]

    def starts(self, relatives: torch.Tensor, rows: torch.Tensor) -> SheetState:
        """Return sheets (B,) with the elements of others (B,) of the same arrangement, at the size of these elements."""
        state, numbers = self.state(relatives), self.state(rows).atomic_numbers
        scale = bond_ratio(state, numbers, self.radii)
        return SheetState(numbers, state.frac_coords, state.heights * scale[:, None], state.cell * scale[:, None, None], state.mask)


def bond_ratio(state: SheetState, numbers: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """Return (B,) the mean sum of covalent radii over the bonds with other elements (B, W), divided by that with the own ones.

    Bonded are two atoms nearer than ``BOND_SCALE`` times the sum of their radii, and each atom with its nearest.
    """
    steps = torch.arange(-1, 2, device=state.cell.device, dtype=state.cell.dtype)
    delta = state.frac_coords[:, None] - state.frac_coords[:, :, None]
    delta = (delta - torch.round(delta))[:, :, :, None] + torch.cartesian_prod(steps, steps)
    squared = (torch.einsum("bijsc,bcd->bijsd", delta, state.cell) ** 2).sum(-1)
    distance = torch.sqrt(squared + ((state.heights[:, None] - state.heights[:, :, None]) ** 2)[..., None])
    sums = [(radii[z][:, None] + radii[z][:, :, None])[..., None] for z in (state.atomic_numbers, numbers)]
    pair = (state.mask[:, None] & state.mask[:, :, None])[..., None] & (distance > 1e-2)
    ratio = torch.where(pair, distance / sums[0], torch.inf)
    nearest = ratio.flatten(2).amin(-1)[:, :, None, None]
    bonds = pair & ((ratio < BOND_SCALE) | (ratio <= nearest + 1e-3))
    old, new = ((bonds * x).sum((1, 2, 3)) for x in sums)
    return torch.where(old > 0, new / old.clamp(min=1e-6), torch.ones_like(old))


def way(state: SheetState, goal: SheetState) -> tuple[torch.Tensor, torch.Tensor]:
    """Return displacements (B, N, 3) Å without a common shift, in the frame of the state's cell, and strain (B, 2, 2) to a goal."""
    mask = state.mask
    delta = goal.frac_coords - state.frac_coords
    for _ in range(2):  # a common shift of half a cell would wrap atoms apart
        delta = (delta - torch.round(delta)) * mask[..., None]
        delta = (delta - (delta.sum(1) / mask.sum(1)[:, None])[:, None]) * mask[..., None]
    rise = (goal.heights - state.heights) * mask
    rise = (rise - (rise.sum(1) / mask.sum(1))[:, None]) * mask
    return torch.cat([delta @ state.cell, rise[..., None]], -1), strain_between(state.cell, goal.cell)


def strain_between(cell: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """Return E (B, 2, 2), symmetric, so that L exp(E) and the goal's cell are the same but for a rotation."""
    inverse = inverse_2x2(cell)
    gram = inverse @ (goal @ goal.transpose(1, 2)) @ inverse.transpose(1, 2)
    a, b, c = gram[:, 0, 0], gram[:, 1, 1], gram[:, 0, 1]
    area = torch.sqrt((a * b - c * c).clamp(min=1e-12))
    half, off = 0.5 * (a - b) / area, c / area
    length = torch.sqrt(half**2 + off**2 + 1e-24)
    factor, mean = 0.5 * torch.asinh(length) / length, 0.5 * torch.log(area)
    rows = [torch.stack([mean + factor * half, factor * off], -1), torch.stack([factor * off, mean - factor * half], -1)]
    return torch.stack(rows, -2)


def huber(x: torch.Tensor, knee: float) -> torch.Tensor:
    """Return √(|x|² + knee²) − knee over the last axis."""
    return torch.sqrt((x**2).sum(-1) + knee**2) - knee


def between(start: SheetState, record: SheetState, paired: torch.Tensor, generator: torch.Generator) -> SheetState:
    """Draw states on the line from the record (0) to the start (1) and beyond, part of them with noise.

    Args:
        start, record: B pairs; the start of a sheet without a relative is the record itself.
        paired: (B,) bool, whether there is a relative; a state without one always has noise.
        generator: on the device of the states.
    """
    device, (count, width) = start.cell.device, start.mask.shape
    draw = lambda *shape: torch.rand(*shape, generator=generator, device=device)  # noqa: E731
    normal = lambda *shape: torch.randn(*shape, generator=generator, device=device)  # noqa: E731
    kind, share = draw(count), draw(count)
    t = torch.where(kind < WAYS[0], torch.ones_like(share), torch.where(kind < WAYS[1], share, 1 + 1.2 * share))
    noisy = ((draw(count) < NOISY) | ~paired).float()
    amplitude = noisy * (0.02 + 0.25 * draw(count) ** 2)
    mask, shift_strain = record.mask, way(record, start)
    noise = STRAIN_NOISE * amplitude[:, None, None] * normal(count, 2, 2)
    size = STRAIN_NOISE * amplitude * normal(count)
    noise = 0.5 * (noise + noise.transpose(1, 2)) + size[:, None, None] * torch.eye(2, device=device)
    cell = record.cell @ symmetric_exp(shift_strain[1] * t[:, None, None] + noise)
    shift = (shift_strain[0][..., :2] @ inverse_2x2(record.cell)) * t[:, None, None]
    shift = shift + (normal(count, width, 2) * amplitude[:, None, None]) @ inverse_2x2(cell) * mask[..., None]
    heights = record.heights + t[:, None] * shift_strain[0][..., 2] + amplitude[:, None] * normal(count, width)
    heights = (heights - ((heights * mask).sum(1) / mask.sum(1))[:, None]) * mask
    return SheetState(record.atomic_numbers, record.frac_coords + shift, heights, cell, mask)


def learning_rate(step: int, settings: RefinerTrainingConfig | ElementTrainingConfig) -> float:
    """Return the learning rate of step 1..max_steps: linear warm-up times a cosine to 1.5 % of the peak."""
    progress = 0.5 * (1 + math.cos(math.pi * min(step / settings.max_steps, 1.0)))
    return settings.learning_rate * min(step / max(settings.warmup_steps, 1), 1.0) * (0.015 + 0.985 * progress)


class RefinerTask:
    """Task of the training loop.

    Args:
        settings: of the training.
        table: sheets of the training and the validation split.
        seed: of the batches.
        device: of the network.
    """

    def __init__(self, settings: RefinerTrainingConfig, table: PairTable, seed: int, device: torch.device) -> None:
        self.settings, self.seed, self.device, self.table = settings, seed, device, table.to(device)
        table = self.table
        size = (table.first[1:] - table.first[:-1])[table.arrangement[table.members]]
        self._cumulative = torch.cumsum(size.double().clamp(min=2) ** -SIZE_POWER, 0)
        self._validation = torch.nonzero(~table.training).flatten()

    def _generator(self, *key: int) -> torch.Generator:
        seed = seeded_generator("refiner", self.seed, *key).initial_seed()
        return torch.Generator(device=self.device).manual_seed(seed)

    def batch(self, step: int) -> tuple[SheetState, SheetState, torch.Tensor]:
        """Return the states of a step, the sheets on record, and the numbers (B,) of these."""
        generator, count = self._generator(2, step), self.settings.batch_size
        share = torch.rand(count, generator=generator, device=self.device, dtype=torch.float64) * self._cumulative[-1]
        rows = self.table.members[torch.searchsorted(self._cumulative, share).clamp(max=len(self._cumulative) - 1)]
        nearest = torch.rand(count, generator=generator, device=self.device) < NEAREST_SHARE
        relatives, paired = self.table.relatives(rows, nearest, TRIES, generator)
        start, record = self.table.starts(torch.where(paired, relatives, rows), rows), self.table.state(rows)
        return between(start, record, paired, generator), record, rows

    def loss(
        self, model: SheetRefiner, batch: tuple[SheetState, SheetState, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a batch, and as numbers the loss (``total``) and its terms."""
        state, record, rows = batch
        state = recycled(model, state, round(RECYCLED * self.settings.batch_size))
        terms = loss_terms(model(state), state, record, [x[rows] for x in (self.table.e_form, self.table.e_hull, self.table.synth)])
        total = terms["shift"] + terms["strain"] + self.settings.energy_weight * (terms["energy"] + SYNTH_WEIGHT * terms["synth"])
        return total, {name: float(term.detach()) for name, term in (("total", total), *terms.items())}

    @torch.no_grad()
    def evaluate(self, model: SheetRefiner, step: int, sums: dict[str, float], steps: int) -> tuple[dict[str, Any], float]:
        """Return a row of the history and the mean distance (Å), strain counted as in the loss, after two steps."""
        row: dict[str, Any] = {"step": step} | {f"train_{name}": value / max(steps, 1) for name, value in sums.items()}
        errors: dict[str, list[torch.Tensor]] = {name: [] for name in ("start", "moved", "e_form", "e_hull")}
        for number, rows in enumerate(self._validation.split(256)):
            every = torch.ones(len(rows), dtype=torch.bool, device=self.device)
            relatives, found = self.table.relatives(rows, every, VALIDATION_TRIES, self._generator(3, number))
            if not found.any():
                continue
            rows, relatives = rows[found], relatives[found]
            state, record = self.table.starts(relatives, rows), self.table.state(rows)
            errors["start"].append(_errors(state, record))
            for _ in range(2):
                seen = model(state)
                state = move(state, seen)
            errors["moved"].append(_errors(state, record))
            for name in ("e_form", "e_hull"):
                errors[name].append((getattr(seen, name) - getattr(self.table, name)[rows]).abs())
        joined = {name: torch.cat(parts) for name, parts in errors.items()}
        for name in ("start", "moved"):
            row |= {f"{name}_angstrom": float(joined[name][:, 0].median()), f"{name}_strain": float(joined[name][:, 1].median())}
        row |= {f"mae_{name}_ev": float(joined[name].nanmean()) for name in ("e_form", "e_hull")}
        mean = joined["moved"].mean(0)
        return row, float(mean[0] + STRAIN_WEIGHT * mean[1])

    def not_finite(self, step: int, names: list[str], resume: str) -> str:
        """Return the message of a step without a finite loss."""
        bad = ", ".join(name for name in names if name != "total") or "gradient"
        return (
            f"training stopped at step {step + 1}: {bad} is not finite; the state before it is in {resume}; "
            "lower refiner.learning_rate"
        )


@torch.no_grad()
def recycled(model: SheetRefiner, state: SheetState, count: int) -> SheetState:
    """Return a batch whose last ``count`` sheets the network has moved once, without dropout."""
    if not count:
        return state
    training = model.training
    model.eval()
    last = SheetState(*(x[-count:] for x in vars(state).values()))
    moved = move(last, model(last))
    model.train(training)
    return SheetState(*(torch.cat([x[:-count], y]) for x, y in zip(vars(state).values(), vars(moved).values(), strict=True)))


def loss_terms(found: Refinement, state: SheetState, record: SheetState, labels: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the terms of the loss: ``shift``, ``strain`` (Å), ``energy`` (eV/atom) and ``synth``.

    Args:
        found: what the network says of the states.
        state: the states.
        record: the sheets on record.
        labels: e_form, e_hull and synth of these, (B,) each, NaN where unknown.
    """
    shift, strain = way(state, record)
    shift_loss = (huber(found.displacement - shift, SHIFT_KNEE) * state.mask).sum(1) / state.mask.sum(1)
    strain_loss = STRAIN_WEIGHT * huber((found.strain - strain).flatten(1), STRAIN_KNEE)
    factor = MOST_LOSS / (shift_loss + strain_loss).detach().clamp(min=MOST_LOSS)
    known = [torch.isfinite(label) for label in labels]
    filled = [torch.nan_to_num(label) for label in labels]
    mean = lambda x, where: (x * where).sum() / where.sum().clamp(min=1)  # noqa: E731
    energy = mean((found.e_form - filled[0]).abs(), known[0]) + mean((found.e_hull - filled[1]).abs(), known[1])
    synth = mean(binary_cross_entropy_with_logits(found.synth_logit, filled[2], reduction="none"), known[2])
    return {"shift": (factor * shift_loss).mean(), "strain": (factor * strain_loss).mean(), "energy": energy, "synth": synth}


def _errors(state: SheetState, record: SheetState) -> torch.Tensor:
    """Return (B, 2): root mean square distance of the atoms (Å), and the largest component of the strain."""
    shift, strain = way(state, record)
    distance = torch.sqrt((shift**2).sum((1, 2)) / state.mask.sum(1))
    return torch.stack([distance, strain.abs().amax((1, 2))], 1)
