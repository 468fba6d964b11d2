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

import band_gap
import config
import geo_utils
import metrics
import validity
from dft_correction import DftCorrection

log = logging.getLogger("her2d")

# Raised whenever the meaning of a stored result changes, so that no older one is read.
JUDGEMENT_VERSION = 4
NAN = math.nan
P_SYNTH_THRESHOLD = 0.5
KNOWN_FORMULA = "formula known to the generator"
MAX_DELTA_E_EV = 10.0  # beyond it a potential has left its domain, and a correction learnt within it says nothing
CLASH_TO_SKIP = 0.5
# Structures are compared in boxes of thickness + 4 Å: with 20 Å of vacuum the site tolerance, which grows with the cube root of the
# volume per atom, is so wide that 1T and 2H are the same. Volumes are not rescaled: a sheet has no volume to scale by.
MATCH_VACUUM = 4.0
LEGACY_FMAX = 0.05  # eV/Å
FAR_ABOVE_EV = 0.3  # a site whose H is this far above another's after a few steps will not become the best
OFF_SITE = np.array([0.08, 0.06, 0.0])  # Å
MATCHER_SETTINGS = {"ltol": 0.15, "stol": 0.2, "angle_tol": 5, "primitive_cell": True, "scale": False, "attempt_supercell": False}
# Settings that change what is found for a candidate; the others only change what is counted.
JUDGED_SETTINGS = (
    "relax",
    "fmax_ev_per_angstrom",
    "max_steps",
    "potential_h_sites",
    "potential_h_max_e_hull_ev",
    "second_potential",
    "band_gap",
    "max_h_steps",
    "min_vacuum_angstrom",
    "clash_factor",
    "e_ref_ev",
    "max_atoms",
    "legacy_columns",
    "legacy_max_steps",
)


@dataclass
class CandidateResult:
    """Everything known about one candidate; the order of the fields is the order of the columns of ``metrics.csv``.

    Numbers are NaN and verdicts None where a judge gave none; ``status`` is "ok" or says which judge failed and why. Energies in
    eV (ΔG_H) and eV/atom (E_form, E_above_hull), lengths in Å, ``h_coverage`` in H per primitive cell, ``relax_area_change``
    relative to the cell as given. ``space_group`` and ``layer_group`` are found within 0.1 Å. ``band_gap_ev`` is GFN2-xTB's, a
    descriptor of the correction. ``hit`` uses DimeNet++'s ΔG_H, ``hit_potential`` the potential's own, ``hit_corrected`` the
    potential's after its correction from DFT. ``synthesis_*`` are CSLLM's suggestions, for valid sheets that it calls
    synthesizable. ``legacy_*`` repeat the scoring of the earlier public baseline (``metrics.legacy_stability_score``), for
    comparison only; no verdict uses them.
    """

    id: str = ""
    source_file: str = ""
    formula: str = ""
    reduced_formula: str = ""
    natoms: int = 0
    dimensionality: str = ""
    space_group: str = ""
    layer_group: str = ""
    space_group_relaxed: str = ""
    layer_group_relaxed: str = ""
    no_clash: bool | None = None
    single_sheet: bool | None = None
    vacuum_ok: bool | None = None
    charge_neutral: bool | None = None
    valid: bool | None = None
    min_distance_ratio: float = NAN
    vacuum_angstrom: float = NAN
    relax_converged: bool | None = None
    relax_steps: int = 0
    relax_rmsd_angstrom: float = NAN
    relax_area_change: float = NAN
    sheet_relaxed: bool | None = None
    energy_ev_per_atom: float = NAN
    e_form_ev: float = NAN
    e_above_hull_ev: float = NAN
    delta_g_h_ev: float = NAN
    delta_g_h_std_ev: float = NAN
    h_site_kind: str = ""
    h_site_face: str = ""
    h_n_sites: int = 0
    h_coverage: float = NAN
    h_in_domain: bool | None = None
    h_domain_note: str = ""
    delta_g_h_potential_ev: float = NAN
    band_gap_ev: float = NAN
    delta_g_h_corrected_ev: float = NAN
    delta_g_h_corrected_std_ev: float = NAN
    h_desorbed: bool | None = None
    p_synth: float = NAN
    p_synth_label_mass: float = NAN
    synthesizable: bool | None = None
    synthesis_method: str = ""
    synthesis_precursors: str = ""
    unique: bool | None = None
    duplicate_of: str = ""
    novel: bool | None = None
    novel_match: str = ""
    sun: bool | None = None
    metastable_sun: bool | None = None
    hit: bool | None = None
    hit_potential: bool | None = None
    hit_corrected: bool | None = None
    score_stab: float = NAN
    score_composite: float = NAN
    legacy_delta_g_ev: float = NAN
    legacy_energy_ev_per_atom: float = NAN
    legacy_score_stab: float = NAN
    legacy_score_composite: float = NAN
    seconds: float = NAN
    status: str = "ok"

    @property
    def is_bulk(self) -> bool:
        """A crystal that is periodic in three directions: scored, but no two-dimensional candidate."""
        return self.dimensionality in validity.BULK_KINDS

    @property
    def is_sheet(self) -> bool:
        """Extends in two directions with vacuum around it."""
        return self.dimensionality in validity.SHEET_KINDS

    def elements(self) -> set[str]:
        """Element symbols of the candidate; empty when it could not be read."""
        return {element.symbol for element in Composition(self.formula)} if self.formula else set()


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
    dataset: config.DatasetConfig = field(default_factory=config.DatasetConfig)
    identity: dict[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------------- judges


@dataclass(frozen=True)
class HydrogenAtSite:
    """H relaxed from one site: ΔE_H (eV), whether it left the sheet, whether the relaxation converged or was given up; and ΔE_H
    after the correction from DFT with its standard error (eV), NaN without one."""

    delta_e: float
    desorbed: bool
    converged: bool
    corrected: float = NAN
    corrected_std: float = NAN
    given_up: bool = False

    @property
    def is_bound(self) -> bool:
        """Whether H stays on the sheet with an energy."""
        return not (self.desorbed or self.given_up) and math.isfinite(self.delta_e)


def hydrogen_at_best_sites(potential: Any, placed: Any, num_sites: int) -> dict[int, HydrogenAtSite]:
    """H relaxed by the potential at the best ``num_sites`` sites of ``placed`` (``SheetHER``), by number, best first."""
    found: dict[int, HydrogenAtSite] = {}
    for index in np.argsort(np.asarray(placed.delta_g, dtype=float), kind="stable")[:num_sites].tolist():
        best = min((h.delta_e for h in found.values() if h.is_bound), default=math.inf)
        found[index] = potential.delta_e_hydrogen(placed.sheet, placed.sites[index], placed.supercell, best, placed.band_gap)
    return found


class StabilityJudge:
    """Relaxation and hydrogen adsorption by one interatomic potential.

    correction: of its ΔE_H, learnt from DFT. second: a potential whose ΔE_H at the relaxed geometry the correction needs beside it.
    with_gap: whether band gaps are computed, for this correction and for that of DimeNet++.
    """

    def __init__(
        self,
        potential: Any,
        settings: config.EvaluationConfig,
        correction: DftCorrection | None = None,
        second: Any = None,
        with_gap: bool = False,
    ) -> None:
        self.potential, self.settings, self.correction, self.second = potential, settings, correction, second
        self.with_gap = with_gap

    def relax(self, atoms: Atoms, bulk: bool) -> Any:
        """``potentials.Relaxation`` of a sheet (in-plane cell free) or a bulk crystal (whole cell free)."""
        import potentials

        steps = self.settings.max_steps if self.settings.relax else 0
        function = potentials.relax_bulk if bulk else potentials.relax_sheet
        return function(atoms, self.potential, self.settings.fmax_ev_per_angstrom, steps)

    def band_gap(self, sheet: Atoms) -> float:
        """In eV, where it is asked for and the method finds one; otherwise NaN."""
        return band_gap.band_gap(sheet) if self.with_gap else NAN

    def legacy_energy(self, atoms: Atoms) -> float:
        """Total energy in eV/atom after at most ``legacy_max_steps`` steps of BFGS, positions only, in the cell as given.

        What the earlier public baseline took for a formation energy; NaN where the potential leaves its domain.
        """
        import potentials

        relaxed = potentials.relax_positions(atoms, self.potential, LEGACY_FMAX, self.settings.legacy_max_steps)
        return float(relaxed.energy) / len(atoms) if relaxed.status != "exploded" else NAN

    def delta_e_hydrogen(
        self,
        sheet: Atoms,
        site: geo_utils.AdsorptionSite,
        supercell: tuple[int, int],
        best: float = math.inf,
        gap: float = NAN,
    ) -> HydrogenAtSite:
        """E(sheet+H) − E(sheet) − ½E(H2), H and the atoms around it relaxed from ``site``.

        best: eV, ΔE_H of a site that was relaxed before; this one is given up when it stays far above. gap: of the
        sheet, eV, for the correction. H starts 0.1 Å beside the site, because on top of an atom or in a hollow symmetry alone can
        hold it.
        """
        import potentials

        clean = sheet.copy()
        clean.calc = self.potential.calculator
        energy = supercell[0] * supercell[1] * float(clean.get_potential_energy())
        with_h = geo_utils.add_hydrogen(sheet, site, supercell)
        with_h.positions[-1] += OFF_SITE
        fmax, steps = self.settings.fmax_ev_per_angstrom, self.settings.max_h_steps
        relaxed = potentials.relax_hydrogen(with_h, energy, self.potential, fmax, steps, give_up_above=best + FAR_ABOVE_EV)
        outcome = float(relaxed.delta_e), bool(relaxed.desorbed), bool(relaxed.converged)
        if relaxed.status == "given up":
            return HydrogenAtSite(*outcome, given_up=True)
        if self.correction is None or not math.isfinite(relaxed.delta_e):
            return HydrogenAtSite(*outcome)
        energies = [relaxed.delta_e]
        if self.second is not None:
            parts = []
            for atoms in (relaxed.atoms, sheet):
                work = atoms.copy()
                work.calc = self.second.calculator
                parts.append(float(work.get_potential_energy()))
            energies.append(parts[0] - supercell[0] * supercell[1] * parts[1] - 0.5 * potentials.h2_energy(self.second))
        if max(abs(energy) for energy in energies) > MAX_DELTA_E_EV:
            return HydrogenAtSite(*outcome)
        value, error = self.correction.apply([relaxed.atoms], np.array([energies]), np.zeros(1), np.array([gap]))
        return HydrogenAtSite(*outcome, float(value[0]), float(error[0]))


class TrainingStructures:
    """Structures of an ASE database by reduced formula, read when they are asked for."""

    def __init__(self, db_path: str | Path) -> None:
        self.db_path = Path(db_path)
        self._ids: dict[str, list[int]] | None = None

    def __call__(self, reduced_formula: str) -> list[tuple[str, Structure]]:
        database = self._connect()
        found = []
        for row_id in self._rows_of(database).get(reduced_formula, []):
            row = database.get(id=row_id)
            try:
                found.append((str(row.get("uid", f"row {row_id}")), match_structure(row.toatoms(), is_sheet=True)))
            except ValueError as error:
                log.debug("%s row %d is no sheet: %s", self.db_path.name, row_id, error)
        return found

    def formulas(self) -> set[str]:
        """Reduced formulas of all rows."""
        return set(self._rows_of(self._connect()))

    def _connect(self) -> Any:
        import ase.db

        config.check_ase_database(self.db_path)
        return ase.db.connect(self.db_path)

    def _rows_of(self, database: Any) -> dict[str, list[int]]:
        if self._ids is None:
            self._ids = {}
            for row in database.select(columns=["id", "numbers"], include_data=False):
                self._ids.setdefault(Composition(row.formula).reduced_formula, []).append(row.id)
        return self._ids


def match_structure(atoms: Atoms, is_sheet: bool) -> Structure:
    """The form in which structures are compared: a sheet in a box of its thickness + 4 Å, a bulk crystal as it is."""
    from pymatgen.io.ase import AseAtomsAdaptor

    if is_sheet:
        return geo_utils.Sheet.from_atoms(atoms).to_structure(vacuum=MATCH_VACUUM)
    return AseAtomsAdaptor.get_structure(Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True))


def same_structure(first: Structure, second: Structure) -> bool:
    """pymatgen's StructureMatcher with ``MATCHER_SETTINGS``."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return bool(StructureMatcher(**MATCHER_SETTINGS).fit(first, second))


# ------------------------------------------------------------------------------------------------------------ one candidate


def judge_candidate(path: str | Path, judges: Judges, settings: config.EvaluationConfig) -> dict[str, Any]:
    """Judges one CIF: ``{"row": CandidateResult without id, "structure": atoms as judged}`` in plain Python values.

    Never raises for what is in the file or for a judge that fails: the row says it.
    """
    started = time.perf_counter()
    row, problems = CandidateResult(), []
    structure: Atoms | None = None
    try:
        atoms = validity.read_cif(path, settings.max_atoms)
    except validity.UnreadableCif as error:
        row.dimensionality = "unreadable"
        row.status = f"unreadable: {error}"
    else:
        structure = _judge_atoms(atoms, row, problems, judges, settings)
        row.status = "; ".join(problems) or "ok"
    row.seconds = time.perf_counter() - started
    return {"row": dataclasses.asdict(row), "structure": atoms_to_dict(structure)}


def _judge_atoms(
    atoms: Atoms, row: CandidateResult, problems: list[str], judges: Judges, settings: config.EvaluationConfig
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
        row.space_group, row.layer_group = validity.symmetry_symbols(given, row.is_sheet)

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
        row.space_group_relaxed, row.layer_group_relaxed = validity.symmetry_symbols(relaxed, row.is_sheet)
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
        row.legacy_score_stab = metrics.legacy_stability_score(row.legacy_energy_ev_per_atom)
        row.legacy_score_composite = metrics.composite_score(row.legacy_delta_g_ev, row.legacy_score_stab, row.p_synth)

    if settings.legacy_columns:
        attempt("scores of the earlier baseline", legacy)
    return judged


def _judge_hydrogen(
    judged: Atoms,
    row: CandidateResult,
    problems: list[str],
    judges: Judges,
    settings: config.EvaluationConfig,
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
    if isinstance(error, config.StageError | ValueError) and text:
        return text[:120]
    return f"{type(error).__name__} {text[:100]}".strip()


def atoms_to_dict(atoms: Atoms | None) -> dict[str, Any] | None:
    """Keyword arguments of ``ase.Atoms`` as plain Python values (Å)."""
    if atoms is None:
        return None
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": [bool(p) for p in atoms.pbc],
    }
