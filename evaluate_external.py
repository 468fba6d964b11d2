"""Stage 6: judges somebody else's CIFs exactly as ours, and sets them beside ours and the controls.

Reads external.cif_dir, the judges that stage 5 uses, and stage 5's report.json where it is there. Writes the same products as
stage 5 to external.output_dir, and brings comparison.csv, comparison.png and report.html up to date in both folders. Bulk crystals
are flagged as not 2D, scored where a score is defined, and enter no average of monolayers.

    python evaluate_external.py external.cif_dir=their_cifs external.name=theirs
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import config


def main(cfg: config.Config) -> None:
    """Evaluates the external set and updates the comparison."""
    import evaluators
    import hydrogen
    import report

    settings, output_dir = cfg.evaluation, Path(cfg.external.output_dir)
    reserved = (report.OURS, *report.CONTROLS)
    if cfg.external.name in reserved:
        raise config.ConfigError(f"external.name={cfg.external.name}: {', '.join(reserved)} are rows of the table already")
    evaluators.find_cifs(cfg.external.cif_dir)
    identity = evaluators.judge_identity(cfg)
    her = hydrogen.HydrogenPredictor.load(cfg.dimenet.checkpoint)
    truth = evaluators.load_truth(cfg, her)
    with evaluators.JudgePool(partial(evaluators.load_judges, cfg), identity, settings.workers) as pool:
        theirs = evaluators.evaluate(
            cfg.external.cif_dir,
            pool,
            settings,
            output_dir,
            cfg.external.name,
            seed=cfg.run.seed,
            also_cached=[Path(settings.output_dir) / "cache"],
        )
    report.write_report(theirs, cfg, output_dir, truth=truth, her_provenance=her.provenance, script="evaluate_external.py")
    report.update_comparison(cfg)
    report.log_summary(report.read_report(output_dir), output_dir)


if __name__ == "__main__":
    raise SystemExit(config.run_stage(main, __doc__, ("run", "external", "evaluation", "dimenet", "dataset")))
