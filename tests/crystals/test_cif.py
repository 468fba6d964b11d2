"""Reading CIFs."""

from __future__ import annotations

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.spacegroup import crystal
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.operations import SymmOp
from pymatgen.io.ase import AseAtomsAdaptor
from simple_judges import GOOD, MALFORMED

from crystals import cif, cif_symmetry


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


def written(cell, group: str, sites: str, formula: str = "") -> str:
    """A CIF of cell parameters, lines that state the space group, and sites such as "Fe 0 0 0"."""
    tags = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = ["data_x", *(f"_cell_{tag} {value}" for tag, value in zip(tags, cell, strict=True)), *group.split("; ")]
    lines += [f"_chemical_formula_sum '{formula}'"] if formula else []
    lines += ["loop_", "_atom_site_label", *(f"_atom_site_fract_{axis}" for axis in "xyz"), *sites.split("; ")]
    return "\n".join(lines) + "\n"


def read(tmp_path, text: str) -> Atoms:
    (tmp_path / "x.cif").write_text(text)
    return cif.read_cif(tmp_path / "x.cif")


def same(first: Atoms, second: Atoms) -> bool:
    matcher = StructureMatcher(ltol=0.001, stol=0.001, angle_tol=0.01, primitive_cell=False, scale=False)
    return len(first) == len(second) and matcher.fit(*map(AseAtomsAdaptor.get_structure, (first, second)))


# Two sheets by ASE's tables, in both origins: PbO-type (129) and FeOCl-type (59).
TETRAGONAL, RECTANGULAR = (3.9, 3.9, 22.0, 90, 90, 90), (3.3, 3.9, 21.0, 90, 90, 90)
PBO = {1: [("Sn", (0, 0.5, 0.055)), ("O", (0, 0, 0))], 2: [("Sn", (0.25, 0.25, 0.055)), ("O", (0.75, 0.25, 0))]}
FEOCL = {
    1: [("Fe", (0, 0.5, 0.045)), ("O", (0, 0, 0.022)), ("Cl", (0, 0, 0.12))],
    2: [("Fe", (0.25, 0.75, 0.045)), ("O", (0.25, 0.25, 0.022)), ("Cl", (0.25, 0.25, 0.12))],
}
SHEETS = {129: (TETRAGONAL, PBO, 4), 59: (RECTANGULAR, FEOCL, 6)}
STATED = {
    "colon": "_space_group_name_H-M_alt '{name} :{origin}'",
    "colon, no spaces": "_symmetry_space_group_name_H-M {short}:{origin}",
    "letter": "_symmetry_space_group_name_H-M '{name} {letter}'",
    "code": "_space_group_name_H-M_alt '{name}'; _space_group_IT_coordinate_system_code {origin}",
    "number and code": "_space_group_IT_number {number}; _space_group_IT_coordinate_system_code {origin}",
    "Hall symbol": "_space_group_name_Hall '{hall}'",
    "Hall symbol beside the name": "_space_group_name_Hall '{hall}'; _space_group_name_H-M_alt '{name}'",
    "name alone": "_symmetry_space_group_name_H-M '{name}'; _symmetry_Int_Tables_number {number}",
    "number alone": "_symmetry_Int_Tables_number {number}",
}
NAMES = {129: ("P 4/n m m", ("P 4ab 2ab -1ab", "-P 4a 2a")), 59: ("P m m n", ("P 2 2ab -1ab", "-P 2ab 2a"))}


@pytest.mark.parametrize("how", STATED)
@pytest.mark.parametrize("origin", [1, 2])
@pytest.mark.parametrize("number", SHEETS)
def test_the_origin_is_the_one_that_the_file_means(tmp_path, number, origin, how):
    cell, listed, count = SHEETS[number]
    name, halls = NAMES[number]
    symbols, basis = zip(*listed[origin], strict=True)
    expected = crystal(symbols, basis, spacegroup=number, setting=origin, cellpar=cell)
    assert len(expected) == count
    group = STATED[how].format(
        name=name, short=name.replace(" ", ""), origin=origin, letter="SZ"[origin - 1], number=number, hall=halls[origin - 1]
    )
    sites = "; ".join(f"{symbol} {x} {y} {z}" for symbol, (x, y, z) in listed[origin])
    atoms = read(tmp_path, written(cell, group, sites))
    assert same(atoms, expected)
    assert spglib.get_spacegroup((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), 1e-3).endswith(f"({number})")


def test_an_origin_that_nothing_tells_is_refused(tmp_path):
    """One kind of atom, far apart in both origins."""
    text = written((14, 14, 20, 90, 90, 90), "_symmetry_space_group_name_H-M 'P 4/n m m'", "C 0.1 0.2 0.3")
    with pytest.raises(cif.UnreadableCif, match=r"space group without its origin \(P 4/n m m :1 or P 4/n m m :2\)"):
        read(tmp_path, text)


def test_the_stated_formula_tells_the_origin(tmp_path):
    """Atoms are far apart in both origins, but MgO4 in one and MgO2 in the other."""
    cell, group = (14.0, 14.0, 20.0, 90, 90, 90), "_symmetry_space_group_name_H-M 'P 4/n m m'"
    sites = "Mg 0 0 0.2; O 0.3 0.4 0.4"
    counts = {}
    for origin in (1, 2):
        atoms = crystal(["Mg", "O"], [(0, 0, 0.2), (0.3, 0.4, 0.4)], spacegroup=129, setting=origin, cellpar=cell)
        counts[origin] = atoms.get_chemical_formula()
        assert same(read(tmp_path, written(cell, group, sites, atoms.get_chemical_formula())), atoms)
    assert counts[1] != counts[2]


@pytest.mark.parametrize("name", ["R -3 m", "R -3 m :R", "R-3mR", "R -3 m r", "166"])
def test_rhombohedral_axes(tmp_path, name):
    cell = (6.2, 6.2, 6.2, 35.0, 35.0, 35.0)
    tag = "_symmetry_Int_Tables_number" if name == "166" else "_symmetry_space_group_name_H-M"
    atoms = read(tmp_path, written(cell, f"{tag} '{name}'", "Cd 0 0 0; Br 0.26 0.26 0.26"))
    assert same(atoms, Atoms("CdBr2", scaled_positions=[[0, 0, 0], [0.26] * 3, [-0.26] * 3], cell=cell, pbc=True))


@pytest.mark.parametrize("name", ["R -3 m", "R -3 m :H", "R-3mH", "166"])
def test_hexagonal_axes_of_a_rhombohedral_group(tmp_path, name):
    cell = (3.9, 3.9, 19.0, 90, 90, 120)
    tag = "_symmetry_Int_Tables_number" if name == "166" else "_symmetry_space_group_name_H-M"
    atoms = read(tmp_path, written(cell, f"{tag} '{name}'", "Cd 0 0 0; Br 0 0 0.26"))
    assert same(atoms, crystal(["Cd", "Br"], [(0, 0, 0), (0, 0, 0.26)], spacegroup=166, setting=1, cellpar=cell))
    assert len(atoms) == 9


@pytest.mark.parametrize("name", ["R -3 m :H", "R -3 m :R", "P -6 m 2"])
def test_a_cell_of_other_axes_is_refused(tmp_path, name):
    cell = (6.2, 6.2, 6.2, 35.0, 35.0, 35.0) if name.endswith("H") else (3.9, 3.9, 19.0, 90, 90, 60 if "6" in name else 120)
    with pytest.raises(cif.UnreadableCif, match="cell without the symmetry of its space group"):
        read(tmp_path, written(cell, f"_symmetry_space_group_name_H-M '{name}'", "Cd 0 0 0; Br 0.1 0.2 0.3"))


def test_the_unique_axis_is_that_of_the_cell(tmp_path):
    """P 2 without its axis: the angle that is not 90° tells it."""
    for angles, image in [
        ((90, 100, 90), [-0.1, 0.2, -0.3]),
        ((90, 90, 100), [-0.1, -0.2, 0.3]),
        ((90, 90, 90), [-0.1, 0.2, -0.3]),
    ]:
        atoms = read(tmp_path, written((7, 8, 9, *angles), "_symmetry_space_group_name_H-M 'P 2'", "C 0.1 0.2 0.3"))
        assert same(atoms, Atoms("C2", scaled_positions=[[0.1, 0.2, 0.3], image], cell=(7, 8, 9, *angles), pbc=True))


def _key(rotation, translation) -> tuple:
    return (*np.round(rotation).astype(int).ravel(), *(np.round(np.asarray(translation) * 24).astype(int) % 24))


def test_operations_are_those_of_spglib():
    """Every one of spglib's 530 settings, by its Hall symbol, has the same operations and number here."""
    ours = {}
    for setting in cif_symmetry.settings():
        ours.setdefault(setting.hall, setting)
    missing = []
    for hall_number in range(1, 531):
        kind = spglib.get_spacegroup_type(hall_number)
        setting = ours.get(kind.hall_symbol.lower())
        if setting is None:
            missing.append(kind.hall_symbol)
            continue
        theirs = spglib.get_symmetry_from_database(hall_number)
        operations = [SymmOp.from_xyz_str(text) for text in setting.operations]
        assert {_key(o.rotation_matrix, o.translation_vector) for o in operations} == {
            _key(r, t) for r, t in zip(theirs["rotations"], theirs["translations"], strict=True)
        }, setting.name
        assert setting.number == kind.number
    assert len(missing) <= 10, missing


@pytest.mark.parametrize("number", range(1, 231))
def test_the_usual_names_of_every_group_mean_it(number):
    """The standard symbols, short and full, as spglib writes them, and those of before 1992 lead to the group's own number."""
    kind = next(k for h in range(1, 531) if (k := spglib.get_spacegroup_type(h)).number == number)
    for name in (kind.international_short, kind.international.split("=")[-1].strip(), kind.international_short.replace("_", "")):
        found = cif_symmetry.possible_settings({"_space_group_name_H-M_alt": name, "_space_group_IT_number": str(number)})
        order = len(spglib.get_symmetry_from_database(kind.hall_number)["rotations"])
        assert len(found[0].operations) == order, name


@pytest.mark.parametrize(
    ("name", "number"),
    [("P2(1)/c", 14), ("Cmce", 64), ("Cmca", 64), ("Pm3m", 221), ("F d 3 m Z", 227), ("P b n m", 62), ("P-31m", 162)],
)
def test_other_spellings_of_names(name, number):
    found = cif_symmetry.possible_settings({"_symmetry_space_group_name_H-M": name})
    assert {setting.number for setting in found} == {number}


@pytest.mark.parametrize("digits", [3, 4, 6])
def test_images_within_two_hundredths_of_an_angstrom_are_one(tmp_path, digits):
    """And they become their mean, which lies on the symmetry element: the sheet has its full symmetry at a tight tolerance."""
    third, two_thirds = f"{1 / 3:.{digits}f}", f"{2 / 3:.{digits}f}"
    text = written(
        (3.2, 3.2, 20, 90, 90, 120),
        "_space_group_name_H-M_alt 'P -6 m 2'",
        f"Mo {third} {two_thirds} 0; S {two_thirds} {third} 0.078",
    )
    atoms = read(tmp_path, text)
    assert atoms.get_chemical_formula() == "MoS2"
    found = spglib.get_spacegroup((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), 1e-5)
    assert found == "P-6m2 (187)"


@pytest.mark.parametrize(("height", "count"), [(0.009, 1), (0.011, 2)])
def test_images_further_apart_are_two(tmp_path, height, count):
    """A site ``height`` Å above a mirror, 2·height from its image."""
    text = written((4, 4, 20, 90, 90, 90), "_space_group_name_H-M_alt 'P 1 1 m'", f"C 0.1 0.2 {height / 20}")
    assert len(read(tmp_path, text)) == count
