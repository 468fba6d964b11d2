"""Small deterministic judges for the tests of the evaluation: analytic, instant, and easy to check by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.build import bulk, graphene, mx2
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.io import write

import geo_utils
from energetics.dynamic_stability import DynamicStability
from energetics.exfoliation import Exfoliation
from energetics.potential_adsorption import HydrogenAtSite, StabilityJudge
from energetics.potentials import Potential
from energetics.sites import adsorption_sites, h_supercell
from evaluation.evaluate import Evaluation, evaluate
from evaluation.judging import Judges
from pipeline.settings import DatasetConfig, EvaluationConfig

# A good CIF, in parts that a test can spoil.
CELL = """data_x
_cell_length_a 3.18
_cell_length_b 3.18
_cell_length_c 23
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_symmetry_space_group_name_H-M 'P 1'
"""
LOOP = """loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""
SITES = "Mo1 Mo 0 0 0.5 1\nS1 S 0.3333 0.6667 0.568 1\nS2 S 0.3333 0.6667 0.432 1\n"
GOOD = CELL + LOOP + SITES
# Files that are no crystal: content, and what the reader says.
MALFORMED = {
    "empty": (b"", "empty"),
    "spaces": (b" \n\n", "empty"),
    "prose": (b"this is not a crystal", "no CIF data block"),
    "binary": (bytes(range(256)), "binary"),
    "no_cell": (("data_x\n" + LOOP + SITES).encode(), "no unit cell"),
    "no_atoms": (CELL.encode(), "no atoms"),
    "nan_cell": (GOOD.replace("3.18", "nan").encode(), "not finite"),
    "infinite_cell": (GOOD.replace("_cell_length_c 23", "_cell_length_c inf").encode(), "not finite"),
    "flat_cell": (GOOD.replace("_cell_length_c 23", "_cell_length_c 0").encode(), "volume"),
    "nan_site": (GOOD.replace("0.568", "nan").encode(), "not a readable CIF"),
    "word_site": (GOOD.replace("0.568", "abc").encode(), "not a readable CIF"),
    "unknown_site": (GOOD.replace("0.568", "?").encode(), "not a readable CIF"),
    "unknown_element": (GOOD.replace("Mo1 Mo", "Xx1 Xx").encode(), "unknown element"),
    "mixed_site": ((CELL + LOOP + "Mo1 Mo 0 0 0.5 0.5\nW1 W 0 0 0.5 0.5\n").encode(), "partial occupancy"),
    "vacancies": (GOOD.replace("0.568 1", "0.568 0.8").encode(), "partial occupancy"),
    "stacked": (GOOD.replace("0.568", "0.432").encode(), "on top of each other"),
    "truncated": (GOOD[:-24].encode(), "not a readable CIF"),
    "two_crystals": ((GOOD + GOOD.replace("data_x", "data_y")).encode(), "2 structures"),
    "cartesian": (GOOD.replace("_fract_", "_Cartn_").encode(), "no atoms"),
}

SETTINGS = EvaluationConfig(bootstrap=50, dft_truth_path="")


def sheet(formula: str = "MoS2", kind: str = "2H", a: float = 3.18, thickness: float = 3.19, vacuum: float = 10.0) -> Atoms:
    """Return an MX2 monolayer, fully periodic as in a CIF."""
    atoms = mx2(formula=formula, kind=kind, a=a, thickness=thickness, size=(1, 1, 1), vacuum=vacuum)
    atoms.pbc = True
    return atoms


def graphene_sheet(vacuum: float = 10.0) -> Atoms:
    """Return graphene, fully periodic as in a CIF."""
    atoms = graphene(formula="C2", a=2.46, vacuum=vacuum)
    atoms.pbc = True
    return atoms


def write_cifs(folder, structures: dict[str, Atoms]) -> None:
    """Write one CIF per entry."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, atoms in structures.items():
        write(folder / f"{name}.cif", atoms, format="cif")


def evaluated(
    folder: Path,
    structures: dict[str, Atoms],
    judges_: Judges | None = None,
    settings: EvaluationConfig = SETTINGS,
    name: str = "cifs",
    **arguments: Any,
) -> Evaluation:
    """Write the structures below ``folder`` and evaluate them, with ``judges()`` unless others are given."""
    write_cifs(folder / name, structures)
    return evaluate(folder / name, judges_ or judges(), settings, folder / "out", "ours", **arguments)


def bulk_copper() -> Atoms:
    """Return a three-dimensional crystal."""
    return bulk("Cu", "fcc", a=3.61, cubic=True)


class Springs:
    """Stands for a potential: leaves the structure where it is; energy −4 eV per atom, ΔE_H 0.02 eV on every site."""

    def __init__(self, fails_on: str = "", calls: list[str] | None = None) -> None:
        self.fails_on, self.calls = fails_on, calls if calls is not None else []

    def relax(self, atoms: Atoms, bulk: bool) -> SimpleNamespace:
        self.calls.append(atoms.get_chemical_formula())
        if self.fails_on and self.fails_on in atoms.get_chemical_symbols():
            raise RuntimeError("energy is not finite")
        return SimpleNamespace(atoms=atoms.copy(), energy=-4.0 * len(atoms), converged=True, steps=3, status="ok")

    def legacy_energy(self, atoms: Atoms) -> float:
        return -4.0

    def dynamic_stability(self, sheet: Atoms) -> DynamicStability:
        return DynamicStability(True, sheet, 1.5, 3.0, (0.5, 0.0), 40.0)

    def exfoliation(self, sheet: Atoms) -> Exfoliation:
        return Exfoliation(30.0, 3.1, (0.0, 0.0))

    def band_gap(self, sheet: Atoms) -> float:
        return 1.5

    def delta_e_hydrogen(self, sheet: Atoms, site, supercell, best=math.inf, gap=math.nan) -> HydrogenAtSite:
        if "W" in sheet.get_chemical_symbols():
            return HydrogenAtSite(0.0, desorbed=True, converged=True)
        return HydrogenAtSite(0.02, desorbed=False, converged=True, corrected=0.42, corrected_std=0.3)


class Table:
    """Reference energies: E_form = −0.5 eV/atom, hull −0.55 eV/atom; no reference for Au."""

    elements = {"Mo", "S", "W", "C", "Cu", "B", "N", "Nb", "Se"}

    def e_form(self, atoms: Atoms, energy: float) -> float:
        return -0.5

    def hull_energy(self, formula: str) -> float:
        return -0.55

    def e_above_hull(self, atoms: Atoms, energy: float) -> float:
        return 0.05

    def decomposition(self, formula: str) -> dict[str, float]:
        return {"MoS2 2H": 1.0}

    def decided_by_entries(self, formula: str) -> bool:
        return False


@dataclass
class SiteTable:
    """What ``hydrogen.SheetHER`` offers."""

    sheet: Atoms
    supercell: tuple[int, int]
    sites: list
    delta_g: np.ndarray
    std: np.ndarray
    coverage: float
    band_gap: float
    status: str = "ok"
    in_domain: bool = True
    domain_reason: str = ""

    @property
    def best(self) -> int | None:
        return int(np.argmin(self.delta_g)) if len(self.delta_g) else None


class Hydrogen:
    """ΔG_H of site k is −0.05 + 0.1·k eV, so that the best site has −0.05 eV; no DFT correction."""

    correction = None
    provenance: ClassVar[dict[str, str]] = {"sha256": "simple"}

    def __init__(self) -> None:
        self.gaps: list[float] = []  # that the correction of each sheet was given

    def predict_sheet(self, atoms: Atoms, settings: DatasetConfig, band_gap=None) -> SiteTable:
        if "Nb" in atoms.get_chemical_symbols():
            raise ValueError("Nb is not in the training records")
        primitive = geo_utils.primitive_sheet(atoms)
        sites = adsorption_sites(primitive)
        na, nb = h_supercell(primitive, settings.h_image_distance_angstrom)
        values = -0.05 + 0.1 * np.arange(len(sites))
        gap = band_gap(primitive) if band_gap is not None else math.nan
        self.gaps.append(gap)
        return SiteTable(primitive, (na, nb), sites, values, np.full(len(sites), 0.1), 1 / (na * nb), gap)

    def legacy_bare_output(self, atoms: Atoms) -> float:
        return -0.02 * len(atoms)

    def predict_raw(self, structures: list[Atoms]) -> tuple[np.ndarray, np.ndarray]:
        assert all(atoms.get_tags()[-1] == geo_utils.H_TAG for atoms in structures)
        return np.array([0.1 * len(atoms) for atoms in structures]), np.full(len(structures), 0.2)


class Synthesis:
    """P_synth = 0.8."""

    def score(self, structures: list[Atoms]) -> list[SimpleNamespace]:
        return [SimpleNamespace(p_synth=0.8, label_mass=0.99, status="ok") for _ in structures]


def judges(**changes) -> Judges:
    """Return a complete set of judges; keyword arguments replace single ones."""
    chosen = {
        "potential": Springs(),
        "references": Table(),
        "her": Hydrogen(),
        "synth": Synthesis(),
        "training_structures": no_training_structures,
        "identity": {"potential": {"name": "springs"}},
    }
    return Judges(**{**chosen, **changes})


def no_training_structures(reduced_formula: str) -> list:
    """Return what an empty training set has of a formula."""
    return []


def emt_judges() -> Judges:
    """Return judges with the potential EMT, which knows Cu, Pd and the like, and C, N, O, H."""
    potential = Potential("emt", {"name": "emt"}, EMT())
    return judges(potential=StabilityJudge(potential, SETTINGS))


def deadly_judges() -> Judges:
    """Return judges whose worker process dies on copper."""
    return judges(potential=Deadly())


class Deadly(Springs):
    """Ends its process, as a crash in compiled code does."""

    def relax(self, atoms: Atoms, bulk: bool) -> SimpleNamespace:
        if "Cu" in atoms.get_chemical_symbols():
            import os

            os._exit(9)
        return super().relax(atoms, bulk)


def slow_judges(cfg: Any, identity: Any = None, formulas: Any = None) -> Judges:
    """Return at once what ``judges.load_judges`` loads: judges that take a tenth of a second and have every element."""
    table = Table()
    table.elements = AnyElement()
    return judges(potential=SlowSprings(), references=table)


class SlowSprings(Springs):
    """Takes a tenth of a second, so that a run can be stopped between two candidates."""

    @property
    def potential(self) -> Potential:
        """Return what holds H on a finalist."""
        return still_potential("still")

    def relax(self, atoms: Atoms, bulk: bool) -> SimpleNamespace:
        sleep(0.1)
        return super().relax(atoms, bulk)


class AnyElement(frozenset):
    """Holds every element."""

    def __contains__(self, symbol: object) -> bool:
        return True

    def __rsub__(self, others: set) -> set:
        return set()


class Still(Calculator):
    """A potential under which nothing moves: E = -sum(1 + Z/100) eV, no forces, no stress."""

    implemented_properties = ["energy", "forces", "stress"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=()) -> None:
        sleep(0.002)
        super().calculate(atoms, properties, system_changes)
        self.results = {
            "energy": -float(np.sum(1 + atoms.numbers / 100)),
            "forces": np.zeros((len(atoms), 3)),
            "stress": np.zeros(6),
        }


def still_potential(name: str, checkpoint: str = "", device: str = "cpu") -> Potential:
    """Return what ``potentials.load_potential`` returns, with ``Still`` as its calculator."""
    return Potential(name, {"name": name, "sha256": "still"}, Still())
