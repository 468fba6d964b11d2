"""Relaxes sheets, crystals, molecules, and H on a sheet with an interatomic potential. Energies are eV, forces eV/Å."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.filters import FrechetCellFilter
from ase.geometry import find_mic
from ase.optimize import BFGS

from energetics.adsorption_energy import adsorption_energy
from energetics.potentials import Potential
from energetics.sites import adsorbed_hydrogen

# Of BFGS. ASE starts from a curvature of 70 eV/Å², stiffer than the bonds of sheets, and takes nearly twice the steps; longer steps
# than these save nothing (results/benchmark/relaxation.json).
CURVATURE = 15.0  # eV/Å²
MAX_STEP = 0.15  # Å
FREE_RADIUS = 3.0  # Å, atoms this close to H relax with it
DESORBED_SCALE = 1.7  # H has left when no atom is closer than this times the sum of covalent radii
GIVE_UP_AFTER = 8  # steps of a relaxation of H after which a site may be given up
FAR_ABOVE_EV = 0.3  # a site whose H is this far above another's after these steps will not become the best
MAX_ENERGY_PER_ATOM = 50.0  # eV; beyond any bonded solid: a potential that has left its domain
MAX_STRAIN = 0.5  # in-plane lengths may change by this share before a relaxation counts as collapsed


@dataclass(frozen=True)
class Relaxation:
    """Result of a relaxation.

    atoms: final structure, no calculator, no constraints. energy: eV, whole cell. converged: fmax reached. steps: of the optimiser.
    status: 'ok', 'not converged', 'exploded' (energy or positions beyond reason) or 'collapsed' (cell changed beyond MAX_STRAIN).
    forces: (N, 3) eV/Å at the end, without constraints; None where they are not known.
    """

    atoms: Atoms
    energy: float
    converged: bool
    steps: int
    status: str
    forces: np.ndarray | None = field(default=None, kw_only=True, compare=False)


def relax_sheet(atoms: Atoms, potential: Potential, fmax: float = 0.05, max_steps: int = 150) -> Relaxation:
    """Relax a sheet with the in-plane cell free and c fixed (strain components xx, yy, xy).

    atoms: pbc (T, T, F), c along z. max_steps = 0 gives the energy as it is.
    """
    return _relax(atoms, potential, fmax, max_steps, mask=[1, 1, 0, 0, 0, 1])


def relax_bulk(atoms: Atoms, potential: Potential, fmax: float = 0.05, max_steps: int = 150) -> Relaxation:
    """Relax a three-dimensional crystal with its whole cell free."""
    return _relax(atoms, potential, fmax, max_steps, mask=[1] * 6)


def relax_positions(atoms: Atoms, potential: Potential, fmax: float = 0.05, max_steps: int = 150) -> Relaxation:
    """Relax positions in a fixed cell (molecules in a box, slabs)."""
    return _relax(atoms, potential, fmax, max_steps, mask=None)


def _relax(atoms: Atoms, potential: Potential, fmax: float, max_steps: int, mask: list[int] | None) -> Relaxation:
    work = atoms.copy()
    work.calc = potential.calculator
    target = work if mask is None else FrechetCellFilter(work, mask=mask)
    optimiser = bfgs(target)
    lengths = work.cell.lengths()
    status, converged = "ok", False
    try:
        for state in optimiser.irun(fmax=fmax, steps=max_steps):
            converged = bool(state)
            strain = np.abs(work.cell.lengths() / lengths - 1).max()
            if not np.isfinite(work.positions).all() or not is_sane(work.get_potential_energy(), len(work)):
                status = "exploded"
                break
            if mask is not None and strain > MAX_STRAIN:
                status = "collapsed"
                break
        energy = float(work.get_potential_energy())
        forces = np.array(work.get_forces(apply_constraint=False))
    except (np.linalg.LinAlgError, ValueError, FloatingPointError, RuntimeError):
        # A potential far outside its domain returns NaN forces, on which optimisers and neighbour lists fail in their own ways.
        return Relaxation(atoms.copy(), float("nan"), False, optimiser.nsteps, "exploded")
    if status == "ok" and not converged:
        status = "not converged" if max_steps else "ok"
    final = work.copy()
    final.set_constraint()
    return Relaxation(final, energy, converged, int(optimiser.nsteps), status, forces=forces)


def bfgs(target: Atoms | FrechetCellFilter, curvature: float = CURVATURE, max_step: float = MAX_STEP) -> BFGS:
    """Return the optimiser of all relaxations.

    ASE's LBFGS checks no curvature: of 12 starts of H drawn at random it left 3 unconverged after 60 steps, up to 1.1 eV too high.

    Args:
        target: atoms with a calculator, or a filter that frees their cell.
        curvature: eV/Å², what is assumed in every direction before the forces tell.
        max_step: Å, how far an atom moves in one step at most.
    """
    return BFGS(target, logfile=None, maxstep=max_step, alpha=curvature)


def is_sane(energy: float, num_atoms: int) -> bool:
    """Return whether an energy in eV can be that of a solid; some potentials have no lower bound where atoms overlap."""
    return bool(np.isfinite(energy) and abs(energy) <= MAX_ENERGY_PER_ATOM * num_atoms)


@dataclass(frozen=True)
class HydrogenRelaxation(Relaxation):
    """A relaxation of H on a sheet.

    delta_e: eV, or nan. initial_delta_e: eV, at the starting geometry. desorbed: H has left. early_delta_e: eV, after GIVE_UP_AFTER
    steps; −inf where it had converged by then.
    """

    delta_e: float
    initial_delta_e: float
    desorbed: bool
    early_delta_e: float = -math.inf


def relax_hydrogen(
    atoms: Atoms,
    sheet_energy: float,
    potential: Potential,
    fmax: float = 0.05,
    max_steps: int = 60,
    free_radius: float = FREE_RADIUS,
    give_up_above: float = math.inf,
) -> HydrogenRelaxation:
    """Relax H and the atoms around it on a sheet, in a fixed cell, and compute its ``adsorption_energy``.

    Args:
        atoms: a sheet with one H, the atom with tag 2.
        sheet_energy: eV, energy of the clean sheet of the same supercell with the same potential.
        potential: gives energies and forces.
        fmax: eV/Å, the largest force at which the relaxation counts as converged.
        max_steps: of the optimiser.
        free_radius: Å, atoms this close to H relax with it.
        give_up_above: eV; a relaxation whose ΔE_H is still above it after GIVE_UP_AFTER steps ends there, with status "given up".

    Raises:
        ValueError: there is not exactly one H with tag 2.
    """
    hydrogen = adsorbed_hydrogen(atoms)
    work = atoms.copy()
    hold_far_atoms(work, free_radius)
    work.calc = potential.calculator
    h2 = h2_energy(potential)
    optimiser = bfgs(work)
    try:
        initial = adsorption_energy(float(work.get_potential_energy()), sheet_energy, h2)
        converged = bool(optimiser.run(fmax=fmax, steps=min(max_steps, GIVE_UP_AFTER)))
        energy = float(work.get_potential_energy())
        early = -math.inf if converged else adsorption_energy(energy, sheet_energy, h2)
        given_up = early > give_up_above
        if not (converged or given_up) and max_steps > GIVE_UP_AFTER:
            converged = bool(optimiser.run(fmax=fmax, steps=max_steps - GIVE_UP_AFTER))
            energy = float(work.get_potential_energy())
    except (np.linalg.LinAlgError, ValueError, FloatingPointError, RuntimeError):
        return HydrogenRelaxation(
            atoms.copy(), float("nan"), False, optimiser.nsteps, "exploded", float("nan"), float("nan"), False
        )
    final = work.copy()
    final.set_constraint()
    if not is_sane(energy, len(final)) or not np.isfinite(final.positions).all():
        return HydrogenRelaxation(final, energy, False, optimiser.nsteps, "exploded", float("nan"), initial, False)
    desorbed = has_desorbed(final, hydrogen)
    status = "desorbed" if desorbed else "ok" if converged else "given up" if given_up else "not converged"
    delta_e = adsorption_energy(energy, sheet_energy, h2)
    return HydrogenRelaxation(final, energy, converged, optimiser.nsteps, status, delta_e, initial, desorbed, early)


def hold_far_atoms(atoms: Atoms, free_radius: float = FREE_RADIUS) -> None:
    """Fix all atoms that are farther than ``free_radius`` Å from the H adatom."""
    distances = atoms.get_distances(adsorbed_hydrogen(atoms), range(len(atoms)), mic=True)
    atoms.set_constraint(FixAtoms([i for i in range(len(atoms)) if distances[i] > free_radius]))


def has_desorbed(atoms: Atoms, hydrogen: int) -> bool:
    """Return whether H has left: no atom is closer to it than DESORBED_SCALE times the sum of covalent radii."""
    others = [i for i in range(len(atoms)) if i != hydrogen]
    vectors = atoms.positions[others] - atoms.positions[hydrogen]
    _, distances = find_mic(vectors, atoms.cell, atoms.pbc)
    return bool((distances > DESORBED_SCALE * (covalent_radii[atoms.numbers[others]] + covalent_radii[1])).all())


def single_point(atoms: Atoms, calculator: Calculator) -> float:
    """Return the energy of the cell in eV, unrelaxed."""
    work = atoms.copy()
    work.calc = calculator
    return float(work.get_potential_energy())


_H2_ENERGIES: dict[tuple, float] = {}


def h2_energy(potential: Potential) -> float:
    """Return the energy in eV of H2 relaxed with the potential in a 12 Å box; computed once for each potential."""
    key = tuple(sorted(potential.identity.items()))
    if key not in _H2_ENERGIES:
        molecule = Atoms("H2", [[6, 6, 6], [6, 6, 6.75]], cell=[12] * 3, pbc=True)
        _H2_ENERGIES[key] = relax_positions(molecule, potential, fmax=0.005, max_steps=200).energy
    return _H2_ENERGIES[key]


def relaxation_rmsd(before: Atoms, after: Atoms) -> float:
    """Return the root-mean-square displacement in Å between two states of one sheet, strain and rigid shift removed.

    Fractional in-plane coordinates are compared in the relaxed cell, heights directly; minimum image, mean displacement subtracted.
    """
    first, second = before.get_scaled_positions(wrap=False), after.get_scaled_positions(wrap=False)
    delta = second - first
    delta[:, :2] -= np.round(delta[:, :2])
    cart = delta[:, :2] @ after.cell.array[:2, :2]
    heights = after.positions[:, 2] - before.positions[:, 2]
    displacement = np.column_stack([cart, heights])
    displacement -= displacement.mean(0)
    return float(np.sqrt((displacement**2).sum(1).mean()))
