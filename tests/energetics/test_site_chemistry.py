"""What H binds to."""

import pytest
from ase import Atoms
from ase.build import mx2

import geo_utils as geo
from crystals.elements import electronegativity_and_group
from energetics import site_chemistry, sites


@pytest.mark.parametrize(
    ("symbols", "name"),
    [
        ("H", "hydrogen"),
        ("B C Si Ge Sn Pb", "carbon group"),
        ("N P As Sb Bi", "pnictogen"),
        ("O", "oxygen"),
        ("S Se Te", "chalcogen"),
        ("F Cl Br I", "halogen"),
        ("Li K Mg Ba Al Ga In Tl Ti Mo Fe Cu Zn Pt Au Hg La Y", "metal"),
    ],
)
def test_elements_by_what_they_are_to_hydrogen(symbols, name):
    assert {site_chemistry.chemistry_of(*electronegativity_and_group(s)) for s in symbols.split()} == {name}


def test_the_nearest_atom_counts_across_the_edge_of_the_cell():
    sheet = geo.standard_sheet(mx2("MoS2", vacuum=10))
    found = {}
    for site in sites.adsorption_sites(sheet):
        with_h = sites.add_hydrogen(sheet, site, (2, 2))
        found[site.label(sheet)] = (site_chemistry.bound_element(with_h), site_chemistry.site_chemistry(with_h))
    assert found.pop("top Mo upper") == ("Mo", "metal") and set(found.values()) == {("S", "chalcogen")}
    edge = Atoms("PtSH", [[0.2, 0, 5], [2.5, 0, 5], [4.3, 0, 6.0]], cell=[4.5, 4.5, 12], pbc=(True, True, False), tags=[0, 0, 2])
    assert site_chemistry.bound_element(edge) == "Pt" and site_chemistry.site_chemistry(edge) == "metal"


def test_h_inside_a_sheet_is_a_chemistry_of_its_own():
    sheet = geo.standard_sheet(mx2("NbSe2", a=3.47, thickness=3.37, vacuum=10))
    deep = sites.add_hydrogen(sheet, sites.inner_sites(sheet)[0], (2, 2))
    assert sites.is_inside(deep) and site_chemistry.site_chemistry(deep) == "metal, inside the sheet"
    deep.positions[-1, 2] += 4.0
    assert not sites.is_inside(deep)
