"""Keeps what relaxations with a potential gave, so that no structure is relaxed twice.

A record depends on the structure, the weights of the potential and the limits of the relaxation, and on nothing that is learnt from
DFT. So judges whose correction or DimeNet++ is fitted anew say what they think of sheets that were judged before within seconds,
and a sheet that the prefilter has relaxed is not relaxed again by stage 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ase import Atoms

from pipeline.memory import Memory

VERSION = 2  # raised whenever a relaxation of the same structure gives something else


def recall(
    memory: Memory,
    question: str,
    asked_of: Mapping[str, Any],
    atoms: Atoms,
    find: Callable[[], dict[str, Any]],
    holds: Callable[[Mapping[str, Any]], bool] = lambda record: True,
) -> dict[str, Any]:
    """Return the record of a question about a structure; one that is missing is found and kept.

    Args:
        memory: where records are kept.
        question: what is asked, such as "relaxation".
        asked_of: what else the answer depends on: the potential, limits.
        atoms: the structure; its tags count.
        find, holds: as for ``Memory.answer``.
    """
    return memory.answer({"version": VERSION, "question": question, **asked_of, "structure": plain(atoms)}, find, holds)


def plain(atoms: Atoms) -> dict[str, Any]:
    """Return the keyword arguments of ``ase.Atoms``, tags among them, as plain Python values (Å)."""
    arrays = {**atoms.todict(), "tags": atoms.get_tags()}
    return {name: np.asarray(arrays[name]).tolist() for name in ("numbers", "positions", "cell", "pbc", "tags")}
