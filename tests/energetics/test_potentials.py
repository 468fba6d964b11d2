"""Potentials, relaxations and hull energies."""

import gzip
import json
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, mx2
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

import geo_utils as geo
from crystals.prototypes import DISTORTED_NAME, PROTOTYPES, metal_distances
from energetics import potentials, relaxation, sites
from energetics.hull import ReferencePhase, References, believable
from energetics.potentials import Potential
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.settings import EvaluationConfig


@pytest.fixture(scope="module")
def sevennet() -> Potential:
    return potentials.load_potential("sevennet-0")


@pytest.fixture(scope="module")
def sheet() -> Atoms:
    return geo.standard_sheet(mx2("MoS2", a=3.25, thickness=3.05, vacuum=10))


def test_sevennet_relaxes_a_sheet_in_plane_only(sevennet, sheet):
    result = relaxation.relax_sheet(sheet, sevennet, fmax=0.02)
    assert result.status == "ok" and result.converged
    assert result.atoms.cell.lengths()[0] == pytest.approx(3.18, abs=0.03), "PBE: 3.18 Å"
    assert result.atoms.cell[2, 2] == pytest.approx(sheet.cell[2, 2])
    np.testing.assert_allclose(result.atoms.cell.angles()[2], 120, atol=0.1)
    assert relaxation.relax_sheet(sheet, sevennet, max_steps=0).energy > result.energy
    assert sevennet.identity["name"] == "sevennet-0" and len(sevennet.identity["sha256"]) == 64


def test_the_default_judge_knows_the_phases_of_mos2():
    judge = potentials.load_potential(EvaluationConfig().potential)
    sheets = {name: PROTOTYPES[name].build("Mo", "S") for name in ("2H-MX2", "1T-MX2", DISTORTED_NAME)}
    relaxed = {name: relaxation.relax_sheet(sheet, judge) for name, sheet in sheets.items()}
    energy = {name: found.energy / len(found.atoms) for name, found in relaxed.items()}
    assert energy["1T-MX2"] - energy["2H-MX2"] == pytest.approx(0.28, abs=0.06), "C2DB, PBE: 0.28 eV/atom"
    assert energy[DISTORTED_NAME] - energy["2H-MX2"] == pytest.approx(0.18, abs=0.05), "C2DB, PBE: 0.18 eV/atom"
    distances = metal_distances(relaxed[DISTORTED_NAME].atoms, ("Mo",))
    assert distances[0] == pytest.approx(2.78, abs=0.05) and distances[-1] == pytest.approx(3.81, abs=0.05), "C2DB: zigzag chains"


PAGE_FAULTS = """
import resource, sys
import numpy as np
from pipeline.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**23)
before = count()
for _ in range(20):
    np.ones(2**23)
print(count() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_is_kept_is_not_mapped_anew():
    run = [sys.executable, "-c", PAGE_FAULTS]
    kept, returned = (
        int(subprocess.run([*run, how], cwd=PROJECT_DIR, capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "return")
    )
    assert kept < returned / 10, (kept, returned)


def test_a_network_of_several_training_sets_gives_the_energies_of_pbe(sheet):
    several = potentials.load_potential("sevennet-mf-0")
    assert several.identity["modality"] == "PBE" and "modality" not in potentials.load_potential("sevennet-0").identity
    assert several.calculator.modal == "PBE"
    energy = relaxation.single_point(sheet, several.calculator)
    other = potentials._sevennet_calculator("7net-mf-0", "cpu", "R2SCAN")
    assert -8 < energy / 3 < -6 and abs(energy - relaxation.single_point(sheet, other)) > 1


def test_hydrogen_relaxation_and_its_refusals(sevennet, sheet):
    clean = relaxation.relax_sheet(sheet, sevennet)
    host = geo.standard_sheet(clean.atoms)
    site = next(s for s in sites.adsorption_sites(host) if s.label(host).startswith("top S"))
    with_h = sites.add_hydrogen(host, site, (2, 2))
    result = relaxation.relax_hydrogen(with_h, 4 * clean.energy, sevennet, max_steps=30)
    assert result.delta_e == pytest.approx(0.77, abs=0.1), "SevenNet-0 on top of S, 2x2"
    assert result.delta_e <= result.initial_delta_e and not result.desorbed
    aside = with_h.copy()
    aside.positions[-1, :2] += 0.5
    whole = relaxation.relax_hydrogen(aside, 4 * clean.energy, sevennet, max_steps=30)
    assert whole.steps > relaxation.GIVE_UP_AFTER
    given_up = relaxation.relax_hydrogen(aside, 4 * clean.energy, sevennet, max_steps=30, give_up_above=whole.delta_e - 0.3)
    assert (given_up.status, given_up.steps, given_up.converged) == ("given up", relaxation.GIVE_UP_AFTER, False)
    carried_on = relaxation.relax_hydrogen(aside, 4 * clean.energy, sevennet, max_steps=30, give_up_above=whole.delta_e + 1.0)
    assert carried_on.steps == whole.steps and carried_on.delta_e == pytest.approx(whole.delta_e, abs=1e-6)
    far = with_h.copy()
    far.positions[-1, 2] += 5
    assert relaxation.relax_hydrogen(far, 4 * clean.energy, sevennet, max_steps=0).desorbed
    with pytest.raises(ValueError, match="bare sheet"):
        relaxation.relax_hydrogen(host, clean.energy, sevennet)


def test_relaxation_recognises_an_explosion():
    class Broken(Calculator):
        implemented_properties = ["energy", "forces", "stress"]

        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            self.results = {"energy": np.nan, "forces": np.full((len(atoms), 3), np.nan), "stress": np.full(6, np.nan)}

    broken = Potential("sevennet-0", {"name": "broken", "sha256": "0"}, Broken())
    result = relaxation.relax_sheet(geo.standard_sheet(mx2("MoS2", vacuum=10)), broken)
    assert result.status == "exploded" and not result.converged and np.isnan(result.energy)


def test_a_bottomless_well_is_an_explosion():
    deep = Potential("sevennet-0", {"name": "deep", "sha256": "3"}, LennardJones(sigma=2.0, epsilon=1e6, rc=8.0))
    result = relaxation.relax_bulk(bulk("Cu"), deep, max_steps=5)
    assert result.status == "exploded" and not result.converged


@pytest.mark.parametrize(("potential", "nitride", "boron_oxide"), [("sevennet-0", "Ba3N2", -2.3), ("sevennet-l3i5", "Sr3N2", -2.2)])
def test_the_committed_hull_has_only_sane_energies(potential, nitride, boron_oxide):
    references = References.load(PROJECT_DIR / "data" / f"references_{potential}.json.gz")
    assert believable(references.phases) == references.phases
    assert len(references.phases) > 2000 and len(references.elements) >= 60
    for phase in references.phases:
        assert relaxation.is_sane(phase.energy_per_atom, 1) and phase.energy_per_atom < 0, phase
    for formula in ("BaS", nitride, "SiF4", "MoS2", "Ti2CO2", "Fe2O3", "CaF2"):
        assert -6 < references.hull_energy(formula) < 0, formula
    # Compounds without which a sheet of phosphate, of an early metal's chloride or of boron oxide would look stable.
    for formula, at_most in (("P2O5", -1.8), ("NbCl5", -1.0), ("B2O3", boron_oxide), ("CO2", -1.0), ("NaCl", -1.7), ("Ta2C", -0.3)):
        assert references.hull_energy(formula) < at_most, (formula, references.hull_energy(formula))


def test_a_phase_below_any_compound_is_left_out(caplog):
    elements = [ReferencePhase("Si", -5.4, "diamond"), ReferencePhase("O2", -5.0, "diatomic molecule")]
    quartz, torn = ReferencePhase("SiO2", -8.0, "quartz"), ReferencePhase("SiO", -11.1, "zincblende")
    unknown = ReferencePhase("XeF2", -40.0, "layer")  # without its elements nothing is known of it
    assert believable([torn, quartz, *elements, unknown]) == [quartz, *elements, unknown]
    assert "SiO zincblende" in caplog.text and "quartz" not in caplog.text


def test_relaxation_recognises_a_collapse_and_a_step_cap():
    sticky = Potential("sevennet-0", {"name": "lj", "sha256": "1"}, LennardJones(sigma=1.0, epsilon=5.0, rc=8.0))
    loose = Atoms("Ar2", [[0, 0, 10], [2.0, 2.0, 10]], cell=[4.2, 4.2, 20], pbc=(True, True, False))
    assert relaxation.relax_sheet(loose, sticky, max_steps=300).status == "collapsed"
    emt = Potential("sevennet-0", {"name": "emt", "sha256": "2"}, EMT())
    stretched = bulk("Cu", cubic=True)
    stretched.rattle(0.1, seed=0)
    assert relaxation.relax_bulk(stretched, emt, max_steps=1).status == "not converged"
    assert relaxation.relax_bulk(stretched, emt, max_steps=200).status == "ok"


def test_rmsd_ignores_shift_and_strain():
    before = geo.standard_sheet(mx2("MoS2", vacuum=10))
    after = before.copy()
    after.set_cell(before.cell * np.array([1.02, 1.02, 1.0]), scale_atoms=True)
    after.positions += [0.3, 0.1, 0.5]
    assert relaxation.relaxation_rmsd(before, after) == pytest.approx(0, abs=1e-9)
    after.positions[1, 2] += 0.3
    assert relaxation.relaxation_rmsd(before, after) == pytest.approx(np.sqrt(0.3**2 * (2 / 3) / 3), abs=1e-9)


# ------------------------------------------------------------------------------------------------------------------ MatterSim


@pytest.fixture(scope="module")
def tiny_mattersim(tmp_path_factory):
    """A random M3GNet of 12k parameters saved by MatterSim itself."""
    from mattersim.forcefield.m3gnet.m3gnet import M3Gnet
    from mattersim.forcefield.m3gnet.scaling import AtomScaling
    from mattersim.forcefield.potential import Potential as MatterSimPotential

    torch.manual_seed(0)
    arguments = {"num_blocks": 1, "units": 16, "max_l": 2, "max_n": 2, "cutoff": 4.0, "max_z": 94, "threebody_cutoff": 3.0}
    model = M3Gnet(device="cpu", **arguments)
    model.set_normalizer(AtomScaling(atoms=[bulk("Cu")], total_energy=[-3.7], forces=[np.zeros((1, 3))], verbose=False, max_z=94))
    path = tmp_path_factory.mktemp("mattersim") / "tiny.pth"
    MatterSimPotential(model, device="cpu").save(str(path))
    content = torch.load(path, weights_only=False)
    content["model_args"] = arguments
    torch.save(content, path)
    return path


def test_mattersim_loads_through_its_real_loader(tiny_mattersim, sheet):
    potential = potentials.load_potential("mattersim", str(tiny_mattersim))
    result = relaxation.relax_sheet(sheet, potential, max_steps=2)
    assert potential.identity["name"] == "mattersim" and np.isfinite(result.energy)
    assert result.atoms.cell[2, 2] == pytest.approx(sheet.cell[2, 2])


def test_mattersim_refusals_are_one_line(tiny_mattersim, tmp_path):
    with pytest.raises(StageError, match="potential_checkpoint"):
        potentials.load_potential("mattersim")
    with pytest.raises(StageError, match=r"potential_checkpoint: no file at .*none\.pth: .*MatterSim"):
        potentials.load_potential("mattersim", str(tmp_path / "none.pth"))
    content = torch.load(tiny_mattersim, weights_only=True)
    content["model"] = {f"other.{key}": value for key, value in content["model"].items()}
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(StageError, match="keys differ"):
        potentials.load_potential("mattersim", str(tmp_path / "foreign.pth"))
    (tmp_path / "garbage.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(StageError, match="not a readable MatterSim checkpoint"):
        potentials.load_potential("mattersim", str(tmp_path / "garbage.pth"))


# ----------------------------------------------------------------------------------------------------------------------- hull

PHASES = [
    ReferencePhase("Mo", -10.0, "bcc"),
    ReferencePhase("Mo", -9.0, "fcc"),
    ReferencePhase("S8", -4.0, "ring"),
    ReferencePhase("MoS2", -7.0, "2H"),  # e_form = -7 + (10 + 8) / 3 = -1
    ReferencePhase("MoS", -7.2, "NiAs"),  # e_form = -0.2, above the tie line at -0.75
]


def test_formation_and_hull_energies_by_hand():
    references = References({"name": "x", "sha256": "0"}, PHASES)
    mos2 = Atoms("MoS2")
    assert references.e_form(mos2, -20.4) == pytest.approx(-6.8 + 6.0)
    assert references.e_above_hull(mos2, -20.4) == pytest.approx(0.2)
    assert references.e_above_hull(mos2, -21.3) == pytest.approx(-0.1), "below every competitor"
    assert references.hull_energy("MoS") == pytest.approx(-0.75)
    assert references.hull_energy("Mo") == pytest.approx(0.0)
    with pytest.raises(KeyError, match="Se"):
        references.e_form(Atoms("MoSe2"), -20.0)


def test_a_pair_without_competing_compound_has_no_hull():
    references = References(
        {"name": "x", "sha256": "0"}, [*PHASES, ReferencePhase("Ba", -2.0, "bcc"), ReferencePhase("W", -12.0, "bcc")]
    )
    with pytest.raises(KeyError, match="Ba-S"):
        references.e_above_hull(Atoms("BaMoS2"), -22.0)
    assert references.missing_pairs(Atoms("MoWS2")) == ["W-S"], "a pair of metals needs no compound"
    assert references.missing_pairs(Atoms("MoS2")) == []


def test_references_belong_to_one_potential(tmp_path):
    path = tmp_path / "references.json.gz"
    References({"name": "x", "sha256": "0"}, PHASES).save(path)
    first = path.read_bytes()
    References({"name": "x", "sha256": "0"}, PHASES[::-1]).save(path)
    assert path.read_bytes() == first, "the same phases in any order give the same file"
    loaded = References.load(path)
    assert loaded.elements == {"Mo", "S"} and len(loaded.phases) == len(PHASES)
    with pytest.raises(StageError, match="made with x"):
        References.load(path, Potential("sevennet-0", {"name": "sevennet-0", "sha256": "1"}, EMT()))
    with pytest.raises(StageError, match=r"references_path: no file at .*none\.json\.gz"):
        References.load(tmp_path / "none.json.gz")
    path.write_bytes(first[: len(first) // 2])
    with pytest.raises(StageError, match="not a readable reference file"):
        References.load(path)
    with gzip.open(path, "wt") as handle:
        json.dump({"schema_version": 99, "potential": {}, "phases": []}, handle)
    with pytest.raises(StageError, match="schema 99"):
        References.load(path)
