"""Makes the data of the page's 3D view, which ``templates/viewer.js`` draws without a library and without a network.

``encode`` turns a structure into short strings for ``report.json``; ``page_data`` turns those into the JSON that the page embeds,
bonds included.

The page must hold one table row with ``data-i="k"`` per candidate k of ``page_data``: a click on it shows that candidate. The body
carries ``data-viewer`` ("drawn", "empty" or "error: ...") and ``data-shown`` (the id) after every drawing.

The viewers in Python wheels are larger and written for notebooks: weas-widget 0.2.6 has 1.1 MB of JavaScript and needs WebGL,
plotly 7.1 has 4.8 MB and knows no bonds, py3Dmol 2.5 has none and loads its own from the network. This one has 10 kB, so that the
page with 32 candidates and all figures stays below 4 MB, and it asks the browser for a 2D canvas only.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.neighborlist import neighbor_list
from pymatgen.core import Element

# Smaller than the scale that decides whether a sheet is connected, because lines for every contact would hide the structure.
DRAWN_BOND_SCALE = 1.15
H_BOND_SCALE = 1.25  # H starts on its site a little farther away than a bond


def drawn_bonds(numbers: np.ndarray, first: np.ndarray, second: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Choose the pairs that are drawn as bonds.

    A pair is drawn when it is closer than DRAWN_BOND_SCALE times the sum of the covalent radii. Two metals are joined in elements
    and alloys only: in compounds their contacts would hide the coordination polyhedra.

    Args:
        numbers: (N,) atomic numbers.
        first, second: (P,) indices of the atoms of each pair.
        distances: (P,) in Å.

    Returns:
        (P,) bool.
    """
    radii = covalent_radii[numbers]
    metallic = np.array([Element.from_Z(int(z)).is_metal for z in numbers], dtype=bool)
    close = distances < DRAWN_BOND_SCALE * (radii[first] + radii[second])
    return close if metallic.all() else close & ~(metallic[first] & metallic[second])


def ball_radii(numbers: np.ndarray) -> np.ndarray:
    """Return the radii (N,) in Å at which atoms are drawn, small enough to leave the bonds visible. numbers: (N,)."""
    return 0.42 * covalent_radii[numbers] + 0.12


def hex_color(number: int) -> str:
    """Return Jmol's colour of an element as #rrggbb. number: atomic number."""
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in jmol_colors[number])


def periodic_bonds(atoms: Atoms) -> list[list[int]]:
    """Return every drawn bond once as [i, j, Sa, Sb, Sc]: from atom i to the image of atom j shifted by Sa a + Sb b + Sc c."""
    cutoff = 2 * DRAWN_BOND_SCALE * float(covalent_radii[atoms.numbers].max())
    first, second, distances, shifts = neighbor_list("ijdS", atoms, cutoff)
    keep = drawn_bonds(atoms.numbers, first, second, distances)
    bonds = zip(first[keep].tolist(), second[keep].tolist(), shifts[keep].tolist(), strict=True)
    return sorted([i, j, *shift] for i, j, shift in bonds if i < j or (i == j and shift > [0, 0, 0]))


def encode(atoms: Atoms) -> dict[str, str]:
    """Write a structure as short strings; lengths in Å with three decimals, the cell as nine numbers (row vectors).

    "hydrogen" is the place of H on its best site, where ``info["h_position"]`` has it.
    """
    stored = {
        "symbols": " ".join(atoms.get_chemical_symbols()),
        "pbc": "".join("T" if periodic else "F" for periodic in atoms.pbc),
        "cell": " ".join(f"{value:.3f}" for value in atoms.cell.array.ravel()),
        "positions": " ".join(f"{value:.3f}" for value in atoms.positions.ravel()),
    }
    place = atoms.info.get("h_position")
    return stored if place is None else stored | {"hydrogen": " ".join(f"{value:.3f}" for value in place)}


def decode(stored: Mapping[str, str]) -> Atoms:
    """Return the structure that ``encode`` wrote."""
    return Atoms(
        stored["symbols"].split(),
        positions=np.array(stored["positions"].split(), dtype=float).reshape(-1, 3),
        cell=np.array(stored["cell"].split(), dtype=float).reshape(3, 3),
        pbc=[letter == "T" for letter in stored["pbc"]],
    )


def view(stored: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page draws: symbols, bonds, positions and cell (Å, both flat).

    Atoms lie inside the cell, the mid-plane of a sheet at z = 0. "hydrogen", where it is stored, has the place "xyz" of H and its
    "bonds": [i, Sa, Sb], to the image of atom i shifted by Sa a + Sb b.
    """
    atoms = decode(stored)
    atoms.wrap(eps=1e-3)
    sheet = not atoms.pbc[2]
    hydrogen = np.array(stored["hydrogen"].split(), dtype=float) if "hydrogen" in stored else None
    if sheet:
        mid_plane = 0.5 * (atoms.positions[:, 2].max() + atoms.positions[:, 2].min())
        atoms.positions[:, 2] -= mid_plane
        if hydrogen is not None:
            hydrogen[2] -= mid_plane
    adsorbed = {} if hydrogen is None else {"hydrogen": _adsorbed(atoms, hydrogen)}
    return {
        "symbols": atoms.get_chemical_symbols(),
        "xyz": [round(value, 3) for value in atoms.positions.ravel().tolist()],
        "cell": [round(value, 3) for value in atoms.cell.array.ravel().tolist()],
        "bonds": periodic_bonds(atoms),
        "sheet": sheet,
        **adsorbed,
    }


def _adsorbed(atoms: Atoms, place: np.ndarray) -> dict[str, Any]:
    """Return place and bonds of H above a sheet. place: (3,) Å, which is moved into the cell."""
    fractional = np.linalg.solve(atoms.cell.array.T, place)
    place = place - (np.floor(fractional + 1e-3) * [1, 1, 0]) @ atoms.cell.array
    found = []
    for a, b in itertools.product((-1, 0, 1), repeat=2):
        distances = np.linalg.norm(atoms.positions + [a, b, 0] @ atoms.cell.array - place, axis=1)
        limits = H_BOND_SCALE * (covalent_radii[atoms.numbers] + covalent_radii[1])
        found += [[i, a, b] for i in np.flatnonzero(distances < limits).tolist()]
    return {"xyz": [round(value, 3) for value in place.tolist()], "bonds": sorted(found)}


def script_json(content: Any) -> str:
    """Write JSON that is safe inside ``<script type="application/json">``: none of its characters can end or open an element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(candidates: Sequence[Mapping[str, Any]]) -> str:
    """Return the JSON that the page embeds.

    Args:
        candidates: ``{id, structure: what encode returns or None, note}`` each; what else they have is embedded as it is.
    """
    drawn = [{**c, "structure": view(c["structure"]) if c["structure"] else None} for c in candidates]
    symbols = sorted({symbol for c in drawn if c["structure"] for symbol in [*c["structure"]["symbols"], "H"]})
    numbers = np.array([Element(symbol).Z for symbol in symbols], dtype=int)
    radii = ball_radii(numbers)
    elements = {s: [hex_color(z), round(float(r), 3)] for s, z, r in zip(symbols, numbers, radii, strict=True)}
    return script_json({"elements": elements, "candidates": drawn})
