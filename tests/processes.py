"""Watches processes that a test did not start itself."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

WATCHED = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")


def assert_ends(pid: int, seconds: float = 10.0) -> None:
    """Wait for the end of a process; fail, and kill it, where it runs on."""
    for _ in range(int(seconds * 10)):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail(f"process {pid} runs on after {seconds:g} s")
