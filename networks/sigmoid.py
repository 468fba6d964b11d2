"""The logistic function in loops that numba compiles, whose own exponential is computed for one number at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

HALF = np.float32(0.5)
# tanh(x) = x P(x²) / Q(x²) within the rounding of single precision, as Eigen has it (Eigen/src/Core/MathFunctionsImpl.h).
LARGEST = np.float32(7.90531110763549805)
P0, P1, P2, P3, P4, P5, P6 = (
    np.float32(x)
    for x in (
        4.89352455891786e-03,
        6.37261928875436e-04,
        1.48572235717979e-05,
        5.12229709037114e-08,
        -8.60467152213735e-11,
        2.00018790482477e-13,
        -2.76076847742355e-16,
    )
)
Q0, Q1, Q2, Q3 = (np.float32(x) for x in (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06))


def of_single(value: float) -> float:
    """Return 1 / (1 + exp(−x)) to 1e-7, for numbers of single precision."""
    x = min(max(HALF * value, -LARGEST), LARGEST)
    y = x * x
    above = x * (P0 + y * (P1 + y * (P2 + y * (P3 + y * (P4 + y * (P5 + y * P6))))))
    return HALF + HALF * above / (Q0 + y * (Q1 + y * (Q2 + y * Q3)))


def of_double(value: float) -> float:
    """Return 1 / (1 + exp(−x))."""
    return 1 / (1 + np.exp(-value))


@lru_cache(maxsize=2)
def sigmoid(dtype: torch.dtype) -> Callable[[float], float]:
    """Return the function for numbers of a kind, which loops may call.

    It is no compiled function itself: numba would keep the loops that call one for this process alone.
    """
    from numba.extending import register_jitable

    return register_jitable(of_double if dtype == torch.float64 else of_single)
