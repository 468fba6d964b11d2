"""Loads the judges that the configuration names, and identifies them by names, versions and hashes."""

from __future__ import annotations

import hashlib
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols

from crystals.formulas import composition_key
from crystals.matching import MATCH_VACUUM, MATCHER_SETTINGS, KnownStructures
from energetics.hull_network import COMBINED
from energetics.potential_loading import (
    file_identity,
    load_second_potential,
    load_stability_judge,
    memory_of,
    potential_identity,
    uses_gap,
)
from evaluation.csllm import CSLLMJudge
from evaluation.dft_benchmark import blind_report, dft_benchmark
from evaluation.embedded_trees import EmbeddedTreesJudge
from evaluation.judging import Judges
from evaluation.synthesizability import SynthesizabilityJudge
from pipeline.cli import resolve_device
from pipeline.errors import StageError
from pipeline.files import missing_file, relative_name
from pipeline.provenance import read_sidecar, sidecar_path
from pipeline.settings import Config, EvaluationConfig

log = logging.getLogger("her2d")


def _needed_files(cfg: Config) -> dict[str, tuple[str, str]]:
    """Return the files that the judges need: setting -> (path, what to do where it is missing)."""
    settings = cfg.evaluation
    needed = {
        "dimenet.checkpoint": (cfg.dimenet.checkpoint, "run pretrain_dimenet.py, or set it to weights/dimenet.pth"),
        "evaluation.references_path": (settings.references_path, "run python -m scripts.prepare_demo_data with this potential"),
        "evaluation.training_set": (settings.training_set, "run python -m scripts.prepare_demo_data, or name your database"),
    }
    if settings.synthesizability == "embedded":
        needed["evaluation.embedded_checkpoint"] = (settings.embedded_checkpoint, "run python -m scripts.pretrain_csllm")
    if settings.band_gap_checkpoint:
        hint = "run python -m scripts.train_band_gap, or set it to nothing"
        needed["evaluation.band_gap_checkpoint"] = (settings.band_gap_checkpoint, hint)
    if settings.phonons and settings.dynamics_checkpoint:
        hint = "run python -m scripts.phonon_benchmark, or set it to nothing"
        needed["evaluation.dynamics_checkpoint"] = (settings.dynamics_checkpoint, hint)
    if settings.hull == COMBINED and Path(settings.hull_checkpoint).is_file():
        needed["evaluation.hull_network"] = (settings.hull_network, "set it to weights/hull_network.pth, or evaluation.hull=both")
    if settings.potential_checkpoint:
        needed["evaluation.potential_checkpoint"] = (settings.potential_checkpoint, "name the checkpoint of the potential")
    return needed


def judge_identity(cfg: Config) -> dict[str, Any]:
    """Return names, versions and hashes of the judges, without loading them. Results of equal identity are comparable.

    Raises:
        StageError: a file is missing; the message names the setting and what to do.
    """
    settings = cfg.evaluation
    needed = _needed_files(cfg)
    known_dbs = [("evaluation.known_db", (path, "name databases of known sheets, or none")) for path in settings.known_db]
    if unknown := sorted(set(settings.hazards) - set(chemical_symbols[1:])):
        raise StageError(f"evaluation.hazards: {', '.join(unknown)} is no element")
    for key, (path, hint) in [*needed.items(), *known_dbs]:
        if not Path(path).is_file():
            raise missing_file(key, path, hint)

    potential = potential_identity(settings)
    if settings.synthesizability == "embedded":
        synth: dict[str, Any] = {"name": EmbeddedTreesJudge.name, **file_identity(settings.embedded_checkpoint)}
        card = sidecar_path(settings.embedded_checkpoint)
        if card.is_file():
            measured = read_sidecar(settings.embedded_checkpoint, stage="pretrain_csllm.py").get("metrics", {})
            synth["test_roc_auc"] = measured.get("test", {}).get("roc_auc")
            synth["laboratory"] = measured.get("laboratory")
    else:
        folder = Path(settings.csllm_path)
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
        synth = {
            "name": "csllm",
            "path": settings.csllm_path,
            "files": {str(p.relative_to(folder)): p.stat().st_size for p in files},
        }
    her = {"name": "DimeNet++", **file_identity(cfg.dimenet.checkpoint), "her_correction_ev": cfg.dataset.her_correction_ev}
    her["h_image_distance_angstrom"] = cfg.dataset.h_image_distance_angstrom
    formulas = known_formulas(settings)
    known: Any = "none"
    if formulas:
        digest = hashlib.sha256("\n".join(sorted(formulas)).encode()).hexdigest()
        known = {"path": relative_name(settings.known_formulas_from), "formulas": len(formulas), "sha256": digest}
    # Without such databases the judges are those that they were before there was the setting.
    further = {"known_db": [file_identity(path) for path in settings.known_db]} if settings.known_db else {}
    return {
        "potential": potential,
        "references": file_identity(settings.references_path),
        "hull": hull_identity(settings),
        "band_gap": file_identity(settings.band_gap_checkpoint) if settings.band_gap_checkpoint else "none",
        "her": her,
        "synthesizability": synth,
        "training_set": file_identity(settings.training_set),
        **further,
        "known_formulas": known,
        "structure_matcher": {**MATCHER_SETTINGS, "vacuum_angstrom": MATCH_VACUUM},
    }


def novelty_sources(settings: EvaluationConfig) -> dict[str, int]:
    """Return against what novelty is decided: number of rows of every database, and of formulas that a generator lists, by file."""
    counts = KnownStructures(settings.training_set, *settings.known_db).counts()
    formulas = known_formulas(settings)
    return counts | ({relative_name(settings.known_formulas_from): len(formulas)} if formulas else {})


def hull_identity(settings: EvaluationConfig) -> dict[str, Any]:
    """Return whose E_above_hull counts, with the hashes of learnt hull and networks where there are some and they are asked for."""
    if settings.hull == "potential" or not Path(settings.hull_checkpoint).is_file():
        return {"name": "potential"}
    network = {"network": file_identity(settings.hull_network)} if settings.hull == COMBINED else {}
    return {"name": settings.hull, **file_identity(settings.hull_checkpoint), **network}


def load_judges(cfg: Config, identity: dict[str, Any] | None = None, formulas: frozenset[str] | None = None) -> Judges:
    """Load the judges that the configuration names.

    Every worker would take seconds to find again what its parent knows.

    Args:
        cfg: the configuration.
        identity: what ``judge_identity`` returns for it, where that is at hand.
        formulas: what ``known_formulas`` returns for it, where that is at hand.

    Raises:
        StageError: one of them cannot be loaded.
    """
    from energetics import band_gap_model, hull, hydrogen, learnt_hull

    settings = cfg.evaluation
    device = resolve_device(cfg.run)
    judge = load_stability_judge(cfg)
    references = hull.References.load(settings.references_path, judge.potential)
    return Judges(
        potential=judge,
        references=references,
        her=hydrogen.HydrogenPredictor.load(cfg.dimenet.checkpoint, device),
        synth=load_judge(settings, device),
        training_structures=KnownStructures(settings.training_set, *settings.known_db),
        known_formulas=known_formulas(settings) if formulas is None else formulas,
        dataset=cfg.dataset,
        identity=judge_identity(cfg) if identity is None else identity,
        learnt_hull=learnt_hull.load_learnt_hull(settings, references, judge.potential),
        gap=band_gap_model.load_gap_model(settings.band_gap_checkpoint),
    )


def known_formulas(settings: EvaluationConfig) -> frozenset[str]:
    """Return the reduced formulas that the generator learnt from, where their structures are not at hand.

    The files are read once, until they change.

    A candidate of such a formula cannot be called novel. There are none without a checkpoint of the generator, and none where
    ``evaluation.training_set`` has all formulas of the checkpoint: its structures then decide.

    Raises:
        StageError: ``evaluation.known_formulas_from`` is no checkpoint of a generator.
    """
    path = settings.known_formulas_from
    if not path or not Path(path).is_file():
        if path:
            log.info("no generator at %s: novelty is decided by evaluation.training_set alone", relative_name(path))
        return frozenset()
    written = tuple(os.stat(file).st_mtime_ns if Path(file).is_file() else 0 for file in (path, settings.training_set))
    return _formulas_of(path, settings.training_set, written)


@lru_cache(maxsize=4)
def _formulas_of(path: str, training_set: str, written: tuple[int, ...]) -> frozenset[str]:
    from networks import checkpoints

    hint = "set evaluation.known_formulas_from to the checkpoint of the generator, or to nothing"
    listed = checkpoints.load_checkpoint(path, "denoiser", hint).get("formulas")
    if not isinstance(listed, list):
        raise StageError(f"{relative_name(path)} names no formulas: {hint}")
    formulas = frozenset(map(composition_key, listed))
    return frozenset() if formulas <= KnownStructures(training_set).formulas() else formulas


def run_dft_benchmark(cfg: Config, her: Any) -> dict[str, Any] | None:
    """Measure the judges of ΔE_H that the configuration names against DFT, on the blind points too where there are any.

    Returns:
        What ``dft_benchmark`` returns, with what ``blind_report`` returns under "blind"; None without DFT points.
    """
    from energetics import potentials

    settings = cfg.evaluation
    own = potentials.load_potential(settings.potential, settings.potential_checkpoint)
    both = [p for p in (own, load_second_potential(settings)) if p is not None]
    truth_path, with_gap = settings.dft_truth_path, uses_gap(settings)
    her_correction, memory = cfg.dataset.her_correction_ev, memory_of(settings)
    report = dft_benchmark(her, truth_path, settings.truth_table_path, both, with_gap, her_correction, memory)
    if report is not None and settings.dft_blind_path:
        report["blind"] = blind_report(her, settings.dft_blind_path, truth_path, both, with_gap, her_correction, memory)
    return report


def load_judge(evaluation: EvaluationConfig, device: str | torch.device = "cpu") -> SynthesizabilityJudge:
    """Load the judge that ``evaluation.synthesizability`` names.

    Raises:
        StageError: its files are missing or do not fit.
    """
    if evaluation.synthesizability == "csllm":
        return CSLLMJudge(evaluation.csllm_path, device)
    return EmbeddedTreesJudge(evaluation.embedded_checkpoint, device)
