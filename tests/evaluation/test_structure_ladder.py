"""The ladder of methods that predict structures: paired tests by hand, and the part of the benchmark with tiny models."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import mx2

from crystals import database
from crystals.prototype_library import COLUMNS
from evaluation import structure_ladder
from evaluation.structure_match import polymorphs
from generation import sheet_table
from generation.ranking import save_trees
from generation.refinement import new_refiner, save_refiner
from geo_utils import Sheet
from models import DenoiserModelConfig, DenoisingEGNN
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import save_checkpoint
from networks.sheet_trunk import TrunkConfig
from pipeline.loading import load_config
from pipeline.settings import Config
from scripts import benchmark_generator as benchmark

NAN = float("nan")


def sheet_of(formula: str, kind: str = "2H", a: float = 3.2) -> Sheet:
    atoms = mx2(formula, kind, a=a, thickness=3.1, vacuum=10)
    atoms.pbc = (True, True, False)
    return Sheet.from_atoms(atoms)


def test_paired_counts_by_hand():
    first, second = np.array([[0.05, NAN], [NAN, 0.05], [0.3, NAN], [0.05, NAN]]), np.array([[NAN, NAN]] * 3 + [[0.05, NAN]])
    found = structure_ladder.paired(first, second)
    assert found["strict@1"] == {"first_alone": 1, "second_alone": 0, "p": 1.0}
    assert found["strict@2"]["first_alone"] == 2 and found["loose@1"]["first_alone"] == 2
    assert structure_ladder.paired(np.full((6, 1), 0.0), np.full((6, 1), NAN))["strict@1"]["p"] == pytest.approx(2 / 64)


def split(path: Path, rows: list[tuple[str, Sheet]]) -> None:
    table = [database.Row(k, f"u{k}", sheet, formula, "", 0.0, 0.0, 1.0) for k, (formula, sheet) in enumerate(rows)]
    torch.save(sheet_table.pack(table, {}), path)


@pytest.fixture
def cfg(tmp_path) -> Config:
    """Two polymorphs of WSe2 and a sheet that the refiner has seen, held out; random tiny networks."""
    torch.manual_seed(0)
    network = new_refiner(TrunkConfig(channels=16, vectors=4, tensors=4, layers=1, neighbours=12, rbf=8))
    save_refiner(tmp_path / "refiner.pth", network, formulas_seen=["MoS2"])
    table = {"feature": [-1], "threshold": [0.0], "left": [0], "right": [0], "value": [0.0], "roots": [0]}
    trees = BoostedTrees(
        0.0, COLUMNS, **{name: np.array(value) for name, value in table.items()}
    )  # one leaf: the order of the votes
    save_trees(tmp_path / "ranker.pth", trees, formulas_seen=["MoSe2", "PtS2"])
    size = DenoiserModelConfig(hidden_channels=16, vector_channels=4, num_layers=1, num_rbf=8, num_timesteps=60, beta_end=0.3)
    state = {"elements": [16, 34, 42, 74], "formulas": ["MoS2"], "model": DenoisingEGNN(size).state_dict()}
    save_checkpoint(tmp_path / "denoiser.pth", "denoiser", size, state)
    split(tmp_path / "train.pt", [("MoSe2", sheet_of("MoSe2", a=3.3))])
    split(tmp_path / "val.pt", [("PtS2", sheet_of("PtS2", "1T", 3.5))])
    held_out = [("WSe2", sheet_of("WSe2", a=3.3)), ("WSe2", sheet_of("WSe2", "1T", 3.3)), ("MoS2", sheet_of("MoS2"))]
    split(tmp_path / "test.pt", held_out)
    base = load_config(None, [f"run.output_dir={tmp_path / 'out'}", "run.device=cpu", "run.threads=1"])
    weights = {f"{name}_checkpoint": str(tmp_path / f"{name}.pth") for name in ("refiner", "ranker")}
    generation = dataclasses.replace(base.generation, num_steps=2, **weights)
    return dataclasses.replace(
        base,
        dataset=dataclasses.replace(base.dataset, processed_dir=str(tmp_path)),
        denoiser=dataclasses.replace(base.denoiser, checkpoint=str(tmp_path / "denoiser.pth")),
        generation=generation,
        benchmark=dataclasses.replace(base.benchmark, parts=["ladder"], csp_samples=2, ladder_diffusion_rows=1),
        evaluation=dataclasses.replace(base.evaluation, bootstrap=20),
    )


def test_the_ladder_compares_the_methods_row_by_row(cfg, capsys):
    benchmark.main(cfg)
    found = json.loads((Path(cfg.benchmark.output_dir) / "ladder.json").read_text())
    with (Path(cfg.benchmark.output_dir) / "ladder.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert found["n"] == 2 and found["left_out"] == 1 and [row["formula"] for row in rows] == ["WSe2", "WSe2"]
    right = [float(row["substitution @1"] or 9) <= 0.1 for row in rows]
    assert sorted(right) == [False, True] and all(float(row["substitution @k"]) < 0.1 for row in rows)
    assert sorted(row["diffusion @1"] == "" for row in rows)[1], "the diffusion is sampled for the first sheet alone"
    substitution = found["methods"]["substitution"]
    assert substitution["strict"]["match@1"] == 0.5, "2H comes first for both polymorphs"
    assert substitution["any_polymorph_strict"]["match@1"] == 1.0 and substitution["loose"]["match@2"] == 1.0
    assert found["ceiling@1"] == 0.5
    read = {Path(name).name for name in found["inputs"]}
    assert {"train.pt", "val.pt", "test.pt", "ranker.pth", "refiner.pth", "denoiser.pth"} == read
    assert found["methods"]["ranked prototypes"]["strict"]["match@1"] == 0.5
    assert found["methods"]["ranked prototypes, refined"]["n_many"] == 2
    assert found["methods"]["diffusion"]["n"] == found["methods"]["diffusion, refined"]["n"] == 1
    assert set(found["paired"]) >= {"substitution, refined against substitution", "diffusion against substitution"}
    before = [row["height_before"] for row in found["denoising"]]
    assert before == sorted(before) and before[0] == pytest.approx(0.02, rel=0.9)
    assert found["seconds_per_sheet"] is None, "no crystal with six atoms is known"
    assert found["subsets"]["ground state"]["methods"]["substitution"]["match@1"][0] in (0.5, 1.0)
    assert "substitution, refined (2)" in capsys.readouterr().out


def test_subsets_by_hand(cfg):
    """Four sheets of two compositions: b and d are the most stable ones, a and b near the hull."""
    table = {"uid": list("abcd"), "formula": ["X", "X", "Y", "Y"], "e_hull": torch.tensor([0.05, 0.0, 0.5, 0.3])}
    base = {"num_atoms": 3, "random crystal @1": None}
    first = {"substitution @1": [0.2, None, 0.05, 0.05], "ranked prototypes, refined @1": [0.01, 0.1, 0.2, None]}
    rows = [
        {**base, "uid": u, "formula": f} | {k: v[n] for k, v in first.items()}
        for n, (u, f) in enumerate(zip("abcd", "XXYY", strict=True))
    ]
    for row, best in zip(rows[:2], (0.05, None), strict=True):
        row["substitution @k"] = best
    found = structure_ladder.subsets(rows, table, cfg)
    assert {name: part["n"] for name, part in found.items()} == {"near the hull": 2, "ground state": 2, "both": 1}
    near, ground = found["near the hull"], found["ground state"]
    assert near["methods"]["substitution"]["match@1"][0] == 0 and near["methods"]["ranked prototypes, refined"]["match@1"][0] == 1
    assert near["methods"]["substitution"]["match@k"][0] == 0.5 and near["n_many"] == 2 and found["both"]["n_many"] == 1
    assert (near["paired"]["first_alone"], near["paired"]["second_alone"], near["paired"]["p"]) == (2, 0, 0.5)
    assert ground["methods"]["substitution"]["match@1"][0] == 0.5 == ground["methods"]["ranked prototypes, refined"]["match@1"][0]
    assert structure_ladder.subsets(rows[2:3], table, cfg) == {}, "neither near the hull nor a ground state"


def test_polymorphs_are_found_by_composition(cfg):
    found = polymorphs(cfg.dataset.processed_dir)
    assert {key: len(value) for key, value in found.items()} == {(34, 34, 74): 2, (16, 16, 42): 1}
