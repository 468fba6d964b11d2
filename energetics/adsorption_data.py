"""Training data of DimeNet++: usable adsorption records, in memory and on disk."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ase.data import chemical_symbols
from tqdm import tqdm

from crystals.database import formula_key, split_formulas
from energetics.is2re_lmdb import Is2reReader, Is2reRecord
from geo_utils import H_TAG
from networks.dimenet_layers import PeriodicGraph
from networks.graph import radius_graph_pbc
from pipeline.errors import StageError
from pipeline.files import relative_name
from pipeline.settings import DimenetConfig

CACHED_ATOMS = 200_000  # inputs with this many atoms in all stay in memory with their edges (about 0.5 kB an atom)


@dataclass(frozen=True)
class Entry:
    """A usable record without its structure, which is read from the file when needed.

    source: number of the reader. index: of the record in that reader. delta_e: ΔE_H, eV. formula: reduced, of the clean surface.
    elements: atomic numbers, H included. converged: whether the relaxation did.
    """

    source: int
    index: int
    delta_e: float
    formula: str
    family: str
    num_atoms: int
    elements: tuple[int, ...]
    converged: bool = True


@dataclass
class Sample:
    """One training input: z (N,), pos (N, 3), cell (1, 3, 3), tags (N,), edge_index (2, E) int32, offsets (E, 3) int8."""

    z: torch.Tensor
    pos: torch.Tensor
    cell: torch.Tensor
    tags: torch.Tensor
    edge_index: torch.Tensor
    offsets: torch.Tensor


@dataclass
class AdsorptionData:
    """Usable records of the LMDBs: entries in memory, structures on disk, edges in memory for small sets."""

    readers: list[Is2reReader]
    entries: list[Entry]
    cutoff: float
    max_neighbors: int | None
    _cache: dict[tuple[int, bool], Sample] = field(default_factory=dict)
    _cached_atoms: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_cached_atoms": 0}

    def sample(self, number: int, relaxed: bool) -> Sample:
        """Return entry ``number`` as an input; with ``relaxed`` in its relaxed geometry, where the record has one."""
        key = (number, relaxed)
        if key in self._cache:
            return self._cache[key]
        entry = self.entries[number]
        record = self.readers[entry.source][entry.index]
        pos = record.pos_relaxed if relaxed and record.pos_relaxed is not None else record.pos
        batch = torch.zeros(len(pos), dtype=torch.long)
        edge_index, offsets = radius_graph_pbc(pos, record.cell, batch, self.cutoff, self.max_neighbors)
        sample = Sample(record.atomic_numbers, pos, record.cell, record.tags, edge_index.int(), offsets.to(torch.int8))
        if self._cached_atoms + len(pos) <= CACHED_ATOMS:
            self._cache[key] = sample
            self._cached_atoms += len(pos)
        return sample

    def batch(self, numbers: Sequence[int], relaxed: Sequence[bool], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return (z, pos, cell, batch, tags, graph, delta_e) of B entries, as the network takes them; delta_e (B,) in eV."""
        samples = [self.sample(int(n), bool(r)) for n, r in zip(numbers, relaxed, strict=True)]
        sizes = torch.tensor([len(s.z) for s in samples])
        first = torch.cumsum(sizes, 0) - sizes
        edge_index = torch.cat([s.edge_index.long() + start for s, start in zip(samples, first, strict=True)], 1).to(device)
        offsets = torch.cat([s.offsets for s in samples]).to(device, samples[0].pos.dtype)
        graph = PeriodicGraph.build(edge_index, offsets, int(sizes.sum()))
        return (
            torch.cat([s.z for s in samples]).to(device),
            torch.cat([s.pos for s in samples]).to(device),
            torch.cat([s.cell for s in samples]).to(device),
            torch.repeat_interleave(torch.arange(len(samples)), sizes).to(device),
            torch.cat([s.tags for s in samples]).to(device),
            graph,
            torch.tensor([self.entries[int(n)].delta_e for n in numbers], device=device),
        )


def reduced_formula(record: Is2reRecord) -> str:
    """Return the formula key of the clean surface: ``bulk_formula`` where the record has it, otherwise the atoms without tag 2."""
    stated = str(record.extra.get("bulk_formula", ""))
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", stated)
    counts: Counter[str] = Counter()
    if "".join(symbol + count for symbol, count in parts) == stated:
        for symbol, count in parts:
            counts[symbol] += int(count or 1)
    if not any(counts.values()):
        numbers = record.atomic_numbers[record.tags != H_TAG].tolist() or record.atomic_numbers.tolist()
        counts = Counter(chemical_symbols[n] for n in numbers)
    return formula_key("".join(f"{symbol}{count}" for symbol, count in counts.items() if count))


def unusable(record: Is2reRecord, adsorbate: str, target_abs_max: float, max_atomic_number: int) -> str:
    """Return why a record cannot be learnt from; empty where it can."""
    if adsorbate == "H":
        numbers = record.atomic_numbers[record.tags == H_TAG].tolist()
        if not numbers:
            return "no adsorbate atom (tag 2)"
        if numbers != [1]:
            return "adsorbate is not one H"
    if not math.isfinite(record.y_relaxed):
        return "y_relaxed missing or not finite"
    if abs(record.y_relaxed) > target_abs_max:
        return f"|y_relaxed| above {target_abs_max:g} eV"
    if int(record.atomic_numbers.max()) > max_atomic_number:
        return "element outside the network"
    return ""


def read_entries(readers: Sequence[Is2reReader], cfg: DimenetConfig, max_atomic_number: int) -> tuple[list[Entry], dict]:
    """Return the usable records of all readers, and the counts: records, kept, dropped by reason.

    Raises:
        StageError: no record is usable.
    """
    entries: list[Entry] = []
    dropped: Counter[str] = Counter()
    total = sum(len(reader) for reader in readers)
    with tqdm(total=total, desc="reading records", disable=None) as bar:
        for source, reader in enumerate(readers):
            for index, record in enumerate(reader):
                bar.update()
                reason = unusable(record, cfg.adsorbate, cfg.target_abs_max_ev, max_atomic_number)
                converged = bool(record.extra.get("converged", True))
                if not reason and not converged and not cfg.train_on_unconverged:
                    reason = "relaxation not converged"
                if reason:
                    dropped[reason] += 1
                    continue
                elements = tuple(sorted(set(record.atomic_numbers.tolist())))
                family = str(record.extra.get("family", "unspecified"))
                formula = reduced_formula(record)
                entries.append(Entry(source, index, record.y_relaxed, formula, family, record.natoms, elements, converged))
    counts = {"records": total, "kept": len(entries), "dropped": dict(sorted(dropped.items()))}
    if not entries:
        what = "hold one H adsorbate" if cfg.adsorbate == "H" else "can be used"
        reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.items())
        paths = ", ".join(relative_name(reader.path) for reader in readers)
        raise StageError(f"{paths}: 0 of {total} records {what}; dropped: {reasons}")
    return entries, counts


def split_by_formula(entries: Sequence[Entry], cfg: DimenetConfig, seed: int) -> dict[str, list[int]]:
    """Return the indices of the train, val and test entries, split by formula. All records of a validation LMDB are validation.

    A formula falls on the same side in every set of records: a network that starts from weights learnt on other records
    (``dimenet.init_from``) has not seen its test formulas there either. Test and val have at least one formula each.
    A relaxation that did not converge is learnt from, but nothing is measured on it.
    """
    formulas = {e.formula for e in entries if e.source == 0}
    own_validation = any(e.source == 1 for e in entries)
    val_fraction, least_val = (0.0, 0) if own_validation else (cfg.val_fraction, 1)
    part = split_formulas(formulas, seed, val_fraction, cfg.test_fraction, least_val)
    if "train" not in part.values():
        raise StageError(
            f"dimenet.lmdb_path: {len(formulas)} bulk formulas are too few to split into train, val and test; add records"
        )
    split: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for number, entry in enumerate(entries):
        side = "val" if entry.source == 1 else part[entry.formula]
        if entry.converged or side == "train":
            split[side].append(number)
    if not split["val"]:
        raise StageError("dimenet.val_lmdb_path: no usable record is left for validation")
    return split
