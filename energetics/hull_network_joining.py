"""Joins networks to the ensemble of ``energetics.hull_network``, and measures what it adds to learnt hull and potential.

The sheets are relaxed by the potential, as candidates are, and are of formulas that neither learnt hull nor networks learnt from.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from tqdm import tqdm

from energetics.hull import References
from energetics.hull_network import COMBINED, NETWORK_SHARE, HullNetwork, load_members, save_hull_network
from energetics.learnt_hull import BOTH, LEARNT, LEAST_STD, POTENTIAL, LearntHull
from energetics.learnt_hull_training import WITHIN_ONE, agreement
from energetics.potentials import Potential, load_potential
from energetics.relaxation import relax_sheet
from generation.sheet_table import read_split, sheet_of
from geo_utils import NotTwoDimensional
from networks.training import fingerprint
from pipeline.errors import StageError
from pipeline.files import file_sha256, relative_name
from pipeline.provenance import write_sidecar
from pipeline.settings import Config
from pipeline.store import LineStore

log = logging.getLogger("her2d")

STAGE = "join_hull_network.py"
VACUUM_ANGSTROM = 15.0
SOURCE = (
    "The networks learnt from C2DB (Haastrup et al., 2D Materials 5, 042002 (2018); Gjerding et al., 2D Materials 8, 044002 "
    "(2021); CC BY 4.0), split by formula with dataset.val_fraction and test_fraction 0.1 and seed 0. No crystal of C2DB is in "
    "the file."
)


def join_stage(cfg: Config) -> None:
    """Run the whole stage: relaxations, standard error, measurement, checkpoint and sidecar.

    Raises:
        StageError: there is no member, learnt hull or split.
    """
    settings, evaluation = cfg.hull_network, cfg.evaluation
    if not settings.members:
        raise StageError("hull_network.members names no checkpoint: run python -m scripts.train_refiner with several seeds")
    members = [member for path in settings.members for member in load_members(path)]
    potential = load_potential(evaluation.potential, evaluation.potential_checkpoint)
    references = References.load(evaluation.references_path, potential)
    learnt = LearntHull.load(evaluation.hull_checkpoint, references, potential)
    network, rows = HullNetwork(members, 1.0), {}
    for split, count in (("val", settings.calibration_rows), ("test", settings.test_rows)):
        rows[split] = _judged(cfg, split, count, potential, references, learnt, network)
    of_val, of_test = ({name: np.array([row[name] for row in found]) for name in found[0]} for found in rows.values())
    error = np.abs(_combined(of_val) - of_val["truth"])
    scale = float(np.quantile(error / of_val["size"], WITHIN_ONE))
    metrics = {"test, relaxed": _measured(of_test, cfg), "validation, relaxed": _measured(of_val, cfg)}
    std = np.maximum(LEAST_STD, scale * of_test["size"])
    error = np.abs(_combined(of_test) - of_test["truth"])
    metrics["test, relaxed"][COMBINED] |= {
        "within one standard error": float((error <= std).mean()),
        "within two": float((error <= 2 * std).mean()),
    }
    checkpoint = Path(settings.checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    save_hull_network(checkpoint, members, scale)
    inputs = [*settings.members, evaluation.hull_checkpoint, evaluation.references_path]
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=[*inputs, *(Path(cfg.dataset.processed_dir) / f"{split}.pt" for split in rows)],
        counts={"members": len(members), **{f"{split} sheets": len(found) for split, found in rows.items()}},
        metrics=metrics,
        scale=scale,
        checkpoint_sha256=file_sha256(checkpoint),
        potential=potential.identity,
        source=SOURCE,
    )
    for name, found in metrics["test, relaxed"].items():
        log.info("%s: MAE %.3f eV/atom, agreement %.0f %%", name, found["mae_ev"][0], 100 * found["agree"][0])
    print(f"hull network: {relative_name(checkpoint)}")


def _combined(rows: dict[str, np.ndarray]) -> np.ndarray:
    return (1 - NETWORK_SHARE) * _both(rows) + NETWORK_SHARE * rows["network"]


def _both(rows: dict[str, np.ndarray]) -> np.ndarray:
    return (rows[LEARNT] + np.maximum(0.0, rows[POTENTIAL])) / 2


def _measured(rows: dict[str, np.ndarray], cfg: Config) -> dict[str, Any]:
    """Return ``agreement`` of every hull with the database's E_above_hull."""
    settings = cfg.evaluation
    values = {name: rows[name] for name in (LEARNT, POTENTIAL, "network")}
    values[BOTH] = _both(rows)
    values[COMBINED] = _combined(rows)
    return {
        name: agreement(value, rows["truth"], settings.hit_e_hull_ev, cfg.run.seed, settings.bootstrap)
        for name, value in values.items()
    }


def _judged(
    cfg: Config,
    split: str,
    count: int,
    potential: Potential,
    references: References,
    learnt: LearntHull,
    network: HullNetwork,
) -> list[dict[str, float]]:
    """Return what each hull says of ``count`` sheets of a split that are drawn at random and relaxed, those in its domain.

    Raises:
        StageError: none can be judged.
    """
    settings, evaluation = cfg.hull_network, cfg.evaluation
    path = Path(cfg.dataset.processed_dir) / f"{split}.pt"
    table = read_split(path)
    sizes = (table["ptr"][1:] - table["ptr"][:-1]).tolist()
    allowed = [k for k, size in enumerate(sizes) if size <= settings.max_atoms]
    drawn = np.random.default_rng([cfg.run.seed, 29]).permutation(allowed)[:count].tolist()
    about = {"split": file_sha256(path), "potential": potential.identity.get("sha256")}
    about |= {name: getattr(evaluation, name) for name in ("fmax_ev_per_angstrom", "max_steps")}
    store = LineStore(Path(settings.work_dir) / f"{split}.jsonl", {"fingerprint": fingerprint(about)})
    result = []
    for k in tqdm(drawn, desc=f"relaxations, {split}", unit="sheet"):
        if str(k) not in store:
            store.add(str(k), _relaxed(sheet_of(table, k).to_atoms(VACUUM_ANGSTROM), potential, cfg))
        record = store[str(k)]
        if record["status"] != "ok":
            continue
        atoms = Atoms(record["numbers"], record["positions"], cell=record["cell"], pbc=(True, True, False))
        try:
            e_form = references.e_form(atoms, record["energy"])
            if learnt.outside_domain(atoms, e_form):
                continue
            value, std = learnt.e_above_hull(atoms, e_form)
            own = float(references.e_above_hull(atoms, record["energy"]))
            found = {"truth": float(table["e_hull"][k]), LEARNT: value, POTENTIAL: own, "network": network.e_above_hull(atoms)}
        except (KeyError, ValueError, NotTwoDimensional):
            continue
        result.append(found | {"size": std[LEARNT] / learnt.models.scales[LEARNT]})
    if not result:
        raise StageError(
            f"no sheet of {relative_name(path)} can be judged by the learnt hull: run python -m scripts.train_hull with such sheets"
        )
    return result


def _relaxed(atoms: Atoms, potential: Potential, cfg: Config) -> dict[str, Any]:
    """Return status, energy (eV) and structure of a sheet after relaxation, as plain values."""
    found = relax_sheet(atoms, potential, cfg.evaluation.fmax_ev_per_angstrom, cfg.evaluation.max_steps)
    energy = found.energy if math.isfinite(found.energy) else None
    structure = {"numbers": found.atoms.numbers, "positions": found.atoms.positions, "cell": found.atoms.cell.array}
    return {"status": found.status, "energy": energy, **{name: value.tolist() for name, value in structure.items()}}
