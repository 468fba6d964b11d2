"""Interatomic potentials behind one interface, relaxations, and energies against reference phases.

``load_potential`` gives SevenNet (inside its wheel) or MatterSim (a checkpoint of the user's) under the same interface; nothing
ever stands in for another under its name. Energies are eV, forces eV/Å. Reference phases carry the identity of the potential that
made them, because energies of two potentials must never be mixed.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.filters import FrechetCellFilter
from ase.geometry import find_mic
from ase.optimize import BFGS, LBFGS
from threadpoolctl import threadpool_limits

from config import POTENTIALS, SCHEMA_VERSION, StageError, atomic_path, file_sha256, relative_name
from geo_utils import adsorbed_hydrogen
from reference_phases import cation_and_anion

FREE_RADIUS = 3.0  # Å, atoms this close to H relax with it
DESORBED_SCALE = 1.7  # H has left when no atom is closer than this times the sum of covalent radii
GIVE_UP_AFTER = 8  # steps of a relaxation of H after which a site may be given up
MAX_ENERGY_PER_ATOM = 50.0  # eV; beyond any bonded solid: a potential that has left its domain
MAX_DIAGRAMS = 64  # phase diagrams kept in memory; the oldest makes room for the next
MAX_STRAIN = 0.5  # in-plane lengths may change by this share before a relaxation counts as collapsed


@dataclass(frozen=True)
class Potential:
    """An interatomic potential. name: one of config.POTENTIALS. identity: what exactly it is, for provenance and caches."""

    name: str
    identity: dict[str, str]
    calculator: Calculator


def load_potential(name: str, checkpoint: str = "", device: str = "cpu") -> Potential:
    """The potential of that name.

    Raises StageError when it is not known, its checkpoint is missing, or its checkpoint does not fit the network.
    """
    # FrechetCellFilter takes logarithms of 3x3 matrices, for which OpenBLAS wakes all its threads and lets them spin; on a busy
    # machine that costs a hundred times the work itself.
    threadpool_limits(limits=1, user_api="blas")
    if name not in POTENTIALS:
        raise StageError(f"unknown potential {name}: choose one of {', '.join(POTENTIALS)}")
    return _load_mattersim(checkpoint, device) if name == "mattersim" else _load_sevennet(name, device)


@lru_cache(maxsize=4)
def _load_sevennet(name: str, device: str) -> Potential:
    from sevenn.calculator import SevenNetCalculator
    from sevenn.util import pretrained_name_to_path

    model = name.replace("sevennet", "7net")
    path = pretrained_name_to_path(model)
    identity = {"name": name, "package": f"sevenn {version('sevenn')}", "sha256": file_sha256(path)}
    return Potential(name, identity, SevenNetCalculator(model, device=device))


@lru_cache(maxsize=2)
def _load_mattersim(checkpoint: str, device: str) -> Potential:
    if not checkpoint:
        raise StageError(
            "potential mattersim needs a checkpoint file: set evaluation.potential_checkpoint to MatterSim-v1.0.0-1M.pth"
        )
    path = Path(checkpoint)
    if not path.is_file():
        raise StageError(f"no MatterSim checkpoint at {relative_name(path)}: download it and set evaluation.potential_checkpoint")
    from mattersim.forcefield import MatterSimCalculator

    _check_mattersim_keys(path)
    identity = {"name": "mattersim", "package": f"mattersim {version('mattersim')}", "sha256": file_sha256(path)}
    return Potential("mattersim", identity, MatterSimCalculator(load_path=str(path.resolve()), device=device))


def _check_mattersim_keys(path: Path) -> None:
    """MatterSim loads with strict=False, so that foreign keys would pass and leave random weights: compare the keys here."""
    import torch
    from mattersim.forcefield.m3gnet.m3gnet import M3Gnet

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling errors of many families
        raise StageError(f"{relative_name(path)} is not a readable MatterSim checkpoint: {type(error).__name__}") from error
    if not isinstance(content, dict) or not {"model", "model_args"} <= set(content):
        raise StageError(f"{relative_name(path)} is not a MatterSim checkpoint: it holds no 'model' and 'model_args'")
    expected = set(M3Gnet(device="cpu", **content["model_args"]).state_dict())
    found = set(content["model"])
    if missing := sorted(expected - found) + sorted(found - expected):
        raise StageError(f"{relative_name(path)} does not fit MatterSim's network: {len(missing)} keys differ, first {missing[0]}")


# ---------------------------------------------------------------------------------------------------------------- relaxation


@dataclass(frozen=True)
class Relaxation:
    """Result of a relaxation.

    atoms: final structure, no calculator, no constraints. energy: eV, whole cell. converged: fmax reached. steps: of the optimiser.
    status: 'ok', 'not converged', 'exploded' (energy or positions beyond reason) or 'collapsed' (cell changed beyond MAX_STRAIN).
    """

    atoms: Atoms
    energy: float
    converged: bool
    steps: int
    status: str


def relax_sheet(atoms: Atoms, potential: Potential, fmax: float = 0.05, max_steps: int = 150) -> Relaxation:
    """Relaxes a sheet with the in-plane cell free and c fixed (strain components xx, yy, xy).

    atoms: pbc (T, T, F), c along z. max_steps = 0 gives the energy as it is.
    """
    return _relax(atoms, potential, fmax, max_steps, mask=[1, 1, 0, 0, 0, 1])


def relax_bulk(atoms: Atoms, potential: Potential, fmax: float = 0.05, max_steps: int = 150) -> Relaxation:
    """Relaxes a three-dimensional crystal with its whole cell free."""
    return _relax(atoms, potential, fmax, max_steps, mask=[1] * 6)


def relax_positions(atoms: Atoms, potential: Potential, fmax: float = 0.05, max_steps: int = 150) -> Relaxation:
    """Relaxes positions in a fixed cell (molecules in a box, slabs)."""
    return _relax(atoms, potential, fmax, max_steps, mask=None)


def _relax(atoms: Atoms, potential: Potential, fmax: float, max_steps: int, mask: list[int] | None) -> Relaxation:
    work = atoms.copy()
    work.calc = potential.calculator
    target = work if mask is None else FrechetCellFilter(work, mask=mask)
    optimiser = BFGS(target, logfile=None, maxstep=0.1)
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
    except (np.linalg.LinAlgError, ValueError, FloatingPointError, RuntimeError):
        # A potential far outside its domain returns NaN forces, on which optimisers and neighbour lists fail in their own ways.
        return Relaxation(atoms.copy(), float("nan"), False, optimiser.nsteps, "exploded")
    if status == "ok" and not converged:
        status = "not converged" if max_steps else "ok"
    final = work.copy()
    final.set_constraint()
    return Relaxation(final, energy, converged, int(optimiser.nsteps), status)


def is_sane(energy: float, num_atoms: int) -> bool:
    """Whether an energy in eV can be that of a solid; potentials fall into bottomless wells where atoms overlap."""
    return bool(np.isfinite(energy) and abs(energy) <= MAX_ENERGY_PER_ATOM * num_atoms)


@dataclass(frozen=True)
class HydrogenRelaxation(Relaxation):
    """A relaxation of H on a sheet. delta_e: eV, or nan; initial_delta_e: at the starting geometry; desorbed: H has left."""

    delta_e: float
    initial_delta_e: float
    desorbed: bool


def relax_hydrogen(
    atoms: Atoms,
    sheet_energy: float,
    potential: Potential,
    fmax: float = 0.05,
    max_steps: int = 60,
    free_radius: float = FREE_RADIUS,
    give_up_above: float = math.inf,
) -> HydrogenRelaxation:
    """Relaxes H (the atom with tag 2) and the atoms within ``free_radius`` Å of it, in a fixed cell.

    sheet_energy: eV, energy of the clean sheet of the same supercell with the same potential. give_up_above: eV, a delta_e that a
    relaxation must have come below after ``GIVE_UP_AFTER`` steps to be carried on; its status is "given up" otherwise.
    delta_e = E(sheet+H) − E(sheet) − ½E(H2). Raises ValueError when there is not exactly one H with tag 2.
    """
    hydrogen = adsorbed_hydrogen(atoms)
    work = atoms.copy()
    distances = work.get_distances(hydrogen, range(len(work)), mic=True)
    work.set_constraint(FixAtoms([i for i in range(len(work)) if distances[i] > free_radius]))
    work.calc = potential.calculator
    reference = sheet_energy + 0.5 * h2_energy(potential)
    optimiser = LBFGS(work, logfile=None, maxstep=0.1)
    try:
        initial = float(work.get_potential_energy()) - reference
        converged = bool(optimiser.run(fmax=fmax, steps=min(max_steps, GIVE_UP_AFTER)))
        energy = float(work.get_potential_energy())
        given_up = not converged and energy - reference > give_up_above
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
    return HydrogenRelaxation(final, energy, converged, optimiser.nsteps, status, energy - reference, initial, desorbed)


def has_desorbed(atoms: Atoms, hydrogen: int) -> bool:
    """True when no atom is within DESORBED_SCALE times the sum of covalent radii of the H."""
    others = [i for i in range(len(atoms)) if i != hydrogen]
    vectors = atoms.positions[others] - atoms.positions[hydrogen]
    _, distances = find_mic(vectors, atoms.cell, atoms.pbc)
    return bool((distances > DESORBED_SCALE * (covalent_radii[atoms.numbers[others]] + covalent_radii[1])).all())


_H2_ENERGIES: dict[tuple, float] = {}


def h2_energy(potential: Potential) -> float:
    """Energy in eV of H2 relaxed with the potential, in a 12 Å box."""
    key = tuple(sorted(potential.identity.items()))
    if key not in _H2_ENERGIES:
        molecule = Atoms("H2", [[6, 6, 6], [6, 6, 6.75]], cell=[12] * 3, pbc=True)
        _H2_ENERGIES[key] = relax_positions(molecule, potential, fmax=0.005, max_steps=200).energy
    return _H2_ENERGIES[key]


def relaxation_rmsd(before: Atoms, after: Atoms) -> float:
    """Root-mean-square displacement in Å between two states of one sheet, strain and rigid shift removed.

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


# ---------------------------------------------------------------------------------------------------------- reference phases


@dataclass(frozen=True)
class ReferencePhase:
    """One competing phase: formula of the cell, energy per atom in eV, where it came from."""

    formula: str
    energy_per_atom: float
    prototype: str


class References:
    """Elemental references and competing phases of one potential; formation and hull energies against them."""

    def __init__(self, identity: dict[str, str], phases: Iterable[ReferencePhase]) -> None:
        from pymatgen.core import Composition

        self.identity = dict(identity)
        self.phases = list(phases)
        self._entries: dict[frozenset[str], list[Any]] = {}
        self._elemental: dict[str, float] = {}
        self._diagrams: dict[frozenset[str], Any] = {}
        from pymatgen.analysis.phase_diagram import PDEntry

        for phase in self.phases:
            composition = Composition(phase.formula)
            symbols = frozenset(element.symbol for element in composition)
            entry = PDEntry(composition, phase.energy_per_atom * composition.num_atoms, name=f"{phase.formula} {phase.prototype}")
            self._entries.setdefault(symbols, []).append(entry)
            if len(symbols) == 1:
                (symbol,) = symbols
                self._elemental[symbol] = min(phase.energy_per_atom, self._elemental.get(symbol, np.inf))

    @property
    def elements(self) -> set[str]:
        """Symbols with an elemental reference."""
        return set(self._elemental)

    @classmethod
    def load(cls, path: str | os.PathLike, potential: Potential | None = None) -> References:
        """Reads ``references_<potential>.json.gz``.

        Raises StageError when it is missing or damaged, or was made with another potential than ``potential``.
        """
        path = Path(path)
        hint = "build it: python prepare_demo_data.py demo.parts=[references] demo.potential=... demo.references_path=..."
        if not path.is_file():
            raise StageError(f"no reference energies at {relative_name(path)}; {hint}")
        try:
            with gzip.open(path, "rt", encoding="utf-8") as handle:
                content = json.load(handle)
            phases = [ReferencePhase(p["formula"], float(p["energy_per_atom"]), p["prototype"]) for p in content["phases"]]
            identity, schema = content["potential"], content["schema_version"]
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            raise StageError(f"{relative_name(path)} is not a readable reference file ({type(error).__name__}); {hint}") from error
        if schema != SCHEMA_VERSION:
            raise StageError(f"{relative_name(path)} has schema {schema}, expected {SCHEMA_VERSION}; {hint}")
        if potential is not None and identity["sha256"] != potential.identity["sha256"]:
            raise StageError(f"{relative_name(path)} was made with {identity['name']}, not with this {potential.name}; {hint}")
        return cls(identity, phases)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the phases, sorted, so that the same phases give the same file."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "potential": self.identity,
            "phases": [vars(p) for p in sorted(self.phases, key=lambda p: (p.formula, p.prototype))],
        }
        # Through a handle, because gzip writes the name of a path into the file.
        with (
            atomic_path(path) as temporary,
            temporary.open("wb") as stream,
            gzip.GzipFile("", "wb", mtime=0, fileobj=stream) as handle,
        ):
            handle.write(json.dumps(content, indent=0).encode())

    def missing(self, atoms: Atoms) -> list[str]:
        """Elements of a structure without a reference."""
        return sorted(set(atoms.get_chemical_symbols()) - self.elements)

    def e_form(self, atoms: Atoms, energy: float) -> float:
        """Formation energy in eV/atom against the elements. Raises KeyError for an element without reference."""
        if missing := self.missing(atoms):
            raise KeyError(f"no elemental reference for {', '.join(missing)}")
        return float((energy - sum(self._elemental[symbol] for symbol in atoms.get_chemical_symbols())) / len(atoms))

    def _diagram(self, symbols: frozenset[str]) -> Any:
        from pymatgen.analysis.phase_diagram import PhaseDiagram

        if symbols not in self._diagrams:
            if len(self._diagrams) >= MAX_DIAGRAMS:
                del self._diagrams[next(iter(self._diagrams))]
            subsets = (frozenset(s) for size in range(1, len(symbols) + 1) for s in combinations(sorted(symbols), size))
            self._diagrams[symbols] = PhaseDiagram([entry for subset in subsets for entry in self._entries.get(subset, [])])
        return self._diagrams[symbols]

    def hull_energy(self, formula: str) -> float:
        """Energy of the hull at a composition, as a formation energy in eV/atom. Raises KeyError as ``e_form`` does."""
        from pymatgen.core import Composition

        composition = Composition(formula)
        symbols = frozenset(element.symbol for element in composition)
        if missing := sorted(symbols - self.elements):
            raise KeyError(f"no elemental reference for {', '.join(missing)}")
        per_atom = self._diagram(symbols).get_hull_energy_per_atom(composition)
        return float(
            per_atom - sum(self._elemental[el.symbol] * fraction for el, fraction in composition.fractional_composition.items())
        )

    def missing_pairs(self, atoms: Atoms) -> list[str]:
        """Cation-anion pairs of a structure without a single binary compound among the phases.

        Against elements alone such a structure would look far more stable than it is.
        """
        pairs = (cation_and_anion(a, b) for a, b in combinations(sorted(set(atoms.get_chemical_symbols())), 2))
        return ["-".join(pair) for pair in pairs if pair is not None and frozenset(pair) not in self._entries]

    def e_above_hull(self, atoms: Atoms, energy: float) -> float:
        """Energy above the hull of the competing phases in eV/atom; negative where the structure lies below all of them.

        Raises KeyError for an element without reference or a cation-anion pair without any competing compound.
        """
        if pairs := self.missing_pairs(atoms):
            raise KeyError(f"no competing compound of {', '.join(pairs)}")
        return self.e_form(atoms, energy) - self.hull_energy(atoms.get_chemical_formula("hill"))
