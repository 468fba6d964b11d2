"""Training data of DimeNet++: usable adsorption records, in memory and on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from crystals.database import split_formulas
from energetics.is2re_lmdb import Is2reReader
from energetics.record_index import NO_ADSORBATE, OTHER_ADSORBATE, RecordTable, table_of
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
class Structures:
    """Structures of usable records: targets in memory, structures on disk, edges in memory for small sets.

    Sent to another process it is small: the cache stays behind.
    """

    readers: list[Is2reReader]
    sources: np.ndarray  # (n,) number of the reader
    indices: np.ndarray  # (n,) of the record in its reader
    delta_e: np.ndarray  # (n,) eV
    cutoff: float
    max_neighbors: int | None
    cached_atoms: int = CACHED_ATOMS
    _cache: dict[tuple[int, bool], Sample] = field(default_factory=dict)
    _in_cache: int = 0  # atoms

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_in_cache": 0}

    def sample(self, number: int, relaxed: bool) -> Sample:
        """Return entry ``number`` as an input; with ``relaxed`` in its relaxed geometry, where the record has one."""
        key = (number, relaxed)
        if key in self._cache:
            return self._cache[key]
        record = self.readers[self.sources[number]][int(self.indices[number])]
        pos = record.pos_relaxed if relaxed and record.pos_relaxed is not None else record.pos
        batch = torch.zeros(len(pos), dtype=torch.long)
        edge_index, offsets = radius_graph_pbc(pos, record.cell, batch, self.cutoff, self.max_neighbors)
        sample = Sample(record.atomic_numbers, pos, record.cell, record.tags, edge_index.int(), offsets.to(torch.int8))
        if self._in_cache + len(pos) <= self.cached_atoms:
            self._cache[key] = sample
            self._in_cache += len(pos)
        return sample

    def rows(self, numbers: Sequence[int], relaxed: Sequence[bool]) -> tuple[torch.Tensor, ...]:
        """Return (z, pos, cell, sizes, tags, edge_index, offsets, delta_e) of B entries; ``on_device`` makes a batch of them.

        They are on the CPU: z, tags (N,), pos (N, 3), cell (B, 3, 3), sizes (B,), edge_index (2, E) int32, offsets (E, 3) int8,
        delta_e (B,) in eV.
        """
        samples = [self.sample(int(n), bool(r)) for n, r in zip(numbers, relaxed, strict=True)]
        sizes = torch.tensor([len(s.z) for s in samples])
        first = (torch.cumsum(sizes, 0) - sizes).int()
        return (
            torch.cat([s.z for s in samples]),
            torch.cat([s.pos for s in samples]),
            torch.cat([s.cell for s in samples]),
            sizes,
            torch.cat([s.tags for s in samples]),
            torch.cat([s.edge_index + start for s, start in zip(samples, first, strict=True)], 1),
            torch.cat([s.offsets for s in samples]),
            torch.tensor(self.delta_e[[int(n) for n in numbers]].tolist()),
        )


def on_device(rows: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return (z, pos, cell, batch, tags, graph, delta_e) of what ``Structures.rows`` returns, as the network takes them."""
    z, pos, cell, sizes, tags, edge_index, offsets, delta_e = (values.to(device, non_blocking=True) for values in rows)
    graph = PeriodicGraph.build(edge_index.long(), offsets.to(pos.dtype), len(z))
    batch = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
    return z, pos, cell, batch, tags, graph, delta_e


class AdsorptionData:
    """Usable records of the LMDBs: ``entries`` say what they are, ``structures`` gives their batches."""

    def __init__(self, readers: list[Is2reReader], entries: list[Entry], cutoff: float, max_neighbors: int | None) -> None:
        self.entries = entries
        sources, indices = (np.array([getattr(entry, name) for entry in entries]) for name in ("source", "index"))
        self.structures = Structures(readers, sources, indices, np.array([e.delta_e for e in entries]), cutoff, max_neighbors)

    def batch(self, numbers: Sequence[int], relaxed: Sequence[bool], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return (z, pos, cell, batch, tags, graph, delta_e) of B entries, as the network takes them; delta_e (B,) in eV."""
        return on_device(self.structures.rows(numbers, relaxed), device)


def reasons(table: RecordTable, cfg: DimenetConfig, max_atomic_number: int) -> np.ndarray:
    """Return why each record cannot be learnt from, (n,) texts; empty where it can. Of several reasons the first."""
    heaviest = np.array([max(numbers) for numbers in table.labels["elements"]], dtype=int)[table.elements]
    wants_h = cfg.adsorbate == "H"
    found = {
        "no adsorbate atom (tag 2)": wants_h & (table.adsorbate == NO_ADSORBATE),
        "adsorbate is not one H": wants_h & (table.adsorbate == OTHER_ADSORBATE),
        "y_relaxed missing or not finite": ~np.isfinite(table.delta_e),
        f"|y_relaxed| above {cfg.target_abs_max_ev:g} eV": np.abs(table.delta_e) > cfg.target_abs_max_ev,
        "element outside the network": heaviest > max_atomic_number,
        "relaxation not converged": ~table.converged & (not cfg.train_on_unconverged),
    }
    return np.select(list(found.values()), list(found), default="")


def read_entries(
    readers: Sequence[Is2reReader], cfg: DimenetConfig, max_atomic_number: int, tables: Sequence[RecordTable] | None = None
) -> tuple[list[Entry], dict]:
    """Return the usable records of all readers, and the counts: records, kept, dropped by reason.

    Args:
        readers: the LMDBs.
        cfg: which records are usable.
        max_atomic_number: of the network.
        tables: of the readers; None: every record is read.

    Raises:
        StageError: no record is usable, or one cannot be read.
    """
    entries: list[Entry] = []
    dropped: Counter[str] = Counter()
    tables = [table_of(reader) for reader in readers] if tables is None else tables
    for source, table in enumerate(tables):
        why = reasons(table, cfg, max_atomic_number)
        dropped.update(why[why != ""].tolist())
        kept = np.flatnonzero(why == "")
        columns = [getattr(table, name)[kept].tolist() for name in ("delta_e", "num_atoms", "converged")]
        formula, family, elements = (
            [table.labels[name][number] for number in getattr(table, name)[kept].tolist()]
            for name in ("formula", "family", "elements")
        )
        for row in zip(kept.tolist(), *columns, formula, family, elements, strict=True):
            index, delta_e, num_atoms, converged, *texts = row
            entries.append(Entry(source, index, delta_e, *texts[:2], num_atoms, texts[2], converged))
    total = sum(len(table) for table in tables)
    counts = {"records": total, "kept": len(entries), "dropped": dict(sorted(dropped.items()))}
    if not entries:
        what = "hold one H adsorbate" if cfg.adsorbate == "H" else "can be used"
        listed = "; ".join(f"{reason}: {count}" for reason, count in dropped.items())
        paths = ", ".join(relative_name(reader.path) for reader in readers)
        raise StageError(f"{paths}: 0 of {total} records {what}; dropped: {listed}")
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
