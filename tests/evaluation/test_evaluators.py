"""Evaluation: reading, validity, metrics against hand-computed numbers, failures, resume and independence of order and workers."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.db
import numpy as np
import pytest
import simple_judges as simple
from ase import Atoms
from ase.build import mx2
from simple_judges import CELL, GOOD, LOOP, SITES

from crystals import charge_balance, cif, matching, symmetry, validity
from energetics import potential_adsorption
from evaluation import candidate, decisions, dft_benchmark, evaluate, metrics, statistics
from evaluation.judge_pool import JudgePool, cache_key
from evaluation.judges import known_formulas
from evaluation.legacy import legacy_ranking, legacy_stability_score
from evaluation.page import _candidate_table
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.provenance import SCHEMA_VERSION
from pipeline.settings import EvaluationConfig

SETTINGS = EvaluationConfig(bootstrap=50)

MALFORMED = {
    "empty": (b"", "empty"),
    "spaces": (b" \n\n", "empty"),
    "prose": (b"this is not a crystal", "no CIF data block"),
    "binary": (bytes(range(256)), "binary"),
    "no_cell": (("data_x\n" + LOOP + SITES).encode(), "no unit cell"),
    "no_atoms": (CELL.encode(), "no atoms"),
    "nan_cell": (GOOD.replace("3.18", "nan").encode(), "not finite"),
    "infinite_cell": (GOOD.replace("_cell_length_c 23", "_cell_length_c inf").encode(), "not finite"),
    "flat_cell": (GOOD.replace("_cell_length_c 23", "_cell_length_c 0").encode(), "volume"),
    "nan_site": (GOOD.replace("0.568", "nan").encode(), "not a readable CIF"),
    "word_site": (GOOD.replace("0.568", "abc").encode(), "not a readable CIF"),
    "unknown_site": (GOOD.replace("0.568", "?").encode(), "not a readable CIF"),
    "unknown_element": (GOOD.replace("Mo1 Mo", "Xx1 Xx").encode(), "unknown element"),
    "mixed_site": ((CELL + LOOP + "Mo1 Mo 0 0 0.5 0.5\nW1 W 0 0 0.5 0.5\n").encode(), "partial occupancy"),
    "vacancies": (GOOD.replace("0.568 1", "0.568 0.8").encode(), "partial occupancy"),
    "stacked": (GOOD.replace("0.568", "0.432").encode(), "on top of each other"),
    "truncated": (GOOD[:-24].encode(), "not a readable CIF"),
    "two_crystals": ((GOOD + GOOD.replace("data_x", "data_y")).encode(), "2 structures"),
    "cartesian": (GOOD.replace("_fract_", "_Cartn_").encode(), "no atoms"),
}


def run(tmp_path, structures, judges=None, settings=SETTINGS, name="cifs", **arguments):
    simple.write_cifs(tmp_path / name, structures)
    return evaluate.evaluate(tmp_path / name, judges or simple.judges(), settings, tmp_path / "out", "ours", **arguments)


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_cifs_are_named(tmp_path, kind):
    content, expected = MALFORMED[kind]
    path = tmp_path / f"{kind}.cif"
    path.write_bytes(content)
    with pytest.raises(cif.UnreadableCif, match=expected):
        cif.read_cif(path)


def test_good_cif_is_read_exactly(tmp_path):
    path = tmp_path / "good.cif"
    path.write_text(GOOD)
    atoms = cif.read_cif(path)
    assert atoms.get_chemical_formula() == "MoS2"
    np.testing.assert_allclose(atoms.cell.lengths(), [3.18, 3.18, 23.0], atol=1e-6)


def test_corpus_never_stops_a_run_and_counts_as_failed(tmp_path):
    folder = tmp_path / "cifs"
    simple.write_cifs(folder, {"good": simple.sheet()})
    for kind, (content, _) in MALFORMED.items():
        (folder / f"{kind}.cif").write_bytes(content)
    (folder / "folder.cif").mkdir()
    evaluation = evaluate.evaluate(folder, simple.judges(), SETTINGS, tmp_path / "out", "ours")
    rows = {row.id: row for row in evaluation.rows}
    assert len(rows) == len(MALFORMED) + 2
    assert rows["good"].status == "ok" and rows["good"].valid
    for kind in (*MALFORMED, "folder"):
        assert rows[kind].status.startswith("unreadable: "), kind
        assert math.isnan(rows[kind].e_above_hull_ev) and rows[kind].hit is not True
    assert evaluation.aggregates["rate_valid"].value == pytest.approx(1 / len(rows))
    assert evaluation.aggregates["mae_delta_g_ev"].n_ok == 1


@pytest.mark.parametrize(
    ("atoms", "kind"),
    [
        (simple.sheet(), validity.SHEET),
        (simple.graphene_sheet(), validity.SHEET),
        (simple.bulk_copper(), validity.BULK),
        (mx2("MoS2", vacuum=1.5), validity.LAYERED_BULK),
        (Atoms("C", cell=[15, 15, 15], pbc=True), validity.MOLECULE),
        (Atoms("C", cell=[1.3, 20, 20], pbc=True), validity.CHAIN),
    ],
)
def test_dimensionality(atoms, kind):
    assert validity.standardise(atoms, 10.0)[1] == kind


def test_vacuum_axis_and_boundary_do_not_matter():
    atoms = simple.sheet()
    turned = atoms.copy()
    turned.set_cell(atoms.cell[[2, 0, 1]])
    turned.positions[:] = atoms.positions
    shifted = atoms.copy()
    shifted.positions[:, 2] += 0.5 * atoms.cell[2, 2]
    shifted.wrap()
    for other in (turned, shifted):
        standard, kind, _ = validity.standardise(other, 10.0)
        assert kind == validity.SHEET
        assert matching.same_structure(matching.match_structure(standard, True), matching.match_structure(atoms, True))


def test_symmetry_of_known_sheets():
    standard, _, _ = validity.standardise(simple.sheet(), 10.0)
    assert symmetry.symmetry_symbols(standard, True) == ("P-6m2", "p-6m2")
    standard, _, _ = validity.standardise(simple.sheet(kind="1T"), 10.0)
    assert symmetry.symmetry_symbols(standard, True)[1] == "p-3m1"


def test_charge_neutrality():
    assert charge_balance.charge_neutral_possible("MoS2")
    assert charge_balance.charge_neutral_possible("CuAu")
    assert not charge_balance.charge_neutral_possible("NaF4")


def test_polymorphs_differ_and_equal_sheets_match():
    match = lambda atoms: matching.match_structure(atoms, True)  # noqa: E731
    h, t = simple.sheet(), simple.sheet(kind="1T")
    mirrored = h.copy()
    mirrored.positions[:, 2] = h.cell[2, 2] - h.positions[:, 2]
    double = h.repeat((2, 1, 1))
    rotated = h.copy()
    rotated.rotate(37, "z", rotate_cell=True)
    assert not matching.same_structure(match(h), match(t))
    for other in (mirrored, double, rotated, simple.sheet(vacuum=14.0), simple.sheet(a=3.2)):
        assert matching.same_structure(match(h), match(other))
    assert not matching.same_structure(match(h), match(simple.sheet(a=3.9)))


def test_row_against_hand_computed_numbers(tmp_path):
    evaluation = run(tmp_path, {"gen_00000": simple.sheet()})
    (row,) = evaluation.rows
    assert (row.id, row.formula, row.natoms, row.dimensionality, row.status) == ("gen_00000", "MoS2", 3, "2D", "ok")
    assert row.energy_ev_per_atom == pytest.approx(-4.0)
    assert row.relax_rmsd_angstrom == pytest.approx(0.0, abs=1e-9) and row.relax_area_change == pytest.approx(0.0, abs=1e-9)
    assert row.delta_g_h_ev == pytest.approx(-0.05) and row.delta_g_h_std_ev == pytest.approx(0.1)
    assert row.delta_g_h_potential_ev == pytest.approx(0.02 + 0.27)
    assert row.delta_g_h_corrected_ev == pytest.approx(0.42 + 0.27) and row.delta_g_h_corrected_std_ev == 0.3
    assert row.h_coverage == pytest.approx(1 / 9)
    assert row.score_stab == pytest.approx(math.exp(-0.05))
    assert row.score_composite == pytest.approx(0.4 * 0.9 + 0.3 * math.exp(-0.05) + 0.3 * 0.8)
    assert row.unique and row.novel and row.hit and row.metastable_sun
    assert row.hit_potential is False and row.hit_corrected is False and row.sun is False
    table = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert table[0].split(",") == [f.name for f in dataclasses.fields(candidate.CandidateResult)]
    assert len(table) == 2


def test_a_potential_that_is_not_asked_for_hydrogen_calls_nothing_a_hit_or_a_miss(tmp_path):
    sheets = {"good": simple.sheet(), "no_sheet": simple.bulk_copper()}
    evaluation = run(tmp_path, sheets, settings=dataclasses.replace(SETTINGS, potential_h_sites=0))
    assert [row.hit_potential for row in evaluation.rows] == [row.hit_corrected for row in evaluation.rows] == [None, None]
    assert evaluation.aggregates["hit_rate_potential"].n_ok == 0 and math.isnan(evaluation.aggregates["hit_rate_corrected"].value)
    assert evaluation.aggregates["hit_rate"].n_ok == 1
    assert evaluation.rows[0].band_gap_ev == 1.5, "the gap is DimeNet++'s too"


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
    evaluation = run(tmp_path, sheets, simple.judges(synth=routes))
    rows = {row.id: row for row in evaluation.rows}
    assert sorted(routes.asked) == ["MoS2", "WS2"], "neither what is not synthesizable nor what is no sheet"
    assert (rows["a"].synthesis_method, rows["a"].synthesis_precursors, rows["a"].status) == ("solid_state", "MoO3, S", "ok")
    assert rows["d"].synthesis_precursors == "" and "synthesis route: precursors not understood" in rows["d"].status
    assert rows["b"].synthesis_method == rows["c"].synthesis_method == ""
    with (tmp_path / "out" / "metrics.csv").open(encoding="utf-8") as handle:
        table = {row["id"]: row for row in csv.DictReader(handle)}
    assert table["a"]["synthesis_precursors"] == "MoO3, S" and table["b"]["synthesis_method"] == ""
    page = _candidate_table([dataclasses.asdict(row) for row in evaluation.rows], "cifs")
    assert "precursors" in page and "MoO3, S" in page
    assert "precursors" not in _candidate_table([dataclasses.asdict(rows["b"])], "cifs"), "no empty columns without CSLLM"


def test_a_formula_of_the_generator_is_new_only_where_its_structures_are_at_hand(tmp_path):
    def known(reduced_formula):
        return [("ws2", matching.match_structure(simple.sheet("WS2"), True))] if reduced_formula == "WS2" else []

    chosen = simple.judges(training_structures=known, known_formulas=frozenset({"MoS2", "WS2"}))
    sheets = {"listed": simple.sheet(), "matched": simple.sheet("WS2"), "new": simple.graphene_sheet()}
    rows = {row.id: row for row in run(tmp_path, sheets, chosen).rows}
    assert (rows["listed"].novel, rows["listed"].novel_match) == (False, "formula known to the generator")
    assert (rows["matched"].novel, rows["matched"].novel_match) == (False, "ws2")
    assert (rows["new"].novel, rows["new"].novel_match) == (True, "")
    assert rows["listed"].metastable_sun is False


def test_formulas_of_a_generator_are_read_unless_the_training_set_has_them_all(tmp_path, caplog):
    import torch

    with ase.db.connect(tmp_path / "training.db") as database:
        database.write(simple.sheet())
        database.write(simple.sheet("WS2"))
    path = tmp_path / "denoiser.pth"

    def found(formulas, **content):
        torch.save({"schema_version": SCHEMA_VERSION, "kind": "denoiser", "formulas": formulas, **content}, path)
        return known_formulas(settings)

    settings = dataclasses.replace(
        SETTINGS, training_set=str(tmp_path / "training.db"), known_formulas_from=str(tmp_path / "denoiser.pth")
    )
    with caplog.at_level("INFO", logger="her2d"):
        assert known_formulas(settings) == frozenset()
    assert "no generator at" in caplog.text
    assert found(["MoS2", "S4W2"]) == frozenset(), "the training set has them all: its structures decide"
    assert found(["MoS2", "Se4Mo2"]) == {"MoS2", "MoSe2"}
    assert known_formulas(dataclasses.replace(settings, known_formulas_from="")) == frozenset()
    with pytest.raises(StageError, match="is not a denoiser checkpoint"):
        found([], kind="dimenet")


def test_scores_of_the_earlier_baseline_by_hand(tmp_path):
    evaluation = run(tmp_path, {"sheet": simple.sheet(), "crystal": simple.bulk_copper()})
    rows = {row.id: row for row in evaluation.rows}
    for name, atoms in (("sheet", 3), ("crystal", 4)):
        row, delta_g, stability = rows[name], -0.02 * atoms + 0.27, 1 - math.exp(-3.5)
        assert row.legacy_delta_g_ev == pytest.approx(delta_g) and row.legacy_energy_ev_per_atom == -4.0
        assert row.legacy_score_stab == pytest.approx(stability)
        assert row.legacy_score_composite == pytest.approx(0.4 * (1 - 2 * abs(delta_g)) + 0.3 * stability + 0.3 * 0.8)
    assert evaluation.aggregates["legacy_score_composite"].value == rows["sheet"].legacy_score_composite
    assert evaluation.bulk_aggregates["legacy_score_composite"].value == rows["crystal"].legacy_score_composite
    without = dataclasses.replace(SETTINGS, legacy_columns=False)
    (row,) = run(tmp_path, {"sheet": simple.sheet()}, settings=without, name="other").rows
    assert math.isnan(row.legacy_score_composite) and not math.isnan(row.score_composite)
    assert legacy_stability_score(0.2) == 0.0 and legacy_stability_score(2000.0) == 0.0
    assert math.isnan(legacy_stability_score(math.nan))


def test_a_failure_of_the_earlier_baselines_scoring_costs_no_other_number(tmp_path):
    class Unembeddable(simple.Hydrogen):
        def legacy_bare_output(self, atoms):
            raise ValueError("Og is heavier than the network's last element")

    (row,) = run(tmp_path, {"a": simple.sheet()}, simple.judges(her=Unembeddable())).rows
    assert "scores of the earlier baseline: Og is heavier" in row.status
    assert math.isnan(row.legacy_score_composite) and row.score_composite > 0 and row.hit


def test_the_earlier_baselines_energy_is_total_and_keeps_the_cell():
    from ase.calculators.emt import EMT

    from energetics.potentials import Potential

    atoms = simple.bulk_copper()
    atoms.set_cell(atoms.cell * 1.05, scale_atoms=True)
    atoms.positions[0] += [0.1, 0.05, 0.0]
    before, cell = atoms.copy(), atoms.cell.array.copy()

    def energy(steps):
        potential = Potential("emt", {"name": "emt"}, EMT())
        return potential_adsorption.StabilityJudge(potential, dataclasses.replace(SETTINGS, legacy_max_steps=steps)).legacy_energy(
            atoms
        )

    before.calc = EMT()
    assert energy(0) == pytest.approx(before.get_potential_energy() / 4), "the structure as it is"
    stretched = simple.bulk_copper()
    stretched.set_cell(cell, scale_atoms=True)
    stretched.calc = EMT()
    assert energy(50) == pytest.approx(stretched.get_potential_energy() / 4, abs=1e-3), "positions relax, the stretched cell stays"
    assert energy(50) < energy(0)
    np.testing.assert_array_equal(atoms.cell.array, cell)


def test_ranking_of_the_earlier_baseline_and_what_becomes_of_its_favourites():
    def row(name, legacy, ours=math.nan, **values):
        made = candidate.CandidateResult(id=name, formula="MoS2", reduced_formula="MoS2", legacy_score_composite=legacy)
        made.dimensionality, made.valid, made.score_composite = "2D", True, ours
        for key, value in values.items():
            setattr(made, key, value)
        return made

    rows = [
        row("bulk", 0.99, dimensionality=validity.BULK),
        row("clash", 0.9, 0.1, valid=False),
        row("high", 0.8, 0.2, e_above_hull_ev=0.4, delta_g_h_ev=0.0),
        row("inert", 0.7, 0.3, e_above_hull_ev=0.0, delta_g_h_ev=1.5, hit=False),
        row("good", 0.6, 0.9, e_above_hull_ev=0.0, delta_g_h_ev=0.0, hit=True),
        row("unscored", math.nan, 0.8),
    ]
    found = legacy_ranking(rows, SETTINGS, top=3)
    assert (found["n"], found["n_both"], found["of"]) == (5, 4, 3)
    assert found["spearman"] == pytest.approx(-1.0)
    assert found["overlap"] == 0, "our first three: good, unscored, inert; its: bulk, clash, high"
    assert found["verdicts"] == {"not 2D": 1, "invalid": 1, "unstable": 1}
    assert [(r["id"], r["rank"], r["our_rank"]) for r in found["rows"]] == [("bulk", 1, None), ("clash", 2, 5), ("high", 3, 4)]
    assert [decisions.verdict(r, SETTINGS) for r in rows[3:5]] == ["|ΔG_H| > 0.1 eV", "hit"]
    assert legacy_ranking([row("x", math.nan, 0.5)], SETTINGS) is None


def test_aggregates_against_hand_computed_numbers():
    def row(**values):
        return candidate.CandidateResult(formula="MoS2", reduced_formula="MoS2", dimensionality="2D", **values)

    good = row(delta_g_h_ev=0.1, e_above_hull_ev=0.02, score_stab=0.9, relax_rmsd_angstrom=0.1)
    good.synthesizable, good.valid, good.hit = True, True, True
    poor = row(delta_g_h_ev=-0.3, e_above_hull_ev=0.3, score_stab=0.7, relax_rmsd_angstrom=0.3)
    poor.synthesizable, poor.valid, poor.hit = False, True, False
    rows = [
        good,
        poor,
        row(e_above_hull_ev=-0.1, score_stab=1.0, valid=False, relax_rmsd_angstrom=0.2, hit=False),
        candidate.CandidateResult(dimensionality="unreadable", status="unreadable: empty file"),
    ]
    found = metrics.aggregate(rows, SETTINGS, seed=0)
    assert found["mae_delta_g_ev"].value == pytest.approx(0.2)
    assert (found["mae_delta_g_ev"].n_ok, found["mae_delta_g_ev"].n) == (2, 4)
    assert found["score_stab"].value == pytest.approx((0.9 + 0.7 + 1.0) / 3)
    assert found["rate_synth"].value == pytest.approx(1 / 4) and found["rate_synth"].n_ok == 2
    assert found["rate_valid"].value == pytest.approx(2 / 4)
    assert found["hit_rate"].value == pytest.approx(1 / 4)
    assert found["rate_metastable"].value == pytest.approx(2 / 4)
    assert found["median_rmsd_angstrom"].value == pytest.approx(0.2)
    assert found["unique_formulas"].value == 1 and found["unique_elements"].value == 2


def test_scores_by_formula():
    assert metrics.stability_score(-0.5, -0.6) == pytest.approx(math.exp(-0.1))
    assert metrics.stability_score(-0.7, -0.6) == 1.0
    assert math.isnan(metrics.stability_score(math.nan, 0.0))
    assert metrics.composite_score(0.25, 0.5, 0.5) == pytest.approx(0.4 * 0.5 + 0.3)
    assert metrics.composite_score(2.0, 1.0, 0.0) == pytest.approx(0.3)
    assert math.isnan(metrics.composite_score(0.0, math.nan, 1.0)) and math.isnan(metrics.composite_score(math.nan, 1.0, 1.0))
    # kT = 25.69 meV at 298.15 K; far from zero the volcano falls by |ΔG| / (kT ln 10).
    assert metrics.log_exchange_current(0.0) == pytest.approx(0.0)
    assert metrics.log_exchange_current(-0.5) == pytest.approx(metrics.log_exchange_current(0.5))
    slope = metrics.log_exchange_current(1.0) - metrics.log_exchange_current(0.5)
    assert slope == pytest.approx(-0.5 / (0.025693 * math.log(10)), rel=1e-3)


def test_bootstrap_interval_covers_like_the_normal_interval():
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    low, high = statistics.bootstrap_interval(values, np.mean, 4000, np.random.default_rng(0))
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.015) and high == pytest.approx(values.mean() + half, abs=0.015)
    assert (low, high) == statistics.bootstrap_interval(values, np.mean, 4000, np.random.default_rng(0))
    assert all(math.isnan(x) for x in statistics.bootstrap_interval([1.0], np.mean, 10, np.random.default_rng(0)))


def test_unanimous_rate_is_not_certain():
    rate = statistics.rate_metric("x", [False] * 32, better=1, doc="", resamples=50, rng=np.random.default_rng(0))
    assert rate.value == 0 and rate.low == 0 and rate.high == pytest.approx(0.1072, abs=1e-3)


def test_agreement_by_hand():
    score = metrics.agreement([0.0, 1.0, 2.0, math.nan], [0.5, 1.5, 1.0, 3.0])
    assert score["n"] == 3 and score["mae_ev"] == pytest.approx(2 / 3) and score["mean_error_ev"] == pytest.approx(0.0)
    assert score["spearman"] == pytest.approx(0.5)


def test_a_control_that_is_better_is_called_better():
    def of(value, low, high, better):
        return {"value": value, "low": low, "high": high, "better": better}

    ours = {"hit_rate": of(0.1, 0.0, 0.2, 1), "mae_delta_g_ev": of(0.5, 0.4, 0.6, -1), "rate_valid": of(0.9, 0.8, 1.0, 1)}
    control = {"hit_rate": of(0.15, 0.1, 0.3, 1), "mae_delta_g_ev": of(0.2, 0.1, 0.3, -1), "rate_valid": of(None, None, None, 1)}
    assert metrics.compare(control, ours) == {"hit_rate": "better", "mae_delta_g_ev": "better (clear)"}
    assert metrics.compare(ours, control)["mae_delta_g_ev"] == "worse (clear)"


def test_failed_judges_leave_nan_and_a_reason(tmp_path):
    structures = {"mo": simple.sheet(), "nb": simple.sheet("NbSe2"), "w": simple.sheet("WS2"), "au": simple.sheet("AuS2")}
    rows = {row.id: row for row in run(tmp_path, structures).rows}
    assert "Nb is not in the training records" in rows["nb"].status
    assert math.isnan(rows["nb"].delta_g_h_ev) and math.isnan(rows["nb"].score_composite) and rows["nb"].hit is None
    assert rows["nb"].e_above_hull_ev == pytest.approx(0.05)
    assert rows["w"].h_desorbed and math.isnan(rows["w"].delta_g_h_potential_ev) and "desorbs" in rows["w"].status
    assert "no reference for Au" in rows["au"].status and math.isnan(rows["au"].e_form_ev) and rows["au"].hit is None


def test_the_potential_is_not_asked_about_sheets_far_above_the_hull(tmp_path):
    """E_above_hull is 0.05 eV/atom: a limit below it leaves the cell empty, says so, and changes nothing else."""
    asked, not_asked = (
        run(
            tmp_path / str(limit), {"mo": simple.sheet()}, settings=dataclasses.replace(SETTINGS, potential_h_max_e_hull_ev=limit)
        ).rows[0]
        for limit in (0.06, 0.04)
    )
    assert asked.status == "ok" and asked.delta_g_h_corrected_ev == pytest.approx(0.69)
    assert math.isnan(not_asked.delta_g_h_corrected_ev) and "not asked, E_above_hull over 0.04" in not_asked.status
    assert not_asked.delta_g_h_ev == asked.delta_g_h_ev and not_asked.score_composite == asked.score_composite


def test_a_pair_without_a_competing_compound_is_said_in_words(tmp_path):
    class Sparse(simple.Table):
        def e_above_hull(self, atoms, energy):
            raise KeyError("no competing compound of Mo-S")

    row = run(tmp_path, {"mo": simple.sheet()}, simple.judges(references=Sparse())).rows[0]
    assert row.status == "hull: no competing compound of Mo-S" and row.e_form_ev == -0.5 and math.isnan(row.e_above_hull_ev)


def test_failed_relaxation_is_named(tmp_path):
    evaluation = run(tmp_path, {"mo": simple.sheet(), "w": simple.sheet("WS2")}, simple.judges(potential=simple.Springs("W")))
    row = next(row for row in evaluation.rows if row.id == "w")
    assert row.status.startswith("relaxation: ") and math.isnan(row.e_above_hull_ev) and row.relax_converged is None
    assert evaluation.aggregates["rate_converged"].value == 0.5 and evaluation.aggregates["rate_converged"].n_ok == 1
    assert evaluation.aggregates["median_e_above_hull_ev"].n_ok == 1


def test_sheet_with_its_own_hydrogen_has_no_delta_g(tmp_path):
    atoms = simple.graphene_sheet()
    atoms += Atoms("H", [[*atoms.positions[0, :2], atoms.positions[0, 2] + 1.1]])
    (row,) = run(tmp_path, {"graphane": atoms}).rows
    assert "contains H" in row.status and math.isnan(row.delta_g_h_ev) and not math.isnan(row.p_synth)


def test_overlapping_atoms_are_not_judged(tmp_path):
    atoms = simple.graphene_sheet().repeat((2, 2, 1))
    atoms += Atoms("C", [atoms.positions[0] + [0.4, 0, 0]])
    (row,) = run(tmp_path, {"clash": atoms}).rows
    assert row.no_clash is False and row.valid is False and "overlap" in row.status and math.isnan(row.energy_ev_per_atom)


def test_bulk_is_scored_and_never_mixed_into_a_2d_average(tmp_path):
    evaluation = run(tmp_path, {"bulk": simple.bulk_copper(), "mo": simple.sheet()})
    rows = {row.id: row for row in evaluation.rows}
    assert rows["bulk"].dimensionality == "bulk: not 2D" and rows["bulk"].valid is False
    assert rows["bulk"].e_above_hull_ev == pytest.approx(0.05) and rows["bulk"].p_synth == pytest.approx(0.8)
    assert math.isnan(rows["bulk"].delta_g_h_ev) and rows["bulk"].hit is None and rows["bulk"].novel is None
    assert evaluation.aggregates["rate_valid"].n == 1 and evaluation.aggregates["score_stab"].n == 1
    assert evaluation.bulk_aggregates["score_stab"].n == 1


def test_duplicates_and_known_structures(tmp_path):
    known = matching.match_structure(simple.sheet("WS2"), True)
    judges = simple.judges(training_structures=lambda formula: [("old", known)] if formula == "WS2" else [])
    structures = {"a": simple.sheet(), "b": simple.sheet(a=3.19), "c": simple.sheet(kind="1T"), "w": simple.sheet("WS2", a=3.2)}
    rows = {row.id: row for row in run(tmp_path, structures, judges).rows}
    assert rows["a"].unique and not rows["b"].unique and rows["b"].duplicate_of == "a" and rows["c"].unique
    assert rows["w"].novel is False and rows["w"].novel_match == "old" and rows["a"].novel
    assert rows["b"].metastable_sun is False and rows["w"].metastable_sun is False


def test_training_structures_are_read_by_formula(tmp_path):
    with ase.db.connect(tmp_path / "train.db") as database:
        database.write(mx2("MoS2", vacuum=8), uid="mo")
        database.write(mx2("WS2", vacuum=8).repeat((2, 1, 1)), uid="w")
    training = matching.TrainingStructures(tmp_path / "train.db")
    assert [uid for uid, _ in training("WS2")] == ["w"] and training("NbS2") == []


def comparable(evaluation):
    rows = [{**dataclasses.asdict(row), "seconds": 0} for row in evaluation.rows]
    return json.dumps([rows, [dataclasses.asdict(m) for m in evaluation.aggregates.values()]])


def test_result_depends_on_neither_order_nor_workers(tmp_path):
    structures = {f"x{k}": simple.sheet(a=3.0 + 0.05 * k) for k in range(4)} | {"bulk": simple.bulk_copper()}
    first = run(tmp_path / "1", structures)
    second = run(tmp_path / "2", dict(reversed(structures.items())), workers=2)
    assert comparable(first) == comparable(second)


def test_second_run_judges_nothing_again(tmp_path):
    calls: list[str] = []
    judges = simple.judges(potential=simple.Springs(calls=calls))
    structures = {"a": simple.sheet(), "copy_of_a": simple.sheet(), "b": simple.sheet("WS2")}
    first = run(tmp_path, structures, judges)
    assert sorted(calls) == ["MoS2", "S2W"]
    second = run(tmp_path, structures, judges)
    assert len(calls) == 2 and comparable(first) == comparable(second)
    assert [row.seconds for row in first.rows] == [row.seconds for row in second.rows]
    damaged = next((tmp_path / "out" / "cache").glob("*.json"))
    damaged.write_text('{"row": ')
    assert comparable(run(tmp_path, structures, judges)) == comparable(first) and len(calls) == 3
    run(tmp_path, structures, judges, dataclasses.replace(SETTINGS, max_steps=7))
    assert len(calls) == 5


def test_interrupted_run_goes_on(tmp_path):
    class Stopped(simple.Springs):
        def relax(self, atoms, bulk):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().relax(atoms, bulk)

    calls: list[str] = []
    structures = {f"x{k}": simple.sheet(a=3.0 + 0.05 * k) for k in range(4)}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, structures, simple.judges(potential=Stopped(calls=calls)))
    assert not (tmp_path / "out" / "metrics.csv").exists()
    evaluation = run(tmp_path, structures, simple.judges(potential=simple.Springs(calls=calls)))
    assert len(calls) == 4 and len(evaluation.rows) == 4


def test_cache_key_follows_content_judges_and_settings():
    identity = {"her": {"path": "a.pth", "sha256": "1"}}
    key = cache_key(b"x", identity, SETTINGS)
    assert key == cache_key(b"x", {"her": {"path": "elsewhere/a.pth", "sha256": "1"}}, SETTINGS)
    assert key == cache_key(b"x", identity, dataclasses.replace(SETTINGS, top_k=3))
    assert key != cache_key(b"y", identity, SETTINGS)
    assert key != cache_key(b"x", {"her": {"path": "a.pth", "sha256": "2"}}, SETTINGS)
    assert key != cache_key(b"x", identity, dataclasses.replace(SETTINGS, fmax_ev_per_angstrom=0.1))


def test_a_dying_worker_costs_one_candidate(tmp_path):
    simple.write_cifs(tmp_path / "cifs", {"a": simple.sheet(), "b": simple.bulk_copper(), "c": simple.sheet("WS2")})
    with JudgePool(simple.deadly_judges, simple.judges().identity, 2) as pool:
        evaluation = evaluate.evaluate(tmp_path / "cifs", pool, SETTINGS, tmp_path / "out", "ours")
    rows = {row.id: row for row in evaluation.rows}
    assert "worker process died" in rows["b"].status
    assert rows["a"].valid and rows["c"].valid
    assert len(list((tmp_path / "out" / "cache").glob("*.json"))) == 2


def test_no_folder_and_no_cif_are_one_line(tmp_path):
    with pytest.raises(StageError, match="no folder of CIFs"):
        evaluate.find_cifs(tmp_path / "missing")
    with pytest.raises(StageError, match="no CIF in"):
        evaluate.find_cifs(tmp_path)


def test_truth_report_pairs_predictions_with_dft(tmp_path):
    with ase.db.connect(tmp_path / "truth.db") as database:
        for k, energy in enumerate((0.1, 0.5, 1.5)):
            slab = simple.sheet().repeat((1, k + 1, 1))
            slab += Atoms("H", [[0, 0, slab.positions[:, 2].max() + 1.4]])
            slab.pbc = (True, True, False)
            database.write(slab, kind="slab_H", name=f"s{k}", host="MoS2", site="topS", dE_dft=energy, dE_7net0=energy - 0.2)
        database.write(simple.sheet(), kind="clean", name="s0")
    (tmp_path / "truth.csv").write_text(
        "system,structure,site,coverage,delta_e_ev,delta_g_ev,method,source\n"
        "MoS2,s1,topS,0.5,0.5,0.77,PBE,own\nPt(111),,fcc,0.25,-0.33,-0.06,PBE,literature\n"
    )
    report = dft_benchmark.truth_report(simple.Hydrogen(), tmp_path / "truth.db", tmp_path / "truth.csv")
    assert report["n"] == 3 and report["spearman"] == pytest.approx(1.0)
    assert report["mae_ev"] == pytest.approx(np.mean(np.abs(np.array([0.4, 0.7, 1.0]) - [0.1, 0.5, 1.5])))
    assert report["potential"]["mae_ev"] == pytest.approx(0.2) and report["potential"]["mean_error_ev"] == pytest.approx(-0.2)
    assert report["table"]["n"] == 1 and len(report["table"]["rows"]) == 2
    assert dft_benchmark.truth_report(simple.Hydrogen(), tmp_path / "missing.db") is None


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    simple.write_cifs(tmp_path / "cifs", {"a": simple.sheet()})
    script = (
        "import sys, time; sys.path[:0] = sys.argv[1:3]\n"
        "import simple_judges as simple\n"
        "from evaluation.evaluate import evaluate\n"
        "from evaluation.judge_pool import JudgePool\n"
        "from pipeline.settings import EvaluationConfig\n"
        "if __name__ == '__main__':\n"
        "    pool = JudgePool(simple.judges, {}, 1)\n"
        "    evaluate(sys.argv[3], pool, EvaluationConfig(bootstrap=10), sys.argv[4], 'ours')\n"
        "    print(*pool.processes.process_ids(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "run.py").write_text(script)
    paths = [str(PROJECT_DIR), str(PROJECT_DIR / "tests"), str(tmp_path / "cifs"), str(tmp_path / "out")]
    parent = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), *paths], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        state = Path(f"/proc/{worker}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")


def test_inert_sheets_must_come_out_above_active_ones():
    table = [
        {"structure": "db#MoS2", "activity": "inert"},
        {"structure": "db#BN", "activity": "inert"},
        {"structure": "db#NbS2", "activity": "active"},
        {"structure": "db#TiS2", "activity": ""},
        {"structure": "db#nowhere", "activity": "active"},
    ]
    rows = [
        {"name": "MoS2", "e": 1.2},
        {"name": "MoS2", "e": 0.9},
        {"name": "BN", "e": 2.0},
        {"name": "NbS2", "e": 1.0},
        {"name": "NbS2", "e": 1.5},
        {"name": "TiS2", "e": 3.0},
    ]
    found = dft_benchmark.inert_above_active(rows, table, "e")
    assert found == {"pairs": 2, "violations": ["MoS2 < NbS2"]}, "the lowest site speaks for a sheet"
    rows[1]["e"] = 1.1
    assert dft_benchmark.inert_above_active(rows, table, "e")["violations"] == []
    rows[1]["e"] = math.nan
    assert dft_benchmark.inert_above_active(rows[1:], table, "e")["violations"] == ["MoS2 < NbS2"], "no value is no proof"
