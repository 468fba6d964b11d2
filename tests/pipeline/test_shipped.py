"""Shipped weights take the place of models that were neither named nor trained, and of no others."""

from __future__ import annotations

from pathlib import Path

from pipeline.files import PROJECT_DIR
from pipeline.loading import load_config
from pipeline.shipped import SHIPPED, with_shipped_weights


def test_a_bare_clone_uses_the_shipped_weights(tmp_path):
    bare = load_config(None, [f"run.output_dir={tmp_path}"])
    cfg, line = with_shipped_weights(bare, ("dimenet", "denoiser"))
    assert cfg.dimenet.checkpoint == str(PROJECT_DIR / "weights" / "dimenet.pth")
    assert cfg.denoiser.checkpoint == cfg.evaluation.known_formulas_from == str(PROJECT_DIR / "weights" / "denoiser.pth")
    assert "weights/dimenet.pth and weights/denoiser.pth" in line and "\n" not in line
    assert all(Path(PROJECT_DIR / shipped).is_file() for _, shipped in SHIPPED.values())
    only, line = with_shipped_weights(bare, ("denoiser",))
    assert only.dimenet == bare.dimenet and "dimenet" not in line


def test_named_and_trained_models_stay(tmp_path):
    named = load_config(None, [f"run.output_dir={tmp_path}", f"dimenet.checkpoint={tmp_path / 'mine.pth'}"])
    assert with_shipped_weights(named, ("dimenet",)) == (named, "")
    trained = load_config(None, [f"run.output_dir={tmp_path}", "evaluation.known_formulas_from=''"])
    Path(trained.dimenet.checkpoint).parent.mkdir(parents=True)
    Path(trained.dimenet.checkpoint).touch()
    cfg, line = with_shipped_weights(trained, ("dimenet", "denoiser"))
    assert cfg.dimenet == trained.dimenet and "dimenet" not in line and cfg.evaluation.known_formulas_from == ""
