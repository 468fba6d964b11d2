"""Reports stage 1: errors on held-out records, parity plot, loss curve and summary."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from energetics.adsorption_data import Entry
from pipeline.files import atomic_path, relative_name

EWT_THRESHOLD_EV = 0.02  # OC20's "energy within threshold"


def error_metrics(entries: Sequence[Entry], predicted: np.ndarray, std: np.ndarray, train_mean: float) -> dict[str, Any]:
    """Return the errors of predictions, all and by family; energies in eV.

    Args:
        entries: n held-out records.
        predicted, std: (n,) eV, ΔE_H and its standard error.
        train_mean: eV, mean of the training records, the prediction of the baseline.
    """
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
    """Draw predicted against true ΔE_H with error bars, one panel per held-out part. parts: by name (truth, predicted, std), eV."""
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
    """Draw training and validation MAE against the epoch, one pair of lines per member."""
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
    """Write the loss curve as CSV: member, epoch, learning rate, MAE of train and validation in eV."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def summary(metrics: dict[str, dict], counts: dict[str, Any], checkpoint: Path) -> str:
    """Return what the stage prints at its end."""
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
