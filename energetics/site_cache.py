"""Finds the adsorption sites of a sheet, once: they are cached on the disk."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from energetics.sites import AdsorptionSite, SheetHER, adsorption_sites, h_supercell
from geo_utils import primitive_sheet
from pipeline.store import LineStore

log = logging.getLogger("her2d")
SITES_VERSION = 1  # raised whenever the enumeration of sites changes


def place_sites(atoms: Atoms, image_distance: float) -> SheetHER:
    """Return primitive cell, sites and supercell of a sheet, without energies; a sheet without sites says why in ``status``.

    The primitive cell makes the answer the same for every cell, orientation and origin that describes one sheet.
    """
    try:
        sheet = primitive_sheet(atoms)
        sites = adsorption_sites(sheet)
        if not sites:
            raise ValueError("no adsorption site found")
        supercell = h_supercell(sheet, image_distance)
    except (ValueError, RuntimeError) as error:  # RuntimeError: Qhull on atoms that span no plane
        log.debug("no ΔG_H for %s: %s", atoms.get_chemical_formula(), error)
        return SheetHER(sheet=None, status=str(error))
    return SheetHER(sheet=sheet, sites=sites, supercell=supercell, coverage=1 / (supercell[0] * supercell[1]))


class SiteStore:
    """``place_sites`` with a cache in a file of JSON lines.

    Sites depend only on the sheet and on the distance between images of H. Labelling again with another checkpoint therefore finds
    them in the file; another distance starts a new one.
    """

    def __init__(self, path: Path, image_distance: float) -> None:
        self.image_distance = image_distance
        self.store = LineStore(path, {"version": SITES_VERSION, "image_distance_angstrom": image_distance})

    def __call__(self, atoms: Atoms) -> SheetHER:
        """Return the sites of a sheet, from the file or found now; the caller fills in the energies."""
        content = [atoms.numbers.tolist(), atoms.positions.round(6).tolist(), atoms.cell.array.round(6).tolist()]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
        if key not in self.store:
            self.store.add(key, _sites_to_json(place_sites(atoms, self.image_distance)))
        return _sites_from_json(self.store[key])


def _sites_to_json(sites: SheetHER) -> dict[str, Any]:
    if sites.sheet is None:
        return {"status": sites.status}
    sheet = {"numbers": sites.sheet.numbers, "positions": sites.sheet.positions, "cell": sites.sheet.cell.array}
    return {
        "status": sites.status,
        "sheet": {name: values.tolist() for name, values in sheet.items()},
        "pbc": sites.sheet.pbc.tolist(),
        "sites": [{**vars(s), "position": s.position.tolist(), "multiplicity": int(s.multiplicity)} for s in sites.sites],
        "supercell": [int(n) for n in sites.supercell],
    }


def _sites_from_json(entry: dict[str, Any]) -> SheetHER:
    if "sheet" not in entry:
        return SheetHER(sheet=None, status=entry["status"])
    sites = [
        AdsorptionSite(np.array(s["position"]), s["kind"], s["face"], tuple(s["neighbors"]), s["multiplicity"])
        for s in entry["sites"]
    ]
    na, nb = entry["supercell"]
    sheet = Atoms(**entry["sheet"], pbc=entry["pbc"])
    return SheetHER(sheet=sheet, sites=sites, supercell=(na, nb), coverage=1 / (na * nb))
