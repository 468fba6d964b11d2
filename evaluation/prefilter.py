"""Looks at sampled sheets with the judges of stage 5, but for the costly ones, so that stage 4 writes those that are worth these.

It leaves out H on the sheet by the potential, phonons, the band gap in the correction of DimeNet++ and the scores of the earlier
baseline. In the place of phonons stand the trees of ``energetics.dynamics_model``, which miss more, and in the place of H on the
sheet those of ``energetics.activity_model``. DimeNet++ is asked where there are no such trees: beside heads and trees it tells
nothing more (weights/activity.json), and takes a quarter of the time. What DFT has computed is known already, and counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from energetics.activity_model import load_activity_model
from energetics.dynamics_model import DynamicsModel, load_dynamics_model
from energetics.potential_loading import file_identity, without_paths
from evaluation import evaluate, judges
from evaluation.candidate import JUDGED_SETTINGS, CandidateResult
from evaluation.decisions import BY_DFT, hit_probability
from evaluation.dft_verdict import mark_dft
from evaluation.judge_pool import JudgePool
from evaluation.judging import Judges
from evaluation.triage import ABOVE_HULL, HEADS_STD_EV, QuickJudges
from evaluation.water_verdict import DISSOLVES
from generation.batch import PropertyEstimate
from geo_utils import Sheet
from pipeline.settings import Config
from pipeline.tasks import start_workers

LABEL = "prefilter"
SHEETS_FOR_WORKERS = 500  # for fewer, loading the quick judges in the workers takes longer
ENOUGH_IN_WATER = 1.5  # sheets that water leaves alone, for each that will be sampled, from which on it is asked about no more
LEAST_STD_EV = 0.3  # of DimeNet++; about the error of the judge that both stand for
SETTINGS = (
    *JUDGED_SETTINGS,
    "hit_delta_g_ev",
    "hit_e_hull_ev",
    "conductive_gap_ev",
    "water",
)  # that its verdicts depend on
LEFT_OUT = {
    "potential_h_sites": 0,
    "all_sites": 0,
    "legacy_columns": False,
    "phonons": False,
    "exfoliation": False,
    "band_gap": "",
    "second_potential": "",
    "dft_truth_path": "",
    "bootstrap": 10,
}


class Prefilter:
    """The quick judges.

    Args:
        cfg: sections ``run``, ``denoiser``, ``dimenet``, ``dataset`` and ``evaluation`` name the judges.

    Attributes:
        identity: what its verdicts depend on: hashes of the judges, and settings.

    Raises:
        StageError: a file of a judge is missing.
    """

    def __init__(self, cfg: Config) -> None:
        self._given = given = cfg.evaluation
        self.cfg = dataclasses.replace(cfg, evaluation=dataclasses.replace(given, **LEFT_OUT))
        self._judges: dict[str, Any] = judges.judge_identity(self.cfg)
        self._dynamics = load_dynamics_model(given.dynamics_checkpoint) if given.phonons else None
        self._activity = load_activity_model(given.activity_checkpoint, cfg.denoiser.checkpoint)
        self._asks_dimenet = self._activity is None
        if not self._asks_dimenet:
            self._judges.pop("her", None)
        files = {"dynamics": file_identity(given.dynamics_checkpoint)} if self._dynamics else {}
        files |= {"activity": file_identity(given.activity_checkpoint)} if self._activity else {}
        points = {"dft": given.dft_truth_path, "dft_blind": given.dft_blind_path if given.dft_truth_path else ""}
        files |= {name: file_identity(path) for name, path in points.items() if path and Path(path).is_file()}
        self.identity = without_paths({"judges": self._judges, **files}) | {
            name: getattr(self.cfg.evaluation, name) for name in SETTINGS
        }

    def __call__(self, cif_dir: Path, output_dir: Path, delta_g: Mapping[str, float]) -> dict[str, tuple[float, bool]]:
        """Judge CIFs.

        Args:
            cif_dir: their folder.
            output_dir: where the table and the finished verdicts go; a run that was stopped goes on from these.
            delta_g: ΔG_H by the heads of the denoiser, eV, by name of the CIF without suffix.

        Returns:
            The same names -> (chance of a dynamically stable, synthesizable hit, 0 where it is not new or not unique; whether
            water dissolves it or it does not conduct).
        """
        settings = self.cfg.evaluation
        load = partial(judges.load_judges, self.cfg, self._judges, judges.known_formulas(settings))
        load = load if self._asks_dimenet else partial(_without_dimenet, load)
        with JudgePool(load, self._judges, settings.workers, self.cfg.run) as pool:
            found = evaluate.evaluate(cif_dir, pool, settings, output_dir, LABEL, seed=self.cfg.run.seed)
        mark_dft(found.rows, found.structures, self._given, self.cfg.dataset.her_correction_ev)
        verdicts = {}
        for row in found.rows:
            name = Path(row.source_file).stem
            sheet = found.structures.get(row.id)
            active = None
            if row.delta_g_source != BY_DFT:
                row.delta_g_ev, row.delta_g_std_ev = self._delta_g(row, sheet, delta_g[name])
                active = self._chance_of_window(sheet, delta_g[name])
            row.p_hit = hit_probability(row, settings, active)
            verdicts[name] = _verdict(row, sheet, self._dynamics, settings.hit_e_hull_ev)
        return verdicts

    def _delta_g(self, row: CandidateResult, sheet: Atoms | None, by_heads: float) -> tuple[float, float]:
        """Return ΔG_H and its standard error, eV, by the trees where they know it, else by the heads and DimeNet++ where asked."""
        if self._activity is not None and sheet is not None:
            value, std = self._activity.delta_g(sheet, by_heads)
            if math.isfinite(value):
                return value, std
        if not self._asks_dimenet:
            return by_heads, HEADS_STD_EV
        return with_heads(row.delta_g_ev, row.delta_g_std_ev, by_heads)

    def _chance_of_window(self, sheet: Atoms | None, by_heads: float) -> float | None:
        """Return the chance that ΔG_H is within the window of a hit, by the trees; None where they do not know it."""
        if self._activity is None or sheet is None:
            return None
        chance = self._activity.chance(sheet, by_heads, self._given.hit_delta_g_ev)
        return chance if math.isfinite(chance) else None

    @contextmanager
    def triaging(self) -> Iterator[Callable[[Sequence[Sheet], PropertyEstimate], np.ndarray]]:
        """Yield what returns the chance of a hit (M,) of sheets that are not relaxed; see ``triage.QuickJudges.chances``.

        The workers of one call serve the next ones. Water is not asked about sheets that earlier ones leave no place.
        """
        load = partial(QuickJudges.load, self.cfg.evaluation, self._dynamics, self._activity)
        sampled = math.ceil(self.cfg.generation.num_structures * self.cfg.generation.oversample)
        earlier = np.zeros(sampled)
        with ExitStack() as stack:
            here = cache(load)
            workers = cache(lambda: stack.enter_context(start_workers(self.cfg.run, self.cfg.evaluation.workers, load)))

            def chances(sheets: Sequence[Sheet], properties: PropertyEstimate) -> np.ndarray:
                nonlocal earlier
                where = workers() if len(sheets) >= SHEETS_FOR_WORKERS and self.cfg.evaluation.workers else None
                found = here().chances(sheets, properties, where, math.ceil(ENOUGH_IN_WATER * sampled), float(earlier.min()))
                earlier = np.sort(np.concatenate([earlier, found]))[-sampled:]
                return found

            yield chances


def with_heads(value: float, std: float, by_heads: float) -> tuple[float, float]:
    """Return the mean of DimeNet++'s ΔG_H and that of the heads, weighted by their errors, and its standard error, in eV.

    The heads learnt from the corrected potential, DimeNet++ from other records, so that their errors are taken as independent.

    Args:
        value, std: ΔG_H, with which the result is NaN, and its standard error; an unknown one is taken as that of the heads.
        by_heads: ΔG_H.
    """
    std = HEADS_STD_EV if math.isnan(std) else std
    weights = 1 / max(std, LEAST_STD_EV) ** 2, 1 / HEADS_STD_EV**2
    return (weights[0] * value + weights[1] * by_heads) / sum(weights), sum(weights) ** -0.5


def _without_dimenet(load: Callable[[], Judges]) -> Judges:
    """Load judges that do not ask DimeNet++."""
    return dataclasses.replace(load(), her=None)


def _verdict(row: CandidateResult, sheet: Atoms | None, model: DynamicsModel | None, limit: float) -> tuple[float, bool]:
    """Return what ``Prefilter`` says of a judged sheet. limit: E_above_hull of a hit at most, eV/atom."""
    against = row.water == DISSOLVES or row.conductive is False
    if sheet is None or False in (row.unique, row.novel) or math.isnan(row.p_hit) or row.p_hit == 0:
        return 0.0, against
    stable = model.without_phonons(sheet, row.e_above_hull_ev) if model else math.nan
    chance = row.p_hit * (ABOVE_HULL if row.e_above_hull_ev > limit else 1.0)
    return chance * math.prod(share for share in (stable, row.p_synth) if not math.isnan(share)), against
