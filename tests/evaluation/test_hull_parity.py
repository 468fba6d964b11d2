"""E_above_hull beside a database's own."""

import dataclasses
import json
import math

import pytest
from ase.calculators.emt import EMT
from ase.db import connect

from crystals.prototypes import honeycomb, trigonal_prismatic
from energetics.hull import ReferencePhase, References
from energetics.potentials import Potential
from evaluation import hull_parity, trust
from pipeline.errors import StageError
from pipeline.loading import load_config
from pipeline.settings import EvaluationConfig


def row(ours, theirs, status="ok"):
    return {"ours": ours, "theirs": theirs, "status": status}


def test_agreement_counts_verdicts_and_leaves_gaps_out():
    rows = [row(0.0, 0.05), row(0.2, 0.3), row(0.05, 0.25), row(0.4, 0.02), row(math.nan, 0.0), row(9.0, 0.0, "not converged")]
    found = hull_parity.summarise(rows, 0.1)
    assert (found["n_ok"], found["n"]) == (4, 6)
    assert found["mae_ev"] == pytest.approx((0.05 + 0.1 + 0.2 + 0.38) / 4)
    assert (found["stable_both"], found["stable_ours_only"], found["stable_theirs_only"], found["agree"]) == (1, 1, 1, 0.5)
    assert hull_parity.summarise([row(math.nan, 0.0)], 0.1)["mae_ev"] is None


@pytest.fixture
def setting(tmp_path):
    with connect(tmp_path / "db.db") as db:
        for k in range(6):
            sheet = honeycomb("C", "C")
            sheet.set_cell(sheet.cell * (1 + 0.002 * k), scale_atoms=True)
            db.write(sheet, ehull=0.1 * k)
        db.write(trigonal_prismatic("Mo", "S"), ehull=0.0)
        db.write(honeycomb("Ni", "C"), ehull=0.0)
        db.write(honeycomb("C", "C"), comment="no ehull")
        db.write(honeycomb("C", "C").repeat((3, 3, 1)), ehull=0.0)
    potential = Potential("emt", {"name": "emt"}, EMT())
    references = References({"name": "emt"}, [ReferencePhase("C", 0.5, "graphite"), ReferencePhase("Ni", 0.1, "fcc")])
    (tmp_path / "references").write_text("x")
    settings = dataclasses.replace(EvaluationConfig(), references_path=str(tmp_path / "references"), hull_rows=10)
    return tmp_path, potential, references, settings


def test_rows_are_relaxed_once_and_gaps_are_named(setting):
    path, potential, references, settings = setting
    cache = path / "cache" / "hull.jsonl"
    found = hull_parity.measure(path / "db.db", potential, references, settings, 0, cache)
    assert found["n"] == 8, "rows without ehull and large cells are not drawn"
    assert found["n_ok"] == 6
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    assert {line["status"] for line in lines} == {"ok", "no reference for Mo, S", "no competing compound of Ni-C"}
    cache.write_text(cache.read_text()[:-15])

    class Refuses:
        name, identity = "emt", {"name": "emt"}
        calls = 0

        @property
        def calculator(self):
            Refuses.calls += 1
            return EMT()

    again = hull_parity.measure(path / "db.db", Refuses(), references, settings, 0, cache)
    assert Refuses.calls <= 1, "only the row whose line was cut is relaxed again"
    assert again["pairs"] == found["pairs"]


def test_the_figure_is_drawn_and_missing_databases_are_named(setting, tmp_path):
    path, potential, references, settings = setting
    found = hull_parity.measure(path / "db.db", potential, references, settings, 0, path / "c.jsonl")
    hull_parity.draw(found, tmp_path / "hull_parity.png")
    assert (tmp_path / "hull_parity.png").stat().st_size > 5000
    (tmp_path / "text.db").write_text("no database")
    with pytest.raises(StageError, match="text.db is not a readable ASE database"):
        hull_parity.measure(tmp_path / "text.db", potential, references, settings, 0, path / "c.jsonl")
    with pytest.raises(StageError, match=r"evaluation.hull_db: no file at .*none\.db"):
        hull_parity.measure(tmp_path / "none.db", potential, references, settings, 0, path / "c.jsonl")


class Learnt:
    """A learnt hull that has seen carbon, and says 0.07 eV/atom of everything."""

    def is_held_out(self, formula):
        return "C" not in formula or "Ni" in formula

    def outside_domain(self, atoms, e_form):
        return ""

    def e_above_hull(self, atoms, e_form):
        return 0.07, {"learnt": 0.05, "both": 0.05}


def test_a_learnt_hull_is_compared_on_formulas_that_it_has_not_seen(setting):
    path, potential, references, settings = setting
    settings = dataclasses.replace(settings, hull_checkpoint=str(path / "references"), hull="learnt")
    cache = path / "cache" / "hull.jsonl"
    found = hull_parity.measure(path / "db.db", potential, references, settings, 0, cache, Learnt())
    assert found["n"] == 2, "NiC and MoS2"
    assert [ours for _, ours in found["pairs"]] == [0.07], "the learnt hull needs no compound of Ni and C"
    assert found["identity"]["hull"].startswith("learnt ")
    other = hull_parity.measure(path / "db.db", potential, references, settings, 0, cache)
    assert other["n"] == 8 and "hull" not in other["identity"], "records of another hull are not read"


def test_a_comparison_of_another_hull_is_not_shown(setting, tmp_path):
    path, _, _, settings = setting
    identity = {"references": hull_parity.hull_identity(settings, False)["references"]}
    (tmp_path / "hull_parity.json").write_text(json.dumps({"identity": identity, "n_ok": 3}))
    lines = [f"evaluation.references_path={path}/references", f"evaluation.hull_checkpoint={path}/references"]
    own = load_config(None, [*lines, "evaluation.hull=potential"])
    assert hull_parity.measure_or_read(own, tmp_path)["n_ok"] == 3
    assert hull_parity.measure_or_read(load_config(None, [*lines, "evaluation.hull=learnt"]), tmp_path) is None


def test_the_report_says_whose_hull_it_is():
    report = {"truth": {}, "metrics": {}, "provenance": {"judges": {"potential": {"name": "sevennet-0"}}}}
    own = dict(trust.trust(report))["E_form, E_above_hull"]
    report["provenance"]["judges"]["hull"] = {"name": "learnt"}
    learnt = dict(trust.trust(report))["E_form, E_above_hull"]
    assert "lower bound" in own and "learnt from PBE" in learnt and "lower bound" not in learnt
