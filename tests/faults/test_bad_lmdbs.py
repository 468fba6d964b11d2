"""LMDB files and records that are damaged, hostile or of another schema."""

from __future__ import annotations

import io
import logging
import os
import pickle
import random
import subprocess
import zlib

import lmdb
import numpy as np
import pytest
import torch
from corpus import Hostile, one_line, pickled, raw_lmdb, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from energetics.adsorption_data import read_entries
from energetics.is2re_lmdb import open_is2re, write_is2re
from pipeline.errors import StageError
from pipeline.loading import load_config
from pipeline.safe_pickle import safe_loads

NAN = float("nan")

NO_LMDB = {
    "empty": (lambda p: p.write_bytes(b""), "not a readable LMDB"),
    "one byte": (lambda p: p.write_bytes(b"x"), "not a readable LMDB"),
    "text": (lambda p: p.write_text("no LMDB " * 4000), "not a readable LMDB"),
    "zeros": (lambda p: p.write_bytes(bytes(40960)), "not a readable LMDB"),
    "pickle": (lambda p: p.write_bytes(pickled()), "not a readable LMDB"),
    "nothing there": (lambda p: None, "dimenet.lmdb_path: no file at"),
    "dangling link": (lambda p: p.symlink_to("nowhere"), "dimenet.lmdb_path: no file at"),
    "empty folder": (lambda p: p.mkdir(), "without *.lmdb"),
    "folder of other files": (lambda p: (p.mkdir(), (p / "a.txt").write_text("x")), "without *.lmdb"),
    "folder with a dangling link": (lambda p: (p.mkdir(), (p / "a.lmdb").symlink_to("nowhere")), "no file at"),
    "folder of text": (lambda p: (p.mkdir(), (p / "a.lmdb").write_text("x" * 9000)), "not a readable LMDB"),
    "no keys": (lambda p: raw_lmdb(p, {}), "holds no record"),
    "other keys": (lambda p: raw_lmdb(p, {b"a": b"x", b"-1": b"x", b"0x1": b"x", b"9" * 30: b"x"}), "holds no record"),
    "ASE-LMDB of fairchem v2": (
        lambda p: raw_lmdb(p, {b"1": zlib.compress(b"{}"), b"metadata": b"x", b"nextid": b"x", b"deleted_ids": b"x"}),
        "ASE-LMDB of fairchem v2",
    ),
    "folder of ASE-LMDBs": (lambda p: (p.mkdir(), raw_lmdb(p / "a.aselmdb", {b"1": b"x"})), "fairchem v2"),
    "length in words": (lambda p: raw_lmdb(p, {b"0": pickled(), b"length": b"eighty"}), "key length"),
    "only a length": (lambda p: raw_lmdb(p, {b"length": pickle.dumps(3)}), "holds no record"),
    "damaged length": (lambda p: raw_lmdb(p, {b"0": pickled(), b"length": b"\x80\x04"}), "key length"),
}


@pytest.mark.parametrize("kind", NO_LMDB)
def test_files_that_are_no_lmdb_end_in_one_line(tmp_path, capsys, kind):
    make, reason = NO_LMDB[kind]
    make(tmp_path / "x.lmdb")
    code, line = one_line(capsys, lambda cfg: open_is2re(cfg.dimenet.lmdb_path), [f"dimenet.lmdb_path={tmp_path / 'x.lmdb'}"])
    assert code == 1 and reason in line and "x.lmdb" in line


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of an LMDB of 24 records, several pages long."""
    path = tmp_path_factory.mktemp("whole") / "x.lmdb"
    assert write_is2re(path, [record(sid=k) for k in range(24)]) == 24
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.9999])
def test_truncated_files_end_in_one_line(tmp_path, capsys, whole, share):
    (tmp_path / "x.lmdb").write_bytes(whole[: int(share * len(whole))])
    code, line = one_line(capsys, lambda cfg: open_is2re(tmp_path / "x.lmdb"), [])
    assert code == 1 and ("truncated" in line or "not a readable LMDB" in line)


@pytest.mark.parametrize("how", ["zeros", "noise", "zeros to the end"])
def test_damaged_pages_are_named_or_noticed(tmp_path, whole, how):
    """Every page in turn, but the two that describe the file: each record is read right or refused by name."""
    page = lmdb.open(str(_write(tmp_path / "w.lmdb", whole)), subdir=False, readonly=True, lock=False).stat()["psize"]
    for number in range(2, len(whole) // page):
        damaged = bytearray(whole)
        end = len(whole) if how == "zeros to the end" else (number + 1) * page
        size = end - number * page
        damaged[number * page : end] = random.Random(number).randbytes(size) if how == "noise" else bytes(size)
        path = _write(tmp_path / f"{number}.lmdb", bytes(damaged))
        good = refused = 0
        try:
            reader = open_is2re(path)
            for index in range(len(reader)):
                try:
                    assert torch.equal(reader[index].pos, record()["pos"])
                    good += 1
                except StageError as error:
                    assert "key " in str(error)
                    refused += 1
        except StageError as error:
            assert "damaged" in str(error) or "no record" in str(error)
        assert good < 24


def _write(path, content):
    path.write_bytes(content)
    return path


REFUSED = {
    "no pos": (pickled(pos=None), "no 'pos'"),
    "no cell": (pickled(cell=None), "no 'cell'"),
    "no atomic numbers": (pickled(atomic_numbers=None), "no 'atomic_numbers'"),
    "no atoms": (pickled(pos=torch.zeros(0, 3)), "pos has shape"),
    "flat pos": (pickled(pos=torch.zeros(6)), "pos has shape"),
    "pos in words": (pickled(pos="here"), "stands where numbers belong"),
    "ragged pos": (pickled(pos=[[0, 0, 0], [1]]), "stands where numbers belong"),
    "complex pos": (pickled(pos=torch.zeros(2, 3, dtype=torch.complex64)), "complex numbers"),
    "nan pos": (pickled(pos=torch.tensor([[0.0, 0, NAN], [1, 1, 1]])), "not finite"),
    "overflowing pos": (pickled(pos=torch.full((2, 3), 1e300, dtype=torch.float64)), "not finite"),
    "pos far away": (pickled(pos=torch.tensor([[0.0, 0, 0], [900.0, 0, 0]])), "cells away"),
    "equal positions": (pickled(pos=torch.ones(2, 3)), "same place"),
    "nan cell": (pickled(cell=torch.full((3, 3), NAN)), "not finite"),
    "zero cell": (pickled(cell=torch.zeros(3, 3)), "no volume"),
    "flat cell": (pickled(cell=torch.tensor([[30.0, 0, 0], [0, 30, 0], [0, 0, 0.01]])), "flatter than 1"),
    "six cell parameters": (pickled(cell=torch.ones(6)), "cell has shape"),
    "numbers in words": (pickled(atomic_numbers=["Cu", "H"]), "stands where numbers belong"),
    "half numbers": (pickled(atomic_numbers=torch.tensor([29.5, 1])), "not whole numbers"),
    "number 0": (pickled(atomic_numbers=torch.tensor([0, 1])), "1..118"),
    "number 200": (pickled(atomic_numbers=torch.tensor([200, 1])), "1..118"),
    "infinite number": (pickled(atomic_numbers=torch.tensor([float("inf"), 1])), "not whole numbers"),
    "a number short": (pickled(atomic_numbers=torch.tensor([1])), "1 entries for 2 atoms"),
    "a tag short": (pickled(tags=torch.tensor([2])), "1 entries for 2 atoms"),
    "nan tag": (pickled(tags=torch.tensor([NAN, 2])), "not whole numbers"),
    "other natoms": (pickled(natoms=5), "natoms is 5"),
    "relaxed in another shape": (pickled(pos_relaxed=torch.zeros(3, 3)), "pos_relaxed has shape"),
    "nan relaxed": (pickled(pos_relaxed=torch.full((2, 3), NAN)), "pos_relaxed is not finite"),
    "infinite sid": (pickled(sid=float("inf")), "infinity"),
    "extra is a list": (pickled(extra=[1, 2]), "extra is a list"),
    "bytes in extra": (pickled(name=b"x"), "an extra attribute is a bytes"),
    "a number": (pickle.dumps(5), "holds a int"),
    "a list": (pickle.dumps([record()]), "holds a list"),
    "none": (pickle.dumps(None), "holds a NoneType"),
    "empty dictionary": (pickle.dumps({}), "no 'pos'"),
    "empty data": (pickle.dumps(Data()), "no 'pos'"),
    "nothing": (b"", "not a readable record"),
    "text": (b"hello", "not a readable record"),
    "half a pickle": (pickled()[:-150], "not a readable record"),
    "marks without end": (b"(" * 100_000 + b".", "not a readable record"),
    "recursion": (b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".", "holds a list"),
    "sparse tensor": (pickled(pos=torch.ones(2, 3).to_sparse()), "refused"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_records_are_named_by_file_and_key(tmp_path, capsys, kind):
    content, reason = REFUSED[kind]
    path = raw_lmdb(tmp_path / "x.lmdb", {b"0": pickled(), b"1": content, b"2": pickled(sid=9)})
    reader = open_is2re(path)
    code, line = one_line(capsys, lambda cfg: reader[1], [])
    assert code == 1 and reason in line and "x.lmdb, key 1" in line
    assert reader[0].sid == 7 and reader[2].sid == 9


def hostile(marker):
    """Pickles that write a file when they are executed, by one way each."""
    touch = f"touch {marker}"
    inner = io.BytesIO()
    torch.save(Hostile(os.system, touch), inner)
    return {
        "os.system": Hostile(os.system, touch),
        "eval": Hostile(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Hostile(exec, f"open({str(marker)!r}, 'w')"),
        "open": Hostile(open, str(marker), "w"),
        "subprocess": Hostile(subprocess.call, ["touch", str(marker)]),
        "getattr": Hostile(getattr, "x", "upper"),
        "import": Hostile(__import__, "antigravity"),
        "torch.load": Hostile(torch.load, str(marker)),
        "numpy.load": Hostile(np.load, str(marker)),
        "numpy.memmap": Hostile(np.memmap, str(marker), "uint8", "w+", 0, (8,)),
        "torch storage": Hostile(torch.storage._load_from_bytes, inner.getvalue()),
        "torch from file": Hostile(torch.from_file, str(marker), True, 8),
        "file storage": Hostile(torch.UntypedStorage.from_file, str(marker), True, 8),
        "tofile": Hostile(np.ndarray.tofile, np.zeros(1), str(marker)),
        "savetxt": Hostile(np.savetxt, str(marker), [1.0]),
        "os.mkdir": Hostile(os.mkdir, str(marker)),
        "map": Hostile(map, os.mkdir, [str(marker)]),
    }


@pytest.mark.parametrize("kind", hostile("x"))
@pytest.mark.parametrize("place", ["record", "attribute", "length"])
def test_hostile_pickles_are_refused_and_run_nothing(tmp_path, capsys, kind, place):
    marker = tmp_path / "was_here"
    bomb = hostile(marker)[kind]
    items = {b"0": pickled(), b"length": pickle.dumps(2)}
    items[b"1"] = pickle.dumps(bomb) if place == "record" else pickled(note=bomb) if place == "attribute" else pickled()
    if place == "length":
        items[b"length"] = pickle.dumps(bomb)
    path = raw_lmdb(tmp_path / "x.lmdb", items)
    code, line = one_line(capsys, lambda cfg: open_is2re(path)[1], [])
    assert code == 1 and ("key length" if place == "length" else "key 1") in line
    assert not marker.exists()
    if kind == "import":
        return
    raised = ""
    try:  # the same bytes are live ammunition for plain pickle, or the test would show nothing
        pickle.loads(pickle.dumps(bomb))
    except Exception as error:
        raised = type(error).__name__
    assert raised or kind in ("getattr", "map", "torch storage") or marker.exists()


PICKLED = pickled()  # once: two pickles of one record may differ in what they share


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_a_plain_value_or_an_exception(data):
    content = bytearray(data.draw(st.one_of(st.binary(max_size=80), st.just(PICKLED))))
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        value = safe_loads(bytes(content))
    except Exception as error:
        assert not isinstance(error, NotImplementedError | SystemError)
    else:
        assert type(value).__module__ in ("builtins", "pipeline.safe_pickle", "torch", "collections", "numpy")


def entries_of(path, **changes):
    settings_ = load_config(None, [f"dimenet.{key}={value}" for key, value in changes.items()]).dimenet
    return read_entries([open_is2re(path)], settings_, 94)


DROPPED = {
    "no target": (record(y_relaxed=None), "y_relaxed missing or not finite"),
    "nan target": (record(y_relaxed=NAN), "y_relaxed missing or not finite"),
    "infinite target": (record(y_relaxed=float("inf")), "y_relaxed missing or not finite"),
    "target in words": (record(y_relaxed="-0.2"), "y_relaxed missing or not finite"),
    "two targets": (record(y_relaxed=torch.tensor([0.1, 0.2])), "y_relaxed missing or not finite"),
    "empty target": (record(y_relaxed=torch.zeros(0)), "y_relaxed missing or not finite"),
    "table for a target": (record(y_relaxed={"y": 1}), "y_relaxed missing or not finite"),
    "absurd target": (record(y_relaxed=-1e6), "|y_relaxed| above 10 eV"),
    "no adsorbate": (record(tags=torch.tensor([0, 1])), "no adsorbate atom (tag 2)"),
    "no tags": (record(tags=None), "no adsorbate atom (tag 2)"),
    "another adsorbate": (record(atomic_numbers=torch.tensor([29, 8])), "adsorbate is not one H"),
    "element beyond the network": (record(atomic_numbers=torch.tensor([117, 1])), "element outside the network"),
    "not converged": (record(converged=False), "relaxation not converged"),
    "not converged, as a tensor": (record(converged=torch.tensor(0)), "relaxation not converged"),
}


@pytest.mark.parametrize("kind", DROPPED)
def test_unusable_records_are_counted_by_reason(tmp_path, capsys, kind):
    values, reason = DROPPED[kind]
    path = raw_lmdb(tmp_path / "x.lmdb", {b"0": pickled(), b"1": pickle.dumps(Data(**values))})
    entries, counts = entries_of(path)
    assert counts == {"records": 2, "kept": 1, "dropped": {reason: 1}} and entries[0].delta_e == pytest.approx(-0.2)
    alone = raw_lmdb(tmp_path / "alone.lmdb", {b"0": pickle.dumps(Data(**values))})
    code, line = one_line(capsys, lambda cfg: entries_of(alone), [])
    assert code == 1 and f"0 of 1 records hold one H adsorbate; dropped: {reason}: 1" in line


def test_extra_attributes_of_every_kind_are_kept(tmp_path):
    path = raw_lmdb(tmp_path / "x.lmdb", {b"0": pickled(coverage=torch.tensor(0.25), converged=torch.tensor([1]), name="x")})
    assert open_is2re(path)[0].extra == {"coverage": 0.25, "converged": 1, "name": "x"}
    assert entries_of(path)[1]["kept"] == 1


@pytest.mark.parametrize(
    ("keys", "stated", "warning"),
    [
        ([0, 1, 5], 6, "states 6 records and holds 3"),
        ([0, 1], np.int64(3), "states 3 records and holds 2"),
        ([0, 1], torch.tensor(4), "records and holds 2"),
        ([0], "many", "states many records and holds 1"),
        ([0], None, "states None records and holds 1"),
        ([0, 1], b"3", "states 3 records and holds 2"),
    ],
)
def test_gaps_in_the_keys_are_noticed(tmp_path, caplog, keys, stated, warning):
    items = {str(k).encode(): pickled(sid=k) for k in keys}
    path = raw_lmdb(tmp_path / "x.lmdb", items | {b"length": stated if isinstance(stated, bytes) else pickle.dumps(stated)})
    with caplog.at_level(logging.WARNING, "her2d"):
        reader = open_is2re(path)
    assert warning in caplog.text
    assert [r.sid for r in reader] == keys


def test_keys_that_are_no_record_numbers_are_counted(tmp_path, caplog):
    items = {key: pickled() for key in (b"0", b"00001", b"note", b"-1", "٣".encode(), b"9" * 25)}
    with caplog.at_level(logging.WARNING, "her2d"):
        reader = open_is2re(raw_lmdb(tmp_path / "x.lmdb", items))
    assert len(reader) == 1 and "5 keys are no record numbers" in caplog.text


def test_folders_of_files_and_of_lmdb_folders_are_read_whole(tmp_path):
    write_is2re(tmp_path / "a.lmdb", [record(sid=1)])
    environment = lmdb.open(str(tmp_path / "b.lmdb"), map_size=1 << 26)
    with environment.begin(write=True) as transaction:
        transaction.put(b"0", pickled(sid=2))
    environment.close()
    assert [r.sid for r in open_is2re(tmp_path)] == [1, 2]
