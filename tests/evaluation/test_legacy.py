"""The scoring of the earlier public baseline."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import simple_judges as simple
from simple_judges import SETTINGS, evaluated

from crystals import validity
from energetics import potential_adsorption
from evaluation import candidate, decisions
from evaluation.legacy import legacy_ranking, legacy_stability_score


def test_scores_of_the_earlier_baseline_by_hand(tmp_path):
    evaluation = evaluated(tmp_path, {"sheet": simple.sheet(), "crystal": simple.bulk_copper()})
    rows = {row.id: row for row in evaluation.rows}
    for name, atoms in (("sheet", 3), ("crystal", 4)):
        row, delta_g, stability = rows[name], -0.02 * atoms + 0.27, 1 - math.exp(-3.5)
        assert row.legacy_delta_g_ev == pytest.approx(delta_g) and row.legacy_energy_ev_per_atom == -4.0
        assert row.legacy_score_stab == pytest.approx(stability)
        assert row.legacy_score_composite == pytest.approx(0.4 * (1 - 2 * abs(delta_g)) + 0.3 * stability + 0.3 * 0.8)
    assert evaluation.aggregates["legacy_score_composite"].value == rows["sheet"].legacy_score_composite
    assert evaluation.bulk_aggregates["legacy_score_composite"].value == rows["crystal"].legacy_score_composite
    without = dataclasses.replace(SETTINGS, legacy_columns=False)
    (row,) = evaluated(tmp_path, {"sheet": simple.sheet()}, settings=without, name="other").rows
    assert math.isnan(row.legacy_score_composite) and not math.isnan(row.score_composite)
    assert legacy_stability_score(0.2) == 0.0 and legacy_stability_score(2000.0) == 0.0
    assert math.isnan(legacy_stability_score(math.nan))


def test_a_failure_of_the_earlier_baselines_scoring_costs_no_other_number(tmp_path):
    class Unembeddable(simple.Hydrogen):
        def legacy_bare_output(self, atoms):
            raise ValueError("Og is heavier than the network's last element")

    (row,) = evaluated(tmp_path, {"a": simple.sheet()}, simple.judges(her=Unembeddable())).rows
    assert "scores of the earlier baseline: Og is heavier" in row.status
    assert math.isnan(row.legacy_score_composite) and row.score_composite > 0 and row.hit_dimenet


def test_the_earlier_baselines_energy_is_total_and_keeps_the_cell():
    from ase.calculators.emt import EMT

    from energetics.potentials import Potential

    atoms = simple.bulk_copper()
    atoms.set_cell(atoms.cell * 1.05, scale_atoms=True)
    atoms.positions[0] += [0.1, 0.05, 0.0]
    before, cell = atoms.copy(), atoms.cell.array.copy()

    def energy(steps):
        potential = Potential("emt", {"name": "emt"}, EMT())
        return potential_adsorption.StabilityJudge(potential, dataclasses.replace(SETTINGS, legacy_max_steps=steps)).legacy_energy(
            atoms
        )

    before.calc = EMT()
    assert energy(0) == pytest.approx(before.get_potential_energy() / 4), "the structure as it is"
    stretched = simple.bulk_copper()
    stretched.set_cell(cell, scale_atoms=True)
    stretched.calc = EMT()
    assert energy(50) == pytest.approx(stretched.get_potential_energy() / 4, abs=1e-3), "positions relax, the stretched cell stays"
    assert energy(50) < energy(0)
    np.testing.assert_array_equal(atoms.cell.array, cell)


def test_ranking_of_the_earlier_baseline_and_what_becomes_of_its_favourites():
    def row(name, legacy, ours=math.nan, **values):
        made = candidate.CandidateResult(id=name, formula="MoS2", reduced_formula="MoS2", legacy_score_composite=legacy)
        made.dimensionality, made.valid, made.score_composite = "2D", True, ours
        for key, value in values.items():
            setattr(made, key, value)
        return made

    rows = [
        row("bulk", 0.99, dimensionality=validity.BULK),
        row("clash", 0.9, 0.1, valid=False),
        row("high", 0.8, 0.2, e_above_hull_ev=0.4, delta_g_ev=0.0),
        row("inert", 0.7, 0.3, e_above_hull_ev=0.0, delta_g_ev=1.5, hit=False),
        row("good", 0.6, 0.9, e_above_hull_ev=0.0, delta_g_ev=0.0, hit=True),
        row("unscored", math.nan, 0.8),
    ]
    found = legacy_ranking(rows, SETTINGS, top=3)
    assert (found["n"], found["n_both"], found["of"]) == (5, 4, 3)
    assert found["spearman"] == pytest.approx(-1.0)
    assert found["overlap"] == 0, "our first three: good, unscored, inert; its: bulk, clash, high"
    assert found["verdicts"] == {"not 2D": 1, "invalid": 1, "unstable": 1}
    assert [(r["id"], r["rank"], r["our_rank"]) for r in found["rows"]] == [("bulk", 1, None), ("clash", 2, 5), ("high", 3, 4)]
    assert [decisions.verdict(r, SETTINGS) for r in rows[3:5]] == ["|ΔG_H| > 0.1 eV", "hit"]
    assert legacy_ranking([row("x", math.nan, 0.5)], SETTINGS) is None
