"""Stages 5 and 6 as a user starts them: what is missing is said in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
import simple_judges as simple

from pipeline.files import PROJECT_DIR

SCRIPTS = {"test.py": "evaluation.cif_dir", "evaluate_external.py": "external.cif_dir"}


def start(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROJECT_DIR / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_cifs_is_one_line(script, tmp_path, start_here):
    done = start_here(script, f"{SCRIPTS[script]}={tmp_path / 'missing'}", f"run.output_dir={tmp_path}")
    assert done.returncode == 1 and "no folder of CIFs" in done.stderr and done.said_in_one_line()


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_weights_is_one_line(script, tmp_path, start_here):
    simple.write_cifs(tmp_path / "cifs", {"a": simple.sheet()})
    done = start_here(
        script,
        f"{SCRIPTS[script]}={tmp_path / 'cifs'}",
        f"run.output_dir={tmp_path / 'results'}",
        f"external.output_dir={tmp_path / 'results_external'}",
        f"dimenet.checkpoint={tmp_path / 'none.pth'}",
    )
    assert done.returncode == 1 and "dimenet.checkpoint" in done.stderr and "pretrain_dimenet.py" in done.stderr
    assert done.said_in_one_line()
    assert not (tmp_path / "results").exists() and not (tmp_path / "results_external").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_unknown_keys(script):
    shown = start(script, "--help")
    assert shown.returncode == 0 and "evaluation.potential" in shown.stdout
    refused = start(script, "evaluation.no_such_key=1")
    assert refused.returncode == 2 and len(refused.stderr.strip().splitlines()) == 1


def test_reserved_external_name_is_refused(tmp_path, start_here):
    done = start_here("evaluate_external.py", "external.name=ours", f"external.cif_dir={tmp_path}")
    assert done.returncode == 2 and "external.name" in done.stderr
