"""ΔG_H labels of database rows, kept on disk."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crystals.database import Row, hash_share
from energetics.hydrogen import HydrogenPredictor
from energetics.potential_labels import label_sheets
from energetics.site_cache import SiteStore
from energetics.sites import SheetHER
from pipeline.cli import resolve_device
from pipeline.settings import Config, DatasetConfig

log = logging.getLogger("her2d")
LABEL_CHUNK = 16  # sheets judged together


def rows_to_label(rows: list[Row], cfg: Config) -> list[Row]:
    """Rows that get a ΔG_H label, in the order in which the potential labels them: first formulas up to ``label_fraction``, of
    which a larger one only adds some, then ``label_more`` rows in the order of what the heads of ``label_model`` say of them."""
    settings, seed = cfg.dataset, cfg.run.seed
    largest = settings.label_max_atoms or settings.max_atoms
    allowed = [row for row in rows if len(row.sheet) <= largest and row.e_hull <= settings.label_max_e_hull_ev]
    allowed.sort(key=lambda row: (label_rank(row.formula, seed), row.row_id))
    asked = [row for row in allowed if label_rank(row.formula, seed) < settings.label_fraction]
    rest = allowed[len(asked) :]
    if not (settings.label_more and rest):
        return asked
    from generation.sampling import predict_properties
    from models import load_denoiser

    device = resolve_device(cfg.run)
    model, content = load_denoiser(settings.label_model, "set dataset.label_model to a checkpoint of stage 3", device)
    known = set(content["elements"])
    rest = [row for row in rest if set(row.sheet.atomic_numbers.tolist()) <= known]
    predicted = predict_properties(model.double(), [row.sheet for row in rest], device).delta_g.numpy()
    nearest = np.argsort(np.round(np.abs(predicted - cfg.generation.target_delta_g), 5), kind="stable")
    return asked + [rest[k] for k in nearest[: settings.label_more]]


def label_rank(formula: str, seed: int) -> float:
    """Place of a reduced formula, in [0, 1), in the order in which formulas get labels."""
    return hash_share(f"label:{seed}:{formula}")


class LabelStore:
    """ΔG_H labels by structure in an append-only file; the first line names the judge, and another judge starts a new file."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.labels: dict[str, dict[str, Any]] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"identity": identity}, sort_keys=True)
        good = 0
        if path.is_file():
            with path.open("rb") as handle:
                first = handle.readline()
                if first == (head + "\n").encode():
                    good = len(first)
                    for line in handle:
                        if not line.endswith(b"\n"):
                            break
                        try:
                            label = json.loads(line)
                            self.labels[label["key"]] = label
                        except (ValueError, TypeError, KeyError):
                            log.warning("%s is damaged: labels from line %d on are made anew", path.name, len(self.labels) + 2)
                            break
                        good += len(line)
                else:
                    log.info("labels.jsonl is of another judge or setting: labelling anew")
        if good:
            os.truncate(path, good)
            self.handle = path.open("a", encoding="utf-8")
        else:
            self.handle = path.open("w", encoding="utf-8")
            self.handle.write(head + "\n")

    def add(self, key: str, her: SheetHER) -> None:
        """Stores the answer of the judge for one structure."""
        label = {
            "key": key,
            "status": her.status,
            "coverage": her.coverage,
            "delta_g": [round(float(v), 5) for v in her.delta_g],
            "std": [round(float(v), 5) for v in her.std],
            "kind": [site.kind for site in her.sites],
            "face": [site.face for site in her.sites],
            "in_domain": her.in_domain,
        }
        line = json.dumps(label)
        stored = json.loads(line)  # what the next start would read, so that products are equal byte for byte
        if self.labels.get(key) != stored:  # part of a chunk may be there already
            self.handle.write(line + "\n")
            self.handle.flush()
            self.labels[key] = stored


def label_rows(
    rows: list[Row],
    predictor: HydrogenPredictor,
    settings: DatasetConfig,
    store: LabelStore,
    places: SiteStore | None = None,
) -> None:
    """Fills the store for every row that is not in it yet, showing rate and time left.

    Sheets are judged in fixed chunks, because the last digits of a prediction depend on what else is in its batch: a chunk that a
    killed run left unfinished is judged again as a whole, and the labels are those of an uninterrupted run.
    """
    unique = list({row.key: row for row in rows}.values())
    sites = 0
    with tqdm(total=len(unique), desc="label", unit="sheet") as bar:
        for at in range(0, len(unique), LABEL_CHUNK):
            chunk = unique[at : at + LABEL_CHUNK]
            if not all(row.key in store.labels for row in chunk):
                sheets = (row.sheet.to_atoms() for row in chunk)
                for row, her in zip(chunk, predictor.predict_many(sheets, settings, places), strict=True):
                    store.add(row.key, her)
                    sites += len(her.sites)
            bar.update(len(chunk))
            bar.set_postfix(sites=sites)


def label_rows_by_potential(rows: list[Row], cfg: Config, store: LabelStore) -> None:
    """``label_rows`` with the potential of section ``evaluation`` instead of DimeNet++."""
    unique = list({row.key: row for row in rows}.values())
    missing = [row for row in unique if row.key not in store.labels]
    if not missing:
        return
    answers = label_sheets([row.sheet.to_atoms() for row in missing], cfg)
    with tqdm(total=len(unique), initial=len(unique) - len(missing), desc="label", unit="sheet") as bar:
        for row, her in zip(missing, answers, strict=True):
            store.add(row.key, her)
            bar.update()
