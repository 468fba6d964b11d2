"""Trains the refiner, which moves atoms and cell of a sheet to where its elements want them.

Reads   dataset.processed_dir (stage 2): the training and the validation split.
Writes  refiner.checkpoint (best averaged weights on the validation split) and its sidecar .json.
Run     python -m scripts.train_refiner                                             one core: days at the default size
        python -m scripts.train_refiner run.device=cuda                             one GPU: minutes
        python -m scripts.train_refiner refiner.batch_size=64 refiner.channels=64   a smaller one

The loss is in generation/refiner_training.py, the network in networks/refiner.py. Killed at any moment and started again it goes on
from resume.pt and, on a CPU, ends with the same weights as an uninterrupted run. Set generation.refiner_checkpoint to the result.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import torchrun
from pipeline.cli import resolve_device, run_stage, seed_everything
from pipeline.errors import ConfigError, StageError
from pipeline.files import file_sha256, relative_name
from pipeline.locks import locked_folder
from pipeline.provenance import write_sidecar
from pipeline.settings import Config, RefinerTrainingConfig

if TYPE_CHECKING:  # PyTorch takes seconds to import, and --help does not need it
    from networks.sheet_trunk import TrunkConfig
    from networks.training import Trainer

log = logging.getLogger("her2d")

STAGE = "train_refiner.py"


def network_config(settings: RefinerTrainingConfig) -> TrunkConfig:
    """Return the network's settings from the stage's."""
    from networks.sheet_trunk import TrunkConfig

    names = ("channels", "vectors", "tensors", "layers", "neighbours", "dropout")
    return TrunkConfig(**{name: getattr(settings, name) for name in names})


def main(cfg: Config) -> None:
    """Train, or finish training, and write the products."""
    from networks.training import fingerprint, is_complete

    if torchrun.world_size() > 1:
        raise ConfigError("scripts.train_refiner trains on one device: start it without torchrun")
    checkpoint = Path(cfg.refiner.checkpoint)
    splits = [Path(cfg.dataset.processed_dir) / f"{name}.pt" for name in ("train", "val")]
    for path in splits:
        if not path.is_file():
            raise StageError(f"{relative_name(path)} is missing: run material_dataset.py")
    settings = {key: value for key, value in asdict(cfg.refiner).items() if key != "checkpoint"}
    mark = fingerprint({"settings": settings, "seed": cfg.run.seed, "inputs": [file_sha256(path) for path in splits]})
    if is_complete(checkpoint, STAGE, mark):
        log.info("%s is complete for these settings and data; nothing to do", relative_name(checkpoint))
        return
    with locked_folder(checkpoint.parent, "refiner.checkpoint"):
        _train(cfg, splits, mark)


def _train(cfg: Config, splits: list[Path], mark: str) -> None:
    """Do the work of ``main`` in the folder of the checkpoint."""
    import torch

    from generation.refinement import new_refiner
    from generation.refiner_training import RefinerTask, learning_rate
    from generation.sheet_pairs import pair_table
    from generation.sheet_table import SheetTable
    from networks.training import Trainer, loop_of_steps, parameter_groups

    settings, checkpoint, device = cfg.refiner, Path(cfg.refiner.checkpoint), resolve_device(cfg.run)
    tables = [SheetTable.load(path) for path in splits]
    pairs = pair_table(*splits)
    seed_everything(cfg.run.seed)
    model = new_refiner(network_config(settings)).to(device)
    parts = parameter_groups(model, settings.weight_decay)
    optimiser = torch.optim.AdamW(parts, lr=settings.learning_rate, betas=(0.9, 0.98))
    task = RefinerTask(settings, pairs, cfg.run.seed, device)
    loop = loop_of_steps(settings, partial(learning_rate, settings=settings), "refiner")
    trainer = Trainer(model, optimiser, task, loop, checkpoint.with_name("resume.pt"), mark)
    trainer.run()
    counts = {"train": len(tables[0]), "val": len(tables[1]), "paired": int(pairs.training.sum())}
    write_products(cfg, trainer, splits, tables[0].formulas + tables[1].formulas, counts)
    trainer.resume_path.unlink(missing_ok=True)


def write_products(cfg: Config, trainer: Trainer, inputs: list[Path], formulas: list[str], counts: dict[str, int]) -> None:
    """Write the checkpoint and, last, its sidecar; say what the validation found."""
    from generation.refinement import save_refiner

    checkpoint, best = Path(cfg.refiner.checkpoint), trainer.best
    trainer.model.load_state_dict(best["weights"])
    save_refiner(checkpoint, trainer.model, formulas_seen=sorted(set(formulas)), step=best["step"])
    metrics: dict[str, Any] = next(row for row in trainer.history if row["step"] == best["step"])
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=cfg.refiner,
        inputs=inputs,
        counts=counts | {"parameters": sum(p.numel() for p in trainer.model.parameters())},
        metrics=metrics,
        fingerprint=trainer.mark,
        checkpoint_sha256=file_sha256(checkpoint),
    )
    print(
        f"refiner: {relative_name(checkpoint)}, best after {best['step']} steps: sheets substituted from known ones are "
        f"{metrics['start_angstrom']:.3f} Å from those on record (median), {metrics['moved_angstrom']:.3f} Å once moved"
    )


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "refiner"), resumes_in="refiner.checkpoint"))
