"""The 3D view of the page: what is stored and embedded, and the page itself in a headless Chromium where there is one."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import simple_judges as simple
from ase import Atoms
from ase.build import bulk
from browser import browser, run_in_page

from evaluation import comparison, evaluate, report
from evaluation import structure_viewer as viewer
from evaluation.page import write_page
from pipeline.files import write_json
from pipeline.loading import load_config

HOSTILE = "</script><script>document.body.dataset.hacked=1</script>&<!--"


def test_structures_come_back_to_three_decimals():
    atoms = simple.sheet()
    atoms.pbc = (True, True, False)
    back = viewer.decode(viewer.encode(atoms))
    assert back.get_chemical_symbols() == atoms.get_chemical_symbols() and back.pbc.tolist() == [True, True, False]
    np.testing.assert_allclose(back.positions, atoms.positions, atol=5.1e-4)
    np.testing.assert_allclose(back.cell.array, atoms.cell.array, atol=5.1e-4)


def test_bonds_by_hand():
    mos2 = simple.sheet()
    bonds = viewer.periodic_bonds(mos2)
    symbols = mos2.get_chemical_symbols()
    assert len(bonds) == 6 and all({symbols[i], symbols[j]} == {"Mo", "S"} for i, j, *_ in bonds)
    assert len(viewer.periodic_bonds(simple.graphene_sheet())) == 3
    # Every atom of fcc copper has 12 neighbours, each bond is listed once: metals are joined where there is nothing else.
    copper = bulk("Cu", "fcc", a=3.61)
    found = viewer.periodic_bonds(copper)
    assert len(found) == 6 and len({tuple(np.abs(b)) for b in found}) >= 3
    for i, j, *shift in found:
        vector = copper.positions[j] - copper.positions[i] + np.array(shift) @ copper.cell.array
        assert np.linalg.norm(vector) == pytest.approx(3.61 / np.sqrt(2))


def test_sheet_is_drawn_inside_its_cell_around_the_mid_plane():
    atoms = simple.sheet()
    atoms.pbc = (True, True, False)
    atoms.positions += [7.0, -11.0, 3.0]
    shown = viewer.view(viewer.encode(atoms))
    xyz = np.reshape(shown["xyz"], (-1, 3))
    fractional = np.linalg.solve(np.reshape(shown["cell"], (3, 3)).T, xyz.T).T
    assert shown["sheet"] and (fractional[:, :2] > -0.01).all() and (fractional[:, :2] < 1).all()
    assert xyz[:, 2].max() == pytest.approx(-xyz[:, 2].min()) == pytest.approx(1.595, abs=2e-3)
    assert len(shown["bonds"]) == 6


def test_embedded_json_cannot_leave_its_element():
    candidate = {"id": HOSTILE, "href": "x", "facts": [["formula", HOSTILE]], "structure": None, "note": "\u2028"}
    text = viewer.page_data([candidate])
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text)["candidates"] == [candidate]


def test_colors_and_radii_of_the_elements():
    data = json.loads(
        viewer.page_data([{"id": "a", "structure": viewer.encode(Atoms("CO", [[0, 0, 0], [1.2, 0, 0]], cell=[5] * 3))}])
    )
    assert data["elements"]["C"] == ["#909090", pytest.approx(0.42 * 0.76 + 0.12, abs=1e-3)]
    assert data["elements"]["O"][0] == "#ff0d0d" and data["candidates"][0]["structure"]["bonds"] == [[0, 1, 0, 0, 0]]


# ------------------------------------------------------------------------------------------------------------ in the browser


@pytest.fixture(scope="module")
def page(tmp_path_factory, undrawn_module):
    """The folder of a report of four candidates: two with ΔG_H by hand, one without, one that cannot be read and has a bad name."""
    root = tmp_path_factory.mktemp("page")
    simple.write_cifs(root / "cifs", {"a": simple.sheet(), "b": simple.sheet("WS2"), "c": simple.sheet("NbSe2")})
    (root / "cifs" / f"{HOSTILE.replace('/', '⁄')}.cif").write_text("data_x\n")
    overrides = [f"evaluation.output_dir='{root / 'r'}'", f"external.output_dir='{root / 'e'}'", "evaluation.bootstrap=50"]
    cfg = load_config(None, overrides)
    ours = evaluate.evaluate(root / "cifs", simple.judges(), cfg.evaluation, root / "r", "ours")
    by_id = {row.id: row for row in ours.rows}
    by_id["a"].delta_g_h_ev, by_id["b"].delta_g_h_ev = 10.5, -9.25  # as texts, "-9.25" would come after "10.5"
    report.write_report(ours, cfg, root / "r", script="test.py")
    comparison.update_comparison(cfg, root / "r")
    # No file name holds a slash, but no text of report.json is trusted either.
    content = json.loads((root / "r" / "report.json").read_text(encoding="utf-8"))
    for row in content["candidates"]:
        row["reduced_formula"] = row["status"] = row["formula"] = HOSTILE
    write_json(root / "r" / "report.json", content)
    write_page(root / "r")
    return root / "r"


@browser
def test_page_draws_the_best_candidate_under_its_own_policy(page):
    found = run_in_page(page, "")
    assert (found.pop("visible"), found.pop("ready").isdigit()) == ("4", True)
    assert found == {"viewer": "drawn", "shown": "a"}  # both hits score alike and stand in the order of their ids


@browser
def test_numbers_sort_as_numbers_and_missing_ones_stand_last(page):
    found = run_in_page(
        page,
        """const button = document.querySelector("th[data-k=delta_g_h_ev] button");
        const first = row => row.cells[0].textContent.slice(0, 1);
        const ids = () => Array.from(document.querySelectorAll("tr[data-i]")).map(first).join("");
        button.click();
        document.body.dataset.up = ids();
        button.click();
        document.body.dataset.down = ids() + button.parentElement.getAttribute("aria-sort");""",
    )
    assert found["up"][:2] == "ba" and found["down"][:2] == "ab" and found["down"].endswith("descending")
    assert set(found["up"][2:]) == set(found["down"][2:4]) == {"c", "<"}


@browser
def test_every_row_shows_its_structure_and_every_control_draws(page):
    found = run_in_page(
        page,
        """const canvas = document.getElementById("view"), body = document.body, said = {}, pictures = [];
        const coloured = () => {
          const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let at = 3; at < data.length; at += 4) count += data[at] > 0;
          return count / (data.length / 4);
        };
        for (const row of document.querySelectorAll("tr[data-i]")) {
          row.cells[1].click();
          said[body.dataset.shown] = body.dataset.viewer + " " + document.getElementById("view-id").textContent;
        }
        document.querySelector("tr[data-i='0']").cells[1].click();
        const keep = () => { pictures.push(canvas.toDataURL()); return body.dataset.viewer === "drawn" && coloured() > 0.005; };
        let good = keep();
        for (const name of ["top", "side", "tilt", "doubled", "vacuum"]) {
          document.getElementById("view-" + name).click();
          good = keep() && good;
        }
        canvas.dispatchEvent(new WheelEvent("wheel", {deltaY: -400, cancelable: true}));
        good = keep() && good;
        canvas.dispatchEvent(new PointerEvent("pointermove", {buttons: 1, movementX: 40, movementY: 25}));
        good = keep() && good;
        body.dataset.good = good;
        body.dataset.said = JSON.stringify(said);
        body.dataset.different = new Set(pictures).size + " of " + pictures.length;
        body.dataset.markup = document.querySelectorAll("body script").length + " " + ("hacked" in body.dataset);""",
    )
    said = json.loads(found["said"])
    assert {name: text.split()[0] for name, text in said.items() if name in "abc"} == dict.fromkeys("abc", "drawn")
    bad = HOSTILE.replace("/", "⁄")
    assert said[bad] == f"empty {bad}"
    assert found["good"] == "true"
    # "tilted" comes back to the first picture, all others differ.
    assert found["different"] == "7 of 8"
    assert found["markup"] == "7 false"  # two sets of data, the page's four scripts and the one of this test
