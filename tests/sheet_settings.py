"""The same sheet written in other ways, for tests of what belongs to the crystal alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms


def settings_of(atoms: Atoms, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield a sheet in six settings: as it is, shifted, turned over, rotated in another order, in another basis, and 2 x 2."""
    yield atoms
    shifted = atoms.copy()
    shifted.positions += rng.random(3) @ (atoms.cell.array * [[1], [1], [0]])
    shifted.wrap()
    yield shifted
    over = atoms.copy()
    over.positions *= [1, 1, -1]
    over.cell = over.cell.array * [[1, 1, -1]]
    over.cell[2] *= -1
    over.center(axis=2)
    yield over
    turned = atoms[rng.permutation(len(atoms))]
    turned.rotate(37.0, "z", rotate_cell=True)
    yield turned
    other = atoms.copy()
    other.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]]) @ atoms.cell.array)
    other.wrap()
    yield other
    yield atoms.repeat((2, 2, 1))
