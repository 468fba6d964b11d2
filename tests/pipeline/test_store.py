"""Both layouts of the store: what survives a cut or damaged entry, another identity, a full disk and a killed writer."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.files import PROJECT_DIR
from pipeline.store import FolderStore, LineStore

RECORDS = {f"k{n}": {"value": n / 3, "text": "é" * n, "list": [n, None]} for n in range(4)}


class Lines:
    """One file of lines."""

    name = "lines"

    @staticmethod
    def open(folder, identity=None):
        return LineStore(folder / "store.jsonl", identity)

    @staticmethod
    def last_entry(folder):
        """(file, start, end) of the bytes of the last record."""
        path = folder / "store.jsonl"
        content = path.read_bytes()
        return path, content.rstrip(b"\n").rfind(b"\n") + 1, len(content)

    @staticmethod
    def entry(folder, number):
        """(file, start, end) of the bytes of a record."""
        path = folder / "store.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        start = sum(len(line) for line in lines[:number])
        return path, start, start + len(lines[number])


class Folder:
    """One file per record."""

    name = "folder"

    @staticmethod
    def open(folder, identity=None):
        return FolderStore(folder / "store", identity)

    @classmethod
    def last_entry(cls, folder):
        return cls.entry(folder, len(list((folder / "store").glob("*.json"))) - 1)

    @staticmethod
    def entry(folder, number):
        path = sorted((folder / "store").glob("*.json"))[number]
        return path, 0, len(path.read_bytes())


@pytest.fixture(params=[Lines, Folder], ids=lambda layout: layout.name)
def layout(request):
    return request.param


def filled(layout, folder, identity=None):
    store = layout.open(folder, identity)
    for key, record in RECORDS.items():
        assert store.add(key, record) == record == store[key]
    return store


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("identity", [None, {"version": 1, "model": "ä"}])
def test_records_come_back_in_their_order(layout, tmp_path, identity):
    filled(layout, tmp_path, identity)
    again = layout.open(tmp_path, identity)
    assert dict(again) == RECORDS and list(again) == list(RECORDS) and len(again) == 4
    assert "k1" in again and "none" not in again and again.get("none") is None
    with pytest.raises(KeyError):
        again["none"]


def test_a_record_is_returned_as_it_is_read(layout, tmp_path):
    store = layout.open(tmp_path)
    assert store.add("k", {"pair": (1, 2), "by": {3: "x"}}) == {"pair": [1, 2], "by": {"3": "x"}}
    assert layout.open(tmp_path)["k"] == store["k"]


def test_the_last_record_of_a_key_counts_and_an_equal_one_is_not_written(layout, tmp_path):
    store = filled(layout, tmp_path)
    before = contents(tmp_path)
    store.add("k1", RECORDS["k1"])
    assert contents(tmp_path) == before
    store.add("k1", {"value": 7})
    assert layout.open(tmp_path)["k1"] == {"value": 7} and len(layout.open(tmp_path)) == 4


@pytest.mark.parametrize("identity", [None, {"version": 1}])
def test_the_last_entry_cut_at_every_byte(layout, tmp_path, identity, caplog):
    filled(layout, tmp_path, identity)
    whole = contents(tmp_path)
    path, start, end = layout.last_entry(tmp_path)
    for cut in range(start, end):
        with path.open("rb+") as handle:
            handle.truncate(cut)
        caplog.clear()
        store = layout.open(tmp_path, identity)
        kept = list(store)
        assert kept in (list(RECORDS)[:3], list(RECORDS)), cut
        assert len(caplog.records) <= 1 and all(path.name in r.getMessage() for r in caplog.records)
        if kept == list(RECORDS):  # the record is there, its end of line is not
            assert store["k3"] == RECORDS["k3"] and end - cut <= 1
        store.add("k3", RECORDS["k3"])
        store.add("k4", {"value": 4})
        store = layout.open(tmp_path, identity)
        assert dict(store) == RECORDS | {"k4": {"value": 4}}, cut
        for name in contents(tmp_path).keys() - whole.keys():
            (tmp_path / name).unlink()
        for name, content in whole.items():
            (tmp_path / name).write_bytes(content)


GARBAGE = [b"{", b"[1, 2]", b"\xff\xfe", b"null", b'{"key": [1], "k', b'{"ke', b"", b"\x00" * 40, b"[" * 5000, b"17"]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_damaged_entry_is_dropped_alone_with_one_warning(layout, tmp_path, garbage, caplog):
    filled(layout, tmp_path)
    path, start, end = layout.entry(tmp_path, 1)
    content = path.read_bytes()
    path.write_bytes(content[:start] + garbage + content[end - 1 :])
    before = contents(tmp_path)
    store = layout.open(tmp_path)
    assert dict(store) == {key: record for key, record in RECORDS.items() if key != "k1"}
    list(store)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert path.name in warning and "\n" not in warning and (layout is Folder or "line 2" in warning)
    assert contents(tmp_path) == before, "reading changes nothing"
    store.add("k1", RECORDS["k1"])
    caplog.clear()
    assert dict(layout.open(tmp_path)) == RECORDS and not caplog.records


def test_every_byte_of_a_middle_entry_flipped(layout, tmp_path):
    filled(layout, tmp_path)
    path, start, end = layout.entry(tmp_path, 1)
    content = bytearray(path.read_bytes())
    others = {key: RECORDS[key] for key in ("k0", "k2", "k3")}
    for at in range(start, end - 1):
        damaged = bytearray(content)
        damaged[at] ^= 0x80  # no character of ASCII any more
        path.write_bytes(damaged)
        found = dict(layout.open(tmp_path))
        assert {key: found[key] for key in others} == others, at


def test_an_empty_file_is_no_record(layout, tmp_path):
    filled(layout, tmp_path)
    path, *_ = layout.entry(tmp_path, 0)
    path.write_bytes(b"")
    store = layout.open(tmp_path)
    assert "k0" not in store
    store.add("k0", RECORDS["k0"])
    assert layout.open(tmp_path)["k0"] == RECORDS["k0"]


def test_another_identity_starts_anew_and_says_so(layout, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    filled(layout, tmp_path, {"version": 1})
    other = layout.open(tmp_path, {"version": 2})
    assert not list(other)
    assert len(caplog.records) == 1 and "of other settings or inputs" in caplog.text
    assert dict(layout.open(tmp_path, {"version": 1})) == RECORDS, "nothing is lost before the first record is added"
    for key in RECORDS:
        other.add(key, {"value": 2})
    assert set(layout.open(tmp_path, {"version": 2})) == set(RECORDS)
    assert not list(layout.open(tmp_path, {"version": 1}))


def test_a_damaged_first_line_keeps_the_old_file(tmp_path, caplog):
    filled(Lines, tmp_path, {"version": 1})
    path = tmp_path / "store.jsonl"
    old = b"\x00" + path.read_bytes()[1:]
    path.write_bytes(old)
    store = Lines.open(tmp_path, {"version": 1})
    assert not store and len(caplog.records) == 1 and "line 1" in caplog.text
    store.add("new", {})
    assert (tmp_path / "store.jsonl.damaged").read_bytes() == old and list(Lines.open(tmp_path, {"version": 1})) == ["new"]


def test_a_full_disk_is_named_and_leaves_no_part_of_a_record(layout, tmp_path):
    """The size of a file is limited instead: the kernel refuses to write in the middle of a record, as on a full disk."""
    filled(layout, tmp_path)
    before = contents(tmp_path)
    path, _, end = layout.last_entry(tmp_path)
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom pipeline.store import FolderStore, LineStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))\n"
        "store = LineStore(Path(sys.argv[2])) if sys.argv[1] == 'lines' else FolderStore(Path(sys.argv[2]))\n"
        "try:\n    store.add('big', {'value': 'x' * 5000})\n"
        "except OSError as error:\n    print(error.filename, len(store))\n"
    )
    place = path if layout is Lines else path.parent
    run = subprocess.run(
        [sys.executable, "-c", script, layout.name, str(place), str(end + 1000)], cwd=PROJECT_DIR, capture_output=True, text=True
    )
    name = path if layout is Lines else path.parent / "big.json"
    assert run.stdout == f"{name} 4\n" and not run.stderr
    assert contents(tmp_path) == before


def test_a_read_only_folder_is_read(layout, tmp_path, monkeypatch):
    """Every way of writing is refused, for everybody, root included."""
    filled(layout, tmp_path)
    path, _, end = layout.last_entry(tmp_path)
    with path.open("rb+") as handle:
        handle.truncate(end - 5)

    def refuse(*arguments, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(arguments[0]))

    for owner, name in ((os, "open"), (os, "truncate"), (os, "replace"), (os, "link"), (Path, "write_text"), (Path, "mkdir")):
        monkeypatch.setattr(owner, name, refuse)
    store = layout.open(tmp_path)
    assert list(store) == list(RECORDS)[:3]
    with pytest.raises(PermissionError) as error:
        store.add("k3", RECORDS["k3"])
    assert error.value.filename.startswith(str(tmp_path))
    assert list(store) == list(layout.open(tmp_path)) == list(RECORDS)[:3]


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.05, 0.2])
def test_a_killed_writer_leaves_finished_records_alone(layout, tmp_path, seconds):
    script = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.store import FolderStore, LineStore\n"
        "store = LineStore(Path(sys.argv[2]), {'version': 1}) if sys.argv[1] == 'lines' else "
        "FolderStore(Path(sys.argv[2]), {'version': 1})\n"
        "for k in range(10**6):\n    store.add(f'k{k}', {'value': 'x' * 3000, 'number': k})\n    print(k, flush=True)\n"
    )
    place = tmp_path / ("store.jsonl" if layout is Lines else "store")
    writer = subprocess.Popen(
        [sys.executable, "-c", script, layout.name, str(place)], cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True
    )
    writer.stdout.readline()
    time.sleep(seconds)
    writer.send_signal(signal.SIGKILL)
    said = [0, *(int(line) for line in writer.stdout.read().split("\n")[:-1])]
    writer.wait()
    store = layout.open(tmp_path, {"version": 1})
    assert {f"k{k}" for k in said} <= set(store) and len(store) <= len(said) + 1
    assert all(record == {"value": "x" * 3000, "number": int(key[1:])} for key, record in store.items())
    store.add("after", {})
    assert len(layout.open(tmp_path, {"version": 1})) == len(store)


@pytest.mark.parametrize("entry", [b"{}", b'{"value": 1}', b'{"key": [1]}', b"[]", b'["key", 1]', b'"key"'])
def test_a_line_without_a_key_is_damaged(tmp_path, entry, caplog):
    path = tmp_path / "store.jsonl"
    path.write_bytes(b'{"key": "a"}\n' + entry + b'\n{"key": "b"}\n')
    assert dict(Lines.open(tmp_path)) == {"a": {}, "b": {}} and "line 2" in caplog.text


def test_entries_of_another_form(tmp_path):
    def form():
        return LineStore(tmp_path / "x.jsonl", pack=lambda key, record: [key, record], unpack=lambda entry: (entry[0], entry[1]))

    form().add(3, ["a", "b"])
    assert (tmp_path / "x.jsonl").read_text() == '[3, ["a", "b"]]\n' and dict(form()) == {3: ["a", "b"]}


def test_records_of_other_folders_are_found_and_not_changed(tmp_path):
    FolderStore(tmp_path / "old").add("a", {"value": 1})
    FolderStore(tmp_path / "old").add("b", {"value": "no number"})
    before = contents(tmp_path / "old")
    store = FolderStore(tmp_path / "new", also=[tmp_path / "old"], check=lambda record: float(record["value"]))
    assert store["a"] == {"value": 1} and "b" not in store
    store.add("b", {"value": 2})
    assert dict(store) == {"a": {"value": 1}, "b": {"value": 2}} and contents(tmp_path / "old") == before


@pytest.mark.parametrize("links", [True, False])
def test_records_of_another_folder_are_taken_over_once(tmp_path, monkeypatch, links):
    theirs, own = FolderStore(tmp_path / "theirs", prefix="p_"), FolderStore(tmp_path / "own", prefix="p_")
    for key, record in RECORDS.items():
        theirs.add(key, record)
    own.add("k1", {"value": "own"})
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError(errno.EXDEV, "another file system")))
    assert own.take_over(theirs.folder) == 3 and own.take_over(theirs.folder) == 0
    assert {key: own[key] for key in own} == RECORDS | {"k1": {"value": "own"}}
    own.add("k2", {"value": "changed"})
    assert theirs["k2"] == RECORDS["k2"], "a link is replaced, not written to"


def test_a_claim_is_held_by_one_living_process(tmp_path):
    store = FolderStore(tmp_path)
    assert store.claim("a") and not store.claim("a")
    store.release("a")
    assert store.claim("a")
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    for name, holder in (("dead", child.stdout), ("empty", ""), ("no number", "x"), ("too large", "9" * 30)):
        (tmp_path / f"{name}.lock").write_text(holder)
        assert store.claim(name), name
    assert not list(store) and not list(tmp_path.glob(f"*.{os.getpid()}"))


def test_it_imports_the_standard_library_alone():
    code = (
        "import sys, json, pipeline.store\n"
        "print(json.dumps([n for n in sys.modules if n.split('.')[0] not in sys.stdlib_module_names and n != '__main__']))"
    )
    run = subprocess.run([sys.executable, "-S", "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    assert set(json.loads(run.stdout)) == {"pipeline", "pipeline.store", "pipeline.files", "pipeline.errors"}
