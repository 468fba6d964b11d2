"""Builds the table of sheets that the refiner is trained on from the splits of stage 2."""

from __future__ import annotations

import os

import numpy as np
import torch
from tqdm import tqdm

from crystals.arrangements import Member, arrange
from crystals.elements import covalent_radius_table
from crystals.substitution import squared_distances
from crystals.symmetry import SYMPREC_ANGSTROM, Template
from generation.refiner_training import PairTable
from generation.sheet_table import read_split, sheet_of
from pipeline.errors import StageError


def pair_table(train: str | os.PathLike, val: str | os.PathLike) -> PairTable:
    """Return the sheets of both splits that belong to an arrangement of the training split.

    Raises:
        StageError: as ``read_split`` does, or where no two sheets have one arrangement.
    """
    splits = [read_split(train), read_split(val)]
    rows = [(split, k) for split, table in enumerate(splits) for k in range(len(table["uid"]))]
    stable = lambda place: (place[0], abs(float(splits[place[0]]["e_hull"][place[1]])))  # noqa: E731
    rows = sorted(rows, key=stable)  # the first of an arrangement is the one that others are compared with
    sheets = [sheet_of(splits[split], k) for split, k in rows]
    templates = [Template.of(sheet, SYMPREC_ANGSTROM) for sheet in tqdm(sheets, desc="symmetry", unit="sheet", mininterval=1.0)]
    members = arrange(sheets, templates, [split == 0 for split, _ in rows])
    if len({member.arrangement for member in members}) == len(members):
        raise StageError("no two sheets of the training set have one arrangement of atoms: the refiner has nothing to learn from")
    return _packed(members, [(splits[split], split, k) for split, k in (rows[member.row] for member in members)])


def _packed(members: list[Member], records: list[tuple[dict, int, int]]) -> PairTable:
    """Return members and their (columns of the split, number of the split, row) as one padded table."""
    width = max(len(member.sheet) for member in members)
    pad = lambda x: np.concatenate([x, np.zeros((width - len(x), *x.shape[1:]), dtype=x.dtype)])  # noqa: E731
    stacked = {
        name: torch.as_tensor(np.stack([pad(getattr(member.sheet, name)) for member in members]))
        for name in ("atomic_numbers", "frac_coords", "heights")
    }
    numbers = {formula: k for k, formula in enumerate(sorted({table["formula"][row] for table, _, row in records}))}
    column = lambda name: torch.stack([table[name][row] for table, _, row in records]).float()  # noqa: E731
    return PairTable(
        atomic_numbers=stacked["atomic_numbers"],
        frac_coords=stacked["frac_coords"].float(),
        heights=stacked["heights"].float(),
        cell=torch.as_tensor(np.stack([member.sheet.lattice for member in members])).float(),
        sizes=torch.tensor([len(member.sheet) for member in members]),
        arrangement=torch.tensor([member.arrangement for member in members]),
        formula=torch.tensor([numbers[table["formula"][row]] for table, _, row in records]),
        training=torch.tensor([split == 0 for _, split, _ in records]),
        e_form=column("h_form"),
        e_hull=column("e_hull"),
        synth=column("y_synth"),
        distances=torch.as_tensor(squared_distances()).float(),
        radii=covalent_radius_table().float(),
    )
