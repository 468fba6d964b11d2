"""Trains DimeNet++ on adsorption energies: one member of the ensemble, and all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from energetics.adsorption_data import AdsorptionData, Structures, on_device
from models import DimeNetPlusPlus, load_initial_weights
from networks.dimenet_layers import DimeNetPlusPlusConfig
from networks.ranks import Ranks, Share
from networks.training import LoopSettings, Trainer, warming_decay
from pipeline.settings import DimenetConfig, RunConfig
from pipeline.tasks import Processes, run, start_workers


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
    half_precision: bool = False  # products of matrices in bfloat16, on a GPU


def learning_rate_factor(step: int, steps_per_epoch: int, settings: DimenetConfig) -> float:
    """Return the factor of the learning rate: a linear warm-up, then ``lr_gamma`` at each milestone. step counts from 0."""
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup if warmup >= 1 else 1.0
    done = step / (settings.epochs * steps_per_epoch)
    return settings.lr_gamma ** sum(done >= milestone for milestone in settings.lr_milestones)


@dataclass
class MemberBatches:
    """The batches of one member: ``batches(step)`` gives a rank's rows of a step, on the CPU; can be sent to a loader worker."""

    structures: Structures
    train: np.ndarray
    key: tuple[int, int]  # seed and number of the member
    batch_size: int
    relaxed_input_share: float
    share: Share
    _order: tuple[int, tuple[np.ndarray, np.ndarray]] = (-1, (np.zeros(0), np.zeros(0)))

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches of an epoch; the last may be smaller."""
        return -(-len(self.train) // self.batch_size)

    def __call__(self, step: int) -> tuple[Any, ...]:
        """Return (*``Structures.rows`` of this rank, number of rows of the whole batch, weight of this rank's rows)."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, self.epoch_order(epoch)
        order, relaxed = (values[number * self.batch_size : (number + 1) * self.batch_size] for values in self._order[1])
        rows, total = self.share.rows(len(order)), len(order)
        return (*self.structures.rows(order[rows], relaxed[rows]), total, self.share.weight(total))

    def epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the training entries in the order of an epoch, and which show their relaxed geometry; the same in every run."""
        rng = np.random.default_rng([*self.key, epoch])
        return rng.permutation(self.train), rng.random(len(self.train)) < self.relaxed_input_share


class MemberTask:
    """Task of the training loop: one member of the ensemble. Its loss is the mean absolute error over the spread of the targets.

    Args:
        job: the member.
        ranks: the processes that train it together.
    """

    def __init__(self, job: MemberJob, ranks: Ranks) -> None:
        self.job, self.ranks, self.device, settings = job, ranks, ranks.device, job.settings
        structures = job.data.structures
        if settings.loader_workers:  # each has a memory of its own
            structures = replace(structures, cached_atoms=structures.cached_atoms // settings.loader_workers)
        train, key = np.asarray(job.split["train"]), (job.seed, job.number)
        self.batch = MemberBatches(structures, train, key, settings.batch_size, settings.relaxed_input_share, ranks.share)
        self.steps_per_epoch = self.batch.steps_per_epoch

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.job.settings.learning_rate * learning_rate_factor(step, self.steps_per_epoch, self.job.settings)

    def loss(self, model: torch.nn.Module, batch: tuple[Any, ...]) -> tuple[torch.Tensor, dict[str, float]]:
        """Return this rank's part of the loss, and its sum over the records."""
        *rows, total, weight = batch
        *inputs, graph, delta_e = on_device(rows, self.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.job.half_precision):
            predicted = model(*inputs, graph=graph)
        loss = (predicted - (delta_e - self.job.mean) / self.job.std).abs().sum() / total * weight
        return loss, {"loss": float(loss.detach()) * total}

    def evaluate(self, model: torch.nn.Module, step: int, sums: dict[str, float], steps: int) -> tuple[dict[str, Any], float]:
        """Return a row of the loss curve and the mean absolute error on the validation entries in eV."""
        job, numbers = self.job, self.job.split["val"]
        truth = np.array([job.data.entries[n].delta_e for n in numbers])
        predicted = predict(model, job.data, numbers, job.settings.batch_size, self.device, self.ranks) * job.std + job.mean
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
    job: MemberJob,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train one member, or go on from its resume file.

    Args:
        job: see ``MemberJob``.
        device: where to train.
        on_step: called with the number of each finished step.
        ranks: the processes that train it together; None: as torchrun has started them.

    Returns:
        ``{state, val_mae_ev, epoch, history}`` of its best epoch.

    Raises:
        StageError: the loss is not finite; the state is saved.
    """
    device = torch.device(device)
    trainer = member_trainer(job, ranks or Ranks(device))
    best = trainer.run(on_step)
    epoch = best["step"] // trainer.task.steps_per_epoch
    return {"state": best["weights"], "val_mae_ev": best["score"], "epoch": epoch, "history": trainer.history}


def member_trainer(job: MemberJob, ranks: Ranks) -> Trainer:
    """Return the training loop of one member at its first step."""
    settings = job.settings
    torch.manual_seed(int(np.random.default_rng([job.seed, job.number]).integers(2**63)))
    model = DimeNetPlusPlus(job.model)
    if settings.init_from:
        load_initial_weights(settings.init_from, model, job.model, job.number)
    model.to(ranks.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    task = MemberTask(job, ranks)
    loop = LoopSettings(
        steps=settings.epochs * task.steps_per_epoch,
        eval_every=task.steps_per_epoch,
        grad_clip=settings.grad_clip,
        rate=task.rate,
        ema_decay=lambda step: warming_decay(settings.ema_decay, step),
        title=f"member {job.number}",
        position=job.number,
        loader_workers=settings.loader_workers,
    )
    return Trainer(model, optimiser, task, loop, job.resume_path, job.fingerprint, ranks)


def train_ensemble(jobs: Sequence[MemberJob], ranks: Ranks, run_settings: RunConfig) -> list[dict[str, Any]]:
    """Train all members and return the result of each, in their order.

    Members are independent tasks: on a CPU with several threads of processes with one thread each, so that the result does not
    depend on their number; with a cluster in ``run.scheduler`` of its workers. On one GPU, and under torchrun, where all ranks
    share each batch, they are trained one after the other.
    """
    where, threads = None, torch.get_num_threads()
    if len(jobs) > 1 and not ranks.are_joined:
        if run_settings.scheduler != "processes":
            where = start_workers(run_settings, len(jobs))
        elif ranks.device.type == "cpu" and threads > 1:
            where = Processes(min(len(jobs), 2 * threads))
    if where is not None:
        with where:
            for _ in run(_train_in_worker, {job.number: (job, str(ranks.device)) for job in jobs}, None, where):
                pass
    return [train_member(job, ranks.device, ranks=ranks) for job in jobs]


def _train_in_worker(task: tuple[MemberJob, str]) -> None:
    """Train a member and leave the result in its resume file: shared tensors would vanish with the process that made them."""
    train_member(*task)


@torch.no_grad()
def predict(
    model: DimeNetPlusPlus,
    data: AdsorptionData,
    numbers: Sequence[int],
    batch_size: int,
    device: torch.device,
    ranks: Ranks | None = None,
) -> np.ndarray:
    """Return the normalised energies (n,) of entries in their initial geometry.

    With ``ranks`` each computes some of the batches, and all return all energies.
    """
    model.eval()
    values, share = np.zeros(len(numbers)), ranks.share if ranks else Share()
    for at in range(share.rank * batch_size, len(numbers), share.count * batch_size):
        chunk = numbers[at : at + batch_size]
        *inputs, graph, _ = data.batch(chunk, [False] * len(chunk), device)
        values[at : at + batch_size] = model(*inputs, graph=graph).double().cpu().numpy()
    return ranks.sum(torch.from_numpy(values)).numpy() if ranks else values
