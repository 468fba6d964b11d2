"""Stage 4: samples sheets from recipes and noise under guidance, keeps the valid ones, symmetrises and exports them.

Reads ``denoiser.checkpoint`` (stage 3). Writes to ``generation.output_dir`` one CIF per candidate (``gen_00017.cif``),
``candidates.extxyz`` with ids and predicted properties, and ``manifest.json``. Sampled batches are kept until the products are
complete, so that a killed run goes on where it was; the same seed gives the same files whatever the batch size.

    python structure_generator.py generation.num_structures=32 generation.guidance_scale=1.0
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from pymatgen.core import Composition
from pymatgen.io.cif import CifWriter
from tqdm import tqdm

import config
import prototypes
from geo_utils import Sheet, has_clash, sheet_connectivity
from models import DenoisingEGNN, PropertyEstimate, load_denoiser
from prototypes import Recipe
from sampling import TEMPERATURE_EV, draft, predict_properties, sample, target_loss
from symmetry import Symmetry, Template, symmetrise
from template_library import TemplateLibrary, spread_draw

log = logging.getLogger("her2d")

STAGE = "structure_generator.py"
CHECKPOINT_HINT = "run optimization.py, or set denoiser.checkpoint to a trained model"
MAX_ROUNDS = 5  # of at most oversample x num_structures sheets, while too few are valid
MAX_RECIPE_ATOMS = 40
FORMULA = "recipe"  # family of a recipe that is given by its formula alone
PARTIAL_DIR = ".partial"
MANIFEST = "manifest.json"


# ------------------------------------------------------------------------------------------------------------------- recipes


def parse_recipes(entries: Sequence[str], elements: set[int]) -> list[Recipe]:
    """Recipes from ``generation.recipes``: formulas, one cell holding the atoms as written (MoS2: 3 atoms, Mo2S4: 6), or families
    with the elements of each site, such as "2H-MX2: Mo W | S Se" ("*" for all that the family is known by).

    Raises StageError for what is no recipe, or has elements that the model was not trained on.
    """
    result = []
    for entry in entries:
        found = _family_entry(entry) if ":" in entry else [_formula_entry(entry)]
        known = [recipe for recipe in found if set(recipe.atomic_numbers) <= elements]
        if not known:
            unknown = sorted({ase.data.chemical_symbols[z] for recipe in found for z in recipe.atomic_numbers if z not in elements})
            raise config.StageError(f"generation.recipes: '{entry}': the model was not trained on {', '.join(unknown)}")
        if len(known) < len(found):
            log.warning(
                "generation.recipes: '%s': %d of %d hold elements that the model does not know",
                entry,
                len(found) - len(known),
                len(found),
            )
        result += known
    return result


def _formula_entry(formula: str) -> Recipe:
    try:
        amounts = Composition(formula, strict=True).get_el_amt_dict()
    except Exception as error:  # pymatgen raises ValueError, KeyError, CompositionError, ... by the kind of typo
        raise config.StageError(f"generation.recipes: '{formula}' is not a chemical formula") from error
    numbers: list[int] = []
    for symbol, amount in amounts.items():
        if amount != int(amount):
            raise config.StageError(f"generation.recipes: '{formula}' has fractional amounts")
        numbers += [ase.data.atomic_numbers[symbol]] * int(amount)
    if not 1 <= len(numbers) <= MAX_RECIPE_ATOMS:
        raise config.StageError(f"generation.recipes: '{formula}' has {len(numbers)} atoms, allowed are 1 to {MAX_RECIPE_ATOMS}")
    return Recipe(formula, tuple(numbers), FORMULA)


def _family_entry(entry: str) -> list[Recipe]:
    name, _, text = entry.partition(":")
    sites = tuple(() if site.strip() == "*" else tuple(site.replace(",", " ").split()) for site in text.split("|"))
    unknown = [symbol for site in sites for symbol in site if symbol not in ase.data.atomic_numbers]
    if unknown or any(not site and part.strip() != "*" for site, part in zip(sites, text.split("|"), strict=True)):
        raise config.StageError(f"generation.recipes: '{entry}': {unknown[0] if unknown else 'an empty site'} is no element")
    try:
        found = prototypes.family_recipes(name.strip(), sites)
    except ValueError as error:
        raise config.StageError(f"generation.recipes: '{entry}': {error}") from error
    if not found:
        raise config.StageError(f"generation.recipes: '{entry}': no decoration can be charge-neutral")
    return found


@cache  # every round of the search asks for all recipes again
def reduced_formula(numbers: tuple[int, ...]) -> str:
    """pymatgen's reduced formula."""
    return Composition(Counter(ase.data.chemical_symbols[z] for z in numbers)).reduced_formula


# Of drafts, by recipe: whether it is a valid sheet, and L_target of the heads (eV).
DraftVerdicts = dict[Recipe, tuple[bool, float]]


def judge_drafts(
    model: DenoisingEGNN,
    recipes: Sequence[Recipe],
    settings: config.GenerationConfig,
    seed: int,
    device: Any,
    known: DraftVerdicts,
) -> tuple[np.ndarray, np.ndarray]:
    """(M,) whether the draft of each recipe is a valid sheet, and (M,) eV L_target of the heads for it; ``known`` is added to."""
    missing = [recipe for recipe in recipes if recipe not in known]
    if missing:
        templates = [prototypes.recipe_template(recipe) if settings.template_share > 0 else None for recipe in missing]
        sheets, loss = draft(model, [recipe.atomic_numbers for recipe in missing], templates, settings, seed, device)
        checked = zip(
            missing, tqdm(sheets, desc="checking", unit="sheet", mininterval=1.0), np.round(loss, 6).tolist(), strict=True
        )
        known.update({recipe: (check_validity(sheet, settings) == "ok", value) for recipe, sheet, value in checked})
    return np.array([known[recipe][0] for recipe in recipes]), np.array([known[recipe][1] for recipe in recipes])


def order_recipes(
    model: DenoisingEGNN,
    recipes: list[Recipe],
    known_formulas: set[str],
    settings: config.GenerationConfig,
    seed: int,
    device: Any,
    drafts: DraftVerdicts | None = None,
    substituted: Callable[[list[Recipe]], list[Recipe]] | None = None,
) -> list[Recipe]:
    """Recipes in the order in which candidates take them: new compositions first, each group in seeded random order in which every
    family has the same weight, however many recipes it has.

    With guidance the first ``composition_pool`` of them per structure are drawn again without replacement with weights
    exp(−η L_target / 0.1 eV), L_target from the heads' answer to a draft of each: the tilt that guidance applies to the geometry.
    Of the new ones those come later whose family or composition has had its share; recipes whose draft is no valid sheet come last.
    ``search_rounds`` times the first ``num_structures`` of that order breed further recipes, which join the draw: a population that
    moves towards the target through compositions that lie several substitutions from any known crystal.

    drafts: what is known of drafts with this model, these settings and this seed. substituted: recipes -> those with one more
    element replaced.
    """
    order = _untilted_order(recipes, known_formulas, seed)
    if not (settings.guidance_scale > 0 and settings.guide_composition):
        return [recipes[i] for i in order]
    number = settings.composition_pool * settings.num_structures or len(recipes)
    pool = [recipes[i] for i in order[:number]]
    places = order[:number].tolist()
    drafts = {} if drafts is None else drafts
    seen = set(recipes)
    for round_number in range(settings.search_rounds + 1):
        valid, loss = judge_drafts(model, pool, settings, seed, device, drafts)
        keys = tilted_keys(loss, places, settings.guidance_scale, seed + 1)
        known = _are_known(pool, known_formulas)
        ranked = np.lexsort((-keys, known, ~valid))
        late = beyond_quota([pool[i] for i in ranked], settings, settings.oversample)
        ranked = ranked[np.lexsort((late, known[ranked], ~valid[ranked]))]
        if substituted is None or round_number == settings.search_rounds:
            break
        parents = [pool[i] for i in ranked[: settings.num_structures] if valid[i]]
        fresh = [r for r in substituted(parents) if r not in seen and len(r.atomic_numbers) <= settings.max_recipe_atoms]
        places += range(len(seen), len(seen) + len(fresh))
        pool += fresh
        seen.update(fresh)
    return [pool[i] for i in ranked] + [recipes[i] for i in order[number:]]


def _untilted_order(recipes: Sequence[Recipe], known_formulas: set[str], seed: int) -> np.ndarray:
    sizes = Counter(recipe.family for recipe in recipes)
    prior = tilted_keys(np.zeros(len(recipes)), range(len(recipes)), 0.0, seed) - np.log([sizes[r.family] for r in recipes])
    return np.lexsort((-prior, _are_known(recipes, known_formulas)))


def _are_known(recipes: Sequence[Recipe], formulas: set[str]) -> np.ndarray:
    return np.array([reduced_formula(recipe.atomic_numbers) in formulas for recipe in recipes])


def beyond_quota(recipes: Sequence[Recipe], settings: config.GenerationConfig, oversample: float = 1.0) -> np.ndarray:
    """(M,) whether a recipe comes after as many others of its family, or of its composition, as may be among ``oversample`` times
    the structures asked for; one that does takes no place itself."""
    of_family = math.ceil(settings.max_family_share * oversample * settings.num_structures)
    of_composition = math.ceil(settings.max_per_composition * oversample) or len(recipes)
    families: Counter[str] = Counter()
    compositions: Counter[str] = Counter()
    late = []
    for recipe in recipes:
        composition = reduced_formula(recipe.atomic_numbers)
        late.append(families[recipe.family] >= of_family or compositions[composition] >= of_composition)
        if not late[-1]:
            families[recipe.family] += 1
            compositions[composition] += 1
    return np.array(late, dtype=bool)


def tilted_keys(loss: np.ndarray, numbers: Sequence[int], strength: float, seed: int) -> np.ndarray:
    """Keys whose k largest are a draw of k without replacement with weights exp(−strength L / 0.1 eV) (Gumbel top-k, Kool et al.,
    ICML 2019). The random part of an entry depends on the seed and its number alone."""
    gumbel = np.array([np.random.default_rng([seed, 0x5EED, int(k)]).gumbel() for k in numbers])
    return gumbel - strength * loss / TEMPERATURE_EV


# ------------------------------------------------------------------------------------------------------------------ sampling


@dataclass
class Candidate:
    """A sampled sheet, its recipe and what became of it."""

    index: int
    recipe: Recipe
    sheet: Sheet
    template_layer_group: int = 0  # number of the layer group that it was sampled within; 0: free
    symmetry: Symmetry | None = None
    status: str = "ok"

    @property
    def name(self) -> str:
        return f"gen_{self.index:05d}"


def check_validity(sheet: Sheet, settings: config.GenerationConfig) -> str:
    """'ok', or the first reason to reject: 'clash', 'disconnected', 'too thick'."""
    atoms = sheet.to_atoms(settings.vacuum_angstrom)
    if has_clash(atoms, settings.clash_factor):
        return "clash"
    if not sheet_connectivity(atoms).is_single_sheet:
        return "disconnected"
    return "too thick" if sheet.thickness > settings.max_thickness_angstrom else "ok"


def _fingerprint(cfg: config.Config, checkpoint_hash: str) -> str:
    """What the products depend on: settings, seed and model; not the batch size and not the folder."""
    settings = asdict(cfg.generation)
    del settings["batch_size"], settings["output_dir"]
    content = json.dumps({"settings": settings, "seed": cfg.run.seed, "checkpoint": checkpoint_hash}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class SampleStore:
    """Sampled sheets of an unfinished run, one JSON file per batch; belongs to one fingerprint."""

    def __init__(self, folder: Path, fingerprint: str):
        self.folder, self.fingerprint = folder, fingerprint
        self.sheets: dict[int, Sheet] = {}
        for path in sorted(folder.glob("batch_*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError):
                content = {}
            if content.get("fingerprint") != fingerprint:
                path.unlink()
                continue
            for row in content["sheets"]:
                self.sheets[row["index"]] = Sheet(
                    np.array(row["atomic_numbers"], dtype=np.int64),
                    np.array(row["frac_coords"], dtype=float).reshape(-1, 2),
                    np.array(row["heights"], dtype=float),
                    np.array(row["lattice"], dtype=float),
                )

    def add(self, indices: Sequence[int], sheets: Sequence[Sheet]) -> None:
        rows = [
            {"index": k, **{name: value.tolist() for name, value in vars(s).items()}} for k, s in zip(indices, sheets, strict=True)
        ]
        config.write_json(self.folder / f"batch_{indices[0]:06d}.json", {"fingerprint": self.fingerprint, "sheets": rows})
        self.sheets.update(zip(indices, sheets, strict=True))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Plan:
    """What candidate ``index`` is sampled from: its recipe, the template that its noise keeps, if any, and its atoms in the order
    of the template."""

    index: int
    recipe: Recipe
    template: Template | None
    atomic_numbers: tuple[int, ...]


def plan_candidate(index: int, recipes: Sequence[Recipe], library: TemplateLibrary, share: float, seed: int) -> Plan:
    """Candidate k takes recipe k, cyclically. A recipe of a family has the template of the family; a formula takes those that the
    library suggests for it, in turn. A share of the candidates, drawn by their numbers, has none."""
    recipe = recipes[index % len(recipes)]
    free = Plan(index, recipe, None, recipe.atomic_numbers)
    if np.random.default_rng([seed, 0x7E, index]).random() >= share:
        return free
    if recipe.family != FORMULA:
        return replace(free, template=prototypes.recipe_template(recipe))
    suggestions = library.suggest(recipe.atomic_numbers)
    if not suggestions:
        return free
    taken = spread_draw(suggestions, index // len(recipes))
    return Plan(index, recipe, taken.template, taken.atomic_numbers)


def sample_candidates(
    model: DenoisingEGNN, plans: Sequence[Plan], cfg: config.Config, store: SampleStore, device: Any
) -> list[Candidate]:
    """Candidates as planned; those in the store are not sampled again."""
    settings = cfg.generation
    missing = [plan for plan in plans if plan.index not in store.sheets]
    num_steps = len(model.schedule.timesteps(settings.num_steps)) - 1
    batches = [missing[start : start + settings.batch_size] for start in range(0, len(missing), settings.batch_size)]
    with tqdm(total=len(missing) * num_steps, desc="sampling", unit="step", unit_scale=True, mininterval=1.0) as bar:
        for batch in batches:
            indices, templates = [plan.index for plan in batch], [plan.template for plan in batch]
            compositions = [plan.atomic_numbers for plan in batch]
            on_step = partial(bar.update, len(batch))
            store.add(indices, sample(model, compositions, indices, settings, cfg.run.seed, device, on_step, templates))
    return [
        Candidate(plan.index, plan.recipe, store.sheets[plan.index], plan.template.layer_group if plan.template else 0)
        for plan in plans
    ]


def finish_candidates(candidates: list[Candidate], settings: config.GenerationConfig) -> None:
    """Validity and symmetrisation, in place. A symmetrised sheet that became invalid goes back to what was sampled."""
    for candidate in tqdm(candidates, desc="checking", unit="sheet", mininterval=1.0):
        candidate.status = check_validity(candidate.sheet, settings)
        if candidate.status != "ok":
            continue
        symmetric, symmetry = symmetrise(candidate.sheet, settings.symprec_angstrom)
        if check_validity(symmetric, settings) != "ok":
            symmetric, symmetry = candidate.sheet, Symmetry("P1", 1, 1, 0.0)
        candidate.sheet, candidate.symmetry = symmetric, symmetry


# -------------------------------------------------------------------------------------------------------------------- export


def export_atoms(sheet: Sheet, vacuum: float) -> Atoms:
    """ASE atoms rounded to 1e-6 (Å and fractional), the one source of CIF and extxyz."""
    atoms = sheet.to_atoms(vacuum)
    cell = np.round(atoms.cell.array, 6)
    scaled = np.round(atoms.get_scaled_positions(wrap=False), 6) % 1.0
    return Atoms(numbers=atoms.numbers, scaled_positions=scaled + 0.0, cell=cell + 0.0, pbc=(True, True, False))


def cif_text(atoms: Atoms, name: str) -> str:
    """CIF with every atom listed (P1), so that no reader has to rebuild the sheet from symmetry operations."""
    from pymatgen.core import Lattice, Structure

    structure = Structure(Lattice(atoms.cell.array), atoms.numbers, atoms.get_scaled_positions(wrap=False))
    text = str(CifWriter(structure, significant_figures=8))
    return text.replace(text.split("\n", 2)[1], f"data_{name}", 1) if text.startswith("#") else text


def write_products(
    kept: list[Candidate], properties: PropertyEstimate, folder: Path, settings: config.GenerationConfig
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
        with config.atomic_path(folder / f"{candidate.name}.cif") as temporary:
            temporary.write_text(cif_text(atoms, candidate.name), encoding="utf-8")
        atoms.info.update(row)
        rows.append(row)
        frames.append(atoms)
    buffer = StringIO()
    ase.io.write(buffer, frames, format="extxyz")
    with config.atomic_path(folder / "candidates.extxyz") as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")
    return rows


def take_place(new: Path, folder: Path) -> None:
    """Moves finished products to where those of an earlier run are. Nothing is written any more, so that a full disk cannot leave
    half of either; a run that is killed on the way has no manifest and does it again."""
    (folder / MANIFEST).unlink(missing_ok=True)
    names = sorted((path.name for path in new.iterdir()), key=lambda name: (name == MANIFEST, name))
    for stale in folder.glob("gen_*.cif"):
        if stale.name not in names:
            stale.unlink()
    for name in names:
        os.replace(new / name, folder / name)


def _is_complete(folder: Path, fingerprint: str) -> bool:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    if not isinstance(content, dict) or content.get("fingerprint") != fingerprint:
        return False
    files = content.get("files", {}).items()
    return all((folder / name).is_file() and config.file_sha256(folder / name) == sha for name, sha in files)


def main(cfg: config.Config, drafts: DraftVerdicts | None = None) -> None:
    """Samples, filters, selects and writes. drafts: verdicts on drafts that runs of one model, seed and target share."""
    settings, seed = cfg.generation, cfg.run.seed
    device = config.resolve_device(cfg.run)
    model, content = load_denoiser(cfg.denoiser.checkpoint, CHECKPOINT_HINT, device)
    model = model.double()
    checkpoint_hash = config.file_sha256(cfg.denoiser.checkpoint)
    folder = Path(settings.output_dir)
    fingerprint = _fingerprint(cfg, checkpoint_hash)
    if _is_complete(folder, fingerprint):
        log.info("%s is complete for these settings and this model; nothing to do", config.relative_name(folder))
        return

    elements = set(content["elements"])
    library = TemplateLibrary.from_state_dict(content.get("templates", []))
    if settings.recipes:
        recipes = parse_recipes(settings.recipes, elements)
    else:
        recipes = []
        if settings.recipe_source in ("prototypes", "all"):
            recipes += prototypes.recipes(elements, settings.mixed_recipes)
        if settings.recipe_source in ("substitutions", "all"):
            recipes += library.substitutions(elements)
        recipes = [recipe for recipe in recipes if len(recipe.atomic_numbers) <= settings.max_recipe_atoms]
        if not recipes:
            raise config.StageError(
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
        raise config.StageError(f"none of {len(candidates)} sampled sheets is valid ({summary}); train the denoiser longer")

    properties = predict_properties(model, [c.sheet for c in valid], device)
    chosen = np.arange(len(valid))
    if by_heads:
        loss = np.round(target_loss(properties, settings).double().numpy(), 6)
        chosen = np.argsort(-tilted_keys(loss, [c.index for c in valid], settings.guidance_scale, seed), kind="stable")
        if not settings.recipes:
            late = beyond_quota([valid[k].recipe for k in chosen], settings)
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
    config.write_sidecar(
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
        files={name: config.file_sha256(new / name) for name in files},
        candidates=rows,
    )
    take_place(new, folder)
    store.remove()
    print(f"generated: {len(kept)} of {settings.num_structures} asked for, in {config.relative_name(folder)}")
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
    raise SystemExit(config.run_stage(main, __doc__, ("run", "denoiser", "generation")))
