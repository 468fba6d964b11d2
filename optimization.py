"""Stage 3: trains the joint diffusion model of sheets, with its property heads.

Reads ``dataset.processed_dir`` (stage 2). Writes ``denoiser.checkpoint`` (best EMA weights on the validation split, with the noise
schedule inside) and, beside it, its sidecar, ``loss_curve.csv`` and ``loss_curve.png``. Killed at any moment and started again it
goes on from ``resume.pt`` and, on a CPU, ends with the same weights as an uninterrupted run.

    python optimization.py denoiser.max_steps=6000
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from generation.loss import TERMS, loss_terms, sample_noise, total_loss
from generation.sheet_table import DATASET_STAGE, SheetTable, seeded_generator, training_rows
from models import DenoiserModelConfig, DenoisingEGNN, load_denoiser
from networks.checkpoints import save_checkpoint
from pipeline.cli import resolve_device, run_stage, seed_everything
from pipeline.errors import StageError
from pipeline.files import atomic_path, file_sha256, relative_name
from pipeline.provenance import check_inputs_unchanged, read_sidecar, sidecar_path, write_sidecar
from pipeline.settings import Config, DenoiserConfig

log = logging.getLogger("her2d")

STAGE = "optimization.py"
VALIDATION_DRAWS = 512  # noised sheets per validation, at least
TEST_TIME_FRACTION = 0.01  # t/T at which the heads are scored on the test split


def learning_rate(step: int, settings: DenoiserConfig) -> float:
    """Rate of step 1..max_steps: linear warm-up, then a cosine to 1 % of the peak."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(settings.max_steps - settings.warmup_steps, 1)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def model_config(settings: DenoiserConfig) -> DenoiserModelConfig:
    """The network's settings from the stage's."""
    return DenoiserModelConfig(
        hidden_channels=settings.hidden_channels,
        vector_channels=settings.vector_channels,
        num_layers=settings.num_layers,
        num_noise_layers=settings.num_noise_layers,
        num_rbf=settings.num_rbf,
        cutoff=settings.cutoff_angstrom,
        max_neighbors=settings.max_neighbors,
        num_timesteps=settings.num_timesteps,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        sigma_min=settings.sigma_min,
        sigma_max=settings.sigma_max,
    )


def build_model(settings: DenoiserConfig, table: SheetTable, seed: int) -> DenoisingEGNN:
    """An untrained model whose schedule and label scales are fitted to the training set."""
    seed_everything(seed)
    model = DenoisingEGNN(model_config(settings))
    model.schedule.fit(table.sheets)
    for k, label in enumerate((table.sheets.delta_g, table.sheets.e_hull)):
        known = label[torch.isfinite(label)]
        if len(known) > 1:
            model.label_mean[k] = known.mean()
            model.label_std[k] = known.std().clamp(min=0.05)
    if settings.init_from:
        load_weights(model, settings.init_from, with_scales=settings.train_only == "heads")
    if settings.train_only == "heads":
        for name, value in model.named_parameters():
            value.requires_grad_(name.startswith("head"))
    return model


def load_weights(model: DenoisingEGNN, path: str, with_scales: bool = False) -> None:
    """Takes over the weights of another run. Schedule and label scales stay those of the data at hand, or are taken over too.

    Raises StageError when the networks differ in size.
    """
    other = load_denoiser(path, "set denoiser.init_from to a checkpoint of stage 3, or leave it empty")[0]
    weights, own = (dict(m.named_parameters()) | (dict(m.named_buffers()) if with_scales else {}) for m in (other, model))
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
        raise StageError(f"denoiser.init_from: {relative_name(path)} is a network of another size than denoiser.* says")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


class Trainer:
    """Model, optimiser, EMA, history and the best weights so far; the whole state is one dict."""

    def __init__(self, cfg: Config, train: SheetTable, val: SheetTable, device: torch.device, fingerprint: str):
        self.settings, self.seed, self.device, self.fingerprint = cfg.denoiser, cfg.run.seed, device, fingerprint
        self.train_table, self.val_table = train, val
        self.model = build_model(cfg.denoiser, train, cfg.run.seed).to(device)
        self.optimiser = torch.optim.AdamW(
            (p for p in self.model.parameters() if p.requires_grad),
            lr=cfg.denoiser.learning_rate,
            weight_decay=cfg.denoiser.weight_decay,
            betas=(0.9, 0.99),
        )
        self.ema = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.running = dict.fromkeys(("total", *TERMS), 0.0)
        self.best_loss, self.best_step, self.best = math.inf, 0, dict(self.ema)

    def state_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema,
            "history": self.history,
            "running": self.running,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema = {name: value.to(self.device) for name, value in state["ema"].items()}
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        self.step, self.history, self.running = state["step"], state["history"], state["running"]
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]

    def train_step(self) -> float:
        """One optimiser step; returns the loss. Raises FloatingPointError, with the model untouched, when it is not finite."""
        settings, table = self.settings, self.train_table
        rows = training_rows(table, self.step, settings.batch_size, self.seed, settings.labelled_share)
        sheets, generator = table.select(rows), seeded_generator(self.seed, 2, self.step)
        draw = sample_noise(sheets, settings.num_timesteps, settings.p_uncond, generator, settings.symmetric_share)
        terms, _ = loss_terms(self.model, sheets.to(self.device), draw, table.constraint(rows, draw.symmetric, self.device))
        loss = total_loss(terms, self.settings)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            bad = [name for name, term in terms.items() if not math.isfinite(float(term.detach()))]
            raise FloatingPointError(", ".join(bad) or "gradient")
        self.step += 1
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        self.optimiser.step()
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value_now in self.model.state_dict().items():
                if value_now.is_floating_point():
                    self.ema[name].lerp_(value_now, 1 - decay)
        for name, term in (("total", loss), *terms.items()):
            self.running[name] += float(term.detach())
        return value

    def validate(self) -> dict[str, float]:
        """Validates the EMA weights, records a row of the history and keeps them when they are the best so far."""
        since = self.step - (self.history[-1]["step"] if self.history else 0)
        row: dict[str, float] = {"step": self.step, "lr": learning_rate(self.step, self.settings)}
        row |= {f"train_{name}": value / max(since, 1) for name, value in self.running.items()}
        losses = evaluate_loss(self.model, self.ema, self.val_table, self.settings, self.seed, self.device)
        row |= {f"val_{name}": value for name, value in losses.items()}
        self.history.append(row)
        self.running = dict.fromkeys(self.running, 0.0)
        if row["val_total"] < self.best_loss:
            self.best_loss, self.best_step = row["val_total"], self.step
            self.best = {name: value.clone() for name, value in self.ema.items()}
        return row


@torch.no_grad()
def evaluate_loss(
    model: DenoisingEGNN,
    weights: dict[str, torch.Tensor],
    table: SheetTable,
    settings: DenoiserConfig,
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    """Loss terms of the given weights on a split, with the same times, noise and dropout at every call."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    model.eval()
    repeats = max(1, math.ceil(VALIDATION_DRAWS / len(table)))
    sums, count = dict.fromkeys(("total", *TERMS), 0.0), 0
    for repeat in range(repeats):
        for number, index in enumerate(torch.arange(len(table)).split(settings.batch_size)):
            sheets = table.select(index)
            generator = seeded_generator(seed, 3, repeat, number)
            draw = sample_noise(sheets, settings.num_timesteps, settings.p_uncond, generator, settings.symmetric_share)
            terms, _ = loss_terms(model, sheets.to(device), draw, table.constraint(index, draw.symmetric, device))
            for name, value in (("total", total_loss(terms, settings)), *terms.items()):
                sums[name] += float(value) * len(index)
            count += len(index)
    model.train()
    model.load_state_dict(kept)
    return {name: value / count for name, value in sums.items()}


@torch.no_grad()
def score_heads(
    model: DenoisingEGNN, table: SheetTable, train: SheetTable, batch_size: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """Scores of the heads at little noise: mean absolute errors, ROC-AUC and the number of labels behind each.

    ``baseline_*`` is the error of always answering the mean of the training labels.
    """
    t_small = max(1, round(TEST_TIME_FRACTION * model.schedule.num_timesteps))
    predicted: dict[str, list[torch.Tensor]] = {"delta_g": [], "e_hull": [], "synth": []}
    for number, index in enumerate(torch.arange(len(table)).split(batch_size)):
        sheets = table.select(index)
        draw = sample_noise(sheets, model.schedule.num_timesteps, 1.0, seeded_generator(seed, 4, number))
        draw.t = torch.full_like(draw.t, t_small)
        _, properties = loss_terms(model, sheets.to(device), draw)
        for name, value in zip(predicted, (properties.delta_g, properties.e_hull, properties.synth_logit), strict=True):
            predicted[name].append(value.cpu())
    values = {name: torch.cat(parts) for name, parts in predicted.items()}
    labels = {"delta_g": table.sheets.delta_g, "e_hull": table.sheets.e_hull, "synth": table.sheets.synth}
    scores: dict[str, Any] = {"t": t_small}
    for name, learnt in (("delta_g", train.sheets.delta_g), ("e_hull", train.sheets.e_hull)):
        known = torch.isfinite(labels[name])
        scores[f"n_{name}"] = int(known.sum())
        if known.any():
            scores[f"mae_{name}_ev"] = float((values[name] - labels[name])[known].abs().mean())
            scores[f"baseline_mae_{name}_ev"] = float((learnt.nanmean() - labels[name][known]).abs().mean())
            scores[f"spearman_{name}"] = rank_correlation(values[name][known].numpy(), labels[name][known].numpy())
    known = torch.isfinite(labels["synth"])
    scores["n_synth"] = int(known.sum())
    scores["auc_synth"] = roc_auc(values["synth"][known].numpy(), labels["synth"][known].numpy())
    return scores


def rank_correlation(predicted: np.ndarray, label: np.ndarray) -> float:
    """Spearman's; nan for fewer than three values."""
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, label).statistic) if len(label) > 2 else float("nan")


def roc_auc(score: np.ndarray, label: np.ndarray) -> float:
    """Area under the ROC curve from the rank sum, ties counted half; nan when one class is absent."""
    from scipy.stats import rankdata

    positive = label > 0.5
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return float("nan")
    return float((rankdata(score)[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def write_curve(history: list[dict[str, float]], folder: Path) -> None:
    """``loss_curve.csv`` and ``loss_curve.png`` with its PDF: every term, training and validation."""
    with atomic_path(folder / "loss_curve.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)

    from pipeline.plotting import figure, logarithmic

    titles = {
        "total": "weighted sum",
        "frac": "in-plane coordinates (score)",
        "height": "heights (noise)",
        "lattice": "lattice (noise)",
        "delta_g": "ΔG_H, |error| / spread",
        "e_hull": "E_hull, (error / spread)²",
        "synth": "synthesizability, cross-entropy",
    }
    steps = [row["step"] for row in history]
    with figure(folder / "loss_curve.png", nrows=2, ncols=4, figsize=(13, 6), sharex=True) as (_, axes):
        for axis, (name, title) in zip(axes.flat, titles.items(), strict=False):
            axis.plot(steps, [row[f"train_{name}"] for row in history], color="0.55", label="training (running mean)")
            axis.plot(steps, [row[f"val_{name}"] for row in history], color="0.0", linestyle="--", label="validation (EMA)")
            axis.set_title(title, fontsize=10)
            if all(row[f"{split}_{name}"] > 0 for row in history for split in ("train", "val")):
                logarithmic(axis)
            axis.grid(alpha=0.3, which="both")
        axes[0, 0].set_ylabel("loss (dimensionless)")
        axes[1, 0].set_ylabel("loss (dimensionless)")
        for axis in axes[1]:
            axis.set_xlabel("optimiser step")
        axes[1, 3].set_axis_off()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        axes[1, 3].legend(handles, labels, loc="center", fontsize=10)


def _fingerprint(cfg: Config, inputs: list[Path]) -> str:
    """What the result depends on: settings, seed and data."""
    content = {"settings": asdict(cfg.denoiser), "seed": cfg.run.seed, "inputs": [file_sha256(path) for path in inputs]}
    content["settings"].pop("checkpoint")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_complete(checkpoint: Path, fingerprint: str) -> bool:
    sidecar = sidecar_path(checkpoint)
    if not (checkpoint.is_file() and sidecar.is_file()):
        return False
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return content.get("fingerprint") == fingerprint and content.get("checkpoint_sha256") == file_sha256(checkpoint)


def _load_resume(path: Path, trainer: Trainer) -> None:
    """Restores the trainer from ``resume.pt`` when that belongs to this run."""
    if not path.is_file():
        return
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for damaged files
        raise StageError(f"{relative_name(path)} is damaged; remove it to start over") from error
    if state.get("fingerprint") != trainer.fingerprint:
        log.info("settings or data differ from those of the unfinished run: starting over")
        return
    trainer.load_state_dict(state)
    log.info("resuming after step %d", trainer.step)


def main(cfg: Config) -> None:
    """Trains, or finishes training, and writes the products."""
    settings = cfg.denoiser
    checkpoint = Path(settings.checkpoint)
    processed = Path(cfg.dataset.processed_dir)
    device = resolve_device(cfg.run)
    splits = {name: processed / f"{name}.pt" for name in ("train", "val", "test")}
    tables = {name: SheetTable.load(path) for name, path in splits.items()}
    for path in splits.values():
        check_inputs_unchanged(read_sidecar(path, stage=DATASET_STAGE), path)
    if not len(tables["train"]) or not len(tables["val"]):
        raise StageError(f"{relative_name(processed)} has an empty training or validation split: rerun {DATASET_STAGE}")

    inputs = [*splits.values(), *([Path(settings.init_from)] if settings.init_from else [])]
    for path in inputs:
        if not path.is_file():
            raise StageError(f"denoiser.init_from: no file at {relative_name(path)}")
    fingerprint = _fingerprint(cfg, inputs)
    if _is_complete(checkpoint, fingerprint):
        log.info("%s is complete for these settings and data; nothing to do", relative_name(checkpoint))
        return
    for name in ("train", "val"):
        tables[name].find_templates(name)
    trainer = Trainer(cfg, tables["train"], tables["val"], device, fingerprint)
    resume_path = checkpoint.with_name("resume.pt")
    _load_resume(resume_path, trainer)

    def save_resume() -> None:
        with atomic_path(resume_path) as temporary:
            torch.save(trainer.state_dict(), temporary)

    with tqdm(total=settings.max_steps, initial=trainer.step, desc="training", unit="step", mininterval=1.0) as bar:
        while trainer.step < settings.max_steps:
            try:
                loss = trainer.train_step()
            except FloatingPointError as error:
                save_resume()
                raise StageError(
                    f"training stopped at step {trainer.step + 1}: {error} is not finite; the state before it is in "
                    f"{relative_name(resume_path)}; lower denoiser.learning_rate"
                ) from error
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", val=f"{trainer.best_loss:.3f}", refresh=False)
            if trainer.step % settings.eval_every == 0 or trainer.step == settings.max_steps:
                trainer.validate()
                save_resume()
                write_curve(trainer.history, checkpoint.parent)

    trainer.model.load_state_dict(trainer.best)
    trainer.model.eval()
    metrics: dict[str, Any] = {"best_step": trainer.best_step}
    metrics |= next(
        {k: v for k, v in row.items() if k.startswith("val_")} for row in trainer.history if row["step"] == trainer.best_step
    )
    if len(tables["test"]):
        metrics["test"] = score_heads(trainer.model, tables["test"], tables["train"], settings.batch_size, cfg.run.seed, device)
    write_curve(trainer.history, checkpoint.parent)
    training = {
        "model": {name: value.cpu() for name, value in trainer.best.items()},
        "step": trainer.best_step,
        "elements": sorted(set(tables["train"].sheets.atomic_numbers.tolist())),
        # Of every split: what the database holds is not new, whether the model has seen it or not.
        "formulas": sorted({formula for table in tables.values() for formula in table.formulas}),
        "formulas_seen": sorted({formula for name in ("train", "val") for formula in tables[name].formulas}),
        "formulas_of_init": _formulas_of(settings.init_from),
        "templates": tables["train"].template_library().state_dict(),
    }
    save_checkpoint(checkpoint, "denoiser", trainer.model.config, training)
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=inputs,
        counts={name: len(table) for name, table in tables.items()}
        | {"parameters": sum(p.numel() for p in trainer.model.parameters())},
        metrics=metrics,
        fingerprint=fingerprint,
        checkpoint_sha256=file_sha256(checkpoint),
    )
    resume_path.unlink(missing_ok=True)
    _summary(checkpoint, metrics, tables)


def _formulas_of(path: str) -> list[str]:
    """Every formula that the weights which training started from have seen, so that no score calls one of them unseen."""
    if not path:
        return []
    content = load_denoiser(path, "")[1]
    return sorted({*content["formulas_seen"], *content["formulas_of_init"]})


def _summary(checkpoint: Path, metrics: dict[str, Any], tables: dict[str, SheetTable]) -> None:
    test = metrics.get("test", {})
    print(f"denoiser: {relative_name(checkpoint)}, best at step {metrics['best_step']}")
    print("  sheets     " + ", ".join(f"{name} {len(table)}" for name, table in tables.items()))
    print("  validation " + ", ".join(f"{name} {metrics[f'val_{name}']:.3f}" for name in ("total", *TERMS)))
    for name in ("delta_g", "e_hull"):
        if f"mae_{name}_ev" in test:
            print(
                f"  test       MAE {name} {test[f'mae_{name}_ev']:.3f} eV (mean of training set: "
                f"{test[f'baseline_mae_{name}_ev']:.3f}), n = {test[f'n_{name}']}"
            )
    if test:
        print(f"  test       ROC-AUC of P_synth {test['auc_synth']:.3f}, n = {test['n_synth']}")


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "denoiser")))
