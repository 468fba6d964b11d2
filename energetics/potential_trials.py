"""Relaxes known sheets with several potentials: the numbers that ``evaluation/potential_benchmark.py`` compares.

Three sets of sheets, all from C2DB's geometry: phases of one composition with and without a distortion (1T′, 1T″, charge-density
waves), polymorphs of formulas drawn at random, and sheets that have been made in a laboratory. Every relaxation is a line of a
store, so that a run that is stopped goes on where it was.
"""

from __future__ import annotations

import csv
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect
from tqdm import tqdm

from crystals.database import check_ase_database, formula_key
from crystals.prototypes import metal_distances
from energetics.band_gap_training import true_geometry
from energetics.dft_points import TruthPoint, potential_delta_e
from energetics.potentials import Potential
from energetics.relaxation import relax_sheet
from geo_utils import standard_sheet
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR, file_sha256, missing_file, relative_name
from pipeline.store import LineStore

READ_VACUUM = 6.0  # Å, least empty gap of a row
# Layer groups of the undistorted phases of MX2, and of the distorted ones with the atoms of their cells.
UNDISTORTED = {"2H": (78, 3), "1T": (72, 3)}
DISTORTED = {"1T′": (15, 6), "1T″": (2, 12), "2 × 2 CDW": (68, 12)}
PHASES = {
    "MoS2": "1T′",
    "MoSe2": "1T′",
    "MoTe2": "1T′",
    "WS2": "1T′",
    "WSe2": "1T′",
    "WTe2": "1T′",
    "CrS2": "1T′",
    "ReS2": "1T″",
    "ReSe2": "1T″",
    "TiSe2": "2 × 2 CDW",
}
METALS = ("Ti", "Cr", "Mo", "W", "Re")
PHASE_FMAX = 0.005  # eV/Å; a soft distortion has small forces long before it has gone
LABORATORY = PROJECT_DIR / "data" / "laboratory_sheets.csv"
LABORATORY_MAX_ATOMS = 6
PAIR_MAX_ATOMS = 12
SPEED_POINTS = 8  # sheets with H whose energy calls are timed
SPEED_REPEATS = 3


@dataclass(frozen=True)
class Trial:
    """One relaxation. key: unique. atoms: C2DB's geometry. hform: C2DB's, eV/atom; NaN where it does not matter.

    fmax: eV/Å. max_steps: of the optimiser. group: what belongs together, a composition or a pair. phase: its name in the group.
    """

    key: str
    atoms: Atoms
    hform: float
    fmax: float
    max_steps: int
    group: str
    phase: str = ""


def _read(path: Path) -> list[Any]:
    if not path.is_file():
        raise missing_file("database of C2DB", path, "name a release of C2DB with layer groups (lgnum) and hform")
    check_ase_database(path)
    return [row for row in connect(path).select(include_data=False) if isinstance(row.get("hform"), float | int)]


def _sheet(atoms: Atoms) -> Atoms:
    return standard_sheet(atoms, min_vacuum=READ_VACUUM)


def phase_trials(path: Path) -> list[Trial]:
    """Return the 2H, 1T and distorted sheets of PHASES; of several rows of one kind the most stable, of missing ones none.

    Raises:
        StageError: there is no such database, or it has not one of the distorted sheets.
    """
    found: dict[tuple[str, int, int], Any] = {}
    for row in _read(path):
        key = (formula_key(row.formula), int(row.get("lgnum", 0)), row.natoms)
        if key not in found or row.hform < found[key].hform:
            found[key] = row
    trials = []
    for formula, distorted in PHASES.items():
        wanted = UNDISTORTED | {distorted: DISTORTED[distorted]}
        for phase, (group, natoms) in wanted.items():
            row = found.get((formula_key(formula), group, natoms))
            if row is not None:
                key = f"phase:{formula}:{phase}:{PHASE_FMAX:g}"
                trials.append(Trial(key, _sheet(row.toatoms()), float(row.hform), PHASE_FMAX, 300, formula, phase))
    if not any(trial.phase in DISTORTED for trial in trials):
        raise StageError(f"{relative_name(path)} has no distorted phase: a release of C2DB with the key lgnum is needed")
    return trials


def pair_trials(path: Path, number: int, seed: int) -> list[Trial]:
    """Return ``number`` pairs of polymorphs, at most one pair of a formula, formulas and rows drawn at random.

    Raises:
        StageError: there is no such database, or it has not as many formulas with two polymorphs.
    """
    rows = defaultdict(list)
    for row in _read(path):
        if row.natoms <= PAIR_MAX_ATOMS:
            rows[formula_key(row.formula)].append(row)
    formulas = sorted(formula for formula, found in rows.items() if len(found) > 1)
    if len(formulas) < number:
        raise StageError(f"{relative_name(path)} has {len(formulas)} formulas with two polymorphs, fewer than {number}")
    rng = random.Random(seed)
    trials = []
    for formula in rng.sample(formulas, number):
        for row in rng.sample(sorted(rows[formula], key=lambda row: row.uid), 2):
            trials.append(Trial(f"pair:{row.uid}", _sheet(row.toatoms()), float(row.hform), 0.05, 60, f"pair:{formula}"))
    return trials


def lattice_trials(path: Path) -> list[Trial]:
    """Return the sheets of ``data/laboratory_sheets.csv``, which has the textbook ones, of at most LABORATORY_MAX_ATOMS atoms.

    path: release of C2DB with the uids of that table (2022).

    Raises:
        StageError: there is no such database, or it has none of them.
    """
    with LABORATORY.open(newline="", encoding="utf-8") as handle:
        wanted = {row["c2db_uid"]: row["uid"] for row in csv.DictReader(handle) if row["c2db_uid"]}
    trials = []
    for row in _read(path):
        if row.get("uid") in wanted and row.natoms <= LABORATORY_MAX_ATOMS:
            atoms = true_geometry(row.toatoms(), int(row.get("spgnum", 0)))
            if atoms is not None:
                name = wanted[row.uid]
                trials.append(Trial(f"lattice:{name}", _sheet(atoms), float(row.hform), 0.02, 60, name))
    if not trials:
        raise StageError(f"{relative_name(path)} has no sheet of {relative_name(LABORATORY)}")
    return sorted(trials, key=lambda trial: trial.key)


def relax_trial(trial: Trial, potential: Potential) -> dict[str, Any]:
    """Relax one sheet in its plane from C2DB's geometry.

    Returns:
        start_energy and energy (eV/atom), status, steps, seconds (of the processor), strain (2,) of the in-plane lengths, and
        metal_start, metal (6,) Å for the phases (``crystals.prototypes.metal_distances``).
    """
    started = time.process_time()
    start = relax_sheet(trial.atoms, potential, trial.fmax, 0)
    before = time.process_time()
    final = relax_sheet(trial.atoms, potential, trial.fmax, trial.max_steps)
    done = time.process_time()
    natoms = len(trial.atoms)
    record = {"natoms": natoms, "status": final.status, "steps": final.steps}
    record |= {"start_energy": start.energy / natoms, "energy": final.energy / natoms}
    record |= {"call_seconds": round(before - started, 3), "seconds": round(done - before, 3)}
    record["strain"] = (final.atoms.cell.lengths()[:2] / trial.atoms.cell.lengths()[:2] - 1).tolist()
    if trial.phase:
        record["metal_start"] = metal_distances(trial.atoms, METALS).tolist()
        record["metal"] = metal_distances(final.atoms, METALS).tolist()
    return record


def run_trials(trials: Sequence[Trial], potential: Potential, databases: Iterable[Path], work_dir: Path) -> LineStore:
    """Relax what the store of the potential in ``work_dir`` does not hold yet; return the store, key -> ``relax_trial``."""
    identity = {"kind": "potential trials", "potential": potential.identity, "databases": [file_sha256(p) for p in databases]}
    store = LineStore(Path(work_dir) / f"{potential.name}.jsonl", identity, sync=True)
    missing = [trial for trial in trials if trial.key not in store]
    for trial in tqdm(missing, desc=potential.name, unit="sheet"):
        store.add(trial.key, relax_trial(trial, potential))
    return store


def adsorption_energies(points: Sequence[TruthPoint], potential: Potential, store: LineStore) -> np.ndarray:
    """Return ΔE_H (n,) eV of a potential at the DFT geometries, kept in ``store`` under ``delta_e:NAME:SITE``."""
    keys = [f"delta_e:{point.name}:{point.site}" for point in points]
    missing = [k for k, key in enumerate(keys) if key not in store]
    if missing:
        for k, value in zip(missing, potential_delta_e([points[k] for k in missing], potential), strict=True):
            store.add(keys[k], {"delta_e": float(value)})
    return np.array([store[key]["delta_e"] for key in keys])


def seconds_per_call(points: Sequence[TruthPoint], potential: Potential, store: LineStore) -> dict[str, float]:
    """Return the seconds of the processor that energy and forces of a sheet with H take, the best of SPEED_REPEATS, in ``store``.

    Returns:
        ``{median, natoms}`` over the first SPEED_POINTS points.
    """
    if "speed" not in store:
        chosen, seconds = points[:SPEED_POINTS], []
        for point in chosen:
            own = []
            for _ in range(SPEED_REPEATS):
                atoms = Atoms(point.atoms.symbols, point.atoms.positions, cell=point.atoms.cell, pbc=(True, True, False))
                atoms.calc = potential.calculator
                potential.calculator.reset()
                started = time.process_time()
                atoms.get_forces()
                own.append(time.process_time() - started)
            seconds.append(min(own))
        natoms = float(np.median([len(point.atoms) for point in chosen]))
        store.add("speed", {"median": float(np.median(seconds)), "natoms": natoms})
    return store["speed"]
