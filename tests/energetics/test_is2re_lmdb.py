"""IS2RE LMDBs: every vintage reads, hostile and damaged files are refused by name."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from emt_records import records
from torch_geometric.data import Data

from energetics.is2re_lmdb import open_is2re, write_is2re
from pipeline.errors import StageError
from pipeline.safe_pickle import RefusedClassError, safe_loads


def raw_lmdb(path: Path, items: dict[bytes, bytes]) -> None:
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 30, lock=False)
    with environment.begin(write=True) as transaction:
        for key, value in items.items():
            transaction.put(key, value)
    environment.close()


def attributes(number: int = 0, flat_cell: bool = False) -> dict:
    """A record as OC20 stores it: float atomic numbers, cell (1, 3, 3) or (3, 3)."""
    record = records(number + 1, seed=3)[number]
    cell = torch.tensor(record["cell"], dtype=torch.float32)
    return {
        "pos": torch.tensor(record["pos"], dtype=torch.float32),
        "cell": cell[0] if flat_cell else cell,
        "atomic_numbers": torch.tensor(record["atomic_numbers"], dtype=torch.float32),
        "natoms": len(record["pos"]),
        "tags": torch.tensor(record["tags"]),
        "fixed": torch.tensor(record["fixed"], dtype=torch.float32),
        "sid": 7,
        "y_init": record["y_init"],
        "y_relaxed": record["y_relaxed"],
        "pos_relaxed": torch.tensor(record["pos_relaxed"], dtype=torch.float32),
    }


class _OldData:
    """PyG 1.x kept attributes in ``__dict__``; pickled under PyG's name by ``old_pickle``."""


def old_pickle(values: dict, protocol: int) -> bytes:
    instance = _OldData()
    instance.__dict__.update(
        {"x": None, "edge_index": None, "edge_attr": None, "y": None, "__num_nodes__": values["natoms"], **values}
    )
    content = io.BytesIO()

    class Renaming(pickle._Pickler):
        def save_global(self, obj, name=None):
            if obj is _OldData:
                module, qualified = "torch_geometric.data.data", "Data"
                self.write(pickle.GLOBAL + f"{module}\n{qualified}\n".encode())
                self.memoize(obj)
            else:
                super().save_global(obj, name)

        dispatch = {**pickle._Pickler.dispatch, type: save_global}

    Renaming(content, protocol).dump(instance)
    return content.getvalue()


@pytest.mark.parametrize("flat_cell", [False, True])
@pytest.mark.parametrize("vintage", ["pyg2", "pyg1 protocol 2", "pyg1 protocol 4"])
def test_every_vintage_reads(tmp_path, vintage, flat_cell):
    values = attributes(flat_cell=flat_cell)
    if vintage == "pyg2":
        content = pickle.dumps(Data(**values), protocol=4)
    else:
        content = old_pickle(values, protocol=int(vintage[-1]))
        assert b"_store" not in content
    raw_lmdb(tmp_path / "data.lmdb", {b"0": content, b"length": pickle.dumps(1)})
    (record,) = list(open_is2re(tmp_path / "data.lmdb"))
    assert torch.equal(record.pos, values["pos"]) and record.cell.shape == (1, 3, 3)
    assert torch.equal(record.cell.reshape(-1), values["cell"].reshape(-1))
    assert record.atomic_numbers.dtype == torch.int64 and record.atomic_numbers.tolist() == values["atomic_numbers"].int().tolist()
    assert record.tags.tolist() == values["tags"].tolist()
    assert (record.sid, record.y_relaxed) == (7, values["y_relaxed"])
    assert torch.equal(record.pos_relaxed, values["pos_relaxed"])


def test_records_survive_a_round_trip(tmp_path):
    written = records(5)
    assert write_is2re(tmp_path / "data.lmdb", iter(written)) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.lmdb"]
    reader = open_is2re(tmp_path / "data.lmdb")
    assert len(reader) == 5
    for record, source in zip(reader, written, strict=True):
        np.testing.assert_allclose(record.pos.numpy(), source["pos"], atol=1e-5)
        np.testing.assert_allclose(record.cell.numpy(), source["cell"], atol=1e-5)
        assert record.y_relaxed == source["y_relaxed"] and record.sid == source["sid"]
        assert record.extra["family"] == source["family"] and record.extra["converged"] == 1
        assert record.fixed.tolist() == source["fixed"].astype(int).tolist()


def test_the_file_written_is_oc20s_schema(tmp_path):
    """Plain pickle and PyG, as OCP's own loader would use them, find OC20's attributes."""
    write_is2re(tmp_path / "data.lmdb", records(2))
    environment = lmdb.open(str(tmp_path / "data.lmdb"), subdir=False, readonly=True, lock=False)
    with environment.begin() as transaction:
        assert pickle.loads(transaction.get(b"length")) == 2
        data = pickle.loads(transaction.get(b"0"))
    environment.close()
    assert isinstance(data, Data) and data.cell.shape == (1, 3, 3) and data.atomic_numbers.dtype == torch.float32
    expected = {"pos", "cell", "atomic_numbers", "tags", "fixed", "natoms", "sid", "y_init", "y_relaxed", "pos_relaxed"}
    assert expected <= set(data.keys())


def test_a_folder_reads_in_the_order_of_names_and_without_length(tmp_path):
    for name, count in [("b.lmdb", 2), ("a.lmdb", 3)]:
        content = {str(k).encode(): pickle.dumps(Data(**attributes(k) | {"sid": 10 * count + k})) for k in range(count)}
        raw_lmdb(tmp_path / name, content)
    reader = open_is2re(tmp_path)
    assert [record.sid for record in reader] == [30, 31, 32, 20, 21]
    assert reader.where(3) == (tmp_path / "b.lmdb", "0")
    copy = pickle.loads(pickle.dumps(reader))
    assert copy[4].sid == 21


@pytest.mark.parametrize("digits", [1, 2, 6])
def test_keys_with_leading_zeros_and_a_length_in_digits(tmp_path, caplog, digits):
    """As other tools write them: every record is read under its own key, in the order of the numbers, without a warning."""
    content = {f"{k:0{digits}d}".encode(): pickle.dumps(Data(**attributes() | {"sid": 10 * k})) for k in range(9, -1, -1)}
    raw_lmdb(tmp_path / "data.lmdb", content | {b"length": b"10"})
    reader = open_is2re(tmp_path / "data.lmdb")
    assert [record.sid for record in reader] == [10 * k for k in range(10)]
    assert reader.where(3) == (tmp_path / "data.lmdb", "3".zfill(digits))
    assert pickle.loads(pickle.dumps(reader))[7].sid == 70
    assert not caplog.records


def test_keys_sort_as_numbers_and_gaps_are_no_records(tmp_path):
    keys = [0, 2, 10, 9]
    content = {str(k).encode(): pickle.dumps(Data(**attributes() | {"sid": k})) for k in keys}
    raw_lmdb(tmp_path / "data.lmdb", content | {b"length": pickle.dumps(11), b"note": b"text"})
    assert [record.sid for record in open_is2re(tmp_path / "data.lmdb")] == [0, 2, 9, 10]


class _Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch {marker}",)),
        (eval, ("open('{marker}', 'w')",)),
        (getattr, (os, "system")),
        (torch.load, ("{marker}",)),
        (np.load, ("{marker}",)),
        (open, ("{marker}", "w")),
    ],
)
def test_hostile_pickles_are_refused_and_named(tmp_path, function, arguments):
    marker = tmp_path / "was_here"
    arguments = tuple(a.format(marker=marker) if isinstance(a, str) else "posix" for a in arguments)
    values = attributes() | {"note": _Hostile(function, *arguments)}
    raw_lmdb(tmp_path / "data.lmdb", {b"0": pickle.dumps(Data(**attributes())), b"1": pickle.dumps(values)})
    reader = open_is2re(tmp_path / "data.lmdb")
    assert reader[0].sid == 7
    with pytest.raises(StageError, match=rf"data.lmdb, key 1: refused.*{function.__name__}"):
        reader[1]
    assert not marker.exists()


def test_a_hostile_tensor_storage_is_refused(tmp_path):
    """``torch.storage._load_from_bytes`` calls torch.load: its bytes may hold a pickle of their own."""
    marker = tmp_path / "was_here"
    inner = io.BytesIO()
    torch.save(_Hostile(os.system, f"touch {marker}"), inner)
    content = pickle.dumps(_Hostile(torch.storage._load_from_bytes, inner.getvalue()))
    raw_lmdb(tmp_path / "data.lmdb", {b"0": content})
    with pytest.raises(StageError, match="key 0"):
        open_is2re(tmp_path / "data.lmdb")[0]
    assert not marker.exists()


def test_a_hostile_length_is_refused(tmp_path):
    raw_lmdb(
        tmp_path / "data.lmdb", {b"0": pickle.dumps(Data(**attributes())), b"length": pickle.dumps(_Hostile(os.system, "true"))}
    )
    with pytest.raises(StageError, match="key length"):
        open_is2re(tmp_path / "data.lmdb")


def test_only_the_allow_list_unpickles():
    assert safe_loads(pickle.dumps({"a": [1, 2.5, "x", None, True, {3}]})) == {"a": [1, 2.5, "x", None, True, {3}]}
    np.testing.assert_array_equal(safe_loads(pickle.dumps(np.arange(3.0))), np.arange(3.0))
    assert safe_loads(pickle.dumps(np.float64(1.5), protocol=2)) == 1.5
    assert torch.equal(safe_loads(pickle.dumps(torch.arange(4))), torch.arange(4))
    with pytest.raises(RefusedClassError, match="pathlib"):
        safe_loads(pickle.dumps(Path("x")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos": None}, "no 'pos'"),
        ({"pos": torch.zeros(3)}, "pos has shape"),
        ({"cell": torch.zeros(2, 3, 3)}, "cell has shape"),
        ({"tags": torch.zeros(2)}, "tags has 2 entries"),
        ({"atomic_numbers": torch.full((3,), 200.0)}, "1..118"),
        ({"atomic_numbers": torch.full((3,), 1.5)}, "not whole numbers"),
        ({"pos": torch.full((3, 3), float("nan"))}, "not finite"),
    ],
)
def test_records_of_another_schema_are_named(tmp_path, change, message):
    values = {key: value for key, value in (attributes() | change).items() if value is not None}
    raw_lmdb(tmp_path / "data.lmdb", {b"0": pickle.dumps(Data(**values))})
    with pytest.raises(StageError, match=message):
        open_is2re(tmp_path / "data.lmdb")[0]


def test_missing_targets_are_nan_not_zero(tmp_path):
    values = {key: value for key, value in attributes().items() if key not in ("y_relaxed", "y_init", "pos_relaxed")}
    raw_lmdb(tmp_path / "data.lmdb", {b"0": pickle.dumps(Data(**values))})
    record = open_is2re(tmp_path / "data.lmdb")[0]
    assert np.isnan(record.y_relaxed) and np.isnan(record.y_init) and record.pos_relaxed is None


def test_damaged_files_are_refused_in_one_line(tmp_path):
    write_is2re(tmp_path / "good.lmdb", records(20))
    whole = (tmp_path / "good.lmdb").read_bytes()
    (tmp_path / "cut.lmdb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match="truncated"):
        open_is2re(tmp_path / "cut.lmdb")
    (tmp_path / "text.lmdb").write_bytes(b"this is no database" * 1000)
    with pytest.raises(StageError, match="not a readable LMDB"):
        open_is2re(tmp_path / "text.lmdb")
    raw_lmdb(tmp_path / "pickle.lmdb", {b"0": pickle.dumps(Data(**attributes()))[:-200]})
    with pytest.raises(StageError, match="key 0: not a readable record"):
        open_is2re(tmp_path / "pickle.lmdb")[0]
    raw_lmdb(tmp_path / "empty.lmdb", {b"note": b"x"})
    with pytest.raises(StageError, match="holds no record"):
        open_is2re(tmp_path / "empty.lmdb")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StageError, match=r"without \*.lmdb"):
        open_is2re(tmp_path / "folder")
    with pytest.raises(StageError, match=r"dimenet.lmdb_path: no file at .*nowhere\.lmdb: .*IS2RE LMDB"):
        open_is2re(tmp_path / "nowhere.lmdb")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_is2re(tmp_path / "data.lmdb", records(2))
    before = (tmp_path / "data.lmdb").read_bytes()

    def broken():
        yield records(1)[0]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_is2re(tmp_path / "data.lmdb", broken())
    assert (tmp_path / "data.lmdb").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["data.lmdb"]
