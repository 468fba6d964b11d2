"""ΔG_H labels of stage 2 by the interatomic potential, corrected from DFT: the slower and better of the two labellers.

Each sheet goes through what stage 5 does with a candidate: it is relaxed, DimeNet++ ranks its adsorption sites, the potential
relaxes H at the best ``evaluation.potential_h_sites`` of them, and ΔE_H is corrected towards DFT (``dft_correction.py``). Sheets
are independent of each other, so labels depend neither on their order nor on the number of workers.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms

from energetics.potential_adsorption import hydrogen_at_best_sites
from energetics.potential_loading import load_stability_judge, potential_identity, without_paths
from energetics.sites import SheetHER
from pipeline.cli import resolve_device
from pipeline.errors import StageError
from pipeline.settings import Config, DatasetConfig
from pipeline.tasks import prepare_worker

log = logging.getLogger("her2d")

_labeller: SheetLabeller | None = None


class SheetLabeller:
    """Relaxation, ranking of sites, and corrected ΔG_H of one sheet.

    potential: what ``judging.StabilityJudge`` offers, with a correction. her: ``predict_sheet`` of ``HydrogenPredictor``.
    """

    def __init__(self, potential: Any, her: Any, dataset: DatasetConfig, num_sites: int) -> None:
        self.potential, self.her, self.dataset, self.num_sites = potential, her, dataset, num_sites

    @classmethod
    def load(cls, cfg: Config) -> SheetLabeller:
        """The judges that the configuration names. Raises StageError where there are no DFT points to correct with."""
        from energetics import hydrogen

        judge = load_stability_judge(cfg)
        if judge.correction is None:
            raise StageError(
                "dataset.label_source=potential needs DFT points to correct the potential with: set evaluation.dft_truth_path"
            )
        her = hydrogen.HydrogenPredictor.load(cfg.dimenet.checkpoint, resolve_device(cfg.run))
        return cls(judge, her, cfg.dataset, max(1, cfg.evaluation.potential_h_sites))

    def label(self, atoms: Atoms) -> SheetHER:
        """Sites at which H is bound, best first by DimeNet++, with their corrected ΔG_H; ``status`` says why there is none."""
        try:
            return self._label(atoms)
        except Exception as error:  # a potential far from what it learnt fails in many ways; the row stays without a label
            log.debug("no label of %s", atoms.get_chemical_formula(), exc_info=True)
            return SheetHER(sheet=None, status=f"{type(error).__name__}: {' '.join(str(error).split())[:100]}")

    def _label(self, atoms: Atoms) -> SheetHER:
        relaxed = self.potential.relax(atoms, bulk=False)
        if relaxed.status in ("exploded", "collapsed"):
            return SheetHER(sheet=None, status=f"relaxation {relaxed.status}")
        placed = self.her.predict_sheet(relaxed.atoms, self.dataset, self.potential.band_gap)
        asked = hydrogen_at_best_sites(self.potential, placed, self.num_sites)
        found = {index: h for index, h in asked.items() if h.is_bound and math.isfinite(h.corrected)}
        about = {"sheet": placed.sheet, "supercell": placed.supercell, "coverage": placed.coverage}
        if not found:
            return SheetHER(**about, status="H is not bound")
        delta_e = np.array([h.corrected for h in found.values()])
        return SheetHER(
            **about,
            sites=[placed.sites[k] for k in found],
            delta_e=delta_e,
            delta_g=delta_e + self.dataset.her_correction_ev,
            std=np.array([h.corrected_std for h in found.values()]),
            complaints=[""] * len(found),
        )


def labeller_identity(cfg: Config) -> dict[str, Any]:
    """What the labels depend on beside DimeNet++, for the head of their file."""
    settings = cfg.evaluation
    names = ("relax", "fmax_ev_per_angstrom", "max_steps", "max_h_steps", "potential_h_sites")
    judges = without_paths(potential_identity(settings))
    return {"potential": judges, "settings": {name: getattr(settings, name) for name in names}}


def _start_worker(cfg: Config) -> None:
    global _labeller
    prepare_worker()
    import torch

    _labeller = SheetLabeller.load(cfg)
    torch.set_num_threads(1)


def _label_in_worker(atoms: Atoms) -> SheetHER:
    return _labeller.label(atoms)


def label_sheets(sheets: Iterable[Atoms], cfg: Config) -> Iterator[SheetHER]:
    """Labels of a sequence of sheets in its order, by ``evaluation.workers`` processes of one thread each.

    Raises StageError when a worker process dies; what was yielded before is finished.
    """
    SheetLabeller.load(cfg)  # in this process first: its errors are one clear line
    pool = ProcessPoolExecutor(
        max(1, cfg.evaluation.workers),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=partial(_start_worker, cfg),
    )
    try:
        yield from pool.map(_label_in_worker, sheets)
    except BrokenProcessPool as error:
        raise StageError("a labelling process died (out of memory?); start the stage again, it goes on there") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
