"""Stage 3: trains the joint diffusion model of sheets, with its property heads.

    python optimization.py [denoiser.max_steps=6000]
    torchrun --nproc-per-node 8 optimization.py                   eight GPUs; docs/cluster.md has more

reads   dataset.processed_dir     splits of stage 2; denoiser.init_from, where given
writes  denoiser.checkpoint       best averaged weights on the validation split, with the noise schedule inside
        beside it                 sidecar JSON, loss_curve.csv and loss_curve.png

The loss is in generation/loss.py, batches and validation in generation/denoiser_training.py, the loop in networks/training.py.
Killed at any moment and started again it goes on from resume.pt and, on a CPU, ends with the same weights as an uninterrupted run.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import resolve_device, run_stage
from pipeline.errors import StageError
from pipeline.files import file_sha256, missing_file, relative_name
from pipeline.provenance import check_inputs_unchanged, read_sidecar, write_sidecar
from pipeline.settings import Config, DenoiserConfig

if TYPE_CHECKING:  # PyTorch takes seconds to import, and --help does not need it
    from generation.sheet_table import SheetTable
    from models import DenoiserModelConfig, DenoisingEGNN
    from networks.ranks import Ranks
    from networks.training import Trainer

log = logging.getLogger("her2d")

STAGE = "optimization.py"


def model_config(settings: DenoiserConfig) -> DenoiserModelConfig:
    """The network's settings from the stage's."""
    from models import DenoiserModelConfig

    return DenoiserModelConfig(
        hidden_channels=settings.hidden_channels,
        vector_channels=settings.vector_channels,
        num_layers=settings.num_layers,
        num_noise_layers=settings.num_noise_layers,
        num_rbf=settings.num_rbf,
        cutoff=settings.cutoff_angstrom,
        max_neighbors=settings.max_neighbors,
        num_timesteps=settings.num_timesteps,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        sigma_min=settings.sigma_min,
        sigma_max=settings.sigma_max,
    )


def build_model(settings: DenoiserConfig, table: SheetTable, seed: int) -> DenoisingEGNN:
    """An untrained model whose schedule and label scales are fitted to the training set."""
    import torch

    from models import DenoisingEGNN
    from pipeline.cli import seed_everything

    seed_everything(seed)
    model = DenoisingEGNN(model_config(settings))
    model.schedule.fit(table.sheets)
    for k, label in enumerate((table.sheets.delta_g, table.sheets.e_hull)):
        known = label[torch.isfinite(label)]
        if len(known) > 1:
            model.label_mean[k] = known.mean()
            model.label_std[k] = known.std().clamp(min=0.05)
    if settings.init_from:
        load_weights(model, settings.init_from, with_scales=settings.train_only == "heads")
    if settings.train_only == "heads":
        for name, value in model.named_parameters():
            value.requires_grad_(name.startswith("head"))
    return model


def load_weights(model: DenoisingEGNN, path: str, with_scales: bool = False) -> None:
    """Takes over the weights of another run. Schedule and label scales stay those of the data at hand, or are taken over too.

    Raises StageError when the networks differ in size.
    """
    import torch

    from models import load_denoiser

    other = load_denoiser(path, "set denoiser.init_from to a checkpoint of stage 3, or leave it empty")[0]
    weights, own = (dict(m.named_parameters()) | (dict(m.named_buffers()) if with_scales else {}) for m in (other, model))
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
        raise StageError(f"denoiser.init_from: {relative_name(path)} is a network of another size than denoiser.* says")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


def _read_tables(cfg: Config) -> tuple[dict[str, SheetTable], list[Path]]:
    """Sheets of every split, and the files that the result depends on; StageError where one cannot be used."""
    from generation.sheet_table import DATASET_STAGE, SheetTable

    processed = Path(cfg.dataset.processed_dir)
    splits = {name: processed / f"{name}.pt" for name in ("train", "val", "test")}
    tables = {name: SheetTable.load(path) for name, path in splits.items()}
    for path in splits.values():
        check_inputs_unchanged(read_sidecar(path, stage=DATASET_STAGE), path)
    if not len(tables["train"]) or not len(tables["val"]):
        raise StageError(f"{relative_name(processed)} has an empty training or validation split: rerun {DATASET_STAGE}")
    inputs = [*splits.values(), *([Path(cfg.denoiser.init_from)] if cfg.denoiser.init_from else [])]
    for path in inputs:
        if not path.is_file():
            raise missing_file("denoiser.init_from", path)
    return tables, inputs


def _fingerprint(cfg: Config, inputs: list[Path]) -> str:
    """What the result depends on: settings, seed and data."""
    from networks.training import fingerprint

    settings = {key: value for key, value in asdict(cfg.denoiser).items() if key != "checkpoint"}
    if cfg.run.precision != "float32":
        settings["precision"] = cfg.run.precision
    return fingerprint({"settings": settings, "seed": cfg.run.seed, "inputs": [file_sha256(path) for path in inputs]})


def main(cfg: Config) -> None:
    """Train, or finish training, and write the products."""
    from networks.ranks import Ranks
    from networks.training import is_complete

    checkpoint = Path(cfg.denoiser.checkpoint)
    ranks = Ranks(resolve_device(cfg.run, training=True))
    tables, inputs = _read_tables(cfg)
    mark = _fingerprint(cfg, inputs)
    if ranks.from_first(lambda: is_complete(checkpoint, STAGE, mark)):
        log.info("%s is complete for these settings and data; nothing to do", relative_name(checkpoint))
        return
    with ranks.locked(checkpoint.parent, "denoiser.checkpoint"):
        _train(cfg, tables, inputs, mark, ranks)


def _train(cfg: Config, tables: dict[str, SheetTable], inputs: list[Path], mark: str, ranks: Ranks) -> None:
    """Do the work of ``main`` in the folder of the checkpoint."""
    import torch

    from generation.denoiser_training import DenoiserTask, layers_in_bfloat16, learning_rate, write_curve
    from networks.training import Trainer, loop_of_steps

    settings, checkpoint = cfg.denoiser, Path(cfg.denoiser.checkpoint)
    for name in ("train", "val"):
        tables[name].find_templates(name, silent=not ranks.is_first)
    model = build_model(settings, tables["train"], cfg.run.seed).to(ranks.device)
    if cfg.run.precision == "bf16":
        layers_in_bfloat16(model)
    optimiser = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.99),
    )
    task = DenoiserTask(settings, tables["train"], tables["val"], cfg.run.seed, ranks)
    loop = loop_of_steps(settings, partial(learning_rate, settings=settings), "training")
    trainer = Trainer(model, optimiser, task, loop, checkpoint.with_name("resume.pt"), mark, ranks)
    trainer.run(on_evaluation=lambda history: write_curve(history, checkpoint.parent, draw_every_s=60))
    if not ranks.is_first:
        return
    metrics = _write_products(cfg, trainer, tables, inputs)
    trainer.resume_path.unlink(missing_ok=True)
    _summary(checkpoint, metrics, tables)


def _write_products(cfg: Config, trainer: Trainer, tables: dict[str, SheetTable], inputs: list[Path]) -> dict[str, Any]:
    """Write loss curve, checkpoint and, last, its sidecar; return the metrics."""
    from generation.denoiser_training import score_heads, write_curve
    from networks.checkpoints import save_checkpoint

    settings, checkpoint, model, best = cfg.denoiser, Path(cfg.denoiser.checkpoint), trainer.model, trainer.best
    model.load_state_dict(best["weights"])
    model.eval()
    metrics: dict[str, Any] = {"best_step": best["step"]}
    metrics |= next(
        {k: v for k, v in row.items() if k.startswith("val_")} for row in trainer.history if row["step"] == best["step"]
    )
    if len(tables["test"]):
        metrics["test"] = score_heads(model, tables["test"], tables["train"], settings.batch_size, cfg.run.seed, trainer.device)
    write_curve(trainer.history, checkpoint.parent)
    training = {
        "model": {name: value.cpu() for name, value in best["weights"].items()},
        "step": best["step"],
        "elements": sorted(set(tables["train"].sheets.atomic_numbers.tolist())),
        # Of every split: what the database holds is not new, whether the model has seen it or not.
        "formulas": sorted({formula for table in tables.values() for formula in table.formulas}),
        "formulas_seen": sorted({formula for name in ("train", "val") for formula in tables[name].formulas}),
        "formulas_of_init": _formulas_of(settings.init_from),
        "templates": tables["train"].template_library().state_dict(),
    }
    save_checkpoint(checkpoint, "denoiser", model.config, training)
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=inputs,
        counts={name: len(table) for name, table in tables.items()} | {"parameters": sum(p.numel() for p in model.parameters())},
        metrics=metrics,
        fingerprint=trainer.mark,
        checkpoint_sha256=file_sha256(checkpoint),
    )
    return metrics


def _formulas_of(path: str) -> list[str]:
    """Every formula that the weights which training started from have seen, so that no score calls one of them unseen."""
    if not path:
        return []
    from models import load_denoiser

    content = load_denoiser(path, "")[1]
    return sorted({*content["formulas_seen"], *content["formulas_of_init"]})


def _summary(checkpoint: Path, metrics: dict[str, Any], tables: dict[str, SheetTable]) -> None:
    from generation.loss import TERMS

    test = metrics.get("test", {})
    print(f"denoiser: {relative_name(checkpoint)}, best at step {metrics['best_step']}")
    print("  sheets     " + ", ".join(f"{name} {len(table)}" for name, table in tables.items()))
    print("  validation " + ", ".join(f"{name} {metrics[f'val_{name}']:.3f}" for name in ("total", *TERMS)))
    for name in ("delta_g", "e_hull"):
        if f"mae_{name}_ev" in test:
            print(
                f"  test       MAE {name} {test[f'mae_{name}_ev']:.3f} eV (mean of training set: "
                f"{test[f'baseline_mae_{name}_ev']:.3f}), n = {test[f'n_{name}']}"
            )
    if test:
        print(f"  test       ROC-AUC of P_synth {test['auc_synth']:.3f}, n = {test['n_synth']}")


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "denoiser"), under_torchrun=True))
