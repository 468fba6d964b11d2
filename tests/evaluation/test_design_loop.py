"""The design loop with quick tools: what a round leaves, what a stopped loop does, and what it says of bad input."""

import dataclasses
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import mx2
from ase.db import connect
from ase.io import read
from loop_tools import ELEMENTS, QUICK, Killed, Stopping, configuration, write_cifs
from vasp_files import vasprun

from energetics.dft_points import read_truth
from evaluation import loop_report, loop_tools
from evaluation.design_loop import known_compositions, run_loop
from evaluation.loop_report import CHOSEN, NEIGHBOUR, RANDOM, RANDOM_NEIGHBOUR, UNGUIDED, Choice, Outcome
from evaluation.round_settings import deciding_settings
from evaluation.statistics import rate_ratio_interval
from pipeline.errors import ConfigError, StageError
from pipeline.loading import load_config
from pipeline.provenance import check_inputs_unchanged, read_sidecar
from pipeline.settings import EvaluationConfig

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a loop of two rounds that nothing has stopped, and the calls that it made."""
    folder = tmp_path_factory.mktemp("whole")
    watched = Stopping()
    run_loop(configuration(folder), watched.tools)
    return folder, watched.calls


def rounds_of(folder):
    return [folder / "loop" / f"round_{k}" for k in (1, 2)]


def content(path):
    return json.loads(path.read_text())


def rows_of(path):
    return [(row.key_value_pairs, row.positions.tolist()) for row in connect(path).select()]


def same_products(one, other):
    for a, b in zip(rounds_of(one), rounds_of(other), strict=True):
        for name in ("choices.json", "results.json"):
            assert content(a / name) == content(b / name)
        assert rows_of(a / "points" / "h_on_2d_dft.db") == rows_of(b / "points" / "h_on_2d_dft.db")
        assert content(a / "manifest.json")["metrics"] == content(b / "manifest.json")["metrics"]
        assert content(a / "manifest.json")["counts"] == content(b / "manifest.json")["counts"]
    assert content(one / "loop" / "rounds.json") == content(other / "loop" / "rounds.json")


def test_a_round_chooses_computes_and_joins(whole):
    folder, calls = whole
    rest = ["judge", "judge", "judge", "prepare", "compute", "complete", "refit"]
    assert calls == ["generate", "generate", *rest, "generate", "generate", "judge", *rest], "the first round's sheets once more"
    first, second = rounds_of(folder)
    results = content(first / "results.json")
    sets = results["sets"]
    assert sets[CHOSEN]["asked"] == 4 and sets[UNGUIDED]["asked"] == 2 and sets[RANDOM]["asked"] == 1
    computed = {sheet["name"] for sheet in results["sheets"] if sheet["status"] == "computed"}
    assert {point.name for point in read_truth(first / "dft" / "h_on_2d_dft.db", with_unbound=True)} == computed
    before = rows_of(first / "points" / "h_on_2d_dft.db")
    assert rows_of(second / "points" / "h_on_2d_dft.db")[: len(before)] == before
    rows = [row for row, _ in rows_of(second / "points" / "h_on_2d_dft.db")]
    assert {row["round"] for row in rows} == {1, 2} and {row["drawn_as"] for row in rows} >= {CHOSEN}
    for sheet in results["sheets"]:
        row = next((r for r in rows if r["name"] == sheet["name"] and r["kind"] == "slab_H"), None)
        if row is not None:
            assert sheet["delta_g_dft_ev"] == pytest.approx(row["dE_dft"] + 0.27) and row["family"] == sheet["family"]
        else:
            assert sheet["status"] == "no site" and sheet["hit_dft"] is False and "Ni" in sheet["formula"]


def test_no_composition_is_computed_twice_in_a_loop(whole):
    first, second = rounds_of(whole[0])
    asked = [{c["formula"] for c in content(path / "choices.json")["choices"]} for path in (first, second)]
    assert not asked[0] & asked[1], "not even where DFT was not asked, because the potential keeps H nowhere"


def test_rounds_draw_other_seeds_and_learn_from_the_round_before(whole):
    first, second = (load_config(path / "config.yaml") for path in rounds_of(whole[0]))
    assert (first.run.seed, second.run.seed) == (0, 1)
    assert second.evaluation.dft_truth_path == second.dimenet.dft_path == str(rounds_of(whole[0])[0] / "points" / "h_on_2d_dft.db")
    assert second.dimenet.checkpoint == str(rounds_of(whole[0])[0] / "dimenet" / "dimenet.pth")
    names = [{c["name"] for c in content(path / "choices.json")["choices"]} for path in rounds_of(whole[0])]
    assert all(name.startswith("r1-") for name in names[0])
    assert {name[:3] for name in names[1]} == {"r1-", "r2-"}, "sheets that the first round did not choose are there for the second"
    for folder, own in zip(rounds_of(whole[0]), names, strict=True):
        assert {path.stem for path in (folder / "asked").iterdir()} == own
    for choice in content(rounds_of(whole[0])[1] / "choices.json")["choices"]:
        asked = (rounds_of(whole[0])[1] / "asked" / f"{choice['name']}.cif").read_text()
        assert asked.replace(" ", "") == choice["formula"]


def test_heads_learn_from_all_that_a_round_has_judged(whole, tmp_path):
    cfg = configuration(tmp_path, "loop.train_heads=true", "run.seed=5")
    watched = Stopping()
    run_loop(cfg, watched.tools)
    assert watched.calls.count("teach") == 2 and "teach" not in whole[1]
    first, second = rounds_of(tmp_path)
    told = [
        dict(line.split("=", 1) for line in (path / "heads" / "denoiser.pth").read_text().split("\n")) for path in (first, second)
    ]
    assert [one["run.seed"] for one in told] == ["5", "5"], "one split"
    assert told[0]["dimenet.checkpoint"] == str(first / "dimenet" / "dimenet.pth")
    assert told[0]["denoiser.init_from"] == cfg.denoiser.checkpoint
    assert told[1]["denoiser.init_from"] == str(first / "heads" / "denoiser.pth")
    assert load_config(second / "config.yaml").denoiser.checkpoint == str(first / "heads" / "denoiser.pth"), "it generates"


def test_rounds_choose_among_the_sheets_of_other_runs_too(tmp_path):
    write_cifs(tmp_path / "other", ["Cu Pt", "Ag Pt"])
    cfg = configuration(tmp_path, f"loop.more_cif_dirs=[{tmp_path}/other]", "loop.batch=8", "loop.explore_share=0")
    run_loop(cfg, QUICK)
    names = [choice["name"] for path in rounds_of(tmp_path) for choice in content(path / "choices.json")["choices"]]
    assert len(set(names)) == len(names) and any(name.startswith("f1-gen_") for name in names)


def test_a_round_looks_around_sheets_that_dft_found_near_zero(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.neighbours.NEAR_ZERO_EV", 2.0)  # EMT is farther off than DFT
    elements = f"loop.neighbour_elements=[{','.join(ELEMENTS)}]"
    cfg = configuration(tmp_path, "loop.neighbours=30", elements, "loop.batch=12", "loop.explore_share=0", "loop.max_per_family=12")
    run_loop(cfg, QUICK)
    first, second = rounds_of(tmp_path)
    assert not (first / "neighbours").exists(), "DFT had computed nothing"
    lowest = {sheet["name"]: sheet["delta_g_dft_ev"] for sheet in content(first / "results.json")["sheets"]}
    near = {name for name, value in lowest.items() if value is not None and abs(value) <= 2.0}
    about = content(second / "neighbours" / "neighbours.json")
    assert about and {one["parent"] for one in about.values()} == near
    choices = content(second / "choices.json")["choices"]
    by_set = {choice["name"]: choice["drawn_as"] for choice in choices if choice["drawn_as"] in (CHOSEN, NEIGHBOUR)}
    assert NEIGHBOUR in by_set.values()
    assert all((drawn_as == NEIGHBOUR) == name.startswith("n2-near_") for name, drawn_as in by_set.items())
    sets = content(second / "results.json")["sets"]
    assert sets[NEIGHBOUR]["asked"] + sets[CHOSEN]["asked"] == len(by_set), "rates of their own"


def test_neighbours_that_were_not_chosen_are_drawn_at_random_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.neighbours.NEAR_ZERO_EV", 2.0)
    elements = f"loop.neighbour_elements=[{','.join(ELEMENTS)}]"
    drawn = []
    for folder in ("one", "two"):
        cfg = configuration(tmp_path / folder, "loop.neighbours=30", elements, "loop.neighbour_controls=3")
        run_loop(cfg, QUICK)
        first, second = rounds_of(tmp_path / folder)
        assert RANDOM_NEIGHBOUR not in content(first / "results.json")["sets"], "there were no neighbours"
        choices = content(second / "choices.json")["choices"]
        drawn.append([choice for choice in choices if choice["drawn_as"] == RANDOM_NEIGHBOUR])
        others = [choice for choice in choices if choice["drawn_as"] != RANDOM_NEIGHBOUR]
        assert len(drawn[-1]) == 3 and all(choice["name"].startswith("n2-near_") for choice in drawn[-1])
        assert not {choice["formula"] for choice in drawn[-1]} & {choice["formula"] for choice in others}
        assert content(second / "results.json")["sets"][RANDOM_NEIGHBOUR]["asked"] == 3
    assert drawn[0] == drawn[1], "the seed decides"


def test_the_sidecar_says_what_the_round_is_made_of(whole):
    first, second = rounds_of(whole[0])
    card = read_sidecar(second, stage="design_loop.py")
    check_inputs_unchanged(card, second)
    assert (
        card["seed"] == 1 and card["settings"]["batch"] == 4 and card["counts"]["generate"] == {CHOSEN: 10, UNGUIDED: 6, RANDOM: 3}
    )
    assert str(first / "points" / "h_on_2d_dft.db") in card["inputs"] and str(second / "choices.json") in card["inputs"]
    assert card["metrics"]["sets"] == content(second / "results.json")["sets"]
    assert card["counts"]["choose"]["left_out"].keys() <= {"composition computed before"}


def test_a_loop_that_is_stopped_at_every_call_ends_with_the_same_products(whole, tmp_path):
    cfg, watched, starts = configuration(tmp_path), Stopping(everywhere=True), 1
    while starts < 100:
        try:
            run_loop(cfg, watched.tools)
        except Killed:
            starts += 1
        else:
            break
    assert starts == 2 * len(whole[1]) + 1, "before and after the work of every call"
    assert set(watched.stops) == set(vars(QUICK)) - {"relax", "teach"}, "unless it is asked to"
    same_products(whole[0], tmp_path)


@pytest.mark.parametrize("step", ["generate", "choose", "prepare", "compute", "join", "refit"])
def test_a_step_without_its_record_is_done_again_with_the_same_result(whole, tmp_path, step):
    shutil.copytree(whole[0], tmp_path / "copy", dirs_exist_ok=True)
    second = tmp_path / "copy" / "loop" / "round_2"
    for name in (f"steps/{step}.json", "manifest.json", "results.json"):
        (second / name).unlink()
    before = content(whole[0] / "loop" / "round_2" / "results.json")
    # The copy stands in another folder: its own settings are those of the copy.
    text = (second / "config.yaml").read_text().replace(str(whole[0]), str(tmp_path / "copy"))
    (second / "config.yaml").write_text(text)
    watched = Stopping()
    run_loop(configuration(tmp_path / "copy"), watched.tools)
    expected = {"choose": {"judge"}, "join": {"complete"}}.get(step, {step})
    assert set(watched.calls) == expected and content(second / "results.json") == before


def test_a_finished_loop_does_nothing_and_more_rounds_go_on(whole, tmp_path):
    run_loop(configuration(tmp_path, "loop.rounds=1"), QUICK)
    watched = Stopping()
    run_loop(configuration(tmp_path, "loop.rounds=1"), watched.tools)
    assert not watched.calls
    run_loop(configuration(tmp_path), watched.tools)
    assert len(watched.calls) == 10
    same_products(whole[0], tmp_path)


def test_a_round_that_was_begun_is_not_finished_with_other_settings(tmp_path):
    with pytest.raises(Killed):
        run_loop(configuration(tmp_path), Stopping(at=4).tools)
    with pytest.raises(StageError, match=r"round_1 was begun with another loop.batch: set it back \(loop.batch=4\), or remove"):
        run_loop(configuration(tmp_path, "loop.batch=5"), QUICK)
    run_loop(configuration(tmp_path, "loop.rounds=1", "loop.dft_processes=2", "evaluation.workers=1"), QUICK)


def test_settings_that_decide_are_compared_without_the_place_of_the_checkout():
    settings = deciding_settings(dataclasses.asdict(load_config(None)))
    assert settings["evaluation.dft_truth_path"] == "data/h_on_2d_dft.db" and "loop.rounds" not in settings


def test_compositions_of_the_blind_points_are_known_too():
    known = known_compositions(load_config(None))
    assert {"MoS2", "BaI2"} <= known


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["loop.dft=magic"], ConfigError, "loop.dft=magic: choose gpaw, vasp or MODULE:FUNCTION"),
        (["loop.neighbour_elements=[Nb,Xx]"], ConfigError, "loop.neighbour_elements: Xx is no element"),
        (["loop.controls=7"], ConfigError, "loop.controls are drawn from"),
        (["loop.max_dft_atoms=3"], StageError, "no sheet may be chosen: more than 3 atoms with H"),
        (["evaluation.random_cif_dir=nowhere"], StageError, "no folder of CIFs"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        run_loop(configuration(tmp_path, *overrides), QUICK)


def test_a_round_of_controls_alone_is_none(tmp_path):
    def nothing_new(cfg, cif_dir, output_dir, label):
        rows, structures = QUICK.judge(cfg, cif_dir, output_dir, label)
        return [dataclasses.replace(row, novel=False) for row in rows], structures

    with pytest.raises(StageError, match=r"round_1: no sheet may be chosen: not novel \(10\)"):
        run_loop(configuration(tmp_path), dataclasses.replace(QUICK, judge=nothing_new))


@pytest.mark.parametrize("text", ["run: [", "nonsense", ""])
def test_damaged_settings_of_a_round_are_named(tmp_path, text):
    with pytest.raises(Killed):
        run_loop(configuration(tmp_path), Stopping(at=1).tools)
    (tmp_path / "loop" / "round_1" / "config.yaml").write_text(text)
    with pytest.raises(StageError, match="config.yaml is damaged"):
        run_loop(configuration(tmp_path), QUICK)


def test_a_damaged_log_of_choices_is_named(tmp_path):
    with pytest.raises(Killed):
        run_loop(configuration(tmp_path), Stopping(at=6).tools)
    (tmp_path / "loop" / "round_1" / "choices.json").write_text("{")
    with pytest.raises(StageError, match="choose.json to choose again"):
        run_loop(configuration(tmp_path), QUICK)


def inputs_in(folder):
    paths = sorted((folder / "loop" / "round_1" / "inputs").iterdir())
    return {path.name: path / "dft.extxyz" for path in paths if content(path / "finalist.json")["sites"]}


def test_dft_runs_in_processes_that_share_the_work(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    inputs = inputs_in(whole[0])
    cfg = configuration(tmp_path, "loop.dft=dft_calculators:slow", "loop.dft_processes=2", f"loop.dft_python={sys.executable}")
    loop_tools.compute(cfg, inputs, tmp_path / "dft")
    found = {
        (point.name, point.site): point.delta_e for point in read_truth(tmp_path / "dft" / loop_tools.POINTS_DB, with_unbound=True)
    }
    known = read_truth(whole[0] / "loop" / "round_1" / "dft" / loop_tools.POINTS_DB, with_unbound=True)
    assert found == pytest.approx({(point.name, point.site): point.delta_e for point in known})


def test_dft_runs_on_workers_of_a_cluster(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(TESTS), str(TESTS.parent))))
    inputs = inputs_in(whole[0])
    given = ["run.scheduler=dask", "loop.dft=dft_calculators:emt", "loop.dft_processes=2", f"loop.dft_python={sys.executable}"]
    loop_tools.compute(configuration(tmp_path, *given), inputs, tmp_path / "dft")
    found, known = (
        {(p.name, p.site): p.delta_e for p in read_truth(folder / loop_tools.POINTS_DB, with_unbound=True)}
        for folder in (tmp_path / "dft", whole[0] / "loop" / "round_1" / "dft")
    )
    assert found == pytest.approx(known)
    by_worker = " ".join((tmp_path / "dft" / f"{name}.log").read_text() for name in inputs)
    assert all(f"{name} {site}: " in by_worker for name, site in found), "a task for each sheet"
    assert " eV, " not in (tmp_path / "dft" / "process.log").read_text(), "nothing was left to the last process"
    assert [path.name for path in (tmp_path / "dft").glob("*.db")] == [loop_tools.POINTS_DB]
    bad = configuration(tmp_path, "run.scheduler=dask", "loop.dft_python=/no/such/python")
    with pytest.raises(StageError, match="there is no such program"):
        loop_tools.compute(bad, inputs, tmp_path / "none")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["loop.dft_python=/no/such/python"], "there is no such program"),
        (
            ["loop.dft=no_such_module:f", f"loop.dft_python={sys.executable}"],
            "exit code 2: verify_dft.py: calculator no_such_module:f",
        ),
    ],
)
def test_a_calculator_that_cannot_be_started_is_named(whole, tmp_path, settings, message):
    with pytest.raises(StageError, match=message):
        loop_tools.compute(configuration(tmp_path, *settings), inputs_in(whole[0]), tmp_path / "dft")


def test_vasp_stops_until_its_results_are_there(whole, tmp_path):
    inputs, elsewhere = inputs_in(whole[0]), tmp_path / "from_cluster"
    cfg = configuration(tmp_path, "loop.dft=vasp", f"loop.vasp_results={elsewhere}")
    folder = tmp_path / "round_1" / "dft"
    for _ in range(2):
        with pytest.raises(StageError, match=r"VASP calculations of round_1 have no result \(H2, .*start the same command again"):
            loop_tools.compute(cfg, inputs, folder)
    for poscar in (folder / "vasp").rglob("POSCAR"):
        target = elsewhere / "round_1" / poscar.parent.relative_to(folder / "vasp")
        target.mkdir(parents=True)
        (target / "vasprun.xml").write_text(vasprun(read(poscar), -3.0 - len(target.name)))
    loop_tools.compute(cfg, inputs, folder)
    points = read_truth(folder / loop_tools.POINTS_DB, with_unbound=True)
    assert {point.name for point in points} == set(inputs)
    # H_topX or H_topXx against clean, less half of H2: the energies are -3 eV less the length of the name.
    assert {round(p.delta_e, 6) for p in points} == {round(-3 - len(f"H_{p.site}") + 8 + 2.5, 6) for p in points}


def choice(name="a", drawn_as=CHOSEN, delta_g=0.0, std=0.3, e_hull=0.0):
    return Choice(
        name, drawn_as, f"{name}.cif", "NbS2", "AB2 p-3m1", "p_hit 0.2", delta_g, std, "corrected potential", e_hull, 0.2, 13
    )


def outcome(delta_g_dft, delta_g=0.0, std=0.3):
    return Outcome(choice(delta_g=delta_g, std=std), "computed", delta_g_dft, "topS", abs(delta_g_dft) <= 0.1, True)


def test_the_error_of_the_judge_is_that_of_its_earlier_values():
    found = loop_report.judge_error([outcome(0.1, 0.3), outcome(-0.2, -0.3), outcome(1.0, 0.1)])
    assert found["mae_ev"] == pytest.approx((0.2 + 0.1 + 0.9) / 3) and found["bias_ev"] == pytest.approx((0.2 - 0.1 - 0.9) / 3)
    assert found["within_1_sigma"] == pytest.approx(2 / 3) and found["n"] == 3
    assert found["n_near_zero"] == 2 and found["mae_near_zero_ev"] == pytest.approx(0.15)
    assert math.isnan(loop_report.judge_error([])["mae_ev"])


def test_the_interval_of_a_rate_is_wilsons():
    """Wilson's formula written out, and 1 of 10 as in Newcombe, Stat. Med. 17, 857 (1998), by the same formula."""
    for hits, n in ((3, 12), (0, 5), (1, 10)):
        z, p = 1.959964, hits / n
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        found = loop_report.rate([True] * hits + [False] * (n - hits) + [None])
        assert (found["hits"], found["n"]) == (hits, n)
        assert found["low"] == pytest.approx(max(0, (centre - half) / (1 + z * z / n)), abs=1e-4)
        assert found["high"] == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-4)


def test_rounds_together_are_the_sheets_together():
    """The numbers of two rounds are those of one round with the sheets of both."""
    first, second = [outcome(0.1, 0.3), outcome(-0.2, -0.3)], [outcome(1.0, 0.1), outcome(0.05, 0.05), outcome(-0.7, 0.2, 1.0)]
    separate = loop_report.total([loop_report.summary(first), loop_report.summary(second)])
    together = loop_report.summary(first + second)
    for name, value in together["sets"][CHOSEN].items():
        assert separate["sets"][CHOSEN][name] == (pytest.approx(value) if isinstance(value, dict) else value)
    assert separate["judge"] == pytest.approx(together["judge"])


@pytest.mark.parametrize(("hits", "n", "other_hits", "other_n"), [(11, 48, 0, 25), (10, 20, 5, 20), (0, 33, 1, 25)])
def test_the_ratio_of_two_rates_has_the_interval_of_draws_from_their_posteriors(hits, n, other_hits, other_n):
    rng = np.random.default_rng(3)
    own, other = (rng.beta(k + 0.5, m - k + 0.5, 400_000) for k, m in ((hits, n), (other_hits, other_n)))
    low, high = rate_ratio_interval(hits, n, other_hits, other_n)
    assert np.mean(own / other < low) == pytest.approx(0.025, abs=0.002)
    assert np.mean(own / other < high) == pytest.approx(0.975, abs=0.002)
    swapped = rate_ratio_interval(other_hits, other_n, hits, n)
    assert (1 / swapped[1], 1 / swapped[0]) == pytest.approx((low, high), rel=0.01)
    assert all(math.isnan(bound) for bound in rate_ratio_interval(1, 2, 0, 0))


def test_hits_of_the_chosen_are_compared_with_those_of_all_controls():
    def verdicts(drawn_as, *hits):
        given = outcome(0.0)
        given = dataclasses.replace(given, choice=dataclasses.replace(given.choice, drawn_as=drawn_as))
        return [dataclasses.replace(given, hit=hit) for hit in hits]

    chosen = verdicts(CHOSEN, True, True, False)
    controls = [*verdicts(UNGUIDED, True), *verdicts(RANDOM, False, False, False)]
    ratios = loop_report.total([loop_report.summary(chosen), loop_report.summary(controls)])["ratios"]
    assert set(ratios) == {CHOSEN}
    found = ratios[CHOSEN]
    assert (found["hits"], found["n"], found["control_hits"], found["controls"]) == (2, 3, 1, 4)
    assert found["ratio"] == pytest.approx((2 / 3) / (1 / 4)) and found["low"] < found["ratio"] < found["high"]
    without = loop_report.total([loop_report.summary(chosen), loop_report.summary(controls[1:])])["ratios"][CHOSEN]
    assert without["ratio"] is None and without["low"] > found["low"]
    neighbours = verdicts(loop_report.NEIGHBOUR, True, False, False)
    both = loop_report.total([loop_report.summary([*chosen, *neighbours]), loop_report.summary(controls)])["ratios"]
    assert set(both) == {CHOSEN, loop_report.NEIGHBOUR, loop_report.ALL_CHOSEN}
    assert both[CHOSEN] == found and both[loop_report.ALL_CHOSEN]["rate"] == 0.5
    assert (both[loop_report.ALL_CHOSEN]["hits"], both[loop_report.ALL_CHOSEN]["n"]) == (3, 6)


def test_verdicts_of_dft_know_no_site_failures_and_h_that_is_not_bound():
    class Point:
        def __init__(self, name, site, delta_e):
            self.name, self.site, self.delta_e = name, site, delta_e

    choices = [choice("hit"), choice("unstable", e_hull=0.3), choice("no hull", e_hull=math.nan), choice("none"), choice("failed")]
    choices += [choice("unbound"), choice("not asked")]
    points = [Point("hit", "b", 0.5), Point("hit", "a", -0.25), Point("unstable", "a", -0.3), Point("no hull", "a", -0.2)]
    points.append(Point("unbound", "a", 3.5))
    prepared = {"none": 0, "not asked": None} | dict.fromkeys(("hit", "unstable", "no hull", "failed", "unbound"), 1)
    found = loop_report.outcomes_of(choices, points, prepared, EvaluationConfig(), 0.27)
    by_name = {o.choice.name: o for o in found}
    assert by_name["hit"].delta_g_dft_ev == pytest.approx(0.02) and by_name["hit"].site == "a" and by_name["hit"].hit is True
    assert (by_name["unstable"].hit_dft, by_name["unstable"].hit) == (True, False)
    assert (by_name["no hull"].hit_dft, by_name["no hull"].hit) == (True, None)
    assert (by_name["none"].status, by_name["none"].hit_dft) == ("no site", False)
    assert all((by_name[name].status, by_name[name].hit_dft) == ("failed", None) for name in ("failed", "not asked"))
    assert by_name["unbound"].hit_dft is False and math.isnan(by_name["unbound"].error_ev)
    numbers = loop_report.summary(found)["sets"][CHOSEN]
    assert numbers["hit_dft"]["n"] == 5 and numbers["hit_dft"]["hits"] == 3 and numbers["failed"] == 2 and numbers["unbound"] == 1
    text = loop_report.rounds_table({"round_1": loop_report.summary(found)})
    assert "3/5: 60 % [23, 88]" in text and "4/7" in text


def test_a_database_of_relaxed_points_does_not_join(tmp_path):
    with connect(tmp_path / "relaxed.db") as db:
        db.write(Atoms("H"), name="x", kind="slab_H", geometry="relaxed", dE_dft=0.0)
    with pytest.raises(StageError, match="must not be mixed"):
        loop_tools.join_points(tmp_path / "relaxed.db", tmp_path / "none.db", tmp_path / "joined.db", {})


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    """Two loops count their rounds from 1; a point must not be taken for one on the sheet of the other."""
    for file, formula, energy in (("before", "MoS2", 1.8), ("new", "WS2", 2.0)):
        sheet = mx2(formula, vacuum=8.0)
        with connect(tmp_path / f"{file}.db") as db:
            db.write(sheet, name="r1-gen_00000", kind="clean")
            place = sheet.positions[sheet.positions[:, 2].argmax()] + [0, 0, 1.35]
            db.write(sheet + Atoms("H", [place]), name="r1-gen_00000", kind="slab_H", site="topS", dE_dft=energy)
    about = {"r1-gen_00000": {"round": 1}}
    assert loop_tools.join_points(tmp_path / "before.db", tmp_path / "new.db", tmp_path / "joined.db", about) == 1
    points = {point.name: point for point in read_truth(tmp_path / "joined.db")}
    assert {name: point.delta_e for name, point in points.items()} == {"r1-gen_00000": 1.8, "r1-gen_00000_2": 2.0}
    for name, metal in (("r1-gen_00000", "Mo"), ("r1-gen_00000_2", "W")):
        assert metal in points[name].atoms.symbols and metal in points[name].clean.symbols
