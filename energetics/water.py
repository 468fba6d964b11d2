"""Computes what a sheet turns into in water, and ΔG_pbx, the energy that it gives off.

    Φ = ΔG_f + 0.0591 eV · log10(c) − n_O ΔG_f(H2O) + (n_H − 2 n_O) U_RHE − q U_SHE,   U_SHE = U_RHE − 0.0591 V · pH
    ΔG_pbx = [Φ(sheet) − min Σ w Φ(species)] / atoms,   Σ w n(element) as in the sheet for every element but H and O

Φ is the energy of pymatgen's ``PourbaixEntry``, and the minimum that of its ``PourbaixDiagram``. For a few values of pH and U a
linear program finds it in milliseconds. Ions and the common solids have measured ΔG_f (``data/water_species.csv``). Other solids
are reference phases of the potential (``hull.References``), whose energies a fit to the measured ones brings to the same scale.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from ase.formula import Formula
from pymatgen.core import Element
from scipy.optimize import linprog

from energetics.hull import ReferencePhase
from energetics.learnt_hull import start_of_e_form
from pipeline.files import PROJECT_DIR

TABLE = PROJECT_DIR / "data" / "water_species.csv"
KJ_PER_MOL = 1 / 96.48533  # eV
NERNST_EV = 0.0591  # kT ln 10 at 25 °C as pymatgen rounds it
CONCENTRATION = 1e-6  # mol/L of every dissolved species, the usual limit of corrosion
PH_VALUES = (0.0, 7.0, 14.0)
POTENTIALS_V = (0.0, -0.2)  # against RHE: the equilibrium of hydrogen, and hydrogen evolution at work
ANIONS = ("N", "O", "F", "S", "Cl", "Se", "Br", "Te", "I", "H")  # elements with a fitted shift of the computed solids
NON_METALS = frozenset({*ANIONS, "C", "P", "As"})  # Te too: the anion of tellurides
RIDGE = 0.2  # weight of the equation "shift = 0", for anions of few solids
LEAST_ERROR = 0.05  # eV/atom; smaller errors of the fit weigh alike
FIT_ROUNDS = 15
CHI_WITHOUT_METAL = 2.6  # stands for the electronegativity of the cations of a compound of ANIONS alone
LEAST_SHARE = 1e-6  # of a product per atom of the sheet; less is rounding
MAX_SYSTEMS = 256  # chemical systems kept in memory; the oldest makes room for the next

Key = tuple[tuple[str, int], ...]  # a composition: sorted (element, atoms) without a common divisor


class NoWaterData(ValueError):
    """A composition that the tables do not cover."""


@dataclass(frozen=True, eq=False)
class Species:
    """A solid, gas, liquid or dissolved species.

    counts: atoms by element. charge: in e. phase: "solid", "liquid", "gas" or "aqueous". gibbs: ΔG_f in eV per formula.
    """

    formula: str
    counts: Mapping[str, int]
    charge: int
    phase: str
    gibbs: float

    @property
    def name(self) -> str:
        """The formula with charge or phase: "MoO4 2-", "Na+", "TiO2(s)", "H2S(aq)"."""
        sign = "+" if self.charge > 0 else "-"
        if abs(self.charge) > 1:
            return f"{self.formula} {abs(self.charge)}{sign}"
        return self.formula + (sign if self.charge else "(aq)" if self.phase == "aqueous" else f"({self.phase[0]})")

    def phi(self, ph: float, u_rhe: float) -> float:
        """Return Φ in eV per formula. u_rhe: V against the reversible hydrogen electrode."""
        dissolved = NERNST_EV * math.log10(CONCENTRATION) if self.phase == "aqueous" else 0.0
        return self.gibbs + dissolved + water_terms(self.counts, self.charge, ph, u_rhe)


def water_terms(counts: Mapping[str, int], charge: int, ph: float, u_rhe: float) -> float:
    """Return the terms of Φ for H2O, H+ and electrons, in eV. u_rhe: V against the reversible hydrogen electrode."""
    oxygen, hydrogen = counts.get("O", 0), counts.get("H", 0)
    return -oxygen * _water_gibbs() + (hydrogen - 2 * oxygen) * u_rhe - charge * (u_rhe - NERNST_EV * ph)


@lru_cache(maxsize=1)
def _table() -> tuple[dict[str, str], ...]:
    with TABLE.open(newline="", encoding="utf-8") as handle:
        return tuple(csv.DictReader(handle))


@lru_cache(maxsize=1)
def measured_species() -> tuple[Species, ...]:
    """Return the species of the table, with measured ΔG_f."""
    return tuple(
        Species(row["formula"], _counts(row["formula"]), int(row["charge"]), row["phase"], float(row["gibbs_kj_mol"]) * KJ_PER_MOL)
        for row in _table()
    )


@lru_cache(maxsize=1)
def _water_gibbs() -> float:
    """Return ΔG_f of liquid water in eV."""
    return next(species.gibbs for species in measured_species() if species.formula == "H2O")


def _counts(formula: str) -> dict[str, int]:
    return Formula(formula).count()


def _key(counts: Mapping[str, int]) -> Key:
    divisor = reduce(math.gcd, counts.values())
    return tuple(sorted((symbol, count // divisor) for symbol, count in counts.items()))


def _measured(column: str) -> dict[Key, float]:
    """Return composition -> a column of the measured compounds that are solid, in eV/atom."""
    found = {}
    for row in _table():
        counts = _counts(row["formula"])
        if row["phase"] == "solid" and len(counts) > 1 and row[column]:
            found[_key(counts)] = float(row[column]) * KJ_PER_MOL / sum(counts.values())
    return found


@dataclass(frozen=True)
class Decomposition:
    """The stablest products at one pH and potential (V against RHE).

    delta_g: ΔG_pbx, eV/atom. products: species -> formulas of it per atom of the sheet.
    """

    ph: float
    u_rhe: float
    delta_g: float
    products: Mapping[Species, float]

    def dissolved_share(self, elements: Iterable[str]) -> float:
        """Return which share of the atoms of some elements is dissolved."""
        elements = set(elements)
        atoms = {species: n * sum(species.counts.get(el, 0) for el in elements) for species, n in self.products.items()}
        return sum(n for species, n in atoms.items() if species.phase == "aqueous") / sum(atoms.values())

    @property
    def text(self) -> str:
        """The products, those of most atoms first."""
        ordered = sorted(self.products.items(), key=lambda part: (-round(part[1] * sum(part[0].counts.values()), 6), part[0].name))
        return " + ".join(species.name for species, _ in ordered)


class Water:
    """Solids and ions on one scale. phases: reference phases of one potential."""

    def __init__(self, phases: Iterable[ReferencePhase]) -> None:
        self.e_form = _lowest_e_form(phases)
        self.shifts = _fit_shifts(self.e_form)
        measured = _measured("gibbs_kj_mol")
        computed = [
            Species(_written(key), dict(key), 0, "solid", _gibbs(key, value, self.shifts) * sum(n for _, n in key))
            for key, value in sorted(self.e_form.items())
            if key not in measured and not {symbol for symbol, _ in key} <= NON_METALS  # water makes no CH4 from graphite
        ]
        self.species = [*measured_species(), *computed]
        self._systems: dict[frozenset[str], tuple[list[Species], list[Species]]] = {}

    def decompose(self, formula: str, e_above_hull: float) -> list[Decomposition]:
        """Return what a sheet turns into at every pH of PH_VALUES and potential of POTENTIALS_V.

        Args:
            formula: of the sheet.
            e_above_hull: of it, eV/atom. Its ΔG_f is that of the stablest solids of its composition, and this on top.

        Raises:
            NoWaterData: there is no compound or ion of an element of it, or it holds H and O alone.
        """
        counts = _counts(formula)
        reacting = sorted(set(counts) - {"H", "O"})
        if not reacting:
            raise NoWaterData("nothing but H and O")
        dry, wet = self._system(frozenset(counts))
        known = {symbol for species in wet if len(species.counts) > 1 or species.charge for symbol in species.counts}
        if missing := sorted(set(reacting) - known):
            raise NoWaterData(f"no compound or ion of {', '.join(missing)}")
        atoms = sum(counts.values())
        gibbs = _cheapest(counts, sorted(counts), dry, [species.gibbs for species in dry])[0] + atoms * e_above_hull
        found = []
        for ph in PH_VALUES:
            for u_rhe in POTENTIALS_V:
                low, weights = _cheapest(counts, reacting, wet, [species.phi(ph, u_rhe) for species in wet])
                delta_g = (gibbs + water_terms(counts, 0, ph, u_rhe) - low) / atoms
                products = {s: float(w) / atoms for s, w in zip(wet, weights, strict=True) if w > LEAST_SHARE * atoms}
                found.append(Decomposition(ph, u_rhe, float(delta_g), products))
        return found

    def _system(self, symbols: frozenset[str]) -> tuple[list[Species], list[Species]]:
        """Return (dry, wet): the phases of these elements alone, and all that they can become in water."""
        if symbols not in self._systems:
            if len(self._systems) >= MAX_SYSTEMS:
                del self._systems[next(iter(self._systems))]
            elements = [Species(symbol, {symbol: 1}, 0, "solid", 0.0) for symbol in sorted(symbols)]
            wet = [s for s in self.species if set(s.counts) <= symbols | {"H", "O"} and set(s.counts) - {"H", "O"}]
            dry = [s for s in self.species if set(s.counts) <= symbols and s.phase != "aqueous"]
            self._systems[symbols] = dry + elements, wet + [s for s in elements if s.formula not in ("H", "O")]
        return self._systems[symbols]


def _cheapest(
    counts: Mapping[str, int], balanced: Sequence[str], species: Sequence[Species], energies: Sequence[float]
) -> tuple[float, np.ndarray]:
    """Return (energy, number of each species) of the cheapest mixture with the given atoms of the balanced elements."""
    balance = np.array([[s.counts.get(symbol, 0) for s in species] for symbol in balanced], dtype=float)
    found = linprog(energies, A_eq=balance, b_eq=[counts[symbol] for symbol in balanced], bounds=(0, None), method="highs")
    if not found.success:
        raise NoWaterData(f"no products ({found.message})")
    return float(found.fun), found.x


def _written(key: Key) -> str:
    """Return the formula of a composition, the electropositive element first."""
    ordered = sorted(key, key=lambda part: (part[0] in NON_METALS, Element(part[0]).X))
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in ordered)


def _lowest_e_form(phases: Iterable[ReferencePhase]) -> dict[Key, float]:
    """Return composition -> the lowest formation energy of a reference compound, eV/atom, on the scale of the potential."""
    lowest: dict[Key, float] = {}
    for phase in phases:
        key = _key(_counts(phase.formula))
        lowest[key] = min(phase.energy_per_atom, lowest.get(key, math.inf))
    elements = {key[0][0]: energy for key, energy in lowest.items() if len(key) == 1}
    return {
        key: energy - sum(elements[symbol] * count for symbol, count in key) / sum(count for _, count in key)
        for key, energy in lowest.items()
        if len(key) > 1 and all(symbol in elements for symbol, _ in key)
    }


def _polar_shares(key: Key) -> np.ndarray:
    """Return, for each of ANIONS, its share of the atoms times how much more electronegative it is than the cations."""
    atoms = sum(count for _, count in key)
    cations = [(Element(symbol).X, count) for symbol, count in key if symbol not in ANIONS]
    mean = sum(chi * count for chi, count in cations) / sum(n for _, n in cations) if cations else CHI_WITHOUT_METAL
    shares = {symbol: count / atoms * (Element(symbol).X - mean) for symbol, count in key}
    return np.array([shares.get(symbol, 0.0) for symbol in ANIONS])


def _fit_shifts(e_form: Mapping[Key, float], without: Key | None = None) -> np.ndarray:
    """Fit ΔG_f − E_form of the compounds that are both measured and computed, as eV per unit of ``_polar_shares``.

    E_form has its share of MP2020's shift for oxides and fluorides that the potential learnt from PBE+U. The fit minimises
    absolute errors, by least squares with new weights in every round, so that a compound whose true structure is not among the
    reference phases does not spoil it. Without such compounds there is no shift.

    Args:
        e_form: what ``_lowest_e_form`` returns.
        without: a compound that is left out.
    """
    measured = _measured("gibbs_kj_mol")
    keys = sorted(key for key in e_form if key in measured and key != without)
    matrix = np.vstack([*(_polar_shares(key) for key in keys), RIDGE * np.eye(len(ANIONS))])
    target = np.append([measured[key] - start_of_e_form(_written(key), e_form[key]) for key in keys], np.zeros(len(ANIONS)))
    weights = np.full(len(target), 1 / math.sqrt(LEAST_ERROR))
    for _ in range(FIT_ROUNDS):
        shifts = np.linalg.lstsq(matrix * weights[:, None], target * weights, rcond=None)[0]
        errors = np.abs(target - matrix @ shifts)[: len(keys)]
        weights[: len(keys)] = 1 / np.sqrt(np.maximum(errors, LEAST_ERROR))
    return shifts


def _gibbs(key: Key, e_form: float, shifts: np.ndarray) -> float:
    """Return ΔG_f of a computed compound in eV/atom."""
    return start_of_e_form(_written(key), e_form) + float(_polar_shares(key) @ shifts)


def scale_errors(water: Water) -> dict[str, dict[str, Any]]:
    """Measure E_form of the reference phases, and the ΔG_f made from it, on the compounds that are measured too.

    Returns:
        Group of compounds -> ``n``; mean absolute errors in eV/atom: ``e_form`` and ``e_form_with_u_shift`` against ΔH_f,
        ``gibbs`` against ΔG_f, each compound by a fit without it; ``gibbs_median``, the median of those.
    """
    enthalpies, gibbs = _measured("enthalpy_kj_mol"), _measured("gibbs_kj_mol")
    keys = sorted(key for key in water.e_form if key in gibbs and key in enthalpies)
    errors = {}
    for key in keys:
        own, start = water.e_form[key], start_of_e_form(_written(key), water.e_form[key])
        fitted = _gibbs(key, own, _fit_shifts(water.e_form, without=key))
        errors[key] = [abs(own - enthalpies[key]), abs(start - enthalpies[key]), abs(fitted - gibbs[key])]
    kinds = {"oxides": {"O"}, "chalcogenides": {"S", "Se", "Te"}, "halides": {"F", "Cl", "Br", "I"}}  # the first that fits
    groups: dict[str, list[list[float]]] = {"all": [], **{name: [] for name in kinds}}
    for key in keys:
        name = next((name for name, anions in kinds.items() if anions & dict(key).keys()), "")
        for group in {"all", name} & groups.keys():
            groups[group].append(errors[key])
    return {name: _summary(np.array(values)) for name, values in groups.items() if values}


def _summary(errors: np.ndarray) -> dict[str, Any]:
    """Return number, means and median of the columns of ``scale_errors``. errors: (n, 3) eV/atom."""
    means = zip(("e_form", "e_form_with_u_shift", "gibbs"), errors.mean(axis=0).tolist(), strict=True)
    return {"n": len(errors), **dict(means), "gibbs_median": float(np.median(errors[:, 2]))}
