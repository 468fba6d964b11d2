"""Trains the embedded synthesizability model: loss, batches, validation, calibration and the products of the run.

``evaluation.embedded_lm`` has the model, ``evaluation.synth_examples`` its examples.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation import embedded_lm, material_strings
from evaluation.synth_calibration import draw_calibration, fit_calibration, scores
from evaluation.synth_examples import IGNORE, Encoder, Example, batches, collate, labelled_examples, select_rows
from networks.checkpoints import save_checkpoint
from networks.training import LoopSettings, Trainer, fingerprint, is_complete
from pipeline.cli import resolve_device, seed_everything
from pipeline.errors import StageError
from pipeline.files import file_sha256, missing_file, relative_name
from pipeline.provenance import write_sidecar
from pipeline.settings import Config

log = logging.getLogger("her2d")

STAGE = "pretrain_csllm.py"


def training_loss(
    model: torch.nn.Module,
    tokenizer: material_strings.MaterialTokenizer,
    items: list[tuple[list[int], list[int], int, float]],
    string_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the loss of a batch.

    The label loss is the cross-entropy of the label token over the whole vocabulary, so that label mass is learnt too. The string
    loss is that of every next token. The causal mask hides padding on the right from every real token, so no attention mask is
    needed.

    Args:
        items: (ids with hidden tokens, true ids, label, class weight) of each example.
        string_weight: weight of the string loss; 0: it is not computed.

    Returns:
        (total loss, label loss); the second without gradient.
    """
    device = next(model.parameters()).device
    ids, mask, last = collate([hidden for hidden, _, _, _ in items], tokenizer.pad_id, device)
    truth, _, _ = collate([true for _, true, _, _ in items], tokenizer.pad_id, device)
    labels = torch.tensor([tokenizer.label_ids[0] if label else tokenizer.label_ids[1] for _, _, label, _ in items], device=device)
    weights = torch.tensor([weight for _, _, _, weight in items], device=device)
    states = model.model(input_ids=ids).last_hidden_state
    rows = torch.arange(len(items), device=device)
    label_losses = torch.nn.functional.cross_entropy(model.lm_head(states[rows, last]), labels, reduction="none")
    label_loss = (weights * label_losses).sum() / weights.sum()
    if not string_weight:
        return label_loss, label_loss.detach()
    targets = truth[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORE)
    logits = model.lm_head(states[:, :-1])
    string_loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    return label_loss + string_weight * string_loss, label_loss.detach()


@torch.no_grad()
def log_odds(model: torch.nn.Module, encoder: Encoder, indices: list[int], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (log P(True) - log P(False), label mass) of the first string of each example, both (N,) float64."""
    model.eval()
    device = next(model.parameters()).device
    prompts = [encoder.prompt_ids(index)[0] for index in indices]
    odds, mass = np.zeros(len(indices)), np.zeros(len(indices))
    for chosen in batches([len(ids) for ids in prompts], 4 * batch_size, None):
        ids, _, last = collate([prompts[i] for i in chosen], encoder.tokenizer.pad_id, device)
        states = model.model(input_ids=ids).last_hidden_state
        scores = torch.log_softmax(model.lm_head(states[torch.arange(len(chosen), device=device), last]).double(), dim=-1)
        true, false = (scores[:, label].cpu().numpy() for label in encoder.tokenizer.label_ids)
        odds[chosen], mass[chosen] = true - false, np.exp(true) + np.exp(false)
    return odds, mass


def initialise_elements(model: torch.nn.Module, tokenizer: material_strings.MaterialTokenizer, generator: torch.Generator) -> None:
    """Set the embeddings of elements from the periodic table, so that similar elements start close to each other.

    Descriptors (row, group, electronegativity, atomic radius, Mendeleev number and more; standardised, missing values 0) times a
    random matrix, scaled to the spread of all embeddings, are added to half of the initial values.
    """
    from pymatgen.core import Element

    symbols = [token.removeprefix("element ") for token in tokenizer.vocabulary if token.startswith("element ")]
    table = []
    for element in map(Element, symbols):
        radius = float(element.atomic_radius) if element.atomic_radius is not None else math.nan
        number = float(element.mendeleev_no) if element.mendeleev_no is not None else math.nan
        table.append([element.row, element.group, element.X, radius, number, element.group == 1, element.group > 12])
    values = np.array(table, dtype=float)
    values = np.nan_to_num((values - np.nanmean(values, axis=0)) / np.nanstd(values, axis=0))
    weight = model.get_input_embeddings().weight
    projection = torch.randn(values.shape[1], weight.shape[1], generator=generator) / values.shape[1] ** 0.5
    spread = float(weight.detach().std())
    rows = torch.tensor([tokenizer.ids[f"element {symbol}"] for symbol in symbols])
    with torch.no_grad():
        weight[rows] = 0.5 * weight[rows] + spread * torch.tensor(values, dtype=weight.dtype) @ projection


def inputs_fingerprint(cfg: Config, db_hash: str) -> str:
    """Return the hash of everything that decides the result: the database, the seed and the settings (not the paths)."""
    settings = {key: value for key, value in dataclasses.asdict(cfg.synth_lm).items() if key not in ("db_path", "checkpoint")}
    read = ("synth_e_hull_max_ev", "unsynth_e_hull_min_ev", "val_fraction", "test_fraction")
    content = {"db": db_hash, "seed": cfg.run.seed, **settings, **{key: getattr(cfg.dataset, key) for key in read}}
    return fingerprint(content)


def resume_path(checkpoint: Path) -> Path:
    """Return the file of the unfinished run beside a checkpoint."""
    return checkpoint.with_name(checkpoint.stem + ".resume.pth")


class SynthTask:
    """Task of the training loop: predict the label of a material string, and the string itself. Both labels weigh the same."""

    def __init__(self, cfg: Config, encoder: Encoder, examples: list[Example], parts: dict[str, list[int]]) -> None:
        self.settings, self.seed, self.encoder, self.examples = cfg.synth_lm, cfg.run.seed, encoder, examples
        self.train, self.val = parts["train"], parts["val"]
        self.labels = np.array([example.label for example in examples], dtype=float)
        share = float(self.labels[self.train].mean())
        self.class_weight = {1: 0.5 / share, 0: 0.5 / (1 - share)}
        self.steps_per_epoch = math.ceil(len(self.train) / self.settings.batch_size)
        self.steps = self.settings.epochs * self.steps_per_epoch
        self._next, self._batches = -1, iter(())

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then a cosine to 2 % of the peak."""
        warmup = max(1, min(200, self.steps // 10))
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps)))
        return self.settings.learning_rate * (min(1.0, (step + 1) / warmup) * cosine)

    def batch(self, step: int) -> list[tuple[list[int], list[int], int, float]]:
        """Return the batch of a step for ``training_loss``; it depends on seed and step alone."""
        if step != self._next or step % self.steps_per_epoch == 0:
            epoch, done = divmod(step, self.steps_per_epoch)
            self._batches = self._epoch(epoch)
            for _ in range(done):  # one generator draws a whole epoch, so the steps before this one are drawn again
                next(self._batches)
        self._next = step + 1
        return next(self._batches)

    def _epoch(self, epoch: int) -> Iterator[list[tuple[list[int], list[int], int, float]]]:
        """Yield the batches of an epoch: for every example one of its strings, with sites in random order and tokens hidden."""
        settings, encoder = self.settings, self.encoder
        rng = np.random.default_rng([self.seed, epoch])
        variants = [int(rng.integers(len(encoder.parts[index]))) for index in self.train]
        lengths = [len(encoder.prompt_ids(index, variant)[0]) for index, variant in zip(self.train, variants, strict=True)]
        for chosen in batches(lengths, settings.batch_size, rng):
            items = []
            for position in chosen:
                index = self.train[position]
                ids, string = encoder.prompt_ids(index, variants[position], rng)
                hidden = np.array(ids)
                covered = rng.random(string.stop - string.start) < settings.mask_fraction
                hidden[string][covered] = encoder.tokenizer.unknown_id
                label = self.examples[index].label
                items.append((hidden.tolist(), ids, label, self.class_weight[label]))
            yield items

    def loss(self, model: torch.nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a step and its label loss."""
        loss, label_loss = training_loss(model, self.encoder.tokenizer, self.batch(step), self.settings.string_loss_weight)
        return loss, {"label_loss": float(label_loss)}

    def evaluate(self, model: torch.nn.Module, step: int, sums: dict[str, float], steps: int) -> tuple[dict[str, Any], float]:
        """Return a row of the history, and the log loss on the validation part, on which P is calibrated first."""
        epoch, labels = step // self.steps_per_epoch, self.labels[self.val]
        odds, mass = log_odds(model, self.encoder, self.val, self.settings.batch_size)
        if not np.isfinite(odds).all():
            raise StageError(f"the weights are not finite after epoch {epoch}; lower synth_lm.learning_rate and start again")
        temperature, bias = fit_calibration(odds, labels)
        p = 1 / (1 + np.exp(-np.clip(odds / temperature + bias, -700, 700)))
        found = scores(p, labels, mass)
        row = {"epoch": epoch, "train_label_loss": sums["label_loss"] / steps, "val_log_loss": found["log_loss"]}
        row["val_roc_auc"] = found["roc_auc"]
        log.info(
            "epoch %d/%d: label loss %.3f, validation log loss %.3f, ROC-AUC %.3f",
            *(epoch, self.settings.epochs, row["train_label_loss"], found["log_loss"], found["roc_auc"]),
        )
        return row, found["log_loss"]

    def not_finite(self, step: int, names: list[str], resume: str) -> str:
        """Return the message of a step without a finite loss."""
        return (
            f"loss is not finite in epoch {step // self.steps_per_epoch + 1}, step {step + 1}: lower synth_lm.learning_rate and "
            f"start again; the state before it is in {resume}"
        )


def train_model(cfg: Config, model: torch.nn.Module, task: SynthTask, mark: str) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Train the model in place.

    Returns:
        (weights of the best epoch by validation log loss, on the CPU; one record per epoch).
    """
    settings = cfg.synth_lm
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    loop = LoopSettings(task.steps, task.steps_per_epoch, grad_clip=1.0, rate=task.rate, score_name="val")
    trainer = Trainer(model, optimiser, task, loop, resume_path(Path(settings.checkpoint)), mark)
    best = trainer.run()
    return {key: value.cpu() for key, value in best["weights"].items()}, trainer.history


def _read_examples(cfg: Config, db_hash: str) -> tuple[list[Example], dict[str, list[int]], Counter]:
    """Return the labelled examples, their indices by part, and counts. Raises StageError where they are too few."""
    rows, counts = select_rows(cfg)
    examples = labelled_examples(cfg, rows, db_hash, counts)
    parts = {name: [i for i, example in enumerate(examples) if example.split == name] for name in ("train", "val", "test")}
    labels = np.array([example.label for example in examples], dtype=float)
    for name, part in parts.items():
        counts[f"{name} crystals"], counts[f"{name} True"] = len(part), int(labels[part].sum()) if part else 0
    train = parts["train"]
    if not train or not parts["val"] or not parts["test"] or len(set(labels[train])) < 2:
        raise StageError(
            f"{relative_name(cfg.synth_lm.db_path)} has too few labelled crystals ({len(examples)}; True: {int(labels.sum())}): "
            "training, validation and test need some each, and training both labels"
        )
    log.info("%s", ", ".join(f"{name}: {count}" for name, count in counts.items()))
    return examples, parts, counts


def _build_model(cfg: Config, encoder: Encoder) -> tuple[torch.nn.Module, embedded_lm.EmbeddedLMConfig]:
    """Return a model with fresh weights that takes the longest prompt, and its size."""
    settings, tokenizer = cfg.synth_lm, encoder.tokenizer
    longest = max(len(encoder.prompt_ids(i, v)[0]) + 1 for i, texts in enumerate(encoder.parts) for v in range(len(texts)))
    model_config = embedded_lm.EmbeddedLMConfig(
        len(tokenizer), settings.hidden_size, settings.num_layers, settings.num_heads, max_tokens=max(512, longest)
    )
    seed_everything(cfg.run.seed)
    model = embedded_lm.build_embedded_lm(model_config)
    initialise_elements(model, tokenizer, torch.Generator().manual_seed(cfg.run.seed))
    return model, model_config


def train_stage(cfg: Config) -> None:
    """Run the whole stage: labels, material strings, training, calibration, checkpoint, figure and sidecar."""
    settings, checkpoint = cfg.synth_lm, Path(cfg.synth_lm.checkpoint)
    if not Path(settings.db_path).is_file():
        raise missing_file("synth_lm.db_path", settings.db_path, "name C2DB, or run python -m scripts.prepare_demo_data")
    started = time.time()
    device = resolve_device(cfg.run)
    db_hash = file_sha256(settings.db_path)
    mark = inputs_fingerprint(cfg, db_hash)
    if is_complete(checkpoint, STAGE, mark):
        log.info("%s is complete for these inputs: nothing to do", relative_name(checkpoint))
        return
    examples, parts, counts = _read_examples(cfg, db_hash)
    encoder = Encoder(material_strings.MaterialTokenizer(), examples)
    model, model_config = _build_model(cfg, encoder)
    model.to(device)
    task = SynthTask(cfg, encoder, examples, parts)
    best, history = train_model(cfg, model, task, mark)
    model.load_state_dict(best)
    state, metrics, drawn = _evaluate(task, model, parts)
    state = {"vocabulary": encoder.tokenizer.vocabulary, "model": {k: v.contiguous() for k, v in best.items()}} | state
    save_checkpoint(checkpoint, "synth_lm", model_config, state | {"fingerprint": mark})
    figure_path = checkpoint.with_name("synth_lm_calibration.png")
    draw_calibration(figure_path, *drawn)
    # The sidecar comes last, because it says that the product is complete.
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=[settings.db_path],
        counts=dict(counts),
        metrics={**metrics, "calibration": state["calibration"], "history": history},
        fingerprint=mark,
        checkpoint_sha256=file_sha256(checkpoint),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    resume_path(checkpoint).unlink(missing_ok=True)
    test = metrics["test"]
    log.info("held-out formulas, n = %d (%d True): ROC-AUC %.3f", test["n"], test["n_true"], test["roc_auc"])
    log.info("TPR %.3f, TNR %.3f, accuracy %.3f, ECE %.3f", test["tpr"], test["tnr"], test["accuracy"], test["ece"])
    log.info("%s and %s in %.0f s", relative_name(checkpoint), figure_path.name, time.time() - started)


def _evaluate(
    task: SynthTask, model: torch.nn.Module, parts: dict[str, list[int]]
) -> tuple[dict[str, Any], dict[str, Any], tuple[np.ndarray, np.ndarray, dict[str, Any], dict[str, Any]]]:
    """Calibrate on the validation part and measure on validation and test part.

    Returns:
        (content of the checkpoint, metrics by part, arguments of ``draw_calibration``).
    """
    labels, odds, mass = task.labels, {}, {}
    for name in ("val", "test"):
        odds[name], mass[name] = log_odds(model, task.encoder, parts[name], task.settings.batch_size)
    temperature, bias = fit_calibration(odds["val"], labels[parts["val"]])
    p = {name: 1 / (1 + np.exp(-np.clip(odds[name] / temperature + bias, -700, 700))) for name in odds}
    metrics = {name: scores(p[name], labels[parts[name]], mass[name]) for name in p}
    raw = scores(1 / (1 + np.exp(-np.clip(odds["test"], -700, 700))), labels[parts["test"]], mass["test"])
    element_counts = Counter(symbol for i in parts["train"] for symbol in set(_elements(task.examples[i].strings[0])))
    state = {
        "element_counts": dict(sorted(element_counts.items())),
        "min_element_rows": task.settings.min_element_rows,
        "calibration": {"temperature": temperature, "bias": bias, "test_ece_before": raw["ece"]},
        "metrics": metrics,
    }
    return state, metrics, (p["test"], labels[parts["test"]], metrics["test"], raw)


def _elements(text: str) -> list[str]:
    tokens = material_strings.MaterialTokenizer().tokens(text)
    return [token.removeprefix("element ") for token in tokens if token.startswith("element ")]
