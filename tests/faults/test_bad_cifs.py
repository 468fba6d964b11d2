"""Files that are no good CIF, CIFs that are no sheet, and one sheet described in many ways."""

from __future__ import annotations

import csv
import math
import re

import numpy as np
import pytest
import simple_judges as simple
from ase import Atoms
from ase.build import bulk, molecule
from corpus import CELL, GOOD, LOOP, SETTINGS, SITES, cif_of, cif_of_atoms, is_short, judge, judged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crystals import cif, validity
from evaluation import evaluate

NO_NAME = LOOP.replace("_atom_site_type_symbol\n", "")


def operations(*texts: str) -> str:
    """The good CIF with these symmetry operations in place of its space group."""
    loop = "loop_\n_symmetry_equiv_pos_as_xyz\n" + "".join(f"'{text}'\n" for text in texts)
    return GOOD.replace("_symmetry_space_group_name_H-M 'P 1'\n", loop)


def with_column(name: str, value: str) -> str:
    """The good CIF with another column of atoms."""
    return CELL + LOOP + name + "\n" + "".join(f"{line} {value}\n" for line in SITES.splitlines())


def many_atoms(count: int) -> str:
    return CELL + LOOP + "".join(f"C{k} C {k / count:.7f} 0 0.5 1\n" for k in range(count))


# Content, and words of the reason for which the file is refused.
REFUSED: dict[str, tuple[str | bytes, str]] = {
    "empty": (b"", "empty file"),
    "spaces": (b" \r\n\t \n", "empty file"),
    "binary": (bytes(range(256)), "binary"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "binary"),
    "utf-16": (GOOD.encode("utf-16"), "binary"),
    "utf-32": (GOOD.encode("utf-32"), "binary"),
    "nul at the end": (GOOD.encode() + b"\0", "binary"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"\x03" * 30, "binary"),
    "prose": ("no crystal in here", "no CIF data block"),
    "html": ("<html><body>404 not found</body></html>", "no CIF data block"),
    "poscar": ("MoS2\n1.0\n3.18 0 0\n-1.59 2.75 0\n0 0 23\nMo S\n1 2\n", "no CIF data block"),
    "6 MB": (GOOD + "# filler\n" * 700_000, "larger than 5 MB"),
    "one line of 3 MB": (GOOD.replace("data_x\n", "data_x\n_title " + "'a" * 1_500_000 + "\n"), "line longer"),
    "100000 atoms": (many_atoms(100_000), "100000 atoms"),
    "text field without end": (GOOD.replace("data_x\n", "data_x\n_title\n;\n"), "a text field that does not end"),
    "no cell": ("data_x\n" + LOOP + SITES, "no unit cell"),
    "no atoms": (CELL, "no atoms"),
    "no rows": (CELL + LOOP, "not a readable CIF"),
    "cut in a row": (GOOD[:-24], "too few or too many"),
    "cut between rows": (
        GOOD.replace("data_x\n", "data_x\n_chemical_formula_sum 'Mo S2'\n")[: -len("S2 S 0.3333 0.6667 0.432 1\n")],
        "formula",
    ),
    "stray text": (GOOD + "that is all\n", "too few or too many"),
    "two crystals": (GOOD + GOOD.replace("data_x", "data_y"), "2 structures"),
    "two crystals of one name": (GOOD + GOOD.replace("Mo1 Mo", "W1 W"), "2 structures"),
    "cartesian": (GOOD.replace("_fract_", "_Cartn_"), "no atoms"),
    "atom outside a table": (
        CELL + "_atom_site_label C1\n_atom_site_fract_x 0.5\n_atom_site_fract_y 0\n_atom_site_fract_z 0\n",
        "no table",
    ),
    "nan length": (GOOD.replace("3.18", "nan"), "cell is not finite"),
    "infinite length": (GOOD.replace("_c 23", "_c inf"), "cell is not finite"),
    "unknown length": (GOOD.replace("_c 23", "_c ?"), "cell is not finite"),
    "decimal comma": (GOOD.replace("3.18", "3,18"), "cell is not finite"),
    "length missing": (GOOD.replace("_cell_length_b 3.18\n", ""), "cell is not finite"),
    "angle missing": (GOOD.replace("_cell_angle_gamma 120\n", ""), "_cell_angle_gamma missing"),
    "angles missing": (re.sub("_cell_angle.*\n", "", GOOD), "_cell_angle_alpha, _cell_angle_beta, _cell_angle_gamma missing"),
    "negative length": (GOOD.replace("_a 3.18", "_a -3.18"), "cell without volume"),
    "negative lengths": (GOOD.replace("3.18", "-3.18"), "cell without volume"),
    "zero length": (GOOD.replace("_c 23", "_c 0"), "cell without volume"),
    "tiny cell": (GOOD.replace("3.18", "0.01"), "cell without volume"),
    "angle 0": (GOOD.replace("gamma 120", "gamma 0"), "cell without volume"),
    "angle 180": (GOOD.replace("gamma 120", "gamma 180"), "cell without volume"),
    "angle 240": (GOOD.replace("gamma 120", "gamma 240"), "cell without volume"),
    "angles that never close": (GOOD.replace("alpha 90", "alpha 20").replace("beta 90", "beta 20"), "cell without volume"),
    "cell of a metre": (GOOD.replace("_c 23", "_c 1e10"), "longer than 1000"),
    "overflowing cell": (GOOD.replace("3.18", "1e300"), "longer than 1000"),
    "nan coordinate": (GOOD.replace("0.568", "nan"), "no finite number"),
    "infinite coordinate": (GOOD.replace("0.568", "inf"), "no finite number"),
    "word for a coordinate": (GOOD.replace("0.568", "half"), "no finite number"),
    "unknown coordinate": (GOOD.replace("0.568", "?"), "no finite number"),
    "dot for a coordinate": (GOOD.replace("0.568", "."), "no finite number"),
    "unicode minus": (GOOD.replace("0.432", "\u22120.568"), "no finite number"),
    "no-break space": (GOOD.replace("0.432 1", "0.432\u00a01"), "too few"),
    "unknown element": (GOOD.replace("Mo1 Mo", "Xx1 Xx"), "unknown element Xx"),
    "atom called X": (GOOD.replace("Mo1 Mo", "X1 X"), "unknown element X"),
    "three letters": (GOOD.replace("Mo1 Mo", "Uuo1 Uuo"), "unknown element Uuo"),
    "number for an element": (GOOD.replace("Mo1 Mo", "42 42"), "unknown element 42"),
    "vacancy": (GOOD.replace("Mo1 Mo", "Va1 Va"), "unknown element Va"),
    "water": (GOOD.replace("Mo1 Mo", "Wat1 Wat"), "unknown element Wat"),
    "label without an element": (CELL + NO_NAME + "Metal1 0 0 0.5 1\nS1 0.3333 0.6667 0.568 1\n", "unknown element Metal"),
    "cyrillic letter": (GOOD.replace("Mo1 Mo", "Co1 C\u043e"), "unknown element C"),
    "mixed site": (CELL + LOOP + "Mo1 Mo 0 0 0.5 0.5\nW1 W 0 0 0.5 0.5\n", "partial occupancy"),
    "vacancies": (GOOD.replace("0.568 1", "0.568 0.8"), "partial occupancy"),
    "occupancy 0": (GOOD.replace("0.568 1", "0.568 0"), "occupancy 0"),
    "occupancy below 0": (GOOD.replace("0.568 1", "0.568 -1"), "occupancy 0"),
    "occupancy 2": (GOOD.replace("0.568 1", "0.568 2"), "occupancy above 1"),
    "occupancy nan": (GOOD.replace("0.568 1", "0.568 nan"), "occupancy that is not a number"),
    "occupancy in words": (GOOD.replace("0.568 1", "0.568 full"), "occupancy that is not a number"),
    "occupancy unknown": (GOOD.replace("0.568 1", "0.568 ?"), "occupancy that is not a number"),
    "disorder groups": (with_column("_atom_site_disorder_group", "1"), "disordered"),
    "implicit hydrogen": (with_column("_atom_site_attached_hydrogens", "1"), "hydrogen atoms without positions"),
    "atom twice": (GOOD + "S3 S 0.3333 0.6667 0.432 1\n", "on top of each other"),
    "whole cells apart": (GOOD + "S3 S 1.3333 -0.3333 0.432 1\n", "on top of each other"),
    "unknown space group": (GOOD.replace("'P 1'", "'Q 7 7'"), "unknown space group Q 7 7"),
    "unknown group number": (GOOD.replace("name_H-M 'P 1'", "x 1\n_symmetry_Int_Tables_number 999"), "unknown space group 999"),
    "name and number of two groups": (
        GOOD.replace("name_H-M 'P 1'", "name_H-M 'P 3'\n_symmetry_Int_Tables_number 187"),
        "space group P 3 is not number 187",
    ),
    "hexagonal group, cell of 60 degrees": (
        GOOD.replace("gamma 120", "gamma 60").replace("'P 1'", "'P -6 m 2'"),
        "cell without the symmetry of its space group (P -6 m 2)",
    ),
    "hexagonal operations, cell of 60 degrees": (
        operations("x,y,z", "-y,x-y,z", "-x+y,-x,z").replace("gamma 120", "gamma 60"),
        "cell without the symmetry of its space group (operations as listed)",
    ),
    "unknown coordinate system": (
        GOOD.replace("name_H-M 'P 1'", "name_H-M 'R -3 m'\n_space_group_IT_coordinate_system_code 2"),
        "unknown coordinate system 2",
    ),
    "operation with another letter": (operations("x,y,w"), "not a symmetry operation"),
    "operation of two parts": (operations("x,y"), "not a symmetry operation"),
    "operation that projects": (operations("x,y,z", "x,y,x"), "not a symmetry operation"),
    "operation that divides by zero": (operations("x,y,z+1/0"), "not a symmetry operation"),
    "operation with code": (operations("x,y,__import__(os)"), "not a symmetry operation"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_cifs_say_why(tmp_path, kind):
    content, reason = REFUSED[kind]
    row = judged(tmp_path, content)
    assert row.status.startswith("unreadable: ") and reason in row.status and is_short(row.status)
    assert row.valid is None and row.hit is None and row.formula == "" and row.natoms == 0
    assert all(math.isnan(x) for x in (row.e_above_hull_ev, row.delta_g_h_ev, row.p_synth, row.score_stab))


def test_a_folder_of_them_is_counted_file_by_file(tmp_path):
    folder = tmp_path / "cifs"
    simple.write_cifs(folder, {"good": simple.sheet()})
    small = {kind: content for kind, (content, _) in REFUSED.items() if len(content) < 100_000}
    for kind, content in small.items():
        (folder / f"{kind}.cif").write_bytes(content.encode() if isinstance(content, str) else content)
    evaluation = evaluate.evaluate(folder, simple.judges(), SETTINGS, tmp_path / "out", "theirs")
    assert sorted(row.id for row in evaluation.rows) == sorted(["good", *small])
    assert evaluation.aggregates["rate_valid"].n == len(small) + 1
    assert evaluation.aggregates["rate_valid"].value == pytest.approx(1 / (len(small) + 1))
    with (tmp_path / "out" / "metrics.csv").open(encoding="utf-8", newline="") as handle:
        table = {row["id"]: row["status"] for row in csv.DictReader(handle)}
    assert all(table[kind].startswith("unreadable: ") for kind in small) and table["good"] == "ok"


def rounded(digits: int, *, named: bool = False) -> str:
    """The good sheet by its two symmetry-distinct atoms, with coordinates of few digits."""
    rotations = ("x,y,{}", "-y,x-y,{}", "-x+y,-x,{}", "-y,-x,{}", "-x+y,y,{}", "x,x-y,{}")
    text = operations(*(text.format(z) for text in rotations for z in ("z", "1-z")))
    if named:
        text = GOOD.replace("'P 1'", "'P -6 m 2'")
    text = text.replace("S2 S 0.3333 0.6667 0.432 1\n", "")
    if named:  # the mirror of the space group lies at z = 0 and 1/2
        assert "Mo1 Mo 0 0 0.5" in text
    return text.replace("0.3333 0.6667", f"{1 / 3:.{digits}f} {2 / 3:.{digits}f}")


# Spellings of the same sheet: each must be read, and judged as the plain one is.
SPELLINGS: dict[str, str | bytes] = {
    "byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "windows line ends": GOOD.replace("\n", "\r\n"),
    "old mac line ends": GOOD.replace("\n", "\r"),
    "latin-1 comment": ("# caf\xe9\n" + GOOD).encode("latin-1"),
    "unicode title": GOOD.replace("data_x\n", "data_x\n_publ_section_title 'MoS\u2082 \u2013 2H'\n"),
    "uncertainties": GOOD.replace("3.18", "3.18(2)").replace("0.568 1", "0.568(12) 1"),
    "charges": GOOD.replace("Mo1 Mo", "Mo1 Mo4+").replace("S1 S", "S1 S2-").replace("S2 S", "S2 S2-"),
    "small letters": GOOD.replace("Mo1 Mo", "mo1 mo"),
    "labels only": CELL + NO_NAME + "Mo1 0 0 0.5 1\nS1 0.3333 0.6667 0.568 1\nS2 0.3333 0.6667 0.432 1\n",
    "equal labels": GOOD.replace("S2 S", "S1 S"),
    "a block of text first": "data_global\n_journal_name 'x'\n" + GOOD,
    "occupancy 1.005": GOOD.replace("0.568 1", "0.568 1.005"),
    "whole cells away": GOOD.replace("0.568", "7.568").replace("Mo1 Mo 0 0", "Mo1 Mo -3 2"),
    "quoted numbers": GOOD.replace("3.18", "'3.18'"),
    "no space group": GOOD.replace("_symmetry_space_group_name_H-M 'P 1'\n", ""),
    "identity as operation": operations("x,y,z"),
    "three digits and every operation": rounded(3),
    "four digits and every operation": rounded(4),
    "three digits and the name": rounded(3, named=True),
    "capitals": GOOD.upper(),
    "tags in capitals": re.sub(r"(?m)^(data|loop|_\w+)", lambda match: match.group().upper(), GOOD),
    "dotted tags": GOOD.replace("_cell_", "_cell.").replace("_atom_site_", "_atom_site."),
    "occupancy dot": GOOD.replace("0.568 1", "0.568 ."),
    "every occupancy a dot": re.sub(r" 1$", " .", GOOD, flags=re.MULTILINE),
    "text field with data_": GOOD.replace("data_x\n", "data_x\n_details\n;measured at 100 K\ndata_reduction: it's 5\" wide\n;\n"),
    "text field that looks like a crystal": GOOD.replace("data_x\n", f"data_x\n_details\n;\n{GOOD};\n"),
    "formula in a text field": GOOD.replace("data_x\n", "data_x\n_chemical_formula_sum\n;\nMo S2\n;\n"),
    "a mirror for the second S": operations("x,y,z", "x,y,1-z").replace("S2 S 0.3333 0.6667 0.432 1\n", ""),
}
SAME_WORDS = ("dimensionality", "no_clash", "single_sheet", "vacuum_ok", "charge_neutral", "valid", "layer_group", "hit", "status")
SAME_WORDS += ("space_group", "reduced_formula", "h_site_kind", "relax_converged", "sheet_relaxed", "synthesizable", "h_n_sites")
SAME_NUMBERS = ("min_distance_ratio", "energy_ev_per_atom", "e_form_ev", "e_above_hull_ev", "delta_g_h_ev", "h_coverage", "p_synth")
SAME_NUMBERS += ("delta_g_h_potential_ev", "score_stab", "score_composite")


def assert_same_verdicts(row, plain, *, vacuum: bool = True) -> None:
    for name in SAME_WORDS:
        assert getattr(row, name) == getattr(plain, name), name
    for name in SAME_NUMBERS + (("vacuum_angstrom",) if vacuum else ()):
        assert getattr(row, name) == pytest.approx(getattr(plain, name), abs=1e-4), name


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    row = judged(tmp_path_factory.mktemp("plain"), GOOD)
    assert row.status == "ok" and row.valid and row.layer_group == "p-6m2"
    return row


@pytest.mark.parametrize("kind", SPELLINGS)
def test_spellings_of_one_sheet_are_one_sheet(tmp_path, plain, kind):
    row = judged(tmp_path, SPELLINGS[kind])
    assert_same_verdicts(row, plain)
    assert row.formula == plain.formula


FRAME = np.array([[3.18, 0, 0], [-1.59, 1.59 * math.sqrt(3), 0], [0, 0, 23.0]])
SCALED = np.array([[0, 0, 0.5], [1 / 3, 2 / 3, 0.568], [1 / 3, 2 / 3, 0.432]])
NUMBERS = np.array([42, 16, 16])


def described(transform) -> str:
    """The good sheet in the basis ``transform @ FRAME``: integers of determinant ±1 leave the crystal as it is."""
    transform = np.array(transform)
    assert abs(round(np.linalg.det(transform))) == 1
    return cif_of(transform @ FRAME, NUMBERS, SCALED @ np.linalg.inv(transform))


def sheet(scaled=SCALED, cell=FRAME) -> Atoms:
    return Atoms(numbers=NUMBERS, scaled_positions=scaled, cell=cell, pbc=True)


def leaned(shift) -> str:
    """The vacuum vector leans by ``shift`` Å; the sheet itself stays."""
    atoms = sheet()
    cell = FRAME.copy()
    cell[2, :2] = shift
    atoms.set_cell(cell, scale_atoms=False)
    return cif_of_atoms(atoms)


def moved(shift, wrap: bool) -> str:
    scaled = SCALED + shift
    return cif_of(FRAME, NUMBERS, scaled % 1.0 if wrap else scaled)


DESCRIPTIONS = {
    "vacuum along x": described([[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "vacuum along y": described([[0, 1, 0], [0, 0, 1], [1, 0, 0]]),
    "left-handed": described([[0, 1, 0], [1, 0, 0], [0, 0, 1]]),
    "left-handed by c": described([[1, 0, 0], [0, 1, 0], [0, 0, -1]]),
    "left-handed, vacuum along x": described([[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
    "acute angle": described([[1, 0, 0], [1, 1, 0], [0, 0, 1]]),
    "skewed in the plane": described([[1, 0, 0], [4, 1, 0], [0, 0, 1]]),
    "very skewed in the plane": described([[3, 2, 0], [7, 5, 0], [0, 0, 1]]),
    "c leans by lattice vectors": described([[1, 0, 0], [0, 1, 0], [3, -2, 1]]),
    "a crosses the vacuum": described([[1, 0, 1], [0, 1, 0], [0, 0, 1]]),
    "a and b cross the vacuum": described([[1, 0, 1], [0, 1, -1], [0, 0, 1]]),
    "all axes cross": described([[1, 1, 1], [0, 1, 1], [0, 0, 1]]),
    "c leans": leaned([1.1, 0.7]),
    "c leans far": leaned([9.0, -4.0]),
    "cut by the boundary": moved([0, 0, 0.5], wrap=True),
    "cut by the boundary, not wrapped": moved([0, 0, 0.5], wrap=False),
    "cut through the upper S": moved([0, 0, 0.432], wrap=True),
    "shifted in the plane": moved([0.37, 0.81, 0], wrap=True),
    "shifted along every axis": moved([0.2, 0.4, 0.77], wrap=True),
    "upside down": cif_of(FRAME, NUMBERS, -SCALED),
    "other order of atoms": cif_of(FRAME, NUMBERS[::-1], SCALED[::-1]),
    "supercell 2x1": cif_of_atoms(sheet().repeat((2, 1, 1))),
    "supercell 2x2": cif_of_atoms(sheet().repeat((2, 2, 1))),
    "supercell 3x2, cut": cif_of_atoms(sheet((SCALED + [0.1, 0.2, 0.5]) % 1.0).repeat((3, 2, 1))),
    "supercell, vacuum along x": cif_of_atoms(sheet(SCALED[:, [2, 0, 1]], FRAME[[2, 0, 1]]).repeat((1, 2, 1))),
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_descriptions_of_one_sheet_get_the_same_verdicts(tmp_path, plain, kind):
    row = judged(tmp_path, DESCRIPTIONS[kind])
    assert_same_verdicts(row, plain)
    assert row.natoms % 3 == 0 and ("supercell" in kind or row.natoms == 3)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.lists(st.integers(-2, 2), min_size=3, max_size=3),
    order=st.permutations(range(3)),
    shift=st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3),
)
def test_any_basis_and_origin_gives_the_same_verdicts(tmp_path, plain, entries, order, shift):
    shear = np.array([[1, entries[0], entries[1]], [0, 1, entries[2]], [0, 0, 1]])[list(order)]
    row = judged(tmp_path, cif_of(shear @ FRAME, NUMBERS, (SCALED + shift) @ np.linalg.inv(shear)))
    assert_same_verdicts(row, plain)


def test_layers_of_another_stacking_are_still_bulk(tmp_path):
    """The search for a hidden vacuum must not open a layered crystal."""
    close = FRAME * np.array([[1], [1], [6.2 / 23]])
    heights = (SCALED - 0.5) * [1, 1, 23 / 6.2] + [0, 0, 0.5]
    shear = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]])
    row = judged(tmp_path, cif_of(shear @ close, NUMBERS, heights @ np.linalg.inv(shear)))
    assert row.dimensionality == validity.LAYERED_BULK and row.valid is False and row.hit is None


def hydrogenated() -> str:
    return GOOD + "H1 H 0.3333 0.6667 0.63 1\n"


NO_CANDIDATES = {
    "one atom in a box": (cif_of_atoms(Atoms("C", cell=[15, 15, 15])), validity.MOLECULE, "not judged"),
    "one atom, two short axes": (cif_of_atoms(Atoms("C", cell=[1.4, 15, 15])), validity.CHAIN, "not judged"),
    "water": (
        cif_of_atoms(Atoms(molecule("H2O").numbers, molecule("H2O").positions + 7, cell=[15, 15, 15])),
        validity.MOLECULE,
        "not judged",
    ),
    "benzene": (
        cif_of_atoms(Atoms(molecule("C6H6").numbers, molecule("C6H6").positions + 8, cell=[17, 17, 17])),
        validity.MOLECULE,
        "not judged",
    ),
    "bulk copper": (cif_of_atoms(bulk("Cu", cubic=True)), validity.BULK, "ok"),
    "bulk salt": (cif_of_atoms(bulk("NaCl", "rocksalt", a=5.64)), validity.BULK, "no reference for Cl, Na"),
    "graphite": (
        cif_of([[2.46, 0, 0], [-1.23, 2.1304, 0], [0, 0, 3.35]], [6, 6], [[0, 0, 0], [1 / 3, 2 / 3, 0]]),
        validity.LAYERED_BULK,
        "ok",
    ),
    "too little vacuum": (cif_of(FRAME * [[1], [1], [10 / 23]], NUMBERS, SCALED), validity.LAYERED_BULK, ""),
    "sheet with hydrogen": (hydrogenated(), validity.SHEET, "the sheet itself contains H"),
    "sheet with deuterium": (hydrogenated().replace("H1 H", "D1 D"), validity.SHEET, "the sheet itself contains H"),
    "two sheets": (cif_of_atoms(sheet().repeat((1, 1, 2))), validity.SHEET_IN_PIECES, "not one connected sheet"),
    "atoms 0.1 Å apart": (GOOD + "S3 S 0.3333 0.6667 0.4365 1\n", validity.SHEET, "atoms overlap"),
    "atoms 0.01 Å apart": (GOOD + "S3 S 0.3333 0.6667 0.4325 1\n", validity.SHEET, "atoms overlap"),
    "element beyond every table": (GOOD.replace("Mo1 Mo", "Og1 Og"), validity.SHEET, "no oxidation states are known of Og"),
}


@pytest.mark.parametrize("kind", NO_CANDIDATES)
def test_what_is_no_candidate_is_named_and_never_a_hit(tmp_path, kind):
    content, dimensionality, status = NO_CANDIDATES[kind]
    row = judged(tmp_path, content)
    assert row.dimensionality == dimensionality and status in row.status and is_short(row.status)
    assert row.natoms > 0 and row.hit is None and math.isnan(row.delta_g_h_ev)


@pytest.mark.parametrize(
    ("atoms", "limit", "verdict"), [(500, 500, "read"), (501, 500, "501 atoms, more than 500"), (4, 3, "4 atoms")]
)
def test_number_of_atoms(tmp_path, atoms, limit, verdict):
    side = math.ceil(atoms ** (1 / 3))
    grid = np.array([(x, y, z) for x in range(side) for y in range(side) for z in range(side)])[:atoms]
    path = tmp_path / "x.cif"
    path.write_text(cif_of(np.eye(3) * 2.5 * side, [29] * atoms, grid / side))
    if verdict == "read":
        assert len(cif.read_cif(path, limit)) == atoms
    else:
        with pytest.raises(cif.UnreadableCif, match=verdict):
            cif.read_cif(path, limit)
    assert ("200" in judge(path).status) == (atoms > 200)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda text: (CELL + LOOP + text).encode("utf-8", "ignore"))))
def test_any_bytes_are_a_row(tmp_path, content):
    row = judged(tmp_path, content)
    assert row.status.startswith("unreadable: ") and is_short(row.status)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_good_file_is_a_row(tmp_path, data):
    at = data.draw(st.integers(0, len(GOOD) - 1))
    size = data.draw(st.integers(0, 40))
    row = judged(tmp_path, GOOD[:at] + data.draw(st.text("0123456789.-+xyzMoS?'\"; \n#_", max_size=12)) + GOOD[at + size :])
    assert is_short(row.status)
    assert row.status.startswith("unreadable: ") or row.natoms > 0
