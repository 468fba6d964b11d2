"""Puts the shipped weights in the place of models that were neither named nor trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipeline.files import PROJECT_DIR, relative_name
from pipeline.settings import Config

# Section of ``checkpoint`` -> (its default below run.output_dir, shipped file).
SHIPPED = {
    "dimenet": ("dimenet/dimenet.pth", "weights/dimenet.pth"),
    "denoiser": ("denoiser/best_diffusion_model.pth", "weights/denoiser.pth"),
}


def with_shipped_weights(cfg: Config, sections: Sequence[str]) -> tuple[Config, str]:
    """Return the settings with shipped weights where a checkpoint has its default and no stage has written it yet.

    ``evaluation.known_formulas_from`` follows ``denoiser.checkpoint``. A checkpoint that the user named is left as it is.

    Args:
        cfg: the settings.
        sections: those whose ``checkpoint`` the stage reads, "dimenet" or "denoiser".

    Returns:
        The settings, and one line for the log; empty where nothing changed.
    """
    used = []
    for section in sections:
        default, shipped = SHIPPED[section]
        settings, replacement = getattr(cfg, section), PROJECT_DIR / shipped
        is_default = Path(settings.checkpoint) == Path(cfg.run.output_dir) / default
        if not is_default or Path(settings.checkpoint).is_file() or not replacement.is_file():
            continue
        if section == "denoiser" and cfg.evaluation.known_formulas_from == settings.checkpoint:
            evaluation = dataclasses.replace(cfg.evaluation, known_formulas_from=str(replacement))
            cfg = dataclasses.replace(cfg, evaluation=evaluation)
        cfg = dataclasses.replace(cfg, **{section: dataclasses.replace(settings, checkpoint=str(replacement))})
        used.append(shipped)
    if not used:
        return cfg, ""
    return cfg, f"nothing trained in {relative_name(cfg.run.output_dir)}: using the shipped {' and '.join(used)}"
