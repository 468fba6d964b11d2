"""Marks which candidates are dynamically stable: phonons of the sheets that are near enough to the hull."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ase import Atoms

from energetics.dynamics_model import DynamicsModel, load_dynamics_model
from evaluation import near_hull
from evaluation.candidate import CandidateResult, atoms_to_dict
from evaluation.judge_pool import JudgePool
from evaluation.judging import Judges
from pipeline.settings import EvaluationConfig
from pipeline.store import FolderStore

log = logging.getLogger("her2d")
QUESTION = near_hull.PHONONS
P_STABLE = 0.5
DYNAMICS_VERSION = 1  # increased whenever the meaning of a stored result changes


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
    if model is not None and model.potential != near_hull.potential_of(judges.identity).get("name"):
        log.info("phonons alone decide: the learnt part belongs to %s", model.potential)
        model = None
    asked = {row.id: structures[row.id] for row in rows if row.id in structures and is_asked(row, settings)}
    keyed = {name: (phonon_key(atoms, judges.identity), atoms) for name, atoms in asked.items()}
    answers = near_hull.ask(QUESTION, _phonons, keyed, judges, store)
    leads = {}
    for row in rows:
        if row.id not in answers or not near_hull.note_problem(row, QUESTION, answers[row.id]):
            continue
        _write(row, answers[row.id])
        if model is not None:
            _add_learnt(row, structures[row.id], model)
        if answers[row.id]["distorted"] and row.distorted_stable:
            leads[row.id] = Atoms(**answers[row.id]["distorted"])
    return leads


def is_asked(row: CandidateResult, settings: EvaluationConfig) -> bool:
    """Return whether phonons are computed."""
    return settings.phonons and near_hull.is_near_hull(row, settings)


def phonon_key(atoms: Atoms, identity: Mapping[str, Any]) -> str:
    """Return the key of the phonons of a structure. identity: of the judges."""
    return near_hull.question_key({"version": DYNAMICS_VERSION}, atoms, identity)


def _phonons(judges: Judges, task: Mapping[str, Any]) -> dict[str, Any]:
    found = judges.potential.dynamic_stability(Atoms(**task))
    values = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    values |= {name: atoms_to_dict(values[name]) for name in ("sheet", "distorted")}
    return {**values, "q": list(found.q)}


def _write(row: CandidateResult, answer: Mapping[str, Any]) -> None:
    """Write an answer into the fields of a row."""
    number = partial(near_hull.number, answer)
    row.dynamically_stable = bool(answer["stable"])
    row.min_hessian_ev_per_a2, row.min_phonon_thz = number("min_hessian"), number("min_thz")
    row.stiffness_min_n_per_m = number("stiffness_min")
    row.distortion_gain_ev, row.distorted_stable = number("gain"), answer["distorted_stable"]


def _add_learnt(row: CandidateResult, atoms: Atoms, model: DynamicsModel) -> None:
    """Set the probability of a row, and the verdict by it where the model knows the elements."""
    try:
        row.p_dynamic = model.probability(atoms, row.e_above_hull_ev, row.min_hessian_ev_per_a2)
    except ValueError as error:  # no descriptors
        log.debug("%s: %s", row.id, error)
        return
    if not math.isnan(row.p_dynamic):
        row.dynamically_stable = row.p_dynamic >= P_STABLE
