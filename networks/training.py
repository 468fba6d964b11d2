"""The training loop of every network: steps, moving average, evaluation, best weights, and a resume file.

What differs between networks is a ``Task``: the batch of a step, its loss, and the evaluation. A batch is a function of seed and
step alone, so that a run that is stopped and started again ends with the same weights on a CPU. Lightning Fabric handles optimiser
and device. Under ``torchrun`` each rank would take its rows of the batch in ``Task.loss``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from pipeline.errors import StageError
from pipeline.files import atomic_path, file_sha256, relative_name
from pipeline.provenance import read_sidecar

log = logging.getLogger("her2d")

RESUME_FORMAT = "training 1"
RESUME_EVERY_S = 120.0  # seconds between writes of the resume file; each evaluation writes it too


class Task(Protocol):
    """Batches, loss and evaluation of one network."""

    def loss(self, model: nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the scalar loss of step 0, 1, ... and numbers that the loop sums between evaluations, such as its terms."""

    def evaluate(self, model: nn.Module, step: int, sums: dict[str, float], steps: int) -> tuple[dict[str, Any], float]:
        """Evaluate the averaged weights after ``step`` steps.

        Args:
            model: has the averaged weights.
            step: number of steps done.
            sums: the numbers of ``loss``, summed over the steps since the evaluation before.
            steps: number of those steps.

        Returns:
            A row of the history and the score: the smaller, the better.
        """

    def not_finite(self, step: int, names: list[str], resume: str) -> str:
        """Return the message for a step whose loss or gradient is not finite.

        Args:
            step: number of the step, from 0.
            names: those numbers of ``loss`` that are not finite.
            resume: name of the file with the state before the step.
        """


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop.

    Args:
        steps: number of optimiser steps.
        eval_every: steps between evaluations; the last step is followed by one too.
        grad_clip: largest norm of the gradient.
        rate: learning rate of step 0, 1, ...
        ema_decay: decay of the moving average in step 0, 1, ...; None evaluates and keeps the weights as they are.
        title: title of the progress bar.
        position: row of the progress bar on the screen.
        score_name: name of the best score beside the progress bar.
        keep_bar: whether the bar stays at the end, and is shown where the output is no terminal.
    """

    steps: int
    eval_every: int
    grad_clip: float
    rate: Callable[[int], float]
    ema_decay: Callable[[int], float] | None = None
    title: str = "training"
    position: int = 0
    score_name: str = "best"
    keep_bar: bool = False


def warming_decay(decay: float, updates: int) -> float:
    """Return the decay of the moving average after ``updates`` updates: small at first, so that the initial weights fade."""
    return min(decay, (1 + updates) / (10 + updates))


def make_fabric(device: torch.device) -> Any:
    """Return a silent Lightning Fabric for one device."""
    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric

        if device.type == "cpu":
            return Fabric(accelerator="cpu", devices=1)
        return Fabric(accelerator=device.type, devices=[device.index or 0])


class Trainer:
    """Model, optimiser, moving average, history and best weights of a run.

    Args:
        model: on the device where it is trained.
        optimiser: of its parameters.
        task: batches, loss and evaluation.
        settings: settings of the loop.
        resume_path: the resume file.
        mark: fingerprint of settings and inputs; a resume file with another one is not used.
    """

    def __init__(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, task: Task, settings: LoopSettings, resume_path: Path, mark: str
    ) -> None:
        from torch_ema import ExponentialMovingAverage

        self.model, self.task, self.settings = model, task, settings
        self.resume_path, self.mark = resume_path, mark
        self.device = next(model.parameters()).device
        self.fabric = make_fabric(self.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.module, self.optimiser = self.fabric.setup(model, optimiser)
        self._optimiser = optimiser
        self.ema = None
        if settings.ema_decay is not None:
            self.ema = ExponentialMovingAverage(self._averaged().values(), settings.ema_decay(0), use_num_updates=False)
        self.step, self.steps = 0, 0  # in all, and since the last evaluation
        self.sums: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None

    def _averaged(self) -> dict[str, torch.Tensor]:
        """Return the parameters and floating-point buffers, which the moving average covers."""
        return {name: value for name, value in self.model.state_dict(keep_vars=True).items() if value.is_floating_point()}

    def weights(self) -> dict[str, torch.Tensor]:
        """Return a copy of the weights that are evaluated: the moving average where there is one."""
        state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            state |= {name: value.clone() for name, value in zip(self._averaged(), self.ema.shadow_params, strict=True)}
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of the run, as the resume file holds it."""
        return {
            "format": RESUME_FORMAT,
            "fingerprint": self.mark,
            "step": self.step,
            "steps": self.steps,
            "model": self.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "ema": None if self.ema is None else self.ema.shadow_params,
            "sums": self.sums,
            "history": self.history,
            "best": self.best,
            "torch_rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the state to one that ``state_dict`` has returned."""
        self.model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self.ema is not None:
            self.ema.shadow_params = [value.to(self.device) for value in state["ema"]]
        self.step, self.steps, self.sums = state["step"], state["steps"], state["sums"]
        self.history, self.best = state["history"], state["best"]
        torch.set_rng_state(state["torch_rng"].cpu())

    def save(self) -> None:
        """Write the resume file."""
        with atomic_path(self.resume_path) as temporary:
            torch.save(self.state_dict(), temporary)

    def resume(self) -> bool:
        """Load the resume file where it is of this run, and return whether it was; otherwise say why it was not."""
        state = read_resume(self.resume_path, self.mark, self.device)
        if state is None:
            return False
        self.load_state_dict(state)
        log.info("%s: going on after step %d of %d", self.settings.title, self.step, self.settings.steps)
        return True

    def train_step(self) -> float:
        """Make one optimiser step and return its loss.

        Raises:
            StageError: loss or gradient is not finite; the state before the step is saved.
        """
        self.model.train()
        loss, values = self.task.loss(self.model, self.step)
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(self.module, self.optimiser, max_norm=self.settings.grad_clip, error_if_nonfinite=False)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            self.save()
            names = [name for name, term in values.items() if not math.isfinite(term)]
            raise StageError(self.task.not_finite(self.step, names, relative_name(self.resume_path)))
        for group in self._optimiser.param_groups:
            group["lr"] = self.settings.rate(self.step)
        self.optimiser.step()
        if self.ema is not None:
            self.ema.decay = self.settings.ema_decay(self.step)
            self.ema.update(self._averaged().values())
        for name, term in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + term
        self.step, self.steps = self.step + 1, self.steps + 1
        return value

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Evaluate, add a row to the history, and store the weights when they are the best so far. Returns the row."""
        trained = {name: value.clone() for name, value in self.model.state_dict().items()}
        evaluated = self.weights()
        self.model.load_state_dict(evaluated)
        self.model.eval()
        row, score = self.task.evaluate(self.model, self.step, self.sums, self.steps)
        self.model.load_state_dict(trained)
        self.history.append(row)
        if self.best is None or score < self.best["score"]:
            self.best = {"score": score, "step": self.step, "weights": evaluated}
        self.sums, self.steps = {}, 0
        return row

    def run(
        self,
        on_step: Callable[[int], None] | None = None,
        on_evaluation: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> dict[str, Any]:
        """Train to the last step, from the resume file where there is one.

        Args:
            on_step: called with the number of steps done, after each.
            on_evaluation: called with the history, after each evaluation.

        Returns:
            ``{score, step, weights}`` of the best evaluation.
        """
        settings = self.settings
        if not self.resume():
            self.save()
        saved_at = time.monotonic()
        bar = tqdm(
            total=settings.steps, initial=self.step, desc=settings.title, unit="step",
            position=settings.position, mininterval=1.0, disable=False if settings.keep_bar else None, leave=settings.keep_bar,
        )  # fmt: skip
        with bar:
            while self.step < settings.steps:
                loss = self.train_step()
                due = self.step % settings.eval_every == 0 or self.step == settings.steps
                if due:
                    self.evaluate()
                bar.update()
                best = {settings.score_name: f"{self.best['score']:.3f}"} if self.best else {}
                bar.set_postfix({"loss": f"{loss:.3f}", **best}, refresh=False)
                if on_step is not None:
                    on_step(self.step)
                if due or time.monotonic() - saved_at > RESUME_EVERY_S:
                    self.save()
                    saved_at = time.monotonic()
                if due and on_evaluation is not None:
                    on_evaluation(self.history)
        return self.best


def read_resume(path: Path, mark: str, device: torch.device) -> dict[str, Any] | None:
    """Return the state in a resume file; None where there is none, or, with a message, where it is damaged or of another run."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        stated, found = state.get("format"), state.get("fingerprint")
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for damaged files
        log.warning("training starts anew: %s is not readable (%s)", relative_name(path), type(error).__name__)
        return None
    if stated != RESUME_FORMAT:
        log.info("training starts anew: %s is stale, an older version has written it", relative_name(path))
    elif found != mark:
        log.info("training starts anew: settings or inputs have changed since %s", relative_name(path))
    else:
        return state
    return None


def fingerprint(content: dict[str, Any]) -> str:
    """Return the SHA-256 of what a result depends on (settings, seed, hashes of the inputs), as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_complete(checkpoint: str | os.PathLike, stage: str, expected: str) -> bool:
    """Return whether the sidecar says that the stage wrote this checkpoint with this fingerprint, and the file is unchanged."""
    checkpoint = Path(checkpoint)
    try:
        sidecar = read_sidecar(checkpoint, stage=stage)
    except StageError:
        return False
    if not checkpoint.is_file() or sidecar.get("checkpoint_sha256") != file_sha256(checkpoint):
        return False
    if sidecar.get("fingerprint") != expected:
        log.info("%s was made with other settings or inputs: starting anew", relative_name(checkpoint))
        return False
    return True
