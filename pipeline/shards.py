"""Names the parts of a stage that is split: the settings ``evaluation.shard`` and ``generation.shard``.

``3/8`` is the third of eight parts, which runs in a folder of its own, on any machine. ``merge/8`` is the run that puts the eight
parts together. What belongs to a part depends on its names or numbers alone, so that every process finds the same.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = "shards"
MERGE = "merge"
HINT = "choose i/n with i from 1 to n, such as 3/8, merge/n to put the parts together, or nothing for the whole stage"


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts, ``number`` from 1; number 0 is the run that merges them."""

    number: int
    count: int

    @property
    def merges(self) -> bool:
        """Whether this is the run that puts the parts together."""
        return self.number == 0

    def __str__(self) -> str:
        return f"{self.number or MERGE}/{self.count}"

    def parts(self) -> list[Shard]:
        """Return all parts."""
        return [Shard(number, self.count) for number in range(1, self.count + 1)]

    def has_name(self, name: str) -> bool:
        """Tell whether something belongs to this part by its name, whatever else there is."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def has_index(self, index: int) -> bool:
        """Tell whether something belongs to this part by its number from 0."""
        return index % self.count == self.number - 1

    def folder(self, root: Path) -> Path:
        """Return the folder of this part below that of the stage."""
        return root / FOLDER / f"{self.number}_of_{self.count}"


def read_shard(text: str) -> Shard | None:
    """Read a setting; None for the whole stage.

    Raises:
        ValueError: it names no part.
    """
    if not text:
        return None
    match = re.fullmatch(rf"({MERGE}|[0-9]{{1,6}})/([0-9]{{1,6}})", text)
    if match is None:
        raise ValueError(HINT)
    number, count = 0 if match[1] == MERGE else int(match[1]), int(match[2])
    if count < 1 or number > count or (number == 0 and match[1] != MERGE):
        raise ValueError(HINT)
    return Shard(number, count)
