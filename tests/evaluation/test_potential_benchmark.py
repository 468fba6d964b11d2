"""The comparison of potentials: what it counts, and that a failed relaxation is no number."""

import json
import math

import numpy as np
import pytest
from ase.build import mx2
from ase.calculators.emt import EMT
from ase.db import connect

from crystals.prototypes import PROTOTYPES
from energetics import potential_trials
from energetics.dft_points import read_truth
from energetics.potential_trials import Trial
from energetics.potentials import Potential
from evaluation import potential_benchmark as benchmark
from geo_utils import standard_sheet
from pipeline import potential_table
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from scripts import benchmark_potentials


def record(energy, metal=None, status="ok", strain=(0.0, 0.0), **more):
    values = {"status": status, "steps": 5, "start_energy": energy + 0.05, "energy": energy, "seconds": 1.0, "strain": list(strain)}
    return values | ({"metal_start": [2.8, 2.8, 3.2, 3.2, 3.8, 3.8], "metal": metal} if metal else {}) | more


def trial(key, hform, group, phase=""):
    return Trial(key, mx2("MoS2"), hform, 0.05, 10, group, phase)


def test_a_phase_is_kept_where_half_of_its_distortion_is_left():
    trials = [trial("h", -1.0, "MoS2", "2H"), trial("d", -0.8, "MoS2", "1T′"), trial("w", -0.7, "WS2", "1T′")]
    records = {"h": record(-7.0, [3.2] * 6), "d": record(-6.9, [3.0, 3.0, 3.2, 3.2, 3.7, 3.7]), "w": record(-6.0, [3.2] * 6)}
    found = benchmark.phase_table(trials, records, 0)
    assert found["kept"][0] == 0.5 and [row.get("kept") for row in found["sheets"]] == [None, True, False]
    assert found["energy_error_ev"][0] == pytest.approx(0.1 - 0.2), "above 2H by the potential, less C2DB's"
    assert found["n_energies"] == 1, "WS2 has no 2H sheet to compare with"
    records["d"] = record(math.nan, status="exploded")
    failed = benchmark.phase_table(trials, records, 0)
    assert failed["kept"][0] == 0.0 and failed["n_energies"] == 0 and failed["energy_mae_ev"] == [None] * 3


def test_polymorphs_without_an_energy_have_no_error_and_near_ones_no_order():
    reference = {"a": (0, 0.2), "b": (0, 0.001), "c": (0, 0.1)}
    trials = [trial(f"{pair}{k}", hform, pair) for pair, hforms in reference.items() for k, hform in enumerate(hforms)]
    records = {t.key: record(-5.0 + t.hform) for t in trials}
    records["a1"], records["c1"] = record(-5.1), record(math.nan, status="collapsed")
    errors = benchmark.pair_errors(trials, records)
    np.testing.assert_allclose(errors["relaxed"][:2], [-0.1, 0.001], atol=1e-9)
    table = benchmark.pair_table(errors, 0)
    assert table["relaxed"]["n_ok"] == 2 and table["n"] == 3
    assert table["relaxed"]["same_order"][0] == 0.0 and table["relaxed"]["mae_ev"][0] == pytest.approx(0.15)


def test_lattice_errors_are_shares_of_the_reference():
    trials = [trial("x", 0, "x"), trial("y", 0, "y"), trial("z", 0, "z")]
    records = {"x": record(-1, strain=(0.01, 0.03)), "y": record(-1, strain=(-0.01, -0.01)), "z": record(-1, status="exploded")}
    found = benchmark.lattice_table(trials, records, 0)
    assert (found["n"], found["n_ok"]) == (3, 2)
    assert found["mae_percent"][0] == pytest.approx(1.5) and found["mean_error_percent"][0] == pytest.approx(0.5)
    assert found["beyond_2_percent"][0] == 0.5


def test_adsorption_energies_are_resampled_over_hosts():
    points = read_truth(PROJECT_DIR / "data" / "h_on_2d_dft.db")
    truth = np.array([point.delta_e for point in points])
    found = benchmark.adsorption_table(points, truth - 0.5, truth, 0)
    assert found["mae_ev"] == [0.5, 0.5, 0.5] and found["mean_error_ev"][0] == -0.5 and found["spearman"][0] == 1.0
    assert found["corrected"]["mae_ev"][0] == 0.0 and found["hosts"] < found["n"] == len(points)


def test_published_values_stand_beside_the_lowest_of_ours():
    rows = benchmark.published_table(benchmark.PUBLISHED, benchmark.DFT_POINTS["DFT points"])
    own = {row["name"]: row for row in rows}
    assert len(rows) >= 6 and all(row["source"] for row in rows)
    assert abs(own["2H-MoS2"]["delta_e_dft_ev"] - own["2H-MoS2"]["published_ev"]) < 0.1
    hollow = own["Ti2C"]
    assert hollow["sites"] > 1 and hollow["site"].startswith("hollow"), "the site on top is 1.5 eV above"
    assert abs(hollow["delta_e_dft_ev"] - hollow["published_ev"]) < 0.3


def written_database(path):
    """An imitation of C2DB: 2H, 1T and 1T' of MoS2."""
    with connect(path) as database:
        for prototype, group, hform in (("2H-MX2", 78, -0.9), ("1T-MX2", 72, -0.6), ("1Tprime-MX2", 15, -0.7)):
            atoms = PROTOTYPES[prototype].build("Mo", "S")
            database.write(atoms, uid=prototype, lgnum=group, hform=hform, ehull=0.0)
    return path


def test_phases_are_found_by_formula_and_layer_group(tmp_path):
    path = written_database(tmp_path / "c2db.db")
    found = potential_trials.phase_trials(path)
    assert [(t.group, t.phase, len(t.atoms)) for t in found] == [("MoS2", "2H", 3), ("MoS2", "1T", 3), ("MoS2", "1T′", 6)]
    pair = potential_trials.pair_trials(path, 1, 0)
    assert len(pair) == 2 and len({t.key for t in pair}) == 2 and pair == potential_trials.pair_trials(path, 1, 0)
    with pytest.raises(StageError, match="fewer than 2"):
        potential_trials.pair_trials(path, 2, 0)
    with pytest.raises(StageError, match="has no sheet of"):
        potential_trials.lattice_trials(path)
    with pytest.raises(StageError):
        potential_trials.phase_trials(tmp_path / "missing.db")


def test_relaxations_are_kept(tmp_path, monkeypatch):
    atoms = standard_sheet(mx2("CuAu2", a=2.9, thickness=3.0, vacuum=10))
    potential = Potential("emt", {"name": "emt"}, EMT())
    database = written_database(tmp_path / "c2db.db")
    trials = [Trial("lattice:x", atoms, -0.1, 0.5, 2, "x")]
    store = potential_trials.run_trials(trials, potential, [database], tmp_path)
    found = store["lattice:x"]
    assert found["energy"] <= found["start_energy"] and len(found["strain"]) == 2 and "metal" not in found
    monkeypatch.setattr(potential_trials, "relax_trial", lambda *_: pytest.fail("relaxed again"))
    again = potential_trials.run_trials(trials, potential, [database], tmp_path)
    assert again["lattice:x"] == json.loads(json.dumps(found))


def test_the_tables_hold_one_column_for_each_potential():
    content = json.loads((PROJECT_DIR / "results" / "benchmark" / "potentials.json").read_text(encoding="utf-8"))
    lines = potential_table.potentials(content).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and all(name in lines[0] for name in content["potentials"])
    assert "1T′-MoS2" in potential_table.phases(content) and "2H-MoS2" in potential_table.published(content)


def test_a_missing_release_is_one_line(tmp_path, monkeypatch, capsys):
    missing = str(tmp_path / "none.db")
    monkeypatch.setattr("sys.argv", ["benchmark_potentials", "--c2db", missing, "--laboratory", missing, "--potentials"])
    with pytest.raises(SystemExit) as ended:
        benchmark_potentials.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1 and "none.db" in said and said.startswith("benchmark_potentials.py: ")
