"""The two formulas of the hydrogen evolution reaction: adsorption energy ΔE_H and free energy ΔG_H of one H on a sheet."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Energy = TypeVar("Energy", float, np.ndarray)

TEMPERATURE_K = 298.15
H2_ENTROPY_J_PER_MOL_K = 130.680  # of the gas at 298.15 K and 1 bar: Cox, Wagman, Medvedev, CODATA Key Values (1989)
H2_ZERO_POINT_EV = 0.2702  # 2179.3 cm⁻¹: Irikura, J. Phys. Chem. Ref. Data 36, 389 (2007)
AVOGADRO_PER_MOL, ELECTRON_VOLT_J = 6.02214076e23, 1.602176634e-19  # exact in the SI of 2019


def adsorption_energy(with_hydrogen: float, clean: float, h2: float) -> float:
    """Return ΔE_H = E(sheet+H) − E(sheet) − ½ E(H2), eV; negative where the sheet binds H more strongly than H2 does.

    Args:
        with_hydrogen: energy of the cell with one H, eV.
        clean: energy of the same cell without it, eV.
        h2: energy of one H2 molecule, eV; all three by one method.
    """
    return with_hydrogen - (clean + 0.5 * h2)


def free_energy(delta_e: Energy, correction: float) -> Energy:
    """Return ΔG_H = ΔE_H + ΔE_ZPE − T ΔS_H, eV. Where it is zero, H is bound neither too weakly nor too strongly.

    Nørskov et al., J. Electrochem. Soc. 152, J23 (2005).

    Args:
        delta_e: ΔE_H, eV, a number or an array.
        correction: ΔE_ZPE − T ΔS_H, eV: zero-point energy and entropy at 298 K (setting ``dataset.her_correction_ev``).
    """
    return delta_e + correction


def entropy_term(temperature_k: float = TEMPERATURE_K) -> float:
    """Return −T ΔS_H, eV: H loses half the entropy of a molecule of H2 at 1 bar, and that of adsorbed H is neglected.

    Nørskov et al., J. Electrochem. Soc. 152, J23 (2005), make the same approximation. temperature_k: K, near 298.15 K, where the
    entropy of H2 is tabulated.
    """
    return 0.5 * temperature_k * H2_ENTROPY_J_PER_MOL_K / (AVOGADRO_PER_MOL * ELECTRON_VOLT_J)
