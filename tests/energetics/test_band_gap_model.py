"""The learnt band gap: known sheets, invariances, what it refuses, and a training on a law that is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, graphene, mx2
from ase.db import connect
from known_sheets import sheet_of
from sheet_settings import settings_of

from energetics import band_gap_model, band_gap_training
from energetics.band_gap_model import ANGLE_NAMES, GapColumns, GapModel, gap_descriptors
from geo_utils import NotTwoDimensional
from networks.checkpoints import CheckpointError
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.loading import load_config
from pipeline.provenance import read_sidecar

WEIGHTS = PROJECT_DIR / "weights" / "band_gap.pth"


def dichalcogenide(formula: str, kind: str, a: float, thickness: float) -> Atoms:
    """A sheet MX2 in 2H or 1T, lengths in Å."""
    return mx2(formula, kind, a=a, thickness=thickness, vacuum=10)


def silicene() -> Atoms:
    atoms = graphene("Si2", a=3.87, vacuum=10)
    atoms.positions[1, 2] += 0.45  # buckled
    return atoms


def platinum() -> Atoms:
    """A hexagonal layer one atom thick."""
    cell = [[2.65, 0, 0], [-1.325, 2.65 * math.sqrt(3) / 2, 0], [0, 0, 20]]
    return Atoms("Pt", [[0, 0, 10]], cell=cell, pbc=True)


@pytest.fixture(scope="module")
def model() -> GapModel:
    return GapModel.load(WEIGHTS)


# Lattice constants and gaps by PBE, as in the literature on these sheets.
KNOWN = {
    "graphene": (graphene(a=2.46, vacuum=10), 0.0),
    "silicene": (silicene(), 0.0),
    "platinum": (platinum(), 0.0),
    "2H-NbS2": (dichalcogenide("NbS2", "2H", 3.34, 3.13), 0.0),
    "2H-TaS2": (dichalcogenide("TaS2", "2H", 3.34, 3.13), 0.0),
    "1T-MoS2": (dichalcogenide("MoS2", "1T", 3.19, 3.15), 0.0),
    "2H-MoS2": (dichalcogenide("MoS2", "2H", 3.18, 3.13), 1.6),
    "2H-WS2": (dichalcogenide("WS2", "2H", 3.19, 3.14), 1.5),
    "h-BN": (graphene("BN", a=2.51, vacuum=10), 4.7),
    "1T-PtSe2": (dichalcogenide("PtSe2", "1T", 3.75, 2.65), 1.2),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_sheets(model, name):
    atoms, gap = KNOWN[name]
    value = model.band_gap(atoms)
    assert (value == 0) if gap == 0 else value == pytest.approx(gap, abs=0.5)


def test_every_setting_of_a_sheet_has_the_same_gap(model):
    rng = np.random.default_rng(0)
    with connect(PROJECT_DIR / "data" / "demo_c2db.db") as db:
        rows = [row.toatoms() for row in db.select()][::40]
    for atoms in [*rows, *(atoms for atoms, _ in KNOWN.values())]:
        first, *others = (model.band_gap(setting) for setting in settings_of(atoms, rng))
        np.testing.assert_allclose(others, first, atol=2e-3, err_msg=str(atoms.symbols))


def test_angles_and_parity_by_hand():
    prismatic, octahedral = (gap_descriptors(dichalcogenide("MoS2", kind, 3.18, 3.13)) for kind in ("2H", "1T"))
    names = GapColumns().names
    assert len(names) == len(set(names)) == len(prismatic)
    straight = names.index("least electronegative element: share of bond angles from 165 to 180 degrees")
    # Mo touches six S and six Mo; opposite bonds: the three pairs of Mo neighbours, and in the octahedron three pairs of S too.
    assert prismatic[straight] == pytest.approx(3 / 66, abs=1e-4) and octahedral[straight] == pytest.approx(6 / 66, abs=1e-4)
    start = names.index(ANGLE_NAMES[0])
    assert prismatic[start : start + len(ANGLE_NAMES)].sum() == pytest.approx(2, abs=1e-3), "shares of two elements"
    odd = [gap_descriptors(dichalcogenide(f"{metal}S2", "2H", 3.3, 3.1).repeat((2, 1, 1)))[-1] for metal in ("Mo", "Nb")]
    assert odd == [0, 1], "of the primitive cell, however it is repeated: 42 + 2 * 16 and 41 + 2 * 16 electrons"


def test_electrons_of_an_alloy_pair_on_the_lattice_that_it_decorates():
    def alloy(metals, chalcogens, cells=(2, 1)):
        sheet = dichalcogenide("NbSe2", "2H", 3.47, 3.36).repeat((*cells, 1))
        for symbol, number in (("Nb", metals), ("Se", chalcogens)):
            for place, other in zip(np.flatnonzero(sheet.symbols == symbol), number, strict=False):
                sheet.symbols[int(place)] = other
        return gap_descriptors(sheet)[-1]

    assert alloy(["Ta"], []) == alloy([], ["S"]) == 1, "17 electrons for each metal atom, though 34 in the cell"
    assert alloy(["Mo"], []) == 1 and alloy(["Ti", "Nb", "Nb", "Nb"], [], (2, 2)) == 1, "a fraction of an electron"
    assert alloy(["Mo", "W"], ["S"]) == 0 and alloy(["Mo", "W", "W", "W"], [], (2, 2)) == 0, "18 for each"
    dimers = dichalcogenide("ReS2", "1T", 3.1, 3.0).repeat((2, 1, 1))
    assert gap_descriptors(dimers)[-1] == 1
    dimers.positions[dimers.symbols == "Re"] += [[0.35, 0, 0], [-0.35, 0, 0]]
    assert gap_descriptors(dimers)[-1] == 0, "two metal atoms share a bond"


def test_what_is_not_judged(model):
    rare = KNOWN["2H-MoS2"][0].copy()
    rare.numbers[0] = 94
    assert math.isnan(model.band_gap(rare))
    with pytest.raises(NotTwoDimensional):
        model.band_gap(bulk("Cu"))


def test_checkpoints_that_do_not_fit_are_named(model, tmp_path):
    content = torch.load(WEIGHTS, weights_only=True)
    other = dataclasses.asdict(GapColumns(["height"]))
    for change in ({"model_config": other}, {"has_gap": {"start": 0.0}}, {"element_counts": None}):
        torch.save(content | change, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=r"x\.pth does not fit.*train_band_gap"):
            GapModel.load(tmp_path / "x.pth")
    assert band_gap_model.load_gap_model("") is None


def test_the_card_says_that_the_trees_beat_trivial_answers_on_held_out_formulas():
    found = read_sidecar(WEIGHTS, stage=band_gap_training.STAGE)["metrics"]["test"]
    trees, trivial, composition = found["trees"], found["always a metal"], found["trees on composition"]
    assert trees["n"] >= 300 and trees["metal_or_not_accuracy"][1] > trivial["metal_or_not_accuracy"][2]
    assert trees["mae_ev"][2] < min(trivial["mae_ev"][1], found["mean gap, mae_ev"])
    assert trees["roc_auc"][0] > composition["roc_auc"][0] and trees["mae_ev"][0] < composition["mae_ev"][0]


def write_law(path) -> None:
    """Sheets whose gap is a law of the polymorph: metals in 2H, and 3 eV less 0.5 eV per period of the anion in 1T."""
    metals = ("Ti", "Zr", "Hf", "V", "Nb", "Ta", "Cr", "Mo", "W", "Ni", "Pd", "Pt", "Sn", "Re", "Ru", "Co", "Fe", "Ge", "Rh", "Ir")
    with connect(path) as db:
        for metal in metals:
            for period, anion in enumerate(("S", "Se", "Te")):
                for family, gap in (("2H-MX2", 0.0), ("1T-MX2", 3.0 - 0.5 * period)):
                    db.write(sheet_of(family, metal, anion).to_atoms(), gap=gap)
        db.write(sheet_of("2H-MX2", "Mo", "O").to_atoms())  # no gap
        db.write(bulk("Cu"), gap=0.0)


def test_a_law_is_learnt_and_measured(tmp_path):
    write_law(tmp_path / "law.db")
    own = {"db_path": tmp_path / "law.db", "checkpoint": tmp_path / "gap.pth", "trees": 60}
    cfg = load_config(None, [*(f"band_gap.{key}={value}" for key, value in own.items()), "evaluation.bootstrap=50"])
    band_gap_training.train_stage(cfg)
    card = read_sidecar(tmp_path / "gap.pth", stage=band_gap_training.STAGE)
    assert card["counts"]["no gap"] == 1 and card["counts"]["not described: NotTwoDimensional"] == 1
    assert sum(card["counts"][f"{side} sheets"] for side in ("train", "val", "test")) == 120
    for part in ("test", "cross-validation"):
        value, low, high = card["metrics"][part]["trees"]["mae_ev"]
        assert low <= value <= high and value < 0.3 < card["metrics"][part]["always a metal"]["mae_ev"][0]
        assert card["metrics"][part]["trees"]["metal_or_not_accuracy"][0] > 0.9
        assert card["metrics"][part]["trees on composition"]["metal_or_not_accuracy"][0] < 0.8, "polymorphs have one composition"
    loaded = GapModel.load(tmp_path / "gap.pth")
    assert loaded.band_gap(sheet_of("2H-MX2", "Mo", "S").to_atoms()) == 0
    assert loaded.band_gap(sheet_of("1T-MX2", "Mo", "S").to_atoms()) == pytest.approx(3.0, abs=0.3)


def test_positions_over_lengths_are_repaired_where_the_space_group_says_so():
    nitride, rectangle = KNOWN["h-BN"][0], sheet_of("FeOCl", "Fe", "O", "Cl").to_atoms()
    nitride.pbc = rectangle.pbc = True
    broken = nitride.copy()
    broken.set_scaled_positions(nitride.positions / nitride.cell.lengths())
    assert band_gap_training.true_geometry(nitride, 187) is nitride, "P-6m2, as it should be"
    repaired = band_gap_training.true_geometry(broken, 187)
    assert broken.get_distance(0, 1, mic=True) < 1.2 and repaired.get_distance(0, 1, mic=True) == pytest.approx(2.51 / math.sqrt(3))
    assert band_gap_training.true_geometry(broken, 164) is None, "neither has this space group"
    assert band_gap_training.true_geometry(rectangle, 1) is rectangle, "the mistake cannot touch a rectangle"


def test_databases_without_gaps_are_named(tmp_path):
    with connect(tmp_path / "x.db") as db:
        db.write(sheet_of("2H-MX2", "Mo", "S").to_atoms(), gap=1.6)
    with pytest.raises(StageError, match=r"x\.db: 1 sheets with a gap on the train side, 0 of them metals, are too few"):
        band_gap_training.read_table(tmp_path / "x.db", (0, 0.1, 0.1))
    with pytest.raises(StageError, match="band_gap.db_path"):
        band_gap_training.read_table(tmp_path / "none.db", (0, 0.1, 0.1))


def test_intervals_are_of_formulas_and_hold_the_value():
    formulas = np.repeat([f"A{k}" for k in range(20)], 3)
    values = np.repeat(np.random.default_rng(0).normal(size=20), 3)  # polymorphs that all say the same
    value, low, high = band_gap_training.interval(lambda rows: float(values[rows].mean()), formulas, 0, 2000)
    assert value == pytest.approx(values.mean()) and low < value < high
    assert (high - low) / (2 * 1.96) == pytest.approx(values[::3].std() / np.sqrt(20), rel=0.15), "as of 20 values, not of 60"


def test_the_correction_has_a_gap_for_rare_elements_too(model):
    dihalide = Atoms(
        "BeI2", [[0, 0, 0], [1.9, 1.1, 1.4], [0, 2.2, -1.4]], cell=[[3.8, 0, 0], [-1.9, 3.29, 0], [0, 0, 25]], pbc=True
    )
    assert model.element_counts["Be"] < band_gap_model.MIN_ELEMENT_ROWS and math.isnan(model.band_gap(dihalide))
    assert model.rough_gap(dihalide) > 1.0, "an ionic crystal, by its descriptors"
    layer = KNOWN["h-BN"][0]
    assert model.rough_gap(layer) == model.band_gap(layer)
    assert math.isnan(model.rough_gap(bulk("Cu")))
