"""The tiny denoiser and its settings, for every test of the generator."""

from __future__ import annotations

import pytest
from tiny_denoiser import QUICK, tiny_denoiser

from models import DenoisingEGNN
from pipeline.settings import GenerationConfig


@pytest.fixture(scope="module")
def model() -> DenoisingEGNN:
    return tiny_denoiser()


@pytest.fixture(scope="session")
def settings() -> GenerationConfig:
    return QUICK
