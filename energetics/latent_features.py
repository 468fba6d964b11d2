"""What SevenNet has learnt of the surroundings of atoms, as a descriptor: how H changes it tells where the potential errs.

The energy of an atom is a function of the scalar features behind the last interaction, and those behind the earlier ones see
smaller surroundings. Their sums over the atoms are extensive as the energy is, so that what H adds to them is a property of the
adsorption alone: the sheet far from H cancels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms

PERIODIC = (True, True, False)


def has_latent_features(potential: Any) -> bool:
    """Return whether ``latent_features`` knows the network of a potential; what has no calculator has no network."""
    calculator = getattr(potential, "calculator", None)
    return bool(_interactions(calculator))


def latent_features(atoms: Atoms, potential: Any) -> np.ndarray:
    """Return the scalar features behind every interaction of a SevenNet model, summed over the atoms.

    Args:
        atoms: a sheet.
        potential: a ``potentials.Potential`` with SevenNet's calculator.

    Returns:
        (interactions × channels,) float64.
    """
    calculator = potential.calculator
    sheet = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=PERIODIC)
    with _recording(calculator) as found:
        calculator.calculate(sheet, ["energy"])
    return np.concatenate([scalars.sum(0) for scalars in found.values()])


def latent_change(with_h: Atoms, sheet: Atoms, potential: Any, repeats: int = 1) -> np.ndarray:
    """Return what H adds to ``latent_features``.

    Args:
        with_h: sheet and H.
        sheet: the cell without H, or the primitive one.
        potential: as for ``latent_features``.
        repeats: how many of ``sheet`` make up the cell with H.
    """
    return latent_features(with_h, potential) - repeats * latent_features(sheet, potential)


def _interactions(calculator: Any) -> dict[str, Any]:
    """Return the modules behind which the features are those of an interaction, by name; none for another calculator."""
    model = getattr(calculator, "model", None)
    if model is None or not hasattr(calculator, "sevennet_config"):
        return {}
    return {name: layer for name, layer in model.named_children() if hasattr(layer, "gate")}


@contextmanager
def _recording(calculator: Any) -> Iterator[dict[str, np.ndarray]]:
    """Yield a dictionary that the next evaluation fills: name of the module -> its scalar features (N, channels)."""
    found: dict[str, np.ndarray] = {}

    def record(name: str, layer: Any, given: Any, data: dict[str, Any]) -> None:
        features = data["x"]
        scalars = features[0][:, 0] if isinstance(features, list) else features[:, : layer.gate.irreps_scalars.dim]
        found[name] = scalars.detach().cpu().numpy().astype(float)

    with ExitStack() as stack:
        for name, layer in _interactions(calculator).items():
            stack.callback(layer.register_forward_hook(partial(record, name)).remove)
        yield found
