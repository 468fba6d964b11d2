"""Random generators that are functions of a key, so that a resumed run needs no state of theirs."""

from __future__ import annotations

import hashlib

import torch


def seeded_generator(*key: int | str) -> torch.Generator:
    """Return a random generator on the CPU that is a function of the key."""
    digest = hashlib.sha256(",".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
