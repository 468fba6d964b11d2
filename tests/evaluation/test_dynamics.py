"""Phonons in the judging: who is asked, what is stored, and that records of earlier runs stay."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import simple_judges as simple
from ase import Atoms
from ase.io import read
from simple_judges import SETTINGS, evaluated

from energetics.dynamic_stability import DynamicStability
from evaluation import dynamics, figures
from evaluation.candidate import QUANTITIES, CandidateResult
from evaluation.judge_pool import cache_key
from evaluation.page_words import ABOUT

FIELDS = {
    "dynamically_stable",
    "p_dynamic",
    "min_hessian_ev_per_a2",
    "min_phonon_thz",
    "stiffness_min_n_per_m",
    "distortion_gain_ev",
    "distorted_stable",
}


class Unstable(simple.Springs):
    """Finds that every sheet distorts to a stable one, but for tungsten, whose phonons fail."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def dynamic_stability(self, sheet: Atoms) -> DynamicStability:
        self.asked.append(sheet.get_chemical_formula())
        if "W" in sheet.get_chemical_symbols():
            raise ValueError("relaxation exploded")
        return DynamicStability(False, sheet, -1.2, -2.5, (0.5, 0.5), 8.0, sheet.repeat((2, 1, 1)), 0.03, True)


def test_numbers_and_reasons_come_into_the_row(tmp_path):
    sheets = {"mos2": simple.sheet(), "ws2": simple.sheet("WS2"), "copper": simple.bulk_copper()}
    found = {row.id: row for row in evaluated(tmp_path, sheets, simple.judges(potential=Unstable())).rows}
    row = found["mos2"]
    assert row.dynamically_stable is False and row.distorted_stable is True and row.status == "ok"
    numbers = (row.min_hessian_ev_per_a2, row.min_phonon_thz, row.stiffness_min_n_per_m, row.distortion_gain_ev)
    assert numbers == (-1.2, -2.5, 8.0, 0.03)
    assert found["ws2"].dynamically_stable is None and math.isnan(found["ws2"].min_phonon_thz)
    assert found["ws2"].status.endswith("phonons: ValueError relaxation exploded")
    assert found["copper"].dynamically_stable is None
    (frame,) = read(tmp_path / "out" / "distorted.extxyz", index=":")
    assert len(frame) == 6 and frame.info["id"] == "mos2"
    evaluated(tmp_path, sheets, settings=dataclasses.replace(SETTINGS, phonons=False))
    assert not (tmp_path / "out" / "distorted.extxyz").exists()


def test_they_are_computed_once_and_change_no_other_key(tmp_path):
    potential = Unstable()
    judges = simple.judges(potential=potential)
    off = dataclasses.replace(SETTINGS, phonons=False)
    (plain,) = evaluated(tmp_path, {"mos2": simple.sheet()}, judges, off).rows
    assert plain.dynamically_stable is None and potential.asked == []
    assert cache_key(b"x", {}, SETTINGS) == cache_key(b"x", {}, off)
    for _ in range(2):
        (row,) = evaluated(tmp_path, {"mos2": simple.sheet()}, judges).rows
        assert row.dynamically_stable is False and row.distorted_stable is True
    assert len(potential.calls) == 1 and len(potential.asked) == 1, "the record of the run without phonons serves the next"
    changed = {f.name for f in dataclasses.fields(row) if repr(getattr(row, f.name)) != repr(getattr(plain, f.name))}
    assert changed <= FIELDS | {"seconds"}


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({}, True),
        ({"e_above_hull_ev": 0.25}, False),
        ({"e_above_hull_ev": math.nan}, False),
        ({"valid": False}, False),
        ({"sheet_relaxed": False}, False),
        ({"dimensionality": "3D"}, False),
        ({"natoms": 13}, False),
    ],
)
def test_who_is_asked(change, asked):
    row = CandidateResult(natoms=3, dimensionality="2D", valid=True, sheet_relaxed=True, e_above_hull_ev=0.2)
    assert dynamics.is_asked(dataclasses.replace(row, **change), SETTINGS) is asked
    assert not dynamics.is_asked(row, dataclasses.replace(SETTINGS, phonons=False))


def test_stable_sheets_of_lower_symmetry_are_returned():
    row = CandidateResult(id="a", natoms=3, dimensionality="2D", valid=True, sheet_relaxed=True, e_above_hull_ev=0.1, seconds=1.0)
    leads = dynamics.mark_dynamics([row], {"a": simple.sheet()}, simple.judges(potential=Unstable()), SETTINGS)
    assert len(leads["a"]) == 6 and row.seconds >= 1.0


def test_a_damaged_record_is_made_anew(tmp_path):
    judges = simple.judges(potential=Unstable())
    evaluated(tmp_path, {"mos2": simple.sheet()}, judges)
    (path,) = (tmp_path / "out" / "cache" / "phonons").glob("*.json")
    path.write_text("{}", encoding="utf-8")
    (row,) = evaluated(tmp_path, {"mos2": simple.sheet()}, judges).rows
    assert row.dynamically_stable is False and len(judges.potential.asked) == 2


def test_the_funnel_has_the_step_where_somebody_was_asked(tmp_path):
    found = evaluated(tmp_path, {"mos2": simple.sheet()}, simple.judges(potential=Unstable()))
    names = list(figures.funnel_counts(found, SETTINGS))
    assert names.index("dynamically stable") == names.index("metastable: E_hull ≤ 0.1 eV/atom") + 1
    nobody = dataclasses.replace(found, rows=[dataclasses.replace(row, dynamically_stable=None) for row in found.rows])
    assert "dynamically stable" not in figures.funnel_counts(nobody, SETTINGS)


def test_columns_have_titles_and_words():
    assert FIELDS <= set(QUANTITIES) and FIELDS <= set(ABOUT)
    assert np.isnan(CandidateResult().min_phonon_thz)
