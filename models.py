"""The two networks: DimeNet++ (hydrogen adsorption energies) and DenoisingEGNN (joint diffusion of 2D crystals).

A checkpoint holds the settings of its model, so that the file alone rebuilds it. It is read with ``weights_only=True`` and checked
for kind, schema and exact keys: the weights of another model are refused.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from crystals.elements import element_descriptors
from generation.batch import NoiseEstimate, PropertyEstimate
from generation.schedule import NoiseSchedule
from geo_utils import H_TAG as ADSORBATE_TAG
from geo_utils import determinant_2x2, inverse_2x2, lattice_to_vector
from networks.checkpoints import CheckpointError, first_line, load_checkpoint, load_ocp_checkpoint
from networks.dimenet_layers import (
    DimeNetPlusPlusConfig,
    EmbeddingBlock,
    OutputPPBlock,
    PeriodicGraph,
    RadialBasis,
    SphericalBasis,
    TripletInteraction,
)
from networks.graph import center, edge_table, edge_vectors, graph_mean, radius_graph_pbc, scatter_max, scatter_sum
from networks.sheet_layers import (
    GAIN_SIGMA,
    HEIGHT_RANGE,
    HERMITE_2D,
    NUM_HEIGHT_RBF,
    NUM_RATIO_RBF,
    RATIO_RANGE,
    SOFTENING,
    TIME_FREQUENCIES,
    EdgeMessage,
    EncodedSheets,
    SheetEdges,
    SheetInteraction,
    strain_to_lattice_vector,
)
from pipeline.files import relative_name

DIMENET_KIND = "dimenet"


class DimeNetPlusPlus(nn.Module):
    """Periodic DimeNet++: energy of each structure of a batch, invariant under every symmetry of the crystal.

    The sum over triplets is done per atom (``networks.dimenet_layers.TripletInteraction``). Names and shapes of the modules are
    those of OCP and PyTorch Geometric, so that OCP's IS2RE checkpoints load key by key.
    """

    def __init__(self, settings: DimeNetPlusPlusConfig) -> None:
        super().__init__()
        if settings.readout not in ("adsorbate", "all"):
            raise ValueError(f"readout '{settings.readout}': choose adsorbate or all")
        if settings.readout_radius_angstrom > settings.cutoff_angstrom:
            raise ValueError("readout_radius_angstrom must not exceed cutoff_angstrom")
        self.settings = settings
        self.rbf = RadialBasis(settings.num_radial, settings.cutoff_angstrom, settings.envelope_exponent)
        self.sbf = SphericalBasis(settings.num_spherical, settings.num_radial, settings.cutoff_angstrom, settings.envelope_exponent)
        self.emb = EmbeddingBlock(settings.num_radial, settings.hidden_channels)
        self.output_blocks = nn.ModuleList(OutputPPBlock(settings) for _ in range(settings.num_blocks + 1))
        self.interaction_blocks = nn.ModuleList(TripletInteraction(settings) for _ in range(settings.num_blocks))

    @property
    def max_atomic_number(self) -> int:
        """Return the largest atomic number that the embedding has."""
        return self.emb.emb.num_embeddings - 1

    def graph(self, pos: torch.Tensor, cell: torch.Tensor, batch: torch.Tensor) -> PeriodicGraph:
        """Return the periodic graph (pbc T, T, F) that ``forward`` uses, for the same arguments.

        It holds no gradients, so that it can be computed once and passed to ``forward`` in every epoch.
        """
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
        """Return the energies (B,), normalised: the mean and std beside the weights turn them into eV.

        Differentiable in ``pos`` and ``cell``.

        Args:
            z: (N,) atomic numbers.
            pos: (N, 3) Å.
            cell: (B, 3, 3) Å, row vectors.
            batch: (N,) structure of each atom, sorted.
            tags: (N,) tags of OC20; the adsorbate readout needs them.
            graph: what ``graph`` returns for these structures; computed here where it is None.

        Raises:
            ValueError: the readout is of the adsorbate, and a structure has none.
        """
        graph = self.graph(pos, cell, batch) if graph is None else graph
        source, target = graph.edge_index
        with torch.autocast(pos.device.type, enabled=False):  # lengths in half precision are off by hundredths of an Å
            vectors = edge_vectors(pos, cell, batch, graph.edge_index, graph.offsets)
        distance = vectors.norm(dim=-1)
        # Both unit vectors of a triplet point against their messages, so that their product is the cosine of PyG's and OCP's angle.
        tables = self._harmonics(vectors / distance[:, None], graph, z.shape[0])
        rbf = self.rbf(distance)
        radial = self.sbf.radial(distance)

        num_nodes = z.shape[0]
        read, weights = slice(None), None
        if self.settings.readout == "adsorbate":
            weights = self.readout_weights(distance, batch, tags, graph, cell.shape[0])
            # Only atoms with a weight count. Leaving the messages to other atoms out of the output blocks saves time, no more.
            read = torch.nonzero(weights[target] > 0).squeeze(1)
        x = self.emb(z, rbf, target, source)
        out = self.output_blocks[0](x[read], rbf[read], target[read], num_nodes)
        for number, (interaction, output) in enumerate(zip(self.interaction_blocks, self.output_blocks[1:], strict=True), 1):
            last = number == self.settings.num_blocks
            x = interaction(x, rbf, radial, tables, graph, read if last else slice(None))
            out = out + output(x if last else x[read], rbf[read], target[read], num_nodes)
        out = out.to(pos.dtype)
        out = out.squeeze(1) if weights is None else out.squeeze(1) * weights
        return scatter_sum(out, batch, cell.shape[0])

    def _harmonics(self, unit: torch.Tensor, graph: PeriodicGraph, num_nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return Y_lm of the edges into each atom, (N, L², depth), and out of it, (N, depth, L²).

        depth is the largest number of such edges of an atom; atoms with fewer have zeros in the rest.
        """
        values = self.sbf.angular(unit)
        tables = []
        for slots, depth in ((graph.slots_in, graph.depth_in), (graph.slots_out, graph.depth_out)):
            table = values.new_zeros(num_nodes * depth, values.shape[1]).index_put((slots,), values)
            tables.append(table.view(num_nodes, depth, -1))
        return tables[0].transpose(1, 2).contiguous(), tables[1]

    def readout_weights(
        self, distance: torch.Tensor, batch: torch.Tensor, tags: torch.Tensor | None, graph: PeriodicGraph, num_graphs: int
    ) -> torch.Tensor:
        """Return the weight of each atom in ΔE, (N,).

        The weight is 1 on an adsorbate atom plus u(d) for each adsorbate atom at distance d, over the number of adsorbate atoms of
        the structure. u(x) = 1 − 10x³ + 15x⁴ − 6x⁵ goes smoothly from 1 at x = 0 to 0 at x = d / readout_radius = 1.

        ΔE belongs to one adsorbate and its surroundings. A sum over all atoms would have to cancel the sheet far away, and would
        double when a cell with its H is repeated. With these weights the repeated cell holds twice the adsorbates and gives the
        same mean.

        Args:
            distance: (E,) Å, lengths of the edges of ``graph``.
            batch: (N,) structure of each atom.
            tags: (N,) tags of OC20.
            graph: of the same atoms.
            num_graphs: number of structures.

        Raises:
            ValueError: ``tags`` is None, or a structure has no adsorbate atom.
        """
        if tags is None:
            raise ValueError("the adsorbate readout needs tags")
        adsorbate = tags == ADSORBATE_TAG
        count = scatter_sum(adsorbate.to(distance.dtype), batch, num_graphs)
        if (count == 0).any():
            raise ValueError(
                f"structure {int(torch.nonzero(count == 0)[0])} of the batch has no adsorbate atom (tag {ADSORBATE_TAG})"
            )
        source, target = graph.edge_index
        x = (distance / self.settings.readout_radius_angstrom).clamp(max=1)
        near = torch.where(adsorbate[source], 1 - x**3 * (10 - 15 * x + 6 * x**2), torch.zeros_like(x))
        return (adsorbate + scatter_sum(near, target, tags.shape[0])) / count[batch]


def load_initial_weights(
    path: str | os.PathLike, model: DimeNetPlusPlus, size: DimeNetPlusPlusConfig, member: int = 0
) -> tuple[float, float]:
    """Load the weights that the training of one member of an ensemble starts from.

    Args:
        path: checkpoint of stage 1, or an official OCP/fairchem checkpoint.
        model: takes the weights.
        size: settings of ``model``.
        member: number of the member; it takes the checkpoint's member of that number, counted cyclically.

    Returns:
        Mean and standard deviation of the target (eV).

    Raises:
        CheckpointError: the file cannot be read, or its weights do not fit the model.
    """
    try:
        content = load_checkpoint(path, DIMENET_KIND, "")
    except CheckpointError:
        return load_ocp_checkpoint(path, model)
    name = relative_name(path)
    try:
        if type(size)(**content["model_config"]) != size:
            raise CheckpointError(f"dimenet.init_from: {name} is a DimeNet++ of another size than dimenet.preset")
        model.load_state_dict(content["members"][member % len(content["members"])], strict=True)
        return float(content["normalizer"]["mean"]), float(content["normalizer"]["std"])
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"dimenet.init_from: {name} does not fit this version's DimeNet++ ({first_line(error)})") from error


@dataclass(frozen=True)
class DenoiserModelConfig:
    """Settings of a ``DenoisingEGNN`` and of its noise schedule. Lengths in Å."""

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


class DenoisingEGNN(nn.Module):
    """Equivariant graph network that estimates the noise and the properties of noised sheets.

    Messages run on the periodic graph of the noised sheet. A trunk that sees elements, geometry and time feeds two branches. The
    heads (ΔG_H, E_hull, P_synth) read the trunk and nothing else. The noise branch adds the conditions, each with a learned null
    token for "unknown", and passes messages once more.

    The position noise is Σ_j φ(m_ij) r̂_ij plus the atom's own vector channels; the cell maps its in-plane part to fractional
    coordinates. The lattice noise is the change of S under the strain Σ_ij φ(m_ij) r̂_ij r̂_ijᵀ. Heights and lattice are estimated
    as v (Salimans & Ho 2022), ε = √(1−ᾱ) x_t + √ᾱ v: where x_t is pure noise (ᾱ near 0), an untrained network already estimates
    it.

    Exact symmetries: in-plane rotation and reflection, z -> −z, translation, permutation, wrapping. Positions and heads do not
    depend on the choice of the in-plane lattice basis either.
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
        """Run the trunk, which sees no conditions. Differentiable in coordinates, heights and cell.

        Args:
            atomic_numbers: (A,).
            frac_coords: (A, 2) in-plane fractional coordinates, wrapped or not.
            heights: (A,) Å.
            cell: (B, 2, 2) Å, row vectors in any in-plane orientation.
            batch: (A,) sheet of each atom, sorted.
            t: (B,) times in 0..T.

        Returns:
            What ``noise`` and ``properties`` take.
        """
        count, dtype = cell.shape[0], frac_coords.dtype
        num_atoms = torch.bincount(batch, minlength=count)
        heights = center(heights, batch, count)
        scaled_heights = self.schedule.scale_heights(heights, batch, num_atoms)
        mean, spread = (m.to(dtype) for m in self.schedule.lattice_moments(atomic_numbers, batch, num_atoms))
        with torch.no_grad():
            vector = lattice_to_vector(cell)
            scaled_lattice = (vector - mean) / spread
        area = determinant_2x2(cell)
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
            scalars, vectors, odd, edges, cell, vector, scaled_heights, scaled_lattice, spread, time, alpha_bar, sigma, batch, count
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
        """Return the edges of the noised sheets; ``area``, ``alpha_bar`` (B,) belong to their cells and times."""
        config, dtype = self.config, cell.dtype
        pos = torch.cat([torch.einsum("nk,nkc->nc", frac_coords, cell[batch]), heights[:, None]], -1)
        cell3 = nn.functional.pad(cell, (0, 1, 0, 1)) + torch.diag(cell.new_tensor([0.0, 0.0, 1.0]))
        # Neighbours are ranked with heights times √ᾱ, the share that is not noise: noise in z must not break up in-plane shells.
        trusted = pos.detach() * torch.stack([torch.ones_like(alpha_bar), torch.ones_like(alpha_bar), alpha_bar.sqrt()], -1)[batch]
        # The shortest lattice vector is always within the cutoff, so that every atom has neighbours in any noised cell.
        cutoff = torch.clamp(HERMITE_2D * area.detach().abs().sqrt(), min=config.cutoff)
        source, offsets, is_edge = edge_table(
            *radius_graph_pbc(trusted, cell3.detach(), batch, cutoff, config.max_neighbors, pbc=(True, True, False)), len(batch)
        )
        vector = pos[source] - pos[:, None] + offsets.to(dtype) @ cell3[batch]
        lateral = torch.sqrt((vector[..., :2] ** 2).sum(-1) + 1e-6)
        rise = vector[..., 2]
        distance = torch.sqrt(lateral**2 + rise**2)
        radii = self.schedule.radii.to(dtype)[atomic_numbers]
        counts = config.num_rbf, NUM_RATIO_RBF, config.num_rbf, NUM_HEIGHT_RBF
        lengths = distance, distance / (radii[source] + radii[:, None]), lateral, torch.sqrt(rise**2 + 1e-6)
        ranges = (0.0, config.cutoff), RATIO_RANGE, (0.0, config.cutoff), HEIGHT_RANGE
        scaled = [(x - low) * ((n - 1) / (high - low)) for x, n, (low, high) in zip(lengths, counts, ranges, strict=True)]
        x = torch.sqrt(lateral**2 + alpha_bar[batch, None] * rise**2) / (cutoff[batch, None] * 1.01)
        envelope = (1 - 10 * x**3 + 15 * x**4 - 6 * x**5) * is_edge
        # Softened unit vectors are linear near zero, so that the displacement of nearly coincident atoms is not lost.
        direction = vector[..., :2] / torch.sqrt(lateral**2 + SOFTENING**2)[..., None]
        return SheetEdges(source, direction, rise / torch.sqrt(rise**2 + SOFTENING**2), torch.stack(scaled, -1), counts, envelope)

    def properties(self, encoded: EncodedSheets) -> PropertyEstimate:
        """Return ΔG_H, E_hull and the synthesizability logit of the noised sheets, from the trunk alone."""
        nodes = self.head_nodes(encoded.scalars)
        pooled = torch.cat(
            [
                graph_mean(nodes, encoded.batch, encoded.num_graphs),
                scatter_max(nodes, encoded.batch, encoded.num_graphs),
            ],
            -1,
        )
        out = self.heads(pooled)
        values = out[:, :2] * self.label_std + self.label_mean
        return PropertyEstimate(values[:, 0], values[:, 1], out[:, 2])

    def _context(self, encoded: EncodedSheets, delta_g: torch.Tensor | None, e_hull: torch.Tensor | None) -> torch.Tensor:
        """Return the embedding (B, C) of the conditions; nan or None is the null token."""
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
        """Estimate the noise of the encoded sheets.

        Args:
            encoded: what ``encode`` returns.
            delta_g: (B,) eV, the ΔG_H that is asked for; nan or None: any.
            e_hull: (B,) eV/atom, the E_hull that is asked for; nan or None: any.
        """
        edges, batch, count = encoded.edges, encoded.batch, encoded.num_graphs
        time = encoded.time + self._context(encoded, delta_g, e_hull)
        scalars, vectors, odd = encoded.scalars + time.index_select(0, batch), encoded.vectors, encoded.odd
        for layer in self.noise_layers:
            scalars, vectors, odd = layer(scalars, vectors, odd, edges, time, batch, count)

        v = self.config.vector_channels
        node = self.node_norm(scalars)
        gates = self.node_gates(node)
        sums = self.noise_edge(scalars, vectors, odd, edges, edges.second_moments)
        points, rises, pairs = self._edge_gated(sums, edges)
        push = center(points + (vectors * gates[:, None, :v]).sum(-1), batch, count)
        # The normalised score of a displacement grows as the noise gets finer, and so does this gain.
        push = push * torch.sqrt(GAIN_SIGMA / encoded.sigma).clamp(min=1.0)[batch, None]
        area = determinant_2x2(encoded.cell).abs()
        to_frac = inverse_2x2(encoded.cell) * area.sqrt()[:, None, None]
        frac = torch.bmm(push[:, None], to_frac.index_select(0, batch))[:, 0]

        lift = rises + (odd * gates[:, v : 2 * v]).sum(-1) + gates[:, -1] * encoded.scaled_heights
        a, s = encoded.alpha_bar.sqrt(), (1 - encoded.alpha_bar).sqrt()
        height = center(s[batch] * encoded.scaled_heights + a[batch] * lift, batch, count)

        outer = torch.bmm(vectors * gates[:, None, 2 * v : 3 * v], vectors.transpose(1, 2)) / v
        strain = graph_mean(pairs + outer, batch, count)
        spread = encoded.lattice_spread
        lattice = strain_to_lattice_vector(strain, encoded.cell, encoded.lattice_vector) * (spread.mean(1, keepdim=True) / spread)
        lattice = lattice + self.graph_gates(graph_mean(node, batch, count)) * encoded.scaled_lattice
        return NoiseEstimate(frac, height, s[:, None] * encoded.scaled_lattice + a[:, None] * lattice)

    def _edge_gated(self, sums: torch.Tensor, edges: SheetEdges) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return Σ_j φ r̂ in the plane (A, 2), Σ_j φ rise (A,) and Σ_j φ r̂ r̂ᵀ in the plane (A, 2, 2) of the sums (A, 7, C)."""
        constants = edges.second_moments.sum(1)
        parts = [
            sums[:, rows] @ weight + constants[:, rows] * bias
            for rows, weight, bias in zip((slice(1, 3), 3, slice(4, 7)), self.edge_gates.weight, self.edge_gates.bias, strict=True)
        ]
        return parts[0], parts[1], parts[2][:, [0, 1, 1, 2]].view(-1, 2, 2)

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
        """Return the noise under the conditions, and the properties; arguments as in ``encode`` and ``noise``."""
        encoded = self.encode(atomic_numbers, frac_coords, heights, cell, batch, t)
        return self.noise(encoded, delta_g, e_hull), self.properties(encoded)


def load_denoiser(path: str | os.PathLike, hint: str, device: str | torch.device = "cpu") -> tuple[DenoisingEGNN, dict[str, Any]]:
    """Return a trained model with its schedule, and the whole content of its checkpoint.

    The model has the averaged (EMA) weights, is in evaluation mode and frozen.

    Args:
        path: checkpoint of stage 3.
        hint: what the user can do about one that cannot be used; a part of the message.
        device: where the model is put.

    Raises:
        CheckpointError: the file is missing, damaged, or of another version.
    """
    content = load_checkpoint(path, "denoiser", hint, device)
    try:
        model = DenoisingEGNN(DenoiserModelConfig(**content["model_config"]))
        model.load_state_dict(content["model"], strict=True)
    except Exception as error:  # settings and weights of another origin raise many unrelated errors
        reason = first_line(error, 120)
        raise CheckpointError(f"{relative_name(path)} does not fit this version ({reason}): {hint}") from error
    return model.to(device).eval().requires_grad_(False), content


def load_for_sampling(path: str | os.PathLike) -> DenoisingEGNN:
    """Return a trained model in float64 on the CPU, as further processes need it; raises as ``load_denoiser`` does."""
    return load_denoiser(path, "")[0].double()
