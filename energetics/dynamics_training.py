"""Measures how well verdicts of dynamic stability agree with C2DB's, and fits the model that decides.

Phonons of sheets drawn at random are lines of a store each, so that a run that is stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect
from tqdm import tqdm

from crystals.database import check_ase_database, formula_key, hash_share
from energetics.band_gap_training import interval, true_geometry
from energetics.dynamic_stability import MIN_HESSIAN, MIN_STIFFNESS, dynamic_stability
from energetics.dynamics_model import KIND, DynamicsColumns, DynamicsModel, descriptors, hessian_score
from energetics.potentials import Potential, load_potential
from geo_utils import standard_sheet
from networks.boosted_trees import BoostedTrees
from networks.checkpoints import save_checkpoint
from pipeline.errors import StageError
from pipeline.files import file_sha256, missing_file, relative_name, write_json
from pipeline.provenance import write_sidecar
from pipeline.settings import Config
from pipeline.store import LineStore

log = logging.getLogger("her2d")
FOLDS = 5  # of the trees
READ_VACUUM = 6.0  # Å, least empty gap of a row
HULL_NOISE_EV = 0.06  # eV/atom, error of the judge's E_above_hull, which the trees learn with
C2DB_MIN_HESSIAN = -0.01  # eV/Å², C2DB's own limit
DEEP_EV_PER_A2 = -1.0  # C2DB's lowest eigenvalue of a deeply unstable sheet
NEAR_HULL_EV = 0.2  # eV/atom, sheets that the evaluation asks about
SURE = 0.8  # a probability this high, or as low, is a sure answer
SOURCE = "C2DB (Haastrup et al. 2018, Gjerding et al. 2021): verdicts of dynamic stability and structures, CC BY 4.0"


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Sheets with a verdict of C2DB, as arrays (N,).

    stable, stiff: C2DB's verdicts by phonons and by stiffness. min_hessian: C2DB's lowest eigenvalue, eV/Å². magnetic: by C2DB.
    e_hull: eV/atom. descriptors: (N, columns).
    """

    uids: list[str]
    stable: np.ndarray
    stiff: np.ndarray
    min_hessian: np.ndarray
    magnetic: np.ndarray
    formulas: np.ndarray
    e_hull: np.ndarray
    descriptors: np.ndarray
    symbols: tuple[frozenset[str], ...]


def read_labelled(path: Path) -> tuple[Labelled, Counter]:
    """Read the sheets with ``dynamic_stability_phonons`` and a geometry that fits the space group; count what became of rows."""
    if not path.is_file():
        raise missing_file("phonon_benchmark.db_path", path, "name a release of C2DB with dynamic_stability_phonons")
    check_ase_database(path)
    counts, found = Counter(), []
    for row in tqdm(connect(path).select(), desc="sheets", unit="row"):
        verdict, ehull = row.get("dynamic_stability_phonons"), row.get("ehull")
        atoms = true_geometry(row.toatoms(), int(row.get("spgnum", 0))) if verdict in ("low", "high") else None
        if atoms is None or not isinstance(ehull, float | int):
            counts["no verdict" if verdict not in ("low", "high") else "geometry and space group differ"] += 1
            continue
        try:
            own = descriptors(atoms, float(ehull))
        except ValueError:
            counts["not described"] += 1
            continue
        stiff = row.get("dynamic_stability_stiffness") == "high"
        symbols = frozenset(atoms.get_chemical_symbols())
        physics = (float(row.get("minhessianeig", np.nan)), row.get("magstate", "NM") != "NM")
        found.append((row.uid, verdict == "high", stiff, *physics, formula_key(row.formula), float(ehull), own, symbols))
        counts["used"] += 1
    if len(found) < 100:
        raise StageError(f"phonon_benchmark.db_path: {relative_name(path)} has {len(found)} sheets with dynamic_stability_phonons")
    columns = list(zip(*found, strict=True))
    return Labelled(list(columns[0]), *(np.array(column) for column in columns[1:8]), columns[8]), counts


def draw(table: Labelled, cfg: Config) -> list[int]:
    """Return the places of the sheets that get phonons, drawn at random among the small ones with a verdict."""
    settings = cfg.phonon_benchmark
    rows = connect(settings.db_path).select(include_data=False)
    small = [row.uid for row in rows if row.natoms <= settings.max_atoms and row.get("dynamic_stability_phonons")]
    random.Random(cfg.run.seed).shuffle(small)
    place = {uid: number for number, uid in enumerate(table.uids)}
    return [place[uid] for uid in small[: settings.rows] if uid in place]


def phonons_of(table: Labelled, chosen: list[int], potential: Potential, cfg: Config) -> LineStore:
    """Compute the phonons of the chosen sheets, from C2DB's geometry, and return uid -> their numbers."""
    identity = {"kind": "phonons of C2DB", "potential": potential.identity}
    store = LineStore(Path(cfg.phonon_benchmark.work_dir) / f"{potential.name}.jsonl", identity, sync=True)
    rows = {row.uid: row.id for row in connect(cfg.phonon_benchmark.db_path).select(include_data=False)}
    missing = [table.uids[k] for k in chosen if table.uids[k] not in store]
    for uid in tqdm(missing, desc=f"phonons by {potential.name}", unit="sheet"):
        row = connect(cfg.phonon_benchmark.db_path).get(id=rows[uid])
        store.add(uid, _numbers(true_geometry(row.toatoms(), int(row.spgnum)), potential))
    return store


def _numbers(atoms: Atoms, potential: Potential) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        found = dynamic_stability(standard_sheet(atoms, min_vacuum=READ_VACUUM), potential, follow=False)
        numbers = {"min_hessian": found.min_hessian, "min_thz": found.min_thz, "stiffness": found.stiffness_min, "problem": ""}
    except Exception as error:  # any failure of the potential is a result, and counted
        numbers = {"min_hessian": None, "min_thz": None, "stiffness": None, "problem": str(error)[:80]}
    return numbers | {"seconds": round(time.perf_counter() - started, 2)}


def fit_trees(rows: np.ndarray, stable: np.ndarray, cfg: Config) -> BoostedTrees:
    """Fit trees to the verdicts of descriptors (N, columns)."""
    return BoostedTrees.fit(rows, stable, cfg.phonon_benchmark, cfg.run.seed, classify=True)


def with_noise(table: Labelled, seed: int) -> np.ndarray:
    """Return the descriptors with an E_above_hull that errs as the judge's does."""
    rows = table.descriptors.copy()
    rows[:, -1] = np.maximum(rows[:, -1] + np.random.default_rng(seed).normal(0, HULL_NOISE_EV, len(rows)), 0)
    return rows


def held_out_odds(rows: np.ndarray, table: Labelled, cfg: Config) -> np.ndarray:
    """Return the log-odds (N,) by trees that miss the formula of each sheet."""
    folds = np.array([int(FOLDS * hash_share(f"fold:{key}")) for key in table.formulas])
    odds = np.full(len(rows), np.nan)
    for fold in range(FOLDS):
        odds[folds == fold] = fit_trees(rows[folds != fold], table.stable[folds != fold], cfg).predict(rows[folds == fold])
    return odds


def fit_logistic(columns: np.ndarray, stable: np.ndarray) -> np.ndarray:
    """Return the constant and the factors of a logistic function of columns (N, k)."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression().fit(columns, stable)
    return np.concatenate([fitted.intercept_, fitted.coef_[0]])


def crossed(columns: np.ndarray, stable: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Return probabilities (N,): of each half by the logistic function fitted to the other."""
    found = np.zeros(len(stable))
    for side in (False, True):
        weights = fit_logistic(columns[half != side], stable[half != side])
        found[half == side] = 1 / (1 + np.exp(-(weights[0] + columns[half == side] @ weights[1:])))
    return found


def calibrated(values: np.ndarray, stable: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Return verdicts (N,) of each half by the limit that is best on the other, and the two limits."""
    limits = []
    verdicts = np.zeros(len(values), dtype=bool)
    for side in (False, True):
        others, truth = values[half != side], stable[half != side]
        candidates = np.quantile(others, np.linspace(0.02, 0.98, 49))
        best = max(candidates, key=lambda limit: float(((others >= limit) == truth).mean()))
        limits.append(round(float(best), 3))
        verdicts[half == side] = values[half == side] >= best
    return verdicts, limits


def measure(
    table: Labelled, chosen: list[int], stores: dict[str, LineStore], odds: dict[str, np.ndarray], cfg: Config
) -> dict[str, Any]:
    """Return the agreement of every method with C2DB's verdicts over the sheets that have phonons by every potential."""
    done = [k for k in chosen if all(store[table.uids[k]]["problem"] == "" for store in stores.values())]
    places = np.array(done)
    stable, formulas, e_hull = table.stable[places], table.formulas[places], table.e_hull[places]
    half = np.array([hash_share(f"half:{key}") < 0.5 for key in formulas])
    answers: dict[str, np.ndarray] = {"always stable": np.ones(len(places), dtype=bool)}
    answers["always unstable"] = ~answers["always stable"]
    noisy = with_noise(table, cfg.run.seed)[places, -1:]
    answers["E_above_hull alone"] = crossed(noisy, stable, half) >= 0.5
    for name, values in odds.items():
        answers[name] = values[places] >= 0
    limits, chances = {}, {}
    for name, store in stores.items():
        numbers = {key: np.array([store[table.uids[k]][key] for k in done]) for key in ("min_hessian", "stiffness")}
        firm = numbers["stiffness"] > MIN_STIFFNESS
        answers[_by_limit(name)] = (numbers["min_hessian"] >= C2DB_MIN_HESSIAN) & firm
        verdicts, limits[name] = calibrated(numbers["min_hessian"], stable, half)
        answers[f"phonons, {name}, calibrated limit"] = verdicts
        both = np.column_stack([odds["trees with E_above_hull"][places], hessian_score(numbers["min_hessian"])])
        chances[name] = crossed(both, stable, half)
        answers[f"trees with E_above_hull and phonons, {name}"] = chances[name] >= 0.5
    near = e_hull <= NEAR_HULL_EV
    table_of = {name: _agreement(found == stable, formulas, near, cfg) for name, found in answers.items()}
    return {
        "n": len(places),
        "n_near_hull": int(near.sum()),
        "drawn": len(chosen),
        "stable_share": round(float(stable.mean()), 4),
        "stable_share_near_hull": round(float(stable[near].mean()), 4),
        "agreement": table_of,
        "limits_ev_per_a2": limits,
        "sure": {name: _sure(values, stable) for name, values in chances.items()},
        "phonons_by_kind": {name: _by_kind(answers[_by_limit(name)] == stable, places, table) for name in stores},
        "stiffness": _stiffness(table, done, stores),
        "seconds_per_sheet": {name: _seconds(store, table, done) for name, store in stores.items()},
    }


def _by_limit(name: str) -> str:
    return f"phonons, {name}, C2DB's limit"


def _by_kind(right: np.ndarray, places: np.ndarray, table: Labelled) -> dict[str, dict[str, float]]:
    """Return the share of right verdicts and the number of sheets of several kinds."""
    stable, lowest, magnetic = table.stable[places], table.min_hessian[places], table.magnetic[places]
    kinds = {
        "stable": stable,
        "deeply unstable": ~stable & (lowest < DEEP_EV_PER_A2),
        "slightly unstable": ~stable & (lowest >= DEEP_EV_PER_A2),
        "magnetic": magnetic,
        "not magnetic": ~magnetic,
    }
    return {name: {"share": round(float(right[kind].mean()), 4), "n": int(kind.sum())} for name, kind in kinds.items()}


def _agreement(right: np.ndarray, formulas: np.ndarray, near: np.ndarray, cfg: Config) -> dict[str, dict[str, float]]:
    """Return the share of right verdicts with its 95 % interval over formulas, of all sheets and of those near the hull."""

    def of(rows: np.ndarray) -> list[float]:
        own = right[rows]
        found = interval(lambda places: float(own[places].mean()), formulas[rows], cfg.run.seed, cfg.evaluation.bootstrap)
        return [round(value, 4) for value in found]

    return {"all": of(np.ones(len(right), dtype=bool)), "near_hull": of(near)}


def _sure(chances: np.ndarray, stable: np.ndarray) -> dict[str, float]:
    sure = (chances >= SURE) | (chances <= 1 - SURE)
    right = (chances >= 0.5) == stable
    return {"share": round(float(sure.mean()), 4), "agreement": round(float(right[sure].mean()), 4)}


def _stiffness(table: Labelled, done: list[int], stores: dict[str, LineStore]) -> dict[str, Any]:
    truth = table.stiff[done]
    shares = {"always positive": round(float(truth.mean()), 4)}
    for name, store in stores.items():
        positive = np.array([store[table.uids[k]]["stiffness"] > MIN_STIFFNESS for k in done])
        shares[name] = round(float((positive == truth).mean()), 4)
    return shares


def _seconds(store: LineStore, table: Labelled, done: list[int]) -> dict[str, float]:
    seconds = np.array([store[table.uids[k]]["seconds"] for k in done])
    return {
        "mean": round(float(seconds.mean()), 2),
        "median": round(float(np.median(seconds)), 2),
        "most": round(float(seconds.max()), 1),
    }


def benchmark(cfg: Config, result: Path) -> None:
    """Run the whole stage: phonons, measurement, the model fitted to all sheets, checkpoint, sidecar and table."""
    settings = cfg.phonon_benchmark
    table, counts = read_labelled(Path(settings.db_path))
    chosen = draw(table, cfg)
    names = dict.fromkeys(name for name in (cfg.evaluation.potential, cfg.evaluation.second_potential) if name)
    potentials = {name: load_potential(name, cfg.evaluation.potential_checkpoint) for name in names}
    stores = {name: phonons_of(table, chosen, potential, cfg) for name, potential in potentials.items()}
    rows = with_noise(table, cfg.run.seed)
    odds = {"trees": held_out_odds(rows[:, :-1], table, cfg), "trees with E_above_hull": held_out_odds(rows, table, cfg)}
    measured = measure(table, chosen, stores, odds, cfg)
    judge = cfg.evaluation.potential
    done = [k for k in chosen if stores[judge][table.uids[k]]["problem"] == ""]
    scores = hessian_score(np.array([stores[judge][table.uids[k]]["min_hessian"] for k in done]))
    weights = fit_logistic(np.column_stack([odds["trees with E_above_hull"][done], scores]), table.stable[done])
    elements = Counter(symbol for symbols in table.symbols for symbol in symbols)
    model = DynamicsModel(fit_trees(rows, table.stable, cfg), tuple(weights), judge, dict(sorted(elements.items())))
    checkpoint = Path(settings.checkpoint)
    save_checkpoint(checkpoint, KIND, DynamicsColumns(), model.state())
    about = {"trees_learnt_from": len(table.uids), "min_hessian_limit_ev_per_a2": MIN_HESSIAN, **measured}
    write_sidecar(
        checkpoint,
        stage="phonon_benchmark",
        seed=cfg.run.seed,
        settings=settings,
        inputs=[settings.db_path],
        counts=dict(counts),
        metrics=about,
        checkpoint_sha256=file_sha256(checkpoint),
        source=SOURCE,
    )
    write_json(result, about)
    for name, share in measured["agreement"].items():
        log.info("%s: %.1f %% [%.1f, %.1f]", name, *(100 * value for value in share["all"]))
