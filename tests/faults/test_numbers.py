"""Numbers that are not finite, and relaxations that go wrong, are named where they arise."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import simple_judges as simple
import torch
from ase.calculators.calculator import Calculator, all_changes

import geo_utils as geo
from energetics import potential_adsorption, potentials, relaxation, sites
from evaluation import judging
from generation import sampling
from generation.batch import NoiseEstimate
from models import DenoiserModelConfig, DenoisingEGNN
from pipeline.errors import StageError
from pipeline.settings import EvaluationConfig, GenerationConfig

SETTINGS = GenerationConfig(num_steps=4, corrector_steps=0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tiny = DenoiserModelConfig(hidden_channels=16, vector_channels=4, num_layers=1, num_noise_layers=0, num_timesteps=20)
    return DenoisingEGNN(tiny).double().eval().requires_grad_(False)


@pytest.mark.parametrize("part", ["frac", "height", "lattice"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_sampling_names_the_candidate_whose_numbers_are_not_finite(model, monkeypatch, part, value):
    original = DenoisingEGNN.noise

    def spoiled(self, encoded, *conditions):
        estimate = vars(original(self, encoded, *conditions)).copy()
        estimate[part] = estimate[part].clone()
        estimate[part][-1] = value  # an atom, or the cell, of the last sheet of the batch
        return NoiseEstimate(**estimate)

    monkeypatch.setattr(DenoisingEGNN, "noise", spoiled)
    with pytest.raises(StageError, match="not finite for gen_00007; lower generation.guidance_scale"):
        sampling.sample(model, [[42, 16, 16], [6, 6]], [3, 7], SETTINGS, 0)


def test_a_good_batch_is_sampled(model):
    assert len(sampling.sample(model, [[42, 16, 16], [6, 6]], [3, 7], SETTINGS, 0)) == 2


class Outcome(simple.Springs):
    """A relaxation that ends in a given way."""

    def __init__(self, status: str, energy: float = -12.0, delta_e: float = 0.1, desorbed: bool = False) -> None:
        super().__init__()
        self.status, self.energy, self.h = status, energy, potential_adsorption.HydrogenAtSite(delta_e, desorbed, status == "ok")

    def relax(self, atoms, bulk):
        return SimpleNamespace(atoms=atoms.copy(), energy=self.energy, converged=self.status == "ok", steps=3, status=self.status)

    def delta_e_hydrogen(self, sheet, site, supercell, best, gap):
        return self.h


@pytest.mark.parametrize(
    ("outcome", "label"),
    [
        (Outcome("exploded", math.nan), "relaxation: exploded"),
        (Outcome("exploded", 1e9), "relaxation: exploded"),
        (Outcome("collapsed"), "relaxation: collapsed"),
        (Outcome("not converged"), "relaxation: not converged"),
        (Outcome("ok", desorbed=True), "ΔG_H of the potential: H desorbs"),
        (Outcome("ok", delta_e=math.nan), "ΔG_H of the potential: H relaxation exploded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_relaxation_that_goes_wrong_is_labelled_in_the_row(tmp_path, outcome, label):
    simple.write_cifs(tmp_path, {"a": simple.sheet()})
    record = judging.judge_candidate(tmp_path / "a.cif", simple.judges(potential=outcome), EvaluationConfig())
    row = record["row"]
    assert label in row["status"]
    if "exploded" in row["status"] or "desorbs" in row["status"]:
        assert math.isnan(row["delta_g_h_potential_ev"])
    if label in ("relaxation: exploded", "relaxation: collapsed"):
        assert math.isnan(row["energy_ev_per_atom"]) and row["relax_converged"] is None


class Broken(Calculator):
    """Energy and forces as given."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, energy: float, force: float) -> None:
        super().__init__()
        self.energy, self.force = energy, force

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        forces = np.full((len(atoms), 3), self.force)
        self.results = {"energy": self.energy * len(atoms), "forces": forces, "stress": np.zeros(6)}


@pytest.mark.parametrize(
    ("energy", "force"), [(math.nan, math.nan), (math.nan, 0.0), (-1.0, math.nan), (-1e6, 0.0), (math.inf, 0.0)]
)
def test_hydrogen_on_a_broken_potential_is_exploded(energy, force):
    sheet = geo.standard_sheet(simple.sheet())
    with_h = sites.add_hydrogen(sheet, sites.adsorption_sites(sheet)[0], (2, 2))
    broken = potentials.Potential("sevennet-0", {"name": f"broken {energy} {force}"}, Broken(energy, force))
    relaxation._H2_ENERGIES[tuple(sorted(broken.identity.items()))] = -6.7
    result = relaxation.relax_hydrogen(with_h, -50.0, broken, max_steps=5)
    assert result.status == "exploded" and math.isnan(result.delta_e) and not result.converged
