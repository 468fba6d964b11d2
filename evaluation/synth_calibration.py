"""Calibrates and scores the embedded synthesizability model, and draws the figure of both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.statistics import bootstrap_interval, wilson_interval
from pipeline.plotting import figure


def balanced_weights(labels: np.ndarray, reported: np.ndarray, reported_weight: float) -> np.ndarray:
    """Return weights (N,): both labels weigh the same in sum, and a reported sheet more than another synthesizable one.

    Args:
        labels: (N,) 0 or 1.
        reported: (N,) whether a synthesis is on record.
        reported_weight: weight of a reported sheet beside 1 of another.
    """
    weights = np.where(reported, reported_weight, 1.0)
    positive = labels == 1
    scale = weights[~positive].sum() / max(weights[positive].sum(), 1e-12)
    return np.where(positive, weights * scale, weights)


def fit_calibration(odds: np.ndarray, labels: np.ndarray, reported: np.ndarray, reported_weight: float) -> dict[str, float]:
    """Fit P = sigmoid((odds − threshold) / temperature).

    The threshold is where the share of reported sheets above it equals the share of sheets that cannot be made below it, so that
    P = 0.5 errs on both sides alike. Where no sheet is reported, all that are called synthesizable stand for them. The temperature
    minimises the log loss with balanced classes (temperature scaling, Guo et al. 2017).

    Args:
        odds: (N,) log-odds of formulas that the trees have not seen.
        labels: (N,) 0 or 1.
        reported: (N,) whether a synthesis is on record.
        reported_weight: as in the training.

    Returns:
        ``threshold`` and ``temperature``, both in log-odds; 0 and 1 where there is only one class.
    """
    from scipy.optimize import minimize_scalar

    if len(np.unique(labels)) < 2:
        return {"threshold": 0.0, "temperature": 1.0}
    known, impossible = np.sort(odds[reported] if reported.any() else odds[labels == 1]), np.sort(odds[labels == 0])
    candidates = np.unique(np.concatenate([known, impossible]))
    recall = 1 - np.searchsorted(known, candidates) / len(known)
    specificity = np.searchsorted(impossible, candidates) / len(impossible)
    at = int(np.argmin(np.abs(recall - specificity)))
    # Between two values, so that no sheet stands exactly on the threshold.
    threshold = float((candidates[at] + candidates[max(at - 1, 0)]) / 2)
    weights = balanced_weights(labels, reported, reported_weight)

    def loss(log_temperature: float) -> float:
        logit = (odds - threshold) * math.exp(-log_temperature)
        return float(np.average(np.logaddexp(0, logit) - labels * logit, weights=weights))

    found = minimize_scalar(loss, bounds=(-2, 3), method="bounded")
    return {"threshold": threshold, "temperature": float(math.exp(found.x))}


def scores(p: np.ndarray, labels: np.ndarray, reported: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Compute how P_synth ranks and what it decides at 0.5, with 95 % intervals, and its reliability with balanced classes.

    Args:
        p: (N,) predicted probabilities.
        labels: (N,) 0 or 1.
        reported: (N,) whether a synthesis is on record.
        bins: number of bins of equal width of the reliability curve.

    Returns:
        ``roc_auc``; ``tpr``, ``recall_reported``, ``tnr`` (shares at P = 0.5); each with ``*_interval`` (low, high); ``ece``, the
        expected calibration error; ``log_loss``; ``reliability``; counts. NaN where a class is missing.
    """
    from sklearn.metrics import roc_auc_score

    positive, negative = labels == 1, labels == 0
    both = bool(positive.any() and negative.any())
    balance = np.where(positive, 0.5 / max(positive.sum(), 1), 0.5 / max(negative.sum(), 1))
    index = np.minimum((p * bins).astype(int), bins - 1)
    curve = [
        {
            "p_mean": float(np.average(p[index == b], weights=balance[index == b])),
            "observed": float(np.average(labels[index == b], weights=balance[index == b])),
            "weight": float(balance[index == b].sum() / balance.sum()),
            "n": int((index == b).sum()),
        }
        for b in range(bins)
        if (index == b).any()
    ]
    found: dict[str, Any] = {"n": len(labels), "n_true": int(positive.sum()), "n_reported": int(reported.sum())}
    found["roc_auc"] = float(roc_auc_score(labels, p)) if both else math.nan
    found["roc_auc_interval"] = _auc_interval(p, positive) if both else (math.nan, math.nan)
    for name, right, of in (
        ("tpr", p >= 0.5, positive),
        ("recall_reported", p >= 0.5, reported),
        ("tnr", p < 0.5, negative),
    ):
        found[name] = float(right[of].mean()) if of.any() else math.nan
        found[f"{name}_interval"] = wilson_interval(int(right[of].sum()), int(of.sum()))
    found["ece"] = float(sum(c["weight"] * abs(c["p_mean"] - c["observed"]) for c in curve))
    likelihood = np.log(np.clip(np.where(positive, p, 1 - p), 1e-12, 1))
    found["log_loss"] = float(-np.average(likelihood, weights=balance)) if len(labels) else math.nan
    return found | {"reliability": curve}


def _auc_interval(p: np.ndarray, positive: np.ndarray, resamples: int = 1000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the ROC-AUC over the sheets."""
    from scipy.stats import rankdata

    def auc(indices: np.ndarray, axis: int = -1) -> np.ndarray:
        drawn = indices.astype(int)
        values = []
        for sample in drawn:
            chosen, ranks = positive[sample], rankdata(p[sample])
            n = chosen.sum()
            values.append((ranks[chosen].sum() - n * (n + 1) / 2) / max(n * (len(sample) - n), 1))
        return np.array(values)

    return bootstrap_interval(np.arange(len(p)), auc, resamples, np.random.default_rng(0))


def draw_calibration(path: Path, p: np.ndarray, labels: np.ndarray, reported: np.ndarray, metrics: dict[str, Any]) -> None:
    """Draw the ROC curve, the reliability with balanced classes and the distribution of P_synth, on held-out formulas.

    Args:
        path: the PNG.
        p, labels, reported: as in ``scores``.
        metrics: what ``scores`` returned for them.
    """
    from sklearn.metrics import roc_curve

    with figure(path, ncols=3, figsize=(11, 3.6)) as (drawn, axes):
        if 0 < labels.sum() < len(labels):
            false_positive, true_positive, _ = roc_curve(labels, p)
            axes[0].plot(false_positive, true_positive, color="black", label=f"AUC {metrics['roc_auc']:.3f}")
            axes[0].legend(loc="lower right", frameon=False)
        axes[0].plot([0, 1], [0, 1], color="0.6", linestyle=":")
        axes[0].set(xlabel="false positive rate (fraction)", ylabel="true positive rate (fraction)", title="ROC")
        curve = metrics["reliability"]
        label = f"ECE {metrics['ece']:.3f}"
        axes[1].plot([c["p_mean"] for c in curve], [c["observed"] for c in curve], marker="o", color="black", label=label)
        axes[1].plot([0, 1], [0, 1], color="0.6", linestyle=":")
        axes[1].legend(frameon=False)
        axes[1].set(xlabel="P_synth (fraction)", ylabel="observed share (fraction)", title="Reliability, classes of equal weight")
        edges = np.linspace(0, 1, 21)
        groups = (
            ("cannot be made", labels == 0, {"color": "0.8"}),
            ("called synthesizable", labels == 1, {"color": "black", "histtype": "step", "linewidth": 1.5}),
            ("synthesis on record", reported, {"color": "tab:blue", "histtype": "step", "linewidth": 1.5}),
        )
        for name, chosen, style in groups:
            if chosen.any():
                share = np.full(int(chosen.sum()), 1 / chosen.sum())
                axes[2].hist(p[chosen], edges, weights=share, label=f"{name} (n = {int(chosen.sum())})", **style)
        axes[2].axvline(0.5, color="0.4", linestyle=":")
        axes[2].legend(frameon=False, loc="upper center")
        axes[2].set(xlabel="P_synth (fraction)", ylabel="share of the group (fraction)", title="Held-out formulas")
        drawn.suptitle(f"Embedded synthesizability model, n = {metrics['n']} sheets of formulas not seen in training", fontsize=10)
