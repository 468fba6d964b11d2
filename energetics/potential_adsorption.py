"""Relaxation and hydrogen adsorption by one potential, corrected from DFT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from energetics import band_gap as band_gap_module
from energetics import sites
from energetics.dft_correction import DftCorrection
from pipeline.settings import EvaluationConfig

NAN = math.nan
MAX_DELTA_E_EV = 10.0  # beyond it a potential has left its domain, and a correction learnt within it says nothing
LEGACY_FMAX = 0.05  # eV/Å
FAR_ABOVE_EV = 0.3  # a site whose H is this far above another's after a few steps will not become the best
OFF_SITE = np.array([0.08, 0.06, 0.0])  # Å


@dataclass(frozen=True)
class HydrogenAtSite:
    """H relaxed from one site: ΔE_H (eV), whether it left the sheet, whether the relaxation converged or was given up; and ΔE_H
    after the correction from DFT with its standard error (eV), NaN without one."""

    delta_e: float
    desorbed: bool
    converged: bool
    corrected: float = NAN
    corrected_std: float = NAN
    given_up: bool = False

    @property
    def is_bound(self) -> bool:
        """Whether H stays on the sheet with an energy."""
        return not (self.desorbed or self.given_up) and math.isfinite(self.delta_e)


def hydrogen_at_best_sites(potential: Any, placed: Any, num_sites: int) -> dict[int, HydrogenAtSite]:
    """H relaxed by the potential at the best ``num_sites`` sites of ``placed`` (``SheetHER``), by number, best first."""
    found: dict[int, HydrogenAtSite] = {}
    for index in np.argsort(np.asarray(placed.delta_g, dtype=float), kind="stable")[:num_sites].tolist():
        best = min((h.delta_e for h in found.values() if h.is_bound), default=math.inf)
        found[index] = potential.delta_e_hydrogen(placed.sheet, placed.sites[index], placed.supercell, best, placed.band_gap)
    return found


class StabilityJudge:
    """Relaxation and hydrogen adsorption by one interatomic potential.

    correction: of its ΔE_H, learnt from DFT. second: a potential whose ΔE_H at the relaxed geometry the correction needs beside it.
    with_gap: whether band gaps are computed, for this correction and for that of DimeNet++.
    """

    def __init__(
        self,
        potential: Any,
        settings: EvaluationConfig,
        correction: DftCorrection | None = None,
        second: Any = None,
        with_gap: bool = False,
    ) -> None:
        self.potential, self.settings, self.correction, self.second = potential, settings, correction, second
        self.with_gap = with_gap

    def relax(self, atoms: Atoms, bulk: bool) -> Any:
        """``potentials.Relaxation`` of a sheet (in-plane cell free) or a bulk crystal (whole cell free)."""
        from energetics.relaxation import relax_bulk, relax_sheet

        steps = self.settings.max_steps if self.settings.relax else 0
        function = relax_bulk if bulk else relax_sheet
        return function(atoms, self.potential, self.settings.fmax_ev_per_angstrom, steps)

    def band_gap(self, sheet: Atoms) -> float:
        """In eV, where it is asked for and the method finds one; otherwise NaN."""
        return band_gap_module.band_gap(sheet) if self.with_gap else NAN

    def legacy_energy(self, atoms: Atoms) -> float:
        """Total energy in eV/atom after at most ``legacy_max_steps`` steps of BFGS, positions only, in the cell as given.

        What the earlier public baseline took for a formation energy; NaN where the potential leaves its domain.
        """
        from energetics.relaxation import relax_positions

        relaxed = relax_positions(atoms, self.potential, LEGACY_FMAX, self.settings.legacy_max_steps)
        return float(relaxed.energy) / len(atoms) if relaxed.status != "exploded" else NAN

    def delta_e_hydrogen(
        self,
        sheet: Atoms,
        site: sites.AdsorptionSite,
        supercell: tuple[int, int],
        best: float = math.inf,
        gap: float = NAN,
    ) -> HydrogenAtSite:
        """E(sheet+H) − E(sheet) − ½E(H2), H and the atoms around it relaxed from ``site``.

        best: eV, ΔE_H of a site that was relaxed before; this one is given up when it stays far above. gap: of the
        sheet, eV, for the correction. H starts 0.1 Å beside the site, because on top of an atom or in a hollow symmetry alone can
        hold it.
        """
        from energetics.relaxation import h2_energy, relax_hydrogen

        clean = sheet.copy()
        clean.calc = self.potential.calculator
        energy = supercell[0] * supercell[1] * float(clean.get_potential_energy())
        with_h = sites.add_hydrogen(sheet, site, supercell)
        with_h.positions[-1] += OFF_SITE
        fmax, steps = self.settings.fmax_ev_per_angstrom, self.settings.max_h_steps
        relaxed = relax_hydrogen(with_h, energy, self.potential, fmax, steps, give_up_above=best + FAR_ABOVE_EV)
        outcome = float(relaxed.delta_e), bool(relaxed.desorbed), bool(relaxed.converged)
        if relaxed.status == "given up":
            return HydrogenAtSite(*outcome, given_up=True)
        if self.correction is None or not math.isfinite(relaxed.delta_e):
            return HydrogenAtSite(*outcome)
        energies = [relaxed.delta_e]
        if self.second is not None:
            parts = []
            for atoms in (relaxed.atoms, sheet):
                work = atoms.copy()
                work.calc = self.second.calculator
                parts.append(float(work.get_potential_energy()))
            energies.append(parts[0] - supercell[0] * supercell[1] * parts[1] - 0.5 * h2_energy(self.second))
        if max(abs(energy) for energy in energies) > MAX_DELTA_E_EV:
            return HydrogenAtSite(*outcome)
        value, error = self.correction.apply([relaxed.atoms], np.array([energies]), np.zeros(1), np.array([gap]))
        return HydrogenAtSite(*outcome, float(value[0]), float(error[0]))
