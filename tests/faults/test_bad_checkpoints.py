"""Checkpoints that are damaged, hostile, of another model or of another version."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import zipfile

import pytest
import torch
from corpus import Hostile, one_line

from energetics import hull
from energetics.hydrogen import Calibration, Domain, HydrogenPredictor
from evaluation.embedded_trees import EmbeddedTreesJudge
from generation import sheet_table
from generation.sheet_table import pack, read_split
from models import DIMENET_KIND, DenoiserModelConfig, DenoisingEGNN, DimeNetPlusPlus, load_denoiser
from networks.checkpoints import CheckpointError, load_checkpoint, load_ocp_checkpoint, save_checkpoint
from networks.dimenet_layers import DimeNetPlusPlusConfig
from pipeline.errors import StageError
from pipeline.provenance import SCHEMA_VERSION, read_sidecar

NAN = float("nan")
SMALL = DenoiserModelConfig(num_timesteps=10, hidden_channels=8, vector_channels=2, num_layers=1, num_noise_layers=0)
DIMENET = DimeNetPlusPlusConfig.preset("small")


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """A good checkpoint of the denoiser and of DimeNet++, as dictionaries."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("good")
    save_checkpoint(folder / "d.pth", "denoiser", SMALL, {"model": DenoisingEGNN(SMALL).state_dict(), "step": 1})
    state = HydrogenPredictor.state(
        Calibration(1.0, 0.1), Domain((1, 42), -9.0, 9.0, 9.0), 0.3, 0.5, [DimeNetPlusPlus(DIMENET).state_dict()]
    )
    save_checkpoint(folder / "h.pth", DIMENET_KIND, DIMENET, state)
    found = {
        "denoiser": torch.load(folder / "d.pth", weights_only=True),
        "dimenet": torch.load(folder / "h.pth", weights_only=True),
    }
    load_denoiser(folder / "d.pth", "hint")
    HydrogenPredictor.load(folder / "h.pth")
    return found


LOADERS = {
    "denoiser": lambda path: load_denoiser(path, "run optimization.py"),
    "dimenet": HydrogenPredictor.load,
    "synth_trees": EmbeddedTreesJudge,
}


def archive(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def zip_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as handle:
        handle.writestr(name, "x")
    return buffer.getvalue()


NO_CHECKPOINT = {
    "empty": lambda p: p.write_bytes(b""),
    "one byte": lambda p: p.write_bytes(b"P"),
    "text": lambda p: p.write_text("weights"),
    "html": lambda p: p.write_text("<html>404</html>" * 100),
    "git lfs pointer": lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "zip of something": lambda p: p.write_bytes(zip_of("a.txt")),
    "cut short": lambda p: p.write_bytes(archive({"kind": "denoiser", "w": torch.zeros(1000)})[:-700]),
    "half": lambda p: p.write_bytes(archive({"kind": "denoiser", "w": torch.zeros(1000)})[:1500]),
    "folder": lambda p: p.mkdir(),
    "nothing there": lambda p: None,
    "dangling link": lambda p: p.symlink_to("nowhere"),
    "plain pickle": lambda p: p.write_bytes(pickle.dumps({"kind": "denoiser"})),
    "tensor": lambda p: torch.save(torch.zeros(3), p),
    "list": lambda p: torch.save([1, 2], p),
    "none": lambda p: torch.save(None, p),
    "state dictionary": lambda p: torch.save({"weight": torch.zeros(3)}, p),
    "whole module": lambda p: torch.save(torch.nn.Linear(2, 2), p),
    "kind is no text": lambda p: torch.save({"kind": torch.zeros(2)}, p),
    "no schema": lambda p: torch.save({"kind": "KIND"}, p),
    "later schema": lambda p: torch.save({"kind": "KIND", "schema_version": SCHEMA_VERSION + 1}, p),
    "schema in words": lambda p: torch.save({"kind": "KIND", "schema_version": "1"}, p),
    "schema is a tensor": lambda p: torch.save({"kind": "KIND", "schema_version": torch.ones(2)}, p),
    "nothing but a kind": lambda p: torch.save({"kind": "KIND", "schema_version": SCHEMA_VERSION}, p),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("damage", NO_CHECKPOINT)
def test_files_that_are_no_checkpoint_end_in_one_line(tmp_path, capsys, monkeypatch, damage, kind):
    path = tmp_path / "x.pth"
    save = torch.save
    rename = lambda content: {k: kind if v == "KIND" else v for k, v in content.items()}  # noqa: E731
    monkeypatch.setattr(torch, "save", lambda content, p: save(rename(content) if damage in RENAMED else content, p))
    NO_CHECKPOINT[damage](path)
    code, line = one_line(capsys, lambda cfg: LOADERS[kind](path), [])
    assert code == 1 and "x.pth" in line and "run " in line


RENAMED = ("no schema", "later schema", "schema in words", "nothing but a kind")


@pytest.mark.parametrize("kind", LOADERS)
def test_checkpoints_of_another_model_are_refused(tmp_path, capsys, contents, kind):
    for other, content in contents.items():
        if other != kind:
            torch.save(content, tmp_path / "x.pth")
            code, line = one_line(capsys, lambda cfg: LOADERS[kind](tmp_path / "x.pth"), [])
            assert code == 1 and f"is not a {kind} checkpoint (found: {other})" in line


@pytest.mark.parametrize("place", ["whole", "inside", "raw"])
@pytest.mark.parametrize("kind", LOADERS)
def test_hostile_checkpoints_run_nothing(tmp_path, capsys, kind, place):
    marker = tmp_path / "was_here"
    bomb = Hostile(os.mkdir, str(marker))
    if place == "raw":
        (tmp_path / "x.pth").write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb if place == "whole" else {"kind": kind, "schema_version": 1, "model": bomb}, tmp_path / "x.pth")
    code, line = one_line(capsys, lambda cfg: LOADERS[kind](tmp_path / "x.pth"), [])
    assert code == 1 and "not a readable" in line and not marker.exists()
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "x.pth", kind, "hint")
    pickle.loads(pickle.dumps(bomb))
    assert marker.exists()  # it would have run


def without_first(states):
    return {key: value for key, value in list(states.items())[1:]}


def changed_first(states, change):
    key = next(iter(states))
    return {**states, key: change(states[key])}


WRONG_WEIGHTS = {
    "one missing": without_first,
    "one more": lambda states: {**states, "more": torch.zeros(1)},
    "another shape": lambda states: changed_first(states, lambda w: torch.zeros(*w.shape, 2)),
    "nan": lambda states: changed_first(states, lambda w: w.double() * NAN),
    "infinite": lambda states: changed_first(states, lambda w: w.double() + float("inf")),
    "number": lambda states: changed_first(states, lambda w: 5),
    "none": lambda states: changed_first(states, lambda w: None),
    "empty": lambda states: {},
    "list": lambda states: [1],
    "nothing": lambda states: None,
}


@pytest.mark.parametrize("kind", ["denoiser", "dimenet"])
@pytest.mark.parametrize("damage", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(tmp_path, capsys, contents, kind, damage):
    content = dict(contents[kind])
    if kind == "denoiser":
        content["model"] = WRONG_WEIGHTS[damage](content["model"])
    else:
        content["members"] = [WRONG_WEIGHTS[damage](content["members"][0])]
    torch.save(content, tmp_path / "x.pth")
    code, line = one_line(capsys, lambda cfg: LOADERS[kind](tmp_path / "x.pth"), [])
    assert code == 1 and "x.pth" in line and ("does not fit" in line or "not finite" in line)


SETTINGS_OF_A_MODEL = [None, 5, [], "wide", {"unknown": 1}]
for _name in ("hidden_channels", "vector_channels", "num_layers", "cutoff_angstrom"):
    if _name in {f.name for f in dataclasses.fields(DenoiserModelConfig)}:
        SETTINGS_OF_A_MODEL += [dataclasses.asdict(SMALL) | {_name: value} for value in (None, "wide", -1, [])]


@pytest.mark.parametrize("number", range(len(SETTINGS_OF_A_MODEL)))
def test_settings_that_make_no_model_are_refused(tmp_path, capsys, contents, number):
    torch.save(contents["denoiser"] | {"model_config": SETTINGS_OF_A_MODEL[number]}, tmp_path / "x.pth")
    code, line = one_line(capsys, lambda cfg: LOADERS["denoiser"](tmp_path / "x.pth"), [])
    assert code == 1 and "does not fit this version" in line


PARTS = [
    pytest.param(key, value, id=f"{key}={value}")
    for key in ("model_config", "members", "domain", "calibration", "normalizer", "correction")
    for value in (5, "x", [1], {"x": 1}, torch.zeros(2))
]


@pytest.mark.parametrize(("key", "value"), PARTS)
def test_parts_of_the_hydrogen_judge_that_make_no_sense(tmp_path, capsys, contents, key, value):
    torch.save(contents["dimenet"] | {key: value}, tmp_path / "x.pth")
    code, line = one_line(capsys, lambda cfg: HydrogenPredictor.load(tmp_path / "x.pth"), [])
    assert code == 1 and "does not fit this version's DimeNet++" in line


def ocp(model, **changes):
    content = {
        "state_dict": dict(model.state_dict()),
        "normalizers": {"target": {"mean": torch.tensor(0.1), "std": torch.tensor(2.0)}},
    }
    return {**content, **changes}


def stats(**values):
    return {"target": values}


OCP = {
    "no weights": {"state_dict": None},
    "weights in a list": {"state_dict": [1]},
    "weights of another network": {"state_dict": {"module.x": torch.zeros(1)}},
    "numbers for weights": {"state_dict": {"module.x": 5}},
    "numbers for names": {"state_dict": {5: torch.zeros(1)}},
    "no normaliser": {"normalizers": None},
    "list of normalisers": {"normalizers": [1]},
    "another normaliser": {"normalizers": {"grad_target": {"mean": 0.0, "std": 1.0}}},
    "no mean": {"normalizers": stats(std=1.0)},
    "no spread": {"normalizers": stats(mean=1.0)},
    "mean in words": {"normalizers": stats(mean="low", std=1.0)},
    "empty mean": {"normalizers": stats(mean=torch.zeros(0), std=1.0)},
    "nan mean": {"normalizers": stats(mean=NAN, std=1.0)},
    "no spread at all": {"normalizers": stats(mean=0.0, std=0.0)},
    "negative spread": {"normalizers": stats(mean=0.0, std=-1.0)},
}


@pytest.mark.parametrize("damage", [*OCP, "nan weights", "a weight missing", "text", "list"])
def test_published_checkpoints_that_cannot_be_used(tmp_path, capsys, damage):
    torch.manual_seed(0)
    model = DimeNetPlusPlus(DIMENET)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = tmp_path / "ocp.pt"
    if damage == "text":
        path.write_text("x")
    elif damage == "list":
        torch.save([1], path)
    elif damage in OCP:
        torch.save(ocp(model, **OCP[damage]), path)
    else:
        weights = dict(model.state_dict())
        torch.save(ocp(model, state_dict=WRONG_WEIGHTS["nan" if damage == "nan weights" else "one missing"](weights)), path)
    code, line = one_line(capsys, lambda cfg: load_ocp_checkpoint(path, model), [])
    assert code == 1 and "dimenet.init_from: " in line and "ocp.pt" in line
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


TABLE = {"schema_version": SCHEMA_VERSION}
TABLES = {
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("x"),
    "folder": lambda p: p.mkdir(),
    "list": lambda p: torch.save([1], p),
    "no schema": lambda p: torch.save({"uid": []}, p),
    "later schema": lambda p: torch.save({"schema_version": SCHEMA_VERSION + 1}, p),
    "schema alone": lambda p: torch.save(TABLE, p),
    "no heights": lambda p: torch.save({k: v for k, v in pack([], {}).items() if k != "heights"}, p),
    "a row too many": lambda p: torch.save(pack([], {}) | {"uid": ["x"]}, p),
    "pickle that calls": lambda p: torch.save(Hostile(os.mkdir, str(p.parent / "was_here")), p),
}


@pytest.mark.parametrize("kind", TABLES)
def test_processed_tables_that_cannot_be_used(tmp_path, capsys, kind):
    TABLES[kind](tmp_path / "train.pt")
    code, line = one_line(capsys, lambda cfg: read_split(tmp_path / "train.pt"), [])
    assert code == 1 and "train.pt" in line and "run material_dataset.py" in line.replace("rerun", "run")
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    "kind",
    TABLES,
)
def test_training_names_tables_that_cannot_be_used(tmp_path, kind):
    TABLES[kind](tmp_path / "train.pt")
    try:
        sheet_table.SheetTable.load(tmp_path / "train.pt")
    except Exception as error:
        assert isinstance(error, StageError) and "train.pt" in str(error), type(error)
    else:
        pytest.fail("the table was taken")


REFERENCES = {
    "empty": b"",
    "text": b"phases",
    "broken gzip": b"\x1f\x8b\x08\x00" + b"\xff" * 30,
    "folder": None,
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_reference_energies_that_cannot_be_used(tmp_path, capsys, kind):
    path = tmp_path / "r.json.gz"
    path.mkdir() if REFERENCES[kind] is None else path.write_bytes(REFERENCES[kind])
    code, line = one_line(capsys, lambda cfg: hull.References.load(path), [])
    assert code == 1 and "r.json.gz" in line and "scripts.prepare_demo_data" in line


SIDECARS = {
    "no file": (None, "is missing"),
    "empty": (b"", "not readable JSON"),
    "cut short": (b'{"schema_version": 1,', "not readable JSON"),
    "binary": (b"\xff\xfe\x00", "not readable JSON"),
    "list": (b"[1]", "another schema"),
    "later schema": (b'{"schema_version": 99}', "another schema"),
    "another stage": (b'{"schema_version": 1, "stage": "b.py"}', "was written by b.py"),
}


@pytest.mark.parametrize("kind", SIDECARS)
def test_sidecars_that_cannot_be_used(tmp_path, capsys, kind):
    content, reason = SIDECARS[kind]
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    code, line = one_line(capsys, lambda cfg: read_sidecar(tmp_path / "x.pth", stage="a.py"), [])
    assert code == 1 and "x.json" in line and reason in line
