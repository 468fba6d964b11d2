"""The six stages as a user runs them, one after the other, with tiny settings.

The first is a process of its own, and stage 5 has a worker; the others start here, where the packages are imported already.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ase.db import connect
from started_here import Ended

from pipeline.provenance import SCHEMA_VERSION, sidecar_path

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "dimenet.ensemble_size": 2,
    "dimenet.epochs": 1,
    "dataset.max_rows": 40,
    "dataset.val_fraction": 0.2,
    "dataset.test_fraction": 0.2,
    "synth_lm.trees": 5,
    "synth_lm.max_rows": 200,
    "denoiser.hidden_channels": 16,
    "denoiser.num_layers": 1,
    "denoiser.max_steps": 6,
    "denoiser.eval_every": 6,
    "denoiser.batch_size": 8,
    "generation.num_structures": 1,
    "generation.element_draws": 8,
    "generation.num_steps": 30,
    "generation.oversample": 2.0,
    "generation.prefilter": False,
    "evaluation.max_steps": 3,
    "evaluation.max_h_steps": 2,
    "evaluation.more_h_steps": 0,
    "evaluation.bootstrap": 20,
    "evaluation.legacy_max_steps": 2,
    "evaluation.potential_h_sites": 1,
    "evaluation.workers": 1,
    "evaluation.finalists": 1,
    "evaluation.phonons": False,
    "evaluation.exfoliation": False,
    "evaluation.all_sites": 1,
    "run.threads": 1,
    "run.device": "cpu",
}


def _settings(out: Path) -> list[str]:
    settings = {**TINY, "run.output_dir": out, "external.output_dir": out / "external"}
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.fixture(autouse=True)
def no_home(monkeypatch, tmp_path_factory):
    """Give the stages no home folder that can be written to: none may need one."""
    given = {"HOME": "/proc/no-home", "HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name, value in {**given, "MPLCONFIGDIR": str(tmp_path_factory.mktemp("matplotlib"))}.items():
        monkeypatch.setenv(name, value)


def stage(script: str, out: Path, cwd: Path, *more: str) -> subprocess.CompletedProcess:
    """Run a stage as a process of its own."""
    command = [sys.executable, str(ROOT / script), *_settings(out), *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A results folder whose name has a space and is not ASCII."""
    return tmp_path_factory.mktemp("end to end é") / "results"


@pytest.fixture(scope="module")
def small_lmdb(tmp_path_factory):
    """Every twelfth record of the embedded adsorption data."""
    from energetics.is2re_lmdb import open_is2re, write_is2re

    path = tmp_path_factory.mktemp("lmdb") / "small.lmdb"
    records = open_is2re(ROOT / "data" / "demo_is2re" / "data.lmdb")
    write_is2re(path, [records[i] for i in range(0, len(records), 12)])
    return path


def succeed(done: subprocess.CompletedProcess | Ended) -> None:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_training_stages_hand_over_through_files(out, small_lmdb, tmp_path, start_here):
    succeed(stage("pretrain_dimenet.py", out, tmp_path, f"dimenet.lmdb_path={small_lmdb}"))
    succeed(start_here("material_dataset.py", *_settings(out)))
    succeed(start_here("scripts/pretrain_csllm.py", *_settings(out)))
    succeed(start_here("optimization.py", *_settings(out)))
    for product in ("dimenet/dimenet.pth", "processed/train.pt", "synth_lm/synth_lm.pth", "denoiser/best_diffusion_model.pth"):
        assert (out / product).is_file(), product
        sidecar = json.loads(sidecar_path(out / product).read_text(encoding="utf-8"))
        assert sidecar["schema_version"] == SCHEMA_VERSION and sidecar["inputs"] and sidecar["counts"], product
    assert not list(tmp_path.iterdir()), "a stage wrote into the working folder"

    # Six steps of training give no crystal, but they must give a clear answer.
    few = ("generation.num_structures=1", "generation.num_steps=3", "generation.element_draws=8")
    generated = start_here("structure_generator.py", *_settings(out), *few)
    assert generated.returncode == 0 or (generated.returncode == 1 and "valid" in generated.stderr.splitlines()[-1])
    assert "Traceback" not in generated.stderr


@pytest.mark.slow
def test_a_finished_stage_does_nothing_and_changed_input_is_stale(out, start_here):
    again = _settings(out)
    repeated = start_here("optimization.py", *again)
    assert repeated.returncode == 0 and "nothing to do" in repeated.stdout + str(repeated.messages)
    (out / "processed" / "train.json").unlink()
    done = start_here("optimization.py", *again, "run.seed=5")
    assert done.returncode == 1 and "rerun material_dataset.py" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_generation_and_both_evaluations(out, tmp_path, start_here):
    weights = [f"dimenet.checkpoint={ROOT / 'weights' / 'dimenet.pth'}", f"denoiser.checkpoint={ROOT / 'weights' / 'denoiser.pth'}"]
    with_judges = ("generation.prefilter=true", "evaluation.workers=0")
    succeed(start_here("structure_generator.py", *_settings(out), *weights, *with_judges))
    cifs = sorted((out / "generated_cifs").glob("*.cif"))
    assert cifs and all(path.name.startswith("gen_") for path in cifs)

    random_set = tmp_path / "one random"
    random_set.mkdir()
    path = min((ROOT / "data" / "random_decoration").glob("*.cif"), key=lambda path: (path.stat().st_size, path.name))
    (random_set / path.name).write_bytes(path.read_bytes())
    folders = [
        f"evaluation.random_cif_dir={random_set}",
        f"evaluation.known_cif_dir={random_set}",
        f"external.cif_dir={random_set}",
    ]
    succeed(start_here("test.py", *_settings(out), *weights, *folders))
    # Stage 5 has done what only sharpens a value; here it is left out, and the judges need no worker.
    lean = ("evaluation.second_potential=", "evaluation.band_gap=", "evaluation.dft_truth_path=", "evaluation.dft_blind_path=")
    lean += ("evaluation.known_formulas_from=", "evaluation.workers=0")
    succeed(start_here("evaluate_external.py", *_settings(out), *weights, *folders, *lean))

    with (out / "metrics.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["id"] for row in rows] == [path.stem for path in cifs]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["truth"]["n"] >= 25 and {"metrics", "controls", "provenance"} <= set(report)
    for folder in (out, out / "external"):
        for name in ("report.html", "her_performance.png", "stability_curve.png", "generated_structures.png", "comparison.csv"):
            assert (folder / name).stat().st_size > 500, name
    table = (out / "comparison.csv").read_text(encoding="utf-8")
    assert "ours" in table and "random decoration" in table and "unguided" in table


@pytest.mark.slow
def test_a_database_of_the_real_schema_goes_through_stage_2(tmp_path, start_here):
    """C2DB's own keys, uid style and orientation, with a row that cannot be used."""
    from crystals.prototypes import PROTOTYPES

    with connect(tmp_path / "c2db.db") as db:
        for index, metal in enumerate(["Mo", "W", "Ti", "Zr", "Hf", "V", "Nb", "Ta", "Sn", "Pt"]):
            atoms = PROTOTYPES["1T-MX2"].build(metal, "Se")
            atoms.rotate(13 * index, "z", rotate_cell=True)
            db.write(atoms, uid=f"1{metal}Se2-1", layergroup="p-3m1", lgnum=72, ehull=0.01 * index, hform=-0.4)
        db.write(PROTOTYPES["1T-MX2"].build("Ni", "Se"), uid="1NiSe2-1")
    done = start_here("material_dataset.py", *_settings(tmp_path / "r"), f"dataset.db_path={tmp_path / 'c2db.db'}", *_dimenet())
    succeed(done)
    assert "no ehull" in done.stdout and "read 11 rows, kept 10" in done.stdout


def _dimenet() -> list[str]:
    return [f"dimenet.checkpoint={ROOT / 'weights' / 'dimenet.pth'}"]
