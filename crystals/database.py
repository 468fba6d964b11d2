"""Rows of a database of monolayers: reading, cleaning, labels of synthesizability and the split by formula."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
import math
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from ase.db import connect
from ase.formula import Formula
from tqdm import tqdm

from crystals.formulas import cell_formula
from crystals.validity import sheet_fault
from geo_utils import Sheet
from pipeline.errors import StageError
from pipeline.files import missing_file, relative_name
from pipeline.settings import DatasetConfig

log = logging.getLogger("her2d")

JUDGED_FILES = ("metrics.csv", "relaxed.extxyz")
READ_VACUUM = 6.0  # Å, least gap by which the vacuum axis of a fully periodic row is recognised


def check_ase_database(path: str | os.PathLike) -> None:
    """Raise StageError for an empty file and an SQLite file of another kind, into which ase.db would write its own tables."""
    path = Path(path)
    with path.open("rb") as handle:
        head = handle.read(16)
    if not head:
        raise StageError(f"{relative_name(path)} is empty")
    if path.suffix == ".db" and head != b"SQLite format 3\0":
        raise StageError(f"{relative_name(path)} is not a readable ASE database: it is no SQLite file")
    if head == b"SQLite format 3\0":
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'systems'").fetchone():
                raise StageError(f"{relative_name(path)} is not an ASE database: it has no table of systems")


@dataclass
class Row:
    """A clean row of the database.

    Attributes:
        row_id: its id in the database.
        uid: its name there.
        sheet: the sheet.
        formula: ``formula_key`` of the sheet, by which the data are split.
        prototype: as the database names it.
        e_hull: energy above the hull, eV/atom.
        h_form: heat of formation, eV/atom; NaN where the database has none.
        y_synth: label of synthesizability as ``synth_label`` gives it.
    """

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
        """Return a hash of the structure, under which its ΔG_H label is stored."""
        content = [self.sheet.atomic_numbers.tolist(), self.sheet.frac_coords.round(5).tolist()]
        content += [self.sheet.heights.round(4).tolist(), self.sheet.lattice.round(4).tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


class TreeRow:
    """A row of C2DB's folder tree (2024): ``structure.json`` with the crystal and, beside it, ``data.json`` with its keys.

    It has what is used of a row of an ASE database.
    """

    def __init__(self, number: int, structure: Path) -> None:
        self.id, self._structure = number, structure
        data = structure.with_name("data.json")
        try:
            found = json.loads(data.read_text(encoding="utf-8")) if data.is_file() else {}
        except ValueError as error:
            raise StageError(f"{relative_name(data)} is not readable JSON: {error}") from error
        self.key_value_pairs: dict[str, Any] = found if isinstance(found, dict) else {}

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key."""
        return self.key_value_pairs.get(key, default)

    def toatoms(self) -> Atoms:
        """Read the crystal; raises errors of ASE and of ``json`` for a file that holds none."""
        return ase.io.read(self._structure, format="json")


def stored_rows(path: Path, limit: int = 0) -> tuple[int, Iterator[Any]]:
    """Open a database of crystals: an ASE database, or a folder tree with a ``structure.json`` for each crystal.

    Args:
        path: file or folder.
        limit: largest number of rows; 0: all.

    Returns:
        (number of rows, the rows). A row has ``id``, ``key_value_pairs``, ``get`` and ``toatoms``.

    Raises:
        StageError: the file is no ASE database, or the folder has no ``structure.json``.
    """
    if path.is_dir():
        files = sorted(path.rglob("structure.json"))
        if not files:
            raise StageError(f"{relative_name(path)} is a folder without structure.json files: name C2DB's *.db or its folder tree")
        files = files[: limit or None]
        return len(files), (TreeRow(number, file) for number, file in enumerate(files, start=1))
    check_ase_database(path)
    database = connect(path)
    total = database.count()
    return min(total, limit or total), database.select(limit=limit or None)


def clean_row(row: Any, settings: DatasetConfig) -> Row | str:
    """Return the clean form of a row of an ASE database, or the reason why it is dropped."""
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
    if fault := sheet_fault(sheet.to_atoms(), settings.clash_factor, single=False):
        return "clash" if fault == "clash" else "not 2D: bonds do not form a sheet"
    prototype = str(keys.get("prototype") or keys.get("crystal_type") or "")
    formula = formula_key(sheet.formula)
    y_synth = synth_label(keys, settings.synth_e_hull_max_ev, settings.unsynth_e_hull_min_ev)
    return Row(row.id, uid, sheet, formula, prototype, e_hull, h_form, y_synth)


def read_rows(settings: DatasetConfig) -> Iterator[tuple[int, str, Row | str]]:
    """Yield (row id, uid, clean row or reason) for every row of the database, and warn where no row is labelled synthesizable.

    Raises:
        StageError: the file is missing, or no ASE database.
    """
    path = Path(settings.db_path)
    labels: Counter[float] = Counter()
    if not path.is_file() and not path.is_dir():
        raise missing_file("dataset.db_path", path, "name C2DB, or run python -m scripts.prepare_demo_data")
    try:
        total, rows = stored_rows(path, settings.max_rows)
        for row in tqdm(rows, total=total, desc="read", unit="row"):
            result = clean_row(row, settings)
            if isinstance(result, Row):
                labels[result.y_synth] += 1
            yield row.id, str(row.get("uid", "")), result
    except StageError:
        raise
    except Exception as error:  # ase.db raises errors of sqlite3, json and its own for files that are no database
        raise StageError(f"{relative_name(path)} is not a readable ASE database: {type(error).__name__}: {error}") from error
    if labels and not labels[1.0]:
        known = ", ".join((*_REPORTED_KEYS, *_STABILITY_KEYS))
        log.warning(
            "%s: none of %d rows is labelled synthesizable by %s or ehull", relative_name(path), sum(labels.values()), known
        )


def read_judged(settings: DatasetConfig, named_by: str = "dataset.judged_dirs") -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """Read the relaxed candidates that stage 5 judged, as further rows of the data set.

    Of several candidates with one formula of the cell, the first is taken. Candidates without a relaxed sheet or an E_hull are left
    out, and so are those past ``max_atoms`` and ``max_e_hull_ev``. named_by: the setting that an error names.

    Returns:
        (rows, labels): rows with the potential's E_hull; labels by ``Row.key``, the potential's ΔG_H corrected from DFT at the site
        where it relaxed H.

    Raises:
        StageError: a folder that stage 5 has not written.
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
                e_hull, delta_g = (_number(verdict[name]) for name in ("e_above_hull_ev", "delta_g_h_corrected_ev"))
                formula, usable = (
                    cell_formula(verdict["formula"]),
                    verdict["sheet_relaxed"] == "true" and len(atoms) <= settings.max_atoms,
                )
                if formula in rows or not usable or not abs(e_hull) <= settings.max_e_hull_ev:
                    continue
                sheet = Sheet.from_atoms(atoms)
                reduced = formula_key(sheet.formula)
                uid = f"{folder.parent.name}/{verdict['id']}"
                row = rows[formula] = Row(0, uid, sheet, reduced, "", e_hull, _number(verdict["e_form_ev"]), math.nan)
                if math.isfinite(delta_g):
                    labels[row.key] = {
                        "delta_g": [delta_g],
                        "std": [_number(verdict["delta_g_h_corrected_std_ev"])],
                        "kind": [verdict["h_site_kind"]],
                        "face": [verdict["h_site_face"]],
                        "coverage": _number(verdict["h_coverage"]),
                        "in_domain": True,
                    }
        except (OSError, KeyError, ValueError) as error:
            raise StageError(
                f"{named_by}: {relative_name(folder)} has no {' and '.join(JUDGED_FILES)} of stage 5 (test.py): "
                f"{type(error).__name__}: {error}"
            ) from error
    return list(rows.values()), labels


def _number(cell: str) -> float:
    """Return a number of ``metrics.csv``; NaN for an empty cell. Tables of earlier versions have "nan" there."""
    return float(cell) if cell else math.nan


def formula_key(formula: str) -> str:
    """Return the reduced formula, the key of the one split. Every spelling and multiple of a composition gives the same key.

    The order is ASE's Hill order: carbon, hydrogen, then the alphabet ("Mo2S4": "MoS2", "BC": "CB", "AlH3": "H3Al").
    """
    return str(Formula(formula).reduce()[0].format("hill"))


def split_of(key: str, seed: int, val_fraction: float, test_fraction: float) -> str:
    """Return the side of a formula key in the one split of every model: "train", "val" or "test".

    The side is a function of a hash of the key and of the arguments. A formula held out of one model is held out of all that use
    the same seed and fractions, whatever else their data hold.
    """
    share = hash_share(f"{seed}:{key}")
    if share < test_fraction:
        return "test"
    return "val" if share < test_fraction + val_fraction else "train"


def split_formulas(
    keys: Iterable[str], seed: int, val_fraction: float, test_fraction: float, least_val: int = 1, least_test: int = 1
) -> dict[str, str]:
    """Return the side of every formula key by ``split_of``, with at least ``least_val`` and ``least_test`` formulas held out.

    A small set may have no formula with a hash in one of the ranges. Then those with the next hashes are held out instead.
    """
    ordered = sorted(set(keys), key=lambda key: hash_share(f"{seed}:{key}"))
    sides = Counter(split_of(key, seed, val_fraction, test_fraction) for key in ordered)
    num_test = max(least_test, sides["test"])
    num_val = max(least_val, sides["test"] + sides["val"] - num_test)
    return {key: "test" if k < num_test else "val" if k < num_test + num_val else "train" for k, key in enumerate(ordered)}


def hash_share(text: str) -> float:
    """Return a hash of a text as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") / 2**64


_REPORTED_KEYS = ("doi", "icsd_id", "cod_id")
_STABILITY_KEYS = (
    "thermodynamic_stability_level",
    "dynamic_stability_level",
    "dynamic_stability_phonons",
    "dynamic_stability_stiffness",
    "dyn_stab",
)


_LOW, _HIGH = ("1", "1.0", "low"), ("3", "3.0", "high")


def synth_label(row_kvp: Mapping[str, Any], synth_e_hull_max_ev: float, unsynth_e_hull_min_ev: float) -> float:
    """Return the label of synthesizability of one C2DB row: 1.0 synthesizable, 0.0 not, NaN unlabelled.

    1: the monolayer or its layered parent is reported (doi, icsd_id, cod_id), or the row has thermodynamic stability level 3 and is
    dynamically stable. 0: ehull is above ``unsynth_e_hull_min_ev``, or the row is dynamically unstable. A row without any of these
    keys is labelled by ehull alone: 1 up to ``synth_e_hull_max_ev``, 0 above ``unsynth_e_hull_min_ev``.

    Args:
        row_kvp: the row's key-value pairs, with the values of old (low/high, 1..3) or new (Yes/No/Unknown) versions of C2DB. Of the
            levels of 2018, 1 is unstable, 2 undecided and 3 stable.
        synth_e_hull_max_ev: eV/atom.
        unsynth_e_hull_min_ev: eV/atom.
    """
    words = {key: str(row_kvp[key]).strip().lower() for key in (*_REPORTED_KEYS, *_STABILITY_KEYS) if row_kvp.get(key) is not None}
    if is_reported(row_kvp):
        return 1.0
    try:
        e_hull = float(row_kvp.get("ehull", math.nan))
    except (TypeError, ValueError):
        e_hull = math.nan
    if not words:
        return 1.0 if e_hull <= synth_e_hull_max_ev else 0.0 if e_hull > unsynth_e_hull_min_ev else math.nan
    phonons, stiffness = words.get("dynamic_stability_phonons", ""), words.get("dynamic_stability_stiffness", "")
    level, verdict = words.get("dynamic_stability_level", ""), words.get("dyn_stab", "")
    unstable = "low" in (phonons, stiffness) or verdict in ("no", "false") or level in _LOW
    stable = not unstable and (phonons == "high" or verdict in ("yes", "true") or level in _HIGH)
    if words.get("thermodynamic_stability_level", "") in _HIGH and stable:
        return 1.0
    return 0.0 if unstable or e_hull > unsynth_e_hull_min_ev else math.nan


def is_reported(row_kvp: Mapping[str, Any]) -> bool:
    """Tell whether a row names a synthesis of the monolayer or its layered parent (doi, icsd_id, cod_id; "id:" may precede it)."""
    words = (str(row_kvp.get(key) or "").strip().lower().removeprefix("id:").strip() for key in _REPORTED_KEYS)
    return any(word not in ("", "-", "none", "nan", "no", "false", "unknown", "0") for word in words)
