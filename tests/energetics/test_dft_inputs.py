"""Geometries for DFT: which sites are kept, and that verify_dft.py reads what is written."""

import numpy as np
import pytest
from ase.calculators.emt import EMT

from crystals.prototypes import honeycomb, mxene
from energetics import dft_inputs
from energetics.potentials import Potential
from energetics.relaxation import HydrogenRelaxation
from scripts import verify_dft


def relaxation(delta_e, atoms=None):
    return HydrogenRelaxation(atoms, 0.0, True, 3, "ok", delta_e, delta_e, False)


def test_competing_sites_are_of_different_kinds_and_close_in_energy():
    found = [("topS", relaxation(0.1)), ("topS", relaxation(0.15)), ("hollow", relaxation(0.3)), ("topMo", relaxation(0.34))]
    assert [label for label, _ in dft_inputs.competing_sites(found)] == ["topS", "hollow"]
    assert [label for label, _ in dft_inputs.competing_sites(found, most=3)] == ["topS", "hollow", "topMo"]
    assert [label for label, _ in dft_inputs.competing_sites(found, most=4)] == ["topS", "topS_2", "hollow", "topMo"]
    far = [("topS", relaxation(0.1)), ("hollow", relaxation(0.1 + dft_inputs.COMPETING_EV + 0.01))]
    assert [label for label, _ in dft_inputs.competing_sites(far)] == ["topS"]
    assert dft_inputs.competing_sites([]) == []


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
