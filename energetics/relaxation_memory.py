"""Keeps what relaxations with a potential gave, so that no structure is relaxed twice.

A record depends on the structure, the weights of the potential and the limits of the relaxation, and on nothing that is learnt from
DFT. So judges whose correction or DimeNet++ is fitted anew say what they think of sheets that were judged before within seconds,
and a sheet that the prefilter has relaxed is not relaxed again by stage 5.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from pipeline.errors import StageError
from pipeline.files import relative_name
from pipeline.store import FolderStore

log = logging.getLogger("her2d")

VERSION = 1  # raised whenever a relaxation of the same structure gives something else


class RelaxationMemory:
    """Records of relaxations in a folder, which several processes may share.

    Args:
        folder: one JSON file per record, below a folder of two hexadecimal digits; None keeps nothing.

    Raises:
        StageError: the folder cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder, self._has_warned = folder, False
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StageError(
                    f"evaluation.relaxed_dir: {relative_name(folder)} cannot be made ({error.strerror}); empty keeps nothing"
                ) from error

    def recall(
        self,
        question: str,
        asked_of: Mapping[str, Any],
        atoms: Atoms,
        find: Callable[[], dict[str, Any]],
        holds: Callable[[Mapping[str, Any]], bool] = lambda record: True,
    ) -> dict[str, Any]:
        """Return the record of a question about a structure; one that is missing is found and kept.

        An answer that cannot be kept, because the disk is full, is an answer all the same; a warning says so once.

        Args:
            question: what is asked, such as "relaxation".
            asked_of: what else the answer depends on: the potential, limits.
            atoms: the structure; its tags count.
            find: finds the answer, as JSON can hold it.
            holds: whether a record that is there answers the question.

        Returns:
            What ``find`` returned, NaN as None.
        """
        if self.folder is None:
            return find()
        content = {"version": VERSION, "question": question, **asked_of, "structure": plain(atoms)}
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        store = FolderStore(self.folder / key[:2])
        if key in store and holds(record := store[key]):
            return record
        found = find()
        try:
            return store.add(key, found)
        except OSError as error:
            if not self._has_warned:
                log.warning("%s: relaxations are not kept (%s)", relative_name(self.folder), error.strerror)
                self._has_warned = True
            return found


def plain(atoms: Atoms) -> dict[str, Any]:
    """Return the keyword arguments of ``ase.Atoms``, tags among them, as plain Python values (Å)."""
    arrays = {**atoms.todict(), "tags": atoms.get_tags()}
    return {name: np.asarray(arrays[name]).tolist() for name in ("numbers", "positions", "cell", "pbc", "tags")}
