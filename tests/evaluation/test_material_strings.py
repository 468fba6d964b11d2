"""Material strings, CSLLM's prompt and the embedded model's tokens."""

import math

import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Structure
from sheet_settings import settings_of
from small_language_models import mos2

from evaluation import material_strings


def test_string_of_a_2h_monolayer_by_hand():
    # P-6m2 with the mirror plane at z = 1/2: the metal on 1b, 1d or 1f, both S on 2g, 2h or 2i at z = 1/2 ± (3.17/2)/23.17.
    string = material_strings.material_string(mos2())
    header, _, sites = string.text.partition("| (")
    assert header == "187 |3.160,3.160,23.170,90.00,90.00,120.00"
    assert (string.spacegroup, string.tolerance, string.is_sheet) == (187, 1e-3, True)
    metal, chalcogen = ("(" + sites).split("->")
    assert metal in (
        "(Mo-1b[0.  0.  0.5])",
        "(Mo-1d[0.33333333 0.66666667 0.5       ])",
        "(Mo-1f[0.66666667 0.33333333 0.5       ])",
    )
    assert chalcogen[:4] == "(S-2" and chalcogen[4] in "ghi"
    z = float(chalcogen.rstrip("])").split()[-1])
    assert abs(abs(z - 0.5) - 1.585 / 23.17) < 1e-7
    assert metal[5] != {"g": "b", "h": "d", "i": "f"}[chalcogen[4]]  # trigonal prism: S is not on top of the metal


def test_prompt_is_csllms():
    text = "225 |6.118,6.118,6.118,90.00,90.00,90.00| (Be-4b[0.5 0.5 0.5])"
    assert material_strings.question(text) == f'Can this material structure be synthesized "{text}"?'
    assert material_strings.prompt(text, "True") == f'Input: Can this material structure be synthesized "{text}"? \n Output: True'
    assert material_strings.prompt(text) + " True" == material_strings.prompt(text, "True")


def test_bulk_keeps_its_cell_and_csllms_published_example_is_reproduced():
    # The example printed in CSLLM's repository: 225 |6.118,...| (Be-4b[0.5 0.5 0.5])->(In-4a[0. 0. 0.])->(Ru-8c[0.25 0.25 0.25])
    lattice = np.eye(3) * 6.118
    fcc = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    frac = np.concatenate([fcc + 0.5, fcc, fcc + 0.25, fcc + 0.75]) % 1
    string = material_strings.material_string(Structure(lattice, ["Be"] * 4 + ["In"] * 4 + ["Ru"] * 8, frac))
    assert not string.is_sheet
    assert string.text.startswith("225 |6.118,6.118,6.118,90.00,90.00,90.00| ")
    assert "(Ru-8c[0.25 0.25 0.25])" in string.text
    assert {"(Be-4b[0.5 0.5 0.5])", "(In-4a[0. 0. 0.])"} <= set(string.text.split("| ")[1].split("->")) or {
        "(Be-4a[0. 0. 0.])",
        "(In-4b[0.5 0.5 0.5])",
    } <= set(string.text.split("| ")[1].split("->"))


@pytest.mark.parametrize("vacuum", [6.0, 10.0, 17.5])
def test_string_does_not_depend_on_the_export(vacuum):
    expected = material_strings.material_string(mos2())
    moved = mos2(vacuum)
    moved.positions[:, 2] += moved.cell[2, 2] / 2 - 0.3  # cut by the boundary
    moved.pbc = True
    moved.wrap()
    moved = moved[[2, 0, 1]]
    found = material_strings.material_string(moved)
    assert found.text.split("| ")[0] == expected.text.split("| ")[0]
    assert found.is_sheet


def test_vacuum_along_another_axis_gives_the_same_lattice():
    atoms = mos2()
    order = [2, 0, 1]
    scaled = atoms.get_scaled_positions()[:, order]
    turned = Atoms(atoms.numbers, cell=atoms.cell.array[order], scaled_positions=scaled, pbc=True)
    assert material_strings.material_string(turned).text.split("| ")[0] == "187 |3.160,3.160,23.170,90.00,90.00,120.00"


@pytest.mark.parametrize(("stdev", "tolerance"), [(0.0, 1e-3), (0.001, 1e-2), (0.01, 1e-1)])
def test_rattled_sheet_falls_to_a_coarser_tolerance_and_says_so(stdev, tolerance):
    atoms = mos2().repeat((2, 1, 1))
    atoms.rattle(stdev, seed=3)
    string = material_strings.material_string(atoms)
    assert (string.spacegroup, string.tolerance) == (187, tolerance)


def test_p1_is_p1():
    rng = np.random.default_rng(0)
    atoms = Atoms(
        "MoSSeTe", positions=rng.random((4, 3)) * [3.5, 4.1, 3.0] + [0, 0, 10], cell=[3.5, 4.1, 23], pbc=(True, True, False)
    )
    string = material_strings.material_string(atoms)
    assert string.spacegroup == 1 and string.text.startswith("1 |") and string.text.count("->") == 3


def test_pyxtal_refusing_is_labelled(monkeypatch):
    from pyxtal import pyxtal

    def refuse(*args, **kwargs):
        raise RuntimeError("Cannot extract the mapping from spglib")

    monkeypatch.setattr(pyxtal, "_from_pymatgen", refuse)
    string = material_strings.material_string(mos2())
    assert string.spacegroup == 1 and math.isnan(string.tolerance) and string.text.count("1a[") == 3


@pytest.mark.parametrize("broken", ["empty", "flat", "nan", "partial"])
def test_no_string_without_a_crystal(broken):
    atoms = mos2()
    if broken == "empty":
        atoms = atoms[:0]
    elif broken == "flat":
        atoms.cell[2] = 0
    elif broken == "nan":
        atoms.positions[0, 0] = np.nan
    structure = Structure(np.eye(3) * 4, [{"Mo": 0.5, "W": 0.5}], [[0, 0, 0]]) if broken == "partial" else atoms
    with pytest.raises(ValueError):
        material_strings.material_string(structure)


def test_strings_of_equivalent_sheets_differ():
    """CSLLM's text depends on the setting; that is why a table of descriptors judges here."""
    texts = {material_strings.material_string(sheet).text for sheet in settings_of(mos2(), np.random.default_rng(1))}
    assert len(texts) > 1
