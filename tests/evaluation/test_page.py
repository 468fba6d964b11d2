"""The page as its reader uses it: columns, filters, downloads, single materials, widths, and ten thousand rows."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import ase.io
import numpy as np
import pytest
import simple_judges as simple
from ase.build import make_supercell
from browser import SEARCH, browser, run_in_page, write_large_report
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

import geo_utils
from energetics.sites import adsorption_sites
from evaluation import comparison, evaluate, h_site, known_sheets, page_materials, page_table, report, structure_viewer
from evaluation.candidate import QUANTITIES, CandidateResult
from evaluation.page import write_page
from evaluation.page_words import ABOUT
from pipeline.files import write_json
from pipeline.loading import load_config

FIELDS = {field.name for field in dataclasses.fields(CandidateResult)}


def test_every_field_is_a_column_with_a_title_and_a_meaning():
    assert len(page_table.COLUMNS) == len(set(page_table.COLUMNS)) and set(page_table.COLUMNS) == FIELDS == set(QUANTITIES)
    assert set(page_table.SHOWN) | set(page_table.FACTS) | set(page_table.SEARCHED) <= FIELDS
    columns = [page_table.column(key) for key in page_table.COLUMNS]
    titles = [column["title"] for column in columns]
    assert len(set(titles)) == len(titles) and all(column["about"] for column in columns) and set(ABOUT) <= FIELDS
    assert all(len(text) > 10 for text in ABOUT.values()) and len(ABOUT) > 60
    for column in columns:
        unit = {"_ev": "eV", "_ev_per_atom": "eV/atom", "_angstrom": "Å", "seconds": "s"}
        expected = [text for ending, text in unit.items() if column["key"].endswith(ending)]
        assert not expected or column["unit"].startswith(expected[0]), column


def test_cells_by_hand():
    row = {
        "delta_g_h_corrected_ev": 0.1584,
        "delta_g_h_corrected_std_ev": 0.355,
        "h_site_kind": "top",
        "h_site_face": "upper",
        "h_in_domain": False,
        "h_domain_note": "Xe is not in training",
        "correction_in_domain": False,
        "correction_domain_note": "3 DFT points with H on halogen",
        "natoms": 6,
        "p_synth": None,
        "hit": True,
    }
    said = {key: page_table.cell_text(row, key) for key in row}
    assert said["delta_g_h_corrected_ev"] == "0.158 ± 0.355" and said["h_site_kind"] == "top, upper"
    assert said["correction_in_domain"] == "no: 3 DFT points with H on halogen"
    assert said["h_in_domain"] == "no: Xe is not in training" and (said["natoms"], said["p_synth"], said["hit"]) == ("6", "", "yes")


def test_known_sheets_have_their_layer_groups_and_the_nearest_come_first():
    known = known_sheets.described()
    groups = {sheet["name"]: (sheet["formula"], sheet["layer_group"]) for sheet in known}
    assert groups["2H-MoS2"] == ("MoS2", "p-6m2") and groups["1T-TiS2"] == ("TiS2", "p-3m1") and groups["graphene"][1] == "p6/mmm"
    found = page_materials.similar_sheets("W2S2Se2", "p-6m2", known)
    names = [known[index]["name"] for index, _ in found]
    assert set(names[:2]) == {"2H-WS2", "2H-WSe2"} and found[0][1].endswith("W and layer group p-6m2")
    assert page_materials.similar_sheets("Xe", "", known) == []


@pytest.mark.parametrize("turn", [0, 37])
def test_h_is_found_again_on_another_cell_of_the_sheet(turn):
    sheet = geo_utils.primitive_sheet(simple.sheet())
    other = make_supercell(simple.sheet(), [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    other.rotate(turn, "z", rotate_cell=True)
    other.positions += [1.3, -0.7, 0.0]
    for site in adsorption_sites(sheet):
        place = h_site.place_on(other, sheet, site)
        pair = (sheet + h_at(site.position), other + h_at(place))
        nearest = [np.sort(atoms.get_distances(-1, range(len(atoms) - 1), mic=True)) for atoms in pair]
        np.testing.assert_allclose(*nearest, atol=0.05)
    assert h_site.place_on(simple.graphene_sheet(), sheet, adsorption_sites(sheet)[0]) is None


def h_at(place):
    """One H at a place."""
    return ase.Atoms("H", [place])


def test_h_of_older_results_is_drawn_only_where_its_site_leaves_one_choice():
    atoms = simple.graphene_sheet()
    sites = adsorption_sites(atoms)
    assert sorted(site.kind for site in sites) == ["bridge", "hollow", "top"]
    hollow = next(site for site in sites if site.kind == "hollow")
    assert h_site.only_place(atoms, "hollow", hollow.face, 3) == pytest.approx(hollow.position.tolist())
    assert h_site.only_place(atoms, "hollow", hollow.face, 4) is None and h_site.only_place(atoms, "", "", 3) is None
    janus = simple.sheet()
    janus.symbols[int(np.argmax(janus.positions[:, 2]))] = "Se"
    kinds = [site.kind for site in adsorption_sites(janus)]
    assert kinds.count("top") > 1 and h_site.only_place(janus, "top", "upper", len(kinds)) is None


def test_h_is_embedded_above_the_atoms_it_touches():
    atoms = simple.sheet()
    atoms.pbc = (True, True, False)
    top = next(site for site in adsorption_sites(atoms) if site.label(atoms).startswith("top S"))
    atoms.info["h_position"] = (top.position + atoms.cell.array[0]).tolist()
    stored = structure_viewer.encode(atoms)
    shown = structure_viewer.view(stored)
    h = shown["hydrogen"]
    ((index, a, b),) = h["bonds"]
    sulfur = np.reshape(shown["xyz"], (-1, 3))[index] + [a, b, 0] @ atoms.cell.array
    assert shown["symbols"][index] == "S" and np.linalg.norm(sulfur - h["xyz"]) == pytest.approx(1.05 + 0.31, abs=0.02)
    np.testing.assert_allclose(sulfur[:2], h["xyz"][:2], atol=2e-3)
    assert "hydrogen" not in structure_viewer.view({key: text for key, text in stored.items() if key != "hydrogen"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, undrawn_module):
    """A report of three sheets, of which one is a single file's, and a file that cannot be read."""
    root = tmp_path_factory.mktemp("a page")
    simple.write_cifs(root / "cifs", {"a": simple.sheet(), "b": simple.sheet("WS2"), "c é": simple.sheet("NbSe2")})
    (root / "cifs" / "broken.cif").write_text("data_x\n")
    overrides = [f"evaluation.output_dir='{root / 'r'}'", f"external.output_dir='{root / 'e'}'", "evaluation.bootstrap=50"]
    cfg = load_config(None, overrides)
    ours = evaluate.evaluate(root / "cifs", simple.judges(), cfg.evaluation, root / "r", "ours")
    report.write_report(ours, cfg, root / "r", script="test.py")
    comparison.update_comparison(cfg, root / "r")
    return root / "r"


def test_judging_stores_where_h_sits(folder):
    stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))["structures"]
    assert "hydrogen" in stored["a"] and "hydrogen" in stored["b"], "judged sheets"
    assert "hydrogen" not in stored["c é"], "DimeNet++ knows no Nb here"


def test_links_to_the_file_of_a_single_structure(folder, tmp_path):
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    single = folder.parent / "cifs" / "a.cif"
    content["provenance"]["cif_dir"] = str(single)
    content["candidates"] = [row for row in content["candidates"] if row["id"] == "a"]
    out = folder.parent / "single"
    out.mkdir()
    write_json(out / "report.json", content)
    page = write_page(out).read_text(encoding="utf-8")
    (link,) = re.findall(r'href="([^"]*\.cif)"', page)
    assert (out / link).resolve() == single.resolve()


def test_every_table_has_headers_with_scope(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all("scope=" in tag for tag in re.findall(r"<th\b[^>]*>", page)) and page.count("<th ") > 50
    titles = re.findall(r'<th scope=col data-k="?(\w+)"? title="([^"]+)"', page)
    assert {"verdict", "files", "delta_g_h_corrected_ev", "h_site_kind", "h_in_domain"} <= {key for key, _ in titles}


@browser
def test_filters_act_and_columns_are_chosen(folder):
    found = run_in_page(
        folder,
        """const find = id => document.getElementById(id), said = {}, data = document.body.dataset;
        const ids = () => Array.from(document.querySelectorAll("tr[data-i]")).filter(r => !r.hidden).map(r => r.id).sort().join();
        const put = (id, value, name) => { find(id).value = value; find(id).dispatchEvent(new Event(name)); return ids(); };
        const type = text => put("table-search", text, "input"), pick = (id, value) => put(id, value, "change");
        const chip = symbol => { document.querySelector(`[data-element=${symbol}]`).click(); return ids(); };
        said.word = type("ws2");
        said.words = type("P-6M2 mos");
        said.all = type("");
        said.verdict = pick("table-verdict", "unreadable");
        said.noverdict = pick("table-verdict", "");
        said.sulfur = chip("S");
        said.both = chip("W");
        said.any = pick("table-elements", "any");
        said.none = pick("table-elements", "none");
        said.only = pick("table-elements", "only");
        find("table-reset").click();
        said.reset = ids();
        const heads = () => Array.from(document.querySelectorAll("#table thead th"));
        said.shown = heads().length;
        document.querySelector("[data-column=relax_rmsd_angstrom]").click();
        said.more = heads().find(h => h.dataset.k === "relax_rmsd_angstrom").textContent;
        find("columns-all").click();
        said.columns = heads().length;
        said.explained = heads().every(h => h.title && h.scope === "col");
        said.cells = Array.from(document.querySelectorAll("tr[data-i]")).every(r => r.cells.length === heads().length);
        heads().find(h => h.dataset.k === "natoms").querySelector("button").click();
        said.sorted = heads().filter(h => h.ariaSort === "ascending").map(h => h.dataset.k).join();
        find("columns-default").click();
        said.again = heads().length;
        said.sticky = getComputedStyle(heads()[1]).position;
        data.said = JSON.stringify(said);""",
    )
    said, every = json.loads(found["said"]), "a,b,broken,c é"
    assert (said["word"], said["words"], said["all"], said["verdict"], said["noverdict"]) == ("b", "a", every, "broken", every)
    assert (said["sulfur"], said["both"], said["any"]) == ("a,b", "b", "a,b")
    assert (said["none"], said["only"], said["reset"]) == ("broken,c é", "b", every)
    assert said["more"] == "RMSD (Å)" and said["columns"] == len(FIELDS) + 2 and said["explained"] and said["cells"]
    assert said["again"] == said["shown"] and said["sorted"] == "natoms" and said["sticky"] == "sticky"


@browser
def test_downloads_are_made_from_the_page_alone(folder, tmp_path):
    (tmp_path / "report.html").write_bytes((folder / "report.html").read_bytes())
    found = run_in_page(
        tmp_path,
        """const files = {}; let last = "", broken = 0;
        document.addEventListener("securitypolicyviolation", () => { broken += 1; });
        window.Blob = class extends Blob { constructor(parts, options) { super(parts, options); last = parts.join(""); } };
        HTMLAnchorElement.prototype.click = function () { files[this.download] = last; };
        document.getElementById("a").querySelector("button.cif").click();
        for (const kind of ["csv", "json", "extxyz"]) document.getElementById("save-" + kind).click();
        document.body.dataset.files = JSON.stringify(files);
        document.body.dataset.broken = broken;
        document.body.dataset.disabled = document.getElementById("broken").querySelector("button.cif").disabled;""",
    )
    files = json.loads(found["files"])
    assert set(files) == {"a.cif", "ours.csv", "ours.json", "ours.extxyz"} and (found["broken"], found["disabled"]) == ("0", "true")
    frames = {atoms.info["id"]: atoms for atoms in ase.io.read(folder / "relaxed.extxyz", ":")}
    same = StructureMatcher(primitive_cell=False, scale=False, stol=0.01)

    def adapt(atoms):
        """The crystal, periodic along the vacuum too, as a CIF has it."""
        return AseAtomsAdaptor.get_structure(ase.Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True))

    assert same.fit(Structure.from_str(files["a.cif"], "cif"), adapt(frames["a"]))
    read = ase.io.read(io.StringIO(files["ours.extxyz"]), ":", format="extxyz")
    assert len(read) == 3 and read[0].pbc.tolist() == [True, True, False]
    assert all(same.fit(adapt(atoms), adapt(frames[atoms.info["id"]])) for atoms in read)
    with (folder / "metrics.csv").open(encoding="utf-8") as handle:
        rows = {row["id"]: row for row in csv.DictReader(handle)}
    for row in csv.DictReader(io.StringIO(files["ours.csv"])):
        for key, text in rows[row["id"]].items():
            number = page_table.is_number(key) and text
            assert (float(row[key]) == pytest.approx(float(text), rel=1e-5)) if number else row[key] == text, key
    by_id = {row["id"]: row for row in json.loads(files["ours.json"])}
    assert (
        set(by_id["b"]) == FIELDS | {"verdict"}
        and by_id["broken"]["p_synth"] is None
        and by_id["broken"]["verdict"] == "unreadable"
    )


@browser
def test_an_address_opens_its_material_and_keys_move_along_the_rows(folder):
    found = run_in_page(
        folder,
        """const said = {}, text = id => document.getElementById("view-" + id).textContent, data = document.body.dataset;
        said.first = data.shown;
        said.hydrogen = text("hydrogen");
        said.decomposition = text("decomposition");
        said.similar = text("similar");
        document.getElementById("view-all").open = true;
        const row = document.querySelector("tr.shown"), key = name => new KeyboardEvent("keydown", {key: name, bubbles: true});
        said.stops = document.querySelectorAll("tr[data-i][tabindex='0']").length;
        row.dispatchEvent(key(row.previousElementSibling ? "ArrowUp" : "ArrowDown"));
        said.moved = data.shown + location.hash + document.activeElement.id;
        location.hash = "#c%20%C3%A9";
        window.dispatchEvent(new HashChangeEvent("hashchange"));
        said.second = data.shown;
        said.lost = text("hydrogen");
        const canvas = document.getElementById("view"), before = canvas.toDataURL();
        canvas.dispatchEvent(key("ArrowLeft"));
        said.turned = before !== canvas.toDataURL();
        data.said = JSON.stringify(said);""",
        fragment="#b",
    )
    said = json.loads(found["said"])
    assert said["first"] == "b" and said["second"] == "c é" and said["stops"] == 1 and said["turned"]
    assert said["moved"] == "a#aa" and said["hydrogen"].startswith("H stands on its best site") and said["lost"] == ""
    assert "MoS2 2H: 100 % of the atoms" in said["decomposition"] and "2H-WS2" in said["similar"] and "p-6m2" in said["similar"]


@browser
@pytest.mark.parametrize("width", [1400, 800, 420])
def test_nothing_is_wider_than_the_window(folder, width):
    found = run_in_page(
        folder,
        """const data = document.body.dataset, wide = () => document.documentElement.scrollWidth - innerWidth;
        data.width = innerWidth;
        const said = [wide()];
        for (const menu of document.querySelectorAll("details")) { menu.open = true; said.push(wide()); }
        document.getElementById("columns-all").click();
        said.push(wide());
        data.wide = Math.max(...said);
        data.colour = getComputedStyle(document.body).backgroundColor;""",
        width=width,
        dark=width == 800,
    )
    assert int(found["width"]) == width and int(found["wide"]) <= 0
    light = sum(int(x) for x in re.findall(r"\d+", found["colour"])[:3]) / 3
    assert light < 60 if width == 800 else light > 240, "the page follows the reader's scheme"


@browser
def test_the_best_thousand_of_many_rows_are_shown(folder, tmp_path):
    best = write_large_report(folder / "report.json", "a", tmp_path, 2_500)
    path = write_page(tmp_path)
    assert path.stat().st_size < 6_000_000, "with about 4 MB of figures it is below 10 MB"
    text = path.read_text(encoding="utf-8")
    assert "The best 1,000 of 2,500 are on this page; 1,500 are left out" in text and 'All are in <a href="metrics.csv">' in text
    found = run_in_page(tmp_path, SEARCH)
    assert int(found["visible"]) == sum(name.startswith("gen_000") for name in best)
    assert len(set(re.findall(r'id="(gen_\d+)"', text)) & best) == 1000
