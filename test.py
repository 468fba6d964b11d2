"""Stage 5: judges our candidates and the control sets, and writes the report.

Reads evaluation.cif_dir (stage 4), evaluation.unguided_cif_dir, random_cif_dir and known_cif_dir (controls), the DimeNet++
checkpoint, the potential with its references, the synthesizability model and the DFT truth. Writes metrics.csv, relaxed.extxyz,
report.json, report.html, comparison.csv and the figures to evaluation.output_dir. A run that is stopped goes on where it was.

    python test.py
    python test.py evaluation.shard=3/8    # one of eight parts, on any machine; evaluation.shard=merge/8 puts them together
    python test.py evaluation.cif_dir=my_cifs evaluation.output_dir=my_results
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import run_stage
from pipeline.errors import StageError
from pipeline.files import relative_name
from pipeline.locks import locked_folder
from pipeline.settings import Config, EvaluationConfig
from pipeline.shards import Shard, read_shard
from pipeline.shipped import with_shipped_weights

if TYPE_CHECKING:  # --help does not wait for torch
    from evaluation.evaluate import Evaluation

log = logging.getLogger("her2d")

CONTROL_HINTS = {
    "unguided": "make it: python structure_generator.py generation.guidance_scale=0 generation.cfg_scale=0 "
    "generation.output_dir={}",
    "random decoration": "make it: python -m scripts.prepare_demo_data demo.random_cif_dir={}",
    "known": "make it: python -m scripts.prepare_demo_data demo.parts=[known] demo.known_cif_dir={}",
}


def main(cfg: Config) -> None:
    """Evaluate ours and the controls with one pool of judges."""
    from evaluation import evaluate, judges

    evaluate.find_cifs(cfg.evaluation.cif_dir)
    cfg, shipped = with_shipped_weights(cfg, ("dimenet", "denoiser"))
    identity = judges.judge_identity(cfg)
    if shipped:
        log.info("%s", shipped)
    shard, folder = read_shard(cfg.evaluation.shard), Path(cfg.evaluation.output_dir)
    is_part = shard is not None and not shard.merges
    with locked_folder(shard.folder(folder) if is_part else folder, "evaluation.output_dir"):
        if shard is not None:
            _parts(cfg, identity, shard)
        if not is_part:
            _judge(cfg, identity)


def _folders(settings: EvaluationConfig) -> dict[str, str]:
    """Return the folder of CIFs of every control by its label."""
    return {"unguided": settings.unguided_cif_dir, "random decoration": settings.random_cif_dir, "known": settings.known_cif_dir}


def _parts(cfg: Config, identity: dict[str, Any], shard: Shard) -> None:
    """Judge one part of ours and of the controls that are there, or take over what all parts have judged."""
    from evaluation import evaluate, judges, report_files, shards
    from evaluation.judge_pool import JudgePool
    from evaluation.reading import cif_source

    settings, root = cfg.evaluation, Path(cfg.evaluation.output_dir)
    sets = {report_files.OURS: [cif_source(path) for path in evaluate.find_cifs(settings.cif_dir)]}
    for label, folder in _folders(settings).items():
        with suppress(StageError):  # a control that is not there
            sets[label] = [cif_source(path) for path in evaluate.find_cifs(folder)]
    if shard.merges:
        shards.take_parts(shard, sets, identity, settings, root)
        return
    load = partial(judges.load_judges, cfg, identity, judges.known_formulas(settings))
    with JudgePool(load, identity, settings.workers, cfg.run) as pool:
        judge = partial(
            evaluate.evaluate, settings.cif_dir, judges=pool, settings=shards.settings_of_part(settings), seed=cfg.run.seed
        )
        shards.judge_part(shard, sets, judge, settings, root)


def _judge(cfg: Config, identity: dict[str, Any]) -> None:
    """Judge ours and the controls, and write the products."""
    from energetics import hydrogen
    from evaluation import decisions, element_facts, evaluate, finalists, hull_parity, judges, report_files, summary
    from evaluation.judge_pool import JudgePool

    settings, output_dir = cfg.evaluation, Path(cfg.evaluation.output_dir)
    her = hydrogen.HydrogenPredictor.load(cfg.dimenet.checkpoint)
    about = {"her_provenance": her.provenance, "novelty": judges.novelty_sources(settings)}
    controls: dict[str, evaluate.Evaluation | str] = {}
    load = partial(judges.load_judges, cfg, identity, judges.known_formulas(settings))
    with JudgePool(load, identity, settings.workers, cfg.run) as pool:
        if not (output_dir / "metrics.csv").is_file():  # there is something to judge
            pool.start()
        truth = judges.run_dft_benchmark(cfg, her)
        hull = hull_parity.measure_or_read(cfg, output_dir)
        judge = partial(
            evaluate.evaluate,
            judges=pool,
            settings=settings,
            seed=cfg.run.seed,
            cache_dir=output_dir / "cache",
            also_cached=settings.judged_before,
        )
        ours = judge(settings.cif_dir, output_dir=output_dir, label=report_files.OURS)
        for label, folder in _folders(settings).items():
            try:
                evaluate.find_cifs(folder)
            except StageError as error:
                controls[label] = f"not run: {error}; {CONTROL_HINTS[label].format(relative_name(folder))}"
                log.warning("control '%s' %s", label, controls[label])
            else:
                controls[label] = judge(folder, output_dir=output_dir / "controls" / label.replace(" ", "_"), label=label)
        with ThreadPoolExecutor(1) as beside:  # the figures are drawn while the workers relax the finalists
            drawn = beside.submit(_draw, cfg, ours, controls=controls, truth=truth, hull=hull, **about)
            if settings.finalists:
                practical = [row for row in ours.rows if element_facts.is_practical(row, settings)]
                best = decisions.rank(practical, settings.finalists)
                steps, folder = 2 * settings.max_h_steps, output_dir / "finalists"
                finalists.export_finalists(best, ours.structures, pool.workers, folder, steps, geometry=settings.dft_geometry)
            drawn.result()
    summary.log_summary(report_files.read_report(output_dir), output_dir)


def _draw(cfg: Config, ours: Evaluation, **about: Any) -> None:
    """Write the report of our set with its figures, and the comparison. about: further arguments of ``write_report``."""
    from evaluation import comparison, report

    report.write_report(ours, cfg, cfg.evaluation.output_dir, **about, script="test.py")
    comparison.update_comparison(cfg, cfg.evaluation.output_dir)


if __name__ == "__main__":
    raise SystemExit(
        run_stage(
            main,
            __doc__,
            ("run", "evaluation", "dimenet", "dataset"),
            resumes_in="evaluation.output_dir",
            workers_judge=lambda cfg: True,
        )
    )
