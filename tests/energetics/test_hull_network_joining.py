"""Joining networks to an ensemble, with alloy sheets whose potential is EMT and two small networks of random weights."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from test_hull_network import SMALL, member
from test_learnt_hull import EMT_POTENTIAL, METALS, models

from crystals import database
from crystals.prototypes import honeycomb
from energetics import hull_network_joining
from energetics.hull import ReferencePhase, References
from energetics.hull_network import HullNetwork, load_hull_network, load_members
from energetics.learnt_hull import KIND, HullColumns, LearntHull
from energetics.potentials import Potential
from energetics.relaxation import single_point
from generation import sheet_table
from generation.refinement import load_refiner, save_refiner
from geo_utils import Sheet
from networks.checkpoints import save_checkpoint
from pipeline.errors import StageError
from pipeline.loading import load_config
from pipeline.provenance import read_sidecar
from pipeline.settings import EvaluationConfig
from scripts import join_hull_network

UNKNOWN = "Ag"  # of which the learnt hull has seen too little


def alloys() -> dict[str, list[Atoms]]:
    """Sheets of two metals by split; every fifth has four atoms."""
    found = []
    for number, (a, b) in enumerate(itertools.combinations(METALS, 2)):
        found += [honeycomb(a, b), honeycomb(b, a) if number % 5 else honeycomb(a, b).repeat((2, 1, 1))]
    return {"val": found[::2], "test": found[1::2]}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """References, learnt hull, splits and two networks."""
    folder = tmp_path_factory.mktemp("joining")
    elements = {m: single_point(honeycomb(m, m), EMT()) / 2 - 0.2 for m in METALS}
    References(EMT_POTENTIAL.identity, [ReferencePhase(m, e, "fcc") for m, e in elements.items()]).save(
        folder / "references.json.gz"
    )
    counts = {m: 1 if m == UNKNOWN else 9 for m in METALS}
    learnt = models(hull=-0.05, e_form=-0.1, element_counts=counts, e_form_range=(-9.0, 9.0))
    save_checkpoint(folder / "hull.pth", KIND, HullColumns(), learnt.state() | {"potential_sha256": "emt"})
    truth = np.random.default_rng(3)
    for name, sheets in alloys().items():
        rows = [
            database.Row(k, f"{name}{k}", Sheet.from_atoms(a), a.get_chemical_formula(), "", truth.uniform(0, 0.8), 0.0, 1.0)
            for k, a in enumerate(sheets)
        ]
        torch.save(sheet_table.pack(rows, {}), folder / f"{name}.pt")
    for seed in (0, 1):
        save_refiner(folder / f"{seed}.pth", member(seed))
    return folder


def settings(world: Path, *overrides: str):
    own = {"members": f"[{world}/0.pth,{world}/1.pth]", "checkpoint": world / "out" / "network.pth", "work_dir": world / "work"}
    own |= {"calibration_rows": 14, "test_rows": 10, "max_atoms": 3}
    lines = [f"hull_network.{name}={value}" for name, value in own.items()]
    lines += [f"evaluation.references_path={world}/references.json.gz", f"evaluation.hull_checkpoint={world}/hull.pth"]
    lines += ["evaluation.max_steps=1", "evaluation.fmax_ev_per_angstrom=50", "evaluation.bootstrap=20"]
    lines += [f"dataset.processed_dir={world}", "run.device=cpu", "run.threads=1", "evaluation.hull=combined"]
    return load_config(None, [*lines, *overrides])


class Counted(EMT):
    """Counts the structures that it computes."""

    computed = 0

    def calculate(self, *arguments, **named):
        type(self).computed += 1
        super().calculate(*arguments, **named)


@pytest.fixture
def emt(monkeypatch) -> type[Counted]:
    monkeypatch.setattr(
        hull_network_joining,
        "load_potential",
        lambda *_: Potential(EMT_POTENTIAL.name, EMT_POTENTIAL.identity, Counted()),
    )
    monkeypatch.setattr(Counted, "computed", 0)
    return Counted


def records(world: Path, split: str) -> dict[int, dict]:
    """The relaxed sheets of a split, by row."""
    lines = [json.loads(line) for line in (world / "work" / f"{split}.jsonl").read_text().splitlines()]
    return {int(line["key"]): line for line in lines if "key" in line}


def judged_by_hand(world: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Errors of 0.125 (learnt + potential) + 0.75 network, and their sizes by the learnt hull, of the stored relaxations."""
    references = References.load(world / "references.json.gz", EMT_POTENTIAL)
    learnt = LearntHull.load(world / "hull.pth", references, EMT_POTENTIAL)
    network = HullNetwork([load_refiner(world / f"{seed}.pth")[0] for seed in (0, 1)], 1.0)
    truth = sheet_table.read_split(world / f"{split}.pt")["e_hull"].tolist()
    errors, sizes = [], []
    for k, found in records(world, split).items():
        atoms = Atoms(found["numbers"], found["positions"], cell=found["cell"], pbc=(True, True, False))
        assert single_point(atoms, EMT()) == pytest.approx(found["energy"]) and found["status"] == "ok"
        if UNKNOWN in set(atoms.symbols):
            continue
        value, std = learnt.e_above_hull(atoms, references.e_form(atoms, found["energy"]))
        potential = max(0.0, references.e_above_hull(atoms, found["energy"]))
        errors.append(abs(0.125 * (value + potential) + 0.75 * network.e_above_hull(atoms) - truth[k]))
        sizes.append(std["learnt"] / 1.2)
    return np.array(errors), np.array(sizes)


def test_the_stage_joins_measures_and_relaxes_nothing_twice(world, emt, capsys):
    cfg = settings(world)
    join_hull_network.main(cfg)
    assert "network.pth" in capsys.readouterr().out
    drawn = {split: records(world, split) for split in ("val", "test")}
    assert {split: len(found) for split, found in drawn.items()} == {"val": 14, "test": 10}
    assert all(len(found["numbers"]) <= 3 for split in drawn.values() for found in split.values())
    joined = load_hull_network(
        EvaluationConfig(
            hull="combined", hull_checkpoint="weights/hull_sevennet-0.pth", hull_network=str(world / "out" / "network.pth")
        )
    )
    assert len(joined.members) == 2 and joined.members[0].config == SMALL

    errors, sizes = judged_by_hand(world, "val")
    assert 5 < len(errors) < 14, "sheets outside the domain of the learnt hull do not count"
    assert joined.scale == pytest.approx(np.quantile(errors / sizes, math.erf(math.sqrt(0.5))), rel=1e-6)
    assert abs((errors <= joined.scale * sizes).mean() - 0.683) <= 1 / len(errors)

    card = read_sidecar(world / "out" / "network.pth", stage=hull_network_joining.STAGE)
    assert card["scale"] == joined.scale and card["counts"]["members"] == 2
    of_test, of_val = (card["metrics"][f"{name}, relaxed"] for name in ("test", "validation"))
    assert of_val["combined"]["mae_ev"][0] == pytest.approx(errors.mean(), rel=1e-6)
    errors, sizes = judged_by_hand(world, "test")
    assert of_test["combined"]["mae_ev"][0] == pytest.approx(errors.mean(), rel=1e-6) and of_test["combined"]["n"] == len(errors)
    std = np.maximum(0.01, joined.scale * sizes)
    assert of_test["combined"]["within one standard error"] == pytest.approx((errors <= std).mean())
    assert of_test["combined"]["within two"] == pytest.approx((errors <= 2 * std).mean())
    assert set(of_test) == {"learnt", "potential", "network", "both", "combined"} and card["counts"]["test sheets"] == len(errors)

    computed, emt.computed = emt.computed, 0
    join_hull_network.main(cfg)
    assert computed >= 24 and emt.computed == 0, "relaxations are kept"
    assert read_sidecar(world / "out" / "network.pth", stage=hull_network_joining.STAGE)["metrics"] == card["metrics"]
    again = world / "again.pth"  # from the joined networks, whose weights are in half precision
    join_hull_network.main(settings(world, f"hull_network.members=[{world}/out/network.pth]", f"hull_network.checkpoint={again}"))
    for kept, copied in zip(joined.members, load_members(again), strict=True):
        assert all(torch.equal(weight, kept.state_dict()[name]) for name, weight in copied.state_dict().items())
    assert read_sidecar(again, stage=hull_network_joining.STAGE)["scale"] == pytest.approx(joined.scale, rel=1e-2)
    more = settings(world, "hull_network.test_rows=12", f"hull_network.checkpoint={world}/more.pth")
    join_hull_network.main(more)
    assert 0 < emt.computed <= 4, "further sheets alone are relaxed"
    join_hull_network.main(settings(world, "evaluation.max_steps=2", f"hull_network.checkpoint={world}/more.pth"))
    assert emt.computed > 20, "relaxations of other settings are made anew"


def test_what_is_missing_is_one_line(world, emt, tmp_path):
    with pytest.raises(StageError, match="hull_network.members names no checkpoint: run python -m scripts.train_refiner"):
        join_hull_network.main(settings(world, "hull_network.members=[]"))
    with pytest.raises(StageError, match="none.pth"):
        join_hull_network.main(settings(world, f"hull_network.members=[{tmp_path}/none.pth]"))
    with pytest.raises(StageError, match="no-hull.pth"):
        join_hull_network.main(settings(world, f"evaluation.hull_checkpoint={tmp_path}/no-hull.pth"))
    with pytest.raises(StageError, match=r"val\.pt"):
        join_hull_network.main(settings(world, f"dataset.processed_dir={tmp_path}"))
    assert emt.computed == 0, "nothing is relaxed in vain"


def test_sheets_that_nobody_can_judge_are_one_line(world, emt, tmp_path):
    learnt = models(element_counts={}).state()
    save_checkpoint(tmp_path / "narrow.pth", KIND, HullColumns(), learnt | {"potential_sha256": "emt"})
    narrow = settings(world, f"evaluation.hull_checkpoint={tmp_path}/narrow.pth", f"hull_network.work_dir={tmp_path}/work")
    with pytest.raises(
        StageError, match=r"no sheet of .*val\.pt can be judged by the learnt hull: run python -m scripts.train_hull "
    ):
        join_hull_network.main(narrow)
