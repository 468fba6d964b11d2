"""Loads the potentials that the configuration names, and identifies what their results depend on."""

from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path
from typing import Any

from energetics import dft_correction
from energetics.band_gap_model import load_gap_model
from energetics.potential_adsorption import StabilityJudge
from pipeline.cli import resolve_device
from pipeline.files import file_sha256, relative_name
from pipeline.memory import NO_MEMORY, Memory
from pipeline.settings import Config, EvaluationConfig

log = logging.getLogger("her2d")

FITS = "fits"  # folder of a memory of fits beside the verdicts of ``evaluation.judged_before``


def without_paths(value: Any) -> Any:
    """Return an identity without the paths of its files: the same files elsewhere are the same judges."""
    return {k: without_paths(v) for k, v in value.items() if k != "path"} if isinstance(value, dict) else value


def file_identity(path: str) -> dict[str, str]:
    """Return the name and the SHA-256 of a file."""
    return {"path": relative_name(path), "sha256": file_sha256(path)}


def potential_identity(settings: EvaluationConfig) -> dict[str, Any]:
    """Return names, versions and hashes of the potential, and of what its ΔE_H is corrected with, without loading them."""
    potential: dict[str, Any] = {"name": settings.potential, "version": _package_version(settings.potential)}
    if settings.potential_checkpoint:
        potential |= file_identity(settings.potential_checkpoint)
    if settings.second_potential not in ("", settings.potential):
        potential["second"] = {"name": settings.second_potential, "version": _package_version(settings.second_potential)}
    potential["band_gap"] = file_identity(settings.band_gap_checkpoint) if uses_gap(settings) else "none"
    potential["dft_correction"] = file_identity(settings.dft_truth_path) if Path(settings.dft_truth_path).is_file() else "none"
    return potential


def _package_version(potential: str) -> str:
    package = "mattersim" if potential == "mattersim" else "sevenn"
    return f"{package} {_version(package)}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def uses_gap(settings: EvaluationConfig) -> bool:
    """Return whether the DFT corrections use the band gap."""
    return bool(settings.band_gap and settings.band_gap_checkpoint)


def load_stability_judge(cfg: Config) -> StabilityJudge:
    """Load the potential that the configuration names, corrected from DFT where there are points to learn that from.

    Raises:
        StageError: a potential or its checkpoint is not there.
    """
    from energetics import potentials

    settings = cfg.evaluation
    device = str(resolve_device(cfg.run))
    potential = potentials.load_potential(settings.potential, settings.potential_checkpoint, device=device)
    correction = second = None
    memory = memory_of(settings)
    gap = load_gap_model(settings.band_gap_checkpoint) if uses_gap(settings) else None
    if Path(settings.dft_truth_path).is_file():
        second = load_second_potential(settings, device)
        both = [p for p in (potential, second) if p is not None]
        correction = dft_correction.fit_potential_correction(both, settings.dft_truth_path, gap is not None, memory)
    return StabilityJudge(potential, settings, correction, second, gap, memory)


def memory_of(settings: EvaluationConfig) -> Memory:
    """Return the memory of relaxations and fits that the settings name; the fits that ship with verdicts are in it."""
    shipped = [Path(folder) / FITS for folder in settings.judged_before]
    return Memory(Path(settings.relaxed_dir), shipped) if settings.relaxed_dir else NO_MEMORY


def load_second_potential(settings: EvaluationConfig, device: str = "cpu") -> Any:
    """Load the potential whose ΔE_H the correction uses beside the judge's; None where there is none, or it is the judge."""
    from energetics import potentials

    if settings.second_potential in ("", settings.potential):
        return None
    return potentials.load_potential(settings.second_potential, device=device)
