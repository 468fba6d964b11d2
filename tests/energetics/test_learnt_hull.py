"""The learnt hull: its parts by hand, its domain, which judge counts, and a training on a small world whose answer is known."""

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.build import mx2
from ase.calculators.emt import EMT
from ase.db import connect

from crystals.database import formula_key, split_of
from crystals.prototypes import honeycomb
from energetics import learnt_hull, learnt_hull_data, learnt_hull_training
from energetics.hull import ReferencePhase, References, sample_rows
from energetics.learnt_hull import HullModels, HullVerdict, LearntHull, judge_hull, mixing_shift
from energetics.potentials import Potential
from energetics.relaxation import single_point
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import CheckpointError, save_checkpoint
from pipeline.loading import load_config
from pipeline.provenance import read_sidecar
from scripts import train_hull

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")
EMT_POTENTIAL = Potential("sevennet-0", {"name": "sevennet-0", "sha256": "emt"}, EMT())


def constant(columns, value):
    """Trees that say the same everywhere."""
    leaf = {"feature": [-1], "threshold": [0.0], "left": [0], "right": [0], "value": [0.0], "roots": [0]}
    kinds = {"threshold": float, "value": float}
    return BoostedTrees(value, columns, **{name: np.array(entry, dtype=kinds.get(name, int)) for name, entry in leaf.items()})


def models(hull=0.0, e_form=0.0, error=0.05, **changes):
    columns = learnt_hull.HullColumns()
    parts = [constant(len(c), v) for c, v in ((columns.hull, hull), (columns.e_form, e_form), (columns.error, error))]
    own = HullModels(*parts, {"learnt": 1.2, "both": 1.0}, {"Mo": 9, "S": 9, "Fe": 9, "O": 9}, 5, (-4.0, 1.0), (0, 0.1, 0.1))
    return dataclasses.replace(own, **changes)


@pytest.fixture
def references():
    phases = [("Mo", -1.0, "bcc"), ("S", -2.0, "rings"), ("Fe", -3.0, "bcc"), ("O", -4.0, "gas"), ("Au", -1.0, "fcc")]
    phases += [("MoS2", -1.0 / 3 - 4.0 / 3 - 0.8, "2H bulk"), ("FeO", -3.5 - 1.0, "rocksalt")]
    return References({"name": "table"}, [ReferencePhase(*phase) for phase in phases])


def sheet(formula="MoS2"):
    atoms = mx2(formula, "2H", a=3.18, thickness=3.19, vacuum=10.0)
    atoms.pbc = (True, True, False)
    return atoms


def energy_of(e_form, atoms, elements):
    """Energy of a cell (eV) with a formation energy (eV/atom)."""
    return e_form * len(atoms) + sum(elements[symbol] for symbol in atoms.get_chemical_symbols())


ELEMENTS = {"Mo": -1.0, "S": -2.0, "Fe": -3.0, "O": -4.0, "Au": -1.0}


def test_the_mixing_shift_is_that_of_mp2020():
    from pymatgen.core import Composition
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
    from pymatgen.entries.computed_entries import ComputedEntry

    scheme = MaterialsProject2020Compatibility()
    for metal, partner in itertools.product(("V", "Cr", "Mn", "Fe", "Co", "Ni", "Mo", "W"), ("O", "F")):
        entry = ComputedEntry(
            Composition({metal: 1, partner: 2}), -10.0, parameters={"run_type": "GGA+U", "hubbards": {metal: 1.0}}
        )
        shifts = [a.value for a in scheme.get_adjustments(SimpleNamespace(**_as_mp(entry, metal, partner))) if "mixing" in a.name]
        assert mixing_shift(f"{metal}{partner}2") == pytest.approx(sum(shifts) / 3)
    assert mixing_shift("FeS2") == mixing_shift("TiO2") == 0.0


def _as_mp(entry, metal, partner):
    """What the scheme asks of an entry, with the U values of its own table."""
    from pymatgen.io.vasp.sets import MPRelaxSet

    table = MPRelaxSet.CONFIG["INCAR"]["LDAUU"][partner]
    labels = MPRelaxSet.CONFIG["POTCAR"]
    parameters = {
        "run_type": "GGA+U",
        "hubbards": {metal: table[metal], partner: 0},
        "potcar_symbols": [f"PBE {labels[metal]}", f"PBE {labels[partner]}"],
    }
    return {
        "composition": entry.composition,
        "elements": entry.composition.elements,
        "energy_per_atom": entry.energy_per_atom,
        "parameters": parameters,
        "data": {"oxidation_states": {metal: 2 if partner == "F" else 4, partner: -1 if partner == "F" else -2}},
        "entry_id": "x",
        "correction": 0.0,
    }


def test_e_above_hull_is_corrected_e_form_minus_learnt_hull(references):
    judge = LearntHull(models(hull=0.10, e_form=-0.03), references)
    atoms = sheet()
    assert judge.hull_energy("MoS2") == pytest.approx(-0.8 + 0.10)
    value, std = judge.e_above_hull(atoms, -0.5)
    assert value == pytest.approx(-0.5 - 0.03 - (-0.8 + 0.10))
    assert std == {"learnt": pytest.approx(0.06), "both": pytest.approx(0.05)}
    assert judge.e_above_hull(atoms, -0.9)[0] == 0.0, "no crystal is below the hull"
    assert LearntHull(models(relaxation=0.02), references).e_above_hull(atoms, -0.5)[0] == pytest.approx(-0.5 + 0.02 + 0.8)
    assert LearntHull(models(error=0.0), references).e_above_hull(atoms, -0.5)[1]["learnt"] == learnt_hull.LEAST_STD
    iron = sheet("FeO2")
    assert judge.e_form(iron, -1.0) == pytest.approx(-1.0 - 0.03 + 0.75 * -2.256 / 3)


def test_who_counts_and_why(references):
    atoms, judge = sheet(), LearntHull(models(hull=0.10), references)
    energy = energy_of(-0.5, atoms, ELEMENTS)
    learnt = judge_hull(references, judge, atoms, energy, "learnt")
    assert learnt == HullVerdict(pytest.approx(0.2), pytest.approx(0.06), pytest.approx(0.3), "learnt")
    both = judge_hull(references, judge, atoms, energy, "both")
    assert (both.e_above_hull, both.std, both.source) == (pytest.approx(0.25), pytest.approx(0.05), "both")
    for mode, given in (("potential", judge), ("learnt", None)):
        own = judge_hull(references, given, atoms, energy, mode)
        assert (own.e_above_hull, own.source) == (pytest.approx(0.3), "potential") and math.isnan(own.std)
    low = judge_hull(references, None, atoms, energy_of(-0.9, atoms, ELEMENTS), "potential")
    assert low.e_above_hull == pytest.approx(-0.1) and low.source == "potential, below its phases"


def test_outside_its_domain_the_potential_counts_and_says_why(references):
    atoms, few = sheet(), {"Mo": 9, "S": 4}
    energy = energy_of(-0.5, atoms, ELEMENTS)
    found = judge_hull(references, LearntHull(models(element_counts=few), references), atoms, energy, "learnt")
    assert (found.e_above_hull, found.source) == (pytest.approx(0.3), "potential, element not in training: S")
    found = judge_hull(references, LearntHull(models(e_form_range=(-0.4, 0.0)), references), atoms, energy, "learnt")
    assert found.source == "potential, E_form outside training" and math.isnan(found.std)
    crystal = sheet()
    crystal.cell[2] = [0, 0, 7.0]
    crystal.pbc = True
    found = judge_hull(references, LearntHull(models(), references), crystal, energy, "both")
    assert found.source == "potential, no sheet"


def test_a_pair_without_competing_compound_is_judged_by_the_learnt_hull_alone(references):
    atoms = sheet("FeS2")
    energy = energy_of(-0.4, atoms, ELEMENTS)
    with pytest.raises(KeyError, match="no competing compound"):
        judge_hull(references, None, atoms, energy, "learnt")
    found = judge_hull(references, LearntHull(models(hull=-0.5), references), atoms, energy, "both")
    assert found.e_above_hull == pytest.approx(0.1) and math.isnan(found.potential)
    assert found.source.startswith("learnt, no competing compound of Fe-S")


def test_entries_of_the_materials_project_take_precedence(references):
    with_entry = References({}, [*references.phases, ReferencePhase("Mo2S4", -1.0 / 3 - 4.0 / 3 - 0.9, "MP mp-2815")])
    assert with_entry.decided_by_entries("MoS2") and not with_entry.decided_by_entries("FeO")
    assert not references.decided_by_entries("MoS2") and not with_entry.decided_by_entries("Mo")
    assert with_entry.decided_by_entries("MoS3") and with_entry.decomposition("MoS3") == {
        "MoS2 MP mp-2815": pytest.approx(0.75),
        "S rings": pytest.approx(0.25),
    }
    atoms = sheet()
    judge = LearntHull(models(hull=0.5), with_entry)
    found = judge_hull(with_entry, judge, atoms, energy_of(-0.5, atoms, ELEMENTS), "learnt")
    assert (found.e_above_hull, found.source) == (pytest.approx(0.4), learnt_hull.BY_ENTRIES)


def test_weight_files_are_checked(tmp_path, references):
    path, potential = tmp_path / "hull.pth", SimpleNamespace(name="sevennet-0", identity={"sha256": "abc"})
    save_checkpoint(path, learnt_hull.KIND, learnt_hull.HullColumns(), models().state() | {"potential_sha256": "abc"})
    again = LearntHull.load(path, references, potential)
    assert again.models.e_form_range == (-4.0, 1.0) and again.e_above_hull(sheet(), -0.5)[0] == pytest.approx(0.3)
    with pytest.raises(CheckpointError, match="it is not of mattersim"):
        LearntHull.load(path, references, SimpleNamespace(name="mattersim", identity={"sha256": "other"}))
    content = torch.load(path, weights_only=True)
    del content["scales"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="does not fit the learnt hull"):
        LearntHull.load(path, references, potential)
    settings = load_config(None, [f"evaluation.hull_checkpoint={tmp_path}/none.pth"]).evaluation
    assert learnt_hull.load_learnt_hull(settings, references, potential) is None, "a potential without a file judges alone"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Alloy sheets by EMT whose PBE is known: hform = E_form + 0.2 x share of Al; hull = hull of EMT − 0.3 x share of Au."""
    folder = tmp_path_factory.mktemp("world")
    elements = {m: single_point(honeycomb(m, m), EMT()) / 2 - 0.5 for m in METALS}
    references = References(EMT_POTENTIAL.identity, [ReferencePhase(m, e, "fcc") for m, e in elements.items()])
    references.save(folder / "references.json.gz")
    with connect(folder / "world.db") as database:
        for a, b in itertools.permutations(METALS, 2):
            for repeat in ((1, 1), (1, 2), (1, 3), (2, 2)):
                for stretch in (1.0, 1.03):
                    atoms = honeycomb(a, b).repeat((*repeat, 1))
                    atoms.set_cell(atoms.cell.array * [[stretch], [stretch], [1]], scale_atoms=True)
                    numbers = atoms.numbers.copy()
                    numbers[: len(numbers) // 2 - 1] = numbers[0]
                    atoms.numbers = numbers
                    share = {m: atoms.get_chemical_symbols().count(m) / len(atoms) for m in ("Al", "Au")}
                    h_form = references.e_form(atoms, single_point(atoms, EMT())) + 0.2 * share["Al"]
                    hull = references.hull_energy(atoms.get_chemical_formula()) - 0.3 * share["Au"]
                    database.write(atoms, hform=h_form, ehull=h_form - hull)
        database.write(honeycomb("Cu", "Ni"), hform=0.1)
    return folder


def settings(world, *overrides):
    own = {"db_path": world / "world.db", "checkpoint": world / "out" / "hull.pth", "work_dir": world / "work"}
    own |= {"train_rows": 0, "relaxed_rows": 6, "calibration_rows": 20, "trees": 80, "min_element_rows": 1}
    lines = [f"learnt_hull.{name}={value}" for name, value in own.items()]
    lines += [
        f"evaluation.references_path={world}/references.json.gz",
        "evaluation.max_steps=1",
        "evaluation.fmax_ev_per_angstrom=50",
    ]
    lines += ["dataset.test_fraction=0.3", "run.threads=1", "run.device=cpu", "evaluation.bootstrap=50"]
    return load_config(None, [*lines, *overrides])


@pytest.fixture(scope="module")
def trained(world):
    patch = pytest.MonkeyPatch()
    patch.setattr(learnt_hull_training, "load_potential", lambda *_: EMT_POTENTIAL)
    yield settings(world), train_hull.main(settings(world))
    patch.undo()


def test_a_known_world_is_learnt_and_held_out_formulas_show_it(world, trained):
    card = read_sidecar(world / "out" / "hull.pth", stage=learnt_hull_training.STAGE)
    found = card["metrics"]["test, geometry of the database"]
    learnt, own, mean = (found[name] for name in ("learnt", "potential", "mean of training"))
    assert learnt["n"] == own["n"] > 20
    assert learnt["mae_ev"][0] < 0.5 * own["mae_ev"][0] and learnt["mae_ev"][2] < mean["mae_ev"][1]
    assert own["mae_ev"][1] <= own["mae_ev"][0] <= own["mae_ev"][2] and mean["spearman"] is None
    for part in (card["metrics"]["hull energy of test formulas, mae_ev"], found["E_form, mae_ev"]):
        assert part["learnt"] < 0.7 * part["potential"]
    assert (world / "out" / "hull_parity.png").is_file()

    references = References.load(world / "references.json.gz")
    judge = LearntHull.load(world / "out" / "hull.pth", references, EMT_POTENTIAL)
    assert judge.models.relaxation == card["metrics"]["relaxation_ev"] and abs(judge.models.relaxation) < 0.05
    as_it_is = LearntHull(dataclasses.replace(judge.models, relaxation=0.0), references)  # nothing is relaxed here
    errors = []
    for row in connect(world / "world.db").select("ehull"):
        if judge.is_held_out(row.formula):
            atoms = row.toatoms()
            verdict = judge_hull(references, as_it_is, atoms, single_point(atoms, EMT()), "learnt")
            assert verdict.source == "learnt" and verdict.std >= learnt_hull.LEAST_STD
            errors.append(verdict.e_above_hull - row.ehull)
    assert np.abs(errors).mean() == pytest.approx(learnt["mae_ev"][0]), "the judge gives what the card measured"


def test_no_energy_is_computed_twice_and_no_test_formula_teaches(world, trained, monkeypatch):
    cfg, _ = trained
    lines = [json.loads(line) for line in (world / "work" / "single_points.jsonl").read_text().splitlines()]
    facts = learnt_hull_data.read_facts(world / "world.db", (0, 0.1, 0.3))
    sides = {fact.row_id: fact.side for fact in facts}
    assert {sides[line["key"]] for line in lines[1:]} == {"train", "test"} and len(facts) == 336
    monkeypatch.setattr(learnt_hull_training, "load_potential", lambda *_: EMT_POTENTIAL)
    before = (world / "out" / "hull.pth").stat().st_mtime_ns
    train_hull.main(cfg)
    assert (world / "out" / "hull.pth").stat().st_mtime_ns == before, "a finished model is left alone"

    class Refuses(EMT):
        def calculate(self, *_):
            raise AssertionError("an energy is computed again")

    stopped = Potential(EMT_POTENTIAL.name, EMT_POTENTIAL.identity, Refuses())
    monkeypatch.setattr(learnt_hull_training, "load_potential", lambda *_: stopped)
    card = read_sidecar(world / "out" / "hull.pth", stage=learnt_hull_training.STAGE)
    train_hull.main(settings(world, f"learnt_hull.checkpoint={world}/again/hull.pth"))
    again = read_sidecar(world / "again" / "hull.pth", stage=learnt_hull_training.STAGE)
    assert again["checkpoint_sha256"] == card["checkpoint_sha256"] and again["metrics"] == card["metrics"]


def test_samples_keep_to_the_rows_asked_for(world):
    path = world / "world.db"
    held_out = sample_rows(path, 5, 0, lambda row: split_of(formula_key(row.formula), 0, 0.1, 0.3) == "test")
    with connect(path) as database:
        assert len(held_out) == 5 and all(
            split_of(formula_key(database.get(id=k).formula), 0, 0.1, 0.3) == "test" for k in held_out
        )
    assert len(sample_rows(path, 1000, 0)) == 336, "a row without ehull is not drawn"


def test_agreement_by_hand():
    value, truth = np.array([0.0, 0.2, 0.05, 0.4]), np.array([0.05, 0.3, 0.25, 0.02])
    found = learnt_hull_training.agreement(value, truth, 0.1, 0, 200)
    assert found["mae_ev"][0] == pytest.approx((0.05 + 0.1 + 0.2 + 0.38) / 4) and found["agree"][0] == 0.5
    assert found["bias_ev"][0] == pytest.approx((-0.05 - 0.1 - 0.2 + 0.38) / 4)
    assert found["spearman"][0] == pytest.approx(-0.2)  # ranks 1 3 2 4 and 2 4 3 1: 1 − 6·12/(4·15)
    assert learnt_hull.count_elements(["MoS2", "WS2"]) == {"Mo": 1, "S": 2, "W": 1}
