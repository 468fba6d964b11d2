"""Compares potentials as judges: which phases they keep, lattice constants, polymorph energies, ΔE_H, and what they cost.

The reference is PBE: C2DB for geometries and energies, our own DFT points for ΔE_H. Energies of formation are left out, because
they need elemental references of the same potential, which only SevenNet-0 ships with. Differences between polymorphs of one
formula need none.
"""

from __future__ import annotations

import csv
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from energetics import dft_correction, dft_points, potential_trials
from energetics.potential_trials import DISTORTED, Trial
from energetics.potentials import Potential
from evaluation.statistics import bootstrap_interval, wilson_interval
from pipeline.files import PROJECT_DIR, file_sha256, relative_name, write_json

log = logging.getLogger("her2d")

PAIRS = 72
RESAMPLES = 2000
KEPT = 0.5  # a distortion is kept where at least this share of C2DB's spread of metal-metal distances is left
SAME_EV = 0.01  # eV/atom; polymorphs closer in C2DB have no order that a potential could get wrong
DFT_POINTS = {"DFT points": PROJECT_DIR / "data" / "h_on_2d_dft.db", "blind": PROJECT_DIR / "data" / "h_on_2d_blind.db"}
PUBLISHED = PROJECT_DIR / "data" / "published_delta_e.csv"
SOURCE = "C2DB (Haastrup et al. 2018, Gjerding et al. 2021): geometries and hform of the sheets, CC BY 4.0"
NO_REFERENCES = "left out: only SevenNet-0 has elemental references and a hull; polymorph differences need none"

Records = Mapping[str, Mapping[str, Any]]


def _round(value: float, digits: int = 4) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def triple(values: Sequence[float], statistic: Callable[..., Any], seed: int) -> list[float | None]:
    """Return [value, low, high] of a statistic over the finite values, with its 95 % bootstrap interval."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return [None, None, None]
    low, high = bootstrap_interval(finite, statistic, RESAMPLES, np.random.default_rng(seed))
    return [_round(statistic(finite, axis=-1)), _round(low), _round(high)]


def share(hits: Sequence[bool]) -> list[float | None]:
    """Return [share, low, high] with the 95 % Wilson interval."""
    n = len(hits)
    low, high = wilson_interval(int(sum(hits)), n)
    return [_round(sum(hits) / n) if n else None, _round(low), _round(high)]


def is_usable(record: Mapping[str, Any]) -> bool:
    """Return whether a relaxation gave an energy; one that did not converge in its steps has one."""
    return record["status"] in ("ok", "not converged")


def spread(distances: Sequence[float]) -> float:
    """Return by which share the longest metal-metal distance exceeds the shortest."""
    return max(distances) / min(distances) - 1


def phase_table(trials: Sequence[Trial], records: Records, seed: int) -> dict[str, Any]:
    """Return what became of the distorted phases and of the energies above 2H.

    Returns:
        ``kept`` ([share, low, high] of the distorted sheets), ``distance_mae_angstrom``, ``energy_mae_ev`` (eV/atom, all phases
        above 2H, relaxed), ``energy_error_ev`` (signed) and ``sheets``, a list of one object for each phase.
    """
    ground = {trial.group: trial for trial in trials if trial.phase == "2H"}
    sheets, kept, distances, errors = [], [], [], []
    for trial in trials:
        record, base = records[trial.key], ground.get(trial.group)
        row: dict[str, Any] = {"formula": trial.group, "phase": trial.phase, "status": record["status"], "steps": record["steps"]}
        if not is_usable(record):
            sheets.append(row)
            kept += [False] if trial.phase in DISTORTED else []
            continue
        row["metal_c2db_angstrom"] = [round(d, 2) for d in record["metal_start"]]
        row["metal_angstrom"] = [round(d, 2) for d in record["metal"]]
        if trial.phase in DISTORTED:
            row["kept"] = spread(record["metal"]) >= KEPT * spread(record["metal_start"])
            kept.append(row["kept"])
            distances.append(np.abs(np.subtract(record["metal"], record["metal_start"])).mean())
        if base is not None and base is not trial and is_usable(records[base.key]):
            row["above_2h_c2db_ev"] = _round(trial.hform - base.hform)
            row["above_2h_ev"] = _round(record["energy"] - records[base.key]["energy"])
            row["above_2h_fixed_ev"] = _round(record["start_energy"] - records[base.key]["start_energy"])
            errors.append(row["above_2h_ev"] - row["above_2h_c2db_ev"])
        sheets.append(row)
    return {
        "n_distorted": len(kept),
        "kept": share(kept),
        "distance_mae_angstrom": triple(distances, np.mean, seed),
        "n_energies": len(errors),
        "energy_mae_ev": triple(np.abs(errors), np.mean, seed),
        "energy_error_ev": triple(errors, np.mean, seed),
        "sheets": sheets,
    }


def lattice_table(trials: Sequence[Trial], records: Records, seed: int) -> dict[str, Any]:
    """Return the errors of the in-plane lengths, in % of C2DB's, each sheet the mean of its two."""
    usable = [records[trial.key] for trial in trials if is_usable(records[trial.key])]
    strain = 100 * np.array([record["strain"] for record in usable])
    return {
        "n": len(trials),
        "n_ok": len(usable),
        "mae_percent": triple(np.abs(strain).mean(1), np.mean, seed),
        "median_percent": triple(np.abs(strain).mean(1), np.median, seed),
        "mean_error_percent": triple(strain.mean(1), np.mean, seed),
        "beyond_2_percent": share((np.abs(strain).max(1) > 2).tolist()),
    }


def pair_errors(trials: Sequence[Trial], records: Records) -> dict[str, np.ndarray]:
    """Return C2DB's energy difference of every pair (eV/atom) and the potential's, ``fixed`` and ``relaxed``, NaN without one."""
    pairs = defaultdict(list)
    for trial in trials:
        pairs[trial.group].append(trial)
    truth, fixed, relaxed = [], [], []
    for first, second in pairs.values():
        truth.append(second.hform - first.hform)
        own = [records[trial.key] for trial in (first, second)]
        fixed.append(own[1]["start_energy"] - own[0]["start_energy"])
        relaxed.append(own[1]["energy"] - own[0]["energy"] if all(map(is_usable, own)) else math.nan)
    return {"truth": np.array(truth), "fixed": np.array(fixed), "relaxed": np.array(relaxed)}


def pair_table(found: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Return how energy differences of polymorphs agree with C2DB's, at C2DB's geometry and relaxed, eV/atom."""
    truth, table = found["truth"], {"n": len(found["truth"])}
    for name in ("fixed", "relaxed"):
        error = found[name] - truth
        ordered = np.isfinite(found[name]) & (np.abs(truth) > SAME_EV)
        table[name] = {
            "n_ok": int(np.isfinite(error).sum()),
            "mae_ev": triple(np.abs(error), np.mean, seed),
            "median_ev": triple(np.abs(error), np.median, seed),
            "same_order": share((np.sign(found[name][ordered]) == np.sign(truth[ordered])).tolist()),
        }
    return table


def adsorption_table(points: Sequence[Any], values: np.ndarray, corrected: np.ndarray | None, seed: int) -> dict[str, Any]:
    """Return how ΔE_H agrees with DFT, resampled over hosts, whose sites are not independent.

    Args:
        points: DFT points.
        values: (n,) eV, the potential's.
        corrected: (n,) eV, its values after a correction fitted without the host of each; None where there is none.
        seed: of the resamples.
    """
    truth, hosts = np.array([point.delta_e for point in points]), np.array([point.host for point in points])
    table = {"n": len(points), "hosts": len(set(hosts)), **_agreement(truth, values, hosts, seed)}
    if corrected is not None:
        table["corrected"] = _agreement(truth, corrected, hosts, seed)
    return table


def _agreement(truth: np.ndarray, values: np.ndarray, hosts: np.ndarray, seed: int) -> dict[str, Any]:
    finite = np.isfinite(values)
    groups = [np.flatnonzero(finite & (hosts == host)) for host in sorted(set(hosts[finite]))]
    rng = np.random.default_rng(seed)
    draws = [np.concatenate([groups[k] for k in rng.integers(0, len(groups), len(groups))]) for _ in range(RESAMPLES)]
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "mae_ev": lambda rows: float(np.abs(values[rows] - truth[rows]).mean()),
        "mean_error_ev": lambda rows: float((values[rows] - truth[rows]).mean()),
        "spearman": lambda rows: float(spearmanr(values[rows], truth[rows]).statistic),
    }
    found: dict[str, Any] = {"n_ok": int(finite.sum())}
    for name, statistic in statistics.items():
        low, high = np.nanpercentile([statistic(rows) for rows in draws], [2.5, 97.5])
        found[name] = [_round(statistic(np.flatnonzero(finite))), _round(low), _round(high)]
    return found


def seconds_table(stores: Mapping[str, Records], trials: Sequence[Trial]) -> dict[str, dict[str, float | None]]:
    """Return the processor seconds of relaxations by every potential: mean over the same sheets, and mean number of steps."""
    found = {}
    for name, records in stores.items():
        own = [records[trial.key] for trial in trials if is_usable(records[trial.key])]
        found[name] = {
            "n": len(own),
            "mean_seconds": _round(np.mean([r["seconds"] for r in own]), 2),
            "median_seconds": _round(np.median([r["seconds"] for r in own]), 2),
            "mean_steps": _round(np.mean([r["steps"] for r in own]), 1),
        }
    return found


def paired_differences(errors: Mapping[str, np.ndarray], seed: int) -> dict[str, list[float | None]]:
    """Return the difference of absolute errors between every two potentials, mean and 95 % interval: negative, the first is better.

    errors: absolute errors (n,) of the same things, by potential.
    """
    pairs = itertools.combinations(errors, 2)
    return {f"{first} - {second}": triple(errors[first] - errors[second], np.mean, seed) for first, second in pairs}


def published_table(path: Path, truth: Path) -> list[dict[str, Any]]:
    """Return published ΔE_H (eV) beside the lowest of our DFT points on the same sheet, and its site; None where there is none."""
    points = defaultdict(list)
    for point in dft_points.read_truth(truth, with_unbound=True):
        points[point.name].append(point)
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    table = []
    for row in rows:
        best = min(points.get(row["dft_system"], []), key=lambda point: point.delta_e, default=None)
        own = {"delta_e_dft_ev": None, "site": "", "sites": 0}
        if best is not None:
            own = {"delta_e_dft_ev": _round(best.delta_e), "site": best.site, "sites": len(points[row["dft_system"]])}
        table.append({"name": row["name"], "published_ev": float(row["delta_e_ev"]), "source": row["source"], **own})
    return table


def benchmark(
    c2db: Path, laboratory: Path, potentials: Sequence[Potential], pairs: int, seed: int, work_dir: Path, result: Path
) -> None:
    """Relax what is missing, measure, and write the table.

    Args:
        c2db: release of C2DB with layer groups and hform.
        laboratory: release of C2DB with the uids of ``data/laboratory_sheets.csv``.
        potentials: to compare.
        pairs: of polymorphs, drawn at random.
        seed: of the draw and of the resamples.
        work_dir: of the stores.
        result: the table, JSON.

    Raises:
        StageError: a database is missing or lacks the keys.
    """
    sets = {
        "phases": potential_trials.phase_trials(c2db),
        "pairs": potential_trials.pair_trials(c2db, pairs, seed),
        "lattice": potential_trials.lattice_trials(laboratory),
    }
    stores: dict[str, Any] = {}
    for trials in sets.values():  # every potential does a set before the next one begins
        for potential in potentials:
            stores[potential.name] = potential_trials.run_trials(trials, potential, (c2db, laboratory), work_dir)
    points = {name: dft_points.read_truth(path) for name, path in DFT_POINTS.items() if path.is_file()}
    content: dict[str, Any] = {
        "inputs": {relative_name(path): file_sha256(path) for path in (*DFT_POINTS.values(), PUBLISHED)},
        "reference": SOURCE,
        "c2db_sha256": {"structures": file_sha256(c2db), "laboratory": file_sha256(laboratory)},
        "settings": {"pairs": pairs, "seed": seed, "resamples": RESAMPLES, "kept_share": KEPT},
        "e_form_and_e_hull": NO_REFERENCES,
        "potentials": {},
    }
    errors: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for potential in potentials:
        content["potentials"][potential.name] = _measured(potential, sets, stores[potential.name], points, seed, errors)
    content["paired"] = {name: paired_differences(found, seed) for name, found in errors.items()}
    content["seconds_per_relaxation"] = seconds_table(stores, [*sets["phases"], *sets["pairs"], *sets["lattice"]])
    content["published"] = published_table(PUBLISHED, DFT_POINTS["DFT points"])
    write_json(result, content)


def _measured(
    potential: Potential,
    sets: Mapping[str, Sequence[Trial]],
    store: Any,
    points: Mapping[str, Sequence[Any]],
    seed: int,
    errors: dict[str, dict[str, np.ndarray]],
) -> dict[str, Any]:
    """Return all tables of one potential; its absolute errors are added to ``errors``, by what they are errors of."""
    found = pair_errors(sets["pairs"], store)
    table: dict[str, Any] = {
        "identity": potential.identity,
        "phases": phase_table(sets["phases"], store, seed),
        "lattice": lattice_table(sets["lattice"], store, seed),
        "pairs": pair_table(found, seed),
        "seconds_per_call": potential_trials.seconds_per_call(points["DFT points"], potential, store),
        "delta_e": {},
    }
    for name in ("fixed", "relaxed"):
        errors[f"polymorphs, {name} (eV/atom)"][potential.name] = np.abs(found[name] - found["truth"])
    for name, own in points.items():
        values = potential_trials.adsorption_energies(own, potential, store)
        corrected = dft_correction.left_out_predictions(own, values, with_place=True)[0] if name != "blind" else None
        table["delta_e"][name] = adsorption_table(own, values, corrected, seed)
        truth = np.array([point.delta_e for point in own])
        errors[f"ΔE_H, {name} (eV)"][potential.name] = np.abs(values - truth)
        if corrected is not None:
            errors[f"ΔE_H, {name}, corrected (eV)"][potential.name] = np.abs(corrected - truth)
    return table
