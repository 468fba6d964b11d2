"""Writes DFT points to an ASE database, and keeps points of different kinds apart.

A row ``kind=slab_H`` is one H on a sheet, a row ``kind=clean`` the sheet. ``geometry`` says what the energies are of: "given",
single points at the geometry given (rows without the key, too), or "relaxed", minima of DFT. ``dft_by`` names the calculator where
it is not GPAW. A database holds points of one geometry only, and ``verify_dft.py`` adds to it points of its own calculator only.

Imports ase only; ``scripts/verify_dft.py`` runs where little else is installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.db import connect

from energetics.dft_calculation import GPAW
from pipeline.errors import StageError

GIVEN, RELAXED = "given", "relaxed"
CLEAN, COVERED = "clean", "slab_H"  # ``kind`` of a row
# Under which keys a row keeps the ΔE_H of the embedded potentials (``potential_values``).
STORED_ENERGIES = {"sevennet-0": "dE_7net0", "sevennet-l3i5": "dE_7netl3i5"}
# And those at the minimum of a judge: judge -> potential -> key. Where SevenNet-0 relaxed what DFT was asked about, or what went on
# from there to the minimum of another potential, the values above are those of its minima.
AT_MINIMUM_OF = {"sevennet-l3i5": {"sevennet-l3i5": "dE_7netl3i5_min", "sevennet-0": "dE_7net0_at_7netl3i5"}}
# Under which key of its data a row keeps what H changes in the latent features of a judge, there too.
LATENT_CHANGE_OF = {"sevennet-l3i5": "latent_change_7netl3i5"}
LATENT_NUMBERS = {"sevennet-l3i5": 5 * 128}  # behind each interaction so many scalar features


@dataclass(frozen=True)
class SitePoint:
    """One H on a sheet by DFT.

    atoms: the sheet with H last. energy: eV. delta_e: ΔE_H, eV. values: further keys of the row; empty ones (None) are left out.
    """

    site: str
    atoms: Atoms
    energy: float
    delta_e: float
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SheetPoints:
    """A sheet and its sites by DFT.

    clean: the sheet. energy: eV. kpts: the larger number of k-points in plane. spin: whether spin-polarised. values: further keys
    of all rows, such as family. clean_values: of the clean sheet's row only.
    """

    name: str
    clean: Atoms
    energy: float
    kpts: int
    spin: bool
    sites: Sequence[SitePoint]
    values: Mapping[str, Any] = field(default_factory=dict)
    clean_values: Mapping[str, Any] = field(default_factory=dict)


def check_unmixed(path: Path, geometry: str, calculator: str | None = None) -> None:
    """Raise StageError where a database holds points of another geometry or, where one is named, of another calculator.

    Args:
        path: of the database; one that is not there holds nothing.
        geometry: GIVEN or RELAXED.
        calculator: name of the method; None: any.
    """
    if not path.is_file():
        return
    for row in connect(path).select():
        if (other := row.get("geometry", GIVEN)) != geometry:
            raise StageError(
                f"{path} holds points of {other} geometries; those of {geometry} ones must not be mixed with them: "
                "name another database"
            )
        if calculator is not None and (other := row.get("dft_by", GPAW)) != calculator:
            raise StageError(f"{path} holds points by {other}, not by {calculator}: name another database")


def add_points(path: Path, systems: Iterable[SheetPoints], geometry: str, calculator: str = GPAW) -> None:
    """Add points to a database, which is made where it is missing and replaced as a whole.

    A single point that is there stays. A relaxed one is replaced, because more steps or a zero-point energy may have come.

    Raises:
        StageError: see ``check_unmixed``.
    """
    check_unmixed(path, geometry, calculator)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    if path.is_file():
        temporary.write_bytes(path.read_bytes())
    try:
        with connect(temporary, type="db") as db:
            present = {(row.name, row.get("site", CLEAN)): row.id for row in db.select()} if path.is_file() else {}
            for points in systems:
                for site, atoms, values in _rows(points, geometry, calculator):
                    if (points.name, site) in present:
                        if geometry == GIVEN:
                            continue
                        del db[present[points.name, site]]
                    db.write(atoms, **values)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _rows(points: SheetPoints, geometry: str, calculator: str) -> list[tuple[str, Atoms, dict[str, Any]]]:
    """Return (site or "clean", atoms, keys) of the rows of a sheet; none where no site has a value."""
    if not points.sites:
        return []
    host = points.clean.symbols.formula.reduce()[0].format("hill")
    shared = {"name": points.name, "host": host, "kpts": points.kpts, "spin": points.spin, "geometry": geometry, **points.values}
    if calculator != GPAW:
        shared["dft_by"] = calculator
    rows = [(CLEAN, points.clean, shared | {"kind": CLEAN, "energy_dft": points.energy} | _known(points.clean_values))]
    for site in points.sites:
        values = {"kind": COVERED, "site": site.site, "energy_dft": site.energy, "dE_dft": site.delta_e}
        rows.append((site.site, site.atoms, shared | values | _known(site.values)))
    return rows


def potential_values(info: Mapping[str, Any]) -> dict[str, float]:
    """Return the keys of a row that keep potentials' ΔE_H, from the ``info`` of a frame of ``dft_inputs``.

    They are of the geometry that the judge's potential found, from which the frame may have gone on to another minimum.
    """
    found = {potential: float(info[key]) for potential, key in STORED_ENERGIES.items() if key in info}
    judge = info.get("potential")
    if judge in STORED_ENERGIES and "delta_e_potential_ev" in info:
        found[judge] = float(info["delta_e_potential_ev"])
    keys = AT_MINIMUM_OF.get(judge, STORED_ENERGIES)
    return {keys[potential]: value for potential, value in found.items()}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that have a value."""
    return {key: value for key, value in values.items() if value is not None}
