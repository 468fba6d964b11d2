"""Evaluates a set of structures for stages 5 and 6, or a single one: our candidates and anybody else's alike.

``evaluate`` returns one ``CandidateResult`` per structure and the metrics of the set. Judges are passed in (``Judges``): the
interatomic potential with its references, DimeNet++ for hydrogen, the synthesizability model and the training structures. A judge
that fails leaves NaN and a status that says why. A file that cannot be read has a row too.

Every candidate is judged by itself and stored as ``cache/<hash of CIF, judges and settings>.json`` when it is done. So results do
not depend on the order of the files or the number of workers, and a run that is stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from pymatgen.core import Structure
from tqdm import tqdm

from crystals import cif
from crystals.formulas import cell_formula, reduced_formula
from evaluation import metrics, statistics
from evaluation.all_sites import mark_all_sites
from evaluation.candidate import CandidateResult
from evaluation.decisions import decide, mark_unique, verdict
from evaluation.dft_verdict import mark_dft
from evaluation.dynamics import mark_dynamics
from evaluation.element_facts import mark_elements
from evaluation.exfoliation_verdict import mark_exfoliation
from evaluation.judge_pool import JudgePool, cache_key, judge_inline, record_store
from evaluation.judging import Judges, judge_candidate
from evaluation.near_hull import ALL_SITES, EXFOLIATION, PHONONS, QUESTIONS, answers_store
from evaluation.reading import Source, cif_source, crystal_text, find_structures, sources_of
from evaluation.result_files import write_distorted, write_structures, write_table
from evaluation.water_verdict import mark_water
from pipeline.errors import StageError
from pipeline.files import relative_name
from pipeline.loading import load_config, split_arguments
from pipeline.records import from_json
from pipeline.settings import DatasetConfig, EvaluationConfig
from pipeline.shipped import with_shipped_weights
from pipeline.store import FolderStore

log = logging.getLogger("her2d")
Result = tuple[CandidateResult, Atoms | None]  # of one candidate, before it has an id


@dataclass
class Evaluation:
    """One judged set.

    ``rows``: sorted by id. ``aggregates``: metrics of all but the bulk crystals. ``bulk_aggregates``: metrics of the bulk crystals,
    empty without any. ``structures``: id -> structure as judged, with the potential's energy (and forces) as its results where they
    are known. ``identity``: names and hashes of the judges.
    """

    label: str
    cif_dir: str
    rows: list[CandidateResult]
    aggregates: dict[str, statistics.Metric]
    bulk_aggregates: dict[str, statistics.Metric]
    structures: dict[str, Atoms]
    identity: dict[str, Any]
    elapsed_seconds: float = math.nan

    @property
    def rows_2d(self) -> list[CandidateResult]:
        """All rows but the bulk crystals, unreadable files included."""
        return [row for row in self.rows if not row.is_bulk]


def find_cifs(cif_dir: str | os.PathLike) -> list[Path]:
    """Return the CIF files directly inside a folder, sorted by name.

    Raises:
        StageError: there is no folder, or no CIF in it.
    """
    folder = Path(cif_dir)
    if not folder.is_dir():
        raise StageError(f"no folder of CIFs at {relative_name(folder)}")
    found = sorted((p for p in folder.iterdir() if p.suffix.lower() == ".cif"), key=lambda p: p.name)
    if not found:
        raise StageError(f"no CIF in {relative_name(folder)}")
    return found


def evaluate(
    cif_dir: str | os.PathLike,
    judges: Judges | JudgePool,
    settings: EvaluationConfig,
    output_dir: str | os.PathLike,
    label: str,
    workers: int = 1,
    *,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    also_cached: Sequence[str | os.PathLike] = (),
    sources: Sequence[Source] | None = None,
) -> Evaluation:
    """Judge every structure of a folder, and write ``metrics.csv`` and ``relaxed.extxyz`` to ``output_dir``.

    Stable sheets to which dynamically unstable ones lead go to ``distorted.extxyz``.

    Identical CIFs are judged once.

    Args:
        cif_dir: the folder.
        judges: ``Judges`` (used in this process, or pickled to ``workers`` processes) or a running ``JudgePool``, which serves
            several sets.
        settings: limits and switches of the evaluation.
        output_dir: where the files go.
        label: name of the set in tables and figures.
        workers: number of processes where ``judges`` is no pool.
        seed: of the bootstrap.
        cache_dir: where finished candidates are stored; ``output_dir/cache`` unless given.
        also_cached: folders of earlier runs that may hold finished candidates.
        sources: the structures to judge; all CIFs of the folder unless given.

    Raises:
        StageError: there is nothing to judge.
    """
    started = time.perf_counter()
    sources = [cif_source(path) for path in find_cifs(cif_dir)] if sources is None else sources
    output_dir = Path(output_dir)
    cache = Path(cache_dir) if cache_dir is not None else output_dir / "cache"
    earlier = [Path(folder) for folder in also_cached]
    store = record_store(cache, earlier)
    keys = {source: content_key(source.cif, judges.identity, settings) for source in sources if source.cif}
    with _workers(judges, workers) as pool:
        found = _results({key: source.cif for source, key in keys.items()}, pool, settings, store, label)
        rows, structures = _rows({source: found[keys[source]] if source in keys else _unreadable(source) for source in sources})
        stores = {name: answers_store(name, cache, earlier) for name in QUESTIONS}
        distorted = _mark(rows, structures, pool, settings, stores)
    rows_2d, bulk = [r for r in rows if not r.is_bulk], [r for r in rows if r.is_bulk]
    evaluation = Evaluation(
        label=label,
        cif_dir=str(cif_dir),
        rows=rows,
        aggregates=metrics.aggregate(rows_2d, settings, seed),
        bulk_aggregates=metrics.aggregate_bulk(bulk, settings, seed) if bulk else {},
        structures=structures,
        identity=judges.identity,
        elapsed_seconds=time.perf_counter() - started,
    )
    write_table(rows, output_dir / "metrics.csv")
    write_structures(rows, structures, output_dir / "relaxed.extxyz")
    write_distorted(distorted, output_dir / "distorted.extxyz")
    return evaluation


def _mark(
    rows: list[CandidateResult],
    structures: dict[str, Atoms],
    judges: Judges | JudgePool,
    settings: EvaluationConfig,
    stores: Mapping[str, FolderStore],
) -> dict[str, Atoms]:
    """Set what is decided over a whole set or asked about some of its rows; return what ``mark_dynamics`` does.

    stores: of the answers to ``QUESTIONS``; those of a question without one are not kept.
    """
    mark_unique(rows, structures)
    mark_dft(rows, structures, settings, _her_correction(judges.identity))
    decide(rows, settings)
    mark_all_sites(rows, structures, judges, settings, stores.get(ALL_SITES))
    distorted = mark_dynamics(rows, structures, judges, settings, stores.get(PHONONS))
    mark_exfoliation(rows, structures, judges, settings, stores.get(EXFOLIATION))
    mark_water(rows, settings)
    mark_elements(rows, settings)
    return distorted


def _her_correction(identity: Mapping[str, Any]) -> float:
    """Return ΔG_H − ΔE_H (eV) of the judges; that of the default settings where they name none."""
    return float(identity.get("her", {}).get("her_correction_ev", DatasetConfig().her_correction_ev))


@contextmanager
def _workers(judges: Judges | JudgePool, workers: int) -> Iterator[Judges | JudgePool]:
    """Yield the pool that judges: the one given, one of several processes that ends afterwards, or the judges themselves."""
    if isinstance(judges, JudgePool) or workers <= 1:
        yield judges
        return
    with JudgePool(partial(_unchanged, judges), judges.identity, workers) as pool:
        yield pool


def content_key(path: Path, identity: Mapping[str, Any], settings: EvaluationConfig) -> str:
    """Return the key of a CIF in the store of judged candidates, as ``cache_key`` gives it. identity: of the judges."""
    return cache_key(_content(path), identity, settings)


def _content(path: Path) -> bytes:
    """Return the bytes of a file, up to one more than a CIF may have; where it cannot be read, a text with its name."""
    try:
        if not path.is_file():  # reading a pipe or a device could wait for ever
            raise OSError(f"{path.name} is not a file")
        with path.open("rb") as handle:
            return handle.read(cif.MAX_CIF_BYTES + 1)
    except OSError:
        return b"unreadable " + os.fsencode(path.name)


def _results(
    cifs: Mapping[str, Path], judges: Judges | JudgePool, settings: EvaluationConfig, store: FolderStore, label: str
) -> dict[str, Result]:
    """Return key -> row and structure of all CIFs: from the store, or judged now where it has none."""
    found = {key: _result(record) for key in cifs if (record := store.get(key)) is not None}
    to_judge = {key: path for key, path in cifs.items() if key not in found}
    if found:
        log.info("%s: %d of %d candidates were judged before, by the same judges", label, len(found), len(cifs))
    if isinstance(judges, JudgePool):
        finished = judges.judge(to_judge, settings, store)
    else:
        finished = judge_inline(judges, to_judge, settings, store)
    for key, record in tqdm(finished, total=len(to_judge), desc=label, unit="candidate", disable=not to_judge):
        found[key] = _result(record)
    return found


def _result(record: Mapping[str, Any]) -> Result:
    """Return row, without id, and structure of a record. Both take a fraction of its memory."""
    row = from_json(CandidateResult, record["row"])
    # Records of earlier versions have other orders.
    row.formula, row.reduced_formula = cell_formula(row.formula), reduced_formula(row.formula)
    return row, None if record["structure"] is None else _structure(record)


def _unreadable(source: Source) -> Result:
    """Return the row of a structure that could not be read."""
    return CandidateResult(dimensionality="unreadable", status=f"unreadable: {source.fault}"), None


def _rows(results: Mapping[Source, Result]) -> tuple[list[CandidateResult], dict[str, Atoms]]:
    """Return the rows, sorted by id, and id -> structure as judged."""
    rows, structures = [], {}
    identifiers = unique_ids([(source.stem, source.name) for source in results])
    for (source, (found, atoms)), identifier in zip(results.items(), identifiers, strict=True):
        # Equal CIFs share a result, not a row.
        row = dataclasses.replace(found, id=identifier, source_file=os.fsencode(source.file.name).decode("utf-8", "replace"))
        rows.append(row)
        if atoms is not None:
            structures[row.id] = atoms
    return sorted(rows, key=lambda row: row.id), structures


def _structure(record: Mapping[str, Any]) -> Atoms:
    """Return the structure of a record as judged, with energy (eV) and forces (eV/Å) of the potential where the record has them.

    ``info["h_position"]`` is the place (3,) Å of H on its best site; records of earlier versions have none.
    """
    atoms = Atoms(**record["structure"])
    if record.get("h_position") is not None:
        atoms.info["h_position"] = record["h_position"]
    per_atom, forces = record["row"].get("energy_ev_per_atom"), record.get("forces")
    if per_atom is not None and math.isfinite(per_atom):
        known = {} if forces is None else {"forces": np.array(forces)}
        atoms.calc = SinglePointCalculator(atoms, energy=per_atom * len(atoms), **known)
    return atoms


def _unchanged(judges: Judges) -> Judges:
    return judges


def candidate_ids(paths: Sequence[Path]) -> dict[Path, str]:
    """Return path -> id as ``unique_ids`` gives it to CIFs: the file name without suffix where no other file has it."""
    sources = [cif_source(path) for path in paths]
    return dict(zip(paths, unique_ids([(source.stem, source.name) for source in sources]), strict=True))


def unique_ids(names: Sequence[tuple[str, str]]) -> list[str]:
    """Return an id for each structure, from (short name, whole name).

    The id is the whole name where two structures share a short one, or where the short one is the whole name of another. Where that
    makes two ids equal, the later one gets a number.
    """
    stems, wholes = Counter(stem for stem, _ in names), {whole for _, whole in names}
    ids: dict[str, None] = {}
    for stem, whole in names:
        candidate = stem if stems[stem] == 1 and stem not in wholes else whole
        numbered = (f"{candidate} ({k})" for k in itertools.count(2))
        ids[next(name for name in itertools.chain([candidate], numbered) if name not in ids)] = None
    return list(ids)


def score(structure: Atoms | Structure | str | os.PathLike, *overrides: str) -> dict[str, Any]:
    """Judge one structure as stage 6 does. The judges are loaded once for equal settings.

    Args:
        structure: Atoms of ASE, a Structure of pymatgen, or a file with one structure.
        overrides: settings as on the command line, such as "evaluation.relax=false".

    Returns:
        The row of ``metrics.csv`` by its columns, NaN or None where a judge gave nothing, and the "verdict".

    Raises:
        StageError: the judges cannot be loaded, or the file does not hold one structure.
    """
    judges, settings = _judges_for(overrides)
    with tempfile.TemporaryDirectory() as folder:
        source = _one_source(structure, Path(folder))
        found = _result(judge_candidate(source.cif, judges, settings)) if source.cif else _unreadable(source)
    rows, structures = _rows({source: found})
    _mark(rows, structures, judges, settings, {})
    return {**dataclasses.asdict(rows[0]), "verdict": verdict(rows[0], settings)}


def _one_source(structure: Atoms | Structure | str | os.PathLike, folder: Path) -> Source:
    """Return the source of a structure or of a file with one; a CIF that is made goes to ``folder``."""
    if isinstance(structure, str | os.PathLike):
        sources = sources_of(find_structures(structure), folder)
        if len(sources) != 1:
            raise StageError(f"{relative_name(structure)}: {len(sources)} structures, one is judged at a time")
        return sources[0]
    atoms = structure if isinstance(structure, Atoms) else structure.to_ase_atoms()
    path = folder / f"{cell_formula(str(atoms.symbols))[:80]}.cif"
    try:
        path.write_text(crystal_text(atoms), encoding="utf-8")
    except cif.UnreadableCif as error:
        return Source(path, path.stem, path.name, None, str(error))
    return cif_source(path)


@lru_cache(maxsize=2)
def _judges_for(overrides: tuple[str, ...]) -> tuple[Judges, EvaluationConfig]:
    """Load the judges of ``config.yaml`` and the overrides; unless these name a folder for it, they write nothing."""
    from evaluation.judges import load_judges

    cfg, line = with_shipped_weights(
        load_config(*split_arguments(("evaluation.relaxed_dir=", *overrides))), ("dimenet", "denoiser")
    )
    if line:
        log.info("%s", line)
    return load_judges(cfg), cfg.evaluation
