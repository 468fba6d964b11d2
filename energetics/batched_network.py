"""Evaluates SevenNet on many structures at once: padded coordinates in; energies, forces and virials out.

B structures of at most N atoms are held in tensors of one size, their atoms first. Lengths are Å, energies eV, cells row vectors.
Structures are periodic in the plane alone: neighbours are those within the cutoff in the images along a and b.
"""

from __future__ import annotations

import torch

from energetics.potentials import Potential

MAX_EDGES = 50_000  # pairs of atoms of one call of the network, each of which takes 0.15 MB of memory


def neighbour_pairs(
    positions: torch.Tensor, cells: torch.Tensor, counts: torch.Tensor, cutoff: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find all pairs of atoms within the cutoff, periodic along a and b, by comparing all with all.

    Args:
        positions: (B, N, 3) Å.
        cells: (B, 3, 3) Å.
        counts: (B,) number of atoms of each structure.
        cutoff: Å.

    Returns:
        (structure, i, j, vector): (E,) three times, the first ascending, and (E, 3) Å from atom i to this image of atom j.
    """
    size = positions.shape[1]
    plane = cells[:, :2]
    delta = positions[:, None] - positions[:, :, None]  # (B, i, j, 3), from i to j
    inverse = torch.linalg.inv(cells)
    whole = torch.round((delta @ inverse[:, None])[..., :2])
    delta = delta - whole @ plane[:, None]  # an image within half a cell along a and b
    heights = 1 / torch.linalg.vector_norm(inverse[..., :2], dim=1)  # (B, 2) distances between lattice lines
    reach = torch.floor(cutoff / heights + 0.5).amax(0).long().tolist()
    axes = [torch.arange(-n, n + 1, device=cells.device, dtype=cells.dtype) for n in reach]
    shifts = torch.cartesian_prod(*axes) @ plane  # (B, S, 3)
    # |d + s|² = d² + 2 d·s + s²: no tensor of all the vectors is needed
    squares = (delta**2).sum(-1)[..., None] + (shifts**2).sum(-1)[:, None, None] + 2 * delta @ shifts.mT[:, None]
    there = torch.arange(size, device=cells.device) < counts[:, None]
    near = (squares < cutoff**2) & (squares > 1e-6) & (there[:, :, None] & there[:, None])[..., None]
    structure, i, j, shift = near.nonzero(as_tuple=True)
    return structure, i, j, delta[structure, i, j] + shifts[structure, shift]


class BatchedNetwork:
    """SevenNet behind a potential, for batches of structures."""

    def __init__(self, potential: Potential, max_edges: int = MAX_EDGES) -> None:
        calculator = potential.calculator
        if not hasattr(calculator, "model") or getattr(calculator, "modal", None):
            raise ValueError(f"{potential.name} is no SevenNet of one data set")
        self.model, self.device, self.cutoff = calculator.model, calculator.device, float(calculator.cutoff)
        self.max_edges = max_edges

    def __call__(
        self, numbers: torch.Tensor, positions: torch.Tensor, cells: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return energies (B,) eV, forces (B, N, 3) eV/Å and virials (B, 3, 3) eV: −dE/dε, symmetric.

        Args:
            numbers: (B, N) atomic numbers, int64.
            positions: (B, N, 3) Å, float64.
            cells: (B, 3, 3) Å, float64.
            counts: (B,) number of atoms of each structure.
        """
        structure, i, j, vectors = neighbour_pairs(positions, cells, counts, self.cutoff)
        edges = torch.bincount(structure, minlength=len(counts))
        found, first, start = [], 0, 0
        for last in self._ends(edges.tolist()):
            part = slice(first, last)
            stop = start + int(edges[part].sum())
            pairs = (structure[start:stop] - first, i[start:stop], j[start:stop], vectors[start:stop])
            found.append(self._evaluate(numbers[part], counts[part], pairs))
            first, start = last, stop
        energies, forces, virials = (torch.cat(parts) for parts in zip(*found, strict=True))
        return energies, forces, virials

    def _ends(self, edges: list[int]) -> list[int]:
        """Return where to cut a batch, so that no part but one of a single structure has more than ``max_edges`` pairs."""
        ends, total = [], 0
        for index, count in enumerate(edges):
            if total and total + count > self.max_edges:
                ends.append(index)
                total = 0
            total += count
        return [*ends, len(edges)]

    def _evaluate(
        self, numbers: torch.Tensor, counts: torch.Tensor, pairs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from sevenn import _keys as key

        size = numbers.shape[1]
        there = torch.arange(size, device=numbers.device) < counts[:, None]
        start = torch.cumsum(counts, 0) - counts
        structure, i, j, vectors = pairs
        atomic = numbers[there]
        data = {
            key.NODE_FEATURE: atomic,
            key.ATOMIC_NUMBERS: atomic,
            key.POS: torch.zeros(len(atomic), 3, device=numbers.device),
            key.EDGE_IDX: torch.stack([start[structure] + i, start[structure] + j]),
            key.EDGE_VEC: vectors.float(),
            key.CELL_VOLUME: torch.ones(len(counts), device=numbers.device),  # so that what is called stress is the virial
            key.NUM_ATOMS: counts,
            key.BATCH: torch.repeat_interleave(torch.arange(len(counts), device=numbers.device), counts),
        }
        self.model.set_is_batch_data(True)
        try:
            output = self.model(data)
        finally:
            self.model.set_is_batch_data(False)  # as its calculator needs it
        forces = torch.zeros(*numbers.shape, 3, dtype=torch.float64, device=numbers.device)
        forces[there] = output[key.PRED_FORCE].detach().double()
        voigt = output[key.PRED_STRESS].detach().double()  # xx, yy, zz, xy, yz, zx
        virials = voigt[:, [0, 3, 5, 3, 1, 4, 5, 4, 2]].reshape(-1, 3, 3)
        return output[key.PRED_TOTAL_ENERGY].detach().double().reshape(-1), forces, virials
