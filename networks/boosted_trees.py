"""Gradient-boosted decision trees on tables of descriptors: fitted by scikit-learn, kept as plain tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch


class TreeSettings(Protocol):
    """What the settings of every such model have."""

    trees: int
    learning_rate: float
    max_leaf_nodes: int


class BoostedTrees:
    """An ensemble of fitted regression trees: start value + Σ value of the leaf that a row falls into.

    scikit-learn's own files are pickles, which run code when they are read. The trees are therefore kept as tensors, which the
    checkpoints of the networks hold as well.

    Args:
        start: prediction before the first tree.
        columns: number of descriptors of a row.
        feature, threshold, left, right, value: (M,) nodes of all trees one after the other; ``feature`` is -1 at a leaf, a row goes
            left where its descriptor is at most the threshold, and the children count from the first node of all.
        roots: (T,) index of each tree's first node.
    """

    _ARRAYS = ("feature", "threshold", "left", "right", "value", "roots")

    def __init__(self, start: float, columns: int, **arrays: np.ndarray) -> None:
        self.start, self.columns = float(start), int(columns)
        self.feature, self.threshold, self.left, self.right, self.value, self.roots = (arrays[name] for name in self._ARRAYS)

    @classmethod
    def fit(
        cls,
        rows: np.ndarray,
        target: np.ndarray,
        settings: TreeSettings,
        seed: int,
        *,
        classify: bool = False,
        weights: np.ndarray | None = None,
        **about: Any,
    ) -> BoostedTrees:
        """Fit trees by scikit-learn's histogram-based gradient boosting.

        Args:
            rows: (N, columns) descriptors.
            target: (N,) values, or labels where ``classify`` is set; the trees then give the log-odds of the second label.
            settings: number and size of the trees, learning rate.
            seed: of the model.
            weights: (N,) of the rows.
            about: further arguments of scikit-learn's model, which go before those of the settings.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        given = {
            "max_iter": settings.trees,
            "learning_rate": settings.learning_rate,
            "max_leaf_nodes": settings.max_leaf_nodes,
            "l2_regularization": 1.0,
            "early_stopping": False,
            "random_state": seed,
        }
        model = (HistGradientBoostingClassifier if classify else HistGradientBoostingRegressor)(**given | about)
        return cls.from_sklearn(model.fit(rows, target, sample_weight=weights))

    @classmethod
    def from_sklearn(cls, fitted: Any) -> BoostedTrees:
        """Take over a fitted ``HistGradientBoostingRegressor`` or binary ``HistGradientBoostingClassifier``."""
        nodes, roots, total = [], [], 0
        for (tree,) in fitted._predictors:
            table = tree.nodes
            roots.append(total)
            leaf = table["is_leaf"].astype(bool)
            nodes.append(
                (
                    np.where(leaf, -1, table["feature_idx"]).astype(np.int64),
                    table["num_threshold"].astype(np.float64),
                    np.where(leaf, 0, table["left"]).astype(np.int64) + total,
                    np.where(leaf, 0, table["right"]).astype(np.int64) + total,
                    np.where(leaf, table["value"], 0.0).astype(np.float64),
                )
            )
            total += len(table)
        joined = [np.concatenate(part) for part in zip(*nodes, strict=True)]
        joined[1] = np.where(np.isfinite(joined[1]), joined[1], np.finfo(np.float64).max)
        arrays = dict(zip(cls._ARRAYS, [*joined, np.array(roots, dtype=np.int64)], strict=True))
        return cls(float(np.ravel(fitted._baseline_prediction)[0]), fitted.n_features_in_, **arrays)

    @classmethod
    def mean(cls, models: Sequence[BoostedTrees]) -> BoostedTrees:
        """Return one ensemble that predicts the mean of several on the same descriptors."""
        offsets = np.cumsum([0, *(len(model.feature) for model in models)])
        arrays = {name: [getattr(model, name) for model in models] for name in cls._ARRAYS}
        for name in ("left", "right", "roots"):
            arrays[name] = [own + offset for own, offset in zip(arrays[name], offsets, strict=False)]
        arrays["value"] = [own / len(models) for own in arrays["value"]]
        start = sum(model.start for model in models) / len(models)
        return cls(start, models[0].columns, **{name: np.concatenate(own) for name, own in arrays.items()})

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return the predictions, (N,) float64; of a classifier the log-odds of class 1.

        Args:
            rows: (N, columns) descriptors without NaN.

        Raises:
            ValueError: another number of columns.
        """
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.columns:
            raise ValueError(f"expected rows of {self.columns} descriptors, got {rows.shape}")
        at = np.broadcast_to(self.roots, (len(rows), len(self.roots))).copy()
        line = np.arange(len(rows))[:, None]
        while True:
            feature = self.feature[at]
            inner = feature >= 0
            if not inner.any():
                return self.start + self.value[at].sum(axis=1)
            goes_left = rows[line, np.maximum(feature, 0)] <= self.threshold[at]
            at = np.where(inner, np.where(goes_left, self.left[at], self.right[at]), at)

    def state(self) -> dict[str, Any]:
        """Return plain values and tensors for ``networks.checkpoints``. Thresholds keep 64 bits, leaves 32."""
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in self._ARRAYS}
        for name in ("left", "right", "roots", "feature"):
            tensors[name] = tensors[name].to(torch.int32)
        return {"start": self.start, "columns": self.columns, **tensors}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> BoostedTrees:
        """Rebuild from ``state``. Raises KeyError, TypeError or ValueError for a state that is not of such trees."""
        arrays = {name: state[name].numpy() for name in cls._ARRAYS}
        for name in ("left", "right", "roots", "feature"):
            arrays[name] = arrays[name].astype(np.int64)
        size = len(arrays["feature"])
        inner = arrays["feature"] >= 0
        own = np.arange(size)
        if any(arrays[name].shape != (size,) for name in ("threshold", "left", "right", "value")) or not len(arrays["roots"]):
            raise ValueError("the arrays of the trees differ in length")
        children = np.concatenate([arrays["left"][inner] - own[inner], arrays["right"][inner] - own[inner]])
        # A child stands behind its parent, so that no damaged file can send a row round in circles.
        if (children <= 0).any() or max(arrays["left"].max(), arrays["right"].max(), arrays["roots"].max()) >= size:
            raise ValueError("a node of the trees names a child that is not there")
        if arrays["feature"].max() >= int(state["columns"]) or min(arrays["roots"].min(), arrays["feature"].min()) < -1:
            raise ValueError("a node of the trees names a descriptor that is not there")
        return cls(state["start"], state["columns"], **arrays)
