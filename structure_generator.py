"""Stage 4: samples sheets from recipes and noise under guidance, keeps the valid ones, symmetrises and exports them.

Reads ``denoiser.checkpoint`` (stage 3). Writes to ``generation.output_dir`` one CIF per candidate (``gen_00017.cif``),
``candidates.extxyz`` with ids and predicted properties, and ``manifest.json``. Sampled batches are kept until the products are
complete, so that a killed run goes on where it was; the same seed gives the same files whatever the batch size.

    python structure_generator.py generation.num_structures=32 generation.guidance_scale=1.0
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections import Counter
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from pymatgen.core import Composition

from crystals import recipes as recipes_module
from crystals.cif import cif_text
from crystals.recipes import parse_recipes
from crystals.templates import TemplateLibrary
from generation.batch import PropertyEstimate
from generation.candidates import (
    MANIFEST,
    MAX_ROUNDS,
    PARTIAL_DIR,
    Candidate,
    SampleStore,
    export_atoms,
    finish_candidates,
    generation_fingerprint,
    plan_candidate,
    sample_candidates,
    take_place,
)
from generation.sampling import predict_properties, target_loss
from generation.search import DraftVerdicts, exceeds_quota, order_recipes, tilted_keys
from models import load_denoiser
from pipeline.cli import resolve_device, run_stage
from pipeline.errors import StageError
from pipeline.files import atomic_path, file_sha256, relative_name
from pipeline.provenance import write_sidecar
from pipeline.settings import Config, GenerationConfig

log = logging.getLogger("her2d")

STAGE = "structure_generator.py"
CHECKPOINT_HINT = "run optimization.py, or set denoiser.checkpoint to a trained model"


def write_products(
    kept: list[Candidate], properties: PropertyEstimate, folder: Path, settings: GenerationConfig
) -> list[dict[str, Any]]:
    """CIFs and ``candidates.extxyz`` in an empty folder; returns one row per candidate."""
    rows, frames = [], []
    for k, candidate in enumerate(kept):
        symmetry = candidate.symmetry
        row = {
            "id": candidate.name,
            "formula": candidate.recipe.formula,
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
        atoms = export_atoms(candidate.sheet, settings.vacuum_angstrom)
        with atomic_path(folder / f"{candidate.name}.cif") as temporary:
            temporary.write_text(cif_text(atoms, candidate.name), encoding="utf-8")
        atoms.info.update(row)
        rows.append(row)
        frames.append(atoms)
    buffer = StringIO()
    ase.io.write(buffer, frames, format="extxyz")
    with atomic_path(folder / "candidates.extxyz") as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")
    return rows


def _is_complete(folder: Path, fingerprint: str) -> bool:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    if not isinstance(content, dict) or content.get("fingerprint") != fingerprint:
        return False
    files = content.get("files", {}).items()
    return all((folder / name).is_file() and file_sha256(folder / name) == sha for name, sha in files)


def main(cfg: Config, drafts: DraftVerdicts | None = None) -> None:
    """Samples, filters, selects and writes. drafts: verdicts on drafts that runs of one model, seed and target share."""
    settings, seed = cfg.generation, cfg.run.seed
    device = resolve_device(cfg.run)
    model, content = load_denoiser(cfg.denoiser.checkpoint, CHECKPOINT_HINT, device)
    model = model.double()
    checkpoint_hash = file_sha256(cfg.denoiser.checkpoint)
    folder = Path(settings.output_dir)
    fingerprint = generation_fingerprint(cfg, checkpoint_hash)
    if _is_complete(folder, fingerprint):
        log.info("%s is complete for these settings and this model; nothing to do", relative_name(folder))
        return

    elements = set(content["elements"])
    library = TemplateLibrary.from_state_dict(content.get("templates", []))
    if settings.recipes:
        recipes = parse_recipes(settings.recipes, elements)
    else:
        recipes = []
        if settings.recipe_source in ("prototypes", "all"):
            recipes += recipes_module.recipes(elements, settings.mixed_recipes)
        if settings.recipe_source in ("substitutions", "all"):
            recipes += library.substitutions(elements)
        recipes = [recipe for recipe in recipes if len(recipe.atomic_numbers) <= settings.max_recipe_atoms]
        if not recipes:
            raise StageError(
                f"generation.recipe_source={settings.recipe_source} gives no recipe of at most {settings.max_recipe_atoms} atoms "
                "and of elements that the model was trained on"
            )
        known = {Composition(formula).reduced_formula for formula in content["formulas"]}
        substituted = partial(library.further_substitutions, elements=elements)
        recipes = order_recipes(model, recipes, known, settings, seed, device, drafts, substituted)

    # Without gradient guidance the first valid sheets are taken as they come: a control must not be selected by the heads.
    by_heads = settings.guidance_scale > 0
    round_size = math.ceil(settings.num_structures * (settings.oversample if by_heads else 1.0))
    store = SampleStore(folder / PARTIAL_DIR, fingerprint)
    candidates: list[Candidate] = []
    valid: list[Candidate] = []
    for _ in range(MAX_ROUNDS):
        if candidates:  # later rounds make up for what was not valid
            missing = settings.num_structures - len(valid)
            round_size = min(round_size, math.ceil(missing * len(candidates) / max(len(valid), 1)) + 1)
        indices = range(len(candidates), len(candidates) + round_size)
        plans = [plan_candidate(k, recipes, library, settings.template_share, seed) for k in indices]
        fresh = sample_candidates(model, plans, cfg, store, device)
        finish_candidates(fresh, settings)
        candidates += fresh
        valid = [c for c in candidates if c.status == "ok"]
        if len(valid) >= settings.num_structures:
            break
    counts = Counter(c.status for c in candidates)
    summary = ", ".join(f"{counts[reason]} {reason}" for reason in ("clash", "disconnected", "too thick"))
    if not valid:
        raise StageError(f"none of {len(candidates)} sampled sheets is valid ({summary}); train the denoiser longer")

    properties = predict_properties(model, [c.sheet for c in valid], device)
    chosen = np.arange(len(valid))
    if by_heads:
        loss = np.round(target_loss(properties, settings).double().numpy(), 6)
        chosen = np.argsort(-tilted_keys(loss, [c.index for c in valid], settings.guidance_scale, seed), kind="stable")
        if not settings.recipes:
            late = exceeds_quota([valid[k].recipe for k in chosen], settings)
            chosen = chosen[np.argsort(late, kind="stable")]
    chosen = np.sort(chosen[: settings.num_structures])
    kept = [valid[k] for k in chosen]
    picked = torch.as_tensor(chosen)
    properties = PropertyEstimate(properties.delta_g[picked], properties.e_hull[picked], properties.synth_logit[picked])
    new = folder / PARTIAL_DIR / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    rows = write_products(kept, properties, new, settings)

    files = [f"{row['id']}.cif" for row in rows] + ["candidates.extxyz"]
    write_sidecar(
        new,
        stage=STAGE,
        seed=seed,
        settings=settings,
        inputs=[cfg.denoiser.checkpoint],
        counts={
            "recipes": len(recipes),
            "sampled": len(candidates),
            "clash": counts["clash"],
            "disconnected": counts["disconnected"],
            "too_thick": counts["too thick"],
            "valid": len(valid),
            "kept": len(kept),
            "symmetric": sum(row["space_group_number"] > 1 for row in rows),
        },
        metrics={
            "valid_fraction": len(valid) / len(candidates),
            "mean_abs_delta_g_pred": float(np.mean([abs(row["delta_g_pred"] - settings.target_delta_g) for row in rows])),
            "mean_e_hull_pred": float(np.mean([row["e_hull_pred"] for row in rows])),
            "mean_p_synth_pred": float(np.mean([row["p_synth_pred"] for row in rows])),
        },
        selection="drawn from the valid with weights exp(−η L_target / 0.1 eV)"
        if by_heads
        else "first valid, in the order of sampling",
        fingerprint=fingerprint,
        checkpoint_sha256=checkpoint_hash,
        files={name: file_sha256(new / name) for name in files},
        candidates=rows,
    )
    take_place(new, folder)
    store.remove()
    print(f"generated: {len(kept)} of {settings.num_structures} asked for, in {relative_name(folder)}")
    print(f"  sampled {len(candidates)}, valid {len(valid)} ({summary})")
    print(f"  {sum(row['space_group_number'] > 1 for row in rows)} of {len(rows)} symmetric beyond P1")
    if len(kept) < settings.num_structures:
        log.warning(
            "only %d valid sheets after %d sampled (%s): fewer than generation.num_structures=%d",
            len(kept),
            len(candidates),
            summary,
            settings.num_structures,
        )


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "denoiser", "generation")))
