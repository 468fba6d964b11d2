"""Settings and layers of DimeNet++ (Gasteiger et al., arXiv:2011.14115)."""

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
from torch_geometric.nn.inits import glorot_orthogonal
from torch_geometric.nn.models.dimenet import Envelope, InteractionPPBlock

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


class TripletInteraction(InteractionPPBlock):
    """PyG's interaction block with the sum over triplets k -> j -> i done per atom instead of per triplet.

    Σ_k x_kj W a(d_kj, θ) = Σ_lm Y_lm(ji) Σ_k Y_lm(kj) (x_kj W R_l(d_kj)). The edge that runs straight back (k is the very atom i)
    is no triplet: its term, with P_l(−1) = (−1)^l, is subtracted. The inner sum belongs to atom j alone, so that the cost grows
    with the number of neighbours and not with its square.
    """

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
        x_kj = self.act(self.lin_kj(x)) * self.lin_rbf2(self.lin_rbf1(rbf))
        x_kj = self.act(self.lin_down(x_kj))
        triplet_sum = self._triplet_sum(x_kj, radial, harmonics, graph, read)
        x = x[read]
        h = self.act(self.lin_ji(x)) + self.act(self.lin_up(triplet_sum))
        for layer in self.layers_before_skip:
            h = layer(h)
        h = self.act(self.lin(h)) + x
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
        for layer in (self.lin_rbf, self.lin_up, *self.lins, self.lin):
            glorot_orthogonal(layer.weight, scale=2.0)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, rbf: torch.Tensor, target: torch.Tensor, num_nodes: int) -> torch.Tensor:
        """Return the atomic outputs (N, 1) of messages x (E, hidden) with their radial basis rbf (E, K) and targets (E,)."""
        x = self.lin_rbf(rbf) * x
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast, sums over many neighbours need the digits
        x = self.lin_up(scatter_sum(x, target, num_nodes))
        for layer in self.lins:
            x = F.silu(layer(x))
        return self.lin(x)
