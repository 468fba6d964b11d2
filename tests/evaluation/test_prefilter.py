"""The quick judges of stage 4: what they leave out, what they say, and that a stopped run goes on."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import simple_judges as simple

from crystals.matching import match_structure
from evaluation import dft_verdict, judges, prefilter
from evaluation.candidate import CandidateResult
from evaluation.dft_verdict import ComputedSheet
from evaluation.prefilter import Prefilter
from evaluation.water_verdict import AS_STABLE, DISSOLVES
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.loading import load_config
from pipeline.settings import Config

SHEET = simple.sheet()


class Trees:
    """Stands for the trees of dynamic stability."""

    def without_phonons(self, atoms, e_above_hull):
        return 0.25


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, (0.1, False)),
        ({"water": DISSOLVES}, (0.1, True)),
        ({"conductive": False}, (0.1, True)),
        ({"conductive": None, "water": ""}, (0.1, False)),
        ({"e_above_hull_ev": 0.11}, (0.03, False)),
        ({"novel": False}, (0.0, False)),
        ({"unique": False, "water": DISSOLVES}, (0.0, True)),
        ({"p_hit": math.nan}, (0.0, False)),
        ({"p_synth": 0.5}, (0.05, False)),
        ({"p_synth": 0.0}, (0.0, False)),
    ],
)
def test_the_verdict_of_a_row(changes, expected):
    given = {"p_hit": 0.4, "unique": True, "novel": True, "water": AS_STABLE, "conductive": True, "e_above_hull_ev": 0.1}
    row = CandidateResult(**(given | changes))
    assert prefilter._verdict(row, SHEET, Trees(), 0.1) == pytest.approx(expected)
    without = expected[0] * 4
    assert prefilter._verdict(row, SHEET, None, 0.1) == pytest.approx((without, expected[1]))
    assert prefilter._verdict(row, None, Trees(), 0.1) == (0.0, expected[1]), "a sheet that no judge could relax"


def test_heads_and_dimenet_are_weighted_by_their_errors():
    """Of two equal errors the mean counts, with a standard error smaller by √2; a poor DimeNet++ hardly moves the heads."""
    equal = prefilter.HEADS_STD_EV
    assert prefilter.with_heads(0.4, equal, 0.0) == pytest.approx((0.2, equal / 2**0.5))
    value, std = prefilter.with_heads(2.0, 100 * equal, 0.0)
    assert value == pytest.approx(0.0, abs=1e-3) and std == pytest.approx(equal, rel=1e-3)
    assert prefilter.with_heads(0.4, 1e-6, 0.0)[0] < 0.4, "no judge is that sure"
    assert all(map(math.isnan, prefilter.with_heads(math.nan, math.nan, 0.1)[:1]))


def test_trees_say_what_a_relaxed_sheet_does(cfg):
    """The mean of heads and DimeNet++ counts where the trees say nothing and DimeNet++ was asked."""
    asked = []

    class Active:
        def delta_g(self, atoms, by_heads):
            asked.append(by_heads)
            return (0.05, 0.3) if by_heads < 1 else (math.nan, math.nan)

        def chance(self, atoms, by_heads, window):
            return window + by_heads if by_heads < 1 else math.nan

    row = CandidateResult(delta_g_ev=0.4, delta_g_std_ev=0.3)
    quick = Prefilter(cfg)
    assert quick._activity is None and quick._delta_g(row, SHEET, 0.2) == prefilter.with_heads(0.4, 0.3, 0.2)
    quick._activity = Active()
    assert quick._delta_g(row, SHEET, 0.2) == (0.05, 0.3) and asked == [0.2]
    assert quick._delta_g(row, SHEET, 1.5) == prefilter.with_heads(0.4, 0.3, 1.5)
    assert quick._delta_g(row, None, 0.2) == prefilter.with_heads(0.4, 0.3, 0.2) and len(asked) == 2, "no sheet could be relaxed"
    window = cfg.evaluation.hit_delta_g_ev
    assert [quick._chance_of_window(*given) for given in ((SHEET, 0.2), (SHEET, 1.5), (None, 0.2))] == [window + 0.2, None, None]


@pytest.mark.parametrize("with_trees", [True, False])
def test_dimenet_is_asked_where_there_are_no_trees(cfg, tmp_path, monkeypatch, with_trees):
    asked, made = [], simple.slow_judges(cfg)

    class Predictor:
        def predict_sheet(self, *given):
            asked.append(given)
            return made.her.predict_sheet(*given)

    monkeypatch.setattr(judges, "load_judges", lambda *given: dataclasses.replace(made, her=Predictor()))
    trees = str(PROJECT_DIR / "weights" / "activity.pth") if with_trees else ""
    quick = Prefilter(dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, activity_checkpoint=trees)))
    simple.write_cifs(tmp_path / "cifs", {"a": simple.sheet("MoS2"), "b": simple.sheet("WSe2", "1T")})
    found = quick(tmp_path / "cifs", tmp_path / "work", {"a": 0.1, "b": 0.2})
    assert len(asked) == (0 if with_trees else 2) and all(0 <= chance <= 1 for chance, _ in found.values())
    if with_trees:
        value, std = quick._delta_g(CandidateResult(), SHEET, 0.2)
        assert math.isfinite(value) and std > 0
        assert quick._delta_g(CandidateResult(), None, 0.2) == (0.2, prefilter.HEADS_STD_EV), "what the trees do not know"


def test_what_dft_has_computed_is_known(cfg, tmp_path, monkeypatch):
    """Of two sheets DFT knows one: the others' ΔG_H counts for the other alone."""
    point = SimpleNamespace(delta_e=-0.27, site="topS")
    computed = {"MoS2": [ComputedSheet(match_structure(simple.sheet("MoS2"), is_sheet=True), point, 1)]}
    monkeypatch.setattr(dft_verdict, "computed_sheets", lambda path: computed)
    simple.write_cifs(tmp_path / "cifs", {"a": simple.sheet("MoS2"), "b": simple.sheet("WSe2", "1T")})
    seen = {}
    monkeypatch.setattr(prefilter, "_verdict", lambda row, *_: seen.setdefault(row.formula, (row.delta_g_ev, row.delta_g_source)))
    for path in ("", str(PROJECT_DIR / "data" / "h_on_2d_dft.db")):
        evaluation = dataclasses.replace(cfg.evaluation, dft_truth_path=path)
        seen.clear()
        Prefilter(dataclasses.replace(cfg, evaluation=evaluation))(tmp_path / "cifs", tmp_path / "work", {"a": 0.4, "b": 0.5})
        assert seen["WSe2"][1] != "DFT"
        assert (seen["MoS2"] == (pytest.approx(0.0), "DFT")) is bool(path)


def test_one_set_of_quick_judges_serves_all_rounds_and_the_places_are_those_of_the_best(cfg, monkeypatch):
    """Two sheets will be sampled: from the second round on a sheet has to be better than the second best so far."""
    loaded, asked = [], []

    class Quick:
        def chances(self, sheets, properties, where, wanted, least):
            asked.append((len(sheets), where, wanted, least))
            return properties.pop(0)

    monkeypatch.setattr(prefilter.QuickJudges, "load", lambda *given: loaded.append(given) or Quick())
    generation = dataclasses.replace(cfg.generation, num_structures=1, oversample=2.0)
    rounds = [np.array([0.1, 0.3, 0.2]), np.array([0.05]), np.array([0.5, 0.0])]
    with Prefilter(dataclasses.replace(cfg, generation=generation)).triaging() as triage:
        found = [triage([SHEET] * len(rounds[0]), rounds) for _ in range(3)]
    assert [values.tolist() for values in found] == [[0.1, 0.3, 0.2], [0.05], [0.5, 0.0]] and len(loaded) == 1
    assert asked == [(3, None, 3, 0.0), (1, None, 3, 0.2), (2, None, 3, 0.2)]


@pytest.fixture
def cfg(tmp_path, monkeypatch) -> Config:
    monkeypatch.setattr(judges, "judge_identity", lambda cfg: {"potential": {"name": "springs", "path": "/x"}})
    monkeypatch.setattr(judges, "load_judges", simple.slow_judges)
    base = load_config(None, [f"run.output_dir={tmp_path / 'out'}", "run.device=cpu", "evaluation.known_formulas_from="])
    evaluation = dataclasses.replace(base.evaluation, workers=0, dynamics_checkpoint="", activity_checkpoint="")
    return dataclasses.replace(base, evaluation=evaluation)


def test_the_costly_judges_are_left_out_and_a_second_run_asks_nothing(cfg, tmp_path, monkeypatch):
    simple.write_cifs(tmp_path / "cifs", {"a": simple.sheet("MoS2"), "b": simple.sheet("WSe2", "1T"), "c": simple.sheet("MoS2")})
    given = dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, potential_h_sites=3, phonons=True))
    quick = Prefilter(given)
    left = quick.cfg.evaluation
    assert (left.potential_h_sites, left.phonons, left.legacy_columns, left.band_gap) == (0, False, False, "")
    by_heads = {"a": 0.1, "b": 0.2, "c": 0.1}
    found = quick(tmp_path / "cifs", tmp_path / "work", by_heads)
    assert set(found) == {"a", "b", "c"} and found["c"][0] == 0, "c is a twin of a"
    assert all(0 <= chance <= 1 for chance, _ in found.values())
    monkeypatch.setattr(judges, "load_judges", lambda *_: pytest.fail("judged again"))
    assert Prefilter(given)(tmp_path / "cifs", tmp_path / "work", by_heads) == found


def test_its_identity_follows_judges_and_limits_but_no_paths(cfg):
    def identity(**changes):
        return Prefilter(dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, **changes))).identity

    assert identity() == identity(phonons=False, potential_h_sites=9, top_k=3), "what it leaves out changes nothing"
    assert "/x" not in str(identity())
    assert identity() != identity(hit_e_hull_ev=0.2) and identity() != identity(fmax_ev_per_angstrom=0.1)


def test_missing_trees_are_named_before_any_work(cfg, tmp_path):
    for name in ("dynamics_checkpoint", "activity_checkpoint"):
        missing = dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, **{name: str(tmp_path / "no.pth")}))
        with pytest.raises(StageError, match=f"evaluation.{name}: no file"):
            Prefilter(missing)


def test_its_identity_follows_the_trees_of_activity(cfg):
    with_trees = dataclasses.replace(cfg.evaluation, activity_checkpoint=str(PROJECT_DIR / "weights" / "activity.pth"))
    assert "activity" in Prefilter(dataclasses.replace(cfg, evaluation=with_trees)).identity
    assert "activity" not in Prefilter(cfg).identity
