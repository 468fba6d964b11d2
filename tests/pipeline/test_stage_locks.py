"""Two runs of a stage into one folder do not mix: the second is refused before it writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from ase.db import connect
from lock_holder import held
from tiny_sheets import tiny_config

import material_dataset
import optimization
import pretrain_dimenet
from energetics import embedded_data
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.loading import load_config
from pipeline.settings import Config
from scripts import prepare_demo_data


def stage_0(folder: Path) -> Config:
    return load_config(None, ["demo.parts=[baseline]", f"demo.baseline_cif_dir={folder / 'out'}"])


def stage_1(folder: Path) -> Config:
    return load_config(None, [f"dimenet.checkpoint={folder / 'out' / 'dimenet.pth'}", "run.device=cpu", "run.threads=1"])


def stage_2(folder: Path) -> Config:
    with connect(PROJECT_DIR / "data" / "demo_c2db.db") as demo, connect(folder / "rows.db") as database:
        for row in demo.select(limit=2):
            database.write(row.toatoms(), **row.key_value_pairs)
    paths = {"dataset.db_path": folder / "rows.db", "dataset.processed_dir": folder / "out"}
    weights = f"dimenet.checkpoint={PROJECT_DIR / 'weights' / 'dimenet.pth'}"
    return load_config(None, [*(f"{key}={path}" for key, path in paths.items()), weights, "run.device=cpu", "run.threads=1"])


STAGES = {
    "demo.baseline_cif_dir": (stage_0, prepare_demo_data.main),
    "dimenet.checkpoint": (stage_1, pretrain_dimenet.main),
    "dataset.processed_dir": (stage_2, material_dataset.main),
    "denoiser.checkpoint": (tiny_config, optimization.main),
}


@pytest.mark.parametrize("setting", STAGES)
def test_a_second_run_into_a_folder_is_refused(setting, tmp_path):
    configure, main = STAGES[setting]
    cfg = configure(tmp_path)
    with held(tmp_path / "out") as holder:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(StageError, match=rf"in use by process {holder.pid} on .*set {setting} to another folder"):
            main(cfg)
        assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


def test_the_correction_of_a_checkpoint_is_fitted_by_one_run_at_a_time(tmp_path):
    cfg = stage_1(tmp_path)
    cfg = dataclasses.replace(cfg, dimenet=dataclasses.replace(cfg.dimenet, only_correction=True, dft_teacher=""))
    with held(tmp_path / "out"), pytest.raises(StageError, match="in use by process"):
        pretrain_dimenet.main(cfg)


def test_stage_0_locks_each_folder_once_and_leaves_no_lock(tmp_path):
    cfg = load_config(None, [f"demo.work_dir={tmp_path}"])
    folders = embedded_data.product_folders(cfg, set(embedded_data.DEFAULT_PARTS) | {"truth"})
    data = PROJECT_DIR / "data"
    assert set(folders) == {
        tmp_path,
        data,
        *(data / name for name in ("demo_is2re", "random_decoration", "known_sheets", "baseline")),
    }
    assert set(embedded_data.product_folders(cfg, {"baseline"})) == {data / "baseline"}
    prepare_demo_data.main(stage_0(tmp_path))
    assert not list(tmp_path.rglob(".lock")) and len(list((tmp_path / "out").glob("*.cif"))) == 52
