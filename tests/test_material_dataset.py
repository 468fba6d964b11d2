"""Cleaning, labelling and splitting of a database, through the real script where it matters."""

import csv
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, graphene, mx2
from ase.db import connect
from ase.formula import Formula

import material_dataset as stage2
from crystals import database
from crystals.prototypes import PROTOTYPES
from energetics import site_labels
from energetics.hydrogen import Calibration, Domain, HydrogenPredictor
from energetics.sites import SheetHER
from generation import sheet_table
from geo_utils import Sheet
from models import DIMENET_KIND, DimeNetPlusPlus
from networks.checkpoints import save_checkpoint
from networks.dimenet_layers import DimeNetPlusPlusConfig
from pipeline.errors import StageError
from pipeline.loading import load_config
from pipeline.settings import DatasetConfig

SETTINGS = DatasetConfig()


@pytest.fixture(scope="module")
def predictor_path(tmp_path_factory):
    """A DimeNet++ with random weights: what it says is noise, but it is the same noise every time."""
    torch.manual_seed(0)
    model_config = DimeNetPlusPlusConfig.preset("small")
    members = [DimeNetPlusPlus(model_config) for _ in range(2)]
    domain = Domain(tuple(range(1, 60)), -100.0, 100.0, 100.0)
    state = HydrogenPredictor.state(Calibration(1.0, 0.1), domain, 0.3, 0.5, [member.state_dict() for member in members])
    path = tmp_path_factory.mktemp("dimenet") / "dimenet.pth"
    save_checkpoint(path, DIMENET_KIND, model_config, state)
    return path


def write_database(path, formulas=12):
    """Real prototypes under C2DB's keys, and one row for every way of being useless."""
    metals = ["Mo", "W", "Ti", "Zr", "Hf", "V", "Nb", "Ta", "Cr", "Sc", "Mn", "Fe"][:formulas]
    with connect(path) as db:
        for index, metal in enumerate(metals):
            for name, build in (("2H", PROTOTYPES["2H-MX2"].build), ("1T", PROTOTYPES["1T-MX2"].build)):
                db.write(build(metal, "S"), uid=f"{metal}S2-{name}", ehull=0.02 * index, hform=-0.5)
        db.write(bulk("Cu"), uid="bulk", ehull=0.1, hform=0.0)
        db.write(PROTOTYPES["2H-MX2"].build("Mo", "Se"), uid="no-ehull", hform=-0.5)
        db.write(PROTOTYPES["2H-MX2"].build("Mo", "Te"), uid="high", ehull=5.0, hform=-0.5)
        db.write(PROTOTYPES["2H-MX2"].build("W", "Te") * (3, 3, 1), uid="large", ehull=0.1, hform=-0.5)
        db.write(PROTOTYPES["2H-MX2"].build("W", "Se"), uid="MoS2-2H", ehull=0.1, hform=-0.5)
        clash = mx2("MoS2", vacuum=10)
        clash.positions[1] = clash.positions[0] + [0, 0, 0.5]
        db.write(clash, uid="clash", ehull=0.1, hform=-0.5)
        db.write(
            Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[9, 9, 20], pbc=(True, True, False)), uid="molecule", ehull=0.1, hform=0
        )


def configure(tmp_path, predictor_path, **values):
    overrides = [
        f"run.output_dir={tmp_path / 'out'}",
        f"dataset.db_path={tmp_path / 'x.db'}",
        f"dimenet.checkpoint={predictor_path}",
    ]
    overrides += ["run.device=cpu", "run.threads=1", "dataset.val_fraction=0.2", "dataset.test_fraction=0.2"]
    return load_config(None, overrides + [f"{key.replace('__', '.')}={value}" for key, value in values.items()])


@pytest.fixture(scope="module")
def processed(tmp_path_factory, predictor_path):
    tmp_path = tmp_path_factory.mktemp("dataset")
    write_database(tmp_path / "x.db")
    cfg = configure(tmp_path, predictor_path)
    stage2.main(cfg)
    return cfg


def test_every_dropped_row_is_named_with_its_reason(processed):
    folder = Path(processed.dataset.processed_dir)
    with (folder / "dropped.csv").open() as handle:
        dropped = {row["uid"]: row["reason"] for row in csv.DictReader(handle)}
    assert dropped == {
        "bulk": "not 2D: no vacuum",
        "no-ehull": "no ehull",
        "high": "ehull above dataset.max_e_hull_ev",
        "large": "more than dataset.max_atoms atoms",
        "MoS2-2H": "duplicate uid",
        "clash": "clash",
        "molecule": "not 2D: bonds do not form a sheet",
    }
    counts = json.loads((folder / "train.json").read_text())["counts"]
    assert counts["rows_read"] == 31 and counts["kept"] == 24 and sum(counts["dropped"].values()) == 7


def test_polymorphs_share_a_split_and_nothing_is_lost(processed):
    folder = Path(processed.dataset.processed_dir)
    tables = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in stage2.SPLITS}
    formulas = [set(table["formula"]) for table in tables.values()]
    assert not (formulas[0] & formulas[1] or formulas[0] & formulas[2] or formulas[1] & formulas[2])
    assert sum(len(table["uid"]) for table in tables.values()) == 24


def test_labels_are_the_judges_own(processed):
    folder = Path(processed.dataset.processed_dir)
    predictor = HydrogenPredictor.load(processed.dimenet.checkpoint)
    table = torch.load(folder / "train.pt", weights_only=True)
    dataset = sheet_table.SheetTable.load(folder / "train.pt")
    for index in (0, len(dataset) - 1):
        row = next(connect(processed.dataset.db_path).select(uid=table["uid"][index]))
        her = predictor.predict_sheet(row.toatoms(), processed.dataset)
        sites = slice(int(table["site_ptr"][index]), int(table["site_ptr"][index + 1]))
        np.testing.assert_allclose(table["site_delta_g"][sites].numpy(), her.delta_g, atol=1e-3)
        assert table["delta_g_h"][index] == pytest.approx(her.best_delta_g, abs=1e-3)
        assert table["site_coverage"][index] == pytest.approx(her.coverage)
        assert table["site_kind"][sites.start] == her.sites[0].kind
        sheet = dataset.sheet(index)
        assert len(sheet) == 3 and sheet.lattice.shape == (2, 2) and dataset.uids[index] == table["uid"][index]
        np.testing.assert_allclose(sheet.heights.sum(), 0, atol=1e-5)
    with pytest.raises(IndexError):
        dataset.sheet(len(dataset))


def test_a_share_of_the_formulas_is_labelled(tmp_path, predictor_path, processed):
    """The others stay in the table without ΔG_H; those that are labelled are among those of a larger share."""
    write_database(tmp_path / "x.db")
    cfg = configure(tmp_path, predictor_path, dataset__label_fraction=0.5)
    stage2.main(cfg)
    labelled = []
    for run in (cfg, processed):
        tables = [torch.load(Path(run.dataset.processed_dir) / f"{name}.pt", weights_only=True) for name in stage2.SPLITS]
        labelled.append({t["formula"][k] for t in tables for k in range(len(t["uid"])) if torch.isfinite(t["delta_g_h"][k])})
    assert sum(len(table["uid"]) for table in tables) == 24
    assert 0 < len(labelled[0]) < len(labelled[1]) and labelled[0] <= labelled[1]
    counts = json.loads((Path(cfg.dataset.processed_dir) / "train.json").read_text())["counts"]
    assert counts["not_asked_for_delta_g_h"] == 24 - sum(counts["label_status"].values()) > 0


def test_rows_are_chosen_for_labels(tmp_path, predictor_path, monkeypatch):
    """Small cells near the hull: a share of the formulas in the order of their rank, then what a model puts near the target."""
    rows = []
    for k in range(20):
        atoms = PROTOTYPES["2H-MX2"].build("Mo", "S") if k % 2 else PROTOTYPES["2H-MX2"].build("Mo", "S") * (2, 1, 1)
        rows.append(database.Row(k, str(k), Sheet.from_atoms(atoms), f"F{k}", "", 0.1 * k, 0.0, float("nan")))
    cfg = configure(
        tmp_path, predictor_path, dataset__label_fraction=0.5, dataset__label_max_atoms=3, dataset__label_max_e_hull_ev=1.55
    )
    asked = site_labels.rows_to_label(rows, cfg)
    allowed = [1, 3, 5, 7, 9, 11, 13, 15]
    assert 0 < len(asked) < 8 and {row.row_id for row in asked} <= set(allowed)
    ranks = [site_labels.label_rank(row.formula, 0) for row in asked]
    assert ranks == sorted(ranks) and ranks[-1] < 0.5

    predicted = torch.linspace(-0.7, 1.0, 8 - len(asked))
    monkeypatch.setattr("models.load_denoiser", lambda *a: (torch.nn.Identity(), {"elements": [16, 42]}))
    monkeypatch.setattr("generation.sampling.predict_properties", lambda *a: SimpleNamespace(delta_g=predicted))
    more = configure(
        tmp_path, predictor_path, dataset__label_fraction=0.5, dataset__label_max_atoms=3, dataset__label_max_e_hull_ev=1.55,
        dataset__label_more=2, dataset__label_model="x.pth", generation__target_delta_g=0.1,
    )  # fmt: skip
    chosen = site_labels.rows_to_label(rows, more)
    rest = sorted((r for r in rows if r.row_id in allowed and r not in asked), key=lambda r: site_labels.label_rank(r.formula, 0))
    nearest = sorted(range(len(rest)), key=lambda k: abs(float(predicted[k]) - 0.1))[:2]
    assert chosen == [*asked, *(rest[k] for k in nearest)]


def test_the_model_that_chose_rows_is_an_input(tmp_path, predictor_path, monkeypatch):
    """Splits are stale when it changes, as they are when the database does."""
    write_database(tmp_path / "x.db")
    heads = tmp_path / "heads.pth"
    heads.write_bytes(b"weights")
    monkeypatch.setattr("models.load_denoiser", lambda *a: (torch.nn.Identity(), {"elements": list(range(1, 95))}))
    monkeypatch.setattr(
        "generation.sampling.predict_properties", lambda m, sheets, *a: SimpleNamespace(delta_g=torch.zeros(len(sheets)))
    )
    cfg = configure(tmp_path, predictor_path, dataset__label_fraction=0.2, dataset__label_more=1, dataset__label_model=str(heads))
    stage2.main(cfg)
    inputs = json.loads((Path(cfg.dataset.processed_dir) / "train.json").read_text())["inputs"]
    assert hashlib.sha256(b"weights").hexdigest() in inputs.values() and len(inputs) == 3


def judged_folder(folder, sheets, **columns):
    """What stage 5 leaves of some relaxed sheets: the columns and the structures that stage 2 reads."""
    folder.mkdir(parents=True)
    verdicts = []
    for k, atoms in enumerate(sheets):
        atoms.info["id"] = f"gen_{k}"
        verdict = {
            "id": f"gen_{k}", "formula": str(atoms.symbols), "sheet_relaxed": "true", "e_form_ev": -0.5,
            "e_above_hull_ev": 0.03 + 0.1 * k, "delta_g_h_corrected_ev": 0.2 - 0.1 * k, "delta_g_h_corrected_std_ev": 0.4,
            "h_site_kind": "top", "h_site_face": "upper", "h_coverage": 0.25,
        }  # fmt: skip
        verdicts.append(verdict | {name: values[k] for name, values in columns.items()})
    with (folder / "metrics.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(verdicts[0]))
        writer.writeheader()
        writer.writerows(verdicts)
    ase.io.write(folder / "relaxed.extxyz", sheets, format="extxyz")
    return folder


def test_judged_candidates_teach_and_measure_nothing(tmp_path, predictor_path):
    """They join the training split with the potential's values, one per composition; a held-out formula stays held out."""
    write_database(tmp_path / "x.db")
    plain = configure(tmp_path, predictor_path)
    stage2.main(plain)
    folder = Path(plain.dataset.processed_dir)
    before = {name: sheet_table.read_split(folder / f"{name}.pt") for name in stage2.SPLITS}
    held_out = Formula(before["test"]["formula"][0]).count()
    assert len(held_out) == 2 and max(held_out.values()) == 2  # an MX2
    metal, anion = sorted(held_out, key=held_out.get)
    build = PROTOTYPES["2H-MX2"].build
    sheets = [build("Re", "Te"), build("Os", "Te"), build("Ir", "Te"), build(metal, anion)]
    first = judged_folder(
        tmp_path / "a" / "judged",
        sheets,
        delta_g_h_corrected_ev=[0.2, "", 0.1, 0.0],
        sheet_relaxed=["true", "true", "false", "true"],
    )
    second = judged_folder(
        tmp_path / "b" / "judged", [build("Re", "Te"), build("Pt", "Te")], formula=["Te2Re", "PtTe2"], e_above_hull_ev=[0.02, "nan"]
    )
    cfg = configure(tmp_path, predictor_path, dataset__judged_dirs=[str(first), str(second)])
    stage2.main(cfg)
    after = {name: sheet_table.read_split(folder / f"{name}.pt") for name in stage2.SPLITS}
    for name in ("val", "test"):
        assert after[name]["uid"] == before[name]["uid"] and torch.equal(after[name]["e_hull"], before[name]["e_hull"])
    n = len(before["train"]["uid"])
    assert after["train"]["uid"] == [*before["train"]["uid"], "a/gen_0", "a/gen_1"]
    assert after["train"]["e_hull"][n:].tolist() == pytest.approx([0.03, 0.13])
    labels = after["train"]["delta_g_h"][n:]
    assert labels[0] == pytest.approx(0.2) and torch.isnan(labels[1])
    counts = json.loads((folder / "train.json").read_text())["counts"]
    assert counts["judged"] == {"candidates": 3, "with_delta_g_h": 2, "of_held_out_formulas": 1}


def test_a_folder_that_was_not_judged(tmp_path, predictor_path):
    write_database(tmp_path / "x.db")
    with pytest.raises(StageError, match=r"dataset.judged_dirs: .*nowhere has no metrics.csv and relaxed.extxyz"):
        stage2.main(configure(tmp_path, predictor_path, dataset__judged_dirs=[str(tmp_path / "nowhere")]))
    folder = judged_folder(tmp_path / "x" / "judged", [PROTOTYPES["2H-MX2"].build("Re", "Te")])
    (folder / "metrics.csv").write_text("id,formula\ngen_0,ReTe2\n")
    with pytest.raises(StageError, match="KeyError"):
        stage2.main(configure(tmp_path, predictor_path, dataset__judged_dirs=[str(folder)]))


def test_a_killed_labelling_goes_on_and_ends_the_same(tmp_path, predictor_path, processed):
    write_database(tmp_path / "x.db")
    cfg = configure(tmp_path, predictor_path)
    folder = Path(cfg.dataset.processed_dir)
    folder.mkdir(parents=True)
    lines = (Path(processed.dataset.processed_dir) / "labels.jsonl").read_text().splitlines(keepends=True)
    (folder / "labels.jsonl").write_text("".join(lines[:6]) + lines[6][:40])
    stage2.main(cfg)
    for name in stage2.SPLITS:
        assert (folder / f"{name}.pt").read_bytes() == (Path(processed.dataset.processed_dir) / f"{name}.pt").read_bytes()


def test_labels_of_another_judge_are_not_reused(tmp_path, predictor_path):
    store = site_labels.LabelStore(tmp_path / "labels.jsonl", {"checkpoint_sha256": "a"})
    store.add("k", SheetHER(sheet=None, status="no site"))
    assert "k" in site_labels.LabelStore(tmp_path / "labels.jsonl", {"checkpoint_sha256": "a"})
    assert not site_labels.LabelStore(tmp_path / "labels.jsonl", {"checkpoint_sha256": "b"})


def test_split_is_a_function_of_the_formula():
    names = [database.split_of(f"X{i}", 0, 0.1, 0.1) for i in range(4000)]
    assert names == [database.split_of(f"X{i}", 0, 0.1, 0.1) for i in range(4000)]
    assert names.count("test") / 4000 == pytest.approx(0.1, abs=0.02)
    assert names.count("val") / 4000 == pytest.approx(0.1, abs=0.02)


def test_strings_where_numbers_belong(tmp_path):
    class Row:
        id = 1
        key_value_pairs = {"uid": "x", "ehull": "unknown"}

    assert database.clean_row(Row(), SETTINGS) == "ehull or hform is not a number"


@pytest.mark.parametrize("content", [None, b"", b"not a database at all" * 100])
def test_files_that_are_no_database(tmp_path, predictor_path, content):
    if content is not None:
        (tmp_path / "x.db").write_bytes(content)
    with pytest.raises(StageError, match=r"x\.db"):
        stage2.main(configure(tmp_path, predictor_path))


def test_missing_judge_is_one_line(tmp_path):
    with pytest.raises(StageError, match="run pretrain_dimenet.py"):
        stage2.main(configure(tmp_path, tmp_path / "none.pth"))


def test_graphene_is_kept_with_old_keys():
    class Row:
        id = 7
        key_value_pairs = {"asr_id": "abc", "ehull": 0.0, "hform": 0.0, "doi": "10.1126/science.1102896"}

        def toatoms(self):
            return graphene(vacuum=8)

    row = database.clean_row(Row(), SETTINGS)
    assert row.uid == "abc" and row.formula == "C" and row.y_synth == 1.0
