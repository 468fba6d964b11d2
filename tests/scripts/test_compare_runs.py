"""Two runs are compared by their verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.candidate import CandidateResult
from evaluation.result_files import write_table
from scripts import compare_runs


def candidate(name: str, delta_g: float | None = 0.05, hit: bool = True, p_hit: float = 0.5) -> CandidateResult:
    row = CandidateResult(id=name, source_file=f"{name}.cif")
    row.formula, row.delta_g_ev, row.e_above_hull_ev, row.hit, row.p_hit = "MoS2", delta_g, 0.02, hit, p_hit
    return row


@pytest.fixture
def runs(tmp_path) -> tuple[Path, Path]:
    """Two runs: of the candidates a to d the second has no d, another verdict of b and another ΔG_H of c; its a is another file."""
    first = [candidate("a"), candidate("b"), candidate("c", 0.3, False, 0.1), candidate("d")]
    second = [candidate("a", 0.055), candidate("b", hit=False), candidate("c", None, False, 0.0)]
    for name, rows in (("first", first), ("second", second)):
        folder = tmp_path / name
        (folder / "generated_cifs").mkdir(parents=True)
        write_table(rows, folder / "metrics.csv")
        for row in rows:
            (folder / "generated_cifs" / row.source_file).write_text(name if row.id == "a" else row.id)
    for name in ("first", "second"):
        (tmp_path / name / "controls" / "known").mkdir(parents=True)
        write_table([candidate("MoS2", 1.8, False)], tmp_path / name / "controls" / "known" / "metrics.csv")
    return tmp_path / "first", tmp_path / "second"


def test_what_differs_is_named(runs, tmp_path, capsys):
    output = tmp_path / "found.json"
    assert compare_runs.main([*map(str, runs), "--output", str(output), "--about", "two machines"]) == 1
    said = capsys.readouterr().out
    assert "  b MoS2: hit true and false\n" in said and "  c MoS2: ΔG_H 0.3 and None eV\n" in said
    found = json.loads(output.read_text())["two machines"]["tables"]
    assert set(found) == {"metrics.csv", "controls/known/metrics.csv"}
    ours = found["metrics.csv"]
    assert (ours["candidates"], ours["in_both"], ours["same_files"]) == ([4, 3], 3, 2)
    assert ours["verdicts_that_differ"] == [{"id": "b", "formula": "MoS2", "verdict": "hit", "first": "true", "second": "false"}]
    assert [row["id"] for row in ours["delta_g_that_differs"]] == ["c"], "5 meV are no difference"
    assert ours["hits_to_expect"] == [pytest.approx(1.6), pytest.approx(1.0)]
    assert found["controls/known/metrics.csv"]["verdicts_that_differ"] == []


def test_another_candidate_of_the_same_name_has_no_counterpart(runs, capsys):
    other = candidate("a")
    other.formula = "WS2"
    write_table([other, candidate("b")], runs[1] / "metrics.csv")
    assert compare_runs.main([*map(str, runs)]) == 1
    assert "metrics.csv: 1 candidates in both (of 4 and 2)" in capsys.readouterr().out


def test_equal_runs_end_with_0_and_the_file_keeps_other_comparisons(runs, tmp_path):
    output = tmp_path / "found.json"
    output.write_text('{"before": 1}')
    assert compare_runs.main([str(runs[0]), str(runs[0]), "--output", str(output)]) == 0
    assert set(json.loads(output.read_text())) == {"before", "two runs"}


def test_what_is_no_run_is_named(runs, tmp_path, capsys):
    assert compare_runs.main([str(runs[0]), str(tmp_path / "nowhere")]) == 2
    assert "hold no metrics.csv at the same place" in capsys.readouterr().err
    (runs[1] / "metrics.csv").write_text("id,formula\na,MoS2\n")
    assert compare_runs.main([*map(str, runs)]) == 2
    assert "second/metrics.csv is no metrics.csv of this version" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "said"), [("{", "is no JSON"), ("[1]", "holds no comparisons"), (b"\xff", "is no JSON")])
def test_a_file_that_is_no_comparison_stays_as_it_is(runs, tmp_path, capsys, content, said):
    output = tmp_path / "found.json"
    output.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = output.read_bytes()
    assert compare_runs.main([str(runs[0]), str(runs[0]), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and output.read_bytes() == before


def test_two_rows_of_one_candidate_and_a_folder_as_output_are_named(runs, tmp_path, capsys):
    assert compare_runs.main([str(runs[0]), str(runs[0]), "--output", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    write_table([candidate("a"), candidate("a")], runs[1] / "metrics.csv")
    assert compare_runs.main([*map(str, runs)]) == 2
    assert "second/metrics.csv is no metrics.csv of this version" in capsys.readouterr().err
