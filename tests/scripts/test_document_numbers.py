"""The numbers, the links, the names of files and the length of README.md and the other texts."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from pipeline import judge_table
from pipeline.files import PROJECT_DIR
from pipeline.settings import Config, section_fields
from scripts import document_numbers

TEXTS = [*document_numbers.documents(), *(PROJECT_DIR / name for name in ("CONTRIBUTING.md", "CHANGELOG.md"))]
TEXT_IDS = [path.name for path in TEXTS]
LINK = re.compile(r"\]\(([^)\s]+)\)")
ROOMS = "pipeline|crystals|networks|generation|energetics|evaluation|scripts|tests|data|weights"
NAMED_FILE = re.compile(rf"`((?:{ROOMS})/[\w./-]+\.\w+)`")
NAMED_CODE = re.compile(r"`([\w/]+\.py)`, ((?:`[\w.]+`(?:, | and )?)+)")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
MOST_WORDS = 1500


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a text, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_numbers_are_those_of_the_files(capsys):
    assert document_numbers.main(["--check"]) == 0, capsys.readouterr()


def test_every_table_stands_in_a_text():
    names = {mark["name"] for path in document_numbers.documents() for mark in document_numbers.MARK.finditer(path.read_text())}
    assert set(document_numbers.TABLES) <= names
    assert len(names) > len(document_numbers.TABLES)


def test_no_mark_is_left_open():
    for path in document_numbers.documents():
        text = path.read_text(encoding="utf-8")
        marks = list(document_numbers.MARK.finditer(text))
        assert len(marks) == text.count("<!-- numbers:") == text.count("<!-- end -->"), path.name
        assert all("<!--" not in mark["text"] and mark["text"].strip() for mark in marks), path.name


def test_no_line_of_prose_begins_with_a_mark():
    """Markdown takes such a line for HTML, and the paragraph would end there."""
    for path in document_numbers.documents():
        assert not re.findall(r"^[ >*-]*<!-- numbers: [^>]*;.*", path.read_text(encoding="utf-8"), re.MULTILINE), path.name


def test_a_stale_text_is_found_and_rewritten(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "card.json").write_text('{"counts": {"train": 2004, "share": 0.195, "rows": [1, 2, 3], "none": null}}')
    stale = "<!-- numbers: card.json; counts/train -->7<!-- end --> of <!-- numbers: card.json; counts/share; .1% --><!-- end -->"
    (tmp_path / "README.md").write_text(stale)
    monkeypatch.setattr(document_numbers, "PROJECT_DIR", tmp_path)
    document_numbers.load.cache_clear()
    try:
        assert document_numbers.main(["--check"]) == 1
        assert "README.md" in capsys.readouterr().out and (tmp_path / "README.md").read_text() == stale
        assert document_numbers.main([]) == 0
        assert COMMENT.sub("", (tmp_path / "README.md").read_text()) == "2,004 of 19.5 %"
        assert document_numbers.main(["--check"]) == 0
        assert document_numbers.text_of("card.json; counts/rows") == "3"
        assert document_numbers.text_of("card.json; counts/none") == document_numbers.MISSING
    finally:
        document_numbers.load.cache_clear()


@pytest.mark.parametrize("name", ["no such table", "missing.json; counts", "weights/dimenet.json; counts/none", "a; b; c; d"])
def test_a_mark_that_names_nothing_is_an_error(name):
    with pytest.raises(document_numbers.NumbersError):
        document_numbers.text_of(name)


def test_shares_are_of_all_and_means_name_their_number():
    metric = {"value": 0.5, "low": 0.25, "high": 0.75, "n_ok": 3, "n": 4}
    assert document_numbers.interval(metric, ".0%") == "50 % [25, 75]"
    assert document_numbers.interval(metric, ".2f") == "0.50 [0.25, 0.75] (n 3)"
    assert document_numbers.interval({**metric, "value": None}, ".2f") == document_numbers.MISSING


def test_the_readme_is_short():
    words = COMMENT.sub("", (PROJECT_DIR / "README.md").read_text(encoding="utf-8")).split()
    assert len(words) <= MOST_WORDS


@pytest.mark.parametrize("path", TEXTS, ids=TEXT_IDS)
def test_links_lead_to_files_and_headings(path):
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("path", TEXTS, ids=TEXT_IDS)
def test_files_that_the_texts_name_exist(path):
    missing = [name for name in NAMED_FILE.findall(path.read_text(encoding="utf-8")) if not (PROJECT_DIR / name).exists()]
    assert not [name for name in missing if "mattersim" not in name and "NAME" not in name]


def named_code(text: str) -> list[tuple[str, str]]:
    """(file, name) of every function and class that a text names after its file."""
    return [(m[1], part) for m in NAMED_CODE.finditer(text) for name in re.findall(r"`([\w.]+)`", m[2]) for part in name.split(".")]


def test_the_method_names_functions_that_exist():
    text = " ".join((PROJECT_DIR / "docs/method.md").read_text(encoding="utf-8").split())
    found = named_code(text)
    assert len(found) > 20
    for file, name in found:
        assert re.search(rf"(def|class) {name}\b", (PROJECT_DIR / file).read_text(encoding="utf-8")), f"{file}: {name}"


def test_the_tree_of_the_readme_leads_to_the_formulas():
    text = (PROJECT_DIR / "README.md").read_text(encoding="utf-8")
    places = re.findall(r"\b(process|loss|sampling|adsorption_energy)\.(\w+)", text.split("## Where things are")[1])
    assert {module for module, _ in places} == {"process", "loss", "sampling", "adsorption_energy"}
    for module, name in places:
        package = "energetics" if module == "adsorption_energy" else "generation"
        assert f"def {name}(" in (PROJECT_DIR / package / f"{module}.py").read_text(encoding="utf-8"), name


@pytest.mark.parametrize("path", TEXTS, ids=TEXT_IDS)
def test_settings_that_the_texts_name_exist(path):
    sections = {field.name: {f.name for f in section_fields(field.name)} for field in dataclasses.fields(Config)}
    text = COMMENT.sub("", path.read_text(encoding="utf-8"))
    named = re.findall(rf"(?<![\w/.])({'|'.join(sections)})\.([a-z_]+)(?![\w.(])", text)
    files = {"py", "json", "pth", "db", "csv"}
    assert not [f"{section}.{key}" for section, key in named if key not in sections[section] | files]


def test_the_guide_to_extending_names_functions_that_exist():
    text = " ".join((PROJECT_DIR / "docs/extending.md").read_text(encoding="utf-8").split())
    found = re.findall(r"`([\w.]+)`(?: and `([\w.]+)`)? in `([\w/]+\.py)`", text)
    assert len(found) > 6
    for *names, file in found:
        source = (PROJECT_DIR / file).read_text(encoding="utf-8")
        for name in filter(None, ".".join(names).split(".")):
            assert re.search(rf"\b(def |class )?{name}\b", source), f"{file}: {name}"


def judged_set(folder, kinds, **report):
    """Write the files of a judged set that the tables read, with structures of the given kinds."""
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("id,dimensionality\n" + "".join(f"x{k},{kind}\n" for k, kind in enumerate(kinds)))
    (folder / "report.json").write_text(json.dumps(report))


def metrics_of(value, n):
    names = {key for _, key, _ in document_numbers.COMPARISON} - {document_numbers.NO_SHEET}
    return {name: {"value": value, "low": value, "high": value, "n_ok": n, "n": n} for name in names}


def test_a_set_without_sheets_has_no_metric_of_sheets(tmp_path, monkeypatch):
    """Its shares of valid sheets and hits are 0 of all; what bulk crystals have is marked; a second random set is no column."""
    controls = {"unguided": {"metrics": None}, "random decoration": {"metrics": metrics_of(0.25, 2)}}
    judged_set(tmp_path / "results", ["2D", "2D: several pieces"], metrics=metrics_of(0.5, 2), controls=controls)
    judged_set(tmp_path / "results" / "controls" / "random_decoration", ["2D", "chain"])
    bulk = {"rate_metastable": {"value": 0.2, "low": 0.1, "high": 0.3, "n_ok": 4, "n": 4}}
    kinds = ["bulk: not 2D"] * 3 + ["layered bulk: not 2D", "chain"]
    about = {"label": "baseline", "bulk": {"n": 4, "metrics": bulk}}
    judged_set(tmp_path / "results_external", kinds, metrics=metrics_of(0.0, 1), **about)
    monkeypatch.setattr(document_numbers, "PROJECT_DIR", tmp_path)
    document_numbers.load.cache_clear()
    try:
        lines = [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in document_numbers.TABLES["short comparison"]().split("\n")
        ]
        assert lines[0] == ["", "ours", "random decoration", "baseline"]
        cells = {line[0]: line[1:] for line in lines[2:]}
        assert [cell.split(" [")[0] for cell in cells["no sheet (bulk, chain, molecule)"]] == ["0 %", "50 %", "100 %"]
        assert cells["valid"] == ["50 % [50, 50]", "25 % [25, 25]", "0 % [0, 43]"], "Wilson: 1.96² / (5 + 1.96²)"
        assert cells["E_hull ≤ 0.1 eV/atom"][-1] == "20 % [10, 30] as bulk"
        assert cells["mean abs. ΔG_H, best judge (eV)"] == ["0.50 [0.50, 0.50]", "0.25 [0.25, 0.25]", document_numbers.MISSING]
        (tmp_path / "results_external" / "report.json").write_text(json.dumps({**about, "metrics": metrics_of(0.25, 2)}))
        document_numbers.load.cache_clear()
        assert "baseline" not in document_numbers.TABLES["comparison"]()
    finally:
        document_numbers.load.cache_clear()


def test_the_table_of_judges_has_the_rows_that_the_report_has():
    scores = {"n": 91, "mae_ev": 0.27, "spearman": 0.9}
    old = {"within_1": 0.65, "within_2": 0.9}
    corrected = {"name": "both", **scores, "coverage": old, "family_left_out": scores}
    blind = {**scores, "potential": scores, "potential_corrected": scores}
    truth = {
        **scores,
        "uncorrected": scores,
        "potential": {"name": "one", **scores},
        "potential_corrected": corrected,
        "blind": blind,
    }
    before = judge_table.judges(truth, scores).splitlines()
    assert "| both | DFT, hosts left out | 91 | 0.27 | 0.90 | 65 % | 90 % | – |" in before and len(before) == 11
    coverage = old | {"within_1_interval": [0.55, 0.74], "within_2_interval": [0.82, 0.95]}
    metals = {"n": 3, "mae_ev": 0.5, "spearman": None, "coverage": coverage}
    corrected["chemistry_left_out"] = {**scores, "coverage": coverage, "by_chemistry": {"metal": metals}}
    corrected["by_origin"] = {"unguided generator": {**metals, "n": 5}}
    truth["blind"] = blind | {"potential_corrected": scores | {"by_origin": {"guided generator": {**metals, "n": 7}, "b": metals}}}
    now = judge_table.judges(truth, scores).splitlines()
    assert set(now) - set(before) == {
        "| both | DFT, site chemistries left out | 91 | 0.27 | 0.90 | 65 % [55, 74] | 90 % [82, 95] | – |",
        "| both | of these, H on metal | 3 | 0.50 | – | 65 % [55, 74] | 90 % [82, 95] | – |",
        "| both | of these, unguided generator | 5 | 0.50 | – | 65 % [55, 74] | 90 % [82, 95] | – |",
        "| both | of these, guided generator | 7 | 0.50 | – | 65 % [55, 74] | 90 % [82, 95] | – |",
        "| both | of these, b | 3 | 0.50 | – | 65 % [55, 74] | 90 % [82, 95] | – |",
    }


def test_the_correction_stands_beside_the_potential_alone():
    errors = (("a", 0.1, 0.4), ("a", -0.3, 0.2), ("b", 0.5, -0.25))
    rows = [
        {"origin": name, "delta_e_dft_ev": 1.0, "delta_e_potential_corrected_ev": 1.0 + one, "delta_e_potential_ev": 1.0 + other}
        for name, one, other in errors
    ]
    truth = {"rows": rows, "potential_corrected": {"by_origin": {"a": {}, "b": {}}}}
    assert judge_table.origins(truth).splitlines()[2:] == ["| a | 2 | 0.20 | 0.30 |", "| b | 1 | 0.50 | 0.25 |"]


def test_the_table_of_defects_has_defects_only():
    values = {
        "delta_e_dft_ev": -0.303,
        "delta_e_potential_corrected_ev": 0.1,
        "delta_e_potential_ev": -0.55,
        "delta_e_dimenet_ev": None,
    }
    rows = [{"name": f"sheet {k}", "site": "topS", "origin": "defects and edges", **values} for k in range(2)]
    lines = judge_table.defects({"rows": [*rows, {**rows[0], "origin": "unguided generator"}]}).splitlines()[2:]
    assert lines == [f"| sheet {k} | topS | -0.30 | +0.10 | -0.55 | – |" for k in range(2)]


def test_runs_are_compared_in_a_row_for_each_table():
    own = {"in_both": 3, "verdicts": 33, "verdicts_that_differ": [{}], "delta_g_that_differs": [], "hits_to_expect": [1.6, 1.0]}
    content = {"other": {"tables": {"controls/known/metrics.csv": own, "metrics.csv": own | {"same_files": 2}}}}
    assert judge_table.runs_compared(content).splitlines()[2:] == [
        "| other | generated | 3 | 2 of 3 | 1 of 33 | 0 | 1.60 and 1.00 |",
        f"| other | known sheets | 3 | {document_numbers.MISSING} | 1 of 33 | 0 | 1.60 and 1.00 |",
    ]
