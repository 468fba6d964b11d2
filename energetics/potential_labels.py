"""Labels sheets with ΔG_H of the interatomic potential, corrected from DFT: the slower and better labeller of stage 2.

Each sheet is treated as stage 5 treats a candidate: it is relaxed, DimeNet++ ranks its adsorption sites, the potential relaxes H at
the best ``evaluation.potential_h_sites`` of them, and ΔE_H is corrected towards DFT (``dft_correction.py``). Labels depend neither
on the order of the sheets nor on the number of workers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms

from energetics.adsorption_energy import free_energy
from energetics.potential_adsorption import hydrogen_at_best_sites
from energetics.potential_loading import load_stability_judge, potential_identity, without_paths
from energetics.sites import SheetHER
from pipeline.cli import resolve_device
from pipeline.errors import StageError
from pipeline.settings import Config, DatasetConfig
from pipeline.store import Store
from pipeline.tasks import run, start_workers

log = logging.getLogger("her2d")


class SheetLabeller:
    """Relaxation, ranking of sites, and corrected ΔG_H of one sheet.

    Args:
        potential: what ``potential_adsorption.StabilityJudge`` offers, with a correction.
        her: ``predict_sheet`` of ``HydrogenPredictor``.
        dataset: settings of the sites and of ΔG_H.
        num_sites: sites at which the potential relaxes H.
    """

    def __init__(self, potential: Any, her: Any, dataset: DatasetConfig, num_sites: int) -> None:
        self.potential, self.her, self.dataset, self.num_sites = potential, her, dataset, num_sites

    @classmethod
    def load(cls, cfg: Config) -> SheetLabeller:
        """Load the judges that the configuration names. Raises StageError where there are no DFT points to correct with."""
        from energetics import hydrogen

        judge = load_stability_judge(cfg)
        if judge.correction is None:
            raise StageError(
                "dataset.label_source=potential needs DFT points to correct the potential with: set evaluation.dft_truth_path"
            )
        her = hydrogen.HydrogenPredictor.load(cfg.dimenet.checkpoint, resolve_device(cfg.run))
        return cls(judge, her, cfg.dataset, max(1, cfg.evaluation.potential_h_sites))

    def label(self, atoms: Atoms) -> SheetHER:
        """Return the sites that bind H, best first by DimeNet++, with corrected ΔG_H; ``status`` says why there is none."""
        try:
            return self._label(atoms)
        except Exception as error:  # a potential far from what it learnt fails in many ways; the row stays without a label
            log.debug("no label of %s", atoms.get_chemical_formula(), exc_info=True)
            return SheetHER(sheet=None, status=f"{type(error).__name__}: {' '.join(str(error).split())[:100]}")

    def _label(self, atoms: Atoms) -> SheetHER:
        relaxed = self.potential.relax(atoms, bulk=False)
        if relaxed.status in ("exploded", "collapsed"):
            return SheetHER(sheet=None, status=f"relaxation {relaxed.status}")
        ranked = self.her.predict_sheet(relaxed.atoms, self.dataset, self.potential.band_gap)
        hydrogen = hydrogen_at_best_sites(self.potential, ranked, self.num_sites)
        bound = [(site, h) for site, h in hydrogen if h.is_bound and math.isfinite(h.corrected)]
        about = {"sheet": ranked.sheet, "supercell": ranked.supercell, "coverage": ranked.coverage}
        if not bound:
            return SheetHER(**about, status="H is not bound")
        delta_e = np.array([h.corrected for _, h in bound])
        return SheetHER(
            **about,
            sites=[site for site, _ in bound],
            delta_e=delta_e,
            delta_g=free_energy(delta_e, self.dataset.her_correction_ev),
            std=np.array([h.corrected_std for _, h in bound]),
            complaints=[""] * len(bound),
        )


def labeller_identity(cfg: Config) -> dict[str, Any]:
    """Return what the labels depend on beside DimeNet++, for the first line of their file."""
    settings = cfg.evaluation
    names = ("relax", "fmax_ev_per_angstrom", "max_steps", "max_h_steps", "more_h_steps", "potential_h_sites")
    judges = without_paths(potential_identity(settings))
    return {"potential": judges, "settings": {name: getattr(settings, name) for name in names}}


def label_sheets(sheets: Mapping[str, Atoms], cfg: Config, store: Store) -> Iterator[tuple[str, Any]]:
    """Label sheets by ``evaluation.workers`` processes of one thread each, and yield (key, label) of each when it is stored.

    Args:
        sheets: by the key of their label.
        cfg: names the potential and DimeNet++.
        store: of labels, filled in the order of the sheets.

    Raises:
        StageError: a judge cannot be loaded, or a worker process dies twice on the same sheet; what was yielded is finished.
    """
    factory = partial(SheetLabeller.load, cfg)
    factory()  # in this process first: its errors come before a progress bar
    with start_workers(cfg.run, cfg.evaluation.workers, factory) as pool:
        yield from run(SheetLabeller.label, sheets, store, pool, in_order=True)
