"""Stage 0: builds the embedded default data, so that every stage runs without a download.

    python prepare_demo_data.py [--config config.yaml] [section.key=value ...]

Reads   nothing but the potential's weights (inside the sevenn wheel).
Writes  data/demo_c2db.db            monolayers: prototypes x elements, relaxed; C2DB's key names
        data/references_<pot>.json.gz energies of the elements and of competing phases, made with the same potential
        data/demo_is2re/data.lmdb    H on those monolayers and on metal surfaces, OC20 IS2RE schema
        data/random_decoration/      unrelaxed random decorations, the baseline that everybody has to beat

Every relaxation is one line in ``demo.work_dir``; a stage killed at any moment goes on where it stopped, and the products do not
depend on the order in which the workers finish.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bcc110, fcc100, fcc111, hcp0001
from ase.constraints import FixAtoms
from ase.data import atomic_numbers, reference_states
from tqdm import tqdm

import config
from config import StageError
from geo_utils import (
    H_TAG,
    SURFACE_TAG,
    NotTwoDimensional,
    Sheet,
    add_hydrogen,
    adsorption_sites,
    h_supercell,
    has_clash,
    primitive_sheet,
    sheet_connectivity,
)
from potentials import (
    Potential,
    ReferencePhase,
    References,
    is_sane,
    load_potential,
    relax_bulk,
    relax_hydrogen,
    relax_positions,
    relax_sheet,
)
from prototypes import NONMETALS, PROTOTYPES
from reference_phases import binary_phases, cation_and_anion, elemental_phases, is_molecular

log = logging.getLogger("her2d")

STAGE = "prepare_demo_data.py"
MAX_ATOMS = 12
MAX_HFORM_EV = 0.5  # eV/atom; sheets less stable than this against the elements are dropped and counted
H_JITTER = 0.15  # Å, H starts off its symmetric position so that no symmetry traps it
IMAGE_DISTANCES = (7.0, 7.0, 5.0)  # Å between images of H: mostly the coverage that the judges use, some denser
METAL_SURFACES = {
    "fcc": (("fcc111", fcc111, ("ontop", "fcc", "hcp", "bridge")), ("fcc100", fcc100, ("hollow", "bridge"))),
    "hcp": (("hcp0001", hcp0001, ("ontop", "fcc", "hcp", "bridge")),),
    "bcc": (("bcc110", bcc110, ("hollow", "longbridge", "shortbridge")),),
}
SURFACE_METALS = ("Pt Pd Ni Cu Ag Au Rh Ir Al Ru Os Re Co Ti Zr Hf Sc Y Mg Zn Cd V Nb Ta Cr Mo W Fe").split()

# --------------------------------------------------------------------------------------------------------- parallel relaxations

_worker_potential: Potential | None = None


def _start_worker(name: str, checkpoint: str) -> None:
    global _worker_potential
    import torch

    torch.set_num_threads(1)
    _worker_potential = load_potential(name, checkpoint)


def _run(task: tuple[Callable, dict[str, Any], config.DemoConfig]) -> dict[str, Any]:
    function, arguments, settings = task
    return function(_worker_potential, settings, **arguments)


def relax_all(name: str, function: Callable, tasks: list[dict[str, Any]], settings: config.DemoConfig) -> list[dict[str, Any]]:
    """Results of ``function(potential, settings, **task)`` for every task, from ``work_dir/name.jsonl`` where it is done already.

    Each task needs a unique ``key``; the results come back in the order of the tasks.
    """
    path = Path(settings.work_dir) / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _read_lines(path)
    wanted = [task for task in tasks if task["key"] not in done]
    if wanted:
        context = multiprocessing.get_context("spawn")
        workers = min(settings.workers, len(wanted))
        pool = context.Pool(workers, _start_worker, (settings.potential, settings.potential_checkpoint))
        with pool, path.open("a", encoding="utf-8") as handle:
            results = pool.imap_unordered(_run, [(function, task, settings) for task in wanted])
            for result in tqdm(results, total=len(tasks), initial=len(tasks) - len(wanted), desc=name, unit="relaxation"):
                handle.write(json.dumps(result) + "\n")
                handle.flush()
                os.fsync(handle.fileno())
                done[result["key"]] = result
    return [done[task["key"]] for task in tasks]


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Finished results by key; an unfinished last line of a killed run is cut off."""
    done: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return done
    good = 0
    with path.open("rb") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            result = json.loads(line)
            done[result["key"]] = result
            good += len(line)
    with path.open("rb+") as handle:
        handle.truncate(good)
    return done


def _pack(atoms: Atoms) -> dict[str, Any]:
    return {"numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist(), "cell": atoms.cell.array.tolist()}


def _unpack(packed: dict[str, Any], pbc: Any = (True, True, False)) -> Atoms:
    return Atoms(numbers=packed["numbers"], positions=packed["positions"], cell=packed["cell"], pbc=pbc)


# ------------------------------------------------------------------------------------------------------------------ monolayers


def relax_monolayer(
    potential: Potential, settings: config.DemoConfig, key: str, prototype: str, elements: list[str]
) -> dict[str, Any]:
    """One decorated prototype, relaxed in-plane; status says why it is of no use otherwise."""
    atoms = PROTOTYPES[prototype].build(*elements)
    result = relax_sheet(atoms, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
    record = {"key": key, "prototype": prototype, "elements": elements, "energy": result.energy, "steps": result.steps}
    status = result.status
    if status == "ok":
        try:
            sheet = Sheet.from_atoms(result.atoms)
            final = sheet.to_atoms()
            connectivity = sheet_connectivity(final)
            if has_clash(final):
                status = "clash"
            elif not connectivity.is_single_sheet:
                status = "fell apart"
            record |= {"atoms": _pack(final)}
        except NotTwoDimensional:
            status = "not 2D"
    return record | {"status": status}


def monolayer_tasks(settings: config.DemoConfig, seed: int) -> list[dict[str, Any]]:
    """Decorations in a seeded order that takes the families in turn, so that any number of them is balanced."""
    rng = np.random.default_rng([seed, 1])
    queues = []
    for prototype in PROTOTYPES.values():
        decorations = [d for d in prototype.decorations() if len(prototype.build(*d)) <= MAX_ATOMS]
        queues.append([(prototype.name, decorations[i]) for i in rng.permutation(len(decorations))])
    tasks: list[dict[str, Any]] = []
    while any(queues) and len(tasks) < settings.num_monolayers:
        for queue in queues:
            if queue and len(tasks) < settings.num_monolayers:
                name, elements = queue.pop()
                tasks.append({"key": f"{name}:{'-'.join(elements)}", "prototype": name, "elements": list(elements)})
    return tasks


def build_monolayers(settings: config.DemoConfig, seed: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Relaxed monolayers that are sheets, and the counts of those dropped by reason."""
    results = relax_all("monolayers", relax_monolayer, monolayer_tasks(settings, seed), settings)
    counts = Counter(result["status"] for result in results)
    kept = [result for result in results if result["status"] == "ok"]
    return kept, {"candidates": len(results), **{f"dropped: {reason}": n for reason, n in sorted(counts.items()) if reason != "ok"}}


# ------------------------------------------------------------------------------------------------------------------ references


def relax_phase(
    potential: Potential, settings: config.DemoConfig, key: str, kind: str, elements: list[str], name: str
) -> dict[str, Any]:
    """One elemental or binary phase, relaxed."""
    phases = dict(elemental_phases(elements[0]) if kind == "element" else binary_phases(*elements))
    atoms = phases[name]
    if is_molecular(atoms):
        atoms.pbc = True
        result = relax_positions(atoms, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
    elif not atoms.pbc.all():
        result = relax_sheet(atoms, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
    else:
        result = relax_bulk(atoms, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
    return {
        "key": key,
        "kind": kind,
        "name": name,
        "formula": result.atoms.get_chemical_formula("hill"),
        "energy_per_atom": result.energy / len(result.atoms),
        "lengths": result.atoms.cell.lengths().tolist(),
        "status": result.status,
    }


def reference_tasks(monolayers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every element of the monolayers and of the metal surfaces, and every cation-anion pair of these elements.

    All pairs, not only those that occur together in a monolayer: a new composition is judged against the compounds of its own
    pairs, and without them it would look far more stable than it is.
    """
    in_monolayers = {el for result in monolayers for el in result["elements"]}
    elements = sorted(in_monolayers | {"H"} | set(SURFACE_METALS), key=atomic_numbers.get)
    tasks = [
        {"key": f"element:{el}:{name}", "kind": "element", "elements": [el], "name": name}
        for el in elements
        for name, _ in elemental_phases(el)
    ]
    paired = [el for el in elements if el != "H"]
    pairs = {cation_and_anion(first, second) for first in paired for second in paired if first < second}
    for cation, anion in sorted(pair for pair in pairs if pair is not None):
        for name, _ in binary_phases(cation, anion):
            tasks.append({"key": f"binary:{cation}-{anion}:{name}", "kind": "binary", "elements": [cation, anion], "name": name})
    return tasks


def build_references(
    settings: config.DemoConfig, monolayers: list[dict[str, Any]]
) -> tuple[References, list[dict[str, Any]], dict]:
    """Elements, bulk compounds and the monolayers themselves as competing phases."""
    results = relax_all("references", relax_phase, reference_tasks(monolayers), settings)
    usable = [r for r in results if r["status"] in ("ok", "not converged") and is_sane(r["energy_per_atom"], 1)]
    dropped = Counter(result["status"] for result in results)
    identity = load_potential(settings.potential, settings.potential_checkpoint).identity
    phases = [ReferencePhase(result["formula"], result["energy_per_atom"], result["name"]) for result in usable]
    for result in monolayers:
        atoms = _unpack(result["atoms"])
        formula = atoms.get_chemical_formula("hill")
        phases.append(ReferencePhase(formula, result["energy"] / len(atoms), f"monolayer {result['prototype']}"))
    counts = {"phases": len(phases), **{f"status: {status}": n for status, n in sorted(dropped.items())}}
    return References(identity, phases), usable, counts


# ------------------------------------------------------------------------------------------------------------------ adsorption


def relax_adsorption(potential: Potential, settings: config.DemoConfig, key: str, **task: Any) -> dict[str, Any]:
    """One H on a sheet or metal surface: initial and relaxed geometry and ΔE_H."""
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
    return {
        "key": key,
        "status": result.status,
        "y_init": result.initial_delta_e,
        "y_relaxed": result.delta_e,
        "desorbed": result.desorbed,
        "converged": result.converged,
        "steps": result.steps,
        "atoms": _pack(atoms),
        "tags": atoms.get_tags().tolist(),
        "fixed": [int(i) for i in (atoms.constraints[0].index if atoms.constraints else [])],
        "pos_relaxed": result.atoms.positions.tolist(),
        **description,
    }


def sheet_with_hydrogen(task: dict[str, Any]) -> tuple[Atoms, dict[str, Any]] | None:
    """H near one site of a relaxed sheet, displaced sideways by up to H_JITTER."""
    sheet = primitive_sheet(_unpack(task["atoms"]))
    sites = adsorption_sites(sheet)
    if task["site"] >= len(sites):
        return None
    site = sites[task["site"]]
    supercell = h_supercell(sheet, task["image_distance"])
    atoms = add_hydrogen(sheet, site, supercell)
    rng = np.random.default_rng(task["seed"])
    atoms.positions[-1, :2] += rng.uniform(-1, 1, 2) * H_JITTER / 2**0.5
    description = {
        "bulk_formula": sheet.get_chemical_formula("hill"),
        "family": task["prototype"],
        "site": site.label(sheet),
        "coverage": 1.0 / (supercell[0] * supercell[1]),
    }
    return atoms, description


def surface_with_hydrogen(task: dict[str, Any]) -> tuple[Atoms, dict[str, Any]]:
    """H on a 2x2 three-layer slab of a metal at the potential's own lattice constant, bottom layer fixed."""
    builders = {name: builder for surfaces in METAL_SURFACES.values() for name, builder, _ in surfaces}
    atoms = builders[task["surface"]](task["element"], size=(2, 2, 3), vacuum=10.0, **task["lattice"])
    layers = atoms.get_tags()
    top = np.flatnonzero(layers == 1)
    add_adsorbate(atoms, "H", task["height"], task["site"])
    atoms.set_tags([1 if i in top else 0 for i in range(len(atoms) - 1)] + [H_TAG])
    atoms.set_constraint(FixAtoms(np.flatnonzero(layers == 3)))
    atoms.pbc = (True, True, False)
    rng = np.random.default_rng(task["seed"])
    atoms.positions[-1, :2] += rng.uniform(-1, 1, 2) * H_JITTER / 2**0.5
    description = {"bulk_formula": task["element"], "family": f"metal {task['surface']}", "site": task["site"], "coverage": 0.25}
    return atoms, description


def metal_tasks(references: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Sites on the close-packed faces of metals in their own structure, at the relaxed lattice constants."""
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
                tasks.append({"key": key, "seed": [seed, 3, atomic_numbers[element], heights_index(site)], **task})
    return tasks


def heights_index(site: str) -> int:
    """A stable number for a site name."""
    return sorted({name for surfaces in METAL_SURFACES.values() for _, _, sites in surfaces for name in sites}).index(site)


def adsorption_tasks(
    settings: config.DemoConfig, monolayers: list[dict[str, Any]], metals: list[dict], seed: int
) -> list[dict[str, Any]]:
    """Metal surfaces first, then sheets in a seeded order: site 0 of every sheet, then site 1, ... until there are enough."""
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
    settings: config.DemoConfig, results: Iterable[dict[str, Any]], seed: int, inputs: list[str]
) -> dict[str, Any]:
    """The LMDB of all relaxations that ended; returns the counts."""
    from is2re_lmdb import write_is2re

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
    write_is2re(settings.lmdb_path, records)
    counts = {
        "attempted": len(results),
        "records": len(records),
        "desorbed": sum(r["desorbed"] for r in usable),
        "not converged": sum(not r["converged"] for r in usable),
        **{f"dropped: {s}": n for s, n in sorted(Counter(r["status"] for r in results if r not in usable).items())},
    }
    energies = np.array([r["y_relaxed"] for r in records])
    metrics = {"delta_e_mean_ev": energies.mean(), "delta_e_std_ev": energies.std()}
    config.write_sidecar(
        settings.lmdb_path, stage=STAGE, seed=seed, settings=settings, inputs=inputs, counts=counts, metrics=metrics
    )
    return counts


# -------------------------------------------------------------------------------------------------------------------- products


def write_database(
    settings: config.DemoConfig, monolayers: list[dict], references: References, counts: dict, seed: int
) -> dict[str, int]:
    """The ASE database with C2DB's key names; returns the counts."""
    from ase.db import connect

    rows = []
    too_high = 0
    for result in monolayers:
        atoms = _unpack(result["atoms"])
        hform = references.e_form(atoms, result["energy"])
        if hform > MAX_HFORM_EV:
            too_high += 1
            continue
        rows.append((result, atoms, hform, references.e_above_hull(atoms, result["energy"])))
    with config.atomic_path(settings.db_path) as temporary:
        temporary = temporary.with_suffix(".db")
        temporary.unlink(missing_ok=True)
        with connect(temporary) as db:
            for result, atoms, hform, ehull in rows:
                uid = f"{atoms.get_chemical_formula('metal')}-{result['prototype']}"
                db.write(atoms, uid=uid, hform=hform, ehull=ehull, prototype=result["prototype"], energy_potential=result["energy"])
        os.replace(temporary, temporary.with_suffix(".tmp"))
    elements = {symbol for _, atoms, _, _ in rows for symbol in atoms.get_chemical_symbols()}
    counts = counts | {
        "dropped: above the elements": too_high,
        "rows": len(rows),
        "prototypes": len({result["prototype"] for result, *_ in rows}),
        "elements": len(elements),
    }
    ehulls = np.array([ehull for *_, ehull in rows])
    metrics = {"share_ehull_below_0.05": float((ehulls <= 0.05).mean()), "share_ehull_above_0.2": float((ehulls > 0.2).mean())}
    inputs = [settings.references_path]
    config.write_sidecar(settings.db_path, stage=STAGE, seed=seed, settings=settings, inputs=inputs, counts=counts, metrics=metrics)
    return counts


def write_random_decorations(settings: config.DemoConfig, seed: int) -> int:
    """Prototypes with elements drawn at random: metals on metal sites, non-metals on the others, as built, not relaxed."""
    from ase.db import connect
    from pymatgen.io.cif import CifWriter

    known = {row.get("uid") for row in connect(settings.db_path).select()}
    pool = sorted({el for p in PROTOTYPES.values() for site in p.sites for el in site}, key=atomic_numbers.get)
    metals = [el for el in pool if el not in NONMETALS]
    nonmetals = [el for el in pool if el in NONMETALS]
    rng = np.random.default_rng([seed, 5])
    names = sorted(PROTOTYPES)
    folder = Path(settings.random_cif_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.cif"):
        old.unlink()
    written = 0
    while written < settings.num_random:
        prototype = PROTOTYPES[names[rng.integers(len(names))]]
        sites = [nonmetals if set(site) <= NONMETALS else metals for site in prototype.sites]
        atoms = prototype.build(*[site[rng.integers(len(site))] for site in sites])
        uid = f"{atoms.get_chemical_formula('metal')}-{prototype.name}"
        if uid in known:
            continue
        known.add(uid)
        structure = Sheet.from_atoms(atoms).to_structure()
        with config.atomic_path(folder / f"random_{written:05d}.cif") as temporary:
            temporary.write_text(str(CifWriter(structure)), encoding="utf-8")
        written += 1
    config.write_sidecar(folder, stage=STAGE, seed=seed, settings=settings, inputs=[settings.db_path], counts={"cifs": written})
    return written


def main(cfg: config.Config) -> None:
    """Builds the parts named in ``demo.parts``."""
    settings, seed = cfg.demo, cfg.run.seed
    parts = {"monolayers", "references", "adsorption", "random"} if "all" in settings.parts else set(settings.parts)
    summary: dict[str, Any] = {}
    if parts & {"monolayers", "references", "adsorption"}:
        monolayers, counts = build_monolayers(settings, seed)
        if not monolayers:
            raise StageError(f"no monolayer survived its relaxation: {counts}")
        log.info("monolayers: %s", counts)
    if parts & {"references", "monolayers", "adsorption"}:
        references, phases, phase_counts = build_references(settings, monolayers)
        summary["references"] = phase_counts
        if "references" in parts:
            references.save(settings.references_path)
        if "monolayers" in parts:
            if not Path(settings.references_path).is_file():
                references.save(settings.references_path)
            summary["monolayers"] = write_database(settings, monolayers, references, counts, seed)
    if "adsorption" in parts:
        tasks = adsorption_tasks(settings, monolayers, metal_tasks(phases, seed), seed)
        results = relax_all("adsorption", relax_adsorption, tasks, settings)
        summary["adsorption"] = write_adsorption(settings, results, seed, [settings.db_path])
    if "random" in parts:
        if not Path(settings.db_path).is_file():
            raise StageError(
                f"no database at {config.relative_name(settings.db_path)}: build monolayers first (demo.parts=[monolayers])"
            )
        summary["random"] = {"cifs": write_random_decorations(settings, seed)}
    for part, values in summary.items():
        print(f"{part}: " + ", ".join(f"{key} {value}" for key, value in values.items()))


if __name__ == "__main__":
    raise SystemExit(config.run_stage(main, __doc__, ("run", "demo")))
