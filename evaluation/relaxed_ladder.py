"""What predicted sheets become when a potential relaxes them, beside the sheet on record, relaxed by the same potential.

A prediction that is not the sheet on record may still fall into its minimum, or into a lower one. So the methods of
``structure_ladder`` are compared by the energy that their first sheets relax to as well.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from energetics.potential_loading import without_paths
from energetics.potentials import Potential, load_potential
from energetics.relaxation import relax_sheet
from evaluation.judging import rmsd_and_area_change
from evaluation.statistics import Metric, mean_metric, rate_metric
from evaluation.structure_ladder import DIFFUSION, PAIRS, lay_out, one_alone
from evaluation.structure_match import CLOSE_MATCH, match_distance
from geo_utils import Sheet
from networks.training import fingerprint
from pipeline.errors import StageError
from pipeline.settings import Config, EvaluationConfig
from pipeline.store import LineStore
from pipeline.tasks import run, start_workers

RECORD = "sheet on record"
AS_LOW_EV = 0.010  # eV/atom above the sheet on record, relaxed, that count as reaching it
FAILED = ("exploded", "collapsed")


def relaxed_ladder(cfg: Config, folder: Path) -> dict[str, Any]:
    """Relax the first prediction of each method, and the sheets on record, on the rows that the diffusion is sampled for.

    Args:
        cfg: settings; those of part ladder, ``evaluation.potential`` and its relaxation are read.
        folder: where samples and relaxed sheets are kept, for a run that is stopped.

    Returns:
        ``n`` rows whose sheet on record relaxes, ``methods`` with what ``scores`` says of each, and ``paired``: ``one_alone`` of
        two methods, where right is to come as low as the sheet on record.

    Raises:
        StageError: no sheet on record relaxes.
    """
    evaluation = cfg.evaluation
    once = dataclasses.replace(cfg, benchmark=dataclasses.replace(cfg.benchmark, csp_samples=1))
    ladder = lay_out(once, folder)
    rows = sorted(next(method.rows for method in ladder.methods if method.name == DIFFUSION))
    tasks: dict[str, Sheet] = {}
    for method in ladder.methods:
        for k in tqdm(rows, desc=f"structure prediction, {method.name}", unit="sheet", mininterval=1.0):
            tasks |= {f"{k} {method.name}": sheet for sheet in method.predict(k)[:1]}
    tasks |= {f"{k} {RECORD}": ladder.rows[k].sheet for k in rows}
    potential = load_potential(evaluation.potential, evaluation.potential_checkpoint)
    about = {
        "potential": without_paths(potential.identity),
        "relaxation": [evaluation.fmax_ev_per_angstrom, evaluation.max_steps],
        "sheets": {key: _plain(sheet) for key, sheet in tasks.items()},
    }
    store = LineStore(folder / "relaxed_ladder.jsonl", {"fingerprint": fingerprint(about)})
    load = partial(load_potential, evaluation.potential, evaluation.potential_checkpoint)
    with start_workers(cfg.run, evaluation.workers, load) as where:
        relaxing = run(partial(_relaxed, evaluation), tasks, store, where)
        for _ in tqdm(relaxing, desc="relaxing", unit="sheet", total=len(tasks), initial=len(store), mininterval=1.0):
            pass
    known = [k for k in rows if math.isfinite(_energy(store[f"{k} {RECORD}"]))]
    if not known:
        raise StageError(f"{evaluation.potential} relaxes none of the held-out sheets")
    found = {
        method.name: [store[key] if (key := f"{k} {method.name}") in tasks else None for k in known] for method in ladder.methods
    }
    records = [store[f"{k} {RECORD}"] for k in known]
    low = {name: np.array([as_low(*pair) for pair in zip(sheets, records, strict=True)]) for name, sheets in found.items()}
    return {
        "n": len(known),
        "as_low_ev_per_atom": AS_LOW_EV,
        "potential": evaluation.potential,
        "methods": {name: scores(sheets, records, cfg) for name, sheets in (found | {RECORD: records}).items()},
        "paired": {f"{a} against {b}": one_alone(low[a], low[b]) for a, b in PAIRS},
    }


def scores(sheets: list[dict[str, Any] | None], records: list[dict[str, Any]], cfg: Config) -> dict[str, dict[str, Any]]:
    """Return metrics of relaxed predictions beside the relaxed sheets on record, each with its 95 % interval.

    ``as_low``: the share that ends at most ``AS_LOW_EV`` above the sheet on record; ``lower``: the share that ends further below
    it; ``above_ev``: mean energy above the lower of the two, eV/atom, of those that relax; ``same``: the share that is the relaxed
    sheet on record, within ``CLOSE_MATCH``; ``rmsd_angstrom``: how far the relaxation moves the median prediction.

    Args:
        sheets: as ``_relaxed`` returns them, by row; None where a method has no prediction.
        records: of the sheets on record.
        cfg: for seed and resamples.
    """
    rng, resamples = np.random.default_rng([cfg.run.seed, 0x2E]), cfg.evaluation.bootstrap
    pairs = list(zip(sheets, records, strict=True))
    above = [_energy(own) - _energy(record) for own, record in pairs]
    same = [math.isfinite(_energy(own)) and _same(own, record) for own, record in pairs]
    rate = partial(rate_metric, resamples=resamples, rng=rng)
    mean = partial(mean_metric, better=-1, resamples=resamples, rng=rng)
    metrics: list[Metric] = [
        rate("as_low", [as_low(*pair) for pair in pairs], better=1, doc=f"at most {AS_LOW_EV} eV/atom above the sheet on record"),
        rate("lower", [value < -AS_LOW_EV for value in above], better=0, doc=f"more than {AS_LOW_EV} eV/atom below it"),
        mean("above_ev", [max(0.0, value) if math.isfinite(value) else math.nan for value in above], unit="eV/atom",
             doc="mean energy above the lower of prediction and sheet on record, both relaxed"),
        rate("same", same, better=1, doc="the relaxed sheet on record, within a normalised RMSD of 0.1"),
        mean("rmsd_angstrom", [_value(own, "rmsd") for own in sheets], unit="Å", median=True,
             doc="median RMSD of a prediction to what it relaxes to"),
    ]  # fmt: skip
    return {metric.name: dataclasses.asdict(metric) for metric in metrics}


def as_low(own: dict[str, Any] | None, record: dict[str, Any]) -> bool:
    """Return whether a relaxed prediction is at most ``AS_LOW_EV`` above the relaxed sheet on record; False without one."""
    return _energy(own) <= _energy(record) + AS_LOW_EV


def _relaxed(settings: EvaluationConfig, potential: Potential, sheet: Sheet) -> dict[str, Any]:
    """Return energy (eV/atom) and plain form of a sheet when relaxed, and the RMSD (Å) to before; None where it fails."""
    before = sheet.to_atoms()
    found = relax_sheet(before, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
    status = found.status
    if status not in FAILED:
        try:
            rmsd = rmsd_and_area_change(before, found.atoms, bulk=False)[0]
            after = _plain(Sheet.from_atoms(found.atoms))
            return {"status": status, "energy": found.energy / len(before), "rmsd": rmsd, "sheet": after}
        except ValueError:
            status = "no sheet any more"
    return {"status": status, "energy": None, "rmsd": None, "sheet": None}


def _value(relaxed: dict[str, Any] | None, name: str) -> float:
    return math.nan if relaxed is None or relaxed[name] is None else float(relaxed[name])


def _energy(relaxed: dict[str, Any] | None) -> float:
    return _value(relaxed, "energy")


def _same(own: dict[str, Any], record: dict[str, Any]) -> bool:
    sheets = [Sheet(**{name: np.array(values) for name, values in row["sheet"].items()}) for row in (own, record)]
    return match_distance(*sheets) <= CLOSE_MATCH


def _plain(sheet: Sheet) -> dict[str, Any]:
    return {name: values.tolist() for name, values in vars(sheet).items()}
