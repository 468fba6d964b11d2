"""Defines what is recorded about one candidate, and the words for it in tables and on the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ase import Atoms
from pymatgen.core import Composition

from crystals import validity
from energetics.potential_adsorption import NAN

# Increased whenever the meaning of a stored result changes, so that no older one is read.
JUDGEMENT_VERSION = 15
P_SYNTH_THRESHOLD = 0.5
# Settings that change what is found for a candidate; the others only change what is counted.
JUDGED_SETTINGS = (
    "relax",
    "fmax_ev_per_angstrom",
    "max_steps",
    "potential_h_sites",
    "potential_h_max_e_hull_ev",
    "second_potential",
    "band_gap",
    "conductive_gap_ev",
    "max_h_steps",
    "more_h_steps",
    "min_vacuum_angstrom",
    "clash_factor",
    "e_ref_ev",
    "hull",
    "max_atoms",
    "legacy_columns",
    "legacy_max_steps",
)


@dataclass
class CandidateResult:
    """Everything known about one candidate; the order of the fields is the order of the columns of ``metrics.csv``.

    Numbers are NaN and verdicts None where a judge gave none; ``status`` is "ok" or says which judge failed and why. Energies in
    eV (ΔG_H) and eV/atom (E_form, E_above_hull), lengths in Å, ``h_coverage`` in H per primitive cell, ``relax_area_change``
    relative to the cell as given. ``space_group`` and ``layer_group`` are found within 0.1 Å. ``band_gap_ev`` is PBE's gap as
    ``band_gap_model.GapModel`` learnt it, ``conductive`` says whether it is small enough for an electrode. ``e_above_hull_ev`` is
    by the hull that ``e_above_hull_source`` names, ``decomposition`` the share of the atoms in each phase on the potential's hull.
    ``delta_g_ev`` is ΔG_H by the best judge at hand, which ``delta_g_source`` names (``decisions.choose_delta_g``);
    ``delta_g_h_dft_ev`` is DFT's, the lowest of the ``h_sites_dft`` sites that it has computed (``dft_verdict.mark_dft``). ``hit``
    and ``p_hit``, the probability of being one, use it. ``hit_dimenet`` uses DimeNet++'s ΔG_H, ``hit_potential`` the potential's
    own, ``hit_corrected`` the potential's after its correction from DFT; ``correction_in_domain`` says whether the DFT points cover
    the site of that value (``DftCorrection.complaints``), and ``correction_domain_note`` why not.
    ``dynamically_stable`` and what stands behind it are of sheets near the hull (``dynamics.mark_dynamics``): the probability
    ``p_dynamic`` by phonons and ``dynamics_model.DynamicsModel`` together, the lowest eigenvalues of Hessian and stiffness and the
    lowest frequency, negative where it is imaginary. ``distortion_gain_ev`` (eV/atom) is what a sheet with an unstable mode gains
    when it follows the mode, and ``distorted_stable`` says whether the potential finds it stable then.
    ``exfoliation_mev_per_a2`` is what binds a layer in a crystal of such sheets, ``layer_distance_angstrom`` how far apart their
    outermost planes are in it, and ``exfoliable`` the verdict: easily, potentially, hardly
    (``exfoliation_verdict.mark_exfoliation``).
    ``dg_pbx_ev`` (eV/atom) is ΔG_pbx at the worst of three pH and two potentials, ``dg_pbx_ph0_ev`` and the like the worst at one
    pH; ``water`` is the verdict, and ``water_products`` what the sheet becomes at the kindest pH, or why there is no verdict
    (``water_verdict.mark_water``). ``price_usd_per_kg``, ``hhi_reserve`` and ``hazards`` are of the elements
    (``element_facts.mark_elements``).
    ``h_relax_converged`` is of the potential's H at its best site of ``h_sites_relaxed``: those inside the sheet, and some of the
    ``h_n_sites`` on its faces, of the first candidates all (``all_sites.mark_all_sites``). ``h_rest_ev`` is how much higher the
    sheet lies than before when that H is taken off and the rest relaxed, asked where H has moved its atoms far; clearly below
    zero, ``h_changes_sheet``, H takes the sheet to another structure. ``synthesis_*`` are CSLLM's suggestions, for valid sheets
    that it calls synthesizable. ``legacy_*`` repeat the scoring of the earlier public baseline
    (``legacy.legacy_stability_score``), for comparison only; no verdict uses them.
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
    e_above_hull_std_ev: float = NAN
    e_above_hull_potential_ev: float = NAN
    e_above_hull_source: str = ""
    decomposition: str = ""
    dynamically_stable: bool | None = None
    p_dynamic: float = NAN
    min_hessian_ev_per_a2: float = NAN
    min_phonon_thz: float = NAN
    stiffness_min_n_per_m: float = NAN
    distortion_gain_ev: float = NAN
    distorted_stable: bool | None = None
    exfoliation_mev_per_a2: float = NAN
    layer_distance_angstrom: float = NAN
    exfoliable: str = ""
    dg_pbx_ev: float = NAN
    dg_pbx_ph0_ev: float = NAN
    dg_pbx_ph7_ev: float = NAN
    dg_pbx_ph14_ev: float = NAN
    water: str = ""
    water_products: str = ""
    price_usd_per_kg: float = NAN
    hhi_reserve: float = NAN
    hazards: str = ""
    delta_g_h_ev: float = NAN
    delta_g_h_std_ev: float = NAN
    h_site_kind: str = ""
    h_site_face: str = ""
    h_n_sites: int = 0
    h_coverage: float = NAN
    h_sites_relaxed: int = 0
    h_in_domain: bool | None = None
    h_domain_note: str = ""
    delta_g_h_potential_ev: float = NAN
    band_gap_ev: float = NAN
    conductive: bool | None = None
    delta_g_h_corrected_ev: float = NAN
    delta_g_h_corrected_std_ev: float = NAN
    correction_in_domain: bool | None = None
    correction_domain_note: str = ""
    h_desorbed: bool | None = None
    h_relax_converged: bool | None = None
    h_rest_ev: float = NAN
    h_changes_sheet: bool | None = None
    delta_g_h_dft_ev: float = NAN
    h_site_dft: str = ""
    h_sites_dft: int = 0
    delta_g_ev: float = NAN
    delta_g_std_ev: float = NAN
    delta_g_source: str = ""
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
    p_hit: float = NAN
    hit_dimenet: bool | None = None
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
        """Whether it is periodic in three directions: such a crystal is scored, but is no two-dimensional candidate."""
        return self.dimensionality in validity.BULK_KINDS

    @property
    def is_sheet(self) -> bool:
        """Whether it extends in two directions with vacuum around it."""
        return self.dimensionality in validity.SHEET_KINDS

    def elements(self) -> set[str]:
        """Return the element symbols of the candidate; none when it could not be read."""
        return {element.symbol for element in Composition(self.formula)} if self.formula else set()


@dataclass(frozen=True)
class Quantity:
    """Words for a field of ``CandidateResult``.

    ``column``: its title in a table. ``unit``: empty where it has none. ``name``: its name beside a single value, where that is not
    the title.
    """

    column: str
    unit: str = ""
    name: str = ""

    @property
    def heading(self) -> str:
        """Title of a column, with the unit."""
        return f"{self.column} ({self.unit})" if self.unit else self.column

    @property
    def label(self) -> str:
        """Name beside a single value."""
        return self.name or self.column


QUANTITIES = {
    "id": Quantity("id"),
    "formula": Quantity("cell", name="formula"),
    "reduced_formula": Quantity("formula"),
    "dimensionality": Quantity("kind"),
    "layer_group_relaxed": Quantity("layer group", name="symmetry"),
    "valid": Quantity("valid"),
    "relax_rmsd_angstrom": Quantity("RMSD", "Å"),
    "e_form_ev": Quantity("E_form", "eV/atom"),
    "e_above_hull_ev": Quantity("E_hull", "eV/atom", name="E_above_hull"),
    "e_above_hull_std_ev": Quantity("± E_hull", "eV/atom"),
    "e_above_hull_potential_ev": Quantity("E_hull potential", "eV/atom", name="E_above_hull, potential"),
    "e_above_hull_source": Quantity("E_hull by"),
    "decomposition": Quantity("decomposes into"),
    "dynamically_stable": Quantity("dynamic", name="dynamically stable"),
    "p_dynamic": Quantity("p_dynamic", name="probability of dynamic stability"),
    "min_hessian_ev_per_a2": Quantity("Hessian", "eV/Å²", name="lowest eigenvalue of the Hessian"),
    "min_phonon_thz": Quantity("lowest phonon", "THz"),
    "stiffness_min_n_per_m": Quantity("stiffness", "N/m", name="lowest stiffness"),
    "distortion_gain_ev": Quantity("distortion", "eV/atom", name="gained by distortion"),
    "distorted_stable": Quantity("distorted stable", name="stable when distorted"),
    "exfoliation_mev_per_a2": Quantity("exfoliation", "meV/Å²", name="exfoliation energy"),
    "layer_distance_angstrom": Quantity("layer distance", "Å", name="distance between layers"),
    "exfoliable": Quantity("exfoliable"),
    "dg_pbx_ev": Quantity("ΔG_pbx", "eV/atom", name="ΔG_pbx in water, worst"),
    "dg_pbx_ph0_ev": Quantity("ΔG_pbx pH 0", "eV/atom", name="ΔG_pbx, pH 0"),
    "dg_pbx_ph7_ev": Quantity("ΔG_pbx pH 7", "eV/atom", name="ΔG_pbx, pH 7"),
    "dg_pbx_ph14_ev": Quantity("ΔG_pbx pH 14", "eV/atom", name="ΔG_pbx, pH 14"),
    "water": Quantity("in water"),
    "water_products": Quantity("becomes in water"),
    "price_usd_per_kg": Quantity("price", "$/kg", name="price of the elements"),
    "hhi_reserve": Quantity("HHI", name="concentration of the reserves"),
    "hazards": Quantity("hazards"),
    "delta_g_ev": Quantity("ΔG_H", "eV", name="ΔG_H"),
    "delta_g_std_ev": Quantity("± ΔG_H", "eV"),
    "delta_g_source": Quantity("ΔG_H by"),
    "delta_g_h_dft_ev": Quantity("ΔG_H DFT", "eV", name="ΔG_H, DFT"),
    "delta_g_h_ev": Quantity("ΔG_H DimeNet++", "eV", name="ΔG_H, DimeNet++"),
    "delta_g_h_std_ev": Quantity("± DimeNet++", "eV"),
    "h_in_domain": Quantity("in domain"),
    "delta_g_h_potential_ev": Quantity("ΔG_H potential", "eV", name="ΔG_H, potential"),
    "band_gap_ev": Quantity("band gap", "eV", name="band gap, learnt from PBE"),
    "conductive": Quantity("conducts"),
    "delta_g_h_corrected_ev": Quantity("ΔG_H corrected", "eV", name="ΔG_H, corrected"),
    "correction_in_domain": Quantity("correction in domain"),
    "p_synth": Quantity("P_synth"),
    "synthesis_method": Quantity("method"),
    "synthesis_precursors": Quantity("precursors"),
    "unique": Quantity("unique"),
    "novel": Quantity("novel"),
    "metastable_sun": Quantity("metastable S.U.N."),
    "hit": Quantity("hit"),
    "p_hit": Quantity("p_hit"),
    "score_composite": Quantity("score"),
    "legacy_score_composite": Quantity("earlier baseline's score"),
    "seconds": Quantity("time", "s"),
    "status": Quantity("status"),
    "source_file": Quantity("file"),
    "natoms": Quantity("atoms"),
    "space_group": Quantity("space group, given"),
    "layer_group": Quantity("layer group, given"),
    "space_group_relaxed": Quantity("space group"),
    "no_clash": Quantity("no clash"),
    "single_sheet": Quantity("one sheet"),
    "vacuum_ok": Quantity("vacuum", name="enough vacuum"),
    "charge_neutral": Quantity("neutral"),
    "min_distance_ratio": Quantity("d / r", name="shortest distance"),
    "vacuum_angstrom": Quantity("vacuum height", "Å"),
    "relax_converged": Quantity("relaxed"),
    "relax_steps": Quantity("steps", name="steps of relaxation"),
    "relax_area_change": Quantity("Δ area"),
    "sheet_relaxed": Quantity("sheet after"),
    "energy_ev_per_atom": Quantity("energy", "eV/atom"),
    "h_site_kind": Quantity("H site"),
    "h_site_face": Quantity("H face"),
    "h_site_dft": Quantity("H site, DFT"),
    "h_sites_dft": Quantity("DFT sites"),
    "h_n_sites": Quantity("H sites"),
    "h_sites_relaxed": Quantity("relaxed H sites"),
    "h_coverage": Quantity("coverage", "H/cell"),
    "h_domain_note": Quantity("why not in domain"),
    "correction_domain_note": Quantity("why correction not in domain"),
    "delta_g_h_corrected_std_ev": Quantity("± corrected", "eV"),
    "h_desorbed": Quantity("H desorbs"),
    "h_relax_converged": Quantity("H at rest"),
    "h_rest_ev": Quantity("rest without H", "eV"),
    "h_changes_sheet": Quantity("H changes sheet"),
    "p_synth_label_mass": Quantity("label mass"),
    "synthesizable": Quantity("synthesizable"),
    "duplicate_of": Quantity("same as"),
    "novel_match": Quantity("known as"),
    "sun": Quantity("S.U.N."),
    "hit_dimenet": Quantity("hit, DimeNet++"),
    "hit_potential": Quantity("hit, potential"),
    "hit_corrected": Quantity("hit, corrected"),
    "score_stab": Quantity("Score_stab"),
    "legacy_delta_g_ev": Quantity("earlier ΔG_H", "eV"),
    "legacy_energy_ev_per_atom": Quantity("earlier energy", "eV/atom"),
    "legacy_score_stab": Quantity("earlier stability"),
}


def atoms_to_dict(atoms: Atoms | None) -> dict[str, Any] | None:
    """Return the keyword arguments of ``ase.Atoms`` as plain Python values (Å); None without atoms."""
    if atoms is None:
        return None
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": [bool(p) for p in atoms.pbc],
    }
