"""CIF files with odd names, odd kinds and no permission: each is a row of the table, and each name stays a name."""

from __future__ import annotations

import csv
import html
import os
import signal
from pathlib import Path

import pytest
import simple_judges as simple
from corpus import GOOD, SETTINGS, judge

from crystals import matching
from evaluation import comparison, evaluate, report, result_files
from pipeline.loading import load_config

NAMES = [
    "two words.cif",
    "MoS\u2082 \u00e9 \u4e8c.cif",
    "\u202egnp.cif",
    'it\'s "quoted".cif',
    "<script>alert(1)<script>.cif",
    '"><img src=x onerror=alert(1)>.cif',
    "&amp;.cif",
    "..cif.cif",
    "...cif",
    "%2e%2e%2fetc.cif",
    "-rf.cif",
    "$(touch x).cif",
    "a;b,c\td.cif",
    "back\\slash.cif",
    "=1+1.cif",
    "{id}.CIF",
    "nan.cif",
    "x" * 240 + ".cif",
]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """One run over good sheets with odd names."""
    root = tmp_path_factory.mktemp("names")
    (root / "cifs").mkdir()
    for k, name in enumerate(NAMES):
        (root / "cifs" / name).write_text(GOOD.replace("3.18", f"{3.18 + 0.001 * k:.3f}"), encoding="utf-8")
    overrides = [f"evaluation.output_dir={root / 'out'}", f"external.output_dir={root / 'theirs'}", "evaluation.bootstrap=10"]
    cfg = load_config(None, overrides)
    evaluation = evaluate.evaluate(root / "cifs", simple.judges(), cfg.evaluation, root / "out", "ours")
    report.write_report(evaluation, cfg, root / "out", truth=None, script="test.py")
    comparison.update_comparison(cfg, root / "out")
    return root, evaluation


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_stay_names(named, name):
    root, evaluation = named
    (row,) = [row for row in evaluation.rows if row.source_file == name]
    assert row.status == "ok" and row.valid and row.id == Path(name).stem and row.id in evaluation.structures
    with (root / "out" / "metrics.csv").open(encoding="utf-8", newline="") as handle:
        files = [line["source_file"].removeprefix("'") for line in csv.DictReader(handle)]
    assert files.count(name) == 1
    page = (root / "out" / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<script>alert" not in page
    assert sorted(p.name for p in root.iterdir()) == ["cifs", "out"]


def test_names_survive_in_the_structures(named):
    from ase.io import read

    root, evaluation = named
    frames = read(root / "out" / "relaxed.extxyz", ":", format="extxyz")
    assert len(frames) == len(NAMES)
    plain_ids = {Path(name).stem for name in NAMES if not set(name) & set('\t\\"')}
    assert plain_ids <= {str(frame.info["id"]) for frame in frames}


def test_page_shows_every_name(named):
    page = html.unescape((named[0] / "out" / "report.html").read_text(encoding="utf-8"))
    assert [name for name in NAMES if Path(name).stem[:30] not in page] == []


def run_folder(tmp_path, judges=None):
    return evaluate.evaluate(tmp_path / "cifs", judges or simple.judges(), SETTINGS, tmp_path / "out", "theirs")


@pytest.fixture
def folder(tmp_path):
    """A folder with one good CIF, to which each test adds a bad neighbour."""
    (tmp_path / "cifs").mkdir()
    (tmp_path / "cifs" / "good.cif").write_text(GOOD)
    return tmp_path / "cifs"


def rows_of(tmp_path):
    rows = {row.id: row for row in run_folder(tmp_path).rows}
    assert rows["good"].status == "ok"
    return rows


def test_a_directory_is_a_row(tmp_path, folder):
    (folder / "x.cif").mkdir()
    (folder / "x.cif" / "inside.cif").write_text(GOOD)
    rows = rows_of(tmp_path)
    assert len(rows) == 2 and rows["x"].status == "unreadable: not a regular file"


def test_symlinks_are_followed_and_dangling_ones_are_rows(tmp_path, folder):
    (tmp_path / "elsewhere.txt").write_text(GOOD)
    (folder / "link.cif").symlink_to(tmp_path / "elsewhere.txt")
    (folder / "dangling.cif").symlink_to(tmp_path / "nowhere")
    (folder / "loop.cif").symlink_to(folder / "loop.cif")
    (folder / "up.cif").symlink_to("..")
    rows = rows_of(tmp_path)
    assert len(rows) == 5 and rows["link"].status == "ok" and rows["link"].duplicate_of == "good"
    assert {rows[name].status for name in ("dangling", "loop", "up")} == {"unreadable: not a regular file"}


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_file_that_cannot_be_opened_is_a_row(tmp_path, folder, monkeypatch, error):
    (folder / "locked.cif").write_text(GOOD)
    opened = Path.open

    def refusing(path, *arguments, **options):
        if path.name == "locked.cif":
            raise error
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    rows = rows_of(tmp_path)
    assert rows["locked"].status == f"unreadable: cannot be opened ({error.strerror})"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is locked for the superuser")
def test_a_locked_file_is_a_row(tmp_path, folder):
    (folder / "locked.cif").write_text(GOOD)
    (folder / "locked.cif").chmod(0)
    assert "Permission denied" in rows_of(tmp_path)["locked"].status


def test_other_files_are_no_candidates(tmp_path, folder):
    for name in ("notes.txt", "x.cif.bak", "x.cif~", ".cif", "cif"):
        (folder / name).write_text(GOOD)
    assert list(rows_of(tmp_path)) == ["good"]


def test_same_stem_in_both_cases_stays_apart(tmp_path, folder):
    (folder / "x.cif").write_text(GOOD)
    (folder / "x.CIF").write_text(GOOD.replace("3.18", "3.2"))
    if len(list(folder.iterdir())) == 3:  # file systems that tell capitals apart
        assert sorted(rows_of(tmp_path)) == ["good", "x.CIF", "x.cif"]
    else:
        assert len(rows_of(tmp_path)) == 2


def test_ids_are_never_shared(tmp_path):
    paths = [tmp_path / name for name in ("x.cif", "x.CIF", "x.cif.cif")]
    assert len(set(evaluate.candidate_ids(paths).values())) == 3


def test_a_name_that_is_no_utf8(tmp_path, folder):
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.cif")).write_text(GOOD)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    assert len(run_folder(tmp_path).rows) == 2


def test_a_line_break_in_a_name(tmp_path, folder):
    from ase.io import read

    (folder / "line\nbreak.cif").write_text(GOOD.replace("3.18", "3.2"))
    assert rows_of(tmp_path)["line\nbreak"].status == "ok"
    try:
        frames = read(tmp_path / "out" / "relaxed.extxyz", ":", format="extxyz")
    except Exception as error:
        raise AssertionError("relaxed.extxyz cannot be read") from error
    assert len(frames) == 2


def test_no_cell_of_the_table_is_a_formula():
    assert not result_files.table_cell("-2+3+cmd|' /C calc'!A0").startswith("-")


class StillWaiting(Exception):
    """Raised by the alarm; no OSError, which a reader may take for a file that cannot be opened."""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_a_row(tmp_path, folder):
    os.mkfifo(folder / "pipe.cif")

    def give_up(*_):
        raise StillWaiting

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(3)
    try:
        rows = rows_of(tmp_path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert rows["pipe"].status == "unreadable: not a regular file"


def test_pipes_and_devices_are_refused_when_they_are_read(tmp_path):
    for name in ("/dev/null", "/dev/zero"):
        path = tmp_path / f"{Path(name).name}.cif"
        path.symlink_to(name)
        assert judge(path).status == "unreadable: not a regular file"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_text("no database"), id="text"),
        pytest.param(lambda path: path.mkdir(), id="folder"),
    ],
)
def test_a_training_set_that_is_no_database_leaves_novelty_open(tmp_path, folder, make):
    """Whatever is wrong with it, each row says so and nothing counts as new."""
    make(tmp_path / "train.db")
    judges = simple.judges(training_structures=matching.KnownStructures(tmp_path / "train.db"))
    (row,) = run_folder(tmp_path, judges).rows
    assert row.e_above_hull_ev == pytest.approx(0.05)
    assert row.novel is None and row.metastable_sun is None and row.status.startswith("novelty: ")
