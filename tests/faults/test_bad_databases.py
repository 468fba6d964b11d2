"""ASE databases with rows of every wrong kind, and files that are no database."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule, mx2
from ase.db import connect
from corpus import one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import material_dataset as stage2
from crystals.database import Row, clean_row, read_rows
from energetics import dft_points, site_labels
from energetics.sites import SheetHER
from evaluation import synth_examples
from pipeline.errors import StageError
from pipeline.loading import load_config
from pipeline.settings import DatasetConfig

SETTINGS = DatasetConfig()


def good() -> Atoms:
    atoms = mx2("MoS2", vacuum=10)
    atoms.pbc = (True, True, False)
    return atoms


def changed(**changes) -> Atoms:
    """The good sheet with other arrays."""
    atoms = good()
    for name, value in changes.items():
        if name == "cell":
            atoms.set_cell(value)
        elif name == "pbc":
            atoms.pbc = value
        else:
            atoms.arrays[name][0] = value
    return atoms


def database(path, atoms=None, **keys):
    """A database of one row, after one good one."""
    keys = {key: value for key, value in ({"uid": "bad", "ehull": 0.1, "hform": -0.5} | keys).items() if value is not None}
    with connect(path) as db:
        db.write(good(), uid="good", ehull=0.0, hform=-0.9)
        db.write(good() if atoms is None else atoms, **keys)
    return path


def spoil(path, statement, *values):
    """Changes the second row behind the back of ASE."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, values)
        connection.commit()


def verdicts(path, **changes):
    settings_ = load_config(None, [f"dataset.{key}={value}" for key, value in {"db_path": path, **changes}.items()]).dataset
    return [result for *_, result in read_rows(settings_)]


DROPPED = {
    "no ehull": ({"ehull": None}, "no ehull"),
    "nan ehull": ({"ehull": math.nan}, "no ehull"),
    "infinite ehull": ({"ehull": math.inf}, "ehull or hform is not a number"),
    "minus infinite ehull": ({"ehull": -math.inf}, "ehull or hform is not a number"),
    "ehull in words": ({"ehull": "unknown"}, "ehull or hform is not a number"),
    "hform in words": ({"hform": "low"}, "ehull or hform is not a number"),
    "infinite hform": ({"hform": math.inf}, "ehull or hform is not a number"),
    "ehull far above": ({"ehull": 40.0}, "ehull above dataset.max_e_hull_ev"),
    "ehull far below": ({"ehull": -40.0}, "ehull below -dataset.max_e_hull_ev"),
    "nan position": ({"atoms": changed(positions=np.nan)}, "not 2D: positions or cell are not finite"),
    "infinite position": ({"atoms": changed(positions=np.inf)}, "not 2D: positions or cell are not finite"),
    "nan cell": ({"atoms": changed(cell=[np.nan, 3, 20])}, "not 2D: positions or cell are not finite"),
    "flat cell": ({"atoms": changed(cell=[[3, 0, 0], [6, 0, 0], [0, 0, 20]])}, "not 2D: cell has no volume"),
    "no cell": ({"atoms": changed(cell=[0, 0, 0])}, "clash"),
    "huge cell": ({"atoms": changed(cell=[1e7, 1e7, 1e7])}, "not 2D: bonds do not form a sheet"),
    "element 0": ({"atoms": changed(numbers=0)}, "element outside 1..94"),
    "element 118": ({"atoms": changed(numbers=118)}, "element outside 1..94"),
    "element below 0": ({"atoms": changed(numbers=-5)}, "element outside 1..94"),
    "no atoms": ({"atoms": Atoms(cell=[3, 3, 20], pbc=True)}, "not 2D: no atoms"),
    "every atom twice": ({"atoms": good() + good()}, "clash"),
    "bulk": ({"atoms": bulk("Cu", cubic=True)}, "not 2D: no vacuum"),
    "molecule": ({"atoms": Atoms(molecule("H2O"), cell=[15, 15, 15], pbc=True)}, "not 2D: vacuum in more than one direction"),
    "chain": ({"atoms": Atoms("C", cell=[1.4, 15, 15], pbc=True)}, "not 2D: vacuum in more than one direction"),
    "large": ({"atoms": good().repeat((3, 3, 1))}, "more than dataset.max_atoms atoms"),
    "open along x": ({"atoms": changed(pbc=(False, True, True))}, "not 2D: bonds do not form a sheet"),
    "open along y": ({"atoms": changed(pbc=(True, False, True))}, "not 2D: bonds do not form a sheet"),
}


@pytest.mark.parametrize("kind", DROPPED)
def test_bad_rows_are_dropped_with_their_reason(tmp_path, kind):
    keys, reason = DROPPED[kind]
    first, second = verdicts(database(tmp_path / "x.db", **keys))
    assert isinstance(first, Row) and first.uid == "good"
    assert second == reason


KEPT = {
    "periodic in every direction": {"atoms": changed(pbc=True)},
    "periodic in none": {"atoms": changed(pbc=False)},
    "periodic along x only": {"atoms": changed(pbc=(True, False, False))},
    "periodic along z only": {"atoms": changed(pbc=(False, False, True))},
    "no hform": {"hform": None},
    "no uid": {"uid": None},
    "number for a uid": {"uid": 5},
    "number for a doi": {"doi": 7},
    "levels of another release": {"thermodynamic_stability_level": "high!", "dynamic_stability_phonons": 3},
}


@pytest.mark.parametrize("kind", KEPT)
def test_odd_rows_give_the_same_sheet(tmp_path, kind):
    first, second = verdicts(database(tmp_path / "x.db", **KEPT[kind]))
    assert isinstance(second, Row) and second.e_hull == 0.1
    np.testing.assert_allclose(second.sheet.heights, first.sheet.heights, atol=1e-9)
    np.testing.assert_allclose(second.sheet.lattice, first.sheet.lattice, atol=1e-9)
    assert math.isnan(second.h_form) == (kind == "no hform")
    assert second.uid != first.uid


@pytest.mark.parametrize(("column", "value"), [("positions", bytes(24)), ("constraints", '[{"name": "Nope"}]')])
def test_rows_that_ase_cannot_rebuild_are_dropped(tmp_path, column, value):
    spoil(database(tmp_path / "x.db"), f"UPDATE systems SET {column} = ? WHERE id = 2", value)
    first, second = verdicts(tmp_path / "x.db")
    assert isinstance(first, Row) and second == "structure cannot be read: ValueError"


def no_database(content):
    return lambda path: path.write_bytes(content)


def other_sqlite(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE phones (number)")
        connection.commit()


def cut(path):
    database(path)
    path.write_bytes(path.read_bytes()[:9000])


NO_DATABASE = {
    "nothing there": (lambda path: None, "no file at"),
    "folder": (lambda path: path.mkdir(), "without structure.json"),
    "empty": (no_database(b""), "is empty"),
    "text": (no_database(b"not a database " * 300), "not a readable ASE database"),
    "csv": (no_database(b"uid,ehull\nx,0.1\n"), "not a readable ASE database"),
    "header only": (no_database(b"SQLite format 3\0" + bytes(84)), "not a"),
    "another database": (other_sqlite, "is not an ASE database"),
    "cut short": (cut, "not a readable ASE database"),
    "damaged keys": (lambda path: spoil(database(path), "UPDATE systems SET key_value_pairs = '{'"), "not a readable ASE database"),
    "a column gone": (lambda path: spoil(database(path), "ALTER TABLE systems DROP COLUMN pbc"), "not a readable ASE database"),
}


@pytest.mark.parametrize("kind", NO_DATABASE)
def test_files_that_are_no_database_end_in_one_line_and_stay_as_they_are(tmp_path, capsys, kind):
    make, reason = NO_DATABASE[kind]
    path = tmp_path / "x.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    code, line = one_line(capsys, lambda cfg: list(read_rows(cfg.dataset)), [f"dataset.db_path={path}"])
    assert code == 1 and reason in line and "x.db" in line
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("name", ["x.sqlite", "x", "x.xyz", "x.json"])
def test_other_endings_are_refused(tmp_path, capsys, name):
    (tmp_path / name).write_text("[]")
    code, line = one_line(capsys, lambda cfg: list(read_rows(cfg.dataset)), [f"dataset.db_path={tmp_path / name}"])
    assert code == 1 and "not a readable ASE database" in line


def test_a_database_of_bad_rows_says_what_was_dropped(tmp_path, capsys, monkeypatch):
    class NoJudge:
        @classmethod
        def load(cls, *_):
            return cls()

    monkeypatch.setattr("energetics.hydrogen.HydrogenPredictor", NoJudge)
    with connect(tmp_path / "x.db") as db:
        db.write(bulk("Cu"), uid="a", ehull=0.1)
        db.write(good(), uid="b")
        db.write(good(), uid="c", ehull="none")
    arguments = [f"dataset.db_path={tmp_path / 'x.db'}", f"run.output_dir={tmp_path / 'out'}", "run.device=cpu", "run.threads=1"]
    code, line = one_line(capsys, stage2.main, arguments)
    assert code == 1 and "no usable row" in line
    assert all(reason in line for reason in ("not 2D: no vacuum", "no ehull", "ehull or hform is not a number"))
    connect(tmp_path / "empty.db").count()
    code, line = one_line(capsys, stage2.main, [f"dataset.db_path={tmp_path / 'empty.db'}", *arguments[1:]])
    assert code == 1 and "no usable row; dropped: {}" in line
    assert not (tmp_path / "out").exists()


JUNK = st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=8), st.lists(st.floats(), max_size=2))


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.dictionaries(st.sampled_from(["ehull", "hform", "uid", "doi", "dyn_stab", "prototype", "asr_id"]), JUNK))
def test_any_keys_give_a_finite_row_or_a_reason(keys):
    class AnyRow:
        id = 3
        key_value_pairs = keys

        def toatoms(self):
            return good()

    result = clean_row(AnyRow(), SETTINGS)
    if isinstance(result, Row):
        assert abs(result.e_hull) <= SETTINGS.max_e_hull_ev and not math.isinf(result.h_form)
        assert result.uid and (math.isnan(result.y_synth) or result.y_synth in (0.0, 1.0))
    else:
        assert result in ("no ehull", "ehull or hform is not a number") or result.startswith("ehull ")


BROKEN_LINES = [b"{\n", b"[1, 2]\n", b'{"delta_g": []}\n', b"\xff\xfe\n", b"null\n", b'{"key": [1]}\n', b'{"key": "cut']


@pytest.mark.parametrize("line", BROKEN_LINES)
def test_damaged_labels_are_made_anew(tmp_path, line):
    identity = {"checkpoint_sha256": "a"}
    first = SheetHER(sheet=None, status="first")
    site_labels.LabelStore(tmp_path / "labels.jsonl", identity).add("first", first)
    kept = (tmp_path / "labels.jsonl").read_bytes()
    (tmp_path / "labels.jsonl").write_bytes(kept + line + b'{"key": "after"}\n')
    store = site_labels.LabelStore(tmp_path / "labels.jsonl", identity)
    good = ["first", "after"] if line.endswith(b"\n") else ["first"]  # two lines that have become one are one damaged line
    assert list(store) == good
    store.add("first", first)
    assert line in (tmp_path / "labels.jsonl").read_bytes(), "nothing is written where nothing is new"
    store.add("new", first)
    again = site_labels.LabelStore(tmp_path / "labels.jsonl", identity)
    assert list(again) == [*good, "new"] and line not in (tmp_path / "labels.jsonl").read_bytes()
    assert (tmp_path / "labels.jsonl").read_bytes().startswith(kept)


@pytest.mark.parametrize("kind", ["text", "cut short", "a column gone"])
def test_the_synthesizability_model_names_the_database(tmp_path, capsys, kind):
    NO_DATABASE[kind][0](tmp_path / "x.db")
    code, line = one_line(capsys, synth_examples.read_examples, [f"synth_lm.db_path={tmp_path / 'x.db'}"])
    assert code == 1 and "x.db is not a readable ASE database" in line


@pytest.mark.parametrize("kind", ["text", "cut short", "a column gone"])
def test_the_dft_points_name_the_database(tmp_path, kind):
    NO_DATABASE[kind][0](tmp_path / "x.db")
    try:
        dft_points.read_truth(tmp_path / "x.db")
    except StageError as error:
        assert "x.db" in str(error)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} instead of a StageError") from error
