"""Compares E_above_hull with the values of a database, on the same monolayers.

``evaluation.hull_db`` names a database with ``ehull`` such as C2DB. A sample of its rows is relaxed with the potential of the
evaluation, and E_above_hull is computed with the same reference phases as for any candidate. Values differ because functional,
references and competing phases differ; what matters is whether the verdicts "stable" and "unstable" agree. A learnt hull is
compared only on formulas that it has not seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from ase.db import connect
from scipy.stats import spearmanr
from tqdm import tqdm

from crystals.database import check_ase_database
from energetics.hull import References, sample_rows
from energetics.hull_network import COMBINED
from energetics.learnt_hull import POTENTIAL, LearntHull, judge_hull, load_learnt_hull
from energetics.potentials import Potential
from energetics.relaxation import relax_sheet
from geo_utils import standard_sheet
from pipeline.errors import StageError
from pipeline.files import file_sha256, missing_file, relative_name, write_json
from pipeline.settings import Config, EvaluationConfig
from pipeline.store import LineStore

log = logging.getLogger("her2d")

READ_VACUUM = 6.0  # Å, least empty gap that makes an axis of a row the vacuum axis


def measure(
    db_path: Path,
    potential: Potential,
    references: References,
    settings: EvaluationConfig,
    seed: int,
    cache: Path,
    learnt: LearntHull | None = None,
) -> dict[str, Any]:
    """Compare E_above_hull on a sample of ``settings.hull_rows`` rows of a database.

    Args:
        db_path: ASE database with ``ehull`` (eV/atom).
        potential: relaxes the rows.
        references: reference phases by the same potential.
        settings: those of the evaluation.
        seed: of the sample.
        cache: file of finished rows (JSON lines), used again for the same database, potential, references and hull.
        learnt: the learnt hull that judges, if any; then the sample is of formulas that it has not seen.

    Returns:
        What ``summarise`` returns, and ``source`` and ``identity``.

    Raises:
        StageError: the database is missing or has no row with a finite ``ehull``.
    """
    if not db_path.is_file():
        raise missing_file("evaluation.hull_db", db_path)
    check_ase_database(db_path)
    keep = None if learnt is None else lambda row: learnt.is_held_out(row.formula)
    ids = sample_rows(db_path, settings.hull_rows, seed, keep)
    if not ids:
        raise StageError(f"evaluation.hull_db: {relative_name(db_path)} has no row with a finite ehull")
    identity = {"db": file_sha256(db_path)} | hull_identity(settings, learnt is not None)
    mark = hashlib.sha256(json.dumps([identity, potential.identity], sort_keys=True).encode()).hexdigest()
    store = LineStore(cache, pack=_pack, unpack=_unpack)
    database = connect(db_path)
    for row_id in tqdm([k for k in ids if (mark, k) not in store], desc="hull parity", unit="row"):
        store.add((mark, row_id), _measure_row(database.get(id=row_id), potential, references, settings, learnt))
    return summarise([store[mark, k] for k in ids], settings.hit_e_hull_ev) | {"source": db_path.name, "identity": identity}


def hull_identity(settings: EvaluationConfig, with_learnt: bool) -> dict[str, str]:
    """Return what E_above_hull depends on beside the potential: the references, learnt hull and networks."""
    own = {"references": file_sha256(settings.references_path)}
    network = {"hull_network": file_sha256(settings.hull_network)} if settings.hull == COMBINED else {}
    return own | {"hull": f"{settings.hull} {file_sha256(settings.hull_checkpoint)}"} | network if with_learnt else own


def _measure_row(
    row: Any, potential: Potential, references: References, settings: EvaluationConfig, learnt: LearntHull | None
) -> dict[str, Any]:
    """Return E_above_hull of a row by the database (``theirs``) and by us (``ours``), in eV/atom, and a status."""
    ours, status = math.nan, "ok"
    try:
        atoms = standard_sheet(row.toatoms(), READ_VACUUM)
        if missing := sorted(set(atoms.symbols) - set(references.elements)):
            status = f"no reference for {', '.join(missing)}"
        else:
            relaxed = relax_sheet(atoms, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
            status = relaxed.status
            ours = judge_hull(references, learnt, relaxed.atoms, relaxed.energy, settings.hull).e_above_hull
    except (ValueError, KeyError) as error:  # KeyError: a pair of elements without a competing compound
        status = str(error).strip("'\"")[:80]
    return {"theirs": float(row.ehull), "ours": ours, "status": status}


def _pack(key: tuple[str, int], record: dict[str, Any]) -> dict[str, Any]:
    """Make the line of a row: its mark (hash of database, references and potential), its id and its record."""
    return {"mark": key[0], "id": key[1], **record}


def _unpack(entry: dict[str, Any]) -> tuple[tuple[str, int], dict[str, Any]]:
    return (entry["mark"], entry["id"]), {name: entry[name] for name in ("theirs", "ours", "status")}


def summarise(rows: list[dict[str, Any]], limit: float) -> dict[str, Any]:
    """Measure the agreement of E_above_hull, and of the verdict "at most ``limit``", over the rows that have both values.

    Args:
        rows: ``{ours, theirs, status}``, in eV/atom.
        limit: in eV/atom.

    Returns:
        ``{n_ok, n, mae_ev, median_error_ev (ours − theirs), spearman, limit_ev, agree, stable_both, stable_ours_only,
        stable_theirs_only, pairs: [(theirs, ours), ...]}``; ``agree`` is a share.
    """
    known = [row for row in rows if math.isfinite(row["ours"]) and row["status"] == "ok"]
    ours, theirs = (np.array([row[name] for row in known]) for name in ("ours", "theirs"))
    error = ours - theirs
    stable = {"ours": ours <= limit, "theirs": theirs <= limit}
    varied = len(known) > 2 and np.ptp(ours) > 0 and np.ptp(theirs) > 0
    return {
        "n_ok": len(known),
        "n": len(rows),
        "mae_ev": float(np.abs(error).mean()) if len(known) else None,
        "median_error_ev": float(np.median(error)) if len(known) else None,
        "spearman": float(spearmanr(ours, theirs).statistic) if varied else None,
        "limit_ev": limit,
        "agree": float((stable["ours"] == stable["theirs"]).mean()) if len(known) else None,
        "stable_both": int((stable["ours"] & stable["theirs"]).sum()),
        "stable_ours_only": int((stable["ours"] & ~stable["theirs"]).sum()),
        "stable_theirs_only": int((~stable["ours"] & stable["theirs"]).sum()),
        "pairs": [(float(t), float(o)) for t, o in zip(theirs, ours, strict=True)],
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw our E_above_hull against the database's, with the limit of the verdict. found: what ``measure`` returns."""
    from pipeline.plotting import figure

    theirs, ours = np.array(found["pairs"]).reshape(-1, 2).T
    top = float(np.quantile(np.concatenate([theirs, ours]), 0.99)) + 0.05 if len(ours) else 1.0
    outside = int(((theirs > top) | (ours > top)).sum())
    limit = found["limit_ev"]
    with figure(path, figsize=(4.6, 4.4)) as (_, axis):
        axis.plot([0, top], [0, top], color="0.5", lw=0.9)
        for line in (axis.axhline, axis.axvline):
            line(limit, color="0.6", lw=0.8, ls="--")
        axis.plot(theirs, ours, "o", ms=3, color="#08519c", alpha=0.6)
        axis.set(xlim=(-0.02, top), ylim=(-0.02, top), aspect="equal")
        axis.set(xlabel=f"E_above_hull of {found['source']} (eV/atom)", ylabel="E_above_hull here (eV/atom)")
        note = f"; {outside} beyond the axes" if outside else ""
        axis.set_title(
            f"{found['n_ok']} monolayers, MAE {found['mae_ev']:.2f} eV/atom{note}\n"
            f"verdict at {limit:g} eV/atom agrees for {100 * found['agree']:.0f} %",
            fontsize=9,
        )


def measure_or_read(cfg: Config, output_dir: Path) -> dict[str, Any] | None:
    """Compare with ``evaluation.hull_db``; where that is not set, read what an earlier run found.

    A comparison writes ``hull_parity.json`` and ``hull_parity.png``. The file has no values of single rows, because those belong to
    the database.

    Returns:
        The content of ``hull_parity.json``; None where there is none for the present references and hull.
    """
    from energetics.potentials import load_potential

    settings, path = cfg.evaluation, output_dir / "hull_parity.json"
    if not settings.hull_db:
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        own = hull_identity(settings, settings.hull != POTENTIAL and Path(settings.hull_checkpoint).is_file())
        names = ("references", "hull", "hull_network")
        if {name: found["identity"].get(name) for name in names} != dict.fromkeys(names) | own:
            log.warning("%s is of other references or another hull: set evaluation.hull_db to measure anew", relative_name(path))
            return None
        return found
    potential = load_potential(settings.potential, settings.potential_checkpoint)
    references = References.load(settings.references_path, potential)
    learnt = load_learnt_hull(settings, references, potential)
    cache = output_dir / "cache" / "hull_parity.jsonl"
    found = measure(Path(settings.hull_db), potential, references, settings, cfg.run.seed, cache, learnt)
    if found["n_ok"]:
        draw(found, output_dir / "hull_parity.png")
    public = {key: value for key, value in found.items() if key != "pairs"}
    write_json(path, public)
    return public
