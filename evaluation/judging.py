"""The judging of one candidate: what is recorded about it, the judges, and the order in which they are asked.

A judge that fails leaves NaN and a status that says why; nothing that is in a CIF stops a run.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from pymatgen.core import Composition, Structure

import geo_utils
from crystals import cif, symmetry, validity
from crystals.matching import match_structure, same_structure
from energetics.potential_adsorption import hydrogen_at_best_sites
from evaluation import metrics
from evaluation.candidate import P_SYNTH_THRESHOLD, CandidateResult, atoms_to_dict
from evaluation.legacy import legacy_stability_score
from pipeline.errors import StageError
from pipeline.settings import DatasetConfig, EvaluationConfig

log = logging.getLogger("her2d")
KNOWN_FORMULA = "formula known to the generator"
CLASH_TO_SKIP = 0.5


@dataclass
class Judges:
    """The models that judge, and where novelty is decided.

    potential: what ``StabilityJudge`` offers (``relax``, ``delta_e_hydrogen``, ``legacy_energy``). references: ``e_form``,
    ``e_above_hull``, ``hull_energy``. her: ``predict_sheet``, ``legacy_bare_output``. synth: ``score``. training_structures:
    reduced formula -> [(uid, Structure), ...] in the form of ``match_structure``; None: novelty is not decided. known_formulas:
    reduced formulas that count as not novel without a structure to compare with. identity: what makes results of these judges
    comparable.
    """

    potential: Any
    references: Any
    her: Any
    synth: Any
    training_structures: Callable[[str], Sequence[tuple[str, Structure]]] | None
    known_formulas: frozenset[str] = frozenset()
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    identity: dict[str, Any] = field(default_factory=dict)


def judge_candidate(path: str | Path, judges: Judges, settings: EvaluationConfig) -> dict[str, Any]:
    """Judges one CIF: ``{"row": CandidateResult without id, "structure": atoms as judged}`` in plain Python values.

    Never raises for what is in the file or for a judge that fails: the row says it.
    """
    started = time.perf_counter()
    row, problems = CandidateResult(), []
    structure: Atoms | None = None
    try:
        atoms = cif.read_cif(path, settings.max_atoms)
    except cif.UnreadableCif as error:
        row.dimensionality = "unreadable"
        row.status = f"unreadable: {error}"
    else:
        structure = _judge_atoms(atoms, row, problems, judges, settings)
        row.status = "; ".join(problems) or "ok"
    row.seconds = time.perf_counter() - started
    return {"row": dataclasses.asdict(row), "structure": atoms_to_dict(structure)}


def _judge_atoms(
    atoms: Atoms, row: CandidateResult, problems: list[str], judges: Judges, settings: EvaluationConfig
) -> Atoms | None:
    """Fills ``row``; returns the structure that was judged (relaxed where that worked)."""
    row.formula, row.natoms = atoms.get_chemical_formula(), len(atoms)
    row.reduced_formula = Composition(row.formula).reduced_formula

    def attempt(name: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # a judge may fail in any way; the row names it and the run goes on
            problems.append(f"{name}: {_short(error)}")
            log.debug("%s failed on %s", name, row.formula, exc_info=True)
            return False
        return True

    state: dict[str, Any] = {}

    def classify() -> None:
        given, row.dimensionality, gap = validity.standardise(atoms, settings.min_vacuum_angstrom)
        state["given"] = given
        checks = validity.check(given, row.dimensionality, gap, settings.min_vacuum_angstrom, settings.clash_factor)
        row.no_clash, row.single_sheet, row.vacuum_ok = checks.no_clash, checks.single_sheet, checks.vacuum_ok
        row.charge_neutral, row.valid = checks.charge_neutral, checks.valid
        row.min_distance_ratio, row.vacuum_angstrom = checks.min_distance_ratio, checks.vacuum_angstrom
        row.space_group, row.layer_group = symmetry.symmetry_symbols(given, row.is_sheet)

    if not attempt("structure", classify):
        return None
    given: Atoms = state["given"]
    if not (row.is_sheet or row.is_bulk):
        problems.append(f"not judged: a {row.dimensionality}, neither sheet nor bulk crystal")
        return given
    if row.min_distance_ratio < CLASH_TO_SKIP:
        problems.append(f"not judged: atoms overlap (shortest distance {row.min_distance_ratio:.2f} x covalent radii)")
        return given

    def relax() -> None:
        relaxation = judges.potential.relax(given, bulk=row.is_bulk)
        relaxed, energy = relaxation.atoms, float(relaxation.energy)
        finite = math.isfinite(energy) and np.isfinite(relaxed.positions).all() and np.isfinite(relaxed.cell.array).all()
        if not finite or relaxation.status in ("exploded", "collapsed"):
            raise ValueError(relaxation.status)
        row.relax_steps = int(relaxation.steps)
        row.energy_ev_per_atom = energy / len(relaxed)
        if settings.relax:
            row.relax_converged = bool(relaxation.converged)
            row.relax_rmsd_angstrom, row.relax_area_change = relaxation_change(given, relaxed, row.is_bulk)
            if not row.relax_converged:
                problems.append(f"relaxation: {relaxation.status}")
        if row.is_sheet:
            row.sheet_relaxed = geo_utils.sheet_connectivity(relaxed).is_single_sheet
        row.space_group_relaxed, row.layer_group_relaxed = symmetry.symmetry_symbols(relaxed, row.is_sheet)
        state.update(relaxed=relaxed, energy=energy)

    attempt("relaxation", relax)
    judged: Atoms = state.get("relaxed", given)

    def hull() -> None:
        if missing := sorted(row.elements() - set(judges.references.elements)):
            problems.append(f"hull: no reference for {', '.join(missing)}")
            return
        row.e_form_ev = float(judges.references.e_form(judged, state["energy"]))
        row.e_above_hull_ev = float(judges.references.e_above_hull(judged, state["energy"]))
        e_ref = float(judges.references.hull_energy(row.reduced_formula))
        row.score_stab = metrics.stability_score(row.e_form_ev, settings.e_ref_ev if math.isnan(e_ref) else e_ref)

    if "energy" in state:
        attempt("hull", hull)
    if row.is_sheet:
        _judge_hydrogen(judged, row, problems, judges, settings, attempt, relaxed="energy" in state)

    def synthesizability() -> None:
        score = judges.synth.score([judged])[0]
        row.p_synth, row.p_synth_label_mass = float(score.p_synth), float(score.label_mass)
        row.synthesizable = None if math.isnan(row.p_synth) else row.p_synth >= P_SYNTH_THRESHOLD
        if score.status != "ok":
            problems.append(f"synthesizability: {score.status}")

    attempt("synthesizability", synthesizability)

    def route() -> None:
        suggested = judges.synth.method_and_precursors(row.reduced_formula)
        row.synthesis_method, row.synthesis_precursors = suggested.method or "", ", ".join(suggested.precursors)
        if "not understood" in suggested.status:  # a model that is not there is no failure
            problems.append(f"synthesis route: {suggested.status}")

    # Two texts to generate with an 8B model: only where there is something to make.
    if row.valid and row.synthesizable and getattr(judges.synth, "suggests_routes", False):
        attempt("synthesis route", route)
    row.score_composite = metrics.composite_score(row.delta_g_h_ev, row.score_stab, row.p_synth)

    def novelty() -> None:
        if judges.training_structures is None or not row.is_sheet:
            return
        own = match_structure(judged, is_sheet=True)
        match = next((uid for uid, known in judges.training_structures(row.reduced_formula) if same_structure(own, known)), "")
        if not match and row.reduced_formula in judges.known_formulas:
            match = KNOWN_FORMULA
        row.novel, row.novel_match = not match, match

    attempt("novelty", novelty)

    def legacy() -> None:
        row.legacy_delta_g_ev = float(judges.her.legacy_bare_output(given)) + judges.dataset.her_correction_ev
        row.legacy_energy_ev_per_atom = float(judges.potential.legacy_energy(given))
        row.legacy_score_stab = legacy_stability_score(row.legacy_energy_ev_per_atom)
        row.legacy_score_composite = metrics.composite_score(row.legacy_delta_g_ev, row.legacy_score_stab, row.p_synth)

    if settings.legacy_columns:
        attempt("scores of the earlier baseline", legacy)
    return judged


def _judge_hydrogen(
    judged: Atoms,
    row: CandidateResult,
    problems: list[str],
    judges: Judges,
    settings: EvaluationConfig,
    attempt: Callable[[str, Callable[[], None]], bool],
    relaxed: bool,
) -> None:
    """ΔG_H over all sites by DimeNet++, then by the potential at DimeNet++'s best sites. Only for a connected sheet without H."""
    if "H" in judged.get_chemical_symbols():
        problems.append("ΔG_H: the sheet itself contains H")
        return
    if not geo_utils.sheet_connectivity(judged).is_single_sheet:
        problems.append("ΔG_H: not one connected sheet")
        return
    found: dict[str, Any] = {}

    def dimenet() -> None:
        result = judges.her.predict_sheet(judged, judges.dataset, judges.potential.band_gap)
        row.band_gap_ev = result.band_gap
        if result.best is None:
            problems.append(f"ΔG_H: {result.status}")
            return
        best = int(result.best)
        row.delta_g_h_ev, row.delta_g_h_std_ev = float(result.delta_g[best]), float(result.std[best])
        row.h_site_kind, row.h_site_face = result.sites[best].kind, result.sites[best].face
        row.h_n_sites, row.h_coverage = len(result.sites), float(result.coverage)
        row.h_in_domain, row.h_domain_note = bool(result.in_domain), str(result.domain_reason)
        found["result"] = result

    attempt("ΔG_H", dimenet)
    if not found or not relaxed or settings.potential_h_sites == 0:
        return
    if row.e_above_hull_ev > settings.potential_h_max_e_hull_ev:
        problems.append(f"ΔG_H of the potential: not asked, E_above_hull over {settings.potential_h_max_e_hull_ev:g} eV/atom")
        return

    def potential() -> None:
        result = found["result"]
        found_at = hydrogen_at_best_sites(judges.potential, result, settings.potential_h_sites)
        bound = [h for h in found_at.values() if h.is_bound]
        row.h_desorbed = any(h.desorbed for h in found_at.values()) and not bound
        if not bound:
            problems.append(f"ΔG_H of the potential: H {'desorbs' if row.h_desorbed else 'relaxation exploded'}")
            return
        best = min(bound, key=lambda h: h.delta_e)
        row.delta_g_h_potential_ev = best.delta_e + judges.dataset.her_correction_ev
        corrected = min(bound, key=lambda h: h.corrected if math.isfinite(h.corrected) else math.inf)
        row.delta_g_h_corrected_ev = corrected.corrected + judges.dataset.her_correction_ev
        row.delta_g_h_corrected_std_ev = corrected.corrected_std
        if not best.converged:
            problems.append("ΔG_H of the potential: H relaxation not converged")

    attempt("ΔG_H of the potential", potential)


def relaxation_change(given: Atoms, relaxed: Atoms, bulk: bool) -> tuple[float, float]:
    """(RMSD in Å, relative change of the in-plane area, or of the volume of a bulk crystal).

    Atoms are paired in order by their nearest images in fractional coordinates; the common translation is removed and the
    differences are measured in the mean of the two cells, so that a pure strain of the cell counts as area and not as RMSD.
    """
    periodic = np.array([True, True, bulk])
    mean_cell = 0.5 * (given.cell.array + relaxed.cell.array)
    shift = relaxed.get_scaled_positions(wrap=False) - given.get_scaled_positions(wrap=False)
    shift -= shift[0]
    shift -= np.round(shift) * periodic
    displacement = shift @ mean_cell
    if not bulk:
        displacement[:, 2] = relaxed.positions[:, 2] - given.positions[:, 2]
    displacement -= displacement.mean(0)
    size = [abs(np.linalg.det(a.cell.array if bulk else a.cell.array[:2, :2])) for a in (given, relaxed)]
    return float(np.sqrt((displacement**2).sum(1).mean())), float(size[1] / size[0] - 1.0)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, KeyError) and " " in text:  # a sentence, which KeyError puts in quotes, not a missing key
        return text.strip("'\"")[:120]
    if isinstance(error, StageError | ValueError) and text:
        return text[:120]
    return f"{type(error).__name__} {text[:100]}".strip()
