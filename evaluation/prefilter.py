"""Looks at sampled sheets with the judges of stage 5, but for the costly ones, so that stage 4 writes those that are worth these.

It leaves out H on the sheet by the potential, phonons, the GFN2 gap and the scores of the earlier baseline. In the place of phonons
stand the trees of ``energetics.dynamics_model``, which miss more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ase import Atoms

from energetics.dynamics_model import load_dynamics_model
from energetics.potential_loading import without_paths
from evaluation import evaluate, judges
from evaluation.candidate import JUDGED_SETTINGS, CandidateResult
from evaluation.decisions import funnel_steps
from evaluation.dynamics import P_STABLE
from evaluation.judge_pool import JudgePool
from pipeline.settings import Config

LABEL = "prefilter"
SETTINGS = (*JUDGED_SETTINGS, "hit_e_hull_ev", "phonon_max_e_hull_ev", "water")  # that its verdicts depend on
LEFT_OUT = {
    "potential_h_sites": 0,
    "legacy_columns": False,
    "phonons": False,
    "band_gap": "",
    "second_potential": "",
    "dft_truth_path": "",
    "bootstrap": 10,
}


class Prefilter:
    """The quick judges.

    Args:
        cfg: sections ``run``, ``dimenet``, ``dataset`` and ``evaluation`` name the judges.

    Attributes:
        identity: names and hashes of the judges, on which its verdicts depend.

    Raises:
        StageError: a file of a judge is missing.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, **LEFT_OUT))
        self._judges: dict[str, Any] = judges.judge_identity(self.cfg)
        settings = self.cfg.evaluation
        self.identity = {"judges": without_paths(self._judges), "settings": {name: getattr(settings, name) for name in SETTINGS}}

    def __call__(self, cif_dir: Path, output_dir: Path) -> dict[str, int]:
        """Judge CIFs.

        Args:
            cif_dir: their folder.
            output_dir: where the table and the finished verdicts go; a run that was stopped goes on from these.

        Returns:
            Name of a CIF without suffix -> how many conditions of the funnel it meets before the first that it does not.
        """
        settings = self.cfg.evaluation
        load = partial(judges.load_judges, self.cfg, self._judges, judges.known_formulas(settings))
        with JudgePool(load, self._judges, settings.workers, self.cfg.run) as pool:
            found = evaluate.evaluate(cif_dir, pool, settings, output_dir, LABEL, seed=self.cfg.run.seed)
        self._mark_dynamics(found.rows, found.structures)
        steps = [passes for _, passes in funnel_steps(found.rows, settings)[:-1]]
        return {Path(row.source_file).stem: _depth(row, steps) for row in found.rows}

    def _mark_dynamics(self, rows: list[CandidateResult], structures: Mapping[str, Atoms]) -> None:
        """Set ``dynamically_stable`` of the rows that would get phonons, where the trees know their elements."""
        settings = self.cfg.evaluation
        if (model := load_dynamics_model(settings.dynamics_checkpoint)) is None:
            return
        for row in rows:
            if row.is_sheet and row.id in structures and row.e_above_hull_ev <= settings.phonon_max_e_hull_ev:
                probability = model.without_phonons(structures[row.id], row.e_above_hull_ev)
                row.dynamically_stable = None if math.isnan(probability) else probability >= P_STABLE


def _depth(row: CandidateResult, steps: list[Any]) -> int:
    """Return how many steps a row passes before the first that it does not."""
    return next((k for k, passes in enumerate(steps) if not passes(row)), len(steps))
