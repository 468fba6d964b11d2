"""The ranker from splits to trees that put the right prototype first; labels against StructureMatcher."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ase.build import mx2

from crystals import database
from crystals.prototype_library import PrototypeLibrary
from evaluation.structure_match import match_distance
from generation import sheet_table
from generation.ranking import load_trees, ranked_prototypes
from generation.sheet_table import read_known
from geo_utils import Sheet
from networks.checkpoints import CheckpointError
from pipeline.errors import StageError
from pipeline.loading import load_config
from scripts import train_ranker


def sheet_of(formula: str, kind: str = "2H", a: float = 3.2) -> Sheet:
    atoms = mx2(formula, kind, a=a, thickness=3.1, vacuum=10)
    atoms.pbc = (True, True, False)
    return Sheet.from_atoms(atoms)


@pytest.fixture
def processed(tmp_path):
    """Metals of groups 5 and 6 are 2H, others 1T, and chalcogen does not matter."""
    rows = [(f"{m}{x}2", sheet_of(f"{m}{x}2", kind)) for kind, metals in (("2H", "Mo W Nb Ta"), ("1T", "Pt Pd Zr Hf Ti"))
            for m in metals.split() for x in ("S", "Se", "Te")]  # fmt: skip
    table = [database.Row(k, f"u{k}", s, f, "", 0.1, -1.0, 1.0) for k, (f, s) in enumerate(rows) if f != "WSe2"]
    torch.save(sheet_table.pack(table[:-3], {}), tmp_path / "train.pt")
    torch.save(sheet_table.pack(table[-3:], {}), tmp_path / "val.pt")
    return tmp_path


def test_distances_agree_with_structure_matcher():
    record = sheet_of("MoS2")
    moved = Sheet(record.atomic_numbers, record.frac_coords + [[0.05, 0.0], [0, 0], [0, 0]], record.heights, record.lattice * 1.02)
    assert train_ranker.distance(moved, record) == pytest.approx(match_distance(moved, record), rel=0.2)
    assert train_ranker.distance(sheet_of("MoS2", "1T"), record) > train_ranker.RIGHT
    assert (
        train_ranker.distance(Sheet(record.atomic_numbers, record.frac_coords, record.heights, np.eye(2) * 3.2), record) == np.inf
    )


def test_the_trees_put_the_right_prototype_first(processed, tmp_path, capsys):
    options = [f"dataset.processed_dir={processed}", f"ranker.checkpoint={tmp_path / 'ranker.pth'}", "ranker.trees=30"]
    train_ranker.main(load_config(None, options))
    card = json.loads((tmp_path / "ranker.json").read_text())
    assert card["counts"]["sheets"] == 26 and card["counts"]["prototypes"] == 2 and card["counts"]["right"] == 26
    assert "52 candidates 26 right" in capsys.readouterr().out
    ranked = ranked_prototypes(read_known(processed), tmp_path / "ranker.pth")
    assert [candidate.prototype.layer_group for candidate in ranked.ranked([74, 34, 34])] == [78, 72]
    assert len(ranked.nearest([74, 34, 34], 1)) == 1 and ranked.nearest([6, 6], 3) == []
    assert "WSe2" not in load_trees(tmp_path / "ranker.pth")[1]


def test_the_right_candidate_is_the_most_stable_on_record(processed):
    """With NbTe2 as 1T too, 0.05 eV/atom below its 2H sheet, the 1T candidate is right, and the 2H one no longer."""
    table = read_known(processed)
    sheets = [sheet_table.sheet_of(table, row) for row in range(len(table["uid"]))]
    energies, formulas = table["e_hull"].double().numpy(), list(table["formula"])

    def right(e_hull: float) -> list[int]:
        both = [*sheets, sheet_of("NbTe2", "1T")]
        library = PrototypeLibrary(both, [*formulas, "NbTe2"], [*energies, e_hull], [-1.0] * len(both))
        _, share, y = train_ranker.examples(library, both, 12)
        assert sorted(set(share)) == [0, 0.5, 1] and (share[y] > 0).all() and (share == 0.5).sum() == 2
        groups = sorted({tuple(sorted(sheet.atomic_numbers.tolist())) for sheet in both})
        assert y.dtype == bool and len(y) == 2 * len(groups) and y.sum() == len(groups)
        place = 2 * groups.index((41, 52, 52))
        candidates = library.candidates((41, 52, 52), without="NbTe2")
        return [c.prototype.layer_group for c, own in zip(candidates, y[place : place + 2], strict=True) if own]

    assert right(0.05) == [72] and right(0.15) == [78]


def test_what_cannot_be_used_is_one_line(processed, tmp_path):
    few = sheet_table.pack([database.Row(0, "u", sheet_of("MoS2"), "MoS2", "", 0.1, -1.0, 1.0)], {})
    torch.save(few, processed / "train.pt")
    torch.save(sheet_table.pack([], {}), processed / "val.pt")
    with pytest.raises(StageError, match="nothing to learn from"):
        train_ranker.main(load_config(None, [f"dataset.processed_dir={processed}", f"ranker.checkpoint={tmp_path / 'r.pth'}"]))
    with pytest.raises(CheckpointError, match="prototype_ranker checkpoint"):
        load_trees(tmp_path / "none.pth")
