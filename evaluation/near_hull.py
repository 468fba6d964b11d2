"""Asks about some sheets, such as those near the hull, what costs too much to ask of all.

It comes after the judgement of a candidate, which stores its record without it. So records of earlier runs keep their keys. Each
question has a store of its own, in a folder of its name beside them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ase import Atoms
from tqdm import tqdm

from energetics.potential_loading import without_paths
from evaluation.candidate import CandidateResult, atoms_to_dict
from evaluation.judge_pool import JudgePool
from evaluation.judging import Judges
from pipeline.settings import EvaluationConfig
from pipeline.store import FolderStore
from pipeline.tasks import Serial, run

PHONONS, EXFOLIATION, ALL_SITES = QUESTIONS = ("phonons", "exfoliation", "all_sites")
NEEDED = ("problem", "seconds")


def is_near_hull(row: CandidateResult, settings: EvaluationConfig) -> bool:
    """Return whether it is a valid sheet that is one when relaxed, near the hull, and not too large."""
    near = row.e_above_hull_ev <= settings.phonon_max_e_hull_ev  # False where it is NaN
    small = row.natoms <= settings.phonon_max_atoms
    return row.is_sheet and row.valid is True and row.sheet_relaxed is True and near and small


def potential_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of the potential of the judges alone, without what its ΔE_H is corrected with."""
    return {k: v for k, v in identity.get("potential", {}).items() if k in ("name", "version", "path", "sha256")}


def question_key(about: Mapping[str, Any], atoms: Atoms, identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the structure, the potential (its weights, not their paths) and what else an answer depends on."""
    content = {**about, "potential": without_paths(potential_of(identity)), "structure": atoms_to_dict(atoms)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def answers_store(name: str, folder: Path, also: Sequence[Path] = ()) -> FolderStore:
    """Open the store of the answers to a question in a folder of judged candidates. also: such folders of earlier runs."""
    return FolderStore(folder / name, check=_check, also=[path / name for path in also])


def _check(record: Mapping[str, Any]) -> None:
    for name in NEEDED:
        record[name]


def ask(
    name: str,
    question: Callable[[Judges, Mapping[str, Any]], dict[str, Any]],
    structures: Mapping[str, tuple[str, Atoms]],
    judges: Judges | JudgePool,
    store: FolderStore | None,
) -> dict[str, dict[str, Any]]:
    """Ask a question about sheets, where the store has no answer.

    Args:
        name: of the question, for the progress bar.
        question: judges, arguments of ``ase.Atoms`` -> plain values; pickled to workers.
        structures: id -> (key, structure).
        judges: used in this process, or a pool.
        store: of the answers; None keeps nothing.

    Returns:
        id -> answer with "problem", empty where there is none, and "seconds".
    """
    tasks = {key: atoms_to_dict(atoms) for key, atoms in structures.values()}
    where = judges.workers if isinstance(judges, JudgePool) else Serial(lambda: judges)
    answers = {key: store[key] for key in tasks if store is not None and key in store}
    missing = {key: task for key, task in tasks.items() if key not in answers}
    finished = run(partial(_attempt, question), missing, store, where, if_lost=_lost)
    for key, answer in tqdm(finished, total=len(missing), desc=name, unit="sheet", disable=not missing or store is None):
        answers[key] = answer
    return {identifier: answers[key] for identifier, (key, _) in structures.items()}


def _attempt(question: Callable[..., dict[str, Any]], judges: Judges, task: Mapping[str, Any]) -> dict[str, Any]:
    """Ask about one sheet; a failure is an answer too."""
    started = time.perf_counter()
    answer: dict[str, Any] = {"problem": ""}
    try:
        answer |= question(judges, task)
    except Exception as error:  # a judge may fail in any way; the row names it and the run goes on
        answer["problem"] = " ".join(f"{type(error).__name__} {error}".split())[:120]
    return answer | {"seconds": time.perf_counter() - started}


def _lost(_: Mapping[str, Any]) -> dict[str, Any]:
    return {"problem": "the worker process died (out of memory?)", "seconds": 0.0}


def note_problem(row: CandidateResult, name: str, answer: Mapping[str, Any]) -> bool:
    """Add the seconds of an answer to a row, and its problem to the status; return whether there is none."""
    row.seconds += answer["seconds"]
    if answer["problem"]:
        problem = f"{name}: {answer['problem']}"
        row.status = problem if row.status == "ok" else f"{row.status}; {problem}"
    return not answer["problem"]


def number(answer: Mapping[str, Any], name: str) -> float:
    """Return a number of an answer, NaN where it is null."""
    return math.nan if answer[name] is None else float(answer[name])
