"""Exfoliation in the judging: who is asked, what comes into the row, and what is stored."""

from __future__ import annotations

import dataclasses
import math

import pytest
import simple_judges as simple
from ase import Atoms
from simple_judges import SETTINGS, evaluated

from energetics.exfoliation import Exfoliation
from evaluation import exfoliation_verdict
from evaluation.candidate import QUANTITIES, CandidateResult
from evaluation.page_words import ABOUT

FIELDS = {"exfoliation_mev_per_a2", "layer_distance_angstrom", "exfoliable"}


class Sticky(simple.Springs):
    """Binds layers firmly, but fails for tungsten."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def exfoliation(self, sheet: Atoms) -> Exfoliation:
        self.asked.append(sheet.get_chemical_formula())
        if "W" in sheet.get_chemical_symbols():
            raise ValueError("the energy is not finite")
        return Exfoliation(210.0, 2.1, (1 / 3, 2 / 3))


def test_numbers_and_reasons_come_into_the_row_and_are_kept(tmp_path):
    sheets = {"mos2": simple.sheet(), "ws2": simple.sheet("WS2"), "copper": simple.bulk_copper()}
    judges = simple.judges(potential=Sticky())
    for _ in range(2):
        found = {row.id: row for row in evaluated(tmp_path, sheets, judges).rows}
    row = found["mos2"]
    assert (row.exfoliation_mev_per_a2, row.layer_distance_angstrom, row.exfoliable) == (210.0, 2.1, "hardly")
    assert row.status == "ok" and row.dynamically_stable is True
    assert math.isnan(found["ws2"].exfoliation_mev_per_a2) and found["ws2"].exfoliable == ""
    assert found["ws2"].status.endswith("exfoliation: ValueError the energy is not finite")
    assert found["copper"].exfoliable == ""
    assert len(judges.potential.asked) == 2, "once each, in two runs"
    assert len(list((tmp_path / "out" / "cache" / "exfoliation").glob("*.json"))) == 2


def test_it_may_be_left_out_and_changes_no_other_field(tmp_path):
    judges = simple.judges(potential=Sticky())
    (with_it,) = evaluated(tmp_path, {"mos2": simple.sheet()}, judges).rows
    off = dataclasses.replace(SETTINGS, exfoliation=False)
    (without,) = evaluated(tmp_path, {"mos2": simple.sheet()}, judges, off).rows
    changed = {f.name for f in dataclasses.fields(without) if repr(getattr(with_it, f.name)) != repr(getattr(without, f.name))}
    assert FIELDS <= changed <= FIELDS | {"seconds"} and len(judges.potential.asked) == 1


def test_no_key_is_that_of_the_phonons():
    from evaluation.dynamics import phonon_key

    identity = {"potential": {"name": "a", "sha256": "1", "second": {"name": "b"}}}
    other = {"potential": {"name": "a", "sha256": "2", "second": {"name": "b"}}}
    keys = [exfoliation_verdict.exfoliation_key(simple.sheet(), names) for names in (identity, other)]
    assert len({*keys, phonon_key(simple.sheet(), identity)}) == 3
    alone = {"potential": {"name": "a", "sha256": "1"}}
    assert exfoliation_verdict.exfoliation_key(simple.sheet(), alone) == keys[0], "the second is not asked"


@pytest.mark.parametrize(("energy", "word"), [(-3.0, "easily"), (21.0, "easily"), (60.0, "potentially"), (131.0, "hardly")])
def test_verdicts(energy, word):
    assert exfoliation_verdict.verdict(energy) == word


def test_columns_have_titles_and_words():
    assert FIELDS <= set(QUANTITIES) and FIELDS <= set(ABOUT)
    assert math.isnan(CandidateResult().exfoliation_mev_per_a2)
