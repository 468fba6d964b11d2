"""Diffusion of the elements: an arrangement of atoms, and which elements go on it, with classifier-free guidance.

An arrangement is drawn first, by how many crystals of allowed elements have it. Under guidance its weight is

    p(arrangement) [p(arrangement | properties) / p(arrangement)]^w

with the conditional probability from the properties of its crystals (Nadaraya 1964, Watson 1964). All elements are hidden then. The
reverse process reveals those of one kind of atoms after the other, in a random order, each drawn from what the network expects of
it (``generation/element_training.py`` has the forward process and the loss). The guided logits are

    l = l_untold + w (l_told − l_untold)

Elements that are not allowed, and those that another kind has already, have no probability. Sheets of one arrangement that are
alike so far, as all are at first, are asked about once.
"""

from __future__ import annotations

import math

import torch

from generation.element_training import HIDDEN_LOGIT, ElementTable, seen
from generation.mean_arrangements import LEAST_CRYSTALS, MeanArrangements
from networks.element_denoiser import UNKNOWN, ElementDenoiser
from networks.sheet_trunk import NUM_ELEMENTS, SheetState

MEAN_CRYSTALS = 2.0  # that every arrangement has beside its own, so that a few crystals do not say everything of it


def arrangement_weights(
    arrangements: MeanArrangements,
    conditions: torch.Tensor,
    widths: torch.Tensor,
    cfg_scale: float,
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the weight (P,) with which each arrangement is drawn, in float64; that of all is not one.

    A crystal is as asked for by a Gaussian of its properties around the conditions; by a property of it that is not known as much
    as the mean crystal is. The mean over the crystals of an arrangement, ``MEAN_CRYSTALS`` mean ones more, is
    p(properties | arrangement), and Bayes' rule does the rest. That its elements are allowed is a property as well, which has no w.

    Args:
        arrangements: P of them.
        conditions: (n,) properties that the sheets shall have, NaN where it is all the same.
        widths: (n,) standard deviations of the Gaussians.
        cfg_scale: w; 0 draws arrangements by the number of their crystals, 1 by the conditional distribution itself.
        allowed: (119,) bool, the elements that sheets may have; None: all.
    """
    told = ~conditions.isnan() & arrangements.known.any(0)
    known = arrangements.known[:, told]
    log_near = -0.5 * ((arrangements.properties[:, told].double() - conditions[told]) / widths[told]) ** 2
    log_mean = torch.logsumexp(log_near.masked_fill(~known, -torch.inf), 0) - torch.log(known.sum(0))
    log_near = torch.where(known, log_near, log_mean).sum(1)
    near = torch.exp(log_near - log_near.max())  # its scale does not matter, and what is far from all crystals is no zero
    weight = arrangements.crystals * _over_mean(arrangements, near) ** cfg_scale
    if allowed is None or not (possible := arrangements.made_of(allowed)).any():
        return weight
    return weight * _over_mean(arrangements, possible.double())


def _over_mean(arrangements: MeanArrangements, of_crystals: torch.Tensor) -> torch.Tensor:
    """Return the mean (P,) of a value of the crystals (C,) over those of each arrangement, divided by that over all crystals."""
    mean, count = of_crystals.mean(), arrangements.crystals.double()
    total = torch.zeros_like(count).index_add(0, arrangements.owner, of_crystals)
    return (total + MEAN_CRYSTALS * mean) / (count + MEAN_CRYSTALS) / mean


def arrangement_gain(table: ElementTable, arrangements: MeanArrangements, widths: torch.Tensor) -> float:
    """Return the mean of log p(arrangement | properties) / p(arrangement) of held-out crystals, in nats; 0 is what numbers say.

    Args:
        table: whose validation sheets are asked about, as far as their arrangement is among these.
        arrangements: ``element_training.arrangements_of`` the table.
        widths: as in ``arrangement_weights``.
    """
    pairs = table.pairs
    counts = pairs.first[1:] - pairs.first[:-1]
    number = torch.full_like(counts, -1)
    number[counts >= LEAST_CRYSTALS] = torch.arange(len(arrangements))
    rows = torch.nonzero(~pairs.training & (number[pairs.arrangement] >= 0)).flatten()
    gains = []
    for row in rows.tolist():
        weights = [arrangement_weights(arrangements, table.conditions[row], widths, w) for w in (1.0, 0.0)]
        own = [float(weight[number[pairs.arrangement[row]]] / weight.sum()) for weight in weights]
        gains.append(math.log(own[0] / own[1]))
    return sum(gains) / len(gains) if gains else math.nan


@torch.no_grad()
def draw_elements(
    network: ElementDenoiser,
    arrangements: SheetState,
    kinds: torch.Tensor,
    conditions: torch.Tensor,
    cfg_scale: float,
    allowed: torch.Tensor,
    generator: torch.Generator,
    last: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the elements of B arrangements: the reverse process.

    Most of the time goes into the states before the last step, of which hardly two are alike. Several elements drawn there give as
    many sheets, which differ in one kind of atoms.

    Args:
        network: the trained network.
        arrangements: at the bond length ``BOND_ANGSTROM``; their elements are not read.
        kinds: (B, N) number of the kind of each atom.
        conditions: (n,) properties that the sheets shall have, NaN where it is all the same.
        cfg_scale: w; 0 tells the network nothing, 1 is the conditional distribution itself.
        allowed: (119,) bool.
        generator: on the CPU.
        last: number of different elements that are drawn for the kind that is revealed last; so many have to be left.

    Returns:
        (atomic numbers (B·last, N), 0 where no atom is, those of one arrangement together; log of the probability of each of them
        (B·last,), guided).
    """
    count, most = len(kinds), int(kinds.max()) + 1
    number = (kinds * arrangements.mask).amax(1) + 1
    exists = torch.arange(most)[None] < number[:, None]
    elements, hidden = torch.zeros(count, most, dtype=torch.long), exists.clone()
    order = torch.rand(count, most, generator=generator).masked_fill(~exists, 2.0).argsort(1)
    total, finals = torch.zeros(count, last), torch.zeros(count, last, dtype=torch.long)
    for step in range(most):
        rows = torch.nonzero(step < number).flatten()
        place = order[rows, step]
        given = _of(arrangements, rows), kinds[rows], elements[rows], hidden[rows], place
        probability = expected_elements(network, *given, conditions, cfg_scale, allowed)
        drawn = torch.multinomial(probability, last, generator=generator)
        is_last = (step + 1 == number[rows])[:, None]
        finals[rows], drawn = drawn, drawn.where(is_last, drawn[:, :1])
        elements[rows, place], hidden[rows, place] = drawn[:, 0], False
        total[rows] += torch.log(probability.gather(1, drawn)).to(total.dtype)
    elements, ends = elements.repeat_interleave(last, 0), order.gather(1, number[:, None] - 1).repeat_interleave(last, 0)
    elements.scatter_(1, ends, finals.view(-1, 1))
    kinds, mask = (x.repeat_interleave(last, 0) for x in (kinds, arrangements.mask))
    return elements.gather(1, kinds) * mask, total.flatten()


def expected_elements(
    network: ElementDenoiser,
    arrangements: SheetState,
    kinds: torch.Tensor,
    elements: torch.Tensor,
    hidden: torch.Tensor,
    place: torch.Tensor,
    conditions: torch.Tensor,
    cfg_scale: float,
    allowed: torch.Tensor,
) -> torch.Tensor:
    """Return the guided probability of each element (B, 119) for one kind of atoms of B sheets: a step of the reverse process.

    Args:
        network: the trained network.
        arrangements: at the bond length ``BOND_ANGSTROM``.
        kinds: (B, N) number of the kind of each atom.
        elements: (B, K) of each kind, 0 where it is hidden or there is none. What another kind has is not drawn again.
        hidden: (B, K) bool.
        place: (B,) the kind, one of those hidden.
        conditions, cfg_scale, allowed: as of ``draw_elements``.
    """
    state = seen(arrangements, kinds, elements, hidden)
    first, same = _different(state, kinds)
    told = conditions.expand(len(first), -1)
    logits = guided_logits(network, _of(state, first), kinds[first], told, torch.full_like(told, torch.nan), cfg_scale)[same]
    own = logits[torch.arange(len(kinds)), place].double()
    barred = torch.zeros(len(kinds), NUM_ELEMENTS, dtype=torch.bool).scatter(1, elements, True) | ~allowed
    barred[:, UNKNOWN] = True
    return torch.softmax(own.masked_fill(barred, HIDDEN_LOGIT), -1)


@torch.no_grad()
def redraw_elements(
    network: ElementDenoiser,
    arrangements: SheetState,
    kinds: torch.Tensor,
    elements: torch.Tensor,
    place: torch.Tensor,
    conditions: torch.Tensor,
    cfg_scale: float,
    allowed: torch.Tensor,
    generator: torch.Generator,
    draws: int,
) -> torch.Tensor:
    """Hide one kind of atoms of B sheets again, and draw it anew: the forward process by one step, and the reverse process.

    Args:
        elements: (B, K) of each kind, 0 where there is none.
        place: (B,) the kind that is hidden.
        draws: number of different elements that are drawn for it, none of them what it was; so many have to be allowed.
        network, arrangements, kinds, conditions, cfg_scale, allowed, generator: as of ``draw_elements``.

    Returns:
        Atomic numbers (B·draws, N), 0 where no atom is, those of one sheet together.
    """
    rows = torch.arange(len(kinds))
    hidden = torch.zeros_like(elements, dtype=torch.bool)
    hidden[rows, place] = True
    given = arrangements, kinds, elements.masked_fill(hidden, 0), hidden, place
    probability = expected_elements(network, *given, conditions, cfg_scale, allowed)
    probability[rows, elements[rows, place]] = 0.0
    drawn = torch.multinomial(probability, draws, generator=generator).flatten()
    elements, place, kinds, mask = (x.repeat_interleave(draws, 0) for x in (elements, place, kinds, arrangements.mask))
    return elements.scatter(1, place[:, None], drawn[:, None]).gather(1, kinds) * mask


def guided_logits(
    network: ElementDenoiser,
    state: SheetState,
    kinds: torch.Tensor,
    told: torch.Tensor,
    nothing: torch.Tensor,
    cfg_scale: float,
) -> torch.Tensor:
    """Return the logits (B, K, 119) under classifier-free guidance; told, nothing: conditions (B, n)."""
    if cfg_scale == 0:
        return network(state, kinds, nothing)
    with_conditions = network(state, kinds, told)
    if cfg_scale == 1:
        return with_conditions
    without = network(state, kinds, nothing)
    return without + cfg_scale * (with_conditions - without)


def _different(state: SheetState, kinds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of one sheet of each of D different ones (D,), and which of these each of B sheets is (B,)."""
    parts = [kinds, *vars(state).values()]
    _, same = torch.unique(torch.cat([x.reshape(len(kinds), -1).double() for x in parts], 1), dim=0, return_inverse=True)
    number = torch.arange(len(kinds))
    first = torch.zeros(int(same.max()) + 1, dtype=torch.long).scatter_reduce(0, same, number, "amin", include_self=False)
    return first, same


def _of(state: SheetState, rows: torch.Tensor) -> SheetState:
    """Return the sheets of the given numbers (B,)."""
    return SheetState(*(x[rows] for x in vars(state).values()))
