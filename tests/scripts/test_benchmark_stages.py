"""The times of the stages."""

from __future__ import annotations

import json
import sys

import pytest

from pipeline.errors import StageError
from scripts import benchmark_stages

MAKEFILE = """run:
\t$(PY) -m pip install nothing
\t$(PY) -c 'import time; time.sleep(0.3)' output_dir=$(OUT)/x
\t$(PY) -c 'sum(range(4_000_000))' generation.scale=0
\t@echo "open $(OUT)"
broken:
\t$(PY) -c 'raise SystemExit(3)'
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Makefile").write_text(MAKEFILE)
    return tmp_path


def test_the_commands_are_those_of_the_makefile(folder, tmp_path):
    first, second = benchmark_stages.commands("run", tmp_path / "out", folder)
    assert first == [sys.executable, "-c", "import time; time.sleep(0.3)", f"output_dir={tmp_path}/out/x"]
    assert benchmark_stages.label(first) == "-c import time; time.sleep(0.3)"
    assert benchmark_stages.label(second).endswith("generation.scale=0"), "a setting that changes what is computed"
    with pytest.raises(StageError, match=r"make nowhere: .*nowhere"):
        benchmark_stages.commands("nowhere", tmp_path / "out", folder)


def test_waiting_is_no_work_of_the_processor(folder, tmp_path):
    waits, works = (benchmark_stages.measure(c, folder) for c in benchmark_stages.commands("run", tmp_path / "out", folder))
    assert waits["seconds"] >= 0.3 and waits["seconds"] > waits["processor_seconds"] and works["processor_seconds"] > 0
    with pytest.raises(StageError, match="ended with status 3"):
        benchmark_stages.measure(benchmark_stages.commands("broken", tmp_path / "out", folder)[0], folder)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are children that the stage waits for")
def test_the_work_of_processes_that_a_command_does_not_wait_for_counts(tmp_path):
    works = "import time; end = time.process_time() + 0.8\nwhile time.process_time() < end: pass"
    leaves = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {works!r}])"
    assert benchmark_stages.measure([sys.executable, "-c", leaves], tmp_path)["processor_seconds"] > 0.7


def test_the_table_keeps_the_other_target(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_stages, "commands", lambda target, out: [[sys.executable, "-c", "pass", target]])
    table = tmp_path / "stages.json"
    for target in ("run", "pipeline"):
        assert benchmark_stages.main([target, "--out", str(tmp_path / target), "--output", str(table)]) == 0
    found = json.loads(table.read_text())
    assert set(found) == {"run", "pipeline"} and found["run"]["stages"][0]["command"] == "-c pass run"
    assert found["run"]["seconds"] == found["run"]["stages"][0]["seconds"]
    (tmp_path / "run").mkdir()
    assert benchmark_stages.main(["run", "--out", str(tmp_path / "run"), "--output", str(table)]) == 1
    assert "would be taken over" in capsys.readouterr().err and json.loads(table.read_text()) == found


def test_make_knows_both_targets(tmp_path):
    ran = benchmark_stages.commands("run", tmp_path / "out")
    trained = benchmark_stages.commands("pipeline", tmp_path / "out")
    assert [command[1] for command in ran] == ["structure_generator.py"] * 2 + ["test.py", "evaluate_external.py"]
    assert [benchmark_stages.label(command).split()[0] for command in trained][:4] == [
        "pretrain_dimenet.py",
        "material_dataset.py",
        "scripts.pretrain_csllm",
        "optimization.py",
    ]
    assert all(f"run.output_dir={tmp_path}/out" in command for command in (*ran, *trained))
