"""What a round of the design loop is done with: the stages, DFT, and the database and the correction that learn from it.

``design_loop`` calls these functions through ``Tools``, so that tests can put others in their place.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.db import connect

from energetics.dft_calculation import HESSIANS
from energetics.dft_inputs import write_hessians
from energetics.dft_points import STORED_ENERGIES, read_truth, store_at_minima, store_energies, store_gaps
from energetics.dft_rows import AT_MINIMUM_OF, GIVEN, RELAXED, add_points, check_unmixed
from evaluation.candidate import CandidateResult
from evaluation.vasp_points import VASP, read_calculations, summary_of_missing, write_calculations
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR, atomic_folder, relative_name
from pipeline.settings import Config

log = logging.getLogger("her2d")

VERIFY_DFT = Path(__file__).resolve().parent.parent / "scripts" / "verify_dft.py"
UNGUIDED = ("generation.guidance_scale=0", "generation.cfg_scale=0")
POINTS_DB = "h_on_2d_dft.db"
RELAXED_DB = "h_on_2d_relaxed.db"
RELAX_WITHIN_EV = 0.15  # sites that single points put farther above the lowest one are not relaxed
Judged = tuple[list[CandidateResult], dict[str, Atoms]]  # rows, and id -> relaxed sheet


@dataclasses.dataclass(frozen=True)
class Tools:
    """The work of a round.

    generate(config_path, folder, number, guided): writes CIFs to a folder. judge(cfg, cif_dir, output_dir, label) -> Judged.
    prepare(cfg, rows, structures, folder): relaxes H, and writes FOLDER/ID/dft.extxyz. compute(cfg, inputs, folder): computes the
    points of inputs, id -> file, into FOLDER/h_on_2d_dft.db. relax(cfg, inputs, folder): relaxes them by DFT at the sites near the
    lowest, into FOLDER/h_on_2d_relaxed.db. complete(cfg, path): adds to a database of points what the judges
    need of them. refit(cfg, checkpoint, folder): fits the correction of DimeNet++ to ``dimenet.dft_path`` anew, into
    FOLDER/dimenet.pth. teach(config_path, overrides, folder): trains the heads of the denoiser, into FOLDER/denoiser.pth.
    """

    generate: Callable[..., None]
    judge: Callable[..., Judged]
    prepare: Callable[..., None]
    compute: Callable[..., None]
    relax: Callable[..., None]
    complete: Callable[..., None]
    refit: Callable[..., None]
    teach: Callable[..., None]


def generate(config_path: Path, folder: Path, number: int, guided: bool) -> None:
    """Run stage 4 with the settings of a file.

    Raises:
        StageError: it failed; what it says stands above.
    """
    settings = [f"generation.output_dir={folder}", f"generation.num_structures={number}", *(() if guided else UNGUIDED)]
    _run_stage("structure_generator.py", config_path, settings)


def teach(config_path: Path, overrides: Sequence[str], folder: Path) -> None:
    """Label the database and train the heads of the denoiser on it: stages 2 and 3 with the settings of a file.

    Args:
        config_path: the file.
        overrides: further settings, such as what was learnt, and ``dataset.judged_dirs``.
        folder: labels go to FOLDER/processed, the denoiser to FOLDER/denoiser.pth.

    Raises:
        StageError: a stage failed; what it says stands above.
    """
    own = [f"dataset.processed_dir={folder / 'processed'}", *overrides]
    _run_stage("material_dataset.py", config_path, own)
    heads = ["denoiser.train_only=heads", f"denoiser.checkpoint={folder / 'denoiser.pth'}"]
    _run_stage("optimization.py", config_path, [*own, *heads])


def _run_stage(program: str, config_path: Path, overrides: Sequence[str]) -> None:
    """Run a stage of its own. Raises StageError where it fails."""
    command = [sys.executable, str(PROJECT_DIR / program), "--config", str(config_path), *overrides]
    if code := subprocess.run(command).returncode:
        raise StageError(f"{program} ended with exit code {code}; the same command goes on there")


def judge(cfg: Config, cif_dir: Path, output_dir: Path, label: str) -> Judged:
    """Judge the CIFs of a folder with the judges of stage 5; finished verdicts are kept in ``output_dir``."""
    from evaluation import evaluate, judges
    from evaluation.judge_pool import JudgePool

    settings, identity = cfg.evaluation, judges.judge_identity(cfg)
    load = partial(judges.load_judges, cfg, identity, judges.known_formulas(settings))
    with JudgePool(load, identity, settings.workers, cfg.run) as pool:
        found = evaluate.evaluate(cif_dir, pool, settings, output_dir, label, seed=cfg.run.seed, also_cached=settings.judged_before)
    return found.rows, found.structures


def prepare(cfg: Config, rows: Sequence[CandidateResult], structures: Mapping[str, Atoms], folder: Path) -> None:
    """Relax H on sheets with the potential, and write their inputs for DFT; a candidate that is there stays."""
    from energetics.potential_loading import load_stability_judge
    from evaluation.finalists import export_finalists
    from evaluation.judging import Judges
    from pipeline.tasks import start_workers

    steps = cfg.evaluation.max_h_steps + cfg.evaluation.more_h_steps
    load = partial(_potential_alone, load_stability_judge, Judges, cfg)
    with start_workers(cfg.run, cfg.evaluation.workers, load) as workers:
        geometry = cfg.evaluation.dft_geometry
        export_finalists(rows, dict(structures), workers, folder, steps, cfg.loop.max_sites, go_on=True, geometry=geometry)


def _potential_alone(load: Callable[[Config], Any], judges: Callable[..., Any], cfg: Config) -> Any:
    """Return judges of which only the potential is there, all that a relaxation of H needs."""
    return judges(load(cfg), None, None, None, None)


def compute(cfg: Config, inputs: Mapping[str, Path], folder: Path) -> None:
    """Compute DFT points, by what ``loop.dft`` names.

    Args:
        cfg: section ``loop``.
        inputs: name of a sheet -> its file for DFT.
        folder: of the single calculations and of the database of their points.

    Raises:
        StageError: the calculator is not there, or VASP has not computed everything yet.
    """
    if cfg.loop.dft == VASP:
        _compute_by_vasp(cfg, inputs, folder)
    else:
        _compute_by_processes(cfg, inputs, folder)


def relax(cfg: Config, inputs: Mapping[str, Path], folder: Path) -> None:
    """Relax sheets by DFT, with H and without, by what ``loop.dft`` names.

    Args:
        cfg: sections ``loop`` and ``evaluation``.
        inputs: name of a sheet -> its file for DFT, whose single points are computed.
        folder: of the single calculations and of the database of the minima.

    Raises:
        StageError: the calculator is not there, or VASP has not computed everything yet.
    """
    if cfg.loop.dft == VASP:
        _compute_by_vasp(cfg, inputs, folder, cfg.loop.relax_steps)
        return
    from energetics.potential_loading import load_stability_judge
    from energetics.potentials import load_potential

    geometry = cfg.evaluation.dft_geometry
    potential = load_potential(geometry) if geometry else load_stability_judge(cfg).potential
    for path in inputs.values():
        if not path.with_name(f"{path.stem}{HESSIANS}").is_file():
            write_hessians(path, potential)
    options = ["--relax-steps", str(cfg.loop.relax_steps), "--relax-within", str(RELAX_WITHIN_EV), "--gap"]
    _compute_by_processes(cfg, inputs, folder, RELAXED_DB, options)


def _compute_by_processes(
    cfg: Config, inputs: Mapping[str, Path], folder: Path, database: str = POINTS_DB, options: Sequence[str] = ()
) -> None:
    """Run ``verify_dft.py``; where in several processes that share the work, or one on a worker for each sheet, then to collect."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = cfg.loop
    program = [settings.dft_python or sys.executable, str(VERIFY_DFT)]
    about = ["--work-dir", str(folder), "--calculator", settings.dft, *options, "--database"]
    command = [*program, *map(str, inputs.values()), *about, str(folder / database)]
    log.info("DFT on %d sheets in %d processes; their output is in %s", len(inputs), settings.dft_processes, relative_name(folder))
    if cfg.run.scheduler != "processes":
        # A sheet is a task. Its own database is only a place where no other process writes.
        tasks = {
            name: ([*program, str(path), *about, str(folder / f"{name}.db")], folder / f"{name}.log")
            for name, path in inputs.items()
        }
        _run_on_workers(cfg, tasks)
        for name in tasks:
            (folder / f"{name}.db").unlink(missing_ok=True)
    elif settings.dft_processes > 1:
        _run_together(command, [folder / f"process_{k + 1}.log" for k in range(settings.dft_processes)])
    _run_together(command, [folder / "process.log"])


def _run_on_workers(cfg: Config, tasks: Mapping[str, tuple[Sequence[str], Path]]) -> None:
    """Run commands as tasks of ``run.scheduler``. tasks: name -> command and the file of its output.

    Raises:
        StageError: a command cannot be started or does not end as ``verify_dft.py`` does, or its worker died twice.
    """
    from pipeline.tasks import run, start_workers

    with start_workers(cfg.run, cfg.loop.dft_processes) as where:
        for name, code in run(_run_task, tasks, None, where):
            _check_exit(code, tasks[name][1])


def _run_task(task: tuple[Sequence[str], Path]) -> int:
    """Run a command on a worker and return its exit code."""
    command, path = task
    with path.open("w", encoding="utf-8") as handle:
        try:
            return subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT, env=_one_thread()).returncode
        except FileNotFoundError as error:
            raise _no_program(command) from error


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _no_program(command: Sequence[str]) -> StageError:
    return StageError(f"loop.dft_python={command[0]}: there is no such program")


def _run_together(command: Sequence[str], logs: Sequence[Path]) -> None:
    """Run a command once for every log, all at a time.

    Raises:
        StageError: it cannot be started, or ended with an exit code other than 0 and 1 (some calculations failed).
    """
    with_logs: list[tuple[subprocess.Popen, Path]] = []
    try:
        for path in logs:
            with path.open("w", encoding="utf-8") as handle:
                process = subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT, env=_one_thread())
            with_logs.append((process, path))
        codes = [process.wait() for process, _ in with_logs]
    except FileNotFoundError as error:
        raise _no_program(command) from error
    finally:
        for process, _ in with_logs:
            if process.poll() is None:
                process.terminate()
    if len(logs) == 1:  # what one of several could not do, the last one tries again
        _check_exit(codes[0], logs[0])


def _check_exit(code: int, path: Path) -> None:
    """Raise StageError with the last line of a log where ``verify_dft.py`` did not end with 0 or 1 (some calculations failed)."""
    if code not in (0, 1):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        raise StageError(f"verify_dft.py ended with exit code {code}: {said}")


def _compute_by_vasp(cfg: Config, inputs: Mapping[str, Path], folder: Path, relax_steps: int = 0) -> None:
    """Write VASP's inputs, or read its results where all are there."""
    exported = folder / (f"{VASP}_relaxed" if relax_steps else VASP)
    names = write_calculations(inputs, exported, relax_steps)
    round_name = f"{folder.parent.name}_relaxed" if relax_steps else folder.parent.name
    results = Path(cfg.loop.vasp_results) / round_name if cfg.loop.vasp_results else exported
    found = read_calculations(inputs, results, relaxed=relax_steps > 0)
    if found.missing:
        raise StageError(
            f"{len(found.missing)} of {len(names)} VASP calculations of {round_name} have no result "
            f"({summary_of_missing(found.missing)}): run VASP in every folder of {relative_name(exported)}, with POTCAR by "
            f"POTCAR.spec, leave vasprun.xml or OUTCAR in the folder of the same name of {relative_name(results)}, and start "
            "the same command again"
        )
    for name, reason in found.failed.items():
        log.warning("%s: no DFT value: %s", name, reason)
    if "H2" in found.failed:
        raise StageError(f"the reference molecule has no energy: {found.failed['H2']}")
    database, geometry = (RELAXED_DB, RELAXED) if relax_steps else (POINTS_DB, GIVEN)
    add_points(folder / database, found.systems, geometry, VASP)


def complete(cfg: Config, path: Path) -> None:
    """Add the ΔE_H of the embedded potentials that judge, and the band gaps, to the points of a database that lack them."""
    from energetics.potential_loading import uses_gap
    from energetics.potentials import load_potential

    for name in dict.fromkeys((cfg.evaluation.potential, cfg.evaluation.second_potential)):
        if name in STORED_ENERGIES and any(name not in point.energies for point in read_truth(path, with_unbound=True)):
            store_energies(path, load_potential(name))
    if cfg.evaluation.potential in AT_MINIMUM_OF:
        store_at_minima(path, *(load_potential(name) for name in AT_MINIMUM_OF[cfg.evaluation.potential]))
    if uses_gap(cfg.evaluation):
        store_gaps(path, cfg.evaluation.band_gap_checkpoint)


def join_points(before: Path, new: Path, target: Path, about: Mapping[str, Mapping[str, Any]]) -> int:
    """Write a database with the points of an earlier one and those of a round.

    Points by another calculator join as well: their ΔE_H agree to some hundredths of an eV where the functional is the same, less
    than the scatter that the correction allows for. Every row says what computed it. A name that the earlier database has for
    another sheet, because another loop counted its rounds from 1 as well, gets a number.

    Args:
        before: the earlier database; one that is not there holds nothing.
        new: of the round; one that is not there holds nothing.
        target: the database to write, which is not there.
        about: name of a sheet -> further keys of its rows.

    Returns:
        Number of points that have joined.

    Raises:
        StageError: one of them holds points that DFT relaxed.
    """
    joined = 0
    for path in (before, new):
        check_unmixed(path, GIVEN)
    if before.is_file():
        shutil.copyfile(before, target)
    with connect(target, type="db") as db:
        taken = {str(row.name) for row in db.select()}
        for row in connect(new).select() if new.is_file() else ():
            name = next(n for n in _numbered(str(row.name)) if n not in taken)
            db.write(row.toatoms(), **{**row.key_value_pairs, **about.get(str(row.name), {}), "name": name})
            joined += row.kind != "clean"
    return joined


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, and the name with 2, 3, ..."""
    yield name
    yield from (f"{name}_{k}" for k in itertools.count(2))


def refit(cfg: Config, checkpoint: Path, folder: Path) -> None:
    """Fit DimeNet++'s correction anew to the points of ``dimenet.dft_path``; its weights stay.

    Args:
        cfg: section ``dimenet``.
        checkpoint: the model, which is copied.
        folder: the copy goes to FOLDER/dimenet.pth, with its sidecar.
    """
    from energetics.dimenet_stage import train_stage

    with atomic_folder(folder) as new:
        for path in (checkpoint, checkpoint.with_suffix(".json")):
            shutil.copyfile(path, new / f"dimenet{path.suffix}")
        settings = dataclasses.replace(cfg.dimenet, checkpoint=str(new / "dimenet.pth"), only_correction=True)
        train_stage(dataclasses.replace(cfg, dimenet=settings))


REAL = Tools(generate, judge, prepare, compute, relax, complete, refit, teach)
