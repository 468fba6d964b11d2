"""Keeps answers to questions that cost seconds, by a hash of all that they depend on, so that no process finds one twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.files import relative_name
from pipeline.store import FolderStore

log = logging.getLogger("her2d")


class Memory:
    """Answers in a folder, which several processes may share.

    Args:
        folder: one JSON file per answer, below a folder of two hexadecimal digits; None keeps nothing.
        also: folders of such files, directly in them, in which an answer may be found that is not in ``folder``; nothing is
            written there.

    Raises:
        StageError: the folder cannot be made.
    """

    def __init__(self, folder: Path | None, also: Sequence[Path] = ()) -> None:
        self.folder, self.also, self._has_warned = folder, tuple(also), False
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StageError(
                    f"evaluation.relaxed_dir: {relative_name(folder)} cannot be made ({error.strerror}); empty keeps nothing"
                ) from error

    def answer(
        self,
        question: Mapping[str, Any],
        find: Callable[[], dict[str, Any]],
        holds: Callable[[Mapping[str, Any]], bool] = lambda record: True,
    ) -> dict[str, Any]:
        """Return the answer to a question; one that is missing is found and kept.

        An answer that cannot be kept, because the disk is full, is an answer all the same; a warning says so once.

        Args:
            question: all that the answer depends on, as JSON can hold it; a version in it is raised when it is found otherwise.
            find: finds the answer, as JSON can hold it.
            holds: whether a record that is there answers the question.

        Returns:
            What ``find`` returned, NaN as None.
        """
        if self.folder is None:
            return find()
        key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
        store = FolderStore(self.folder / key[:2], also=self.also)
        if key in store and holds(record := store[key]):
            return record
        found = find()
        try:
            return store.add(key, found)
        except OSError as error:
            if not self._has_warned:
                log.warning("%s: answers are not kept (%s)", relative_name(self.folder), error.strerror)
                self._has_warned = True
            return found


NO_MEMORY = Memory(None)
