"""Learning rate and scores of the denoiser's training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from generation.denoiser_training import learning_rate, roc_auc
from pipeline.settings import DenoiserConfig


def test_learning_rate_warms_up_and_decays():
    settings = dataclasses.replace(DenoiserConfig(), learning_rate=1.0, warmup_steps=10, max_steps=110)
    assert learning_rate(5, settings) == pytest.approx(0.5)
    assert learning_rate(10, settings) == pytest.approx(1.0)
    assert learning_rate(60, settings) == pytest.approx(0.505)
    assert learning_rate(110, settings) == pytest.approx(0.01)


def test_auc():
    assert roc_auc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])) == 1.0
    assert roc_auc(np.array([0.5, 0.5, 0.5]), np.array([0, 1, 1])) == 0.5
    assert np.isnan(roc_auc(np.array([0.5]), np.array([1])))
