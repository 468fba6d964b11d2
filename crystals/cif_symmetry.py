"""Builds all atoms of a CIF from its asymmetric unit: by the operations that it lists, or by the setting of its space group.

One space group has several settings. A centrosymmetric one may have its origin in two places (``P m m n :1`` and ``:2``), a
rhombohedral one two kinds of axes (``R -3 m :H`` and ``:R``), a monoclinic one three unique axes. Read in the wrong setting, a file
gives another crystal. The settings and their operations are those of pymatgen's table (``symm_ops.json``, from cctbx).
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from crystals.cif_tokens import UnreadableCif
from geo_utils import CLASH_FACTOR, min_distance_ratio

SAME_SITE_ANGSTROM = 0.02  # images of one site that lie closer are one: coordinates of three digits are off by up to 0.01 Å
METRIC_TOLERANCE = 0.03  # relative; measured cells and relaxed ones keep their symmetry to about 0.01

MONOCLINIC = range(3, 16)

OPERATION_TAGS = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
NAME_TAGS = (
    "_space_group_name_H-M_alt",
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_ref",
    "_space_group_name_H-M_full",
    "_symmetry_space_group_name_H-M_full",
)
HALL_TAGS = ("_space_group_name_Hall", "_symmetry_space_group_name_Hall")
NUMBER_TAGS = ("_space_group_IT_number", "_symmetry_Int_Tables_number")
CODE_TAG = "_space_group_IT_coordinate_system_code"

_CHOICES = {"1": "1", "2": "2", "s": "1", "z": "2", "h": "h", "r": "r"}  # S and Z, as in ICSD, are origins 1 and 2
# Five groups were renamed in 1992 (Cmca is Cmce). Names of the table, and what else the same setting is called.
_OTHER_NAMES = {
    "aem2": "abm2", "bme2": "bma2", "b2em": "b2cm", "c2me": "c2mb", "cm2e": "cm2a", "ae2m": "ac2m",
    "aea2": "aba2", "bbe2": "bba2", "b2eb": "b2cb", "c2eb": "c2cb c2ce", "cc2e": "cc2a", "ae2a": "ac2a",
    "cmce": "cmca", "ccme": "ccmb", "aema": "abma", "aeam": "acam", "bbem": "bbcm", "bmeb": "bmab",
    "cmma": "cmme", "abmm": "aemm", "bmcm": "bmem", "ccca": "ccce", "abaa": "aeaa", "bbcb": "bbeb",
    "ccce": "ccca cccb", "aeaa": "abaa acaa", "bbeb": "bbcb bbab",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A setting of a space group.

    Attributes:
        name: Hermann-Mauguin symbol, with the choice after a colon if there is one.
        operations: texts such as "-x,y+1/2,z".
        number: of the group; 0 for operations that a file lists.
        choice: "1", "2", "h", "r" or "".
        hall: Hall symbol in small letters.
        names: every symbol that can mean it, in small letters without spaces.
    """

    name: str
    operations: tuple[str, ...]
    number: int = 0
    choice: str = ""
    hall: str = ""
    names: frozenset[str] = frozenset()


@functools.lru_cache(maxsize=1)
def settings() -> tuple[Setting, ...]:
    """Return every setting of every space group, the standard one of each group first."""
    import pymatgen.symmetry

    rows = json.loads((Path(pymatgen.symmetry.__file__).parent / "symm_ops.json").read_text(encoding="utf-8"))
    found = []
    for row in rows:
        full = _compressed(row["universal_h_m"])
        base, _, choice = full.partition(":")
        names = {base, *_OTHER_NAMES.get(base, "").split()}
        if row["number"] in MONOCLINIC and "(" not in full:  # with brackets: other axes, which the symbol alone does not tell
            names.add(_compressed(row["short_h_m"]))
        if row["number"] >= 195:
            names |= {name.replace("-3", "3") for name in names}  # Pm3m, the spelling before 1983
        names |= {f"{name}:{choice}" for name in names if choice}
        operations = tuple(row["symops"])
        found.append(Setting(row["universal_h_m"], operations, row["number"], choice, _hall(row["hall"]), frozenset(names)))
    return tuple(found)


def possible_settings(data: Mapping[str, Any]) -> list[Setting]:
    """Return the settings that the data block of a CIF can mean, the most usual one first; several where it does not say which.

    Raises:
        UnreadableCif: the block names a space group that is unknown, or a name and a number that do not agree.
    """
    for tag in OPERATION_TAGS:
        if operations := _values(data, tag):
            return [Setting("operations as listed", tuple(operations))]
    hall, name, number = (_stated(data, tags) for tags in (HALL_TAGS, NAME_TAGS, NUMBER_TAGS))
    if not (hall or name or number):
        return [Setting("P 1", ("x,y,z",), 1)]
    unknown = UnreadableCif(f"unknown space group {(name or number or hall)[:20]}, and no symmetry operations")
    found = [s for s in settings() if s.hall == _hall(hall)] if hall else []
    if not found and name:
        found = _by_name(name)
    elif not found and number:
        found = [s for s in settings() if str(s.number) == number]
        found = [s for s in found if _compressed(found[0].name.partition(":")[0]) in s.names]
    if not found:
        raise unknown
    if number and re.fullmatch(r"\d+", number):
        found = [s for s in found if s.number == int(number)]
        if not found:
            raise UnreadableCif(f"space group {(name or hall)[:20]} is not number {number[:5]}, and no symmetry operations")
    if code := _stated(data, (CODE_TAG,)).lower():
        found = _with_choice(found, code, bool(name or hall))
    return found


def _by_name(name: str) -> list[Setting]:
    """Return the settings that a Hermann-Mauguin symbol can mean, with a choice after a colon or as its last letter or without."""
    text = re.sub(r"(\d)\((\d)\)", r"\1\2", _compressed(name))  # P2(1)/c, as SHELX writes it
    found = [s for s in settings() if text in s.names]
    if not found and text[-1:] in _CHOICES:
        base, choice = text[:-1].rstrip(":"), _CHOICES[text[-1]]
        found = [s for s in settings() if base in s.names and s.choice == choice]
    return found


def _with_choice(found: list[Setting], code: str, named: bool) -> list[Setting]:
    """Return the settings of a coordinate-system code ("2", "R", "b1", "2cab"). Axes are those of the name where there is one."""
    choice = _CHOICES.get(code[0], "")
    chosen = [s for s in found if not choice or s.choice in (choice, "")]
    if not chosen or not (named or code in (*_CHOICES, "abc", "1abc", "2abc", "b", "b1")):
        raise UnreadableCif(f"unknown coordinate system {code[:12]} of its space group, and no symmetry operations")
    return chosen


def all_sites(
    data: Mapping[str, Any], cell: np.ndarray, scaled: np.ndarray, numbers: Sequence[int], max_atoms: int, adds_up: Any
) -> list[np.ndarray] | None:
    """Return the images (n, 3) of each listed site in the cell; None where the sites that are listed are all there are.

    Args:
        data: the data block.
        cell: (3, 3) Å, row vectors.
        scaled: (N, 3) fractional coordinates as listed.
        numbers: N atomic numbers.
        max_atoms: largest number of atoms.
        adds_up: tells of the atomic numbers of all atoms whether they make up the formula that the file states.

    Raises:
        UnreadableCif: the operations do not fit the cell; too many atoms; or the file leaves open which setting it means.
    """
    possible = possible_settings(data)
    candidates = {setting.name: _matrices(setting.operations) for setting in possible}
    if all(len(rotations) == 1 for rotations, _ in candidates.values()):
        return None
    fitting = {name: ops for name, ops in candidates.items() if _fits(cell, ops[0])}
    if not fitting:
        raise UnreadableCif(f"a cell without the symmetry of its space group ({' or '.join(candidates)[:60]})")
    if possible[0].number in MONOCLINIC:  # all axes fit a cell of right angles: the standard one comes first
        fitting = dict([next(iter(fitting.items()))])
    expanded = {name: _expanded(cell, *ops, scaled, max_atoms) for name, ops in fitting.items()}
    if len(expanded) > 1:
        expanded = {name: images for name, images in expanded.items() if _is_likely(images, cell, numbers, adds_up)}
    if len(expanded) != 1:
        raise UnreadableCif(f"space group without its origin ({' or '.join(fitting)[:60]}), and no symmetry operations")
    (images,) = expanded.values()
    if images is None:
        raise UnreadableCif(f"more than {max_atoms} atoms")
    return images


def _is_likely(images: list[np.ndarray] | None, cell: np.ndarray, numbers: Sequence[int], adds_up: Any) -> bool:
    """Tell whether atoms make up the stated formula and none overlap: in the wrong setting they nearly always do."""
    if images is None:
        return False
    kinds = np.repeat(numbers, [len(i) for i in images])
    atoms = Atoms(numbers=kinds, scaled_positions=np.concatenate(images), cell=cell, pbc=True)
    return adds_up(kinds) and min_distance_ratio(atoms) >= CLASH_FACTOR


def _expanded(
    cell: np.ndarray, rotations: np.ndarray, translations: np.ndarray, scaled: np.ndarray, max_atoms: int
) -> list[np.ndarray] | None:
    """Return the images of each site; None where they are more than ``max_atoms``."""
    images: list[np.ndarray] = []
    for site in scaled:
        images.append(_images(cell, rotations, translations, site))
        if sum(map(len, images)) > max_atoms:
            return None
    return images


def _images(cell: np.ndarray, rotations: np.ndarray, translations: np.ndarray, site: np.ndarray) -> np.ndarray:
    """Return the distinct images (n, 3) of a site. Those within ``SAME_SITE_ANGSTROM`` of each other become their mean.

    The first image is that of the site itself, in the cell in which it is listed.
    """
    images = rotations @ site + translations
    away = images[:, None] - images[None]
    shifts = np.round(away)
    near = np.linalg.norm((away - shifts) @ cell, axis=-1) < SAME_SITE_ANGSTROM
    left = np.ones(len(images), dtype=bool)
    distinct = []
    for first in range(len(images)):
        if not left[first]:
            continue
        members = np.zeros(len(images), dtype=bool)
        members[first] = True
        while (grown := near[members].any(axis=0)).sum() > members.sum():
            members = grown
        left &= ~members
        distinct.append((images[members] + shifts[first, members]).mean(axis=0))
    return np.array(distinct)


def _fits(cell: np.ndarray, rotations: np.ndarray) -> bool:
    """Tell whether rotations (n, 3, 3) in fractional coordinates leave lengths and angles of a cell (3, 3) as they are."""
    metric = cell @ cell.T
    scale = np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    turned = np.transpose(rotations, (0, 2, 1)) @ metric @ rotations
    return bool((np.abs(turned - metric) <= METRIC_TOLERANCE * scale).all())


def _matrices(operations: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotations (n, 3, 3) and translations (n, 3) of operations in fractional coordinates, each once, identity first."""
    from pymatgen.core.operations import SymmOp

    found = {}
    for text in ("x,y,z", *operations):
        operation = SymmOp.from_xyz_str(text.lower())
        shift = np.round(operation.translation_vector % 1.0, 4) % 1.0
        found.setdefault((*operation.rotation_matrix.round(4).ravel(), *shift), operation)
    rotations = np.array([operation.rotation_matrix for operation in found.values()])
    return rotations, np.array([operation.translation_vector for operation in found.values()])


def is_operation(text: str) -> bool:
    """Tell whether a text is an operation such as "-x, y+1/2, z" with a rotation of determinant ±1."""
    if not re.fullmatch(r"[xyz\d+\-*/., ]+", text.lower()) or text.count(",") != 2:
        return False
    try:
        rotations, _ = _matrices([text])
    except (ValueError, ZeroDivisionError, IndexError):
        return False
    return math.isclose(abs(np.linalg.det(rotations[-1])), 1, abs_tol=1e-6)


def _values(data: Mapping[str, Any], tag: str) -> list[str]:
    """Return the values of a tag, which may stand in a loop or alone."""
    value = data.get(tag, [])
    return [value] if isinstance(value, str) else list(value)


def _stated(data: Mapping[str, Any], tags: Sequence[str]) -> str:
    """Return the first value of these tags that says something; empty where none does."""
    texts = (text.strip() for tag in tags for text in _values(data, tag))
    return next((text for text in texts if text not in ("", ".", "?")), "")


def _hall(symbol: str) -> str:
    """Return a Hall symbol in small letters with single spaces, which tell P 32 from P 3 2."""
    return " ".join(symbol.replace("_", " ").lower().split())


def _compressed(name: str) -> str:
    """Return a symbol in small letters without spaces and underscores."""
    return re.sub(r"[\s_]", "", name).lower()
