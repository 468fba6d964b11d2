"""Stages 5 and 6: one evaluation, identical for our candidates and for anybody else's.

``evaluate`` reads a folder of CIFs and returns one ``CandidateResult`` per file and the metrics of the set. Judges are passed in
(``Judges``): the interatomic potential with its references, DimeNet++ for hydrogen, the synthesizability model and the training
structures. A judge that fails leaves NaN and a status that says why; a file that cannot be read is a row like any other.

Every candidate is judged by itself, in a worker process that loads the judges once, and stored as
``cache/<hash of CIF, judges and settings>.json`` the moment it is done: results depend neither on the order of the files nor on the
number of workers, and a run that is stopped goes on where it was.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import itertools
import logging
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ase import Atoms
from pymatgen.core import Composition, Structure
from tqdm import tqdm

import band_gap
import config
import dft_correction
import her_truth
import metrics
import validity
from judge_pool import JudgePool, cache_key, judge_inline, read_cached, result_from_dict
from judging import (
    MATCH_VACUUM,
    MATCHER_SETTINGS,
    CandidateResult,
    Judges,
    StabilityJudge,
    TrainingStructures,
    match_structure,
    same_structure,
)

log = logging.getLogger("her2d")


@dataclass
class Evaluation:
    """One judged set: rows sorted by id, metrics of its two-dimensional candidates, and of its bulk crystals where it has any."""

    label: str
    cif_dir: str
    rows: list[CandidateResult]
    aggregates: dict[str, metrics.Metric]
    bulk_aggregates: dict[str, metrics.Metric]
    structures: dict[str, Atoms]
    identity: dict[str, Any]
    elapsed_seconds: float = math.nan

    @property
    def rows_2d(self) -> list[CandidateResult]:
        """The candidates asked for as sheets: everything but bulk crystals."""
        return [row for row in self.rows if not row.is_bulk]


def judge_identity(cfg: config.Config) -> dict[str, Any]:
    """Names, versions and hashes of the judges, without loading them.

    Raises StageError, naming the file and what to do, when one of them is not there.
    """
    settings = cfg.evaluation
    needed = {
        "dimenet.checkpoint": (cfg.dimenet.checkpoint, "run pretrain_dimenet.py, or set it to weights/dimenet.pth"),
        "evaluation.references_path": (settings.references_path, "run prepare_demo_data.py with this potential"),
        "evaluation.training_set": (settings.training_set, "run prepare_demo_data.py, or name your database"),
    }
    if settings.synthesizability == "embedded":
        needed["evaluation.embedded_checkpoint"] = (settings.embedded_checkpoint, "run pretrain_csllm.py")
    if settings.potential_checkpoint:
        needed["evaluation.potential_checkpoint"] = (settings.potential_checkpoint, "name the checkpoint of the potential")
    for key, (path, hint) in needed.items():
        if not Path(path).is_file():
            raise config.StageError(f"{key}: no file at {config.relative_name(path)}: {hint}")

    potential = potential_identity(settings)
    if settings.synthesizability == "embedded":
        synth: dict[str, Any] = {"name": "embedded-lm", **_described(settings.embedded_checkpoint)}
        card = config.sidecar_path(settings.embedded_checkpoint)
        if card.is_file():
            measured = config.read_sidecar(settings.embedded_checkpoint, stage="pretrain_csllm.py").get("metrics", {})
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
        known = {"path": config.relative_name(settings.known_formulas_from), "formulas": len(formulas), "sha256": digest}
    return {
        "potential": potential,
        "references": _described(settings.references_path),
        "her": her,
        "synthesizability": synth,
        "training_set": _described(settings.training_set),
        "known_formulas": known,
        "structure_matcher": {**MATCHER_SETTINGS, "vacuum_angstrom": MATCH_VACUUM},
    }


def potential_identity(settings: config.EvaluationConfig) -> dict[str, Any]:
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
    return {"path": config.relative_name(path), "sha256": config.file_sha256(path)}


def _package_version(potential: str) -> str:
    package = "mattersim" if potential == "mattersim" else "sevenn"
    return f"{package} {_version(package)}"


def _version(package: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def uses_gap(settings: config.EvaluationConfig) -> bool:
    """Whether the DFT corrections have the band gap: where it is asked for and its package is there."""
    if not settings.band_gap:
        return False
    if not band_gap.is_installed():
        log.warning("evaluation.band_gap: the package tblite is not installed; the DFT corrections do without band gaps")
        return False
    return True


def load_judges(cfg: config.Config) -> Judges:
    """The judges that the configuration names. Raises StageError with one line when one cannot be loaded."""
    import hydrogen
    import potentials
    import synthesizability

    settings = cfg.evaluation
    device = config.resolve_device(cfg.run)
    judge = load_stability_judge(cfg)
    return Judges(
        potential=judge,
        references=potentials.References.load(settings.references_path, judge.potential),
        her=hydrogen.HydrogenPredictor.load(cfg.dimenet.checkpoint, device),
        synth=synthesizability.load_judge(settings, device),
        training_structures=TrainingStructures(settings.training_set),
        known_formulas=known_formulas(settings),
        dataset=cfg.dataset,
        identity=judge_identity(cfg),
    )


def load_stability_judge(cfg: config.Config) -> StabilityJudge:
    """The potential that the configuration names, corrected from DFT where there are points to learn that from."""
    import potentials

    settings = cfg.evaluation
    device = str(config.resolve_device(cfg.run))
    potential = potentials.load_potential(settings.potential, settings.potential_checkpoint, device=device)
    correction = second = None
    with_gap = uses_gap(settings)
    if Path(settings.dft_truth_path).is_file():
        second = load_second_potential(settings, device)
        both = [p for p in (potential, second) if p is not None]
        correction = dft_correction.fit_potential_correction(both, settings.dft_truth_path, with_gap)
    return StabilityJudge(potential, settings, correction, second, with_gap)


def known_formulas(settings: config.EvaluationConfig) -> frozenset[str]:
    """Reduced formulas that the generator was trained on, where ``evaluation.training_set`` is not the database that they are from.

    A generator may have learnt from structures that are not at hand; a candidate of such a formula cannot be called novel. Empty
    when the training set has every one of these formulas, for then its structures decide, and without a generator's checkpoint.
    Raises StageError when ``evaluation.known_formulas_from`` is something else.
    """
    import models

    path = settings.known_formulas_from
    if not path or not Path(path).is_file():
        if path:
            log.info("no generator at %s: novelty is decided by evaluation.training_set alone", config.relative_name(path))
        return frozenset()
    hint = "set evaluation.known_formulas_from to the checkpoint of the generator, or to nothing"
    listed = models.load_checkpoint(path, "denoiser", hint).get("formulas")
    if not isinstance(listed, list):
        raise config.StageError(f"{config.relative_name(path)} names no formulas: {hint}")
    formulas = frozenset(Composition(formula).reduced_formula for formula in listed)
    return frozenset() if formulas <= TrainingStructures(settings.training_set).formulas() else formulas


def load_second_potential(settings: config.EvaluationConfig, device: str = "cpu") -> Any:
    """The potential whose ΔE_H the correction uses beside that of the judge; None where the settings name none, or the judge."""
    import potentials

    if settings.second_potential in ("", settings.potential):
        return None
    return potentials.load_potential(settings.second_potential, device=device)


def load_truth(cfg: config.Config, her: Any) -> dict[str, Any] | None:
    """``her_truth.truth_report`` of the judges of ΔE_H that the configuration names."""
    import potentials

    settings = cfg.evaluation
    own = potentials.load_potential(settings.potential, settings.potential_checkpoint)
    both = [p for p in (own, load_second_potential(settings)) if p is not None]
    truth_path, with_gap = settings.dft_truth_path, uses_gap(settings)
    report = her_truth.truth_report(her, truth_path, settings.truth_table_path, both, with_gap)
    if report is not None and settings.dft_blind_path:
        report["blind"] = her_truth.blind_report(her, settings.dft_blind_path, truth_path, both, with_gap)
    return report


# ----------------------------------------------------------------------------------------------------------------- evaluate


def find_cifs(cif_dir: str | os.PathLike) -> list[Path]:
    """The CIF files directly inside a folder, sorted by name. Raises StageError when there is no folder or no CIF."""
    folder = Path(cif_dir)
    if not folder.is_dir():
        raise config.StageError(f"no folder of CIFs at {config.relative_name(folder)}")
    found = sorted((p for p in folder.iterdir() if p.suffix.lower() == ".cif"), key=lambda p: p.name)
    if not found:
        raise config.StageError(f"no CIF in {config.relative_name(folder)}")
    return found


def evaluate(
    cif_dir: str | os.PathLike,
    judges: Judges | JudgePool,
    settings: config.EvaluationConfig,
    output_dir: str | os.PathLike,
    label: str,
    workers: int = 1,
    *,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    also_cached: Sequence[str | os.PathLike] = (),
) -> Evaluation:
    """Judges every CIF of a folder and writes ``metrics.csv`` and ``relaxed.extxyz`` to ``output_dir``.

    judges: ``Judges`` (used in this process, or pickled to ``workers`` processes) or a running ``JudgePool``, which serves several
    sets. cache_dir: where finished candidates are stored (default ``output_dir/cache``); also_cached: folders of earlier runs in
    which they may be found. Identical files are judged once. Raises StageError when there is nothing to judge.
    """
    started = time.perf_counter()
    paths = find_cifs(cif_dir)
    output_dir = Path(output_dir)
    cache = Path(cache_dir) if cache_dir is not None else output_dir / "cache"
    folders = [cache, *(Path(p) for p in also_cached)]

    keys: dict[Path, str] = {}
    records: dict[str, dict[str, Any]] = {}
    to_judge: dict[str, Path] = {}
    for path in paths:
        try:
            if not path.is_file():  # a pipe or device would be waited for
                raise OSError(f"{path.name} is not a file")
            with path.open("rb") as handle:
                content = handle.read(validity.MAX_CIF_BYTES + 1)
        except OSError:
            content = b"unreadable " + os.fsencode(path.name)
        key = keys[path] = cache_key(content, judges.identity, settings)
        if key not in records and key not in to_judge:
            record = read_cached(folders, key)
            if record is None:
                to_judge[key] = path
            else:
                records[key] = record
    if records:
        log.info("%s: %d of %d candidates were judged before", label, len(records), len(set(keys.values())))

    key_of = {path: key for key, path in to_judge.items()}
    own_pool = None
    if isinstance(judges, JudgePool):
        finished = judges.judge(list(to_judge.values()), settings)
    elif workers > 1 and to_judge:
        own_pool = JudgePool(partial(_unchanged, judges), judges.identity, workers)
        finished = own_pool.judge(list(to_judge.values()), settings)
    else:
        finished = judge_inline(judges, list(to_judge.values()), settings)
    try:
        for path, record in tqdm(finished, total=len(to_judge), desc=label, unit="candidate", disable=not to_judge):
            records[key_of[path]] = record
            if record.get("lost"):  # the next run tries it again
                continue
            config.write_json(cache / f"{key_of[path]}.json", record)
    finally:
        if own_pool is not None:
            own_pool.close()

    rows, structures = [], {}
    ids = candidate_ids(paths)
    for path in paths:
        record = records[keys[path]]
        row = result_from_dict(record["row"])
        row.id, row.source_file = ids[path], os.fsencode(path.name).decode("utf-8", "replace")
        rows.append(row)
        if record["structure"] is not None:
            structures[row.id] = Atoms(**record["structure"])
    rows.sort(key=lambda row: row.id)
    mark_unique(rows, structures)
    decide(rows, settings)
    rows_2d, bulk = [r for r in rows if not r.is_bulk], [r for r in rows if r.is_bulk]
    evaluation = Evaluation(
        label=label,
        cif_dir=str(cif_dir),
        rows=rows,
        aggregates=metrics.aggregate(rows_2d, settings, seed),
        bulk_aggregates=metrics.aggregate_bulk(bulk, settings, seed) if bulk else {},
        structures=structures,
        identity=judges.identity,
        elapsed_seconds=time.perf_counter() - started,
    )
    write_table(rows, output_dir / "metrics.csv")
    write_structures(evaluation, output_dir / "relaxed.extxyz")
    return evaluation


def _unchanged(judges: Judges) -> Judges:
    return judges


def candidate_ids(paths: Sequence[Path]) -> dict[Path, str]:
    """File names without suffix; the whole name where two files share a stem, or where the stem is the whole name of another file.

    Bytes that are no UTF-8 become replacement characters, with a number where that makes two names one.
    """

    def text(name: str) -> str:
        return os.fsencode(name).decode("utf-8", "replace")

    stems, names = [text(path.stem) for path in paths], [text(path.name) for path in paths]
    ids: dict[Path, str] = {}
    for path, stem, name in zip(paths, stems, names, strict=True):
        candidate = stem if stems.count(stem) == 1 and stem not in names else name
        taken = set(ids.values())
        numbered = (f"{candidate} ({k})" for k in itertools.count(2))
        ids[path] = next(name for name in itertools.chain([candidate], numbered) if name not in taken)
    return ids


def mark_unique(rows: Sequence[CandidateResult], structures: dict[str, Atoms]) -> None:
    """Sets ``unique`` and ``duplicate_of``: the first by id of every group of equal structures is unique.

    Compared are judged structures of the same reduced formula and of the same kind (sheet or bulk).
    """
    seen: dict[tuple[str, bool], list[tuple[str, Structure]]] = {}
    for row in rows:
        if row.id not in structures or not (row.is_sheet or row.is_bulk):
            continue
        try:
            own = match_structure(structures[row.id], row.is_sheet)
        except ValueError as error:
            log.debug("%s cannot be compared: %s", row.id, error)
            continue
        group = seen.setdefault((row.reduced_formula, row.is_sheet), [])
        row.duplicate_of = next((other for other, known in group if same_structure(own, known)), "")
        row.unique = not row.duplicate_of
        if row.unique:
            group.append((row.id, own))


def decide(rows: Sequence[CandidateResult], settings: config.EvaluationConfig) -> None:
    """Sets the three kinds of ``hit``, ``sun`` and ``metastable_sun``: False as soon as one condition fails, None while one that is
    needed has no verdict. All ask for a valid sheet that is still one connected sheet after relaxation."""

    def at_most(value: float, limit: float) -> bool | None:
        return None if math.isnan(value) else value <= limit

    for row in rows:
        if row.is_bulk:
            continue
        sheet = all_of(row.valid, row.sheet_relaxed)
        metastable = at_most(row.e_above_hull_ev, settings.hit_e_hull_ev)
        new = all_of(row.unique, row.novel)
        row.hit = all_of(sheet, metastable, at_most(abs(row.delta_g_h_ev), settings.hit_delta_g_ev))
        if settings.potential_h_sites:  # otherwise the potential judges no hydrogen, and has no opinion on any hit
            row.hit_potential = all_of(sheet, metastable, at_most(abs(row.delta_g_h_potential_ev), settings.hit_delta_g_ev))
            row.hit_corrected = all_of(sheet, metastable, at_most(abs(row.delta_g_h_corrected_ev), settings.hit_delta_g_ev))
        row.sun = all_of(sheet, at_most(row.e_above_hull_ev, 0.0), new)
        row.metastable_sun = all_of(sheet, metastable, new)


def all_of(*verdicts: bool | None) -> bool | None:
    """Three-valued and: False wins over None, None over True."""
    return False if False in verdicts else None if None in verdicts else True


def write_table(rows: Sequence[CandidateResult], path: str | os.PathLike) -> None:
    """``metrics.csv``: one row per candidate; a missing number is ``nan``, a missing verdict an empty field."""
    names = [f.name for f in dataclasses.fields(CandidateResult)]
    with config.atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(names)
        for row in rows:
            writer.writerow([_cell(getattr(row, name)) for name in names])


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    # A spreadsheet would run a text that begins like a formula.
    return re.sub(r"^([=+\-@\t\r])", r"'\1", str(value))


def write_structures(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """All judged structures with their ids as one extended XYZ file."""
    from ase.io import write

    frames = []
    for row in evaluation.rows:
        if row.id in evaluation.structures:
            atoms = evaluation.structures[row.id].copy()
            atoms.info = {"id": " ".join(row.id.split()), "dimensionality": row.dimensionality}
            frames.append(atoms)
    if frames:
        with config.atomic_path(path) as temporary:
            write(temporary, frames, format="extxyz")
