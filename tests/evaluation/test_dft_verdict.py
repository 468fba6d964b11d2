"""DFT as the judge of the sheets that it has computed."""

from __future__ import annotations

import dataclasses
import math

import ase.db
import pytest
import simple_judges as simple
from ase import Atoms

from crystals.cif import read_cif
from crystals.formulas import cell_formula
from evaluation import decisions, known_sheets
from evaluation.candidate import CandidateResult
from evaluation.dft_verdict import mark_dft
from pipeline.settings import EvaluationConfig

SITES = {"topS": -0.25, "hollow": 0.6}  # ΔE_H, eV


def write_points(path, sheets: dict[str, tuple[Atoms, dict[str, float]]], supercell=(3, 3, 1)):
    """Write a database of DFT points: name -> (sheet, ΔE_H by site)."""
    with ase.db.connect(str(path)) as database:
        for name, (sheet, sites) in sheets.items():
            clean = sheet.repeat(supercell)
            database.write(clean, kind="clean", name=name)
            for site, delta_e in sites.items():
                with_h = clean + Atoms("H", [clean.positions[clean.positions[:, 2].argmax()] + (0, 0, 1.4)])
                database.write(with_h, kind="slab_H", name=name, site=site, dE_dft=delta_e)
    return path


def settings_with(truth, blind="") -> EvaluationConfig:
    return dataclasses.replace(simple.SETTINGS, dft_truth_path=str(truth), dft_blind_path=str(blind))


def test_a_sheet_that_dft_has_computed_is_judged_by_dft_in_any_setting(tmp_path):
    truth = write_points(tmp_path / "truth.db", {"2H": (simple.sheet(), SITES)})
    blind = write_points(tmp_path / "blind.db", {"W": (simple.sheet("WS2", a=3.19), {"topS": -0.3})})
    turned = simple.sheet(a=3.2).repeat((2, 1, 1))
    turned.rotate(31, "z", rotate_cell=True)
    turned.positions = turned.positions[::-1]
    turned.numbers = turned.numbers[::-1]
    structures = {"own": turned, "1T": simple.sheet(kind="1T"), "W": simple.sheet("WS2"), "Se": simple.sheet("MoSe2", a=3.3)}
    judged = {row.id: row for row in simple.evaluated(tmp_path, structures, settings=settings_with(truth, blind)).rows}
    alone = {row.id: row for row in simple.evaluated(tmp_path, structures, name="again").rows}
    own = judged["own"]
    assert (own.delta_g_source, own.h_site_dft, own.h_sites_dft) == ("DFT", "topS", 2)
    assert own.delta_g_ev == own.delta_g_h_dft_ev == pytest.approx(0.02), "the lowest site, + 0.27 eV"
    assert own.hit is True and own.p_hit > 0.9 and own.score_composite != alone["own"].score_composite
    for name in ("delta_g_h_corrected_ev", "delta_g_h_potential_ev", "delta_g_h_ev", "hit_corrected", "hit_potential"):
        assert getattr(own, name) == getattr(alone["own"], name), "the other judges' values stay"
    assert judged["1T"].delta_g_source == alone["1T"].delta_g_source != "DFT" and math.isnan(judged["1T"].delta_g_h_dft_ev)
    assert judged["Se"].delta_g_source != "DFT"
    assert alone["W"].h_desorbed and alone["W"].hit is False, "this potential loses H on W"
    assert judged["W"].delta_g_source == "DFT" and judged["W"].hit is True, "points kept for a blind test count too"
    before = decisions.without_dft(own, simple.SETTINGS)
    assert (before.delta_g_ev, before.p_hit) == pytest.approx((alone["own"].delta_g_ev, alone["own"].p_hit))
    assert before.delta_g_source == alone["own"].delta_g_source


def test_h_that_dft_does_not_bind_is_no_value(tmp_path):
    truth = write_points(tmp_path / "truth.db", {"2H": (simple.sheet(), {"topS": 3.0})})
    (row,) = simple.evaluated(tmp_path, {"own": simple.sheet()}, settings=settings_with(truth)).rows
    assert row.delta_g_source != "DFT" and math.isnan(row.delta_g_h_dft_ev) and row.h_sites_dft == 0


def test_the_shipped_points_are_found_by_the_published_structures():
    """The CIFs are of C2DB's geometries, the points of sheets that a potential has relaxed; the table was made by name."""
    table = {name: row for name, row in known_sheets.listed().items() if row["delta_g_dft_ev"]}
    structures = {name: read_cif(known_sheets.CIFS / f"{name}.cif") for name in table}
    rows = [
        CandidateResult(id=name, formula=cell_formula(str(atoms.symbols)), dimensionality="2D")
        for name, atoms in structures.items()
    ]
    mark_dft(rows, structures, EvaluationConfig(), 0.27)
    assert len(rows) >= 20
    for row in rows:
        assert row.delta_g_ev == pytest.approx(float(table[row.id]["delta_g_dft_ev"]), abs=1e-3), row.id
