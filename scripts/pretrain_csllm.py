"""Trains the small embedded synthesizability model that stands in where the 8B CSLLM is not installed.

Reads   synth_lm.db_path (C2DB or the embedded database as an ASE db): structures, ehull, experimental and stability keys.
Writes  synth_lm.checkpoint, its sidecar .json, and synth_lm_calibration.png beside it.
Run     python -m scripts.pretrain_csllm [synth_lm.db_path=c2db.db]

A Llama-type decoder of about a million parameters learns CSLLM's own task on monolayers: it reads the material string inside
CSLLM's question and answers True or False. Split by reduced formula, classes weighted to balance, best epoch by validation loss,
then temperature and bias fitted on the validation part. Started again after a kill it ends with the same weights (CPU).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evaluation import embedded_lm, material_strings
from evaluation.synth_examples import IGNORE, Encoder, Example, batches, collate, labelled_examples, select_rows
from networks.checkpoints import save_checkpoint
from pipeline.cli import resolve_device, run_stage, seed_everything
from pipeline.errors import StageError
from pipeline.files import atomic_path, file_sha256, relative_name
from pipeline.plotting import figure
from pipeline.provenance import read_sidecar, write_sidecar
from pipeline.settings import Config

log = logging.getLogger("her2d")

STAGE = "pretrain_csllm.py"


def training_loss(
    model: torch.nn.Module,
    tokenizer: material_strings.MaterialTokenizer,
    items: list[tuple[list[int], list[int], int, float]],
    string_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(total loss, label loss) of a batch of (ids with hidden tokens, true ids, label, class weight).

    The label loss is the cross-entropy of the label token over the whole vocabulary, so that label mass is learned as well. The
    causal mask makes right padding invisible to every real token, so no attention mask is needed.
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
    """(log P(True) - log P(False), label mass) of the first string of each example; float64."""
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
    """Starts element embeddings from the periodic table, so that neighbours in a group start as neighbours in the embedding.

    Descriptors (row, group, electronegativity, atomic radius, Mendeleev number; standardised, missing values 0) times a random
    matrix, scaled to the spread of the other embeddings.
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


def fit_calibration(odds: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(temperature, bias) of P = sigmoid(odds / temperature + bias) that minimise the log loss plus a weak pull to (1, 0).

    Temperature scaling (Guo et al. 2017) with a bias, because training balances the classes and the world does not.
    """
    from scipy.optimize import minimize

    if len(np.unique(labels)) < 2:
        return 1.0, 0.0

    def loss(parameters: np.ndarray) -> float:
        logit = odds * math.exp(-parameters[0]) + parameters[1]
        return float(np.mean(np.logaddexp(0, logit) - labels * logit) + 1e-3 * np.sum(parameters**2))

    found = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=[(-3, 3), (-5, 5)])
    return float(math.exp(found.x[0])), float(found.x[1])


def scores(p: np.ndarray, labels: np.ndarray, mass: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """ROC-AUC, TPR, TNR and accuracy at P = 0.5, ECE over equal-width bins, and the reliability curve."""
    from sklearn.metrics import roc_auc_score

    positive, negative = labels == 1, labels == 0
    index = np.minimum((p * bins).astype(int), bins - 1)
    curve = [
        {"p_mean": float(p[index == b].mean()), "observed": float(labels[index == b].mean()), "n": int((index == b).sum())}
        for b in range(bins)
        if (index == b).any()
    ]
    return {
        "n": len(labels),
        "n_true": int(positive.sum()),
        "roc_auc": float(roc_auc_score(labels, p)) if positive.any() and negative.any() else math.nan,
        "tpr": float((p[positive] >= 0.5).mean()) if positive.any() else math.nan,
        "tnr": float((p[negative] < 0.5).mean()) if negative.any() else math.nan,
        "accuracy": float(((p >= 0.5) == positive).mean()) if len(labels) else math.nan,
        "ece": float(sum(c["n"] * abs(c["p_mean"] - c["observed"]) for c in curve) / max(len(labels), 1)),
        "log_loss": float(-np.mean(np.log(np.clip(np.where(positive, p, 1 - p), 1e-12, 1)))) if len(labels) else math.nan,
        "label_mass_min": float(mass.min()) if len(mass) else math.nan,
        "reliability": curve,
    }


def draw_calibration(path: Path, p: np.ndarray, labels: np.ndarray, metrics: dict[str, Any], raw: dict[str, Any]) -> None:
    """ROC curve, reliability before and after calibration, and the distribution of P, on the held-out formulas."""
    from sklearn.metrics import roc_curve

    with figure(path, ncols=3, figsize=(11, 3.6)) as (drawn, axes):
        if 0 < labels.sum() < len(labels):
            false_positive, true_positive, _ = roc_curve(labels, p)
            axes[0].plot(false_positive, true_positive, color="black", label=f"AUC {metrics['roc_auc']:.3f}")
            axes[0].legend(loc="lower right", frameon=False)
        axes[0].plot([0, 1], [0, 1], color="0.6", linestyle=":")
        axes[0].set(xlabel="false positive rate (fraction)", ylabel="true positive rate (fraction)", title="ROC")
        for content, marker, grey, name in ((raw, "s", "0.6", "before"), (metrics, "o", "black", "after")):
            curve = content["reliability"]
            label = f"{name}: ECE {content['ece']:.3f}"
            axes[1].plot([c["p_mean"] for c in curve], [c["observed"] for c in curve], marker=marker, color=grey, label=label)
        axes[1].plot([0, 1], [0, 1], color="0.6", linestyle=":")
        axes[1].legend(frameon=False)
        axes[1].set(xlabel="predicted P(synthesizable) (fraction)", ylabel="observed share (fraction)", title="Reliability")
        edges = np.linspace(0, 1, 21)
        axes[2].hist(p[labels == 0], edges, color="0.75", label=f"False (n = {int((labels == 0).sum())})")
        axes[2].hist(p[labels == 1], edges, histtype="step", color="black", linewidth=1.5, label=f"True (n = {int(labels.sum())})")
        axes[2].legend(frameon=False)
        axes[2].set(xlabel="predicted P(synthesizable) (fraction)", ylabel="crystals (count)", title="Held-out formulas")
        drawn.suptitle(f"embedded-lm on n = {metrics['n']} crystals of formulas not seen in training", fontsize=10)


def inputs_fingerprint(cfg: Config, db_hash: str) -> str:
    """Hash of everything that decides the result: the database, the seed and the settings (not the paths)."""
    settings = {key: value for key, value in dataclasses.asdict(cfg.synth_lm).items() if key not in ("db_path", "checkpoint")}
    read = ("synth_e_hull_max_ev", "unsynth_e_hull_min_ev", "val_fraction", "test_fraction")
    content = {"db": db_hash, "seed": cfg.run.seed, **settings, **{key: getattr(cfg.dataset, key) for key in read}}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def main(cfg: Config) -> None:
    """Labels, material strings, training, calibration, checkpoint, sidecar and figure."""
    settings, checkpoint = cfg.synth_lm, Path(cfg.synth_lm.checkpoint)
    if not Path(settings.db_path).is_file():
        where = relative_name(settings.db_path)
        raise StageError(f"no database at {where}: run python -m scripts.prepare_demo_data or set synth_lm.db_path to a C2DB file")
    started = time.time()
    device = resolve_device(cfg.run)
    db_hash = file_sha256(settings.db_path)
    fingerprint = inputs_fingerprint(cfg, db_hash)
    if _is_complete(checkpoint, fingerprint):
        log.info("%s is complete for these inputs: nothing to do", relative_name(checkpoint))
        return
    rows, counts = select_rows(cfg)
    examples = labelled_examples(cfg, rows, db_hash, counts)
    parts = {name: [i for i, example in enumerate(examples) if example.split == name] for name in ("train", "val", "test")}
    labels = np.array([example.label for example in examples], dtype=float)
    for name, part in parts.items():
        counts[f"{name} crystals"], counts[f"{name} True"] = len(part), int(labels[part].sum()) if part else 0
    train = parts["train"]
    if not train or not parts["val"] or not parts["test"] or len(set(labels[train])) < 2:
        raise StageError(
            f"{relative_name(settings.db_path)} has too few labelled crystals ({len(examples)}; True: {int(labels.sum())}): "
            "training, validation and test need some each, and training both labels"
        )
    log.info("%s", ", ".join(f"{name}: {count}" for name, count in counts.items()))

    tokenizer = material_strings.MaterialTokenizer()
    encoder = Encoder(tokenizer, examples)
    longest = max(len(encoder.prompt_ids(i, v)[0]) + 1 for i in range(len(examples)) for v in range(len(encoder.parts[i])))
    model_config = embedded_lm.EmbeddedLMConfig(
        len(tokenizer), settings.hidden_size, settings.num_layers, settings.num_heads, max_tokens=max(512, longest)
    )
    seed_everything(cfg.run.seed)
    model = embedded_lm.build_embedded_lm(model_config)
    initialise_elements(model, tokenizer, torch.Generator().manual_seed(cfg.run.seed))
    model.to(device)
    best, history = train_model(cfg, model, encoder, examples, parts, fingerprint)
    model.load_state_dict(best)

    odds, mass = {}, {}
    for name in ("val", "test"):
        odds[name], mass[name] = log_odds(model, encoder, parts[name], settings.batch_size)
    temperature, bias = fit_calibration(odds["val"], labels[parts["val"]])
    p = {name: 1 / (1 + np.exp(-np.clip(odds[name] / temperature + bias, -700, 700))) for name in odds}
    metrics = {name: scores(p[name], labels[parts[name]], mass[name]) for name in p}
    raw = scores(1 / (1 + np.exp(-np.clip(odds["test"], -700, 700))), labels[parts["test"]], mass["test"])
    element_counts = Counter(symbol for i in train for symbol in set(_elements(examples[i].strings[0])))
    calibration = {"temperature": temperature, "bias": bias, "test_ece_before": raw["ece"]}
    state = {
        "vocabulary": tokenizer.vocabulary,
        "model": {key: value.cpu().contiguous() for key, value in best.items()},
        "element_counts": dict(sorted(element_counts.items())),
        "min_element_rows": settings.min_element_rows,
        "calibration": calibration,
        "metrics": metrics,
        "fingerprint": fingerprint,
    }
    save_checkpoint(checkpoint, "synth_lm", model_config, state)
    figure = checkpoint.with_name("synth_lm_calibration.png")
    draw_calibration(figure, p["test"], labels[parts["test"]], metrics["test"], raw)
    # The sidecar comes last: it is what says that the product is complete.
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=[settings.db_path],
        counts=dict(counts),
        metrics={**metrics, "calibration": calibration, "history": history},
        fingerprint=fingerprint,
        checkpoint_sha256=file_sha256(checkpoint),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    _resume_path(checkpoint).unlink(missing_ok=True)
    test = metrics["test"]
    log.info("held-out formulas, n = %d (%d True): ROC-AUC %.3f", test["n"], test["n_true"], test["roc_auc"])
    log.info("TPR %.3f, TNR %.3f, accuracy %.3f, ECE %.3f", test["tpr"], test["tnr"], test["accuracy"], test["ece"])
    log.info("%s and %s in %.0f s", relative_name(checkpoint), figure.name, time.time() - started)


def _elements(text: str) -> list[str]:
    tokens = material_strings.MaterialTokenizer().tokens(text)
    return [token.removeprefix("element ") for token in tokens if token.startswith("element ")]


def _is_complete(checkpoint: Path, fingerprint: str) -> bool:
    """Whether the sidecar was written for these inputs and the checkpoint beside it is the one that it describes."""
    try:
        sidecar = read_sidecar(checkpoint, stage=STAGE)
    except StageError:
        return False
    if sidecar.get("fingerprint") != fingerprint or not checkpoint.is_file():
        return False
    return sidecar.get("checkpoint_sha256") == file_sha256(checkpoint)


def _resume_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.stem + ".resume.pth")


def train_model(
    cfg: Config,
    model: torch.nn.Module,
    encoder: Encoder,
    examples: list[Example],
    parts: dict[str, list[int]],
    fingerprint: str,
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Trains in place; returns (weights of the best epoch by validation log loss, one record per epoch).

    The state after every epoch is saved; the draws of an epoch depend on the seed and its number alone, so a run that is started
    again continues bit-identically on CPU. Raises StageError, the last saved state kept, when the loss is not finite.
    """
    settings, tokenizer = cfg.synth_lm, encoder.tokenizer
    labels = np.array([example.label for example in examples], dtype=float)
    train, val = parts["train"], parts["val"]
    share = float(labels[train].mean())
    class_weight = {1: 0.5 / share, 0: 0.5 / (1 - share)}
    decay = settings.weight_decay
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=decay)
    steps_per_epoch = math.ceil(len(train) / settings.batch_size)
    total, warmup = settings.epochs * steps_per_epoch, max(1, min(200, settings.epochs * steps_per_epoch // 10))

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / max(1, total))))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    history: list[dict[str, float]] = []
    best: dict[str, Any] = {"loss": math.inf, "model": None}
    resume = _resume_path(Path(settings.checkpoint))
    first_epoch = 0
    if (saved := _load_resume(resume, fingerprint)) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        history, best, first_epoch = saved["history"], saved["best"], saved["epoch"]
        log.info("going on after epoch %d of %d", first_epoch, settings.epochs)

    def save(epoch: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        state |= {"history": history, "best": best, "epoch": epoch, "fingerprint": fingerprint}
        with atomic_path(resume) as temporary:
            torch.save(state, temporary)

    if saved is None:
        save(0)
    for epoch in range(first_epoch, settings.epochs):
        rng = np.random.default_rng([cfg.run.seed, epoch])
        variants = [int(rng.integers(len(encoder.parts[index]))) for index in train]
        lengths = [len(encoder.prompt_ids(index, variant)[0]) for index, variant in zip(train, variants, strict=True)]
        model.train()
        losses = []
        for chosen in tqdm(batches(lengths, settings.batch_size, rng), desc=f"epoch {epoch + 1}/{settings.epochs}", leave=False):
            items = []
            for position in chosen:
                index = train[position]
                ids, string = encoder.prompt_ids(index, variants[position], rng)
                hidden = np.array(ids)
                covered = rng.random(string.stop - string.start) < settings.mask_fraction
                hidden[string][covered] = tokenizer.unknown_id
                label = examples[index].label
                items.append((hidden.tolist(), ids, label, class_weight[label]))
            loss, label_loss = training_loss(model, tokenizer, items, settings.string_loss_weight)
            if not torch.isfinite(loss):
                raise StageError(
                    f"loss is not finite in epoch {epoch + 1}, step {scheduler.last_epoch + 1}: lower synth_lm.learning_rate and "
                    f"start again; the state after epoch {epoch} is in {relative_name(resume)}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            losses.append(float(label_loss))
        odds, mass = log_odds(model, encoder, val, settings.batch_size)
        if not np.isfinite(odds).all():
            raise StageError(f"the weights are not finite after epoch {epoch + 1}; lower synth_lm.learning_rate and start again")
        temperature, bias = fit_calibration(odds, labels[val])
        p = 1 / (1 + np.exp(-np.clip(odds / temperature + bias, -700, 700)))
        found = scores(p, labels[val], mass)
        history.append({"epoch": epoch + 1, "train_label_loss": float(np.mean(losses)), "val_log_loss": found["log_loss"]})
        history[-1]["val_roc_auc"] = found["roc_auc"]
        log.info(
            "epoch %d/%d: label loss %.3f, validation log loss %.3f, ROC-AUC %.3f",
            *(epoch + 1, settings.epochs, history[-1]["train_label_loss"], found["log_loss"], found["roc_auc"]),
        )
        if found["log_loss"] < best["loss"]:
            weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            best = {"loss": found["log_loss"], "model": weights}
        save(epoch + 1)
    return best["model"], history


def _load_resume(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The saved state of an interrupted run with the same inputs, or None."""
    if not path.is_file():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        usable = saved.get("fingerprint") == fingerprint
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for damaged files
        log.warning("%s cannot be read (%s): starting from the beginning", relative_name(path), type(error).__name__)
        return None
    if not usable:
        log.info("%s is of other settings or data: starting from the beginning", relative_name(path))
        return None
    return saved


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "synth_lm")))
