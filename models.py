"""Networks of the pipeline: DimeNet++ (hydrogen adsorption energies) and DenoisingEGNN (joint diffusion of 2D crystals).

A checkpoint holds the settings of its model and rebuilds it by itself; it is read with ``weights_only=True`` and checked for kind,
schema and exact keys, so that no other model's weights ever load under this name.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import spherical_jn
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn.inits import glorot_orthogonal
from torch_geometric.nn.models.dimenet import BesselBasisLayer, EmbeddingBlock, Envelope, InteractionPPBlock
from torch_geometric.utils import scatter

from config import SCHEMA_VERSION, StageError, atomic_path, relative_name
from diffusion import NoiseSchedule, center, graph_mean
from geo_utils import H_TAG as ADSORBATE_TAG
from geo_utils import edge_vectors, group_slots, lattice_to_vector, radius_graph_pbc, reverse_edges


class CheckpointError(StageError):
    """A checkpoint that cannot be used; the message names the file and what to do."""


def save_checkpoint(path: str | os.PathLike, kind: str, model_config: Any, state: dict[str, Any]) -> None:
    """Writes ``{schema_version, kind, model_config, **state}`` atomically. ``state`` holds tensors and plain Python values only."""
    content = {"schema_version": SCHEMA_VERSION, "kind": kind, "model_config": dataclasses.asdict(model_config), **state}
    # Through a handle, because torch.save writes the name of a path into the archive: equal contents give equal files.
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        torch.save(content, handle)


def load_checkpoint(path: str | os.PathLike, kind: str, hint: str, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint of one kind.

    Raises CheckpointError when the file is missing, truncated, not a plain checkpoint, of another kind or of another schema;
    ``hint`` says what the user can do about a missing one.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no {kind} checkpoint at {relative_name(path)}: {hint}")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... for damaged or hostile files
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{relative_name(path)} is not a readable {kind} checkpoint ({reason}): {hint}") from error
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str) or content["kind"] != kind:
        found = str(content.get("kind", "no kind"))[:40] if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{relative_name(path)} is not a {kind} checkpoint (found: {found}): {hint}")
    version = content.get("schema_version")
    if not isinstance(version, int) or version != SCHEMA_VERSION:
        raise CheckpointError(f"{relative_name(path)} has schema {str(version)[:40]}, expected {SCHEMA_VERSION}: {hint}")
    if not _is_finite(content):
        raise CheckpointError(f"{relative_name(path)} holds weights that are not finite: {hint}")
    return content


def _is_finite(value: Any) -> bool:
    """Whether all floating-point tensors of nested containers are free of NaN and infinity."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return all(_is_finite(item) for item in items)


# DimeNet++


DIMENET_KIND = "dimenet"


@dataclass(frozen=True)
class DimeNetPlusPlusConfig:
    """Size and readout of a DimeNet++ (Gasteiger et al., arXiv:2011.14115). Names follow PyG and OCP.

    max_neighbors: edges kept per atom, nearest first, whole shells; None: all within the cutoff (the energy is then smooth).
    readout: "all" sums the atomic outputs of the whole cell, as published. "adsorbate" is local and intensive, as ΔE is: see
    ``DimeNetPlusPlus._readout_weights``.
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
        """``small``: fast on a CPU. ``oc20``: the set-up of OCP's published IS2RE checkpoints."""
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
    """Edges of a batch, and where they stand in tables of the edges into and out of each atom (see ``group_slots``).

    edge_index (2, E), offsets (E, 3) of the source's image, reverse (E,) the edge back or E, slots_in and slots_out (E,).
    """

    edge_index: torch.Tensor
    offsets: torch.Tensor
    reverse: torch.Tensor
    slots_in: torch.Tensor
    depth_in: int
    slots_out: torch.Tensor
    depth_out: int

    @classmethod
    def build(cls, edge_index: torch.Tensor, offsets: torch.Tensor, num_nodes: int) -> PeriodicGraph:
        """The tables of a list of edges of ``num_nodes`` atoms."""
        source, target = edge_index
        reverse = reverse_edges(edge_index, offsets)
        return cls(edge_index, offsets, reverse, *group_slots(target, num_nodes), *group_slots(source, num_nodes))


@lru_cache
def _spherical_bessel_roots(num_spherical: int, num_radial: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First roots z_ln of the spherical Bessel functions j_l and the norms of j_l(z_ln x) on the unit ball, both (L, K) float64."""
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
    """a_ln(d, θ) = u(d) N_ln j_l(z_ln d / c) Y_l0(θ), eq. 6 of arXiv:2003.03123, as functions of one edge each.

    By the addition theorem, Y_l0(θ) = √((2l+1)/4π) P_l(cos θ) and P_l(a·b) = Σ_m Y_lm(a) Y_lm(b). The same as PyG's
    SphericalBasisLayer, without parameters. The Bessel recurrence runs in float64, because it loses digits at short distances.
    """

    def __init__(self, num_spherical: int, num_radial: int, cutoff: float, envelope_exponent: int) -> None:
        super().__init__()
        self.num_spherical, self.num_radial, self.cutoff = num_spherical, num_radial, cutoff
        self.envelope = Envelope(envelope_exponent)
        roots, norms = _spherical_bessel_roots(num_spherical, num_radial)
        degree = torch.arange(num_spherical, dtype=torch.float64)
        # Kept out of the state and of .float(): constants of the basis.
        self._roots, self._norms = roots, norms * torch.sqrt((2 * degree + 1) / (4 * math.pi))[:, None]

    def radial(self, distance: torch.Tensor) -> torch.Tensor:
        """u(d) N_ln j_l(z_ln d / c) √((2l+1)/4π): distance (E,) Å -> (E, L, K)."""
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
        """Real spherical harmonics with Σ_m Y_lm(a) Y_lm(b) = P_l(a·b): unit vectors (E, 3) -> (E, L²), l = 0 first."""
        from e3nn.o3 import spherical_harmonics

        return spherical_harmonics(list(range(self.num_spherical)), unit, normalize=False, normalization="norm")


class TripletInteraction(InteractionPPBlock):
    """PyG's interaction block with the sum over triplets k -> j -> i done per atom instead of per triplet.

    Σ_k x_kj W a(d_kj, θ) = Σ_lm Y_lm(ji) Σ_k Y_lm(kj) (x_kj W R_l(d_kj)), less the term of the edge that runs straight back (k is
    the very atom i), for which P_l(−1) = (−1)^l. The inner sum belongs to atom j alone: what grew with the square of the number of
    neighbours grows with the number.
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
        """x (E, hidden), rbf (E, K), radial (E, L, K), harmonics: (N, L², depth) of the edges into each atom and (N, depth, L²) of
        those out of it -> new messages (R, hidden) of the edges ``read``, indices (R,) or all."""
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
        """(R, channels). Never in half precision: the term that is taken away again can be the largest."""
        with torch.autocast(x_kj.device.type, enabled=False):
            x_kj = x_kj.to(radial.dtype)
            degrees, channels = radial.shape[1], x_kj.shape[1]
            weight = (self.lin_sbf2.weight @ self.lin_sbf1.weight).view(channels, degrees, -1)
            terms = torch.einsum("elk,clk->elc", radial, weight) * x_kj[:, None]
            into, out_of = harmonics
            table = terms.new_zeros(into.shape[0] * into.shape[2], degrees * channels)
            table = table.index_put((graph.slots_in,), terms.flatten(1)).view(into.shape[0], into.shape[2], -1)
            # One product for all degrees, of which each order m then takes its own: cheaper than a product per degree.
            order = torch.arange(into.shape[1], device=terms.device)
            moments = (into @ table).view(*into.shape[:2], degrees, channels)[:, order, order.to(terms.dtype).sqrt().long()]
            sums = (out_of @ moments).flatten(0, 1)[graph.slots_out[read]]
            sign = (-1.0) ** torch.arange(degrees, dtype=terms.dtype, device=terms.device)
            straight_back = torch.einsum("elc,l->ec", terms, sign)
            straight_back = torch.cat([straight_back, straight_back.new_zeros(1, channels)])
            return sums - straight_back[graph.reverse[read]]


class OutputPPBlock(nn.Module):
    """Messages to atomic outputs; unlike PyG's block, ``lin_up`` has a bias (as in OCP) and the output starts nonzero."""

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
        """x (E, hidden) -> (N, 1)."""
        x = self.lin_rbf(rbf) * x
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast, sums over many neighbours need the digits
        x = self.lin_up(scatter(x, target, 0, num_nodes, "sum"))
        for layer in self.lins:
            x = F.silu(layer(x))
        return self.lin(x)


class DimeNetPlusPlus(nn.Module):
    """Periodic DimeNet++: energy of each structure of a batch, invariant under every symmetry of the crystal.

    Inner blocks are PyG's, their triplets summed per atom; module names and shapes are those of OCP, so that its IS2RE checkpoints
    map key by key.
    """

    def __init__(self, settings: DimeNetPlusPlusConfig) -> None:
        super().__init__()
        if settings.readout not in ("adsorbate", "all"):
            raise ValueError(f"readout '{settings.readout}': choose adsorbate or all")
        if settings.readout_radius_angstrom > settings.cutoff_angstrom:
            raise ValueError("readout_radius_angstrom must not exceed cutoff_angstrom")
        self.settings = settings
        self.rbf = BesselBasisLayer(settings.num_radial, settings.cutoff_angstrom, settings.envelope_exponent)
        self.sbf = SphericalBasis(settings.num_spherical, settings.num_radial, settings.cutoff_angstrom, settings.envelope_exponent)
        self.emb = EmbeddingBlock(settings.num_radial, settings.hidden_channels, F.silu)
        self.output_blocks = nn.ModuleList(OutputPPBlock(settings) for _ in range(settings.num_blocks + 1))
        self.interaction_blocks = nn.ModuleList(
            TripletInteraction(
                settings.hidden_channels,
                settings.int_emb_size,
                settings.basis_emb_size,
                settings.num_spherical,
                settings.num_radial,
                settings.num_before_skip,
                settings.num_after_skip,
                F.silu,
            )
            for _ in range(settings.num_blocks)
        )

    @property
    def max_atomic_number(self) -> int:
        """Heaviest element of the embedding."""
        return self.emb.emb.num_embeddings - 1

    def graph(self, pos: torch.Tensor, cell: torch.Tensor, batch: torch.Tensor) -> PeriodicGraph:
        """The periodic graph (pbc T, T, F) that ``forward`` uses; indices only, so it may be computed once and kept."""
        edge_index, offsets = radius_graph_pbc(pos, cell, batch, self.settings.cutoff_angstrom, self.settings.max_neighbors)
        return PeriodicGraph.build(edge_index, offsets, pos.shape[0])

    def forward(
        self,
        z: torch.Tensor,
        pos: torch.Tensor,
        cell: torch.Tensor,
        batch: torch.Tensor,
        tags: torch.Tensor | None = None,
        graph: PeriodicGraph | None = None,
    ) -> torch.Tensor:
        """Energies (B,) in the units of the normaliser that goes with the weights.

        z: (N,) atomic numbers. pos: (N, 3) Å. cell: (B, 3, 3) Å, row vectors. batch: (N,) sorted. tags: (N,) OC20, needed by the
        adsorbate readout. Differentiable in pos and cell.
        """
        graph = self.graph(pos, cell, batch) if graph is None else graph
        source, target = graph.edge_index
        vectors = edge_vectors(pos, cell, batch, graph.edge_index, graph.offsets)
        distance = vectors.norm(dim=-1)
        # Both unit vectors of a triplet point against the message's way: their product is the cosine of PyG's and OCP's angle.
        tables = self._harmonics(vectors / distance[:, None], graph, z.shape[0])
        rbf = self.rbf(distance)
        radial = self.sbf.radial(distance)

        num_nodes = z.shape[0]
        read, weights = slice(None), None
        if self.settings.readout == "adsorbate":
            weights = self._readout_weights(distance, batch, tags, graph, cell.shape[0])
            # Messages are read where an atom has weight; leaving the others out of the output changes nothing but the time.
            read = torch.nonzero(weights[target] > 0).squeeze(1)
        x = self.emb(z, rbf, target, source)
        out = self.output_blocks[0](x[read], rbf[read], target[read], num_nodes)
        for number, (interaction, output) in enumerate(zip(self.interaction_blocks, self.output_blocks[1:], strict=True), 1):
            last = number == self.settings.num_blocks
            x = interaction(x, rbf, radial, tables, graph, read if last else slice(None))
            out = out + output(x if last else x[read], rbf[read], target[read], num_nodes)
        out = out.to(pos.dtype)
        out = out.squeeze(1) if weights is None else out.squeeze(1) * weights
        return scatter(out, batch, 0, cell.shape[0], "sum")

    def _harmonics(self, unit: torch.Tensor, graph: PeriodicGraph, num_nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Y_lm of the edges into each atom, (N, L², depth), and out of it, (N, depth, L²); zero where an atom has fewer."""
        values = self.sbf.angular(unit)
        tables = []
        for slots, depth in ((graph.slots_in, graph.depth_in), (graph.slots_out, graph.depth_out)):
            table = values.new_zeros(num_nodes * depth, values.shape[1]).index_put((slots,), values)
            tables.append(table.view(num_nodes, depth, -1))
        return tables[0].transpose(1, 2).contiguous(), tables[1]

    def _readout_weights(
        self, distance: torch.Tensor, batch: torch.Tensor, tags: torch.Tensor | None, graph: PeriodicGraph, num_graphs: int
    ) -> torch.Tensor:
        """Weight of each atom in ΔE, (N,): 1 on adsorbate atoms, u(d) on the atoms at distance d from one, divided by their number.

        ΔE belongs to one adsorbate and its surroundings. A sum over all atoms would have to cancel the sheet far away, and would
        double when a cell with its H is repeated; here the repeated cell holds twice the adsorbates and gives the same mean.
        u(x) = 1 − 10x³ + 15x⁴ − 6x⁵ goes smoothly from 1 to 0 at x = d / readout_radius.
        """
        if tags is None:
            raise ValueError("the adsorbate readout needs tags")
        adsorbate = tags == ADSORBATE_TAG
        count = scatter(adsorbate.to(distance.dtype), batch, 0, num_graphs, "sum")
        if (count == 0).any():
            raise ValueError(
                f"structure {int(torch.nonzero(count == 0)[0])} of the batch has no adsorbate atom (tag {ADSORBATE_TAG})"
            )
        source, target = graph.edge_index
        x = (distance / self.settings.readout_radius_angstrom).clamp(max=1)
        near = torch.where(adsorbate[source], 1 - x**3 * (10 - 15 * x + 6 * x**2), torch.zeros_like(x))
        return (adsorbate + scatter(near, target, 0, tags.shape[0], "sum")) / count[batch]


def load_initial_weights(
    path: str | os.PathLike, model: DimeNetPlusPlus, size: DimeNetPlusPlusConfig, member: int = 0
) -> tuple[float, float]:
    """Weights to start from, for one member of an ensemble: of a checkpoint of stage 1 (its members in turn) or of an official
    OCP/fairchem checkpoint. size: that of ``model``. Returns the target mean and std (eV).

    Raises CheckpointError when they do not fit.
    """
    try:
        content = load_checkpoint(path, DIMENET_KIND, "")
    except CheckpointError:
        return load_ocp_checkpoint(path, model)
    name = relative_name(path)
    try:
        if DimeNetPlusPlusConfig(**content["model_config"]) != size:
            raise CheckpointError(f"dimenet.init_from: {name} is a DimeNet++ of another size than dimenet.preset")
        model.load_state_dict(content["members"][member % len(content["members"])], strict=True)
        return float(content["normalizer"]["mean"]), float(content["normalizer"]["std"])
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, ZeroDivisionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(f"dimenet.init_from: {name} does not fit this version's DimeNet++ ({reason})") from error


def load_ocp_checkpoint(path: str | os.PathLike, model: DimeNetPlusPlus) -> tuple[float, float]:
    """Loads an official OCP/fairchem DimeNet++ IS2RE checkpoint into ``model``, strictly; returns its target mean and std (eV).

    Reads ``state_dict`` with any number of leading ``module.`` and ``normalizers.target`` or ``.energy`` (mean, std or rmsd).
    Raises CheckpointError naming the keys that are missing, unexpected or of another shape.
    """
    path, name = Path(path), relative_name(path)
    if not path.is_file():
        raise CheckpointError(f"dimenet.init_from: no file at {name}")
    numpy_types = [np.dtype, np.ndarray, np._core.multiarray.scalar, np._core.multiarray._reconstruct]
    numpy_types += [(t, t.__module__.replace("_core", "core") + "." + t.__name__) for t in numpy_types[2:]]
    numpy_types += [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
    try:
        with torch.serialization.safe_globals(numpy_types):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files raise many unrelated errors
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"dimenet.init_from: {name} is not a readable checkpoint ({reason})") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"dimenet.init_from: {name} has no 'state_dict', so it is no OCP checkpoint")
    state = {re.sub(r"^(module\.)+", "", str(key)): value for key, value in content["state_dict"].items()}
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"dimenet.init_from: {name} holds something else than tensors in its 'state_dict'")
    if not _is_finite(state):
        raise CheckpointError(f"dimenet.init_from: {name} holds weights that are not finite")
    expected = model.state_dict()
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"dimenet.init_from: {name} does not fit dimenet.preset: {'; '.join(problems[:3])}{more}")
    try:
        normalizers = content["normalizers"]
        normalizer = normalizers["target"] if "target" in normalizers else normalizers["energy"]
        spread = normalizer["std"] if "std" in normalizer else normalizer["rmsd"]
        mean, std = (float(torch.as_tensor(value).reshape(-1)[0]) for value in (normalizer["mean"], spread))
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"dimenet.init_from: {name} has no mean and std in normalizers.target or normalizers.energy"
        ) from error
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise CheckpointError(f"dimenet.init_from: {name} has an unusable normaliser (mean {mean}, std {std})")
    model.load_state_dict(state, strict=True)
    return mean, std


# ------------------------------------------------------------------------------------------------- generator: joint diffusion

HERMITE_2D = 1.0747  # every in-plane lattice has a vector no longer than √(2/√3 · area)
NUM_RATIO_RBF = 12  # radial functions of the distance over the sum of covalent radii
NUM_HEIGHT_RBF = 8  # radial functions of the height difference
TIME_FREQUENCIES = 16
SOFTENING = 0.5  # Å, length below which the direction of an edge fades to zero
LONGEST_VECTOR = 10.0  # of the vector channels; three times what is typical
GAIN_SIGMA = 0.1  # fractional noise below which the position output is amplified


@dataclass(frozen=True)
class DenoiserModelConfig:
    """Everything that rebuilds a ``DenoisingEGNN``, its noise schedule included. Lengths in Å."""

    hidden_channels: int = 96
    vector_channels: int = 32
    num_layers: int = 4
    num_noise_layers: int = 1
    num_rbf: int = 24
    cutoff: float = 6.0
    max_neighbors: int = 20
    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    sigma_min: float = 0.01
    sigma_max: float = 0.5


@dataclass
class NoiseEstimate:
    """frac (A, 2): score of the fractional coordinates over its root mean square, zero mean per sheet. height (A,): ε of the scaled
    heights, zero mean per sheet. lattice (B, 3): ε of the scaled S."""

    frac: torch.Tensor
    height: torch.Tensor
    lattice: torch.Tensor


@dataclass
class PropertyEstimate:
    """(B,) each: delta_g (eV), e_hull (eV/atom), synth_logit (P_synth = sigmoid)."""

    delta_g: torch.Tensor
    e_hull: torch.Tensor
    synth_logit: torch.Tensor


@dataclass
class SheetEdges:
    """Directed edges j -> i. direction (E, 2), rise (E,): softened in-plane and out-of-plane unit vectors;
    features (E, K), envelope (E,): invariant."""

    source: torch.Tensor
    target: torch.Tensor
    direction: torch.Tensor
    rise: torch.Tensor
    features: torch.Tensor
    envelope: torch.Tensor


@dataclass
class EncodedSheets:
    """What the condition-free trunk hands to the heads and to the noise branch."""

    scalars: torch.Tensor  # (A, C) invariant
    vectors: torch.Tensor  # (A, 2, V) in-plane vectors
    odd: torch.Tensor  # (A, V) scalars that change sign with z
    edges: SheetEdges
    cell: torch.Tensor  # (B, 2, 2) Å
    scaled_heights: torch.Tensor  # (A,)
    scaled_lattice: torch.Tensor  # (B, 3)
    lattice_spread: torch.Tensor  # (B, 3)
    time: torch.Tensor  # (B, C)
    alpha_bar: torch.Tensor  # (B,)
    sigma: torch.Tensor  # (B,)
    batch: torch.Tensor
    num_graphs: int


def element_descriptors() -> torch.Tensor:
    """(119, D) descriptors of the elements, row Z: group and period (one-hot), electronegativity, ionisation energy, covalent
    radius, valence electrons by shell. Standardised over the first 96 elements, so that an element absent from training is still
    placed near its relatives. Row 0 is unused."""
    import warnings

    from ase.data import covalent_radii
    from pymatgen.core import Element

    rows = torch.zeros(119, 31, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns for every noble gas that it has no electronegativity
        for number in range(1, 119):
            element = Element.from_Z(number)
            group, period = int(element.group), int(element.row)
            electronegativity = float(element.X)
            ionisation = float(element.ionization_energy or 0.0)
            is_f = element.is_lanthanoid or element.is_actinoid
            rows[number, group - 1] = 1
            rows[number, 18 + period - 1] = 1
            rows[number, 25:] = torch.tensor(
                [
                    electronegativity if electronegativity == electronegativity else 0.0,
                    ionisation,
                    float(covalent_radii[number]),
                    float(min(group, 2)),
                    float(group - 2 if 3 <= group <= 12 else group - 12 if group > 12 else 0),
                    float(number - (57 if number < 80 else 89)) if is_f else 0.0,
                ],
                dtype=torch.float64,
            )
    known = rows[1:97]
    return ((rows - known.mean(0)) / known.std(0).clamp(min=0.05)).clamp(-4, 4)


def gaussian_basis(x: torch.Tensor, low: float, high: float, count: int) -> torch.Tensor:
    """(..., count) Gaussians with centres evenly spaced on [low, high] and a width of one spacing."""
    centers = torch.linspace(low, high, count, dtype=x.dtype, device=x.device)
    return torch.exp(-(((x[..., None] - centers) * ((count - 1) / (high - low))) ** 2))


class EdgeMessage(nn.Module):
    """(E, C) invariant hidden state of each edge, from both ends, distances, and the angles of the vectors with the edge."""

    def __init__(self, channels: int, vector_channels: int, edge_features: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.from_source = nn.Linear(channels, channels)
        self.from_target = nn.Linear(channels, channels, bias=False)
        self.from_edge = nn.Linear(edge_features + 2 * vector_channels, channels, bias=False)

    def forward(self, scalars: torch.Tensor, vectors: torch.Tensor, odd: torch.Tensor, edges: SheetEdges) -> torch.Tensor:
        x = self.norm(scalars)
        along = (vectors[edges.source] * edges.direction[..., None]).sum(1)
        above = odd[edges.source] * edges.rise[:, None]
        edge = self.from_edge(torch.cat([edges.features, along, above], -1))
        return nn.functional.silu(self.from_source(x)[edges.source] + self.from_target(x)[edges.target] + edge)


class SheetInteraction(nn.Module):
    """One round of messages on invariant scalars, in-plane vectors and z-odd scalars.

    Follows PaiNN (Schütt, Unke, Gastegger 2021) with the symmetry of a sheet: O(2) in the plane times z -> −z, so that vectors
    split into an in-plane part and a number that is odd in z, with weights of their own.
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
        """scalars (A, C), vectors (A, 2, V), odd (A, V), time (B, C) -> the same three, updated."""
        gates = self.gates(self.edge(scalars, vectors, odd, edges)) * edges.envelope[:, None]
        message, keep, point, keep_odd, rise = torch.split(gates, self.sizes, -1)
        push = vectors[edges.source] * keep[:, None] + edges.direction[..., None] * point[:, None]
        lift = odd[edges.source] * keep_odd + edges.rise[:, None] * rise
        count = scalars.shape[0]
        scalars = scalars + _gather(message, edges.target, count)
        vectors = vectors + _gather(push, edges.target, count)
        odd = odd + _gather(lift, edges.target, count)

        x = self.norm(scalars + self.time(time)[batch])
        first, second = self.mix_vectors(vectors).chunk(2, -1)
        odd_first, odd_second = self.mix_odd(odd).chunk(2, -1)
        invariants = [
            x,
            graph_mean(x, batch, num_graphs)[batch],
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


def _bounded(values: torch.Tensor, squared: torch.Tensor) -> torch.Tensor:
    """Values of the given squared lengths, shortened smoothly to ``LONGEST_VECTOR``; those of a third of it change by 0.3 %.

    The products of vectors in an update grow with the cube of their length from layer to layer, and where many neighbours stand in
    line, as on a mirror of a noised symmetric sheet, without end."""
    return values * (1 + (squared / LONGEST_VECTOR**2) ** 2) ** -0.25


def _gather(messages: torch.Tensor, target: torch.Tensor, count: int) -> torch.Tensor:
    """Sum of the messages at their targets, over the root of a typical number of neighbours."""
    return scatter(messages, target, dim=0, dim_size=count, reduce="sum") * 0.25


class DenoisingEGNN(nn.Module):
    """Noise estimates and properties of noised sheets, by messages on the periodic graph of the NOISED sheet.

    A trunk that sees elements, geometry and time feeds two branches. The heads (ΔG_H, E_hull, P_synth) read the trunk and nothing
    else. The noise branch adds the conditions, each with a learned null token for "unknown", and passes messages once more.
    Position noise is Σ_j φ(m_ij) r̂_ij plus the atom's own vector channels, its in-plane part mapped to fractional coordinates with
    the cell; the lattice noise is the strain Σ_ij φ(m_ij) r̂_ij r̂_ijᵀ carried over to S. Heights and lattice are estimated as v
    (Salimans & Ho 2022), ε = √(1−ᾱ) x_t + √ᾱ v, so that an untrained network already predicts pure noise where there is nothing
    else.

    Exact symmetries: in-plane rotation and reflection, z -> −z, translation, permutation, wrapping; for positions and heads also
    the choice of the in-plane lattice basis.
    """

    def __init__(self, config: DenoiserModelConfig):
        super().__init__()
        self.config = config
        c, v = config.hidden_channels, config.vector_channels
        self.schedule = NoiseSchedule(config.num_timesteps, config.beta_start, config.beta_end, config.sigma_min, config.sigma_max)
        self.register_buffer("descriptors", element_descriptors().float())
        self.register_buffer("label_mean", torch.zeros(2))  # ΔG_H, E_hull
        self.register_buffer("label_std", torch.ones(2))
        self.element = nn.Embedding(119, c)
        nn.init.normal_(self.element.weight, std=0.1)
        self.describe = nn.Sequential(nn.Linear(self.descriptors.shape[1], c), nn.SiLU(), nn.Linear(c, c))
        self.time = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES + 2, c), nn.SiLU(), nn.Linear(c, c))
        self.graph = nn.Linear(3, c)
        self.height = nn.Linear(1, v, bias=False)
        edge_features = 2 * config.num_rbf + NUM_RATIO_RBF + NUM_HEIGHT_RBF
        self.trunk = nn.ModuleList(SheetInteraction(c, v, edge_features) for _ in range(config.num_layers))

        self.head_nodes = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, c), nn.SiLU())
        self.heads = nn.Sequential(nn.Linear(2 * c, c), nn.SiLU(), nn.Linear(c, 3))

        self.condition = nn.ModuleList(nn.Sequential(nn.Linear(3, c), nn.SiLU(), nn.Linear(c, c)) for _ in range(2))
        self.null = nn.Parameter(0.1 * torch.randn(2, c))
        self.condition_mix = nn.Sequential(nn.SiLU(), nn.Linear(c, c))
        self.noise_layers = nn.ModuleList(SheetInteraction(c, v, edge_features) for _ in range(config.num_noise_layers))
        self.noise_edge = EdgeMessage(c, v, edge_features)
        self.edge_gates = nn.Linear(c, 3)
        self.node_norm = nn.LayerNorm(c)
        self.node_gates = nn.Linear(c, 3 * v + 1)
        self.graph_gates = nn.Linear(c, 3)
        for layer in (self.edge_gates, self.node_gates, self.graph_gates):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def encode(
        self,
        atomic_numbers: torch.Tensor,
        frac_coords: torch.Tensor,
        heights: torch.Tensor,
        cell: torch.Tensor,
        batch: torch.Tensor,
        t: torch.Tensor,
    ) -> EncodedSheets:
        """The condition-free trunk. atomic_numbers (A,), frac_coords (A, 2), heights (A,) Å, cell (B, 2, 2) Å with row vectors in
        any in-plane orientation, batch (A,) sorted, t (B,) in 0..T. Differentiable in coordinates, heights and cell."""
        count, dtype = cell.shape[0], frac_coords.dtype
        num_atoms = torch.bincount(batch, minlength=count)
        heights = center(heights, batch, count)
        scaled_heights = self.schedule.scale_heights(heights, batch, num_atoms)
        with torch.no_grad():
            vector = lattice_to_vector(cell)
            scaled_lattice = self.schedule.scale_lattice(vector, atomic_numbers, batch, num_atoms)
        mean, spread = (m.to(dtype) for m in self.schedule.lattice_moments(atomic_numbers, batch, num_atoms))
        area = cell[:, 0, 0] * cell[:, 1, 1] - cell[:, 0, 1] * cell[:, 1, 0]
        stretch = (torch.log(area.abs()) - mean[:, 0] - mean[:, 1]) / (spread[:, 0] + spread[:, 1])
        rms_height = torch.sqrt(graph_mean(scaled_heights**2, batch, count) + 1e-6)
        size = torch.log(num_atoms.to(dtype) / 4)

        alpha_bar = self.schedule.alphas_cumprod[t].to(dtype)
        edges = self._edges(atomic_numbers, frac_coords, heights, cell, batch, area, alpha_bar)
        phase = (t.to(dtype) / self.schedule.num_timesteps)[:, None]
        frequencies = 0.5 * math.pi * torch.arange(1, TIME_FREQUENCIES + 1, dtype=dtype, device=cell.device)
        time = self.time(
            torch.cat([phase, alpha_bar.sqrt()[:, None], torch.sin(phase * frequencies), torch.cos(phase * frequencies)], -1)
        )
        per_graph = time + self.graph(torch.stack([size, stretch, rms_height], -1))
        scalars = self.element(atomic_numbers) + self.describe(self.descriptors[atomic_numbers]) + per_graph[batch]
        odd = self.height(scaled_heights[:, None])
        vectors = frac_coords.new_zeros(scalars.shape[0], 2, self.config.vector_channels)
        for layer in self.trunk:
            scalars, vectors, odd = layer(scalars, vectors, odd, edges, time, batch, count)
        sigma = self.schedule.sigmas[t].clamp(min=float(self.schedule.sigmas[1])).to(dtype)
        return EncodedSheets(
            scalars, vectors, odd, edges, cell, scaled_heights, scaled_lattice, spread, time, alpha_bar, sigma, batch, count
        )

    def _edges(
        self,
        atomic_numbers: torch.Tensor,
        frac_coords: torch.Tensor,
        heights: torch.Tensor,
        cell: torch.Tensor,
        batch: torch.Tensor,
        area: torch.Tensor,
        alpha_bar: torch.Tensor,
    ) -> SheetEdges:
        config, dtype = self.config, cell.dtype
        pos = torch.cat([torch.einsum("nk,nkc->nc", frac_coords, cell[batch]), heights[:, None]], -1)
        cell3 = nn.functional.pad(cell, (0, 1, 0, 1)) + torch.diag(cell.new_tensor([0.0, 0.0, 1.0]))
        # Neighbours are ranked with heights counted as far as they can be trusted: noise in z must not break up in-plane shells.
        trusted = pos.detach() * torch.stack([torch.ones_like(alpha_bar), torch.ones_like(alpha_bar), alpha_bar.sqrt()], -1)[batch]
        # The shortest lattice vector is always within the cutoff: every atom has neighbours however strange the noised cell.
        cutoff = torch.clamp(HERMITE_2D * area.detach().abs().sqrt(), min=config.cutoff)
        edge_index, offsets = radius_graph_pbc(
            trusted, cell3.detach(), batch, cutoff, config.max_neighbors, pbc=(True, True, False)
        )
        source, target = edge_index
        vector = edge_vectors(pos, cell3, batch, edge_index, offsets.to(dtype))
        lateral = torch.sqrt((vector[:, :2] ** 2).sum(-1) + 1e-6)
        rise = vector[:, 2]
        distance = torch.sqrt(lateral**2 + rise**2)
        radii = self.schedule.radii.to(dtype)[atomic_numbers]
        features = torch.cat(
            [
                gaussian_basis(distance, 0.0, config.cutoff, config.num_rbf),
                gaussian_basis(distance / (radii[source] + radii[target]), 0.4, 2.4, NUM_RATIO_RBF),
                gaussian_basis(lateral, 0.0, config.cutoff, config.num_rbf),
                gaussian_basis(torch.sqrt(rise**2 + 1e-6), 0.0, 4.0, NUM_HEIGHT_RBF),
            ],
            -1,
        )
        x = torch.sqrt(lateral**2 + alpha_bar[batch[target]] * rise**2) / (cutoff[batch[target]] * 1.01)
        envelope = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
        # Softened unit vectors: linear near zero, so that atoms on top of each other still tell by how much they are displaced.
        direction = vector[:, :2] / torch.sqrt(lateral**2 + SOFTENING**2)[:, None]
        return SheetEdges(source, target, direction, rise / torch.sqrt(rise**2 + SOFTENING**2), features, envelope)

    def properties(self, encoded: EncodedSheets) -> PropertyEstimate:
        """ΔG_H, E_hull and the synthesizability logit of the noised sheets; functions of the trunk, never of the conditions."""
        nodes = self.head_nodes(encoded.scalars)
        pooled = torch.cat(
            [
                graph_mean(nodes, encoded.batch, encoded.num_graphs),
                scatter(nodes, encoded.batch, dim=0, dim_size=encoded.num_graphs, reduce="max"),
            ],
            -1,
        )
        out = self.heads(pooled)
        values = out[:, :2] * self.label_std + self.label_mean
        return PropertyEstimate(values[:, 0], values[:, 1], out[:, 2])

    def _context(self, encoded: EncodedSheets, delta_g: torch.Tensor | None, e_hull: torch.Tensor | None) -> torch.Tensor:
        """(B, C) embedding of the conditions; nan or None is the null token."""
        dtype, total = encoded.cell.dtype, 0
        for k, value in enumerate((delta_g, e_hull)):
            null = self.null[k].expand(encoded.num_graphs, -1)
            if value is None:
                total = total + null
                continue
            known = torch.isfinite(value)
            x = torch.where(known, (value.to(dtype) - self.label_mean[k]) / self.label_std[k], torch.zeros_like(value, dtype=dtype))
            x = x.clamp(-4, 4)
            token = self.condition[k](torch.stack([x, x.abs(), torch.exp(-(x**2))], -1))
            total = total + torch.where(known[:, None], token, null)
        return self.condition_mix(total)

    def noise(
        self, encoded: EncodedSheets, delta_g: torch.Tensor | None = None, e_hull: torch.Tensor | None = None
    ) -> NoiseEstimate:
        """Noise of the encoded sheets under target conditions (B,) in eV and eV/atom; nan or None: unconditional."""
        edges, batch, count = encoded.edges, encoded.batch, encoded.num_graphs
        time = encoded.time + self._context(encoded, delta_g, e_hull)
        scalars, vectors, odd = encoded.scalars + time[batch], encoded.vectors, encoded.odd
        for layer in self.noise_layers:
            scalars, vectors, odd = layer(scalars, vectors, odd, edges, time, batch, count)

        v = self.config.vector_channels
        node = self.node_norm(scalars)
        gates = self.node_gates(node)
        edge_gates = self.edge_gates(self.noise_edge(scalars, vectors, odd, edges)) * edges.envelope[:, None]
        push = _gather(edge_gates[:, :1] * edges.direction, edges.target, scalars.shape[0])
        push = center(push + (vectors * gates[:, None, :v]).sum(-1), batch, count)
        # The finer the noise, the larger the answer to the same displacement.
        push = push * torch.sqrt(GAIN_SIGMA / encoded.sigma).clamp(min=1.0)[batch, None]
        area = torch.linalg.det(encoded.cell).abs()
        to_frac = torch.linalg.inv(encoded.cell) * area.sqrt()[:, None, None]
        frac = torch.einsum("nc,nck->nk", push, to_frac[batch])

        lift = _gather(edge_gates[:, 1] * edges.rise, edges.target, scalars.shape[0])
        lift = lift + (odd * gates[:, v : 2 * v]).sum(-1) + gates[:, -1] * encoded.scaled_heights
        a, s = encoded.alpha_bar.sqrt(), (1 - encoded.alpha_bar).sqrt()
        height = center(s[batch] * encoded.scaled_heights + a[batch] * lift, batch, count)

        pair = edges.direction[:, :, None] * edges.direction[:, None, :] * edge_gates[:, 2, None, None]
        outer = torch.einsum("nav,nbv,nv->nab", vectors, vectors, gates[:, 2 * v : 3 * v]) / v
        strain = graph_mean(_gather(pair, edges.target, scalars.shape[0]) + outer, batch, count)
        spread = encoded.lattice_spread
        lattice = strain_to_lattice_vector(strain, encoded.cell) * (spread.mean(1, keepdim=True) / spread)
        lattice = lattice + self.graph_gates(graph_mean(node, batch, count)) * encoded.scaled_lattice
        return NoiseEstimate(frac, height, s[:, None] * encoded.scaled_lattice + a[:, None] * lattice)

    def forward(
        self,
        atomic_numbers: torch.Tensor,
        frac_coords: torch.Tensor,
        heights: torch.Tensor,
        cell: torch.Tensor,
        batch: torch.Tensor,
        t: torch.Tensor,
        delta_g: torch.Tensor | None = None,
        e_hull: torch.Tensor | None = None,
    ) -> tuple[NoiseEstimate, PropertyEstimate]:
        """Noise under the conditions, and properties; arguments as in ``encode`` and ``noise``."""
        encoded = self.encode(atomic_numbers, frac_coords, heights, cell, batch, t)
        return self.noise(encoded, delta_g, e_hull), self.properties(encoded)


def strain_to_lattice_vector(strain: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """The change of S = ½ log(L Lᵀ) under a small symmetric strain, L -> L (1 + ε).

    strain: (B, 2, 2) in the Cartesian frame of the cell. cell: (B, 2, 2) row vectors. Returns (B, 3).
    With L = P Q, P = exp(S) and Q orthogonal, the strain in the frame of P is Q ε Qᵀ. From L Lᵀ = P (1 + 2ε) P the derivative of
    the matrix logarithm scales what is off-diagonal in the eigenbasis of S by x / sinh x, x the difference of log stretches, and
    leaves the rest.
    """
    gram = cell @ cell.transpose(1, 2)
    root_det = torch.linalg.det(gram).clamp(min=1e-12).sqrt()[:, None, None]
    identity = torch.eye(2, dtype=cell.dtype, device=cell.device)
    trace = gram.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    stretch = (gram + root_det * identity) / torch.sqrt(trace + 2 * root_det)  # square root of a 2x2 positive matrix
    rotation = torch.linalg.solve(stretch, cell)
    local = rotation @ strain @ rotation.transpose(1, 2)
    vector = lattice_to_vector(cell)
    deviator = torch.stack([0.5 * (vector[:, 0] - vector[:, 1]), vector[:, 2]], -1)
    squared = (deviator**2).sum(-1)
    x = 2 * torch.sqrt(squared + 1e-30)
    factor = torch.where(squared > 1e-6, (1 - x / torch.sinh(x)) / squared.clamp(min=1e-12), 2 / 3 - 14 * squared / 45)
    shear = torch.stack([0.5 * (local[:, 0, 0] - local[:, 1, 1]), 0.5 * (local[:, 0, 1] + local[:, 1, 0])], -1)
    parallel = (shear * deviator).sum(-1, keepdim=True) * deviator
    shear = shear - factor[:, None] * (squared[:, None] * shear - parallel)
    mean = 0.5 * (local[:, 0, 0] + local[:, 1, 1])
    return torch.stack([mean + shear[:, 0], mean - shear[:, 0], shear[:, 1]], -1)


def load_denoiser(path: str | os.PathLike, hint: str, device: str | torch.device = "cpu") -> tuple[DenoisingEGNN, dict[str, Any]]:
    """The trained model (EMA weights, evaluation mode, frozen) with its schedule, and the rest of the checkpoint."""
    content = load_checkpoint(path, "denoiser", hint, device)
    try:
        model = DenoisingEGNN(DenoiserModelConfig(**content["model_config"]))
        model.load_state_dict(content["model"], strict=True)
    except Exception as error:  # settings and weights of another origin raise many unrelated errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise CheckpointError(f"{relative_name(path)} does not fit this version ({reason}): {hint}") from error
    return model.to(device).eval().requires_grad_(False), content
