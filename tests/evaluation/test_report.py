"""Products of an evaluation: figures, page, comparison; texts from files stay texts."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from html.parser import HTMLParser
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import simple_judges as simple
from matplotlib.image import imread
from undrawn import leave_figures_undrawn

from evaluation import comparison, decisions, evaluate, figures, report
from pipeline import plotting
from pipeline.files import write_json
from pipeline.loading import load_config

HOSTILE = "<img src=x onerror=alert(1)>&'\""

TRUTH = {
    "n": 2,
    "mae_ev": 0.25,
    "mean_error_ev": 0.1,
    "spearman": 1.0,
    "source": "truth.db",
    "potential": {"name": "sevennet-0", "n": 2, "mae_ev": 0.5, "mean_error_ev": -0.5, "spearman": 1.0},
    "rows": [
        {"name": "a", "delta_e_dft_ev": 0.1, "delta_e_dimenet_ev": 0.3, "std_ev": 0.1, "delta_e_potential_ev": -0.4},
        {"name": "b", "delta_e_dft_ev": 1.8, "delta_e_dimenet_ev": 1.5, "std_ev": 0.2, "delta_e_potential_ev": float("nan")},
    ],
}


def contents(folder) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """A complete run of ours, one control and an external set (bulk crystals among them), with names that try to be markup."""
    root = tmp_path_factory.mktemp("run with spaces é")
    simple.write_cifs(
        root / "ours", {"gen_00000": simple.sheet(), "gen_00001": simple.sheet("WS2"), "gen_00002": simple.sheet(kind="1T")}
    )
    (root / "ours" / "<b>x&.cif").write_text("data_x\n")
    simple.write_cifs(root / "random", {"r0": simple.sheet("NbSe2"), "r1": simple.graphene_sheet()})
    simple.write_cifs(root / "theirs", {"bulk": simple.bulk_copper(), "t0": simple.graphene_sheet()})
    cfg = load_config(
        None,
        [
            f"evaluation.output_dir='{root / 'results'}'",
            f"evaluation.random_cif_dir='{root / 'random'}'",
            f"external.output_dir='{root / 'results_external'}'",
            "external.name='their <i>set</i>'",
            "evaluation.bootstrap=50",
        ],
    )
    settings, results, theirs_dir = cfg.evaluation, root / "results", root / "results_external"
    ours = evaluate.evaluate(root / "ours", simple.judges(), settings, results, "ours")
    random = evaluate.evaluate(root / "random", simple.judges(), settings, results / "controls", "random decoration")
    controls = {"unguided": "not run: no folder", "random decoration": random}
    report.write_report(ours, cfg, results, controls=controls, truth=TRUTH, her_provenance={"x": HOSTILE}, script="test.py")
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_undrawn(patch)  # those of ours are looked at
        comparison.update_comparison(cfg, results)
        theirs = evaluate.evaluate(root / "theirs", simple.judges(), settings, theirs_dir, cfg.external.name)
        report.write_report(theirs, cfg, theirs_dir, truth=None, script="evaluate_external.py")
        ours_before = contents(results)
        comparison.update_comparison(cfg, theirs_dir)
    assert contents(results) == ours_before, "stage 6 writes only into its own folder"
    content = comparison.update_comparison(cfg, results)
    return root, cfg, ours, content


@pytest.mark.parametrize(
    "name",
    ["her_performance.png", "stability_curve.png", "generated_structures.png", "funnel.png", "truth_parity.png", "comparison.png"],
)
def test_figures_show_something(products, name):
    path = products[0] / "results" / name
    image = imread(path)
    assert image.shape[0] > 300 and image.shape[1] > 400
    assert np.asarray(image)[..., :3].std() > 0.02
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_same_data_give_the_same_pdf(products, tmp_path):
    _, cfg, ours, _ = products
    for name in ("one", "two"):
        figures.funnel(ours, cfg.evaluation, tmp_path / f"{name}.png")
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "two.pdf").read_bytes()


def test_limits_hold_every_value_up_to_the_largest():
    values = np.array([-1.7, np.nan, 2.6])
    low, high = figures.padded_limits(values, -0.6, 0.6, 4.0)
    assert low == pytest.approx(-1.915) and high == pytest.approx(2.815)
    assert figures.padded_limits(np.array([-9.0, 0.2]), -0.6, 0.6, 4.0)[0] == -4.0
    assert figures.padded_limits(np.array([np.nan]), -1.0, 1.0, 4.0) == pytest.approx((-1.1, 1.1))


def test_values_off_scale_are_arrows_with_their_number():
    fig, axis = plt.subplots()
    marked = figures.mark_off_scale(axis, np.arange(4), np.array([-9.04, 0.0, np.nan, 7.5]), -4.0, 4.0, "black")
    texts = {text.get_text(): text.xy for text in axis.texts}
    plt.close(fig)
    assert marked == 2 and texts == {"-9.0": (0, -4.0), "7.5": (3, 4.0)}


def test_extreme_values_and_corrected_ones_are_drawn(products, tmp_path, monkeypatch):
    """The figure holds the corrected values too, and every value is a point within the axes or an arrow."""
    _, cfg, ours, _ = products
    at_rest = {"h_desorbed": False, "h_changes_sheet": False, "h_relax_converged": True}
    rows = [dataclasses.replace(row, delta_g_h_dft_ev=np.nan, **at_rest) for row in ours.rows]
    for row, value in zip(rows, (-9.0, -1.7, 2.6, 0.0), strict=True):
        row.delta_g_h_ev, row.delta_g_h_std_ev = value, 0.1
        row.delta_g_h_corrected_ev, row.delta_g_h_corrected_std_ev = value + 0.2, 0.3
        decisions.choose_delta_g(row)
    seen = []
    monkeypatch.setattr(plotting, "save", lambda fig, path: seen.append(fig))
    figures.her_performance(dataclasses.replace(ours, rows=rows), cfg.evaluation, tmp_path / "x.png")
    left, right = seen[0].axes
    assert [text.get_text() for text in left.texts] == ["-9.0", "-8.8"]
    assert [text.get_text() for text in right.texts] == ["-8.8"], "the volcano has the value of the best judge"
    assert right.get_ylim()[0] == -12.0
    points = {tuple(np.round(xy, 2)) for line in right.lines if line.get_marker() == "v" for xy in line.get_xydata()}
    assert points == {(-1.5, -12.0), (2.8, -12.0)}, "what lies below 1e-12 stands on the edge, what lies beyond is an arrow alone"
    bars = [path.vertices for collection in right.collections for path in collection.get_paths()]
    assert any(np.allclose(bar[:, 0], [-0.1, 0.5]) for bar in bars), "0.2 ± 0.3 eV"
    low, high = left.get_ylim()
    assert low == -4.0 and high > 2.8 + 0.3
    assert left.get_legend_handles_labels()[1][-1].startswith("potential, corrected")
    assert "crosses" not in right.get_title() and not any(line.get_marker() == "x" for line in right.lines)


def test_candidates_whose_h_is_not_at_rest_are_crosses_on_the_volcano(products, tmp_path, monkeypatch):
    _, cfg, ours, _ = products
    rows = [dataclasses.replace(row, delta_g_h_dft_ev=np.nan, h_desorbed=False, h_changes_sheet=False) for row in ours.rows]
    for row, value in zip(rows, (-0.3, 0.05, 0.2, 0.4), strict=True):
        row.delta_g_h_corrected_ev, row.delta_g_h_corrected_std_ev, row.h_relax_converged = value, 0.1, True
        decisions.choose_delta_g(row)
    rows[1].h_changes_sheet, rows[3].h_relax_converged = True, False
    seen = []
    monkeypatch.setattr(plotting, "save", lambda fig, path: seen.append(fig))
    figures.her_performance(dataclasses.replace(ours, rows=rows), cfg.evaluation, tmp_path / "x.png")
    right = seen[0].axes[1]
    drawn = {m: [x for line in right.lines if line.get_marker() == m for x in np.round(line.get_xdata(), 2)] for m in "xD"}
    assert sorted(drawn["x"]) == [0.05, 0.4] and set(drawn["D"]) == {-0.3, 0.2}
    assert "crosses: H not at rest (2)" in right.get_title()


class Page(HTMLParser):
    """Collects tags, links and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.ids += [values["id"]] if "id" in values else []
        assert not any(name.startswith("on") for name in values)

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_self_contained_and_names_stay_text(products):
    from urllib.parse import unquote

    root = products[0]
    source = (root / "results" / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(source)
    text = " ".join(page.text)
    assert all(src.startswith("data:image/png;base64,") for src in page.sources) and len(page.sources) >= 6
    assert "b" not in page.tags and "i" not in page.tags
    assert "<b>x&" in text and "their <i>set</i>" in text and HOSTILE.replace('"', '\\"') in text
    assert not re.search(r"https?://", source)
    assert len([link for link in page.links if link.endswith(".cif")]) == 4
    assert len([link for link in page.links if link.endswith(".pdf")]) >= 6
    for link in page.links:
        if link.startswith("#"):
            assert unquote(link[1:]) in page.ids, "a link within the page has a place"
        else:
            assert (root / "results" / unquote(link)).is_file()
    for expected in (
        "MAE 0.25 eV",
        "unique, novel",
        "How far to trust",
        "0.05",
        "scoring of the earlier public baseline",
        "rank there",
    ):
        assert expected in text


def test_report_json_has_the_fixed_keys(products):
    root, _, ours, _ = products
    content = json.loads((root / "results" / "report.json").read_text(encoding="utf-8"))
    assert {"summary", "metrics", "candidates", "truth", "controls", "provenance", "comparison"} <= set(content)
    assert content["metrics"]["hit_rate"]["n"] == len(ours.rows) == 4
    assert content["truth"]["mae_ev"] == 0.25
    assert set(content["structures"]) == {"gen_00000", "gen_00001", "gen_00002"}
    assert any("4 files were judged" in line for line in content["summary"])
    external = json.loads((root / "results_external" / "report.json").read_text(encoding="utf-8"))
    assert external["bulk"]["n"] == 1 and any("bulk crystals" in line for line in external["summary"])
    assert any("unverified" in line for line in external["summary"])
    assert {row["id"]: row["verdict"] for row in external["legacy"]["rows"]}["bulk"] == "not 2D"
    assert any("favourites" in line and "1 not 2D" in line for line in external["summary"])
    assert all(row["legacy_score_composite"] is not None for row in external["candidates"])


def test_comparison_lists_every_set_in_both_folders(products):
    root = products[0]
    for folder in ("results", "results_external"):
        with (root / folder / "comparison.csv").open(encoding="utf-8") as handle:
            rows = {row["set"]: row for row in csv.DictReader(handle)}
        assert list(rows) == ["ours", "unguided", "random decoration", "known", "their <i>set</i>"]
        assert rows["unguided"]["hit_rate"] == "" and rows["unguided"]["note"].startswith("not run")
        assert float(rows["ours"]["rate_valid"]) == pytest.approx(0.75) and rows["ours"]["rate_valid_n"] == "4"
        assert "rate_valid" in rows["random decoration"]["better_than_ours_in"]


def test_sets_of_other_judges_are_not_compared(products, tmp_path, undrawn):
    root, cfg, _, _ = products
    path = root / "results_external" / "report.json"
    saved = path.read_text(encoding="utf-8")
    content = json.loads(saved)
    content["provenance"]["judges"] = {"potential": {"name": "another"}}
    content["provenance"]["created_utc"] = "2000-01-01T00:00:00Z"
    write_json(path, content)
    try:
        compared = comparison.update_comparison(cfg, cfg.evaluation.output_dir)
    finally:
        path.write_text(saved, encoding="utf-8")
        comparison.update_comparison(cfg, cfg.evaluation.output_dir)
    assert compared["sets"][cfg.external.name]["metrics"] is None
    assert "other judges" in compared["sets"][cfg.external.name]["note"] and compared["sets"]["ours"]["metrics"]


def test_external_set_that_is_the_random_control_is_called_so(products, monkeypatch, undrawn):
    root, cfg, _, _ = products
    same = load_config(
        None,
        [
            f"evaluation.output_dir='{cfg.evaluation.output_dir}'",
            f"evaluation.random_cif_dir='{root / 'theirs'}'",
            f"external.output_dir='{cfg.external.output_dir}'",
            "external.name='their <i>set</i>'",
            "evaluation.bootstrap=50",
        ],
    )
    drawn = {}
    monkeypatch.setattr(figures, "comparison", lambda sets, path, note: drawn.update(sets=list(sets), note=note))
    content = comparison.update_comparison(same, root / "results_external")
    assert "random-decoration control" in content["sets"][cfg.external.name]["note"]
    assert cfg.external.name not in drawn["sets"] and drawn["note"].count("random-decoration control") == 1
    assert cfg.external.name not in content["verdicts"] and content["sets"][cfg.external.name]["same_as"] == "random decoration"
    with (root / "results_external" / "comparison.csv").open(encoding="utf-8") as handle:
        (row,) = [row for row in csv.DictReader(handle) if row["set"] == cfg.external.name]
    assert {name for name, cell in row.items() if cell} == {"set", "note"}
    page = (root / "results_external" / "report.html").read_text(encoding="utf-8")
    assert page.count("random-decoration control, see there") == 1
    monkeypatch.undo()
    compared = comparison.update_comparison(cfg, root / "results_external")
    assert list(comparison.compared_sets(compared)) == list(compared["sets"])


def test_our_own_files_as_an_external_set_are_called_so(products, undrawn):
    root, cfg, _, _ = products
    path = root / "results_external" / "report.json"
    saved = path.read_text(encoding="utf-8")
    content = json.loads(saved)
    ours = json.loads((root / "results" / "report.json").read_text(encoding="utf-8"))
    content["provenance"]["cif_dir_sha256"] = ours["provenance"]["cif_dir_sha256"]
    write_json(path, content)
    try:
        found = comparison.update_comparison(cfg, cfg.evaluation.output_dir)["sets"][cfg.external.name]
    finally:
        path.write_text(saved, encoding="utf-8")
        comparison.update_comparison(cfg, cfg.evaluation.output_dir)
    assert found["same_as"] == "ours" and "set of ours" in found["note"]


@pytest.mark.parametrize(("setting", "value", "is_compared"), [("relaxed_dir", "elsewhere", True), ("judged_before", [], True),
                                                                ("max_steps", 7, False)])  # fmt: skip
def test_sets_whose_answers_were_kept_elsewhere_are_compared(products, undrawn, setting, value, is_compared):
    root, cfg, _, _ = products
    path = root / "results_external" / "report.json"
    saved = path.read_text(encoding="utf-8")
    content = json.loads(saved)
    content["provenance"]["settings"][setting] = value
    write_json(path, content)
    try:
        found = comparison.update_comparison(cfg, cfg.evaluation.output_dir)["sets"]
    finally:
        path.write_text(saved, encoding="utf-8")
        comparison.update_comparison(cfg, cfg.evaluation.output_dir)
    assert bool(found["ours"]["metrics"] and found[cfg.external.name]["metrics"]) is is_compared


def test_best_are_hits_before_scores(products):
    ours = products[2]
    ranked = decisions.rank(ours.rows, 8)
    assert {row.id for row in ranked} == {"gen_00000", "gen_00001", "gen_00002"}
    assert len(decisions.rank(ours.rows, 1)) == 1


def test_funnel_by_hand(products):
    _, cfg, ours, _ = products
    counts = list(figures.funnel_counts(ours, cfg.evaluation).values())
    assert counts == [4, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0], "ΔG_H of the corrected potential, the best judge, is 0.69 eV"
    rows = [dataclasses.replace(row, hit=row.id == "gen_00001") for row in ours.rows]
    assert list(figures.funnel_counts(dataclasses.replace(ours, rows=rows), cfg.evaluation).values())[-1] == 1


def test_nothing_to_draw_is_drawn_as_such(tmp_path):
    folder = tmp_path / "cifs"
    folder.mkdir()
    (folder / "broken.cif").write_text("data_x\n")
    cfg = load_config(None, [f"evaluation.output_dir={tmp_path / 'r'}", f"external.output_dir={tmp_path / 'e'}"])
    ours = evaluate.evaluate(folder, simple.judges(), cfg.evaluation, tmp_path / "r", "ours")
    content = report.write_report(ours, cfg, tmp_path / "r", script="test.py")
    comparison.update_comparison(cfg, tmp_path / "r")
    assert content["metrics"]["mae_delta_g_ev"]["value"] is None
    assert (tmp_path / "r" / "report.html").stat().st_size > 10_000


def test_a_large_set_has_its_best_thousand_in_the_report_and_figures_that_are_drawn_in_time(products, tmp_path, monkeypatch):
    """Values beyond every axis among them, whose arrows would cover the figure."""
    _, cfg, ours, _ = products
    first, rng = ours.rows[1], np.random.default_rng(0)
    rows = [
        dataclasses.replace(first, id=f"m{k:05d}", delta_g_ev=9 * x, e_above_hull_ev=8 * y, p_hit=p, hit=False)
        for k, (x, y, p) in enumerate(rng.normal(size=(5000, 3)))
    ]
    many = dataclasses.replace(ours, rows=rows, structures={row.id: ours.structures[first.id] for row in rows})
    monkeypatch.setattr(plotting, "save", lambda fig, path: figures_of.update({path.name: fig}))
    figures_of: dict[str, Any] = {}
    content = report.write_report(many, cfg, tmp_path, script="test.py")
    best = sorted(row.id for row in sorted(rows, key=lambda row: (-row.p_hit, row.id))[: report.MOST_ROWS])
    assert [row["id"] for row in content["candidates"]] == list(content["structures"]) == best
    assert content["n_candidates"] == 5000 and content["funnel"]["CIFs"] == 5000
    left, right = figures_of["her_performance.png"].axes
    assert len(left.get_xticks()) == figures.MOST_DRAWN and "the best 100 of the 5000 of 5000" in left.get_title()
    curve, points = (axis.lines for axis in figures_of["stability_curve.png"].axes)
    hull = sorted(row.e_above_hull_ev for row in rows)
    drawn = dict(zip(curve[-1].get_xdata(), curve[-1].get_ydata(), strict=True))
    assert len(drawn) < 1100 and all(drawn[hull[k]] == (k + 1) / 5000 for k in (0, 4999))
    assert max(len(axis.texts) for fig in figures_of.values() for axis in fig.axes) < 4 * figures.MOST_ARROWS
