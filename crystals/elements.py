"""Properties of the elements."""

from __future__ import annotations

import torch


def element_descriptors() -> torch.Tensor:
    """(119, D) descriptors of the elements, row Z: group and period (one-hot), electronegativity, ionisation energy, covalent
    radius, valence electrons by shell. Standardised over the first 96 elements, so that an element absent from training is still
    placed near its relatives. Row 0 is unused."""
    import warnings

    from ase.data import covalent_radii
    from pymatgen.core import Element

    rows = torch.zeros(119, 31, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns for every noble gas that it has no electronegativity
        for number in range(1, 119):
            element = Element.from_Z(number)
            group, period = int(element.group), int(element.row)
            electronegativity = float(element.X)
            ionisation = float(element.ionization_energy or 0.0)
            is_f = element.is_lanthanoid or element.is_actinoid
            rows[number, group - 1] = 1
            rows[number, 18 + period - 1] = 1
            rows[number, 25:] = torch.tensor(
                [
                    electronegativity if electronegativity == electronegativity else 0.0,
                    ionisation,
                    float(covalent_radii[number]),
                    float(min(group, 2)),
                    float(group - 2 if 3 <= group <= 12 else group - 12 if group > 12 else 0),
                    float(number - (57 if number < 80 else 89)) if is_f else 0.0,
                ],
                dtype=torch.float64,
            )
    known = rows[1:97]
    return ((rows - known.mean(0)) / known.std(0).clamp(min=0.05)).clamp(-4, 4)
