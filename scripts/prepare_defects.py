"""Writes inputs for DFT of H at defects: vacancies of known sheets, single metal atoms in them, and edges.

    python -m scripts.prepare_defects [--config config.yaml] [section.key=value ...]

Reads   data/known_sheets.
Writes  run.output_dir/defects/NAME.extxyz: defect cell and the same with H, both relaxed by evaluation.potential.

``python3 scripts/verify_dft.py FOLDER --work-dir ... --database ...`` computes them; a file that is there stays. Metals are those
whose atoms in these places have closed shells, or nearly so, because the points are not spin-polarised.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import run_stage
from pipeline.settings import Config

if TYPE_CHECKING:
    from ase import Atoms  # whose import takes as long as --help

log = logging.getLogger("her2d")

# sheet -> (atom that is taken out, cells along a and b); with H some 12 to 20 atoms
VACANCIES = {
    "2H-MoS2": ("S", (2, 2)),
    "2H-MoSe2": ("Se", (2, 2)),
    "2H-MoTe2": ("Te", (2, 2)),
    "2H-WS2": ("S", (2, 2)),
    "2H-WSe2": ("Se", (2, 2)),
    "2H-NbS2": ("S", (2, 2)),
    "2H-TaSe2": ("Se", (2, 2)),
    "1T-PtS2": ("S", (2, 2)),
    "1T-PtSe2": ("Se", (2, 2)),
    "1T-PdTe2": ("Te", (2, 2)),
    "1T-SnS2": ("S", (2, 2)),
    "1T-ZrS2": ("S", (2, 2)),
}
# sheet -> (metals, atom whose place they take, cells)
SINGLE_ATOMS = {
    "graphene": (("Pt", "Pd", "Ti", "Zr", "Ru", "Mo", "W"), "C", (3, 3)),
    "h-BN": (("Pt", "Pd", "Mo", "Ti"), "N", (3, 3)),
    "2H-MoS2": (("Pt", "Pd", "Ru", "Rh", "Ir"), "S", (2, 2)),
}
# sheets of which zigzag ribbons are cut -> whether the metal edge bears chalcogen monomers
EDGES = {
    "2H-MoS2": (False, True),
    "2H-WS2": (False, True),
    "2H-MoSe2": (False,),
    "2H-WSe2": (False,),
    "2H-MoTe2": (False,),
    "2H-NbS2": (False,),
    "2H-TaSe2": (False,),
}
RIBBON_PERIODS = 2
RIBBON_ROWS = {False: 2, True: 3}  # the wider one is for the comparison with published edges
RIBBON_KPTS = (3, 1)  # along and across, as dense along as for the other points
FMAX, MAX_STEPS, MAX_H_STEPS = 0.03, 200, 200


def main(cfg: Config) -> None:
    """Relax every defect and H on it, and write what is missing."""
    from tqdm import tqdm

    from energetics.potentials import load_potential
    from pipeline.files import relative_name

    folder = Path(cfg.run.output_dir) / "defects"
    folder.mkdir(parents=True, exist_ok=True)
    settings = cfg.evaluation
    potential = load_potential(settings.potential, settings.potential_checkpoint, cfg.run.device)
    systems = list(all_systems())
    for name, family, sheet, place, metal in tqdm(systems, desc="defects", unit="sheet"):
        path = folder / f"{name}.extxyz"
        if not path.is_file() and (problem := write_defect(path, name, family, sheet, place, metal, potential)):
            log.warning("%s is left out: %s", name, problem)
    print(f"{len(list(folder.glob('*.extxyz')))} of {len(systems)} defects are in {relative_name(folder)}")


def all_systems() -> Any:
    """Yield name, family, defect cell (Atoms), place of H (3,) Å and metal ("" unless it is a single atom) of every defect."""
    from crystals.cif import read_cif
    from energetics.defect_sites import single_atom, vacancy, zigzag_ribbon
    from evaluation.known_sheets import CIFS
    from geo_utils import primitive_sheet

    for host, (symbol, cells) in VACANCIES.items():
        sheet, place = vacancy(primitive_sheet(read_cif(CIFS / f"{host}.cif")), symbol, cells)
        yield f"{host}-vacancy-{symbol}", f"vacancy in {host}", sheet, place, ""
    for host, (metals, symbol, cells) in SINGLE_ATOMS.items():
        for metal in metals:
            sheet = single_atom(primitive_sheet(read_cif(CIFS / f"{host}.cif")), metal, symbol, cells)
            yield f"{host}-{metal}", f"single atom in {host}", sheet, sheet.positions[-1], metal
    for host, edges in EDGES.items():
        for with_monomers in edges:
            sheet = primitive_sheet(read_cif(CIFS / f"{host}.cif"))
            ribbon, starts = zigzag_ribbon(sheet, RIBBON_ROWS[with_monomers], RIBBON_PERIODS, with_monomers)
            ribbon.info["kpts"] = RIBBON_KPTS
            for kind, place in starts.items():
                yield f"{host}-edge{'50' * with_monomers}-{kind}", f"edge of {host}", ribbon, place, ""


def write_defect(path: Path, name: str, family: str, sheet: Atoms, place: Any, metal: str, potential: Any) -> str:
    """Relax a defect and H on it and write both; return what is wrong, empty where nothing is.

    Args:
        path: of the file.
        name, family, sheet, place, metal: as ``all_systems`` yields them.
        potential: relaxes in the fixed cell of the host.
    """
    from energetics.defect_sites import hydrogen_above
    from energetics.dft_inputs import site_label, write_dft_input
    from energetics.relaxation import relax_hydrogen, relax_positions

    about = {"family": family, **sheet.info}
    clean = relax_positions(sheet, potential, FMAX, MAX_STEPS)
    if clean.status != "ok":
        return f"the defect is {clean.status}"
    start = clean.atoms.positions[-1] if metal else place
    with_h = relax_hydrogen(hydrogen_above(clean.atoms, start, metal), clean.energy, potential, FMAX, MAX_H_STEPS)
    if with_h.status != "ok":
        return f"H is {with_h.status}"
    write_dft_input(path, name, clean.atoms, [(site_label(with_h.atoms), with_h)], potential.name, **about)
    return ""


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "evaluation")))
