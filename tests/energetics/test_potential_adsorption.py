"""H on a sheet by one potential: a relaxation that has not ended goes on."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111, mx2
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

import geo_utils
from energetics import sites
from energetics.potential_adsorption import MOVED_FAR, HydrogenAtSite, StabilityJudge, deciding, hydrogen_at_best_sites
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

    latent = ()

    def apply(self, atoms, energies, std, gaps, latent):
        return energies[:, 0] + 0.5, np.full(len(atoms), 0.4)

    def complaints(self, atoms, energies, gaps):
        return ["too far" if np.isfinite(gap) else "" for gap in gaps]


def test_the_complaint_of_the_correction_comes_with_the_value(on_platinum):
    found = [on_platinum(3, 0, Doubtful(), gap) for gap in (1.0, np.nan)]
    assert [h.complaint for h in found] == ["too far", ""]
    assert all((h.corrected, h.corrected_std) == (pytest.approx(h.delta_e + 0.5), 0.4) for h in found)
    assert on_platinum(3, 0).complaint == ""


def test_the_correction_is_asked_with_what_h_changes_in_the_features(on_platinum, monkeypatch):
    """The sheet counts as often as it is in the cell."""
    described = []
    monkeypatch.setattr(
        "energetics.latent_features.latent_features",
        lambda atoms, potential: described.append(atoms) or np.array([len(atoms), 100.0 * atoms.symbols.count("H")]),
    )

    class Latent(Doubtful):
        latent = ((0.0, 0.0),)

        def apply(self, atoms, energies, std, gaps, latent):
            return latent.sum(1), std

    assert on_platinum(3, 0, Latent()).corrected == 1 + 100, "one atom more than four sheets, an H"
    assert sorted(map(len, described)) == [2, 9]


@pytest.fixture
def niobium_sulfide_sites():
    """Faces and inside of 2H-NbS2 with one Nb of two replaced by Mo: two hollows inside."""
    sheet = mx2("NbS2", "2H", a=3.35, thickness=3.14, vacuum=8.0).repeat((2, 1, 1))
    sheet.symbols[0] = "Mo"
    on_faces = sites.adsorption_sites(sheet)
    return SimpleNamespace(sheet=sheet, supercell=(1, 2), band_gap=0.0, sites=on_faces, delta_g=np.arange(len(on_faces)))


def test_h_inside_is_given_up_by_what_is_inside(niobium_sulfide_sites):
    """H on the faces at 0 eV: the first site inside has to beat nothing, the next one only the first."""
    prediction, limits = niobium_sulfide_sites, []

    class Layers:
        def delta_e_hydrogen(self, sheet, site, supercell, best, gap):
            limits.append((site.face == sites.INNER, best))
            return HydrogenAtSite(0.8 if site.face == sites.INNER else 0.0, desorbed=False, converged=True)

    found = hydrogen_at_best_sites(Layers(), prediction, 2)
    inside = [best for is_inside, best in limits if is_inside]
    assert [best for is_inside, best in limits if not is_inside] == [math.inf, 0.0]
    assert len(inside) >= 2 and inside == [math.inf] + [0.8] * (len(inside) - 1)
    assert [h.delta_e for _, h in found] == [0.0, 0.0] + [0.8] * len(inside)


class Wells(Calculator):
    """Each atom in a double well over its height: (u² − 1)² − 0.4 u, u from the middle of the cell, minima near −0.94 and 1.05."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        u = atoms.positions[:, 2] - atoms.cell[2, 2] / 2
        forces = np.zeros((len(atoms), 3))
        forces[:, 2] = -(4 * u * (u**2 - 1) - 0.4)
        self.results = {"energy": float(((u**2 - 1) ** 2 - 0.4 * u).sum()), "forces": forces, "stress": np.zeros(6)}


@pytest.mark.parametrize("height, falls", [(-0.5, False), (0.5, True)])
def test_the_rest_without_h_says_whether_the_sheet_is_another(height, falls):
    """Two of four atoms of a sheet in the upper well, where H has pulled them up past the hill, else it is the sheet again."""
    low, high = (min((u for u in np.roots([4, 0, -4, -0.4]).real if u * side > 0.5), key=abs) for side in (-1, 1))
    energy = [(u**2 - 1) ** 2 - 0.4 * u for u in (low, high)]
    sheet = Atoms("Pt", positions=[[0, 0, 10 + low]], cell=[3, 3, 20], pbc=(True, True, False))
    covered = sheet.repeat((2, 2, 1))
    covered.positions[:2, 2] = 10 + height
    covered += Atoms("H", positions=[[0, 0, 12]])
    judge = StabilityJudge(Potential("wells", {"name": "wells"}, Wells()), EvaluationConfig())
    rest = judge.rest_without_hydrogen(covered, sheet, (2, 2))
    assert rest == pytest.approx(2 * (energy[1] - energy[0]) if falls else 0.0, abs=0.01)
    assert HydrogenAtSite(0.0, desorbed=False, converged=True, rest=rest).changes_sheet is falls


def test_the_site_that_decides_is_the_lowest_after_the_correction():
    def at(delta_e: float, corrected: float = math.nan, desorbed: bool = False) -> HydrogenAtSite:
        return HydrogenAtSite(delta_e, desorbed, converged=True, corrected=corrected)

    assert deciding([at(0.1, 0.9), at(0.3, 0.2), at(-1.0, -1.0, desorbed=True)]) == 1
    assert deciding([at(0.1), at(0.3, 0.2)]) == 1, "one without a correction does not decide beside others"
    assert deciding([at(0.5), at(0.3)]) == 1
    assert deciding([]) is None and deciding([at(0.1, desorbed=True)]) is None


def test_the_rest_is_asked_for_where_h_moved_the_sheet_at_the_site_that_decides(niobium_sulfide_sites):
    """Of two sites on the faces the second decides."""
    asked = []

    class Moves:
        def __init__(self, moved):
            self.moved = moved

        def delta_e_hydrogen(self, sheet, site, supercell, best, gap):
            first = math.isinf(best) and site.face != sites.INNER
            value = 0.2 if first else 0.0 if site.face != sites.INNER else 0.9
            return HydrogenAtSite(value, desorbed=False, converged=True, atoms=sheet, moved=5.0 if first else self.moved)

        def rest_without_hydrogen(self, with_h, sheet, supercell):
            asked.append(supercell)
            return -0.3

    little = hydrogen_at_best_sites(Moves(0.9 * MOVED_FAR), niobium_sulfide_sites, 2)
    assert not asked and not any(h.changes_sheet for _, h in little) and all(math.isnan(h.rest) for _, h in little)
    far = hydrogen_at_best_sites(Moves(1.1 * MOVED_FAR), niobium_sulfide_sites, 2)
    assert asked == [niobium_sulfide_sites.supercell] and [h.changes_sheet for _, h in far][:2] == [False, True]


def test_h_on_platinum_leaves_it_as_it_is(on_platinum):
    assert on_platinum(200, 0).moved < MOVED_FAR
