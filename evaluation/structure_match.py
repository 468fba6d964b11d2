"""Compares predicted sheets with those on record: held-out rows, their distance by StructureMatcher, and rates of matches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crystals.recipes import FORMULA, Recipe
from crystals.templates import TemplateLibrary
from evaluation.statistics import rate_metric
from generation.candidates import SampleStore, plan_candidate
from generation.generate import CHECKPOINT_HINT
from generation.refinement import load_refiner, refine
from generation.sampling import sample
from generation.sheet_table import read_split, sheet_of
from geo_utils import Sheet
from models import load_denoiser
from networks.training import fingerprint
from pipeline.cli import resolve_device
from pipeline.errors import StageError
from pipeline.files import file_sha256
from pipeline.settings import Config

CLOSE_MATCH = 0.1  # normalised root mean square distance of a match that cannot be another polymorph
# DiffCSP's settings. Sheets are compared in boxes of thickness + 4 Å (``judging.match_structure``): in 20 Å of vacuum the tolerance
# grows with the cube root of the volume per atom and would pass nearly anything.
CSP_MATCHER = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10}
SIZE_GROUPS = ((1, 4), (5, 6), (7, 8), (9, 12), (13, 20), (21, 40))


@dataclass(frozen=True)
class HeldOut:
    """A sheet of the test split."""

    uid: str
    formula: str
    sheet: Sheet

    @property
    def composition(self) -> tuple[int, ...]:
        """Return the sorted atomic numbers of its atoms."""
        return tuple(sorted(self.sheet.atomic_numbers.tolist()))


def held_out_sheets(processed_dir: str | Path, max_atoms: int, rows: int, seed: int) -> list[HeldOut]:
    """Draw up to ``rows`` sheets of the test split with at most ``max_atoms`` atoms."""
    table = read_split(Path(processed_dir) / "test.pt")
    sizes = (table["ptr"][1:] - table["ptr"][:-1]).numpy()
    allowed = np.flatnonzero(sizes <= max_atoms)
    if not len(allowed):
        raise StageError(f"no sheet of the test split has {max_atoms} atoms or fewer: raise benchmark.csp_max_atoms")
    chosen = np.sort(np.random.default_rng([seed, 0xC5]).permutation(allowed)[:rows])
    return [HeldOut(table["uid"][k], table["formula"][k], sheet_of(table, int(k))) for k in chosen]


def polymorphs(processed_dir: str | Path) -> dict[tuple[int, ...], list[Sheet]]:
    """Return the sheets of the test split by composition."""
    table = read_split(Path(processed_dir) / "test.pt")
    result: dict[tuple[int, ...], list[Sheet]] = {}
    for k, (uid, formula) in enumerate(zip(table["uid"], table["formula"], strict=True)):
        row = HeldOut(uid, formula, sheet_of(table, k))
        result.setdefault(row.composition, []).append(row.sheet)
    return result


def diffusion_samples(cfg: Config, rows: Sequence[HeldOut], count: int, folder: Path) -> dict[int, list[Sheet]]:
    """Sample ``count`` sheets of the composition of each row, unguided, with the templates of its library.

    Rows that the denoiser's first weights have seen, or with elements that it has not, are left out.

    Args:
        cfg: settings.
        rows: the sheets to predict.
        count: samples of each.
        folder: where samples are kept, for a run that is stopped.

    Returns:
        By the number of the row, its samples in order.

    Raises:
        StageError: all rows are left out.
    """
    device, seed = resolve_device(cfg.run), cfg.run.seed
    model, content = load_denoiser(cfg.denoiser.checkpoint, CHECKPOINT_HINT, device)
    model = model.double()
    elements, seen = set(content["elements"]), set(content.get("formulas_of_init", []))
    allowed = [k for k, row in enumerate(rows) if set(row.composition) <= elements and row.formula not in seen]
    if not allowed:
        raise StageError("no held-out sheet is unseen and of elements that the model was trained on")
    generation = dataclasses.replace(cfg.generation, guidance_scale=0.0, cfg_scale=0.0)
    unused = {
        "output_dir": "",
        "batch_size": 0,
        "recipes": [],
        "refine_samples": False,
        "refine_steps": 0,
        "refiner_checkpoint": "",
    }
    about = {
        "generation": dataclasses.asdict(generation) | unused,
        "seed": seed,
        "checkpoint_sha256": file_sha256(cfg.denoiser.checkpoint),
        "rows": [rows[k].uid for k in allowed],
    }
    store = SampleStore(folder, fingerprint(about))
    recipes = [Recipe(rows[k].formula, tuple(rows[k].sheet.atomic_numbers.tolist()), FORMULA) for k in allowed]
    library = TemplateLibrary.from_state_dict(content.get("templates", []))
    numbers = range(count * len(allowed))  # sample s of row k is number s · rows + k
    missing = [plan_candidate(k, recipes, library, generation.template_share, seed) for k in numbers if k not in store.sheets]
    with tqdm(total=len(numbers), initial=len(numbers) - len(missing), desc="sampling", unit="sheet") as bar:
        for start in range(0, len(missing), generation.batch_size):
            batch = missing[start : start + generation.batch_size]
            indices, templates = [plan.index for plan in batch], [plan.template for plan in batch]
            compositions = [plan.atomic_numbers for plan in batch]
            store.add(indices, sample(model, compositions, indices, generation, seed, device, templates=templates))
            bar.update(len(batch))
    return {row: [store.sheets[s * len(allowed) + place] for s in range(count)] for place, row in enumerate(allowed)}


def refined_samples(cfg: Config, rows: Sequence[HeldOut], sampled: dict[int, list[Sheet]], steps: int) -> dict[int, list[Sheet]]:
    """Return samples of rows as the refiner moves them in some steps, without the rows whose formula it has seen.

    Raises:
        StageError: it has seen all.
    """
    network, content = load_refiner(cfg.generation.refiner_checkpoint)
    seen = set(content.get("formulas_seen", []))
    moved = {k: refine(network, sheets, steps) for k, sheets in sampled.items() if rows[k].formula not in seen}
    if not moved:
        raise StageError("the refiner has seen every sheet of the test split: the data set was split in another way")
    return moved


def match_distance(sampled: Sheet, truth: Sheet) -> float:
    """Return the root mean square distance of matched atoms over (V/N)^(1/3), by StructureMatcher; NaN where they do not match."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from crystals.matching import MATCH_VACUUM

    found = StructureMatcher(**CSP_MATCHER).get_rms_dist(
        sampled.to_structure(vacuum=MATCH_VACUUM), truth.to_structure(vacuum=MATCH_VACUUM)
    )
    return float("nan") if found is None else float(found[0])


def match_rates(distances: np.ndarray, sizes: np.ndarray, seed: int, resamples: int) -> dict[str, Any]:
    """Return match@1 and match@k with their mean distances and 95 % intervals, overall and by number of atoms.

    distances: (rows, k), NaN for no match; the first sample is @1, the best of all k is @k.
    """
    rng = np.random.default_rng(seed)
    samples = distances.shape[1]

    def scores(rows: np.ndarray) -> dict[str, Any]:
        part = distances[rows]
        result: dict[str, Any] = {"n": len(part)}
        for count in sorted({1, samples}):
            matched = np.isfinite(part[:, :count]).any(1)
            rate = rate_metric("match", matched.tolist(), better=1, doc="", resamples=resamples, rng=rng)
            best = np.nanmin(part[matched, :count], 1) if matched.any() else np.array([])
            result[f"match@{count}"] = rate.value
            result[f"match@{count}_interval"] = [rate.low, rate.high]
            result[f"mean_rmsd@{count}"] = float(best.mean()) if len(best) else None
        return result

    result = scores(np.arange(len(sizes)))
    groups = [(low, high, np.flatnonzero((sizes >= low) & (sizes <= high))) for low, high in SIZE_GROUPS]
    result["by_atoms"] = {f"{low}-{high}": scores(rows) for low, high, rows in groups if len(rows)}
    return result
