"""Adsorption sites and H placed on them, on known sheets and against brute force."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import graphene, mx2

import geo_utils as geo
from energetics.sites import add_hydrogen, adsorption_sites, h_supercell, inner_sites, is_inside


def molybdenum_disulfide() -> Atoms:
    return geo.standard_sheet(mx2("MoS2", a=3.18, thickness=3.13, vacuum=10))


def test_sites_of_known_sheets():
    sites = adsorption_sites(molybdenum_disulfide())
    labels = sorted(site.label(molybdenum_disulfide()) for site in sites)
    assert labels == ["bridge S-S upper", "hollow S-S-S upper", "hollow S-S-S upper", "top Mo upper", "top S upper"]
    carbon = geo.standard_sheet(graphene(vacuum=10))
    found = {site.kind: site.multiplicity for site in adsorption_sites(carbon)}
    assert found == {"top": 4, "hollow": 2, "bridge": 6}, "both faces of graphene are one by its mirror plane"


def test_hydrogen_gets_inside_where_a_channel_is_open():
    sheet = molybdenum_disulfide()
    (inner,) = inner_sites(sheet)
    assert inner.face == "inner" and [sheet.symbols[k] for k in inner.neighbors] == ["Mo"] * 3 and inner.multiplicity == 1
    metal = sheet.positions[sheet.symbols == "Mo"][0]
    assert inner.position[2] == pytest.approx(metal[2], abs=1e-6)
    covered = add_hydrogen(sheet, inner, (2, 2))
    distances = np.sort(covered.get_distances(-1, range(len(covered) - 1), mic=True))
    np.testing.assert_allclose(distances[:3], 3.18 / np.sqrt(3), atol=1e-3)  # the middle of three metal atoms
    assert is_inside(covered) and not any(is_inside(add_hydrogen(sheet, site, (2, 2))) for site in adsorption_sites(sheet))
    assert distances[3] > 2.3, "sulfur stands above and below the other triangles only"


def test_closed_flat_and_dense_sheets_have_no_site_inside():
    octahedral = geo.standard_sheet(mx2("MoS2", kind="1T", a=3.18, thickness=3.13, vacuum=10))
    assert not inner_sites(octahedral), "sulfur above one triangle, below the other"
    assert not inner_sites(geo.standard_sheet(graphene(vacuum=10))), "no layer inside"
    dense = geo.standard_sheet(mx2("MoS2", a=2.9, thickness=3.13, vacuum=10))
    assert not inner_sites(dense), "bonds would be too short"


def test_sites_inside_do_not_depend_on_the_cell():
    turned = molybdenum_disulfide().repeat((2, 1, 1))
    assert [site.multiplicity for site in inner_sites(turned)] == [2]
    alloy = turned.copy()
    alloy.symbols[int(np.flatnonzero(alloy.symbols == "Mo")[0])] = "W"
    neighbours = sorted("".join(sorted(alloy.symbols[k] for k in site.neighbors)) for site in inner_sites(alloy))
    assert neighbours == ["MoMoW", "MoWW"]


def test_janus_faces_differ():
    janus = molybdenum_disulfide()
    janus.symbols[int(np.argmax(janus.positions[:, 2]))] = "Se"
    tops = {site.label(janus) for site in adsorption_sites(janus) if site.kind == "top"}
    assert {"top Se upper", "top S lower"} <= tops


def test_sites_do_not_depend_on_cell_or_orientation():
    sheet = molybdenum_disulfide()
    turned = sheet.repeat((2, 2, 1))
    turned.rotate(25, "z", rotate_cell=True)
    turned.positions += [0.3, -1.7, 0.0]
    reference, other = (adsorption_sites(geo.primitive_sheet(atoms)) for atoms in (sheet, turned))
    assert sorted((s.kind, s.multiplicity) for s in reference) == sorted((s.kind, s.multiplicity) for s in other)


def test_hydrogen_is_placed_on_its_face_with_tags():
    janus = molybdenum_disulfide()
    janus.symbols[int(np.argmax(janus.positions[:, 2]))] = "Se"
    for site in adsorption_sites(janus):
        atoms = add_hydrogen(janus, site, (2, 2))
        assert atoms.symbols[-1] == "H" and len(atoms) == 13
        assert atoms.get_tags()[-1] == geo.H_TAG and (atoms.get_tags()[:-1] != geo.H_TAG).all()
        middle = atoms.positions[:-1, 2].mean()
        assert (atoms.positions[-1, 2] > middle) == (site.face == "upper")
        assert geo.min_distance_ratio(atoms) > 0.7


@pytest.mark.parametrize("distance", [3.0, 5.0, 7.0, 9.0])
def test_supercell_keeps_images_apart_and_is_smallest(distance):
    sheet = molybdenum_disulfide()
    na, nb = h_supercell(sheet, distance)
    lone = Atoms("H", [[0, 0, 5]], cell=sheet.cell, pbc=(True, True, False))

    def image_distance(a: int, b: int) -> float:
        cell = np.array(lone.cell) * np.array([[a], [b], [1]])
        return min(np.linalg.norm(m * cell[0] + n * cell[1]) for m in range(-3, 4) for n in range(-3, 4) if (m, n) != (0, 0))

    assert image_distance(na, nb) >= distance - 1e-6
    smaller = [(a, b) for a in range(1, 5) for b in range(1, 5) if a * b < na * nb]
    assert all(image_distance(a, b) < distance for a, b in smaller)
