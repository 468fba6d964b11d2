"""Compiles the loops that numba keeps on disk, so that the first run does not have to: a part of the installation.

    python -m scripts.compile_loops

Each network and each potential that a run asks for sees one small sheet. Elsewhere, and after a change of a loop, the first process
that needs it compiles it.
"""

from __future__ import annotations

import argparse
import time

import torch

from crystals.prototypes import trigonal_prismatic
from energetics.potentials import load_potential
from pipeline.errors import StageError
from pipeline.settings import EvaluationConfig
from scripts.benchmark_messages import works


def main() -> None:
    """Compile, and say how long it took."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    started, settings = time.monotonic(), EvaluationConfig()
    parts = works(2)
    for name in ("noise", "moves", "elements"):
        parts[name][0]()
    sheet = trigonal_prismatic("Mo", "S")
    for name in (settings.potential, settings.second_potential):
        try:
            potential = load_potential(name)
        except StageError as error:
            print(f"loops of {name} were not compiled: {error}")
            continue
        sheet.calc = potential.calculator
        sheet.get_forces()
    print(f"loops compiled in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
