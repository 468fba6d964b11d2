"""Judges a structure with one interatomic potential: relaxation, and hydrogen adsorption corrected from DFT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from energetics import band_gap as band_gap_module
from energetics import sites
from energetics.adsorption_energy import adsorption_energy
from energetics.dft_correction import DftCorrection
from energetics.dynamic_stability import DynamicStability, dynamic_stability
from energetics.exfoliation import Exfoliation, exfoliate
from pipeline.settings import EvaluationConfig

NAN = math.nan
MAX_DELTA_E_EV = 10.0  # beyond it a potential has left its domain, and a correction learnt within it says nothing
LEGACY_FMAX = 0.05  # eV/Å


@dataclass(frozen=True)
class HydrogenAtSite:
    """H relaxed from one site.

    delta_e: ΔE_H, eV. desorbed: H left the sheet. converged, given_up: how the relaxation ended. corrected, corrected_std: ΔE_H
    after the correction from DFT and its standard error, eV, NaN without a correction. complaint: why the DFT points do not cover
    the site, empty where they do.
    """

    delta_e: float
    desorbed: bool
    converged: bool
    corrected: float = NAN
    corrected_std: float = NAN
    given_up: bool = False
    complaint: str = ""

    @property
    def is_bound(self) -> bool:
        """Return whether H stays on the sheet with an energy."""
        return not (self.desorbed or self.given_up) and math.isfinite(self.delta_e)


def hydrogen_at_best_sites(potential: Any, prediction: Any, num_sites: int) -> dict[int, HydrogenAtSite]:
    """Relax H with the potential at the best sites of a prediction.

    Args:
        potential: a ``StabilityJudge``.
        prediction: sites of a sheet with their predicted ΔG_H (``SheetHER``).
        num_sites: how many of them, lowest ΔG_H first.

    Returns:
        Number of the site in the prediction -> H relaxed from it, in the order of the relaxations.
    """
    at_sites: dict[int, HydrogenAtSite] = {}
    sheet, supercell, gap = prediction.sheet, prediction.supercell, prediction.band_gap
    for index in np.argsort(np.asarray(prediction.delta_g, dtype=float), kind="stable")[:num_sites].tolist():
        best = min((h.delta_e for h in at_sites.values() if h.is_bound), default=math.inf)
        at_sites[index] = potential.delta_e_hydrogen(sheet, prediction.sites[index], supercell, best, gap)
    return at_sites


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
        """Relax a sheet (in-plane cell free) or a bulk crystal (whole cell free); gives a ``relaxation.Relaxation``."""
        from energetics.relaxation import relax_bulk, relax_sheet

        steps = self.settings.max_steps if self.settings.relax else 0
        function = relax_bulk if bulk else relax_sheet
        return function(atoms, self.potential, self.settings.fmax_ev_per_angstrom, steps)

    def band_gap(self, sheet: Atoms) -> float:
        """Return the band gap in eV; NaN where none is wanted or the method finds none."""
        return band_gap_module.band_gap(sheet) if self.with_gap else NAN

    def dynamic_stability(self, sheet: Atoms) -> DynamicStability:
        """Judge a relaxed sheet by its phonons and its stiffness, with the second potential where there is one.

        That one agrees with PBE more often (docs/results.md).
        """
        return dynamic_stability(sheet, self.second or self.potential)

    def exfoliation(self, sheet: Atoms) -> Exfoliation:
        """Find what binds a relaxed sheet to others like it, with the second potential where there is one."""
        return exfoliate(sheet, (self.second or self.potential).calculator)

    def legacy_energy(self, atoms: Atoms) -> float:
        """Compute the energy in eV/atom after at most ``legacy_max_steps`` steps of BFGS, positions only, in the cell as given.

        The earlier public baseline took this for a formation energy. NaN where the potential leaves its domain.
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
        """Relax H and the atoms around it from ``site``, and corrects its ΔE_H.

        Args:
            sheet: the primitive cell that ``site`` refers to.
            site: H starts beside it (``sites.beside_site``).
            supercell: cells along a and b.
            best: eV, ΔE_H of a site that was relaxed before; this one is given up when it stays FAR_ABOVE_EV above.
            gap: eV, band gap of the sheet, for the correction.
        """
        from energetics.relaxation import FAR_ABOVE_EV, relax_hydrogen, single_point

        energy = supercell[0] * supercell[1] * single_point(sheet, self.potential.calculator)
        with_h = sites.beside_site(sheet, site, supercell)
        fmax, steps = self.settings.fmax_ev_per_angstrom, self.settings.max_h_steps
        relaxed = relax_hydrogen(with_h, energy, self.potential, fmax, steps, give_up_above=best + FAR_ABOVE_EV)
        if relaxed.status == "not converged" and self.settings.more_h_steps:
            # An H that has not come to rest is no verdict, so it goes on from where it is.
            relaxed = relax_hydrogen(relaxed.atoms, energy, self.potential, fmax, self.settings.more_h_steps)
        outcome = float(relaxed.delta_e), bool(relaxed.desorbed), bool(relaxed.converged)
        if relaxed.status == "given up":
            return HydrogenAtSite(*outcome, given_up=True)
        if self.correction is None or not math.isfinite(relaxed.delta_e):
            return HydrogenAtSite(*outcome)
        energies = [relaxed.delta_e]
        if self.second is not None:
            energies.append(self._second_delta_e(relaxed.atoms, sheet, supercell))
        if max(abs(energy) for energy in energies) > MAX_DELTA_E_EV:
            return HydrogenAtSite(*outcome)
        described = [relaxed.atoms], np.array([energies]), np.array([gap])
        value, error = self.correction.apply(*described[:2], np.zeros(1), described[2])
        return HydrogenAtSite(*outcome, float(value[0]), float(error[0]), complaint=self.correction.complaints(*described)[0])

    def _second_delta_e(self, with_h: Atoms, sheet: Atoms, supercell: tuple[int, int]) -> float:
        """Compute ΔE_H (eV) by the second potential at the geometries of the first."""
        from energetics.relaxation import h2_energy, single_point

        energy = single_point(with_h, self.second.calculator)
        clean = supercell[0] * supercell[1] * single_point(sheet, self.second.calculator)
        return adsorption_energy(energy, clean, h2_energy(self.second))
