"""Trains DimeNet++ on adsorption energies: one member of the ensemble, and all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from energetics.adsorption_data import AdsorptionData
from models import DimeNetPlusPlus, load_initial_weights
from networks.dimenet_layers import DimeNetPlusPlusConfig
from networks.training import LoopSettings, Trainer, warming_decay
from pipeline.settings import DimenetConfig
from pipeline.tasks import Processes, run


@dataclass
class MemberJob:
    """Everything one member of the ensemble needs; can be sent to another process."""

    number: int
    seed: int
    settings: DimenetConfig
    model: DimeNetPlusPlusConfig
    data: AdsorptionData
    split: dict[str, list[int]]
    mean: float
    std: float
    fingerprint: str
    resume_path: Path


def learning_rate_factor(step: int, steps_per_epoch: int, settings: DimenetConfig) -> float:
    """Return the factor of the learning rate: a linear warm-up, then ``lr_gamma`` at each milestone. step counts from 0."""
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup if warmup >= 1 else 1.0
    done = step / (settings.epochs * steps_per_epoch)
    return settings.lr_gamma ** sum(done >= milestone for milestone in settings.lr_milestones)


def epoch_order(job: MemberJob, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the training entries in the order of an epoch, and which show their relaxed geometry; the same in every run."""
    rng = np.random.default_rng([job.seed, job.number, epoch])
    train = np.asarray(job.split["train"])
    return rng.permutation(train), rng.random(len(train)) < job.settings.relaxed_input_share


class MemberTask:
    """Task of the training loop: one member of the ensemble. Its loss is the mean absolute error over the spread of the targets."""

    def __init__(self, job: MemberJob, device: torch.device) -> None:
        self.job, self.device = job, device
        self.steps_per_epoch = -(-len(job.split["train"]) // job.settings.batch_size)
        self._order: tuple[int, tuple[np.ndarray, np.ndarray]] = (-1, (np.zeros(0), np.zeros(0)))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.job.settings.learning_rate * learning_rate_factor(step, self.steps_per_epoch, self.job.settings)

    def loss(self, model: torch.nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss, and its sum over the records of the batch."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(self.job, epoch)
        order, relaxed = self._order[1]
        rows = slice(number * self.job.settings.batch_size, (number + 1) * self.job.settings.batch_size)
        *inputs, graph, delta_e = self.job.data.batch(order[rows], relaxed[rows], self.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            predicted = model(*inputs, graph=graph)
        loss = (predicted - (delta_e - self.job.mean) / self.job.std).abs().mean()
        return loss, {"loss": float(loss.detach()) * len(delta_e)}

    def evaluate(self, model: torch.nn.Module, step: int, sums: dict[str, float], steps: int) -> tuple[dict[str, Any], float]:
        """Return a row of the loss curve and the mean absolute error on the validation entries in eV."""
        job, numbers = self.job, self.job.split["val"]
        truth = np.array([job.data.entries[n].delta_e for n in numbers])
        predicted = predict(model, job.data, numbers, job.settings.batch_size, self.device) * job.std + job.mean
        error = float(np.abs(predicted - truth).mean())
        row = {
            "member": job.number,
            "epoch": step // self.steps_per_epoch,
            "learning_rate": self.rate(step - 1),
            "train_mae_ev": sums["loss"] / len(job.split["train"]) * job.std,
            "val_mae_ev": error,
        }
        return row, error

    def not_finite(self, step: int, names: list[str], resume: str) -> str:
        """Return the message of a step without a finite loss."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return (
            f"member {self.job.number}, epoch {epoch + 1}, step {number + 1}: the loss is not finite; the state "
            f"before it is in {resume}; lower dimenet.learning_rate"
        )


def train_member(
    job: MemberJob, device: torch.device | str = "cpu", on_step: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Train one member, or go on from its resume file.

    Args:
        job: see ``MemberJob``.
        device: where to train.
        on_step: called with the number of each finished step.

    Returns:
        ``{state, val_mae_ev, epoch, history}`` of its best epoch.

    Raises:
        StageError: the loss is not finite; the state is saved.
    """
    device, settings = torch.device(device), job.settings
    torch.manual_seed(int(np.random.default_rng([job.seed, job.number]).integers(2**63)))
    model = DimeNetPlusPlus(job.model)
    if settings.init_from:
        load_initial_weights(settings.init_from, model, job.model, job.number)
    model.to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    task = MemberTask(job, device)
    loop = LoopSettings(
        steps=settings.epochs * task.steps_per_epoch,
        eval_every=task.steps_per_epoch,
        grad_clip=settings.grad_clip,
        rate=task.rate,
        ema_decay=lambda step: warming_decay(settings.ema_decay, step),
        title=f"member {job.number}",
        position=job.number,
    )
    trainer = Trainer(model, optimiser, task, loop, job.resume_path, job.fingerprint)
    best = trainer.run(on_step)
    epoch = best["step"] // task.steps_per_epoch
    return {"state": best["weights"], "val_mae_ev": best["score"], "epoch": epoch, "history": trainer.history}


def train_ensemble(jobs: Sequence[MemberJob], device: torch.device, threads: int) -> list[dict[str, Any]]:
    """Train all members and return the result of each, in their order.

    On a CPU with several threads each member has a process of its own with one thread, so that the result does not depend on their
    number. On a GPU they are trained one after the other.
    """
    if device.type == "cpu" and threads > 1 and len(jobs) > 1:
        with Processes(min(len(jobs), 2 * threads)) as where:
            for _ in run(_train_in_worker, {job.number: job for job in jobs}, None, where):
                pass
    return [train_member(job, device) for job in jobs]


def _train_in_worker(job: MemberJob) -> None:
    """Train a member and leave the result in its resume file: shared tensors would vanish with the process that made them."""
    train_member(job)


@torch.no_grad()
def predict(
    model: DimeNetPlusPlus, data: AdsorptionData, numbers: Sequence[int], batch_size: int, device: torch.device
) -> np.ndarray:
    """Return the normalised energies (n,) of entries in their initial geometry."""
    model.eval()
    values = []
    for at in range(0, len(numbers), batch_size):
        chunk = numbers[at : at + batch_size]
        *inputs, graph, _ = data.batch(chunk, [False] * len(chunk), device)
        values.append(model(*inputs, graph=graph).double().cpu().numpy())
    return np.concatenate(values) if values else np.zeros(0)
