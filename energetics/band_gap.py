"""Computes the band gap of a sheet by GFN2-xTB, a semi-empirical tight-binding method: a descriptor of ``dft_correction.py``.

H that binds to a semiconductor gives its electron to the lowest unoccupied state, so that a wide gap makes adsorption costly
(Liu et al., Nature Energy 2, 17127 (2017)). Potentials have no electrons and miss this: they bind H to semiconducting 2H-MoS2 as
strongly as to metallic 1T-MoS2. GFN2-xTB: Bannwarth et al., J. Chem. Theory Comput. 15, 1652 (2019).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import math

import numpy as np
from ase import Atoms, units

log = logging.getLogger("her2d")

# tblite samples Γ alone. A repeated cell folds further k-points onto Γ: the 2 x 2 cell of a dichalcogenide has Γ and M, where the
# gaps of such small cells mostly lie. Longer cells gave no better correction and take many times as long.
MIN_LENGTH = 6.0  # Å
MAX_ATOMS = 120
MAX_ITERATIONS = 250
VACUUM = 10.0  # Å on each side
DECIMALS = 3


def is_installed() -> bool:
    """Return whether the tblite package is installed; it has no build for some platforms."""
    return importlib.util.find_spec("tblite") is not None


def identity() -> str:
    """Return the method and its version."""
    return f"GFN2-xTB at cells of {MIN_LENGTH:g} Å, tblite {importlib.metadata.version('tblite')}"


def band_gap(sheet: Atoms) -> float:
    """Return the gap between the highest occupied and the lowest unoccupied orbital, eV, rounded to 1e-3.

    Args:
        sheet: in the xy plane, without H.

    Returns:
        NaN for more than MAX_ATOMS atoms in the repeated cell, and where the charges do not become self-consistent.

    Raises:
        ImportError: tblite is not installed.
    """
    import tblite.interface
    from threadpoolctl import threadpool_limits

    repeats = [math.ceil(MIN_LENGTH / length - 1e-6) for length in sheet.cell.lengths()[:2]]
    if len(sheet) * repeats[0] * repeats[1] > MAX_ATOMS:
        return math.nan
    atoms = Atoms(sheet.numbers, sheet.positions, cell=sheet.cell).repeat((*repeats, 1))
    atoms.center(vacuum=VACUUM, axis=2)
    try:
        with threadpool_limits(1):
            calculator = tblite.interface.Calculator(
                "GFN2-xTB",
                atoms.numbers,
                atoms.positions / units.Bohr,
                lattice=atoms.cell.array / units.Bohr,
                periodic=np.full(3, True),
            )
            calculator.set("verbosity", 0)
            calculator.set("max-iter", MAX_ITERATIONS)
            result = calculator.singlepoint()
    except RuntimeError as error:
        log.debug("no band gap of %s: %s", sheet.get_chemical_formula(), error)
        return math.nan
    energies = np.sort(np.ravel(result.get("orbital-energies"))) * units.Hartree
    filled = round(float(np.sum(result.get("orbital-occupations"))) / 2)
    return round(float(energies[filled] - energies[filled - 1]), DECIMALS) + 0.0
