"""Training of the denoiser of elements: the forward process, the loss against enumerated probabilities, batches, and learning."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from element_tables import LookupNetwork, chain, chosen, flat_ab, log_p_of_order, mx2, table_of
from torch import nn

from crystals.elements import covalent_radius_table, element_descriptors
from generation import element_training
from generation.element_diffusion import draw_elements
from generation.element_training import (
    NOT_TOLD,
    ElementTable,
    ElementTask,
    HiddenElements,
    arrangements_of,
    at_bond_length,
    frequency_loss,
    hide,
    log_probabilities,
    loss_of,
)
from generation.refinement import padded
from generation.refiner_training import bond_ratio, learning_rate
from networks.element_denoiser import BOND_ANGSTROM, UNKNOWN, ElementDenoiser, ElementDenoiserConfig
from networks.sheet_trunk import NUM_ELEMENTS, SheetState
from pipeline.settings import ElementTrainingConfig

GROUPS = {0.0: ((42, 74), (16, 34)), 1.0: ((22, 40), (8, 52))}  # condition: elements of the metal, and of the anion
CPU = torch.device("cpu")


class Fixed(nn.Module):
    """Gives the same logits whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, state: SheetState, kinds: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(kinds), int(kinds.max()) + 1, -1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hidden_of(elements: list[int], hidden: list[bool]) -> HiddenElements:
    """One sheet with an atom for each element."""
    state, kinds = chain(1, range(len(elements)))
    numbers, mask = torch.tensor([elements]), torch.tensor([hidden])
    return HiddenElements(element_training.seen(state, kinds, numbers, mask), kinds, numbers, mask, torch.zeros(1, 1))


def two_groups() -> ElementTable:
    """2H sheets: one property decides of which elements they are. The other is known of none but the first four."""
    rows = [(metal, anion, told) for told, sites in GROUPS.items() for metal, anion in itertools.product(*sites)]
    conditions = torch.tensor([[told, math.nan] for _, _, told in rows] * 12)
    conditions[:4, 1] = torch.tensor([1.0, 2.0, 3.0, 6.0])
    sheets = [mx2(metal, anion) for metal, anion, _ in rows]
    return table_of(sheets * 12, [0] * 96, [True] * 32 + [False] * 64, conditions)


def test_every_number_of_hidden_kinds_is_as_frequent_and_every_choice_of_them():
    count, most = 6000, 4
    state, _ = chain(count, range(6))
    kinds = torch.tensor([[0, 1, 2, 3, 3, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).repeat(count // 3, 1)
    state.mask[1::3, 4:] = False
    elements = torch.tensor([[5, 6, 7, 8], [16, 42, 0, 0], [6, 0, 0, 0]]).repeat(count // 3, 1)
    found = hide(state, kinds, elements, torch.zeros(count, 1), generator())
    for first, number in enumerate((4, 2, 1)):
        hidden = found.hidden[first::3]
        assert not hidden[:, number:].any() and hidden.any(1).all()
        patterns, times = torch.unique(hidden[:, :number], dim=0, return_counts=True)
        for pattern, seen in zip(patterns.tolist(), times.tolist(), strict=True):
            share = 1 / number / math.comb(number, sum(pattern))
            bound = 4 * math.sqrt(len(hidden) * share * (1 - share))
            assert abs(seen - len(hidden) * share) <= bound, pattern
        assert len(patterns) == 2**number - 1 and number <= most
    expected = torch.where(found.hidden, UNKNOWN, elements).gather(1, kinds)
    assert (found.state.atomic_numbers[state.mask] == expected[state.mask]).all()
    assert (found.state.atomic_numbers[~state.mask] == UNKNOWN).all() and (~state.mask).any()


def test_probabilities_are_of_elements_that_are_allowed_and_not_taken():
    logits = 3 * torch.randn(2, 3, NUM_ELEMENTS, generator=generator())
    logits[..., UNKNOWN] = 50.0
    elements = torch.tensor([[5, 6, 7], [16, 42, 0]])
    hidden = torch.tensor([[True, False, True], [False, True, False]])
    allowed = chosen(5, 6, 7, 16, 42)
    found = log_probabilities(logits, elements, hidden, allowed)
    assert torch.allclose(found.exp().sum(-1), torch.ones(2, 3))
    for row, free in enumerate(([5, 7, 16, 42], [5, 6, 7, 42])):
        others = [z for z in range(NUM_ELEMENTS) if z not in free]
        assert found[row].exp()[:, others].max() == 0
        assert torch.allclose(found[row][:, free], torch.log_softmax(logits[row][:, free], -1), atol=1e-5)


def test_the_loss_of_a_network_that_knows_nothing_is_counted_by_hand():
    uniform, allowed = Fixed(torch.zeros(1, NUM_ELEMENTS)), chosen(*range(3, 13))  # ten elements
    loss = lambda elements, hidden: float(loss_of(uniform, hidden_of(elements, hidden), allowed))  # noqa: E731
    assert loss([5], [True]) == pytest.approx(math.log(10))
    assert loss([5, 6], [True, True]) == pytest.approx(2 * math.log(10))
    assert loss([5, 6], [True, False]) == pytest.approx(2 * math.log(9)), "the one that is seen is not to be had"
    assert loss([5, 6, 7], [False, True, True]) == pytest.approx(3 * math.log(9))
    true = torch.full((2, NUM_ELEMENTS), -40.0)
    true[0, 5], true[1, 6] = 40.0, 40.0
    for hidden in ([True, True], [True, False], [False, True]):
        assert abs(float(loss_of(Fixed(true), hidden_of([5, 6], hidden), allowed))) < 1e-5


def test_the_loss_does_not_depend_on_the_width_of_the_batch():
    base, allowed = LookupNetwork(4).base, chosen(5, 6, 7, 8)
    wide, short = hidden_of([5, 6, 7, 8], [True] * 4), hidden_of([6, 8], [True, False])
    state, kinds = chain(1, [0, 1, 0, 0])
    state.mask[0, 2:] = False
    numbers, hidden = torch.tensor([[6, 8, 0, 0]]), torch.tensor([[True, False, False, False]])
    long = HiddenElements(element_training.seen(state, kinds, numbers, hidden), kinds, numbers, hidden, torch.zeros(1, 1))
    parts = [torch.cat([getattr(x, name) for x in (wide, long)]) for name in ("kinds", "elements", "hidden", "conditions")]
    joined = SheetState(*(torch.cat([a, b]) for a, b in zip(vars(wide.state).values(), vars(long.state).values(), strict=True)))
    for network in (Fixed(base), Fixed(3 * base)):
        alone = [float(loss_of(Fixed(network.logits[: x.elements.shape[1]]), x, allowed)) for x in (wide, short)]
        assert loss_of(network, HiddenElements(joined, *parts), allowed).tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("elements", [(6, 8), (7, 5, 8)])
def test_the_expected_loss_is_that_of_all_orders(elements):
    """−log p of the elements, drawn one after the other, in the mean over the orders, by enumeration."""
    count, allowed, kinds = 8000, (5, 6, 7, 8), len(elements)
    network = LookupNetwork(kinds)
    orders = list(itertools.permutations(range(kinds)))
    exact = -sum(log_p_of_order(network, order, elements, allowed, 0.7) for order in orders) / len(orders)
    state, numbers = chain(count, range(kinds))
    batch = hide(state, numbers, torch.tensor(elements).expand(count, -1), torch.full((count, 1), 0.7), generator(3))
    loss = loss_of(network, batch, chosen(*allowed)).double()
    assert loss.std() > 0.1
    assert abs(float(loss.mean()) - exact) < 4 * float(loss.std()) / math.sqrt(count)


def test_kinds_are_numbered_as_they_appear():
    first = mx2(42, 16)
    janus = mx2(42, 16)
    janus.atomic_numbers[2] = 34
    swapped = mx2(42, 16)
    swapped.atomic_numbers[:] = [16, 42, 16]
    table = table_of([first, janus, swapped, flat_ab(5, 7)], [0, 1, 2, 3], [True] * 4, torch.zeros(4, 1))
    assert table.kinds.tolist() == [[0, 1, 1], [0, 1, 2], [0, 1, 0], [0, 1, 0]]
    mask = torch.arange(3)[None] < table.pairs.sizes[:, None]
    elements = element_training.elements_of_kinds(table.pairs.atomic_numbers, table.kinds, mask)
    assert elements.tolist() == [[42, 16, 0], [42, 16, 34], [16, 42, 0], [5, 7, 0]]


def test_lengths_in_units_of_the_covalent_radii_say_nothing_of_the_elements():
    radii = covalent_radius_table().double()
    bonds = float(radii[5] + radii[7])
    flat = at_bond_length(padded([flat_ab(5, 7, bonds), flat_ab(5, 7, 1.1 * bonds)], torch.float64), radii)
    length = [float(torch.linalg.norm(cell[0]) / math.sqrt(3)) for cell in flat.cell]
    assert length == pytest.approx([BOND_ANGSTROM, 1.1 * BOND_ANGSTROM]), "what is left is how long the bonds are for the elements"
    assert (flat.atomic_numbers == UNKNOWN).all()
    first = padded([mx2(42, 16)], torch.float64)
    numbers = torch.tensor([[74, 52, 52]])
    ratio = bond_ratio(first, numbers, radii)
    other = SheetState(numbers, first.frac_coords, first.heights * ratio, first.cell * ratio, first.mask)
    assert ratio > 1.1
    before, after = (vars(at_bond_length(state, radii)) for state in (first, other))
    assert all(torch.allclose(before[name].double(), after[name].double(), atol=1e-9) for name in before)


def test_noise_moves_atoms_and_cell_but_not_the_padding():
    sheets = padded([mx2(42, 16), flat_ab(5, 7)] * 500, torch.float64)
    most = torch.tensor([0.0, 0.3]).repeat(500).double()
    state = element_training.with_noise(sheets, most, generator())
    moved = (state.heights - sheets.heights).abs()
    assert moved[::2].max() == 0 and torch.allclose(state.cell[::2], sheets.cell[::2]) and moved[1::2, 2:].max() == 0
    amplitude = float((moved[1::2, :2] ** 2).mean().sqrt())
    assert amplitude == pytest.approx(0.3 * BOND_ANGSTROM / math.sqrt(3), rel=0.15), "a uniform share of the largest"


def small_task(**settings) -> ElementTask:
    return ElementTask(
        ElementTrainingConfig(**({"batch_size": 64, "max_steps": 150, "warmup_steps": 10} | settings)), two_groups(), 5, CPU
    )


def test_batches_are_functions_of_seed_and_step():
    task = small_task()
    flat = lambda batch: torch.cat([x.double().flatten() for x in (batch.state.cell, batch.elements, batch.hidden)])  # noqa: E731
    task.batch(3)
    first, again, other = flat(task.batch(7)), flat(small_task().batch(7)), flat(task.batch(8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, flat(ElementTask(task.settings, two_groups(), 6, CPU).batch(7)))


def test_sheets_of_the_validation_split_are_never_in_a_batch():
    table = two_groups()
    table.pairs.training[:] = torch.tensor([k % 8 != 5 for k in range(96)])  # one formula is of the validation split alone
    table.pairs.__post_init__()
    task = ElementTask(small_task().settings, table, 5, CPU)
    left_out = table.pairs.atomic_numbers[5].tolist()
    found = {tuple(row) for step in range(20) for row in task.batch(step).elements.tolist()}
    assert len(found) == 7 and tuple(left_out[:2]) not in found
    asked = []
    rows_of = task.hidden
    task.hidden = lambda rows, *others: asked.append(rows) or rows_of(rows, *others)
    for step in range(20):
        task.batch(step)
    assert set(torch.cat(asked).tolist()) == {k for k in range(96) if k % 8 != 5}
    assert torch.nonzero(task.allowed).flatten().tolist() == [8, 16, 22, 34, 40, 42, 52, 74]


def test_a_part_of_the_properties_is_left_out():
    table = two_groups()
    table.conditions[:, 1] = 1.0
    task = ElementTask(small_task(batch_size=4000).settings, table, 5, CPU)
    known = ~task.batch(0).conditions.isnan()
    told = (1 - NOT_TOLD[0]) * (1 - NOT_TOLD[1])
    assert abs(float(known.float().mean()) - told) < 0.03
    assert abs(float(known.all(1).float().mean()) - told * (1 - NOT_TOLD[1])) < 0.03


def test_moments_leave_out_what_is_not_known():
    mean, std = small_task().moments()
    assert mean.tolist() == pytest.approx([0.5, 3.0])
    assert std.tolist() == pytest.approx([0.5, np.std([1.0, 2.0, 3.0, 6.0])])


def test_the_rate_warms_up_and_falls():
    rates = [
        learning_rate(step, ElementTrainingConfig(max_steps=100, warmup_steps=10, learning_rate=1.0)) for step in range(1, 101)
    ]
    assert int(np.argmax(rates)) == 9 and np.all(np.diff(rates[9:]) < 0) and rates[-1] == pytest.approx(0.015)


def test_frequencies_by_hand():
    sheets = [flat_ab(5, 7), flat_ab(5, 7), flat_ab(5, 15), flat_ab(13, 7), flat_ab(5, 7)]
    loss = frequency_loss(table_of(sheets, [0] * 5, [True] * 4 + [False], torch.zeros(5, 1)))
    share = (3 + 5 * 3.001 / 8.119) / 9  # B and N are 3 of 4 at their site and 3 of 8 everywhere; no element is impossible
    assert loss == pytest.approx(-2 * math.log(share), rel=1e-4)


def trained(task: ElementTask) -> ElementDenoiser:
    """A small network after the steps of a task."""
    torch.manual_seed(0)
    sizes = {"channels": 24, "vectors": 4, "tensors": 4, "layers": 1, "neighbours": 12, "rbf": 8, "dropout": 0.0}
    network = ElementDenoiser(ElementDenoiserConfig(**sizes, conditions=("kind", "other")), element_descriptors().float())
    network.condition_mean, network.condition_std = task.moments()
    optimiser = torch.optim.AdamW(network.parameters(), lr=task.settings.learning_rate)
    rate = partial(learning_rate, settings=task.settings)
    for step in range(task.settings.max_steps):
        optimiser.param_groups[0]["lr"] = rate(step + 1)
        loss, numbers = task.loss(network, task.batch(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert numbers["total"] == float(loss.detach())
    return network.eval()


def test_a_network_learns_which_elements_a_property_asks_for():
    task = small_task(learning_rate=0.02)
    network = trained(task)
    row, loss = task.evaluate(network, 150, {"total": 30.0}, 10)
    assert row["train_total"] == 3.0 and loss == row["val_told"]
    assert row["val_told"] == pytest.approx(math.log(4), abs=0.2), "two metals and two anions are left"
    assert row["val_not_told"] == pytest.approx(math.log(8), abs=0.25)
    assert row["val_not_told"] < frequency_loss(task.table)
    assert task.evaluate(network, 150, {}, 0)[0]["val_told"] == loss, "the states of the validation are always the same"
    arrangements, count = arrangements_of(task.table), 200
    assert len(arrangements) == 1 and int(arrangements.crystals[0]) == 32
    state, kinds = arrangements.state(torch.zeros(count).long()), arrangements.kinds[:1].expand(count, -1)
    groups = {(metal, anion): told for told, sites in GROUPS.items() for metal, anion in itertools.product(*sites)}
    for told in (0.0, 1.0, math.nan):
        asked = torch.tensor([told, math.nan])
        numbers, _ = draw_elements(network, state, kinds, asked, 1.0, task.allowed, generator(1))
        assert (numbers[:, 1] == numbers[:, 2]).all()
        found = [groups.get(tuple(pair)) for pair in numbers[:, :2].tolist()]
        shares = [found.count(x) / count for x in (0.0, 1.0)]
        assert sum(shares) > 0.85, "metal and anion are of one group, told or not"
        if math.isnan(told):
            assert min(shares) > 0.25
        else:
            assert shares[int(told)] > 0.85
