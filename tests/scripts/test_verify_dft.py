"""ΔE_H by DFT: what is read, what is computed once, and what a killed run leaves; EMT stands in for GPAW."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dft_calculators
import numpy as np
import pytest
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.db import connect
from ase.io import write

from energetics import dft_calculation, dft_points
from energetics.dft_calculation import Task, WorkFolder
from scripts import verify_dft

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = Path("/usr/bin/python3")


def frames(element="Pt", heights=(1.5, 1.7)):
    clean = fcc111(element, (2, 2, 2), a=4.0, vacuum=6.0)
    clean.pbc, clean.info["name"] = (True, True, False), f"{element}-sheet"
    out = [clean]
    for k, height in enumerate(heights):
        covered = clean.copy()
        covered.append("H")
        covered.positions[-1] = covered.positions[-2] + [0.1, 0, height]
        covered.info |= {"site": f"top{k}", "delta_e_potential_ev": -0.1 * k, "potential": "sevennet-0"}
        out.append(covered)
    for frame in out:
        frame.set_constraint()
    return out


@pytest.fixture
def calls(monkeypatch):
    """EMT under the name of GPAW; the list of formulas that were computed."""
    done = dft_calculators.CALLS
    done.clear()

    def make(task, log_path):
        return dft_calculators.emt(task.atoms, task.kpts, task.polarised, log_path)

    monkeypatch.setattr(dft_calculation, "gpaw_calculator", make)
    monkeypatch.setitem(sys.modules, "gpaw", type("Gpaw", (), {"__version__": "0"}))
    return done


def test_it_needs_nothing_but_ase_and_numpy():
    """Of the libraries that ASE itself does not bring, none is imported: a system Python has only GPAW beside."""
    code = (
        "import sys, ase.io, ase.db, ase.optimize, ase.constraints\n"
        "before = set(sys.modules); import scripts.verify_dft\n"
        "print(*{n.split('.')[0] for n in set(sys.modules) - before if n.split('.')[0] not in sys.stdlib_module_names})"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= {"ase", "numpy", "scripts", "pipeline", "energetics"}


def test_delta_e_is_the_difference_of_three_energies(tmp_path, calls, capsys):
    path = tmp_path / "pt.extxyz"
    write(path, frames())
    assert verify_dft.main([str(path), "--work-dir", str(tmp_path / "dft")]) == 0
    rows = list(connect(tmp_path / "dft" / "h_on_2d_dft.db").select())
    assert [row.kind for row in rows] == ["clean", "slab_H", "slab_H"] and {row.name for row in rows} == {"Pt-sheet"}

    def energy(atoms):
        atoms = atoms.copy()
        atoms.calc = EMT()
        return atoms.get_potential_energy()

    h2 = energy(dft_calculation.hydrogen_molecule())
    clean, *covered = frames()
    for row, given in zip(rows[1:], covered, strict=True):
        # EMT has no long range: the box does not matter.
        assert row.dE_dft == pytest.approx(energy(given) - energy(clean) - 0.5 * h2, abs=1e-6)
        assert row.dE_7net0 == given.info["delta_e_potential_ev"]
    points = dft_points.read_truth(tmp_path / "dft" / "h_on_2d_dft.db", with_unbound=True)
    assert [point.site for point in points] == ["top0", "top1"] and points[0].host == "Pt"
    assert "2 of 2 sites done" in capsys.readouterr().out


def test_a_second_run_computes_nothing_and_keeps_other_rows(tmp_path, calls):
    path = tmp_path / "pt.extxyz"
    write(path, frames())
    arguments = [str(path), "--work-dir", str(tmp_path / "dft"), "--database", str(tmp_path / "truth.db")]
    assert verify_dft.main(arguments) == 0
    first, count = (tmp_path / "truth.db").read_bytes(), len(calls)
    assert verify_dft.main(arguments) == 0
    assert len(calls) == count
    assert connect(tmp_path / "truth.db").count() == 3
    other = tmp_path / "cu.extxyz"
    write(other, frames("Cu", heights=(1.4,)))
    assert verify_dft.main([str(other), *arguments[1:]]) == 0
    assert {row.name for row in connect(tmp_path / "truth.db").select()} == {"Pt-sheet", "Cu-sheet"}
    assert first


def test_a_failed_single_point_is_recorded_and_the_others_go_on(tmp_path, calls, monkeypatch, capsys):
    whole = dft_calculation.gpaw_calculator

    def sometimes(task, *rest):
        atoms = task.atoms
        if atoms.symbols[-1] == "H" and "Pt" in atoms.symbols and atoms.positions[-1, 2] - atoms.positions[-2, 2] > 1.6:
            raise RuntimeError("did not converge")
        return whole(task, *rest)

    monkeypatch.setattr(dft_calculation, "gpaw_calculator", sometimes)
    path = tmp_path / "pt.extxyz"
    write(path, frames())
    assert verify_dft.main([str(path), "--work-dir", str(tmp_path / "dft")]) == 1
    out = capsys.readouterr().out
    assert "failed (RuntimeError: did not converge)" in out and "1 of 2 sites done" in out
    errors = [json.loads(p.read_text())["error"] for p in (tmp_path / "dft").glob("*.json")]
    assert sum(error is not None for error in errors) == 1


def test_a_calculation_in_the_work_of_a_living_process_is_left_to_it(tmp_path, calls):
    method = dft_calculation.load_method("dft_calculators:emt")
    folder, task = WorkFolder(tmp_path, method), Task(frames()[0], (2, 2), False)
    lock = tmp_path / f"{method.key(task)}.lock"
    lock.write_text(str(os.getpid()))
    assert folder.compute("a", task) is None and not calls
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    lock.write_text(child.stdout)
    assert folder.compute("a", task)["error"] is None, "a lock of a process that has ended is taken over"
    assert not lock.exists()


def test_nothing_is_started_after_the_deadline(tmp_path, calls, capsys):
    path = tmp_path / "pt.extxyz"
    write(path, frames())
    assert verify_dft.main([str(path), "--work-dir", str(tmp_path / "dft"), "--minutes", "0"]) == 1
    assert not calls and "not finished in time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f[1:], "0 frames without H"),
        (lambda f: f[:1], "0 with one H"),
        (lambda f: [f[0], f[1].repeat((2, 1, 1))], "0 with one H|not the clean sheet"),
        (lambda f: [f[0], f[1], f[1]], "two frames are called top0"),
    ],
)
def test_unusable_inputs_are_named(tmp_path, spoil, message, calls, capsys):
    path = tmp_path / "bad.extxyz"
    write(path, spoil(frames()))
    with pytest.raises(verify_dft.InputError, match=message):
        verify_dft.read_system(path)
    assert verify_dft.main([str(path), "--work-dir", str(tmp_path)]) == 2
    assert "bad.extxyz" in capsys.readouterr().err and not calls


def test_unreadable_files_are_named(tmp_path, calls, capsys):
    path = tmp_path / "noise.extxyz"
    path.write_bytes(b"\x00\x01nonsense")
    assert verify_dft.main([str(path), "--work-dir", str(tmp_path)]) == 2
    assert "noise.extxyz: cannot be read" in capsys.readouterr().err


def test_the_box_has_its_vacuum_and_the_key_names_the_physics():
    atoms = dft_calculation.boxed(frames()[1])
    z = atoms.positions[:, 2]
    assert z.min() == pytest.approx(6.0) and atoms.cell[2, 2] - z.max() == pytest.approx(6.0)
    assert atoms.pbc.tolist() == [True, True, False]
    shifted = frames()[1]
    shifted.positions[:, 2] += 1.234
    shifted.cell[2, 2] += 7
    gpaw = dft_calculation.Method("gpaw", None, "")
    key = gpaw.key(Task(atoms, (3, 3), False))
    assert key == gpaw.key(Task(dft_calculation.boxed(shifted), (3, 3), False)), "where the sheet lies in its cell does not matter"
    others = [
        Task(atoms, (2, 2), False),
        Task(atoms, (3, 3), True),
        *(Task(atoms, (3, 3), False, kind) for kind in ("forces", "gap")),
    ]
    keys = [gpaw.key(task) for task in others] + [dft_calculation.Method("other", None, "").key(Task(atoms, (3, 3), False))]
    assert len({key, *keys}) == 6
    tilted = frames()[1]
    tilted.rotate(20, "x", rotate_cell=True)
    with pytest.raises(verify_dft.InputError, match="xy plane"):
        dft_calculation.boxed(tilted)


def test_the_keys_of_points_that_exist_stay():
    """Work folders of earlier versions go on: this is the key that they have for the reference molecule."""
    task = Task(dft_calculation.hydrogen_molecule(), None, False)
    assert dft_calculation.Method("gpaw", None, "").key(task) == "d7aab255bd06e1b6"


def test_kpoints_and_spin():
    sheet = frames()[0]
    assert dft_calculation.kpoints(sheet) == tuple(int(np.ceil(18 / length - 0.05)) for length in sheet.cell.lengths()[:2])
    sheet.info["kpts"] = 5
    assert dft_calculation.kpoints(sheet) == (5, 5)
    sheet.info["kpts"] = np.array([3, 1])
    assert dft_calculation.kpoints(sheet) == (3, 1)
    for wrong in ([1, 2, 3], "abc"):
        sheet.info["kpts"] = wrong
        with pytest.raises(dft_calculation.InputError, match="kpts=.* is not one or two whole numbers"):
            dft_calculation.kpoints(sheet)
    assert not dft_calculation.is_polarised(sheet) and dft_calculation.is_polarised(fcc111("Ni", (1, 1, 2), vacuum=5))
    sheet.info["spin"] = 1
    assert dft_calculation.is_polarised(sheet)


def _has_gpaw():
    if not SYSTEM_PYTHON.is_file():
        return False
    return subprocess.run([SYSTEM_PYTHON, "-c", "import gpaw"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _has_gpaw(), reason="no GPAW in /usr/bin/python3")
def test_gpaw_reproduces_the_committed_hydrogen_molecule():
    """½E(H2) with the very settings of the committed points is −3.3575 eV."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import os, pathlib; from energetics import dft_calculation as dft\n"
        "task = dft.Task(dft.hydrogen_molecule(), None, False)\n"
        "print(dft.calculate(dft.load_method('gpaw'), task, pathlib.Path(os.devnull))['energy'])"
    )
    run = subprocess.run(
        [SYSTEM_PYTHON, "-c", code, str(ROOT)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.strip().splitlines()[-1]) / 2 == pytest.approx(-3.3575, abs=2e-3)
