"""Computes the scores of one candidate from its energies."""

from __future__ import annotations

import math

import numpy as np

BOLTZMANN_EV_PER_K = 8.617333e-5
ROOM_TEMPERATURE_K = 298.15


def stability_score(e_form: float, e_ref: float) -> float:
    """Return exp(−max(0, E_form − E_ref)), one term of Score_stab; NaN where E_form is NaN. Energies in eV/atom."""
    return math.exp(-max(0.0, e_form - e_ref)) if not math.isnan(e_form) else math.nan


def composite_score(delta_g: float, stab: float, p_synth: float) -> float:
    """Return 0.4·max(0, 1−2|ΔG_H|) + 0.3·stab + 0.3·P_synth, ΔG_H in eV; NaN where a part is NaN."""
    return 0.4 * max(0.0, 1.0 - 2.0 * abs(delta_g)) + 0.3 * stab + 0.3 * p_synth if not math.isnan(delta_g) else math.nan


def log_exchange_current(delta_g: np.ndarray) -> np.ndarray:
    """Return log10 of i0(ΔG_H) / i0(0), the HER volcano at 298 K; ΔG_H in eV.

    Nørskov et al., J. Electrochem. Soc. 152, J23 (2005): i0 = e k0 / (1 + exp(−ΔG/kT)) for ΔG < 0 and
    e k0 exp(−ΔG/kT) / (1 + exp(−ΔG/kT)) for ΔG > 0; the rate constant k0 cancels in the ratio.
    """
    x = np.abs(np.asarray(delta_g, dtype=float)) / (BOLTZMANN_EV_PER_K * ROOM_TEMPERATURE_K)
    with np.errstate(invalid="ignore"):  # NaN, a missing value, stays NaN
        return (math.log(2.0) - np.logaddexp(0.0, x)) / math.log(10.0)
