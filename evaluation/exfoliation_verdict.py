"""Marks what it costs to peel the candidates near the hull off a crystal of their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ase import Atoms

from evaluation import near_hull
from evaluation.candidate import CandidateResult
from evaluation.judge_pool import JudgePool
from evaluation.judging import Judges
from pipeline.settings import EvaluationConfig
from pipeline.store import FolderStore

QUESTION = near_hull.EXFOLIATION
EXFOLIATION_VERSION = 1  # increased whenever the meaning of a stored result changes
# meV/Å². Well-known sheets that come off with a tape have 18 to 40 by this judge. Its D3 binds more than RPA does, by which most
# layered crystals have about 20 (Björkman et al., Phys. Rev. Lett. 108, 235502 (2012)). Layers of up to 130 are potentially
# exfoliable to Mounet et al., Nat. Nanotechnol. 13, 246 (2018).
EASILY, POTENTIALLY = 45.0, 130.0


def mark_exfoliation(
    rows: Sequence[CandidateResult],
    structures: Mapping[str, Atoms],
    judges: Judges | JudgePool,
    settings: EvaluationConfig,
    store: FolderStore | None = None,
) -> None:
    """Set the exfoliation energy and the verdict by it of every row that ``is_asked``.

    Args:
        rows: judged, with their E_above_hull.
        structures: id -> structure as judged.
        judges: used in this process, or a pool.
        settings: limits and switches of the evaluation.
        store: of exfoliation energies; None keeps nothing.
    """
    asked = {row.id: structures[row.id] for row in rows if row.id in structures and is_asked(row, settings)}
    keyed = {name: (exfoliation_key(atoms, judges.identity), atoms) for name, atoms in asked.items()}
    answers = near_hull.ask(QUESTION, _exfoliate, keyed, judges, store)
    for row in rows:
        if row.id in answers and near_hull.note_problem(row, QUESTION, answers[row.id]):
            row.exfoliation_mev_per_a2 = near_hull.number(answers[row.id], "energy")
            row.layer_distance_angstrom = near_hull.number(answers[row.id], "distance")
            row.exfoliable = verdict(row.exfoliation_mev_per_a2)


def is_asked(row: CandidateResult, settings: EvaluationConfig) -> bool:
    """Return whether the exfoliation energy is computed."""
    return settings.exfoliation and near_hull.is_near_hull(row, settings)


def exfoliation_key(atoms: Atoms, identity: Mapping[str, Any]) -> str:
    """Return the key of the exfoliation energy of a structure. identity: of the judges."""
    return near_hull.question_key({"question": QUESTION, "version": EXFOLIATION_VERSION}, atoms, identity)


def verdict(energy: float) -> str:
    """Say how easily a layer comes off. energy: meV/Å²."""
    return "easily" if energy <= EASILY else "potentially" if energy <= POTENTIALLY else "hardly"


def _exfoliate(judges: Judges, task: Mapping[str, Any]) -> dict[str, Any]:
    found = judges.potential.exfoliation(Atoms(**task))
    return {"energy": found.energy, "distance": found.distance, "shift": list(found.shift)}
