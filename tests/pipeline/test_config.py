"""Settings, command line and provenance."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import resolve_device, run_stage
from pipeline.errors import ConfigError, StageError
from pipeline.files import atomic_path, write_json
from pipeline.loading import load_config
from pipeline.provenance import check_inputs_unchanged, read_sidecar, sidecar_path, write_sidecar
from pipeline.settings import Config, RunConfig, section_fields

ROOT = Path(__file__).resolve().parents[2]
STAGES = sorted(path.name for path in ROOT.glob("*.py") if "run_stage(" in path.read_text(encoding="utf-8"))
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if "run_stage(" in path.read_text(encoding="utf-8"))


def test_config_yaml_lists_every_setting_once_with_its_meaning():
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    section = None
    listed = []
    for line in text.splitlines():
        if match := re.match(r"^(\w+):", line):
            section = match[1]
        elif match := re.match(r"^  (\w+): .*?\s# (.+)$", line):
            listed.append((section, match[1], match[2]))
    known = [(s.name, f.name, f.metadata["doc"]) for s in dataclasses.fields(Config) for f in section_fields(s.name)]
    assert listed == known


def test_config_yaml_holds_the_defaults():
    assert load_config(ROOT / "config.yaml") == load_config(None)


@pytest.mark.parametrize(
    "override, complaint",
    [
        ("run.foo=1", "run.foo"),
        ("nothing.seed=1", "nothing"),
        ("run.seed=abc", "run.seed"),
        ("run.seed=-1", "at least 0"),
        ("run.seed=1.5", "run.seed"),
        ("run.device=tpu", "run.device"),
        ("dimenet.batch_size=0", "at least 1"),
        ("dimenet.learning_rate=nan", "finite"),
        ("dimenet.lr_milestones=[2.0]", "fractions"),
        ("denoiser.p_uncond=1.2", "at most 1"),
        ("denoiser.beta_start=0.4", "below denoiser.beta_end"),
        ("denoiser.sigma_min=0.7", "below denoiser.sigma_max"),
        ("evaluation.potential=magic", "choose one of"),
        ("evaluation.synthesizability=csllm", "csllm_path"),
        ("dataset.val_fraction=0.5 dataset.test_fraction=0.5", "less than 10 %"),
        ("evaluation.shard=5/4", "evaluation.shard=5/4: choose i/n"),
        ("evaluation.shard=0/4", "choose i/n"),
        ("generation.shard=foo", "generation.shard=foo: choose i/n"),
        ("generation.shard=merge/0", "choose i/n"),
        ("synth_lm.trees=0", "synth_lm.trees"),
        ("demo.parts=[everything]", "unknown part"),
        ("seed=3", "section.key=value"),
        ("run.seed", "section.key=value"),
        ("run.seed=[", "cannot read"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(override, complaint):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load_config(None, override.split())


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="--config: no file at"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "broken.yaml").write_text("run: [1, 2")
    with pytest.raises(ConfigError, match="not readable YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="sections"):
        load_config(tmp_path / "list.yaml")


def test_paths_in_a_file_and_on_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.yaml").write_text("run:\n  output_dir: out\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load_config(tmp_path / "mine.yaml", ["dataset.db_path=some.db"])
    assert loaded.dimenet.checkpoint == str(tmp_path / "out" / "dimenet" / "dimenet.pth")
    assert loaded.dataset.db_path == str(tmp_path / "elsewhere" / "some.db")
    assert loaded.evaluation.cif_dir == str(tmp_path / "out" / "generated_cifs")


@pytest.mark.parametrize("stage", [*STAGES, *SCRIPTS])
def test_every_stage_explains_itself_and_refuses_bad_settings(stage, tmp_path):
    program = [sys.executable, str(ROOT / stage)] if stage in STAGES else [sys.executable, "-m", f"scripts.{stage}"]
    about = {"capture_output": True, "text": True, "cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    shown = subprocess.run([*program, "--help"], **about)
    assert shown.returncode == 0 and stage in shown.stdout and "run.seed=0" in shown.stdout
    refused = subprocess.run([*program, "run.sead=1"], **about)
    assert refused.returncode == 2
    assert refused.stderr.strip().count("\n") == 0 and "sead" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_the_six_stages_are_there():
    assert {
        "pretrain_dimenet.py",
        "material_dataset.py",
        "optimization.py",
        "structure_generator.py",
        "test.py",
        "evaluate_external.py",
    } <= set(STAGES)


def test_exit_codes():
    def fail(_):
        raise StageError("row 7 of x.db: no cell")

    assert run_stage(lambda cfg: None, "doc", ("run",), []) == 0
    assert run_stage(fail, "doc", ("run",), []) == 1
    assert run_stage(lambda cfg: None, "doc", ("run",), ["--config"]) == 2
    assert run_stage(lambda cfg: None, "doc", ("run",), ["--bogus"]) == 2


def test_a_failed_write_leaves_the_old_product(tmp_path):
    product = tmp_path / "x.json"
    write_json(product, {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic_path(product) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert json.loads(product.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1.0, float("inf")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.0, None]}


def test_sidecar_says_what_is_stale(tmp_path):
    source, product = tmp_path / "in.txt", tmp_path / "out.pt"
    source.write_text("1")
    product.write_text("product")
    write_sidecar(product, stage="a.py", seed=3, settings=RunConfig(), inputs=[source], counts={"kept": 2})
    content = read_sidecar(product, stage="a.py")
    assert content["seed"] == 3 and content["counts"] == {"kept": 2}
    check_inputs_unchanged(content, product)
    source.write_text("2")
    with pytest.raises(StageError, match="stale.*rerun a.py"):
        check_inputs_unchanged(content, product)
    with pytest.raises(StageError, match="written by a.py"):
        read_sidecar(product, stage="b.py")
    with pytest.raises(StageError, match="missing: rerun"):
        read_sidecar(tmp_path / "none.pt", stage="a.py")
    sidecar_path(product).write_text("{")
    with pytest.raises(StageError, match="not readable JSON"):
        read_sidecar(product, stage="a.py")


def test_paths_in_a_sidecar_are_those_of_the_project(tmp_path):
    product = tmp_path / "out.pt"
    product.write_text("product")
    inside = [str(ROOT / "weights" / name) for name in ("a.pth", "b.pth")]
    write_sidecar(product, stage="a.py", seed=0, settings={"one": inside[0], "several": inside, "words": ["x"], "number": 2})
    written = read_sidecar(product, stage="a.py")["settings"]
    assert written == {"one": "weights/a.pth", "several": ["weights/a.pth", "weights/b.pth"], "words": ["x"], "number": 2}


def test_a_gpu_that_is_not_there_is_refused():
    import torch

    index = torch.cuda.device_count()
    with pytest.raises(ConfigError, match="no such GPU"):
        resolve_device(RunConfig(device=f"cuda:{index}"))


def test_an_empty_value_is_an_empty_text():
    assert load_config(None, ["dimenet.dft_path="]).dimenet.dft_path == ""
    with pytest.raises(ConfigError, match="dimenet.epochs"):
        load_config(None, ["dimenet.epochs="])


def test_every_path_of_a_list_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("dataset: {judged_dirs: [a, /b]}")
    assert load_config(tmp_path / "own.yaml").dataset.judged_dirs == [str(tmp_path / "a"), "/b"]
    assert load_config(None, ["dataset.judged_dirs=[c]"]).dataset.judged_dirs == [str(tmp_path / "c")]
