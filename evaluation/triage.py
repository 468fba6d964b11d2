"""Quick judges of sheets that nothing has relaxed: which of thousands are worth a relaxation.

They take milliseconds each: ΔG_H by the heads, E_above_hull by heads and networks, and for the best of these the trees for ΔG_H,
band gap, dynamic stability and synthesizability, and water. What they say decides the order in which sheets are looked at, and
nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from scipy.stats import norm
from tqdm import tqdm

from crystals.charge_balance import charge_neutral_possible
from crystals.validity import sheet_fault
from energetics.activity_model import ActivityModel, within
from energetics.band_gap_model import GapModel, load_gap_model
from energetics.dynamics_model import DynamicsModel
from energetics.hull_network import HullNetwork, load_hull_network
from energetics.water import NoWaterData, Water
from evaluation.embedded_trees import EmbeddedTreesJudge
from evaluation.water_verdict import DISSOLVES, load_water, reference_at_each_ph, verdict_in_water, worst_at_each_ph
from generation.batch import PropertyEstimate
from geo_utils import NotTwoDimensional, Sheet
from pipeline.settings import EvaluationConfig
from pipeline.tasks import Backend, Serial, run

HEADS_STD_EV = 0.45  # error of the heads' ΔG_H against the corrected potential: 0.43 eV on average on held-out sheets
HULL_STD_EV = 0.06  # eV/atom, of E_above_hull: 0.05 on average on held-out sheets (docs/results.md)
VACUUM_ANGSTROM = 15.0
BATCH = 64  # sheets that the networks look at together
LOOKED_AT = 0.5  # share of the sheets, those with the best ΔG_H and E_above_hull, that trees and water look at
WATER_BATCH = 128  # sheets that water is asked about at a time
HELD_BACK = 1e-3  # factor of the chance of a sheet that water dissolves or that does not conduct
ABOVE_HULL = 0.3  # factor where E_above_hull is more than that of a hit, so that few such sheets are written


@dataclass
class QuickJudges:
    """The judges; None where the configuration has none."""

    settings: EvaluationConfig
    network: HullNetwork | None
    gap: GapModel | None
    dynamics: DynamicsModel | None
    water: Water | None
    synth: EmbeddedTreesJudge | None = None
    activity: ActivityModel | None = None

    @classmethod
    def load(cls, settings: EvaluationConfig, dynamics: DynamicsModel | None, activity: ActivityModel | None = None) -> QuickJudges:
        """Load the judges that the section ``evaluation`` names; raises CheckpointError for a file that cannot be used."""
        return cls(
            settings,
            load_hull_network(settings),
            load_gap_model(settings.band_gap_checkpoint),
            dynamics,
            load_water(settings.references_path) if settings.water else None,
            EmbeddedTreesJudge(settings.embedded_checkpoint) if settings.synthesizability == "embedded" else None,
            activity,
        )

    def chances(
        self,
        sheets: Sequence[Sheet],
        properties: PropertyEstimate,
        where: Backend | None = None,
        wanted: int | None = None,
        least: float = 0.0,
    ) -> np.ndarray:
        """Return the chance (M,) of a stable, synthesizable hit; smaller where water, gap or hull speak against a sheet.

        Args:
            sheets: M sheets.
            properties: what the heads say of them, (M,) each.
            where: the judges look at sheets, whose factory loads the same ones; None: this process.
            wanted: water is asked about the sheets with the best chance, until it leaves so many as they are; None: about all.
            least: chance that a sheet needs for water to be asked about it.
        """
        delta_g, e_hull = properties.delta_g.double().numpy(), np.maximum(0.0, properties.e_hull.double().numpy())
        where = where or Serial(lambda: self)
        if self.network is not None:
            batches = {start: sheets[start : start + BATCH] for start in range(0, len(sheets), BATCH)}
            of_batches = run(QuickJudges.by_networks, batches, None, where, in_order=True)
            shown = tqdm(of_batches, total=len(batches), desc="E_above_hull", unit="batch", mininterval=1.0)
            e_hull = (e_hull + np.concatenate([found for _, found in shown])) / 2
        limit = self.settings.hit_e_hull_ev
        near = norm.cdf((limit - e_hull) / HULL_STD_EV) * np.where(e_hull > limit, ABOVE_HULL, 1.0)
        first = near * self.active(delta_g, HEADS_STD_EV)
        best = np.argsort(-first, kind="stable")[: max(1, round(LOOKED_AT * len(sheets)))]
        chance = np.zeros(len(sheets))
        tasks = {k: (sheets[k], float(e_hull[k]), float(delta_g[k])) for k in best.tolist()}
        looks = run(QuickJudges.look, tasks, None, where)
        for k, found in tqdm(looks, total=len(tasks), desc="ΔG_H, gap, dynamics, synthesis", unit="sheet", mininterval=1.0):
            chance[k] = near[k] * found
        left, order = len(sheets) if wanted is None else wanted, np.argsort(-chance, kind="stable")
        order = order[chance[order] > least].tolist() if self.water is not None else []
        with tqdm(desc="water", unit="sheet", mininterval=1.0, disable=not order) as bar:
            while order and left > 0:
                asked, order = order[:WATER_BATCH], order[WATER_BATCH:]
                for k, dissolves in run(QuickJudges.look_in_water, {k: tasks[k] for k in asked}, None, where):
                    chance[k] *= HELD_BACK if dissolves else 1.0
                    left -= not dissolves
                bar.update(len(asked))
        return chance

    def active(self, delta_g: np.ndarray | float, std: float) -> np.ndarray | float:
        """Return the chance that ΔG_H is within the window of a hit. delta_g: estimate, eV. std: its standard error, eV."""
        return within(delta_g, std, self.settings.hit_delta_g_ev)

    def by_networks(self, sheets: Sequence[Sheet]) -> np.ndarray:
        """Return E_above_hull (M,) of M sheets by the networks, eV/atom, in single precision."""
        return self.network.of_sheets(sheets, torch.float32)

    def look(self, task: tuple[Sheet, float, float]) -> float:
        """Return the chance that a sheet on the hull is a hit that water leaves alone: 0 where it is not valid.

        task: the sheet, its E_hull in eV/atom, and its ΔG_H by the heads in eV.
        """
        sheet, e_hull, by_heads = task
        atoms = sheet.to_atoms(VACUUM_ANGSTROM)
        formula = atoms.get_chemical_formula()
        if sheet_fault(atoms, self.settings.clash_factor) or not charge_neutral_possible(formula):
            return 0.0
        try:
            factor = self.chance_of_window(atoms, by_heads)
            if self.dynamics is not None:
                stable = self.dynamics.without_phonons(atoms, e_hull)
                factor *= stable if np.isfinite(stable) else 1.0
            if self.synth is not None:
                made = self.synth.score([atoms])[0].p_synth
                factor *= made if np.isfinite(made) else 1.0
            conducts = self.gap is None or not self.gap.band_gap(atoms) > self.settings.conductive_gap_ev
        except (NotTwoDimensional, ValueError):
            return 0.0
        return factor * (1.0 if conducts else HELD_BACK)

    def look_in_water(self, task: tuple[Sheet, float, float]) -> bool | None:
        """Return whether water dissolves a sheet, None where that is not known. task: as of ``look``."""
        sheet, e_hull, _ = task
        return self.dissolves(sheet.to_atoms(VACUUM_ANGSTROM), e_hull)

    def chance_of_window(self, atoms: Atoms, by_heads: float) -> float:
        """Return the chance that ΔG_H of a sheet is within the window of a hit, by the trees, else by the heads' value in eV."""
        known = self.activity.chance(atoms, by_heads, self.settings.hit_delta_g_ev) if self.activity is not None else math.nan
        return known if math.isfinite(known) else float(self.active(by_heads, HEADS_STD_EV))

    def dissolves(self, atoms: Atoms, e_hull: float) -> bool | None:
        """Return whether water dissolves a sheet, None where that is not known. e_hull: eV/atom."""
        if self.water is None:
            return None
        try:
            worst = worst_at_each_ph(self.water.decompose(atoms.get_chemical_formula(), e_hull))
        except NoWaterData:
            return None
        return verdict_in_water(worst, set(atoms.symbols), reference_at_each_ph(self.water)) == DISSOLVES
