"""Judges one candidate: holds the judges, and asks them in order.

A judge that fails leaves NaN and a status that says why. No content of a CIF stops a run.
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
from pymatgen.core import Structure

import geo_utils
from crystals import cif, symmetry, validity
from crystals.formulas import cell_formula, composition_key, reduced_formula
from crystals.matching import match_structure, same_structure
from energetics.adsorption_energy import free_energy
from energetics.learnt_hull import judge_hull
from energetics.potential_adsorption import HydrogenAtSite, deciding, hydrogen_at_best_sites
from evaluation import h_site, legacy
from evaluation.candidate import P_SYNTH_THRESHOLD, CandidateResult, atoms_to_dict
from evaluation.decisions import choose_delta_g
from evaluation.scores import stability_score
from pipeline.errors import StageError
from pipeline.settings import DatasetConfig, EvaluationConfig

log = logging.getLogger("her2d")
KNOWN_FORMULA = "formula known to the generator"
CLASH_TO_SKIP = 0.5  # a structure with a distance below this share of the sum of covalent radii is not judged


@dataclass
class Judges:
    """The models that judge, and what decides novelty.

    potential: relaxes and holds H, as ``StabilityJudge`` (``relax``, ``band_gap``, ``delta_e_hydrogen``,
        ``dynamic_stability``, ``legacy_energy``).
    references: reference phases, as ``hull.References`` (``elements``, ``e_form``, ``e_above_hull``, ``hull_energy``).
    her: DimeNet++, as ``hydrogen.HydrogenPredictor`` (``predict_sheet``, ``legacy_bare_output``); None: not asked.
    synth: synthesizability, as ``SynthesizabilityJudge`` (``score``; ``method_and_precursors`` where ``suggests_routes``).
    training_structures: reduced formula -> [(uid, Structure), ...] as ``match_structure`` makes them; None: novelty is not decided.
    known_formulas: reduced formulas that count as not novel without a structure to compare with.
    identity: names and hashes of the judges; results of equal identity are comparable.
    learnt_hull: PBE's hull as ``learnt_hull.LearntHull`` learnt it; None: the potential's counts.
    gap: the band gap, as ``band_gap_model.GapModel`` (``band_gap``); None: no verdict whether a sheet conducts.
    """

    potential: Any
    references: Any
    her: Any
    synth: Any
    training_structures: Callable[[str], Sequence[tuple[str, Structure]]] | None
    known_formulas: frozenset[str] = frozenset()
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    identity: dict[str, Any] = field(default_factory=dict)
    learnt_hull: Any = None
    gap: Any = None


@dataclass
class _Case:
    """One candidate before its judges: what they read and where they write.

    given: the structure as read, then in its standard setting; None where it cannot be put into one.
    relaxed, energy, forces: structure, energy (eV) and forces (N, 3; eV/Å) after the potential's relaxation; None until that
    succeeds.
    hydrogen: DimeNet++'s prediction over all sites (``hydrogen.SheetHER``); None until it has a best site.
    h_position: (3,) Å of H on that site, in the cell of the judged structure; None where it is not known.
    problems: the parts of the status.
    """

    row: CandidateResult
    judges: Judges
    settings: EvaluationConfig
    problems: list[str] = field(default_factory=list)
    given: Atoms | None = None
    relaxed: Atoms | None = None
    energy: float | None = None
    forces: np.ndarray | None = None
    hydrogen: Any = None
    h_position: list[float] | None = None

    @property
    def judged(self) -> Atoms | None:
        """The structure that is judged: the relaxed one, or the given one where relaxation failed."""
        return self.given if self.relaxed is None else self.relaxed

    def attempt(self, name: str, judge: Callable[[_Case], None]) -> bool:
        """Ask one judge, and return whether it answered. A failure is added to the problems."""
        try:
            judge(self)
        except Exception as error:  # a judge may fail in any way; the row names it and the run goes on
            self.problems.append(f"{name}: {_short(error)}")
            log.debug("%s failed on %s", name, self.row.formula, exc_info=True)
            return False
        return True


def judge_candidate(path: str | Path, judges: Judges, settings: EvaluationConfig) -> dict[str, Any]:
    """Judge one CIF.

    A bad file or a judge that fails raises nothing: the status of the row says it.

    Returns:
        ``{"row": CandidateResult without id, "structure": atoms as judged, "forces": (N, 3) eV/Å on them, "h_position": (3,) Å of
        H on its best site in that cell}`` as plain Python values; forces and h_position are None where they are not known.
    """
    started = time.perf_counter()
    case = _Case(CandidateResult(), judges, settings)
    row = case.row
    try:
        atoms = cif.read_cif(path, settings.max_atoms)
    except cif.UnreadableCif as error:
        row.dimensionality = "unreadable"
        row.status = f"unreadable: {error}"
    else:
        case.given = atoms
        _ask_all(case)
        row.status = "; ".join(case.problems) or "ok"
    row.seconds = time.perf_counter() - started
    forces = None if case.forces is None else case.forces.tolist()
    found = {"structure": atoms_to_dict(case.judged), "forces": forces, "h_position": case.h_position}
    return {"row": dataclasses.asdict(row), **found}


def _ask_all(case: _Case) -> None:
    """Ask every judge in turn; later ones read what earlier ones found."""
    row = case.row
    row.formula, row.natoms = cell_formula(str(case.given.symbols)), len(case.given)
    row.reduced_formula = reduced_formula(row.formula)
    if not case.attempt("structure", _classify):
        case.given = None
        return
    if reason := _unfit(row):
        case.problems.append(f"not judged: {reason}")
        return
    case.attempt("relaxation", _relax)
    if case.relaxed is not None:
        case.attempt("hull", _hull)
    if row.is_sheet:
        if case.judges.gap is not None:
            case.attempt("band gap", _band_gap)
        _hydrogen(case)
    case.attempt("synthesizability", _synthesizability)
    # An 8B model generates two texts for this, so only candidates that could be made are asked about.
    if row.valid and row.synthesizable and getattr(case.judges.synth, "suggests_routes", False):
        case.attempt("synthesis route", _route)
    choose_delta_g(row)
    if row.is_sheet and case.judges.training_structures is not None:
        case.attempt("novelty", _novelty)
    if case.settings.legacy_columns:
        case.attempt("scores of the earlier baseline", _legacy)


def _classify(case: _Case) -> None:
    """Put the structure into its standard setting and check it."""
    row, settings = case.row, case.settings
    case.given, row.dimensionality, gap = validity.standardise(case.given, settings.min_vacuum_angstrom)
    checks = validity.check(case.given, row.dimensionality, gap, settings.min_vacuum_angstrom, settings.clash_factor)
    row.no_clash, row.single_sheet, row.vacuum_ok = checks.no_clash, checks.single_sheet, checks.vacuum_ok
    row.charge_neutral, row.valid = checks.charge_neutral, checks.valid
    row.min_distance_ratio, row.vacuum_angstrom = checks.min_distance_ratio, checks.vacuum_angstrom
    row.space_group, row.layer_group = symmetry.symmetry_symbols(case.given, row.is_sheet)


def _unfit(row: CandidateResult) -> str:
    """Say why no judge is asked about a structure; empty where they are asked."""
    if not (row.is_sheet or row.is_bulk):
        return f"a {row.dimensionality}, neither sheet nor bulk crystal"
    if row.min_distance_ratio < CLASH_TO_SKIP:
        return f"atoms overlap (shortest distance {row.min_distance_ratio:.2f} x covalent radii)"
    return ""


def _relax(case: _Case) -> None:
    """Relax the structure with the potential; every later judge reads the relaxed one."""
    row, given = case.row, case.given
    relaxation = case.judges.potential.relax(given, bulk=row.is_bulk)
    relaxed, energy = relaxation.atoms, float(relaxation.energy)
    finite = math.isfinite(energy) and np.isfinite(relaxed.positions).all() and np.isfinite(relaxed.cell.array).all()
    if not finite or relaxation.status in ("exploded", "collapsed"):
        raise ValueError(relaxation.status)
    row.relax_steps = int(relaxation.steps)
    row.energy_ev_per_atom = energy / len(relaxed)
    if case.settings.relax:
        row.relax_converged = bool(relaxation.converged)
        row.relax_rmsd_angstrom, row.relax_area_change = rmsd_and_area_change(given, relaxed, row.is_bulk)
        if not row.relax_converged:
            case.problems.append(f"relaxation: {relaxation.status}")
    if row.is_sheet:
        row.sheet_relaxed = _is_connected(relaxed)
    row.space_group_relaxed, row.layer_group_relaxed = symmetry.symmetry_symbols(relaxed, row.is_sheet)
    case.relaxed, case.energy = relaxed, energy
    forces = getattr(relaxation, "forces", None)  # not every potential's relaxation gives them
    case.forces = forces if forces is not None and np.isfinite(forces).all() else None


def _is_connected(atoms: Atoms) -> bool:
    """Return whether bonds join all atoms to one sheet."""
    # Not validity.sheet_fault, which gives another result: to it, a sheet with two close atoms is a fault however well connected.
    return geo_utils.sheet_connectivity(atoms).is_single_sheet


def _hull(case: _Case) -> None:
    """Compute the formation energy, E_above_hull and the stability score from the reference phases and the learnt hull."""
    row, references = case.row, case.judges.references
    if missing := sorted(row.elements() - set(references.elements)):
        case.problems.append(f"hull: no reference for {', '.join(missing)}")
        return
    row.e_form_ev = float(references.e_form(case.relaxed, case.energy))
    row.decomposition = " + ".join(f"{share:.2f} {name}" for name, share in references.decomposition(row.formula).items())
    found = judge_hull(references, case.judges.learnt_hull, case.relaxed, case.energy, case.settings.hull)
    row.e_above_hull_ev, row.e_above_hull_std_ev = found.e_above_hull, found.std
    row.e_above_hull_potential_ev, row.e_above_hull_source = found.potential, found.source
    e_ref = float(references.hull_energy(row.reduced_formula))
    no_hull = math.isnan(e_ref)
    row.score_stab = stability_score(row.e_form_ev, case.settings.e_ref_ev) if no_hull else stability_score(found.e_above_hull, 0.0)


def _band_gap(case: _Case) -> None:
    """Predict the band gap, and say whether the sheet conducts as an electrode has to."""
    row = case.row
    row.band_gap_ev = float(case.judges.gap.band_gap(case.judged))
    row.conductive = None if math.isnan(row.band_gap_ev) else row.band_gap_ev <= case.settings.conductive_gap_ev


def _hydrogen(case: _Case) -> None:
    """Ask DimeNet++ for ΔG_H over all sites, then the potential at the best of them; only for a connected sheet without H."""
    row, settings = case.row, case.settings
    if "H" in case.judged.get_chemical_symbols():
        case.problems.append("ΔG_H: the sheet itself contains H")
        return
    if not _is_connected(case.judged):
        case.problems.append("ΔG_H: not one connected sheet")
        return
    if case.judges.her is None:
        return
    case.attempt("ΔG_H", _hydrogen_by_dimenet)
    if case.hydrogen is None or case.relaxed is None or settings.potential_h_sites == 0:
        return
    if row.e_above_hull_ev > settings.potential_h_max_e_hull_ev:
        limit = settings.potential_h_max_e_hull_ev
        case.problems.append(f"ΔG_H of the potential: not asked, E_above_hull over {limit:g} eV/atom")
        return
    case.attempt("ΔG_H of the potential", _hydrogen_by_potential)


def _hydrogen_by_dimenet(case: _Case) -> None:
    """Predict ΔG_H with DimeNet++ over all sites; the best site counts."""
    row, judges = case.row, case.judges
    result = judges.her.predict_sheet(case.judged, judges.dataset, judges.potential.band_gap)
    if result.best is None:
        case.problems.append(f"ΔG_H: {result.status}")
        return
    best = int(result.best)
    row.delta_g_h_ev, row.delta_g_h_std_ev = float(result.delta_g[best]), float(result.std[best])
    row.h_site_kind, row.h_site_face = result.sites[best].kind, result.sites[best].face
    row.h_n_sites, row.h_coverage = len(result.sites), float(result.coverage)
    row.h_in_domain, row.h_domain_note = bool(result.in_domain), str(result.domain_reason)
    case.hydrogen = result
    case.h_position = h_site.place_on(case.judged, result.sheet, result.sites[best])


def _hydrogen_by_potential(case: _Case) -> None:
    """Relax H with the potential at DimeNet++'s best sites.

    The potential's own ΔG_H and its ΔG_H corrected from DFT are each the lowest over the sites that keep H.
    """
    row, judges = case.row, case.judges
    at_sites = hydrogen_at_best_sites(judges.potential, case.hydrogen, case.settings.potential_h_sites)
    fields, problem = potential_hydrogen([h for _, h in at_sites], judges.dataset.her_correction_ev)
    for name, value in fields.items():
        setattr(row, name, value)
    if problem:
        case.problems.append(f"ΔG_H of the potential: {problem}")


def potential_hydrogen(at_sites: Sequence[HydrogenAtSite], correction_ev: float) -> tuple[dict[str, Any], str]:
    """Return what the potential says of H from all that it was relaxed at: fields of the row, and what is wrong, if anything.

    correction_ev: ΔG_H − ΔE_H, eV.
    """
    bound = [h for h in at_sites if h.is_bound]
    fields: dict[str, Any] = {"h_desorbed": any(h.desorbed for h in at_sites) and not bound, "h_sites_relaxed": len(at_sites)}
    if not bound:
        return fields, f"H {'desorbs' if fields['h_desorbed'] else 'relaxation exploded'}"
    decides = at_sites[deciding(at_sites)]
    fields["delta_g_h_potential_ev"] = free_energy(min(h.delta_e for h in bound), correction_ev)
    fields["delta_g_h_corrected_ev"] = free_energy(decides.corrected, correction_ev)
    fields["delta_g_h_corrected_std_ev"] = decides.corrected_std
    if math.isfinite(decides.corrected):
        fields["correction_in_domain"], fields["correction_domain_note"] = not decides.complaint, decides.complaint
    fields["h_relax_converged"] = decides.converged
    fields["h_rest_ev"], fields["h_changes_sheet"] = decides.rest, decides.changes_sheet
    return fields, "" if fields["h_relax_converged"] else "H relaxation not converged"


def _synthesizability(case: _Case) -> None:
    """Ask the synthesizability model for P_synth."""
    row = case.row
    score = case.judges.synth.score([case.judged])[0]
    row.p_synth, row.p_synth_label_mass = float(score.p_synth), float(score.label_mass)
    row.synthesizable = None if math.isnan(row.p_synth) else row.p_synth >= P_SYNTH_THRESHOLD
    if score.status != "ok":
        case.problems.append(f"synthesizability: {score.status}")


def _route(case: _Case) -> None:
    """Ask the language model for a synthesis method and precursors."""
    row = case.row
    suggested = case.judges.synth.method_and_precursors(row.reduced_formula)
    row.synthesis_method, row.synthesis_precursors = suggested.method or "", ", ".join(suggested.precursors)
    if "not understood" in suggested.status:  # a missing method or precursor model is no failure
        case.problems.append(f"synthesis route: {suggested.status}")


def _novelty(case: _Case) -> None:
    """Compare with the training structures of the same formula."""
    row, judges = case.row, case.judges
    own = match_structure(case.judged, is_sheet=True)
    composition = composition_key(row.formula)
    match = next((uid for uid, known in judges.training_structures(composition) if same_structure(own, known)), "")
    if not match and composition in judges.known_formulas:
        match = KNOWN_FORMULA
    row.novel, row.novel_match = not match, match


def _legacy(case: _Case) -> None:
    """Score the structure before relaxation as the earlier public baseline did."""
    legacy.score(case.row, case.given, case.judges.her, case.judges.potential, case.judges.dataset.her_correction_ev)


def rmsd_and_area_change(given: Atoms, relaxed: Atoms, bulk: bool) -> tuple[float, float]:
    """Measure how far a relaxation moved the atoms and stretched the cell.

    Atoms are paired in order by their nearest images in fractional coordinates. The common translation is removed. Differences are
    measured in the mean of the two cells, so that a pure strain of the cell counts as area and not as RMSD.

    Returns:
        (RMSD in Å, relative change of the in-plane area, or of the volume of a bulk crystal).
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
    """Return the message of an error in one short line, with the name of its type where that is needed to understand it."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError) and " " in text:  # a sentence and no missing key; KeyError puts it in quotes
        return text.strip("'\"")[:120]
    if isinstance(error, StageError | ValueError) and text:
        return text[:120]
    return f"{type(error).__name__} {text[:100]}".strip()
