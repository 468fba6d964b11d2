"""The memory of relaxations: what was relaxed once is not relaxed again, and the answer is the same."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from ase.build import fcc111
from ase.calculators.emt import EMT

import geo_utils
from energetics import sites
from energetics.potential_adsorption import HydrogenAtSite, StabilityJudge
from energetics.potentials import Potential
from energetics.relaxation import FAR_ABOVE_EV
from pipeline.errors import StageError
from pipeline.memory import Memory
from pipeline.settings import EvaluationConfig

SETTINGS = dataclasses.replace(EvaluationConfig(), max_h_steps=30, more_h_steps=30)
SUPERCELL = (2, 2)


class Counted(EMT):
    """EMT that counts its energies."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def calculate(self, *arguments, **named) -> None:
        self.asked += 1
        super().calculate(*arguments, **named)


class Shift:
    """A correction that adds a constant."""

    latent = ()

    def __init__(self, by: float) -> None:
        self.by = by

    def apply(self, atoms, energies, std, gaps, latent):
        return energies.sum(1) + self.by, np.full(len(atoms), 0.4)

    def complaints(self, atoms, energies, gaps):
        return [""] * len(atoms)


def judge(folder, correction=None, settings=SETTINGS, name="emt") -> tuple[StabilityJudge, Counted]:
    """Return a judge, and the calculator of both its potentials."""
    calculator = Counted()
    potential, second = Potential(name, {"name": name}, calculator), Potential("second", {"name": "second"}, calculator)
    memory = Memory(folder)
    return StabilityJudge(potential, settings, correction, second, memory=memory), calculator


@pytest.fixture(scope="module")
def platinum():
    """Return two layers of Pt(111), and where H may sit on them."""
    slab = fcc111("Pt", (1, 1, 2), vacuum=10.0)
    slab.pbc = (True, True, False)
    sheet = geo_utils.standard_sheet(slab)
    return sheet, sites.adsorption_sites(sheet)


def test_the_same_question_is_answered_from_the_memory(tmp_path, platinum):
    sheet, found = platinum
    plain, counted = judge(None, Shift(0.5))
    first, _ = judge(tmp_path, Shift(0.5))
    again, silent = judge(tmp_path, Shift(0.5))
    for ask in (
        lambda one: one.delta_e_hydrogen(sheet, found[0], SUPERCELL),
        lambda one: dataclasses.replace(one.relax(sheet, bulk=False), atoms=None),
        lambda one: one.relax(sheet, bulk=False).atoms.positions.tolist(),
        lambda one: one.relax(sheet, bulk=False).forces.tolist(),
    ):
        assert ask(plain) == ask(first) == ask(again)
    assert counted.asked > 0 and silent.asked == 0


def test_a_correction_that_is_fitted_anew_needs_no_relaxation(tmp_path, platinum):
    sheet, found = platinum
    before = judge(tmp_path, Shift(0.1))[0].delta_e_hydrogen(sheet, found[0], SUPERCELL)
    other, silent = judge(tmp_path, Shift(0.3))
    after = other.delta_e_hydrogen(sheet, found[0], SUPERCELL)
    assert silent.asked == 0 and after.corrected == pytest.approx(before.corrected + 0.2) and after.delta_e == before.delta_e


def test_other_sheets_sites_limits_and_potentials_are_asked_anew(tmp_path, platinum):
    sheet, found = platinum
    judge(tmp_path)[0].delta_e_hydrogen(sheet, found[0], SUPERCELL)
    moved = sheet.copy()
    moved.positions[0, 2] += 0.01
    longer = dataclasses.replace(SETTINGS, max_h_steps=31)
    for arguments, other in (((moved, found[0]), {}), ((sheet, found[1]), {}), ((sheet, found[0]), {"settings": longer}),
                             ((sheet, found[0]), {"name": "emt2"})):  # fmt: skip
        asked, counted = judge(tmp_path, **other)
        asked.delta_e_hydrogen(*arguments, SUPERCELL)
        assert counted.asked > 0


def test_a_site_is_given_up_by_the_same_rule_from_the_memory(tmp_path, platinum):
    """What a relaxation gives does not depend on what was asked before it."""
    sheet, found = platinum
    short = dataclasses.replace(SETTINGS, fmax_ev_per_angstrom=0.001)
    whole = judge(None, settings=short)[0].delta_e_hydrogen(sheet, found[0], SUPERCELL)
    low = whole.delta_e - FAR_ABOVE_EV - 1.0
    given_up = judge(None, settings=short)[0].delta_e_hydrogen(sheet, found[0], SUPERCELL, low)
    assert given_up.given_up and not whole.given_up and isinstance(whole, HydrogenAtSite)
    for order in ((low, math.inf), (math.inf, low)):
        folder = tmp_path / str(order[0])
        answers = {best: judge(folder, settings=short)[0].delta_e_hydrogen(sheet, found[0], SUPERCELL, best) for best in order}
        assert answers == {low: given_up, math.inf: whole}
        last, silent = judge(folder, settings=short)
        assert last.delta_e_hydrogen(sheet, found[0], SUPERCELL, low) == given_up and silent.asked == 0


def test_a_damaged_record_is_found_anew(tmp_path, platinum):
    sheet, found = platinum
    whole = judge(tmp_path)[0].delta_e_hydrogen(sheet, found[0], SUPERCELL)
    for path in tmp_path.rglob("*.json"):
        path.write_text(path.read_text()[:40])
    again, counted = judge(tmp_path)
    assert again.delta_e_hydrogen(sheet, found[0], SUPERCELL) == whole and counted.asked > 0


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StageError, match=r"evaluation.relaxed_dir: \S+file/sub cannot be made \(Not a directory\)"):
        Memory(tmp_path / "file" / "sub")


def test_a_full_disk_costs_no_verdict(tmp_path, platinum, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    sheet, found = platinum
    whole = judge(None, Shift(0.5))[0].delta_e_hydrogen(sheet, found[0], SUPERCELL)
    monkeypatch.setattr("pipeline.store.write_json", full)
    assert judge(tmp_path, Shift(0.5))[0].delta_e_hydrogen(sheet, found[0], SUPERCELL) == whole
    assert [record.message for record in caplog.records if "No space left on device" in record.message][1:] == []
    assert "answers are not kept" in caplog.text
