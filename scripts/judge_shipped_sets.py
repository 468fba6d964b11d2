"""Judges the sets that ship with the project once, so that a run whose judges are the same does not judge them again.

    python -m scripts.judge_shipped_sets [--config config.yaml] [section.key=value ...]

The sets are the controls ``evaluation.random_cif_dir`` and ``evaluation.known_cif_dir``, ``external.cif_dir`` and, where it is
there, the control ``evaluation.unguided_cif_dir``, which every run generates anew, equal but for rounding. Their verdicts replace
those in the first folder of ``evaluation.judged_before``, and so do the fits to DFT with points left out that a report makes, which
take half a minute. A verdict is found there by the hashes of the CIF, of the judges and of
the settings: where any of them differs, the stages judge anew. What is finished is kept in ``run.output_dir/verdicts``, so that a
run that is stopped goes on where it was; verdicts of stages 5 and 6 are taken over.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.cli import run_stage
from pipeline.errors import ConfigError
from pipeline.files import atomic_folder, relative_name, write_json
from pipeline.settings import Config, EvaluationConfig
from pipeline.shipped import with_shipped_weights

if TYPE_CHECKING:
    from evaluation.evaluate import Evaluation  # which imports torch

log = logging.getLogger("her2d")


def main(cfg: Config) -> None:
    """Judge the shipped sets with one pool of judges."""
    from evaluation import evaluate, judges
    from evaluation.judge_pool import JudgePool

    if not cfg.evaluation.judged_before:
        raise ConfigError("evaluation.judged_before names no folder to write to")
    cfg, shipped = with_shipped_weights(cfg, ("dimenet", "denoiser"))
    if shipped:
        log.info("%s", shipped)
    settings, identity = cfg.evaluation, judges.judge_identity(cfg)
    target, work = Path(settings.judged_before[0]), Path(cfg.run.output_dir) / "verdicts"
    earlier = [target, *(Path(folder) / "cache" for folder in (settings.output_dir, cfg.external.output_dir))]
    load = partial(judges.load_judges, cfg, identity, judges.known_formulas(settings))
    sets = {}
    with JudgePool(load, identity, settings.workers, cfg.run) as pool:
        unguided = [settings.unguided_cif_dir] if Path(settings.unguided_cif_dir).is_dir() else []
        for folder in (settings.random_cif_dir, settings.known_cif_dir, cfg.external.cif_dir, *unguided):
            paths = evaluate.find_cifs(folder)
            sets[folder] = (
                paths,
                evaluate.evaluate(
                    folder, pool, settings, work / Path(folder).name, Path(folder).name, cache_dir=work, also_cached=earlier
                ),
            )
    with atomic_folder(target) as new:
        number = sum(_copy(new, paths, judged, settings, [work, *earlier]) for paths, judged in sets.values())
        _keep_fits(cfg, new)
    print(f"{number} verdicts are in {relative_name(target)}")


def _copy(new: Path, paths: list[Path], judged: Evaluation, settings: EvaluationConfig, folders: list[Path]) -> int:
    """Write the records of one judged set to a folder, and return the number of structures."""
    from evaluation import all_sites, dynamics, exfoliation_verdict
    from evaluation.judge_pool import cache_key, record_store
    from evaluation.near_hull import answers_store

    keys = [cache_key(path.read_bytes(), judged.identity, settings) for path in paths]
    wanted = [(record_store(folders[0], folders[1:]), new, keys)]
    for question, key_of in ((dynamics, dynamics.phonon_key), (exfoliation_verdict, exfoliation_verdict.exfoliation_key)):
        asked = [judged.structures[row.id] for row in judged.rows if question.is_asked(row, settings)]
        answers = answers_store(question.QUESTION, folders[0], folders[1:])
        wanted.append((answers, new / question.QUESTION, [key_of(atoms, judged.identity) for atoms in asked]))
    answers = answers_store(all_sites.QUESTION, folders[0], folders[1:])
    keys = [all_sites.all_sites_key(atoms, judged.identity, settings) for atoms in judged.structures.values()]
    wanted.append((answers, new / all_sites.QUESTION, [key for key in keys if key in answers]))
    for store, part, names in wanted:
        for name in names:
            write_json(part / f"{name}.json", store[name])
    return len(paths)


def _keep_fits(cfg: Config, new: Path) -> None:
    """Make the fits with points left out of a report anew, and DimeNet++'s values at the points, and write them to a folder."""
    from energetics.hydrogen import HydrogenPredictor
    from energetics.potential_loading import FITS
    from evaluation.judges import run_dft_benchmark

    (new / FITS).mkdir()
    with TemporaryDirectory() as folder:
        evaluation = dataclasses.replace(cfg.evaluation, relaxed_dir=folder, judged_before=[])
        run_dft_benchmark(dataclasses.replace(cfg, evaluation=evaluation), HydrogenPredictor.load(cfg.dimenet.checkpoint))
        for path in sorted(Path(folder).glob("*/*.json")):
            shutil.copyfile(path, new / FITS / path.name)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "external", "evaluation", "dimenet", "dataset")))
