"""Says which of the processes that ``torchrun`` has started this one is, from the variables that it sets.

Without ``torchrun`` a process is the first of one. Other launchers set variables of the same names: only with torchrun's own beside
them do they count. Imports nothing but the standard library, because every stage asks.
"""

from __future__ import annotations

import os


def is_used() -> bool:
    """Return whether ``torchrun`` has started this process, alone or with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _number(name: str, default: int) -> int:
    return int(os.environ[name]) if is_used() and name in os.environ else default


def rank() -> int:
    """Return the number of this process, from 0."""
    return _number("RANK", 0)


def world_size() -> int:
    """Return the number of processes on all machines."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return the number of this process among those of its machine, from 0."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Return the number of processes of this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def is_first() -> bool:
    """Return whether this is the process that writes files, logs, progress bars and figures."""
    return rank() == 0
