"""Training task of the denoiser: loss of a step, validation, scores of the property heads, and the loss curve."""

from __future__ import annotations

import csv
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from generation.batch import Denoiser
from generation.loss import TERMS, loss_sizes, loss_terms, sample_noise, total_loss
from generation.seeds import seeded_generator
from generation.sheet_table import SheetTable, training_rows
from networks.ranks import Ranks, Share
from networks.sheet_layers import SheetInteraction
from pipeline.files import atomic_path
from pipeline.settings import DenoiserConfig

VALIDATION_SHEETS = 512  # noised sheets per validation, at least
TEST_TIME_FRACTION = 0.01  # t/T at which the heads are scored on the test split


def learning_rate(step: int, settings: DenoiserConfig) -> float:
    """Return the learning rate of step 1..max_steps: linear warm-up, then a cosine to 1 % of the peak."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(settings.max_steps - settings.warmup_steps, 1)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class DenoiserTask:
    """Task of the training loop: the joint loss of noise and property heads.

    Args:
        settings: of the denoiser.
        train, val: sheets of the two splits.
        seed: of rows and noise.
        ranks: the processes that train it together.
    """

    def __init__(self, settings: DenoiserConfig, train: SheetTable, val: SheetTable, seed: int, ranks: Ranks) -> None:
        self.settings, self.train, self.val, self.seed = settings, train, val, seed
        self.ranks, self.device = ranks, ranks.device

    def batch(self, step: int) -> tuple[Any, ...]:
        """Return this rank's sheets, noise and constraint, the whole batch, its times (B,), and the weight of this rank's rows.

        Rows and noise are drawn for the whole batch, so that they do not depend on the number of ranks.
        """
        settings, share = self.settings, self.ranks.share
        rows = training_rows(self.train, step, settings.batch_size, self.seed, settings.labelled_share)
        whole, generator = self.train.select(rows), seeded_generator(self.seed, 2, step)
        noise = sample_noise(whole, settings.num_timesteps, settings.p_uncond, generator, settings.symmetric_share)
        sheets, times, total = whole, noise.t, len(rows)
        if share.count > 1:
            mine = torch.tensor(share.rows(total))
            noise = noise.select(mine, torch.nonzero(torch.isin(whole.batch, mine)).flatten())
            rows = rows[mine]
            sheets = self.train.select(rows)
        return sheets, noise, self.train.constraint(rows, noise.symmetric, self.device), whole, times, share.weight(total)

    def loss(self, model: Denoiser, batch: tuple[Any, ...]) -> tuple[torch.Tensor, dict[str, float]]:
        """Return this rank's part of the loss, and as numbers the loss (``total``) and its terms."""
        sheets, noise, constraint, whole, times, weight = batch
        sizes = None
        if self.ranks.are_joined:
            sizes = loss_sizes(model.schedule, whole.to(self.device), times.to(self.device))
        terms, _ = loss_terms(model, sheets.to(self.device), noise, constraint, sizes)
        terms = {name: term * weight for name, term in terms.items()}
        loss = total_loss(terms, self.settings)
        return loss, {name: float(term.detach()) for name, term in (("total", loss), *terms.items())}

    def evaluate(self, model: Denoiser, step: int, sums: dict[str, float], steps: int) -> tuple[dict[str, Any], float]:
        """Return a row of the loss curve and the validation loss."""
        row: dict[str, Any] = {"step": step, "lr": learning_rate(step, self.settings)}
        row |= {f"train_{name}": sums[name] / steps for name in ("total", *TERMS)}
        losses = evaluate_loss(model, self.val, self.settings, self.seed, self.device, self.ranks)
        row |= {f"val_{name}": value for name, value in losses.items()}
        return row, losses["total"]

    def not_finite(self, step: int, names: list[str], resume: str) -> str:
        """Return the message of a step without a finite loss."""
        bad = ", ".join(name for name in names if name != "total") or "gradient"
        return (
            f"training stopped at step {step + 1}: {bad} is not finite; the state before it is in {resume}; "
            "lower denoiser.learning_rate"
        )


def layers_in_bfloat16(model: torch.nn.Module) -> None:
    """Let the message-passing layers multiply in bfloat16 while they train on a GPU; geometry and evaluation stay as they are."""
    for layer in model.modules():
        if isinstance(layer, SheetInteraction):
            layer.forward = functools.partial(_in_bfloat16, layer, layer.forward)


def _in_bfloat16(layer: SheetInteraction, forward: Callable, *inputs: Any) -> tuple[torch.Tensor, ...]:
    with torch.autocast("cuda", torch.bfloat16, enabled=layer.training):
        return forward(*inputs)


@torch.no_grad()
def evaluate_loss(
    model: Denoiser, table: SheetTable, settings: DenoiserConfig, seed: int, device: torch.device, ranks: Ranks | None = None
) -> dict[str, float]:
    """Return the mean loss and its terms on a split. Times, noise and dropout are the same at every call.

    With ``ranks`` each computes some of the batches, and all return the same means.
    """
    repeats, names = max(1, math.ceil(VALIDATION_SHEETS / len(table))), ("total", *TERMS)
    parts = torch.arange(len(table)).split(settings.batch_size)
    found, share = torch.zeros(repeats * len(parts), len(names), dtype=torch.float64), ranks.share if ranks else Share()
    for place in range(share.rank, len(found), share.count):
        repeat, number = divmod(place, len(parts))
        index = parts[number]
        sheets = table.select(index)
        generator = seeded_generator(seed, 3, repeat, number)
        noise = sample_noise(sheets, settings.num_timesteps, settings.p_uncond, generator, settings.symmetric_share)
        terms, _ = loss_terms(model, sheets.to(device), noise, table.constraint(index, noise.symmetric, device))
        values = (total_loss(terms, settings), *terms.values())
        found[place] = torch.tensor([float(value) * len(index) for value in values], dtype=torch.float64)
    found = ranks.sum(found) if ranks else found
    totals = np.add.accumulate(found.numpy())[-1].tolist()  # in this order, whatever the number of ranks
    return {name: total / (repeats * len(table)) for name, total in zip(names, totals, strict=True)}


@torch.no_grad()
def score_heads(
    model: Denoiser, table: SheetTable, train: SheetTable, batch_size: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """Score the heads on a split at little noise (t = ``TEST_TIME_FRACTION`` T).

    Returns:
        ``t``; ``n_*``, number of labels; ``mae_*_ev``, mean absolute error; ``baseline_mae_*_ev``, that of the mean label of
        ``train``; ``spearman_*``, rank correlation; ``auc_synth``, ROC-AUC of P_synth. Errors are in eV (delta_g) and eV/atom
        (e_hull).
    """
    t_small = max(1, round(TEST_TIME_FRACTION * model.schedule.num_timesteps))
    predicted: dict[str, list[torch.Tensor]] = {"delta_g": [], "e_hull": [], "synth": []}
    for number, index in enumerate(torch.arange(len(table)).split(batch_size)):
        sheets = table.select(index)
        noise = sample_noise(sheets, model.schedule.num_timesteps, 1.0, seeded_generator(seed, 4, number))
        noise.t = torch.full_like(noise.t, t_small)
        _, properties = loss_terms(model, sheets.to(device), noise)
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
    """Return Spearman's rank correlation; nan for fewer than three values."""
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, label).statistic) if len(label) > 2 else float("nan")


def roc_auc(score: np.ndarray, label: np.ndarray) -> float:
    """Return the area under the ROC curve, ties counted half; nan where one class is absent. label: 0 or 1."""
    from sklearn.metrics import roc_auc_score

    positive = label > 0.5
    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < len(positive) else float("nan")


def write_curve(history: list[dict[str, float]], folder: Path, draw_every_s: float = 0.0) -> None:
    """Write ``loss_curve.csv``, and ``loss_curve.png`` with its PDF: every term in training and validation.

    Args:
        history: a row per evaluation.
        folder: where the files go.
        draw_every_s: a figure that is younger is left as it is, for drawing one takes seconds.
    """
    with atomic_path(folder / "loss_curve.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    picture = folder / "loss_curve.png"
    if draw_every_s and picture.is_file() and time.time() - picture.stat().st_mtime < draw_every_s:
        return

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
    with figure(picture, nrows=2, ncols=4, figsize=(13, 6), sharex=True) as (_, axes):
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
