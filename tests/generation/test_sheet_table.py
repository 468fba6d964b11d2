"""The file of one split, what training reads from it, and the rows of its batches."""

import numpy as np
import pytest
import torch
from tiny_sheets import table_of, tiny_config

from crystals.database import Row
from crystals.prototypes import PROTOTYPES
from generation import sheet_table
from generation.sheet_table import training_rows
from geo_utils import Sheet
from pipeline.errors import StageError
from pipeline.settings import Config


@pytest.fixture
def cfg(tmp_path) -> Config:
    return tiny_config(tmp_path)


def test_a_sheet_outside_the_judges_domain_has_no_label():
    label = {"delta_g": [0.2, -0.1], "std": [0.1, 0.3], "in_domain": True}
    assert sheet_table.most_stable_site(label) == (-0.1, 0.3)
    assert np.isnan(sheet_table.most_stable_site(label | {"in_domain": False})).all()
    assert np.isnan(sheet_table.most_stable_site(None)).all()


def test_a_written_split_is_read_as_one_table(tmp_path):
    sheets = [Sheet.from_atoms(PROTOTYPES["2H-MX2"].build(metal, "S")) for metal in ("Mo", "W")]
    rows = [Row(k, f"uid-{k}", sheet, sheet.formula, "MoS2", 0.1 * k, -0.5, 1.0) for k, sheet in enumerate(sheets)]
    torch.save(sheet_table.pack(rows, {}), tmp_path / "train.pt")
    columns, table = sheet_table.read_split(tmp_path / "train.pt"), sheet_table.SheetTable.load(tmp_path / "train.pt")
    assert columns["ptr"].tolist() == table.ptr.tolist() == [0, 3, 6] and table.uids == columns["uid"] == ["uid-0", "uid-1"]
    assert torch.isnan(columns["delta_g_h"]).all() and columns["e_hull"].tolist() == pytest.approx([0.0, 0.1])
    for index in (0, 1, -1):
        np.testing.assert_array_equal(table.sheet(index).atomic_numbers, sheets[index].atomic_numbers)
        np.testing.assert_allclose(
            table.sheet(index).lattice @ table.sheet(index).lattice.T, sheets[index].lattice @ sheets[index].lattice.T, rtol=1e-5
        )
    for index in (2, -3):
        with pytest.raises(IndexError):
            table.sheet(index)
    batch = table.select(torch.tensor([1, 0]))
    assert batch.atomic_numbers[:3].tolist() == sheets[1].atomic_numbers.tolist() and batch.num_atoms.tolist() == [3, 3]


def test_known_sheets_are_those_of_training_and_validation_in_one_table(tmp_path):
    sheets = [Sheet.from_atoms(PROTOTYPES["2H-MX2"].build(metal, "S")) for metal in ("Mo", "W", "Nb")]
    rows = [Row(k, f"uid-{k}", sheet, sheet.formula, "MoS2", 0.1 * k, -0.5, 1.0) for k, sheet in enumerate(sheets)]
    sites = {"delta_g": [0.2, -0.1], "std": [0.1, 0.3], "kind": ["top", "hollow"], "face": ["upper", "lower"]}
    labels = {row.key: sites | {"in_domain": True, "coverage": 0.25} for row in rows[1:]}
    for name, own in (("train", rows[:2]), ("val", rows[2:])):
        torch.save(sheet_table.pack(own, labels), tmp_path / f"{name}.pt")
    known, whole = sheet_table.read_known(tmp_path), sheet_table.pack(rows, labels)
    assert known.keys() == whole.keys()
    for name, expected in whole.items():
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(known[name], expected, equal_nan=True, rtol=0, atol=0)
        else:
            assert known[name] == expected, name
    (tmp_path / "val.pt").unlink()
    with pytest.raises(StageError, match=r"val\.pt is missing: run material_dataset\.py"):
        sheet_table.read_known(tmp_path)


def test_batches_cover_an_epoch_once_and_differ_between_epochs(cfg):
    table = table_of(cfg)
    epochs = []
    for epoch in range(2):
        seen = [training_rows(table, epoch * 5 + k, 8, 3) for k in range(5)]
        epochs.append(torch.cat(seen))
        assert epochs[-1].sort().values.tolist() == list(range(len(table)))
    assert not torch.equal(*epochs)


def test_a_share_of_each_batch_is_labelled(cfg):
    table = table_of(cfg)
    table.sheets.delta_g[:] = float("nan")
    table.sheets.delta_g[[3, 7, 11]] = 0.5
    batches = [training_rows(table, k, 8, 3, labelled_share=0.25) for k in range(20)]
    assert all(len(batch) == 8 and set(batch[:2].tolist()) <= {3, 7, 11} for batch in batches)
    assert set(torch.cat([batch[:2] for batch in batches]).tolist()) == {3, 7, 11}
    assert set(torch.cat([batch[2:] for batch in batches]).tolist()) == set(range(len(table)))


def test_selection_of_sheets_is_exact(cfg):
    table = table_of(cfg)
    picked = table.select(torch.tensor([5, 2]))
    atoms = torch.cat([torch.arange(table.ptr[k], table.ptr[k + 1]) for k in (5, 2)])
    assert torch.equal(picked.heights, table.sheets.heights[atoms])
    assert torch.equal(picked.batch, torch.repeat_interleave(torch.arange(2), table.sheets.num_atoms[[5, 2]]))
