"""Sites of sheets, kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from energetics.sites import AdsorptionSite, SheetHER, adsorption_sites, h_supercell
from geo_utils import primitive_sheet

log = logging.getLogger("her2d")
SITES_VERSION = 1  # raised whenever the enumeration of sites changes


def place_sites(atoms: Atoms, image_distance: float) -> SheetHER:
    """Primitive cell, sites and supercell of a sheet, without energies; a sheet without sites says why in ``status``.

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
    """``place_sites`` by structure in an append-only file of JSON lines.

    Sites depend on the sheet and on the distance between images only, so that labelling again with another checkpoint starts at the
    network. An unfinished last line of a killed run is cut off; another distance starts a new file.
    """

    def __init__(self, path: Path, image_distance: float) -> None:
        self.image_distance, self.known, good = image_distance, {}, 0
        head = json.dumps({"version": SITES_VERSION, "image_distance_angstrom": image_distance}) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            with path.open("rb") as handle:
                if handle.readline() == head.encode():
                    good = len(head)
                    for line in handle:
                        if not line.endswith(b"\n"):
                            break
                        entry = json.loads(line)
                        self.known[entry["key"]] = entry
                        good += len(line)
        if good:
            os.truncate(path, good)
        self.handle = path.open("a" if good else "w", encoding="utf-8")
        if not good:
            self.handle.write(head)

    def __call__(self, atoms: Atoms) -> SheetHER:
        """Sites of a sheet, found now or before. The energies are the caller's to fill in."""
        content = [atoms.numbers.tolist(), atoms.positions.round(6).tolist(), atoms.cell.array.round(6).tolist()]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
        if key not in self.known:
            self.known[key] = {"key": key, **_placed_to_json(place_sites(atoms, self.image_distance))}
            self.handle.write(json.dumps(self.known[key]) + "\n")
            self.handle.flush()
        return _placed_from_json(self.known[key])

    def close(self) -> None:
        """Closes the file."""
        self.handle.close()


def _placed_to_json(placed: SheetHER) -> dict[str, Any]:
    if placed.sheet is None:
        return {"status": placed.status}
    sheet = {"numbers": placed.sheet.numbers, "positions": placed.sheet.positions, "cell": placed.sheet.cell.array}
    sites = [{**vars(s), "position": s.position.tolist(), "multiplicity": int(s.multiplicity)} for s in placed.sites]
    return {
        "status": placed.status,
        "sheet": {name: values.tolist() for name, values in sheet.items()},
        "pbc": placed.sheet.pbc.tolist(),
        "sites": sites,
        "supercell": [int(n) for n in placed.supercell],
    }


def _placed_from_json(entry: dict[str, Any]) -> SheetHER:
    if "sheet" not in entry:
        return SheetHER(sheet=None, status=entry["status"])
    sites = [
        AdsorptionSite(np.array(s["position"]), s["kind"], s["face"], tuple(s["neighbors"]), s["multiplicity"])
        for s in entry["sites"]
    ]
    na, nb = entry["supercell"]
    sheet = Atoms(**entry["sheet"], pbc=entry["pbc"])
    return SheetHER(sheet=sheet, sites=sites, supercell=(na, nb), coverage=1 / (na * nb))
