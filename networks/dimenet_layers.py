"""Settings and layers of DimeNet++ (Gasteiger et al., arXiv:2011.14115).

Modules, parameters and their random start are those of PyTorch Geometric's blocks and OCP's, so that checkpoints load key by key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import spherical_jn
from torch import nn
from torch.nn import functional as F

from networks.graph import group_slots, reverse_edges, scatter_sum


@dataclass(frozen=True)
class DimeNetPlusPlusConfig:
    """Size and readout of a DimeNet++. Names follow PyG and OCP.

    Args:
        max_neighbors: number of edges per atom, nearest first, whole shells; None: all within the cutoff, for a smooth energy.
        readout: "all" sums the atomic outputs of the whole cell, as published. "adsorbate" is local and intensive, as ΔE is: see
            ``DimeNetPlusPlus.readout_weights``.
    """

    hidden_channels: int = 64
    out_emb_channels: int = 64
    int_emb_size: int = 32
    basis_emb_size: int = 8
    num_blocks: int = 2
    num_spherical: int = 5
    num_radial: int = 6
    cutoff_angstrom: float = 4.5
    max_neighbors: int | None = None
    envelope_exponent: int = 5
    num_before_skip: int = 1
    num_after_skip: int = 1
    num_output_layers: int = 2
    readout: str = "adsorbate"
    readout_radius_angstrom: float = 3.5

    @classmethod
    def preset(cls, name: str) -> DimeNetPlusPlusConfig:
        """Return the settings of a name: ``small`` is fast on a CPU, ``oc20`` has the size of OCP's published IS2RE checkpoints.

        Raises:
            ValueError: there is no preset of this name.
        """
        if name == "small":
            return cls()
        if name == "oc20":
            return cls(
                hidden_channels=256,
                out_emb_channels=192,
                int_emb_size=64,
                num_blocks=3,
                num_spherical=7,
                cutoff_angstrom=6.0,
                max_neighbors=50,
                num_after_skip=2,
                num_output_layers=3,
                readout="all",
            )
        raise ValueError(f"no DimeNet++ preset '{name}': choose small or oc20")


@dataclass
class PeriodicGraph:
    """Edges of a batch, and their slots in tables of the edges into and out of each atom (see ``group_slots``)."""

    edge_index: torch.Tensor  # (2, E)
    offsets: torch.Tensor  # (E, 3) of the source's image
    reverse: torch.Tensor  # (E,) index of the edge back; E where there is none
    slots_in: torch.Tensor  # (E,) in the table of edges into each atom
    depth_in: int
    slots_out: torch.Tensor  # (E,) in the table of edges out of each atom
    depth_out: int

    @classmethod
    def build(cls, edge_index: torch.Tensor, offsets: torch.Tensor, num_nodes: int) -> PeriodicGraph:
        """Build the tables for edges between ``num_nodes`` atoms."""
        source, target = edge_index
        reverse = reverse_edges(edge_index, offsets)
        return cls(edge_index, offsets, reverse, *group_slots(target, num_nodes), *group_slots(source, num_nodes))


@lru_cache
def _spherical_bessel_roots(num_spherical: int, num_radial: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first roots z_ln of the spherical Bessel functions j_l, and the norms N_ln, both (L, K) float64.

    N_ln normalises j_l(z_ln x) on the unit ball.
    """
    roots = np.zeros((num_spherical, num_radial))
    brackets = np.arange(1, num_radial + num_spherical + 1) * np.pi
    roots[0] = brackets[:num_radial]
    for order in range(1, num_spherical):
        # The roots of j_l interlace with those of j_{l-1}.
        brackets = np.array([brentq(lambda x, n=order: spherical_jn(n, x), a, b) for a, b in pairwise(brackets)])
        roots[order] = brackets[:num_radial]
    norms = np.stack([np.sqrt(2) / np.abs(spherical_jn(order + 1, roots[order])) for order in range(num_spherical)])
    return torch.from_numpy(roots), torch.from_numpy(norms)


def glorot_orthogonal(weight: torch.Tensor, scale: float = 2.0) -> None:
    """Start a weight matrix (out, in) as an orthogonal one with the variance ``scale`` / (out + in)."""
    nn.init.orthogonal_(weight.data)
    weight.data *= (scale / (sum(weight.shape) * weight.var())).sqrt()


def _start(layers: list[nn.Linear]) -> None:
    """Start layers as ``glorot_orthogonal`` does, in this order, with zero bias."""
    for layer in layers:
        glorot_orthogonal(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Envelope(nn.Module):
    """Smooth cutoff u(x) = 1/x + a x^(p-1) + b x^p + c x^(p+1), zero with two derivatives at x = 1; eq. 8 of arXiv:2003.03123."""

    def __init__(self, exponent: int) -> None:
        super().__init__()
        self.p = exponent + 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return u of distances over the cutoff, of any shape; 0 beyond 1."""
        p = self.p
        power = x.pow(p - 1)
        next_power = power * x
        u = 1.0 / x - (p + 1) * (p + 2) / 2 * power + p * (p + 2) * next_power - p * (p + 1) / 2 * (next_power * x)
        return u * (x < 1.0).to(x.dtype)


class RadialBasis(nn.Module):
    """Basis u(d/c) sin(n π d/c), n = 1, 2, ..., with trained frequencies; eq. 7 of arXiv:2003.03123 up to its constant."""

    def __init__(self, num_radial: int, cutoff: float, envelope_exponent: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.envelope = Envelope(envelope_exponent)
        self.freq = nn.Parameter(torch.arange(1, num_radial + 1, dtype=torch.get_default_dtype()) * math.pi)

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """Return the basis (E, K) of distances (E,) in Å."""
        scaled = distance.unsqueeze(-1) / self.cutoff
        return self.envelope(scaled) * (self.freq * scaled).sin()


class EmbeddingBlock(nn.Module):
    """First messages: of the two elements and the distance of each edge."""

    def __init__(self, num_radial: int, hidden_channels: int, num_elements: int = 95) -> None:
        super().__init__()
        self.emb = nn.Embedding(num_elements, hidden_channels)
        self.lin_rbf = nn.Linear(num_radial, hidden_channels)
        self.lin = nn.Linear(3 * hidden_channels, hidden_channels)
        self.emb.weight.data.uniform_(-math.sqrt(3), math.sqrt(3))
        self.lin_rbf.reset_parameters()
        self.lin.reset_parameters()

    def forward(self, z: torch.Tensor, rbf: torch.Tensor, target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Return messages (E, hidden) from atomic numbers (N,), the radial basis (E, K), and the atoms (E,) of each edge."""
        x = self.emb(z)
        return F.silu(self.lin(torch.cat([x[target], x[source], F.silu(self.lin_rbf(rbf))], dim=-1)))


class ResidualLayer(nn.Module):
    """x + f(x) with two dense layers."""

    def __init__(self, hidden_channels: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(hidden_channels, hidden_channels)
        self.lin2 = nn.Linear(hidden_channels, hidden_channels)
        _start([self.lin1, self.lin2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the new messages (E, hidden)."""
        return x + F.silu(self.lin2(F.silu(self.lin1(x))))


class SphericalBasis(nn.Module):
    """Basis a_ln(d, θ) = u(d) N_ln j_l(z_ln d / c) Y_l0(θ), eq. 6 of arXiv:2003.03123, split into functions of one edge.

    Y_l0(θ) = √((2l+1)/4π) P_l(cos θ), and by the addition theorem P_l(a·b) = Σ_m Y_lm(a) Y_lm(b). The values are those of PyG's
    SphericalBasisLayer. There are no parameters. The Bessel recurrence runs in float64, because it loses digits at short
    distances.
    """

    def __init__(self, num_spherical: int, num_radial: int, cutoff: float, envelope_exponent: int) -> None:
        super().__init__()
        self.num_spherical, self.num_radial, self.cutoff = num_spherical, num_radial, cutoff
        self.envelope = Envelope(envelope_exponent)
        roots, norms = _spherical_bessel_roots(num_spherical, num_radial)
        degree = torch.arange(num_spherical, dtype=torch.float64)
        # Plain attributes, no buffers: they are constants, which belong to no checkpoint and stay in float64 under .float().
        self._roots, self._norms = roots, norms * torch.sqrt((2 * degree + 1) / (4 * math.pi))[:, None]

    def radial(self, distance: torch.Tensor) -> torch.Tensor:
        """Return u(d) N_ln j_l(z_ln d / c) √((2l+1)/4π), (E, L, K), for distances (E,) in Å."""
        scaled = (distance.double() / self.cutoff)[:, None, None]
        x = scaled * self._roots.to(distance.device)
        sin, cos = torch.sin(x), torch.cos(x)
        lower, current = sin / x, sin / x**2 - cos / x
        values = [lower[:, 0]]
        if self.num_spherical > 1:
            values.append(current[:, 1])
        for order in range(1, self.num_spherical - 1):
            lower, current = current, (2 * order + 1) / x * current - lower
            values.append(current[:, order + 1])
        values = torch.stack(values, 1) * self._norms.to(distance.device) * self.envelope(scaled)
        return values.to(distance.dtype)

    def angular(self, unit: torch.Tensor) -> torch.Tensor:
        """Return the real spherical harmonics, Σ_m Y_lm(a) Y_lm(b) = P_l(a·b), of unit vectors (E, 3): (E, L²), l = 0 first."""
        from e3nn.o3 import spherical_harmonics

        return spherical_harmonics(list(range(self.num_spherical)), unit, normalize=False, normalization="norm")


class TripletInteraction(nn.Module):
    """Interaction block of DimeNet++ with the sum over triplets k -> j -> i done per atom instead of per triplet.

    Σ_k x_kj W a(d_kj, θ) = Σ_lm Y_lm(ji) Σ_k Y_lm(kj) (x_kj W R_l(d_kj)). The edge that runs straight back (k is the very atom i)
    is no triplet: its term, with P_l(−1) = (−1)^l, is subtracted. The inner sum belongs to atom j alone, so that the cost grows
    with the number of neighbours and not with its square.
    """

    def __init__(self, settings: DimeNetPlusPlusConfig) -> None:
        super().__init__()
        hidden, small, basis = settings.hidden_channels, settings.int_emb_size, settings.basis_emb_size
        self.lin_rbf1 = nn.Linear(settings.num_radial, basis, bias=False)
        self.lin_rbf2 = nn.Linear(basis, hidden, bias=False)
        self.lin_sbf1 = nn.Linear(settings.num_spherical * settings.num_radial, basis, bias=False)
        self.lin_sbf2 = nn.Linear(basis, small, bias=False)
        self.lin_kj = nn.Linear(hidden, hidden)
        self.lin_ji = nn.Linear(hidden, hidden)
        self.lin_down = nn.Linear(hidden, small, bias=False)
        self.lin_up = nn.Linear(small, hidden, bias=False)
        self.layers_before_skip = nn.ModuleList(ResidualLayer(hidden) for _ in range(settings.num_before_skip))
        self.lin = nn.Linear(hidden, hidden)
        self.layers_after_skip = nn.ModuleList(ResidualLayer(hidden) for _ in range(settings.num_after_skip))
        _start([self.lin_rbf1, self.lin_rbf2, self.lin_sbf1, self.lin_sbf2, self.lin_kj, self.lin_ji, self.lin_down, self.lin_up])
        for layer in self.layers_before_skip:
            _start([layer.lin1, layer.lin2])
        _start([self.lin])
        for layer in self.layers_after_skip:
            _start([layer.lin1, layer.lin2])

    def forward(
        self,
        x: torch.Tensor,
        rbf: torch.Tensor,
        radial: torch.Tensor,
        harmonics: tuple[torch.Tensor, torch.Tensor],
        graph: PeriodicGraph,
        read: torch.Tensor | slice,
    ) -> torch.Tensor:
        """Return the new messages (R, hidden) of the edges ``read``.

        Args:
            x: (E, hidden) messages.
            rbf: (E, K) radial basis.
            radial: (E, L, K), see ``SphericalBasis.radial``.
            harmonics: Y_lm of the edges into each atom, (N, L², depth), and out of it, (N, depth, L²).
            graph: of the edges.
            read: indices (R,) of edges, or a slice.
        """
        x_kj = F.silu(self.lin_kj(x)) * self.lin_rbf2(self.lin_rbf1(rbf))
        x_kj = F.silu(self.lin_down(x_kj))
        triplet_sum = self._triplet_sum(x_kj, radial, harmonics, graph, read)
        x = x[read]
        h = F.silu(self.lin_ji(x)) + F.silu(self.lin_up(triplet_sum))
        for layer in self.layers_before_skip:
            h = layer(h)
        h = F.silu(self.lin(h)) + x
        for layer in self.layers_after_skip:
            h = layer(h)
        return h

    def _triplet_sum(
        self,
        x_kj: torch.Tensor,
        radial: torch.Tensor,
        harmonics: tuple[torch.Tensor, torch.Tensor],
        graph: PeriodicGraph,
        read: torch.Tensor | slice,
    ) -> torch.Tensor:
        """Return the sum over the triplets of each edge ``read``, (R, channels).

        It is never in half precision, because the term that is subtracted can be the largest.
        """
        with torch.autocast(x_kj.device.type, enabled=False):
            x_kj = x_kj.to(radial.dtype)
            degrees, channels = radial.shape[1], x_kj.shape[1]
            weight = (self.lin_sbf2.weight @ self.lin_sbf1.weight).view(channels, degrees, -1)
            terms = torch.einsum("elk,clk->elc", radial, weight) * x_kj[:, None]
            into, out_of = harmonics
            table = terms.new_zeros(into.shape[0] * into.shape[2], degrees * channels)
            table = table.index_put((graph.slots_in,), terms.flatten(1)).view(into.shape[0], into.shape[2], -1)
            # One product for all degrees l, of which each (l, m) takes its own, is cheaper than one product per degree.
            order = torch.arange(into.shape[1], device=terms.device)
            moments = (into @ table).view(*into.shape[:2], degrees, channels)[:, order, order.to(terms.dtype).sqrt().long()]
            sums = (out_of @ moments).flatten(0, 1)[graph.slots_out[read]]
            sign = (-1.0) ** torch.arange(degrees, dtype=terms.dtype, device=terms.device)
            straight_back = torch.einsum("elc,l->ec", terms, sign)
            straight_back = torch.cat([straight_back, straight_back.new_zeros(1, channels)])
            return sums - straight_back[graph.reverse[read]]


class OutputPPBlock(nn.Module):
    """Output block: sums messages at their targets and maps the sums to atomic outputs.

    Unlike in PyG's block, ``lin_up`` has a bias (as in OCP) and the output starts nonzero.
    """

    def __init__(self, settings: DimeNetPlusPlusConfig) -> None:
        super().__init__()
        self.lin_rbf = nn.Linear(settings.num_radial, settings.hidden_channels, bias=False)
        self.lin_up = nn.Linear(settings.hidden_channels, settings.out_emb_channels, bias=True)
        self.lins = nn.ModuleList(
            nn.Linear(settings.out_emb_channels, settings.out_emb_channels) for _ in range(settings.num_output_layers)
        )
        self.lin = nn.Linear(settings.out_emb_channels, 1, bias=False)
        _start([self.lin_rbf, self.lin_up, *self.lins, self.lin])

    def forward(self, x: torch.Tensor, rbf: torch.Tensor, target: torch.Tensor, num_nodes: int) -> torch.Tensor:
        """Return the atomic outputs (N, 1) of messages x (E, hidden) with their radial basis rbf (E, K) and targets (E,)."""
        x = self.lin_rbf(rbf) * x
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast, sums over many neighbours need the digits
        x = self.lin_up(scatter_sum(x, target, num_nodes))
        for layer in self.lins:
            x = F.silu(layer(x))
        return self.lin(x)
