"""Trains the denoiser of elements, which says what elements an arrangement of atoms may have, and collects the arrangements.

Reads   dataset.processed_dir (stage 2): the training and the validation split; denoiser.checkpoint, whose heads label ΔG_H; the
        trees for band gap and dynamic stability and the reference phases of section evaluation.
Writes  elements.checkpoint (best averaged weights on the validation split) and its sidecar .json.
Run     python -m scripts.train_elements                     one core: a day at the default size
        python -m scripts.train_elements run.device=cuda     one GPU: minutes, after the labels, which take the CPUs half an hour

The loss is in generation/element_training.py, the network in networks/element_denoiser.py. Labels are kept in labels.jsonl beside
the checkpoint, the state of the training in resume.pt: a run that is stopped goes on there. Set generation.elements_checkpoint to
the result.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import torchrun
from pipeline.cli import resolve_device, run_stage, seed_everything
from pipeline.errors import ConfigError, StageError
from pipeline.files import file_sha256, relative_name
from pipeline.locks import locked_folder
from pipeline.provenance import write_sidecar
from pipeline.settings import Config, ElementTrainingConfig
from pipeline.shipped import with_shipped_weights
from pipeline.store import LineStore
from pipeline.tasks import cpu_count

if TYPE_CHECKING:  # PyTorch takes seconds to import, and --help does not need it
    from generation.element_training import ElementTable
    from networks.element_denoiser import ElementDenoiserConfig
    from networks.training import Trainer

log = logging.getLogger("her2d")

STAGE = "train_elements.py"


def network_config(settings: ElementTrainingConfig) -> ElementDenoiserConfig:
    """Return the network's settings from the stage's."""
    from generation.elements import CONDITIONS
    from networks.element_denoiser import ElementDenoiserConfig

    names = ("channels", "vectors", "tensors", "layers", "neighbours", "dropout")
    return ElementDenoiserConfig(**{name: getattr(settings, name) for name in names}, conditions=CONDITIONS)


def main(cfg: Config) -> None:
    """Train, or finish training, and write the products."""
    from networks.training import fingerprint, is_complete

    if torchrun.world_size() > 1:
        raise ConfigError("scripts.train_elements trains on one device: start it without torchrun")
    cfg, shipped = with_shipped_weights(cfg, ("denoiser",))
    if shipped:
        log.info("%s", shipped)
    checkpoint = Path(cfg.elements.checkpoint)
    splits = [Path(cfg.dataset.processed_dir) / f"{name}.pt" for name in ("train", "val")]
    for path in splits:
        if not path.is_file():
            raise StageError(f"{relative_name(path)} is missing: run material_dataset.py")
    evaluation = cfg.evaluation
    judges = [cfg.denoiser.checkpoint, evaluation.band_gap_checkpoint, evaluation.dynamics_checkpoint, evaluation.references_path]
    settings = {key: value for key, value in asdict(cfg.elements).items() if key != "checkpoint"}
    inputs = [*splits, *(Path(path) for path in judges if path)]
    labels = fingerprint({"inputs": [file_sha256(path) for path in inputs], "gap": evaluation.conductive_gap_ev})
    mark = fingerprint({"settings": settings, "seed": cfg.run.seed, "labels": labels})
    if is_complete(checkpoint, STAGE, mark):
        log.info("%s is complete for these settings and data; nothing to do", relative_name(checkpoint))
        return
    with locked_folder(checkpoint.parent, "elements.checkpoint"):
        _train(cfg, splits, inputs, labels, mark)


def labelled_table(cfg: Config, splits: list[Path], mark: str) -> ElementTable:
    """Return the sheets of both splits with what the network is told of them. mark: of the labels."""
    from energetics.dynamics_model import load_dynamics_model
    from evaluation.element_labels import element_labels, load_label_judges
    from evaluation.triage import QuickJudges
    from generation.element_training import ElementTable
    from generation.sheet_pairs import pair_table
    from models import load_for_sampling

    pairs = pair_table(*splits)
    dynamics = load_dynamics_model(cfg.evaluation.dynamics_checkpoint)
    quick = partial(QuickJudges.load, replace(cfg.evaluation, hull="potential"), dynamics)  # E_hull is that of the database
    load = partial(load_label_judges, partial(load_for_sampling, cfg.denoiser.checkpoint), quick)
    store = LineStore(Path(cfg.elements.checkpoint).with_name("labels.jsonl"), {"fingerprint": mark})
    return ElementTable.of(pairs, element_labels(pairs, load, cfg.run.threads or cpu_count(), store))


def _train(cfg: Config, splits: list[Path], inputs: list[Path], labels: str, mark: str) -> None:
    """Do the work of ``main`` in the folder of the checkpoint."""
    import torch

    from generation.element_training import ElementTask
    from generation.elements import new_element_denoiser
    from generation.refiner_training import learning_rate
    from networks.training import Trainer, loop_of_steps, parameter_groups

    settings, checkpoint, device = cfg.elements, Path(cfg.elements.checkpoint), resolve_device(cfg.run)
    table = labelled_table(cfg, splits, labels)
    seed_everything(cfg.run.seed)
    model = new_element_denoiser(network_config(settings)).to(device)
    task = ElementTask(settings, table, cfg.run.seed, device)
    model.condition_mean, model.condition_std = task.moments()
    parts = parameter_groups(model, settings.weight_decay)
    optimiser = torch.optim.AdamW(parts, lr=settings.learning_rate, betas=(0.9, 0.98))
    loop = loop_of_steps(settings, partial(learning_rate, settings=settings), "elements")
    trainer = Trainer(model, optimiser, task, loop, checkpoint.with_name("resume.pt"), mark)
    trainer.run()
    write_products(cfg, trainer, table, inputs)
    trainer.resume_path.unlink(missing_ok=True)


def write_products(cfg: Config, trainer: Trainer, table: ElementTable, inputs: list[Path]) -> None:
    """Write the checkpoint with the arrangements and, last, its sidecar; say what the validation found."""
    import torch

    from generation.element_diffusion import arrangement_gain
    from generation.element_training import arrangements_of, frequency_loss
    from generation.elements import WIDTHS, ElementModel, save_elements

    checkpoint, best = Path(cfg.elements.checkpoint), trainer.best
    trainer.model.load_state_dict(best["weights"])
    arrangements = arrangements_of(table)
    model = ElementModel(trainer.model.cpu(), arrangements, trainer.task.allowed.cpu())
    save_elements(checkpoint, model, step=best["step"])
    metrics: dict[str, Any] = next(row for row in trainer.history if row["step"] == best["step"])
    metrics |= {"val_frequencies": frequency_loss(table)}
    metrics |= {"val_arrangement_gain": arrangement_gain(table, arrangements, torch.tensor(WIDTHS))}
    training = table.pairs.training
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=cfg.elements,
        inputs=inputs,
        counts={
            "train": int(training.sum()),
            "val": int((~training).sum()),
            "arrangements": len(arrangements),
            "crystals of these": int(arrangements.crystals.sum()),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
        },
        metrics=metrics,
        fingerprint=trainer.mark,
        checkpoint_sha256=file_sha256(checkpoint),
    )
    print(
        f"elements: {relative_name(checkpoint)}, best after {best['step']} steps: {metrics['val_told']:.2f} nats a sheet of the "
        f"validation split, {metrics['val_not_told']:.2f} where no property is told, "
        f"{metrics['val_frequencies']:.2f} by the frequencies of the elements; {len(arrangements)} arrangements"
    )


if __name__ == "__main__":
    raise SystemExit(
        run_stage(main, __doc__, ("run", "dataset", "denoiser", "elements", "evaluation"), resumes_in="elements.checkpoint")
    )
