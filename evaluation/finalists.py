"""Exports the best candidates for DFT: relaxed sheet, sheet with H at its best sites, inputs for GPAW and for VASP.

results/finalists/ID/sheet.cif        the sheet, relaxed with the potential
results/finalists/ID/H_SITE.cif       a supercell with H, relaxed with the potential
results/finalists/ID/dft.extxyz       both, as verify_dft.py reads them
results/finalists/ID/vasp/...         INCAR, KPOINTS, POSCAR, POTCAR.spec of pymatgen's MPRelaxSet, for the sheet and every site
results/finalists/ID/finalist.json    what the judges say

The atoms stand in the same order in every file: as in the CIF of the candidate and in relaxed.extxyz, the electropositive element
first; H on a site stands last.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from tqdm import tqdm

from energetics.dft_inputs import IMAGE_DISTANCE, competing_sites, in_minima_of, note_delta_e, relaxed_sites, write_dft_input
from energetics.dft_rows import STORED_ENERGIES
from energetics.potentials import load_potential
from energetics.relaxation import HydrogenRelaxation
from evaluation.candidate import CandidateResult
from evaluation.judging import Judges
from pipeline.errors import StageError, first_line
from pipeline.files import atomic_folder, relative_name, write_json
from pipeline.tasks import Backend, run

log = logging.getLogger("her2d")

KPOINT_LENGTH = 25.0  # Å; VASP k-points along a vector = ceil(25 Å / its length)
MAX_SITES = 3
# ISIF: positions move and the cell stays, so that ΔE_H compares cells of one shape. LDIPOL: dipole correction across the sheet.
# LDAU: plain PBE, because Hubbard corrections of oxides and fluorides would not cancel against H2.
INCAR = {"ISIF": 2, "LDIPOL": True, "IDIPOL": 3, "LDAU": False, "ISMEAR": 0, "SIGMA": 0.05, "EDIFFG": -0.03, "NSW": 99, "IBRION": 2}


def export_finalists(
    rows: Sequence[CandidateResult],
    structures: dict[str, Atoms],
    where: Backend,
    folder: Path,
    max_h_steps: int,
    most_sites: int = MAX_SITES,
    go_on: bool = False,
    geometry: str = "",
) -> list[str]:
    """Write one folder per candidate, and remove the folders of earlier finalists.

    Args:
        rows: the finalists.
        structures: id -> relaxed sheet.
        where: workers with the judges, whose potential relaxes H on the sheets.
        folder: where the folders go.
        max_h_steps: most steps of a relaxation with H.
        most_sites: exported of a candidate, the best by the potential first.
        go_on: whether folders that are there already are finished parts of this export, and stay as they are.
        geometry: potential to whose minima the atoms go on (``in_minima_of``); empty: they stay in those of the judges' potential.

    Returns:
        Ids of the exported candidates on which the potential keeps H at one site at least.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if (old / "finalist.json").is_file() and old.name not in {row.id for row in rows}:
            shutil.rmtree(old)
    by_id = {row.id: row for row in rows}
    there = {identifier for identifier in by_id if go_on and (folder / identifier / "finalist.json").is_file()}
    exported = [identifier for identifier in there if read_finalist(folder / identifier)["sites"]]
    sheets = {identifier: structures[identifier] for identifier in by_id if identifier not in there}
    relaxations = run(partial(_relax, max_h_steps, most_sites, geometry), sheets, None, where, in_order=True, if_lost=_lost)
    for identifier, (clean, sites, potential, problem) in tqdm(
        relaxations, desc="finalists", unit="candidate", total=len(sheets), disable=not sheets
    ):
        if problem:
            log.warning("%s is not exported: %s", identifier, problem)
            continue
        order = site_order(clean)
        clean = clean[order]
        sites = [(label, _reordered(relaxation, order)) for label, relaxation in sites]
        with atomic_folder(folder / identifier) as target:
            _write_finalist(target, folder / identifier, by_id[identifier], structures[identifier], clean, sites, potential)
        if sites:
            exported.append(identifier)
        else:
            log.warning("%s: no site at which the potential keeps H; only the sheet is exported", identifier)
    return [row.id for row in rows if row.id in set(exported)]


def read_finalist(folder: Path) -> dict[str, Any]:
    """Return what ``finalist.json`` of an exported candidate holds.

    Raises:
        StageError: it is not readable.
    """
    path = folder / "finalist.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{relative_name(path)} cannot be read ({first_line(error)}): remove its folder") from error


def _relax(
    max_h_steps: int, most_sites: int, geometry: str, judges: Judges, sheet: Atoms
) -> tuple[Atoms | None, list[tuple[str, HydrogenRelaxation]], str, str]:
    """Relax H on a sheet: the clean supercell, the competing sites, the potential's name, and what went wrong."""
    potential = judges.potential.potential
    try:
        clean, relaxed = relaxed_sites(sheet, potential, IMAGE_DISTANCE, max_steps=max_h_steps)
        sites = competing_sites(relaxed, most_sites)
        if geometry:
            if (second := judges.potential.second) is not None and second.name in STORED_ENERGIES:
                note_delta_e(second, clean, sites)
            clean, sites = in_minima_of(load_potential(geometry), clean, sites)
    except (ValueError, RuntimeError) as error:  # RuntimeError: Qhull on atoms that span no plane
        return None, [], potential.name, str(error)
    return clean, sites, potential.name, ""


def _lost(_: Atoms) -> tuple[None, list, str, str]:
    return None, [], "", "the worker process died (out of memory?)"


def site_order(atoms: Atoms) -> list[int]:
    """Return the order in which the elements of a supercell stand together, in the order of their first atoms.

    The cells of a supercell stand one after another. In this order a POSCAR names every element once, and those of the sheet stand
    as in its CIF and in ``relaxed.extxyz``.
    """
    elements = list(dict.fromkeys(atoms.get_chemical_symbols()))
    return sorted(range(len(atoms)), key=lambda index: elements.index(atoms.symbols[index]))


def _reordered(relaxation: HydrogenRelaxation, order: list[int]) -> HydrogenRelaxation:
    """Return a relaxation with the atoms of the sheet in an order; H stays last."""
    return replace(relaxation, atoms=relaxation.atoms[[*order, len(order)]])


def _write_finalist(
    target: Path, final: Path, row: CandidateResult, sheet: Atoms, clean: Atoms, sites: list[tuple[str, Any]], potential: str
) -> None:
    """Write the files of one candidate into ``target``, which becomes the folder ``final``."""
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.io.cif import CifWriter

    def periodic(atoms: Atoms) -> Any:
        return AseAtomsAdaptor.get_structure(Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True))

    (target / "sheet.cif").write_text(str(CifWriter(periodic(sheet))), encoding="utf-8")
    systems = {"clean": clean, **{f"H_{label}": relaxation.atoms for label, relaxation in sites}}
    for name, atoms in systems.items():
        if name != "clean":
            (target / f"{name}.cif").write_text(str(CifWriter(periodic(atoms))), encoding="utf-8")
        write_vasp(target / "vasp" / name, periodic(atoms))
    write_dft_input(target / "dft.extxyz", row.id, clean, sites, potential)
    content = {
        "candidate": asdict(row),
        "sites": [{"site": label, "delta_e_potential_ev": float(r.delta_e), "converged": bool(r.converged)} for label, r in sites],
        "next": f"python3 scripts/verify_dft.py {relative_name(final / 'dft.extxyz')}",
    }
    write_json(target / "finalist.json", content)


def write_vasp(folder: Path, structure: Any, settings: dict[str, Any] | None = None) -> tuple[int, int]:
    """Write INCAR, KPOINTS, POSCAR and POTCAR.spec of a ``pymatgen`` structure.

    POTCAR.spec has only the names of the potentials, because the potentials themselves need a licence.

    Args:
        folder: where they go; made where it is missing.
        structure: the atoms, in the order of the files.
        settings: of INCAR, instead of or beside those of INCAR here; None takes a key away.

    Returns:
        Numbers of k-points along both in-plane vectors.
    """
    from pymatgen.io.vasp import Kpoints
    from pymatgen.io.vasp.sets import MPRelaxSet

    a, b = (int(np.ceil(KPOINT_LENGTH / length)) for length in structure.lattice.abc[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about POTCAR versions that are not installed
        inputs = MPRelaxSet(
            structure,
            user_incar_settings=INCAR | (settings or {}),
            user_kpoints_settings=Kpoints.gamma_automatic((a, b, 1)),
            sort_structure=False,
        )
        inputs.write_input(str(folder), potcar_spec=True)
    return a, b
