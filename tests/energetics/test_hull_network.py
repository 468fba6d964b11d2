"""Networks beside the learnt hull: their mean, symmetries, which verdict counts, their files, and the shipped ones on MoS2."""

from __future__ import annotations

import dataclasses
import math
import shutil
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
from ase.build import mx2
from test_learnt_hull import ELEMENTS, energy_of, models

from energetics import hull_network
from energetics.hull import ReferencePhase, References
from energetics.hull_network import HullNetwork, load_hull_network, save_hull_network
from energetics.learnt_hull import LearntHull, judge_hull
from evaluation.judges import hull_identity, judge_identity
from generation.refinement import new_refiner, padded, save_refiner
from geo_utils import NotTwoDimensional, Sheet
from networks.checkpoints import CheckpointError
from networks.refiner import SheetRefiner
from networks.sheet_trunk import TrunkConfig
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.loading import load_config

SMALL = TrunkConfig(channels=16, vectors=4, tensors=4, layers=1, neighbours=12, rbf=8)
SCALE = 0.7


def member(seed: int) -> SheetRefiner:
    """A random network, whose heads start near zero, where every test would pass."""
    torch.manual_seed(seed)
    network = new_refiner(SMALL)
    for parameter in network.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    return network.eval()


def by_one(network: SheetRefiner, atoms) -> float:
    with torch.no_grad():
        return float(network.double()(padded([Sheet.from_atoms(atoms)], torch.float64)).e_hull)


def sheet(formula="MoS2", kind="1T"):
    atoms = mx2(formula, kind, a=3.3, thickness=3.1, vacuum=10.0)
    atoms.pbc = (True, True, False)
    return atoms


@pytest.fixture
def network() -> HullNetwork:
    return HullNetwork([member(0), member(1)], SCALE)


@pytest.fixture
def references() -> References:
    phases = [("Mo", -1.0, "bcc"), ("S", -2.0, "rings"), ("Au", -1.0, "fcc"), ("MoS2", -1.0 / 3 - 4.0 / 3 - 0.8, "2H bulk")]
    return References({"name": "table"}, [ReferencePhase(*phase) for phase in phases])


class Says:
    """Stands for the ensemble."""

    scale = SCALE

    def __init__(self, value: float) -> None:
        self.value = value

    combined = HullNetwork.combined

    def e_above_hull(self, atoms) -> float:
        return self.value


def test_the_mean_of_the_members_is_never_below_zero(network):
    found = {}
    for formula in ("MoS2", "PtTe2", "ZrO2", "NiI2", "AuS2", "TiSe2"):
        atoms = sheet(formula)
        found[formula] = np.mean([by_one(one, atoms) for one in network.members])
        assert network.e_above_hull(atoms) == pytest.approx(max(0.0, found[formula]), abs=1e-12)
    assert max(found.values()) > 0 and np.ptp(list(found.values())) > 0.01, "the networks tell sheets apart"
    assert not any(p.requires_grad for one in network.members for p in one.parameters())
    for answers, expected in (((-0.3, 0.1), 0.0), ((-0.1, 0.3), 0.1)):
        network.members = [lambda state, value=value: SimpleNamespace(e_hull=torch.tensor([value])) for value in answers]
        assert network.e_above_hull(sheet()) == pytest.approx(expected), "it is the mean that is cut at 0"


def test_every_setting_of_a_sheet_gives_the_same(network):
    shown = []
    for formula in ("MoS2", "ZrO2", "NiI2"):
        atoms = sheet(formula)
        expected = network.e_above_hull(atoms)
        shown.append(expected)
        turned, moved, over, basis = (atoms.copy() for _ in range(4))
        turned.rotate(37.0, "z", rotate_cell=True)
        moved.positions += np.array([0.3, 0.7, 0.0]) @ atoms.cell.array + [0, 0, 1.7]
        moved.wrap(pbc=(True, True, False))
        over.rotate(180.0, "x", rotate_cell=True)
        basis.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]]) @ atoms.cell.array)
        basis.wrap(pbc=(True, True, False))
        for other in (turned, moved, over, basis, atoms[[2, 0, 1]], atoms.repeat((2, 1, 1))):
            assert network.e_above_hull(other) == pytest.approx(expected, abs=1e-6), formula
    assert max(shown) > 0


def test_sheets_of_many_sizes_are_the_same_together_and_alone(network):
    structures = [sheet(formula) for formula in ("MoS2", "ZrO2", "NiI2")] * 20 + [sheet("TiSe2").repeat((2, 1, 1))]
    together = network.of_sheets([Sheet.from_atoms(atoms) for atoms in structures])
    assert together == pytest.approx([network.e_above_hull(atoms) for atoms in structures], abs=1e-9)
    assert len(set(np.round(together, 6))) >= 3 and network.of_sheets([]).shape == (0,)


def test_the_mean_with_the_learnt_hull_by_hand(network):
    atoms = sheet("ZrO2")
    own = network.e_above_hull(atoms)
    assert network.combined(0.3, atoms) == pytest.approx(0.25 * 0.3 + 0.75 * own, abs=1e-12)
    assert Says(0.2).combined(0.1, atoms) == pytest.approx(0.175)
    with pytest.raises(NotTwoDimensional):
        bulk = sheet()
        bulk.cell[2], bulk.pbc = [0, 0, 6.0], True
        network.e_above_hull(bulk)


def test_the_combined_verdict_and_what_it_falls_back_to(references):
    atoms = sheet()
    energy = energy_of(-0.5, atoms, ELEMENTS)
    plain = LearntHull(models(hull=0.10), references)  # says 0.2 eV/atom; size of the error 0.05
    both = LearntHull(models(hull=0.10), references, Says(0.05))
    found = judge_hull(references, both, atoms, energy, "combined")
    assert (found.e_above_hull, found.source) == (pytest.approx(0.25 * (0.2 + 0.3) / 2 + 0.75 * 0.05), "combined")
    assert found.std == pytest.approx(SCALE * 0.05) and found.potential == pytest.approx(0.3)
    assert judge_hull(references, plain, atoms, energy, "combined") == judge_hull(references, plain, atoms, energy, "learnt")
    assert judge_hull(references, both, atoms, energy, "learnt").e_above_hull == pytest.approx(0.2), "the network is not asked"
    assert judge_hull(references, None, atoms, energy, "combined").source == "potential"
    assert "combined" not in plain.e_above_hull(atoms, -0.5)[1]


def test_outside_the_domain_the_potential_counts_as_before(references):
    atoms, few = sheet(), {"Mo": 9, "S": 4}
    energy = energy_of(-0.5, atoms, ELEMENTS)
    crystal = sheet()
    crystal.cell[2], crystal.pbc = [0, 0, 7.0], True
    for given, changes in ((atoms, {"element_counts": few}), (atoms, {"e_form_range": (-0.4, 0.0)}), (crystal, {})):
        with_network = LearntHull(models(**changes), references, Says(0.05))
        found = judge_hull(references, with_network, given, energy, "combined")
        before = judge_hull(references, LearntHull(models(**changes), references), given, energy, "learnt")
        assert (found.e_above_hull, found.source) == (before.e_above_hull, before.source) and math.isnan(found.std)
        assert found.source.startswith("potential, ")


def combined(**changes):
    settings = load_config(None, ["evaluation.hull=combined"]).evaluation
    return dataclasses.replace(settings, **changes)


def test_files_that_cannot_be_used_are_named(network, tmp_path):
    path = tmp_path / "network.pth"
    save_hull_network(path, network.members, SCALE)
    again, atoms = load_hull_network(combined(hull_network=str(path))), sheet("ZrO2")
    assert again.scale == SCALE and again.e_above_hull(atoms) == pytest.approx(network.e_above_hull(atoms), abs=5e-3)
    assert load_hull_network(combined(hull_network=str(path))).e_above_hull(atoms) == again.e_above_hull(atoms)
    for mode in ("learnt", "both", "potential"):
        assert load_hull_network(combined(hull=mode, hull_network="none.pth")) is None

    content = torch.load(path, weights_only=True)
    faults = {"missing.pth": None, "damaged.pth": b"no checkpoint", "kind.pth": "refiner"}
    faults |= {"members.pth": {"members": [{}]}, "scale.pth": {"scale": "wide"}}
    for name, fault in faults.items():
        other = tmp_path / name
        if isinstance(fault, bytes):
            other.write_bytes(fault)
        elif fault == "refiner":
            save_refiner(other, member(0))
        elif fault:
            torch.save(content | fault, other)
        with pytest.raises(CheckpointError) as error:
            load_hull_network(combined(hull_network=str(other)))
        assert name in str(error.value) and hull_network.HINT in str(error.value) and "\n" not in str(error.value)
    script = hull_network.HINT.split("python -m ")[1].split(",")[0].replace(".", "/")
    assert (PROJECT_DIR / f"{script}.py").is_file(), "what the hint names exists"


def test_the_identity_of_the_judges_follows_the_file(network, tmp_path):
    path = tmp_path / "network.pth"
    save_hull_network(path, network.members, SCALE)
    settings = combined(hull_network=str(path))
    first = hull_identity(settings)
    assert first["name"] == "combined" and first["network"]["sha256"]
    save_hull_network(path, network.members, 2 * SCALE)
    assert hull_identity(settings)["network"] != first["network"] and hull_identity(settings)["sha256"] == first["sha256"]
    assert "network" not in hull_identity(combined(hull="learnt"))
    assert hull_identity(combined(hull_checkpoint=str(tmp_path / "none.pth"))) == {"name": "potential"}
    given = ["evaluation.hull=combined", "dimenet.checkpoint=weights/dimenet.pth"]
    assert judge_identity(load_config(None, given))["hull"]["name"] == "combined"
    missing = load_config(None, [*given, f"evaluation.hull_network={tmp_path / 'none.pth'}"])
    with pytest.raises(StageError, match=r"evaluation.hull_network: no file at .*none.pth"):
        judge_identity(missing)
    other = load_config(None, [*given, f"evaluation.hull_network={tmp_path / 'none.pth'}", "evaluation.hull=both"])
    assert judge_identity(other)["hull"]["name"] == "both"


def test_the_shipped_networks_know_2h_mos2(tmp_path):
    shutil.copy(PROJECT_DIR / "weights" / "hull_network.pth", tmp_path)  # a name without the folder says nothing else
    network = load_hull_network(combined(hull_network=str(tmp_path / "hull_network.pth")))
    good = ase.io.read(PROJECT_DIR / "data" / "known_sheets" / "2H-MoS2.cif")
    assert network.e_above_hull(good) < 0.15
    worse = good.copy()
    worse.numbers = np.where(worse.numbers == 16, 42, 16)  # SMo2
    assert network.e_above_hull(worse) > network.e_above_hull(good) + 0.2
    assert len(network.members) > 1 and 0 < network.scale < 2
