"""The shipped networks give on a GPU what they give on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crystals.cif import read_cif
from crystals.validity import standardise
from energetics.hydrogen import HydrogenPredictor
from energetics.sites import add_hydrogen, adsorption_sites, h_supercell
from generation.sampling import sheets_to_batch
from geo_utils import Sheet, primitive_sheet
from models import load_denoiser

ROOT = Path(__file__).resolve().parent.parent.parent
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")


@pytest.fixture(scope="module")
def sheets():
    """Sheets of several families."""
    paths = sorted((ROOT / "data" / "random_decoration").glob("*.cif"))[:6]
    return [standardise(read_cif(path, 200), 10.0)[0] for path in paths]


def dimenet_energies(sheets: list, device: str, dtype: torch.dtype) -> np.ndarray:
    """ΔE_H (members, n) eV of the shipped DimeNet++ with H at the first site of every sheet."""
    predictor = HydrogenPredictor.load(ROOT / "weights" / "dimenet.pth", device)
    predictor.members = [member.to(dtype) for member in predictor.members]
    structures = []
    for atoms in sheets:
        sheet = primitive_sheet(atoms)
        structures.append(add_hydrogen(sheet, adsorption_sites(sheet)[0], h_supercell(sheet, 5.0)))
    return predictor.member_delta_e(structures)


def denoiser_outputs(sheets: list, device: str, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Noise estimates, with and without conditions, and heads of the shipped denoiser at three times."""
    model, _ = load_denoiser(ROOT / "weights" / "denoiser.pth", "", device)
    model = model.to(dtype)
    batch = sheets_to_batch([Sheet.from_atoms(atoms) for atoms in sheets], dtype).to(device)
    cell = torch.as_tensor(np.stack([Sheet.from_atoms(atoms).lattice for atoms in sheets])).to(device, dtype)
    found = {}
    with torch.no_grad():
        for t in (1, 200, model.schedule.num_timesteps):
            time = torch.full((batch.num_graphs,), t, dtype=torch.long, device=device)
            encoded = model.encode(batch.atomic_numbers, batch.frac_coords, batch.heights, cell, batch.batch, time)
            zero = torch.zeros_like(encoded.alpha_bar)
            parts = {
                "free": model.noise(encoded),
                "conditional": model.noise(encoded, zero, zero),
                "heads": model.properties(encoded),
            }
            for name, values in parts.items():
                found |= {f"{name}.{key} at {t}": value.cpu().double().numpy() for key, value in vars(values).items()}
    return found


@needs_gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dimenet_energies_agree(sheets, dtype):
    expected, found = (dimenet_energies(sheets, where, dtype) for where in ("cpu", "cuda"))
    assert expected.shape[1] == len(sheets) and np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@needs_gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_noise_estimates_and_heads_agree(sheets, dtype):
    compare_outputs(*(denoiser_outputs(sheets, where, dtype) for where in ("cpu", "cuda")), TOLERANCE[dtype])


def compare_outputs(expected: dict, found: dict, tolerance: float) -> None:
    assert len(expected) == 27 and expected.keys() == found.keys()
    for name, values in expected.items():
        assert np.abs(values).max() > 0, name
        np.testing.assert_allclose(found[name], values, atol=tolerance, rtol=tolerance, err_msg=name)


def test_single_precision_stays_close_to_double(sheets):
    """What a GPU in single precision may differ by, measured where there is none."""
    single, double = (dimenet_energies(sheets, "cpu", dtype) for dtype in (torch.float32, torch.float64))
    assert double.shape[1] == len(sheets) and np.ptp(double) > 0.1
    np.testing.assert_allclose(single, double, atol=1e-3)


def test_denoiser_in_single_precision_stays_close_to_double(sheets):
    compare_outputs(*(denoiser_outputs(sheets, "cpu", dtype) for dtype in (torch.float64, torch.float32)), 1e-3)
