"""H on a sheet by one potential: a relaxation that has not ended goes on."""

from __future__ import annotations

import dataclasses

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
    """Return a function of (max_h_steps, more_h_steps): H on two layers of Pt(111) with EMT."""
    slab = fcc111("Pt", (1, 1, 2), vacuum=10.0)
    slab.pbc = (True, True, False)
    sheet = geo_utils.standard_sheet(slab)
    site = next(site for site in sites.adsorption_sites(sheet) if site.kind == "bridge")

    def relaxed(steps: int, more: int):
        settings = dataclasses.replace(EvaluationConfig(), max_h_steps=steps, more_h_steps=more)
        return StabilityJudge(Potential("emt", {"name": "emt"}, EMT()), settings).delta_e_hydrogen(sheet, site, (2, 2))

    return relaxed


def test_h_that_has_not_come_to_rest_goes_on(on_platinum):
    stopped, continued, at_once = on_platinum(2, 0), on_platinum(2, 200), on_platinum(200, 0)
    assert not stopped.converged and continued.converged and at_once.converged
    assert continued.delta_e < stopped.delta_e
    assert continued.delta_e == pytest.approx(at_once.delta_e, abs=0.02)
