"""The judges of hydrogen against DFT."""

from __future__ import annotations

import math

import ase.db
import numpy as np
import pytest
import simple_judges as simple
from ase import Atoms

from evaluation import dft_benchmark
from pipeline.memory import Memory


def test_dft_benchmark_pairs_predictions_with_dft(tmp_path):
    with ase.db.connect(tmp_path / "truth.db") as database:
        for k, energy in enumerate((0.1, 0.5, 1.5)):
            slab = simple.sheet().repeat((1, k + 1, 1))
            slab += Atoms("H", [[0, 0, slab.positions[:, 2].max() + 1.4]])
            slab.pbc = (True, True, False)
            database.write(slab, kind="slab_H", name=f"s{k}", host="MoS2", site="topS", dE_dft=energy, dE_7net0=energy - 0.2)
        database.write(simple.sheet(), kind="clean", name="s0")
    (tmp_path / "truth.csv").write_text(
        "system,structure,site,coverage,delta_e_ev,delta_g_ev,method,source\n"
        "MoS2,s1,topS,0.5,0.5,0.77,PBE,own\nPt(111),,fcc,0.25,-0.33,-0.06,PBE,literature\n"
    )
    report = dft_benchmark.dft_benchmark(simple.Hydrogen(), tmp_path / "truth.db", tmp_path / "truth.csv")
    assert report["n"] == 3 and report["spearman"] == pytest.approx(1.0)
    assert report["mae_ev"] == pytest.approx(np.mean(np.abs(np.array([0.4, 0.7, 1.0]) - [0.1, 0.5, 1.5])))
    assert report["potential"]["mae_ev"] == pytest.approx(0.2) and report["potential"]["mean_error_ev"] == pytest.approx(-0.2)
    assert report["table"]["n"] == 1 and len(report["table"]["rows"]) == 2
    assert dft_benchmark.dft_benchmark(simple.Hydrogen(), tmp_path / "missing.db") is None


def test_errors_with_a_whole_site_chemistry_left_out(tmp_path):
    """The truth is that of the potential, but for an offset on oxygen that nothing else tells of."""
    rng, energy = np.random.default_rng(2), np.linspace(-0.5, 1.5, 18)
    truth = energy + 0.05 * rng.normal(size=18)
    with ase.db.connect(tmp_path / "truth.db") as database:
        for k in range(18):
            slab = simple.sheet(f"{('Mo', 'W', 'Nb', 'Ta', 'V', 'Cr')[k % 6]}{('S2', 'Se2', 'O2')[k // 6]}")
            slab += Atoms("H", [slab.positions[slab.positions[:, 2].argmax()] + [0, 0, 1.2]])
            slab.pbc = (True, True, False)
            delta_e = float(truth[k] + (1.0 if k >= 12 else 0.0))
            database.write(slab, kind="slab_H", name=f"s{k}", site="top", dE_dft=delta_e, dE_7net0=float(energy[k]))
    found = dft_benchmark.dft_benchmark(simple.Hydrogen(), tmp_path / "truth.db")["potential_corrected"]
    by_site = found["chemistry_left_out"]
    assert set(by_site["by_chemistry"]) == {"chalcogen", "oxygen"} and by_site["n"] == found["n"] == found["coverage"]["n"] == 18
    assert found["by_chemistry"]["oxygen"]["n"] == by_site["by_chemistry"]["oxygen"]["n"] == 6
    assert by_site["by_chemistry"]["oxygen"]["mean_error_ev"] == pytest.approx(-1.0, abs=0.3)
    assert abs(found["by_chemistry"]["oxygen"]["mean_error_ev"]) < 0.4 and found["mae_ev"] < 0.5 * by_site["mae_ev"]
    assert by_site["coverage"]["within_1"] < found["coverage"]["within_1"] == pytest.approx(0.683, abs=0.06)
    low, high = by_site["coverage"]["within_1_interval"]
    assert 0 <= low <= by_site["coverage"]["within_1"] < high < 1


def test_errors_by_where_the_sheets_are_from(tmp_path):
    energy = np.linspace(-0.5, 1.5, 18)
    drawn = ("chosen neighbour", "unguided", None)
    families = {1: "vacancy in 2H-MoS2", 4: "edge of 2H-MoS2"}
    with ase.db.connect(tmp_path / "truth.db") as database:
        for k in range(18):
            slab = simple.sheet(f"{('Mo', 'W', 'Nb', 'Ta', 'V', 'Cr')[k // 3]}{('S2', 'Se2', 'O2')[k % 3]}")
            slab += Atoms("H", [slab.positions[slab.positions[:, 2].argmax()] + [0, 0, 1.2]])
            slab.pbc = (True, True, False)
            about = {"drawn_as": drawn[k % 3]} if drawn[k % 3] else {"family": families.get(k // 3, "2H-MX2")}
            database.write(slab, kind="slab_H", name=f"s{k}", site="top", dE_dft=energy[k], dE_7net0=energy[k], **about)
    found = dft_benchmark.dft_benchmark(simple.Hydrogen(), tmp_path / "truth.db")
    origins = found["potential_corrected"]["by_origin"]
    assert {name: own["n"] for name, own in origins.items()} == {
        "neighbours by substitution": 6,
        "unguided generator": 6,
        "defects and edges": 2,
        "known structure types": 4,
    }
    total = sum(own["n"] * own["mae_ev"] for own in origins.values())
    assert total == pytest.approx(18 * found["potential_corrected"]["mae_ev"])
    assert [row["name"] for row in found["rows"] if row["origin"] == "defects and edges"] == ["s5", "s14"]


def test_inert_sheets_must_come_out_above_active_ones():
    table = [
        {"structure": "db#MoS2", "activity": "inert"},
        {"structure": "db#BN", "activity": "inert"},
        {"structure": "db#NbS2", "activity": "active"},
        {"structure": "db#TiS2", "activity": ""},
        {"structure": "db#nowhere", "activity": "active"},
    ]
    rows = [
        {"name": "MoS2", "e": 1.2},
        {"name": "MoS2", "e": 0.9},
        {"name": "BN", "e": 2.0},
        {"name": "NbS2", "e": 1.0},
        {"name": "NbS2", "e": 1.5},
        {"name": "TiS2", "e": 3.0},
    ]
    found = dft_benchmark.inert_above_active(rows, table, "e")
    assert found == {"pairs": 2, "violations": ["MoS2 < NbS2"]}, "the lowest site speaks for a sheet"
    rows[1]["e"] = 1.1
    assert dft_benchmark.inert_above_active(rows, table, "e")["violations"] == []
    rows[1]["e"] = math.nan
    assert dft_benchmark.inert_above_active(rows[1:], table, "e")["violations"] == ["MoS2 < NbS2"], "no value is no proof"


def test_a_network_is_asked_once_about_the_same_points(tmp_path):
    class Counting(simple.Hydrogen):
        asked = 0

        def predict_raw(self, structures):
            self.asked += 1
            values, std = super().predict_raw(structures)
            return np.where(np.arange(len(values)) == 1, np.nan, values + 1 / 3), std

    with ase.db.connect(tmp_path / "truth.db") as database:
        for k, energy in enumerate((0.1, 0.5, 1.5)):
            slab = simple.sheet()
            slab += Atoms("H", [[0, 0, slab.positions[:, 2].max() + 1.4]])
            slab.pbc = (True, True, False)
            database.write(slab, kind="slab_H", name=f"s{k}", host="MoS2", site="topS", dE_dft=energy, dE_7net0=energy)
    her, other = Counting(), Counting()
    other.provenance = {"sha256": "another network"}
    memory = Memory(tmp_path / "memory")
    rows = [dft_benchmark.dft_benchmark(her, tmp_path / "truth.db", memory=memory)["rows"] for _ in range(2)]
    assert her.asked == 1 and math.isnan(rows[1][1]["delta_e_uncorrected_ev"])
    np.testing.assert_array_equal(*([row["delta_e_uncorrected_ev"] for row in found] for found in rows))
    dft_benchmark.dft_benchmark(other, tmp_path / "truth.db", memory=memory)
    assert other.asked == 1
    with ase.db.connect(tmp_path / "truth.db") as database:
        database.update(database.get(name="s0").id, dE_dft=0.2)
    dft_benchmark.dft_benchmark(her, tmp_path / "truth.db", memory=memory)
    assert her.asked == 2
