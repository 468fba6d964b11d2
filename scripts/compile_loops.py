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
from generation.elements import CONDITIONS, new_element_denoiser
from generation.refinement import new_refiner, padded
from geo_utils import Sheet
from models import DenoiserModelConfig, DenoisingEGNN
from networks.element_denoiser import ElementDenoiserConfig
from networks.sheet_trunk import TrunkConfig
from pipeline.errors import StageError
from pipeline.settings import EvaluationConfig


@torch.no_grad()
def ask_networks(sheet: Sheet) -> None:
    """Let a denoiser, a refiner and a denoiser of elements, untrained, look at a sheet in single precision."""
    state, denoiser = padded([sheet]), DenoisingEGNN(DenoiserModelConfig()).eval()
    given = state.atomic_numbers[0], state.frac_coords[0], state.heights[0], state.cell, torch.zeros(len(sheet), dtype=torch.long)
    denoiser.noise(denoiser.encode(*given, torch.tensor([500])))
    new_refiner(TrunkConfig()).eval()(state)
    elements = new_element_denoiser(ElementDenoiserConfig(conditions=CONDITIONS)).eval()
    elements(state, torch.zeros_like(state.atomic_numbers), torch.zeros(1, len(CONDITIONS)))


def main() -> None:
    """Compile, and say how long it took."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    started, settings = time.monotonic(), EvaluationConfig()
    sheet = trigonal_prismatic("Mo", "S")
    ask_networks(Sheet.from_atoms(sheet))
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
