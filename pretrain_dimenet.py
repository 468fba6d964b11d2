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
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from scipy.stats import spearmanr
from tqdm import tqdm

import config
from config import StageError, log, relative_name
from dft_correction import STORED_ENERGIES, DftCorrection, fit_correction, read_truth
from geo_utils import H_TAG, radius_graph_pbc
from hydrogen import Calibration, Domain, HydrogenPredictor, ensemble_spread
from is2re_lmdb import Is2reReader, Is2reRecord, open_is2re
from models import (
    DIMENET_KIND,
    DimeNetPlusPlus,
    DimeNetPlusPlusConfig,
    PeriodicGraph,
    load_checkpoint,
    load_initial_weights,
    save_checkpoint,
)

STAGE = "pretrain_dimenet.py"
EWT_THRESHOLD_EV = 0.02  # OC20's "energy within threshold"
CACHED_ATOMS = 200_000  # inputs with this many atoms in all stay in memory with their edges (about 0.5 kB an atom)
RESUME_EVERY_S = 120.0  # within long epochs; the end of an epoch is always a resume point
DOMAIN_MARGIN_EV = 0.5  # ΔE_H may leave the training range by this much
NOT_INPUTS = ("checkpoint", "dft_path", "dft_teacher", "only_correction")  # settings that do not change the weights


# ------------------------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Entry:
    """What is kept in memory of a usable record; the rest is read from the file when needed."""

    source: int
    index: int
    delta_e: float
    formula: str
    family: str
    num_atoms: int
    elements: tuple[int, ...]
    converged: bool = True


@dataclass
class Sample:
    """One training input: z (N,), pos (N, 3), cell (1, 3, 3), tags (N,), edge_index (2, E) int32, offsets (E, 3) int8."""

    z: torch.Tensor
    pos: torch.Tensor
    cell: torch.Tensor
    tags: torch.Tensor
    edge_index: torch.Tensor
    offsets: torch.Tensor


@dataclass
class AdsorptionData:
    """Usable records of the LMDBs: entries in memory, structures on disk, edges in memory for small sets."""

    readers: list[Is2reReader]
    entries: list[Entry]
    cutoff: float
    max_neighbors: int | None
    _cache: dict[tuple[int, bool], Sample] = field(default_factory=dict)
    _cached_atoms: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_cached_atoms": 0}

    def sample(self, number: int, relaxed: bool) -> Sample:
        """Entry ``number``, in its relaxed geometry if asked for and known."""
        key = (number, relaxed)
        if key in self._cache:
            return self._cache[key]
        entry = self.entries[number]
        record = self.readers[entry.source][entry.index]
        pos = record.pos_relaxed if relaxed and record.pos_relaxed is not None else record.pos
        batch = torch.zeros(len(pos), dtype=torch.long)
        edge_index, offsets = radius_graph_pbc(pos, record.cell, batch, self.cutoff, self.max_neighbors)
        sample = Sample(record.atomic_numbers, pos, record.cell, record.tags, edge_index.int(), offsets.to(torch.int8))
        if self._cached_atoms + len(pos) <= CACHED_ATOMS:
            self._cache[key] = sample
            self._cached_atoms += len(pos)
        return sample

    def batch(self, numbers: Sequence[int], relaxed: Sequence[bool], device: torch.device) -> tuple[torch.Tensor, ...]:
        """(z, pos, cell, batch, tags, graph, delta_e) of the given entries."""
        samples = [self.sample(int(n), bool(r)) for n, r in zip(numbers, relaxed, strict=True)]
        sizes = torch.tensor([len(s.z) for s in samples])
        first = torch.cumsum(sizes, 0) - sizes
        edge_index = torch.cat([s.edge_index.long() + start for s, start in zip(samples, first, strict=True)], 1).to(device)
        offsets = torch.cat([s.offsets for s in samples]).to(device, samples[0].pos.dtype)
        graph = PeriodicGraph.build(edge_index, offsets, int(sizes.sum()))
        return (
            torch.cat([s.z for s in samples]).to(device),
            torch.cat([s.pos for s in samples]).to(device),
            torch.cat([s.cell for s in samples]).to(device),
            torch.repeat_interleave(torch.arange(len(samples)), sizes).to(device),
            torch.cat([s.tags for s in samples]).to(device),
            graph,
            torch.tensor([self.entries[int(n)].delta_e for n in numbers], device=device),
        )


def reduced_formula(record: Is2reRecord) -> str:
    """Reduced formula of the clean surface: of ``bulk_formula`` where the record has it, otherwise of the atoms without tag 2."""
    stated = str(record.extra.get("bulk_formula", ""))
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", stated)
    if stated and "".join(symbol + count for symbol, count in parts) == stated:
        counts: Counter[str] = Counter()
        for symbol, count in parts:
            counts[symbol] += int(count or 1)
    else:
        numbers = record.atomic_numbers[record.tags != H_TAG].tolist() or record.atomic_numbers.tolist()
        counts = Counter(chemical_symbols[n] for n in numbers)
    divisor = reduce(math.gcd, counts.values())
    return "".join(f"{symbol}{count // divisor if count > divisor else ''}" for symbol, count in sorted(counts.items()))


def unusable(record: Is2reRecord, adsorbate: str, target_abs_max: float, max_atomic_number: int) -> str:
    """Why a record is not learnt from; empty when it is."""
    if adsorbate == "H":
        numbers = record.atomic_numbers[record.tags == H_TAG].tolist()
        if not numbers:
            return "no adsorbate atom (tag 2)"
        if numbers != [1]:
            return "adsorbate is not one H"
    if not math.isfinite(record.y_relaxed):
        return "y_relaxed missing or not finite"
    if abs(record.y_relaxed) > target_abs_max:
        return f"|y_relaxed| above {target_abs_max:g} eV"
    if int(record.atomic_numbers.max()) > max_atomic_number:
        return "element outside the network"
    return ""


def read_entries(readers: Sequence[Is2reReader], cfg: config.DimenetConfig, max_atomic_number: int) -> tuple[list[Entry], dict]:
    """The usable records of all readers, and the counts: records, kept, dropped by reason."""
    entries: list[Entry] = []
    dropped: Counter[str] = Counter()
    total = sum(len(reader) for reader in readers)
    with tqdm(total=total, desc="reading records", disable=None) as bar:
        for source, reader in enumerate(readers):
            for index, record in enumerate(reader):
                bar.update()
                reason = unusable(record, cfg.adsorbate, cfg.target_abs_max_ev, max_atomic_number)
                converged = bool(record.extra.get("converged", True))
                if not reason and not converged and not cfg.train_on_unconverged:
                    reason = "relaxation not converged"
                if reason:
                    dropped[reason] += 1
                    continue
                elements = tuple(sorted(set(record.atomic_numbers.tolist())))
                family = str(record.extra.get("family", "unspecified"))
                formula = reduced_formula(record)
                entries.append(Entry(source, index, record.y_relaxed, formula, family, record.natoms, elements, converged))
    counts = {"records": total, "kept": len(entries), "dropped": dict(sorted(dropped.items()))}
    if not entries:
        what = "hold one H adsorbate" if cfg.adsorbate == "H" else "can be used"
        reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.items())
        paths = ", ".join(relative_name(reader.path) for reader in readers)
        raise StageError(f"{paths}: 0 of {total} records {what}; dropped: {reasons}")
    return entries, counts


def split_by_formula(entries: Sequence[Entry], cfg: config.DimenetConfig, seed: int) -> dict[str, list[int]]:
    """Indices of train, val and test. All records of a bulk formula fall on one side; a validation LMDB is validation as a whole.
    A relaxation that did not converge is learnt from, but nothing is measured on it.

    A formula's place is decided by a hash of it, so that it falls on the same side in every set of records: a network that starts
    from weights learnt on other records (``dimenet.init_from``) has not seen its test formulas there either.
    """

    def share(formula: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{seed}:{formula}".encode()).digest()[:8], "little") / 2**64

    formulas = sorted({e.formula for e in entries if e.source == 0}, key=share)
    own_validation = any(e.source == 1 for e in entries)
    # A small set may have no formula in one of the ranges: then the first in line serves.
    num_test = max(1, sum(share(f) < cfg.test_fraction for f in formulas))
    in_both = sum(share(f) < cfg.test_fraction + cfg.val_fraction for f in formulas)
    num_val = 0 if own_validation else max(1, in_both - num_test)
    if len(formulas) - num_test - num_val < 1:
        raise StageError(
            f"dimenet.lmdb_path: {len(formulas)} bulk formulas are too few to split into train, val and test; add records"
        )
    part = {formula: "test" if k < num_test else "val" if k < num_test + num_val else "train" for k, formula in enumerate(formulas)}
    split: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for number, entry in enumerate(entries):
        side = "val" if entry.source == 1 else part[entry.formula]
        if entry.converged or side == "train":
            split[side].append(number)
    if not split["val"]:
        raise StageError("dimenet.val_lmdb_path: no usable record is left for validation")
    return split


# ------------------------------------------------------------------------------------------------------------------ training


@dataclass
class MemberJob:
    """Everything one member of the ensemble needs; can be sent to another process."""

    number: int
    seed: int
    settings: config.DimenetConfig
    model: DimeNetPlusPlusConfig
    data: AdsorptionData
    split: dict[str, list[int]]
    mean: float
    std: float
    fingerprint: str
    resume_path: Path
    threads: int | None = None  # set in worker processes


def learning_rate_factor(step: int, steps_per_epoch: int, settings: config.DimenetConfig) -> float:
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
        with config.atomic_path(job.resume_path) as temporary:
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
    with ProcessPoolExecutor(number, mp_context=get_context("spawn"), initializer=config.end_with_parent) as pool:
        for future in [pool.submit(_train_in_worker, job) for job in workers]:
            future.result()
    return [train_member(job, device) for job in jobs]


def _train_in_worker(job: MemberJob) -> None:
    """Leaves its result in the resume file: tensors do not cross between processes, whose end would take them along."""
    train_member(job)


# -------------------------------------------------------------------------------------------------------------------- report


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
    from figures import figure

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
    from figures import figure, logarithmic

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
    with config.atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
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


# --------------------------------------------------------------------------------------------------------------------- stage


def fingerprint(cfg: config.Config, hashes: dict[str, str]) -> str:
    """Identifies settings and inputs: same fingerprint, same weights."""
    settings = {key: value for key, value in dataclasses.asdict(cfg.dimenet).items() if key not in NOT_INPUTS}
    for key in ("lmdb_path", "val_lmdb_path", "init_from"):
        settings[key] = hashes.get(key, "")
    content = json.dumps({"seed": cfg.run.seed, "settings": settings, "schema": config.SCHEMA_VERSION}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def is_complete(checkpoint: Path, expected: str) -> bool:
    """Whether the checkpoint was written with these settings and inputs and is untouched since."""
    try:
        sidecar = config.read_sidecar(checkpoint, stage=STAGE)
    except StageError:
        return False
    if not checkpoint.is_file() or sidecar.get("checkpoint_sha256") != config.file_sha256(checkpoint):
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
            names.add(str(config.read_sidecar(lmdb, stage="prepare_demo_data.py")["settings"].get("potential", "")))
        except StageError:
            names.add("")
    return names.pop() if len(names) == 1 and names <= set(STORED_ENERGIES) else ""


def refit_correction(checkpoint: Path, dft_path: str, teacher: str, device: torch.device) -> None:
    """Fits the DFT correction of a checkpoint anew, or takes it away where ``dft_path`` is empty; the weights stay as they are."""
    judge = HydrogenPredictor.load(checkpoint, device)
    sidecar = config.read_sidecar(checkpoint, stage=STAGE)
    correction, fitted = fit_correction(judge.predict_raw, dft_path, teacher) if dft_path else (None, None)
    content = load_checkpoint(checkpoint, DIMENET_KIND, "")
    state = HydrogenPredictor.state(judge.calibration, judge.domain, judge.mean, judge.std, content["members"], correction)
    save_checkpoint(checkpoint, DIMENET_KIND, DimeNetPlusPlusConfig(**content["model_config"]), state)
    inputs = {path: digest for path, digest in sidecar["inputs"].items() if digest != sidecar.get("dft_sha256")}
    if dft_path:
        inputs[relative_name(dft_path)] = config.file_sha256(dft_path)
    metrics = {key: value for key, value in sidecar["metrics"].items() if key != "dft"}
    sidecar |= {
        "inputs": inputs,
        "metrics": metrics | ({"dft": fitted} if fitted else {}),
        **described_correction(correction, dft_path),
    }
    sidecar["checkpoint_sha256"] = config.file_sha256(checkpoint)
    config.write_json(config.sidecar_path(checkpoint), sidecar)
    outcome = f"{fitted['n']} points, left-out MAE {fitted['left_out_mae_ev']:.3f} eV" if fitted else "none"
    log.info("%s: DFT correction fitted anew, %s", relative_name(checkpoint), outcome)


def described_correction(correction: DftCorrection | None, dft_path: str | Path) -> dict[str, Any]:
    """What the sidecar says about the correction."""
    about = None
    if correction:
        about = {"n": correction.n, "rmse_ev": correction.rmse_ev, "scale": correction.scale, "teacher": correction.teacher}
    return {"dft_correction": about, "dft_sha256": config.file_sha256(dft_path) if correction else None}


def main(cfg: config.Config) -> None:
    settings, checkpoint = cfg.dimenet, Path(cfg.dimenet.checkpoint)
    device = config.resolve_device(cfg.run)
    teacher = settings.dft_teacher if settings.dft_teacher != "auto" else records_teacher(Path(settings.lmdb_path))
    if settings.only_correction:
        if settings.dft_teacher == "auto":
            before = config.read_sidecar(checkpoint, stage=STAGE).get("dft_correction") or {}
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
    mark = fingerprint(cfg, {key: config.file_sha256(path) for key, path in inputs.items()})
    if is_complete(checkpoint, mark):
        card = config.read_sidecar(checkpoint, stage=STAGE)
        fitted_on = card.get("dft_sha256"), (card.get("dft_correction") or {}).get("teacher")
        if fitted_on != ((config.file_sha256(inputs["dft_path"]), teacher) if "dft_path" in inputs else (None, None)):
            refit_correction(checkpoint, settings.dft_path, teacher, device)
            return
        log.info("%s is complete with these settings and inputs; nothing to do", relative_name(checkpoint))
        return

    model_config = DimeNetPlusPlusConfig.preset(settings.preset)
    if settings.adsorbate == "all" and model_config.readout == "adsorbate":
        if any(not (reader[0].tags == H_TAG).any() for reader in readers):
            raise StageError(f"dimenet.preset={settings.preset} needs records with adsorbate tags; use dimenet.preset=oc20")
    config.seed_everything(cfg.run.seed)
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
    config.write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=list(inputs.values()),
        counts=counts,
        metrics=metrics | {"members": [{"val_mae_ev": r["val_mae_ev"], "best_epoch": r["epoch"]} for r in results]},
        fingerprint=mark,
        checkpoint_sha256=config.file_sha256(checkpoint),
        model=dataclasses.asdict(model_config),
        calibration=dataclasses.asdict(calibration),
        **described_correction(correction, settings.dft_path),
        domain=dataclasses.asdict(domain) | {"elements": [chemical_symbols[z] for z in domain.elements]},
    )
    for path in resume.values():
        path.unlink(missing_ok=True)
    log.info("%s", summary(metrics, counts, checkpoint))


if __name__ == "__main__":
    raise SystemExit(config.run_stage(main, __doc__, ("run", "dimenet")))
