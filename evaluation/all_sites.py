"""Relaxes H at every site of the candidates that come first, so that none of them is first because a better site was missed.

At first the potential relaxes H at the sites that DimeNet++ calls the best. A site that binds H more firmly may be another one, and
then ΔG_H is lower than it seemed. What comes first after that may be candidates that were not asked yet, and so on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ase import Atoms

from energetics.potential_adsorption import hydrogen_at_best_sites
from energetics.potential_loading import without_paths
from evaluation import near_hull
from evaluation.candidate import JUDGED_SETTINGS, JUDGEMENT_VERSION, CandidateResult
from evaluation.decisions import choose_delta_g, decide, rank
from evaluation.judge_pool import JudgePool
from evaluation.judging import Judges, potential_hydrogen
from pipeline.settings import EvaluationConfig
from pipeline.store import FolderStore

QUESTION = near_hull.ALL_SITES
ALL_SITES_VERSION = 1  # increased whenever the meaning of a stored result changes
MOST_ROUNDS = 4  # of candidates that move up because others went down


def mark_all_sites(
    rows: Sequence[CandidateResult],
    structures: Mapping[str, Atoms],
    judges: Judges | JudgePool,
    settings: EvaluationConfig,
    store: FolderStore | None = None,
) -> None:
    """Set ΔG_H by the potential, and what follows from it, of the first rows from all sites of theirs.

    Args:
        rows: judged and decided; they are decided anew.
        structures: id -> structure as judged.
        judges: used in this process, or a pool.
        settings: limits and switches of the evaluation; ``all_sites`` says how many rows.
        store: of the answers; None keeps nothing.
    """
    done: set[str] = set()
    for _ in range(MOST_ROUNDS):
        first = [row for row in rank(rows, settings.all_sites) if row.id not in done and is_asked(row, settings)]
        first = [row for row in first if row.id in structures]
        if not first:
            return
        keyed = {row.id: (all_sites_key(structures[row.id], judges.identity, settings), structures[row.id]) for row in first}
        answers = near_hull.ask(QUESTION, partial(_relax_everywhere, settings), keyed, judges, store)
        for row in first:
            if near_hull.note_problem(row, QUESTION, answers[row.id]):
                _take(row, answers[row.id])
        decide(rows, settings)
        done.update(row.id for row in first)


def is_asked(row: CandidateResult, settings: EvaluationConfig) -> bool:
    """Return whether a row has sites that the potential has not been asked about, and may be a hit."""
    judged = math.isfinite(row.delta_g_h_potential_ev) and row.h_n_sites > settings.potential_h_sites
    return settings.all_sites > 0 and judged and row.p_hit > 0  # False where it is NaN


def all_sites_key(atoms: Atoms, identity: Mapping[str, Any], settings: EvaluationConfig) -> str:
    """Return the key of the answer of a structure. identity: of the judges, all of which have a part in it."""
    judges = json.dumps(without_paths(identity), sort_keys=True, default=str)
    about = {"question": QUESTION, "version": [ALL_SITES_VERSION, JUDGEMENT_VERSION], "judges": judges}
    about |= {name: getattr(settings, name) for name in JUDGED_SETTINGS}
    return near_hull.question_key(about, atoms, identity)


def _relax_everywhere(settings: EvaluationConfig, judges: Judges, task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the potential fills, from H at every site."""
    found = judges.her.predict_sheet(Atoms(**task), judges.dataset, judges.potential.band_gap)
    at_sites = hydrogen_at_best_sites(judges.potential, found, len(found.sites))
    fields, problem = potential_hydrogen([h for _, h in at_sites], judges.dataset.her_correction_ev)
    if problem:
        raise ValueError(problem)
    return fields


def _take(row: CandidateResult, answer: Mapping[str, Any]) -> None:
    """Write the fields of an answer, where null is a missing number, and what follows from them to a row."""
    for name, value in answer.items():
        if name not in near_hull.NEEDED:
            setattr(row, name, math.nan if value is None else value)
    choose_delta_g(row)
