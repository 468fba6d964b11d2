"""The file of one split and what training reads from it."""

import numpy as np
import pytest
import torch

from crystals.database import Row
from crystals.prototypes import PROTOTYPES
from generation import sheet_table
from geo_utils import Sheet


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
