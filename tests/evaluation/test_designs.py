"""Designs of a loop with quick tools: what is delivered, what is left out and why, and what a stopped delivery does."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.io import read
from loop_tools import QUICK, Killed, Stopping, configuration

from energetics.coverage import DESORBS, STAYS, Coverage
from energetics.dft_points import read_truth
from energetics.dft_relaxation import FMAX
from evaluation import design_cards, loop_tools
from evaluation.candidate import CandidateResult
from evaluation.design_loop import run_loop
from evaluation.design_values import (
    DESIGNS,
    UNRELAXED,
    SiteValue,
    is_hit,
    relaxation_change,
    why_no_hit,
)
from evaluation.designs import _files_of_round, arguments_against, deliver, finished_rounds
from evaluation.earlier_designs import earlier_designs, is_open
from evaluation.relaxation_change import UNKNOWN_CHANGE
from evaluation.water_verdict import AS_STABLE, CORRODES
from pipeline import design_table
from pipeline.errors import StageError
from pipeline.loading import load_config
from pipeline.provenance import read_sidecar
from pipeline.settings import EvaluationConfig

WIDE = ("evaluation.hit_delta_g_ev=5", "evaluation.hit_e_hull_ev=0.2")  # so that made-up verdicts and EMT have hits


def curves(cfg, sheets):
    """The tool that computes coverage: two points for every sheet."""
    return {name: [Coverage(1, 0.5, 0.1, 0.1, STAYS), Coverage(2, 1.0, 0.3, 0.5, STAYS)] for name in sheets}


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("designs")
    cfg = configuration(folder, *WIDE)
    run_loop(cfg, QUICK)
    return cfg, folder


@pytest.fixture(scope="module")
def delivered(loop):
    cfg, folder = loop
    return deliver(cfg, QUICK, curves), folder / "designs"


def results(folder):
    return [json.loads((folder / "loop" / f"round_{k}" / "results.json").read_text()) for k in (1, 2)]


def test_every_hit_of_the_rounds_is_a_design_or_named_with_a_reason(loop, delivered):
    designs, target = delivered
    hits = {sheet["name"] for found in results(loop[1]) for sheet in found["sheets"] if sheet["hit"]}
    written = json.loads((target / "designs.json").read_text())
    assert len(designs) >= 2
    assert {design.round_name for design in designs} | set(written["left_out"]) == hits
    assert not {design.round_name for design in designs} & set(written["left_out"])
    values = [abs(design.delta_g_dft_ev) for design in designs]
    assert values == sorted(values)


def test_values_are_those_of_the_rounds(loop, delivered):
    by_name = {sheet["name"]: sheet for found in results(loop[1]) for sheet in found["sheets"]}
    for design in delivered[0]:
        before = by_name[design.round_name]
        assert design.delta_g_dft_ev == pytest.approx(before["delta_g_dft_ev"]) and design.sites[0].site == before["site"]
        assert design.before == before


def test_a_folder_has_what_somebody_needs_to_compute_it_anew(delivered):
    designs, target = delivered
    for design in designs:
        folder = target / design.name
        clean, *covered = read(folder / "dft.extxyz", index=":")
        energies = json.loads((folder / "energies.json").read_text())
        assert set(energies) == {"H2", "clean", *(site.site for site in design.sites)}
        for frame in covered:
            delta_e = energies[frame.info["site"]]["energy"] - energies["clean"]["energy"] - energies["H2"]["energy"] / 2
            assert delta_e + 0.27 == pytest.approx(next(s.delta_g_dft_ev for s in design.sites if s.site == frame.info["site"]))
        assert len(covered[0]) == len(clean) + 1
        assert {path.name for path in folder.iterdir()} >= {"card.png", "card.pdf"}


def test_the_page_names_every_design_and_links_files_that_are_there(delivered):
    designs, target = delivered
    page = (target / "index.html").read_text()
    for design in designs:
        assert f'id="{design.name}"' in page
    links = re.findall(r'(?:src|href)="([^"#]+)"', page)
    links = [link for link in links if not link.endswith("sheet.cif")]  # which quick tools do not write
    assert links and all((target / link).is_file() for link in links)
    assert "<script" not in page
    card = read_sidecar(target, stage="deliver_designs")
    assert card["counts"]["designs"] == len(designs)


def test_the_overview_shows_the_first_designs_and_says_of_how_many(delivered, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(design_cards, "draw_grid", lambda shown, heading, *_: drawn.append((len(shown), heading[0])))
    one = delivered[0][0]
    for number in (design_cards.IN_OVERVIEW, design_cards.IN_OVERVIEW + 2):
        design_cards.draw_overview([one] * number, tmp_path / "overview.png")
    assert drawn == [
        (12, "designs with H at the lowest site by DFT"),
        (12, "12 of 14 designs, the nearest to zero, with H at the lowest site by DFT"),
    ]


def test_the_tables_of_the_documents_have_every_design_and_every_set(delivered):
    content = json.loads((delivered[1] / "designs.json").read_text())
    lines = design_table.designs(content).splitlines()[2:]
    assert [line.split(" | ")[2] for line in lines] == [f"{design.delta_g_dft_ev:+.2f}" for design in delivered[0]]
    lines = design_table.rounds(content).splitlines()[2:]
    asked = [(name, drawn_as) for name, found in content["rounds"].items() for drawn_as in found["sets"]]
    assert len(lines) == len(asked) == 9
    for line, (name, drawn_as) in zip(lines, asked, strict=True):
        hits = content["rounds"][name]["sets"][drawn_as]["hit"]
        assert name.replace("_", " ") in line and drawn_as in line and f"{hits['hits']} of {hits['n']}: " in line


def test_the_log_of_choices_and_the_points_of_every_round_are_delivered(loop, delivered):
    for k in (1, 2):
        own, given = loop[1] / "loop" / f"round_{k}", delivered[1] / "rounds" / f"round_{k}"
        assert (given / "choices.json").read_text() == (own / "choices.json").read_text()
        assert (given / "results.json").read_text() == (own / "results.json").read_text()
        points = read_truth(given / loop_tools.POINTS_DB, with_unbound=True)
        assert points and [p.delta_e for p in points] == [
            p.delta_e for p in read_truth(own / "dft" / loop_tools.POINTS_DB, with_unbound=True)
        ]


def test_the_card_of_heads_that_a_round_has_trained_is_delivered_and_carried_over(tmp_path):
    own, given = tmp_path / "round_1", tmp_path / "delivered"
    for folder in (own / "heads", given):
        folder.mkdir(parents=True)
    (own / "heads" / "denoiser.json").write_text("card")
    (own / "choices.json").write_text("{}")

    def names(path):
        return {name: file.read_text() for file, name in _files_of_round(path) if file.is_file()}

    assert names(own) == {"choices.json": "{}", "heads.json": "card"}
    (given / "heads.json").write_text("card")
    assert names(given) == {"heads.json": "card"}


def test_a_second_delivery_computes_nothing_and_writes_the_same(loop, delivered, monkeypatch):
    cfg, folder = loop
    before = (folder / "designs" / "designs.json").read_text()

    def nothing(*_):
        raise AssertionError("a calculation that exists was asked again")

    monkeypatch.setattr("energetics.dft_calculation.calculate", nothing)
    deliver(cfg, QUICK, curves)
    assert (folder / "designs" / "designs.json").read_text() == before


def test_a_delivery_that_is_stopped_goes_on(loop, delivered):
    cfg, folder = loop
    other = dataclasses.replace(cfg, loop=dataclasses.replace(cfg.loop, designs_dir=str(folder / "again")))
    for call in (1, 2, 3):
        with pytest.raises(Killed):
            deliver(other, Stopping(at=call).tools, curves)
        assert not (folder / "again").exists()
    deliver(other, QUICK, curves)
    assert (folder / "again" / "designs.json").read_text() == (folder / "designs" / "designs.json").read_text()


def test_a_hit_with_a_fault_and_one_with_a_lower_site_are_left_out(loop, delivered):
    cfg, folder = loop
    first, second = (design.round_name for design in delivered[0][:2])

    def judge(*arguments):
        rows, structures = QUICK.judge(*arguments)
        return [dataclasses.replace(row, conductive=False) if row.id == first else row for row in rows], structures

    def compute(cfg, inputs, target):
        QUICK.compute(cfg, inputs, target)
        path = target / loop_tools.POINTS_DB
        with loop_tools.connect(path) as db:
            for row in list(db.select(kind="slab_H", name=second)):
                db.update(row.id, dE_dft=-9.0)

    other = dataclasses.replace(cfg, loop=dataclasses.replace(cfg.loop, designs_dir=str(folder / "fewer")))
    designs = deliver(other, dataclasses.replace(QUICK, judge=judge, compute=compute), curves)
    left_out = json.loads((folder / "fewer" / "designs.json").read_text())["left_out"]
    assert left_out[first] == "does not conduct" and re.fullmatch(r"ΔG_H -8.73 eV by DFT at \S+", left_out[second])
    assert not {first, second} & {design.round_name for design in designs}
    (folder / "loop" / "designs" / "dft" / loop_tools.POINTS_DB).unlink()


@pytest.fixture(scope="module")
def relaxed(loop):
    cfg, folder = loop
    settings = dataclasses.replace(cfg.loop, relax_steps=30, relax_below_ev=5.0, designs_dir=str(folder / "relaxed"))
    return deliver(dataclasses.replace(cfg, loop=settings), QUICK, curves), folder / "relaxed"


def test_relaxed_designs_have_the_values_of_their_minima(loop, relaxed):
    designs, target = relaxed
    assert len(designs) >= 2
    for design in designs:
        lowest = design.sites[0]
        assert design.delta_g_dft_ev == lowest.delta_g_relaxed_ev < lowest.delta_g_single_ev
        frames = read(target / design.name / "relaxed.extxyz", index=":")
        energies = json.loads((target / design.name / "energies.json").read_text())
        found = energies["relaxed"][lowest.site]
        for frame, energy in ((frames[0], found["energy_clean_dft"]), (frames[1], found["energy_dft"])):
            frame.calc = EMT()
            assert frame.get_potential_energy() == pytest.approx(energy, abs=1e-4)
            assert found["fmax_dft"] <= FMAX or found["relax_steps"] == 30
        delta_e = found["energy_dft"] - found["energy_clean_dft"] - energies["H2"]["energy"] / 2
        assert delta_e + 0.27 == pytest.approx(design.delta_g_dft_ev)


def test_a_later_round_knows_how_far_relaxations_move(loop, relaxed, monkeypatch):
    folder = loop[1] / "loop" / DESIGNS / "dft"
    given, minima = (
        {(point.name, point.site): point.delta_e + 0.27 for point in read_truth(folder / name, with_unbound=True)}
        for name in (loop_tools.POINTS_DB, loop_tools.RELAXED_DB)
    )
    found = relaxation_change(folder, 0.27)
    assert found.n == len(minima) >= len(relaxed[0]) >= 2 and found.changes_ev.mean() < 0
    for site, (single, minimum) in found.at.items():
        assert (single, minimum) == pytest.approx((given[site], minima[site]))
    changes = [energy - given[site] for site, energy in minima.items()]
    monkeypatch.setattr("evaluation.relaxation_change.FEWEST_RELAXED", 2)
    said = found.as_dict()
    assert found.is_known and said["mean_ev"] == pytest.approx(np.mean(changes))
    assert said["std_ev"] == pytest.approx(np.std(changes, ddof=1))
    monkeypatch.setattr("evaluation.relaxation_change.FEWEST_RELAXED", found.n + 1)
    assert not found.is_known and found.as_dict() == {"n": found.n}, "too few for a mean"
    assert relaxation_change(loop[1], 0.27) == UNKNOWN_CHANGE, "no points"


def test_a_delivery_says_how_far_relaxations_moved(loop, relaxed, tmp_path):
    own = relaxation_change(loop[1] / "loop" / DESIGNS / "dft", 0.27)
    earlier = earlier_designs(configuration(tmp_path, f"loop.earlier_designs={relaxed[1]}"))
    carried = earlier.change(0.27)
    assert {(design.round_name, site.site) for design in relaxed[0] for site in design.sites} & set(own.at) <= set(carried.at)
    for site, values in carried.at.items():
        assert values == pytest.approx(own.at[site], abs=1e-6)
    assert own.with_others(carried).at.keys() == own.at.keys(), "a site counts once"


def test_hits_are_counted_by_minima_and_those_by_single_points_stay_beside(loop, relaxed):
    designs, target = relaxed
    content = json.loads((target / "designs.json").read_text())
    hits = {design.round_name for design in designs} | {name for name, why in content["left_out"].items() if "ΔG_H" not in why}
    for k, single in enumerate(results(loop[1]), 1):
        for drawn_as, found in content["rounds"][f"round_{k}"]["sets"].items():
            own = [sheet for sheet in single["sheets"] if sheet["drawn_as"] == drawn_as]
            assert found["hit"]["hits"] == len(hits & {sheet["name"] for sheet in own})
            assert found["hit"]["n"] == found["hit_single"]["n"] and found["hit_single"]["hits"] == sum(
                s["hit"] is True for s in own
            )
    assert "in minima of DFT" in (target / "index.html").read_text()


def test_a_sheet_that_could_not_be_relaxed_is_no_hit(loop):
    cfg, folder = loop
    settings = dataclasses.replace(cfg.loop, relax_steps=30, relax_below_ev=5.0, designs_dir=str(folder / "unrelaxed"))
    tools = dataclasses.replace(QUICK, relax=lambda *_: None)
    (folder / "loop" / "designs" / "dft" / loop_tools.RELAXED_DB).unlink(missing_ok=True)
    assert deliver(dataclasses.replace(cfg, loop=settings), tools, curves) == []
    left_out = json.loads((folder / "unrelaxed" / "designs.json").read_text())["left_out"]
    assert left_out and all("single points" in reason for reason in left_out.values())
    single, anew = (json.loads((folder / name / "designs.json").read_text())["rounds"]["all"] for name in ("relaxed", "unrelaxed"))
    asked, known = ({name: found["hit"]["n"] for name, found in one["sets"].items()} for one in (single, anew))
    assert sum(asked.values()) - sum(known.values()) == len(left_out), "what is not known is not counted"


def test_a_relaxation_that_is_not_at_rest_decides_nothing(loop, caplog):
    cfg, folder = loop
    settings = dataclasses.replace(cfg.loop, relax_steps=1, relax_below_ev=5.0, designs_dir=str(folder / "moving"))
    (folder / "loop" / "designs" / "dft" / loop_tools.RELAXED_DB).unlink(missing_ok=True)
    assert deliver(dataclasses.replace(cfg, loop=settings), QUICK, curves) == []
    minima = list(loop_tools.connect(folder / "moving" / loop_tools.RELAXED_DB).select(kind="slab_H"))
    assert minima and all(row.fmax_dft > FMAX for row in minima), "they are delivered, with the force that is left"
    assert f"{minima[0].name} {minima[0].site}: not at rest after loop.relax_steps of DFT" in caplog.text
    left_out = json.loads((folder / "moving" / "designs.json").read_text())["left_out"]
    assert {row.name for row in minima} <= set(left_out)
    assert all(is_open(left_out[row.name]) for row in minima)
    (folder / "loop" / "designs" / "dft" / loop_tools.RELAXED_DB).unlink()


def test_without_hits_there_is_a_page_that_says_so(tmp_path):
    cfg = configuration(tmp_path, "loop.rounds=1", "evaluation.hit_delta_g_ev=1e-9")
    run_loop(cfg, QUICK)
    assert deliver(cfg, QUICK, curves) == []
    assert "none yet" in (tmp_path / "designs" / "index.html").read_text()


def test_a_loop_without_a_finished_round_is_named(tmp_path):
    with pytest.raises(StageError, match="has no finished round: run scripts.design_loop first"):
        deliver(configuration(tmp_path), QUICK, curves)
    assert list(finished_rounds(tmp_path / "loop")) == []


def test_a_cif_that_is_gone_is_named(tmp_path):
    cfg = configuration(tmp_path, "loop.rounds=1", *WIDE)
    run_loop(cfg, QUICK)
    for path in (tmp_path / "loop" / "round_1" / "asked").iterdir():
        path.unlink()
    with pytest.raises(StageError, match=r"round_1/\S+.cif is missing, which r1-\S+ was generated as"):
        deliver(cfg, QUICK, curves)


GOOD = CandidateResult(
    reduced_formula="NbS2", e_above_hull_ev=0.01, e_above_hull_std_ev=0.03, dynamically_stable=True, conductive=True,
    water=AS_STABLE, p_synth=0.9, price_usd_per_kg=50.0, hhi_reserve=1000.0, exfoliable="easily",
)  # fmt: skip
FLAT = [Coverage(1, 0.5, 0.0, 0.0, STAYS), Coverage(2, 1.0, 0.05, 0.1, STAYS)]


@pytest.mark.parametrize(
    ("changes", "delta_g", "curve", "said"),
    [
        ({}, 0.0, FLAT, None),
        ({}, 0.08, FLAT, "nearer to the limit"),
        ({"e_above_hull_ev": 0.09}, 0.0, FLAT, "E_hull may be above"),
        ({"dynamically_stable": None}, 0.0, FLAT, "dynamic stability"),
        ({"conductive": None}, 0.0, FLAT, "conductivity"),
        ({"water": CORRODES}, 0.0, FLAT, "in water: likely corrodes"),
        ({"p_synth": 0.3}, 0.0, FLAT, "P_synth 0.30"),
        ({"p_synth": math.nan}, 0.0, FLAT, "synthesizability is not known"),
        ({"exfoliable": "hardly", "exfoliation_mev_per_a2": 150.0}, 0.0, FLAT, "150 meV"),
        ({"price_usd_per_kg": 40000.0}, 0.0, FLAT, "40,000 US dollars"),
        ({"hhi_reserve": 3000.0}, 0.0, FLAT, "HHI 3,000"),
        ({}, 0.0, [FLAT[0], Coverage(2, 1.0, 0.3, 0.6, STAYS)], r"changes by \+0.60 eV"),
        ({}, 0.0, [FLAT[0], Coverage(2, 1.0, math.nan, math.nan, DESORBS)], "at 1.00 H per repeat unit: H desorbs"),
    ],
)
def test_what_argues_against_a_design(changes, delta_g, curve, said):
    row = dataclasses.replace(GOOD, **changes)
    found = arguments_against(row, [SiteValue("topS", 0.1, delta_g)], curve, EvaluationConfig())
    assert (not found) if said is None else (len(found) == 1 and re.search(said, found[0]))


def test_a_site_without_dft_argues_against():
    sites = [SiteValue("topS", 0.1, 0.0), SiteValue("hollow", 0.2, math.nan)]
    assert arguments_against(GOOD, sites, FLAT, EvaluationConfig()) == ["1 competing sites without a DFT value"]


@pytest.mark.parametrize(
    ("single", "minimum", "hit"),
    [
        (0.2, math.nan, None), (0.05, math.nan, None), (-0.2, math.nan, False), (0.5, math.nan, False), (0.2, 0.05, True),
        (0.3, 0.2, False), (math.nan, math.nan, None),
    ],
)  # fmt: skip
def test_a_sheet_near_zero_that_dft_has_not_relaxed_is_open(single, minimum, hit):
    values = {"a": [SiteValue("topS", 0.0, single, minimum)]}
    assert is_hit({"name": "a", "hit": True}, values, load_config(None, [])) is hit
    reason = why_no_hit(values["a"], load_config(None, []))
    assert (not reason) == (hit is True) and is_open(reason) == (hit is None), "a later delivery asks about the same sheets again"


@pytest.fixture(scope="module")
def going_on(loop, relaxed, tmp_path_factory):
    """A loop that goes on from designs delivered by another, of which nothing else is left, and what it delivers."""
    folder = tmp_path_factory.mktemp("going_on")
    shutil.copytree(relaxed[1], folder / "given")
    content = json.loads((folder / "given" / "designs.json").read_text())
    first = relaxed[0][0]
    content["designs"] = [design for design in content["designs"] if design["round_name"] != first.round_name]
    content["left_out"][first.round_name] = f"ΔG_H +0.20 eV by single points of DFT at topCu, {UNRELAXED}"
    (folder / "given" / "designs.json").write_text(json.dumps(content))
    given = [f"loop.earlier_designs={folder}/given", "loop.rounds=1", "loop.relax_steps=30", "loop.relax_below_ev=5"]
    cfg = configuration(folder, *WIDE, *given)
    watched = Stopping()
    run_loop(cfg, watched.tools)
    return cfg, folder, first, watched.calls, deliver(cfg, QUICK, curves)


def test_a_loop_goes_on_after_delivered_rounds(loop, going_on):
    _, folder, _, calls, _ = going_on
    assert calls[:2] == ["complete", "refit"], "their points are learnt first"
    assert [path.name for path in (folder / "loop").glob("round_*")] == ["round_3"]
    points = read_truth(folder / "loop" / "round_3" / "points" / loop_tools.POINTS_DB, with_unbound=True)
    names = [point.name for point in points]
    for k, found in enumerate(results(loop[1]), 1):
        computed = {sheet["name"] for sheet in found["sheets"] if sheet["status"] == "computed"}
        assert computed <= set(names), f"points of round {k}"
    assert any(name.startswith("r3-") for name in names)
    before = {sheet["formula"] for found in results(loop[1]) for sheet in found["sheets"]}
    own = json.loads((folder / "loop" / "round_3" / "choices.json").read_text())["choices"]
    assert own and not before & {choice["formula"] for choice in own}
    assert list(json.loads((folder / "loop" / "rounds.json").read_text())) == ["round_1", "round_2", "round_3", "all"]


def test_designs_are_carried_over_and_open_ones_asked_again(loop, relaxed, going_on):
    _, folder, opened, _, designs = going_on
    target = folder / "designs"
    by_name = {design.round_name: design for design in designs}
    for design in relaxed[0]:
        found = by_name[design.round_name]
        assert found.delta_g_dft_ev == pytest.approx(design.delta_g_dft_ev)
        if design.round_name != opened.round_name:
            assert found.as_dict() == design.as_dict()
            for path in (relaxed[1] / design.name).iterdir():
                if path.suffix != ".pdf":  # which says when it was drawn
                    assert (target / design.name / path.name).read_bytes() == path.read_bytes()
    content, given = (json.loads((path / "designs.json").read_text()) for path in (target, relaxed[1]))
    for k in (1, 2):
        assert content["rounds"][f"round_{k}"] == given["rounds"][f"round_{k}"], "hits of earlier rounds by the same minima"
    total = {name: found["hit"] for name, found in content["rounds"]["all"]["sets"].items()}
    for name, found in total.items():
        own = [content["rounds"][f"round_{k}"]["sets"].get(name, {}).get("hit", {"hits": 0, "n": 0}) for k in (1, 2, 3)]
        assert found["hits"] == sum(one["hits"] for one in own) and found["n"] == sum(one["n"] for one in own)
    for k in (1, 2):
        for path in (relaxed[1] / "rounds" / f"round_{k}").iterdir():
            assert (target / "rounds" / f"round_{k}" / path.name).read_bytes() == path.read_bytes()


def test_all_minima_are_delivered(relaxed, going_on):
    before, after = (read_truth(path / loop_tools.RELAXED_DB, with_unbound=True) for path in (relaxed[1], going_on[1] / "designs"))
    sites = [(point.name, point.site) for point in after]
    assert len(set(sites)) == len(sites), "a sheet that was asked again is there once"
    assert {(point.name, point.site) for point in before} <= set(sites)
    for design in going_on[4]:
        found = {point.site: point.delta_e for point in after if point.name == design.round_name}
        assert found[design.sites[0].site] + 0.27 == pytest.approx(design.delta_g_dft_ev)


def test_a_folder_that_is_no_delivery_is_named(tmp_path):
    with pytest.raises(StageError, match="none/designs.json cannot be read"):
        deliver(configuration(tmp_path, f"loop.earlier_designs={tmp_path}/none"), QUICK, curves)
    for content in ("[]", "{}", '{"designs": [], "left_out": {}, "rounds": [], "relaxation_change": {}}'):
        (tmp_path / "designs.json").write_text(content)
        with pytest.raises(StageError, match="designs.json is not what scripts.deliver_designs writes"):
            run_loop(configuration(tmp_path, f"loop.earlier_designs={tmp_path}"), QUICK)
