"""The training loop of every network: steps, moving average, evaluation, best weights, and a resume file.

What differs between networks is a ``Task``: the batch of a step, its loss, and the evaluation. A batch is a function of seed and
step alone, so that a run that is stopped and started again ends with the same weights on a CPU.

Lightning Fabric is the engine. Under ``torchrun`` each rank makes its rows of the batch, and gradients and losses are summed, so
that the number of ranks changes neither beyond rounding. All ranks hold the same weights; the first one alone writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from networks.loading import MakeBatch, batches
from networks.ranks import Ranks
from pipeline.errors import OtherRankError, StageError
from pipeline.files import atomic_path, file_sha256, relative_name
from pipeline.provenance import read_sidecar

log = logging.getLogger("her2d")

RESUME_FORMAT = "training 1"
RESUME_EVERY_S = 120.0  # seconds between writes of the resume file; each evaluation writes it too


class Task(Protocol):
    """Batches, loss and evaluation of one network."""

    batch: MakeBatch  # the rows of this rank in the batch of step 0, 1, ...

    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the scalar loss of a batch and numbers that the loop sums between evaluations, such as its terms.

        Each is this rank's part of a sum over all ranks: a mean over rows is the sum over the rows of the rank, over the number of
        rows of the whole batch.
        """

    def evaluate(self, model: nn.Module, step: int, sums: dict[str, float], steps: int) -> tuple[dict[str, Any], float]:
        """Evaluate the averaged weights after ``step`` steps, with the same outcome in every rank.

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


class StepSettings(Protocol):
    """What the settings of a stage that counts in steps have."""

    max_steps: int
    eval_every: int
    grad_clip: float
    ema_decay: float


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
        loader_workers: processes that make batches ahead of time; 0: this one makes each when it is due.
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
    loader_workers: int = 0


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters for an optimiser, of which matrices alone decay."""
    groups: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for parameter in model.parameters():
        groups[parameter.ndim > 1].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def loop_of_steps(settings: StepSettings, rate: Callable[[int], float], title: str) -> LoopSettings:
    """Return the settings of a loop that counts in steps, with one progress bar that stays.

    Args:
        settings: of the stage.
        rate: learning rate of step 1, 2, ...
        title: of the bar.
    """
    return LoopSettings(
        steps=settings.max_steps,
        eval_every=settings.eval_every,
        grad_clip=settings.grad_clip,
        rate=lambda step: rate(step + 1),
        ema_decay=lambda step: warming_decay(settings.ema_decay, step + 1),
        title=title,
        score_name="val",
        keep_bar=True,
    )


def warming_decay(decay: float, updates: int) -> float:
    """Return the decay of the moving average after ``updates`` updates: small at first, so that the initial weights fade."""
    return min(decay, (1 + updates) / (10 + updates))


class _Step(nn.Module):
    """The loss as the forward pass of a module, as Fabric wraps it."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Callable[[], Any]) -> tuple[torch.Tensor, dict[str, float]]:
        """Return what ``Task.loss`` does. batch: in a function, because Fabric would copy and convert what it can look into."""
        return self.task.loss(self.model, batch())


class Trainer:
    """Model, optimiser, moving average, history and best weights of a run.

    Args:
        model: on the device where it is trained.
        optimiser: of its parameters.
        task: batches, loss and evaluation.
        settings: settings of the loop.
        resume_path: the resume file.
        mark: fingerprint of settings and inputs; a resume file with another one is not used.
        ranks: the processes of the training; None: as torchrun has started them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        task: Task,
        settings: LoopSettings,
        resume_path: Path,
        mark: str,
        ranks: Ranks | None = None,
    ) -> None:
        from torch_ema import ExponentialMovingAverage

        self.model, self.task, self.settings = model, task, settings
        self.resume_path, self.mark = resume_path, mark
        self.device = next(model.parameters()).device
        self.ranks = ranks or Ranks(self.device)
        self.fabric = self.ranks.fabric
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.module, self.optimiser = self.fabric.setup(_Step(model, task), optimiser)
        self._batches: Iterator[Any] | None = None
        self._signals: set[int] = set()
        self._handlers: dict[int, Any] = {}  # what signals did before
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
        self._batches = None

    def save(self) -> None:
        """Write the resume file, in the first rank."""
        if not self.ranks.is_first:
            return
        with atomic_path(self.resume_path) as temporary:
            torch.save(self.state_dict(), temporary)

    def resume(self) -> bool:
        """Load the resume file where it is of this run, and return whether it was; otherwise say why it was not."""
        state = self.ranks.from_first(lambda: read_resume(self.resume_path, self.mark))
        if state is None:
            return False
        self.load_state_dict(state)
        log.info("%s: going on after step %d of %d", self.settings.title, self.step, self.settings.steps)
        return True

    def train_step(self) -> float:
        """Make one optimiser step and return its loss.

        Raises:
            StageError: loss or gradient is not finite; the state before the step is saved. Or the batch cannot be made.
        """
        self.model.train()
        batch = self._next_batch()
        with self.fabric.no_backward_sync(self.module, enabled=self.ranks.are_joined):
            loss, values = self.module(lambda: batch)
            self.optimiser.zero_grad(set_to_none=True)
            self.fabric.backward(loss)
        if self.ranks.are_joined:
            self._combine_gradients()
        norm = self.fabric.clip_gradients(self.module, self.optimiser, max_norm=self.settings.grad_clip, error_if_nonfinite=False)
        value = float(loss.detach())
        if self.ranks.are_joined:
            parts = torch.tensor([value, *values.values()], dtype=torch.float64)
            value, *terms = self.ranks.sum(parts).tolist()
            values = dict(zip(values, terms, strict=True))
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

    def _combine_gradients(self) -> None:
        """Sum the gradients over the ranks.

        In one piece, in the order of the parameters: PyTorch's buckets change after the first step, and with them the order of the
        sums over three and more ranks, so that a resumed run would differ from an uninterrupted one in the last digits.
        """
        learnt = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        summed = self.ranks.sum(torch.cat([parameter.grad.flatten() for parameter in learnt]))
        for parameter, part in zip(learnt, summed.split([parameter.numel() for parameter in learnt]), strict=True):
            parameter.grad = part.view_as(parameter)

    def _next_batch(self) -> Any:
        """Return the batch of this step, when every rank has its own: where one fails or is asked to stop, all end here."""
        if self._batches is None:
            settings, pin = self.settings, self.device.type == "cuda"
            self._batches = batches(self.task.batch, self.step, settings.steps, settings.loader_workers, pin)
        batch, error = None, None
        try:
            batch = next(self._batches)
        except BaseException as failure:
            self._batches = None
            if not isinstance(failure, StageError):
                raise
            error = failure
        if self.ranks.are_joined:
            if error is not None:
                error.of_one_rank = True
            self._stop_together(error is not None)
        if error is not None:
            raise error
        return batch

    def _stop_together(self, failed: bool) -> None:
        """End every rank where one has failed or has had a signal; the first rank saves the state before this step.

        Raises:
            OtherRankError: another rank has failed.
            KeyboardInterrupt: as the handler of the signal does.
        """
        state = torch.tensor([float(failed), float(max(self._signals, default=0))])
        any_failed, number = self.ranks.sum(state, largest=True).tolist()
        if any_failed and not failed:
            raise OtherRankError("another process of the training has failed")
        if number and not any_failed:
            self.save()
            handler = self._handlers.get(int(number))
            if callable(handler):
                handler(int(number), None)
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _signals_kept(self) -> Iterator[None]:
        """Keep signals for the end of a step: a rank that ended at once would leave the others waiting for its gradients."""
        main = threading.current_thread() is threading.main_thread()  # no other may set what a signal does
        for number in (signal.SIGINT, signal.SIGTERM) if self.ranks.are_joined and main else ():
            self._handlers[number] = signal.signal(number, lambda number, _: self._signals.add(number))
        try:
            yield
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers = {}
        for number in self._signals:  # of the last step
            signal.raise_signal(number)

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
            on_step: called with the number of steps done, after each, in every rank.
            on_evaluation: called with the history, after each evaluation, in the first rank.

        Returns:
            ``{score, step, weights}`` of the best evaluation.
        """
        settings = self.settings
        if not self.resume():
            self.save()
        silent = False if settings.keep_bar else None
        bar = tqdm(
            total=settings.steps, initial=self.step, desc=settings.title, unit="step", position=settings.position, mininterval=1.0,
            disable=silent if self.ranks.is_first else True, leave=settings.keep_bar,
        )  # fmt: skip
        with bar, self._signals_kept():
            self._steps(bar, on_step, on_evaluation)
        return self.best

    def _steps(self, bar: tqdm, on_step: Callable | None, on_evaluation: Callable | None) -> None:
        """Make the steps that are left, with what is due after each; arguments as in ``run``, with its progress bar."""
        settings, saved_at = self.settings, time.monotonic()
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
            if due and on_evaluation is not None and self.ranks.is_first:
                on_evaluation(self.history)


def read_resume(path: Path, mark: str) -> dict[str, Any] | None:
    """Return the state in a resume file, on the CPU.

    None where there is none, or, with a message, where it is damaged or of another run.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
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
