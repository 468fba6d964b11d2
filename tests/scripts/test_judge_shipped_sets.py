"""Verdicts of the shipped sets: all of the current judges, none of others, and stages 5 and 6 take them."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import simple_judges as simple

from energetics.potential_loading import memory_of
from evaluation import evaluate, judges
from evaluation.judge_pool import record_store
from pipeline.loading import load_config
from scripts import judge_shipped_sets


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    sets = {"random": {"a": simple.sheet()}, "known": {"b": simple.graphene_sheet()}, "theirs": {"c": simple.sheet("MoSe2")}}
    sets["unguided"] = {"d": simple.sheet("NbS2")}
    for name, structures in sets.items():
        simple.write_cifs(tmp_path / name, structures)
    monkeypatch.setattr(judges, "judge_identity", lambda cfg: {"potential": {"name": "springs"}})
    monkeypatch.setattr(judges, "load_judges", lambda *_: simple.judges())
    monkeypatch.setattr(judges, "run_dft_benchmark", lambda *_: None)
    base = load_config(None, [f"run.output_dir={tmp_path / 'out'}", "run.device=cpu", "evaluation.known_formulas_from="])
    evaluation = dataclasses.replace(
        base.evaluation,
        workers=0,
        bootstrap=10,
        dynamics_checkpoint="",
        random_cif_dir=str(tmp_path / "random"),
        known_cif_dir=str(tmp_path / "known"),
        unguided_cif_dir=str(tmp_path / "unguided"),
        judged_before=[str(tmp_path / "verdicts")],
    )
    return dataclasses.replace(
        base, evaluation=evaluation, external=dataclasses.replace(base.external, cif_dir=str(tmp_path / "theirs"))
    )


def test_verdicts_are_those_that_a_stage_asks_for(cfg, tmp_path, monkeypatch):
    verdicts = tmp_path / "verdicts"
    folders = (verdicts, verdicts / "phonons", verdicts / "exfoliation")
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "stale.json").write_text("{}")
    judge_shipped_sets.main(cfg)
    written = sorted(path.relative_to(verdicts) for path in verdicts.rglob("*.json"))
    assert [len(list(folder.glob("*.json"))) for folder in folders] == [4, 4, 4], "four sheets near the hull, and no stale file"
    assert sum(len(json.loads((verdicts / path).read_text()).get("row", "")) > 0 for path in written) == 4

    monkeypatch.setattr(simple.Springs, "relax", lambda *_: pytest.fail("judged again"))
    monkeypatch.setattr(simple.Springs, "dynamic_stability", lambda *_: pytest.fail("phonons again"))
    monkeypatch.setattr(simple.Springs, "exfoliation", lambda *_: pytest.fail("exfoliation again"))
    for name in ("random", "theirs", "unguided"):
        stage = evaluate.evaluate(
            tmp_path / name,
            simple.judges(),
            cfg.evaluation,
            tmp_path / "stage",
            name,
            also_cached=cfg.evaluation.judged_before,
        )
        row = stage.rows[0]
        assert row.status == ("ok" if name != "unguided" else "ΔG_H: Nb is not in the training records")
        assert row.dynamically_stable is True and row.exfoliable == "easily"
    judge_shipped_sets.main(cfg)
    assert sorted(path.relative_to(verdicts) for path in verdicts.rglob("*.json")) == written

    other = dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, fmax_ev_per_angstrom=0.1))
    monkeypatch.undo()
    monkeypatch.setattr(judges, "judge_identity", lambda cfg: {"potential": {"name": "springs"}})
    monkeypatch.setattr(judges, "load_judges", lambda *_: simple.judges())
    shutil.rmtree(tmp_path / "unguided")
    judge_shipped_sets.main(other)
    renewed = {path.relative_to(verdicts) for path in verdicts.glob("*.json")}
    assert len(renewed) == 3 and not renewed & set(written), "verdicts by other settings, without the control that is gone"
    assert len(record_store(verdicts)) == 3


def test_fits_to_dft_are_made_anew_and_found_by_every_stage(cfg, tmp_path, monkeypatch):
    fitted = []

    def fit(cfg, her):
        return memory_of(cfg.evaluation).answer({"fit": 1}, lambda: fitted.append(her) or {"predicted": [0.25]})

    monkeypatch.setattr(judges, "run_dft_benchmark", fit)
    elsewhere = dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, relaxed_dir=str(tmp_path / "relaxed")))
    fit(elsewhere, None)
    judge_shipped_sets.main(elsewhere)
    assert len(fitted) == 2, "what this machine remembers is not what ships"
    another = dataclasses.replace(cfg.evaluation, relaxed_dir=str(tmp_path / "another"))
    for settings, found in ((another, 2), (dataclasses.replace(another, judged_before=[]), 3)):
        assert fit(dataclasses.replace(cfg, evaluation=settings), None) == {"predicted": [0.25]}
        assert len(fitted) == found
    assert sum(path.is_file() for path in (tmp_path / "another").rglob("*")) == 1, "only what was not shipped is written"
