"""Where paths belong, and words that YAML 1.1 takes for booleans."""

from __future__ import annotations

import pytest

from pipeline.files import PROJECT_DIR
from pipeline.loading import help_text, load_config
from pipeline.settings import Config


def test_paths_that_nobody_wrote_are_the_projects(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my.yaml").write_text("run: {seed: 3}\ndataset: {db_path: my.db}\n")
    monkeypatch.chdir(tmp_path)
    loaded = load_config("mine/my.yaml", ["external.cif_dir=cifs"])
    results = PROJECT_DIR / Config().run.output_dir
    assert loaded.run.output_dir == str(results)
    assert loaded.dimenet.lmdb_path == str(PROJECT_DIR / "data" / "demo_is2re" / "data.lmdb")
    assert loaded.evaluation.cif_dir == str(results / "generated_cifs")
    assert loaded.dataset.db_path == str(tmp_path / "mine" / "my.db")
    assert loaded.external.cif_dir == str(tmp_path / "cifs")


def test_references_between_paths_follow_what_they_refer_to(tmp_path, monkeypatch):
    (tmp_path / "my.yaml").write_text(
        "run: {output_dir: out}\n"
        "dataset: {db_path: '${run.output_dir}/x.db', processed_dir: 'seed_${run.seed}'}\n"
        "external: {output_dir: '${dimenet.checkpoint}.d'}\n"
    )
    monkeypatch.chdir("/")
    loaded = load_config(tmp_path / "my.yaml")
    assert loaded.dataset.db_path == str(tmp_path / "out" / "x.db")
    assert loaded.dataset.processed_dir == str(tmp_path / "seed_0")
    assert loaded.external.output_dir == str(tmp_path / "out" / "dimenet" / "dimenet.pth.d")
    assert load_config(tmp_path / "my.yaml", ["run.output_dir=/o"]).dataset.db_path == "/o/x.db"


@pytest.mark.parametrize("word", ["NO", "no", "No", "ON", "Yes", "off", "Y", "N"])
def test_a_formula_is_never_a_boolean(tmp_path, word):
    (tmp_path / "my.yaml").write_text(f"generation:\n  recipes: [{word}, MoS2]\n")
    assert load_config(tmp_path / "my.yaml").generation.recipes == [word, "MoS2"]
    assert load_config(None, [f"generation.recipes=[{word}, MoS2]"]).generation.recipes == [word, "MoS2"]
    assert load_config(None, [f"external.name={word}"]).external.name == word


@pytest.mark.parametrize("word", ["true", "True", "yes", "on", "ON", "YES"])
def test_settings_that_are_booleans_take_every_spelling(tmp_path, word):
    (tmp_path / "my.yaml").write_text(f"generation: {{refine_samples: {word}}}\n")
    assert load_config(tmp_path / "my.yaml").generation.refine_samples is True
    assert load_config(None, [f"generation.refine_samples={word}"]).generation.refine_samples is True
    assert load_config(None, ["generation.prefilter=no"]).generation.prefilter is False


def test_help_without_docstrings():
    """As with PYTHONOPTIMIZE=2."""
    assert "run.seed=0" in help_text(None, ("run",))
