"""Databases of other releases of C2DB: the levels of 2018 and the folder tree of 2024."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from ase.build import mx2
from ase.db import connect
from ase.io import write

from crystals.database import Row, read_rows, stored_rows
from pipeline.errors import StageError
from pipeline.settings import DatasetConfig

SHEETS = {"MoS2": 0.0, "WSe2": 0.1, "CrTe2": 0.3}


def sheet(formula):
    atoms = mx2(formula, kind="2H", a=3.3, thickness=3.3, vacuum=9)
    atoms.pbc = (True, True, False)
    return atoms


def read(path, **changes):
    return [result for *_, result in read_rows(DatasetConfig(db_path=str(path), **changes))]


@pytest.fixture
def tree(tmp_path):
    """As C2DB's release of 2024: stoichiometry/formula/number/structure.json, written by ASE, beside data.json."""
    for number, (formula, e_hull) in enumerate(SHEETS.items(), start=1):
        folder = tmp_path / "AB2" / formula / str(number)
        folder.mkdir(parents=True)
        write(folder / "structure.json", sheet(formula))
        keys = {"uid": f"1{formula}-1", "ehull": e_hull, "hform": -0.5, "dyn_stab": "Yes"}
        (folder / "data.json").write_text(json.dumps(keys))
        (folder / "results-asr.gs.json").write_text("{}")
    return tmp_path


def test_a_folder_tree_is_the_same_as_a_database(tree, tmp_path):
    with connect(tmp_path / "x.db") as db:
        for formula, e_hull in sorted(SHEETS.items()):
            db.write(sheet(formula), uid=f"1{formula}-1", ehull=e_hull, hform=-0.5, dyn_stab="Yes")
    for ours, theirs in zip(read(tree), read(tmp_path / "x.db"), strict=True):
        assert isinstance(ours, Row) and ours.key == theirs.key
        assert (ours.uid, ours.formula, ours.e_hull, ours.h_form) == (theirs.uid, theirs.formula, theirs.e_hull, theirs.h_form)
        np.testing.assert_equal(ours.y_synth, theirs.y_synth)
    assert len(read(tree, max_rows=2)) == 2 and stored_rows(tree, 2)[0] == 2


def test_damaged_folders_of_a_tree_are_dropped_or_named(tree):
    (tree / "AB2" / "WSe2" / "2" / "structure.json").write_text('{"1": {"numbers": [74, 34, 34]}}')
    (tree / "AB2" / "MoS2" / "1" / "data.json").unlink()
    broken, whole = read(tree)[1:], read(tree)[0]
    assert isinstance(whole, Row)
    assert broken == ["no ehull", broken[1]] and broken[1].startswith("structure cannot be read")
    (tree / "AB2" / "CrTe2" / "3" / "data.json").write_text("{")
    with pytest.raises(StageError, match="data.json is not readable JSON"):
        read(tree)


def test_a_folder_of_something_else_is_named(tmp_path):
    with pytest.raises(StageError, match="without structure.json"):
        read(tmp_path)


@pytest.mark.parametrize(("level", "label"), [(3, 1.0), (2, np.nan), (1, 0.0)])
def test_the_levels_of_2018_are_labels(tmp_path, caplog, level, label):
    with connect(tmp_path / "x.db") as db:
        for formula in SHEETS:
            db.write(sheet(formula), ehull=0.1, hform=-0.5, dynamic_stability_level=level, thermodynamic_stability_level=3)
    with caplog.at_level(logging.WARNING, "her2d"):
        np.testing.assert_equal([row.y_synth for row in read(tmp_path / "x.db")], [label] * 3)
    assert ("none of 3 rows is labelled synthesizable" in caplog.text) == (label != 1.0)
