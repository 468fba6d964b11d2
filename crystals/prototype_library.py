"""The prototypes of a training set: which arrangements of atoms suit a composition, and what speaks for each.

A prototype is an arrangement of atoms (``crystals/arrangements.py``) with the training crystals that have it. A candidate puts the
elements of a composition on the nearest of these crystals. Its descriptors say how near that and the other crystals are, how stable
these were, and how the new elements differ from theirs; ``generation/ranking.py`` ranks candidates by them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from tqdm import tqdm

from crystals.alignment import Layout, align, kind_maps
from crystals.arrangements import arrange
from crystals.elements import electronegativity_and_group
from crystals.substitution import squared_distances, substituted
from crystals.symmetry import SYMPREC_ANGSTROM, Template
from crystals.templates import template_key
from geo_utils import Sheet

POOL = 16, 8  # candidates of a composition: those with most votes, then the others with the nearest crystals
VOTE_WIDTHS = (0.15, 0.3, 0.6, 1.0)  # chemical distance at which the vote of a crystal has fallen to exp(−1/2)
VOTE = 1  # the width by which candidates are pooled, that of ``TemplateLibrary``
SAME_KINDS = 0.3, 0.6, 0.05  # Å, Å and strain within which two ways of naming the kinds of a prototype are the same
NO_ELECTRONEGATIVITY = 1.8  # of elements that have none
FAR = 5.0  # chemical distance where no crystal differs in one element alone
PRIOR = 2.0  # exchanges of two elements that are added to those seen and those expected
SAME_ELEMENT = 3.0  # log ratio of an element with itself


@dataclass(frozen=True)
class Prototype:
    """An arrangement of atoms with the n crystals that have it.

    Attributes:
        kinds: (N,) atoms of one element share a number.
        layer_group: its number.
        key: number of its template.
        aliases: ways of naming the kinds that give the same crystal, the plain one first.
        rows: (n,) numbers of the crystals in the library.
        decorations: (n, K) atomic numbers of their kinds.
        sheets: the crystals, their atoms in the order of the prototype.
    """

    kinds: np.ndarray
    layer_group: int
    key: int
    aliases: list[tuple[int, ...]]
    rows: np.ndarray
    decorations: np.ndarray
    sheets: list[Sheet]


@dataclass
class Candidate:
    """A prototype with the elements of a composition.

    Attributes:
        prototype: the prototype.
        decoration: (K,) atomic numbers of its kinds.
        rows: (n,) crystals of the library that have it, without those left out.
        decorations: (n, K) of these.
        member: which of the prototype's sheets is the nearest.
        exchange: (n, K) squared chemical distances of the elements.
        squared: (n,) their mean over the atoms.
        votes: (4,) Σ exp(−squared / 2w²) for each of ``VOTE_WIDTHS``.
        distance: chemical distance of the nearest crystal.
        share: of the votes of all ways of putting the elements on the prototype.
        ways: number of these.
        template_votes: votes of all candidates with its template.
    """

    prototype: Prototype
    decoration: np.ndarray
    rows: np.ndarray
    decorations: np.ndarray
    member: int
    exchange: np.ndarray
    squared: np.ndarray
    votes: np.ndarray
    distance: float
    share: float = 0.0
    ways: int = 0
    template_votes: float = 0.0

    def sheet(self) -> Sheet:
        """Return the nearest crystal with the new elements, at the size of these, in the standard setting."""
        return substituted(self.prototype.sheets[self.member], self.decoration[self.prototype.kinds])


@cache
def _element_tables() -> tuple[np.ndarray, np.ndarray]:
    """Return electronegativity and number of valence electrons of the elements, (119,) each."""
    electronegativity, valence = np.zeros(119), np.zeros(119)
    for number in range(1, 104):
        value, group = electronegativity_and_group(chemical_symbols[number])
        electronegativity[number] = value if np.isfinite(value) else NO_ELECTRONEGATIVITY
        valence[number] = group if group <= 12 else group - 10
    return electronegativity, valence


class PrototypeLibrary:
    """The prototypes of a training set.

    Args:
        sheets: M crystals.
        formulas: (M,) their reduced formulas, by which some can be left out.
        e_hull: (M,) eV/atom.
        e_form: (M,) eV/atom.
    """

    def __init__(self, sheets: Sequence[Sheet], formulas: Sequence[str], e_hull: np.ndarray, e_form: np.ndarray) -> None:
        self.formulas, self.e_hull, self.e_form = np.array(formulas, dtype=object), np.asarray(e_hull), np.asarray(e_form)
        compositions = [tuple(sorted(sheet.atomic_numbers.tolist())) for sheet in sheets]
        found: dict[tuple[int, ...], list[int]] = {}
        for row, composition in enumerate(compositions):
            found.setdefault(composition, []).append(row)
        self.polymorphs = np.array([len(found[composition]) for composition in compositions])
        lowest = [min(self.e_hull[k] for k in found[composition]) for composition in compositions]
        self.is_lowest = self.e_hull <= np.array(lowest) + 1e-6
        self.prototypes = _prototypes(sheets, self.e_hull)
        self._by_counts: dict[tuple[int, ...], list[Prototype]] = {}
        for prototype in self.prototypes:
            self._by_counts.setdefault(tuple(sorted(np.bincount(prototype.kinds).tolist())), []).append(prototype)
        self.exchanges = self.exchange_ratios()

    def candidates(self, atomic_numbers: Sequence[int], without: str = "") -> list[Candidate]:
        """Return the pooled candidates of a composition, the most voted first; [] where no prototype has its numbers of atoms.

        Args:
            atomic_numbers: of the atoms of the cell, in any order.
            without: crystals of this reduced formula are left out.
        """
        amounts = Counter(int(z) for z in atomic_numbers)
        result = []
        for prototype in self._by_counts.get(tuple(sorted(amounts.values())), ()):
            keep = self.formulas[prototype.rows] != without
            if keep.any():
                result += _decorated(prototype, keep, amounts)
        result.sort(key=lambda candidate: (-candidate.votes[VOTE], candidate.distance))
        votes: Counter[int] = Counter()
        for candidate in result:
            votes[candidate.prototype.key] += candidate.votes[VOTE]
        for candidate in result:
            candidate.template_votes = votes[candidate.prototype.key]
        return result[: POOL[0]] + sorted(result[POOL[0] :], key=lambda candidate: candidate.distance)[: POOL[1]]

    def exchange_ratios(self, without: frozenset[str] = frozenset()) -> np.ndarray:
        """Return (119, 119), log of how often two elements replace each other at a site, over how often chance would have it.

        Args:
            without: crystals of these reduced formulas are left out.
        """
        seen, total = np.zeros((119, 119)), np.zeros(119)
        for prototype in self.prototypes:
            known = [
                row
                for row, k in zip(prototype.decorations.tolist(), prototype.rows, strict=True)
                if self.formulas[k] not in without
            ]
            for site in range(prototype.decorations.shape[1]):
                groups: dict[tuple[int, ...], set[int]] = {}
                for row in known:
                    groups.setdefault((*row[:site], *row[site + 1 :]), set()).add(row[site])
                for group in groups.values():
                    if len(group) > 1:
                        elements = np.array(sorted(group))
                        seen[np.ix_(elements, elements)] += len(group) ** -0.5
                        total[elements] += (len(group) - 1) * len(group) ** -0.5
        np.fill_diagonal(seen, 0)
        expected = total[:, None] * total[None] / max(total.sum(), 1)
        ratios = np.log((seen + PRIOR) / (expected + PRIOR))
        np.fill_diagonal(ratios, SAME_ELEMENT)
        return ratios


def _prototypes(sheets: Sequence[Sheet], e_hull: np.ndarray) -> list[Prototype]:
    """Return the prototypes of some sheets; the most stable one of each is that which others are compared with."""
    order = np.argsort(np.abs(e_hull), kind="stable")
    bar = tqdm(order, desc="symmetry", unit="sheet", mininterval=1.0)
    templates = [Template.of(sheets[k], SYMPREC_ANGSTROM) for k in bar]
    members: dict[int, list[Any]] = {}
    for member in arrange([sheets[k] for k in order], templates, [True] * len(order)):
        members.setdefault(member.arrangement, []).append(member)
    keys: dict[Any, int] = {}
    result = []
    for own in members.values():
        template = templates[own[0].row]
        firsts = [int(np.flatnonzero(template.kinds == kind)[0]) for kind in range(template.kinds.max() + 1)]
        result.append(
            Prototype(
                kinds=template.kinds,
                layer_group=int(template.layer_group),
                key=keys.setdefault(template_key(template)[0], len(keys)),
                aliases=_aliases(template.kinds, own[0].sheet),
                rows=np.array([order[member.row] for member in own]),
                decorations=np.array([member.sheet.atomic_numbers[firsts] for member in own]),
                sheets=[member.sheet for member in own],
            )
        )
    return result


def _aliases(kinds: np.ndarray, sheet: Sheet) -> list[tuple[int, ...]]:
    """Return the ways of naming the kinds of a sheet that give the same crystal, the plain one first."""
    layout = Layout(kinds, sheet.frac_coords, sheet.heights, sheet.lattice)
    plain = tuple(range(int(kinds.max()) + 1))
    result = [plain]
    for names in kind_maps(kinds, kinds):
        found = None if tuple(names) == plain else align(layout, layout, 1.0, [names])
        if found and found.distance < SAME_KINDS[0] and found.largest < SAME_KINDS[1] and found.strain < SAME_KINDS[2]:
            result.append(tuple(names.tolist()))
    return result


def _decorated(prototype: Prototype, keep: np.ndarray, amounts: Counter[int]) -> list[Candidate]:
    """Return the ways of putting a composition on a prototype of which some crystals are kept, those that are the same as one."""
    needed = np.bincount(prototype.kinds)
    rows, known, members = prototype.rows[keep], prototype.decorations[keep], np.flatnonzero(keep)
    merged: dict[tuple[int, ...], Candidate] = {}
    for decoration in permutations(sorted(amounts)):
        if any(amounts[z] != n for z, n in zip(decoration, needed, strict=True)):
            continue
        exchange = squared_distances()[known, np.array(decoration)]
        squared = exchange @ needed / needed.sum()
        votes = np.array([np.exp(-squared / (2 * width**2)).sum() for width in VOTE_WIDTHS])
        nearest = int(squared.argmin())
        place, distance = int(members[nearest]), float(np.sqrt(squared[nearest]))
        own = Candidate(prototype, np.array(decoration), rows, known, place, exchange, squared, votes, distance)
        name = min(tuple(decoration[kind] for kind in alias) for alias in prototype.aliases)
        if (other := merged.get(name)) is not None:  # the same crystal twice: the nearer one, with the votes of both
            total = own.votes + other.votes
            own = own if own.distance < other.distance else other
            own.votes = total
        merged[name] = own
    total = sum(candidate.votes[VOTE] for candidate in merged.values()) + 1e-9
    for candidate in merged.values():
        candidate.share, candidate.ways = candidate.votes[VOTE] / total, len(merged)
    return list(merged.values())


DESCRIPTORS = (
    *(f"log votes, width {width:g}" for width in VOTE_WIDTHS),
    "distance of the nearest", "distance of the second", "distance of the fifth", "log crystals",
    "e_hull, width 0.3", "e_hull, width 0.6", "e_hull of the nearest",
    "farthest site", "mean site", "least same element", "mean same element", "same elements", "log one exchanged",
    "least one exchanged",
    "layer group", "atoms", "elements", "polymorphs", "share without polymorphs", "share lowest", "nearest lowest",
    "nearest without polymorphs", "electronegativity off", "radius off", "valence", "valence off", "valence off nearest",
    "electronegativity off nearest", "size off nearest", "largest exchange", "log sum of exchanges", "e_form of the nearest",
    "log template votes", "share of its ways", "log ways", "first electronegativity", "largest electronegativity",
)  # fmt: skip
# Of these (sign: +1 where more speaks for a candidate), how far a candidate is behind the best of its composition, and its rank.
COMPARED = {0: 1, 1: 1, 2: 1, 3: 1, 4: -1, 5: -1, 6: -1, 33: 1, 34: 1, 36: 1, 7: 1, 14: 1, 9: -1, 26: -1, 27: -1, 35: -1}
SHARED = (1, 2, 34)  # of these the share too
COLUMNS = len(DESCRIPTORS) + 2 * len(COMPARED) + len(SHARED) + 1


def descriptors(library: PrototypeLibrary, candidates: Sequence[Candidate], exchanges: np.ndarray | None = None) -> np.ndarray:
    """Return the descriptors of the candidates of one composition, (n, COLUMNS): ``DESCRIPTORS``, comparisons, and n.

    Args:
        library: that they are of.
        candidates: as ``PrototypeLibrary.candidates`` returns them.
        exchanges: of ``exchange_ratios``; those of the whole library if None.
    """
    exchanges = library.exchanges if exchanges is None else exchanges
    own = np.array([_descriptors(library, candidate, exchanges) for candidate in candidates]).reshape(-1, len(DESCRIPTORS))
    compared = []
    for column, sign in COMPARED.items():
        value = sign * own[:, column]
        compared += [value - value.max(), np.argsort(np.argsort(-value, kind="stable"), kind="stable")]
        if column in SHARED:
            share = np.exp(value - value.max())
            compared.append(share / share.sum())
    return np.nan_to_num(np.concatenate([own, np.array(compared).T, np.full((len(own), 1), len(own))], 1))


def _descriptors(library: PrototypeLibrary, candidate: Candidate, exchanges: np.ndarray) -> list[float]:
    """Return ``DESCRIPTORS`` of one candidate."""
    electronegativity, valence = _element_tables()
    numbers, rows, known = candidate.decoration, candidate.rows, candidate.decorations
    needed = np.bincount(candidate.prototype.kinds)
    mean = lambda x: x @ needed / needed.sum()  # noqa: E731
    squared, nearest = candidate.squared, int(candidate.squared.argmin())
    ordered = np.sqrt(np.sort(squared))
    weights = [np.exp(-squared / (2 * width**2)) + 1e-9 for width in (0.3, 0.6)]
    near = lambda x, k=1: float((weights[k] * x).sum() / weights[k].sum())  # noqa: E731
    around = lambda x: (weights[1][:, None] * x).sum(0) / weights[1].sum()  # noqa: E731
    site, same = candidate.exchange.min(0), known == numbers
    one = same.sum(1) == len(numbers) - 1
    exchanged = np.sqrt((candidate.exchange * ~same).sum(1)[one].min()) if one.any() else FAR
    theirs, sizes = electronegativity[known], covalent_radii[known]
    own_mean, own_size = mean(electronegativity[numbers]), mean(covalent_radii[numbers])
    their_mean, their_size, their_valence = mean(theirs), mean(sizes), mean(valence[known])
    off = np.abs(electronegativity[numbers] - own_mean - around(theirs - their_mean[:, None])).max()
    size_off = np.abs(covalent_radii[numbers] / own_size - around(sizes / their_size[:, None])).max()
    electrons, ratios = mean(valence[numbers]), exchanges[known, numbers].sum(1)
    return [
        *np.log(candidate.votes + 1e-5), ordered[0], ordered[min(1, len(ordered) - 1)], ordered[min(4, len(ordered) - 1)],
        np.log1p(len(rows)), near(library.e_hull[rows], 0), near(library.e_hull[rows]), library.e_hull[rows[nearest]],
        np.sqrt(site.max()), np.sqrt(mean(site)), np.log1p(same.sum(0).min()), np.log1p(same.sum(0)).mean(),
        same.sum(1).max() / len(numbers), np.log1p(one.sum()), exchanged, candidate.prototype.layer_group, needed.sum(),
        len(numbers),
        near(library.polymorphs[rows]), near(library.polymorphs[rows] == 1), near(library.is_lowest[rows]),
        float(library.is_lowest[rows[nearest]]), float(library.polymorphs[rows[nearest]] == 1), off, size_off, electrons,
        electrons - near(their_valence), electrons - their_valence[nearest], own_mean - their_mean[nearest],
        own_size / their_size[nearest], ratios.max(), np.log(np.exp(ratios).sum()), library.e_form[rows[nearest]],
        np.log(candidate.template_votes + 1e-5), candidate.share, np.log(candidate.ways), electronegativity[numbers][0] - own_mean,
        electronegativity[numbers].max(),
    ]  # fmt: skip
