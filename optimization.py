"""Stage 3: trains the joint diffusion model of sheets, with its property heads.

Reads ``dataset.processed_dir`` (stage 2). Writes ``denoiser.checkpoint`` (best EMA weights on the validation split, with the noise
schedule inside) and, beside it, its sidecar, ``loss_curve.csv`` and ``loss_curve.png``. Killed at any moment and started again it
goes on from ``resume.pt`` and, on a CPU, ends with the same weights as an uninterrupted run.

    python optimization.py denoiser.max_steps=6000
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import config
from diffusion import SheetBatch, add_noise, physical_state
from geo_utils import Sheet, lattice_to_vector, vector_to_lattice
from material_dataset import SheetDataset
from models import DenoiserModelConfig, DenoisingEGNN, PropertyEstimate, load_denoiser, save_checkpoint
from symmetry import SymmetryConstraint, Template
from template_library import TemplateLibrary

log = logging.getLogger("her2d")

STAGE = "optimization.py"
DATASET_STAGE = "material_dataset.py"
DIFFUSION_TERMS = ("frac", "height", "lattice")
PROPERTY_TERMS = ("delta_g", "e_hull", "synth")
TERMS = (*DIFFUSION_TERMS, *PROPERTY_TERMS)
PROPERTY_WEIGHT_FLOOR = 0.05  # at full noise the heads still learn what the composition alone tells
SYMMETRY_TOLERANCE = 0.02  # Å, within which a sheet of the training set must show its symmetry
VALIDATION_DRAWS = 512  # noised sheets per validation, at least
TEST_TIME_FRACTION = 0.01  # t/T at which the heads are scored on the test split


# ---------------------------------------------------------------------------------------------------------------------- data


@dataclass
class SheetTable:
    """All sheets of one split as flat tensors; ``ptr`` (M + 1,) delimits them."""

    sheets: SheetBatch
    ptr: torch.Tensor
    formulas: list[str]
    uids: list[str]
    templates: list[Template] | None = None  # of each sheet, once they are found

    def __len__(self) -> int:
        return self.ptr.shape[0] - 1

    @classmethod
    def load(cls, path: str | Path) -> SheetTable:
        """Reads ``train.pt``, ``val.pt`` or ``test.pt`` of stage 2; raises StageError when it cannot be used."""
        data = SheetDataset(path).table
        ptr = data["ptr"].long()
        sizes = ptr[1:] - ptr[:-1]
        sheets = SheetBatch(
            atomic_numbers=data["atomic_numbers"].long(),
            frac_coords=data["frac_coords"].float(),
            heights=data["heights"].float(),
            lattice_vector=lattice_to_vector(data["lattice"].double()).float(),
            batch=torch.repeat_interleave(torch.arange(len(sizes)), sizes),
            num_atoms=sizes,
            delta_g=data["delta_g_h"].float(),
            e_hull=data["e_hull"].float(),
            synth=data["y_synth"].float(),
        )
        return cls(sheets, ptr, list(data["formula"]), list(data["uid"]))

    def sheet(self, index: int) -> Sheet:
        """One sheet, in float64."""
        s, atoms = self.sheets, slice(int(self.ptr[index]), int(self.ptr[index + 1]))
        lattice = vector_to_lattice(s.lattice_vector[index].double()).numpy()
        arrays = (x[atoms].numpy() for x in (s.atomic_numbers, s.frac_coords.double(), s.heights.double()))
        return Sheet(*arrays, lattice)

    def find_templates(self, name: str) -> None:
        """Finds the symmetry template of every sheet."""
        self.templates = [
            Template.of(self.sheet(k), SYMMETRY_TOLERANCE)
            for k in tqdm(range(len(self)), desc=f"symmetry of {name}", unit="sheet", mininterval=1.0)
        ]

    def template_library(self) -> TemplateLibrary:
        """The distinct templates of the table, with the elements that they occur with."""
        return TemplateLibrary.build(((self.sheet(k), template) for k, template in enumerate(self.templates)))

    def constraint(self, index: torch.Tensor, symmetric: torch.Tensor, device: torch.device) -> SymmetryConstraint | None:
        """The templates of the sheets of the given indices (B,) where ``symmetric`` (B,); None where none is asked for."""
        if self.templates is None or not symmetric.any():
            return None
        chosen = [self.templates[k] if wanted else None for k, wanted in zip(index.tolist(), symmetric.tolist(), strict=True)]
        chosen = [None if template is None or template.layer_group == 1 else template for template in chosen]
        return SymmetryConstraint(chosen, self.sheets.num_atoms[index], self.sheets.frac_coords.to(device))

    def select(self, index: torch.Tensor) -> SheetBatch:
        """The sheets of the given indices (B,), as a batch."""
        sizes = self.sheets.num_atoms[index]
        batch = torch.repeat_interleave(torch.arange(len(index)), sizes)
        start = torch.cumsum(sizes, 0) - sizes
        atoms = torch.arange(int(sizes.sum())) + (self.ptr[index] - start)[batch]
        s = self.sheets
        return SheetBatch(
            s.atomic_numbers[atoms],
            s.frac_coords[atoms],
            s.heights[atoms],
            s.lattice_vector[index],
            batch,
            sizes,
            s.delta_g[index],
            s.e_hull[index],
            s.synth[index],
        )


def training_rows(table: SheetTable, step: int, batch_size: int, seed: int, labelled_share: float = 0.0) -> torch.Tensor:
    """Sheets (B,) of batch ``step`` = 0, 1, ... of an endless sequence of shuffled epochs; a function of its arguments, so that
    there is nothing to restore. The first ``labelled_share`` of them come from epochs of the sheets with a ΔG_H label."""
    labelled = torch.nonzero(torch.isfinite(table.sheets.delta_g)).flatten()
    count = min(round(labelled_share * batch_size), len(labelled))
    first = labelled[_shuffled(len(labelled), step, count, (seed, 5))] if count else labelled[:0]
    return torch.cat([first, _shuffled(len(table), step, batch_size - count, (seed, 1))])


def _shuffled(total: int, step: int, count: int, key: tuple[int, ...]) -> torch.Tensor:
    """Numbers below ``total``, (count,), of batch ``step`` of endless shuffled epochs."""
    if not count:
        return torch.zeros(0, dtype=torch.long)
    epoch, position = divmod(step, max(total // count, 1))
    return torch.randperm(total, generator=_generator(*key, epoch))[position * count : (position + 1) * count]


def _generator(*key: int) -> torch.Generator:
    """A random generator that is a function of the key."""
    digest = hashlib.sha256(",".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


# ---------------------------------------------------------------------------------------------------------------------- loss


@dataclass
class Draw:
    """Every random number that one batch needs."""

    t: torch.Tensor  # (B,)
    frac: torch.Tensor  # (A, 2)
    height: torch.Tensor  # (A,)
    lattice: torch.Tensor  # (B, 3)
    drop: torch.Tensor  # (B,) True: conditions hidden
    symmetric: torch.Tensor  # (B,) True: noise within the symmetry of the sheet


def draw_noise(
    sheets: SheetBatch, num_timesteps: int, p_uncond: float, generator: torch.Generator, symmetric_share: float = 0.0
) -> Draw:
    """Stratified times (one per equal slice of 1..T, shuffled), standard normal noise, condition dropout, and whose noise is to be
    symmetric, on the CPU."""
    count, atoms = sheets.num_graphs, sheets.frac_coords.shape[0]
    strata = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return Draw(
        t=1 + (strata * num_timesteps).long().clamp(max=num_timesteps - 1),
        frac=torch.randn(atoms, 2, generator=generator),
        height=torch.randn(atoms, generator=generator),
        lattice=torch.randn(count, 3, generator=generator),
        drop=torch.rand(count, generator=generator) < p_uncond,
        symmetric=torch.rand(count, generator=generator) < symmetric_share,
    )


def loss_terms(
    model: DenoisingEGNN, sheets: SheetBatch, draw: Draw, kept: SymmetryConstraint | None = None
) -> tuple[dict[str, torch.Tensor], PropertyEstimate]:
    """The six terms of the joint loss, each of order one for an untrained model.

    frac: squared error of the normalised score. height, lattice: squared error of ε over ᾱ_t, which is the squared error of v.
    delta_g: |error|, e_hull: error², both over the spread of the label; synth: binary cross-entropy; weighted with ᾱ_t (the heads
    are asked most where there is something to see) and masked where a label is unknown. kept: templates of the sheets that are
    noised within their symmetry.
    """
    device = sheets.frac_coords.device
    t = draw.t.to(device)
    schedule = model.schedule
    state = add_noise(schedule, sheets, t, draw.frac.to(device), draw.height.to(device), draw.lattice.to(device), kept)
    heights, cell = physical_state(schedule, state.height, state.lattice, sheets)
    encoded = model.encode(sheets.atomic_numbers, state.frac, heights, cell, sheets.batch, t)
    drop = draw.drop.to(device)
    nan = torch.full_like(sheets.delta_g, float("nan"))
    noise = model.noise(encoded, torch.where(drop, nan, sheets.delta_g), torch.where(drop, nan, sheets.e_hull))
    properties = model.properties(encoded)

    alpha_bar = encoded.alpha_bar
    terms = {
        "frac": ((noise.frac - state.frac_target) ** 2).mean(),
        "height": ((noise.height - state.height_target) ** 2 / alpha_bar[sheets.batch]).mean(),
        "lattice": ((noise.lattice - state.lattice_target) ** 2 / alpha_bar[:, None]).mean(),
    }
    weight = alpha_bar.clamp(min=PROPERTY_WEIGHT_FLOOR)
    scale = model.label_std
    errors = {
        "delta_g": (sheets.delta_g, lambda y: (properties.delta_g - y).abs() / scale[0]),
        "e_hull": (sheets.e_hull, lambda y: ((properties.e_hull - y) / scale[1]) ** 2),
        "synth": (
            sheets.synth,
            lambda y: torch.nn.functional.binary_cross_entropy_with_logits(properties.synth_logit, y, reduction="none"),
        ),
    }
    for name, (label, error) in errors.items():
        known = torch.isfinite(label)
        # Unknown labels are replaced before the error is taken: nan times zero would still poison the gradient.
        masked = error(torch.where(known, label, torch.zeros_like(label))) * known * weight
        terms[name] = masked.sum() / (known * weight).sum().clamp(min=1e-6)
    return terms, properties


def total_loss(terms: dict[str, torch.Tensor], settings: config.DenoiserConfig) -> torch.Tensor:
    """The weighted sum of the terms."""
    weights = {
        "frac": settings.weight_frac,
        "height": settings.weight_height,
        "lattice": settings.weight_lattice,
        "delta_g": settings.lambda_delta_g,
        "e_hull": settings.lambda_e_hull,
        "synth": settings.lambda_synth,
    }
    return sum(weights[name] * terms[name] for name in TERMS)


# ------------------------------------------------------------------------------------------------------------------ training


def learning_rate(step: int, settings: config.DenoiserConfig) -> float:
    """Rate of step 1..max_steps: linear warm-up, then a cosine to 1 % of the peak."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(settings.max_steps - settings.warmup_steps, 1)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def model_config(settings: config.DenoiserConfig) -> DenoiserModelConfig:
    """The network's settings from the stage's."""
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


def build_model(settings: config.DenoiserConfig, table: SheetTable, seed: int) -> DenoisingEGNN:
    """An untrained model whose schedule and label scales are fitted to the training set."""
    config.seed_everything(seed)
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
    other = load_denoiser(path, "set denoiser.init_from to a checkpoint of stage 3, or leave it empty")[0]
    weights, own = (dict(m.named_parameters()) | (dict(m.named_buffers()) if with_scales else {}) for m in (other, model))
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
        raise config.StageError(
            f"denoiser.init_from: {config.relative_name(path)} is a network of another size than denoiser.* says"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


class Trainer:
    """Model, optimiser, EMA, history and the best weights so far; the whole state is one dict."""

    def __init__(self, cfg: config.Config, train: SheetTable, val: SheetTable, device: torch.device, fingerprint: str):
        self.settings, self.seed, self.device, self.fingerprint = cfg.denoiser, cfg.run.seed, device, fingerprint
        self.train_table, self.val_table = train, val
        self.model = build_model(cfg.denoiser, train, cfg.run.seed).to(device)
        self.optimiser = torch.optim.AdamW(
            (p for p in self.model.parameters() if p.requires_grad),
            lr=cfg.denoiser.learning_rate,
            weight_decay=cfg.denoiser.weight_decay,
            betas=(0.9, 0.99),
        )
        self.ema = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.running = dict.fromkeys(("total", *TERMS), 0.0)
        self.best_loss, self.best_step, self.best = math.inf, 0, dict(self.ema)

    def state_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema,
            "history": self.history,
            "running": self.running,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema = {name: value.to(self.device) for name, value in state["ema"].items()}
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        self.step, self.history, self.running = state["step"], state["history"], state["running"]
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]

    def train_step(self) -> float:
        """One optimiser step; returns the loss. Raises FloatingPointError, with the model untouched, when it is not finite."""
        settings, table = self.settings, self.train_table
        rows = training_rows(table, self.step, settings.batch_size, self.seed, settings.labelled_share)
        sheets, generator = table.select(rows), _generator(self.seed, 2, self.step)
        draw = draw_noise(sheets, settings.num_timesteps, settings.p_uncond, generator, settings.symmetric_share)
        terms, _ = loss_terms(self.model, sheets.to(self.device), draw, table.constraint(rows, draw.symmetric, self.device))
        loss = total_loss(terms, self.settings)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            bad = [name for name, term in terms.items() if not math.isfinite(float(term.detach()))]
            raise FloatingPointError(", ".join(bad) or "gradient")
        self.step += 1
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        self.optimiser.step()
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value_now in self.model.state_dict().items():
                if value_now.is_floating_point():
                    self.ema[name].lerp_(value_now, 1 - decay)
        for name, term in (("total", loss), *terms.items()):
            self.running[name] += float(term.detach())
        return value

    def validate(self) -> dict[str, float]:
        """Validates the EMA weights, records a row of the history and keeps them when they are the best so far."""
        since = self.step - (self.history[-1]["step"] if self.history else 0)
        row: dict[str, float] = {"step": self.step, "lr": learning_rate(self.step, self.settings)}
        row |= {f"train_{name}": value / max(since, 1) for name, value in self.running.items()}
        losses = evaluate_loss(self.model, self.ema, self.val_table, self.settings, self.seed, self.device)
        row |= {f"val_{name}": value for name, value in losses.items()}
        self.history.append(row)
        self.running = dict.fromkeys(self.running, 0.0)
        if row["val_total"] < self.best_loss:
            self.best_loss, self.best_step = row["val_total"], self.step
            self.best = {name: value.clone() for name, value in self.ema.items()}
        return row


@torch.no_grad()
def evaluate_loss(
    model: DenoisingEGNN,
    weights: dict[str, torch.Tensor],
    table: SheetTable,
    settings: config.DenoiserConfig,
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    """Loss terms of the given weights on a split, with the same times, noise and dropout at every call."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    model.eval()
    repeats = max(1, math.ceil(VALIDATION_DRAWS / len(table)))
    sums, count = dict.fromkeys(("total", *TERMS), 0.0), 0
    for repeat in range(repeats):
        for number, index in enumerate(torch.arange(len(table)).split(settings.batch_size)):
            sheets = table.select(index)
            generator = _generator(seed, 3, repeat, number)
            draw = draw_noise(sheets, settings.num_timesteps, settings.p_uncond, generator, settings.symmetric_share)
            terms, _ = loss_terms(model, sheets.to(device), draw, table.constraint(index, draw.symmetric, device))
            for name, value in (("total", total_loss(terms, settings)), *terms.items()):
                sums[name] += float(value) * len(index)
            count += len(index)
    model.train()
    model.load_state_dict(kept)
    return {name: value / count for name, value in sums.items()}


@torch.no_grad()
def score_heads(
    model: DenoisingEGNN, table: SheetTable, train: SheetTable, batch_size: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """Scores of the heads at little noise: mean absolute errors, ROC-AUC and the number of labels behind each.

    ``baseline_*`` is the error of always answering the mean of the training labels.
    """
    t_small = max(1, round(TEST_TIME_FRACTION * model.schedule.num_timesteps))
    predicted: dict[str, list[torch.Tensor]] = {"delta_g": [], "e_hull": [], "synth": []}
    for number, index in enumerate(torch.arange(len(table)).split(batch_size)):
        sheets = table.select(index)
        draw = draw_noise(sheets, model.schedule.num_timesteps, 1.0, _generator(seed, 4, number))
        draw.t = torch.full_like(draw.t, t_small)
        _, properties = loss_terms(model, sheets.to(device), draw)
        for name, value in zip(predicted, (properties.delta_g, properties.e_hull, properties.synth_logit), strict=True):
            predicted[name].append(value.cpu())
    values = {name: torch.cat(parts) for name, parts in predicted.items()}
    labels = {"delta_g": table.sheets.delta_g, "e_hull": table.sheets.e_hull, "synth": table.sheets.synth}
    scores: dict[str, Any] = {"t": t_small}
    for name, learnt in (("delta_g", train.sheets.delta_g), ("e_hull", train.sheets.e_hull)):
        known = torch.isfinite(labels[name])
        scores[f"n_{name}"] = int(known.sum())
        if known.any():
            scores[f"mae_{name}_ev"] = float((values[name] - labels[name])[known].abs().mean())
            scores[f"baseline_mae_{name}_ev"] = float((learnt.nanmean() - labels[name][known]).abs().mean())
            scores[f"spearman_{name}"] = rank_correlation(values[name][known].numpy(), labels[name][known].numpy())
    known = torch.isfinite(labels["synth"])
    scores["n_synth"] = int(known.sum())
    scores["auc_synth"] = roc_auc(values["synth"][known].numpy(), labels["synth"][known].numpy())
    return scores


def rank_correlation(predicted: np.ndarray, label: np.ndarray) -> float:
    """Spearman's; nan for fewer than three values."""
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, label).statistic) if len(label) > 2 else float("nan")


def roc_auc(score: np.ndarray, label: np.ndarray) -> float:
    """Area under the ROC curve from the rank sum, ties counted half; nan when one class is absent."""
    from scipy.stats import rankdata

    positive = label > 0.5
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return float("nan")
    return float((rankdata(score)[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


# ------------------------------------------------------------------------------------------------------------------- outputs


def write_curve(history: list[dict[str, float]], folder: Path) -> None:
    """``loss_curve.csv`` and ``loss_curve.png`` with its PDF: every term, training and validation."""
    with config.atomic_path(folder / "loss_curve.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)

    from figures import figure, logarithmic

    titles = {
        "total": "weighted sum",
        "frac": "in-plane coordinates (score)",
        "height": "heights (noise)",
        "lattice": "lattice (noise)",
        "delta_g": "ΔG_H, |error| / spread",
        "e_hull": "E_hull, (error / spread)²",
        "synth": "synthesizability, cross-entropy",
    }
    steps = [row["step"] for row in history]
    with figure(folder / "loss_curve.png", nrows=2, ncols=4, figsize=(13, 6), sharex=True) as (_, axes):
        for axis, (name, title) in zip(axes.flat, titles.items(), strict=False):
            axis.plot(steps, [row[f"train_{name}"] for row in history], color="0.55", label="training (running mean)")
            axis.plot(steps, [row[f"val_{name}"] for row in history], color="0.0", linestyle="--", label="validation (EMA)")
            axis.set_title(title, fontsize=10)
            if all(row[f"{split}_{name}"] > 0 for row in history for split in ("train", "val")):
                logarithmic(axis)
            axis.grid(alpha=0.3, which="both")
        axes[0, 0].set_ylabel("loss (dimensionless)")
        axes[1, 0].set_ylabel("loss (dimensionless)")
        for axis in axes[1]:
            axis.set_xlabel("optimiser step")
        axes[1, 3].set_axis_off()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        axes[1, 3].legend(handles, labels, loc="center", fontsize=10)


def _fingerprint(cfg: config.Config, inputs: list[Path]) -> str:
    """What the result depends on: settings, seed and data."""
    content = {"settings": asdict(cfg.denoiser), "seed": cfg.run.seed, "inputs": [config.file_sha256(path) for path in inputs]}
    content["settings"].pop("checkpoint")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_complete(checkpoint: Path, fingerprint: str) -> bool:
    sidecar = config.sidecar_path(checkpoint)
    if not (checkpoint.is_file() and sidecar.is_file()):
        return False
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return content.get("fingerprint") == fingerprint and content.get("checkpoint_sha256") == config.file_sha256(checkpoint)


def _load_resume(path: Path, trainer: Trainer) -> None:
    """Restores the trainer from ``resume.pt`` when that belongs to this run."""
    if not path.is_file():
        return
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for damaged files
        raise config.StageError(f"{config.relative_name(path)} is damaged; remove it to start over") from error
    if state.get("fingerprint") != trainer.fingerprint:
        log.info("settings or data differ from those of the unfinished run: starting over")
        return
    trainer.load_state_dict(state)
    log.info("resuming after step %d", trainer.step)


def main(cfg: config.Config) -> None:
    """Trains, or finishes training, and writes the products."""
    settings = cfg.denoiser
    checkpoint = Path(settings.checkpoint)
    processed = Path(cfg.dataset.processed_dir)
    device = config.resolve_device(cfg.run)
    splits = {name: processed / f"{name}.pt" for name in ("train", "val", "test")}
    tables = {name: SheetTable.load(path) for name, path in splits.items()}
    for path in splits.values():
        config.check_inputs_unchanged(config.read_sidecar(path, stage=DATASET_STAGE), path)
    if not len(tables["train"]) or not len(tables["val"]):
        raise config.StageError(
            f"{config.relative_name(processed)} has an empty training or validation split: rerun {DATASET_STAGE}"
        )

    inputs = [*splits.values(), *([Path(settings.init_from)] if settings.init_from else [])]
    for path in inputs:
        if not path.is_file():
            raise config.StageError(f"denoiser.init_from: no file at {config.relative_name(path)}")
    fingerprint = _fingerprint(cfg, inputs)
    if _is_complete(checkpoint, fingerprint):
        log.info("%s is complete for these settings and data; nothing to do", config.relative_name(checkpoint))
        return
    for name in ("train", "val"):
        tables[name].find_templates(name)
    trainer = Trainer(cfg, tables["train"], tables["val"], device, fingerprint)
    resume_path = checkpoint.with_name("resume.pt")
    _load_resume(resume_path, trainer)

    def save_resume() -> None:
        with config.atomic_path(resume_path) as temporary:
            torch.save(trainer.state_dict(), temporary)

    with tqdm(total=settings.max_steps, initial=trainer.step, desc="training", unit="step", mininterval=1.0) as bar:
        while trainer.step < settings.max_steps:
            try:
                loss = trainer.train_step()
            except FloatingPointError as error:
                save_resume()
                raise config.StageError(
                    f"training stopped at step {trainer.step + 1}: {error} is not finite; the state before it is in "
                    f"{config.relative_name(resume_path)}; lower denoiser.learning_rate"
                ) from error
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", val=f"{trainer.best_loss:.3f}", refresh=False)
            if trainer.step % settings.eval_every == 0 or trainer.step == settings.max_steps:
                trainer.validate()
                save_resume()
                write_curve(trainer.history, checkpoint.parent)

    trainer.model.load_state_dict(trainer.best)
    trainer.model.eval()
    metrics: dict[str, Any] = {"best_step": trainer.best_step}
    metrics |= next(
        {k: v for k, v in row.items() if k.startswith("val_")} for row in trainer.history if row["step"] == trainer.best_step
    )
    if len(tables["test"]):
        metrics["test"] = score_heads(trainer.model, tables["test"], tables["train"], settings.batch_size, cfg.run.seed, device)
    write_curve(trainer.history, checkpoint.parent)
    training = {
        "model": {name: value.cpu() for name, value in trainer.best.items()},
        "step": trainer.best_step,
        "elements": sorted(set(tables["train"].sheets.atomic_numbers.tolist())),
        # Of every split: what the database holds is not new, whether the model has seen it or not.
        "formulas": sorted({formula for table in tables.values() for formula in table.formulas}),
        "formulas_seen": sorted({formula for name in ("train", "val") for formula in tables[name].formulas}),
        "formulas_of_init": _formulas_of(settings.init_from),
        "templates": tables["train"].template_library().state_dict(),
    }
    save_checkpoint(checkpoint, "denoiser", trainer.model.config, training)
    config.write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=inputs,
        counts={name: len(table) for name, table in tables.items()}
        | {"parameters": sum(p.numel() for p in trainer.model.parameters())},
        metrics=metrics,
        fingerprint=fingerprint,
        checkpoint_sha256=config.file_sha256(checkpoint),
    )
    resume_path.unlink(missing_ok=True)
    _summary(checkpoint, metrics, tables)


def _formulas_of(path: str) -> list[str]:
    """Every formula that the weights which training started from have seen, so that no score calls one of them unseen."""
    if not path:
        return []
    content = load_denoiser(path, "")[1]
    return sorted({*content["formulas_seen"], *content["formulas_of_init"]})


def _summary(checkpoint: Path, metrics: dict[str, Any], tables: dict[str, SheetTable]) -> None:
    test = metrics.get("test", {})
    print(f"denoiser: {config.relative_name(checkpoint)}, best at step {metrics['best_step']}")
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
    raise SystemExit(config.run_stage(main, __doc__, ("run", "dataset", "denoiser")))
