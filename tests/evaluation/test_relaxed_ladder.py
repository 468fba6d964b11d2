"""What predictions relax to, beside the sheet on record: scores by hand, and the part of the benchmark with tiny models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from ase.calculators.lj import LennardJones

from energetics.potentials import Potential
from evaluation import relaxed_ladder
from evaluation.structure_ladder import DIFFUSION, RANDOM, SUBSTITUTION
from pipeline.errors import StageError
from pipeline.loading import load_config
from scripts import benchmark_generator as benchmark
from tests.evaluation.test_structure_ladder import cfg as ladder_cfg
from tests.evaluation.test_structure_ladder import sheet_of

cfg = ladder_cfg


def relaxed(energy: float | None, a: float = 3.3, kind: str = "2H", rmsd: float | None = 0.1) -> dict:
    plain = relaxed_ladder._plain(sheet_of("WSe2", kind, a))
    return {"status": "ok", "energy": energy, "rmsd": rmsd, "sheet": None if energy is None else plain}


def test_scores_by_hand():
    """The first sheet is the one on record, the second lies lower, the third above it, the fourth failed, the fifth has none."""
    records = [relaxed(-5.0)] * 5
    sheets = [relaxed(-4.995, 3.31), relaxed(-5.2, kind="1T"), relaxed(-4.7, kind="1T"), relaxed(None, rmsd=None), None]
    found = relaxed_ladder.scores(sheets, records, load_config(None, ["evaluation.bootstrap=50"]))
    assert found["as_low"]["value"] == 0.4 and found["lower"]["value"] == 0.2 and found["same"]["value"] == 0.2
    assert found["above_ev"]["value"] == pytest.approx((0.005 + 0.0 + 0.3) / 3) and found["above_ev"]["n_ok"] == 3
    assert found["rmsd_angstrom"]["value"] == pytest.approx(0.1) and found["rmsd_angstrom"]["n"] == 5
    assert all(row["low"] <= row["value"] <= row["high"] for row in found.values())


def test_a_sheet_that_cannot_be_relaxed_has_no_energy():
    """Atoms upon each other: Lennard-Jones knows no bound."""
    hard = Potential("lj", {"name": "lj"}, LennardJones(sigma=4.0, epsilon=1e4))
    found = relaxed_ladder._relaxed(load_config(None, []).evaluation, hard, sheet_of("WSe2"))
    assert found["energy"] is None and found["sheet"] is None and found["status"] in relaxed_ladder.FAILED
    assert found["rmsd"] is None


def soft(name: str, checkpoint: str = "") -> Potential:
    return Potential("lj", {"name": "lj"}, LennardJones(sigma=2.3, epsilon=0.5, rc=7.0))


def run_part(cfg, monkeypatch, potential=soft):
    monkeypatch.setattr(relaxed_ladder, "load_potential", potential)
    parts = dataclasses.replace(cfg.benchmark, parts=["relaxed"], ladder_diffusion_rows=2)
    evaluation = dataclasses.replace(cfg.evaluation, workers=0, max_steps=60)
    benchmark.main(dataclasses.replace(cfg, benchmark=parts, evaluation=evaluation))
    return json.loads((Path(cfg.benchmark.output_dir) / "ladder_relaxed.json").read_text())


def test_first_predictions_are_relaxed_beside_the_sheets_on_record(cfg, monkeypatch, capsys):
    """Both polymorphs of WSe2 have the 2H sheet as their first substitution."""
    found = run_part(cfg, monkeypatch)
    assert found["n"] == 2 and found["as_low_ev_per_atom"] == 0.01
    record = found["methods"][relaxed_ladder.RECORD]
    assert record["as_low"]["value"] == record["same"]["value"] == 1.0 and record["above_ev"]["value"] == 0.0
    assert record["lower"]["value"] == 0.0
    assert found["methods"][SUBSTITUTION]["as_low"]["n"] == 2 and found["methods"][SUBSTITUTION]["same"]["value"] in (0.5, 1.0)
    pair = found["paired"][f"{RANDOM} against {SUBSTITUTION}"]
    assert pair["first_alone"] + pair["second_alone"] <= 2 and pair["p"] == 1.0
    assert f"  {DIFFUSION}: " in capsys.readouterr().out
    monkeypatch.setattr(relaxed_ladder, "relax_sheet", None)  # a second run has everything
    assert run_part(cfg, monkeypatch)["methods"] == found["methods"]


def test_without_a_record_that_relaxes_there_is_nothing_to_compare_with(cfg, monkeypatch):
    def hard(name: str, checkpoint: str = "") -> Potential:
        return Potential("lj", {"name": "lj"}, LennardJones(sigma=4.0, epsilon=1e4))

    with pytest.raises(StageError, match="relaxes none of the held-out sheets"):
        run_part(cfg, monkeypatch, hard)
