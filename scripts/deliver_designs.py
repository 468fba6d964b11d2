"""Writes the designs of a design loop: sheets that are hits by DFT, each with a card, inputs and energies, and one page.

    python -m scripts.deliver_designs [--config config.yaml] [section.key=value ...]

Reads   the finished rounds in loop.output_dir; what stage 5 reads.
Writes  loop.designs_dir: a folder for each design, designs.json, index.html, overview.png, hit_rates.png, a sidecar.

Hits of all rounds are judged once more by all judges of stage 5. The potential relaxes H at every site, and DFT (loop.dft) computes
the competing ones that no round has. A hit that is no longer one at the lowest site, or that has a fault, is left out and named
with the reason. What is finished is kept in loop.output_dir/designs, so that a run that is stopped goes on where it was.
"""

from __future__ import annotations

from pipeline.cli import run_stage
from pipeline.settings import Config


def main(cfg: Config) -> None:
    """Write the designs, and print them."""
    from evaluation.designs import deliver  # here, so that --help does not wait for torch
    from pipeline.files import relative_name

    designs = deliver(cfg)
    for design in designs:
        value, site = design.delta_g_dft_ev, design.sites[0].site
        print(f"{design.name}: ΔG_H {value:+z.2f} eV at {site}, E_hull {design.row.e_above_hull_ev:.2f} eV/atom")
    print(f"{len(designs)} designs are in {relative_name(cfg.loop.designs_dir)}")


if __name__ == "__main__":
    sections = ("run", "loop", "evaluation", "dimenet", "denoiser", "dataset")
    raise SystemExit(run_stage(main, __doc__, sections, resumes_in="loop.output_dir"))
