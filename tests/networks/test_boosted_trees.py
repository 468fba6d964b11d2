"""Boosted trees as tensors against scikit-learn's own predictions."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from networks.boosted_trees import BoostedTrees


def table(rows=300, columns=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns))
    x[:, 2] = np.round(x[:, 2])  # ties, so that rows stand exactly on thresholds
    return x, np.sin(2 * x[:, 0]) + x[:, 1] * (x[:, 2] > 0) + 0.05 * rng.normal(size=rows)


def test_predictions_are_those_of_scikit_learn():
    x, y = table()
    regressor = HistGradientBoostingRegressor(max_iter=60, random_state=0).fit(x, y)
    classifier = HistGradientBoostingClassifier(max_iter=60, random_state=0).fit(x, y > 0)
    unseen, _ = table(rows=500, seed=1)
    for rows in (x, unseen):
        np.testing.assert_allclose(BoostedTrees.from_sklearn(regressor).predict(rows), regressor.predict(rows), atol=1e-12)
        np.testing.assert_allclose(
            BoostedTrees.from_sklearn(classifier).predict(rows), classifier.decision_function(rows), atol=1e-12
        )


def test_a_saved_ensemble_predicts_the_same(tmp_path):
    x, y = table()
    trees = BoostedTrees.from_sklearn(HistGradientBoostingRegressor(max_iter=20, random_state=0).fit(x, y))
    torch.save(trees.state(), tmp_path / "trees.pth")
    again = BoostedTrees.from_state(torch.load(tmp_path / "trees.pth", weights_only=True))
    np.testing.assert_array_equal(again.predict(x), trees.predict(x))
    with pytest.raises(ValueError, match="5 descriptors"):
        again.predict(x[:, :3])


def test_the_mean_of_ensembles_is_one_ensemble():
    x, y = table()
    models = [
        BoostedTrees.from_sklearn(HistGradientBoostingRegressor(max_iter=count, random_state=seed).fit(x, y**power))
        for count, seed, power in ((10, 0, 1), (25, 1, 2), (5, 2, 3))
    ]
    mean = BoostedTrees.from_state(BoostedTrees.mean(models).state())
    unseen, _ = table(rows=500, seed=1)
    np.testing.assert_allclose(mean.predict(unseen), np.mean([model.predict(unseen) for model in models], 0), atol=1e-6)
    np.testing.assert_array_equal(BoostedTrees.mean(models[:1]).predict(unseen), models[0].predict(unseen))


@pytest.mark.parametrize("damage", ["cycle", "child", "descriptor", "length"])
def test_damaged_trees_are_refused(damage):
    x, y = table()
    state = BoostedTrees.from_sklearn(HistGradientBoostingRegressor(max_iter=5, random_state=0).fit(x, y)).state()
    inner = int(torch.nonzero(state["feature"] >= 0)[1])
    if damage == "cycle":
        state["left"][inner] = 0
    elif damage == "child":
        state["right"][inner] = 10**6
    elif damage == "descriptor":
        state["feature"][inner] = 99
    else:
        state["value"] = state["value"][:-1]
    with pytest.raises(ValueError):
        BoostedTrees.from_state(state)
