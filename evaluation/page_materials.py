"""Says what the page shows of a single material beside its row: structure, H on its site, elements and similar known sheets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ase.data import atomic_numbers

from evaluation import h_site, structure_viewer
from evaluation.known_sheets import described, listed

SIMILAR_SHEETS = 4
SAME_LAYER_GROUP = 0.5  # beside the share of common elements, which is 1 for the same elements


def symbols_of(formula: str) -> list[str]:
    """Return the elements of a formula by their atomic numbers; a text that is no formula may name some too."""
    found = set(re.findall(r"[A-Z][a-z]?", formula or "")) & set(atomic_numbers) - {"X"}
    return sorted(found, key=atomic_numbers.get)


def similar_sheets(formula: str, layer_group: str, known: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Return the known sheets nearest to a material.

    Args:
        formula, layer_group: of the material.
        known: sheets with ``formula`` and ``layer_group``.

    Returns:
        [index in ``known``, what they have in common in words] of at most SIMILAR_SHEETS, the nearest first; sheets with neither an
        element nor the layer group in common are left out.
    """
    own = set(symbols_of(formula))
    found = []
    for index, sheet in enumerate(known):
        other = set(symbols_of(sheet["formula"]))
        common, same_group = own & other, bool(layer_group) and sheet["layer_group"] == layer_group
        if common or same_group:
            nearness = len(common) / len(own | other) + SAME_LAYER_GROUP * same_group
            words = [", ".join(symbol for symbol in symbols_of(sheet["formula"]) if symbol in common)] if common else []
            words += [f"layer group {layer_group}"] if same_group else []
            found.append((-nearness, index, " and ".join(words)))
    return [[index, words] for _, index, words in sorted(found)[:SIMILAR_SHEETS]]


def known_sheets(judged: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the known sheets with what our judges say of them. judged: entry "known" of the report."""
    rows, table = {row["name"]: row for row in judged}, listed()
    numbers = ("e_above_hull_ev", "delta_g_ev", "delta_g_std_ev")
    return [
        {
            **sheet,
            **{key: rows.get(sheet["name"], {}).get(key) for key in numbers},
            "delta_g_dft_ev": float(table[sheet["name"]]["delta_g_dft_ev"] or "nan"),
        }
        for sheet in described()
    ]


def materials(
    candidates: Sequence[Mapping[str, Any]], structures: Mapping[str, Any], known: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what the page embeds of each candidate, as ``structure_viewer.page_data`` takes it.

    Args:
        candidates: rows of the report.
        structures: id -> what ``structure_viewer.encode`` returns.
        known: known sheets with ``formula`` and ``layer_group``.
    """
    return [
        {
            "id": row["id"],
            "structure": (structure := _with_hydrogen(row, structures.get(row["id"]))),
            "note": "" if row["status"] == "ok" else row["status"],
            "elements": symbols_of(structure["symbols"] if structure else row["formula"]),
            "similar": similar_sheets(row["formula"], row["layer_group_relaxed"] or row["layer_group"], known),
        }
        for row in candidates
    ]


def _with_hydrogen(row: Mapping[str, Any], stored: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return a structure with the place of H, where it is stored or where kind and face of the site leave one choice."""
    if stored is None or "hydrogen" in stored or not row.get("h_site_kind"):
        return stored
    atoms = structure_viewer.decode(stored)
    atoms.info["h_position"] = h_site.only_place(atoms, row["h_site_kind"], row["h_site_face"], row["h_n_sites"])
    return structure_viewer.encode(atoms)
