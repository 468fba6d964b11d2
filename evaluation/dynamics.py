"""Marks which candidates are dynamically stable: phonons of the sheets that are near enough to the hull.

They come after the judgement of a candidate, which stores its record without them. So records of earlier runs keep their keys, and
phonons have a store of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ase import Atoms
from tqdm import tqdm

from energetics.dynamics_model import DynamicsModel, load_dynamics_model
from energetics.potential_loading import without_paths
from evaluation.candidate import CandidateResult, atoms_to_dict
from evaluation.judge_pool import JudgePool
from evaluation.judging import Judges
from pipeline.settings import EvaluationConfig
from pipeline.store import FolderStore
from pipeline.tasks import Serial, run

log = logging.getLogger("her2d")
P_STABLE = 0.5
DYNAMICS_VERSION = 1  # increased whenever the meaning of a stored result changes
NEEDED = ("problem", "seconds")


def phonon_store(folder: Path, also: Sequence[Path] = ()) -> FolderStore:
    """Open the store of phonons in a folder of judged candidates. also: such folders of earlier runs."""
    return FolderStore(folder / "phonons", check=_check, also=[path / "phonons" for path in also])


def _check(record: Mapping[str, Any]) -> None:
    for name in NEEDED:
        record[name]


def mark_dynamics(
    rows: Sequence[CandidateResult],
    structures: Mapping[str, Atoms],
    judges: Judges | JudgePool,
    settings: EvaluationConfig,
    store: FolderStore | None = None,
) -> dict[str, Atoms]:
    """Set ``dynamically_stable`` and the numbers behind it of every row that ``is_asked``.

    Args:
        rows: judged, with their E_above_hull.
        structures: id -> structure as judged.
        judges: used in this process, or a pool.
        settings: limits and switches of the evaluation.
        store: of phonons; None keeps nothing.

    Returns:
        id -> stable sheet of lower symmetry to which an unstable candidate leads.
    """
    model = load_dynamics_model(settings.dynamics_checkpoint) if settings.phonons else None
    if model is not None and model.potential != _potential(judges.identity).get("name"):
        log.info("phonons alone decide: the learnt part belongs to %s", model.potential)
        model = None
    asked = {row.id: structures[row.id] for row in rows if row.id in structures and is_asked(row, settings)}
    keys = {name: phonon_key(atoms, judges.identity) for name, atoms in asked.items()}
    tasks = {keys[name]: atoms_to_dict(atoms) for name, atoms in asked.items()}
    where = judges.workers if isinstance(judges, JudgePool) else Serial(lambda: judges)
    records = {key: store[key] for key in tasks if store is not None and key in store}
    missing = {key: task for key, task in tasks.items() if key not in records}
    finished = run(_ask, missing, store, where, if_lost=_lost)
    for key, record in tqdm(finished, total=len(missing), desc="phonons", unit="sheet", disable=not missing or store is None):
        records[key] = record
    leads = {}
    for row in rows:
        if row.id in keys:
            record = records[keys[row.id]]
            _write(row, record)
            if model is not None and not record["problem"]:
                _add_learnt(row, structures[row.id], model)
            if record.get("distorted") and row.distorted_stable:
                leads[row.id] = Atoms(**record["distorted"])
    return leads


def is_asked(row: CandidateResult, settings: EvaluationConfig) -> bool:
    """Return whether phonons are computed: of a valid sheet that is one when relaxed, near the hull, and not too large."""
    near = row.e_above_hull_ev <= settings.phonon_max_e_hull_ev  # False where it is NaN
    small = row.natoms <= settings.phonon_max_atoms
    return settings.phonons and row.is_sheet and row.valid is True and row.sheet_relaxed is True and near and small


def _potential(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of the potential that computes phonons: the second where there is one."""
    found = identity.get("potential", {})
    return {k: v for k, v in found.get("second", found).items() if k in ("name", "version", "path", "sha256")}


def phonon_key(atoms: Atoms, identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the structure and of the potential (its weights, not their paths)."""
    about = {"version": DYNAMICS_VERSION, "potential": without_paths(_potential(identity)), "structure": atoms_to_dict(atoms)}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _ask(judges: Judges, task: Mapping[str, Any]) -> dict[str, Any]:
    """Ask for the phonons of one sheet; a failure is a record too."""
    started = time.perf_counter()
    record: dict[str, Any] = {"problem": ""}
    try:
        found = judges.potential.dynamic_stability(Atoms(**task))
        values = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
        values |= {name: atoms_to_dict(values[name]) for name in ("sheet", "distorted")}
        record |= {**values, "q": list(found.q)}
    except Exception as error:  # a judge may fail in any way; the row names it and the run goes on
        record["problem"] = " ".join(f"{type(error).__name__} {error}".split())[:120]
    return record | {"seconds": time.perf_counter() - started}


def _lost(_: Mapping[str, Any]) -> dict[str, Any]:
    return {"problem": "the worker process died (out of memory?)", "seconds": 0.0}


def _write(row: CandidateResult, record: Mapping[str, Any]) -> None:
    """Write a record into the fields of a row."""
    row.seconds += record["seconds"]
    if record["problem"]:
        problem = f"phonons: {record['problem']}"
        row.status = problem if row.status == "ok" else f"{row.status}; {problem}"
        return
    number = partial(_number, record)
    row.dynamically_stable = bool(record["stable"])
    row.min_hessian_ev_per_a2, row.min_phonon_thz = number("min_hessian"), number("min_thz")
    row.stiffness_min_n_per_m = number("stiffness_min")
    row.distortion_gain_ev, row.distorted_stable = number("gain"), record["distorted_stable"]


def _add_learnt(row: CandidateResult, atoms: Atoms, model: DynamicsModel) -> None:
    """Set the probability of a row, and the verdict by it where the model knows the elements."""
    try:
        row.p_dynamic = model.probability(atoms, row.e_above_hull_ev, row.min_hessian_ev_per_a2)
    except ValueError as error:  # no descriptors
        log.debug("%s: %s", row.id, error)
        return
    if not math.isnan(row.p_dynamic):
        row.dynamically_stable = row.p_dynamic >= P_STABLE


def _number(record: Mapping[str, Any], name: str) -> float:
    """Return a number of a record, NaN where it is null."""
    return math.nan if record[name] is None else float(record[name])
