"""Geometries for DFT: which sites are kept, and that verify_dft.py reads what is written."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT

from crystals.prototypes import honeycomb, mxene
from energetics import dft_inputs
from energetics.dft_rows import potential_values
from energetics.potentials import Potential
from energetics.relaxation import HydrogenRelaxation
from scripts import verify_dft


def relaxation(delta_e, atoms=None, height=1.5):
    """A relaxation to atoms, or to H at a height in Å over the uppermost atoms of a sheet that is 3 Å thick, Mo around it."""
    given = atoms
    if atoms is None:
        places = [[0, 0, 0], *([1.8 * np.cos(angle), 1.8 * np.sin(angle), 1.5] for angle in (0.0, 2.1, 4.2)), [0, 0, 3.0]]
        given = Atoms("SMo3SH", positions=[*places, [0, 0, 3.0 + height]])
    return HydrogenRelaxation(given, 0.0, True, 3, "ok", delta_e, delta_e, False)


def test_competing_sites_are_of_different_kinds_and_close_in_energy():
    found = [("topS", relaxation(0.1)), ("topS", relaxation(0.15)), ("hollow", relaxation(0.3)), ("topMo", relaxation(0.34))]
    assert [label for label, _ in dft_inputs.competing_sites(found)] == ["topS", "hollow"]
    assert [label for label, _ in dft_inputs.competing_sites(found, most=3)] == ["topS", "hollow", "topMo"]
    assert [label for label, _ in dft_inputs.competing_sites(found, most=4)] == ["topS", "topS_2", "hollow", "topMo"]
    far = [("topS", relaxation(0.1)), ("hollow", relaxation(0.1 + dft_inputs.COMPETING_EV + 0.01))]
    assert [label for label, _ in dft_inputs.competing_sites(far)] == ["topS"]
    assert dft_inputs.competing_sites([]) == []


def test_faces_and_inside_compete_whatever_the_potential_says_of_the_other():
    far = 3 * dft_inputs.COMPETING_EV
    ends = (("hollow", far, -1.5), ("bridge", far + 0.1, -1.4), ("deep", 2 * far, -1.5))
    inside = [(label, relaxation(delta_e, height=height)) for label, delta_e, height in ends]
    found = [("topS", relaxation(0.0)), ("topMo", relaxation(0.2)), *inside]
    assert [label for label, _ in dft_inputs.competing_sites(found)] == ["topS", "hollow"], "the lowest of both first"
    assert [label for label, _ in dft_inputs.competing_sites(found, most=9)] == ["topS", "topMo", "hollow", "bridge"]
    assert [label for label, _ in dft_inputs.competing_sites(found, most=1)] == ["topS"]


def test_sites_of_one_kind_compete_where_they_differ():
    found = [("topS", relaxation(0.1)), ("topS", relaxation(0.105)), ("topS", relaxation(0.15)), ("hollow", relaxation(0.2))]
    found += [("topS", relaxation(0.1 + dft_inputs.SAME_KIND_EV + 0.01))]
    assert [label for label, _ in dft_inputs.competing_sites(found)] == ["topS", "hollow"], "other kinds first"
    chosen = dft_inputs.competing_sites(found, most=9)
    assert [(label, site.delta_e) for label, site in chosen] == [("topS", 0.1), ("topS_2", 0.15), ("hollow", 0.2)]


def test_the_two_hollows_of_a_bare_mxene_have_names_of_their_own():
    clean = mxene("Ti", "C").repeat((2, 2, 1))
    titanium, middle = clean.symbols == "Ti", clean.positions[:, 2].mean()
    top, below = titanium & (clean.positions[:, 2] > middle), titanium & (clean.positions[:, 2] < middle)
    labels = {}
    for name, place in (("C", ~titanium), ("Ti", below), ("on top", top)):
        atoms = clean.copy()
        atoms.append("H")
        atoms.positions[-1] = [*clean.positions[np.flatnonzero(place)[0], :2], clean.positions[:, 2].max() + 1.0]
        labels[name] = dft_inputs.site_label(atoms)
    assert labels == {"C": "hollowTi-Ti-Ti-over-C", "Ti": "hollowTi-Ti-Ti-over-Ti", "on top": "topTi"}


@pytest.fixture(scope="module")
def on_graphene():
    potential = Potential("emt", {"name": "emt"}, EMT())
    return dft_inputs.relaxed_sites(honeycomb("C", "C"), potential, 4.0, fmax=0.2, max_steps=60)


def test_sites_are_converged_sorted_and_in_the_cell_of_the_clean_sheet(on_graphene):
    clean, found = on_graphene
    assert len(clean) == 8 and found
    energies = [r.delta_e for _, r in found]
    assert energies == sorted(energies)
    for _, r in found:
        assert r.status == "ok" and len(r.atoms) == len(clean) + 1 and r.atoms.symbols[-1] == "H"
        np.testing.assert_allclose(r.atoms.cell[:2], clean.cell[:2])


def test_verify_dft_reads_what_is_written(on_graphene, tmp_path):
    clean, found = on_graphene
    path = tmp_path / "graphene.extxyz"
    dft_inputs.write_dft_input(path, "graphene", clean, dft_inputs.competing_sites(found), "emt", kpts=3)
    name, sheet, sites = verify_dft.read_system(path)
    assert name == "graphene" and sheet.info["kpts"] == 3 and sheet.info["potential"] == "emt"
    assert list(sites) == [label for label, _ in dft_inputs.competing_sites(found)]
    np.testing.assert_allclose(sheet.positions, clean.positions, atol=1e-6)
    first = next(iter(sites.values()))
    assert first.info["delta_e_potential_ev"] == pytest.approx(found[0][1].delta_e, abs=1e-3)


class Wells(Calculator):
    """H on a sheet in a harmonic well about a place; other atoms, and H2, feel nothing."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, place, stiffness=4.0):
        super().__init__()
        self.place, self.stiffness = np.array(place), stiffness

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        forces = np.zeros((len(self.atoms), 3))
        energy = 0.0
        if self.atoms.symbols[-1] == "H" and str(self.atoms.symbols) != "H2":
            away = self.atoms.positions[-1] - self.place
            energy, forces[-1] = 0.5 * self.stiffness * float(away @ away), -self.stiffness * away
        self.results = {"energy": energy, "forces": forces}


def test_sites_that_fall_into_one_minimum_of_the_other_potential_are_one(on_graphene):
    clean, _ = on_graphene
    place = clean.positions[0] + [0, 0, 1.2]
    sites = []
    for k, shift in enumerate(([0.1, 0, 0], [0, 0.1, 0.1])):
        atoms = clean.copy()
        atoms.append("H")
        atoms.positions[-1] = place + shift
        sites.append((f"site{k}", relaxation(0.1 * k, atoms)))
    before = [site.atoms.positions.copy() for _, site in sites]
    sheet, found = dft_inputs.in_minima_of(Potential("wells", {"name": "wells"}, Wells(place)), clean, sites)
    assert [label for label, _ in found] == ["topC"] and found[0][1].delta_e == 0.0
    np.testing.assert_allclose(found[0][1].atoms.positions[-1], place, atol=dft_inputs.MINIMUM_FMAX / 4.0)
    np.testing.assert_array_equal(sheet.positions, clean.positions)
    for (_, site), positions in zip(sites, before, strict=True):
        np.testing.assert_array_equal(site.atoms.positions, positions)
    away = Potential("wells", {"name": "wells"}, Wells(place + [0, 0, 4.0]))
    assert dft_inputs.in_minima_of(away, clean, sites)[1] == [], "H leaves"


def test_the_hessian_is_that_of_springs_and_verify_dft_reads_it(on_graphene, tmp_path):
    clean, found = on_graphene
    potential = Potential("wells", {"name": "wells"}, Wells([0, 0, 9.0], stiffness=7.0))
    path = tmp_path / "dft.extxyz"
    dft_inputs.write_dft_input(path, "x", clean, found[:1], "wells")
    dft_inputs.write_hessians(path, potential)
    hessians = verify_dft.read_hessians(path)
    assert set(hessians) == {"clean", found[0][0]} and not hessians["clean"].any()
    expected = np.zeros((27, 27))
    expected[24:, 24:] = 7.0 * np.eye(3)
    np.testing.assert_allclose(hessians[found[0][0]], expected, atol=1e-4)


def test_another_potential_is_noted_at_the_geometries_of_the_first(on_graphene, tmp_path):
    clean, found = on_graphene
    place = found[0][1].atoms.positions[-1] + [0, 0, 0.5]
    sites = [(found[0][0], replace(found[0][1], atoms=found[0][1].atoms.copy()))]
    dft_inputs.note_delta_e(Potential("sevennet-l3i5", {"name": "wells beside"}, Wells(place)), clean, sites)
    sheet, moved = dft_inputs.in_minima_of(Potential("wells", {"name": "wells"}, Wells(place)), clean, sites)
    dft_inputs.write_dft_input(tmp_path / "dft.extxyz", "x", sheet, moved, "sevennet-0")
    _, _, frames = verify_dft.read_system(tmp_path / "dft.extxyz")
    (frame,) = frames.values()
    np.testing.assert_allclose(frame.positions[-1], place, atol=dft_inputs.MINIMUM_FMAX / 4.0)
    values = potential_values(frame.info)
    assert values["dE_7net0"] == pytest.approx(found[0][1].delta_e, abs=1e-4)
    assert values["dE_7netl3i5"] == pytest.approx(0.5 * 4.0 * 0.5**2, abs=1e-3)
