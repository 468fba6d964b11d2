#!/usr/bin/env python3
"""Computes ΔE_H of a sheet and its sites by density functional theory: DFT points for corrections, and checks of finalists.

    python3 scripts/verify_dft.py STRUCTURE... [--work-dir results/dft] [--database results/dft/h_on_2d_dft.db]
    python3 scripts/verify_dft.py STRUCTURE... --relax-steps 8 --zero-point --gap      # finalists

Needs ase, numpy and GPAW, and of this project only modules that need no more than ase and numpy, so that a system Python with GPAW
can run it (Debian and Ubuntu:
``apt-get install --no-install-recommends gpaw gpaw-data``, then ``/usr/bin/python3 scripts/verify_dft.py``). With
``--calculator MODULE:FUNCTION`` any ASE calculator takes the place of GPAW (docs/design_loop.md).

STRUCTURE  an extxyz file (or a folder of them): the clean sheet first, then the same cell with one H as the last atom, one frame
           per site. A CIF works too: NAME.cif is the sheet, NAME__SITE.cif the sheet with H. Keys name, site, family, kpts and
           spin of ``info`` are read where a frame has them.

ΔE_H = E(sheet+H) − E(sheet) − ½E(H2), all PBE with plane waves and one setting for all three (``energetics/dft_calculation.py``;
values with different settings must not be mixed). Without further options the energies are single points at the geometries given.
With --relax-steps N, all atoms take up to N steps of BFGS by DFT in the fixed cell, those of the clean sheet too
(``energetics/dft_relaxation.py``), from the Hessians of NAME_hessians.npz beside NAME.extxyz where it is there. With
--relax-within E only sites are relaxed whose single point is at most E above the lowest of the sheet. Such points go to a database
of their own. --zero-point adds ΔZPE of H, and ΔG_H with it; --gap the band gap of the clean sheet at the k-points of its cell.

Every single calculation is one file in the work folder, those of a relaxation too; a run that is killed goes on where it stopped,
and several processes may share one folder (start one per core, each with OMP_NUM_THREADS=1). The database is written anew from all
finished calculations at the end of each process.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where it is started as a file, from anywhere

from energetics.adsorption_energy import adsorption_energy, entropy_term, free_energy
from energetics.dft_calculation import (
    ENERGY,
    FORCES,
    GPAW,
    HESSIANS,
    InputError,
    Task,
    WorkFolder,
    boxed,
    hydrogen_molecule,
    is_polarised,
    kpoints,
    load_method,
)
from energetics.dft_relaxation import (
    Ask,
    CalculationFailed,
    NotFinished,
    Relaxed,
    ZeroPoint,
    band_gap,
    check_same_order,
    finished,
    move_of_hydrogen,
    relax,
    zero_point,
)
from energetics.dft_rows import GIVEN, RELAXED, SheetPoints, SitePoint, add_points, check_unmixed, potential_values
from pipeline.errors import StageError
from pipeline.settings import DatasetConfig

PROGRAM = "verify_dft.py"
DATABASES = {GIVEN: "h_on_2d_dft.db", RELAXED: "h_on_2d_relaxed.db"}
HER_CORRECTION_EV = DatasetConfig().her_correction_ev
WAIT_SECONDS = 5.0  # between looks at the reference molecule that another process computes


@dataclass(frozen=True)
class System:
    """A sheet and its sites, read and put into the cells of the calculation.

    sheet: as given. clean: its task. sites: label -> (sheet with H as given, its task). hessians: "clean" or label -> Hessian of a
    potential, eV/Å².
    """

    name: str
    sheet: Atoms
    clean: Task
    sites: dict[str, tuple[Atoms, Task]]
    hessians: dict[str, np.ndarray]


@dataclass(frozen=True)
class Wanted:
    """What is asked of every site: steps of a relaxation (0: single points), ΔZPE of H, band gap of the sheet.

    relax_within: eV; sites whose single point is farther above the lowest of the sheet are not relaxed.
    """

    relax_steps: int = 0
    zero_point: bool = False
    gap: bool = False
    relax_within: float = math.inf

    @property
    def geometry(self) -> str:
        """Return what the energies are of."""
        return RELAXED if self.relax_steps else GIVEN


@dataclass(frozen=True)
class Outcome:
    """What was found at one site: energies (eV), the move of H (Å), and how the relaxation ended."""

    name: str
    site: str
    given: Atoms
    end: Relaxed
    clean_energy: float
    delta_e: float
    move: float | None = None
    vibrations: ZeroPoint | None = None
    gap: float | None = None

    @property
    def delta_g(self) -> float | None:
        """Return ΔG_H with the zero-point energy of this site, eV; None where it is not known."""
        change = None if self.vibrations is None else self.vibrations.change
        return None if change is None else free_energy(self.delta_e, change + entropy_term())


def has_hydrogen_adatom(atoms: Atoms) -> bool:
    """Return whether the last atom is H and no other atom is."""
    return len(atoms) > 1 and atoms.symbols[-1] == "H" and "H" not in atoms.symbols[:-1]


def read_system(path: Path) -> tuple[str, Atoms, dict[str, Atoms]]:
    """Read (name, clean sheet, {site: sheet with H}) of one file. Raises InputError."""
    try:
        frames = read(path, index=":")
    except Exception as error:  # whatever a reader raises on a broken file, the message has to name the file
        raise InputError(f"{path}: cannot be read ({str(error)[:100]})") from error
    if path.suffix.lower() == ".cif":
        for other in sorted(path.parent.glob(f"{path.stem}__*.cif")):
            frame = read(other)
            frame.info["site"] = other.stem.split("__", 1)[1]
            frames.append(frame)
    clean = [frame for frame in frames if not has_hydrogen_adatom(frame)]
    covered = [frame for frame in frames if has_hydrogen_adatom(frame)]
    if len(clean) != 1 or not covered:
        raise InputError(f"{path}: {len(clean)} frames without H and {len(covered)} with one H at the end; needed are 1 and some")
    sheet, sites = clean[0], {}
    for index, frame in enumerate(covered):
        same_atoms = sorted(frame.symbols[:-1]) == sorted(sheet.symbols)
        if not same_atoms or not np.allclose(frame.cell[:2], sheet.cell[:2], atol=1e-3):
            raise InputError(f"{path}: frame {index + 1} is not the clean sheet plus one H in the same cell")
        label = str(frame.info.get("site", f"site{index + 1}"))
        if label in sites:
            raise InputError(f"{path}: two frames are called {label}")
        sites[label] = frame
    return str(sheet.info.get("name", path.stem)), sheet, sites


def system_of(path: Path) -> System:
    """Read one input. Raises InputError."""
    name, sheet, sites = read_system(path)
    kpts, polarised = kpoints(sheet), is_polarised(sheet)
    tasks = {label: (atoms, Task(boxed(atoms), kpts, polarised)) for label, atoms in sites.items()}
    return System(name, sheet, Task(boxed(sheet), kpts, polarised), tasks, read_hessians(path))


def read_hessians(path: Path) -> dict[str, np.ndarray]:
    """Return the Hessians beside an input, by label; none where there is no file. Raises InputError."""
    file = path.with_name(f"{path.stem}{HESSIANS}")
    if not file.is_file():
        return {}
    try:
        with np.load(file, allow_pickle=False) as found:
            return {label: found[label] for label in found.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: cannot be read ({str(error)[:100]}): remove it, the relaxation does without") from error


def outcome_of(system: System, site: str, wanted: Wanted, ask: Ask) -> Outcome:
    """Do, or collect, everything that is wanted of one site.

    Args:
        system: the sheet.
        site: label of the site.
        wanted: what is asked.
        ask: computes a task, or only looks its result up.

    Raises:
        NotFinished: a calculation has no result yet.
        CalculationFailed: one ended without.
        InputError: the atoms of both frames stand in different orders, in which a relaxation cannot compare them.
    """
    given, task = system.sites[site]
    label, clean_label = f"{system.name} {site}", f"{system.name} clean"
    h2 = finished(ask("H2", reference(wanted)))["energy"]
    if wanted.relax_steps:
        check_same_order(label, system.clean.atoms, task.atoms)
        clean, end = all_of(
            lambda: relax(system.clean, wanted.relax_steps, ask, clean_label, system.hessians.get("clean")),
            lambda: relax(task, wanted.relax_steps, ask, label, system.hessians.get(site)),
        )
    else:
        clean, end = all_of(lambda: as_given(system.clean, ask, clean_label), lambda: as_given(task, ask, label))
    vibrations = zero_point(Task(end.atoms, task.kpts, task.polarised), ask, label) if wanted.zero_point else None
    gap = band_gap(system.clean, ask, system.name) if wanted.gap else None
    delta_e = adsorption_energy(end.energy, clean.energy, h2)
    move = move_of_hydrogen(task.atoms, end.atoms) if wanted.relax_steps else None
    return Outcome(system.name, site, given, end, clean.energy, delta_e, move, vibrations, gap)


def sites_of(system: System, wanted: Wanted, ask: Ask) -> list[str]:
    """Return the sites that are asked for: all, or for a relaxation those near the lowest by their single points.

    Raises:
        NotFinished: one of these has no result yet.
    """
    if not wanted.relax_steps or math.isinf(wanted.relax_within):
        return list(system.sites)
    energies = {}
    for site, (_, task) in system.sites.items():
        if (found := ask(f"{system.name} {site}", task)) is None:
            raise NotFinished
        if found.get("error") is None:
            energies[site] = float(found["energy"])
    return [site for site, energy in energies.items() if energy - min(energies.values()) <= wanted.relax_within]


def as_given(task: Task, ask: Ask, label: str) -> Relaxed:
    """Return a geometry with its energy, not relaxed. Raises NotFinished or CalculationFailed."""
    return Relaxed(task.atoms, float(finished(ask(label, task))["energy"]), float("nan"), 0)


def all_of(*jobs: Callable[[], Relaxed]) -> list[Relaxed]:
    """Do every job, also where another process works on an earlier one. Raises NotFinished after the last, or CalculationFailed."""
    done = []
    for job in jobs:
        try:
            done.append(job())
        except NotFinished:
            continue
    if len(done) < len(jobs):
        raise NotFinished
    return done


def reference(wanted: Wanted) -> Task:
    """Return the task of the reference molecule, with the settings of the other energies."""
    return Task(hydrogen_molecule(), None, False, FORCES if wanted.relax_steps else ENERGY)


def known_sites(system: System, wanted: Wanted, folder: WorkFolder) -> list[str]:
    """Return the sites that are asked for; all of the sheet where that cannot be told yet."""
    try:
        return sites_of(system, wanted, folder.result)
    except NotFinished:
        return list(system.sites)


def collect(systems: list[System], wanted: Wanted, folder: WorkFolder) -> list[tuple[System, list[Outcome]]]:
    """Return the finished sites of every sheet, from the work folder alone."""
    found = []
    for system in systems:
        outcomes = []
        for site in known_sites(system, wanted, folder):
            try:
                outcomes.append(outcome_of(system, site, wanted, folder.result))
            except (NotFinished, CalculationFailed, InputError):  # said where it was computed
                continue
        found.append((system, outcomes))
    return found


def points_of(system: System, outcomes: list[Outcome], wanted: Wanted) -> SheetPoints:
    """Return a sheet and its finished sites as the database holds them."""
    info = system.sheet.info
    family = {"family": str(info["family"])} if "family" in info else {}
    sites = []
    for o in outcomes:
        values: dict[str, object] = {} if wanted.relax_steps else dict(potential_values(o.given.info))
        if wanted.relax_steps:
            values |= {"relax_steps": o.end.steps, "fmax_dft": o.end.fmax, "h_move": o.move, "energy_clean_dft": o.clean_energy}
        if o.vibrations is not None:
            values |= {"dzpe_dft": o.vibrations.change, "dG_dft": o.delta_g}
            values |= {f"h_mode{k + 1}": energy for k, energy in enumerate(o.vibrations.energies)}
        sites.append(SitePoint(o.site, o.end.atoms, o.end.energy, o.delta_e, values))
    gap = next((o.gap for o in outcomes if o.gap is not None), None)
    energy = outcomes[0].clean_energy if outcomes else float("nan")
    kpts = int(max(system.clean.kpts or (1,)))
    return SheetPoints(system.name, system.clean.atoms, energy, kpts, system.clean.polarised, sites, family, {"gap_dft": gap})


def print_table(found: list[tuple[System, list[Outcome]]], wanted: Wanted) -> None:
    """Print one line per finished site, with the columns that were asked for."""
    heads = ["sheet", "site", "ΔE_H (eV)", f"ΔE_H + {HER_CORRECTION_EV:g}"]
    heads += ["H moved (Å)", "fmax (eV/Å)", "steps"] if wanted.relax_steps else []
    heads += ["ΔZPE (eV)", "ΔG_H (eV)", "modes (meV)"] if wanted.zero_point else []
    heads += ["gap (eV)"] if wanted.gap else []
    rows = [heads]
    for _, outcomes in found:
        for o in outcomes:
            row = [o.name, o.site, f"{o.delta_e:+.3f}", f"{free_energy(o.delta_e, HER_CORRECTION_EV):+.3f}"]
            row += [f"{o.move:.3f}", f"{o.end.fmax:.3f}", str(o.end.steps)] if wanted.relax_steps else []
            if wanted.zero_point:
                change = o.vibrations.change
                modes = " ".join(f"{1000 * energy:.0f}" for energy in o.vibrations.energies)
                row += ["unstable" if change is None else f"{change:+.3f}", "" if o.delta_g is None else f"{o.delta_g:+.3f}", modes]
            if wanted.gap:
                row += ["metal" if o.gap == 0 else f"{o.gap:.2f}"]
            rows.append(row)
    if len(rows) > 1:
        widths = [max(len(row[k]) for row in rows) for k in range(len(heads))]
        for row in rows:
            print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", nargs="+", type=Path, metavar="STRUCTURE", help="extxyz or CIF files, or folders of them")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("results/dft"), help="one file per calculation (default: %(default)s)"
    )
    parser.add_argument(
        "--database", type=Path, help=f"ASE database to add to (default: WORK_DIR/{DATABASES[GIVEN]}, or {DATABASES[RELAXED]})"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no new calculation after this time")
    parser.add_argument("--relax-steps", type=int, default=0, metavar="N", help="relax all atoms; 0: single points")
    parser.add_argument("--relax-within", type=float, default=math.inf, metavar="EV", help="relax only sites near the lowest (eV)")
    parser.add_argument("--zero-point", action="store_true", help="ΔZPE of H and ΔG_H with it; needs --relax-steps")
    parser.add_argument("--gap", action="store_true", help="band gap of the clean sheet")
    parser.add_argument("--calculator", default=GPAW, help="gpaw, or MODULE:FUNCTION that returns an ASE calculator")
    options = parser.parse_args(arguments)
    if options.relax_steps < 0:
        parser.error("--relax-steps: at least 0")
    if options.zero_point and not options.relax_steps:
        parser.error("--zero-point is of a minimum: name --relax-steps too")
    return options


def read_systems(structures: list[Path]) -> list[System]:
    """Read all inputs; those that cannot be used are named."""
    paths: list[Path] = []
    for path in structures:
        inside = (
            [p for p in sorted(path.iterdir()) if p.suffix in (".extxyz", ".xyz", ".cif") and "__" not in p.stem]
            if path.is_dir()
            else []
        )
        paths += inside or [path]
    systems = []
    for path in paths:
        try:
            systems.append(system_of(path))
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
    return systems


def compute(systems: list[System], wanted: Wanted, folder: WorkFolder) -> str:
    """Run every unfinished calculation; return what is wrong with the reference molecule, empty where nothing is."""
    while (h2 := folder.compute("H2", reference(wanted))) is None and time.time() < folder.deadline:
        time.sleep(WAIT_SECONDS)  # another process is at it, and everybody needs it
    if h2 is None:
        return "not finished in time"
    if h2["energy"] is None:
        return str(h2["error"])
    for system in systems:
        try:
            sites = sites_of(system, wanted, folder.compute)
        except NotFinished:
            continue
        for site in sites:
            try:
                outcome_of(system, site, wanted, folder.compute)
            except NotFinished:
                continue
            except CalculationFailed as error:
                print(f"{system.name} {site}: {error}", file=sys.stderr)
            except InputError as error:
                print(f"skipped: {error}", file=sys.stderr)
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Run every unfinished calculation; return 0 when all have succeeded, 1 when some failed, 2 for input that cannot be used."""
    options = read_options(arguments)
    wanted = Wanted(options.relax_steps, options.zero_point, options.gap, options.relax_within)
    database = options.database or options.work_dir / DATABASES[wanted.geometry]
    systems = read_systems(options.structures)
    if not systems:
        print(f"{PROGRAM}: no usable structure among the inputs", file=sys.stderr)
        return 2
    try:
        check_unmixed(database, wanted.geometry, options.calculator)
        method = load_method(options.calculator)
    except StageError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    print(f"{method.about}, {len(systems)} sheets, {sum(len(system.sites) for system in systems)} sites", flush=True)
    folder = WorkFolder(options.work_dir, method, time.time() + 60 * options.minutes)
    if problem := compute(systems, wanted, folder):
        print(f"{PROGRAM}: the reference molecule: {problem}", file=sys.stderr)
        return 1
    found = collect(systems, wanted, folder)
    add_points(database, [points_of(s, o, wanted) for s, o in found if o], wanted.geometry, method.name)
    print_table(found, wanted)
    done = sum(len(outcomes) for _, outcomes in found)
    total = sum(len(known_sites(system, wanted, folder)) for system in systems)
    print(f"{done} of {total} sites done; {database}")
    return 0 if done == total else 1


if __name__ == "__main__":
    raise SystemExit(main())
