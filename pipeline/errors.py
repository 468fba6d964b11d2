"""Settings, seeding and provenance shared by every stage.

Every script is called the same way::

    python STAGE.py [--config config.yaml] [section.key=value ...]

Settings are frozen dataclasses, one per section. Values come from the defaults below, then ``config.yaml``, then the command
line; an unknown key, a wrong type or an impossible value ends the program with one line and exit code 2 before any work starts.
Relative paths in ``config.yaml`` are relative to that file; relative paths on the command line are relative to the working folder.
"""

from __future__ import annotations


class StageError(Exception):
    """A failure the user can mend; shown as one line, exit code 1."""


class ConfigError(StageError):
    """A setting that cannot be used; shown as one line, exit code 2."""


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.partition(":")[2].strip() for line in lines if line.startswith("full_key:")), "")
    first = lines[0] if lines else type(error).__name__
    return f"{key}: {first}" if key else first
