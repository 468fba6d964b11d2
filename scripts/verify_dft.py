#!/usr/bin/env python3
"""Computes ΔE_H of a sheet and its sites by density functional theory: DFT points for corrections, and checks of finalists.

    python3 scripts/verify_dft.py STRUCTURE... [--work-dir results/dft] [--database results/dft/h_on_2d_dft.db]

Needs ase, numpy and GPAW, and of this project only ``pipeline.store``, which needs the standard library alone, so that a system
Python with GPAW can run it (Debian and Ubuntu:
``apt-get install --no-install-recommends gpaw gpaw-data``, then ``/usr/bin/python3 scripts/verify_dft.py``).

STRUCTURE  an extxyz file (or a folder of them): the clean sheet first, then the same cell with one H as the last atom, one frame
           per site. A CIF works too: NAME.cif is the sheet, NAME__SITE.cif the sheet with H. Keys name, site, family, kpts and
           spin of ``info`` are read where a frame has them.

ΔE_H = E(sheet+H) − E(sheet) − ½E(H2), all PBE single points with plane waves at the geometries given, one setting for all three
(the SETTINGS below and nothing else; values with different settings must not be mixed). Every single point is one file in the
work folder; a run that is killed goes on where it stopped, and several processes may share one folder (start one per core, each
with OMP_NUM_THREADS=1). The database is written anew from all finished single points at the end of each process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.io import read

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where it is started as a file, from anywhere

from pipeline.store import FolderStore

# Converged to about 0.05 eV in ΔE_H against denser k-points, a larger basis and literature values.
SETTINGS = {"mode": "PW", "ecut_ev": 350, "xc": "PBE", "smearing_ev": 0.1, "vacuum_angstrom": 6.0, "h2_bond_angstrom": 0.7514}
KPOINT_LENGTH = 18.0  # Å; k-points along a vector = ceil(18 Å / its length), at least 2
STORED_POTENTIALS = {"sevennet-0": "dE_7net0", "sevennet-l3i5": "dE_7netl3i5"}  # whose ΔE_H a row keeps, and under which key
MAGNETIC = {"V", "Cr", "Mn", "Fe", "Co", "Ni"}  # elements for which an unstated spin means "polarised"


class InputError(Exception):
    """A structure that cannot be used; the message says which and why."""


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


def kpoints(atoms: Atoms) -> tuple[int, int]:
    """Return the numbers of Γ-centred k-points along both in-plane vectors: ``info['kpts']`` where given, else from the cell."""
    given = atoms.info.get("kpts")
    if given is not None:
        return int(given), int(given)
    first, second = (max(2, int(np.ceil(KPOINT_LENGTH / length - 0.05))) for length in atoms.cell.lengths()[:2])
    return first, second


def is_polarised(atoms: Atoms) -> bool:
    """Return ``info['spin']`` where given, else whether a 3d metal that can be magnetic is there."""
    given = atoms.info.get("spin")
    return bool(given) if given is not None else bool(MAGNETIC & set(atoms.symbols))


def boxed(atoms: Atoms) -> Atoms:
    """Return the sheet in a cell with SETTINGS' vacuum on both sides, periodic in plane, without constraints and old results."""
    out = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=(True, True, False))
    normal = np.cross(out.cell[0], out.cell[1])
    if not np.allclose(normal[:2], 0, atol=1e-6):
        raise InputError(f"{atoms.info.get('name', atoms.symbols)}: the sheet does not lie in the xy plane")
    cell = out.cell.array.copy()
    cell[2] = [0, 0, np.ptp(out.positions[:, 2]) + 2 * SETTINGS["vacuum_angstrom"]]
    out.set_cell(cell)
    out.positions[:, 2] += SETTINGS["vacuum_angstrom"] - out.positions[:, 2].min()
    return out


def single_point(atoms: Atoms, log_path: Path, kpts: tuple[int, int] | None, polarised: bool) -> float:
    """Compute the PBE total energy, eV. kpts: None for a molecule in a periodic box."""
    from gpaw import GPAW, PW, FermiDirac, Mixer, MixerSum

    arguments = {
        "mode": PW(SETTINGS["ecut_ev"]),
        "xc": SETTINGS["xc"],
        "basis": "dzp",
        "occupations": FermiDirac(SETTINGS["smearing_ev"]),
        "mixer": MixerSum(0.1, 5, 50) if polarised else Mixer(0.1, 5, 50),
        "symmetry": {"tolerance": 0.01},
        "maxiter": 200,
        "convergence": {"energy": 1e-4, "density": 1e-3, "eigenstates": 4e-6, "bands": "occupied"},
        "txt": str(log_path),
    }
    if kpts is not None:  # a dipole across the sheet must not act on its own image
        arguments |= {"poissonsolver": {"dipolelayer": "xy"}, "kpts": {"size": (*kpts, 1), "gamma": True}}
    if polarised:
        arguments["spinpol"] = True
        atoms.set_initial_magnetic_moments([2.0 if symbol in MAGNETIC else 0.1 for symbol in atoms.symbols])
    atoms.calc = GPAW(**arguments)
    return float(atoms.get_potential_energy())


def hydrogen_molecule() -> Atoms:
    """Build H2 at its PBE bond length in a periodic box with 5 Å of vacuum."""
    molecule = Atoms("H2", [[0, 0, 0], [0, 0, SETTINGS["h2_bond_angstrom"]]])
    molecule.center(vacuum=5.0)
    molecule.positions += 0.03  # off the real-space grid, so that no direction is special
    molecule.pbc = True
    return molecule


def key_of(atoms: Atoms, kpts: tuple[int, int] | None, polarised: bool) -> str:
    """Return the key of a single point: a hash of everything that decides its energy."""
    content = [SETTINGS, list(kpts or ()), polarised, atoms.get_chemical_symbols()]
    content += [np.round(atoms.positions, 4).tolist(), np.round(atoms.cell.array, 4).tolist()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class WorkFolder:
    """Single points on disk: KEY.json is a result, KEY.lock (the process's id inside) one in work, KEY.txt GPAW's own log."""

    def __init__(self, path: Path) -> None:
        self.path, self.store = path, FolderStore(path)
        path.mkdir(parents=True, exist_ok=True)

    def result(self, key: str) -> dict | None:
        """Return the finished single point, or None."""
        return self.store.get(key)

    def claim(self, key: str) -> bool:
        """Return whether this process may compute the single point; the lock of a process that has ended is taken over."""
        return self.store.claim(key)

    def compute(self, key: str, label: str, atoms: Atoms, kpts: tuple[int, int] | None, polarised: bool) -> dict | None:
        """Return the result, computed here unless it exists; None while another process works on it."""
        if (found := self.result(key)) is not None:
            return found
        if not self.claim(key):
            return None
        started = time.time()
        result = {"label": label, "kpts": list(kpts or ()), "spin": polarised, "natoms": len(atoms), "energy": None, "error": None}
        try:
            result["energy"] = single_point(atoms.copy(), self.path / f"{key}.txt", kpts, polarised)
        except Exception as error:  # a calculation that does not converge is a result; the next one must not wait for it
            result["error"] = f"{type(error).__name__}: {str(error)[:200]}"
        result["seconds"] = round(time.time() - started, 1)
        result = self.store.add(key, result)
        self.store.release(key)
        outcome = f"{result['energy']:.4f} eV" if result["error"] is None else f"failed ({result['error']})"
        print(f"{label}: {outcome}, {result['seconds']:.0f} s", flush=True)
        return result


def points_of(path: Path) -> tuple[str, list[tuple[str, Atoms, Atoms, tuple[int, int], bool]]]:
    """Return (name, [(site or 'clean', as given, boxed, k-points, spin), ...]) of one input. Raises InputError."""
    name, sheet, sites = read_system(path)
    kpts, polarised = kpoints(sheet), is_polarised(sheet)
    return name, [(label, atoms, boxed(atoms), kpts, polarised) for label, atoms in [("clean", sheet), *sites.items()]]


def write_database(path: Path, systems: list[tuple[str, list]], folder: WorkFolder, h2: float) -> list[tuple[str, str, float]]:
    """Add every finished system to the database, whose rows stay; return (name, site, ΔE_H in eV) of all finished inputs."""
    summary = []
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    if path.is_file():
        temporary.write_bytes(path.read_bytes())
    try:
        with connect(temporary, type="db") as db:
            present = {(row.name, row.get("site", "clean")) for row in db.select()} if path.is_file() else set()
            for name, points in systems:
                clean = folder.result(key_of(points[0][2], *points[0][3:]))
                if not clean or clean["energy"] is None:
                    continue
                host = points[0][1].symbols.formula.reduce()[0].format("hill")
                shared = {"name": name, "host": host, "kpts": int(max(points[0][3])), "spin": bool(points[0][4])}
                if "family" in points[0][1].info:
                    shared["family"] = str(points[0][1].info["family"])
                rows = []
                for label, given, atoms, kpts, polarised in points[1:]:
                    result = folder.result(key_of(atoms, kpts, polarised))
                    if not result or result["energy"] is None:
                        continue
                    delta_e = result["energy"] - clean["energy"] - 0.5 * h2
                    summary.append((name, label, delta_e))
                    values = shared | {"kind": "slab_H", "site": label, "energy_dft": result["energy"], "dE_dft": delta_e}
                    if given.info.get("potential") in STORED_POTENTIALS and "delta_e_potential_ev" in given.info:
                        values[STORED_POTENTIALS[given.info["potential"]]] = float(given.info["delta_e_potential_ev"])
                    rows.append((atoms, values))
                if rows and (name, "clean") not in present:
                    db.write(points[0][2], **shared, kind="clean", energy_dft=clean["energy"])
                for atoms, values in rows:
                    if (name, values["site"]) not in present:
                        db.write(atoms, **values)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return summary


def main(arguments: list[str] | None = None) -> int:
    """Run every unfinished single point; return 0 when all have succeeded, 1 when some failed, 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", nargs="+", type=Path, metavar="STRUCTURE", help="extxyz or CIF files, or folders of them")
    parser.add_argument("--work-dir", type=Path, default=Path("results/dft"), help="one file per point (default: %(default)s)")
    parser.add_argument("--database", type=Path, help="ASE database to add to (default: WORK_DIR/h_on_2d_dft.db)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no new single point after this time")
    options = parser.parse_args(arguments)
    paths: list[Path] = []
    for path in options.structures:
        inside = (
            [p for p in sorted(path.iterdir()) if p.suffix in (".extxyz", ".xyz", ".cif") and "__" not in p.stem]
            if path.is_dir()
            else []
        )
        paths += inside or [path]
    systems = []
    for path in paths:
        try:
            systems.append(points_of(path))
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
    if not systems:
        print("verify_dft.py: no usable structure among the inputs", file=sys.stderr)
        return 2
    try:
        import gpaw
    except ImportError:
        print(
            "verify_dft.py: GPAW is not installed in this Python; on Debian or Ubuntu: apt-get install --no-install-recommends "
            "gpaw gpaw-data, then /usr/bin/python3 scripts/verify_dft.py",
            file=sys.stderr,
        )
        return 2
    print(f"GPAW {gpaw.__version__}, {len(systems)} sheets, {sum(len(points) - 1 for _, points in systems)} sites", flush=True)
    folder = WorkFolder(options.work_dir)
    deadline = time.time() + 60 * options.minutes
    molecule = hydrogen_molecule()
    while (h2 := folder.compute(key_of(molecule, None, False), "H2", molecule, None, False)) is None:
        time.sleep(5)  # another process is at it, and everybody needs it
    if h2["energy"] is None:
        print(f"verify_dft.py: the reference molecule failed: {h2['error']}", file=sys.stderr)
        return 1
    for name, points in systems:
        for label, _, atoms, kpts, polarised in points:
            if time.time() > deadline:
                break
            folder.compute(key_of(atoms, kpts, polarised), f"{name} {label}", atoms, kpts, polarised)
    database = options.database or options.work_dir / "h_on_2d_dft.db"
    summary = write_database(database, systems, folder, h2["energy"])
    for name, label, delta_e in summary:
        print(f"{name:24s} {label:16s} ΔE_H {delta_e:+.3f} eV")
    wanted = sum(len(points) - 1 for _, points in systems)
    print(f"{len(summary)} of {wanted} sites done; {database}")
    return 0 if len(summary) == wanted else 1


if __name__ == "__main__":
    raise SystemExit(main())
