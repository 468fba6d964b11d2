"""The loops over edges against sums by einsum, and their gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from networks.messages import add_terms, carry

ATOMS, EDGES, CHANNELS = 5, 7, 8


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.fixture
def source() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, ATOMS, (ATOMS, EDGES))


@pytest.mark.parametrize(("of_source", "of_target"), [(3, 0), (9, 9), (0, 2)])
def test_terms_of_both_atoms_are_added(source, of_source, of_target):
    largest = max(of_source, of_target)
    given = draw(ATOMS, EDGES, CHANNELS), draw(ATOMS, 1 + of_source, CHANNELS), draw(ATOMS, 1 + of_target, CHANNELS)
    given = *given, draw(ATOMS, EDGES, largest)

    def added(out, sources, targets, geometry):
        return add_terms(out.clone(), source, sources, targets, geometry)

    out, sources, targets, geometry = given
    expected = out + sources[source][:, :, 0] + targets[:, None, 0]
    expected = expected + torch.einsum("amk,amkc->amc", geometry[..., :of_source], sources[source][:, :, 1:])
    expected = expected + torch.einsum("amk,akc->amc", geometry[..., :of_target], targets[:, 1:])
    torch.testing.assert_close(added(*given), expected)
    assert gradcheck(added, given)
    fixed = *given[:3], geometry.detach()  # the gradient of the geometry is left out where nobody asks for it
    assert gradcheck(added, fixed)


def test_values_of_the_sources_are_carried(source):
    gates, vectors, tensors = draw(ATOMS, EDGES, 6), draw(ATOMS, 3, 4), draw(ATOMS, 6, 2)
    weights = (torch.rand(ATOMS, EDGES, dtype=torch.float64) - 0.2).clamp(min=0.0).requires_grad_()
    assert (weights == 0).any(), "as of edges that do not count"
    found = carry(source, gates, weights, vectors, tensors)
    for own, values, place in zip(found, (vectors, tensors), (slice(0, 4), slice(4, 6)), strict=True):
        torch.testing.assert_close(own, torch.einsum("am,amu,amdu->adu", weights, gates[..., place], values[source]))
    within = weights.detach().clamp(min=0.1)  # finite differences need both sides

    def carried(gates, *values):
        return carry(source, gates, within, *values)

    assert gradcheck(carried, (gates, vectors, tensors))
    assert gradcheck(lambda w: carry(source, gates, w, vectors, tensors), (within.clone().requires_grad_(),))
