"""Sheets that every chemist knows: the committed CIFs, and what the report says of them."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from types import SimpleNamespace

import ase.db
import ase.io
import matplotlib.pyplot as plt
import pytest

from crystals.matching import match_structure, same_structure
from energetics.embedded_data import write_known_sheets
from evaluation import candidate, decisions, known_sheets, volcano
from evaluation.material_table import print_table
from evaluation.page import known_cells
from pipeline.files import PROJECT_DIR, write_json
from pipeline.provenance import SCHEMA_VERSION
from pipeline.settings import DemoConfig, EvaluationConfig

FOLDER = PROJECT_DIR / "data" / "known_sheets"


def test_the_committed_cifs_are_the_sheets_of_the_table():
    rows = known_sheets.listed()
    assert len(rows) >= 20 and {path.stem for path in FOLDER.glob("*.cif")} == set(rows)
    with ase.db.connect(str(PROJECT_DIR / "data" / "demo_c2db.db")) as database:
        for name, row in rows.items():
            own, stored = ase.io.read(FOLDER / f"{name}.cif"), database.get(uid=row["uid"]).toatoms()
            assert same_structure(match_structure(own, True), match_structure(stored, True)), name


def test_the_dft_values_are_those_of_the_table_of_truth():
    with (PROJECT_DIR / "tests" / "data" / "her_truth.csv").open(newline="", encoding="utf-8") as handle:
        truth = [row for row in csv.DictReader(handle) if row["structure"].startswith("data/h_on_2d_dft.db")]
    for name, row in known_sheets.listed().items():
        if row["dft_system"]:
            lowest = min(float(point["delta_g_ev"]) for point in truth if point["system"] == row["dft_system"])
            assert float(row["delta_g_dft_ev"]) == pytest.approx(lowest, abs=1e-3), name


def test_sheets_that_a_database_lacks_are_counted(tmp_path):
    with ase.db.connect(str(PROJECT_DIR / "data" / "demo_c2db.db")) as whole, ase.db.connect(str(tmp_path / "small.db")) as small:
        small.write(whole.get(uid="C2-graphene"))
    settings = dataclasses.replace(DemoConfig(), db_path=str(tmp_path / "small.db"), known_cif_dir=str(tmp_path / "cifs"))
    counts = write_known_sheets(settings, 0)
    assert counts == {"cifs": 1, "not in the database": len(known_sheets.listed()) - 1}
    assert [path.name for path in (tmp_path / "cifs").glob("*.cif")] == ["graphene.cif"]


def test_rows_carry_the_dft_value_and_are_marked_on_the_volcano():
    def judged(name, value):
        by_potential = {"delta_g_h_corrected_ev": value, "delta_g_h_corrected_std_ev": 0.2}
        row = candidate.CandidateResult(id=name, reduced_formula="X", delta_g_h_dft_ev=0.0, p_synth=0.9, **by_potential)
        decisions.choose_delta_g(row)
        return row

    evaluation = SimpleNamespace(rows=[judged("2H-MoS2", 1.9), judged("2H-NbS2", 0.4), judged("mine", math.nan)])
    rows = known_sheets.known_rows(evaluation, EvaluationConfig())
    assert [row["name"] for row in rows] == ["2H-NbS2", "2H-MoS2", "mine"]
    assert rows[1]["delta_g_dft_ev"] == pytest.approx(2.06, abs=0.01) and math.isnan(rows[2]["delta_g_dft_ev"])
    figure, axis = plt.subplots()
    platinum = known_sheets.literature_surfaces({"table": {"rows": [{"system": "Pt(111)", "delta_e_ev": -0.33}]}}, 0.27)
    assert platinum == [{"name": "Pt(111)", "delta_g_ev": pytest.approx(-0.06)}]
    volcano.set_up(axis, -1.0, 1.0, 0.1)
    assert volcano.mark_known(axis, rows, 1.0, platinum) == 2
    assert [text.get_text() for text in axis.texts] == ["Pt(111)", "2H-NbS2"]
    places = [float(line.get_xdata()[0]) for line in axis.lines if line.get_marker() == "*"]
    assert places == [platinum[0]["delta_g_ev"], pytest.approx(-0.161, abs=1e-3)], "DFT's value, not the judge's 0.40"
    crowded = [row | {"delta_g_dft_ev": 0.9 + 0.001 * k, "name": row["name"] + str(k)} for k in range(20) for row in rows]
    volcano.mark_known(axis, sorted(crowded, key=lambda row: -row["place"]), 1.0)
    written = [text.get_text() for text in axis.texts[2:]]
    assert 1 < len(written) < 20 and all(name.startswith("2H-MoS2") for name in written), (
        "of names at one place the first of the table are written"
    )
    plt.close(figure)
    as_stored = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
    assert known_cells(as_stored)[0][:3] == ["2H-NbS2", "–", "0.40 ± 0.20"]


def test_a_set_without_known_sheets_gets_those_of_an_earlier_run_by_the_same_judges(tmp_path):
    rows = [
        {"name": "1T-PtTe2", "formula": "Te2Pt", "delta_g_dft_ev": None},
        {"name": "graphene", "formula": "C", "delta_g_dft_ev": 1.8},
    ]
    identity = {"potential": {"name": "springs", "sha256": "a"}}
    for name, judges in (("other", {"potential": {"name": "springs", "sha256": "b"}}), ("same", identity)):
        (tmp_path / name).mkdir()
        content = {"schema_version": SCHEMA_VERSION, "known": rows, "provenance": {"judges": judges}}
        write_json(tmp_path / name / "report.json", content)
    folders = [tmp_path / "none", tmp_path / "other", tmp_path / "same"]
    found = known_sheets.known_of_earlier_runs(folders, identity)
    assert math.isnan(found[0]["delta_g_dft_ev"]) and found[0]["formula"] == "PtTe2" and found[1] == rows[1]
    assert known_sheets.known_of_earlier_runs(folders[:2], identity) == []


def test_the_first_known_sheets_of_the_table_stand_below_the_materials(capsys):
    stored = json.loads((PROJECT_DIR / "results" / "report.json").read_text(encoding="utf-8"))["known"]
    known = [{key: math.nan if value is None else value for key, value in row.items()} for row in stored]
    print_table(
        [candidate.CandidateResult(id="mine", status="unreadable: x", dimensionality="unreadable")], EvaluationConfig(), known
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "well-known sheets by the same judges:"
    assert [line.split()[:3] for line in lines[4:6]] == [["2H-MoS2", "MoS2", "p-6m2"], ["graphene", "C", "p6/mmm"]]
    assert all("DFT +" in line or "DFT -" in line for line in lines[4:9]) and len(lines) == 9
