"""The denoiser of elements from splits of stage 2 to its checkpoint, and what it is told of the sheets."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.build import mx2
from tiny_denoiser import tiny_denoiser

from crystals import database
from crystals.prototypes import honeycomb
from energetics.band_gap_model import load_gap_model
from energetics.dynamics_model import load_dynamics_model
from evaluation import element_labels
from evaluation.triage import QuickJudges
from generation import sheet_table
from generation.element_training import PRIOR_CRYSTALS, ElementTable, frequency_loss
from generation.elements import CONDITIONS, load_elements
from generation.refinement import padded
from generation.sampling import predict_properties
from generation.sheet_pairs import pair_table
from geo_utils import NotTwoDimensional, Sheet
from networks.checkpoints import save_checkpoint
from pipeline import torchrun
from pipeline.errors import ConfigError, StageError
from pipeline.loading import load_config
from pipeline.provenance import read_sidecar
from pipeline.store import LineStore
from pipeline.tasks import Serial
from scripts import train_elements

TRAINING = {"2H": ("Mo", "W", "Nb", "Ta"), "1T": ("Pt", "Zr", "Hf", "Ti")}
VALIDATION = {"2H": ("Ti", "Cr"), "1T": ("W", "Sn")}  # Cr and Sn are in no training sheet
TINY = {"channels": 16, "vectors": 4, "tensors": 4, "layers": 1, "neighbours": 12, "dropout": 0.0, "max_steps": 4,
        "batch_size": 16, "warmup_steps": 1, "eval_every": 2, "learning_rate": 0.01, "ema_decay": 0.5}  # fmt: skip


def split_rows(name: str) -> list[database.Row]:
    """Dichalcogenides in two arrangements, which three or more crystals have, and two crystals of a third arrangement."""
    metals = {"train": TRAINING, "val": VALIDATION}[name]
    atoms = [mx2(f"{m}{x}2", kind, a=3.2 + 0.01 * k, thickness=3.1, vacuum=10.0)
             for kind, of_kind in metals.items() for k, m in enumerate(of_kind) for x in ("S", "Se", "Te")]  # fmt: skip
    atoms += [honeycomb("B", "N"), honeycomb("Ga", "N")] if name == "train" else []
    return [
        database.Row(k, f"{name}{k}", Sheet.from_atoms(a), a.get_chemical_formula(), "", 0.01 * k - 0.02, -1.0, 1.0)
        for k, a in enumerate(atoms)
    ]


def settings(folder: Path, *overrides: str):
    lines = [f"elements.{name}={value}" for name, value in TINY.items()] + [f"elements.checkpoint={folder}/out/elements.pth"]
    lines += [f"dataset.processed_dir={folder}", f"denoiser.checkpoint={folder}/denoiser.pth", "evaluation.hull=learnt"]
    return load_config(None, [*lines, "run.device=cpu", "run.threads=1", *overrides])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder in which the script has run."""
    folder = tmp_path_factory.mktemp("elements")
    for name in ("train", "val"):
        torch.save(sheet_table.pack(split_rows(name), {}), folder / f"{name}.pt")
    model = tiny_denoiser()
    content = {"model": model.state_dict(), "elements": [16, 42], "formulas": ["MoS2"]}
    save_checkpoint(folder / "denoiser.pth", "denoiser", model.config, content)
    train_elements.main(settings(folder))
    return folder


def labels_of(folder: Path) -> torch.Tensor:
    lines = [json.loads(line) for line in (folder / "out" / "labels.jsonl").read_text().splitlines()]
    return torch.tensor([row for line in lines if "labels" in line for row in line["labels"]])


def test_the_checkpoint_holds_arrangements_of_three_crystals_or_more(trained):
    model = load_elements(trained / "out" / "elements.pth")
    assert model.arrangements.crystals.tolist() == [12, 12] and sorted(model.arrangements.layer_group.tolist()) == [72, 78]
    assert model.network.config.conditions == CONDITIONS and model.network.config.channels == 16
    elements = {7, 5, 31, 16, 34, 52, 42, 74, 41, 73, 78, 40, 72, 22}
    assert set(torch.nonzero(model.seen).flatten().tolist()) == elements, "none of the validation split"
    card = read_sidecar(trained / "out" / "elements.pth", stage=train_elements.STAGE)
    assert (card["counts"]["train"], card["counts"]["val"], card["counts"]["arrangements"]) == (26, 12, 2)
    metrics = card["metrics"]
    losses = [metrics[name] for name in ("val_told", "val_not_told", "val_frequencies")]
    assert all(0 < loss < 20 for loss in losses), "sheets of elements that no training sheet has do not count"
    assert -3 < metrics["val_arrangement_gain"] < math.log(26)
    assert metrics["step"] in (2, 4) and not (trained / "out" / "resume.pt").exists()
    assert [Path(path).name for path in card["inputs"]][:3] == ["train.pt", "val.pt", "denoiser.pth"]


def test_what_the_network_is_told(trained):
    """ΔG_H of the heads, E_hull on record, and the trees of stage 5, for every sheet in its order."""
    pairs, found = pair_table(trained / "train.pt", trained / "val.pt"), labels_of(trained)
    assert found.shape == (38, len(CONDITIONS))
    sheets = [
        Sheet.from_atoms(
            Sheet(*(x[k, :n].double().numpy() if x.is_floating_point() else x[k, :n].numpy() for x in columns), cell).to_atoms()
        )
        for columns in [(pairs.atomic_numbers, pairs.frac_coords, pairs.heights)]
        for k, (n, cell) in enumerate(zip(pairs.sizes.tolist(), pairs.cell.double().numpy(), strict=True))
    ]
    by_heads = predict_properties(tiny_denoiser(), sheets).delta_g
    assert torch.allclose(found[:, 0], by_heads.float(), atol=2e-3) and torch.allclose(found[:, 1], pairs.e_hull)
    evaluation = settings(trained).evaluation
    gap, dynamics = load_gap_model(evaluation.band_gap_checkpoint), load_dynamics_model(evaluation.dynamics_checkpoint)
    for k in (0, 5, 20, 37):
        atoms = sheets[k].to_atoms(15.0)
        assert float(found[k, 2]) == float(gap.band_gap(atoms) <= evaluation.conductive_gap_ev)
        assert float(found[k, 3]) == pytest.approx(dynamics.without_phonons(atoms, max(0.0, float(pairs.e_hull[k]))), abs=0.02)
    assert set(found[:, 4].tolist()) <= {0.0, 1.0}
    network, training = load_elements(trained / "out" / "elements.pth").network, found[pairs.training]
    assert torch.allclose(network.condition_mean, training.mean(0), atol=2e-3)
    assert torch.allclose(network.condition_std, training.std(0, correction=0).clamp(min=1e-3), atol=2e-3)


def test_the_frequencies_by_counting(trained):
    """Loss by the elements that each place of an arrangement has in training, five crystals more having those of all places."""
    places = {(kind, place): Counter() for kind in ("2H", "1T", "BN") for place in "MX"}
    for kind, metals in TRAINING.items():
        for metal in metals:
            places[kind, "M"][metal] += 3
            places[kind, "X"].update(("S", "Se", "Te"))
    places["BN", "M"].update(("B", "Ga"))
    places["BN", "X"].update(("N", "N"))
    everywhere = sum(places.values(), Counter())
    spread = {element: (everywhere[element] + 1e-3) for element in everywhere}
    total = sum(everywhere.values()) + 119e-3

    def nats(kind, place, element):
        prior = spread.get(element, 1e-3) / total
        return -math.log((places[kind, place][element] + PRIOR_CRYSTALS * prior) / (12 + PRIOR_CRYSTALS))

    expected = np.mean([nats(kind, "M", m) + nats(kind, "X", x) for kind, (m, _) in VALIDATION.items() for x in ("S", "Se", "Te")])
    table = ElementTable.of(pair_table(trained / "train.pt", trained / "val.pt"), torch.zeros(38, 5))
    assert frequency_loss(table) == pytest.approx(expected, rel=1e-5)
    card = read_sidecar(trained / "out" / "elements.pth", stage=train_elements.STAGE)
    assert card["metrics"]["val_frequencies"] == pytest.approx(expected, rel=1e-5)


def test_a_second_start_does_nothing_and_labels_are_kept(trained, monkeypatch, capsys):
    path = trained / "out" / "elements.pth"
    before, labels = path.stat().st_mtime_ns, (trained / "out" / "labels.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(train_elements, "_train", lambda *_: pytest.fail("trained again"))
        train_elements.main(settings(trained))
    assert path.stat().st_mtime_ns == before and capsys.readouterr().out == ""

    def nothing_left(function, tasks, store, where):
        assert not tasks, "labels are made again"
        return iter(())

    monkeypatch.setattr(element_labels, "run", nothing_left)
    train_elements.main(settings(trained, "elements.max_steps=2", f"elements.checkpoint={trained}/out/short.pth"))
    assert (trained / "out" / "labels.jsonl").read_bytes() == labels
    assert "nats a sheet of the validation split" in capsys.readouterr().out
    assert read_sidecar(trained / "out" / "short.pth", stage=train_elements.STAGE)["metrics"]["step"] == 2


def test_the_same_seed_gives_the_same_network(trained):
    (trained / "again").mkdir()
    shutil.copy(trained / "out" / "labels.jsonl", trained / "again")
    train_elements.main(settings(trained, f"elements.checkpoint={trained}/again/elements.pth"))
    first, second = (load_elements(trained / name / "elements.pth").network.state_dict() for name in ("out", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_used_is_one_line(trained, tmp_path, monkeypatch):
    with pytest.raises(StageError, match=r"train\.pt is missing: run material_dataset\.py"):
        train_elements.main(settings(trained, f"dataset.processed_dir={tmp_path}"))
    for name in ("train", "val"):  # the training split has no sulphur any more, the validation split nothing else
        rows = [r for r in split_rows(name) if ("S" in r.sheet.to_atoms().get_chemical_symbols()) == (name == "val")]
        torch.save(sheet_table.pack(rows, {}), tmp_path / f"{name}.pt")
    monkeypatch.setattr(element_labels, "Processes", lambda workers, load: Serial(load))
    monkeypatch.setattr(element_labels, "_label_batch", lambda judges, task: {"labels": [[0.0] * 5 for _ in task[0]]})
    with pytest.raises(StageError, match="no sheet of the validation split has an arrangement and elements"):
        train_elements.main(settings(trained, f"dataset.processed_dir={tmp_path}", f"elements.checkpoint={tmp_path}/e.pth"))
    monkeypatch.setattr(torchrun, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="one device: start it without torchrun"):
        train_elements.main(settings(trained))


class Unsure:
    """Judges without an answer: no water data, no known element, and a sheet that none can describe."""

    settings = SimpleNamespace(conductive_gap_ev=0.5)

    def __init__(self, **judges) -> None:
        self.gap, self.dynamics, self.water = judges.get("gap"), judges.get("dynamics"), None

    dissolves = QuickJudges.dissolves


def test_what_no_judge_knows_is_not_told_and_survives_the_store(tmp_path):
    def fails(*_):
        raise NotTwoDimensional("no sheet")

    sheet = Sheet.from_atoms(mx2("MoS2", "2H", a=3.2, thickness=3.1, vacuum=10.0))
    nan, says = math.nan, lambda value: SimpleNamespace(band_gap=lambda _: value, without_phonons=lambda *_: value)
    cases = [({}, [nan, nan, nan]), ({"gap": says(0.5)}, [1.0, nan, nan]), ({"gap": says(0.6)}, [0.0, nan, nan])]
    cases += [({"gap": says(nan), "dynamics": says(0.3)}, [nan, 0.3, nan]), ({"gap": SimpleNamespace(band_gap=fails)}, [nan] * 3)]
    for given, expected in cases:
        found = element_labels._labels(Unsure(**given), sheet, 0.2, -0.1)
        assert [found[name] for name in CONDITIONS] == pytest.approx([0.2, -0.1, *expected], nan_ok=True)

    pairs = SimpleNamespace(sizes=torch.tensor([3]), e_hull=torch.tensor([0.1]))
    pairs.state = lambda rows: padded([sheet])
    load = lambda: element_labels.LabelJudges(tiny_denoiser(), Unsure())  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(element_labels, "Processes", lambda workers, load: Serial(load))
        made = element_labels.element_labels(pairs, load, 1, LineStore(tmp_path / "labels.jsonl", {}))
        again = element_labels.element_labels(pairs, fails, 1, LineStore(tmp_path / "labels.jsonl", {}))
    assert torch.isnan(made[0, 2:]).all() and torch.isfinite(made[0, :2]).all()
    assert torch.equal(made.nan_to_num(9.0), again.nan_to_num(9.0))
