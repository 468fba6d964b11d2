"""Reads what the learnt hull learns from: facts of a database, and energies of its sheets with the potential.

Every row of a database such as C2DB says the hull energy at its composition: hform − ehull. Energies of some rows with the
potential say how far its E_form is from hform; each is a line of a store, so that a run that is stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.formula import Formula
from tqdm import tqdm

from crystals.database import check_ase_database, formula_key, hash_share, split_of
from energetics.hull import MAX_SAMPLE_ATOMS, References, sample_rows
from energetics.learnt_hull import e_form_descriptors, hull_descriptors, start_of_e_form
from energetics.potentials import Potential
from energetics.relaxation import is_sane, relax_sheet, single_point
from geo_utils import standard_sheet
from pipeline.errors import StageError
from pipeline.files import file_sha256, missing_file, relative_name
from pipeline.settings import Config, EvaluationConfig
from pipeline.store import LineStore

FOLDS = 5  # of the cross-validation
READ_VACUUM = 6.0  # Å, least empty gap that makes an axis of a row the vacuum axis


@dataclasses.dataclass(frozen=True)
class Fact:
    """One row of the database: id, atoms of its cell, formula key, side of the split, hform and ehull in eV/atom."""

    row_id: int
    natoms: int
    formula: str
    side: str
    h_form: float
    e_hull: float


@dataclasses.dataclass(frozen=True)
class Formulas:
    """The formulas of the database: keys, sides and folds, descriptors (F, columns), hull energies (F,) in eV/atom."""

    keys: list[str]
    side: np.ndarray
    fold: np.ndarray
    descriptors: np.ndarray
    truth: np.ndarray
    potential: np.ndarray

    @property
    def index(self) -> dict[str, int]:
        """Return the place of each key."""
        return {key: place for place, key in enumerate(self.keys)}


@dataclasses.dataclass(frozen=True)
class Sheets:
    """Sheets with an energy by the potential, as arrays (N,): place of the formula, E_form and the truth in eV/atom."""

    place: np.ndarray
    e_form: np.ndarray
    start: np.ndarray
    descriptors: np.ndarray
    h_form: np.ndarray
    e_hull: np.ndarray

    def __len__(self) -> int:
        return len(self.place)


def read_facts(path: Path, split: tuple[int, float, float]) -> list[Fact]:
    """Return the rows with finite hform and ehull. Raises StageError where there is none."""
    if not path.is_file():
        raise missing_file("learnt_hull.db_path", path, "name C2DB")
    check_ase_database(path)
    facts = []
    for row in connect(path).select(include_data=False):
        values = [row.get(name) for name in ("hform", "ehull")]
        if all(isinstance(value, float | int) and math.isfinite(value) for value in values):
            key = formula_key(row.formula)
            facts.append(Fact(row.id, row.natoms, key, split_of(key, *split), float(values[0]), float(values[1])))
    if not facts:
        raise StageError(f"learnt_hull.db_path: {relative_name(path)} has no row with hform and ehull")
    return facts


def describe_formulas(facts: Sequence[Fact], references: References) -> Formulas:
    """Return the formulas whose elements have references, with the hull energies of database and potential."""
    known: dict[str, list[float]] = {}
    for fact in facts:
        known.setdefault(fact.formula, []).append(fact.h_form - fact.e_hull)
    rows = []
    by_elements = sorted(known, key=lambda key: (sorted(Formula(key).count()), key))  # one phase diagram serves many
    for key in tqdm(by_elements, desc="hull energies", unit="formula"):
        try:
            own = references.hull_energy(key)
            rows.append((key, hull_descriptors(key, own), float(np.median(known[key])), own))
        except (KeyError, ValueError):  # an element without reference or descriptors
            continue
    side = {fact.formula: fact.side for fact in facts}
    keys = [row[0] for row in rows]
    return Formulas(
        keys,
        np.array([side[key] for key in keys]),
        np.array([int(FOLDS * hash_share(f"fold:{key}")) for key in keys]),
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows]),
        np.array([row[3] for row in rows]),
    )


def choose_rows(facts: Sequence[Fact], side: str, count: int, max_atoms: int) -> list[Fact]:
    """Return up to ``count`` rows of one side (0: all) with at most ``max_atoms`` atoms, in an order that a hash decides."""
    chosen = [fact for fact in facts if fact.side == side and fact.natoms <= max_atoms]
    chosen.sort(key=lambda fact: hash_share(f"single point:{fact.row_id}"))
    return chosen[:count] if count else chosen


def energies(
    rows: Sequence[Fact], store: LineStore, db_path: Path, compute: Callable[[Atoms], dict[str, Any]], title: str
) -> list[dict[str, Any]]:
    """Return the records of rows; those that the store lacks are computed first, one line each.

    compute: structure -> record. Where it fails, the record is {"energy": NaN} with the reason as "status".
    """
    database = connect(db_path)
    for fact in tqdm([fact for fact in rows if fact.row_id not in store], desc=title, unit="row"):
        try:
            record = compute(database.get(id=fact.row_id).toatoms())
        except (ValueError, RuntimeError) as error:  # no sheet, or a potential outside its domain
            record = {"energy": math.nan, "status": str(error)[:80]}
        store.add(fact.row_id, record)
    return [store[fact.row_id] for fact in rows]


def relaxed_record(atoms: Atoms, potential: Potential, settings: EvaluationConfig) -> dict[str, Any]:
    """Return energy (eV), status and structure after a relaxation as of a candidate."""
    start = standard_sheet(atoms, READ_VACUUM)
    found = relax_sheet(start, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
    own = {"numbers": found.atoms.numbers, "positions": found.atoms.positions, "cell": found.atoms.cell.array}
    return {"energy": found.energy, "status": found.status, **{name: value.tolist() for name, value in own.items()}}


def describe_sheets(
    rows: Sequence[tuple[Fact, Atoms, float]], formulas: Formulas, references: References, counts: Counter
) -> Sheets:
    """Return the table of sheets; those that cannot be described are counted. rows: (fact, structure, energy of the cell in eV)."""
    index, kept = formulas.index, []
    for fact, atoms, energy in rows:
        try:
            if not is_sane(energy, len(atoms)):
                raise ValueError("no energy")
            e_form = references.e_form(atoms, energy)
            columns = e_form_descriptors(atoms, e_form)
            kept.append((index[fact.formula], e_form, start_of_e_form(fact.formula, e_form), columns, fact.h_form, fact.e_hull))
        except (ValueError, KeyError) as error:
            counts[f"left out: {type(error).__name__}"] += 1
    if not kept:
        raise StageError("learnt_hull: no sheet with an energy is left to learn from or to measure on")
    return Sheets(*(np.array(column) for column in zip(*kept, strict=True)))


def read_sheets(
    facts: Sequence[Fact], formulas: Formulas, potential: Potential, references: References, cfg: Config
) -> tuple[list[Sheets], list[Sheets], Counter]:
    """Compute the energies that are missing and return the sheets.

    Returns:
        (training and held-out sheets as the database has them, training and held-out sheets after relaxation, counts).
    """
    settings, db_path, counts = cfg.learnt_hull, Path(cfg.learnt_hull.db_path), Counter()
    identity = {"db": file_sha256(db_path), "potential": potential.identity.get("sha256")}
    points = LineStore(Path(settings.work_dir) / "single_points.jsonl", identity)
    database, tables, after = connect(db_path), [], []
    for side, count in (("train", settings.train_rows), ("test", settings.test_rows)):
        rows = choose_rows(facts, side, count, settings.max_atoms)
        records = energies(
            rows, points, db_path, lambda a: {"energy": single_point(a, potential.calculator)}, f"single points, {side}"
        )
        found = [(f, database.get(id=f.row_id).toatoms(), r["energy"]) for f, r in zip(rows, records, strict=True)]
        tables.append(describe_sheets(found, formulas, references, counts))
        counts[f"{side} sheets"] = len(tables[-1])
    identity |= {name: getattr(cfg.evaluation, name) for name in ("fmax_ev_per_angstrom", "max_steps")}
    relaxed = LineStore(Path(settings.work_dir) / "relaxed.jsonl", identity)
    by_id = {fact.row_id: fact for fact in facts if fact.side == "test"}
    test_ids = sample_rows(db_path, settings.relaxed_rows, cfg.run.seed, lambda row: row.id in by_id)
    teaching = choose_rows(facts, "train", 0, min(settings.max_atoms, MAX_SAMPLE_ATOMS))[: settings.calibration_rows]
    for side, rows in (("train", teaching), ("test", [by_id[row_id] for row_id in test_ids])):
        records = energies(rows, relaxed, db_path, lambda a: relaxed_record(a, potential, cfg.evaluation), f"relaxations, {side}")
        found = [
            (f, Atoms(r["numbers"], r["positions"], cell=r["cell"], pbc=(True, True, False)), r["energy"])
            for f, r in zip(rows, records, strict=True)
            if r["status"] == "ok"
        ]
        counts[f"relaxed {side} sheets, not converged"] = len(rows) - len(found)
        after.append(describe_sheets(found, formulas, references, counts))
        counts[f"relaxed {side} sheets"] = len(after[-1])
    return tables, after, counts
