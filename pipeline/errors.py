"""Defines the failures that a user can mend. Each is shown as one line, without a traceback."""

from __future__ import annotations


class StageError(Exception):
    """A failure the user can mend; shown as one line, exit code 1."""

    of_one_rank = False  # whether the other processes of a training have not met it


class ConfigError(StageError):
    """A setting that cannot be used; shown as one line, exit code 2."""


class OtherRankError(StageError):
    """Another process of the training has failed and says why; this one ends without a word."""


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, with the setting that OmegaConf names in front of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.partition(":")[2].strip() for line in lines if line.startswith("full_key:")), "")
    first = lines[0] if lines else type(error).__name__
    return f"{key}: {first}" if key else first
