"""Stage 4 as a function: chooses recipes, samples candidates, selects among the valid ones and writes the products.

The caller loads the network, because this package must not import its class.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

import ase.io
import numpy as np
import torch
from ase import Atoms

from crystals.cif_writer import in_cif_setting, symmetric_cif
from crystals.database import Row, read_rows
from crystals.formulas import cell_formula
from crystals.recipes import Recipe
from crystals.substitution import KnownCrystals
from crystals.templates import TemplateLibrary
from generation.batch import Denoiser, PropertyEstimate
from generation.candidates import (
    MANIFEST,
    MAX_ROUNDS,
    PARTIAL_DIR,
    SCREENING,
    Candidate,
    Plan,
    SampleStore,
    Starts,
    crystal_paths,
    export_atoms,
    finish_candidates,
    further_inputs,
    generation_fingerprint,
    plan_candidate,
    replace_products,
    sample_candidates,
    starts_from_crystals,
)
from generation.ranking import RankedPrototypes, ranked_prototypes
from generation.recipe_choice import choose_recipes, further_recipes, known_compositions
from generation.sampling import predict_properties, target_loss
from generation.search import Triage, by_heads, exceeds_quota, gumbel_keys, order_by_chance
from generation.shards import ELEMENTS, check_parts, remove_parts, sample_part, take_elements
from generation.sheet_table import known_crystals, pack, read_known
from pipeline.cli import resolve_device
from pipeline.errors import StageError
from pipeline.files import atomic_path, file_sha256, relative_name
from pipeline.locks import locked_folder
from pipeline.provenance import write_sidecar
from pipeline.settings import Config, GenerationConfig
from pipeline.shards import Shard, read_shard
from pipeline.store import LineStore
from pipeline.tasks import Processes, cpu_count

log = logging.getLogger("her2d")

STAGE = "structure_generator.py"
MOST_WORKERS = 16  # processes; each holds half a GB
PREFILTER_DIR = "prefilter"  # of the partial results
CHECKPOINT_HINT = "run optimization.py, or set denoiser.checkpoint to a trained model"


class Prefilter(Protocol):
    """Quick judges of sampled sheets."""

    identity: dict[str, Any]  # what its verdicts depend on

    def __call__(self, cif_dir: Path, output_dir: Path, delta_g: Mapping[str, float]) -> dict[str, tuple[float, bool]]:
        """Return (chance of a new hit, whether something speaks against it) of the CIFs of a folder, by name without suffix.

        delta_g: ΔG_H by the heads, eV, by the same names.
        """

    def triaging(self) -> AbstractContextManager[Triage]:
        """Yield what returns the chance of a hit (M,) of sheets that are not relaxed, from what the heads say of them."""


def uses_prefilter(settings: GenerationConfig) -> bool:
    """Return whether the judges look at sampled sheets before CIFs are drawn from these."""
    return settings.prefilter and settings.guidance_scale > 0 and not settings.recipes


def generate_structures(
    cfg: Config,
    model: Denoiser,
    content: dict[str, Any],
    load: Callable[[], Denoiser] | None = None,
    prefilter: Prefilter | None = None,
) -> None:
    """Sample, check, select and write the structures of ``generation.output_dir``; do nothing where they are complete.

    A part (``generation.shard``) is only sampled.

    Args:
        cfg: settings; ``run``, ``denoiser`` and ``generation`` are read.
        model: the trained network, on the device of ``run.device``. It is converted to float64.
        content: its checkpoint, with the elements, formulas and templates of the training set.
        load: loads the model, on the CPU in float64, in further processes; picklable. None: there are none.
        prefilter: where ``uses_prefilter``.

    Raises:
        StageError: no recipe is left to sample, no sampled sheet is valid, or parts to merge are not complete.
    """
    shard = read_shard(cfg.generation.shard)
    cfg = dataclasses.replace(cfg, generation=dataclasses.replace(cfg.generation, shard=""))
    model = model.double()
    checkpoint_hash = file_sha256(cfg.denoiser.checkpoint)
    folder = Path(cfg.generation.output_dir)
    fingerprint = generation_fingerprint(cfg, checkpoint_hash, prefilter.identity if prefilter else None)
    if is_complete(folder, fingerprint):
        log.info("%s is complete for these settings and this model; nothing to do", relative_name(folder))
        return

    own = folder if shard is None or shard.merges else shard.folder(folder)
    with locked_folder(own, "generation.output_dir"):
        with _workers(cfg, load) as workers:
            _generate(cfg, model, content, shard, fingerprint, checkpoint_hash, workers, prefilter)


def _workers(cfg: Config, load: Callable[[], Denoiser] | None) -> AbstractContextManager[Processes | None]:
    """Return further processes, one for each thread of this stage, or None where it is better off alone."""
    number = min(cfg.run.threads or cpu_count(), MOST_WORKERS)
    if load is None or number == 1 or resolve_device(cfg.run).type != "cpu":
        return nullcontext()
    return Processes(number, load)


def _generate(
    cfg: Config,
    model: Denoiser,
    content: dict[str, Any],
    shard: Shard | None,
    fingerprint: str,
    checkpoint_hash: str,
    workers: Processes | None,
    prefilter: Prefilter | None,
) -> None:
    """Do the work of ``generate_structures`` in its folder."""
    settings, seed, device = cfg.generation, cfg.run.seed, resolve_device(cfg.run)
    library = TemplateLibrary.from_state_dict(content.get("templates", []))
    folder = Path(settings.output_dir)
    is_part, merges = shard is not None and not shard.merges, shard is not None and shard.merges
    partial_dir = shard.folder(folder) if is_part else folder / PARTIAL_DIR
    log.info("what is finished is kept in %s: a run that is stopped goes on there", relative_name(partial_dir))
    if merges:
        take_elements(shard, folder, partial_dir / ELEMENTS)
    drawn = LineStore(partial_dir / ELEMENTS, {"fingerprint": fingerprint})
    recipes = choose_recipes(content, library, settings, seed, workers, drawn)
    crystals = known_starts(cfg)
    if settings.guidance_scale > 0 and not settings.recipes:
        known, redraw = known_compositions(content), partial(further_recipes, settings, content, library, seed)
        near = workers if crystals is None else None  # known crystals would travel to the workers with every batch
        with prefilter.triaging() if prefilter is not None else nullcontext(by_heads(settings)) as triage:
            recipes = order_by_chance(model, recipes, crystals, settings, device, triage, near, known, redraw)
    plan = planner(recipes, library, cfg, crystals)
    store = SampleStore(partial_dir, fingerprint, [part.folder(folder) for part in shard.parts()] if merges else ())
    first = [plan(k) for k in range(first_round(settings))] if shard is not None else []
    if is_part:
        sample_part(model, first, cfg, store, device, shard, workers)
        return
    if merges:
        check_parts(shard, folder, first, store)
    candidates = sample_until_enough(model, plan, cfg, store, device, workers)
    valid = [c for c in candidates if c.status == "ok"]
    if not valid:
        raise StageError(
            f"none of {len(candidates)} sampled sheets is valid ({_rejections(candidates)}); train the denoiser longer"
        )
    properties = predict_properties(model, [c.sheet for c in valid], device)
    verdicts = _prefiltered(prefilter, valid, properties, settings, partial_dir / PREFILTER_DIR) if prefilter else None
    selected, properties = select_candidates(valid, properties, settings, seed, verdicts)
    new = partial_dir / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    rows = write_products(selected, properties, new, settings)
    write_manifest(new, cfg, rows, candidates, len(recipes), fingerprint, checkpoint_hash)
    replace_products(new, folder)
    store.remove()
    if merges:
        remove_parts(shard, folder)
    _report(folder, candidates, rows, settings)


def planner(recipes: list[Recipe], library: TemplateLibrary, cfg: Config, crystals: Starts | None) -> Callable[[int], Plan]:
    """Return the function that plans a candidate by its number. crystals: what ``known_starts`` returns."""
    settings = cfg.generation
    fixed = {"recipes": recipes, "library": library, "share": settings.template_share, "seed": cfg.run.seed}
    return partial(plan_candidate, **fixed, crystals=crystals, screening=settings.start == SCREENING)


def first_round(settings: GenerationConfig) -> int:
    """Return the candidates of the first round; with gradient guidance ``oversample`` times as many, to select from."""
    return math.ceil(settings.num_structures * (settings.oversample if settings.guidance_scale > 0 else 1.0))


def sample_until_enough(
    model: Denoiser,
    plan: Callable[[int], Plan],
    cfg: Config,
    store: SampleStore,
    device: torch.device,
    workers: Processes | None = None,
) -> list[Candidate]:
    """Sample and check candidates until ``num_structures`` are valid, in at most ``MAX_ROUNDS`` rounds.

    plan: of a candidate by its number. Returns all candidates, valid or not.
    """
    settings = cfg.generation
    round_size = first_round(settings)
    candidates: list[Candidate] = []
    num_valid = 0
    for _ in range(MAX_ROUNDS):
        if candidates:  # later rounds make up for what was not valid
            missing = settings.num_structures - num_valid
            round_size = min(round_size, math.ceil(missing * len(candidates) / max(num_valid, 1)) + 1)
        plans = [plan(k) for k in range(len(candidates), len(candidates) + round_size)]
        fresh = sample_candidates(model, plans, cfg, store, device, workers)
        finish_candidates(fresh, settings)
        candidates += fresh
        num_valid = sum(c.status == "ok" for c in candidates)
        if num_valid >= settings.num_structures:
            break
    return candidates


def known_starts(cfg: Config) -> KnownCrystals | RankedPrototypes | None:
    """Return the crystals that recipes start from, ranked by ``generation.ranker_checkpoint`` where one is set.

    None where all recipes start from noise.
    """
    if not starts_from_crystals(cfg):
        return None
    paths = crystal_paths(cfg)
    what = "recipes" if cfg.generation.start == SCREENING else "formulas"
    log.info("%s start from the crystals of %s", what, " and ".join(map(relative_name, paths)))
    if len(paths) > 1:
        table = read_known(cfg.dataset.processed_dir)
    else:
        table = pack([row for *_, row in read_rows(cfg.dataset) if isinstance(row, Row)], {})
    if trees := cfg.generation.ranker_checkpoint:
        return ranked_prototypes(table, trees)
    return known_crystals(table)


def _prefiltered(
    prefilter: Prefilter, valid: list[Candidate], properties: PropertyEstimate, settings: GenerationConfig, folder: Path
) -> list[tuple[float, bool]]:
    """Return what the quick judges say of each candidate, see ``Prefilter``."""
    cifs = folder / "cifs"
    shutil.rmtree(cifs, ignore_errors=True)
    cifs.mkdir(parents=True)
    for candidate in valid:
        write_cif(candidate, cifs, settings)
    verdicts = prefilter(cifs, folder, dict(zip((c.name for c in valid), properties.delta_g.tolist(), strict=True)))
    return [verdicts[candidate.name] for candidate in valid]


def select_candidates(
    valid: list[Candidate],
    properties: PropertyEstimate,
    settings: GenerationConfig,
    seed: int,
    verdicts: Sequence[tuple[float, bool]] | None = None,
) -> tuple[list[Candidate], PropertyEstimate]:
    """Return at most ``num_structures`` of the valid candidates, in the order of sampling, and their predicted properties.

    With gradient guidance they are sampled without replacement with weights exp(−η L_target / 0.1 eV), η the guidance scale;
    candidates that exceed a quota (``exceeds_quota``) come last. With verdicts of the prefilter, those with the best chance of a
    hit are taken instead; where something else speaks against them, they come last too. Without guidance the first ones are taken,
    because neither heads nor judges must select a control.

    Args:
        valid: M candidates.
        properties: of them by the heads, (M,) each.
        settings: guidance and quotas.
        seed: of the draw.
        verdicts: M of the prefilter; None: there is none.
    """
    chosen = np.arange(len(valid))
    if settings.guidance_scale > 0:
        loss = np.round(target_loss(properties, settings).double().numpy(), 6)
        chosen = np.argsort(-gumbel_keys(loss, [c.index for c in valid], settings.guidance_scale, seed), kind="stable")
        if verdicts is not None:
            chance, held_back = np.array([v[0] for v in verdicts]), np.array([v[1] for v in verdicts])
            chosen = chosen[np.lexsort((-chance[chosen], held_back[chosen]))]
        if not settings.recipes:
            last = exceeds_quota([valid[k].recipe for k in chosen], settings)
            if verdicts is not None:
                last |= held_back[chosen]
            chosen = chosen[np.argsort(last, kind="stable")]
    chosen = np.sort(chosen[: settings.num_structures])
    picked = torch.as_tensor(chosen)
    properties = PropertyEstimate(properties.delta_g[picked], properties.e_hull[picked], properties.synth_logit[picked])
    return [valid[k] for k in chosen], properties


def write_cif(candidate: Candidate, folder: Path, settings: GenerationConfig) -> Atoms:
    """Write the CIF of a candidate to a folder, and return the atoms as it has them."""
    atoms = in_cif_setting(export_atoms(candidate.sheet, settings.vacuum_angstrom))
    with atomic_path(folder / f"{candidate.name}.cif") as temporary:
        temporary.write_text(symmetric_cif(atoms, candidate.name), encoding="utf-8")
    return atoms


def write_products(
    selected: list[Candidate], properties: PropertyEstimate, folder: Path, settings: GenerationConfig
) -> list[dict[str, Any]]:
    """Write one CIF per candidate, with its symmetry, and ``candidates.extxyz`` to an empty folder; both in the order of the CIF.

    Args:
        selected: M candidates.
        properties: their predicted properties, (M,) each.
        folder: where the files go.
        settings: ``vacuum_angstrom`` is read.

    Returns:
        One row of the manifest per candidate.
    """
    rows, frames = [], []
    for k, candidate in enumerate(selected):
        symmetry = candidate.symmetry
        row = {
            "id": candidate.name,
            "formula": cell_formula(candidate.recipe.formula),
            "family": candidate.recipe.family,
            "num_atoms": len(candidate.sheet),
            "delta_g_pred": round(float(properties.delta_g[k]), 4),
            "e_hull_pred": round(float(properties.e_hull[k]), 4),
            "p_synth_pred": round(float(torch.sigmoid(properties.synth_logit[k])), 4),
            "space_group": symmetry.space_group,
            "space_group_number": symmetry.space_group_number,
            "layer_group_number": symmetry.layer_group_number,
            "symmetry_tolerance": symmetry.tolerance,
            "template_layer_group": candidate.template_layer_group,
            "thickness": round(candidate.sheet.thickness, 4),
        }
        atoms = write_cif(candidate, folder, settings)
        atoms.info.update(row)
        rows.append(row)
        frames.append(atoms)
    buffer = StringIO()
    ase.io.write(buffer, frames, format="extxyz")
    with atomic_path(folder / "candidates.extxyz") as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")
    return rows


def write_manifest(
    folder: Path,
    cfg: Config,
    rows: list[dict[str, Any]],
    candidates: list[Candidate],
    num_recipes: int,
    fingerprint: str,
    checkpoint_hash: str,
) -> None:
    """Write the sidecar of the products: counts of all sampled candidates, mean predictions, and one row per exported candidate."""
    settings = cfg.generation
    files = [f"{row['id']}.cif" for row in rows] + ["candidates.extxyz"]
    counts = Counter(c.status for c in candidates)
    write_sidecar(
        folder,
        stage=STAGE,
        seed=cfg.run.seed,
        settings=settings,
        inputs=[cfg.denoiser.checkpoint, *further_inputs(cfg).values()],
        counts={
            "recipes": num_recipes,
            "sampled": len(candidates),
            "clash": counts["clash"],
            "disconnected": counts["disconnected"],
            "too_thick": counts["too thick"],
            "valid": counts["ok"],
            "kept": len(rows),
            "symmetric": sum(row["space_group_number"] > 1 for row in rows),
        },
        metrics={
            "valid_fraction": counts["ok"] / len(candidates),
            "mean_abs_delta_g_pred": float(np.mean([abs(row["delta_g_pred"] - settings.target_delta_g) for row in rows])),
            "mean_e_hull_pred": float(np.mean([row["e_hull_pred"] for row in rows])),
            "mean_p_synth_pred": float(np.mean([row["p_synth_pred"] for row in rows])),
        },
        selection=_selection(settings),
        fingerprint=fingerprint,
        checkpoint_sha256=checkpoint_hash,
        files={name: file_sha256(folder / name) for name in files},
        candidates=rows,
    )


def _selection(settings: GenerationConfig) -> str:
    """Say how the written candidates were chosen."""
    if settings.guidance_scale == 0:
        return "first valid, in the order of sampling"
    if uses_prefilter(settings):
        return "best chances of a new hit by the prefilter"
    return "drawn from the valid with weights exp(−η L_target / 0.1 eV)"


def is_complete(folder: Path, fingerprint: str) -> bool:
    """Return whether the folder holds unchanged products of these settings and this model."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    if not isinstance(content, dict) or content.get("fingerprint") != fingerprint:
        return False
    files = content.get("files", {}).items()
    return all((folder / name).is_file() and file_sha256(folder / name) == sha for name, sha in files)


def _rejections(candidates: list[Candidate]) -> str:
    """Return the number of candidates rejected for each reason, as words."""
    counts = Counter(c.status for c in candidates)
    return ", ".join(f"{counts[reason]} {reason}" for reason in ("clash", "disconnected", "too thick"))


def _report(folder: Path, candidates: list[Candidate], rows: list[dict[str, Any]], settings: GenerationConfig) -> None:
    """Print what was generated; warn where it is less than ``num_structures``."""
    summary, valid = _rejections(candidates), sum(c.status == "ok" for c in candidates)
    print(f"generated: {len(rows)} of {settings.num_structures} asked for, in {relative_name(folder)}")
    print(f"  sampled {len(candidates)}, valid {valid} ({summary})")
    print(f"  {sum(row['space_group_number'] > 1 for row in rows)} of {len(rows)} symmetric beyond P1")
    if len(rows) < settings.num_structures:
        log.warning(
            "only %d valid sheets after %d sampled (%s): fewer than generation.num_structures=%d",
            len(rows),
            len(candidates),
            summary,
            settings.num_structures,
        )
