"""Candidates: plans, sampling in resumable batches, validity, symmetry and export."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms
from tqdm import tqdm

from crystals.recipes import FORMULA, Recipe, is_formula, recipe_template
from crystals.symmetry import Symmetry, Template, symmetrise
from crystals.templates import TemplateLibrary, quasirandom_suggestion
from crystals.validity import sheet_fault
from generation.batch import Denoiser
from generation.elements import LAST, REDRAWS
from generation.refinement import refined_sheets
from generation.sampling import sample
from generation.sheet_table import DATASET_STAGE, known_paths
from geo_utils import Sheet
from networks.training import fingerprint
from pipeline.files import file_sha256, missing_file
from pipeline.settings import Config, GenerationConfig
from pipeline.store import FolderStore
from pipeline.tasks import Processes, Serial, run

MAX_ROUNDS = 5  # of at most oversample x num_structures sheets, while too few are valid
SCREENING = "screening"
PARTIAL_DIR = ".partial"
MANIFEST = "manifest.json"


class Starts(Protocol):
    """Known crystals that formulas start from."""

    def nearest(self, atomic_numbers: Sequence[int], most: int) -> list[Sheet]:
        """Return at most ``most`` sheets of a composition, the best first."""


@dataclass
class Candidate:
    """A sampled sheet, its recipe, and the results of its checks."""

    index: int
    recipe: Recipe
    sheet: Sheet
    template_layer_group: int = 0  # number of the layer group of its template; 0: sampled without one
    symmetry: Symmetry | None = None
    status: str = "ok"  # see ``check_validity``

    @property
    def name(self) -> str:
        """Return the name of its files, without suffix."""
        return f"gen_{self.index:05d}"


def check_validity(sheet: Sheet, settings: GenerationConfig) -> str:
    """Return 'ok', or the first reason to reject a sheet: 'clash', 'disconnected' or 'too thick'."""
    if fault := sheet_fault(sheet.to_atoms(settings.vacuum_angstrom), settings.clash_factor):
        return fault
    return "too thick" if sheet.thickness > settings.max_thickness_angstrom else "ok"


def generation_fingerprint(cfg: Config, checkpoint_hash: str, prefilter: dict[str, Any] | None = None) -> str:
    """Return the hash of what the products depend on: settings, seed, model and judges, but not batch size, folder and shard.

    Args:
        cfg: the settings.
        checkpoint_hash: of the model.
        prefilter: what the verdicts of the prefilter depend on; None: there is none.
    """
    settings = asdict(cfg.generation)
    for name in ("batch_size", "output_dir", "prefilter", "shard"):
        del settings[name]
    content = {"settings": settings, "seed": cfg.run.seed, "checkpoint": checkpoint_hash}
    content |= {"prefilter": prefilter} if prefilter else {}
    # What a run does not use does not change its products, nor the fingerprints of runs that were made before there was any of it.
    about_refining = {name: settings.pop(name) for name in ("refine_steps", "refine_samples")}
    for name in ("refiner_checkpoint", "start", "ranker_checkpoint", "elements_checkpoint"):
        del settings[name]
    if cfg.generation.recipes:
        del settings["element_draws"]
    if uses_elements(cfg.generation) and cfg.generation.guidance_scale > 0:
        content |= {"last_elements": LAST, "redraws": REDRAWS}
    files = further_inputs(cfg)
    content |= {"start": SCREENING} if cfg.generation.start == SCREENING else {}
    return fingerprint(
        content | {name: file_sha256(path) for name, path in files.items()} | (about_refining if "refiner" in files else {})
    )


def further_inputs(cfg: Config) -> dict[str, Path]:
    """Return the files that a run reads beside the model, where it uses them: ``elements``, ``refiner``, ``crystals``, ``ranker``.

    Raises:
        StageError: there are no crystals.
    """
    settings, files = cfg.generation, {}
    from_crystals = starts_from_crystals(cfg)
    filled = uses_elements(settings)
    if filled:
        files["elements"] = Path(settings.elements_checkpoint)
    if settings.refine_steps and (settings.refine_samples or from_crystals or filled):
        files["refiner"] = Path(settings.refiner_checkpoint)
    if from_crystals:
        files |= dict(zip(("crystals", "more_crystals"), crystal_paths(cfg), strict=False))
        if settings.ranker_checkpoint:
            files["ranker"] = Path(settings.ranker_checkpoint)
    if missing := next((name for name in ("elements", "refiner", "ranker") if name in files and not files[name].is_file()), None):
        raise missing_file(f"generation.{missing}_checkpoint", files[missing], f"set it to weights/{missing}.pth")
    return files


def uses_elements(settings: GenerationConfig) -> bool:
    """Return whether recipes are drawn by the diffusion of elements."""
    return settings.start != SCREENING and not settings.recipes


def starts_from_crystals(cfg: Config) -> bool:
    """Return whether some recipes start from crystals: all in a screening, else the formulas of ``generation.recipes``."""
    settings = cfg.generation
    return settings.start == SCREENING or (settings.start == "crystal" and any(map(is_formula, settings.recipes)))


def crystal_paths(cfg: Config) -> list[Path]:
    """Return the files of the crystals that formulas start from: ``known_paths`` of stage 2, else the database itself.

    Raises:
        StageError: there is neither, or one of the splits is missing.
    """
    splits, database = known_paths(cfg.dataset.processed_dir), Path(cfg.dataset.db_path)
    missing = [path for path in splits if not path.exists()]
    if not missing:
        return splits
    if len(missing) < len(splits):
        raise missing_file("dataset.processed_dir", missing[0], f"run {DATASET_STAGE}")
    if database.exists():  # it may be a folder of structures
        return [database]
    raise missing_file("dataset.db_path", cfg.dataset.db_path, "name a database, or set generation.start=noise")


class SampleStore:
    """Store of the sheets that an unfinished run has sampled, one file a batch.

    Args:
        folder: of the batches.
        fingerprint: of the run; batches of another one are discarded.
        also: folders of further batches, which are only read.

    ``sheets`` has the stored sheets by candidate number.
    """

    def __init__(self, folder: Path, fingerprint: str, also: Sequence[Path] = ()):
        self.sheets: dict[int, Sheet] = {}
        for place in (*also, folder):  # batches of two folders may have one name
            self._batches = FolderStore(place, {"fingerprint": fingerprint}, check=_sheets_of, prefix="batch_")
            for key in self._batches:
                self.sheets.update(_sheets_of(self._batches[key]))

    def add(self, indices: Sequence[int], sheets: Sequence[Sheet]) -> None:
        """Store a finished batch: candidate numbers and their sheets, in the same order."""
        rows = [
            {"index": k, **{name: value.tolist() for name, value in vars(s).items()}} for k, s in zip(indices, sheets, strict=True)
        ]
        self._batches.add(f"{indices[0]:06d}", {"sheets": rows})
        self.sheets.update(zip(indices, sheets, strict=True))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._batches.folder, ignore_errors=True)


def _sheets_of(batch: dict[str, Any]) -> dict[int, Sheet]:
    """Return the sheets of a stored batch by candidate number. Raises KeyError, TypeError or ValueError for a damaged one."""
    return {
        row["index"]: Sheet(
            np.array(row["atomic_numbers"], dtype=np.int64),
            np.array(row["frac_coords"], dtype=float).reshape(-1, 2),
            np.array(row["heights"], dtype=float),
            np.array(row["lattice"], dtype=float),
        )
        for row in batch["sheets"]
    }


@dataclass(frozen=True)
class Plan:
    """Recipe, template and atoms that a candidate is sampled from."""

    index: int  # number of the candidate
    recipe: Recipe
    template: Template | None  # its noise stays within the symmetry of this template
    atomic_numbers: tuple[int, ...]  # in the order of the template's atoms
    start: Sheet | None = None  # a known crystal with the elements of the recipe, instead of noise


def plan_candidate(
    index: int,
    recipes: Sequence[Recipe],
    library: TemplateLibrary,
    share: float,
    seed: int,
    crystals: Starts | None = None,
    screening: bool = False,
) -> Plan:
    """Choose recipe and template, or start, of one candidate.

    Candidate k takes recipe k, cyclically. A recipe of a family has the template of the family. A formula takes the nearest of the
    known crystals in turn, where these are given and one fits; or the templates that the library suggests for it, in turn. In a
    screening recipes of a family take crystals as well.

    Args:
        index: number of the candidate.
        recipes: in the order in which candidates take them.
        library: templates of the training set.
        share: fraction of the candidates that have a template; which ones depends on seed and number alone.
        seed: of that choice.
        crystals: what formulas start from; None: noise.
        screening: whether all recipes do.
    """
    recipe = recipes[index % len(recipes)]
    free = Plan(index, recipe, None, recipe.atomic_numbers)
    if recipe.start is not None:
        return replace(free, start=recipe.start)
    if crystals is not None and (screening or recipe.family == FORMULA):
        turn = index // len(recipes)
        found = crystals.nearest(recipe.atomic_numbers, turn + 1)
        if found:
            return replace(free, start=found[turn % len(found)])
    if np.random.default_rng([seed, 0x7E, index]).random() >= share:
        return free
    if recipe.family != FORMULA:
        return replace(free, template=recipe_template(recipe))
    suggestions = library.suggest(recipe.atomic_numbers)
    if not suggestions:
        return free
    taken = quasirandom_suggestion(suggestions, index // len(recipes))
    return Plan(index, recipe, taken.template, taken.atomic_numbers)


def sample_candidates(
    model: Denoiser, plans: Sequence[Plan], cfg: Config, store: SampleStore, device: Any, workers: Processes | None = None
) -> list[Candidate]:
    """Sample the planned candidates in batches, except those in the store, and return all of them in the order of the plans.

    Several batches go to the workers, where there are any, which load the same model.
    """
    settings = cfg.generation
    missing = [plan for plan in plans if plan.index not in store.sheets]
    if started := [plan for plan in missing if plan.start is not None]:
        store.add([plan.index for plan in started], refined([plan.start for plan in started], settings))
        missing = [plan for plan in missing if plan.start is None]
    num_steps = len(model.schedule.timesteps(settings.num_steps)) - 1
    parts = [missing[start : start + settings.batch_size] for start in range(0, len(missing), settings.batch_size)]
    batches = {str(batch[0].index): batch for batch in parts}
    in_workers = workers is not None and len(batches) > 1
    with tqdm(
        total=len(missing) * num_steps, desc="sampling", unit="step", unit_scale=True, mininterval=1.0, disable=not missing
    ) as bar:
        if in_workers:
            finished = run(partial(_sample_batch, settings, cfg.run.seed, "cpu", None), batches, None, workers)
        else:
            work = partial(_sample_batch, settings, cfg.run.seed, device, bar.update)
            finished = run(work, batches, None, Serial(lambda: model))
        for key, sheets in finished:
            store.add([plan.index for plan in batches[key]], sheets)
            bar.update(len(sheets) * num_steps if in_workers else 0)
    return [
        Candidate(plan.index, plan.recipe, store.sheets[plan.index], plan.template.layer_group if plan.template else 0)
        for plan in plans
    ]


def _sample_batch(
    settings: GenerationConfig,
    seed: int,
    device: Any,
    progress: Callable[[int], Any] | None,
    model: Denoiser,
    plans: Sequence[Plan],
) -> list[Sheet]:
    """Return the sheets of some plans. ``progress`` is told how many steps of single sheets are done."""
    on_step = partial(progress, len(plans)) if progress else None
    compositions, indices = [plan.atomic_numbers for plan in plans], [plan.index for plan in plans]
    sheets = sample(model, compositions, indices, settings, seed, device, on_step, [plan.template for plan in plans])
    return refined(sheets, settings) if settings.refine_samples else sheets


def refined(sheets: list[Sheet], settings: GenerationConfig, dtype: torch.dtype = torch.float64) -> list[Sheet]:
    """Return sheets as ``generation.refine_steps`` of the refiner leave them. dtype: as of ``refined_sheets``."""
    return refined_sheets(settings.refiner_checkpoint, sheets, settings.refine_steps, dtype) if settings.refine_steps else sheets


def finish_candidates(candidates: list[Candidate], settings: GenerationConfig) -> None:
    """Check and symmetrise candidates in place. Where the symmetrised sheet is invalid, the sampled one stays, as P1."""
    for candidate in tqdm(candidates, desc="checking", unit="sheet", mininterval=1.0):
        candidate.status = check_validity(candidate.sheet, settings)
        if candidate.status != "ok":
            continue
        symmetric, symmetry = symmetrise(candidate.sheet, settings.symprec_angstrom)
        if check_validity(symmetric, settings) != "ok":
            symmetric, symmetry = candidate.sheet, Symmetry("P1", 1, 1, 0.0)
        candidate.sheet, candidate.symmetry = symmetric, symmetry


def export_atoms(sheet: Sheet, vacuum: float) -> Atoms:
    """Return ASE atoms rounded to 1e-6 (Å and fractional), from which both CIF and extxyz are written; vacuum in Å."""
    atoms = sheet.to_atoms(vacuum)
    cell = np.round(atoms.cell.array, 6)
    scaled = np.round(atoms.get_scaled_positions(wrap=False), 6) % 1.0
    return Atoms(numbers=atoms.numbers, scaled_positions=scaled + 0.0, cell=cell + 0.0, pbc=(True, True, False))


def replace_products(new: Path, folder: Path) -> None:
    """Replace the products of an earlier run in ``folder`` by the finished ones in ``new``.

    Files are only renamed, so that a full disk cannot leave half of a product. The manifest is deleted first and renamed last:
    after a kill in between there is none, and the next run repeats this step.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    names = sorted((path.name for path in new.iterdir()), key=lambda name: (name == MANIFEST, name))
    for stale in folder.glob("gen_*.cif"):
        if stale.name not in names:
            stale.unlink()
    for name in names:
        os.replace(new / name, folder / name)
