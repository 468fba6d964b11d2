"""Settings of the rounds of a design loop: what changes from round to round, and what must not change within one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.loop_report import CHOSEN, RANDOM, UNGUIDED
from pipeline.files import relative_name
from pipeline.settings import Config

FOLDERS = {CHOSEN: "generated", UNGUIDED: "unguided", RANDOM: "random"}
# Settings that say where and how fast work is done, not what comes out.
EXECUTION = {
    "run": ("device", "threads", "scheduler", "walltime", "queue", "account", "worker_memory_gb", "gpus_per_worker"),
    "evaluation": ("workers", "output_dir", "cif_dir", "unguided_cif_dir", "judged_before", "relaxed_dir"),
    "generation": ("batch_size", "output_dir"),
    "loop": ("rounds", "dft_python", "dft_processes", "vasp_results"),
}
# Sections that a round depends on.
SECTIONS = ("run", "dimenet", "dataset", "denoiser", "generation", "evaluation", "loop")


def settings_of_round(cfg: Config, before: Config, number: int, own: Path) -> Config:
    """Return the settings of a round: those of the loop, with another seed and what the round before has learnt.

    Args:
        cfg: the settings of the loop.
        before: of the round before, with its points, its DimeNet++ and its denoiser.
        number: of the round, from 1.
        own: folder of the round.
    """
    points = before.evaluation.dft_truth_path
    changes = {"dft_truth_path": points, "output_dir": str(own / "judged" / FOLDERS[CHOSEN]), "cif_dir": str(own / FOLDERS[CHOSEN])}
    changes["unguided_cif_dir"] = str(own / FOLDERS[UNGUIDED])
    return dataclasses.replace(
        cfg,
        run=dataclasses.replace(cfg.run, seed=(cfg.run.seed + number - 1) % 2**32),
        dimenet=dataclasses.replace(cfg.dimenet, checkpoint=before.dimenet.checkpoint, dft_path=points),
        denoiser=dataclasses.replace(cfg.denoiser, checkpoint=before.denoiser.checkpoint),
        evaluation=dataclasses.replace(cfg.evaluation, **changes),
        generation=dataclasses.replace(cfg.generation, output_dir=str(own / FOLDERS[CHOSEN])),
    )


def deciding_settings(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings that decide what comes out of a round, by name; files are named relative to the project.

    sections: all settings, by section and name.
    """
    found = {}
    for section in SECTIONS:
        for name, value in sections.get(section, {}).items():
            if name not in EXECUTION.get(section, ()):
                is_path = isinstance(value, str) and Path(value).is_absolute()
                found[f"{section}.{name}"] = relative_name(value) if is_path else value
    return found
