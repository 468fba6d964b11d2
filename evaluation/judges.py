"""Loads the judges, and says what makes their results comparable."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from pymatgen.core import Composition

from crystals.matching import MATCH_VACUUM, MATCHER_SETTINGS, TrainingStructures
from energetics import band_gap, dft_correction
from energetics.potential_adsorption import StabilityJudge
from evaluation import dft_benchmark
from evaluation.csllm import CSLLMJudge
from evaluation.embedded_lm import EmbeddedLMJudge
from evaluation.judging import Judges
from evaluation.synthesizability import SynthesizabilityJudge
from pipeline.cli import resolve_device
from pipeline.errors import StageError
from pipeline.files import file_sha256, relative_name
from pipeline.provenance import read_sidecar, sidecar_path
from pipeline.settings import Config, EvaluationConfig

log = logging.getLogger("her2d")


def judge_identity(cfg: Config) -> dict[str, Any]:
    """Names, versions and hashes of the judges, without loading them.

    Raises StageError, naming the file and what to do, when one of them is not there.
    """
    settings = cfg.evaluation
    needed = {
        "dimenet.checkpoint": (cfg.dimenet.checkpoint, "run pretrain_dimenet.py, or set it to weights/dimenet.pth"),
        "evaluation.references_path": (settings.references_path, "run python -m scripts.prepare_demo_data with this potential"),
        "evaluation.training_set": (settings.training_set, "run python -m scripts.prepare_demo_data, or name your database"),
    }
    if settings.synthesizability == "embedded":
        needed["evaluation.embedded_checkpoint"] = (settings.embedded_checkpoint, "run python -m scripts.pretrain_csllm")
    if settings.potential_checkpoint:
        needed["evaluation.potential_checkpoint"] = (settings.potential_checkpoint, "name the checkpoint of the potential")
    for key, (path, hint) in needed.items():
        if not Path(path).is_file():
            raise StageError(f"{key}: no file at {relative_name(path)}: {hint}")

    potential = potential_identity(settings)
    if settings.synthesizability == "embedded":
        synth: dict[str, Any] = {"name": "embedded-lm", **_described(settings.embedded_checkpoint)}
        card = sidecar_path(settings.embedded_checkpoint)
        if card.is_file():
            measured = read_sidecar(settings.embedded_checkpoint, stage="pretrain_csllm.py").get("metrics", {})
            synth["test_roc_auc"] = measured.get("test", {}).get("roc_auc")
    else:
        folder = Path(settings.csllm_path)
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
        synth = {
            "name": "csllm",
            "path": settings.csllm_path,
            "files": {str(p.relative_to(folder)): p.stat().st_size for p in files},
        }
    her = {"name": "DimeNet++", **_described(cfg.dimenet.checkpoint), "her_correction_ev": cfg.dataset.her_correction_ev}
    her["h_image_distance_angstrom"] = cfg.dataset.h_image_distance_angstrom
    formulas = known_formulas(settings)
    known: Any = "none"
    if formulas:
        digest = hashlib.sha256("\n".join(sorted(formulas)).encode()).hexdigest()
        known = {"path": relative_name(settings.known_formulas_from), "formulas": len(formulas), "sha256": digest}
    return {
        "potential": potential,
        "references": _described(settings.references_path),
        "her": her,
        "synthesizability": synth,
        "training_set": _described(settings.training_set),
        "known_formulas": known,
        "structure_matcher": {**MATCHER_SETTINGS, "vacuum_angstrom": MATCH_VACUUM},
    }


def potential_identity(settings: EvaluationConfig) -> dict[str, Any]:
    """Names, versions and hashes of the potential, and of what its ΔE_H is corrected with."""
    potential: dict[str, Any] = {"name": settings.potential, "version": _package_version(settings.potential)}
    if settings.potential_checkpoint:
        potential |= _described(settings.potential_checkpoint)
    if settings.second_potential not in ("", settings.potential):
        potential["second"] = {"name": settings.second_potential, "version": _package_version(settings.second_potential)}
    potential["band_gap"] = f"{settings.band_gap} (tblite {_version('tblite')})" if settings.band_gap else "none"
    potential["dft_correction"] = _described(settings.dft_truth_path) if Path(settings.dft_truth_path).is_file() else "none"
    return potential


def _described(path: str) -> dict[str, str]:
    return {"path": relative_name(path), "sha256": file_sha256(path)}


def _package_version(potential: str) -> str:
    package = "mattersim" if potential == "mattersim" else "sevenn"
    return f"{package} {_version(package)}"


def _version(package: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def uses_gap(settings: EvaluationConfig) -> bool:
    """Whether the DFT corrections have the band gap: where it is asked for and its package is there."""
    if not settings.band_gap:
        return False
    if not band_gap.is_installed():
        log.warning("evaluation.band_gap: the package tblite is not installed; the DFT corrections do without band gaps")
        return False
    return True


def load_judges(cfg: Config) -> Judges:
    """The judges that the configuration names. Raises StageError with one line when one cannot be loaded."""
    from energetics import hull, hydrogen

    pass  # was lazy import

    settings = cfg.evaluation
    device = resolve_device(cfg.run)
    judge = load_stability_judge(cfg)
    return Judges(
        potential=judge,
        references=hull.References.load(settings.references_path, judge.potential),
        her=hydrogen.HydrogenPredictor.load(cfg.dimenet.checkpoint, device),
        synth=load_judge(settings, device),
        training_structures=TrainingStructures(settings.training_set),
        known_formulas=known_formulas(settings),
        dataset=cfg.dataset,
        identity=judge_identity(cfg),
    )


def load_stability_judge(cfg: Config) -> StabilityJudge:
    """The potential that the configuration names, corrected from DFT where there are points to learn that from."""
    from energetics import potentials

    settings = cfg.evaluation
    device = str(resolve_device(cfg.run))
    potential = potentials.load_potential(settings.potential, settings.potential_checkpoint, device=device)
    correction = second = None
    with_gap = uses_gap(settings)
    if Path(settings.dft_truth_path).is_file():
        second = load_second_potential(settings, device)
        both = [p for p in (potential, second) if p is not None]
        correction = dft_correction.fit_potential_correction(both, settings.dft_truth_path, with_gap)
    return StabilityJudge(potential, settings, correction, second, with_gap)


def known_formulas(settings: EvaluationConfig) -> frozenset[str]:
    """Reduced formulas that the generator was trained on, where ``evaluation.training_set`` is not the database that they are from.

    A generator may have learnt from structures that are not at hand; a candidate of such a formula cannot be called novel. Empty
    when the training set has every one of these formulas, for then its structures decide, and without a generator's checkpoint.
    Raises StageError when ``evaluation.known_formulas_from`` is something else.
    """
    from networks import checkpoints

    path = settings.known_formulas_from
    if not path or not Path(path).is_file():
        if path:
            log.info("no generator at %s: novelty is decided by evaluation.training_set alone", relative_name(path))
        return frozenset()
    hint = "set evaluation.known_formulas_from to the checkpoint of the generator, or to nothing"
    listed = checkpoints.load_checkpoint(path, "denoiser", hint).get("formulas")
    if not isinstance(listed, list):
        raise StageError(f"{relative_name(path)} names no formulas: {hint}")
    formulas = frozenset(Composition(formula).reduced_formula for formula in listed)
    return frozenset() if formulas <= TrainingStructures(settings.training_set).formulas() else formulas


def load_second_potential(settings: EvaluationConfig, device: str = "cpu") -> Any:
    """The potential whose ΔE_H the correction uses beside that of the judge; None where the settings name none, or the judge."""
    from energetics import potentials

    if settings.second_potential in ("", settings.potential):
        return None
    return potentials.load_potential(settings.second_potential, device=device)


def load_truth(cfg: Config, her: Any) -> dict[str, Any] | None:
    """``her_truth.truth_report`` of the judges of ΔE_H that the configuration names."""
    from energetics import potentials

    settings = cfg.evaluation
    own = potentials.load_potential(settings.potential, settings.potential_checkpoint)
    both = [p for p in (own, load_second_potential(settings)) if p is not None]
    truth_path, with_gap = settings.dft_truth_path, uses_gap(settings)
    report = dft_benchmark.truth_report(her, truth_path, settings.truth_table_path, both, with_gap)
    if report is not None and settings.dft_blind_path:
        report["blind"] = dft_benchmark.blind_report(her, settings.dft_blind_path, truth_path, both, with_gap)
    return report


def load_judge(evaluation: EvaluationConfig, device: str | torch.device = "cpu") -> SynthesizabilityJudge:
    """The judge that ``evaluation.synthesizability`` names. Raises StageError with one line when its files are not there."""
    if evaluation.synthesizability == "csllm":
        return CSLLMJudge(evaluation.csllm_path, device)
    return EmbeddedLMJudge(evaluation.embedded_checkpoint, device)
