"""Geometries for DFT: a sheet and its most stable H sites, relaxed with the potential, in one extxyz that ``verify_dft.py`` reads.

Frame 0 is the clean sheet, every further frame the same supercell with one H. DFT then needs single points only: H, its host and
the atoms around it are free in the potential's relaxation, the others stay where they are in the clean sheet, so that what is
left of the potential's errors in the lattice cancels in ΔE_H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import find_mic

from energetics.potentials import Potential
from energetics.relaxation import HydrogenRelaxation, relax_hydrogen, relax_positions
from energetics.sites import add_hydrogen, adsorption_sites, h_supercell
from geo_utils import primitive_sheet
from pipeline.files import atomic_path

IMAGE_DISTANCE = 5.6  # Å between images of H, as in the DFT database: a cell that DFT can afford
COMPETING_EV = 0.25  # a second site is kept when the potential puts it this close to the best one
SAME_SITE_ANGSTROM = 0.4  # sites that relax to places this close, with energies within 20 meV, are one
FAR_ABOVE_EV = 0.5  # a site whose H is this far above the best after a few steps does not compete
OFF_AXIS_ANGSTROM = 0.15  # an H exactly on top of an atom can be trapped there by symmetry


def relaxed_sites(
    sheet: Atoms,
    potential: Potential,
    image_distance: float,
    fmax: float = 0.03,
    max_steps: int = 120,
    seed: Sequence[int] | int = 0,
) -> tuple[Atoms, list[tuple[str, HydrogenRelaxation]]]:
    """The clean supercell and every converged, adsorbed site ``(label, relaxation)``, most stable first. Sites that stay far above
    the best are given up.

    sheet: a relaxed monolayer. image_distance: Å between images of H. H starts up to 0.15 Å off each symmetry-distinct site.
    """
    rng = np.random.default_rng(seed)
    primitive = primitive_sheet(sheet)
    supercell = h_supercell(primitive, image_distance)
    clean = primitive.repeat((*supercell, 1))
    energy = relax_positions(clean, potential, fmax, 0).energy
    found: list[tuple[str, HydrogenRelaxation]] = []
    for site in adsorption_sites(primitive):
        start = add_hydrogen(primitive, site, supercell)
        start.positions[-1, :2] += rng.uniform(-1, 1, 2) * OFF_AXIS_ANGSTROM / 2**0.5
        best = min((other.delta_e for _, other in found), default=math.inf)
        relaxation = relax_hydrogen(start, energy, potential, fmax, max_steps, give_up_above=best + FAR_ABOVE_EV)
        if relaxation.status == "ok":
            found.append((_final_label(relaxation.atoms), relaxation))
    found.sort(key=lambda item: item[1].delta_e)
    return clean, found


def competing_sites(found: list[tuple[str, HydrogenRelaxation]], most: int = 2) -> list[tuple[str, HydrogenRelaxation]]:
    """The most stable site, and up to ``most - 1`` others of another kind within COMPETING_EV of it."""
    kept: list[tuple[str, HydrogenRelaxation]] = []
    for label, relaxation in found:
        if kept and relaxation.delta_e - kept[0][1].delta_e > COMPETING_EV:
            break
        if label not in {name for name, _ in kept} and len(kept) < most:
            kept.append((label, relaxation))
    return kept


def write_dft_input(
    path: Path, name: str, clean: Atoms, sites: list[tuple[str, HydrogenRelaxation]], potential: str, **info: object
) -> None:
    """One extxyz: the clean sheet, then the sites. potential: name of the one that relaxed them. info: further keys of every frame,
    such as family, kpts or spin."""
    from ase.io import write

    frames = []
    for label, atoms, delta_e in [("clean", clean, None), *((label, r.atoms, r.delta_e) for label, r in sites)]:
        frame = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=(True, True, False))
        frame.info = {"name": name, "site": label, "potential": potential, **info}
        if delta_e is not None:
            frame.info["delta_e_potential_ev"] = round(float(delta_e), 4)
        frames.append(frame)
    with atomic_path(path) as temporary:
        write(temporary, frames, format="extxyz")


def _final_label(atoms: Atoms) -> str:
    """What H is bound to: its nearest atom, and those within 15 % of that contact, such as 'topS' or 'bridgeS-S'."""
    vectors = atoms.positions[:-1] - atoms.positions[-1]
    _, distances = find_mic(vectors, atoms.cell, atoms.pbc)
    ratios = distances / (covalent_radii[atoms.numbers[:-1]] + covalent_radii[1])
    bound = sorted(atoms.symbols[i] for i in np.flatnonzero(ratios < 1.15 * ratios.min()))
    return {1: "top", 2: "bridge"}.get(len(bound), "hollow") + "-".join(bound)
