"""Runs stage 1: reads records, trains the ensemble, calibrates and corrects it, and writes the products."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from energetics.adsorption_data import AdsorptionData, read_entries, split_by_formula
from energetics.dft_correction import DftCorrection, fit_correction
from energetics.dft_points import STORED_ENERGIES, read_truth
from energetics.dimenet_report import draw_loss_curve, draw_parity, error_metrics, summary, write_history
from energetics.dimenet_training import MemberJob, predict, train_ensemble
from energetics.hydrogen import Calibration, Domain, HydrogenPredictor, ensemble_spread
from energetics.is2re_lmdb import Is2reReader, open_is2re
from energetics.record_index import RecordIndex, RecordTable
from geo_utils import H_TAG
from models import DIMENET_KIND, DimeNetPlusPlus, load_initial_weights
from networks import training
from networks.checkpoints import load_checkpoint, save_checkpoint
from networks.dimenet_layers import DimeNetPlusPlusConfig
from networks.ranks import Ranks
from pipeline import torchrun
from pipeline.cli import resolve_device, seed_everything
from pipeline.errors import StageError
from pipeline.files import file_sha256, missing_file, relative_name, write_json
from pipeline.locks import locked_folder
from pipeline.provenance import SCHEMA_VERSION, read_sidecar, sidecar_path, write_sidecar
from pipeline.settings import Config, DimenetConfig

log = logging.getLogger("her2d")

STAGE = "pretrain_dimenet.py"
DOMAIN_MARGIN_EV = 0.5  # ΔE_H may leave the training range by this much
# Settings that do not change the weights.
NOT_INPUTS = ("checkpoint", "dft_path", "dft_teacher", "only_correction", "loader_workers")


def fingerprint(cfg: Config, hashes: dict[str, str]) -> str:
    """Return a hash of settings and inputs: same fingerprint, same weights. hashes: SHA-256 of the files by setting."""
    settings = {key: value for key, value in dataclasses.asdict(cfg.dimenet).items() if key not in NOT_INPUTS}
    for key in ("lmdb_path", "val_lmdb_path", "init_from"):
        settings[key] = hashes.get(key, "")
    if cfg.run.precision != "float32":
        settings["precision"] = cfg.run.precision
    return training.fingerprint({"seed": cfg.run.seed, "settings": settings, "schema": SCHEMA_VERSION})


def records_teacher(path: Path) -> str:
    """Return the potential that relaxed the records of an LMDB, or of a folder of them, as their sidecars say.

    Empty where a sidecar is missing, or where they name different potentials.
    """
    names = set()
    for lmdb in sorted(path.glob("*.lmdb")) if path.is_dir() else [path]:
        try:
            names.add(str(read_sidecar(lmdb, stage="prepare_demo_data.py")["settings"].get("potential", "")))
        except StageError:
            names.add("")
    return names.pop() if len(names) == 1 and names <= set(STORED_ENERGIES) else ""


def refit_correction(checkpoint: Path, dft_path: str, teacher: str, device: torch.device) -> None:
    """Fit the DFT correction of a checkpoint anew, or remove it where ``dft_path`` is empty; the weights stay as they are."""
    judge = HydrogenPredictor.load(checkpoint, device)
    sidecar = read_sidecar(checkpoint, stage=STAGE)
    correction, fitted = fit_correction(judge.predict_raw, dft_path, teacher) if dft_path else (None, None)
    content = load_checkpoint(checkpoint, DIMENET_KIND, "")
    state = HydrogenPredictor.state(judge.calibration, judge.domain, judge.mean, judge.std, content["members"], correction)
    save_checkpoint(checkpoint, DIMENET_KIND, DimeNetPlusPlusConfig(**content["model_config"]), state)
    inputs = {path: digest for path, digest in sidecar["inputs"].items() if digest != sidecar.get("dft_sha256")}
    if dft_path:
        inputs[relative_name(dft_path)] = file_sha256(dft_path)
    metrics = {key: value for key, value in sidecar["metrics"].items() if key != "dft"}
    sidecar |= {
        "inputs": inputs,
        "metrics": metrics | ({"dft": fitted} if fitted else {}),
        **described_correction(correction, dft_path),
    }
    sidecar["checkpoint_sha256"] = file_sha256(checkpoint)
    write_json(sidecar_path(checkpoint), sidecar)
    outcome = f"{fitted['n']} points, left-out MAE {fitted['left_out_mae_ev']:.3f} eV" if fitted else "none"
    log.info("%s: DFT correction fitted anew, %s", relative_name(checkpoint), outcome)


def described_correction(correction: DftCorrection | None, dft_path: str | Path) -> dict[str, Any]:
    """Return the entries of the sidecar about the correction."""
    about = None
    if correction:
        about = {key: getattr(correction, key) for key in ("n", "rmse_ev", "scale", "power", "teacher")}
    return {"dft_correction": about, "dft_sha256": file_sha256(dft_path) if correction else None}


def train_stage(cfg: Config) -> None:
    """Train what is missing, or only fit the DFT correction anew, and write the products."""
    settings, checkpoint = cfg.dimenet, Path(cfg.dimenet.checkpoint)
    device = resolve_device(cfg.run, training=True)
    teacher = settings.dft_teacher if settings.dft_teacher != "auto" else records_teacher(Path(settings.lmdb_path))
    if settings.only_correction:
        if settings.dft_teacher == "auto":
            before = read_sidecar(checkpoint, stage=STAGE).get("dft_correction") or {}
            teacher = before.get("teacher", teacher)
        if torchrun.is_first():
            with locked_folder(checkpoint.parent, "dimenet.checkpoint"):
                refit_correction(checkpoint, settings.dft_path, teacher, device)
        return
    inputs, readers = _inputs(settings)
    ranks = Ranks(device)
    with ranks.locked(checkpoint.parent, "dimenet.checkpoint"):
        _train_missing(cfg, inputs, readers, teacher, ranks)


def _train_missing(cfg: Config, inputs: dict[str, Path], readers: list[Is2reReader], teacher: str, ranks: Ranks) -> None:
    """Do the work of ``train_stage`` in the folder of the checkpoint."""
    checkpoint = Path(cfg.dimenet.checkpoint)
    indices = _indices(checkpoint, readers) if ranks.is_first else []
    mark, finished = ranks.from_first(lambda: _finished(cfg, inputs, indices, teacher, ranks.device))
    if finished:
        return
    tables = ranks.from_first(lambda: [index.table() for index in indices])
    jobs, counts = _prepare(cfg, readers, tables, relative_name(inputs["lmdb_path"]), mark)
    results = train_ensemble(jobs, ranks, cfg.run)
    members = []
    for result in results:
        member = DimeNetPlusPlus(jobs[0].model)
        member.load_state_dict(result["state"])
        members.append(member.to(ranks.device))
    evaluation = _evaluate(jobs[0], members, ranks)
    if ranks.is_first:
        _write_products(cfg, jobs[0], results, members, evaluation, counts, inputs, teacher)
        for job in jobs:
            job.resume_path.unlink(missing_ok=True)


def _indices(checkpoint: Path, readers: list[Is2reReader]) -> list[RecordIndex]:
    """Return the indices of the LMDBs, beside the checkpoint."""
    names = ("records", "val_records")
    return [RecordIndex(reader, checkpoint.with_name(f"{name}.index.npz")) for reader, name in zip(readers, names, strict=False)]


def _finished(
    cfg: Config, inputs: dict[str, Path], indices: list[RecordIndex], teacher: str, device: torch.device
) -> tuple[str, bool]:
    """Return the fingerprint, and whether nothing is left to train; where only the correction is of other points, fit it anew."""
    settings, checkpoint = cfg.dimenet, Path(cfg.dimenet.checkpoint)
    hashes = {key: index.sha256() for key, index in zip(inputs, indices, strict=False)}
    mark = fingerprint(cfg, hashes | {key: file_sha256(path) for key, path in inputs.items() if key not in hashes})
    if not training.is_complete(checkpoint, STAGE, mark):
        return mark, False
    card = read_sidecar(checkpoint, stage=STAGE)
    fitted_on = card.get("dft_sha256"), (card.get("dft_correction") or {}).get("teacher")
    if fitted_on != ((file_sha256(inputs["dft_path"]), teacher) if "dft_path" in inputs else (None, None)):
        refit_correction(checkpoint, settings.dft_path, teacher, device)
    else:
        log.info("%s is complete with these settings and inputs; nothing to do", relative_name(checkpoint))
    return mark, True


def _inputs(settings: DimenetConfig) -> tuple[dict[str, Path], list[Is2reReader]]:
    """Return the input files by key of the setting, and the open LMDBs. Raises StageError where one cannot be used."""
    keys = ("lmdb_path", "val_lmdb_path", "init_from", "dft_path")
    inputs = {key: Path(getattr(settings, key)) for key in keys if getattr(settings, key)}
    readers = [open_is2re(inputs[key], f"dimenet.{key}") for key in keys[:2] if key in inputs]
    for key in keys[2:]:
        if key in inputs and not inputs[key].is_file():
            raise missing_file(f"dimenet.{key}", inputs[key])
    if "dft_path" in inputs:
        read_truth(inputs["dft_path"])
    return inputs, readers


def _prepare(
    cfg: Config, readers: list[Is2reReader], tables: list[RecordTable], lmdb_name: str, mark: str
) -> tuple[list[MemberJob], dict[str, Any]]:
    """Choose and split the records; return a job for each member and the counts of records."""
    settings, checkpoint = cfg.dimenet, Path(cfg.dimenet.checkpoint)
    model_config = DimeNetPlusPlusConfig.preset(settings.preset)
    if settings.adsorbate == "all" and model_config.readout == "adsorbate":
        if any(not (reader[0].tags == H_TAG).any() for reader in readers):
            raise StageError(f"dimenet.preset={settings.preset} needs records with adsorbate tags; use dimenet.preset=oc20")
    seed_everything(cfg.run.seed)
    probe = DimeNetPlusPlus(model_config)
    entries, counts = read_entries(readers, settings, probe.max_atomic_number, tables)
    split = split_by_formula(entries, settings, cfg.run.seed)
    if unmeasured := len(entries) - sum(len(numbers) for numbers in split.values()):
        counts["kept"] -= unmeasured
        counts["dropped"]["relaxation not converged, formula held out"] = unmeasured
    train_values = np.array([entries[n].delta_e for n in split["train"]])
    mean, std = float(train_values.mean()), float(train_values.std())
    if settings.init_from:
        mean, std = load_initial_weights(settings.init_from, probe, model_config)
    if std < 1e-6:
        raise StageError(f"{lmdb_name}: all training records have the same y_relaxed; nothing to learn")
    log.info("records: %d train, %d val, %d test", *(len(split[part]) for part in ("train", "val", "test")))
    data = AdsorptionData(readers, entries, model_config.cutoff_angstrom, model_config.max_neighbors)
    resume = [checkpoint.with_name(f"{checkpoint.stem}.member{k}.resume.pt") for k in range(settings.ensemble_size)]
    common = (cfg.run.seed, settings, model_config, data, split, mean, std, mark)
    jobs = [MemberJob(k, *common, path, cfg.run.precision == "bf16") for k, path in enumerate(resume)]
    return jobs, counts


@dataclasses.dataclass
class _Evaluation:
    """Held-out predictions of the ensemble in eV: calibration, domain, metrics and (truth, predicted, std) by part."""

    calibration: Calibration
    domain: Domain
    metrics: dict[str, Any]
    parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def _evaluate(job: MemberJob, members: list[DimeNetPlusPlus], ranks: Ranks) -> _Evaluation:
    """Predict the validation and test entries, fit the calibration on the former and measure on both."""
    entries, split, size = job.data.entries, job.split, job.settings.batch_size
    train_values = np.array([entries[n].delta_e for n in split["train"]])
    parts, metrics = {}, {}
    predicted = {
        name: np.stack([predict(m, job.data, split[name], size, ranks.device, ranks) for m in members]) * job.std + job.mean
        for name in ("val", "test")
    }
    truth = {name: np.array([entries[n].delta_e for n in split[name]]) for name in predicted}
    calibration = Calibration.fit(ensemble_spread(predicted["val"]), predicted["val"].mean(0) - truth["val"])
    for name, values in predicted.items():
        sigma = calibration.std(ensemble_spread(values))
        parts[name] = (truth[name], values.mean(0), sigma)
        metrics[name] = error_metrics([entries[n] for n in split[name]], values.mean(0), sigma, float(train_values.mean()))
    domain = Domain(
        elements=tuple(sorted({z for n in split["train"] for z in entries[n].elements})),
        delta_e_min=float(train_values.min()) - DOMAIN_MARGIN_EV,
        delta_e_max=float(train_values.max()) + DOMAIN_MARGIN_EV,
        std_max=float(np.quantile(parts["val"][2], 0.95)),
    )
    return _Evaluation(calibration, domain, metrics, parts)


def _write_products(
    cfg: Config,
    job: MemberJob,
    results: list[dict[str, Any]],
    members: list[DimeNetPlusPlus],
    evaluation: _Evaluation,
    counts: dict[str, Any],
    inputs: dict[str, Path],
    teacher: str,
) -> None:
    """Write loss curve, parity plot, checkpoint and, last, its sidecar."""
    checkpoint, entries = Path(cfg.dimenet.checkpoint), job.data.entries
    calibration, domain, metrics = evaluation.calibration, evaluation.domain, evaluation.metrics
    history = [row for result in results for row in result["history"]]
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    write_history(checkpoint.with_name(f"{checkpoint.stem}_loss_curve.csv"), history)
    draw_loss_curve(checkpoint.with_name(f"{checkpoint.stem}_loss_curve.png"), history)
    draw_parity(checkpoint.with_name(f"{checkpoint.stem}_parity.png"), evaluation.parts, metrics)
    correction = None
    if "dft_path" in inputs:
        judge = HydrogenPredictor(members, job.mean, job.std, calibration, domain)
        correction, metrics["dft"] = fit_correction(judge.predict_raw, inputs["dft_path"], teacher)
    states = [{key: value.cpu() for key, value in result["state"].items()} for result in results]
    state = HydrogenPredictor.state(calibration, domain, job.mean, job.std, states, correction)
    save_checkpoint(checkpoint, DIMENET_KIND, job.model, state)
    counts |= {part: len(numbers) for part, numbers in job.split.items()}
    counts["formulas"] = len({entry.formula for entry in entries})
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=cfg.dimenet,
        inputs=list(inputs.values()),
        counts=counts,
        metrics=metrics | {"members": [{"val_mae_ev": r["val_mae_ev"], "best_epoch": r["epoch"]} for r in results]},
        fingerprint=job.fingerprint,
        checkpoint_sha256=file_sha256(checkpoint),
        model=dataclasses.asdict(job.model),
        calibration=dataclasses.asdict(calibration),
        **described_correction(correction, cfg.dimenet.dft_path),
        domain=dataclasses.asdict(domain) | {"elements": [chemical_symbols[z] for z in domain.elements]},
    )
    log.info("%s", summary(metrics, counts, checkpoint))
