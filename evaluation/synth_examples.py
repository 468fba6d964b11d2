"""Reads the labelled sheets from which the embedded synthesizability model learns."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from tqdm import tqdm

from crystals import database
from crystals.descriptors import COMPOSITION_NAMES, SHEET_NAMES, crystal_descriptors
from crystals.elements import CHALCOGENS, GROUP4_TO_6, HALOGENS, HEAVY_CHALCOGENS
from crystals.matching import match_structure, same_structure
from geo_utils import NotTwoDimensional
from pipeline.errors import StageError
from pipeline.files import missing_file, relative_name
from pipeline.settings import Config

COORDINATION = [len(COMPOSITION_NAMES) + SHEET_NAMES.index(f"soft coordination {name}") for name in ("mean", "least", "largest")]
MAX_DIFFERENCE = 0.7  # bonds per atom by which two rows of the same sheet may differ
STABILITY_KEYS = ("dynamic_stability_phonons", "dynamic_stability_stiffness", "dyn_stab", "thermodynamic_stability_level")


@dataclasses.dataclass
class Example:
    """One sheet of a database.

    ``label``: 1.0 synthesizable, 0.0 not, NaN unknown. ``reported``: whether a synthesis of it or of its layered parent is on
    record. ``e_hull``: eV/atom. ``descriptors``: as ``crystals.descriptors.crystal_descriptors``. ``split``: side of its formula.
    """

    name: str
    formula: str
    label: float
    reported: bool
    e_hull: float
    atoms: Atoms
    descriptors: np.ndarray
    split: str


def side_of(formula: str, cfg: Config) -> str:
    """Return the side of a formula key in the one split, with the fractions of the data set: as the generator's rows are split."""
    return database.split_of(formula, cfg.run.seed, cfg.dataset.val_fraction, cfg.dataset.test_fraction)


def learning_label(keys: dict[str, Any], cfg: Config) -> float:
    """Return the label of a row for this model: that of ``database.synth_label``, but unknown for unstable rows near the hull.

    A quarter of the sheets whose synthesis is on record are dynamically unstable in C2DB's small cells. So instability near the
    hull says little about synthesis, and such a row is no example of what cannot be made.
    """
    label = database.synth_label(keys, cfg.dataset.synth_e_hull_max_ev, cfg.dataset.unsynth_e_hull_min_ev)
    near = float(keys.get("ehull", math.inf)) <= cfg.dataset.unsynth_e_hull_min_ev
    return math.nan if label == 0.0 and near else label


def read_examples(cfg: Config) -> tuple[list[Example], Counter]:
    """Read all databases of the stage; the same sheet in two of them is one example.

    A sheet is reported where one of its rows is. Else the row with keys of stability decides its label, among equals that of the
    later database.

    Returns:
        (examples, also those with an unknown label, in the order of the rows; counts of rows and of what was left out and why).

    Raises:
        StageError: a database is missing or not readable.
    """
    counts: Counter = Counter()
    groups: dict[str, list[tuple[Example, bool]]] = defaultdict(list)
    rows = [row for path in (cfg.synth_lm.db_path, *cfg.synth_lm.more_db_paths) for row in _rows(Path(path), cfg, counts)]
    if cfg.synth_lm.max_rows and len(rows) > cfg.synth_lm.max_rows:
        chosen = np.random.default_rng(cfg.run.seed).choice(len(rows), cfg.synth_lm.max_rows, replace=False)
        counts["not drawn (synth_lm.max_rows)"] = len(rows) - cfg.synth_lm.max_rows
        rows = [rows[index] for index in sorted(chosen)]
    for name, keys, atoms in tqdm(rows, desc="descriptors", unit="row", mininterval=1):
        try:
            descriptors = crystal_descriptors(atoms)
        except NotTwoDimensional:
            counts["not 2D"] += 1
            continue
        except ValueError as error:
            counts[f"no descriptors: {error}"] += 1
            continue
        formula = database.formula_key(str(atoms.symbols))
        e_hull = float(keys.get("ehull", math.nan))
        example = Example(
            name, formula, learning_label(keys, cfg), database.is_reported(keys), e_hull, atoms, descriptors, side_of(formula, cfg)
        )
        _merge(groups[formula], example, any(key in keys for key in STABILITY_KEYS), counts)
    examples = [example for group in groups.values() for example, _ in group]
    counts["unlabelled"] = sum(math.isnan(example.label) for example in examples)
    return examples, counts


def _rows(path: Path, cfg: Config, counts: Counter) -> list[tuple[str, dict[str, Any], Atoms]]:
    """Return (name, keys, atoms) of the rows of one database."""
    if not path.exists():
        key = "synth_lm.db_path" if str(path) == cfg.synth_lm.db_path else "synth_lm.more_db_paths"
        raise missing_file(key, path, "name C2DB, or run python -m scripts.prepare_demo_data")
    rows = []
    try:
        total, found = database.stored_rows(path)
        for row in tqdm(found, total=total, desc=path.name, unit="row", leave=False):
            counts["rows"] += 1
            rows.append((f"{path.name}/{row.id}", dict(row.key_value_pairs), row.toatoms()))
    except StageError:
        raise
    except Exception as error:  # ase raises sqlite3, JSON and plain assertion errors for files that are no ASE database
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise StageError(f"{relative_name(path)} is not a readable ASE database ({reason})") from error
    return rows


def _merge(group: list[tuple[Example, bool]], example: Example, has_stability: bool, counts: Counter) -> None:
    """Add an example to those of its formula, or join it with the one that has the same structure."""
    for place, (known, known_stability) in enumerate(group):
        if known.name.split("/")[0] == example.name.split("/")[0]:
            continue  # polymorphs of one database are different sheets
        # Another number of bonds is another sheet; comparing all pairs of structures would take an hour.
        if np.abs(known.descriptors - example.descriptors)[COORDINATION].max() > MAX_DIFFERENCE:
            continue
        if same_structure(*(match_structure(either.atoms, is_sheet=True) for either in (known, example))):
            counts["also in an earlier database"] += 1
            chosen = example if has_stability or not known_stability else known
            reported = known.reported or example.reported
            label = 1.0 if reported else chosen.label
            group[place] = (dataclasses.replace(chosen, reported=reported, label=label), has_stability or known_stability)
            return
    group.append((example, has_stability))


def family(atoms: Atoms) -> str:
    """Return the family of a sheet in words that tables of layered materials use."""
    symbols = Counter(atoms.get_chemical_symbols())
    divisor = math.gcd(*symbols.values())
    amounts = sorted(count // divisor for count in symbols.values())
    anions = set(symbols) & {*CHALCOGENS, *HALOGENS}
    if len(symbols) == 1:
        return "elemental"
    if amounts == [1, 2] and len(anions & set(HEAVY_CHALCOGENS)) == 1:
        return f"MX2 {_polymorph(atoms)}"
    if amounts == [1, 2] and anions & set(HALOGENS):
        return "dihalide"
    if amounts == [1, 3] and anions & set(HALOGENS):
        return "trihalide"
    if amounts == [1, 1] and anions & set(HEAVY_CHALCOGENS):
        return "monochalcogenide"
    if set(symbols) & {"C", "N"} and set(symbols) & set(GROUP4_TO_6):
        return "MXene or nitride"
    if {"P", "As"} & set(symbols) and anions & set(HEAVY_CHALCOGENS):
        return "phosphochalcogenide"
    if "O" in symbols:
        return "oxide or hydroxide"
    return "other"


def _polymorph(atoms: Atoms) -> str:
    """Return the polymorph of an MX2 by its layer group: p-6m2 is 2H, p-3m1 is 1T."""
    from crystals.symmetry import layer_group_number
    from geo_utils import Sheet

    return {78: "2H", 72: "1T"}.get(layer_group_number(Sheet.from_atoms(atoms, 6.0)), "other")
