"""Stage 2: cleans C2DB monolayers, labels them with ΔG_H at every adsorption site, and splits them by formula.

    python material_dataset.py [--config config.yaml] [section.key=value ...]

Reads   dataset.db_path (ASE db, C2DB keys of any release), dimenet.checkpoint (stage 1), and dataset.judged_dirs if any: folders
        of stage 5 whose candidates join the training split, a loop from the judges back to the generator.
Writes  dataset.processed_dir/{train,val,test}.pt   flat tensors, loadable with weights_only=True, each with a JSON sidecar
        dataset.processed_dir/dropped.csv           every row left out, with the reason
        dataset.processed_dir/labels.jsonl          ΔG_H per sheet as it was computed; a killed run goes on from there
                                                    (labels_potential.jsonl for dataset.label_source=potential)

ΔG_H = ΔE_H + 0.27 eV at every symmetry-distinct site of both faces; the material's value is that of the site with the lowest ΔE_H.
Polymorphs share a reduced formula and therefore a split.
"""

from __future__ import annotations

import contextlib
import csv
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import resolve_device, run_stage
from pipeline.errors import StageError
from pipeline.files import atomic_path, file_sha256, relative_name
from pipeline.locks import locked_folder
from pipeline.provenance import sidecar_path, write_sidecar
from pipeline.settings import Config, DatasetConfig

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from crystals.database import Row
    from energetics.hydrogen import HydrogenPredictor

STAGE = "material_dataset.py"
SPLITS = ("train", "val", "test")
Dropped = list[tuple[int, str, str]]  # row id, uid, reason


def summarise(split: dict[str, Any]) -> dict[str, Any]:
    """Count rows, formulas and labels of one packed split."""
    import torch

    return {
        "rows": len(split["uid"]),
        "formulas": len(set(split["formula"])),
        "with_delta_g_h": int(torch.isfinite(split["delta_g_h"]).sum()),
        "with_e_hull": int(torch.isfinite(split["e_hull"]).sum()),
        "synthesizable": int((split["y_synth"] == 1).sum()),
        "not_synthesizable": int((split["y_synth"] == 0).sum()),
        "sites": len(split["site_delta_g"]),
    }


def clean_database(settings: DatasetConfig) -> tuple[list[Row], Dropped]:
    """Read the usable rows, one for each uid, and those left out with the reason. Raises StageError where no row is usable."""
    from crystals.database import Row, read_rows

    rows: list[Row] = []
    dropped: Dropped = []
    seen: set[str] = set()
    for row_id, uid, result in read_rows(settings):
        if isinstance(result, Row) and result.uid in seen:
            result = "duplicate uid"
        if isinstance(result, str):
            dropped.append((row_id, uid, result))
            continue
        seen.add(result.uid)
        rows.append(result)
    if not rows:
        reasons = Counter(reason for *_, reason in dropped)
        raise StageError(f"{relative_name(settings.db_path)}: no usable row; dropped: {dict(reasons)}")
    return rows, dropped


def write_dropped(path: Path, dropped: Dropped) -> None:
    """Write the rows left out and the reason of each as a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("row", "uid", "reason"), *dropped])


def label_database(rows: list[Row], cfg: Config, predictor: HydrogenPredictor, out: Path) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows to label and their ΔG_H labels by ``Row.key``. Labels of an earlier run in ``out`` are reused."""
    from energetics.potential_labels import labeller_identity
    from energetics.site_cache import SiteStore
    from energetics.site_labels import LabelStore, label_rows, label_rows_by_potential, rows_to_label

    settings = cfg.dataset
    by_potential = settings.label_source == "potential"
    identity = {
        "checkpoint_sha256": file_sha256(cfg.dimenet.checkpoint),
        "her_correction_ev": settings.her_correction_ev,
        "h_image_distance_angstrom": settings.h_image_distance_angstrom,
    }
    if by_potential:
        identity |= labeller_identity(cfg)
    store = LabelStore(out / ("labels_potential.jsonl" if by_potential else "labels.jsonl"), identity)
    requested = rows_to_label(rows, cfg)
    if by_potential:
        label_rows_by_potential(requested, cfg, store)
    else:
        label_rows(requested, predictor, settings, store, SiteStore(out / "sites.jsonl", settings.h_image_distance_angstrom))
    return requested, {row.key: store[row.key] for row in requested}


def split_rows(rows: list[Row], settings: DatasetConfig, seed: int) -> dict[str, list[Row]]:
    """Sort rows into train, val and test by formula. Raises StageError where one of them is empty."""
    from crystals.database import split_of

    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        splits[split_of(row.formula, seed, settings.val_fraction, settings.test_fraction)].append(row)
    for name in SPLITS:
        if not splits[name]:
            raise StageError(f"the {name} split is empty: {len(rows)} rows are too few for dataset.val_fraction and test_fraction")
    return splits


def add_judged(splits: dict[str, list[Row]], settings: DatasetConfig) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Add judged candidates to the training split, in place; returns their labels and their counts.

    Judged candidates teach and measure nothing: validation and test stay the database's, and so do their formulas.
    """
    from crystals.database import read_judged

    held_out = {row.formula for name in SPLITS if name != "train" for row in splits[name]}
    judged, labels = read_judged(settings)
    splits["train"] += [row for row in judged if row.formula not in held_out]
    counts = {
        "candidates": len(judged),
        "with_delta_g_h": len(labels),
        "of_held_out_formulas": sum(row.formula in held_out for row in judged),
    }
    return labels, {"judged": counts} if settings.judged_dirs else {}


def write_splits(packed: dict[str, dict[str, Any]], out: Path, cfg: Config, counts: dict[str, Any]) -> None:
    """Write the three splits and their sidecars."""
    import torch

    from crystals.database import JUDGED_FILES

    settings = cfg.dataset
    inputs = [settings.db_path, cfg.dimenet.checkpoint, *([settings.label_model] if settings.label_more else [])]
    inputs += [Path(folder) / name for folder in settings.judged_dirs for name in JUDGED_FILES]
    with contextlib.ExitStack() as stack:
        for name in SPLITS:
            with stack.enter_context(atomic_path(out / f"{name}.pt")).open("wb") as stream:
                torch.save(packed[name], stream)
        # The new splits take their places when all are written; none of the earlier run may pass for a part of the same data.
        for name in SPLITS:
            sidecar_path(out / f"{name}.pt").unlink(missing_ok=True)
    for name in SPLITS:
        summary = summarise(packed[name])
        write_sidecar(
            out / f"{name}.pt",
            stage=STAGE,
            seed=cfg.run.seed,
            settings=settings,
            inputs=inputs,
            counts=counts | {"split": summary},
        )
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in summary.items()))


def main(cfg: Config) -> None:
    """Read, clean, label, split and write."""
    from energetics.hydrogen import HydrogenPredictor

    predictor = HydrogenPredictor.load(cfg.dimenet.checkpoint, resolve_device(cfg.run))
    rows, dropped = clean_database(cfg.dataset)
    with locked_folder(cfg.dataset.processed_dir, "dataset.processed_dir"):
        _label_and_write(cfg, predictor, rows, dropped)


def _label_and_write(cfg: Config, predictor: HydrogenPredictor, rows: list[Row], dropped: Dropped) -> None:
    """Label and split the rows, and write the products to their folder."""
    from generation.sheet_table import pack

    settings, out = cfg.dataset, Path(cfg.dataset.processed_dir)
    write_dropped(out / "dropped.csv", dropped)

    requested, labels = label_database(rows, cfg, predictor, out)
    reasons = Counter(reason for *_, reason in dropped)
    status = Counter(labels[row.key]["status"] for row in requested)
    outside = sum(labels[row.key]["status"] == "ok" and not labels[row.key]["in_domain"] for row in requested)
    counts = {"rows_read": len(rows) + len(dropped), "kept": len(rows), "dropped": dict(reasons)}
    counts |= {"label_status": dict(status), "not_asked_for_delta_g_h": len(rows) - len(requested)}
    counts["delta_g_h_masked_outside_domain"] = outside

    splits = split_rows(rows, settings, cfg.run.seed)
    judged_labels, judged_counts = add_judged(splits, settings)
    labels = judged_labels | labels
    write_splits({name: pack(splits[name], labels) for name in SPLITS}, out, cfg, counts | judged_counts)
    print(f"read {counts['rows_read']} rows, kept {len(rows)}; ΔG_H outside the judge's domain and masked: {outside}")
    for reason, n in status.most_common():
        if reason != "ok":
            print(f"  no ΔG_H for {n}: {reason}")
    for reason, n in reasons.most_common():
        print(f"  dropped {n}: {reason}")


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dimenet", "dataset", "generation", "evaluation")))
