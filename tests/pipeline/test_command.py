"""The command ``her2d``: which stage a name stands for, and that an installation has what the stages need."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from pipeline import command
from pipeline.files import PROJECT_DIR

ABOUT = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text(encoding="utf-8"))


def start(*arguments: str) -> subprocess.CompletedProcess:
    code = "from pipeline.command import main; raise SystemExit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=PROJECT_DIR, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["evaluate_external", "evaluate-external", "evaluate_external.py"])
def test_a_stage_is_run_as_its_script(name):
    done = start(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith("Stage 6") and "external.cif_dir" in done.stdout


def test_what_is_no_stage_is_one_line():
    done = start("bake")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "bake" in done.stderr
    shown = start("--help")
    assert shown.returncode == 0 and all(stage in shown.stdout for stage in command.STAGES)


def test_an_installation_writes_below_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "PROJECT_DIR", tmp_path)
    assert command.command_line(["test", "run.seed=1"])[1:] == [
        str(tmp_path / "test.py"),
        "run.output_dir=results/run",
        "run.seed=1",
    ]
    assert command.command_line(["test", "--config", "my.yaml"])[2:] == ["--config", "my.yaml"]


def test_every_package_script_and_file_is_installed():
    """What git keeps of code, weights and data is in the lists of pyproject.toml."""
    tools = ABOUT["tool"]["setuptools"]
    packages = {path.parent.name for path in PROJECT_DIR.glob("*/__init__.py")} - {"tests"}
    assert set(tools["packages"]) == packages
    installed = {path for patterns in tools["data-files"].values() for p in patterns for path in PROJECT_DIR.glob(p)}
    scripts = {PROJECT_DIR / f"{stage}.py" for stage in command.STAGES}
    assert scripts | {PROJECT_DIR / f"{name}.py" for name in tools["py-modules"]} == set(PROJECT_DIR.glob("*.py"))
    listed = subprocess.run(["git", "ls-files", "data", "weights", "config.yaml"], cwd=PROJECT_DIR, capture_output=True, text=True)
    needed = {PROJECT_DIR / name for name in listed.stdout.split("\n") if name and (PROJECT_DIR / name).is_file()}
    assert needed | scripts <= installed
    for folder, patterns in tools["data-files"].items():
        for path in (path for p in patterns for path in PROJECT_DIR.glob(p)):
            assert f"share/her2d/{path.parent.relative_to(PROJECT_DIR).as_posix()}".removesuffix("/.") == folder
