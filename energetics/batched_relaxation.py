"""Relaxes many sheets at once with SevenNet: the steps of all are taken together, and one call of the network serves them all.

Each structure takes the steps that ASE's BFGS and LBFGS would take with it: they start from the same Hessian, and cut steps alike.
Where the energy bends downwards, ASE's BFGS turns the sign of eigenvalues; here the pair of points is left out, and the step still
goes downhill. What has converged leaves the batch, and the next structure takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms

from energetics.batched_network import BatchedNetwork
from energetics.relaxation import MAX_ENERGY_PER_ATOM, MAX_STRAIN, Relaxation

CURVATURE = 70.0  # eV/Å², of all coordinates at the start, as in ASE
MAX_STEP = 0.1  # Å, of the atom that moves farthest
MIN_BEND = 1e-10  # eV; pairs of points whose forces tell no positive curvature do not enter the Hessian

# Arrays of a batch of B structures of at most N atoms; the last three rows of a coordinate are those of the cell.
FIELDS = ("numbers", "count", "cell", "coords", "free", "hessian", "last_coords", "last_forces", "steps", "owner")


class _Batch:
    """The structures that are being relaxed.

    numbers: (B, N). count: (B,) atoms. cell: (B, 3, 3) Å at the start. coords: (B, N+3, 3): positions in the undeformed cell, Å,
    then the logarithm of the deformation times the number of atoms, as ASE's FrechetCellFilter has them. free: (B, N+3, 3), 1 where
    a coordinate may change. hessian: (B, D, D) inverse, Å²/eV, D = 3N+9. last_coords, last_forces: of the step before. steps: (B,).
    owner: (B,) index of the structure in the list that was given.
    """

    def __init__(
        self, structures: Sequence[Atoms], owners: Sequence[int], size: int, cell_free: bool, device: torch.device
    ) -> None:
        count = len(structures)
        numbers, positions = np.zeros((count, size), dtype=np.int64), np.zeros((count, size + 3, 3))
        free = np.zeros((count, size + 3, 3))
        for k, atoms in enumerate(structures):
            numbers[k, : len(atoms)], positions[k, : len(atoms)] = atoms.numbers, atoms.positions
            free[k, : len(atoms)] = 1
            for constraint in atoms.constraints:
                free[k, constraint.index] = 0
        if cell_free:
            free[:, size : size + 2, :2] = 1
        self.numbers = torch.as_tensor(numbers, device=device)
        self.count = torch.as_tensor([len(atoms) for atoms in structures], device=device)
        self.cell = torch.as_tensor(np.array([atoms.cell.array for atoms in structures]), device=device)
        self.coords, self.free = torch.as_tensor(positions, device=device), torch.as_tensor(free, device=device)
        self.hessian = torch.eye(3 * size + 9, dtype=torch.float64, device=device).repeat(count, 1, 1) / CURVATURE
        self.last_coords, self.last_forces = self.coords.clone(), torch.zeros_like(self.coords)
        self.steps = torch.zeros(count, dtype=torch.long, device=device)
        self.owner = torch.as_tensor(list(owners), device=device)

    def keep(self, which: torch.Tensor) -> None:
        """Drop all but the structures of a mask (B,)."""
        for name in FIELDS:
            setattr(self, name, getattr(self, name)[which])

    def replace(self, slots: torch.Tensor, other: _Batch) -> None:
        """Put the structures of another batch in the places ``slots``."""
        for name in FIELDS:
            getattr(self, name)[slots] = getattr(other, name)

    def deformation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logarithm of the deformation, ready for its gradient, and the deformation; (B, 3, 3) both."""
        log = (self.coords[:, -3:] / self.count[:, None, None]).requires_grad_()
        return log, torch.linalg.matrix_exp(log)

    def forces(self, log: torch.Tensor, deformation: torch.Tensor, atomic: torch.Tensor, virials: torch.Tensor) -> torch.Tensor:
        """Return the forces on the coordinates, (B, N+3, 3): those of ASE's FrechetCellFilter with mask [1, 1, 0, 0, 0, 1]."""
        turned = deformation.detach()
        mask = torch.zeros_like(virials)
        mask[:, :2, :2] = 1
        of_cell = torch.autograd.grad(deformation, log, (virials * mask) @ torch.linalg.inv(turned.mT))[0]
        return torch.cat([atomic @ turned, of_cell / self.count[:, None, None]], 1) * self.free

    def step(self, forces: torch.Tensor) -> None:
        """Move all structures by one step of BFGS."""
        shape = (len(self.count), -1)
        moved = (self.coords - self.last_coords).reshape(shape)
        change = (self.last_forces - forces).reshape(shape)
        bend = (moved * change).sum(1)
        use = ((self.steps > 0) & (bend > MIN_BEND)).double()
        rho = (use / torch.where(use > 0, bend, 1.0))[:, None]
        image = (self.hessian @ change[..., None])[..., 0]
        half = 0.5 * (rho + rho**2 * (change * image).sum(1, keepdim=True)) * moved - rho * image
        self.hessian += half[:, :, None] * moved[:, None] + moved[:, :, None] * half[:, None]
        wanted = (self.hessian @ forces.reshape(shape)[..., None])[..., 0].reshape(forces.shape)
        longest = torch.linalg.vector_norm(wanted, dim=-1).amax(1)
        self.last_coords, self.last_forces = self.coords, forces
        self.coords = self.coords + wanted * torch.clamp(MAX_STEP / longest, max=1.0)[:, None, None]
        self.steps += 1


def relax_batched(
    structures: Sequence[Atoms],
    network: BatchedNetwork,
    batch_size: int,
    cell_free: bool,
    fmax: float = 0.05,
    max_steps: int = 150,
) -> list[Relaxation]:
    """Relax sheets together, in the order given; what converges makes room for the next.

    Args:
        structures: sheets with pbc (T, T, F) and c along z, with or without H; atoms of a FixAtoms constraint stay where they are.
        network: gives energies, forces and virials.
        batch_size: how many are relaxed at once.
        cell_free: relax the in-plane cell, with c fixed, as ``relax_sheet`` does; False: positions alone, in a fixed cell.
        fmax: eV/Å, the largest force at which a relaxation counts as converged.
        max_steps: of each structure.

    Raises:
        ValueError: a structure is periodic along c or not along a or b, or has a constraint other than FixAtoms.
    """
    for atoms in structures:
        if tuple(atoms.pbc) != (True, True, False) or any(type(found) is not FixAtoms for found in atoms.constraints):
            raise ValueError(f"{atoms.get_chemical_formula()}: a sheet with pbc (T, T, F) and FixAtoms alone can be relaxed here")
    results: list[Relaxation | None] = [None] * len(structures)
    if not structures:
        return []
    size = max(len(atoms) for atoms in structures)

    def made(owners: range) -> _Batch:
        return _Batch([structures[k] for k in owners], owners, size, cell_free, network.device)

    waiting = min(batch_size, len(structures))
    batch = made(range(waiting))
    while len(batch.count):
        log, deformation = batch.deformation()
        turned = deformation.detach()
        cells, positions = batch.cell @ turned.mT, batch.coords[:, :-3] @ turned.mT
        energies, atomic, virials = network(batch.numbers, positions, cells, batch.count)
        forces = batch.forces(log, deformation, atomic, virials)
        verdict = _verdicts(batch, energies, cells, forces, fmax, max_steps)
        batch.step(forces)
        if not bool((verdict >= 0).any()):
            continue
        done = (verdict >= 0).nonzero()[:, 0]
        parts = [part[done].cpu().numpy() for part in (batch.owner, verdict, energies, positions, cells, atomic, batch.steps)]
        for owner, *rest in zip(*parts, strict=True):
            results[owner] = _relaxation(structures[owner], *rest, max_steps)
        taken = min(len(done), len(structures) - waiting)
        if taken:
            batch.replace(done[:taken], made(range(waiting, waiting + taken)))
            waiting += taken
        if taken < len(done):
            left = torch.ones(len(batch.count), dtype=torch.bool, device=done.device)
            left[done[taken:]] = False
            batch.keep(left)
    return results


STATUS = ("ok", "not converged", "exploded", "collapsed")


def _verdicts(
    batch: _Batch, energies: torch.Tensor, cells: torch.Tensor, forces: torch.Tensor, fmax: float, max_steps: int
) -> torch.Tensor:
    """Return for each structure of a batch the index of its STATUS, or -1 where it goes on."""
    largest = torch.linalg.vector_norm(forces, dim=-1).amax(1)
    verdict = 2 * (batch.steps >= max_steps).long() - 1
    verdict = torch.where(largest < fmax, 0, verdict)
    strain = torch.linalg.vector_norm(cells, dim=-1) / torch.linalg.vector_norm(batch.cell, dim=-1) - 1
    verdict = torch.where(strain.abs().amax(1) > MAX_STRAIN, 3, verdict)
    # A comparison with NaN is false: what is not finite counts as exploded too.
    sane = (energies.abs() <= MAX_ENERGY_PER_ATOM * batch.count) & torch.isfinite(largest)
    return torch.where(sane, verdict, 2)


def _relaxation(
    start: Atoms,
    verdict: int,
    energy: float,
    positions: np.ndarray,
    cell: np.ndarray,
    forces: np.ndarray,
    steps: int,
    max_steps: int,
) -> Relaxation:
    """Return one result as ``relax_sheet`` would; ``steps`` counts the step that was taken after the last forces."""
    final = start.copy()
    final.set_constraint()
    final.set_cell(cell)
    final.positions = positions[: len(start)]
    status = STATUS[verdict] if max_steps or verdict != 1 else "ok"
    return Relaxation(final, float(energy), bool(verdict == 0), int(steps) - 1, status, forces=forces[: len(start)])
