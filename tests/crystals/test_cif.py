"""Reading CIFs."""

from __future__ import annotations

import numpy as np
import pytest
from simple_judges import GOOD, MALFORMED

from crystals import cif


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_cifs_are_named(tmp_path, kind):
    content, expected = MALFORMED[kind]
    path = tmp_path / f"{kind}.cif"
    path.write_bytes(content)
    with pytest.raises(cif.UnreadableCif, match=expected):
        cif.read_cif(path)


def test_good_cif_is_read_exactly(tmp_path):
    path = tmp_path / "good.cif"
    path.write_text(GOOD)
    atoms = cif.read_cif(path)
    assert atoms.get_chemical_formula() == "MoS2"
    np.testing.assert_allclose(atoms.cell.lengths(), [3.18, 3.18, 23.0], atol=1e-6)
