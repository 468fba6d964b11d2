"""Network that moves the atoms and the cell of a sheet to where its elements want them.

``SheetRefiner`` is equivariant under rotations and reflections in three dimensions. Scalars, vectors and traceless second-rank
tensors of each atom are exchanged with its nearest neighbours, as in PaiNN (Schütt et al., ICML 2021) with one rank more, so that
messages know the angles between bonds. The displacement of an atom is read from its vectors, the strain of the cell from tensors. A
strain belongs to the sheet and not to a basis of its lattice, so that every choice of the cell gives the same result.

The state of a batch is padded: F (B, N, 2), z (B, N) Å, L (B, 2, 2) Å with row vectors, and which places hold atoms (B, N).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

IMAGES = 2  # periodic images on each side; enough for the cutoff where the cell is reduced
CLOSE = 1e-2  # Å, two atoms closer than this are the same one
SUM_SCALE = 0.15  # keeps sums over neighbours of order one
STRAIN_SCALE = 0.2
RATIO_RANGE = (0.5, 2.3)  # of distances over the sum of covalent radii
NUM_ELEMENTS = 119  # row 0: no element
BUFFERS = ("descriptors", "radii", "mu", "nu")  # follow from the elements and the configuration
ENERGY_OFFSETS = (-0.5, 0.15)  # eV/atom, about the means of C2DB


@dataclass(frozen=True)
class RefinerConfig:
    """Size of a ``SheetRefiner``.

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
class Refinement:
    """What the network says of a batch of sheets.

    Attributes:
        displacement: (B, N, 3) Å to the relaxed sheet, in the frame of the cell; its mean over the atoms is zero.
        strain: (B, 2, 2), symmetric: the relaxed cell is L exp(strain).
        e_form: (B,) heat of formation of the relaxed sheet, eV/atom.
        e_hull: (B,) eV/atom.
        synth_logit: (B,) of P_synth.
    """

    displacement: torch.Tensor
    strain: torch.Tensor
    e_form: torch.Tensor
    e_hull: torch.Tensor
    synth_logit: torch.Tensor


def inverse_2x2(matrix: torch.Tensor) -> torch.Tensor:
    """Return the inverse of matrices (..., 2, 2), in closed form."""
    a, b, c, d = matrix.flatten(-2).unbind(-1)
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
    return adjugate / (a * d - b * c)[..., None, None]


def symmetric_exp(strain: torch.Tensor) -> torch.Tensor:
    """Return the exponential of symmetric matrices (..., 2, 2), in closed form: exp(m) (cosh δ + sinh δ / δ (E − m))."""
    mean, half, off = (
        0.5 * (strain[..., 0, 0] + strain[..., 1, 1]),
        0.5 * (strain[..., 0, 0] - strain[..., 1, 1]),
        strain[..., 0, 1],
    )
    delta = torch.sqrt(half**2 + off**2 + 1e-24)
    cosh, sinhc = torch.cosh(delta), torch.sinh(delta) / delta
    rows = [torch.stack([cosh + sinhc * half, sinhc * off], -1), torch.stack([sinhc * off, cosh - sinhc * half], -1)]
    return torch.exp(mean)[..., None, None] * torch.stack(rows, -2)


def move(state: SheetState, refinement: Refinement) -> SheetState:
    """Return the sheets moved by displacement and strain; heights keep a mean of zero."""
    mask, shift = state.mask, refinement.displacement
    frac = state.frac_coords + (shift[..., :2] @ inverse_2x2(state.cell)) * mask[..., None]
    heights = (state.heights + shift[..., 2]) * mask
    heights = (heights - (heights.sum(1) / mask.sum(1))[:, None]) * mask
    return SheetState(state.atomic_numbers, frac, heights, state.cell @ symmetric_exp(refinement.strain), mask)


@dataclass
class _Neighbours:
    """The K nearest neighbours of A atoms: indices (A, K), unit vectors (A, K, 3), distances (A, K), envelopes (A, K, 1)."""

    index: torch.Tensor
    direction: torch.Tensor
    distance: torch.Tensor
    envelope: torch.Tensor


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


def _second_rank(direction: torch.Tensor) -> torch.Tensor:
    """Return r̂ r̂ᵀ − 1/3 of unit vectors (..., 3) as six numbers, so that products of two tensors are dot products."""
    x, y, z = direction.unbind(-1)
    root = math.sqrt(2.0)
    return torch.stack([x * x - 1 / 3, y * y - 1 / 3, z * z - 1 / 3, root * x * y, root * x * z, root * y * z], -1)


class _Layer(nn.Module):
    """One round of messages and updates."""

    def __init__(self, config: RefinerConfig, edge_features: int) -> None:
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
        self, s: torch.Tensor, v: torch.Tensor, t: torch.Tensor, near: _Neighbours, second: torch.Tensor, features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return new scalars (A, C), vectors (A, 3, V) and tensors (A, 6, T)."""
        atoms, count = near.index.shape
        index = near.index.reshape(-1)
        x = self.norm(s)
        vj = v.index_select(0, index).view(atoms, count, 3, -1)
        tj = t.index_select(0, index).view(atoms, count, 6, -1)
        angles = [
            (vj * near.direction[..., None]).sum(2),
            torch.bmm(near.direction, v),
            (tj * second[..., None]).sum(2),
            torch.bmm(second, t),
        ]
        message = self.wi(x)[:, None] + self.wj(x).index_select(0, index).view(atoms, count, -1)
        message = nn.functional.silu(message + self.we(torch.cat([features, *angles], -1)))
        message = nn.functional.silu(self.w2(message)) * near.envelope
        channels, vectors, tensors = self.sizes
        g1, g2, g3, g4 = self.w3(message).split([vectors, vectors, tensors, tensors], -1)
        dv = torch.bmm(near.direction.transpose(1, 2), g1) + (g2[:, :, None] * vj).sum(1)
        dt = torch.bmm(second.transpose(1, 2), g3) + (g4[:, :, None] * tj).sum(1)
        v, t = self.mv(v) + SUM_SCALE * dv, self.mt(t) + SUM_SCALE * dt
        lengths = [torch.sqrt((v**2).sum(1) + 1e-6), torch.sqrt((t**2).sum(1) + 1e-6)]
        change, gv, gt = self.up(torch.cat([x, SUM_SCALE * message.sum(1), *lengths], -1)).split(self.sizes, -1)
        return s + change, v * (1 + gv)[:, None], t * (1 + gt)[:, None]


class SheetRefiner(nn.Module):
    """See the module.

    Args:
        config: sizes.
        descriptors: (119, D) of the elements; row 0 is zero.
        radii: (119,) covalent radii, Å.
    """

    def __init__(self, config: RefinerConfig, descriptors: torch.Tensor, radii: torch.Tensor) -> None:
        super().__init__()
        self.config = config
        c, v, t = config.channels, config.vectors, config.tensors
        self.register_buffer("descriptors", descriptors)
        self.register_buffer("radii", radii)
        self.register_buffer("mu", torch.linspace(0.0, config.cutoff, config.rbf))
        self.register_buffer("nu", torch.linspace(*RATIO_RANGE, config.rbf))
        self.embed = nn.Embedding(NUM_ELEMENTS, c)
        self.desc = nn.Linear(descriptors.shape[1], c)
        self.layers = nn.ModuleList(_Layer(config, 2 * config.rbf) for _ in range(config.layers))
        self.last = nn.LayerNorm(c)
        self.gates = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, v + t + 1))
        self.energy = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(c, 3))
        nn.init.normal_(self.embed.weight, std=0.3)
        for head in (self.gates, self.energy):
            nn.init.normal_(head[-1].weight, std=1e-3)
            nn.init.zeros_(head[-1].bias)

    def encode(self, state: SheetState) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scalars (A, C), vectors (A, 3, V) and tensors (A, 6, T) of the atoms, as ``mask`` lists them."""
        near = _nearest(state, self.config.neighbours, self.config.cutoff)
        numbers = state.atomic_numbers[state.mask]
        radii = self.radii[numbers]
        ratio = near.distance / (radii[:, None] + radii[near.index])
        widths = (self.config.cutoff, RATIO_RANGE[1] - RATIO_RANGE[0])
        basis = [
            torch.exp(-0.5 * ((x[..., None] - centers) * ((len(centers) - 1) / width)) ** 2)
            for x, centers, width in zip((near.distance, ratio), (self.mu, self.nu), widths, strict=True)
        ]
        features, second = torch.cat(basis, -1), _second_rank(near.direction)
        s = self.embed(numbers) + self.desc(self.descriptors[numbers])
        v = s.new_zeros(len(s), 3, self.config.vectors)
        t = s.new_zeros(len(s), 6, self.config.tensors)
        for layer in self.layers:
            s, v, t = layer(s, v, t, near, second, features)
        return self.last(s), v, t

    def forward(self, state: SheetState) -> Refinement:
        """Return what the network says of a batch."""
        s, v, t = self.encode(state)
        count, width = state.mask.shape
        owner = torch.nonzero(state.mask)[:, 0]
        sizes = state.mask.sum(1).to(s.dtype)[:, None]

        def mean(x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(count, x.shape[1]).index_add(0, owner, x) / sizes

        gv, gt, trace = self.gates(s).split([self.config.vectors, self.config.tensors, 1], -1)
        shift = (v * gv[:, None]).sum(-1)
        shift = shift - mean(shift)[owner]
        tensor = (t * gt[:, None]).sum(-1)
        xx, yy, xy = tensor[:, 0] + trace[:, 0], tensor[:, 1] + trace[:, 0], tensor[:, 3] / math.sqrt(2.0)
        xx, yy, xy = (STRAIN_SCALE * mean(torch.stack([xx, yy, xy], -1))).unbind(-1)
        strain = torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], -2)
        displacement = shift.new_zeros(count, width, 3)
        displacement[state.mask] = shift
        energy = mean(self.energy(s))
        e_form, e_hull = energy[:, 0] + ENERGY_OFFSETS[0], energy[:, 1] + ENERGY_OFFSETS[1]
        return Refinement(displacement, strain, e_form, e_hull, energy[:, 2])
