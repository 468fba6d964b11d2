"""The index of adsorption records: what it saves, when it is written anew, and what a damaged record does to it."""

from __future__ import annotations

import os
import pickle
import shutil

import numpy as np
import pytest
from emt_records import records

from energetics.adsorption_data import read_entries
from energetics.is2re_lmdb import Is2reReader, open_is2re, write_is2re
from energetics.record_index import RecordIndex
from pipeline.errors import StageError
from pipeline.files import file_sha256
from pipeline.settings import DimenetConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An LMDB of twelve records of some kinds."""
    path = tmp_path_factory.mktemp("lmdb") / "data.lmdb"
    content = records(12)
    content[3] |= {"y_relaxed": np.nan}
    content[5] |= {"converged": 0, "family": "x" * 500}
    write_is2re(path, content)
    return path


@pytest.fixture
def lmdb(made, tmp_path):
    return shutil.copy(made, tmp_path / "data.lmdb")


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Numbers of the records that are read."""
    found, original = [], Is2reReader.__getitem__
    monkeypatch.setattr(Is2reReader, "__getitem__", lambda self, index: found.append(index) or original(self, index))
    return found


def index_of(lmdb, tmp_path) -> RecordIndex:
    return RecordIndex(open_is2re(lmdb), tmp_path / "out" / "records.index.npz")


def test_a_second_start_reads_no_record_and_finds_the_same(lmdb, tmp_path, reads):
    first = index_of(lmdb, tmp_path)
    table, digest = first.table(), first.sha256()
    assert reads == list(range(12)) and digest == file_sha256(lmdb)
    again = index_of(lmdb, tmp_path)
    cfg = DimenetConfig(target_abs_max_ev=50.0)
    assert read_entries([again.reader], cfg, 94, [again.table()]) == read_entries([first.reader], cfg, 94, [table])
    assert again.sha256() == digest and len(reads) == 12
    for settings in (cfg, DimenetConfig(adsorbate="all", target_abs_max_ev=0.5, train_on_unconverged=True)):
        assert read_entries([again.reader], settings, 60, [again.table()]) == read_entries([again.reader], settings, 60)


def touch(lmdb):
    os.utime(lmdb, ns=(1, 1))


def lengthen(lmdb):
    state = os.stat(lmdb)
    with open(lmdb, "ab") as handle:
        handle.write(bytes(4096))
    os.utime(lmdb, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("change", [touch, lengthen])
def test_a_file_of_another_time_or_size_is_read_anew(lmdb, tmp_path, reads, caplog, change):
    index_of(lmdb, tmp_path).table()
    change(lmdb)
    with caplog.at_level("INFO", "her2d"):
        index = index_of(lmdb, tmp_path)
    assert "has changed since its index was written" in caplog.text
    assert len(index.table()) == 12 and len(reads) == 24 and index.sha256() == file_sha256(lmdb)
    index_of(lmdb, tmp_path).table()
    assert len(reads) == 24, "the new index counts"


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_index_is_written_anew(lmdb, tmp_path, reads, caplog, damage):
    index_of(lmdb, tmp_path).table()
    path = tmp_path / "out" / "records.index.npz"
    path.write_bytes(path.read_bytes()[:-300] if damage is None else damage)
    assert len(index_of(lmdb, tmp_path).table()) == 12 and len(reads) == 24
    assert "records.index.npz is damaged" in caplog.text
    assert len(index_of(lmdb, tmp_path).table()) == 12 and len(reads) == 24


def test_a_folder_counts_with_all_its_files(lmdb, tmp_path, reads):
    (tmp_path / "more.lmdb").write_bytes((tmp_path / "data.lmdb").read_bytes())
    first = index_of(tmp_path, tmp_path.parent / tmp_path.name.upper())
    assert len(first.table()) == 24 and first.sha256() == file_sha256(tmp_path)
    (tmp_path / "note.json").write_text("{}")
    assert index_of(tmp_path, tmp_path.parent / tmp_path.name.upper()).sha256() == file_sha256(tmp_path) != first.sha256()


def test_a_damaged_record_is_named_and_leaves_no_index(tmp_path):
    import lmdb as database

    path = tmp_path / "data.lmdb"
    write_is2re(path, records(4))
    with database.open(str(path), subdir=False, lock=False) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"2", pickle.dumps({"pos": "nothing"}))
    with pytest.raises(StageError, match=r"data\.lmdb, key 2: not an IS2RE record"):
        index_of(path, tmp_path).table()
    assert not list((tmp_path / "out").glob("*"))
