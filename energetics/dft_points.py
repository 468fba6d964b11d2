"""Reads and completes the DFT points: ΔE_H by DFT, and what potentials give at the same geometries."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.geometry import find_mic

from crystals.database import check_ase_database
from crystals.prototypes import name_as_relaxed
from energetics.adsorption_energy import adsorption_energy
from energetics.band_gap_model import GapModel
from energetics.dft_rows import AT_MINIMUM_OF, CLEAN, COVERED, GIVEN, LATENT_CHANGE_OF, LATENT_NUMBERS, STORED_ENERGIES
from energetics.latent_features import has_latent_features, latent_change
from energetics.site_chemistry import site_chemistry, site_descriptors
from energetics.sites import tag_last_hydrogen
from pipeline.errors import StageError
from pipeline.files import missing_file, relative_name
from pipeline.judge_table import DEFECTS

log = logging.getLogger("her2d")
STORED_GAP = "gap_learnt"  # key under which the database holds the band gap of the sheet without H, by ``band_gap_model``
NO_MINIMUM = "minimum_7netl3i5_fails"  # true where the minimum of the judge is another one than DFT was asked about
# ½D_e(H2) is 2.27 eV in PBE: the ΔE_H of an H that the sheet does not bind at all. A value far above it says nothing about
# adsorption: the geometry, which is the potential's, is one that DFT would not keep, such as a sheet collapsed around H.
UNBOUND_EV = 2.27 + 0.5
# No bond of H is stronger than that of HF, D_e = 6.1 eV (Huber, Herzberg, Constants of Diatomic Molecules (1979)). A ΔE_H below
# what it would give says that the sheet has become another one around H.
TORN_EV = 2.27 - 6.1
# From a DFT point to the minimum of a judge: H that goes further is at another site, and a sheet another sheet.
H_STAYS, SHEET_STAYS = 0.6, 0.5  # Å
MAX_DELTA_E_EV = 10.0  # beyond it a potential has left its domain, and a correction learnt within it says nothing
STEPS = 80
DFT_ERROR_EV = 0.05  # convergence of ΔE_H with the settings of energetics/dft_calculation.py
DEFECT_FAMILIES = ("vacancy in ", "single atom in ", "edge of ")  # as scripts.prepare_defects names them
# What the design loop, or a blind test, drew a sheet as -> where it is from.
ORIGINS = {
    "chosen": "guided generator",
    "at random": "guided generator",
    "chosen neighbour": "neighbours by substitution",
    "random neighbour": "neighbours by substitution",
    "unguided": "unguided generator",
    "random decoration": "random decoration",
}


@dataclass(frozen=True)
class TruthPoint:
    """One DFT value. atoms: sheet with one H, tagged. delta_e: eV. host: reduced formula, the unit left out of fits.

    energies: ΔE_H in eV of the potentials whose values the database holds, by name. clean: the sheet without H. family: the
    prototype of the sheet. gap: of the sheet, eV; NaN where the database does not hold it. drawn_as: by the design loop, empty for
    other sheets. at_minimum_of: ``energies`` at the minimum of a judge, by the name of the judge. latent_change_of: (m,) what H
    changes in the latent features of a judge, there, or where DFT was asked when there is no such minimum; by its name too.
    """

    name: str
    host: str
    site: str
    atoms: Atoms
    delta_e: float
    energies: dict[str, float]
    clean: Atoms | None = None
    family: str = ""
    gap: float = np.nan
    drawn_as: str = ""
    at_minimum_of: Mapping[str, dict[str, float]] = field(default_factory=dict)
    latent_change_of: Mapping[str, np.ndarray] = field(default_factory=dict)

    @functools.cached_property
    def chemistry(self) -> str:
        """Return what H binds to (``site_chemistry``)."""
        return site_chemistry(self.atoms)

    @functools.cached_property
    def site_descriptors(self) -> tuple[float, ...]:
        """Return what ``site_chemistry.site_descriptors`` says of H and its place."""
        return site_descriptors(self.atoms)

    @property
    def is_inside(self) -> bool:
        """Return whether H is inside the sheet."""
        return bool(self.site_descriptors[-1])

    @property
    def origin(self) -> str:
        """Return where the sheet is from: a value of ORIGINS, DEFECTS, or "known structure types"."""
        if self.drawn_as:
            return ORIGINS.get(self.drawn_as, self.drawn_as)
        return DEFECTS if self.family.startswith(DEFECT_FAMILIES) else "known structure types"


def read_truth(path: str | Path, with_unbound: bool = False) -> list[TruthPoint]:
    """Read the DFT points of an ASE database: rows ``kind=slab_H`` with H as the last atom and ``dE_dft`` in eV.

    Args:
        path: of the database.
        with_unbound: whether points above UNBOUND_EV or below TORN_EV are read too.

    Raises:
        StageError: the file is missing or no such database, the last atom of a row is no H, stored latent features are none of the
            potential's, or single points and relaxed points are mixed.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file("database of DFT points", path)
    try:
        check_ase_database(path)
        clean = {str(row.get("name", "")): row.toatoms() for row in connect(path).select(kind=CLEAN)}
        rows = list(connect(path).select(kind=COVERED))
    except StageError:
        raise
    except Exception as error:  # ase.db raises errors of sqlite3, json and its own for files that are no database
        raise StageError(f"{relative_name(path)} is not a readable ASE database ({type(error).__name__})") from error
    if len({row.get("geometry", GIVEN) for row in rows}) > 1:
        raise StageError(f"{relative_name(path)} mixes single points and points relaxed by DFT, which have different zeros")
    points, unbound = [], []
    for row in rows:
        if "dE_dft" not in row:
            continue
        atoms = row.toatoms()
        try:
            tag_last_hydrogen(atoms)
        except ValueError as error:
            raise StageError(f"{relative_name(path)}, row {row.id}: {error}") from error
        atoms.pbc = (True, True, False)
        host = atoms[:-1].symbols.formula.reduce()[0].format("hill")
        energies = {potential: float(row[key]) for potential, key in STORED_ENERGIES.items() if key in row}
        name, site = str(row.name), str(row.get("site", ""))
        if not (with_unbound or TORN_EV <= row.dE_dft <= UNBOUND_EV):
            unbound.append(f"{name} {site}")
            continue
        family = str(row.get("family", host))
        gap = float(row.get(STORED_GAP, np.nan))
        at_minima = {judge: {p: float(row[key]) for p, key in keys.items() if key in row} for judge, keys in AT_MINIMUM_OF.items()}
        drawn_as = str(row.get("drawn_as", ""))
        found = (float(row.dE_dft), energies, clean.get(name), family, gap, drawn_as, at_minima, _stored_latent(path, row))
        points.append(TruthPoint(name, host, site, atoms, *found))
    if unbound:
        _report_unbound(relative_name(path), ", ".join(unbound))
    return points


def _stored_latent(path: Path, row: Any) -> dict[str, np.ndarray]:
    """Return ``latent_change_of`` of a row of a database.

    Raises:
        StageError: what is stored is not as many finite numbers as the potential has features.
    """
    found = {}
    for judge, key in LATENT_CHANGE_OF.items():
        if key not in row.data:
            continue
        stored, numbers = np.asarray(row.data[key]), LATENT_NUMBERS[judge]
        if stored.shape != (numbers,) or stored.dtype.kind not in "fiu" or not np.isfinite(stored).all():
            raise StageError(
                f"{relative_name(path)}, row {row.id}: {key} has to be {numbers} finite numbers, the latent features of {judge}; "
                "without the key in its data they are computed anew"
            )
        found[judge] = stored.astype(float)
    return found


@functools.cache
def _report_unbound(path: str, names: str) -> None:
    """Say once in a run which points are left out, however often the file is read."""
    log.info("%s: left out, H unbound or the sheet torn in DFT at the potential's geometry: %s", path, names)


def potential_delta_e(points: Sequence[TruthPoint], potential: Any) -> np.ndarray:
    """Return a potential's ΔE_H (n,) eV at the DFT geometries, as stored, otherwise computed.

    NaN where it is not stored and cannot be computed because the clean sheet is not known.
    """
    from energetics.relaxation import h2_energy, single_point

    values = np.array([point.energies.get(potential.name, np.nan) for point in points])
    missing = [k for k in np.flatnonzero(np.isnan(values)) if points[k].clean is not None]
    if not missing:
        return values

    def energy(atoms: Atoms) -> float:
        sheet = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=(True, True, False))
        return single_point(sheet, potential.calculator)

    h2 = h2_energy(potential)
    sheets: dict[str, float] = {}
    for k in missing:
        name = points[k].name
        if name not in sheets:
            sheets[name] = energy(points[k].clean)
        values[k] = adsorption_energy(energy(points[k].atoms), sheets[name], h2)
    return values


def judged_delta_e(points: Sequence[TruthPoint], potentials: Sequence[Any]) -> np.ndarray:
    """Return the ΔE_H (n, k) eV of k potentials as a judge finds them: at the minima of the first, where they are stored for it.

    Elsewhere ``potential_delta_e``.
    """
    columns = []
    for potential in potentials:
        found = [point.at_minimum_of.get(potentials[0].name, {}).get(potential.name, np.nan) for point in points]
        values = np.array(found, dtype=float)
        if missing := np.flatnonzero(np.isnan(values)).tolist():
            values[missing] = potential_delta_e([points[k] for k in missing], potential)
        columns.append(values)
    return np.stack(columns, 1)


def judged_latent_change(points: Sequence[TruthPoint], judge: Any) -> np.ndarray | None:
    """Return what H changes in the latent features of a judge (n, m): as stored, otherwise computed where DFT was asked.

    None, with a warning, where a point has neither, and None for a potential of which databases do not store them.
    """
    missing = [point for point in points if judge.name not in point.latent_change_of]
    if judge.name not in LATENT_CHANGE_OF or (missing and not has_latent_features(judge)):
        return None
    if unknown := [point.name for point in missing if point.clean is None]:
        log.warning("latent features of %s do without: %s, no clean sheet to compare with", judge.name, ", ".join(unknown))
        return None
    rows = []
    for point in points:
        stored = point.latent_change_of.get(judge.name)
        rows.append(latent_change(point.atoms, point.clean, judge) if stored is None else stored)
    return np.stack(rows) if rows else None


def sheet_gaps(points: Sequence[TruthPoint]) -> np.ndarray:
    """Return the band gaps (n,) eV of the sheets, as stored; NaN where the database holds none."""
    return np.array([point.gap for point in points], dtype=float)


def name_as_found(path: str | Path) -> int:
    """Correct the family, and the name that holds it, of the rows whose sheet is not what it was built as; return how many.

    DFT points are made on sheets that a potential has relaxed, and it may have undone the distortion of 1T'
    (``crystals.prototypes.name_as_relaxed``). Energies and geometries stay.
    """
    database, changed = connect(path), 0
    clean = {str(row.get("name", "")): row.toatoms() for row in database.select(kind="clean")}
    for row in list(database.select()):
        name, family = str(row.get("name", "")), str(row.get("family", ""))
        found = name_as_relaxed(family, clean[name]) if name in clean else family
        if found != family:
            database.update(row.id, family=found, name=name.replace(family, found))
            changed += 1
    return changed


def store_gaps(path: str | Path, checkpoint: str) -> int:
    """Write the band gaps of the sheets into the rows of the DFT database, in the place of those that are there; return how many.

    Args:
        path: of the database.
        checkpoint: of a ``band_gap_model.GapModel``. A ribbon has none.
    """
    database, gap = connect(path), GapModel.load(checkpoint)
    sheets = {str(row.get("name", "")): row.toatoms() for row in database.select(kind=CLEAN)}
    gaps = {name: gap.rough_gap(sheet) for name, sheet in sheets.items()}
    stored = 0
    for row in list(database.select(kind=COVERED)):
        value = gaps.get(str(row.name), np.nan)
        if np.isfinite(value):
            database.update(row.id, **{STORED_GAP: value})
            stored += 1
        elif STORED_GAP in row:
            database.update(row.id, delete_keys=[STORED_GAP])
    return stored


def store_at_minima(path: str | Path, judge: Any, *others: Any) -> int:
    """Add the ΔE_H of an embedded potential at its own minima, and of others there, to the rows that lack them; return how many.

    All atoms relax in the fixed cell, from the geometry of the DFT point with H and without. Where H goes further than H_STAYS,
    another atom further than SHEET_STAYS, or a relaxation fails, the minimum is another one than DFT was asked about: the row is
    marked, and nobody asks again. What H changes in the latent features of the judge joins as well: at the minimum, or of a marked
    row where DFT was asked.
    """
    keys, latent_key = AT_MINIMUM_OF[judge.name], LATENT_CHANGE_OF[judge.name]
    potentials = [judge, *(other for other in others if other.name in keys)]
    added, sheets, database = 0, {}, connect(path)
    points = {(point.name, point.site): point for point in read_truth(path, with_unbound=True)}
    lack_latent = {key for key, point in points.items() if judge.name not in point.latent_change_of}
    lack_latent = lack_latent if lack_latent and has_latent_features(judge) else set()
    for row in list(database.select(kind=COVERED)):
        key = str(row.name), str(row.get("site", ""))
        point, new, data = points.get(key), {}, {}
        known = row.get(NO_MINIMUM) or all(keys[p.name] in row for p in potentials)
        if point is None or point.clean is None or (known and key not in lack_latent):
            continue
        sheet = covered = None
        if not row.get(NO_MINIMUM):
            if point.name not in sheets:
                sheets[point.name] = _minimum(point.clean, judge, [SHEET_STAYS] * len(point.clean))
            sheet = sheets[point.name]
            covered = _minimum(point.atoms, judge, [SHEET_STAYS] * len(point.clean) + [H_STAYS])
        if not known:
            new = _at_minimum(covered, sheet, potentials, keys)
            added += NO_MINIMUM not in new
        if key in lack_latent:
            at = (point.atoms, point.clean) if sheet is None or covered is None or NO_MINIMUM in new else (covered, sheet)
            data = {latent_key: latent_change(*at, judge).astype(np.float16)}  # rounded by a hundredth of the spread at most
        database.update(row.id, data=data, **new)
    return added


def _minimum(atoms: Atoms, judge: Any, stays: Sequence[float]) -> Atoms | None:
    """Return a sheet at the minimum of a judge; None where there is none nearby. stays: (N,) Å, how far each atom may go."""
    from energetics.relaxation import relax_positions

    start = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=(True, True, False))
    found = relax_positions(start, judge, max_steps=STEPS)
    moved = find_mic(found.atoms.positions - atoms.positions, atoms.cell, (True, True, False))[1]
    return found.atoms if found.status in ("ok", "not converged") and (moved <= np.array(stays)).all() else None


def _at_minimum(with_h: Atoms | None, sheet: Atoms | None, potentials: Sequence[Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the ΔE_H (eV) of potentials at the minima of the first, by their keys of a row; NO_MINIMUM where there are none."""
    from energetics.relaxation import h2_energy, single_point

    values: dict[str, float] = {}
    if with_h is not None and sheet is not None:
        for p in potentials:
            energies = (single_point(atoms, p.calculator) for atoms in (with_h, sheet))
            values[keys[p.name]] = adsorption_energy(*energies, h2_energy(p))
    is_known = bool(values) and max(map(abs, values.values())) <= MAX_DELTA_E_EV
    return dict(values) if is_known else {NO_MINIMUM: True}


def store_energies(path: str | Path, potential: Any) -> int:
    """Add the ΔE_H of an embedded potential to the rows of the DFT database that lack it; return how many."""
    key = STORED_ENERGIES[potential.name]
    points = read_truth(path, with_unbound=True)
    values = potential_delta_e(points, potential)
    by_point = {(p.name, p.site): float(v) for p, v in zip(points, values, strict=True) if potential.name not in p.energies}
    added = 0
    database = connect(path)
    for row in list(database.select(kind=COVERED)):
        value = by_point.get((str(row.name), str(row.get("site", ""))), np.nan)
        if key not in row and np.isfinite(value):
            database.update(row.id, **{key: value})
            added += 1
    return added
