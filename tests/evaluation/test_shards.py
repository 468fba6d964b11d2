"""Candidates judged in parts: what is put together is the run that one would make, and a part that lacks something is named."""

from __future__ import annotations

import csv
import dataclasses
import json
import runpy
from functools import partial
from pathlib import Path

import pytest
import simple_judges as simple
from simple_judges import SETTINGS
from undrawn import leave_figures_undrawn

import evaluate_external
from evaluation import evaluate, judges, shards
from evaluation.reading import cif_source
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.loading import load_config
from pipeline.shards import Shard, read_shard

STRUCTURES = {f"x{k}": simple.sheet(a=3.0 + 0.04 * k) for k in range(9)} | {
    "copy of x1": simple.sheet(a=3.04),
    "w": simple.sheet("WS2"),
    "g": simple.graphene_sheet(),
    "bulk": simple.bulk_copper(),
}


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without the time that they took."""
    with path.open(newline="", encoding="utf-8") as handle:
        return [{**row, "seconds": ""} for row in csv.DictReader(handle)]


@pytest.fixture
def cifs(tmp_path) -> Path:
    simple.write_cifs(tmp_path / "cifs", STRUCTURES)
    (tmp_path / "cifs" / "broken.cif").write_text("data_x\n")
    return tmp_path / "cifs"


def sets_of(folder: Path):
    return {"ours": [cif_source(path) for path in evaluate.find_cifs(folder)]}


def judge_part(text: str, folder: Path, root: Path, judge=None) -> None:
    judge = partial(evaluate.evaluate, folder, judges=judge or simple.judges(), settings=SETTINGS)
    shards.judge_part(read_shard(text), sets_of(folder), judge, SETTINGS, root)


def merge(count: int, folder: Path, root: Path, settings=SETTINGS):
    given = simple.judges(potential=Forbidden())
    shards.take_parts(Shard(0, count), sets_of(folder), given.identity, settings, root)
    return evaluate.evaluate(folder, given, settings, root, "ours")


class Forbidden(simple.Springs):
    """Judges nothing."""

    def relax(self, atoms, bulk):
        pytest.fail("judged again")

    dynamic_stability = exfoliation = relax


def test_names_and_numbers_are_split_once():
    names, parts = [f"gen_{k:05d}.cif" for k in range(1000)], Shard(0, 8).parts()
    counts = [sum(part.has_name(name) for name in names) for part in parts]
    assert sum(counts) == 1000 and min(counts) > 80 and [str(part) for part in parts[:2]] == ["1/8", "2/8"]
    assert all(sum(part.has_name(name) for part in parts) == 1 for name in names)
    assert [[k for k in range(10) if part.has_index(k)] for part in Shard(0, 3).parts()] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert read_shard("") is None and read_shard("merge/4").merges and not read_shard("4/4").merges
    assert [Shard(2, 3).has_name(name) for name in ("a.cif", "b.cif", "c.cif", "d.cif")] == [False, True, True, True], "as ever"


def test_parts_that_are_put_together_are_the_whole_run(cifs, tmp_path, capsys):
    whole = evaluate.evaluate(cifs, simple.judges(), SETTINGS, tmp_path / "whole", "ours")
    for part in ("2/3", "3/3", "1/3"):
        judge_part(part, cifs, tmp_path / "out")
        assert f"shard {part}: its " in capsys.readouterr().out
    rows = [row["id"] for k in (1, 2, 3) for row in table(tmp_path / "out" / "shards" / f"{k}_of_3" / "metrics.csv")]
    assert sorted(rows) == [row.id for row in whole.rows] and len(rows) == len(STRUCTURES) + 1
    merged = merge(3, cifs, tmp_path / "out")
    assert table(tmp_path / "out" / "metrics.csv") == table(tmp_path / "whole" / "metrics.csv")
    assert (tmp_path / "out" / "relaxed.extxyz").read_bytes() == (tmp_path / "whole" / "relaxed.extxyz").read_bytes()
    assert {name: str(m) for name, m in merged.aggregates.items()} == {name: str(m) for name, m in whole.aggregates.items()}
    assert any(row.duplicate_of for row in merged.rows), "of a candidate of another part"


def test_more_parts_than_candidates(cifs, tmp_path):
    for path in sorted(cifs.iterdir())[2:]:
        path.unlink()
    for part in Shard(0, 5).parts():
        judge_part(str(part), cifs, tmp_path / "out")
    assert len(merge(5, cifs, tmp_path / "out").rows) == 2


def test_a_part_that_was_stopped_is_named_and_goes_on(cifs, tmp_path):
    class Stopped(simple.Springs):
        def relax(self, atoms, bulk):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().relax(atoms, bulk)

    out, calls = tmp_path / "out", []
    judge_part("1/2", cifs, out)
    with pytest.raises(StageError, match=r"^shard 2/2 has no folder .*shards/2_of_2: run these parts"):
        merge(2, cifs, out)
    with pytest.raises(KeyboardInterrupt):
        judge_part("2/2", cifs, out, simple.judges(potential=Stopped(calls=calls)))
    own = shards.of_part(sets_of(cifs)["ours"], Shard(2, 2))
    with pytest.raises(StageError, match=rf"^shard 2/2 lacks \d of {len(own)} candidates \(ours: .*\.cif"):
        merge(2, cifs, out)
    with pytest.raises(StageError, match=r"shard 1/2 lacks .*; shard 2/2 lacks .*with the settings of this run"):
        merge(2, cifs, out, dataclasses.replace(SETTINGS, max_steps=7))
    before = len(calls)
    judge_part("2/2", cifs, out, simple.judges(potential=simple.Springs(calls=calls)))
    assert len(calls) - before < len(own), "what was judged is not judged again"
    assert len(merge(2, cifs, out).rows) == len(STRUCTURES) + 1
    (out / "shards" / "1_of_2" / shards.ENDED).unlink()
    with pytest.raises(StageError, match=r"^shard 1/2 has not ended"):
        merge(2, cifs, out)


def test_a_candidate_that_takes_its_worker_along_does_not_hold_up_the_rest(cifs, tmp_path):
    out = tmp_path / "out"
    for part in ("1/2", "2/2"):
        judge_part(part, cifs, out)
    part = next(part for part in Shard(0, 2).parts() if part.has_name("bulk.cif"))
    folder = part.folder(out)
    source = next(source for source in sets_of(cifs)["ours"] if source.name == "bulk.cif")
    (folder / "cache" / f"{evaluate.content_key(source.cif, simple.judges().identity, SETTINGS)}.json").unlink()
    ended = json.loads((folder / shards.ENDED).read_text())
    (folder / shards.ENDED).write_text(json.dumps(ended | {"not_judged": ["bulk.cif"]}))
    shards.take_parts(Shard(0, 2), sets_of(cifs), simple.judges().identity, SETTINGS, out)
    calls: list[str] = []
    found = evaluate.evaluate(cifs, simple.judges(potential=simple.Springs(calls=calls)), SETTINGS, out, "ours")
    assert calls == ["Cu4"] and len(found.rows) == len(STRUCTURES) + 1


@pytest.mark.parametrize("script", ["test.py", "evaluate_external.py"])
def test_the_stages_in_parts(script, cifs, tmp_path, monkeypatch):
    """The judges are simple ones; everything else is that of the stage."""
    leave_figures_undrawn(monkeypatch)
    monkeypatch.setattr(judges, "load_judges", simple.slow_judges)
    monkeypatch.setattr(judges, "run_dft_benchmark", lambda cfg, her: None)
    main = evaluate_external.main if script != "test.py" else runpy.run_path(str(PROJECT_DIR / script), run_name="stage")["main"]

    def run(out: str, shard: str = "") -> Path:
        folder = "evaluation" if script == "test.py" else "external"
        given = [f"run.output_dir={tmp_path / 'no'}", f"{folder}.output_dir={tmp_path / out}", f"{folder}.cif_dir={cifs}"]
        given += [f"evaluation.random_cif_dir={cifs}", f"evaluation.known_cif_dir={tmp_path / 'none'}", "evaluation.bootstrap=20"]
        given += ["evaluation.workers=0", "evaluation.finalists=0", "evaluation.water=false"]
        main(load_config(None, [*given, f"evaluation.shard={shard}"]))
        return tmp_path / out

    whole = run("whole")
    with pytest.raises(StageError, match="shard 1/2 has no folder"):
        run("parts", "merge/2")
    for shard in ("1/2", "2/2"):
        assert not (run("parts", shard) / "report.json").exists()
    parts = run("parts", "merge/2")
    names = ["", "controls/random_decoration"] if script == "test.py" else [""]
    for name in names:
        assert table(parts / name / "metrics.csv") == table(whole / name / "metrics.csv")
    one, other = (json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in (parts, whole))
    assert one["metrics"] == other["metrics"] and one["comparison"]["sets"] == other["comparison"]["sets"]
    assert (parts / "report.html").is_file()
