"""One candidate before its judges: hand-computed numbers, and what a judge that fails leaves behind."""

from __future__ import annotations

import csv
import dataclasses
import math

import pytest
import simple_judges as simple
from ase import Atoms
from simple_judges import SETTINGS, evaluated

from crystals import matching
from energetics.potential_adsorption import HydrogenAtSite
from evaluation import candidate, judging
from evaluation.page import candidate_table


def test_row_against_hand_computed_numbers(tmp_path):
    evaluation = evaluated(tmp_path, {"gen_00000": simple.sheet()})
    (row,) = evaluation.rows
    assert (row.id, row.formula, row.natoms, row.dimensionality, row.status) == ("gen_00000", "MoS2", 3, "2D", "ok")
    assert row.energy_ev_per_atom == pytest.approx(-4.0)
    assert row.relax_rmsd_angstrom == pytest.approx(0.0, abs=1e-9) and row.relax_area_change == pytest.approx(0.0, abs=1e-9)
    assert row.delta_g_h_ev == pytest.approx(-0.05) and row.delta_g_h_std_ev == pytest.approx(0.1)
    assert row.delta_g_h_potential_ev == pytest.approx(0.02 + 0.27)
    assert row.delta_g_h_corrected_ev == pytest.approx(0.42 + 0.27) and row.delta_g_h_corrected_std_ev == 0.3
    assert row.correction_in_domain is True and row.correction_domain_note == ""
    assert row.h_coverage == pytest.approx(1 / 9)
    assert row.score_stab == pytest.approx(math.exp(-0.05))
    assert (row.delta_g_ev, row.delta_g_std_ev, row.delta_g_source) == (row.delta_g_h_corrected_ev, 0.3, "corrected potential")
    assert row.score_composite == pytest.approx(0.4 * 0.0 + 0.3 * math.exp(-0.05) + 0.3 * 0.8)  # |0.69 eV| earns nothing
    assert row.unique and row.novel and row.hit_dimenet and row.metastable_sun
    assert row.hit_potential is False and row.hit_corrected is False and row.hit is False and row.sun is False
    assert 0 < row.p_hit < 0.1
    table = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert table[0].split(",") == [f.name for f in dataclasses.fields(candidate.CandidateResult)]
    assert len(table) == 2


def test_a_site_unlike_the_dft_points_keeps_its_value_and_is_flagged():
    known = HydrogenAtSite(0.1, desorbed=False, converged=True, corrected=0.3, corrected_std=0.3)
    flagged = dataclasses.replace(known, corrected=0.2, corrected_std=0.6, complaint="3 DFT points with H on halogen")
    fields, problem = judging.potential_hydrogen([known, flagged], 0.27)
    assert not problem and fields["delta_g_h_corrected_ev"] == pytest.approx(0.47) and fields["delta_g_h_corrected_std_ev"] == 0.6
    assert fields["correction_in_domain"] is False and fields["correction_domain_note"] == "3 DFT points with H on halogen"
    fields, _ = judging.potential_hydrogen([dataclasses.replace(known, corrected=math.nan)], 0.27)
    assert "correction_in_domain" not in fields, "without a corrected value there is nothing to say"


class Routes(simple.Synthesis):
    """CSLLM with its method and precursor models: ZnO-like answers for all but carbon, which it does not call synthesizable."""

    suggests_routes = True

    def __init__(self):
        self.asked = []

    def score(self, structures):
        carbon = "C" in structures[0].get_chemical_symbols()
        return [type(super().score(structures)[0])(p_synth=0.2 if carbon else 0.9, label_mass=0.99, status="ok")]

    def method_and_precursors(self, formula):
        from evaluation.csllm import SynthesisRoute

        self.asked.append(formula)
        unclear = formula == "WS2"
        status = "precursors not understood: '['" if unclear else "ok"
        return SynthesisRoute("solid_state", [] if unclear else ["MoO3", "S"], status)


def test_synthesis_routes_reach_the_table_for_synthesizable_valid_sheets(tmp_path):
    routes = Routes()
    sheets = {"a": simple.sheet(), "b": simple.graphene_sheet(), "c": simple.bulk_copper(), "d": simple.sheet("WS2")}
    evaluation = evaluated(tmp_path, sheets, simple.judges(synth=routes))
    rows = {row.id: row for row in evaluation.rows}
    assert sorted(routes.asked) == ["MoS2", "WS2"], "neither what is not synthesizable nor what is no sheet"
    assert (rows["a"].synthesis_method, rows["a"].synthesis_precursors, rows["a"].status) == ("solid_state", "MoO3, S", "ok")
    assert rows["d"].synthesis_precursors == "" and "synthesis route: precursors not understood" in rows["d"].status
    assert rows["b"].synthesis_method == rows["c"].synthesis_method == ""
    with (tmp_path / "out" / "metrics.csv").open(encoding="utf-8") as handle:
        table = {row["id"]: row for row in csv.DictReader(handle)}
    assert table["a"]["synthesis_precursors"] == "MoO3, S" and table["b"]["synthesis_method"] == ""
    page = candidate_table([dataclasses.asdict(row) for row in evaluation.rows], "cifs")
    assert "precursors" in page and "MoO3, S" in page
    assert "precursors" not in candidate_table([dataclasses.asdict(rows["b"])], "cifs"), "no empty columns without CSLLM"


def test_a_formula_of_the_generator_is_new_only_where_its_structures_are_at_hand(tmp_path):
    def known(reduced_formula):
        return [("ws2", matching.match_structure(simple.sheet("WS2"), True))] if reduced_formula == "WS2" else []

    chosen = simple.judges(training_structures=known, known_formulas=frozenset({"MoS2", "WS2"}))
    sheets = {"listed": simple.sheet(), "matched": simple.sheet("WS2"), "new": simple.graphene_sheet()}
    rows = {row.id: row for row in evaluated(tmp_path, sheets, chosen).rows}
    assert (rows["listed"].novel, rows["listed"].novel_match) == (False, "formula known to the generator")
    assert (rows["matched"].novel, rows["matched"].novel_match) == (False, "ws2")
    assert (rows["new"].novel, rows["new"].novel_match) == (True, "")
    assert rows["listed"].metastable_sun is False


def test_failed_judges_leave_nan_and_a_reason(tmp_path):
    structures = {"mo": simple.sheet(), "nb": simple.sheet("NbSe2"), "w": simple.sheet("WS2"), "au": simple.sheet("AuS2")}
    rows = {row.id: row for row in evaluated(tmp_path, structures).rows}
    assert "Nb is not in the training records" in rows["nb"].status
    assert math.isnan(rows["nb"].delta_g_h_ev) and math.isnan(rows["nb"].score_composite) and rows["nb"].hit is None
    assert rows["nb"].e_above_hull_ev == pytest.approx(0.05)
    assert rows["w"].h_desorbed and math.isnan(rows["w"].delta_g_h_potential_ev) and "desorbs" in rows["w"].status
    assert "no reference for Au" in rows["au"].status and math.isnan(rows["au"].e_form_ev)
    assert rows["au"].hit_dimenet is None and rows["au"].hit is False, "0.69 eV by the best judge is no hit on any hull"


def test_the_potential_is_not_asked_about_sheets_far_above_the_hull(tmp_path):
    """E_above_hull is 0.05 eV/atom: a limit below it leaves the cell empty and says so; DimeNet++ is the best judge then."""
    asked, not_asked = (
        evaluated(
            tmp_path / str(limit), {"mo": simple.sheet()}, settings=dataclasses.replace(SETTINGS, potential_h_max_e_hull_ev=limit)
        ).rows[0]
        for limit in (0.06, 0.04)
    )
    assert asked.status == "ok" and asked.delta_g_h_corrected_ev == pytest.approx(0.69)
    assert math.isnan(not_asked.delta_g_h_corrected_ev) and "not asked, E_above_hull over 0.04" in not_asked.status
    assert not_asked.delta_g_h_ev == asked.delta_g_h_ev == not_asked.delta_g_ev and not_asked.delta_g_source == "DimeNet++"
    assert not_asked.score_composite == pytest.approx(0.4 * 0.9 + 0.3 * math.exp(-0.05) + 0.3 * 0.8)


def test_a_pair_without_a_competing_compound_is_said_in_words(tmp_path):
    class Sparse(simple.Table):
        def e_above_hull(self, atoms, energy):
            raise KeyError("no competing compound of Mo-S")

    row = evaluated(tmp_path, {"mo": simple.sheet()}, simple.judges(references=Sparse())).rows[0]
    assert row.status == "hull: no competing compound of Mo-S" and row.e_form_ev == -0.5 and math.isnan(row.e_above_hull_ev)


def test_the_learnt_hull_counts_beside_the_potentials(tmp_path):
    class Learnt:
        def outside_domain(self, atoms, e_form):
            return "element not in training: W" if "W" in atoms.get_chemical_symbols() else ""

        def e_above_hull(self, atoms, e_form):
            return (0.12, {"learnt": 0.04, "both": 0.03}) if e_form == -0.5 else None

    sheets = {"mo": simple.sheet(), "w": simple.sheet("WS2")}
    judges = dataclasses.replace(simple.judges(), learnt_hull=Learnt())
    learnt = dataclasses.replace(SETTINGS, hull="learnt")
    rows = {row.id: row for row in evaluated(tmp_path, sheets, judges, learnt).rows}
    mo, other = rows["mo"], rows["w"]
    mean = evaluated(tmp_path / "both", sheets, judges, dataclasses.replace(SETTINGS, hull="both")).rows[0]
    assert mean.e_above_hull_ev == pytest.approx((0.12 + 0.05) / 2) and mean.e_above_hull_std_ev == 0.03
    assert (mo.e_above_hull_ev, mo.e_above_hull_std_ev, mo.e_above_hull_potential_ev) == (0.12, 0.04, 0.05)
    assert (mo.e_above_hull_source, mo.decomposition) == ("learnt", "1.00 MoS2 2H")
    assert mo.score_stab == pytest.approx(math.exp(-0.12)) and mo.metastable_sun is False
    assert other.e_above_hull_ev == 0.05 and math.isnan(other.e_above_hull_std_ev)
    assert other.e_above_hull_source == "potential, element not in training: W"
    own = evaluated(tmp_path / "own", sheets, judges, dataclasses.replace(SETTINGS, hull="potential")).rows[0]
    assert (own.e_above_hull_ev, own.e_above_hull_source) == (0.05, "potential")


def test_failed_relaxation_is_named(tmp_path):
    evaluation = evaluated(tmp_path, {"mo": simple.sheet(), "w": simple.sheet("WS2")}, simple.judges(potential=simple.Springs("W")))
    row = next(row for row in evaluation.rows if row.id == "w")
    assert row.status.startswith("relaxation: ") and math.isnan(row.e_above_hull_ev) and row.relax_converged is None
    assert evaluation.aggregates["rate_converged"].value == 0.5 and evaluation.aggregates["rate_converged"].n_ok == 1
    assert evaluation.aggregates["median_e_above_hull_ev"].n_ok == 1


def test_sheet_with_its_own_hydrogen_has_no_delta_g(tmp_path):
    atoms = simple.graphene_sheet()
    atoms += Atoms("H", [[*atoms.positions[0, :2], atoms.positions[0, 2] + 1.1]])
    (row,) = evaluated(tmp_path, {"graphane": atoms}).rows
    assert "contains H" in row.status and math.isnan(row.delta_g_h_ev) and not math.isnan(row.p_synth)


def test_overlapping_atoms_are_not_judged(tmp_path):
    atoms = simple.graphene_sheet().repeat((2, 2, 1))
    atoms += Atoms("C", [atoms.positions[0] + [0.4, 0, 0]])
    (row,) = evaluated(tmp_path, {"clash": atoms}).rows
    assert row.no_clash is False and row.valid is False and "overlap" in row.status and math.isnan(row.energy_ev_per_atom)


def test_bulk_is_scored_and_never_mixed_into_a_2d_average(tmp_path):
    evaluation = evaluated(tmp_path, {"bulk": simple.bulk_copper(), "mo": simple.sheet()})
    rows = {row.id: row for row in evaluation.rows}
    assert rows["bulk"].dimensionality == "bulk: not 2D" and rows["bulk"].valid is False
    assert rows["bulk"].e_above_hull_ev == pytest.approx(0.05) and rows["bulk"].p_synth == pytest.approx(0.8)
    assert math.isnan(rows["bulk"].delta_g_h_ev) and rows["bulk"].hit is None and rows["bulk"].novel is None
    assert evaluation.aggregates["rate_valid"].n == 1 and evaluation.aggregates["score_stab"].n == 1
    assert evaluation.bulk_aggregates["score_stab"].n == 1


class Gap:
    """Gaps by element: none known for W; fails on C."""

    def band_gap(self, atoms):
        symbols = set(atoms.get_chemical_symbols())
        if "C" in symbols:
            raise ValueError("no descriptors")
        return next(gap for symbol, gap in {"Nb": 0.0, "Mo": 0.5, "W": math.nan, "B": 4.7}.items() if symbol in symbols)


def test_a_sheet_conducts_up_to_the_gap_of_the_settings(tmp_path):
    sheets = {"metal": simple.sheet("NbS2"), "narrow": simple.sheet(), "unknown": simple.sheet("WS2")}
    sheets["fails"] = simple.graphene_sheet()
    judges = dataclasses.replace(simple.judges(), gap=Gap())
    evaluation = evaluated(tmp_path, {**sheets, "bulk": simple.bulk_copper()}, judges)
    rows = {row.id: row for row in evaluation.rows}
    assert [rows[name].conductive for name in (*sheets, "bulk")] == [True, True, None, None, None]
    assert rows["narrow"].band_gap_ev == 0.5 and judges.her.gaps == [1.5] * 4, "the potential's judge gives that of the correction"
    assert "band gap: no descriptors" in rows["fails"].status and rows["fails"].delta_g_h_ev == rows["narrow"].delta_g_h_ev
    strict = evaluated(tmp_path / "strict", sheets, judges, settings=dataclasses.replace(SETTINGS, conductive_gap_ev=0.4))
    assert {row.id: row.conductive for row in strict.rows}["narrow"] is False
    assert all(row.conductive is None for row in evaluated(tmp_path / "none", sheets).rows), "no model, no verdict"
