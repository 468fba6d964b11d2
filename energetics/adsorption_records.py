"""Makes H-adsorption records for training DimeNet++: H on monolayers and on metal surfaces, relaxed with the potential.

Tasks are plain dictionaries and results are JSON, so that relaxations can run in worker processes and be resumed.
``write_adsorption`` turns the results into an LMDB with OC20's IS2RE schema.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bcc110, fcc100, fcc111, hcp0001
from ase.constraints import FixAtoms
from ase.data import atomic_numbers, reference_states
from ase.db import connect

from crystals.database import check_ase_database
from crystals.validity import sheet_fault
from energetics.adsorption_energy import adsorption_energy
from energetics.potentials import Potential
from energetics.relaxation import HydrogenRelaxation, h2_energy, relax_hydrogen, relax_positions, relax_sheet
from energetics.sites import add_hydrogen, adsorption_sites, h_supercell
from geo_utils import H_TAG, SURFACE_TAG, Sheet, has_clash, primitive_sheet
from pipeline.errors import StageError
from pipeline.files import missing_file, relative_name
from pipeline.provenance import write_sidecar
from pipeline.settings import DemoConfig

STAGE = "prepare_demo_data.py"
H_JITTER = 0.15  # Å, H starts off its symmetric position so that no symmetry traps it
IMAGE_DISTANCES = (7.0, 7.0, 5.0)  # Å between images of H: mostly the coverage that the judges use, some denser
METAL_SURFACES = {
    "fcc": (("fcc111", fcc111, ("ontop", "fcc", "hcp", "bridge")), ("fcc100", fcc100, ("hollow", "bridge"))),
    "hcp": (("hcp0001", hcp0001, ("ontop", "fcc", "hcp", "bridge")),),
    "bcc": (("bcc110", bcc110, ("hollow", "longbridge", "shortbridge")),),
}
SURFACE_METALS = ("Pt Pd Ni Cu Ag Au Rh Ir Al Ru Os Re Co Ti Zr Hf Sc Y Mg Zn Cd V Nb Ta Cr Mo W Fe").split()


def pack_atoms(atoms: Atoms) -> dict[str, Any]:
    """Return a structure as plain lists: numbers (N,), positions (N, 3) Å and cell (3, 3) Å, row vectors."""
    return {"numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist(), "cell": atoms.cell.array.tolist()}


def unpack_atoms(packed: dict[str, Any], pbc: Any = (True, True, False)) -> Atoms:
    """Return the structure that ``pack_atoms`` packed."""
    return Atoms(numbers=packed["numbers"], positions=packed["positions"], cell=packed["cell"], pbc=pbc)


def relax_adsorption(potential: Potential, settings: DemoConfig, key: str, **task: Any) -> dict[str, Any]:
    """Relax one H on a sheet or a metal surface; return its initial and relaxed geometry and ΔE_H as JSON."""
    start = surface_with_hydrogen(task) if task["kind"] == "metal" else sheet_with_hydrogen(task)
    if start is None:
        return {"key": key, "status": "no such site"}
    atoms, description = start
    clean = atoms[atoms.get_tags() != H_TAG]
    # Sheets come relaxed; a metal surface relaxes first, so that its own relaxation does not count as adsorption energy.
    steps = settings.max_h_steps if task["kind"] == "metal" else 0
    base = relax_positions(clean, potential, settings.fmax_ev_per_angstrom, steps)
    shift = base.atoms.positions - clean.positions
    atoms.positions[:-1] += shift
    atoms.positions[-1, 2] += shift[clean.get_tags() == SURFACE_TAG, 2].mean()
    result = relax_hydrogen(atoms, base.energy, potential, settings.fmax_ev_per_angstrom, settings.max_h_steps)
    return adsorption_result(key, atoms, result, description)


def adsorption_result(key: str, atoms: Atoms, result: HydrogenRelaxation, description: dict[str, Any]) -> dict[str, Any]:
    """Return a finished relaxation as JSON. atoms: the start, tagged. description: bulk_formula, family, site and coverage."""
    return {
        "key": key,
        "status": result.status,
        "y_init": result.initial_delta_e,
        "y_relaxed": result.delta_e,
        "desorbed": result.desorbed,
        "converged": result.converged,
        "steps": result.steps,
        "atoms": pack_atoms(atoms),
        "tags": atoms.get_tags().tolist(),
        "fixed": [int(i) for i in (atoms.constraints[0].index if atoms.constraints else [])],
        "pos_relaxed": result.atoms.positions.tolist(),
        **description,
    }


def sheet_with_hydrogen(task: dict[str, Any]) -> tuple[Atoms, dict[str, Any]] | None:
    """Put H near a site of a relaxed sheet, displaced sideways by up to H_JITTER; None where it has no site of that number."""
    sheet = primitive_sheet(unpack_atoms(task["atoms"]))
    sites = adsorption_sites(sheet)
    if task["site"] >= len(sites):
        return None
    site = sites[task["site"]]
    supercell = h_supercell(sheet, task["image_distance"])
    atoms = add_hydrogen(sheet, site, supercell)
    rng = np.random.default_rng(task["seed"])
    atoms.positions[-1, :2] += _jitter(rng)
    description = {
        "bulk_formula": sheet.get_chemical_formula("hill"),
        "family": task["prototype"],
        "site": site.label(sheet),
        "coverage": 1.0 / (supercell[0] * supercell[1]),
    }
    return atoms, description


def _jitter(rng: np.random.Generator) -> np.ndarray:
    """Draw (2,) Å, at most H_JITTER long: records start from many positions, where a judge starts from one (``beside_site``)."""
    return rng.uniform(-1, 1, 2) * H_JITTER / 2**0.5


def surface_with_hydrogen(task: dict[str, Any]) -> tuple[Atoms, dict[str, Any]]:
    """Put H on a 2x2 three-layer slab of a metal at the potential's own lattice constant, bottom layer fixed."""
    builders = {name: builder for surfaces in METAL_SURFACES.values() for name, builder, _ in surfaces}
    atoms = builders[task["surface"]](task["element"], size=(2, 2, 3), vacuum=10.0, **task["lattice"])
    layers = atoms.get_tags()
    top = np.flatnonzero(layers == 1)
    add_adsorbate(atoms, "H", task["height"], task["site"])
    atoms.set_tags([1 if i in top else 0 for i in range(len(atoms) - 1)] + [H_TAG])
    atoms.set_constraint(FixAtoms(np.flatnonzero(layers == 3)))
    atoms.pbc = (True, True, False)
    rng = np.random.default_rng(task["seed"])
    atoms.positions[-1, :2] += _jitter(rng)
    description = {"bulk_formula": task["element"], "family": f"metal {task['surface']}", "site": task["site"], "coverage": 0.25}
    return atoms, description


def metal_tasks(references: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Return a task for each site on the close-packed faces of metals in their own structure, at the relaxed lattice constants."""
    # The experimental structure: the potential puts fcc and hcp of many metals within a meV of each other.
    structures = {element: reference_states[atomic_numbers[element]]["symmetry"] for element in SURFACE_METALS}
    by_element = {
        result["key"].split(":")[1]: result
        for result in references
        if result["kind"] == "element" and result["name"] == structures.get(result["key"].split(":")[1])
    }
    heights = {"ontop": 1.6, "fcc": 0.95, "hcp": 0.95, "bridge": 1.1, "hollow": 0.7, "longbridge": 1.0, "shortbridge": 1.2}
    tasks = []
    for element in SURFACE_METALS:
        if element not in by_element:
            continue
        structure, lengths = by_element[element]["name"], by_element[element]["lengths"]
        lattice = {
            "fcc": {"a": lengths[0] * 2**0.5},
            "bcc": {"a": lengths[0] * 2 / 3**0.5},
            "hcp": {"a": lengths[0], "c": lengths[2]},
        }[structure]
        for surface, _, sites in METAL_SURFACES[structure]:
            for site in sites:
                key = f"metal:{element}:{surface}:{site}"
                task = {
                    "kind": "metal",
                    "element": element,
                    "surface": surface,
                    "site": site,
                    "lattice": lattice,
                    "height": heights[site],
                }
                tasks.append({"key": key, "seed": [seed, 3, atomic_numbers[element], site_number(site)], **task})
    return tasks


def site_number(site: str) -> int:
    """Return the same number for a name of a site in every run."""
    return sorted({name for surfaces in METAL_SURFACES.values() for _, _, sites in surfaces for name in sites}).index(site)


def adsorption_tasks(settings: DemoConfig, monolayers: list[dict[str, Any]], metals: list[dict], seed: int) -> list[dict[str, Any]]:
    """Return tasks: metal surfaces first, then site 0 of every sheet in a seeded order, then site 1, ... until there are enough."""
    tasks = metals[: settings.num_adsorption]
    order = np.random.default_rng([seed, 2]).permutation(len(monolayers))
    for site in range(4):
        for index in order:
            if len(tasks) >= settings.num_adsorption:
                return tasks
            result = monolayers[index]
            task = {"kind": "sheet", "prototype": result["prototype"], "atoms": result["atoms"], "site": site}
            task |= {
                "image_distance": IMAGE_DISTANCES[(int(index) + site) % len(IMAGE_DISTANCES)],
                "seed": [seed, 4, int(index), site],
            }
            tasks.append({"key": f"sheet:{result['key']}:{site}", **task})
    return tasks


def write_adsorption(
    path: str, settings: DemoConfig, results: Iterable[dict[str, Any]], seed: int, inputs: list[str]
) -> dict[str, Any]:
    """Write the LMDB of all relaxations that ended, those with desorbed H included; return the counts."""
    from energetics.is2re_lmdb import write_is2re

    results = list(results)
    usable = [r for r in results if r["status"] in ("ok", "desorbed", "not converged") and np.isfinite(r["y_relaxed"])]
    records = []
    for sid, r in enumerate(usable):
        atoms = r["atoms"]
        fixed = np.zeros(len(atoms["numbers"]))
        fixed[r["fixed"]] = 1
        records.append(
            {
                "pos": np.array(atoms["positions"]),
                "cell": np.array(atoms["cell"])[None],
                "atomic_numbers": np.array(atoms["numbers"]),
                "tags": np.array(r["tags"]),
                "fixed": fixed,
                "natoms": len(atoms["numbers"]),
                "sid": sid,
                "y_init": r["y_init"],
                "y_relaxed": r["y_relaxed"],
                "pos_relaxed": np.array(r["pos_relaxed"]),
                "bulk_formula": r["bulk_formula"],
                "family": r["family"],
                "site": r["site"],
                "coverage": r["coverage"],
                "desorbed": int(r["desorbed"]),
                "converged": int(r["converged"]),
            }
        )
    write_is2re(path, records)
    counts = {
        "attempted": len(results),
        "records": len(records),
        "desorbed": sum(r["desorbed"] for r in usable),
        "not converged": sum(not r["converged"] for r in usable),
        **{f"dropped: {s}": n for s, n in sorted(Counter(r["status"] for r in results if r not in usable).items())},
    }
    energies = np.array([r["y_relaxed"] for r in records])
    metrics = {"delta_e_mean_ev": energies.mean(), "delta_e_std_ev": energies.std()}
    write_sidecar(path, stage=STAGE, seed=seed, settings=settings, inputs=inputs, counts=counts, metrics=metrics)
    return counts


HOST_COVERAGES = (0.0, 4.0, 5.0, 5.0, 7.0)  # Å between images of H; 0: one H in every primitive cell
MAX_HOST_SUPERCELL = 20  # atoms; where more are needed for the distance, the next denser coverage is taken
MAX_HOST_ATOMS = 6
MAX_HOST_EHULL_EV = 0.5  # eV/atom; sheets above are too far from anything that a search would keep


def host_tasks(settings: DemoConfig, seed: int, count: int) -> list[dict[str, Any]]:
    """Return tasks for ``count`` sheets of the database ``demo.host_db_path``, one of each formula.

    They are drawn at random, with larger weights for rare elements, so that a small set covers the periodic table.

    Raises:
        StageError: the database is missing or holds no usable sheet.
    """
    path = Path(settings.host_db_path)
    if not path.is_file():
        raise missing_file("demo.host_db_path", settings.host_db_path, "name a database of sheets, such as C2DB")
    check_ase_database(path)
    rows = []
    for row in connect(path).select(include_data=False):
        if row.natoms <= MAX_HOST_ATOMS and float(row.get("ehull", math.inf)) <= MAX_HOST_EHULL_EV and 1 not in row.numbers:
            rows.append((str(row.get("uid", row.id)), row.toatoms()))
    if not rows:
        raise StageError(f"{relative_name(path)}: no sheet of up to {MAX_HOST_ATOMS} atoms within the limits for ehull")
    rng = np.random.default_rng([seed, 6])
    frequency = Counter(symbol for _, atoms in rows for symbol in set(atoms.symbols))
    # Gumbel noise on log weights draws without replacement with these weights (Efraimidis and Spirakis 2006).
    weight = np.array([np.mean([1 / frequency[symbol] for symbol in set(atoms.symbols)]) for _, atoms in rows])
    order = np.argsort(-(0.5 * np.log(weight) + rng.gumbel(size=len(rows))))
    tasks, formulas = [], set()
    for index in order:
        uid, atoms = rows[index]
        formula = atoms.get_chemical_formula("hill")
        if formula in formulas:
            continue
        formulas.add(formula)
        tasks.append({"key": f"host:{uid}", "atoms": pack_atoms(atoms), "seed": [seed, 7, int(index)]})
        if len(tasks) == count:
            break
    return tasks


def relax_host(potential: Potential, settings: DemoConfig, key: str, atoms: dict[str, Any], seed: list[int]) -> dict[str, Any]:
    """Relax one sheet, then H at up to ``demo.sites_per_host`` of its sites at coverages drawn at random."""
    try:
        start = primitive_sheet(unpack_atoms(atoms), min_vacuum=6.0)
        relaxed = relax_sheet(start, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
        if relaxed.status != "ok":
            return {"key": key, "status": f"sheet {relaxed.status}", "records": []}
        sheet = Sheet.from_atoms(relaxed.atoms).to_atoms()
        if sheet_fault(sheet):
            return {"key": key, "status": "sheet fell apart", "records": []}
        sites = adsorption_sites(sheet)
    except (ValueError, RuntimeError) as error:  # RuntimeError: Qhull on atoms that span no plane
        return {"key": key, "status": f"not usable: {str(error)[:60]}", "records": []}
    rng = np.random.default_rng(seed)
    records = []
    for number in rng.permutation(len(sites))[: settings.sites_per_host]:
        supercell = _random_supercell(sheet, rng)
        slab = add_hydrogen(sheet, sites[number], supercell)
        slab.positions[-1, :2] += _jitter(rng)
        clean = slab[slab.get_tags() != H_TAG]
        energy = relax_positions(clean, potential, settings.fmax_ev_per_angstrom, 0).energy
        result = relax_hydrogen(slab, energy, potential, settings.fmax_ev_per_angstrom, settings.max_h_steps)
        description = {
            "bulk_formula": sheet.get_chemical_formula("hill"),
            "family": f"database sheet, {len(sheet)} atoms",
            "site": sites[number].label(sheet),
            "coverage": 1.0 / (supercell[0] * supercell[1]),
        }
        records.append(adsorption_result(f"{key}:{number}", slab, result, description))
    return {"key": key, "status": "ok", "records": records}


SNAPSHOT_LATERAL = 0.35  # Å, spread of H around a site
SNAPSHOT_RATTLE = 0.06  # Å, spread of the atoms around H in every second snapshot
MAX_SNAPSHOT_EV = 6.0  # |ΔE_H| above which a geometry is too far from any that a relaxation passes


def snapshot_host(potential: Potential, settings: DemoConfig, key: str, atoms: dict[str, Any], seed: list[int]) -> dict[str, Any]:
    """Compute ΔE_H at ``demo.snapshots_per_host`` unrelaxed geometries of H on one sheet of the database, one energy each.

    A relaxation costs some thirty energies and gives one record; a snapshot costs one. A network that has learnt the energy of
    geometries (S2E) from many snapshots needs far fewer relaxed records (IS2RE) afterwards.
    """
    try:
        sheet = primitive_sheet(unpack_atoms(atoms), min_vacuum=6.0)
        sites = adsorption_sites(sheet)
        # Not ``sheet_fault``: only a clash makes the energy meaningless; that of a sheet in several pieces is as true.
        if not sites or has_clash(sheet):
            return {"key": key, "status": "no site", "records": []}
    except (ValueError, RuntimeError) as error:  # RuntimeError: Qhull on atoms that span no plane
        return {"key": key, "status": f"not usable: {str(error)[:60]}", "records": []}
    rng = np.random.default_rng(seed)
    per_atom = relax_positions(sheet, potential, settings.fmax_ev_per_angstrom, 0).energy / len(sheet)
    h2 = h2_energy(potential)
    records = []
    for number in range(settings.snapshots_per_host):
        site = sites[rng.integers(len(sites))]
        supercell = _random_supercell(sheet, rng)
        slab = add_hydrogen(sheet, site, supercell)
        outward = 1.0 if site.face == "upper" else -1.0
        slab.positions[-1] += [*rng.normal(0, SNAPSHOT_LATERAL, 2), outward * rng.uniform(-0.35, 0.5)]
        if number % 2:
            near = slab.get_distances(len(slab) - 1, range(len(slab) - 1), mic=True) < 3.0
            slab.positions[:-1][near] += rng.normal(0, SNAPSHOT_RATTLE, (int(near.sum()), 3))
        # Not ``sheet_fault``: the question is whether the draw put atoms too close, not whether the slab is one sheet.
        if has_clash(slab, 0.6):
            continue
        energy = relax_positions(slab, potential, 1.0, 0).energy
        delta_e = adsorption_energy(energy, per_atom * (len(slab) - 1), h2)
        if not np.isfinite(delta_e) or abs(delta_e) > MAX_SNAPSHOT_EV:
            continue
        description = {
            "bulk_formula": sheet.get_chemical_formula("hill"),
            "family": "snapshot",
            "site": site.label(sheet),
            "coverage": 1.0 / (supercell[0] * supercell[1]),
        }
        still = HydrogenRelaxation(slab, 0.0, True, 0, "ok", float(delta_e), float(delta_e), False)
        records.append(adsorption_result(f"{key}:{number}", slab, still, description))
    return {"key": key, "status": "ok", "records": records}


def _random_supercell(sheet: Atoms, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a distance of HOST_COVERAGES and return its supercell, or that of the next smaller distance where it is too large."""
    distance = HOST_COVERAGES[rng.integers(len(HOST_COVERAGES))]
    supercells = [h_supercell(sheet, d) for d in sorted(HOST_COVERAGES, reverse=True) if d <= distance]
    return next((n for n in supercells if n[0] * n[1] * len(sheet) <= MAX_HOST_SUPERCELL), supercells[-1])
