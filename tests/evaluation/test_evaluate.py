"""A set of CIFs: damaged files, resume, and independence of order and workers."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import processes
import pytest
import simple_judges as simple
from ase import Atoms
from pymatgen.io.ase import AseAtomsAdaptor
from simple_judges import MALFORMED, SETTINGS, evaluated

from evaluation import decisions, evaluate, material_table
from evaluation.judge_pool import JudgePool, cache_key
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR


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


def comparable(evaluation):
    rows = [{**dataclasses.asdict(row), "seconds": 0} for row in evaluation.rows]
    return json.dumps([rows, [dataclasses.asdict(m) for m in evaluation.aggregates.values()]])


def test_result_depends_on_neither_order_nor_workers(tmp_path):
    structures = {f"x{k}": simple.sheet(a=3.0 + 0.05 * k) for k in range(4)} | {"bulk": simple.bulk_copper()}
    first = evaluated(tmp_path / "1", structures)
    second = evaluated(tmp_path / "2", dict(reversed(structures.items())), workers=2)
    assert comparable(first) == comparable(second)


def test_second_run_judges_nothing_again(tmp_path):
    calls: list[str] = []
    judges = simple.judges(potential=simple.Springs(calls=calls))
    structures = {"a": simple.sheet(), "copy_of_a": simple.sheet(), "b": simple.sheet("WS2")}
    first = evaluated(tmp_path, structures, judges)
    assert sorted(calls) == ["MoS2", "S2W"]
    second = evaluated(tmp_path, structures, judges)
    assert len(calls) == 2 and comparable(first) == comparable(second)
    assert [row.seconds for row in first.rows] == [row.seconds for row in second.rows]
    damaged = next((tmp_path / "out" / "cache").glob("*.json"))
    damaged.write_text('{"row": ')
    assert comparable(evaluated(tmp_path, structures, judges)) == comparable(first) and len(calls) == 3
    evaluated(tmp_path, structures, judges, dataclasses.replace(SETTINGS, max_steps=7))
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
        evaluated(tmp_path, structures, simple.judges(potential=Stopped(calls=calls)))
    assert not (tmp_path / "out" / "metrics.csv").exists()
    evaluation = evaluated(tmp_path, structures, simple.judges(potential=simple.Springs(calls=calls)))
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
    with JudgePool(simple.deadly_judges, simple.judges().identity, 1) as pool:
        evaluation = evaluate.evaluate(tmp_path / "cifs", pool, SETTINGS, tmp_path / "out", "ours")
    rows = {row.id: row for row in evaluation.rows}
    assert "worker process died" in rows["b"].status
    assert rows["a"].valid and rows["c"].valid
    assert len(list((tmp_path / "out" / "cache").glob("*.json"))) == 2


def test_score_is_the_row_of_the_set(tmp_path, monkeypatch):
    import evaluation as package

    monkeypatch.setattr(evaluate, "_judges_for", lambda overrides: (simple.judges(), SETTINGS))
    (row,) = evaluated(tmp_path, {"MoS2": simple.sheet()}).rows
    expected = {**dataclasses.asdict(row), "seconds": 0, "id": "", "source_file": ""}
    for given in (simple.sheet(), AseAtomsAdaptor.get_structure(simple.sheet()), tmp_path / "cifs" / "MoS2.cif"):
        found = package.score(given)
        assert found.pop("verdict") == decisions.verdict(row, SETTINGS) and row.hit is not None
        for name, value in {**found, "seconds": 0, "id": "", "source_file": ""}.items():
            assert value == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name
    broken = package.score(Atoms("H"))
    assert broken["verdict"] == "unreadable" and "no unit cell" in broken["status"]
    with pytest.raises(AttributeError):
        package.no_such_name  # noqa: B018


def test_table_has_one_line_per_material_the_best_first(tmp_path, capsys):
    ours = evaluated(tmp_path, {"a": simple.sheet("NbSe2"), "b": simple.sheet(), "c": simple.bulk_copper()})
    (tmp_path / "cifs" / "d.cif").write_text("data_x\n")
    ours = evaluate.evaluate(tmp_path / "cifs", simple.judges(), SETTINGS, tmp_path / "out", "ours")
    material_table.print_table(ours.rows, SETTINGS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["id", "formula"] and "eV/atom" in lines[1]
    assert [line.split()[:2] for line in lines[2:]] == [["b", "MoS2"], ["a", "NbSe2"], ["c", "Cu"], ["d", "–"]]
    assert lines[2].split()[3:9] == "0.05 +0.69 ± 0.30 corrected potential".split() and lines[2].split()[9] == "0.80"
    assert "no ΔG_H" in lines[3]
    assert "not 2D" in lines[4] and "unreadable: " in lines[5]
    material_table.print_table(ours.rows, SETTINGS, most=1)
    assert "and 3 more" in capsys.readouterr().out


def test_no_folder_and_no_cif_are_one_line(tmp_path):
    with pytest.raises(StageError, match="no folder of CIFs"):
        evaluate.find_cifs(tmp_path / "missing")
    with pytest.raises(StageError, match="no CIF in"):
        evaluate.find_cifs(tmp_path)


@processes.WATCHED
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
        "    print(*pool.workers.process_ids(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "run.py").write_text(script)
    paths = [str(PROJECT_DIR), str(PROJECT_DIR / "tests"), str(tmp_path / "cifs"), str(tmp_path / "out")]
    parent = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), *paths], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    processes.assert_ends(worker)
