"""Computes formation energies and energies above the convex hull from phases that one potential relaxed."""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from crystals.formulas import reduced_formula
from energetics.potentials import Potential
from energetics.simple_phases import cation_and_anion
from pipeline.errors import StageError
from pipeline.files import atomic_path, missing_file, relative_name
from pipeline.provenance import SCHEMA_VERSION

log = logging.getLogger("her2d")

ENTRY_PREFIX = "MP "  # with which the names of phases from entries of the Materials Project begin
MAX_SAMPLE_ATOMS = 12  # of a row that is relaxed for a comparison
MAX_DIAGRAMS = 64  # phase diagrams kept in memory; the oldest makes room for the next
# eV/atom; no compound is as stable against its elements (CaF2 -4.2, LaF3 -4.4, ThF4 -4.4 by their enthalpies). For a phase below it
# the potential has left its domain, and the phase would pull down the hull of all compounds of its elements.
MIN_HFORM_EV = -5.0
HINT = "build it: python -m scripts.prepare_demo_data demo.parts=[references] demo.potential=... demo.references_path=..."


@dataclass(frozen=True)
class ReferencePhase:
    """One competing phase. formula: of its cell. energy_per_atom: eV. prototype: where its structure came from."""

    formula: str
    energy_per_atom: float
    prototype: str


def read_phases(path: str | os.PathLike) -> tuple[dict[str, str], list[ReferencePhase]]:
    """Read the identity of the potential and the phases of ``references_<potential>.json.gz``.

    Raises:
        StageError: the file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file("evaluation.references_path", path, HINT)
    try:
        with gzip.open(path, "rt", encoding="utf-8") as handle:
            content = json.load(handle)
        phases = [ReferencePhase(p["formula"], float(p["energy_per_atom"]), p["prototype"]) for p in content["phases"]]
        identity, schema = content["potential"], content["schema_version"]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise StageError(f"{relative_name(path)} is not a readable reference file ({type(error).__name__}); {HINT}") from error
    if schema != SCHEMA_VERSION:
        raise StageError(f"{relative_name(path)} has schema {schema}, expected {SCHEMA_VERSION}; {HINT}")
    return identity, phases


def believable(phases: Sequence[ReferencePhase]) -> list[ReferencePhase]:
    """Return the phases that are not below MIN_HFORM_EV; a warning names the others."""
    from pymatgen.core import Composition

    elemental = References({}, phases)._elemental
    kept, left_out = [], []
    for phase in phases:
        shares = Composition(phase.formula).fractional_composition.items()
        of_elements = sum(elemental.get(element.symbol, -math.inf) * share for element, share in shares)
        if phase.energy_per_atom - of_elements < MIN_HFORM_EV:
            left_out.append(f"{phase.formula} {phase.prototype}")
        else:
            kept.append(phase)
    if left_out:
        log.warning("left out, below any compound: the potential has left its domain: %s", ", ".join(left_out))
    return kept


class References:
    """The elements and competing phases of one potential, against which structures are measured.

    identity: of the potential. phases: all of them; the lowest phase of an element is its reference.
    """

    def __init__(self, identity: dict[str, str], phases: Iterable[ReferencePhase]) -> None:
        from pymatgen.core import Composition

        self.identity = dict(identity)
        self.phases = list(phases)
        self._entries: dict[frozenset[str], list[Any]] = {}
        self._elemental: dict[str, float] = {}
        self._diagrams: dict[frozenset[str], Any] = {}
        from pymatgen.analysis.phase_diagram import PDEntry

        self._has_entries = any(phase.prototype.startswith(ENTRY_PREFIX) for phase in self.phases)
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
        """Return the symbols with an elemental reference."""
        return set(self._elemental)

    @classmethod
    def load(cls, path: str | os.PathLike, potential: Potential | None = None) -> References:
        """Read ``references_<potential>.json.gz``.

        Raises:
            StageError: it is missing or damaged, or was made with another potential than ``potential``.
        """
        identity, phases = read_phases(path)
        if potential is not None and identity["sha256"] != potential.identity["sha256"]:
            made_with = f"{relative_name(path)} was made with {identity['name']}, not with this {potential.name}"
            raise StageError(f"{made_with}; {HINT}")
        return cls(identity, phases)

    def save(self, path: str | os.PathLike) -> None:
        """Write the phases, sorted, so that the same phases give the same file."""
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
        """Return the elements of a structure that have no reference."""
        return sorted(set(atoms.get_chemical_symbols()) - self.elements)

    def e_form(self, atoms: Atoms, energy: float) -> float:
        """Return the formation energy in eV/atom. energy: eV, of the cell. Raises KeyError for an element without reference."""
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
        """Return the energy of the hull at a composition, as a formation energy in eV/atom. Raises KeyError as ``e_form`` does."""
        from pymatgen.core import Composition

        composition = Composition(formula)
        symbols = frozenset(element.symbol for element in composition)
        if missing := sorted(symbols - self.elements):
            raise KeyError(f"no elemental reference for {', '.join(missing)}")
        per_atom = self._diagram(symbols).get_hull_energy_per_atom(composition)
        return float(
            per_atom - sum(self._elemental[el.symbol] * fraction for el, fraction in composition.fractional_composition.items())
        )

    def decomposition(self, formula: str) -> dict[str, float]:
        """Return what a composition decomposes into on the hull.

        Returns:
            Phase ("MoS2 prototype") -> share of the atoms, the largest first.

        Raises:
            KeyError: an element has no reference.
        """
        from pymatgen.core import Composition

        composition = Composition(formula)
        if missing := sorted({element.symbol for element in composition} - self.elements):
            raise KeyError(f"no elemental reference for {', '.join(missing)}")
        diagram = self._diagram(frozenset(element.symbol for element in composition))
        parts = [
            (f"{reduced_formula(entry.composition.formula)} {entry.name.partition(' ')[2]}", float(share))
            for entry, share in diagram.get_decomposition(composition).items()
        ]
        return dict(sorted(parts, key=lambda part: (-part[1], part[0])))

    def decided_by_entries(self, formula: str) -> bool:
        """Return whether all compounds on the hull at a composition are entries of the Materials Project, and there is one."""
        from pymatgen.core import Composition

        if not self._has_entries:
            return False
        compounds = [name for name in self.decomposition(formula) if len(Composition(name.partition(" ")[0])) > 1]
        return bool(compounds) and all(name.partition(" ")[2].startswith(ENTRY_PREFIX) for name in compounds)

    def missing_pairs(self, atoms: Atoms) -> list[str]:
        """Return the cation-anion pairs of a structure of which no binary compound is among the phases.

        Against the elements alone such a structure would look far more stable than it is.
        """
        pairs = (cation_and_anion(a, b) for a, b in combinations(sorted(set(atoms.get_chemical_symbols())), 2))
        return ["-".join(pair) for pair in pairs if pair is not None and frozenset(pair) not in self._entries]

    def e_above_hull(self, atoms: Atoms, energy: float) -> float:
        """Return the energy above the hull in eV/atom; negative where the structure lies below the hull of all phases.

        Args:
            atoms: the structure.
            energy: eV, of its cell.

        Raises:
            KeyError: an element has no reference, or a cation-anion pair no competing compound.
        """
        if pairs := self.missing_pairs(atoms):
            raise KeyError(f"no competing compound of {', '.join(pairs)}")
        return self.e_form(atoms, energy) - self.hull_energy(atoms.get_chemical_formula("hill"))


def sample_rows(db_path: str | os.PathLike, count: int, seed: int, keep: Callable[[Any], bool] | None = None) -> list[int]:
    """Draw ids of a database at random, of rows with a finite ``ehull`` and at most MAX_SAMPLE_ATOMS atoms.

    Args:
        db_path: ASE database.
        count: most ids.
        seed: of the draw.
        keep: which rows may be drawn; None: all.

    Returns:
        The ids, sorted.
    """
    from ase.db import connect

    usable = [
        row.id
        for row in connect(db_path).select(include_data=False)
        if row.natoms <= MAX_SAMPLE_ATOMS
        and isinstance(row.get("ehull"), float | int)
        and math.isfinite(row.ehull)
        and (keep is None or keep(row))
    ]
    return sorted(int(k) for k in np.random.default_rng([seed, 11]).permutation(usable)[:count])
