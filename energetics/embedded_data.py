"""Build the embedded data: relaxed monolayers, reference phases, adsorption records, random decorations and the baseline.

Every relaxation is one line in ``demo.work_dir``. A run that is killed goes on where it stopped, and the products do not depend on
the order in which the workers finish.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from pymatgen.core import Composition
from tqdm import tqdm

from crystals.elements import NONMETALS
from crystals.prototypes import PROTOTYPES, name_as_relaxed
from crystals.validity import sheet_fault
from energetics import compound_phases, mp_entries
from energetics.adsorption_records import (
    SURFACE_METALS,
    adsorption_tasks,
    host_tasks,
    metal_tasks,
    pack_atoms,
    relax_adsorption,
    relax_host,
    snapshot_host,
    unpack_atoms,
    write_adsorption,
)
from energetics.baseline_set import write_baseline
from energetics.dft_points import AT_MINIMUM_OF, STORED_ENERGIES, name_as_found, store_at_minima, store_energies, store_gaps
from energetics.hull import ReferencePhase, References, believable
from energetics.potentials import Potential, load_potential
from energetics.relaxation import is_sane, relax_bulk, relax_positions, relax_sheet
from energetics.simple_phases import binary_phases, cation_and_anion, elemental_phases, is_molecular
from geo_utils import NotTwoDimensional, Sheet
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR, atomic_path, missing_file, relative_name
from pipeline.locks import locked_folder
from pipeline.provenance import read_sidecar, sidecar_path, write_sidecar
from pipeline.settings import Config, DemoConfig, RunConfig
from pipeline.store import LineStore
from pipeline.tasks import Serial, run, start_workers

log = logging.getLogger("her2d")

STAGE = "prepare_demo_data.py"
DEFAULT_PARTS = ("monolayers", "references", "adsorption", "random", "known", "baseline")
PRODUCTS = {  # settings of section demo that name what a part writes
    "monolayers": ("db_path", "references_path"),
    "references": ("db_path", "references_path"),
    "adsorption": ("lmdb_path",),
    "random": ("random_cif_dir",),
    "known": ("known_cif_dir",),
    "baseline": ("baseline_cif_dir",),
    "hosts": ("host_lmdb_path",),
    "snapshots": ("snapshot_lmdb_path",),
}
RELAXING = {"monolayers", "references", "adsorption", "hosts", "snapshots"}  # parts that keep what they relax in work_dir
MAX_ATOMS = 12
MAX_HFORM_EV = 0.8  # eV/atom; less stable sheets are dropped and counted. Mo2C, which has been made, is at 0.79 in C2DB.


def relax_all(
    name: str, function: Callable, tasks: list[dict[str, Any]], settings: DemoConfig, scheduling: RunConfig
) -> list[dict[str, Any]]:
    """Relax with the potential of the settings what ``work_dir/NAME.jsonl`` does not hold yet.

    Args:
        name: of the file.
        function: (potential, settings, **task) -> record, which names its task's key.
        tasks: each with a unique ``key``.
        settings: of the stage.
        scheduling: where the tasks run.

    Returns:
        The records, in the order of the tasks.
    """
    store = LineStore(Path(settings.work_dir) / f"{name}.jsonl", sync=True)
    wanted = {task["key"]: task for task in tasks if task["key"] not in store}
    if wanted:
        alone = settings.workers == 1 and scheduling.scheduler == "processes"
        factory = partial(_load_once if alone else load_potential, settings.potential, settings.potential_checkpoint)
        workers = min(settings.workers, len(wanted))
        with Serial(factory) if alone else start_workers(scheduling, workers, factory) as where:
            finished = run(partial(_relax, function, settings), wanted, store, where)
            for _ in tqdm(finished, total=len(tasks), initial=len(tasks) - len(wanted), desc=name, unit="relaxation"):
                pass
    return [{"key": task["key"], **store[task["key"]]} for task in tasks]


@lru_cache(maxsize=1)
def _load_once(name: str, checkpoint: str) -> Potential:
    """Load a potential; the next kind of task that runs in this process takes the same one."""
    return load_potential(name, checkpoint)


def _relax(function: Callable, settings: DemoConfig, potential: Potential, task: dict[str, Any]) -> dict[str, Any]:
    return function(potential, settings, **task)


def relax_monolayer(potential: Potential, settings: DemoConfig, key: str, prototype: str, elements: list[str]) -> dict[str, Any]:
    """Relax one decorated prototype in its plane; ``status`` is "ok", or says why the result is no sheet."""
    atoms = PROTOTYPES[prototype].build(*elements)
    result = relax_sheet(atoms, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
    record = {"key": key, "prototype": prototype, "elements": elements, "energy": result.energy, "steps": result.steps}
    status = result.status
    if status == "ok":
        try:
            sheet = Sheet.from_atoms(result.atoms)
            final = sheet.to_atoms()
            if fault := sheet_fault(final):
                status = "clash" if fault == "clash" else "fell apart"
            record |= {"atoms": pack_atoms(final)}
        except NotTwoDimensional:
            status = "not 2D"
    return record | {"status": status}


def monolayer_tasks(settings: DemoConfig, seed: int) -> list[dict[str, Any]]:
    """Return decorations in a seeded order that takes the prototypes in turn, so that any number of them is balanced."""
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


def build_monolayers(settings: DemoConfig, scheduling: RunConfig) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the relaxed monolayers that are sheets, named as they came out, and how many were dropped by reason."""
    results = relax_all("monolayers", relax_monolayer, monolayer_tasks(settings, scheduling.seed), settings, scheduling)
    counts = Counter(result["status"] for result in results)
    sheets = [r | {"prototype": name_as_relaxed(r["prototype"], unpack_atoms(r["atoms"]))} for r in results if r["status"] == "ok"]
    return sheets, {
        "candidates": len(results),
        **{f"dropped: {reason}": n for reason, n in sorted(counts.items()) if reason != "ok"},
    }


def relax_phase(potential: Potential, settings: DemoConfig, key: str, kind: str, elements: list[str], name: str) -> dict[str, Any]:
    """Relax one elemental, binary or other competing phase."""
    return {"key": key, "kind": kind, "name": name} | relax_start(_start(kind, elements, name), potential, settings)


def _start(kind: str, elements: list[str], name: str) -> Atoms:
    if kind == "compound":
        return compound_phases.build(name, elements)
    return dict(elemental_phases(elements[0]) if kind == "element" else binary_phases(*elements))[name]


def relax_start(atoms: Atoms, potential: Potential, settings: DemoConfig) -> dict[str, Any]:
    """Relax a molecule in its box, a layer in its plane, or a crystal with its whole cell free.

    Returns:
        formula, energy_per_atom (eV), lengths of the cell (3,) Å, status.
    """
    if is_molecular(atoms):
        atoms.pbc = True
        result = relax_positions(atoms, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
    elif not atoms.pbc.all():
        result = relax_sheet(atoms, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
    else:
        result = relax_bulk(atoms, potential, settings.fmax_ev_per_angstrom, settings.max_steps)
    return {
        "formula": result.atoms.get_chemical_formula("hill"),
        "energy_per_atom": result.energy / len(result.atoms),
        "lengths": result.atoms.cell.lengths().tolist(),
        "status": result.status,
    }


def reference_tasks(monolayers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ``phase_tasks`` of every element of the monolayers and of the metal surfaces."""
    in_monolayers = {el for result in monolayers for el in result["elements"]}
    return phase_tasks(in_monolayers | {"H"} | set(SURFACE_METALS))


def phase_tasks(symbols: set[str]) -> list[dict[str, Any]]:
    """Return a task for each phase of these elements and the alkali metals: elements, cation-anion pairs, ``compound_phases``.

    All pairs, not only those that occur together in a monolayer: a new composition is judged against the compounds of its own
    pairs, and without them it would look far more stable than it is. The compounds of the alkali metals are those of
    ``compound_phases`` alone.
    """
    symbols = symbols | set(compound_phases.ALKALI)
    elements = sorted(symbols, key=atomic_numbers.get)
    tasks = [
        {"key": f"element:{el}:{name}", "kind": "element", "elements": [el], "name": name}
        for el in elements
        for name, _ in elemental_phases(el)
    ]
    paired = [el for el in elements if el not in ("H", *compound_phases.ALKALI)]
    pairs = {cation_and_anion(first, second) for first in paired for second in paired if first < second}
    for cation, anion in sorted(pair for pair in pairs if pair is not None):
        for name, _ in binary_phases(cation, anion):
            tasks.append({"key": f"binary:{cation}-{anion}:{name}", "kind": "binary", "elements": [cation, anion], "name": name})
    for name, decoration in compound_phases.compounds(symbols):
        key = f"compound:{'-'.join(decoration)}:{name}"
        tasks.append({"key": key, "kind": "compound", "elements": list(decoration), "name": name})
    return tasks


def _usable(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in results if r["status"] in ("ok", "not converged") and is_sane(r["energy_per_atom"], 1)]


def _status_counts(results: list[dict[str, Any]]) -> dict[str, int]:
    return {f"status: {status}": n for status, n in sorted(Counter(result["status"] for result in results).items())}


def build_references(
    settings: DemoConfig, monolayers: list[dict[str, Any]], scheduling: RunConfig
) -> tuple[References, list[dict[str, Any]], dict]:
    """Return the competing phases (elements, compounds and the monolayers themselves), the relaxed ones as they are, and counts."""
    results = relax_all("references", relax_phase, reference_tasks(monolayers), settings, scheduling)
    usable = _usable(results)
    identity = _load_once(settings.potential, settings.potential_checkpoint).identity
    phases = [ReferencePhase(result["formula"], result["energy_per_atom"], result["name"]) for result in usable]
    for result in monolayers:
        atoms = unpack_atoms(result["atoms"])
        formula = atoms.get_chemical_formula("hill")
        phases.append(ReferencePhase(formula, result["energy"] / len(atoms), f"monolayer {result['prototype']}"))
    entries, counts = entry_phases(settings, scheduling)
    phases = believable(phases + entries)
    return References(identity, phases), usable, {"phases": len(phases), **_status_counts(results), **counts}


def relax_entry(potential: Potential, settings: DemoConfig, key: str, name: str, atoms: dict[str, Any]) -> dict[str, Any]:
    """Relax one crystal of the Materials Project; where the potential does not know an element, ``status`` says so."""
    crystal = unpack_atoms(atoms, pbc=True)
    try:
        return {"key": key, "name": name} | relax_start(crystal, potential, settings)
    except (ValueError, KeyError, IndexError) as error:
        formula = crystal.get_chemical_formula("hill")
        status = f"failed: {type(error).__name__}"
        return {"key": key, "name": name, "formula": formula, "energy_per_atom": math.nan, "status": status}


def entry_phases(settings: DemoConfig, scheduling: RunConfig) -> tuple[list[ReferencePhase], dict[str, int]]:
    """Return the structures of ``mp_entries_path``, relaxed with the potential, and counts; nothing where it is empty."""
    if not settings.mp_entries_path:
        return [], {}
    crystals, left_out = mp_entries.read_entries(settings.mp_entries_path)
    tasks = []
    for entry_id, atoms in crystals:
        packed = pack_atoms(atoms)
        digest = hashlib.sha256(json.dumps(packed, sort_keys=True).encode()).hexdigest()[:12]
        tasks.append({"key": f"mp:{entry_id}:{digest}", "name": f"MP {entry_id}", "atoms": packed})
    results = relax_all("references", relax_entry, tasks, settings, scheduling)
    phases = [ReferencePhase(result["formula"], result["energy_per_atom"], result["name"]) for result in _usable(results)]
    counts = {"MP phases": len(phases), **{f"MP entries, {reason}": count for reason, count in left_out.items()}}
    return phases, counts | {f"MP {name}": count for name, count in _status_counts(results).items()}


def known_references(settings: DemoConfig) -> References | None:
    """Return the references at ``references_path`` where they were made with this potential; otherwise None."""
    if not Path(settings.references_path).is_file():
        return None
    try:
        return References.load(settings.references_path, load_potential(settings.potential, settings.potential_checkpoint))
    except StageError as error:
        log.warning("the references are built anew: %s", str(error).partition(";")[0])
        return None


def extend_references(settings: DemoConfig, known: References, scheduling: RunConfig) -> tuple[References, dict[str, int]]:
    """Return ``known`` with the missing phases of ``phase_tasks`` and with those of ``mp_entries_path``, which replace old ones."""
    names = {(phase.formula, phase.prototype) for phase in known.phases}
    wanted = [
        task
        for task in phase_tasks(known.elements)
        if (_start(task["kind"], task["elements"], task["name"]).get_chemical_formula("hill"), task["name"]) not in names
    ]
    results = relax_all("references", relax_phase, wanted, settings, scheduling)
    new = [ReferencePhase(result["formula"], result["energy_per_atom"], result["name"]) for result in _usable(results)]
    entries, counts = entry_phases(settings, scheduling)
    merged = {(phase.formula, phase.prototype): phase for phase in believable([*known.phases, *new, *entries])}
    references = References(known.identity, merged.values())
    orphans = sorted({el.symbol for phase in entries for el in Composition(phase.formula)} - references.elements)
    if orphans:
        log.warning("no elemental reference for %s: entries with them cannot compete", ", ".join(orphans))
    return references, {"phases": len(merged), "new": len(merged) - len(names), **_status_counts(results), **counts}


def write_database(
    settings: DemoConfig, monolayers: list[dict], references: References, counts: dict, seed: int, too_high: int = 0
) -> dict[str, int]:
    """Write the ASE database with C2DB's key names; return the counts. too_high: sheets dropped before for their hform."""
    from ase.db import connect

    rows = []
    for result in monolayers:
        atoms = unpack_atoms(result["atoms"])
        hform = references.e_form(atoms, result["energy"])
        if hform > MAX_HFORM_EV:
            too_high += 1
            continue
        rows.append((result, atoms, hform, references.e_above_hull(atoms, result["energy"])))
    with atomic_path(settings.db_path) as temporary:
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
    write_sidecar(settings.db_path, stage=STAGE, seed=seed, settings=settings, inputs=inputs, counts=counts, metrics=metrics)
    return counts


def update_database(settings: DemoConfig, references: References, seed: int) -> dict[str, int]:
    """Write hform and ehull of the monolayer database anew where it was made with these references; return the counts."""
    from ase.db import connect

    path = Path(settings.db_path)
    if not path.is_file() or not sidecar_path(path).is_file():
        return {}
    card = read_sidecar(path, stage=STAGE)
    if card["settings"]["potential"] != settings.potential or relative_name(settings.references_path) not in card["inputs"]:
        return {}
    rows = [(row, row.toatoms()) for row in connect(path).select()]
    monolayers = [{"prototype": row.prototype, "energy": row.energy_potential, "atoms": pack_atoms(atoms)} for row, atoms in rows]
    counts = {key: value for key, value in card["counts"].items() if key not in ("rows", "prototypes", "elements")}
    made_with = dataclasses.replace(
        settings, **{k: v for k, v in card["settings"].items() if k.startswith(("num_", "max_", "fmax"))}
    )
    before = counts.pop("dropped: above the elements", 0)
    return write_database(made_with, monolayers, references, counts, seed, before)


def write_random_decorations(settings: DemoConfig, seed: int) -> int:
    """Write unrelaxed prototypes with random elements, metals on metal sites and non-metals on the others; return how many."""
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
    sidecar_path(folder).unlink(missing_ok=True)  # of an earlier run: files are being replaced, and it comes last again
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
        with atomic_path(folder / f"random_{written:05d}.cif") as temporary:
            temporary.write_text(str(CifWriter(structure)), encoding="utf-8")
        written += 1
    write_sidecar(folder, stage=STAGE, seed=seed, settings=settings, inputs=[settings.db_path], counts={"cifs": written})
    return written


def write_known_sheets(settings: DemoConfig, seed: int) -> dict[str, int]:
    """Write a CIF of every sheet of ``data/known_sheets.csv`` that the embedded database has, and count them."""
    from ase.db import connect
    from pymatgen.io.cif import CifWriter

    table = PROJECT_DIR / "data" / "known_sheets.csv"
    with table.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    folder = Path(settings.known_cif_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sidecar_path(folder).unlink(missing_ok=True)
    counts = {"cifs": 0, "not in the database": 0}
    with connect(settings.db_path) as database:
        for row in rows:
            found = next(database.select(uid=row["uid"], limit=1), None)
            counts["cifs" if found else "not in the database"] += 1
            if found is None:
                continue
            structure = Sheet.from_atoms(found.toatoms()).to_structure()
            with atomic_path(folder / f"{row['name']}.cif") as temporary:
                temporary.write_text(str(CifWriter(structure, symprec=0.01)), encoding="utf-8")
    write_sidecar(folder, stage=STAGE, seed=seed, settings=settings, inputs=[settings.db_path, str(table)], counts=counts)
    return counts


def build_parts(cfg: Config) -> None:
    """Build the parts named in ``demo.parts``, and print what each holds.

    Raises:
        StageError: a part needs a product that is not there, or nothing came out of it.
    """
    parts = set(DEFAULT_PARTS) if "all" in cfg.demo.parts else set(cfg.demo.parts)
    with ExitStack() as locks:
        for folder, setting in product_folders(cfg, parts).items():
            locks.enter_context(locked_folder(folder, setting))
        _build(cfg, parts)


def product_folders(cfg: Config, parts: set[str]) -> dict[Path, str]:
    """Return the folders to which the parts write, each once, with the setting that names it or a file in it."""
    settings = [f"demo.{name}" for part in sorted(parts) for name in PRODUCTS.get(part, ())]
    settings += ["evaluation.dft_truth_path"] if "truth" in parts else []
    settings += ["demo.work_dir"] if parts & RELAXING else []
    folders: dict[Path, str] = {}
    for setting in settings:
        section, _, name = setting.partition(".")
        path = Path(getattr(getattr(cfg, section), name))
        folders.setdefault(path if name.endswith("_dir") else path.parent, setting)
    return folders


def _build(cfg: Config, parts: set[str]) -> None:
    """Do the work of ``build_parts`` for some parts."""
    settings, seed = cfg.demo, cfg.run.seed
    summary: dict[str, Any] = {}
    known = known_references(settings) if "references" in parts and not parts & {"monolayers", "adsorption"} else None
    if known is not None:
        references, summary["references"] = extend_references(settings, known, cfg.run)
        references.save(settings.references_path)
        if updated := update_database(settings, references, seed):
            summary["monolayers"] = updated
    elif parts & {"monolayers", "references", "adsorption"}:
        monolayers, counts = build_monolayers(settings, cfg.run)
        if not monolayers:
            raise StageError(f"no monolayer survived its relaxation: {counts}")
        log.info("monolayers: %s", counts)
        references, phases, phase_counts = build_references(settings, monolayers, cfg.run)
        summary["references"] = phase_counts
        if "references" in parts:
            references.save(settings.references_path)
        if "monolayers" in parts:
            if not Path(settings.references_path).is_file():
                references.save(settings.references_path)
            summary["monolayers"] = write_database(settings, monolayers, references, counts, seed)
    if "adsorption" in parts:
        tasks = adsorption_tasks(settings, monolayers, metal_tasks(phases, seed), seed)
        results = relax_all("adsorption", relax_adsorption, tasks, settings, cfg.run)
        summary["adsorption"] = write_adsorption(settings.lmdb_path, settings, results, seed, [settings.db_path])
    for part, function, count, lmdb_path in (
        ("hosts", relax_host, settings.num_hosts, settings.host_lmdb_path),
        ("snapshots", snapshot_host, settings.num_snapshot_hosts, settings.snapshot_lmdb_path),
    ):
        if part in parts:
            hosts = relax_all(part, function, host_tasks(settings, seed, count), settings, cfg.run)
            status = Counter(host["status"].split(":")[0] for host in hosts)
            records = [record for host in hosts for record in host["records"]]
            if not records:
                raise StageError(f"no H-adsorption record came out: {dict(status)}")
            summary[part] = {f"sheets, {name}": n for name, n in sorted(status.items())}
            summary[part] |= write_adsorption(lmdb_path, settings, records, seed, [settings.host_db_path])
    if "truth" in parts:
        path = cfg.evaluation.dft_truth_path
        summary["truth"] = {name: store_energies(path, load_potential(name)) for name in STORED_ENERGIES}
        summary["truth"] |= {f"minima, {j}": store_at_minima(path, *map(load_potential, of)) for j, of in AT_MINIMUM_OF.items()}
        summary["truth"] |= {"band gap": store_gaps(path, cfg.evaluation.band_gap_checkpoint), "renamed": name_as_found(path)}
    if parts & {"random", "known"} and not Path(settings.db_path).is_file():
        raise missing_file("demo.db_path", settings.db_path, "build monolayers first (demo.parts=[monolayers])")
    if "random" in parts:
        summary["random"] = {"cifs": write_random_decorations(settings, seed)}
    if "known" in parts:
        summary["known"] = write_known_sheets(settings, seed)
    if "baseline" in parts:
        summary["baseline"] = write_baseline(settings, seed)
    for part, values in summary.items():
        print(f"{part}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
