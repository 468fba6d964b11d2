"""Compares E_above_hull with a database's on sheets that the generator made, where they are sheets of the database.

A judge may be right on the crystals of a database, and wrong on what a generator makes of their compositions. The compositions are
of the test split, which neither the learnt hull nor refiner and ranker have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from tqdm import tqdm

from crystals.cif import read_cif
from crystals.validity import standardise
from energetics.hull import References
from energetics.hull_network import COMBINED
from energetics.learnt_hull import BOTH, LEARNT, POTENTIAL, LearntHull, judge_hull, load_learnt_hull
from energetics.learnt_hull_training import agreement
from energetics.potentials import Potential, load_potential
from energetics.relaxation import relax_sheet
from evaluation.structure_match import CLOSE_MATCH, HeldOut, held_out_sheets, match_distance
from generation.sheet_table import read_split
from geo_utils import Sheet
from networks.training import fingerprint
from pipeline.errors import StageError
from pipeline.files import file_sha256
from pipeline.settings import Config, EvaluationConfig
from pipeline.store import LineStore

MODES = (LEARNT, POTENTIAL, BOTH, COMBINED)
MIN_SHEETS = 3  # below it no rank correlation


def generated_hull(cfg: Config, folder: Path, make: Callable[[Sequence[str], Path], None]) -> dict[str, Any]:
    """Generate sheets of held-out compositions, and judge those that are sheets of the database.

    Args:
        cfg: all settings.
        folder: where CIFs and finished sheets are kept, for a run that is stopped.
        make: writes a CIF for each of the formulas that it can do to a folder.

    Returns:
        ``n_rows`` held-out sheets of ``n_formulas`` compositions, ``n_made`` CIFs, ``n_known`` of them sheets of the database, and
        for each hull what ``agreement`` returns.

    Raises:
        StageError: there is no held-out sheet, or too few of the CIFs are known.
    """
    settings, evaluation = cfg.benchmark, cfg.evaluation
    potential = load_potential(evaluation.potential, evaluation.potential_checkpoint)
    references = References.load(evaluation.references_path, potential)
    learnt = load_learnt_hull(evaluation, references, potential)
    if learnt is None:
        raise StageError("part hull compares the learnt hull: set evaluation.hull_checkpoint")
    drawn = held_out_sheets(cfg.dataset.processed_dir, settings.csp_max_atoms, settings.csp_rows, cfg.run.seed)
    rows = [row for row in drawn if learnt.is_held_out(row.formula) and set(row.sheet.to_atoms().symbols) <= references.elements]
    if not rows:
        raise StageError("the learnt hull has seen every sheet of the test split: the data set was split in another way")
    formulas = list(dict.fromkeys(row.sheet.to_atoms().get_chemical_formula() for row in rows))
    cifs = folder / "hull"
    make(formulas, cifs)
    known = {path: row for path in sorted(cifs.glob("*.cif")) if (row := _same_sheet(path, rows)) is not None}
    about = {
        "potential": potential.identity,
        "files": [file_sha256(p) for p in (evaluation.references_path, evaluation.hull_checkpoint, evaluation.hull_network)],
        "relaxation": [evaluation.fmax_ev_per_angstrom, evaluation.max_steps],
    }
    store = LineStore(folder / "hull.jsonl", {"fingerprint": fingerprint(about)})
    judge = partial(_judge, potential=potential, references=references, learnt=learnt, settings=evaluation)
    for path in tqdm(known, desc="generated sheets", unit="sheet"):
        key = file_sha256(path)
        if key not in store:
            store.add(key, judge(_read(path)))
    truth = _e_hull(cfg)
    pairs = [(store[file_sha256(path)], truth[row.uid]) for path, row in known.items()]
    values = {mode: np.array([found[mode] for found, _ in pairs if found["status"] == "ok"]) for mode in MODES}
    theirs = np.array([value for found, value in pairs if found["status"] == "ok"])
    if len(theirs) < MIN_SHEETS:
        raise StageError(f"{len(theirs)} of {len(formulas)} generated sheets are of the database: raise benchmark.csp_rows")
    compare = partial(agreement, truth=theirs, limit=evaluation.hit_e_hull_ev, seed=cfg.run.seed, resamples=evaluation.bootstrap)
    made = len(list(cifs.glob("*.cif")))
    counts = {"n_rows": len(rows), "n_formulas": len(formulas), "n_made": made, "n_known": len(known), "match": CLOSE_MATCH}
    return counts | {"hulls": {mode: compare(values[mode]) for mode in MODES}}


def _read(path: Path) -> Atoms:
    return standardise(read_cif(path), EvaluationConfig().min_vacuum_angstrom)[0]


def _same_sheet(path: Path, rows: Sequence[HeldOut]) -> HeldOut | None:
    """Return the row whose sheet a CIF holds, within CLOSE_MATCH, the nearest of several."""
    sheet = Sheet.from_atoms(_read(path), EvaluationConfig().min_vacuum_angstrom)
    composition = tuple(sorted(sheet.atomic_numbers.tolist()))
    found = [(match_distance(sheet, row.sheet), k) for k, row in enumerate(rows) if row.composition == composition]
    distance, k = min(((d, k) for d, k in found if np.isfinite(d)), default=(np.inf, -1))
    return rows[k] if distance <= CLOSE_MATCH else None


def _judge(
    atoms: Atoms, potential: Potential, references: References, learnt: LearntHull, settings: EvaluationConfig
) -> dict[str, Any]:
    """Relax a sheet, and return E_above_hull (eV/atom) by each hull and a status."""
    relaxed = relax_sheet(atoms, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
    if relaxed.status in ("exploded", "collapsed"):
        return {"status": relaxed.status}
    try:
        found = {mode: judge_hull(references, learnt, relaxed.atoms, relaxed.energy, mode).e_above_hull for mode in MODES}
    except KeyError as error:  # a pair of elements without a competing compound
        return {"status": str(error.args[0])[:80]}
    return {"status": "ok", **found}


def _e_hull(cfg: Config) -> dict[str, float]:
    """Return the database's E_above_hull (eV/atom) of the test split by uid."""
    table = read_split(Path(cfg.dataset.processed_dir) / "test.pt")
    return dict(zip(table["uid"], table["e_hull"].tolist(), strict=True))
