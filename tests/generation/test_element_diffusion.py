"""Elements drawn by diffusion: frequencies against exact distributions of a network that looks its answers up, and guidance."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from element_tables import LookupNetwork, chain, chosen, exact_distribution, flat_ab, log_p_of_order, mx2, table_of
from scipy.stats import chisquare

from generation.element_diffusion import (
    MEAN_CRYSTALS,
    arrangement_gain,
    arrangement_weights,
    draw_elements,
    guided_logits,
    redraw_elements,
)
from generation.element_training import arrangements_of
from generation.mean_arrangements import MeanArrangements

ELEMENTS = (5, 6, 7, 8)
COUNT = 4000


def drawn(network, kinds, w=1.0, condition=0.9, count=COUNT, elements=ELEMENTS, seed=0):
    """Elements of each kind of equal sheets, and the log of their probability."""
    state, numbers = chain(count, kinds)
    generator = torch.Generator().manual_seed(seed)
    return draw_elements(network, state, numbers, torch.tensor([condition]), w, chosen(*elements), generator)


def chi_square(found: torch.Tensor, exact: dict[tuple[int, ...], float]) -> float:
    """The chance of frequencies at least as far from the exact ones."""
    rows = [tuple(row) for row in found.tolist()]
    assert set(rows) <= set(exact) and sum(exact.values()) == pytest.approx(1)
    return float(chisquare([rows.count(key) for key in exact], [len(rows) * p for p in exact.values()]).pvalue)


@pytest.mark.parametrize(("kinds", "w"), [(1, 1.0), (2, 1.0), (2, 0.0), (2, 2.5), (3, 1.0), (3, 1.5)])
def test_frequencies_are_those_of_the_exact_distribution(kinds, w):
    network = LookupNetwork(kinds, seed=1)
    elements = ELEMENTS[: 4 if kinds < 3 else 3]
    found, _ = drawn(network, range(kinds), w, elements=elements)
    assert chi_square(found, exact_distribution(network, kinds, elements, 0.9, w)) > 1e-3
    assert chi_square(found, exact_distribution(network, kinds, elements, -3.0, w)) < 1e-6 or w == 0, "the test can tell"


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_a_kind_that_is_hidden_again_gets_what_its_exact_distribution_gives(w):
    """One kind of three is hidden: the distribution is the last step of the order that ends with it, without what it was."""
    network, was, place = LookupNetwork(3, seed=2), (5, 6, 7), 1
    state, kinds = chain(COUNT, [0, 1, 1, 2])
    given = torch.tensor(was).expand(COUNT, -1), torch.full((COUNT,), place), torch.tensor([0.9]), w, chosen(*ELEMENTS, 9)
    found = redraw_elements(network, state, kinds, *given, torch.Generator().manual_seed(0), 1)
    assert (found[:, 1] == found[:, 2]).all() and (found[:, 0] == was[0]).all() and (found[:, 3] == was[2]).all()
    chances = {}
    for element in (8, 9):
        steps = [log_p_of_order(network, order, (5, element, 7), (*ELEMENTS, 9), 0.9, w) for order in ((0, 2, 1), (0, 2))]
        chances[element,] = math.exp(steps[0] - steps[1])
    total = sum(chances.values())
    assert chi_square(found[:, 1:2], {key: value / total for key, value in chances.items()}) > 1e-3
    both = redraw_elements(network, state, kinds, *given, torch.Generator().manual_seed(0), 2)
    assert len(both) == 2 * COUNT and (both.view(COUNT, 2, 4)[:, :, 1].sort(1).values == torch.tensor([8, 9])).all()


def test_elements_are_allowed_and_never_on_two_kinds():
    network = LookupNetwork(4)
    for w in (0.0, 1.0, 4.0):
        found, _ = drawn(network, [0, 1, 1, 2, 3, 0], w, count=500)
        assert set(found.flatten().tolist()) <= set(ELEMENTS)
        assert (found[:, 1] == found[:, 2]).all() and (found[:, 0] == found[:, 5]).all()
        kinds = found[:, [0, 1, 3, 4]].sort(1).values
        assert (kinds == torch.tensor(ELEMENTS)).all(), "four kinds take the four elements"


def test_atoms_that_are_not_there_have_no_element():
    state, kinds = chain(200, [0, 1, 2])
    state.mask[::2, 1:], kinds[::2, 1:] = False, 0
    generator = torch.Generator().manual_seed(0)
    found, log_p = draw_elements(LookupNetwork(3), state, kinds, torch.tensor([0.9]), 1.0, chosen(*ELEMENTS), generator)
    assert (found[~state.mask] == 0).all() and (found[state.mask] > 0).all()
    assert log_p.isfinite().all() and (log_p < 0).all()


def test_the_same_seed_draws_the_same_and_what_a_batch_shows_is_not_read():
    network = LookupNetwork(3)
    first, again, other = (drawn(network, range(3), count=300, seed=seed)[0] for seed in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)
    state, kinds = chain(300, range(3))
    state.atomic_numbers[:] = 42
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(draw_elements(network, state, kinds, torch.tensor([0.9]), 1.0, chosen(*ELEMENTS), generator)[0], first)


def test_the_probability_is_that_of_the_order_of_one_draw():
    network = LookupNetwork(2)
    found, log_p = drawn(network, range(2), 1.5, count=60)
    reached = set()
    for elements, value in zip(found.tolist(), log_p.tolist(), strict=True):
        exact = [log_p_of_order(network, order, elements, ELEMENTS, 0.9, 1.5) for order in ((0, 1), (1, 0))]
        nearest = min((0, 1), key=lambda k: abs(exact[k] - value))
        assert value == pytest.approx(exact[nearest], abs=1e-4)
        reached.add(nearest)
    assert reached == {0, 1}, "both orders occur"


def test_several_last_elements_of_a_draw_differ_in_the_kind_that_is_revealed_last():
    network = LookupNetwork(3, seed=1)
    state, kinds = chain(COUNT, range(3))
    generator = torch.Generator().manual_seed(0)
    found, log_p = draw_elements(network, state, kinds, torch.tensor([0.9]), 1.5, chosen(*ELEMENTS), generator, 2)
    first, second = found[::2], found[1::2]
    assert chi_square(first, exact_distribution(network, 3, ELEMENTS, 0.9, 1.5)) > 1e-3, "each by itself is a draw"
    different = first != second
    assert (different.sum(1) == 1).all() and different.any(0).all(), "any kind may be the last"
    for elements, value in zip(found[:40].tolist(), log_p[:40].tolist(), strict=True):
        orders = [log_p_of_order(network, order, elements, ELEMENTS, 0.9, 1.5) for order in permutations(range(3))]
        assert min(abs(exact - value) for exact in orders) < 1e-4
    state.mask[::2, 1:], kinds[::2, 1:] = False, 0
    mixed, _ = draw_elements(network, state, kinds, torch.tensor([0.9]), 1.5, chosen(*ELEMENTS), generator, 2)
    assert ((mixed[::2] != mixed[1::2]).sum(1) == 1).all(), "sheets of one kind and of three"


def test_without_guidance_nothing_is_told():
    network = LookupNetwork(2)
    untold = drawn(network, range(2), 1.0, math.nan)[0]
    for condition in (-5.0, 0.9, 40.0):
        assert torch.equal(drawn(network, range(2), 0.0, condition)[0], untold)
        assert not torch.equal(drawn(network, range(2), 1.0, condition)[0], untold)
    assert torch.equal(drawn(network, range(2), 3.0, math.nan)[0], untold), "nothing asked for, nothing to strengthen"


def test_guided_logits_are_on_the_line_from_untold_to_told():
    network = LookupNetwork(2)
    state, kinds = chain(3, range(2))
    told, nothing = torch.tensor([[0.5], [-1.0], [2.0]]), torch.full((3, 1), math.nan)
    u, c = network(state, kinds, nothing), network(state, kinds, told)
    assert (u - c).abs().amax((1, 2)).min() > 0.1
    for w in (0.0, 0.5, 1.0, 1.5, 4.0):
        assert torch.allclose(guided_logits(network, state, kinds, told, nothing, w), u + w * (c - u), atol=1e-5)
    assert torch.equal(guided_logits(network, state, kinds, told, nothing, 1.0), c)


def test_guidance_sharpens_what_a_property_asks_for():
    network = LookupNetwork(1)
    for part in (network.base, network.of_seen, network.of_condition):
        part[:] = 0.0
    network.of_condition[0, 6] = 1.0
    shares = [float((drawn(network, [0], w, 1.0)[0] == 6).float().mean()) for w in (0.0, 1.0, 2.0, 4.0)]
    exact = [math.exp(w) / (math.exp(w) + 3) for w in (0.0, 1.0, 2.0, 4.0)]
    for share, p in zip(shares, exact, strict=True):
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / COUNT)


def test_an_element_that_the_network_wants_most_is_not_drawn_where_it_is_not_allowed():
    network = LookupNetwork(2)
    network.base[:, 0] = network.base[:, 80] = 1e4
    found, log_p = drawn(network, range(2), 1.5, count=300)
    assert set(found.flatten().tolist()) <= set(ELEMENTS) and log_p.isfinite().all()


def test_sheets_that_are_alike_so_far_are_asked_about_once():
    network = LookupNetwork(2)
    asked = []

    def counting(state, kinds, conditions):
        asked.append(len(kinds))
        return network(state, kinds, conditions)

    found = drawn(counting, range(2), count=500)[0]
    assert asked[0] == 1, "none of 500 equal sheets has an element"
    assert asked[1] == 2 * len(ELEMENTS), "the first or the second kind has one of four"
    assert torch.equal(found, drawn(network, range(2), count=500)[0])
    state, kinds = chain(6, range(2))
    state.heights[3:] += 0.5 * torch.arange(2)
    asked.clear()
    draw_elements(counting, state, kinds, torch.tensor([0.9]), 1.0, chosen(*ELEMENTS), torch.Generator().manual_seed(0))
    assert asked[0] == 2, "two arrangements"


PROPERTIES = [[[0.0, 0.1], [0.4, math.nan], [-0.2, 0.3]], [[1.5, 0.0], [0.9, 0.8]], [[2.0, math.nan]] * 4]
WIDTHS = torch.tensor([0.3, 0.2])


MADE_OF = [[42, 16], [42, 34], [5, 0], [42, 16], [42, 52], [80, 16], [80, 0], [5, 0], [80, 52]]  # of the crystals of the three


def three_arrangements(properties=PROPERTIES) -> MeanArrangements:
    """Arrangements of which only properties and elements of their crystals matter."""
    every = torch.tensor([row for rows in properties for row in rows])
    counts = torch.tensor([len(rows) for rows in properties])
    nothing = torch.zeros(len(counts), 1)
    return MeanArrangements(
        kinds=nothing.long(), frac_coords=torch.zeros(len(counts), 1, 2), heights=nothing, cell=torch.zeros(len(counts), 2, 2),
        sizes=torch.ones(len(counts)).long(), crystals=counts, layer_group=torch.full((len(counts),), 78),
        owner=torch.repeat_interleave(torch.arange(len(counts)), counts).int(),
        elements=torch.tensor(MADE_OF, dtype=torch.uint8), properties=torch.nan_to_num(every).half(), known=every.isfinite(),
    )  # fmt: skip


def weights_by_hand(asked: tuple[float, float], w: float) -> list[float]:
    """The weights by Bayes' rule, a loop over the crystals and their properties."""
    gaussian = lambda x, k: math.exp(-0.5 * ((x - asked[k]) / float(WIDTHS[k])) ** 2)  # noqa: E731
    own = [[[gaussian(x, k) for k, x in enumerate(crystal)] for crystal in crystals] for crystals in PROPERTIES]
    for k in range(2):
        known = [crystal[k] for crystals in own for crystal in crystals if not math.isnan(crystal[k])]
        for crystals in own:
            for crystal in crystals:
                crystal[k] = sum(known) / len(known) if math.isnan(crystal[k]) else crystal[k]
    near = [[crystal[0] * crystal[1] for crystal in crystals] for crystals in own]
    mean = sum(map(sum, near)) / sum(map(len, near))
    likelihood = [(sum(crystals) + MEAN_CRYSTALS * mean) / (len(crystals) + MEAN_CRYSTALS) for crystals in near]
    return [len(crystals) * (p / mean) ** w for crystals, p in zip(near, likelihood, strict=True)]


@pytest.mark.parametrize("asked", [(0.0, 0.2), (1.0, 0.0), (2.2, 0.9)])
@pytest.mark.parametrize("w", [0.0, 1.0, 1.5, 3.0])
def test_weights_of_arrangements_are_those_of_bayes_rule(asked, w):
    found = arrangement_weights(three_arrangements(), torch.tensor(asked), WIDTHS, w)
    assert found.tolist() == pytest.approx(weights_by_hand(asked, w), rel=2e-2), "properties are kept in half precision"
    if w == 0:
        assert found.tolist() == [3, 2, 4], "the numbers of their crystals"


def test_arrangements_are_weighed_by_what_is_asked_for_alone():
    arrangements = three_arrangements()
    one = arrangement_weights(arrangements, torch.tensor([0.0, math.nan]), WIDTHS, 2.0)
    other = three_arrangements([[[row[0], 0.7] for row in rows] for rows in PROPERTIES])
    assert torch.equal(one, arrangement_weights(other, torch.tensor([0.0, math.nan]), WIDTHS, 2.0))
    nothing = arrangement_weights(arrangements, torch.tensor([math.nan, math.nan]), WIDTHS, 2.0)
    assert nothing.tolist() == pytest.approx([3, 2, 4])
    unknown = three_arrangements([[[row[0], math.nan] for row in rows] for rows in PROPERTIES])
    asked = arrangement_weights(unknown, torch.tensor([0.0, 0.3]), WIDTHS, 2.0)
    assert asked.tolist() == pytest.approx(one.tolist()), "what no crystal tells cannot be asked for"


@pytest.mark.parametrize("w", [0.0, 2.0])
def test_arrangements_are_drawn_as_often_as_crystals_of_allowed_elements_have_them(w):
    """Of three, two and four crystals 3, 1 and 1 are made of what is allowed: five in nine. Two mean crystals stand beside each."""
    arrangements, asked = three_arrangements(), torch.tensor([0.0, 0.2])
    everything = arrangement_weights(arrangements, asked, WIDTHS, w)
    found = arrangement_weights(arrangements, asked, WIDTHS, w, chosen(42, 16, 34, 5))
    mean = 5 / 9
    by_hand = [(own + MEAN_CRYSTALS * mean) / (total + MEAN_CRYSTALS) / mean for own, total in [(3, 3), (1, 2), (1, 4)]]
    assert (found / everything).tolist() == pytest.approx(by_hand)
    assert arrangement_weights(arrangements, asked, WIDTHS, w, chosen(42, 16, 34, 5, 52, 80)).tolist() == pytest.approx(
        everything.tolist()
    )
    none = arrangement_weights(arrangements, asked, WIDTHS, w, chosen(74, 8))
    assert torch.equal(none, everything), "where no crystal is made of them, all arrangements are as likely as ever"


def test_stronger_guidance_takes_more_of_the_arrangement_that_is_as_asked_for():
    shares = []
    for w in (0.0, 1.0, 2.0, 4.0):
        weights = arrangement_weights(three_arrangements(), torch.tensor([0.0, 0.2]), WIDTHS, w)
        shares.append(float(weights[0] / weights.sum()))
    assert shares == sorted(shares) and shares[0] == pytest.approx(3 / 9) and shares[-1] > 0.9
    likelihood = [float(arrangement_weights(three_arrangements(), torch.tensor([0.0, 0.2]), WIDTHS, w)[1]) for w in (0.0, 1.0)]
    assert likelihood[1] > 0, "an arrangement of few crystals is never ruled out by them"
    far = arrangement_weights(three_arrangements(), torch.tensor([90.0, 0.2]), WIDTHS, 2.0)
    assert far.isfinite().all() and far.argmax() == 2, "far from all crystals those that are least far win"


def test_properties_that_tell_the_arrangement_of_held_out_crystals_gain_what_they_are_worth():
    """Two arrangements with eight crystals each: the most there is to gain is log 2; two mean crystals each take a part of it."""
    sheets = [mx2(42, 16), flat_ab(5, 7)] * 10
    training = [True] * 16 + [False] * 4
    told = torch.tensor([[0.0], [3.0]]).repeat(10, 1)
    tables = {"told": told, "nothing": torch.zeros_like(told), "wrong": torch.cat([told[:16], 3.0 - told[16:]])}
    gains = {}
    for name, conditions in tables.items():
        table = table_of(sheets, [0, 1] * 10, training, conditions)
        gains[name] = arrangement_gain(table, arrangements_of(table), torch.tensor([0.3]))
    likelihood = [(8 + MEAN_CRYSTALS / 2) / (8 + MEAN_CRYSTALS), (MEAN_CRYSTALS / 2) / (8 + MEAN_CRYSTALS)]
    assert gains["told"] == pytest.approx(math.log(2 * likelihood[0] / sum(likelihood)), abs=1e-6)
    assert gains["nothing"] == pytest.approx(0, abs=1e-9)
    assert gains["wrong"] == pytest.approx(math.log(2 * likelihood[1] / sum(likelihood)), abs=1e-6)
    unknown = table_of([*sheets, mx2(74, 34)], [0, 1] * 10 + [2], [*training, False], torch.cat([told, told[:1]]))
    assert arrangement_gain(unknown, arrangements_of(unknown), torch.tensor([0.3])) == pytest.approx(gains["told"])
