"""The rule that chooses sheets for DFT, on many random sets of candidates, and its controls."""

import math
import re
from collections import Counter
from statistics import NormalDist

import numpy as np
import pytest
from simple_judges import sheet, write_cifs

from crystals import validity
from crystals.formulas import composition_key
from crystals.prototypes import honeycomb
from evaluation import batch_choice
from evaluation.batch_choice import (
    Limits,
    chance_in_minimum,
    choose_batch,
    design_fault,
    dft_atoms,
    draw_controls,
    family_of,
    learning_gain,
    worth_judging,
)
from evaluation.candidate import CandidateResult
from evaluation.decisions import hit_probability
from evaluation.relaxation_change import UNKNOWN_CHANGE, RelaxationChange
from pipeline.settings import EvaluationConfig

SETTINGS = EvaluationConfig()
METALS = ["Nb", "Ta", "Mo", "W", "Pd", "Pt", "Ni", "Co", "Ti", "Zr"]
GROUPS = ["p-3m1", "p-6m2", "pmmn"]
SHEET = honeycomb("C", "C")
FREE = Limits(frozenset(), 100, 2, 100)


@pytest.fixture
def small_cells(monkeypatch):
    """Every cell with H has 19 atoms, without a look at it, which takes a while in thousands of draws."""
    monkeypatch.setattr(batch_choice, "dft_atoms", lambda sheet: 19)


def row(identifier, formula="NbS2", **values):
    """A sheet that may be chosen."""
    known = {
        "dimensionality": validity.SHEET,
        "valid": True,
        "sheet_relaxed": True,
        "unique": True,
        "novel": True,
        "h_relax_converged": True,
        "layer_group_relaxed": "p-3m1",
        "delta_g_ev": 0.0,
        "delta_g_std_ev": 0.3,
        "e_above_hull_ev": 0.0,
        "e_above_hull_std_ev": 0.05,
    }
    found = CandidateResult(id=identifier, formula=formula, reduced_formula=formula, **(known | values))
    found.p_hit = hit_probability(found, SETTINGS)
    return found


def random_rows(seed, n=60):
    """Rows of which about a half may be chosen."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        first, second = rng.choice(METALS, 2, replace=False)
        formula = str(rng.choice([f"{first}S2", f"{first}2{second}Te2", f"{first}Se2", f"{first}{second}O4"]))
        rows.append(
            row(
                f"gen_{k:05d}",
                formula,
                delta_g_ev=float(rng.normal(0, 0.6)),
                delta_g_std_ev=float(rng.uniform(0.1, 0.6)),
                e_above_hull_ev=float(rng.exponential(0.1)),
                layer_group_relaxed=str(rng.choice(GROUPS)),
                valid=bool(rng.random() < 0.9),
                novel=[True, False, None][rng.integers(3)],
                h_desorbed=bool(rng.random() < 0.1),
            )
        )
    return rows


def chosen(rows, size=8, explore=0.25, limits=FREE):
    return choose_batch(rows, {r.id: SHEET for r in rows}, size, explore, limits, SETTINGS)


@pytest.mark.parametrize("seed", range(25))
def test_a_batch_keeps_every_limit_and_no_better_sheet_is_passed_over(seed, small_cells):
    rows = random_rows(seed)
    known = {composition_key(rows[k].formula) for k in (1, 5, 9)}
    limits = Limits(known, 100, 2, 100)
    picks, refused = chosen(rows, limits=limits)
    formulas = [composition_key(pick.row.formula) for pick in picks]
    families = Counter(pick.family for pick in picks)
    assert len(picks) <= 8 and len(set(formulas)) == len(formulas) and not set(formulas) & known
    assert max(families.values()) <= 2 and all(not design_fault(pick.row, SETTINGS) for pick in picks)
    eligible = [r for r in rows if not design_fault(r, SETTINGS) and composition_key(r.formula) not in known]
    assert sum(refused.values()) == len(rows) - len(eligible)
    exploiting = [pick.row for pick in picks[:6] if pick.reason.startswith("p_hit")]
    assert [r.p_hit for r in exploiting] == sorted((r.p_hit for r in exploiting), reverse=True)
    # Whoever was passed over for a sheet of lower p_hit shares its composition or a full family with one that came earlier.
    for place, taken in enumerate(exploiting):
        earlier = exploiting[:place]
        full = {f for f, n in Counter(family_of(r) for r in earlier).items() if n == 2}
        for other in eligible:
            if other not in exploiting and other.p_hit > taken.p_hit:
                assert composition_key(other.formula) in {composition_key(r.formula) for r in earlier} or family_of(other) in full
    kinds = [pick.reason.split()[0] for pick in picks[6:]]
    assert kinds == sorted(kinds, reverse=True), "what DFT teaches comes first, p_hit fills up"
    assert all(learning_gain(pick.row, SETTINGS) > 0 for pick in picks if pick.reason.startswith("teaches"))
    if len(picks) < 8:  # nobody is left for whom there is a place
        full = {family for family, number in families.items() if number == 2}
        able = [r for r in eligible if composition_key(r.formula) not in formulas and family_of(r) not in full]
        assert all(r.p_hit == 0 and learning_gain(r, SETTINGS) == 0 for r in able)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_candidates_does_not_matter(seed, small_cells):
    rows = random_rows(seed)
    mixed = [rows[k] for k in np.random.default_rng(seed).permutation(len(rows))]
    assert [p.row.id for p in chosen(rows)[0]] == [p.row.id for p in chosen(mixed)[0]]


def test_halides_and_compounds_of_alkali_metals_take_few_places(small_cells):
    soluble = [row(f"a{k}", formula) for k, formula in enumerate(["NbCl2", "TaBr2", "LiNbS2", "MoI3"])]
    others = [row(f"b{k}", f"{metal}S2", delta_g_ev=0.3, layer_group_relaxed=f"g{k}") for k, metal in enumerate(METALS)]
    for most in (0, 1, 2):
        picks, _ = chosen([*soluble, *others], 6, limits=Limits(frozenset(), 100, 9, most))
        assert [pick.row.id for pick in picks[:most]] == [r.id for r in soluble[:most]], "the best of them come first"
        assert len(picks) == 6 and sum(pick.row.id.startswith("a") for pick in picks) == most


def test_the_first_places_go_by_p_hit_and_the_others_by_what_dft_teaches():
    rows = [
        row("best", "NbS2", delta_g_std_ev=0.1),
        row("far, certain", "TaS2", delta_g_ev=1.0, delta_g_std_ev=0.1),
        row("uncertain", "MoS2", delta_g_ev=0.6, delta_g_std_ev=0.6, layer_group_relaxed="p-6m2"),
        row("uncertain, unstable", "WS2", delta_g_ev=0.6, delta_g_std_ev=0.7, e_above_hull_ev=0.4),
    ]
    assert [p.row.id for p in chosen(rows, 2, 0.5)[0]] == ["best", "uncertain"]
    assert [p.row.id for p in chosen(rows, 1, 0.0)[0]] == ["best"]
    assert [p.row.id for p in chosen(rows, 1, 1.0)[0]] == ["uncertain"]
    certain = [rows[0], row("far", "TaS2", delta_g_ev=1.0, delta_g_std_ev=0.3)]
    assert [p.row.id for p in chosen(certain, 2, 0.5)[0]] == ["best", "far"], "a place for learning that nobody takes goes by p_hit"


def test_what_dft_relaxations_changed_so_far_moves_the_window():
    rows = [row("at zero", "NbS2", delta_g_std_ev=0.05), row("above", "TaS2", delta_g_ev=0.15, delta_g_std_ev=0.05)]
    structures = {r.id: SHEET for r in rows}

    def first(change):
        pick = choose_batch(rows, structures, 1, 0.0, FREE, SETTINGS, change)[0][0]
        assert pick.row in rows, "what the judges said stays in the log"
        return pick

    def changes(*values):
        return RelaxationChange({("sheet", str(k)): (0.0, value) for k, value in enumerate(values)})

    assert first(UNKNOWN_CHANGE).row.id == first(changes(-0.15)).row.id == "at zero", "one site is too few"
    fallen = first(changes(*[-0.15] * 6))
    window = NormalDist(0.0, 0.05).cdf(0.1) - NormalDist(0.0, 0.05).cdf(-0.1)
    stable = NormalDist(0.0, 0.05).cdf(SETTINGS.hit_e_hull_ev)
    said = re.fullmatch(r"p_hit (.*) with ΔG_H -0.15 eV in a minimum of DFT", fallen.reason)
    assert fallen.row.id == "above" and float(said[1]) == pytest.approx(window * stable, abs=0.0015)
    scattered = first(changes(-0.45, 0.15, -0.45, 0.15, -0.45, 0.15))
    assert float(scattered.reason.split()[1]) < 0.4, "scatter makes it less certain"


def test_a_sheet_that_relaxations_bring_down_more_the_higher_it_is_stays_in_the_window():
    singles = np.linspace(-0.1, 0.2, 12)
    line = RelaxationChange({("sheet", str(k)): (x, x - 0.02 - 0.6 * (x + 0.1)) for k, x in enumerate(singles)})
    mean = RelaxationChange({("sheet", str(k)): (0.0, -0.1) for k in range(5)})

    def chance(value, std, change):
        return chance_in_minimum(row("a", delta_g_ev=value, delta_g_std_ev=std, e_above_hull_std_ev=math.nan), change, SETTINGS)

    assert line.line == pytest.approx((-0.08, -0.6)) and line.scatter_ev == pytest.approx(0.0, abs=1e-9)
    assert line.expected(np.array([-0.5, 0.9])) == pytest.approx([-0.02, -0.2]), "beyond what is known as at its end"
    for value, is_hit in ((-0.04, True), (-0.06, False), (0.0, True), (0.29, True), (0.31, False)):
        assert chance(value, math.nan, line) == is_hit
    # By numerical integration over the single point.
    x = np.linspace(-1.5, 1.5, 60_001)
    density = np.exp(-(((x - 0.15) / 0.2) ** 2) / 2) / (0.2 * math.sqrt(2 * math.pi))
    inside = np.abs(x + line.expected(x)) <= 0.1
    assert chance(0.15, 0.2, line) == pytest.approx(float(np.trapezoid(density * inside, x)), abs=0.002)
    assert chance(0.15, 0.2, line) > chance(0.15, 0.2, mean) + 0.1


def test_changes_at_other_sites_count_together():
    one, other = (
        RelaxationChange({("a", "top"): (0.1, 0.0)}),
        RelaxationChange({("b", "top"): (0.2, 0.0), ("a", "top"): (9.0, 9.0)}),
    )
    assert one.with_others(other).at == {("a", "top"): (0.1, 0.0), ("b", "top"): (0.2, 0.0)}
    assert UNKNOWN_CHANGE.as_dict() == {"n": 0}
    six = RelaxationChange({("a", str(k)): (0.0, k / 10) for k in range(6)}).as_dict()
    assert six["mean_ev"] == six["at_zero_ev"] == pytest.approx(0.25) and six["slope"] == 0.0
    assert six["std_ev"] == six["scatter_ev"] == pytest.approx(np.std(np.arange(6) / 10, ddof=1))


def test_learning_gain_is_zero_where_two_errors_do_not_reach_the_window():
    assert learning_gain(row("a", delta_g_ev=0.71, delta_g_std_ev=0.3), SETTINGS) == 0.0
    exact = row("a", delta_g_ev=0.69, delta_g_std_ev=0.3, e_above_hull_ev=0.1)  # on the limit: probability a half
    assert learning_gain(exact, SETTINGS) == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"valid": False}, "no valid sheet"),
        ({"sheet_relaxed": False}, "no valid sheet"),
        ({"dimensionality": validity.BULK}, "no valid sheet"),
        ({"unique": False}, "duplicate"),
        ({"novel": False}, "not novel"),
        ({"hazards": "Tl"}, "hazards or price"),
        ({"dynamically_stable": False}, "dynamically unstable"),
        ({"water": "dissolves"}, "dissolves in water"),
        ({"conductive": False, "formula": "MoS2"}, "does not conduct"),
        ({"h_desorbed": True}, "H desorbs or is not at rest"),
        ({"h_relax_converged": False}, "H desorbs or is not at rest"),
        ({"delta_g_std_ev": math.nan}, "no ΔG_H with an error, or no E_above_hull"),
        ({"e_above_hull_ev": math.nan}, "no ΔG_H with an error, or no E_above_hull"),
    ],
)
def test_who_may_not_be_chosen_is_counted_by_reason(change, reason):
    assert design_fault(row("a"), SETTINGS) == ""
    picks, refused = chosen([row("a", **change), row("b", "TaS2")], 2, 0.0)
    assert [p.row.id for p in picks] == ["b"] and refused == {reason: 1}


def test_dft_decides_whether_a_sheet_with_an_odd_number_of_electrons_conducts():
    niobium_41_and_two_sulfur_16 = row("odd", "NbS2", conductive=False)
    assert design_fault(niobium_41_and_two_sulfur_16, SETTINGS) == "does not conduct", "as a design it needs a gap that is right"
    picks, refused = chosen([niobium_41_and_two_sulfur_16, row("even", "MoS2", conductive=False)], 2, 0.0)
    assert [p.row for p in picks] == [niobium_41_and_two_sulfur_16] and refused == {"does not conduct": 1}


def test_large_cells_and_known_compositions_cost_nothing():
    atoms = dft_atoms(SHEET)
    assert atoms == 9 * 2 + 1, "graphene in 3 x 3, the smallest cell with 5.6 Å between images of H"
    assert chosen([row("a")], limits=Limits(frozenset(), atoms - 1, 2, 100))[1] == {f"more than {atoms - 1} atoms with H": 1}
    assert len(chosen([row("a")], limits=Limits(frozenset(), atoms, 2, 100))[0]) == 1
    assert chosen([row("a", "Nb2S4")], limits=Limits({"NbS2"}, 100, 2, 100))[1] == {"composition computed before": 1}
    assert choose_batch([row("a")], {}, 1, 0.0, FREE, SETTINGS)[1] == {"no relaxed sheet": 1}


def test_a_family_is_a_stoichiometry_in_a_layer_group():
    assert family_of(row("a", "Nb2PdTe2")) == family_of(row("b", "Ta2CoSe2")) == "AB2C2 p-3m1"
    assert family_of(row("a", "Nb2PdTe2", layer_group_relaxed="pmmn")) != family_of(row("b", "Ta2CoSe2"))


def test_controls_are_drawn_without_a_look_at_predictions(small_cells):
    rows = [row(f"u{k}", f"{metal}S2", delta_g_ev=3.0, novel=False) for k, metal in enumerate(METALS)]
    rows += [row("dangerous", "NbSe2", hazards="Tl"), row("known", "NbTe2"), row("broken", "NbO2", valid=False)]
    limits = Limits({"NbTe2"}, 100, 1, 100)

    def draw(seed, among=rows):
        structures = {r.id: SHEET for r in rows}
        return [p.row.id for p in draw_controls(among, structures, 3, limits, SETTINGS, np.random.default_rng(seed))]

    counts = Counter(name for seed in range(300) for name in draw(seed))
    assert set(counts) == {f"u{k}" for k in range(10)}
    assert max(counts.values()) < 130 and min(counts.values()) > 55, "each of ten in about 90 of 300 draws of three"
    assert draw(1) == draw(1, rows[::-1]) != draw(2)
    assert len(draw_controls(rows[:2], {r.id: SHEET for r in rows}, 5, limits, SETTINGS, np.random.default_rng(0))) == 2


def test_only_sheets_that_dft_may_be_asked_about_are_worth_judging(tmp_path):
    """2H-MoS2 with H is a cell of 13 atoms, C2H2 holds H, WS2 is known; a file that is no crystal is left to the judges."""
    structures = {"MoS2": sheet(), "known": sheet("WS2"), "large": sheet("NbS2").repeat((5, 1, 1)), "graphane": honeycomb("C", "H")}
    for name, atoms in structures.items():
        atoms.pbc = True
        write_cifs(tmp_path, {name: atoms})
    (tmp_path / "nothing.cif").write_text("data_x\n")
    paths = sorted(tmp_path.glob("*.cif"))
    limits = Limits({composition_key("WS2")}, 13, 1, 1)
    assert dft_atoms(structures["MoS2"]) == 13
    worth, refused = worth_judging(paths, limits)
    assert {path.stem for path in worth} == {"MoS2", "large", "nothing"}, "five cells in a row are the same sheet"
    assert refused == {"composition computed before": 1, "the sheet itself contains H": 1}
    worth, refused = worth_judging(paths, Limits(frozenset(), 12, 1, 1))
    assert {path.stem for path in worth} == {"nothing"} and refused["more than 12 atoms with H"] == 3
    worth, refused = worth_judging(paths, Limits(frozenset(), 13, 1, 1, {"Nb", "W"}))
    assert {path.stem for path in worth} == {"MoS2", "nothing"} and refused["elements that are left out"] == 2
