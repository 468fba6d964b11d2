"""Relaxation of H by DFT, its zero-point energy and the gap of the sheet, against what springs and given bands make of them."""

import os
import subprocess
import sys
from pathlib import Path

import dft_calculators
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import fcc111
from ase.db import connect
from ase.io import write

from energetics import adsorption_energy, dft_points, dft_relaxation
from energetics.dft_calculation import FORCES, GAP, InputError, Task, WorkFolder, load_method
from energetics.dft_relaxation import (
    CalculationFailed,
    NotFinished,
    band_gap,
    first_hessian,
    move_of_hydrogen,
    relax,
    vibrational_energies,
    zero_point,
)
from pipeline.errors import StageError
from scripts import verify_dft

ROOT = Path(__file__).resolve().parents[2]
START = np.array([0.12, -0.09, dft_calculators.HEIGHT + 0.08])  # Å, of H above atom 0

MOLECULE_EV = 2179.3 * 100 * units._hplanck * units._c / units._e  # zero-point energy of H2 from its wavenumber


@pytest.fixture(autouse=True)
def no_calls():
    dft_calculators.CALLS.clear()


def sheet_with_h(element="Pt", start=START, extra=()):
    """A sheet and the same with H above its atom 0, which is the highest."""
    sheet = Atoms(f"{element}2", [[0, 0, 8.0], [1.5, 1.5, 6.5]], cell=[4.5, 4.5, 16.0], pbc=(True, True, False))
    sheet.info["name"] = f"{element}-sheet"
    covered = sheet.copy()
    covered.append("H")
    covered.positions[-1] = covered.positions[0] + start
    covered.info["site"] = "top"
    return [sheet, covered, *extra]


def spring_task():
    return Task(sheet_with_h()[1], (2, 2), False)


def folder(path, name):
    return WorkFolder(path, load_method(f"dft_calculators:{name}"))


def independent_zero_point(stiffness, masses):
    """½ Σ ħω from the mass-weighted matrix in SI units."""
    per_mass = np.asarray(stiffness) * units._e * 1e20 / (np.asarray(masses) * units._amu)
    return 0.5 * units._hbar * np.sqrt(np.linalg.eigvalsh(per_mass)).sum() / units._e


def run(tmp_path, frames, *options, name="springs", work="dft"):
    path = tmp_path / "sheet.extxyz"
    write(path, frames)
    return verify_dft.main([str(path), "--work-dir", str(tmp_path / work), "--calculator", f"dft_calculators:{name}", *options])


def test_h_and_the_atom_below_it_share_the_way_to_the_minimum(tmp_path):
    task = spring_task()
    end = relax(task, 200, folder(tmp_path, "springs").compute, "x")
    away = end.atoms.positions[2] - end.atoms.positions[0]
    np.testing.assert_allclose(away, [0, 0, dft_calculators.HEIGHT], atol=0.05 / 3.0)  # fmax over the softest spring
    np.testing.assert_allclose(end.atoms.positions[1], task.atoms.positions[1], atol=1e-12)  # no force acts on it
    assert end.fmax < 0.05 and end.energy == pytest.approx(dft_calculators.BINDING, abs=1e-3)
    moved = end.atoms.positions[2] - task.atoms.positions[2]
    assert move_of_hydrogen(task.atoms, end.atoms) == pytest.approx(np.linalg.norm(moved))


def hessian_of_springs(stiffness):
    """Second derivatives of the springs between atoms 0 and 2."""
    found = np.zeros((9, 9))
    for i in (0, 2):
        for j in (0, 2):
            found[3 * i : 3 * i + 3, 3 * j : 3 * j + 3] = stiffness * (1 if i == j else -1)
    return found


def test_a_known_hessian_needs_fewer_steps(tmp_path):
    ask = folder(tmp_path, "springs").compute
    with_it = relax(spring_task(), 200, ask, "x", hessian_of_springs(dft_calculators.STIFFNESS))
    without = relax(spring_task(), 200, ask, "x")
    assert with_it.steps == 1 < without.steps
    assert with_it.energy == pytest.approx(without.energy, abs=1e-3)


def test_steps_are_short_where_the_known_hessian_is_soft_or_unstable():
    soft = np.diag([-30.0, 0.001, 5.0, 20.0, 20.0, 20.0])
    found = first_hessian(Atoms("HPt", [[0, 0, 0], [0, 0, 1.6]]), soft)
    np.testing.assert_allclose(found, np.diag([30.0, dft_relaxation.SOFTEST, 5.0, 20.0, 20.0, 20.0]), atol=1e-9)
    with pytest.raises(InputError, match="shape"):
        first_hessian(Atoms("H"), soft)


def test_hessians_beside_the_input_are_used_and_broken_ones_named(tmp_path, capsys):
    frames = sheet_with_h()
    stiff = {"clean": np.eye(6), "top": hessian_of_springs(dft_calculators.STIFFNESS)}
    np.savez(tmp_path / "sheet_hessians.npz", **stiff)
    assert run(tmp_path, frames, "--relax-steps", "9") == 0
    (row,) = connect(tmp_path / "dft" / "h_on_2d_relaxed.db").select(kind="slab_H")
    assert row.relax_steps == 1
    (tmp_path / "sheet_hessians.npz").write_text("no")
    assert run(tmp_path, frames, "--relax-steps", "9") == 2
    assert "sheet_hessians.npz: cannot be read" in capsys.readouterr().err


def test_only_sites_near_the_lowest_are_relaxed(tmp_path, capsys):
    far = sheet_with_h(start=START + [0, 0, 0.4])[1]
    far.info["site"] = "far"
    assert run(tmp_path, sheet_with_h(extra=[far]), "--relax-steps", "9", "--relax-within", "0.3") == 0
    assert "1 of 1 sites done" in capsys.readouterr().out
    assert [row.site for row in connect(tmp_path / "dft" / "h_on_2d_relaxed.db").select(kind="slab_H")] == ["top"]


def test_the_move_of_h_goes_the_short_way_through_the_cell():
    before = sheet_with_h()[1]
    after = before.copy()
    after.positions[-1] += before.cell[0] + [0.1, 0, 0]
    assert move_of_hydrogen(before, after) == pytest.approx(0.1)


def test_steps_are_limited_and_the_largest_force_says_what_is_left(tmp_path):
    end = relax(spring_task(), 1, folder(tmp_path, "springs").compute, "x")
    forces = dft_calculators.STIFFNESS @ (end.atoms.positions[2] - end.atoms.positions[0] - [0, 0, dft_calculators.HEIGHT])
    assert end.steps == 1 and end.fmax == pytest.approx(np.linalg.norm(forces)) and end.fmax > 0.05


def test_the_zero_point_energy_is_that_of_the_harmonic_oscillator(tmp_path):
    task = spring_task()
    task.atoms.positions[-1] = task.atoms.positions[0] + [0, 0, dft_calculators.HEIGHT]
    ask = folder(tmp_path, "springs").compute
    found = zero_point(task, ask, "x")
    on_sheet = independent_zero_point(dft_calculators.STIFFNESS, 1.008)
    assert found.change == pytest.approx(on_sheet - 0.5 * MOLECULE_EV, abs=2e-5)
    np.testing.assert_allclose(sum(found.energies), 2 * on_sheet, rtol=1e-9)


def test_one_electronvolt_per_square_angstrom_and_unit_mass_vibrate_at_521_wavenumbers():
    """522 cm⁻¹: ν = sqrt(1 eV/Å² / 1 u) / 2πc, worked out from the constants in SI units."""
    wavenumber = vibrational_energies(np.eye(1), 1.0)[0] * units._e / (2 * np.pi * units._hbar * units._c * 100)
    assert (
        wavenumber
        == pytest.approx(np.sqrt(units._e * 1e20 / units._amu) / (2 * np.pi * units._c * 100))
        == pytest.approx(521.5, abs=0.2)
    )


def test_an_unstable_mode_has_no_zero_point_energy(tmp_path):
    found = zero_point(spring_task(), folder(tmp_path, "saddle").compute, "x")
    assert found.change is None and found.energies[0] < 0 < found.energies[1]


def test_the_gap_is_between_the_bands_of_both_spins(tmp_path):
    ask = folder(tmp_path, "bands").compute
    assert band_gap(Task(sheet_with_h()[0], (2, 2), True), ask, "x") == pytest.approx(0.9)
    assert band_gap(Task(sheet_with_h("Ag")[0], (2, 2), True), ask, "x") == 0.0


def test_an_odd_number_of_electrons_without_spin_is_a_metal(tmp_path):
    ask = folder(tmp_path, "bands").compute
    odd = Task(Atoms("NbS2", np.eye(3) * 2.0, cell=[4, 4, 16], pbc=(True, True, False)), (2, 2), False)  # 41 + 2 x 16
    assert band_gap(odd, lambda label, task: None, "x") == 0.0, "nothing has to be computed"
    assert band_gap(Task(sheet_with_h()[0], (2, 2), False), ask, "x") == pytest.approx(0.9), "Pt2: an even number"


def test_a_relaxed_point_in_the_database(tmp_path, capsys):
    assert run(tmp_path, sheet_with_h(), "--relax-steps", "60", "--zero-point") == 0
    rows = list(connect(tmp_path / "dft" / "h_on_2d_relaxed.db").select())
    assert [row.kind for row in rows] == ["clean", "slab_H"] and {row.geometry for row in rows} == {"relaxed"}
    row = rows[1]
    change = independent_zero_point(dft_calculators.STIFFNESS, 1.008) - 0.5 * MOLECULE_EV
    assert row.dE_dft == pytest.approx(dft_calculators.BINDING, abs=1e-3) and row.dzpe_dft == pytest.approx(change, abs=2e-5)
    assert row.dG_dft == pytest.approx(row.dE_dft + row.dzpe_dft + 0.2019, abs=1e-4), "½ T S(H2) = 0.2019 eV at 298.15 K"
    assert row.h_move > 0.05 and row.fmax_dft < 0.05 and row.dft_by == "dft_calculators:springs"
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("Pt-sheet  top")]
    assert table[0][2:4] == [f"{row.dE_dft:+.3f}", f"{row.dE_dft + 0.27:+.3f}"] and f"{row.dG_dft:+.3f}" in table[0]
    points = dft_points.read_truth(tmp_path / "dft" / "h_on_2d_relaxed.db")
    assert points[0].delta_e == row.dE_dft


def test_the_measured_zero_point_energy_is_that_of_its_wavenumber():
    assert pytest.approx(MOLECULE_EV, abs=2e-5) == adsorption_energy.H2_ZERO_POINT_EV


def test_entropy_of_hydrogen():
    """Half of 130.68 J/(mol K) x 298.15 K over the Faraday constant (96485 J per mol and eV)."""
    assert adsorption_energy.entropy_term() == pytest.approx(0.5 * 130.68 * 298.15 / 96485.33, rel=1e-6)


def test_points_of_both_geometries_are_not_mixed(tmp_path, capsys):
    shared = ["--database", str(tmp_path / "one.db")]
    assert run(tmp_path, sheet_with_h(), *shared) == 0
    before, calls = (tmp_path / "one.db").read_bytes(), len(list((tmp_path / "dft").glob("*.json")))
    assert run(tmp_path, sheet_with_h(), "--relax-steps", "2", *shared) == 2
    assert "points of given geometries" in capsys.readouterr().err and (tmp_path / "one.db").read_bytes() == before
    assert len(list((tmp_path / "dft").glob("*.json"))) == calls, "refused before any work"
    assert run(tmp_path, sheet_with_h(), *shared, name="saddle") == 2
    assert "points by dft_calculators:springs" in capsys.readouterr().err
    with connect(tmp_path / "one.db") as db:
        row = next(db.select(kind="slab_H"))
        db.write(row.toatoms(), **row.key_value_pairs | {"geometry": "relaxed"})
    with pytest.raises(StageError, match="mixes single points"):
        dft_points.read_truth(tmp_path / "one.db")


def test_kinds_of_calculations_have_files_of_their_own(tmp_path):
    work, atoms = folder(tmp_path, "bands"), sheet_with_h()[0]
    results = [work.compute("x", Task(atoms, (2, 2), False, kind)) for kind in ("energy", FORCES, GAP)]
    assert [sorted({"forces", "gap"} & set(result)) for result in results] == [[], ["forces"], ["gap"]]
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_more_steps_replace_a_relaxed_point(tmp_path):
    database = tmp_path / "dft" / "h_on_2d_relaxed.db"
    assert run(tmp_path, sheet_with_h(), "--relax-steps", "1") == 0
    first = connect(database).get(kind="slab_H")
    assert run(tmp_path, sheet_with_h(), "--relax-steps", "60", "--zero-point") == 0
    last = connect(database).get(kind="slab_H")
    assert connect(database).count() == 2 and last.fmax_dft < first.fmax_dft and "dzpe_dft" not in first and "dzpe_dft" in last


def killed_and_restarted(tmp_path, frames, die_at):
    """Run the relaxation in processes that die at one calculation after the other; return the number of calculations of each."""
    path = tmp_path / "sheet.extxyz"
    write(path, frames)
    command = [sys.executable, str(ROOT / "scripts/verify_dft.py"), str(path), "--work-dir", str(tmp_path / "killed")]
    command += ["--calculator", "dft_calculators:dying", "--relax-steps", "4", "--zero-point"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "DIE_AT": str(die_at)}
    codes = []
    while not codes or codes[-1] == 9:
        codes.append(subprocess.run(command, env=environment, capture_output=True, cwd=tmp_path).returncode)
        assert len(codes) < 20
    return codes


def test_a_killed_relaxation_goes_on_to_the_same_result(tmp_path):
    sheet = fcc111("Pt", (1, 1, 2), a=4.0, vacuum=6.0)
    sheet.pbc, sheet.info["name"] = (True, True, False), "Pt-sheet"
    sheet.set_constraint()
    covered = sheet.copy()
    covered.append("H")
    covered.positions[-1] = covered.positions[-2] + [0.1, 0.2, 1.4]
    assert run(tmp_path, [sheet, covered], "--relax-steps", "4", "--zero-point", name="dying", work="whole") == 0
    codes = killed_and_restarted(tmp_path, [sheet, covered], die_at=7)
    assert codes[:2] == [9, 9] and codes[-1] == 0
    whole, killed = (connect(tmp_path / name / "h_on_2d_relaxed.db") for name in ("whole", "killed"))
    for one, other in zip(whole.select(), killed.select(), strict=True):
        assert one.key_value_pairs == other.key_value_pairs
        np.testing.assert_array_equal(one.positions, other.positions)
    assert {p.name for p in (tmp_path / "whole").glob("*.json")} == {p.name for p in (tmp_path / "killed").glob("*.json")}


def test_what_is_not_there_and_what_failed_are_different(tmp_path):
    with pytest.raises(NotFinished):
        relax(spring_task(), 3, lambda label, task: None, "x")
    with pytest.raises(CalculationFailed, match="did not converge"):
        relax(spring_task(), 3, lambda label, task: {"error": "did not converge"}, "x")


def test_another_order_of_the_atoms_cannot_be_relaxed(tmp_path, capsys):
    sheet = Atoms("PtCu", [[0, 0, 8.0], [1.5, 1.5, 6.5]], cell=[4.5, 4.5, 16.0], pbc=(True, True, False))
    covered = sheet[[1, 0]]
    covered.append("H")
    covered.positions[-1] = covered.positions[1] + [0, 0, 1.5]
    assert run(tmp_path, [sheet, covered], "--relax-steps", "2") == 1
    assert "in another order" in capsys.readouterr().err
    assert run(tmp_path, [sheet, covered]) == 0, "single points may"


@pytest.mark.parametrize("name", ["nothing", "dft_calculators:nothing", "no_such_module:f", "dft_calculators:"])
def test_a_calculator_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match=f"calculator {name}"):
        load_method(name)


def test_a_zero_point_needs_a_minimum(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, sheet_with_h(), "--zero-point")
    assert "name --relax-steps too" in capsys.readouterr().err
