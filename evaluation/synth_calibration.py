"""Calibrates and scores the embedded synthesizability model, and draws the figure of both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.plotting import figure


def fit_calibration(odds: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Fit temperature and bias of P = sigmoid(odds / temperature + bias) by the log loss plus a weak pull to (1, 0).

    This is temperature scaling (Guo et al. 2017) with a bias, because training weights the classes equally although they are not
    equally frequent.

    Args:
        odds: (N,) log-odds of the model.
        labels: (N,) 0 or 1.

    Returns:
        (temperature, bias); (1, 0) where there is only one class.
    """
    from scipy.optimize import minimize

    if len(np.unique(labels)) < 2:
        return 1.0, 0.0

    def loss(parameters: np.ndarray) -> float:
        logit = odds * math.exp(-parameters[0]) + parameters[1]
        return float(np.mean(np.logaddexp(0, logit) - labels * logit) + 1e-3 * np.sum(parameters**2))

    found = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=[(-3, 3), (-5, 5)])
    return float(math.exp(found.x[0])), float(found.x[1])


def scores(p: np.ndarray, labels: np.ndarray, mass: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Compute ROC-AUC, TPR, TNR and accuracy at P = 0.5, the expected calibration error (ECE), and the reliability curve.

    Args:
        p: (N,) predicted probabilities.
        labels: (N,) 0 or 1.
        mass: (N,) label mass.
        bins: number of bins of equal width for ECE and the curve.
    """
    from sklearn.metrics import roc_auc_score

    positive, negative = labels == 1, labels == 0
    index = np.minimum((p * bins).astype(int), bins - 1)
    curve = [
        {"p_mean": float(p[index == b].mean()), "observed": float(labels[index == b].mean()), "n": int((index == b).sum())}
        for b in range(bins)
        if (index == b).any()
    ]
    return {
        "n": len(labels),
        "n_true": int(positive.sum()),
        "roc_auc": float(roc_auc_score(labels, p)) if positive.any() and negative.any() else math.nan,
        "tpr": float((p[positive] >= 0.5).mean()) if positive.any() else math.nan,
        "tnr": float((p[negative] < 0.5).mean()) if negative.any() else math.nan,
        "accuracy": float(((p >= 0.5) == positive).mean()) if len(labels) else math.nan,
        "ece": float(sum(c["n"] * abs(c["p_mean"] - c["observed"]) for c in curve) / max(len(labels), 1)),
        "log_loss": float(-np.mean(np.log(np.clip(np.where(positive, p, 1 - p), 1e-12, 1)))) if len(labels) else math.nan,
        "label_mass_min": float(mass.min()) if len(mass) else math.nan,
        "reliability": curve,
    }


def draw_calibration(path: Path, p: np.ndarray, labels: np.ndarray, metrics: dict[str, Any], raw: dict[str, Any]) -> None:
    """Draw the ROC curve, the reliability before and after calibration, and the distribution of P, on held-out formulas.

    Args:
        path: the PNG.
        p, labels: (N,) calibrated probabilities and their labels.
        metrics, raw: ``scores`` after and before calibration.
    """
    from sklearn.metrics import roc_curve

    with figure(path, ncols=3, figsize=(11, 3.6)) as (drawn, axes):
        if 0 < labels.sum() < len(labels):
            false_positive, true_positive, _ = roc_curve(labels, p)
            axes[0].plot(false_positive, true_positive, color="black", label=f"AUC {metrics['roc_auc']:.3f}")
            axes[0].legend(loc="lower right", frameon=False)
        axes[0].plot([0, 1], [0, 1], color="0.6", linestyle=":")
        axes[0].set(xlabel="false positive rate (fraction)", ylabel="true positive rate (fraction)", title="ROC")
        for content, marker, grey, name in ((raw, "s", "0.6", "before"), (metrics, "o", "black", "after")):
            curve = content["reliability"]
            label = f"{name}: ECE {content['ece']:.3f}"
            axes[1].plot([c["p_mean"] for c in curve], [c["observed"] for c in curve], marker=marker, color=grey, label=label)
        axes[1].plot([0, 1], [0, 1], color="0.6", linestyle=":")
        axes[1].legend(frameon=False)
        axes[1].set(xlabel="predicted P(synthesizable) (fraction)", ylabel="observed share (fraction)", title="Reliability")
        edges = np.linspace(0, 1, 21)
        axes[2].hist(p[labels == 0], edges, color="0.75", label=f"False (n = {int((labels == 0).sum())})")
        axes[2].hist(p[labels == 1], edges, histtype="step", color="black", linewidth=1.5, label=f"True (n = {int(labels.sum())})")
        axes[2].legend(frameon=False)
        axes[2].set(xlabel="predicted P(synthesizable) (fraction)", ylabel="crystals (count)", title="Held-out formulas")
        drawn.suptitle(f"embedded-lm on n = {metrics['n']} crystals of formulas not seen in training", fontsize=10)
