"""Stage 1: trains DimeNet++ on hydrogen adsorption energies.

    python pretrain_dimenet.py [--config config.yaml] [section.key=value ...]

reads   dimenet.lmdb_path         OC20 IS2RE LMDB (a file or a folder); dimenet.val_lmdb_path and dimenet.init_from, where given
        dimenet.dft_path          DFT values of ΔE_H on sheets, towards which the network's are corrected
writes  dimenet.checkpoint        ensemble with normaliser, calibration and training domain
        beside it                 sidecar JSON, parity plot, loss curve (CSV, PNG)

From the initial geometry of sheet and H (IS2RE) it learns y_relaxed = ΔE_H. Held-out records are split off by bulk formula. Killed
at any moment, it goes on where it was and, on a CPU, ends with the same weights.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from scipy.stats import spearmanr
from tqdm import tqdm

from energetics.adsorption_data import AdsorptionData, Entry, read_entries, split_by_formula
from energetics.dft_correction import DftCorrection, fit_correction
from energetics.dft_points import STORED_ENERGIES, read_truth
from energetics.hydrogen import Calibration, Domain, HydrogenPredictor, ensemble_spread
from energetics.is2re_lmdb import open_is2re
from geo_utils import H_TAG
from models import DIMENET_KIND, DimeNetPlusPlus, load_initial_weights
from networks.checkpoints import load_checkpoint, save_checkpoint
from networks.dimenet_layers import DimeNetPlusPlusConfig
from pipeline.cli import resolve_device, run_stage, seed_everything
from pipeline.errors import StageError
from pipeline.files import atomic_path, file_sha256, relative_name, write_json
from pipeline.provenance import SCHEMA_VERSION, read_sidecar, sidecar_path, write_sidecar
from pipeline.settings import Config, DimenetConfig
from pipeline.tasks import end_with_parent

log = logging.getLogger("her2d")

STAGE = "pretrain_dimenet.py"
EWT_THRESHOLD_EV = 0.02  # OC20's "energy within threshold"
RESUME_EVERY_S = 120.0  # within long epochs; the end of an epoch is always a resume point
DOMAIN_MARGIN_EV = 0.5  # ΔE_H may leave the training range by this much
NOT_INPUTS = ("checkpoint", "dft_path", "dft_teacher", "only_correction")  # settings that do not change the weights


@dataclass
class MemberJob:
    """Everything one member of the ensemble needs; can be sent to another process."""

    number: int
    seed: int
    settings: DimenetConfig
    model: DimeNetPlusPlusConfig
    data: AdsorptionData
    split: dict[str, list[int]]
    mean: float
    std: float
    fingerprint: str
    resume_path: Path
    threads: int | None = None  # set in worker processes


def learning_rate_factor(step: int, steps_per_epoch: int, settings: DimenetConfig) -> float:
    """Linear warm-up, then one factor ``lr_gamma`` at each milestone (a fraction of all steps). step counts from 0."""
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup if warmup >= 1 else 1.0
    done = step / (settings.epochs * steps_per_epoch)
    return settings.lr_gamma ** sum(done >= milestone for milestone in settings.lr_milestones)


def epoch_order(job: MemberJob, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Order of the training entries in an epoch and which of them show the relaxed geometry; a function of its arguments."""
    rng = np.random.default_rng([job.seed, job.number, epoch])
    train = np.asarray(job.split["train"])
    return rng.permutation(train), rng.random(len(train)) < job.settings.relaxed_input_share


def train_member(
    job: MemberJob, device: torch.device | str = "cpu", on_step: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Trains one member, or goes on from its resume file; returns ``{state, val_mae_ev, epoch, history}`` of its best epoch.

    on_step is called with the number of each finished step. Raises StageError where the loss is not finite, with the state saved.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    device = torch.device(device)
    settings, steps_per_epoch = job.settings, -(-len(job.split["train"]) // job.settings.batch_size)
    torch.manual_seed(int(np.random.default_rng([job.seed, job.number]).integers(2**63)))
    model = DimeNetPlusPlus(job.model)
    if settings.init_from:
        load_initial_weights(settings.init_from, model, job.model, job.number)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    ema = {key: value.detach().clone() for key, value in model.state_dict().items()}
    progress: dict[str, Any] = {"epoch": 0, "step": 0, "loss_sum": 0.0, "history": [], "best": None}
    state = _read_resume(job, device)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, progress = state["ema"], state["progress"]
        torch.set_rng_state(state["torch_rng"].cpu())

    def save() -> None:
        with atomic_path(job.resume_path) as temporary:
            torch.save(
                {
                    "fingerprint": job.fingerprint,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema,
                    "progress": progress,
                    "torch_rng": torch.get_rng_state(),
                },
                temporary,
            )

    saved_at = time.monotonic()
    bar = tqdm(
        total=settings.epochs * steps_per_epoch,
        initial=progress["epoch"] * steps_per_epoch + progress["step"],
        desc=f"member {job.number}",
        position=job.number,
        disable=None,
        leave=False,
    )
    while progress["epoch"] < settings.epochs:
        epoch = progress["epoch"]
        order, relaxed = epoch_order(job, epoch)
        model.train()
        while progress["step"] < steps_per_epoch:
            step = epoch * steps_per_epoch + progress["step"]
            rows = slice(progress["step"] * settings.batch_size, (progress["step"] + 1) * settings.batch_size)
            *inputs, graph, delta_e = job.data.batch(order[rows], relaxed[rows], device)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_factor(step, steps_per_epoch, settings)
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                predicted = model(*inputs, graph=graph)
            loss = (predicted - (delta_e - job.mean) / job.std).abs().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                save()
                raise StageError(
                    f"member {job.number}, epoch {epoch + 1}, step {progress['step'] + 1}: the loss is not finite; the state "
                    f"before it is in {relative_name(job.resume_path)}; lower dimenet.learning_rate"
                )
            optimizer.step()
            decay = min(settings.ema_decay, (1 + step) / (10 + step))  # short memory first, so that the start is forgotten
            torch._foreach_lerp_(list(ema.values()), list(model.state_dict().values()), 1 - decay)
            progress["loss_sum"] += float(loss.detach()) * len(delta_e)
            progress["step"] += 1
            bar.update()
            if on_step is not None:
                on_step(step + 1)
            if time.monotonic() - saved_at > RESUME_EVERY_S:
                save()
                saved_at = time.monotonic()
        _end_epoch(job, model, ema, progress, device, optimizer.param_groups[0]["lr"])
        bar.set_postfix(val_mae=f"{progress['history'][-1]['val_mae_ev']:.3f}")
        save()
        saved_at = time.monotonic()
    bar.close()
    return {**progress["best"], "history": progress["history"]}


def _end_epoch(
    job: MemberJob,
    model: DimeNetPlusPlus,
    ema: dict[str, torch.Tensor],
    progress: dict[str, Any],
    device: torch.device,
    rate: float,
) -> None:
    """Validates the averaged weights, keeps the best ones and turns the page."""
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(ema)
    numbers = job.split["val"]
    truth = np.array([job.data.entries[n].delta_e for n in numbers])
    predicted = predict(model, job.data, numbers, job.settings.batch_size, device) * job.std + job.mean
    model.load_state_dict(weights)
    error = float(np.abs(predicted - truth).mean())
    progress["history"].append(
        {
            "member": job.number,
            "epoch": progress["epoch"] + 1,
            "learning_rate": rate,
            "train_mae_ev": progress["loss_sum"] / len(job.split["train"]) * job.std,
            "val_mae_ev": error,
        }
    )
    if progress["best"] is None or error < progress["best"]["val_mae_ev"]:
        state = {key: value.detach().clone() for key, value in ema.items()}
        progress["best"] = {"state": state, "val_mae_ev": error, "epoch": progress["epoch"] + 1}
    progress.update(epoch=progress["epoch"] + 1, step=0, loss_sum=0.0)


@torch.no_grad()
def predict(
    model: DimeNetPlusPlus, data: AdsorptionData, numbers: Sequence[int], batch_size: int, device: torch.device
) -> np.ndarray:
    """Normalised energies (n,) of entries in their initial geometry."""
    model.eval()
    values = []
    for at in range(0, len(numbers), batch_size):
        chunk = numbers[at : at + batch_size]
        *inputs, graph, _ = data.batch(chunk, [False] * len(chunk), device)
        values.append(model(*inputs, graph=graph).double().cpu().numpy())
    return np.concatenate(values) if values else np.zeros(0)


def _read_resume(job: MemberJob, device: torch.device) -> dict[str, Any] | None:
    if not job.resume_path.is_file():
        return None
    try:
        state = torch.load(job.resume_path, map_location=device, weights_only=True)
        if state["fingerprint"] == job.fingerprint:
            return state
        log.info("member %d starts anew: settings or inputs have changed since %s", job.number, relative_name(job.resume_path))
    except Exception as error:  # torch raises many unrelated errors for a damaged file
        log.warning(
            "member %d starts anew: %s is not readable (%s)", job.number, relative_name(job.resume_path), type(error).__name__
        )
    return None


def train_ensemble(jobs: Sequence[MemberJob], device: torch.device, threads: int) -> list[dict[str, Any]]:
    """Trains all members: on a CPU with several threads each in a process of its own, with one thread, so that the result does not
    depend on their number; on a GPU one after the other."""
    if device.type != "cpu" or threads == 1 or len(jobs) == 1:
        return [train_member(job, device) for job in jobs]
    workers = [dataclasses.replace(job, threads=1) for job in jobs]
    number = min(len(jobs), 2 * threads)
    with ProcessPoolExecutor(number, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        for future in [pool.submit(_train_in_worker, job) for job in workers]:
            future.result()
    return [train_member(job, device) for job in jobs]


def _train_in_worker(job: MemberJob) -> None:
    """Leaves its result in the resume file: tensors do not cross between processes, whose end would take them along."""
    train_member(job)


def error_metrics(entries: Sequence[Entry], predicted: np.ndarray, std: np.ndarray, train_mean: float) -> dict[str, Any]:
    """MAE, EwT, rank correlation, the baseline of predicting the training mean, and MAE and EwT by family; energies in eV."""
    truth = np.array([entry.delta_e for entry in entries])
    error = np.abs(predicted - truth)
    families: dict[str, list[int]] = {}
    for row, entry in enumerate(entries):
        families.setdefault(entry.family, []).append(row)
    varied = len(truth) > 2 and np.ptp(truth) > 0 and np.ptp(predicted) > 0
    return {
        "n": len(truth),
        "mae_ev": float(error.mean()),
        "median_error_ev": float(np.median(error)),
        "ewt_0.02": float((error <= EWT_THRESHOLD_EV).mean()),
        "spearman": float(spearmanr(truth, predicted).statistic) if varied else None,
        "baseline_mae_ev": float(np.abs(truth - train_mean).mean()),
        "share_within_one_std": float((error <= std).mean()),
        "by_family": {
            family: {
                "n": len(rows),
                "mae_ev": float(error[rows].mean()),
                "ewt_0.02": float((error[rows] <= EWT_THRESHOLD_EV).mean()),
            }
            for family, rows in sorted(families.items())
        },
    }


def draw_parity(path: Path, parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], metrics: dict[str, dict]) -> None:
    """Predicted against true ΔE_H with error bars, one panel per held-out part. parts: name -> (truth, predicted, std) in eV."""
    from pipeline.plotting import figure

    with figure(path, ncols=len(parts), figsize=(4.2 * len(parts), 4.8), squeeze=False) as (_, axes):
        for axis, (name, (truth, predicted, std)) in zip(axes[0], parts.items(), strict=True):
            low, high = min(truth.min(), predicted.min()) - 0.2, max(truth.max(), predicted.max()) + 0.2
            axis.plot([low, high], [low, high], color="0.4", lw=0.9)
            axis.errorbar(truth, predicted, yerr=std, fmt="o", ms=3, lw=0.5, color="#08519c", ecolor="0.7")
            axis.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="ΔE_H of the records (eV)")
            axis.set_ylabel("ΔE_H of DimeNet++ (eV)")
            axis.set_title(f"{name}, n={len(truth)}, MAE {metrics[name]['mae_ev']:.3f} eV")


def draw_loss_curve(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Training and validation MAE against the epoch, one pair of lines per member."""
    from pipeline.plotting import figure, logarithmic

    with figure(path, figsize=(5.0, 3.4)) as (_, axis):
        for number in sorted({row["member"] for row in history}):
            rows = [row for row in history if row["member"] == number]
            epochs = [row["epoch"] for row in rows]
            label = lambda text, n=number: text if n == 0 else None  # noqa: E731
            axis.plot(epochs, [row["train_mae_ev"] for row in rows], color="#74a9cf", lw=1, label=label("train (running weights)"))
            axis.plot(
                epochs, [row["val_mae_ev"] for row in rows], color="#08519c", lw=1.4, label=label("validation (averaged weights)")
            )
        axis.set(xlabel="epoch", ylabel="MAE of ΔE_H (eV)")
        logarithmic(axis)
        axis.set_title(f"DimeNet++, {len({row['member'] for row in history})} members")
        axis.legend()


def write_history(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """The loss curve as CSV: member, epoch, learning rate, MAE of train and validation in eV."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def summary(metrics: dict[str, dict], counts: dict[str, Any], checkpoint: Path) -> str:
    """What the stage prints at its end."""
    lines = [f"{relative_name(checkpoint)}: {counts['kept']} of {counts['records']} records kept"]
    lines += [f"  dropped, {reason}: {count}" for reason, count in counts["dropped"].items()]
    for name in ("val", "test"):
        part = metrics[name]
        lines.append(
            f"  {name:<5s} n={part['n']:<5d} MAE {part['mae_ev']:.3f} eV (training mean: {part['baseline_mae_ev']:.3f}), "
            f"EwT {100 * part['ewt_0.02']:.1f} %, within ±σ {100 * part['share_within_one_std']:.0f} %"
        )
    worst = sorted(metrics["test"]["by_family"].items(), key=lambda item: -item[1]["mae_ev"])[:5]
    lines.append(
        "  largest test errors: " + ", ".join(f"{family} {part['mae_ev']:.2f} eV (n={part['n']})" for family, part in worst)
    )
    return "\n".join(lines)


def fingerprint(cfg: Config, hashes: dict[str, str]) -> str:
    """Identifies settings and inputs: same fingerprint, same weights."""
    settings = {key: value for key, value in dataclasses.asdict(cfg.dimenet).items() if key not in NOT_INPUTS}
    for key in ("lmdb_path", "val_lmdb_path", "init_from"):
        settings[key] = hashes.get(key, "")
    content = json.dumps({"seed": cfg.run.seed, "settings": settings, "schema": SCHEMA_VERSION}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def is_complete(checkpoint: Path, expected: str) -> bool:
    """Whether the checkpoint was written with these settings and inputs and is untouched since."""
    try:
        sidecar = read_sidecar(checkpoint, stage=STAGE)
    except StageError:
        return False
    if not checkpoint.is_file() or sidecar.get("checkpoint_sha256") != file_sha256(checkpoint):
        return False
    if sidecar.get("fingerprint") != expected:
        log.info("%s was made with other settings or inputs: starting anew", relative_name(checkpoint))
        return False
    return True


def records_teacher(path: Path) -> str:
    """The potential that relaxed the records of an LMDB, or of a folder of them, as the JSON files beside them say; empty where
    they say nothing, or not the same."""
    names = set()
    for lmdb in sorted(path.glob("*.lmdb")) if path.is_dir() else [path]:
        try:
            names.add(str(read_sidecar(lmdb, stage="prepare_demo_data.py")["settings"].get("potential", "")))
        except StageError:
            names.add("")
    return names.pop() if len(names) == 1 and names <= set(STORED_ENERGIES) else ""


def refit_correction(checkpoint: Path, dft_path: str, teacher: str, device: torch.device) -> None:
    """Fits the DFT correction of a checkpoint anew, or takes it away where ``dft_path`` is empty; the weights stay as they are."""
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
    """What the sidecar says about the correction."""
    about = None
    if correction:
        about = {"n": correction.n, "rmse_ev": correction.rmse_ev, "scale": correction.scale, "teacher": correction.teacher}
    return {"dft_correction": about, "dft_sha256": file_sha256(dft_path) if correction else None}


def main(cfg: Config) -> None:
    settings, checkpoint = cfg.dimenet, Path(cfg.dimenet.checkpoint)
    device = resolve_device(cfg.run)
    teacher = settings.dft_teacher if settings.dft_teacher != "auto" else records_teacher(Path(settings.lmdb_path))
    if settings.only_correction:
        if settings.dft_teacher == "auto":
            before = read_sidecar(checkpoint, stage=STAGE).get("dft_correction") or {}
            teacher = before.get("teacher", teacher)
        refit_correction(checkpoint, settings.dft_path, teacher, device)
        return
    inputs = {
        key: Path(getattr(settings, key))
        for key in ("lmdb_path", "val_lmdb_path", "init_from", "dft_path")
        if getattr(settings, key)
    }
    readers = [open_is2re(inputs[key]) for key in ("lmdb_path", "val_lmdb_path") if key in inputs]
    if "init_from" in inputs and not inputs["init_from"].is_file():
        raise StageError(f"dimenet.init_from: no file at {relative_name(inputs['init_from'])}")
    if "dft_path" in inputs:
        read_truth(inputs["dft_path"])
    mark = fingerprint(cfg, {key: file_sha256(path) for key, path in inputs.items()})
    if is_complete(checkpoint, mark):
        card = read_sidecar(checkpoint, stage=STAGE)
        fitted_on = card.get("dft_sha256"), (card.get("dft_correction") or {}).get("teacher")
        if fitted_on != ((file_sha256(inputs["dft_path"]), teacher) if "dft_path" in inputs else (None, None)):
            refit_correction(checkpoint, settings.dft_path, teacher, device)
            return
        log.info("%s is complete with these settings and inputs; nothing to do", relative_name(checkpoint))
        return

    model_config = DimeNetPlusPlusConfig.preset(settings.preset)
    if settings.adsorbate == "all" and model_config.readout == "adsorbate":
        if any(not (reader[0].tags == H_TAG).any() for reader in readers):
            raise StageError(f"dimenet.preset={settings.preset} needs records with adsorbate tags; use dimenet.preset=oc20")
    seed_everything(cfg.run.seed)
    probe = DimeNetPlusPlus(model_config)
    entries, counts = read_entries(readers, settings, probe.max_atomic_number)
    split = split_by_formula(entries, settings, cfg.run.seed)
    if unmeasured := len(entries) - sum(len(numbers) for numbers in split.values()):
        counts["kept"] -= unmeasured
        counts["dropped"]["relaxation not converged, formula held out"] = unmeasured
    train_values = np.array([entries[n].delta_e for n in split["train"]])
    mean, std = float(train_values.mean()), float(train_values.std())
    if settings.init_from:
        mean, std = load_initial_weights(settings.init_from, probe, model_config)
    if std < 1e-6:
        raise StageError(f"{relative_name(inputs['lmdb_path'])}: all training records have the same y_relaxed; nothing to learn")
    log.info("records: %d train, %d val, %d test", *(len(split[part]) for part in ("train", "val", "test")))

    data = AdsorptionData(readers, entries, model_config.cutoff_angstrom, model_config.max_neighbors)
    resume = {k: checkpoint.with_name(f"{checkpoint.stem}.member{k}.resume.pt") for k in range(settings.ensemble_size)}
    jobs = [MemberJob(k, cfg.run.seed, settings, model_config, data, split, mean, std, mark, path) for k, path in resume.items()]
    results = train_ensemble(jobs, device, torch.get_num_threads())

    members = []
    for result in results:
        member = DimeNetPlusPlus(model_config)
        member.load_state_dict({key: value.cpu() for key, value in result["state"].items()})
        members.append(member.to(device))
    parts, metrics = {}, {}
    predicted = {
        name: np.stack([predict(m, data, split[name], settings.batch_size, device) for m in members]) * std + mean
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

    history = [row for result in results for row in result["history"]]
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    write_history(checkpoint.with_name(f"{checkpoint.stem}_loss_curve.csv"), history)
    draw_loss_curve(checkpoint.with_name(f"{checkpoint.stem}_loss_curve.png"), history)
    draw_parity(checkpoint.with_name(f"{checkpoint.stem}_parity.png"), parts, metrics)
    correction = None
    if "dft_path" in inputs:
        judge = HydrogenPredictor(members, mean, std, calibration, domain)
        correction, metrics["dft"] = fit_correction(judge.predict_raw, inputs["dft_path"], teacher)
    states = [{key: value.cpu() for key, value in result["state"].items()} for result in results]
    state = HydrogenPredictor.state(calibration, domain, mean, std, states, correction)
    save_checkpoint(checkpoint, DIMENET_KIND, model_config, state)
    counts |= {part: len(numbers) for part, numbers in split.items()}
    counts["formulas"] = len({entry.formula for entry in entries})
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=list(inputs.values()),
        counts=counts,
        metrics=metrics | {"members": [{"val_mae_ev": r["val_mae_ev"], "best_epoch": r["epoch"]} for r in results]},
        fingerprint=mark,
        checkpoint_sha256=file_sha256(checkpoint),
        model=dataclasses.asdict(model_config),
        calibration=dataclasses.asdict(calibration),
        **described_correction(correction, settings.dft_path),
        domain=dataclasses.asdict(domain) | {"elements": [chemical_symbols[z] for z in domain.elements]},
    )
    for path in resume.values():
        path.unlink(missing_ok=True)
    log.info("%s", summary(metrics, counts, checkpoint))


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dimenet")))
