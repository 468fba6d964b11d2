"""Writes the structures of the baseline, the set of another project with which ours is compared, as CIFs.

``data/baseline_structures.json`` holds them as numbers, and names their source.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.geometry import cellpar_to_cell

from crystals.cif import cif_text
from crystals.validity import standardise
from pipeline.files import PROJECT_DIR, atomic_path
from pipeline.provenance import sidecar_path, write_sidecar
from pipeline.settings import DemoConfig, EvaluationConfig

TABLE = PROJECT_DIR / "data" / "baseline_structures.json"
STAGE = "prepare_demo_data.py"


def baseline_structures() -> dict[str, Atoms]:
    """Return id -> structure of the baseline, periodic in three directions, in Å."""
    structures = {}
    for row in json.loads(TABLE.read_text(encoding="utf-8"))["structures"]:
        cell = cellpar_to_cell(row["cell"])
        structures[row["id"]] = Atoms(row["elements"], cell=cell, scaled_positions=np.array(row["frac_coords"]), pbc=True)
    return structures


def write_baseline(settings: DemoConfig, seed: int) -> dict[str, int]:
    """Write a CIF of every structure of the baseline, and count them by their kind: sheet, bulk crystal, chain."""
    folder = Path(settings.baseline_cif_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sidecar_path(folder).unlink(missing_ok=True)  # of an earlier run: files are being replaced, and it comes last again
    structures = baseline_structures()
    for name, atoms in structures.items():
        with atomic_path(folder / f"{name}.cif") as temporary:
            temporary.write_text(cif_text(atoms, name), encoding="utf-8")
    vacuum = EvaluationConfig().min_vacuum_angstrom
    kinds = Counter(standardise(atoms, vacuum)[1].partition(":")[0].replace("2D", "sheet") for atoms in structures.values())
    counts = {"cifs": len(structures), "sheet": 0, **kinds}
    write_sidecar(folder, stage=STAGE, seed=seed, settings=settings, inputs=[TABLE], counts=counts)
    return counts
