"""Kills at random moments: a few here, and what is committed of the twenty of every stage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent / "kill_anywhere.py"
EVIDENCE = SCRIPT.with_suffix(".json")
STAGES = (
    "prepare_demo_data",
    "pretrain_dimenet",
    "material_dataset",
    "pretrain_csllm",
    "optimization",
    "structure_generator",
    "test",
    "evaluate_external",
)


@pytest.mark.slow
def test_a_stage_that_is_killed_ends_with_the_same_products(tmp_path):
    command = [sys.executable, str(SCRIPT), "--judges", "simple", "--kills", "2", "--stage", "structure_generator"]
    done = subprocess.run([*command, "--json", str(tmp_path / "found.json")], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    row = json.loads((tmp_path / "found.json").read_text())["structure_generator"]
    assert row["verdict"] == "identical" and row["kills"] == 2 and row["products_compared"] >= 5


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_was_killed_twenty_times(stage):
    row = json.loads(EVIDENCE.read_text(encoding="utf-8"))[stage]
    assert row["verdict"] == "identical" and row["kills"] >= 20 and row["workers_end_within_seconds"] < 5
    assert len(row["killed_at_share_of_the_run"]) == row["kills"]
    assert set(row["disk"]) == {"full", "nearly full", "read-only", "limited"}
