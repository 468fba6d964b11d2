"""H on a sheet by one potential: a relaxation that has not ended goes on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ase.build import fcc111
from ase.calculators.emt import EMT

import geo_utils
from energetics import sites
from energetics.potential_adsorption import StabilityJudge
from energetics.potentials import Potential
from pipeline.settings import EvaluationConfig


@pytest.fixture(scope="module")
def on_platinum():
    """Return a function of (max_h_steps, more_h_steps, correction, gap): H on two layers of Pt(111) with EMT."""
    slab = fcc111("Pt", (1, 1, 2), vacuum=10.0)
    slab.pbc = (True, True, False)
    sheet = geo_utils.standard_sheet(slab)
    site = next(site for site in sites.adsorption_sites(sheet) if site.kind == "bridge")

    def relaxed(steps: int, more: int, correction=None, gap: float = np.nan):
        settings = dataclasses.replace(EvaluationConfig(), max_h_steps=steps, more_h_steps=more)
        judge = StabilityJudge(Potential("emt", {"name": "emt"}, EMT()), settings, correction)
        return judge.delta_e_hydrogen(sheet, site, (2, 2), gap=gap)

    return relaxed


def test_h_that_has_not_come_to_rest_goes_on(on_platinum):
    stopped, continued, at_once = on_platinum(2, 0), on_platinum(2, 200), on_platinum(200, 0)
    assert not stopped.converged and continued.converged and at_once.converged
    assert continued.delta_e < stopped.delta_e
    assert continued.delta_e == pytest.approx(at_once.delta_e, abs=0.02)


class Doubtful:
    """A correction that adds 0.5 eV and covers no site of a sheet with a known gap."""

    def apply(self, atoms, energies, std, gaps):
        return energies[:, 0] + 0.5, np.full(len(atoms), 0.4)

    def complaints(self, atoms, energies, gaps):
        return ["too far" if np.isfinite(gap) else "" for gap in gaps]


def test_the_complaint_of_the_correction_comes_with_the_value(on_platinum):
    found = [on_platinum(3, 0, Doubtful(), gap) for gap in (1.0, np.nan)]
    assert [h.complaint for h in found] == ["too far", ""]
    assert all((h.corrected, h.corrected_std) == (pytest.approx(h.delta_e + 0.5), 0.4) for h in found)
    assert on_platinum(3, 0).complaint == ""
