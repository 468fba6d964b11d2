"""Loads interatomic potentials by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from pathlib import Path

from ase.calculators.calculator import Calculator
from threadpoolctl import threadpool_limits

from pipeline.errors import StageError
from pipeline.files import file_sha256, missing_file, relative_name
from pipeline.heap import keep_freed_memory
from pipeline.settings import POTENTIALS

# The training set whose energies a network of several gives: of those of SevenNet-MF-0, R2SCAN is not what C2DB and our DFT use.
MODALITIES = {"sevennet-mf-0": "PBE"}


class Potential:
    """An interatomic potential.

    Args:
        name: one of ``settings.POTENTIALS``.
        identity: name, package and SHA-256 of the weights.
        calculator: ASE's, or a function that makes it at its first use: to build a network takes seconds, and stored energies do
            without it.
    """

    def __init__(self, name: str, identity: dict[str, str], calculator: Calculator | Callable[[], Calculator]) -> None:
        self.name, self.identity, self._calculator = name, identity, calculator

    @cached_property
    def calculator(self) -> Calculator:
        """Return the calculator, always the same."""
        return self._calculator() if callable(self._calculator) else self._calculator


def load_potential(name: str, checkpoint: str = "", device: str = "cpu") -> Potential:
    """Load a potential.

    Args:
        name: one of ``settings.POTENTIALS``.
        checkpoint: file of the weights, for MatterSim; the others have theirs inside their package.
        device: of PyTorch.

    Raises:
        StageError: the name is not known, or the checkpoint is missing or does not fit the network.
    """
    # FrechetCellFilter takes logarithms of 3x3 matrices. OpenBLAS starts all its threads for each, and on a busy machine their
    # waiting costs a hundred times the work itself.
    threadpool_limits(limits=1, user_api="blas")
    if name not in POTENTIALS:
        raise StageError(f"unknown potential {name}: choose one of {', '.join(POTENTIALS)}")
    return _load_mattersim(checkpoint, device) if name == "mattersim" else _load_sevennet(name, device)


@lru_cache(maxsize=4)
def _load_sevennet(name: str, device: str) -> Potential:
    from sevenn.util import pretrained_name_to_path

    model = name.replace("sevennet", "7net")
    path = pretrained_name_to_path(model)
    identity = {"name": name, "package": f"sevenn {version('sevenn')}", "sha256": file_sha256(path)}
    if modality := MODALITIES.get(name):
        identity["modality"] = modality
    return Potential(name, identity, partial(_sevennet_calculator, model, device, modality))


def _sevennet_calculator(model: str, device: str, modality: str | None) -> Calculator:
    from sevenn.calculator import SevenNetCalculator

    from energetics.fast_convolution import use_fast_interactions  # here, because it imports torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No tensor product accelerator")  # none is among the requirements
        calculator = SevenNetCalculator(model, device=device, modal=modality)
    if device == "cpu":
        use_fast_interactions(calculator.model)
        keep_freed_memory()
    return calculator


@lru_cache(maxsize=2)
def _load_mattersim(checkpoint: str, device: str) -> Potential:
    path = Path(checkpoint)
    if not path.is_file():
        hint = "potential mattersim needs its checkpoint, MatterSim-v1.0.0-1M.pth: download it and name it here"
        raise missing_file("evaluation.potential_checkpoint", checkpoint, hint)
    from mattersim.forcefield import MatterSimCalculator

    _check_mattersim_keys(path)
    identity = {"name": "mattersim", "package": f"mattersim {version('mattersim')}", "sha256": file_sha256(path)}
    return Potential("mattersim", identity, MatterSimCalculator(load_path=str(path.resolve()), device=device))


def _check_mattersim_keys(path: Path) -> None:
    """Raise StageError where the keys do not fit: MatterSim loads with strict=False, which would leave random weights."""
    import torch
    from mattersim.forcefield.m3gnet.m3gnet import M3Gnet

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling errors of many families
        raise StageError(f"{relative_name(path)} is not a readable MatterSim checkpoint: {type(error).__name__}") from error
    if not isinstance(content, dict) or not {"model", "model_args"} <= set(content):
        raise StageError(f"{relative_name(path)} is not a MatterSim checkpoint: it holds no 'model' and 'model_args'")
    expected = set(M3Gnet(device="cpu", **content["model_args"]).state_dict())
    stored = set(content["model"])
    if different := sorted(expected - stored) + sorted(stored - expected):
        raise StageError(
            f"{relative_name(path)} does not fit MatterSim's network: {len(different)} keys differ, first {different[0]}"
        )
