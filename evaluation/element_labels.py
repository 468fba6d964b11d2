"""Says of the sheets of a training set what the denoiser of elements is told of them (``generation.elements.CONDITIONS``).

ΔG_H is that of the heads of the denoiser, E_hull that of the database. The trees and the water diagram of stage 5 say whether a
sheet conducts, is dynamically stable, and dissolves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evaluation.triage import VACUUM_ANGSTROM, QuickJudges
from generation.batch import Denoiser
from generation.elements import CONDITIONS
from generation.refinement import unpadded
from generation.refiner_training import PairTable
from generation.sampling import predict_properties
from geo_utils import NotTwoDimensional, Sheet
from pipeline.store import LineStore
from pipeline.tasks import Processes, run

BATCH = 64  # sheets that are judged and stored together


@dataclass
class LabelJudges:
    """The denoiser, whose heads say ΔG_H, and the quick judges."""

    denoiser: Denoiser
    quick: QuickJudges


def load_label_judges(denoiser: Callable[[], Denoiser], quick: Callable[[], QuickJudges]) -> LabelJudges:
    """Return the judges that two functions load."""
    return LabelJudges(denoiser(), quick())


def element_labels(pairs: PairTable, load: Callable[[], LabelJudges], workers: int, store: LineStore) -> torch.Tensor:
    """Return the conditions (M, n) of the sheets of a table, NaN where a judge has no answer.

    Args:
        pairs: M sheets.
        load: makes the judges, once in every worker; picklable.
        workers: number of processes.
        store: of batches that are done; a run that was stopped goes on from these.
    """
    parts = torch.arange(len(pairs.sizes)).split(BATCH)
    tasks = {str(int(part[0])): _task(pairs, part) for part in parts}
    labels: dict[str, list[list[float]]] = {key: store[key]["labels"] for key in tasks if key in store}
    left = {key: task for key, task in tasks.items() if key not in labels}
    with tqdm(total=len(pairs.sizes), desc="labels", unit="sheet", mininterval=1.0) as bar:
        bar.update(sum(map(len, labels.values())))
        for key, record in run(_label_batch, left, store, Processes(workers, load)):
            labels[key] = record["labels"]
            bar.update(len(record["labels"]))
    return torch.tensor([row for key in tasks for row in labels[key]])


def _task(pairs: PairTable, rows: torch.Tensor) -> tuple[list[Sheet], list[float]]:
    """Return sheets in the standard setting and their E_hull (eV/atom)."""
    return unpadded(pairs.state(rows)), pairs.e_hull[rows].tolist()


def _label_batch(judges: LabelJudges, task: tuple[Sequence[Sheet], Sequence[float]]) -> dict[str, Any]:
    """Return ``labels`` of the sheets of a batch, in the order of ``CONDITIONS``."""
    sheets, e_hull = task
    delta_g = predict_properties(judges.denoiser, sheets).delta_g.tolist()
    rows = [_labels(judges.quick, sheet, value, own) for sheet, value, own in zip(sheets, delta_g, e_hull, strict=True)]
    return {"labels": [[row[name] for name in CONDITIONS] for row in rows]}


def _labels(quick: QuickJudges, sheet: Sheet, delta_g: float, e_hull: float) -> dict[str, float]:
    """Return what a sheet is, by name."""
    atoms, above = sheet.to_atoms(VACUUM_ANGSTROM), max(0.0, e_hull)
    found = {"delta_g": delta_g, "e_hull": e_hull, **dict.fromkeys(("conducts", "p_dynamic", "dissolves"), math.nan)}
    try:
        gap = quick.gap.band_gap(atoms) if quick.gap else math.nan
        found["conducts"] = float(gap <= quick.settings.conductive_gap_ev) if np.isfinite(gap) else math.nan
        found["p_dynamic"] = quick.dynamics.without_phonons(atoms, above) if quick.dynamics else math.nan
    except (NotTwoDimensional, ValueError):
        return found
    dissolves = quick.dissolves(atoms, above)
    return found | ({} if dissolves is None else {"dissolves": float(dissolves)})
