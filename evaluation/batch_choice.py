"""Chooses the sheets that DFT computes next, and draws the controls beside them.

The rule. A sheet may be chosen when it could be delivered and when DFT has something to say about it: a valid sheet that stays one
when relaxed, unique in its set, novel, without hazards, not found to be dynamically unstable, dissolved by water or insulating,
with E_above_hull and a ΔG_H with its standard error, H at rest, of a composition that DFT has not computed, in a cell that DFT
can afford. A sheet with an odd number of electrons that the learnt gap calls insulating is left to DFT: without magnetism it is a
metal, and 665 of the 721 such sheets with a PBE gap in C2DB (2022) have one of at most 0.1 eV.

1. The first places go to the highest p_hit, the probability that the sheet is a hit. It holds value and uncertainty at once: a
   sheet near zero with a small error comes first, one far away only if its error is large. Where DFT has relaxed sheets of earlier
   rounds, it is that of the minimum of DFT, which counts: how ΔG_H changed there from single points, a line with its scatter
   (``relaxation_change``), is added first.
2. The other places, a share ``explore`` of the batch, go to the sheets that DFT teaches most about: the highest standard error of
   ΔG_H times the probability of lying below the limit of E_above_hull, among those whose ΔG_H may be in the window within two
   errors. Places that are left go by p_hit as well.

Throughout, a composition is taken once, and at most ``max_per_family`` sheets of one family, which is a stoichiometry in a layer
group (such as "A2BC2 p-3m1"), so that one good guess does not fill the batch; of halides and compounds of alkali metals, most of
which no electrolyte leaves alone, ``max_soluble``. Places that nobody may take stay empty.

Controls are drawn at random, without a look at any prediction, from sheets that are valid, free of hazards, new in composition and
affordable.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from pymatgen.core import Composition
from scipy.stats import norm

from crystals.cif import UnreadableCif, read_cif
from crystals.formulas import composition_key
from crystals.recipes import is_soluble
from energetics.dft_inputs import IMAGE_DISTANCE
from energetics.sites import h_supercell
from evaluation.candidate import CandidateResult
from evaluation.decisions import h_at_rest, hit_probability, probability_below
from evaluation.element_facts import is_practical
from evaluation.relaxation_change import UNKNOWN_CHANGE, RelaxationChange
from evaluation.water_verdict import DISSOLVES
from geo_utils import NotTwoDimensional, primitive_sheet
from pipeline.settings import EvaluationConfig

STANDARD_ERRORS = 2.0  # within which a sheet may still be in the window
NO_SHEET = "no relaxed sheet"
QUANTILES = norm.ppf((np.arange(1000) + 0.5) / 1000)  # of a normal value, in standard errors
LEAST_SCATTER_EV = 1e-9


@dataclass(frozen=True)
class Pick:
    """A sheet for DFT. family: stoichiometry and layer group. dft_atoms: of the cell with H. reason: why it was taken."""

    row: CandidateResult
    family: str
    dft_atoms: int
    reason: str


@dataclass(frozen=True)
class Limits:
    """What a sheet must keep to.

    known: compositions (``composition_key``) that DFT has computed. max_dft_atoms: of the cell with H. max_per_family: sheets of
    one family in a batch. max_soluble: halides and compounds of alkali metals in a batch. excluded: elements that none may have.
    """

    known: Collection[str]
    max_dft_atoms: int
    max_per_family: int
    max_soluble: int
    excluded: Collection[str] = frozenset()


def family_of(row: CandidateResult) -> str:
    """Return the family of a sheet: anonymous formula and layer group of the relaxed structure, such as "A2BC2 p-3m1"."""
    group = row.layer_group_relaxed or row.layer_group or "?"
    return f"{Composition(row.reduced_formula).anonymized_formula} {group}"


def dft_atoms(sheet: Atoms) -> int:
    """Return the number of atoms of the cell with H that DFT computes (``dft_inputs.IMAGE_DISTANCE``)."""
    primitive = primitive_sheet(sheet)
    na, nb = h_supercell(primitive, IMAGE_DISTANCE)
    return na * nb * len(primitive) + 1


def choose_batch(
    rows: Sequence[CandidateResult],
    structures: Mapping[str, Atoms],
    size: int,
    explore: float,
    limits: Limits,
    settings: EvaluationConfig,
    change: RelaxationChange = UNKNOWN_CHANGE,
) -> tuple[list[Pick], Counter[str]]:
    """Choose a batch for DFT by the rule above.

    Args:
        rows: judged candidates.
        structures: id -> relaxed sheet.
        size: places of the batch.
        explore: share of the places, rounded, that do not go by p_hit.
        limits: what a chosen sheet must keep to.
        settings: limits of a hit, and hazards.
        change: of ΔG_H from single points, which the judges were fitted to, to minima of DFT, which decide who is a hit.

    Returns:
        The picks, in the order of the rule, at most ``size``; and how many candidates were not eligible, by the first reason.
    """
    eligible, refused = [], Counter()
    for row in rows:
        if fault := design_fault(_with_open_gap(row), settings) or cost_fault(row.formula, structures.get(row.id), limits):
            refused[fault] += 1
        else:
            eligible.append(row)
    exploring = round(size * explore)
    chance = {row.id: chance_in_minimum(row, change, settings) if change.is_known else row.p_hit for row in eligible}
    best = sorted((row for row in eligible if chance[row.id] > 0), key=lambda row: (-chance[row.id], row.id))

    def by_chance(row: CandidateResult) -> str:
        if not change.is_known:
            return f"p_hit {chance[row.id]:.3f}"
        moved = float(change.expected(np.array(row.delta_g_ev)))
        return f"p_hit {chance[row.id]:.3f} with ΔG_H {moved:+z.2f} eV in a minimum of DFT"

    gain = {row.id: learning_gain(row, settings) for row in eligible}
    open_ones = sorted((row for row in eligible if gain[row.id] > 0), key=lambda row: (-gain[row.id], row.id))
    taken_so_far = _Taken(limits)
    picks: list[Pick] = []
    for ordered, places, reason in (
        (best, size - exploring, by_chance),
        (open_ones, size, _by_gain),
        (best, size, by_chance),
    ):
        taken = taken_so_far.next_of(ordered, places - len(picks))
        picks += [Pick(row, family_of(row), dft_atoms(structures[row.id]), reason(row)) for row in taken]
    return picks, refused


def _with_open_gap(row: CandidateResult) -> CandidateResult:
    """Return a verdict that says nothing of a gap where the cell has an odd number of electrons and the learnt gap is one."""
    is_odd = row.conductive is False and int(Composition(row.formula).total_electrons) % 2 == 1
    return dataclasses.replace(row, conductive=None) if is_odd else row


def chance_in_minimum(row: CandidateResult, change: RelaxationChange, settings: EvaluationConfig) -> float:
    """Return the probability that a sheet is a hit in a minimum of DFT (``hit_probability``).

    What its single point may be, by the judge's value and error, is averaged over; for each the minimum lies where the sheets that
    DFT has relaxed say, within their scatter.

    Args:
        row: verdict of the judges.
        change: from single points to minima.
        settings: limits of a hit.
    """
    error = row.delta_g_std_ev if math.isfinite(row.delta_g_std_ev) else 0.0
    singles = row.delta_g_ev + error * QUANTILES
    minima = singles + change.expected(singles)
    limits = np.array([[-settings.hit_delta_g_ev], [settings.hit_delta_g_ev]])
    below, up_to = norm.cdf(limits, loc=minima, scale=max(change.scatter_ev, LEAST_SCATTER_EV))
    at_zero = dataclasses.replace(row, delta_g_ev=0.0, delta_g_std_ev=math.nan)  # certainly in the window: what is left is the rest
    return float(np.mean(up_to - below)) * hit_probability(at_zero, settings)


def _by_gain(row: CandidateResult) -> str:
    return f"teaches: ± {row.delta_g_std_ev:.2f} eV at ΔG_H {row.delta_g_ev:+.2f} eV"


class _Taken:
    """Formulas, families and the number of soluble sheets of a batch that is being filled."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.formulas: set[str] = set()
        self.families: Counter[str] = Counter()
        self.soluble = 0

    def next_of(self, ordered: Iterable[CandidateResult], places: int) -> Iterator[CandidateResult]:
        """Yield and take the first rows, at most ``places``, that the limits still allow."""
        for row in ordered:
            formula, family, soluble = composition_key(row.formula), family_of(row), is_soluble(row.elements())
            full = self.families[family] >= self.limits.max_per_family or (soluble and self.soluble >= self.limits.max_soluble)
            if places and not full and formula not in self.formulas:
                self.formulas.add(formula)
                self.families[family] += 1
                self.soluble += soluble
                places -= 1
                yield row


def learning_gain(row: CandidateResult, settings: EvaluationConfig) -> float:
    """Return σ(ΔG_H) P(E_above_hull <= limit), eV; 0 where ΔG_H is out of the window by more than two standard errors."""
    if abs(row.delta_g_ev) - settings.hit_delta_g_ev > STANDARD_ERRORS * row.delta_g_std_ev:
        return 0.0
    return row.delta_g_std_ev * probability_below(settings.hit_e_hull_ev, row.e_above_hull_ev, row.e_above_hull_std_ev)


def design_fault(row: CandidateResult, settings: EvaluationConfig) -> str:
    """Return why a sheet is no design, whatever it costs; empty where it may be one."""
    missing = (math.isnan(value) for value in (row.delta_g_ev, row.delta_g_std_ev, row.e_above_hull_ev, row.p_hit))
    faults = {
        "no valid sheet": not row.is_sheet or row.valid is not True or row.sheet_relaxed is False,
        "duplicate": row.unique is False,
        "not novel": row.novel is False,
        "hazards or price": not is_practical(row, settings),
        "dynamically unstable": row.dynamically_stable is False,
        "dissolves in water": row.water == DISSOLVES,
        "does not conduct": row.conductive is False,
        "H desorbs or is not at rest": h_at_rest(row) is False,
        "no ΔG_H with an error, or no E_above_hull": any(missing),
    }
    return next((fault for fault, found in faults.items() if found), "")


def control_fault(row: CandidateResult, settings: EvaluationConfig) -> str:
    """Return why a sheet may be no control; empty where it may."""
    if not row.is_sheet or row.valid is not True or row.sheet_relaxed is False:
        return "no valid sheet"
    return "" if is_practical(row, settings) else "hazards or price"


def cost_fault(formula: str, sheet: Atoms | None, limits: Limits) -> str:
    """Return why DFT is not asked about a sheet: it knows the composition, or the cell is too large; empty where it may be.

    formula: of its cell. sheet: as the potential relaxed it; None where it has not.
    """
    if composition_key(formula) in limits.known:
        return "composition computed before"
    elements = {element.symbol for element in Composition(formula)}
    if "H" in elements:
        return "the sheet itself contains H"
    if elements & set(limits.excluded):
        return "elements that are left out"
    try:
        atoms = 0 if sheet is None else dft_atoms(sheet)
    except NotTwoDimensional:
        atoms = 0
    if not atoms:
        return NO_SHEET
    return f"more than {limits.max_dft_atoms} atoms with H" if atoms > limits.max_dft_atoms else ""


def worth_judging(paths: Iterable[Path], limits: Limits) -> tuple[list[Path], Counter[str]]:
    """Return the CIFs of sheets that DFT may be asked about, and how many others there are, by the reason.

    A file that cannot be read, or not as a sheet, is left to the judges.
    """
    worth, refused = [], Counter()
    for path in paths:
        try:
            sheet = read_cif(path)
            fault = cost_fault(str(sheet.symbols), sheet, limits)
        except UnreadableCif:
            fault = NO_SHEET
        if fault in ("", NO_SHEET):
            worth.append(path)
        else:
            refused[fault] += 1
    return worth, refused


def draw_controls(
    rows: Sequence[CandidateResult],
    structures: Mapping[str, Atoms],
    number: int,
    limits: Limits,
    settings: EvaluationConfig,
    rng: np.random.Generator,
) -> list[Pick]:
    """Draw controls at random.

    Args:
        rows: judged candidates of the control set.
        structures: id -> relaxed sheet.
        number: of controls; fewer are returned where fewer may be drawn.
        limits: ``known`` and ``max_dft_atoms`` count.
        settings: hazards.
        rng: draws.
    """
    ordered = sorted(rows, key=lambda row: row.id)
    picks: list[Pick] = []
    formulas: set[str] = set()
    for k in rng.permutation(len(ordered)):
        row, formula = ordered[k], composition_key(ordered[k].formula)
        if len(picks) == number:
            break
        if formula not in formulas and not (
            control_fault(row, settings) or cost_fault(row.formula, structures.get(row.id), limits)
        ):
            formulas.add(formula)
            picks.append(Pick(row, family_of(row), dft_atoms(structures[row.id]), "drawn at random"))
    return picks
