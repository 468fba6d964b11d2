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
import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.db import connect
from ase.formula import Formula
from torch.utils.data import Dataset
from torch_geometric.data import Data
from tqdm import tqdm

import config
from config import StageError
from geo_utils import Sheet, has_clash, sheet_connectivity
from hydrogen import HydrogenPredictor, SheetHER, SiteStore
from potential_labels import label_sheets, labeller_identity
from synthesizability import synth_label

log = logging.getLogger("her2d")

STAGE = "material_dataset.py"
SPLITS = ("train", "val", "test")
LABEL_CHUNK = 16  # sheets judged together
JUDGED_FILES = ("metrics.csv", "relaxed.extxyz")
READ_VACUUM = 6.0  # Å, least gap by which the vacuum axis of a fully periodic row is recognised


@dataclass
class Row:
    """A clean row: the sheet and its labels, NaN where the database has none."""

    row_id: int
    uid: str
    sheet: Sheet
    formula: str
    prototype: str
    e_hull: float
    h_form: float
    y_synth: float

    @property
    def key(self) -> str:
        """What the ΔG_H label depends on: the structure itself."""
        content = [self.sheet.atomic_numbers.tolist(), self.sheet.frac_coords.round(5).tolist()]
        content += [self.sheet.heights.round(4).tolist(), self.sheet.lattice.round(4).tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def clean_row(row: Any, settings: config.DatasetConfig) -> Row | str:
    """A usable row, or the reason why it is dropped."""
    keys = row.key_value_pairs
    uid = str(keys.get("uid") or keys.get("asr_id") or f"row-{row.id}")
    try:
        e_hull, h_form = (float(keys[name]) if name in keys else math.nan for name in ("ehull", "hform"))
    except (TypeError, ValueError):
        return "ehull or hform is not a number"
    if math.isnan(e_hull):
        return "no ehull"
    if math.isinf(e_hull) or math.isinf(h_form):
        return "ehull or hform is not a number"
    if e_hull > settings.max_e_hull_ev:
        return "ehull above dataset.max_e_hull_ev"
    if e_hull < -settings.max_e_hull_ev:
        return "ehull below -dataset.max_e_hull_ev"
    try:
        atoms: Atoms = row.toatoms()
    except Exception as error:  # ase rebuilds cells, constraints and calculators here, each with errors of its own
        return f"structure cannot be read: {type(error).__name__}"
    if len(atoms) > settings.max_atoms:
        return "more than dataset.max_atoms atoms"
    if (atoms.numbers < 1).any() or (atoms.numbers > 94).any():
        return "element outside 1..94"
    try:
        sheet = Sheet.from_atoms(atoms, READ_VACUUM)
    except ValueError as error:  # NotTwoDimensional included
        return f"not 2D: {str(error).split(' of at least')[0]}"
    if sheet.thickness > settings.max_thickness_angstrom:
        return "thicker than dataset.max_thickness_angstrom"
    standard = sheet.to_atoms()
    if has_clash(standard, settings.clash_factor):
        return "clash"
    if sheet_connectivity(standard).dimensionality != 2:
        return "not 2D: bonds do not form a sheet"
    prototype = str(keys.get("prototype") or keys.get("crystal_type") or "")
    formula = str(Formula(sheet.formula).reduce()[0].format("hill"))
    y_synth = synth_label(keys, settings.synth_e_hull_max_ev, settings.unsynth_e_hull_min_ev)
    return Row(row.id, uid, sheet, formula, prototype, e_hull, h_form, y_synth)


def read_rows(settings: config.DatasetConfig) -> Iterator[tuple[int, str, Row | str]]:
    """(row id, uid, clean row or reason) of every row of the database, lazily."""
    path = Path(settings.db_path)
    if not path.is_file():
        raise StageError(f"no database at {config.relative_name(path)}: set dataset.db_path, or run prepare_demo_data.py")
    try:
        config.check_ase_database(path)
        database = connect(path)
        total = database.count()
        rows = database.select(limit=settings.max_rows or None)
        for row in tqdm(rows, total=min(total, settings.max_rows or total), desc="read", unit="row"):
            yield row.id, str(row.get("uid", "")), clean_row(row, settings)
    except StageError:
        raise
    except Exception as error:  # ase.db raises errors of sqlite3, json and its own for files that are no database
        raise StageError(f"{config.relative_name(path)} is not a readable ASE database: {type(error).__name__}: {error}") from error


def read_judged(settings: config.DatasetConfig) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """Relaxed candidates that stage 5 judged, as rows with the potential's E_hull, and labels by ``Row.key``: the potential's ΔG_H
    corrected from DFT, at the site where it relaxed H. One candidate per composition, that of the first folder.

    Candidates without a relaxed sheet or an E_hull, and those past the limits of database rows, are left out. Raises StageError for
    a folder that stage 5 has not written.
    """
    rows: dict[str, Row] = {}
    labels: dict[str, dict[str, Any]] = {}
    for folder in map(Path, settings.judged_dirs):
        try:
            with (folder / JUDGED_FILES[0]).open(newline="", encoding="utf-8") as handle:
                verdicts = {verdict["id"]: verdict for verdict in csv.DictReader(handle)}
            frames = ase.io.read(folder / JUDGED_FILES[1], ":", format="extxyz")
            found = [(atoms, verdicts[atoms.info["id"]]) for atoms in frames]
            for atoms, verdict in found:
                e_hull, delta_g = float(verdict["e_above_hull_ev"]), float(verdict["delta_g_h_corrected_ev"])
                formula, usable = verdict["formula"], verdict["sheet_relaxed"] == "true" and len(atoms) <= settings.max_atoms
                if formula in rows or not usable or not abs(e_hull) <= settings.max_e_hull_ev:
                    continue
                sheet = Sheet.from_atoms(atoms)
                reduced = str(Formula(sheet.formula).reduce()[0].format("hill"))
                uid = f"{folder.parent.name}/{verdict['id']}"
                row = rows[formula] = Row(0, uid, sheet, reduced, "", e_hull, float(verdict["e_form_ev"]), math.nan)
                if math.isfinite(delta_g):
                    labels[row.key] = {
                        "delta_g": [delta_g],
                        "std": [float(verdict["delta_g_h_corrected_std_ev"])],
                        "kind": [verdict["h_site_kind"]],
                        "face": [verdict["h_site_face"]],
                        "coverage": float(verdict["h_coverage"]),
                        "in_domain": True,
                    }
        except (OSError, KeyError, ValueError) as error:
            raise StageError(
                f"dataset.judged_dirs: {config.relative_name(folder)} has no {' and '.join(JUDGED_FILES)} of stage 5 (test.py): "
                f"{type(error).__name__}: {error}"
            ) from error
    return list(rows.values()), labels


def split_of(formula: str, settings: config.DatasetConfig, seed: int) -> str:
    """Split of a reduced formula: a hash, so that the same formula falls on the same side whatever else the database holds."""
    share = _share(f"{seed}:{formula}")
    if share < settings.test_fraction:
        return "test"
    return "val" if share < settings.test_fraction + settings.val_fraction else "train"


def rows_to_label(rows: list[Row], cfg: config.Config) -> list[Row]:
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
    from models import load_denoiser
    from sampling import predict_properties

    device = config.resolve_device(cfg.run)
    model, content = load_denoiser(settings.label_model, "set dataset.label_model to a checkpoint of stage 3", device)
    known = set(content["elements"])
    rest = [row for row in rest if set(row.sheet.atomic_numbers.tolist()) <= known]
    predicted = predict_properties(model.double(), [row.sheet for row in rest], device).delta_g.numpy()
    nearest = np.argsort(np.round(np.abs(predicted - cfg.generation.target_delta_g), 5), kind="stable")
    return asked + [rest[k] for k in nearest[: settings.label_more]]


def label_rank(formula: str, seed: int) -> float:
    """Place of a reduced formula, in [0, 1), in the order in which formulas get labels."""
    return _share(f"label:{seed}:{formula}")


def _share(text: str) -> float:
    """A number in [0, 1) that is a hash of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") / 2**64


# -------------------------------------------------------------------------------------------------------------------- labels


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
    settings: config.DatasetConfig,
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


def label_rows_by_potential(rows: list[Row], cfg: config.Config, store: LabelStore) -> None:
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


# ------------------------------------------------------------------------------------------------------------------- products


def pack(rows: list[Row], labels: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The flat tensors of one split; see ``SheetDataset`` for shapes."""
    best = [_best_site(labels.get(row.key)) for row in rows]
    site_counts = [len(labels[row.key]["delta_g"]) if row.key in labels else 0 for row in rows]
    with_sites = [labels[row.key] for row, count in zip(rows, site_counts, strict=True) if count]

    def per_row(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)

    def concatenated(values: list[np.ndarray], shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(values) if values else np.zeros(shape)).float()

    return {
        "schema_version": config.SCHEMA_VERSION,
        "atomic_numbers": torch.from_numpy(np.concatenate([row.sheet.atomic_numbers for row in rows])).long()
        if rows
        else torch.zeros(0, dtype=torch.long),
        "frac_coords": concatenated([row.sheet.frac_coords for row in rows], (0, 2)),
        "heights": concatenated([row.sheet.heights for row in rows], (0,)),
        "lattice": torch.from_numpy(np.array([row.sheet.lattice for row in rows]).reshape(-1, 2, 2)).float(),
        "ptr": torch.tensor([0, *np.cumsum([len(row.sheet) for row in rows])], dtype=torch.long),
        "delta_g_h": per_row([value for value, _ in best]),
        "delta_g_h_std": per_row([std for _, std in best]),
        "e_hull": per_row([row.e_hull for row in rows]),
        "h_form": per_row([row.h_form for row in rows]),
        "y_synth": per_row([row.y_synth for row in rows]),
        "uid": [row.uid for row in rows],
        "formula": [row.formula for row in rows],
        "prototype": [row.prototype for row in rows],
        "site_ptr": torch.tensor([0, *np.cumsum(site_counts)], dtype=torch.long),
        "site_delta_g": per_row([v for label in with_sites for v in label["delta_g"]]),
        "site_std": per_row([v for label in with_sites for v in label["std"]]),
        "site_kind": [v for label in with_sites for v in label["kind"]],
        "site_face": [v for label in with_sites for v in label["face"]],
        "site_coverage": per_row([labels[row.key]["coverage"] if row.key in labels else math.nan for row in rows]),
    }


def _best_site(label: dict[str, Any] | None) -> tuple[float, float]:
    """(ΔG_H, standard error) of the most stable site; NaN where the judge has no value or is outside its domain."""
    if label is None or not label["delta_g"] or not label["in_domain"]:
        return math.nan, math.nan
    index = int(np.argmin(label["delta_g"]))
    return label["delta_g"][index], label["std"][index]


class SheetDataset(Dataset):
    """Reader of ``processed/{train,val,test}.pt``.

    The file is one dict: atomic_numbers (A,), frac_coords (A, 2), heights (A,) Å, ptr (M + 1,), lattice (M, 2, 2) Å; delta_g_h,
    delta_g_h_std, e_hull, h_form, y_synth (M,), eV or eV/atom, NaN where unlabelled; uid, formula, prototype: M strings; and the
    site table site_ptr (M + 1,), site_delta_g, site_std (S,), site_kind, site_face, site_coverage (M,). Items are PyG ``Data``.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        path = Path(path)
        if not path.is_file():
            raise StageError(f"{config.relative_name(path)} is missing: run {STAGE}")
        try:
            self.table = torch.load(path, weights_only=True)
            schema = self.table["schema_version"]
        except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... for damaged files
            raise StageError(f"{config.relative_name(path)} is not a readable dataset: rerun {STAGE}") from error
        if schema != config.SCHEMA_VERSION:
            raise StageError(f"{config.relative_name(path)} has schema {schema}, expected {config.SCHEMA_VERSION}: rerun {STAGE}")
        if missing := [name for name in pack([], {}) if name not in self.table]:
            raise StageError(f"{config.relative_name(path)} has no {', '.join(missing[:3])}: rerun {STAGE}")
        sizes = {name: len(self.table[name]) for name in ("lattice", "delta_g_h", "e_hull", "y_synth", "uid")}
        if any(size != len(self.table["ptr"]) - 1 for size in sizes.values()):
            raise StageError(f"{config.relative_name(path)} has columns of unequal length: rerun {STAGE}")

    def __len__(self) -> int:
        return len(self.table["uid"])

    def __getitem__(self, index: int) -> Data:
        table = self.table
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        atoms = slice(int(table["ptr"][index]), int(table["ptr"][index + 1]))
        return Data(
            atomic_numbers=table["atomic_numbers"][atoms],
            frac_coords=table["frac_coords"][atoms],
            heights=table["heights"][atoms],
            lattice=table["lattice"][index : index + 1],
            delta_g_h=table["delta_g_h"][index : index + 1],
            e_hull=table["e_hull"][index : index + 1],
            y_synth=table["y_synth"][index : index + 1],
            num_nodes=atoms.stop - atoms.start,
            uid=table["uid"][index],
        )


def summarise(split: dict[str, Any]) -> dict[str, Any]:
    """Counts of one split."""
    return {
        "rows": len(split["uid"]),
        "formulas": len(set(split["formula"])),
        "with_delta_g_h": int(torch.isfinite(split["delta_g_h"]).sum()),
        "with_e_hull": int(torch.isfinite(split["e_hull"]).sum()),
        "synthesizable": int((split["y_synth"] == 1).sum()),
        "not_synthesizable": int((split["y_synth"] == 0).sum()),
        "sites": len(split["site_delta_g"]),
    }


def main(cfg: config.Config) -> None:
    """Reads, cleans, labels, splits and writes."""
    settings, seed = cfg.dataset, cfg.run.seed
    device = config.resolve_device(cfg.run)
    out = Path(settings.processed_dir)
    by_potential = settings.label_source == "potential"
    predictor = HydrogenPredictor.load(cfg.dimenet.checkpoint, device)

    rows: list[Row] = []
    dropped: list[tuple[int, str, str]] = []
    seen: set[str] = set()
    for row_id, uid, result in read_rows(settings):
        if isinstance(result, Row) and result.uid in seen:
            result = "duplicate uid"
        if isinstance(result, str):
            dropped.append((row_id, uid, result))
            continue
        seen.add(result.uid)
        rows.append(result)
    reasons = Counter(reason for *_, reason in dropped)
    if not rows:
        raise StageError(f"{config.relative_name(settings.db_path)}: no usable row; dropped: {dict(reasons)}")
    out.mkdir(parents=True, exist_ok=True)
    with config.atomic_path(out / "dropped.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("row", "uid", "reason"), *dropped])

    identity = {
        "checkpoint_sha256": config.file_sha256(cfg.dimenet.checkpoint),
        "her_correction_ev": settings.her_correction_ev,
        "h_image_distance_angstrom": settings.h_image_distance_angstrom,
    }
    if by_potential:
        identity |= labeller_identity(cfg)
    store = LabelStore(out / ("labels_potential.jsonl" if by_potential else "labels.jsonl"), identity)
    asked = rows_to_label(rows, cfg)
    if by_potential:
        label_rows_by_potential(asked, cfg, store)
    else:
        label_rows(asked, predictor, settings, store, SiteStore(out / "sites.jsonl", settings.h_image_distance_angstrom))
    labels = {row.key: store.labels[row.key] for row in asked}
    status = Counter(labels[row.key]["status"] for row in asked)
    outside = sum(labels[row.key]["status"] == "ok" and not labels[row.key]["in_domain"] for row in asked)

    counts = {"rows_read": len(rows) + len(dropped), "kept": len(rows), "dropped": dict(reasons)}
    counts |= {"label_status": dict(status), "not_asked_for_delta_g_h": len(rows) - len(asked)}
    counts["delta_g_h_masked_outside_domain"] = outside
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        splits[split_of(row.formula, settings, seed)].append(row)
    for name in SPLITS:
        if not splits[name]:
            raise StageError(f"the {name} split is empty: {len(rows)} rows are too few for dataset.val_fraction and test_fraction")
    # Judged candidates teach and measure nothing: validation and test stay the database's, and so do their formulas.
    held_out = {row.formula for name in SPLITS if name != "train" for row in splits[name]}
    judged, judged_labels = read_judged(settings)
    splits["train"] += [row for row in judged if row.formula not in held_out]
    labels = judged_labels | labels
    if settings.judged_dirs:
        counts["judged"] = {
            "candidates": len(judged),
            "with_delta_g_h": len(judged_labels),
            "of_held_out_formulas": sum(row.formula in held_out for row in judged),
        }
    packed = {name: pack(splits[name], labels) for name in SPLITS}
    inputs = [settings.db_path, cfg.dimenet.checkpoint, *([settings.label_model] if settings.label_more else [])]
    inputs += [Path(folder) / name for folder in settings.judged_dirs for name in JUDGED_FILES]
    with contextlib.ExitStack() as stack:
        for name in SPLITS:
            with stack.enter_context(config.atomic_path(out / f"{name}.pt")).open("wb") as stream:
                torch.save(packed[name], stream)
        # The new splits take their places when all are written; none of the earlier run may pass for a part of the same data.
        for name in SPLITS:
            config.sidecar_path(out / f"{name}.pt").unlink(missing_ok=True)
    for name in SPLITS:
        config.write_sidecar(
            out / f"{name}.pt",
            stage=STAGE,
            seed=seed,
            settings=settings,
            inputs=inputs,
            counts=counts | {"split": summarise(packed[name])},
        )
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in summarise(packed[name]).items()))
    print(f"read {counts['rows_read']} rows, kept {len(rows)}; ΔG_H outside the judge's domain and masked: {outside}")
    for reason, n in status.most_common():
        if reason != "ok":
            print(f"  no ΔG_H for {n}: {reason}")
    for reason, n in reasons.most_common():
        print(f"  dropped {n}: {reason}")


if __name__ == "__main__":
    raise SystemExit(config.run_stage(main, __doc__, ("run", "dimenet", "dataset", "generation", "evaluation")))
