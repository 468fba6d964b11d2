"""The generator's scores: matching, rates, guidance scales, and the parts by the real script with a tiny model."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import simple_judges as simple
import torch
from ase.build import mx2

from crystals import database
from crystals.symmetry import Template
from crystals.templates import TemplateLibrary
from evaluation import judges
from evaluation.search_benchmark import REFERENCES, SEARCHES
from evaluation.structure_match import match_distance, match_rates
from generation import candidates, sheet_table
from generation.refinement import new_refiner, save_refiner
from geo_utils import Sheet
from models import DenoiserModelConfig, DenoisingEGNN
from networks.checkpoints import save_checkpoint
from networks.sheet_trunk import TrunkConfig
from pipeline.errors import ConfigError, StageError
from pipeline.loading import load_config
from pipeline.settings import BenchmarkConfig, Config, GenerationConfig
from scripts import benchmark_generator as benchmark

NAN = float("nan")


def mos2(kind: str = "2H", a: float = 3.18) -> Sheet:
    atoms = mx2("MoS2", kind, a=a, thickness=3.13, vacuum=10)
    atoms.pbc = (True, True, False)
    return Sheet.from_atoms(atoms)


def test_match_distance():
    moved = mos2()
    shift = np.zeros_like(moved.frac_coords)
    shift[0] = [0.05, 0.0]
    rattled = Sheet(moved.atomic_numbers, moved.frac_coords + shift, moved.heights, moved.lattice)
    assert match_distance(mos2(), mos2()) == pytest.approx(0, abs=1e-6)
    assert 0 < match_distance(rattled, mos2()) < 0.2
    assert np.isnan(match_distance(mos2(a=5.5), mos2()))
    collapsed = Sheet(moved.atomic_numbers, np.full_like(moved.frac_coords, 0.1), moved.heights * 3, moved.lattice)
    assert np.isnan(match_distance(collapsed, mos2()))


def test_match_rates_by_hand():
    distances = np.array([[0.2, NAN, 0.1], [NAN, NAN, 0.3], [NAN, NAN, NAN], [0.4, 0.2, NAN]])
    found = match_rates(distances, np.array([3, 3, 6, 10]), seed=0, resamples=200)
    assert (found["n"], found["match@1"], found["match@3"]) == (4, 0.5, 0.75)
    assert found["mean_rmsd@1"] == pytest.approx(0.3) and found["mean_rmsd@3"] == pytest.approx((0.1 + 0.3 + 0.2) / 3)
    low, high = found["match@3_interval"]
    assert low < 0.75 < high
    assert {name: part["match@3"] for name, part in found["by_atoms"].items()} == {"1-4": 1.0, "5-6": 0.0, "9-12": 1.0}
    assert found["by_atoms"]["5-6"]["mean_rmsd@3"] is None


def test_no_guidance_setting_is_computed_twice():
    settings = dataclasses.replace(BenchmarkConfig(), guidance_scales=[0.0, 1.0], cfg_scales=[0.0, 2.0])
    generation = dataclasses.replace(GenerationConfig(), guidance_scale=1.0, cfg_scale=0.0)
    assert benchmark.guidance_settings(settings, generation) == [
        ("gradient", 0.0, 0.0),
        ("gradient", 1.0, 0.0),
        ("classifier-free", 0.0, 2.0),
    ]


@pytest.fixture
def cfg(tmp_path, monkeypatch) -> Config:
    """A random tiny denoiser, three held-out sheets (one of them seen by the weights it started from), instant judges."""
    torch.manual_seed(0)
    settings = DenoiserModelConfig(
        hidden_channels=16, vector_channels=4, num_layers=1, num_rbf=8, max_neighbors=8, num_timesteps=60, beta_end=0.3
    )
    state = {"elements": [16, 34, 42, 52, 74], "formulas": ["MoS2"], "formulas_of_init": ["MoTe2"]}
    save_checkpoint(tmp_path / "denoiser.pth", "denoiser", settings, {"model": DenoisingEGNN(settings).state_dict(), **state})
    numbers = {"MoSe2": [42, 34, 34], "MoTe2": [42, 52, 52], "WSe2": [74, 34, 34]}
    sheets = {formula: dataclasses.replace(mos2(), atomic_numbers=np.array(z)) for formula, z in numbers.items()}
    rows = [
        database.Row(row_id=1, uid=f"u-{formula}", sheet=sheet, formula=formula, prototype="", e_hull=0.0, h_form=0.0, y_synth=1.0)
        for formula, sheet in sheets.items()
    ]
    processed = tmp_path / "processed"
    processed.mkdir()
    torch.save(sheet_table.pack(rows, {}), processed / "test.pt")
    judge = tmp_path / "second.pth"
    judge.write_bytes(b"judge")
    monkeypatch.setattr(candidates, "check_validity", lambda sheet, settings: "ok")
    monkeypatch.setattr(judges, "judge_identity", lambda cfg: {"potential": {"name": cfg.dimenet.checkpoint}})
    monkeypatch.setattr(judges, "load_judges", simple.slow_judges)
    base = load_config(None, [f"run.output_dir={tmp_path / 'out'}", "run.device=cpu", "run.threads=1"])
    return dataclasses.replace(
        base,
        dataset=dataclasses.replace(base.dataset, processed_dir=str(processed)),
        denoiser=dataclasses.replace(base.denoiser, checkpoint=str(tmp_path / "denoiser.pth")),
        generation=dataclasses.replace(base.generation, num_steps=3, batch_size=4, oversample=1.0, element_draws=5),
        benchmark=dataclasses.replace(
            base.benchmark,
            csp_rows=3,
            csp_samples=2,
            num_structures=3,
            generation_structures=4,
            search_structures=3,
            guidance_scales=[0.0, 1.0],
            cfg_scales=[2.0],
            judge_checkpoint=str(judge),
        ),
        evaluation=dataclasses.replace(base.evaluation, workers=0, bootstrap=50),
    )


def with_parts(cfg: Config, *parts: str) -> Config:
    return dataclasses.replace(cfg, benchmark=dataclasses.replace(cfg.benchmark, parts=list(parts)))


def test_structure_prediction_leaves_out_what_was_seen(cfg, monkeypatch, undrawn):
    benchmark.main(with_parts(cfg, "csp"))
    path = Path(cfg.benchmark.output_dir) / "csp.json"
    found = json.loads(path.read_text())
    assert [row["formula"] for row in found["rows"]] == ["MoSe2", "WSe2"] and found["left_out"] == 1
    assert 0 <= found["match@1"] <= found["match@2"] <= 1 and found["matcher"]["stol"] == 0.5
    assert found["within_0.1"]["match@2"] <= found["match@2"]
    assert found["generation"]["elements_checkpoint"] == "weights/elements.pth", "paths are those of the project"
    monkeypatch.setattr("evaluation.structure_match.sample", lambda *a, **k: pytest.fail("sampled again"))
    benchmark.main(with_parts(cfg, "csp"))
    assert json.loads(path.read_text()) == found


def test_structure_prediction_with_refined_samples_leaves_out_what_the_refiner_has_seen(cfg, monkeypatch, undrawn, tmp_path):
    size = TrunkConfig(channels=16, vectors=4, tensors=4, layers=1, neighbours=12, rbf=8)
    save_refiner(tmp_path / "refiner.pth", new_refiner(size), formulas_seen=["MoSe2"])
    refiner = str(tmp_path / "refiner.pth")
    refined = dataclasses.replace(cfg.generation, refine_samples=True, refine_steps=3, refiner_checkpoint=refiner)
    moved = []
    monkeypatch.setattr("evaluation.structure_match.refine", lambda net, sheets, steps: moved.append(steps) or sheets)
    benchmark.main(with_parts(dataclasses.replace(cfg, generation=refined), "csp"))
    found = json.loads((Path(cfg.benchmark.output_dir) / "csp.json").read_text())
    assert [row["formula"] for row in found["rows"]] == ["WSe2"] and found["left_out"] == 2
    assert found["refine_steps"] == 3 and moved == [3]
    save_refiner(tmp_path / "refiner.pth", new_refiner(size), formulas_seen=["MoSe2", "WSe2"])
    with pytest.raises(StageError, match="the refiner has seen every sheet of the test split"):
        benchmark.main(with_parts(dataclasses.replace(cfg, generation=refined), "csp"))


def test_generated_sheets_are_judged_beside_the_layer_groups_of_the_training_set(cfg):
    library = TemplateLibrary.build([(sheet, Template.of(sheet)) for sheet in (mos2(), mos2("1T"), mos2())])
    content = torch.load(cfg.denoiser.checkpoint, weights_only=True)
    torch.save(content | {"templates": library.state_dict()}, cfg.denoiser.checkpoint)
    in_a_worker = dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, workers=1))
    benchmark.main(with_parts(in_a_worker, "generation"))
    folder = Path(cfg.benchmark.output_dir)
    found = json.loads((folder / "generation.json").read_text())
    assert found["training_layer_group_numbers"] == {"72": 1, "78": 2}
    assert sum(found["layer_group_numbers"].values()) == 4 == found["aggregates"]["rate_valid"]["n"]
    assert set(found["layer_group_numbers"]) != {"1"}, "sheets have the symmetry of their templates"
    assert (folder / "layer_groups.png").stat().st_size > 5_000


def test_guidance_response_is_judged_by_the_other_model(cfg, capsys):
    benchmark.main(with_parts(cfg, "guidance"))
    folder = Path(cfg.benchmark.output_dir)
    content = json.loads((folder / "guidance.json").read_text())
    assert [(r["guidance_scale"], r["cfg_scale"]) for r in content["doses"]] == [(0, 0), (1, 0), (0, 2), (1, 1.5)]
    for row in content["doses"]:
        assert row["aggregates"]["hit_rate"]["n"] == 3 and row["sampled"] == 3
        assert row["aggregates"]["sampled_valid"]["value"] == 1.0
    assert any("second.pth" in name for name in content["inputs"])
    assert (folder.parent / "guidance.png").stat().st_size > 20_000 and (folder.parent / "guidance.pdf").is_file()
    assert "hits" in capsys.readouterr().out


def test_guidance_response_without_an_unguided_setting_is_drawn(cfg):
    only = dataclasses.replace(cfg.benchmark, guidance_scales=[1.0], cfg_scales=[])
    benchmark.main(with_parts(dataclasses.replace(cfg, benchmark=only), "guidance"))
    assert (Path(cfg.benchmark.output_dir).parent / "guidance.png").is_file()


def test_what_is_missing_is_one_line(cfg):
    with pytest.raises(StageError, match="judge_checkpoint: no file"):
        missing = dataclasses.replace(cfg.benchmark, judge_checkpoint="/nonexistent.pth")
        benchmark.main(with_parts(dataclasses.replace(cfg, benchmark=missing), "guidance"))
    with pytest.raises(ConfigError, match="benchmark.parts"):
        benchmark.main(with_parts(cfg, "speed"))
    with pytest.raises(StageError, match="csp_max_atoms"):
        benchmark.main(with_parts(dataclasses.replace(cfg, benchmark=dataclasses.replace(cfg.benchmark, csp_max_atoms=2)), "csp"))


def test_searches_are_compared_on_equal_numbers(cfg, monkeypatch, undrawn, tmp_path):
    """With the crystals of three sheets, screening finds recipes for which one of them fits."""
    split = Path(cfg.dataset.processed_dir)
    for known in ("train.pt", "val.pt"):
        (split / known).write_bytes((split / "test.pt").read_bytes())
    plain = dataclasses.replace(cfg.generation, ranker_checkpoint="", refine_steps=0)
    given = dataclasses.replace(
        cfg, generation=plain, dimenet=dataclasses.replace(cfg.dimenet, checkpoint=str(tmp_path / "second.pth"))
    )
    asked: list[str] = []

    class Prefilter:
        identity = {"judges": "test"}

        def __init__(self, cfg):
            pass

        def __call__(self, cif_dir, output_dir, delta_g):
            asked.append(str(cif_dir))
            return {path.stem: (0.0, False) for path in cif_dir.glob("*.cif")}

        def triaging(self):
            return nullcontext(self.triage)

        def triage(self, sheets, properties):
            return np.zeros(len(sheets))

    monkeypatch.setattr("evaluation.prefilter.Prefilter", Prefilter)
    benchmark.main(with_parts(given, "search"))
    content = json.loads((Path(cfg.benchmark.output_dir) / "search.json").read_text())
    rows = content["searches"]
    assert content["training_element_entropy_bits"] == 1, "of MoS2"
    excluded = dataclasses.replace(given, generation=dataclasses.replace(plain, exclude_elements=["Mo"]))
    assert benchmark.training_entropy(excluded) == 0
    assert [row["name"] for row in rows] == list(SEARCHES)
    assert all(row["aggregates"]["rate_valid"]["n"] == 3 and row["families"] >= 1 for row in rows)
    assert len(asked) == 4
    assert not any("p_hits" in row for row in rows)
    for expected in rows[0]["expected"].values():
        assert all(name in expected["ratios"] for name in REFERENCES)
    assert "elements, no guidance" not in rows[2]["expected"]["p_hits"]["ratios"] and rows[2]["name"] == "elements, no guidance"
    fewer = dataclasses.replace(
        given, benchmark=dataclasses.replace(given.benchmark, searches=["elements, no guidance", "screening"])
    )
    benchmark.main(with_parts(fewer, "search"))
    again = json.loads((Path(cfg.benchmark.output_dir) / "search.json").read_text())["searches"]
    assert [row["name"] for row in again] == ["screening", "elements, no guidance"]
    with pytest.raises(ConfigError, match="benchmark.searches: magic; choose some of 'screening'"):
        benchmark.main(dataclasses.replace(cfg, benchmark=dataclasses.replace(cfg.benchmark, searches=["magic"])))


def test_entropy_of_elements():
    assert benchmark.element_entropy([{"C"}, {"C"}]) == 0 and benchmark.element_entropy([]) == 0
    assert benchmark.element_entropy([{"Mo", "S"}, {"W", "Se"}, set()]) == 2
