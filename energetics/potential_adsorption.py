"""Judges a structure with one interatomic potential: relaxation, and hydrogen adsorption corrected from DFT."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms

from energetics import sites
from energetics.adsorption_energy import adsorption_energy
from energetics.dft_correction import DftCorrection
from energetics.dft_points import MAX_DELTA_E_EV
from energetics.dynamic_stability import DynamicStability, dynamic_stability
from energetics.exfoliation import Exfoliation, exfoliate
from energetics.latent_features import latent_change
from energetics.relaxation_memory import plain, recall
from pipeline.files import as_float
from pipeline.memory import NO_MEMORY, Memory
from pipeline.settings import EvaluationConfig

NAN = math.nan
LEGACY_FMAX = 0.05  # eV/Å
RELAXED = ("energy", "converged", "steps", "status", "forces")  # fields of a ``Relaxation`` that its record has
RELAXED_H = ("delta_e", "desorbed", "converged", "status")
MOVED_FAR = 0.4  # Å, from which on an atom of the sheet may have gone to another place for H
OTHER_SHEET_EV = -0.1  # below this the sheet has another structure once H was there: its potentials miss ΔE_H twice as far then


@dataclass(frozen=True)
class HydrogenAtSite:
    """H relaxed from one site.

    delta_e: ΔE_H, eV. desorbed: H left the sheet. converged, given_up: how the relaxation ended. corrected, corrected_std: ΔE_H
    after the correction from DFT and its standard error, eV, NaN without a correction. complaint: why the DFT points do not cover
    the site, empty where they do. atoms: sheet and H as relaxed. moved: Å, how far H moved an atom of the sheet at most. rest: eV,
    how much higher the sheet lies than before when H is taken off and the rest relaxed; NaN where it was not.
    """

    delta_e: float
    desorbed: bool
    converged: bool
    corrected: float = NAN
    corrected_std: float = NAN
    given_up: bool = False
    complaint: str = ""
    atoms: Atoms | None = None
    moved: float = 0.0
    rest: float = NAN

    @property
    def is_bound(self) -> bool:
        """Return whether H stays on the sheet with an energy."""
        return not (self.desorbed or self.given_up) and math.isfinite(self.delta_e)

    @property
    def changes_sheet(self) -> bool:
        """Return whether H takes the sheet to another structure, so that ΔE_H is not of adsorption on the sheet."""
        return self.rest < OTHER_SHEET_EV


def deciding(at_sites: Sequence[HydrogenAtSite]) -> int | None:
    """Return which site decides: the lowest corrected ΔE_H, without a correction the lowest ΔE_H; None where none keeps H."""
    bound = [k for k, h in enumerate(at_sites) if h.is_bound]
    corrected = [k for k in bound if math.isfinite(at_sites[k].corrected)]
    if corrected:
        return min(corrected, key=lambda k: at_sites[k].corrected)
    return min(bound, key=lambda k: at_sites[k].delta_e) if bound else None


def hydrogen_at_best_sites(potential: Any, prediction: Any, num_sites: int) -> list[tuple[sites.AdsorptionSite, HydrogenAtSite]]:
    """Relax H with the potential at the best sites of a prediction, and at all inside the sheet, which DimeNet++ has not learnt.

    A site is given up by the best one of its kind, on a face or inside: potentials put H inside sheets of 4d and 5d metals 0.4 to
    0.8 eV too high, and on their faces nearly right, so that only the correction tells these apart. Where H at the site that
    decides has moved the sheet's atoms far, the sheet is relaxed again without it.

    Args:
        potential: a ``StabilityJudge``.
        prediction: sites of a sheet with their predicted ΔG_H (``SheetHER``).
        num_sites: how many of them, lowest ΔG_H first.

    Returns:
        (site, H relaxed from it), in the order of the relaxations.
    """
    at_sites: list[tuple[sites.AdsorptionSite, HydrogenAtSite]] = []
    sheet, supercell, gap = prediction.sheet, prediction.supercell, prediction.band_gap
    order = np.argsort(np.asarray(prediction.delta_g, dtype=float), kind="stable")[:num_sites].tolist()
    for site in (*(prediction.sites[index] for index in order), *sites.inner_sites(sheet)):
        like = [h for other, h in at_sites if h.is_bound and (other.face == sites.INNER) == (site.face == sites.INNER)]
        best = min((h.delta_e for h in like), default=math.inf)
        at_sites.append((site, potential.delta_e_hydrogen(sheet, site, supercell, best, gap)))
    decides = deciding([h for _, h in at_sites])
    if decides is not None and at_sites[decides][1].moved > MOVED_FAR:
        site, h = at_sites[decides]
        at_sites[decides] = site, replace(h, rest=potential.rest_without_hydrogen(h.atoms, sheet, supercell))
    return at_sites


class StabilityJudge:
    """Relaxation and hydrogen adsorption by one interatomic potential.

    correction: of its ΔE_H, learnt from DFT. second: a potential whose ΔE_H at the relaxed geometry the correction needs beside it.
    gap: the band gap, as ``band_gap_model.GapModel`` (``rough_gap``), for this correction and for that of DimeNet++; None: they do
    without. memory: of relaxations.
    """

    def __init__(
        self,
        potential: Any,
        settings: EvaluationConfig,
        correction: DftCorrection | None = None,
        second: Any = None,
        gap: Any = None,
        memory: Memory = NO_MEMORY,
    ) -> None:
        self.potential, self.settings, self.correction, self.second = potential, settings, correction, second
        self.gap, self.memory = gap, memory

    def relax(self, atoms: Atoms, bulk: bool) -> Any:
        """Relax a sheet (in-plane cell free) or a bulk crystal (whole cell free); gives a ``relaxation.Relaxation``."""
        from energetics.relaxation import Relaxation, relax_bulk, relax_sheet

        fmax, steps = self.settings.fmax_ev_per_angstrom, self.settings.max_steps if self.settings.relax else 0

        def find() -> dict[str, Any]:
            found = (relax_bulk if bulk else relax_sheet)(atoms, self.potential, fmax, steps)
            return {"atoms": plain(found.atoms)} | {name: getattr(found, name) for name in RELAXED}

        about = {"potential": self.potential.identity, "bulk": bulk, "fmax": fmax, "steps": steps}
        record = recall(self.memory, "relaxation", about, atoms, find)
        forces = None if record["forces"] is None else np.array(record["forces"], dtype=float)
        energy, converged, taken = as_float(record["energy"]), record["converged"], record["steps"]
        return Relaxation(Atoms(**record["atoms"]), energy, converged, taken, record["status"], forces=forces)

    def band_gap(self, sheet: Atoms) -> float:
        """Return the band gap in eV; NaN where none is wanted or known."""
        return NAN if self.gap is None else self.gap.rough_gap(sheet)

    def dynamic_stability(self, sheet: Atoms) -> DynamicStability:
        """Judge a relaxed sheet by its phonons and its stiffness."""
        return dynamic_stability(sheet, self.potential)

    def exfoliation(self, sheet: Atoms) -> Exfoliation:
        """Find what binds a relaxed sheet to others like it."""
        return exfoliate(sheet, self.potential.calculator)

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
        from energetics.relaxation import FAR_ABOVE_EV

        start = sites.beside_site(sheet, site, supercell)
        relaxed = self._relaxed_hydrogen(sheet, start, supercell, best + FAR_ABOVE_EV)
        delta_e = as_float(relaxed["delta_e"])
        outcome = delta_e, relaxed["desorbed"], relaxed["converged"]
        # A record of a relaxation that went on says how far above it was when it would have been given up.
        if not relaxed["desorbed"] and as_float(relaxed["early_delta_e"]) > best + FAR_ABOVE_EV:
            return HydrogenAtSite(as_float(relaxed["early_delta_e"]), False, False, given_up=True)
        with_h, energies = Atoms(**relaxed["atoms"]), [delta_e]
        moved = float(np.linalg.norm(with_h.positions[:-1] - start.positions[:-1], axis=1).max())
        found = HydrogenAtSite(*outcome, atoms=with_h, moved=moved)
        if self.correction is None or not math.isfinite(delta_e):
            return found
        if self.second is not None:
            energies.append(self._second_delta_e(with_h, sheet, supercell))
        if max(abs(energy) for energy in energies) > MAX_DELTA_E_EV:
            return found
        described = [with_h], np.array([energies]), np.array([gap])
        latent = None
        if self.correction.latent:
            latent = latent_change(with_h, sheet, self.potential, supercell[0] * supercell[1])[None]
        value, error = self.correction.apply(*described[:2], np.zeros(1), described[2], latent)
        complaint = self.correction.complaints(*described)[0]
        return replace(found, corrected=float(value[0]), corrected_std=float(error[0]), complaint=complaint)

    def rest_without_hydrogen(self, with_h: Atoms, sheet: Atoms, supercell: tuple[int, int]) -> float:
        """Return E(rest, relaxed) − E(sheet) of the supercell in eV, the last atom, H, taken off; NaN where it cannot be found.

        Args:
            with_h: sheet and H as relaxed.
            sheet: the primitive cell as it was before H.
            supercell: cells along a and b.
        """
        from energetics.relaxation import relax_positions, single_point

        fmax, steps = self.settings.fmax_ev_per_angstrom, self.settings.max_steps

        def find() -> dict[str, Any]:
            rest = with_h[:-1]
            rest.set_constraint()
            relaxed = relax_positions(rest, self.potential, fmax, steps)
            clean = supercell[0] * supercell[1] * single_point(sheet, self.potential.calculator)
            return {"rest": relaxed.energy - clean if relaxed.status != "exploded" else NAN}

        about = {"potential": self.potential.identity, "fmax": fmax, "steps": steps, "supercell": supercell}
        return as_float(recall(self.memory, "rest without hydrogen", about, with_h, find)["rest"])

    def _relaxed_hydrogen(self, sheet: Atoms, with_h: Atoms, supercell: tuple[int, int], limit: float) -> dict[str, Any]:
        """Return the record of a relaxation of H: ``plain`` atoms, and the fields RELAXED_H of ``relaxation.HydrogenRelaxation``.

        with_h: where it starts. limit: eV, ``give_up_above`` of ``relaxation.relax_hydrogen``.
        """
        from energetics.relaxation import relax_hydrogen, single_point

        fmax, steps, more = self.settings.fmax_ev_per_angstrom, self.settings.max_h_steps, self.settings.more_h_steps

        def find() -> dict[str, Any]:
            energy = supercell[0] * supercell[1] * single_point(sheet, self.potential.calculator)
            first = found = relax_hydrogen(with_h, energy, self.potential, fmax, steps, give_up_above=limit)
            if first.status == "not converged" and more:
                # An H that has not come to rest is no verdict, so it goes on from where it is.
                found = relax_hydrogen(first.atoms, energy, self.potential, fmax, more)
            record = {"atoms": plain(found.atoms)} | {name: getattr(found, name) for name in RELAXED_H}
            return record | {"early_delta_e": first.early_delta_e}

        def is_finished(record: Mapping[str, Any]) -> bool:
            return record["status"] != "given up" or as_float(record["early_delta_e"]) > limit

        about = {"potential": self.potential.identity, "fmax": fmax, "steps": steps, "more": more, "supercell": supercell}
        return recall(self.memory, "hydrogen", about, with_h, find, is_finished)

    def _second_delta_e(self, with_h: Atoms, sheet: Atoms, supercell: tuple[int, int]) -> float:
        """Compute ΔE_H (eV) by the second potential at the geometries of the first."""
        from energetics.relaxation import h2_energy, single_point

        def find() -> dict[str, Any]:
            energy = single_point(with_h, self.second.calculator)
            clean = supercell[0] * supercell[1] * single_point(sheet, self.second.calculator)
            return {"delta_e": adsorption_energy(energy, clean, h2_energy(self.second))}

        about = {"potential": self.second.identity, "sheet": plain(sheet), "supercell": supercell}
        return as_float(recall(self.memory, "hydrogen of the second", about, with_h, find)["delta_e"])
