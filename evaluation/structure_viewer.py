"""Turns structures into the data of the page's 3D view; ``templates/viewer.js`` draws them with no library and no network.

``encode`` turns a structure into short strings for ``report.json``; ``page_data`` turns those into the JSON that the page embeds,
bonds included.

The page must hold one table row with ``data-i="k"`` per candidate k of ``page_data``: a click on it shows that candidate. The body
carries ``data-viewer`` ("drawn", "empty" or "error: ...") and ``data-shown`` (the id) after every drawing.

The viewers in Python wheels are larger and written for notebooks: weas-widget 0.2.6 has 1.1 MB of JavaScript and needs WebGL,
plotly 7.1 has 4.8 MB and knows no bonds, py3Dmol 2.5 has none and loads its own from the network. This one has 10 kB, so that the
page with 32 candidates and all figures stays below 4 MB, and it asks the browser for a 2D canvas only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.neighborlist import neighbor_list
from pymatgen.core import Element

# Tighter than the scale that decides whether a sheet hangs together: a picture of every contact is a picture of none.
DRAWN_BOND_SCALE = 1.15


def drawn_bonds(numbers: np.ndarray, first: np.ndarray, second: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Which pairs are drawn as bonds. numbers: (N,); first, second: (P,) atom indices; distances: (P,) Å. Returns (P,) bool.

    Drawn is a pair closer than 1.15 times the sum of the covalent radii. Two metals are joined in elements and alloys only: beside
    a non-metal their contacts would hide the coordination polyhedra.
    """
    radii = covalent_radii[numbers]
    metallic = np.array([Element.from_Z(int(z)).is_metal for z in numbers], dtype=bool)
    close = distances < DRAWN_BOND_SCALE * (radii[first] + radii[second])
    return close if metallic.all() else close & ~(metallic[first] & metallic[second])


def ball_radii(numbers: np.ndarray) -> np.ndarray:
    """Radii (Å) at which atoms are drawn: small enough to leave the bonds visible. numbers: (N,). Returns (N,)."""
    return 0.42 * covalent_radii[numbers] + 0.12


def hex_color(number: int) -> str:
    """Jmol's colour of an element as #rrggbb."""
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in jmol_colors[number])


def periodic_bonds(atoms: Atoms) -> list[list[int]]:
    """Every drawn bond once as [i, j, Sa, Sb, Sc]: from atom i to the image of atom j shifted by Sa a + Sb b + Sc c."""
    cutoff = 2 * DRAWN_BOND_SCALE * float(covalent_radii[atoms.numbers].max())
    first, second, distances, shifts = neighbor_list("ijdS", atoms, cutoff)
    keep = drawn_bonds(atoms.numbers, first, second, distances)
    bonds = zip(first[keep].tolist(), second[keep].tolist(), shifts[keep].tolist(), strict=True)
    return sorted([i, j, *shift] for i, j, shift in bonds if i < j or (i == j and shift > [0, 0, 0]))


def encode(atoms: Atoms) -> dict[str, str]:
    """A structure as four short strings, lengths in Å with three decimals; cell: nine numbers, row vectors."""
    return {
        "symbols": " ".join(atoms.get_chemical_symbols()),
        "pbc": "".join("T" if periodic else "F" for periodic in atoms.pbc),
        "cell": " ".join(f"{value:.3f}" for value in atoms.cell.array.ravel()),
        "positions": " ".join(f"{value:.3f}" for value in atoms.positions.ravel()),
    }


def decode(stored: Mapping[str, str]) -> Atoms:
    """The structure that ``encode`` stored."""
    return Atoms(
        stored["symbols"].split(),
        positions=np.array(stored["positions"].split(), dtype=float).reshape(-1, 3),
        cell=np.array(stored["cell"].split(), dtype=float).reshape(3, 3),
        pbc=[letter == "T" for letter in stored["pbc"]],
    )


def view(stored: Mapping[str, str]) -> dict[str, Any]:
    """What the page draws: symbols, bonds, flat positions and cell (Å). Atoms lie inside the cell, a sheet's mid-plane at z = 0."""
    atoms = decode(stored)
    atoms.wrap(eps=1e-3)
    sheet = not atoms.pbc[2]
    if sheet:
        atoms.positions[:, 2] -= 0.5 * (atoms.positions[:, 2].max() + atoms.positions[:, 2].min())
    return {
        "symbols": atoms.get_chemical_symbols(),
        "xyz": [round(value, 3) for value in atoms.positions.ravel().tolist()],
        "cell": [round(value, 3) for value in atoms.cell.array.ravel().tolist()],
        "bonds": periodic_bonds(atoms),
        "sheet": sheet,
    }


def script_json(content: Any) -> str:
    """JSON that is safe inside ``<script type="application/json">``: no character of it can end or open an element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(candidates: Sequence[Mapping[str, Any]]) -> str:
    """The JSON of the page. candidates: {id, href (CIF), facts: [[name, value], ...], structure: ``encode`` or None, note}."""
    drawn = [{**c, "structure": view(c["structure"]) if c["structure"] else None} for c in candidates]
    symbols = sorted({symbol for c in drawn if c["structure"] for symbol in c["structure"]["symbols"]})
    numbers = np.array([Element(symbol).Z for symbol in symbols], dtype=int)
    radii = ball_radii(numbers)
    elements = {s: [hex_color(z), round(float(r), 3)] for s, z, r in zip(symbols, numbers, radii, strict=True)}
    return script_json({"elements": elements, "candidates": drawn})
