"""The sheets of one split: the file that stage 2 writes, its reader, and the training table with the rows of each batch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from crystals.database import Row
from crystals.substitution import KnownCrystals
from crystals.symmetry import SymmetryConstraint, Template
from crystals.templates import TemplateLibrary
from generation.batch import SheetBatch
from generation.seeds import seeded_generator
from geo_utils import Sheet, lattice_to_vector, vector_to_lattice
from pipeline.errors import StageError
from pipeline.files import relative_name
from pipeline.provenance import SCHEMA_VERSION

DATASET_STAGE = "material_dataset.py"
KNOWN_SPLITS = ("train", "val")  # what is known where a structure is predicted; the test split stays apart
SYMMETRY_TOLERANCE = 0.02  # Å, within which a sheet of the training set must show its symmetry


def pack(rows: list[Row], labels: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Build the columns of one split, with the names and shapes of ``read_split``.

    Args:
        rows: the sheets, in order.
        labels: by ``Row.key``, ΔG_H and its standard error (eV), kind and face of each adsorption site, the coverage, and whether
            the sheet is inside the domain of the judge. A row without an entry is unlabelled.
    """
    best = [most_stable_site(labels.get(row.key)) for row in rows]
    site_counts = [len(labels[row.key]["delta_g"]) if row.key in labels else 0 for row in rows]
    with_sites = [labels[row.key] for row, count in zip(rows, site_counts, strict=True) if count]

    def per_row(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)

    def concatenated(values: list[np.ndarray], shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(values) if values else np.zeros(shape)).float()

    return {
        "schema_version": SCHEMA_VERSION,
        "atomic_numbers": torch.from_numpy(np.concatenate([row.sheet.atomic_numbers for row in rows])).long()
        if rows
        else torch.zeros(0, dtype=torch.long),
        "frac_coords": concatenated([row.sheet.frac_coords for row in rows], (0, 2)),
        "heights": concatenated([row.sheet.heights for row in rows], (0,)),
        "lattice": torch.from_numpy(np.array([row.sheet.lattice for row in rows]).reshape(-1, 2, 2)).float(),
        "ptr": torch.tensor([0, *np.cumsum([len(row.sheet) for row in rows])], dtype=torch.long),
        "delta_g_h": per_row([value for value, _ in best]),
        "delta_g_h_std": per_row([std for _, std in best]),
        "e_hull": per_row([row.e_hull for row in rows]),
        "h_form": per_row([row.h_form for row in rows]),
        "y_synth": per_row([row.y_synth for row in rows]),
        "uid": [row.uid for row in rows],
        "formula": [row.formula for row in rows],
        "prototype": [row.prototype for row in rows],
        "site_ptr": torch.tensor([0, *np.cumsum(site_counts)], dtype=torch.long),
        "site_delta_g": per_row([v for label in with_sites for v in label["delta_g"]]),
        "site_std": per_row([v for label in with_sites for v in label["std"]]),
        "site_kind": [v for label in with_sites for v in label["kind"]],
        "site_face": [v for label in with_sites for v in label["face"]],
        "site_coverage": per_row([labels[row.key]["coverage"] if row.key in labels else math.nan for row in rows]),
    }


def most_stable_site(label: dict[str, Any] | None) -> tuple[float, float]:
    """Return (ΔG_H, standard error) in eV of the site that binds H most; NaN without a value or outside the judge's domain."""
    if label is None or not label["delta_g"] or not label["in_domain"]:
        return math.nan, math.nan
    index = int(np.argmin(label["delta_g"]))
    return label["delta_g"][index], label["std"][index]


def read_split(path: str | os.PathLike) -> dict[str, Any]:
    """Read and check ``processed/{train,val,test}.pt``, the only reader of these files.

    Returns:
        The columns of M sheets with A atoms and S adsorption sites: atomic_numbers (A,), frac_coords (A, 2), heights (A,) Å,
        ptr (M + 1,), lattice (M, 2, 2) Å, row vectors; delta_g_h, delta_g_h_std, e_hull, h_form, y_synth (M,), eV or eV/atom, NaN
        where unlabelled; uid, formula, prototype, M strings each; and the sites: site_ptr (M + 1,), site_delta_g, site_std (S,)
        eV, site_kind, site_face (S strings each), site_coverage (M,).

    Raises:
        StageError: the file is missing, damaged, of another schema, or lacks columns or rows.
    """
    path = Path(path)
    if not path.is_file():
        raise StageError(f"{relative_name(path)} is missing: run {DATASET_STAGE}")
    try:
        columns = torch.load(path, weights_only=True)
        schema = columns["schema_version"]
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... for damaged files
        raise StageError(f"{relative_name(path)} is not a readable dataset: rerun {DATASET_STAGE}") from error
    if schema != SCHEMA_VERSION:
        raise StageError(f"{relative_name(path)} has schema {schema}, expected {SCHEMA_VERSION}: rerun {DATASET_STAGE}")
    if missing := [name for name in pack([], {}) if name not in columns]:
        raise StageError(f"{relative_name(path)} has no {', '.join(missing[:3])}: rerun {DATASET_STAGE}")
    sizes = {name: len(columns[name]) for name in ("lattice", "delta_g_h", "e_hull", "y_synth", "uid")}
    if any(size != len(columns["ptr"]) - 1 for size in sizes.values()):
        raise StageError(f"{relative_name(path)} has columns of unequal length: rerun {DATASET_STAGE}")
    return columns


def known_paths(processed_dir: str | os.PathLike) -> list[Path]:
    """Return the files of ``KNOWN_SPLITS``."""
    return [Path(processed_dir) / f"{name}.pt" for name in KNOWN_SPLITS]


def read_known(processed_dir: str | os.PathLike) -> dict[str, Any]:
    """Read ``KNOWN_SPLITS`` of stage 2 as one table. Raises StageError as ``read_split`` does."""
    tables = [read_split(path) for path in known_paths(processed_dir)]

    def joined(name: str) -> Any:
        first, *others = (table[name] for table in tables)
        if name == "schema_version":
            return first
        for other in others:
            if name in ("ptr", "site_ptr"):  # the counts of both go on
                other = first[-1] + other[1:]
            first = torch.cat([first, other]) if isinstance(first, torch.Tensor) else [*first, *other]
        return first

    return {name: joined(name) for name in tables[0]}


def sheet_of(table: dict[str, Any], row: int) -> Sheet:
    """Return one sheet of the columns that ``read_split`` returns, in float64."""
    atoms = slice(int(table["ptr"][row]), int(table["ptr"][row + 1]))
    coordinates = (table[name][atoms].double().numpy() for name in ("frac_coords", "heights"))
    return Sheet(table["atomic_numbers"][atoms].long().numpy(), *coordinates, table["lattice"][row].double().numpy())


def known_crystals(table: dict[str, Any]) -> KnownCrystals:
    """Return the crystals of the columns that ``read_split`` returns, for substitution."""
    return KnownCrystals((sheet_of(table, row) for row in range(len(table["uid"]))), table["formula"])


@dataclass
class SheetTable:
    """Table of the sheets of one split for training: the columns of ``read_split`` that the denoiser learns from.

    ``sheets`` has all A atoms of the M sheets, in float32, with each lattice as its three-number vector; the atoms of sheet k are
    ``ptr[k]`` to ``ptr[k + 1]``, ``ptr`` (M + 1,). ``templates`` has one template a sheet once ``find_templates`` has run.
    """

    sheets: SheetBatch
    ptr: torch.Tensor
    formulas: list[str]
    uids: list[str]
    templates: list[Template] | None = None

    def __len__(self) -> int:
        return self.ptr.shape[0] - 1

    @classmethod
    def load(cls, path: str | Path) -> SheetTable:
        """Build the table from ``train.pt``, ``val.pt`` or ``test.pt`` of stage 2. Raises StageError as ``read_split`` does."""
        data = read_split(path)
        ptr = data["ptr"].long()
        sizes = ptr[1:] - ptr[:-1]
        sheets = SheetBatch(
            atomic_numbers=data["atomic_numbers"].long(),
            frac_coords=data["frac_coords"].float(),
            heights=data["heights"].float(),
            lattice_vector=lattice_to_vector(data["lattice"].double()).float(),
            batch=torch.repeat_interleave(torch.arange(len(sizes)), sizes),
            num_atoms=sizes,
            delta_g=data["delta_g_h"].float(),
            e_hull=data["e_hull"].float(),
            synth=data["y_synth"].float(),
        )
        return cls(sheets, ptr, list(data["formula"]), list(data["uid"]))

    def sheet(self, index: int) -> Sheet:
        """Return one sheet in float64, its lattice symmetric (as ``vector_to_lattice`` gives it). Raises IndexError."""
        index = range(len(self))[index]
        s, atoms = self.sheets, slice(int(self.ptr[index]), int(self.ptr[index + 1]))
        lattice = vector_to_lattice(s.lattice_vector[index].double()).numpy()
        arrays = (x[atoms].numpy() for x in (s.atomic_numbers, s.frac_coords.double(), s.heights.double()))
        return Sheet(*arrays, lattice)

    def find_templates(self, name: str, silent: bool = False) -> None:
        """Find the symmetry template of every sheet, with a progress bar that names the split, if not ``silent``."""
        self.templates = [
            Template.of(self.sheet(k), SYMMETRY_TOLERANCE)
            for k in tqdm(range(len(self)), desc=f"symmetry of {name}", unit="sheet", mininterval=1.0, disable=silent)
        ]

    def template_library(self) -> TemplateLibrary:
        """Collect the distinct templates of the table with the elements that occur in each; ``find_templates`` comes first."""
        return TemplateLibrary.build(((self.sheet(k), template) for k, template in enumerate(self.templates)))

    def constraint(self, index: torch.Tensor, symmetric: torch.Tensor, device: torch.device) -> SymmetryConstraint | None:
        """Constrain a batch to the symmetry of its sheets.

        Args:
            index: (B,) numbers of the sheets.
            symmetric: (B,) bool, which of them keep their template.
            device: where the sampled coordinates live.

        Returns:
            The constraint, or None where no sheet keeps a template.
        """
        if self.templates is None or not symmetric.any():
            return None
        chosen = [self.templates[k] if wanted else None for k, wanted in zip(index.tolist(), symmetric.tolist(), strict=True)]
        chosen = [None if template is None or template.layer_group == 1 else template for template in chosen]
        return SymmetryConstraint(chosen, self.sheets.num_atoms[index], self.sheets.frac_coords.to(device))

    def select(self, index: torch.Tensor) -> SheetBatch:
        """Gather the sheets of the given indices (B,) as a batch."""
        sizes = self.sheets.num_atoms[index]
        batch = torch.repeat_interleave(torch.arange(len(index)), sizes)
        start = torch.cumsum(sizes, 0) - sizes
        atoms = torch.arange(int(sizes.sum())) + (self.ptr[index] - start)[batch]
        s = self.sheets
        return SheetBatch(
            s.atomic_numbers[atoms],
            s.frac_coords[atoms],
            s.heights[atoms],
            s.lattice_vector[index],
            batch,
            sizes,
            s.delta_g[index],
            s.e_hull[index],
            s.synth[index],
        )


def training_rows(table: SheetTable, step: int, batch_size: int, seed: int, labelled_share: float = 0.0) -> torch.Tensor:
    """Choose the sheets of one batch of an endless sequence of shuffled epochs.

    The choice is a function of the arguments, so that a resumed training has nothing to restore.

    Args:
        table: the training split.
        step: number of the batch, from 0.
        batch_size: B.
        seed: of the shuffles.
        labelled_share: share of the batch, its first rows, that comes from epochs of the sheets with a ΔG_H label.

    Returns:
        (B,) int64, numbers of sheets.
    """
    labelled = torch.nonzero(torch.isfinite(table.sheets.delta_g)).flatten()
    count = min(round(labelled_share * batch_size), len(labelled))
    first = labelled[_shuffled(len(labelled), step, count, (seed, 5))] if count else labelled[:0]
    return torch.cat([first, _shuffled(len(table), step, batch_size - count, (seed, 1))])


def _shuffled(total: int, step: int, count: int, key: tuple[int, ...]) -> torch.Tensor:
    """Return (count,) numbers below ``total``: batch ``step`` of endless shuffled epochs."""
    if not count:
        return torch.zeros(0, dtype=torch.long)
    epoch, position = divmod(step, max(total // count, 1))
    return torch.randperm(total, generator=seeded_generator(*key, epoch))[position * count : (position + 1) * count]
