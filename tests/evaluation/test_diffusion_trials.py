"""The diffusion of coordinates alone: one step with known answers, and the part of the benchmark with tiny models."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from evaluation import diffusion_trials
from generation.batch import NoiseEstimate
from generation.process import add_noise
from generation.sampling import sheets_to_batch
from generation.schedule import NoiseSchedule
from pipeline.errors import StageError
from scripts import benchmark_generator as benchmark
from tests.evaluation.test_structure_ladder import cfg as ladder_cfg
from tests.evaluation.test_structure_ladder import sheet_of

cfg = ladder_cfg
SHEETS = [sheet_of("WSe2", kind, a) for kind in ("2H", "1T") for a in (3.2, 3.3, 3.4)] * 20


class Answers:
    """A network that answers with what the noise was, times a factor."""

    def __init__(self, factor: float) -> None:
        self.schedule = NoiseSchedule(1000, 1e-4, 0.02, 0.005, 0.5).double()
        self.factor = factor

    def encode(self, atomic_numbers, frac, heights, cell, batch, t):
        generator = torch.Generator().manual_seed(0)
        shapes = ((len(atomic_numbers), 2), (len(atomic_numbers),), (len(t), 3))
        noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        return add_noise(self.schedule, sheets_to_batch(SHEETS, torch.float64), t, *noise)

    def noise(self, state):
        return NoiseEstimate(*(self.factor * x for x in (state.frac_target, state.height_target, state.lattice_target)))


def test_a_network_that_knows_the_noise_removes_it():
    for row in diffusion_trials.denoising_by_time(Answers(1.0), SHEETS, 0):
        assert row["height_after"] == pytest.approx(0, abs=1e-9) and row["lattice_after"] == pytest.approx(0, abs=1e-9)
        if row["t"] <= 400:  # while the noise is far narrower than a cell
            assert row["in_plane_after"] == pytest.approx(0, abs=1e-6)


def test_a_network_that_says_nothing_leaves_the_noise():
    """Its size is that of Eqs. 1 and 2: √((1 − ᾱ)/ᾱ) spreads, of three heights one less to the centre; σ of a cell."""
    model = Answers(0.0)
    schedule, batch = model.schedule, sheets_to_batch(SHEETS, torch.float64)
    scale = float(schedule.height_scale(batch.num_atoms)[0])
    for row in diffusion_trials.denoising_by_time(model, SHEETS, 0):
        for name in ("height", "in_plane", "lattice"):
            assert row[f"{name}_after"] == pytest.approx(row[f"{name}_before"])
        alpha_bar = float(schedule.alphas_cumprod[row["t"]])
        noise = math.sqrt((1 - alpha_bar) / alpha_bar)
        assert row["height_before"] == pytest.approx(noise * scale * math.sqrt(2 / 3), rel=0.1)
        if row["t"] <= 400:
            shift = 3.3 * float(schedule.sigmas[row["t"]]) * math.sqrt(2 / 3)
            assert row["in_plane_before"] == pytest.approx(shift, rel=0.1), "hexagonal cells: isotropic in Å on average"


def test_trials_stand_beside_substitution(cfg, monkeypatch, capsys):
    monkeypatch.setattr(diffusion_trials, "TRIALS", {"as configured": {}, "no template": {"template_share": 0.0}})
    parts = dataclasses.replace(cfg.benchmark, parts=["diffusion"], ladder_diffusion_rows=2)
    benchmark.main(dataclasses.replace(cfg, benchmark=parts))
    found = json.loads((Path(cfg.benchmark.output_dir) / "diffusion.json").read_text())
    assert found["n"] == 2 and found["trials"]["substitution"]["strict"][0] == 0.5
    names = ["substitution", "as configured", "as configured, refined", "no template", "no template, refined"]
    assert list(found["trials"]) == names
    assert [row["t"] for row in found["denoising"]] == [1, 20, 50], "the tiny model has 60 times"
    assert all(row["height_after"] > 0 for row in found["denoising"])
    assert "  no template, refined: " in capsys.readouterr().out


@pytest.mark.parametrize("part", ["ladder", "diffusion", "relaxed"])
def test_a_model_that_knows_none_of_the_elements_ends_in_one_line(cfg, part):
    content = torch.load(cfg.denoiser.checkpoint, weights_only=True)
    torch.save(content | {"elements": [6]}, cfg.denoiser.checkpoint)
    parts = dataclasses.replace(cfg.benchmark, parts=[part])
    with pytest.raises(StageError, match="no held-out sheet is unseen and of elements"):
        benchmark.main(dataclasses.replace(cfg, benchmark=parts))
