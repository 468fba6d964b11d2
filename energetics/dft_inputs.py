"""Prepares geometries for DFT: a sheet and its most stable H sites, relaxed with potentials, in one file for ``verify_dft.py``.

Frame 0 of the extxyz file is the clean sheet, every further frame the same supercell with one H. DFT needs single points, or few
steps. The judge's potential finds the sites; there H and the atoms around it are free, and the others stay where they are in the
clean sheet. In an open sheet, and around H inside one, that is not enough: then all atoms of both cells go on to a minimum of a
potential whose geometries are nearer to those of DFT (``in_minima_of``).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import find_mic

from energetics.adsorption_energy import adsorption_energy
from energetics.dft_calculation import HESSIANS
from energetics.dft_rows import STORED_ENERGIES
from energetics.potentials import Potential
from energetics.relaxation import (
    FAR_ABOVE_EV,
    HydrogenRelaxation,
    h2_energy,
    has_desorbed,
    relax_hydrogen,
    relax_positions,
    single_point,
)
from energetics.sites import INNER, adsorption_sites, beside_site, h_supercell, inner_sites, is_inside
from geo_utils import primitive_sheet
from pipeline.files import atomic_path

IMAGE_DISTANCE = 5.6  # Å between images of H, as in the DFT database: a cell that DFT can afford
STRAIGHT_BELOW = 0.5  # Å, an atom this close to the vertical through H is straight below it
COMPETING_EV = 0.25  # a second site is exported when the potential puts it this close to the best one
SAME_KIND_EV = 0.1  # a second site of one kind, when it is this close
SAME_SITE_EV = 0.01  # sites of one kind that are closer than this are one
HESSIAN_STEP = 0.01  # Å
MINIMUM_FMAX = 0.02  # eV/Å
MINIMUM_STEPS = 200
OFF_CENTRE = np.array([0.03, 0.02, 0.05])  # Å; H leaves a point of high symmetry that is no minimum


def relaxed_sites(
    sheet: Atoms,
    potential: Potential,
    image_distance: float,
    fmax: float = 0.03,
    max_steps: int = 120,
) -> tuple[Atoms, list[tuple[str, HydrogenRelaxation]]]:
    """Relax H from every symmetry-distinct site of a sheet, on its faces and inside, as stage 5 does.

    Args:
        sheet: a relaxed monolayer.
        potential: relaxes H and the atoms around it.
        image_distance: Å between images of H.
        fmax: eV/Å, the largest force at the end.
        max_steps: of each relaxation.

    Returns:
        The clean supercell, and every converged, adsorbed site ``(label, relaxation)``, most stable first. Sites that stay far
        above the best are given up.
    """
    primitive = primitive_sheet(sheet)
    supercell = h_supercell(primitive, image_distance)
    clean = primitive.repeat((*supercell, 1))
    energy = relax_positions(clean, potential, fmax, 0).energy
    relaxed: list[tuple[str, HydrogenRelaxation]] = []
    for site in (*adsorption_sites(primitive), *inner_sites(primitive)):
        start = beside_site(primitive, site, supercell)
        best = min((other.delta_e for _, other in relaxed if is_inside(other.atoms) == (site.face == INNER)), default=math.inf)
        relaxation = relax_hydrogen(start, energy, potential, fmax, max_steps, give_up_above=best + FAR_ABOVE_EV)
        if relaxation.status == "ok":
            relaxed.append((site_label(relaxation.atoms), relaxation))
    relaxed.sort(key=lambda item: item[1].delta_e)
    return clean, relaxed


def competing_sites(relaxed: list[tuple[str, HydrogenRelaxation]], most: int = 2) -> list[tuple[str, HydrogenRelaxation]]:
    """Choose the sites that may be the lowest by DFT: the most stable one, and up to ``most - 1`` others.

    Energies on the faces and inside are not compared: the potentials put H inside sheets of 4d and 5d metals 0.4 to 0.8 eV too high
    and on faces nearly right. The lowest of both is taken first. Then come others of another kind within COMPETING_EV of it, then,
    most stable first, further ones of the same kinds within SAME_KIND_EV, for which the potential's errors are more alike. In an
    alloy these are sites with other neighbours; those that cannot be told apart by energy are one. The second of a kind is named
    such as topS_2.

    relaxed: ``(label, relaxation)``, most stable first.
    """
    lowest: dict[bool, float] = {}
    for _, relaxation in relaxed:
        lowest.setdefault(is_inside(relaxation.atoms), relaxation.delta_e)
    above = {id(relaxation): relaxation.delta_e - lowest[is_inside(relaxation.atoms)] for _, relaxation in relaxed}
    chosen: list[tuple[str, HydrogenRelaxation]] = []
    for most_above in (COMPETING_EV, SAME_KIND_EV):
        for label, relaxation in sorted(relaxed, key=lambda item: above[id(item[1])] > 0):
            same = [other.delta_e for name, other in chosen if name.split("_")[0] == label]
            if len(chosen) == most or above[id(relaxation)] > most_above:
                continue
            if same and (most_above == COMPETING_EV or min(abs(relaxation.delta_e - e) for e in same) < SAME_SITE_EV):
                continue
            chosen.append((f"{label}_{len(same) + 1}" if same else label, relaxation))
    return sorted(chosen, key=lambda item: item[1].delta_e)


def note_delta_e(potential: Potential, clean: Atoms, sites: list[tuple[str, HydrogenRelaxation]]) -> None:
    """Put ΔE_H of another potential, eV, at the geometries as they are into ``info`` of the sites' atoms.

    The correction towards DFT is asked about both potentials at the geometries of the first, and so has to learn from them there,
    wherever DFT is asked.
    """
    sheet = single_point(clean, potential.calculator)
    for _, relaxation in sites:
        energy = single_point(relaxation.atoms, potential.calculator)
        relaxation.atoms.info[STORED_ENERGIES[potential.name]] = adsorption_energy(energy, sheet, h2_energy(potential))


def in_minima_of(
    potential: Potential, clean: Atoms, sites: list[tuple[str, HydrogenRelaxation]]
) -> tuple[Atoms, list[tuple[str, HydrogenRelaxation]]]:
    """Move all atoms of a sheet and of its sites to minima of a potential, in a fixed cell.

    Args:
        potential: whose minima.
        clean: the supercell.
        sites: ``(label, relaxation)`` in it, H last, most stable first.

    Returns:
        The clean supercell and the sites, labelled anew; ΔE_H stays that of the potential that found them. Sites that fall into one
        are one, and those that H leaves are left out.

    Raises:
        ValueError: the potential has no minimum near a geometry.
    """
    ends: list[tuple[str, HydrogenRelaxation]] = []
    energies: list[float] = []
    for _, relaxation in sites:
        start = relaxation.atoms.copy()
        start.positions[-1] += OFF_CENTRE
        end = relax_positions(start, potential, MINIMUM_FMAX, MINIMUM_STEPS)
        if end.status == "exploded":
            raise ValueError(f"{potential.name} has no minimum near the site")
        kind = site_label(end.atoms)
        same = [energy for (label, _), energy in zip(ends, energies, strict=True) if label.split("_")[0] == kind]
        if has_desorbed(end.atoms, len(end.atoms) - 1) or any(abs(energy - end.energy) < SAME_SITE_EV for energy in same):
            continue
        ends.append((f"{kind}_{len(same) + 1}" if same else kind, replace(relaxation, atoms=end.atoms, converged=end.converged)))
        energies.append(end.energy)
    sheet = relax_positions(clean, potential, MINIMUM_FMAX, MINIMUM_STEPS)
    if sheet.status == "exploded":
        raise ValueError(f"{potential.name} has no minimum near the sheet")
    return sheet.atoms, ends


def write_dft_input(
    path: Path, name: str, clean: Atoms, sites: list[tuple[str, HydrogenRelaxation]], potential: str, **info: object
) -> None:
    """Write one extxyz: the clean sheet, then the sites.

    potential: name of the one that relaxed them. info: further keys of every frame, such as family, kpts or spin.
    """
    from ase.io import write

    frames = []
    for label, atoms, delta_e in [("clean", clean, None), *((label, r.atoms, r.delta_e) for label, r in sites)]:
        frame = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=(True, True, False))
        frame.info = {"name": name, "site": label, "potential": potential, **info}
        if delta_e is not None:
            frame.info["delta_e_potential_ev"] = round(float(delta_e), 4)
            frame.info |= {key: round(float(atoms.info[key]), 4) for key in STORED_ENERGIES.values() if key in atoms.info}
        frames.append(frame)
    with atomic_path(path) as temporary:
        write(temporary, frames, format="extxyz")


def write_hessians(path: Path, potential: Potential) -> Path:
    """Write the Hessians of a potential for every frame of an input, from which ``verify_dft.py`` starts its relaxations.

    Args:
        path: NAME.extxyz, as ``write_dft_input`` writes it.
        potential: near whose minima the frames are.

    Returns:
        The file: NAME_hessians.npz, of one array (3N, 3N), eV/Å², per frame, named as its site.
    """
    from ase.io import read

    found = {str(frame.info["site"]): hessian(frame, potential).astype(np.float32) for frame in read(path, index=":")}
    target = path.with_name(f"{path.stem}{HESSIANS}")
    with atomic_path(target) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(handle, **found)
    return target


def hessian(atoms: Atoms, potential: Potential) -> np.ndarray:
    """Return the second derivatives of the energy (3N, 3N), eV/Å², by central differences of the forces."""
    work = atoms.copy()
    work.calc = potential.calculator
    rows = np.zeros((work.positions.size, work.positions.size))
    for k, place in enumerate(np.ndindex(work.positions.shape)):
        for sign in (1, -1):
            work.positions[place] += sign * HESSIAN_STEP
            rows[k] -= sign * work.get_forces().ravel() / (2 * HESSIAN_STEP)
            work.positions[place] -= sign * HESSIAN_STEP
    return (rows + rows.T) / 2


def site_label(atoms: Atoms) -> str:
    """Name what H is bound to: its nearest atom, and those within 15 % of that contact, such as 'topS' or 'bridgeS-S'.

    Two hollows of one face, as of a bare MXene, differ in the atom straight below: 'hollowTi-Ti-Ti-over-C', '...-over-Ti'.
    """
    vectors = atoms.positions[:-1] - atoms.positions[-1]
    _, distances = find_mic(vectors, atoms.cell, atoms.pbc)
    ratios = distances / (covalent_radii[atoms.numbers[:-1]] + covalent_radii[1])
    bound = sorted(atoms.symbols[i] for i in np.flatnonzero(ratios < 1.15 * ratios.min()))
    label = {1: "top", 2: "bridge"}.get(len(bound), "hollow") + "-".join(bound)
    if len(bound) < 3:
        return label
    lateral = np.linalg.norm(find_mic(vectors * [1, 1, 0], atoms.cell, atoms.pbc)[0][:, :2], axis=1)
    inwards = np.sign(atoms.positions[-1, 2] - atoms.positions[:-1, 2].mean()) * vectors[:, 2] < 0
    below = np.flatnonzero((lateral < STRAIGHT_BELOW) & inwards)
    return f"{label}-over-{atoms.symbols[below[lateral[below].argmin()]]}" if len(below) else label
