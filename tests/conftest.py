"""Order of the tests: files with slow tests come first, so that processes side by side end together. One thread, no figures."""

from __future__ import annotations

import os

import pytest
from started_here import Starter
from undrawn import leave_figures_undrawn

from pipeline import cli

LONGEST = (
    "test_end_to_end.py",
    "test_notebook.py",
    "test_potential_labels.py",
    "test_prepare_demo_data.py",
    "test_pretrain_dimenet.py",
    "test_optimization.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort whole files: the longest first, then those with slow tests; the order within a file stays."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[int, str]:
        name = item.path.name
        return (LONGEST.index(name) if name in LONGEST else 10 if item.path in slow else 20), str(item.path)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def threads_as_the_environment_says():
    """Let stages that run here take OMP_NUM_THREADS for the CPUs: threads of processes side by side wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        if cpus := os.environ.get("OMP_NUM_THREADS"):
            patch.setattr(cli, "cpu_count", lambda: int(cpus))
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures of one test undrawn."""
    leave_figures_undrawn(monkeypatch)


@pytest.fixture(scope="module")
def undrawn_module():
    """Leave the figures of a module's fixtures and tests undrawn."""
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_undrawn(patch)
        yield


@pytest.fixture
def start_here(capsys, caplog, monkeypatch):
    """Start scripts in this process."""
    return Starter(capsys, caplog, monkeypatch)
