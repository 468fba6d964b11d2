"""Starts a script in this process, for tests of what it refuses: a process of its own takes seconds to import its packages."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass

import pytest

from pipeline.files import PROJECT_DIR


@dataclass(frozen=True)
class Ended:
    """How a script ended: its exit code, what it wrote, and the messages that it logged."""

    returncode: int
    stdout: str
    stderr: str
    messages: list[str]

    def said_in_one_line(self) -> bool:
        """Return whether one line on stderr is all that a user sees."""
        return len(self.stderr.strip().splitlines()) == 1 and not self.messages


class Starter:
    """Starts scripts of the project."""

    def __init__(self, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.caplog, self.monkeypatch = capsys, caplog, monkeypatch

    def __call__(self, script: str, *arguments: str) -> Ended:
        """Run a script (its path in the project) to its end."""
        path = str(PROJECT_DIR / script)
        self.monkeypatch.setattr(sys, "argv", [path, *arguments])
        self.caplog.clear()
        self.capsys.readouterr()
        with self.caplog.at_level("INFO"), pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
        written = self.capsys.readouterr()
        return Ended(int(ended.value.code or 0), written.out, written.err, [record.getMessage() for record in self.caplog.records])
