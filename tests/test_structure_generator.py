"""Stage 4: its products, their reproducibility and what it says where it cannot go on, with a tiny model of random weights."""

from __future__ import annotations

import dataclasses
import json
from itertools import chain, repeat
from pathlib import Path

import ase.io
import numpy as np
import pytest
from pymatgen.core import Structure
from tiny_denoiser import QUICK, tiny_denoiser

import structure_generator
from generation import candidates
from generation.generate import STAGE, generate_structures, uses_prefilter
from generation.sampling import predict_properties
from geo_utils import Sheet
from models import load_denoiser
from networks.checkpoints import save_checkpoint
from pipeline.errors import StageError
from pipeline.provenance import read_sidecar
from pipeline.settings import Config


@pytest.fixture
def cfg(tmp_path, monkeypatch) -> Config:
    """A checkpoint of random weights, and validity checks that pass most of what it makes."""
    path, model = tmp_path / "denoiser.pth", tiny_denoiser()
    save_checkpoint(
        path, "denoiser", model.config, {"model": model.state_dict(), "elements": [6, 8, 16, 22, 42], "formulas": ["MoS2"]}
    )
    monkeypatch.setattr(candidates, "check_validity", lambda s, c: "clash" if len(s) == 1 else "ok")
    base = Config()
    return dataclasses.replace(
        base,
        run=dataclasses.replace(base.run, device="cpu", threads=1),
        denoiser=dataclasses.replace(base.denoiser, checkpoint=str(path)),
        generation=dataclasses.replace(
            QUICK, num_structures=4, batch_size=3, num_steps=4, oversample=2.0, output_dir=str(tmp_path / "cifs"),
            recipes=["MoS2", "C2", "TiC", "S", "Ti2CO2"], start="noise",
        ),
    )  # fmt: skip


def with_generation(cfg: Config, **changes) -> Config:
    return dataclasses.replace(cfg, generation=dataclasses.replace(cfg.generation, **changes))


def contents(folder: str | Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file() and p.name != "manifest.json"}


def test_products(cfg):
    structure_generator.main(cfg)
    folder = Path(cfg.generation.output_dir)
    manifest = read_sidecar(folder, stage=STAGE)
    assert manifest["counts"]["kept"] == 4 and manifest["counts"]["sampled"] == 8
    assert manifest["counts"]["clash"] == 1
    frames = ase.io.read(folder / "candidates.extxyz", ":")
    assert [f.info["id"] for f in frames] == [row["id"] for row in manifest["candidates"]]
    assert {f"{f.info['id']}.cif" for f in frames} == {p.name for p in folder.glob("*.cif")}
    for frame in frames:
        structure = Structure.from_file(folder / f"{frame.info['id']}.cif")
        assert len(structure) == len(frame) and (frame.pbc == [True, True, False]).all()
        difference = structure.frac_coords - frame.get_scaled_positions(wrap=False)
        assert np.abs((difference - np.round(difference)) @ frame.cell.array).max() < 1e-4
        predicted = predict_properties(tiny_denoiser(), [Sheet.from_atoms(frame)])
        assert frame.info["delta_g_pred"] == pytest.approx(float(predicted.delta_g), abs=2e-3)
    assert not (folder / candidates.PARTIAL_DIR).exists()


def test_same_files_whatever_the_batch_size_and_after_a_kill(cfg, tmp_path, monkeypatch):
    structure_generator.main(cfg)
    reference = contents(cfg.generation.output_dir)
    other = with_generation(cfg, batch_size=8, output_dir=str(tmp_path / "other"))
    structure_generator.main(other)
    assert contents(other.generation.output_dir) == reference

    killed = with_generation(cfg, output_dir=str(tmp_path / "killed"))
    calls, original = {"n": 0}, candidates.sample

    def dies_in_the_second_batch(*args):
        calls["n"] += 1
        if calls["n"] == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(candidates, "sample", dies_in_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        structure_generator.main(killed)
    assert not list(Path(killed.generation.output_dir).glob("*.cif"))
    structure_generator.main(killed)
    assert calls["n"] == 4, "the first batch was not sampled again"
    assert contents(killed.generation.output_dir) == reference


def test_a_finished_stage_does_nothing_and_new_settings_replace_the_files(cfg, monkeypatch):
    structure_generator.main(cfg)
    folder = Path(cfg.generation.output_dir)
    monkeypatch.setattr(candidates, "sample", lambda *a: pytest.fail("sampled again"))
    structure_generator.main(cfg)
    monkeypatch.undo()
    monkeypatch.setattr(candidates, "check_validity", lambda s, c: "ok")
    structure_generator.main(with_generation(cfg, num_structures=2))
    assert len(list(folder.glob("gen_*.cif"))) == 2


def test_a_control_is_not_selected_by_the_heads(cfg):
    structure_generator.main(with_generation(cfg, guidance_scale=0.0, cfg_scale=0.0))
    manifest = json.loads((Path(cfg.generation.output_dir) / "manifest.json").read_text())
    assert [row["id"] for row in manifest["candidates"]] == ["gen_00000", "gen_00001", "gen_00002", "gen_00004"]
    assert "first valid" in manifest["selection"]


def test_too_few_valid_sheets(cfg, monkeypatch, caplog):
    verdicts = chain(["ok"] * 3, repeat("disconnected"))
    monkeypatch.setattr(candidates, "check_validity", lambda s, c: next(verdicts))
    structure_generator.main(with_generation(cfg, num_structures=8, oversample=1.0))
    assert "fewer than generation.num_structures=8" in caplog.text
    monkeypatch.setattr(candidates, "check_validity", lambda s, c: "too thick")
    with pytest.raises(StageError, match="none of 20 sampled sheets is valid .*20 too thick"):
        structure_generator.main(with_generation(cfg, oversample=1.0))


def test_missing_checkpoint_is_one_line(cfg):
    missing = dataclasses.replace(cfg, denoiser=dataclasses.replace(cfg.denoiser, checkpoint="/nonexistent/denoiser.pth"))
    with pytest.raises(StageError, match="denoiser checkpoint: no file.*run optimization.py"):
        structure_generator.main(missing)


class _QuickJudges:
    """A prefilter to which a later sheet has the better chance; something speaks against every second one."""

    def __init__(self, name: str = "test") -> None:
        self.identity, self.calls = {"judges": name}, 0

    def __call__(self, cif_dir: Path, output_dir: Path, delta_g: dict[str, float]) -> dict[str, tuple[float, bool]]:
        self.calls += 1
        names = sorted(path.stem for path in cif_dir.glob("*.cif"))
        assert sorted(delta_g) == names
        assert all(len(Structure.from_file(cif_dir / f"{name}.cif")) for name in names)
        return {name: (0.01 * k, k % 2 == 1) for k, name in enumerate(names)}


def test_the_best_chances_by_the_prefilter_are_written(cfg):
    model, content = load_denoiser(cfg.denoiser.checkpoint, "")
    prefilter = _QuickJudges()
    generate_structures(cfg, model, content, prefilter=prefilter)
    folder = Path(cfg.generation.output_dir)
    # One of eight sheets clashes. Of the other seven, 1st, 3rd, 5th and 7th are left, for which four places are enough.
    valid = [f"gen_{k:05d}" for k in (0, 1, 2, 4, 5, 6, 7)]
    manifest = read_sidecar(folder, stage=STAGE)
    assert [row["id"] for row in manifest["candidates"]] == valid[::2] == sorted(path.stem for path in folder.glob("*.cif"))
    generate_structures(with_generation(cfg, num_structures=2, oversample=4.0), model, content, prefilter=prefilter)
    assert [row["id"] for row in read_sidecar(folder, stage=STAGE)["candidates"]] == [valid[4], valid[6]]
    generate_structures(with_generation(cfg, num_structures=2, oversample=4.0), model, content, prefilter=prefilter)
    assert prefilter.calls == 2, "complete"
    others = _QuickJudges("others")
    generate_structures(with_generation(cfg, num_structures=2, oversample=4.0), model, content, prefilter=others)
    assert others.calls == 1, "other judges may prefer others"


def test_only_searched_recipes_under_guidance_are_prefiltered(cfg):
    searched = dataclasses.replace(cfg.generation, recipes=[], guidance_scale=1.0)
    assert uses_prefilter(searched)
    for change in ({"recipes": ["MoS2"]}, {"guidance_scale": 0.0}, {"prefilter": False}):
        assert not uses_prefilter(dataclasses.replace(searched, **change))


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_parts_that_are_put_together_are_the_whole_run(cfg, tmp_path, monkeypatch, capsys, guidance):
    """Also where a later round makes up for what is not valid, and guidance selects among the candidates of all parts."""
    cfg = with_generation(cfg, guidance_scale=guidance, num_structures=5, oversample=1.0)
    whole = with_generation(cfg, output_dir=str(tmp_path / "whole"))
    structure_generator.main(whole)
    for part in ("3/3", "1/3", "2/3"):
        structure_generator.main(with_generation(cfg, shard=part, batch_size=2))
        assert f"shard {part}: its " in capsys.readouterr().out
    folder, calls, original = Path(cfg.generation.output_dir), [], candidates.sample
    assert contents(folder) == {} and sorted(p.name for p in (folder / "shards").iterdir()) == ["1_of_3", "2_of_3", "3_of_3"]
    monkeypatch.setattr(candidates, "sample", lambda *args: calls.extend(args[2]) or original(*args))
    structure_generator.main(with_generation(cfg, shard="merge/3"))
    assert min(calls) == 5, "the first round is that of the parts"
    assert contents(folder) == contents(whole.generation.output_dir) and not (folder / "shards").exists()
    one, other = (json.loads((Path(c.generation.output_dir) / "manifest.json").read_text()) for c in (cfg, whole))
    changing = ("created_utc", "git_commit", "settings")
    assert {k: v for k, v in one.items() if k not in changing} == {k: v for k, v in other.items() if k not in changing}
    calls.clear()
    structure_generator.main(cfg)
    assert not calls, "the products are those of the whole run"


def test_parts_that_lack_candidates_are_named(cfg, tmp_path):
    structure_generator.main(with_generation(cfg, shard="1/3"))
    structure_generator.main(with_generation(cfg, shard="2/3"))
    merged = with_generation(cfg, shard="merge/3")
    with pytest.raises(StageError, match=r"^shard 3/3 lacks 2 of 2 candidates, no folder .*3_of_3: run these parts"):
        structure_generator.main(merged)
    structure_generator.main(with_generation(cfg, shard="3/3"))
    next((Path(cfg.generation.output_dir) / "shards" / "1_of_3").glob("batch_*")).write_text("{")
    with pytest.raises(StageError, match=r"^shard 1/3 lacks 3 of 3 candidates: run these parts"):
        structure_generator.main(merged)
    structure_generator.main(with_generation(cfg, shard="1/3"))
    structure_generator.main(merged)
    assert len(list(Path(cfg.generation.output_dir).glob("*.cif"))) == 4
