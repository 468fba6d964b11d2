"""Labels database rows with ΔG_H, once: labels are stored on the disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
from pipeline.store import LineStore

log = logging.getLogger("her2d")
LABEL_CHUNK = 16  # sheets judged together


def rows_to_label(rows: list[Row], cfg: Config) -> list[Row]:
    """Return the rows that get a ΔG_H label, in the order in which the potential labels them.

    First come the formulas up to ``label_fraction``; a larger fraction only adds formulas. Then come ``label_more`` rows: those for
    which the heads of ``label_model`` predict a ΔG_H nearest to the target, nearest first.
    """
    settings, seed = cfg.dataset, cfg.run.seed
    largest = settings.label_max_atoms or settings.max_atoms
    allowed = [row for row in rows if len(row.sheet) <= largest and row.e_hull <= settings.label_max_e_hull_ev]
    allowed.sort(key=lambda row: (label_rank(row.formula, seed), row.row_id))
    requested = [row for row in allowed if label_rank(row.formula, seed) < settings.label_fraction]
    rest = allowed[len(requested) :]
    if not (settings.label_more and rest):
        return requested
    from generation.sampling import predict_properties
    from models import load_denoiser

    device = resolve_device(cfg.run)
    model, content = load_denoiser(settings.label_model, "set dataset.label_model to a checkpoint of stage 3", device)
    known = set(content["elements"])
    rest = [row for row in rest if set(row.sheet.atomic_numbers.tolist()) <= known]
    predicted = predict_properties(model.double(), [row.sheet for row in rest], device).delta_g.numpy()
    nearest = np.argsort(np.round(np.abs(predicted - cfg.generation.target_delta_g), 5), kind="stable")
    return requested + [rest[k] for k in nearest[: settings.label_more]]


def label_rank(formula: str, seed: int) -> float:
    """Return the rank of a reduced formula, in [0, 1), in the order in which formulas get labels."""
    return hash_share(f"label:{seed}:{formula}")


class LabelStore(LineStore):
    """ΔG_H labels by structure in a file of JSON lines. The first line names the judge, and another judge starts a new file."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        super().__init__(path, {"identity": identity})

    @property
    def labels(self) -> Mapping[str, dict[str, Any]]:
        """Return the labels by structure, which is the store itself."""
        return self

    def add(self, key: str, her: SheetHER) -> dict[str, Any]:
        """Store what the judge says of one structure."""
        label = {
            "status": her.status,
            "coverage": her.coverage,
            "delta_g": [round(float(v), 5) for v in her.delta_g],
            "std": [round(float(v), 5) for v in her.std],
            "kind": [site.kind for site in her.sites],
            "face": [site.face for site in her.sites],
            "in_domain": her.in_domain,
        }
        return super().add(key, label)


def label_rows(
    rows: list[Row],
    predictor: HydrogenPredictor,
    settings: DatasetConfig,
    store: LabelStore,
    site_cache: SiteStore | None = None,
) -> None:
    """Fill the store for every row that is not in it yet, showing rate and time left.

    Sheets are judged in fixed chunks, because the last digits of a prediction depend on what else is in its batch: a chunk that a
    killed run left unfinished is judged again as a whole, and the labels are those of an uninterrupted run.
    """
    unique = list({row.key: row for row in rows}.values())
    sites = 0
    with tqdm(total=len(unique), desc="label", unit="sheet") as bar:
        for at in range(0, len(unique), LABEL_CHUNK):
            chunk = unique[at : at + LABEL_CHUNK]
            if not all(row.key in store for row in chunk):
                sheets = (row.sheet.to_atoms() for row in chunk)
                for row, her in zip(chunk, predictor.predict_many(sheets, settings, site_cache), strict=True):
                    store.add(row.key, her)
                    sites += len(her.sites)
            bar.update(len(chunk))
            bar.set_postfix(sites=sites)


def label_rows_by_potential(rows: list[Row], cfg: Config, store: LabelStore) -> None:
    """Do what ``label_rows`` does with the potential of section ``evaluation`` instead of DimeNet++."""
    sheets = {row.key: row.sheet.to_atoms() for row in rows}
    missing = {key: sheet for key, sheet in sheets.items() if key not in store}
    if not missing:
        return
    with tqdm(total=len(sheets), initial=len(sheets) - len(missing), desc="label", unit="sheet") as bar:
        for _ in label_sheets(missing, cfg, store):
            bar.update()
