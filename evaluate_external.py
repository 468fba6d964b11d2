"""Stage 6: judges your own or anybody's structures exactly as ours, and sets them beside ours and the controls.

Reads external.cif_dir (CIF, POSCAR/vasp, extxyz or xyz with a cell, .gz of these, ASE .db; without it the baseline, data/baseline),
the judges that stage 5 uses, and stage 5's report.json where it is there. Writes the same products as stage 5 to
external.output_dir, with the comparison, and nothing anywhere else. Bulk crystals are flagged as not 2D, scored where a score is
defined, and enter no average of monolayers.

    python evaluate_external.py external.cif_dir=my_cifs external.name=mine
    python evaluate_external.py external.cif_dir=my_cifs evaluation.shard=3/8    # one of eight parts; merge/8 puts them together
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import run_stage
from pipeline.errors import ConfigError
from pipeline.files import PROJECT_DIR
from pipeline.locks import locked_folder
from pipeline.settings import Config
from pipeline.shards import Shard, read_shard
from pipeline.shipped import with_shipped_weights

if TYPE_CHECKING:
    from evaluation.reading import Source

log = logging.getLogger("her2d")


def main(cfg: Config) -> None:
    """Evaluate the external set and update the comparison."""
    from evaluation import judges, reading, report_files

    output_dir = Path(cfg.external.output_dir)
    reserved = (report_files.OURS, *report_files.CONTROLS)
    if cfg.external.name in reserved:
        raise ConfigError(f"external.name={cfg.external.name}: {', '.join(reserved)} are rows of the table already")
    files = reading.find_structures(cfg.external.cif_dir)
    cfg, shipped = with_shipped_weights(cfg, ("dimenet", "denoiser"))
    identity = judges.judge_identity(cfg)
    if shipped:
        log.info("%s", shipped)
    shard = read_shard(cfg.evaluation.shard)
    is_part = shard is not None and not shard.merges
    own = shard.folder(output_dir) if is_part else output_dir
    with locked_folder(own, "external.output_dir"):
        sources = reading.sources_of(files, own / "cache" / "structures")
        if shard is not None:
            _parts(cfg, sources, identity, shard)
        if not is_part:
            _judge(cfg, sources, identity)


def _parts(cfg: Config, sources: Sequence[Source], identity: dict[str, Any], shard: Shard) -> None:
    """Judge one part of the structures, or take over what all parts have judged."""
    from evaluation import evaluate, judges, shards
    from evaluation.judge_pool import JudgePool

    settings, root, sets = cfg.evaluation, Path(cfg.external.output_dir), {cfg.external.name: sources}
    if shard.merges:
        shards.take_parts(shard, sets, identity, settings, root)
        return
    load = partial(judges.load_judges, cfg, identity, judges.known_formulas(settings))
    with JudgePool(load, identity, settings.workers, cfg.run) as pool:
        judge = partial(
            evaluate.evaluate, cfg.external.cif_dir, judges=pool, settings=shards.settings_of_part(settings), seed=cfg.run.seed
        )
        shards.judge_part(shard, sets, judge, settings, root)


def _judge(cfg: Config, sources: Sequence[Source], identity: dict[str, Any]) -> None:
    """Judge the structures, and write the products and the table in the terminal."""
    from energetics import hydrogen
    from evaluation import comparison, evaluate, judges, known_sheets, material_table, report, report_files, summary
    from evaluation.judge_pool import JudgePool

    settings, output_dir = cfg.evaluation, Path(cfg.external.output_dir)
    her = hydrogen.HydrogenPredictor.load(cfg.dimenet.checkpoint)
    about = {"her_provenance": her.provenance, "novelty": judges.novelty_sources(settings)}
    truth = judges.run_dft_benchmark(cfg, her)
    load = partial(judges.load_judges, cfg, identity, judges.known_formulas(settings))
    with JudgePool(load, identity, settings.workers, cfg.run) as pool:
        theirs = evaluate.evaluate(
            cfg.external.cif_dir,
            pool,
            settings,
            output_dir,
            cfg.external.name,
            seed=cfg.run.seed,
            also_cached=[Path(settings.output_dir) / "cache", *settings.judged_before],
            sources=sources,
        )
    known = known_sheets.known_of_earlier_runs([settings.output_dir, PROJECT_DIR / "results"], identity)
    report.write_report(theirs, cfg, output_dir, truth=truth, known=known, **about, script="evaluate_external.py")
    comparison.update_comparison(cfg, output_dir)
    summary.log_summary(report_files.read_report(output_dir), output_dir)
    material_table.print_table(theirs.rows, settings, known)


if __name__ == "__main__":
    raise SystemExit(
        run_stage(
            main,
            __doc__,
            ("run", "external", "evaluation", "dimenet", "dataset"),
            resumes_in="external.output_dir",
            workers_judge=lambda cfg: True,
        )
    )
