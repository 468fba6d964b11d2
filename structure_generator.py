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
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import spglib
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
from sampling import TEMPERATURE_EV, composition_loss, predict_properties, sample, target_loss

log = logging.getLogger("her2d")

STAGE = "structure_generator.py"
CHECKPOINT_HINT = "run optimization.py, or set denoiser.checkpoint to a trained model"
MAX_ROUNDS = 5  # of at most oversample x num_structures sheets, while too few are valid
MAX_RECIPE_ATOMS = 40
PARTIAL_DIR = ".partial"


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
    return Recipe(formula, tuple(numbers), "recipe")


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


def reduced_formula(numbers: Sequence[int]) -> str:
    """pymatgen's reduced formula."""
    return Composition(Counter(ase.data.chemical_symbols[z] for z in numbers)).reduced_formula


def order_recipes(
    model: DenoisingEGNN, recipes: list[Recipe], known_formulas: set[str], settings: config.GenerationConfig, seed: int, device: Any
) -> list[Recipe]:
    """Recipes in the order in which candidates take them: new compositions first, each group in seeded random order in which every
    family has the same weight, however many recipes it has.

    With guidance the first ``composition_pool`` of them are drawn again without replacement with weights
    exp(−η L_target / 0.1 eV), L_target from the heads' composition-only answer: the tilt that guidance applies to the geometry.
    """
    sizes = Counter(recipe.family for recipe in recipes)
    prior = tilted_keys(np.zeros(len(recipes)), range(len(recipes)), 0.0, seed) - np.log([sizes[r.family] for r in recipes])
    known = np.array([reduced_formula(r.atomic_numbers) in known_formulas for r in recipes])
    order = np.lexsort((-prior, known))
    if settings.guidance_scale > 0 and settings.guide_composition:
        pool = order[: settings.composition_pool or None]
        loss = composition_loss(model, [recipes[i].atomic_numbers for i in pool], settings, seed, device)
        keys = tilted_keys(np.round(loss, 6), pool, settings.guidance_scale, seed + 1)
        order = np.concatenate([pool[np.lexsort((-keys, known[pool]))], order[len(pool) :]])
    return [recipes[i] for i in order]


def tilted_keys(loss: np.ndarray, numbers: Sequence[int], strength: float, seed: int) -> np.ndarray:
    """Keys whose k largest are a draw of k without replacement with weights exp(−strength L / 0.1 eV) (Gumbel top-k, Kool et al.,
    ICML 2019). The random part of an entry depends on the seed and its number alone."""
    gumbel = np.array([np.random.default_rng([seed, 0x5EED, int(k)]).gumbel() for k in numbers])
    return gumbel - strength * loss / TEMPERATURE_EV


# ------------------------------------------------------------------------------------------------------------ symmetrisation


@dataclass(frozen=True)
class Symmetry:
    """What a sheet is symmetric under, and the tolerance at which that was found (0: nothing beyond P1 was imposed)."""

    space_group: str
    space_group_number: int
    layer_group_number: int
    tolerance: float


def symmetrise(sheet: Sheet, symprec: float, angle_tolerance: float = 8.0) -> tuple[Sheet, Symmetry]:
    """The sheet averaged over the symmetry operations found within ``symprec`` Å; unchanged where there are none beyond P1.

    Only operations that map the plane onto itself count. Atoms, cell basis and their number stay; the metric and the coordinates
    are averaged over the group.
    """
    result, tolerance = sheet, 0.0
    if symprec > 0:
        for _ in range(2):  # the second pass works on the cleaned lattice
            averaged = _average_over_group(result, symprec, angle_tolerance)
            if averaged is None:
                break
            result, tolerance = averaged, symprec
    cell = _spglib_cell(result)
    dataset = spglib.get_symmetry_dataset(cell, symprec=1e-3, angle_tolerance=-1.0)
    if dataset is None:
        return sheet, Symmetry("P1", 1, 1, 0.0)
    layer = spglib.get_layergroup(cell, aperiodic_dir=2, symprec=1e-3)
    number = int(layer.number) if layer is not None else 1
    return result, Symmetry(dataset.international, int(dataset.number), number, tolerance if dataset.number > 1 else 0.0)


def _spglib_cell(sheet: Sheet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    atoms = sheet.to_atoms()
    return atoms.cell.array, atoms.get_scaled_positions(wrap=False), atoms.numbers


def _average_over_group(sheet: Sheet, symprec: float, angle_tolerance: float) -> Sheet | None:
    lattice, scaled, numbers = _spglib_cell(sheet)
    found = spglib.get_symmetry((lattice, scaled, numbers), symprec=symprec, angle_tolerance=angle_tolerance)
    if found is None:
        return None
    operations = [
        (r, t)
        for r, t in zip(found["rotations"], found["translations"], strict=True)
        if not (r[:2, 2].any() or r[2, :2].any())  # no mixing of the plane and its normal
    ]
    if len(operations) < 2:
        return None
    # r = f @ L and f' = R f keep distances when Rᵀ G R = G, G = L Lᵀ.
    gram = sheet.lattice @ sheet.lattice.T
    gram = np.mean([r[:2, :2].T @ gram @ r[:2, :2] for r, _ in operations], axis=0)
    length = math.sqrt(gram[0, 0])
    cell = np.array([[length, 0.0], [gram[0, 1] / length, math.sqrt(np.linalg.det(gram)) / length]])

    height = lattice[2, 2]
    total = np.zeros_like(scaled)
    for rotation, translation in operations:
        image = scaled @ rotation.T + translation
        # Atom k lands on partner[k]; each partner collects the nearest periodic copy of its image.
        delta = image[:, None] - scaled[None]
        delta -= np.round(delta)
        distance = np.linalg.norm(delta @ lattice, axis=-1)
        distance[numbers[:, None] != numbers[None]] = np.inf
        partner = distance.argmin(1)
        if len(set(partner.tolist())) != len(numbers) or distance.min(1).max() > 3 * symprec:
            return None
        total[partner] += scaled[partner] + delta[np.arange(len(numbers)), partner]
    mean = total / len(operations)
    # Standard form with the averaged cell; the basis is already reduced up to the averaging.
    plain = Sheet(sheet.atomic_numbers, mean[:, :2] % 1.0, (mean[:, 2] - mean[:, 2].mean()) * height, cell)
    return Sheet.from_atoms(plain.to_atoms())


# ------------------------------------------------------------------------------------------------------------------ sampling


@dataclass
class Candidate:
    """A sampled sheet, its recipe and what became of it."""

    index: int
    recipe: Recipe
    sheet: Sheet
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


def sample_candidates(
    model: DenoisingEGNN, recipes: list[Recipe], indices: Sequence[int], cfg: config.Config, store: SampleStore, device: Any
) -> list[Candidate]:
    """Candidates of the given numbers; those in the store are not sampled again. Candidate k takes recipe k, cyclically."""
    settings = cfg.generation
    missing = [k for k in indices if k not in store.sheets]
    num_steps = len(model.schedule.timesteps(settings.num_steps)) - 1
    batches = [missing[start : start + settings.batch_size] for start in range(0, len(missing), settings.batch_size)]
    with tqdm(total=len(missing) * num_steps, desc="sampling", unit="step", unit_scale=True, mininterval=1.0) as bar:
        for batch in batches:
            compositions = [recipes[k % len(recipes)].atomic_numbers for k in batch]
            store.add(batch, sample(model, compositions, batch, settings, cfg.run.seed, device, partial(bar.update, len(batch))))
    return [Candidate(k, recipes[k % len(recipes)], store.sheets[k]) for k in indices]


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
    """CIFs and ``candidates.extxyz``; returns one row per candidate. CIFs of an earlier run are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)  # of an earlier run: files are being replaced, and it comes last again
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
    names = {f"{row['id']}.cif" for row in rows}
    for stale in folder.glob("gen_*.cif"):
        if stale.name not in names:
            stale.unlink()
    return rows


def _is_complete(folder: Path, fingerprint: str) -> bool:
    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    if not isinstance(content, dict) or content.get("fingerprint") != fingerprint:
        return False
    files = content.get("files", {}).items()
    return all((folder / name).is_file() and config.file_sha256(folder / name) == sha for name, sha in files)


def main(cfg: config.Config) -> None:
    """Samples, filters, selects and writes."""
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
    if settings.recipes:
        recipes = parse_recipes(settings.recipes, elements)
    else:
        recipes = prototypes.recipes(elements, settings.mixed_recipes)
        if not recipes:
            raise config.StageError("no prototype recipe consists of elements that the model was trained on")
        known = {Composition(formula).reduced_formula for formula in content["formulas"]}
        recipes = order_recipes(model, recipes, known, settings, seed, device)

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
        fresh = sample_candidates(model, recipes, indices, cfg, store, device)
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
    chosen = np.sort(chosen[: settings.num_structures])
    kept = [valid[k] for k in chosen]
    picked = torch.as_tensor(chosen)
    properties = PropertyEstimate(properties.delta_g[picked], properties.e_hull[picked], properties.synth_logit[picked])
    rows = write_products(kept, properties, folder, settings)

    files = [f"{row['id']}.cif" for row in rows] + ["candidates.extxyz"]
    config.write_sidecar(
        folder,
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
        files={name: config.file_sha256(folder / name) for name in files},
        candidates=rows,
    )
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
