"""The stages in tiny settings on the embedded data, as ``kill_anywhere.py`` runs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]


@dataclass
class Stage:
    """A stage in a tiny setting. given: stages whose products lie in the folder before the first start. patches: what is
    replaced in the process of the stage. in_parts: its products are finished one after the other."""

    script: str
    sections: tuple[str, ...]
    settings: dict[str, Any]
    given: tuple[str, ...] = ()
    patches: tuple[Callable[[], None], ...] = ()
    files: tuple[tuple[str, str], ...] = ()  # (CIF of the random decorations, where it is copied to)
    prepare: Callable[[Path], None] | None = None
    in_parts: bool = False


def _resume_often() -> None:
    """Make the training loop write its resume file after nearly every step, so that kills fall between evaluations too."""
    from networks import training

    training.RESUME_EVERY_S = 0.02


def _label_few_at_a_time() -> None:
    from energetics import site_labels

    site_labels.LABEL_CHUNK = 4


def _few_metals() -> None:
    from energetics import adsorption_records, embedded_data

    for module in (embedded_data, adsorption_records):
        module.SURFACE_METALS = ["Cu"]


def _still_atoms() -> None:
    import simple_judges

    from energetics import embedded_data

    _few_metals()
    embedded_data.load_potential = simple_judges.still_potential


def _simple_judges() -> None:
    import simple_judges

    from energetics import potentials
    from evaluation import judges

    judges.load_judges = simple_judges.slow_judges
    potentials.load_potential = simple_judges.still_potential


def _plain_figures() -> None:
    """Figures without axes: the time that labels take is not what is looked at."""
    from pipeline import plotting

    plotting.STYLE["savefig.dpi"] = 40
    whole = plotting.save

    def save(fig: Any, path: Any) -> None:
        fig.set_layout_engine("none")
        for axis in fig.axes:
            axis.set_axis_off()
        whole(fig, path)

    plotting.save = save


def _small_lmdb(folder: Path) -> None:
    from energetics.is2re_lmdb import open_is2re, write_is2re

    records = open_is2re(ROOT / "data" / "demo_is2re" / "data.lmdb")
    write_is2re(folder / "small.lmdb", [records[k] for k in range(0, len(records), 20)])


TRAINED = {"dimenet.checkpoint": ROOT / "weights" / "dimenet.pth", "denoiser.checkpoint": ROOT / "weights" / "denoiser.pth"}
SPLIT = {"dataset.max_rows": 40, "dataset.val_fraction": 0.2, "dataset.test_fraction": 0.2}
JUDGED = {
    "evaluation.max_steps": 3,
    "evaluation.max_h_steps": 3,
    "evaluation.more_h_steps": 0,
    "evaluation.bootstrap": 20,
    "evaluation.workers": 2,
    "evaluation.finalists": 1,
    "evaluation.cif_dir": "{run}/cifs",
    "evaluation.random_cif_dir": "{run}/random",
    "evaluation.known_cif_dir": "{run}/random",
    "external.cif_dir": "{run}/theirs",
    "external.output_dir": "{run}/external",
    **TRAINED,
}
CIFS = tuple((f"random_{k:05d}.cif", folder) for k, folder in ((0, "cifs"), (1, "cifs"), (2, "cifs"), (3, "random"), (4, "theirs")))
EVALUATION = ("run", "evaluation", "dimenet", "dataset")


# Stages that are the same whoever judges.
PLAIN = {
    "material_dataset": Stage(
        "material_dataset.py", ("run", "dimenet", "dataset"), {**SPLIT, **TRAINED}, patches=(_label_few_at_a_time,)
    ),
    "pretrain_csllm": Stage(
        "scripts.pretrain_csllm",
        ("run", "dataset", "synth_lm"),
        {
            "synth_lm.trees": 5,
            "synth_lm.max_rows": 80,
        },
    ),
    "optimization": Stage(
        "optimization.py",
        ("run", "dataset", "denoiser"),
        {
            **SPLIT,
            "denoiser.hidden_channels": 16,
            "denoiser.num_layers": 1,
            "denoiser.num_timesteps": 100,
            "denoiser.max_steps": 6,
            "denoiser.eval_every": 3,
            "denoiser.batch_size": 8,
            "dataset.processed_dir": "{given}/material_dataset/processed",
        },
        given=("material_dataset",),
        patches=(_resume_often,),
    ),
    "structure_generator": Stage(
        "structure_generator.py",
        ("run", "denoiser", "generation"),
        {
            "denoiser.checkpoint": TRAINED["denoiser.checkpoint"],
            "generation.num_structures": 3,
            "generation.num_steps": 8,
            "generation.batch_size": 2,
            "generation.recipes": "[MoS2,TiC2,ZrO2]",
            "generation.start": "noise",
        },
    ),
}


def stages(judges: str, spawn: bool = False) -> dict[str, Stage]:
    """Every stage by name."""
    simple = judges == "simple"
    judged = JUDGED | ({"evaluation.dft_truth_path": "", "evaluation.max_h_steps": 20} if simple else {})
    judging = (_simple_judges,) if simple else ()
    table = {
        "prepare_demo_data": _data_stage(simple),
        "pretrain_dimenet": _dimenet_stage(spawn),
        **{name: replace(stage) for name, stage in PLAIN.items()},
        "test": Stage("test.py", EVALUATION, judged, patches=judging, files=CIFS),
        "evaluate_external": Stage("evaluate_external.py", ("external", *EVALUATION), judged, ("test",), judging, CIFS),
    }
    if simple:
        for stage in table.values():
            stage.patches = (*stage.patches, _plain_figures)
    return table


def _data_stage(simple: bool) -> Stage:
    return Stage(
        "scripts.prepare_demo_data",
        ("run", "demo", "evaluation"),
        {
            "demo.db_path": "{run}/demo.db",
            "demo.lmdb_path": "{run}/is2re/data.lmdb",
            "demo.references_path": "{run}/references.json.gz",
            "demo.random_cif_dir": "{run}/random",
            "demo.known_cif_dir": "{run}/known",
            "demo.work_dir": "{run}/work",
            "demo.num_monolayers": 4 if simple else 2,
            "demo.num_adsorption": 6 if simple else 3,
            "demo.num_random": 4,
            "demo.max_steps": 60,
            "demo.max_h_steps": 10,
        },
        patches=(_still_atoms if simple else _few_metals,),
        in_parts=True,
    )


def _dimenet_stage(spawn: bool) -> Stage:
    return Stage(
        "pretrain_dimenet.py",
        ("run", "dimenet"),
        {
            "run.threads": 2 if spawn else 1,  # an open LMDB file must not cross a fork: members in workers only where spawned
            "dimenet.lmdb_path": "{given}/small.lmdb",
            "dimenet.ensemble_size": 2,
            "dimenet.epochs": 3,
            "dimenet.batch_size": 4,
            "dimenet.val_fraction": 0.2,
            "dimenet.test_fraction": 0.2,
        },
        patches=(_resume_often,),
        prepare=_small_lmdb,
    )
