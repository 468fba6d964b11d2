"""Fits the trees that choose among the prototypes of a composition.

Reads   dataset.processed_dir/train.pt and val.pt (stage 2).
Writes  ranker.checkpoint and its sidecar .json.
Run     python -m scripts.train_ranker      about a quarter of an hour on one core for 11,000 sheets

Every composition of these splits is predicted from the crystals of other formulas. Two sets of trees are fitted, and their mean
ranks: to one a candidate is right where it lies over any sheet on record, and counts by the share of these, to the other where it
lies over the most stable one. Set generation.ranker_checkpoint to the result.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import run_stage
from pipeline.errors import StageError
from pipeline.files import file_sha256, relative_name
from pipeline.provenance import write_sidecar
from pipeline.settings import Config

if TYPE_CHECKING:
    import numpy as np

    from crystals.prototype_library import PrototypeLibrary
    from geo_utils import Sheet

STAGE = "train_ranker.py"
FOLDS = 5  # the exchange of elements is counted without the fifth of the formulas that a composition is in
RIGHT = 0.12  # normalised distance by alignment that agrees best with StructureMatcher's 0.1
MATCH_HEIGHT = 4.0  # Å, added to the thickness of a sheet for its volume


def main(cfg: Config) -> None:
    """Label the candidates of every composition, fit the trees and write the products."""
    import numpy as np

    from generation.ranking import prototype_library, save_trees
    from generation.sheet_table import known_paths, read_known, sheet_of
    from networks.boosted_trees import BoostedTrees

    settings = cfg.ranker
    table = read_known(cfg.dataset.processed_dir)
    sheets = [sheet_of(table, row) for row in range(len(table["uid"]))]
    library = prototype_library(table)
    x, share, stable = examples(library, sheets, settings.max_atoms)
    if not stable.any() or (share > 0).all():
        raise StageError("no composition of the training set has right and wrong prototypes: there is nothing to learn from")
    about = {"min_samples_leaf": min(40, max(len(x) // 20, 1)), "l2_regularization": 10.0, "max_features": 0.2}
    weights = np.where(share > 0, share, 1.0)
    any_sheet = BoostedTrees.fit(x, share > 0, settings, cfg.run.seed, classify=True, weights=weights, **about)
    most_stable = BoostedTrees.fit(x, stable, settings, cfg.run.seed, classify=True, **about)
    trees, right = BoostedTrees.mean([any_sheet, most_stable]), int((share > 0).sum())
    checkpoint = Path(settings.checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    save_trees(checkpoint, trees, formulas_seen=sorted(set(table["formula"])))
    write_sidecar(
        checkpoint,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=known_paths(cfg.dataset.processed_dir),
        counts={"sheets": len(sheets), "prototypes": len(library.prototypes), "candidates": len(x), "right": right},
        metrics={},
        checkpoint_sha256=file_sha256(checkpoint),
    )
    print(f"ranker: {relative_name(checkpoint)}, of {len(x):,} candidates {right:,} right")


def examples(library: PrototypeLibrary, sheets: list[Sheet], max_atoms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the candidates of all compositions.

    sheets: of the library, in its order.

    Returns:
        (x, share, stable): descriptors (n, COLUMNS), the share of the sheets on record that each lies over, (n,), and whether it
        lies over the most stable of these, (n,) bool.
    """
    import numpy as np
    from tqdm import tqdm

    from crystals.prototype_library import COLUMNS, descriptors

    folds = np.array([zlib.crc32(formula.encode()) % FOLDS for formula in library.formulas])
    outside = [library.exchange_ratios(frozenset(library.formulas[folds == fold])) for fold in range(FOLDS)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, sheet in enumerate(sheets):
        if len(sheet) <= max_atoms:
            groups.setdefault(tuple(sorted(sheet.atomic_numbers.tolist())), []).append(row)
    x, share, stable = [np.zeros((0, COLUMNS))], [np.zeros(0)], [np.zeros(0, dtype=bool)]
    for numbers, rows in tqdm(sorted(groups.items()), desc="candidates", unit="composition", mininterval=1.0):
        candidates = library.candidates(numbers, without=library.formulas[rows[0]])
        if candidates:
            x.append(descriptors(library, candidates, outside[folds[rows[0]]]))
            found = [candidate.sheet() for candidate in candidates]
            over = np.array([[distance(sheet, sheets[row]) <= RIGHT for row in rows] for sheet in found])
            share.append(over.mean(1))
            stable.append(over[:, library.e_hull[rows].argmin()])
    return np.concatenate(x), np.concatenate(share), np.concatenate(stable)


def distance(sheet: Sheet, record: Sheet) -> float:
    """Return the root mean square distance of two sheets of one composition over (V/N)^(1/3); inf where their cells differ."""
    import numpy as np

    from crystals.alignment import Layout, align

    elements = sorted(set(record.atomic_numbers.tolist()))
    layouts = [
        Layout(np.searchsorted(elements, x.atomic_numbers), x.frac_coords, x.heights - x.heights.mean(), x.lattice)
        for x in (record, sheet)
    ]
    found = align(*layouts, 1.0, [np.arange(len(elements))])
    size = (record.area * (np.ptp(record.heights) + MATCH_HEIGHT) / len(record)) ** (1 / 3)
    return found.distance / size if found else float("inf")


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "ranker")))
