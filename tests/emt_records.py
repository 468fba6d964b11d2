"""Hydrogen on metal slabs with ASE's EMT potential: real adsorption energies in milliseconds, for tests."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import BFGS

METALS = ("Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Al")


def energy(atoms: Atoms) -> float:
    """EMT energy in eV."""
    work = atoms.copy()
    work.calc = EMT()
    return float(work.get_potential_energy())


def half_h2() -> float:
    """½E(H2) of EMT at its own bond length, eV."""
    molecule = Atoms("H2", [[0, 0, 0], [0, 0, 0.78]])
    molecule.calc = EMT()
    BFGS(molecule, logfile=None).run(fmax=0.01, steps=50)
    return 0.5 * float(molecule.get_potential_energy())


def slab_with_h(surface: str, second: str, site: str, rng: np.random.Generator, size: int = 1) -> Atoms:
    """One H on a two-layer (111) slab whose top layer is ``surface`` on ``second``; tagged, pbc (T, T, F)."""
    atoms = fcc111(second, (size, size, 2), vacuum=8.0)
    layers = atoms.get_tags()
    atoms.symbols[layers == 1] = surface
    add_adsorbate(atoms, "H", {"ontop": 1.6, "fcc": 1.0, "hcp": 1.0, "bridge": 1.1}[site], site)
    atoms.set_tags([1 if layer == 1 else 0 for layer in layers] + [2])
    atoms.set_constraint(FixAtoms(np.flatnonzero(layers == 2)))
    atoms.pbc = (True, True, False)
    atoms.positions[-1] += rng.uniform(-0.15, 0.15, 3)
    return atoms


def records(count: int, seed: int = 0, size: int = 1) -> list[dict]:
    """IS2RE records as ``is2re_lmdb.write_is2re`` takes them; y_relaxed is the single-point ΔE_H of the geometry."""
    rng = np.random.default_rng(seed)
    reference = half_h2()
    result = []
    for sid in range(count):
        surface, second = METALS[sid % 7], METALS[(sid // 7) % 7]
        site = ("ontop", "fcc", "hcp", "bridge")[int(rng.integers(4))]
        atoms = slab_with_h(surface, second, site, rng, size)
        delta_e = energy(atoms) - energy(atoms[:-1]) - reference
        fixed = np.zeros(len(atoms))
        fixed[atoms.constraints[0].index] = 1
        result.append(
            {
                "pos": atoms.positions.copy(),
                "cell": atoms.cell.array[None].copy(),
                "atomic_numbers": atoms.numbers.copy(),
                "tags": atoms.get_tags(),
                "fixed": fixed,
                "sid": sid,
                "y_init": delta_e,
                "y_relaxed": delta_e,
                "pos_relaxed": atoms.positions.copy(),
                "bulk_formula": atoms[:-1].get_chemical_formula("hill"),
                "family": f"metal {surface}",
                "site": site,
                "coverage": 1.0 / size**2,
                "desorbed": 0,
                "converged": 1,
            }
        )
    return result
