"""E_above_hull on generated sheets: which are the database's, what is compared, and that a stopped run goes on."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from ase.build import mx2

from crystals import database
from evaluation import generated_hull as module
from evaluation.reading import crystal_text
from generation import sheet_table
from geo_utils import Sheet
from pipeline.errors import StageError
from pipeline.loading import load_config

TRUTH = {"MoSe2": 0.0, "WSe2": 0.05, "NbSe2": 0.2, "TaSe2": 0.3, "TiSe2": 0.02}
OURS = {"MoSe2": 0.01, "WSe2": 0.12, "NbSe2": 0.19, "TaSe2": 0.4}


def trilayer(formula: str, kind: str = "2H") -> Sheet:
    atoms = mx2(formula, kind, a=3.3, thickness=3.35, vacuum=10)
    atoms.pbc = (True, True, False)
    return Sheet.from_atoms(atoms)


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """Five held-out sheets, one of them of an element without a reference, and one seen by the learnt hull."""
    rows = [
        database.Row(1, f"u-{formula}", trilayer(formula), formula, "", e_hull=e_hull, h_form=0.0, y_synth=1.0)
        for formula, e_hull in {**TRUTH, "PtSe2": 0.1, "HfSe2": 0.1}.items()
    ]
    torch.save(sheet_table.pack(rows, {}), tmp_path / "test.pt")
    base = load_config(None, [f"run.output_dir={tmp_path}", f"dataset.processed_dir={tmp_path}"])
    learnt = SimpleNamespace(is_held_out=lambda formula: formula != "HfSe2")
    references = SimpleNamespace(elements={"Mo", "W", "Nb", "Ta", "Ti", "Hf", "Se"})
    monkeypatch.setattr(module, "load_potential", lambda *_: SimpleNamespace(identity={"name": "none"}))
    monkeypatch.setattr(module.References, "load", lambda *_: references)
    monkeypatch.setattr(module, "load_learnt_hull", lambda *_: learnt)
    monkeypatch.setattr(module, "relax_sheet", lambda atoms, *_: SimpleNamespace(atoms=atoms, energy=0.0, status="ok"))

    def judge_hull(references, learnt, atoms, energy, mode):
        formula = atoms.get_chemical_formula("metal")
        return SimpleNamespace(e_above_hull=OURS[formula] if mode == module.BOTH else TRUTH[formula])

    monkeypatch.setattr(module, "judge_hull", judge_hull)
    return dataclasses.replace(base, evaluation=dataclasses.replace(base.evaluation, bootstrap=50))


def write(formulas, folder):
    """Write a CIF of each formula: of TiSe2 another phase than the one on record."""
    folder.mkdir(exist_ok=True)
    for k, formula in enumerate(formulas):
        metal = formula.replace("Se2", "")
        sheet = trilayer(f"{metal}Se2", "1T" if metal == "Ti" else "2H")
        (folder / f"gen_{k:05d}.cif").write_text(crystal_text(sheet.to_atoms(20.0)), encoding="utf-8")


def test_known_sheets_of_held_out_formulas_are_compared(cfg, tmp_path, monkeypatch):
    asked: list[str] = []

    def make(formulas, folder):
        asked.extend(formulas)
        write(formulas, folder)

    found = module.generated_hull(cfg, tmp_path, make)
    assert sorted(asked) == ["MoSe2", "NbSe2", "Se2Ta", "Se2Ti", "Se2W"]
    assert (found["n_rows"], found["n_made"], found["n_known"]) == (5, 5, 4)
    both = found["hulls"]["both"]
    assert both["n"] == 4 and both["mae_ev"][0] == pytest.approx((0.01 + 0.07 + 0.01 + 0.1) / 4)
    assert both["agree"][0] == 0.75 and both["spearman"][0] == 1.0
    assert found["hulls"]["learnt"]["mae_ev"][0] == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr(module, "relax_sheet", lambda *_: pytest.fail("relaxed again"))
    assert module.generated_hull(cfg, tmp_path, write) == found


def test_a_sheet_that_cannot_be_judged_is_left_out(cfg, tmp_path, monkeypatch):
    relax = module.relax_sheet
    spoilt = lambda atoms, *a: SimpleNamespace(status="exploded") if "W" in atoms.symbols else relax(atoms, *a)  # noqa: E731
    monkeypatch.setattr(module, "relax_sheet", spoilt)
    found = module.generated_hull(cfg, tmp_path, write)
    assert found["n_known"] == 4 and found["hulls"]["both"]["n"] == 3


def test_too_few_known_sheets_are_said_so(cfg, tmp_path):
    with pytest.raises(StageError, match="2 of 5 generated sheets"):
        module.generated_hull(cfg, tmp_path, lambda formulas, folder: write(formulas[:2], folder))
    smaller = dataclasses.replace(cfg, benchmark=dataclasses.replace(cfg.benchmark, csp_max_atoms=2))
    with pytest.raises(StageError, match="2 atoms or fewer"):
        module.generated_hull(smaller, tmp_path, write)
