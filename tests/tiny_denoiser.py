"""A denoiser of random weights and settings of a sampler that takes few steps with it."""

from __future__ import annotations

import dataclasses

import torch

from models import DenoiserModelConfig, DenoisingEGNN
from pipeline.settings import GenerationConfig

QUICK = dataclasses.replace(GenerationConfig(), num_steps=8, guidance_scale=0.5, cfg_scale=1.5)


def tiny_denoiser() -> DenoisingEGNN:
    """Return the denoiser, in float64 and always with the same weights."""
    torch.manual_seed(0)
    net = DenoisingEGNN(
        DenoiserModelConfig(hidden_channels=16, vector_channels=4, num_layers=1, num_rbf=8, max_neighbors=8, num_timesteps=60,
                            beta_end=0.3)
    )  # fmt: skip
    return net.double().eval()
