"""DFT points by VASP: writes the inputs of single points, and reads the results back.

    FOLDER/NAME/clean, FOLDER/NAME/H_SITE, FOLDER/H2      POSCAR, INCAR, KPOINTS, POTCAR.spec

The settings are those of finalists (``finalists.write_vasp``, pymatgen's MPRelaxSet without Hubbard corrections), without steps of
the ions: PBE single points at the potential's geometries, as ``verify_dft.py`` computes them; or, for designs, with some steps of
the ions in a fixed cell. POTCAR.spec names the potentials, which need a licence. A result is a vasprun.xml or an OUTCAR, compressed
or not, in the folder of its inputs or in one of the same name elsewhere.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import find_mic
from ase.io import read

from energetics.adsorption_energy import adsorption_energy
from energetics.dft_calculation import boxed, hydrogen_molecule
from energetics.dft_rows import SheetPoints, SitePoint, potential_values
from evaluation.finalists import write_vasp
from pipeline.errors import StageError, first_line
from pipeline.files import atomic_folder, relative_name

VASP = "vasp"
MOLECULE = "H2"
# No steps of the ions. EDIFF: differences of energies have to be good to a hundredth of an eV.
STATIC = {"NSW": 0, "IBRION": -1, "ISIF": None, "EDIFFG": None, "EDIFF": 1e-5}
FREE_OF_DIPOLE = {"LDIPOL": None, "IDIPOL": None}
RESULTS = ("vasprun.xml", "vasprun.xml.gz", "OUTCAR", "OUTCAR.gz")
SAME_PLACE = 0.05  # Å, between the atoms of a result and those of its inputs
ALL_STEPS = 60  # VASP's default of NELM, electronic steps after which it gives up


class NoResult(Exception):
    """A calculation that ended without a usable energy; the message says why."""


@dataclass(frozen=True)
class ReadBack:
    """Results of VASP. systems: finished sheets. missing: calculations without a result. failed: calculation -> why."""

    systems: list[SheetPoints]
    missing: list[str]
    failed: dict[str, str]


def frames_of(path: Path) -> dict[str, Atoms]:
    """Return the frames of an input for DFT (``dft_inputs.write_dft_input``): "clean", and "H_SITE" for every site.

    Raises:
        StageError: it is no such file.
    """
    try:
        frames = read(path, index=":")
        found = {"clean" if k == 0 else f"H_{frame.info['site']}": frame for k, frame in enumerate(frames)}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise StageError(f"{relative_name(path)} is no input for DFT ({first_line(error)})") from error
    return found


def write_calculations(inputs: Mapping[str, Path], folder: Path, relax_steps: int = 0) -> list[str]:
    """Write the inputs of all calculations; those that are there stay.

    Args:
        inputs: name of a sheet -> its file for DFT.
        folder: where they go.
        relax_steps: of the ions, at most; 0: single points.

    Returns:
        Names of the calculations, below ``folder``.
    """
    names = [MOLECULE]
    _write(folder / MOLECULE, hydrogen_molecule(), STATIC | FREE_OF_DIPOLE)
    settings = {"NSW": relax_steps, "EDIFF": STATIC["EDIFF"]} if relax_steps else STATIC
    for name, path in inputs.items():
        for label, atoms in frames_of(path).items():
            names.append(f"{name}/{label}")
            _write(folder / name / label, atoms, settings)
    return names


def _write(folder: Path, atoms: Atoms, settings: dict[str, Any]) -> None:
    from pymatgen.io.ase import AseAtomsAdaptor

    if not folder.is_dir():
        periodic = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
        with atomic_folder(folder) as new:
            write_vasp(new, AseAtomsAdaptor.get_structure(periodic), settings)


def read_calculations(inputs: Mapping[str, Path], folder: Path, relaxed: bool = False) -> ReadBack:
    """Read the results of all calculations.

    Args:
        inputs: name of a sheet -> its file for DFT.
        folder: with a folder for every calculation, as ``write_calculations`` names them.
        relaxed: whether the atoms have moved; the results then are of their last places.

    Returns:
        The sheets whose own energy and at least one site are there, what is missing, and what failed.
    """
    missing: list[str] = []
    failed: dict[str, str] = {}

    def result(name: str, atoms: Atoms, may_move: bool) -> tuple[float, Atoms] | None:
        path = next((folder / name / file for file in RESULTS if (folder / name / file).is_file()), None)
        if path is None:
            missing.append(name)
            return None
        try:
            return read_result(path, atoms, may_move)
        except NoResult as error:
            failed[name] = str(error)
            return None

    molecule = result(MOLECULE, hydrogen_molecule(), False)
    systems = []
    for name, path in inputs.items():
        frames = frames_of(path)
        ends = {label: result(f"{name}/{label}", atoms, relaxed) for label, atoms in frames.items()}
        if molecule is not None and ends["clean"] is not None:
            systems.append(_points(name, frames, ends, molecule[0]))
    return ReadBack([system for system in systems if system.sites], missing, failed)


def _points(name: str, frames: Mapping[str, Atoms], ends: Mapping[str, tuple[float, Atoms] | None], molecule: float) -> SheetPoints:
    """Return a sheet and its finished sites as rows hold them. ends: energy and atoms of every frame."""
    sheet_energy, sheet = ends["clean"]
    clean = boxed(sheet)
    sites = []
    for label, atoms in frames.items():
        if label != "clean" and (found := ends[label]) is not None:
            delta_e = adsorption_energy(found[0], sheet_energy, molecule)
            sites.append(SitePoint(label.removeprefix("H_"), boxed(found[1]), found[0], delta_e, potential_values(atoms.info)))
    return SheetPoints(name, clean, sheet_energy, kpoints(clean), True, sites)  # MPRelaxSet always polarises the spin


def read_result(path: Path, atoms: Atoms, may_move: bool = False) -> tuple[float, Atoms]:
    """Read the total energy, extrapolated to zero smearing, of a vasprun.xml or OUTCAR, eV, and the atoms that it is of.

    Args:
        path: the file.
        atoms: of the inputs, in their order.
        may_move: whether the atoms were relaxed.

    Raises:
        NoResult: it cannot be read, is of other atoms, or its electrons have not converged.
    """
    try:
        found = read(path, index=-1)
        energy = float(found.get_potential_energy())
    except Exception as error:  # whatever a reader raises on a file that is cut off
        raise NoResult(f"{relative_name(path)} cannot be read ({type(error).__name__}: {first_line(error)[:80]})") from error
    if found.get_chemical_symbols() != atoms.get_chemical_symbols():
        raise NoResult(f"{relative_name(path)} is of {found.symbols}, not of {atoms.symbols}")
    _, moved = find_mic(found.positions - atoms.positions, atoms.cell, pbc=True)
    if moved.max() > SAME_PLACE and not may_move:
        raise NoResult(
            f"{relative_name(path)}: an atom is {moved.max():.2f} Å from its place in the inputs; single points are needed"
        )
    if not np.isfinite(energy):
        raise NoResult(f"{relative_name(path)}: the energy is not finite")
    if not _is_converged(path):
        raise NoResult(f"{relative_name(path)}: the electrons have not converged")
    moved_atoms = atoms.copy()
    if may_move:
        moved_atoms.positions = found.positions
    return energy, moved_atoms


def _is_converged(path: Path) -> bool:
    """Return whether the electronic steps ended before their number was used up."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as handle:
        text = handle.read()
    if path.name.startswith("OUTCAR"):
        return "aborting loop because EDIFF is reached" in text
    most = re.search(r'name="NELM"[^>]*>\s*(\d+)', text)
    return text.rpartition("<calculation")[2].count("<scstep>") < (int(most[1]) if most else ALL_STEPS)


def kpoints(sheet: Atoms) -> int:
    """Return the larger number of k-points in plane that ``write_vasp`` gives a cell."""
    from evaluation.finalists import KPOINT_LENGTH

    return int(np.ceil(KPOINT_LENGTH / sheet.cell.lengths()[:2]).max())


def summary_of_missing(names: Iterable[str], most: int = 3) -> str:
    """Return the first names of a list, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
