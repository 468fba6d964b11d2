"""Judges E_above_hull with a hull and a correction of E_form that were learnt from PBE, where the potential's own are not PBE.

    E_above_hull = max(0, E_form(potential) + learnt correction − learnt hull energy)

Both parts are boosted trees. The hull energy is learnt as the difference to the hull of the potential, from the composition alone.
The correction is learnt from the composition, the bonds of the sheet and E_form. Errors of the potential's E_form and of its hull
are correlated and cancel in part, so the hull is not corrected without E_form. ``energetics.learnt_hull_training`` fits them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.formula import Formula

from crystals.database import formula_key, split_of
from crystals.descriptors import COMPOSITION_NAMES, SHEET_NAMES, composition_descriptors, sheet_descriptors
from energetics.hull import References
from energetics.hull_network import COMBINED, HullNetwork, load_hull_network
from energetics.potentials import Potential
from geo_utils import NotTwoDimensional
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import CheckpointError, first_line, load_checkpoint
from pipeline.files import relative_name
from pipeline.settings import EvaluationConfig

log = logging.getLogger("her2d")

KIND = "learnt_hull"
HINT = "run python -m scripts.train_hull, or set evaluation.hull: potential"
LEARNT, BOTH, POTENTIAL = "learnt", "both", "potential"
BY_ENTRIES = "potential, Materials Project entries"
LEAST_STD = 0.01  # eV/atom; no sheet is known better
FLAG_BELOW = -0.02  # eV/atom; a sheet further below the hull of the potential's phases says that a phase is missing

# Metals that the Materials Project computes with PBE+U in oxides and fluorides, and the energy by which MP2020 shifts such a
# compound onto the scale of PBE, eV per metal atom: Wang et al., Scientific Reports 11, 15496 (2021). Potentials that learnt from
# uncorrected MP energies have an E_form of such compounds that is too high by about this much.
MIXING_SHIFT = {
    "V": -1.700, "Cr": -1.999, "Mn": -1.668, "Fe": -2.256, "Co": -1.638, "Ni": -2.541, "Mo": -3.202, "W": -4.438,
}  # fmt: skip
SHIFT_SHARE = 0.75  # of MIXING_SHIFT, from which the correction of E_form starts


@dataclass(frozen=True)
class HullVerdict:
    """E_above_hull of a structure in eV/atom.

    e_above_hull: what counts. std: its standard error, NaN where it is not known. potential: by the potential and its phases alone,
    NaN where a pair of elements has no competing compound. source: which of them counts, and why where it is not the one asked for.
    """

    e_above_hull: float
    std: float
    potential: float
    source: str


@dataclass(frozen=True)
class HullColumns:
    """What the columns of the trees are; trees of other columns cannot be used."""

    hull: list[str] = dataclasses.field(default_factory=lambda: [*COMPOSITION_NAMES, "hull energy of the potential"])
    e_form: list[str] = dataclasses.field(default_factory=lambda: [*COMPOSITION_NAMES, *SHEET_NAMES, "E_form", "mixing shift"])
    error: list[str] = dataclasses.field(
        default_factory=lambda: [*COMPOSITION_NAMES, *SHEET_NAMES, "E_form", "mixing shift", "E_above_hull", "difference"]
    )


def mixing_shift(formula: str) -> float:
    """Return the shift of MP2020 for metals with U beside O or F, eV per atom of the compound; 0 for every other composition."""
    counts = Formula(formula).count()
    if not {"O", "F"} & set(counts):
        return 0.0
    return sum(MIXING_SHIFT.get(symbol, 0.0) * count for symbol, count in counts.items()) / sum(counts.values())


def hull_descriptors(formula: str, potential_hull: float) -> np.ndarray:
    """Return the columns ``HullColumns.hull``. potential_hull: hull energy of the potential at this composition, eV/atom."""
    numbers = [atomic_numbers[symbol] for symbol, count in Formula(formula).count().items() for _ in range(count)]
    return np.append(composition_descriptors(np.array(numbers)), potential_hull)


def e_form_descriptors(atoms: Atoms, e_form: float) -> np.ndarray:
    """Return the columns ``HullColumns.e_form`` of a sheet. e_form: by the potential, eV/atom.

    Raises:
        NotTwoDimensional: the crystal is no sheet.
        ValueError: an element has no descriptors.
    """
    composition, sheet = composition_descriptors(atoms.numbers), sheet_descriptors(atoms)
    return np.concatenate([composition, sheet, [e_form, mixing_shift(atoms.get_chemical_formula())]])


@dataclass(frozen=True)
class HullModels:
    """The fitted parts.

    hull: hull energy − hull energy of the potential. e_form: E_form − its start (``start_of_e_form``). error: size of the error of
    E_above_hull; all in eV/atom. scales: source ("learnt", "both") -> factor that makes ``error`` a standard error.
    element_counts: sheets of each element among those that ``e_form`` was fitted to. min_element_rows: fewer are too few.
    e_form_range: of those sheets, eV/atom. split: seed, val_fraction and test_fraction of the split by formula. relaxation: added
    to E_form of a relaxed sheet, eV/atom, because ``e_form`` learnt from sheets in PBE's geometry, which the potential lowers.
    """

    hull: BoostedTrees
    e_form: BoostedTrees
    error: BoostedTrees
    scales: dict[str, float]
    element_counts: dict[str, int]
    min_element_rows: int
    e_form_range: tuple[float, float]
    split: tuple[int, float, float]
    relaxation: float = 0.0

    def state(self) -> dict[str, Any]:
        """Return plain values and tensors for ``networks.checkpoints``."""
        trees = {name: getattr(self, name).state() for name in ("hull", "e_form", "error")}
        values = {name: getattr(self, name) for name in ("scales", "element_counts", "min_element_rows", "relaxation")}
        return {**trees, **values, "e_form_range": list(self.e_form_range), "split": list(self.split)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> HullModels:
        """Rebuild from ``state``. Raises KeyError, TypeError or ValueError for a state that is not of such models."""
        low, high = (float(value) for value in state["e_form_range"])
        seed, val_fraction, test_fraction = state["split"]
        return cls(
            *(BoostedTrees.from_state(state[name]) for name in ("hull", "e_form", "error")),
            {name: float(state["scales"][name]) for name in (LEARNT, BOTH)},
            {str(symbol): int(count) for symbol, count in state["element_counts"].items()},
            int(state["min_element_rows"]),
            (low, high),
            (int(seed), float(val_fraction), float(test_fraction)),
            float(state["relaxation"]),
        )


def start_of_e_form(formula: str, e_form: float) -> float:
    """Return the E_form from which the learnt correction starts: the potential's with a share of MP2020's shift, eV/atom."""
    return e_form + SHIFT_SHARE * mixing_shift(formula)


class LearntHull:
    """The learnt hull of one potential as a judge."""

    def __init__(self, models: HullModels, references: References, network: HullNetwork | None = None) -> None:
        self.models, self.references, self.network = models, references, network

    @classmethod
    def load(
        cls, path: str | os.PathLike, references: References, potential: Potential, network: HullNetwork | None = None
    ) -> LearntHull:
        """Read what ``learnt_hull_training`` wrote. network: for the mean with it.

        Raises:
            CheckpointError: the file is missing or damaged, or was made for another potential.
        """
        content = load_checkpoint(path, KIND, HINT)
        try:
            if content["model_config"] != dataclasses.asdict(HullColumns()):
                raise ValueError("its descriptors are not those of this version")
            if content["potential_sha256"] != potential.identity.get("sha256"):
                raise ValueError(f"it is not of {potential.name}")
            models = HullModels.from_state(content)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            message = f"{relative_name(path)} does not fit the learnt hull ({first_line(error, 120)}): {HINT}"
            raise CheckpointError(message) from error
        return cls(models, references, network)

    def is_held_out(self, formula: str) -> bool:
        """Return whether no sheet of a formula taught the models or chose them (part "test" of the split)."""
        return split_of(formula_key(formula), *self.models.split) == "test"

    def hull_energy(self, formula: str) -> float:
        """Return the learnt hull energy at a composition, as a formation energy in eV/atom. Raises KeyError as ``References``."""
        own = self.references.hull_energy(formula)
        return float(own + self.models.hull.predict(hull_descriptors(formula, own)[None])[0])

    def e_form(self, atoms: Atoms, e_form: float) -> float:
        """Return the corrected formation energy of a relaxed sheet in eV/atom; errors as of ``e_form_descriptors``.

        e_form: by the potential, eV/atom.
        """
        columns = e_form_descriptors(atoms, e_form)
        start = start_of_e_form(atoms.get_chemical_formula(), e_form)
        return float(start + self.models.e_form.predict(columns[None])[0] + self.models.relaxation)

    def outside_domain(self, atoms: Atoms, e_form: float) -> str:
        """Say why the models do not know a structure; empty inside their domain."""
        counts, least = self.models.element_counts, self.models.min_element_rows
        if unknown := sorted(symbol for symbol in set(atoms.get_chemical_symbols()) if counts.get(symbol, 0) < least):
            return f"element not in training: {', '.join(unknown)}"
        low, high = self.models.e_form_range
        return "" if low <= e_form <= high else "E_form outside training"

    def e_above_hull(self, atoms: Atoms, e_form: float) -> tuple[float, dict[str, float]]:
        """Return E_above_hull of a sheet and its standard errors, in eV/atom.

        Args:
            atoms: the relaxed sheet.
            e_form: by the potential, eV/atom.

        Returns:
            (E_above_hull, {"learnt": standard error, "both": that of the mean with the potential's, "combined": that of the mean
            with the networks' too, where there are any}).

        Raises:
            NotTwoDimensional, ValueError, KeyError: the structure has no descriptors or an element without reference.
        """
        formula = atoms.get_chemical_formula()
        value = max(0.0, self.e_form(atoms, e_form) - self.hull_energy(formula))
        columns = error_descriptors(e_form_descriptors(atoms, e_form), value, e_form - self.references.hull_energy(formula))
        size = float(self.models.error.predict(columns[None])[0])
        scales = self.models.scales | ({COMBINED: self.network.scale} if self.network else {})
        return value, {name: max(LEAST_STD, scale * size) for name, scale in scales.items()}


def error_descriptors(e_form_columns: np.ndarray, value: float, potential: float) -> np.ndarray:
    """Return the columns ``HullColumns.error``.

    Args:
        e_form_columns: of ``e_form_descriptors``.
        value: learnt E_above_hull, eV/atom.
        potential: E_form − hull energy of the potential, eV/atom.
    """
    return np.concatenate([e_form_columns, [value, abs(value - max(0.0, potential))]])


def load_learnt_hull(settings: EvaluationConfig, references: References, potential: Potential) -> LearntHull | None:
    """Load the learnt hull that the configuration names; None where the potential's own counts.

    A potential without a file of its own, such as one that a user adds, is judged by its phases alone, with a warning.

    Raises:
        CheckpointError: the file cannot be used.
    """
    if settings.hull == POTENTIAL:
        return None
    if not Path(settings.hull_checkpoint).is_file():
        log.warning(
            "evaluation.hull: no file at %s: E_above_hull is that of %s and its phases; to learn one, "
            "run python -m scripts.train_hull",
            relative_name(settings.hull_checkpoint),
            potential.name,
        )
        return None
    return LearntHull.load(settings.hull_checkpoint, references, potential, load_hull_network(settings))


def judge_hull(references: Any, learnt: LearntHull | None, atoms: Atoms, energy: float, mode: str) -> HullVerdict:
    """Compute E_above_hull by the judge that the configuration asks for.

    Where all compounds that a sheet decomposes into are entries of the Materials Project, the potential's hull counts, for it
    is then no guess. It counts too where there is no learnt hull, and outside the domain of the learnt hull.

    Args:
        references: of the potential (``hull.References``).
        learnt: the learnt hull, where there is one.
        atoms: the relaxed structure.
        energy: eV, of its cell.
        mode: "learnt", "potential", "both" (their mean) or "combined" (the mean of both and the networks).

    Raises:
        KeyError: an element has no reference, or a cation-anion pair no competing compound and there is no learnt hull to ask.
    """
    if learnt is None or mode == POTENTIAL:
        return _by_potential(references, atoms, energy, POTENTIAL)
    if references.decided_by_entries(atoms.get_chemical_formula()):
        return _by_potential(references, atoms, energy, BY_ENTRIES)
    e_form = references.e_form(atoms, energy)
    if reason := learnt.outside_domain(atoms, e_form):
        return _by_potential(references, atoms, energy, f"{POTENTIAL}, {reason}")
    try:
        potential, note = references.e_above_hull(atoms, energy), ""
    except KeyError as error:  # a cation-anion pair without a competing compound, which the learnt hull does not need
        potential, note = math.nan, f", {str(error.args[0])}"
    try:
        value, std = learnt.e_above_hull(atoms, e_form)
    except NotTwoDimensional:
        return _by_potential(references, atoms, energy, f"{POTENTIAL}, no sheet")
    both = (value + max(0.0, potential)) / 2 if math.isfinite(potential) else value
    if mode == COMBINED and learnt.network is not None:
        return HullVerdict(learnt.network.combined(both, atoms), std[COMBINED], potential, COMBINED + note)
    if mode == BOTH and math.isfinite(potential):
        return HullVerdict(both, std[BOTH], potential, BOTH)
    return HullVerdict(value, std[LEARNT], potential, LEARNT + note)


def _by_potential(references: Any, atoms: Atoms, energy: float, source: str) -> HullVerdict:
    """Return the verdict of the potential and its phases; the source says where it lies below them, which no crystal can."""
    value = float(references.e_above_hull(atoms, energy))
    return HullVerdict(value, math.nan, value, source + (", below its phases" if value < FLAG_BELOW else ""))


def count_elements(formulas: Iterable[str]) -> dict[str, int]:
    """Return how many of the formulas each element occurs in."""
    counted = Counter(symbol for formula in formulas for symbol in Formula(formula).count())
    return dict(sorted(counted.items()))
