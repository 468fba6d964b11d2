"""Equivariant network that describes the atoms of sheets, which the refiner and the denoiser of elements share.

``SheetTrunk`` is equivariant under rotations and reflections in three dimensions. Scalars, vectors and traceless second-rank
tensors of each atom are exchanged with its nearest neighbours, as in PaiNN (Schütt et al., ICML 2021) with one rank more, so that
messages know the angles between bonds.

The state of a batch is padded: F (B, N, 2), z (B, N) Å, L (B, 2, 2) Å with row vectors, and which places hold atoms (B, N).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from networks.messages import AtomPairs, add_terms, atom_pairs, by_loops, carry, edge_sums

IMAGES = 2  # periodic images on each side; enough for the cutoff where the cell is reduced
CLOSE = 1e-2  # Å, two atoms closer than this are the same one
SUM_SCALE = 0.15  # keeps sums over neighbours of order one
RATIO_RANGE = (0.5, 2.3)  # of distances over the sum of covalent radii
NUM_ELEMENTS = 119  # row 0: no element
BUFFERS = ("descriptors", "radii", "mu", "nu")  # follow from the elements and the configuration


@dataclass(frozen=True)
class TrunkConfig:
    """Size of a ``SheetTrunk``.

    Attributes:
        channels: scalars of an atom.
        vectors: vectors of an atom.
        tensors: traceless second-rank tensors of an atom.
        layers: rounds of messages.
        cutoff: Å.
        neighbours: largest number of neighbours of an atom. The cutoff of an atom ends before its last one, whose weight is zero.
        rbf: radial functions of the distance, and as many of its ratio to the sum of covalent radii.
        dropout: in training.
    """

    channels: int = 128
    vectors: int = 32
    tensors: int = 24
    layers: int = 4
    cutoff: float = 6.0
    neighbours: int = 24
    rbf: int = 20
    dropout: float = 0.1


@dataclass
class SheetState:
    """A padded batch of sheets: atomic numbers (B, N), F (B, N, 2), z (B, N) Å, L (B, 2, 2) Å, and where atoms are (B, N)."""

    atomic_numbers: torch.Tensor
    frac_coords: torch.Tensor
    heights: torch.Tensor
    cell: torch.Tensor
    mask: torch.Tensor


@dataclass
class _Neighbours:
    """The K nearest neighbours of A atoms: indices (A, K), unit vectors (A, K, 3), distances (A, K), envelopes (A, K, 1)."""

    index: torch.Tensor
    direction: torch.Tensor
    distance: torch.Tensor
    envelope: torch.Tensor

    @cached_property
    def second(self) -> torch.Tensor:
        """(A, K, 6): r̂ r̂ᵀ − 1/3 of the unit vectors, as six numbers, so that products of two tensors are dot products."""
        x, y, z = self.direction.unbind(-1)
        root = math.sqrt(2.0)
        return torch.stack([x * x - 1 / 3, y * y - 1 / 3, z * z - 1 / 3, root * x * y, root * x * z, root * y * z], -1)

    @cached_property
    def geometry(self) -> torch.Tensor:
        """(A, K, 9): unit vectors and second ranks."""
        return torch.cat([self.direction, self.second], -1)

    @cached_property
    def moments(self) -> torch.Tensor:
        """(A, K, 10): one, unit vectors and second ranks, times the envelope."""
        return torch.cat([torch.ones_like(self.envelope), self.geometry], -1) * self.envelope

    @cached_property
    def pairs(self) -> AtomPairs:
        """What neighbours join."""
        return atom_pairs(self.index)


def _nearest(state: SheetState, count: int, cutoff: float) -> _Neighbours:
    """Return the nearest periodic neighbours of each atom; atoms are numbered as ``mask`` lists them."""
    batch, width = state.mask.shape
    steps = torch.arange(-IMAGES, IMAGES + 1, device=state.cell.device, dtype=state.cell.dtype)
    images = torch.cartesian_prod(steps, steps) @ state.cell  # (B, I, 2) Å
    delta = state.frac_coords[:, None] - state.frac_coords[:, :, None]  # of i and j: from i to j
    delta = torch.einsum("bijc,bcd->bijd", delta - torch.round(delta), state.cell)
    plane = delta[:, :, :, None] + images[:, None, None]
    rise = (state.heights[:, None] - state.heights[:, :, None])[..., None, None].expand(*plane.shape[:-1], 1)
    vectors = torch.cat([plane, rise], -1)
    squared = (vectors**2).sum(-1)
    pair = (state.mask[:, None] & state.mask[:, :, None])[..., None]
    squared = squared.masked_fill(~pair | (squared < CLOSE**2), torch.inf).reshape(batch, width, -1)[state.mask]
    near, place = torch.topk(squared, min(count, squared.shape[1]), largest=False)
    number = (torch.cumsum(state.mask.reshape(-1).long(), 0) - 1).reshape(batch, width)
    owner = torch.nonzero(state.mask)[:, 0]
    index = torch.gather(number[owner], 1, place // len(steps) ** 2)
    vectors = vectors.reshape(batch, width, -1, 3)[state.mask].gather(1, place[..., None].expand(-1, -1, 3))
    inside = near < cutoff**2
    distance = torch.sqrt(torch.where(inside, near, torch.ones_like(near)))
    reach = torch.sqrt(near[:, -1:]).clamp(max=cutoff)
    envelope = inside * (1 - (distance / reach).clamp(max=1.0) ** 2) ** 2
    direction = torch.where(inside[..., None], vectors / distance[..., None], torch.zeros_like(vectors))
    return _Neighbours(torch.where(inside, index, torch.zeros_like(index)), direction, distance, envelope[..., None])


class MessageLayer(nn.Module):
    """One round of messages and updates."""

    def __init__(self, config: TrunkConfig, edge_features: int) -> None:
        super().__init__()
        c, v, t = config.channels, config.vectors, config.tensors
        self.sizes = (c, v, t)
        self.norm = nn.LayerNorm(c)
        self.wi, self.wj = nn.Linear(c, c), nn.Linear(c, c, bias=False)
        self.we = nn.Linear(edge_features + 2 * v + 2 * t, c, bias=False)
        self.w2 = nn.Linear(c, c)
        self.w3 = nn.Linear(c, 2 * v + 2 * t, bias=False)
        self.up = nn.Sequential(nn.Linear(2 * c + v + t, 2 * c), nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(2 * c, c + v + t))
        self.mv, self.mt = nn.Linear(v, v, bias=False), nn.Linear(t, t, bias=False)

    def forward(
        self, s: torch.Tensor, v: torch.Tensor, t: torch.Tensor, near: _Neighbours, features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return new scalars (A, C), vectors (A, 3, V) and tensors (A, 6, T)."""
        x = self.norm(s)
        summed, dv, dt = (self.sums if by_loops(x) else self.gathered_sums)(x, v, t, near, features)
        v, t = self.mv(v) + SUM_SCALE * dv, self.mt(t) + SUM_SCALE * dt
        lengths = [torch.sqrt((v**2).sum(1) + 1e-6), torch.sqrt((t**2).sum(1) + 1e-6)]
        change, gv, gt = self.up(torch.cat([x, SUM_SCALE * summed, *lengths], -1)).split(self.sizes, -1)
        return s + change, v * (1 + gv)[:, None], t * (1 + gt)[:, None]

    def sums(
        self, x: torch.Tensor, v: torch.Tensor, t: torch.Tensor, near: _Neighbours, features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the sums over neighbours of messages (A, C), and of what they give to vectors (A, 3, V) and tensors (A, 6, T).

        Linear layers come before the products and after the sums wherever they may, because atoms are fewer than edges.
        """
        (_, vectors, tensors), linear = self.sizes, nn.functional.linear
        of_features, *of_angles = self.we.weight.split([features.shape[-1], vectors, vectors, tensors, tensors], -1)
        of_source = torch.cat([self.wj(x)[:, None], linear(v, of_angles[0]), linear(t, of_angles[2])], 1)
        of_target = torch.cat([self.wi(x)[:, None], linear(v, of_angles[1]), linear(t, of_angles[3])], 1)
        message = add_terms(linear(features, of_features), near.index, of_source, of_target, near.geometry)
        summed, between = edge_sums(self.w2(nn.functional.silu(message)), near.moments, near.pairs)
        to_vectors, keep_vectors, to_tensors, keep_tensors = self.w3.weight.split([vectors, vectors, tensors, tensors])
        kept_vectors, kept_tensors = carry(near.pairs, linear(between, torch.cat([keep_vectors, keep_tensors])), v, t)
        dv = linear(summed[:, 1:4], to_vectors) + kept_vectors
        return summed[:, 0], dv, linear(summed[:, 4:], to_tensors) + kept_tensors

    def gathered_sums(
        self, x: torch.Tensor, v: torch.Tensor, t: torch.Tensor, near: _Neighbours, features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the same as ``sums``, for GPUs, where few operations count."""
        atoms, count = near.index.shape
        index = near.index.reshape(-1)
        vj = v.index_select(0, index).view(atoms, count, 3, -1)
        tj = t.index_select(0, index).view(atoms, count, 6, -1)
        angles = [
            (vj * near.direction[..., None]).sum(2),
            torch.bmm(near.direction, v),
            (tj * near.second[..., None]).sum(2),
            torch.bmm(near.second, t),
        ]
        message = self.wi(x)[:, None] + self.wj(x).index_select(0, index).view(atoms, count, -1)
        message = nn.functional.silu(message + self.we(torch.cat([features, *angles], -1)))
        message = nn.functional.silu(self.w2(message)) * near.envelope
        channels, vectors, tensors = self.sizes
        g1, g2, g3, g4 = self.w3(message).split([vectors, vectors, tensors, tensors], -1)
        dv = torch.bmm(near.direction.transpose(1, 2), g1) + (g2[:, :, None] * vj).sum(1)
        dt = torch.bmm(near.second.transpose(1, 2), g3) + (g4[:, :, None] * tj).sum(1)
        return message.sum(1), dv, dt


class SheetTrunk(nn.Module):
    """See the module.

    Args:
        config: sizes.
        descriptors: (119, D) of the elements; row 0 is zero.
        radii: (119,) covalent radii, Å.
    """

    def __init__(self, config: TrunkConfig, descriptors: torch.Tensor, radii: torch.Tensor) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.register_buffer("descriptors", descriptors)
        self.register_buffer("radii", radii)
        self.register_buffer("mu", torch.linspace(0.0, config.cutoff, config.rbf))
        self.register_buffer("nu", torch.linspace(*RATIO_RANGE, config.rbf))
        self.embed = nn.Embedding(NUM_ELEMENTS, c)
        self.desc = nn.Linear(descriptors.shape[1], c)
        self.layers = nn.ModuleList(MessageLayer(config, 2 * config.rbf) for _ in range(config.layers))
        self.last = nn.LayerNorm(c)
        nn.init.normal_(self.embed.weight, std=0.3)

    def encode(self, state: SheetState, told: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scalars (A, C), vectors (A, 3, V) and tensors (A, 6, T) of the atoms, as ``mask`` lists them.

        Args:
            state: the sheets.
            told: (A, C), added to the scalars that the atoms start with.
        """
        near = _nearest(state, self.config.neighbours, self.config.cutoff)
        numbers = state.atomic_numbers[state.mask]
        radii = self.radii[numbers]
        ratio = near.distance / (radii[:, None] + radii[near.index])
        widths = (self.config.cutoff, RATIO_RANGE[1] - RATIO_RANGE[0])
        basis = [
            torch.exp(-0.5 * ((x[..., None] - centers) * ((len(centers) - 1) / width)) ** 2)
            for x, centers, width in zip((near.distance, ratio), (self.mu, self.nu), widths, strict=True)
        ]
        features = torch.cat(basis, -1)
        s = self.embed(numbers) + self.desc(self.descriptors[numbers])
        s = s if told is None else s + told
        v = s.new_zeros(len(s), 3, self.config.vectors)
        t = s.new_zeros(len(s), 6, self.config.tensors)
        for layer in self.layers:
            s, v, t = layer(s, v, t, near, features)
        return self.last(s), v, t
