"""Stage 0: builds the embedded default data, so that every stage runs without a download.

    python -m scripts.prepare_demo_data [--config config.yaml] [section.key=value ...]

Reads   nothing but the potential's weights (inside the sevenn wheel).
Writes  data/demo_c2db.db            monolayers: prototypes x elements, relaxed; C2DB's key names
        data/references_<pot>.json.gz energies of the elements and of competing phases, made with the same potential; part
                                     "references" alone keeps the phases of a file that is there and adds what it lacks
        data/demo_is2re/data.lmdb    H on those monolayers and on metal surfaces, OC20 IS2RE schema
        demo.host_lmdb_path          part "hosts", only when asked for: H on the sheets of a database of yours, such as C2DB
        demo.snapshot_lmdb_path      part "snapshots", only when asked for: energies of unrelaxed H on such sheets
        data/h_on_2d_dft.db          part "truth", only when asked for: ΔE_H of the embedded potentials beside new DFT values
        data/random_decoration/      unrelaxed random decorations, the control that everybody has to beat
        data/known_sheets/           sheets that every chemist knows
        data/baseline/               another project's structures, from the numbers in data/baseline_structures.json

Every relaxation is one line in ``demo.work_dir``; a stage killed at any moment goes on where it stopped, and the products do not
depend on the order in which the workers finish.
"""

from __future__ import annotations

from pipeline.cli import run_stage
from pipeline.settings import Config


def main(cfg: Config) -> None:
    """Build the parts named in ``demo.parts``."""
    from energetics.embedded_data import build_parts

    build_parts(cfg)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "demo", "evaluation")))
