"""Equivariant layers of the denoiser of sheets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from networks.graph import graph_mean
from networks.inference_messages import message_sums, turned_edges
from networks.messages import AtomPairs, add_terms, atom_pairs, by_loops, carry, edge_sums
from networks.nearest_gaussians import all_gaussians, nearest_gaussians, rows_of_gaussians

HERMITE_2D = 1.0747  # every in-plane lattice has a vector no longer than √(2/√3 · area)
NUM_RATIO_RBF = 12  # radial functions of the distance over the sum of covalent radii
NUM_HEIGHT_RBF = 8  # radial functions of the height difference
RATIO_RANGE = (0.4, 2.4)
HEIGHT_RANGE = (0.0, 4.0)  # Å
TIME_FREQUENCIES = 16
SOFTENING = 0.5  # Å, length below which the direction of an edge fades to zero
LONGEST_VECTOR = 10.0  # bound on the length of a vector channel, three times what is typical
NEIGHBOURS = 0.25  # by which sums over edges are multiplied: one over the root of a typical number of neighbours
GAIN_SIGMA = 0.1  # fractional noise below which the position output is amplified


@dataclass
class SheetEdges:
    """Directed edges j -> i between the atoms of a batch of sheets: row i of a table has the M edges to atom i.

    Rows with fewer edges are filled with ones of envelope zero, which count nowhere. So sums over the edges to an atom are products
    of small matrices.
    """

    source: torch.Tensor  # (A, M) j
    direction: torch.Tensor  # (A, M, 2) in-plane vector from i to j over its softened length
    rise: torch.Tensor  # (A, M) height of j above i over its softened size
    scaled: torch.Tensor  # (A, M, N) invariant lengths, over the spacings of the Gaussians that describe them
    counts: tuple[int, ...]  # (N,) Gaussians of each length
    envelope: torch.Tensor  # (A, M) invariant, fades to zero at the cutoff

    @cached_property
    def features(self) -> torch.Tensor:
        """(A, M, ΣN): exp(−(x − k)²) of each scaled length x, k = 0, 1, ..., N − 1."""
        return all_gaussians(self.scaled, self.counts)

    @cached_property
    def nearest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Those features that are not zero, as ``message_sums`` takes them."""
        return nearest_gaussians(self.scaled, self.counts)

    @cached_property
    def turned(self) -> torch.Tensor:
        """(A, M) earlier edges the other way."""
        return turned_edges(self.source, self.scaled, self.weights)

    @cached_property
    def weights(self) -> torch.Tensor:
        """(A, M) of the edges in sums; see ``NEIGHBOURS``."""
        return NEIGHBOURS * self.envelope

    @cached_property
    def moments(self) -> torch.Tensor:
        """(A, M, 4): the weight, and the weight times the direction and the rise."""
        return torch.cat([torch.ones_like(self.rise)[..., None], self.geometry], -1) * self.weights[..., None]

    @cached_property
    def moment_totals(self) -> torch.Tensor:
        """(A, 4, 1) sums of the moments over the edges to each atom."""
        return self.moments.sum(1)[..., None]

    @cached_property
    def second_moments(self) -> torch.Tensor:
        """(A, M, 7): ``moments``, and the weight times x², xy and y² of the direction."""
        x, y = self.direction.unbind(-1)
        return torch.cat([self.moments, torch.stack([x * x, x * y, y * y], -1) * self.weights[..., None]], -1)

    @cached_property
    def geometry(self) -> torch.Tensor:
        """(A, M, 3): direction and rise."""
        return torch.cat([self.direction, self.rise[..., None]], -1)

    @cached_property
    def pairs(self) -> AtomPairs:
        """What edges join."""
        return atom_pairs(self.source)

    @cached_property
    def pair_weights(self) -> torch.Tensor:
        """(P, 1) sums of the weights of the edges of each pair."""
        zeros = self.weights.new_zeros(len(self.pairs.target))
        return zeros.index_add(0, self.pairs.of_edge.flatten(), self.weights.flatten())[:, None]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of values (A, M, C) over the edges to each atom, times their weights, (A, C)."""
        return full_product(self.weights[:, None], values)[:, 0]


def full_product(geometry: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the products of matrices in the precision of the first, also where layers multiply in bfloat16."""
    with torch.autocast(geometry.device.type, enabled=False):
        return torch.bmm(geometry, values.to(geometry.dtype))


@dataclass
class EncodedSheets:
    """Output of the trunk, which the heads and the noise branch read."""

    scalars: torch.Tensor  # (A, C) invariant
    vectors: torch.Tensor  # (A, 2, V) in-plane vectors
    odd: torch.Tensor  # (A, V) scalars that change sign with z
    edges: SheetEdges
    cell: torch.Tensor  # (B, 2, 2) Å
    lattice_vector: torch.Tensor  # (B, 3) S of the cell
    scaled_heights: torch.Tensor  # (A,)
    scaled_lattice: torch.Tensor  # (B, 3)
    lattice_spread: torch.Tensor  # (B, 3)
    time: torch.Tensor  # (B, C)
    alpha_bar: torch.Tensor  # (B,)
    sigma: torch.Tensor  # (B,)
    batch: torch.Tensor  # (A,)
    num_graphs: int


class EdgeMessage(nn.Module):
    """Invariant hidden state of each edge, from its two atoms, its features, and the angles of the source's vectors with it."""

    def __init__(self, channels: int, vector_channels: int, edge_features: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.from_source = nn.Linear(channels, channels)
        self.from_target = nn.Linear(channels, channels, bias=False)
        self.from_edge = nn.Linear(edge_features + 2 * vector_channels, channels, bias=False)

    def forward(
        self, scalars: torch.Tensor, vectors: torch.Tensor, odd: torch.Tensor, edges: SheetEdges, moments: torch.Tensor
    ) -> torch.Tensor:
        """Return the first of ``sums``, on any device."""
        sums = self.sums if by_loops(scalars) else self.gathered_sums
        return sums(scalars, vectors, odd, edges, moments)[0]

    def sums(
        self,
        scalars: torch.Tensor,
        vectors: torch.Tensor,
        odd: torch.Tensor,
        edges: SheetEdges,
        moments: torch.Tensor,
        pairs: AtomPairs | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sums of the hidden states times moments over the edges to each atom, and times the weight over those of pairs.

        Args:
            scalars: (A, C).
            vectors: (A, 2, V).
            odd: (A, V), change sign with z.
            edges: M of each atom.
            moments: (A, M, K), the first of which is the weight.
            pairs: what edges join; None: no sums over them, P = 0.

        Returns:
            (A, K, C) and (P, C).
        """
        x, linear = self.norm(scalars), nn.functional.linear
        of_features, of_vectors, of_odd = self.from_edge.weight.split([sum(edges.counts), *[odd.shape[1]] * 2], -1)
        of_source = torch.cat([self.from_source(x)[:, None], linear(vectors, of_vectors), linear(odd, of_odd)[:, None]], 1)
        given = edges.source, of_source, self.from_target(x)[:, None], edges.geometry
        if not torch.is_grad_enabled() and scalars.dtype == torch.float32:
            return message_sums(edges.nearest, edges.turned, rows_of_gaussians(of_features, edges.counts), *given, moments, pairs)
        return edge_sums(add_terms(linear(edges.features, of_features), *given), moments, pairs)

    def gathered(
        self, scalars: torch.Tensor, vectors: torch.Tensor, odd: torch.Tensor, edges: SheetEdges
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden states (A, M, C) themselves, by operations, of which GPUs want few.

        Also what the source of each edge has of vectors (along x, along y) and z-odd scalars, (A, M, 3V).
        """
        x, (count, most) = self.norm(scalars), edges.source.shape
        sources = torch.cat([self.from_source(x), vectors.flatten(1), odd], -1).index_select(0, edges.source.flatten())
        hidden, moving = sources.split([x.shape[1], 3 * odd.shape[1]], -1)
        moving = moving.view(count, most, 3 * odd.shape[1])
        along_x, along_y, above = moving.chunk(3, -1)
        along = along_x * edges.direction[..., :1] + along_y * edges.direction[..., 1:]
        given = torch.cat([edges.features, along, above * edges.rise[..., None]], -1)
        hidden = torch.addmm(hidden, given.flatten(0, 1), self.from_edge.weight.T).view(count, most, -1)
        return nn.functional.silu(hidden + self.from_target(x)[:, None]), moving

    def gathered_sums(
        self, scalars: torch.Tensor, vectors: torch.Tensor, odd: torch.Tensor, edges: SheetEdges, moments: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """Return the first of ``sums`` by operations."""
        return full_product(moments.transpose(1, 2), self.gathered(scalars, vectors, odd, edges)[0]), None


class SheetInteraction(nn.Module):
    """One round of messages on invariant scalars, in-plane vectors and z-odd scalars.

    Follows PaiNN (Schütt, Unke, Gastegger 2021) with the symmetry of a sheet, O(2) in the plane times z -> −z. A vector therefore
    splits into an in-plane part and a number that is odd in z, and each has its own weights.
    """

    def __init__(self, channels: int, vector_channels: int, edge_features: int):
        super().__init__()
        self.sizes = [channels] + [vector_channels] * 4
        self.edge = EdgeMessage(channels, vector_channels, edge_features)
        self.gates = nn.Linear(channels, sum(self.sizes))
        self.norm = nn.LayerNorm(channels)
        self.time = nn.Linear(channels, channels)
        self.mix_vectors = nn.Linear(vector_channels, 2 * vector_channels, bias=False)
        self.mix_odd = nn.Linear(vector_channels, 2 * vector_channels, bias=False)
        self.update = nn.Sequential(
            nn.Linear(2 * channels + 4 * vector_channels, channels), nn.SiLU(), nn.Linear(channels, channels + 2 * vector_channels)
        )

    def forward(
        self,
        scalars: torch.Tensor,
        vectors: torch.Tensor,
        odd: torch.Tensor,
        edges: SheetEdges,
        time: torch.Tensor,
        batch: torch.Tensor,
        num_graphs: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the updated scalars (A, C), vectors (A, 2, V) and z-odd scalars (A, V); time (B, C) is the embedding of t."""
        sums = self.sums if by_loops(scalars) else self.gathered_sums
        message, push, lift = sums(scalars, vectors, odd, edges)
        scalars, vectors, odd = scalars + message, vectors + push, odd + lift

        x = self.norm(scalars + self.time(time).index_select(0, batch))
        first, second = self.mix_vectors(vectors).chunk(2, -1)
        odd_first, odd_second = self.mix_odd(odd).chunk(2, -1)
        invariants = [
            x,
            graph_mean(x, batch, num_graphs).index_select(0, batch),
            torch.sqrt((second**2).sum(1) + 1e-6),
            (first * second).sum(1),
            torch.sqrt(odd_second**2 + 1e-6),
            odd_first * odd_second,
        ]
        change = self.update(torch.cat(invariants, -1))
        scalar, vector_gate, odd_gate = torch.split(change, self.sizes[:3], -1)
        vectors = vectors + vector_gate[:, None] * first
        odd = odd + odd_gate * odd_first
        return scalars + scalar, _bounded(vectors, (vectors**2).sum(1, keepdim=True)), _bounded(odd, odd**2)

    def sums(
        self, scalars: torch.Tensor, vectors: torch.Tensor, odd: torch.Tensor, edges: SheetEdges
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the sums over the edges e to each atom, with gates g = W h_e + b of the hidden states.

        Σ g_message (A, C); Σ (g_keep vector of the source + g_point direction) (A, 2, V); Σ (g_keep_odd odd of the source +
        g_rise rise) (A, V). Where a gate multiplies nothing that has channels, its matrix is applied after the sum, to fewer rows.
        """
        summed, between = self.edge.sums(scalars, vectors, odd, edges, edges.moments, edges.pairs)
        (_, keep, _, keep_odd, _), (_, bias, _, bias_odd, _) = self._gates()
        kept = nn.functional.linear(between, torch.cat([keep, keep_odd]))
        kept = torch.addcmul(kept, edges.pair_weights, torch.cat([bias, bias_odd]))
        push, above = carry(edges.pairs, kept, vectors, odd[:, None])
        message, pointing, rising = self._gated(summed, edges)
        return message, push + pointing, above[:, 0] + rising

    def gathered_sums(
        self, scalars: torch.Tensor, vectors: torch.Tensor, odd: torch.Tensor, edges: SheetEdges
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the same as ``sums``, for GPUs, where few operations count."""
        hidden, moving = self.edge.gathered(scalars, vectors, odd, edges)
        (_, keep, _, keep_odd, _), (_, bias, _, bias_odd, _) = self._gates()
        kept = nn.functional.linear(hidden, torch.cat([keep, keep, keep_odd]), torch.cat([bias, bias, bias_odd]))
        along_x, along_y, above = edges.total(kept * moving).chunk(3, -1)
        message, pointing, rising = self._gated(full_product(edges.moments.transpose(1, 2), hidden), edges)
        return message, torch.stack([along_x, along_y], 1) + pointing, above + rising

    def _gates(self) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Return weights and biases of the gates of message, vectors kept, directions, z-odd scalars kept and rises."""
        return self.gates.weight.split(self.sizes), self.gates.bias.split(self.sizes)

    def _gated(self, sums: torch.Tensor, edges: SheetEdges) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return Σ g_message (A, C), Σ g_point direction (A, 2, V) and Σ g_rise rise (A, V) of sums (A, 4, C) of hidden states."""
        weights, biases = self._gates()
        constants = edges.moment_totals

        def gated(rows: slice, gate: int) -> torch.Tensor:
            return torch.addcmul(nn.functional.linear(sums[:, rows], weights[gate]), constants[:, rows], biases[gate])

        return gated(slice(0, 1), 0)[:, 0], gated(slice(1, 3), 2), gated(slice(3, 4), 4)[:, 0]


def _bounded(values: torch.Tensor, squared: torch.Tensor) -> torch.Tensor:
    """Return values, whose squared lengths are given, shortened smoothly to ``LONGEST_VECTOR``; a third of it shrinks by 0.3 %.

    Products of vectors in an update make lengths grow with their cube from layer to layer. Without a bound they overflow where
    many neighbours stand in line, as on a mirror of a noised symmetric sheet.
    """
    return values * torch.sqrt(squared * squared * LONGEST_VECTOR**-4 + 1).rsqrt()


def strain_to_lattice_vector(strain: torch.Tensor, cell: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return the change of S = ½ log(L Lᵀ) under a small symmetric strain, L -> L (1 + ε), to first order.

    With L = P Q, P = exp(S) and Q orthogonal, the strain in the frame of P is Q ε Qᵀ, and L Lᵀ becomes P (1 + 2 Q ε Qᵀ) P. The
    derivative of the matrix logarithm scales the off-diagonal part in the eigenbasis of S by x / sinh x, where x is the difference
    of the eigenvalues of S, and leaves the diagonal part.

    Args:
        strain: (B, 2, 2) ε in the Cartesian frame of the cell.
        cell: (B, 2, 2) Å, row vectors.
        vector: (B, 3) its S.

    Returns:
        (B, 3), the changes of S11, S22 and S12.
    """
    a, b, c, d = cell.flatten(1).unbind(1)
    sign = torch.sign(a * d - b * c)
    along, across = a + sign * d, b - sign * c  # Q is (along, across) and, at a right angle to it, the other row, over their length
    squared = along**2 + across**2
    cosine, sine = (along**2 - across**2) / squared, 2 * along * across / squared
    deviator, off = 0.5 * (strain[:, 0, 0] - strain[:, 1, 1]), 0.5 * (strain[:, 0, 1] + strain[:, 1, 0])
    shear, twist = deviator * cosine + off * sine, sign * (off * cosine - deviator * sine)
    p, q = 0.5 * (vector[:, 0] - vector[:, 1]), vector[:, 2]
    squared = p**2 + q**2
    x = 2 * torch.sqrt(squared + 1e-30)
    factor = torch.where(squared > 1e-6, (1 - x / torch.sinh(x)) / squared.clamp(min=1e-12), 2 / 3 - 14 * squared / 45)
    parallel = shear * p + twist * q
    shear, twist = shear - factor * (squared * shear - parallel * p), twist - factor * (squared * twist - parallel * q)
    mean = 0.5 * (strain[:, 0, 0] + strain[:, 1, 1])
    return torch.stack([mean + shear, mean - shear, twist], -1)
