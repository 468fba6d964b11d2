"""Stage 4 with recipes from the diffusion of elements: shipped networks of elements and of the refiner, tiny random heads."""

from __future__ import annotations

import dataclasses
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Structure
from tiny_denoiser import QUICK, tiny_denoiser

import structure_generator
from crystals.templates import TemplateLibrary
from generation import generate, recipe_choice, search
from generation.candidates import generation_fingerprint
from generation.elements import UNGUIDED_DRAWS
from generation.generate import STAGE, generate_structures
from models import load_denoiser
from networks.checkpoints import save_checkpoint
from pipeline.errors import StageError
from pipeline.files import PROJECT_DIR
from pipeline.provenance import read_sidecar
from pipeline.settings import Config

ALLOWED = {1, 8, 16, 22, 34, 40, 41, 42, 52, 73, 74, 78}
ARRANGEMENT = re.compile(r"^[A-E0-9]+, layer group \d+, arrangement \d+$")


@pytest.fixture
def cfg(tmp_path) -> Config:
    path, model = tmp_path / "denoiser.pth", tiny_denoiser()
    content = {"model": model.state_dict(), "elements": sorted(ALLOWED), "formulas": ["MoS2", "TiSe2", "PtTe2"]}
    save_checkpoint(path, "denoiser", model.config, content)
    base = Config()
    return dataclasses.replace(
        base,
        run=dataclasses.replace(base.run, device="cpu", threads=1),
        denoiser=dataclasses.replace(base.denoiser, checkpoint=str(path)),
        dataset=dataclasses.replace(base.dataset, processed_dir=str(tmp_path / "none"), db_path=str(tmp_path / "none.db")),
        generation=dataclasses.replace(
            QUICK, recipes=[], num_structures=4, guidance_scale=0.0, cfg_scale=1.0, prefilter=False,
            oversample=2.0, element_draws=6, max_recipe_atoms=4, output_dir=str(tmp_path / "cifs"),
            elements_checkpoint=str(PROJECT_DIR / "weights" / "elements.pth"),
            refiner_checkpoint=str(PROJECT_DIR / "weights" / "refiner.pth"),
        ),
    )  # fmt: skip


def with_generation(cfg: Config, **changes) -> Config:
    return dataclasses.replace(cfg, generation=dataclasses.replace(cfg.generation, **changes))


def contents(cfg: Config) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(cfg.generation.output_dir).iterdir() if p.suffix in (".cif", ".extxyz")}


def manifest(cfg: Config) -> dict:
    return read_sidecar(cfg.generation.output_dir, stage=STAGE)


def test_a_small_run_fills_arrangements_and_no_sheet_starts_from_noise(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr("generation.candidates.sample", lambda *_: pytest.fail("no noise is needed"))
    structure_generator.main(cfg)
    found = manifest(cfg)
    rows = found["candidates"]
    assert len(rows) == found["counts"]["kept"] == 4 and found["counts"]["recipes"] <= 4 * UNGUIDED_DRAWS
    assert all(ARRANGEMENT.match(row["family"]) and row["layer_group_number"] > 1 for row in rows)
    assert found["selection"] == "first valid, in the order of sampling"
    assert [Path(path).name for path in found["inputs"]] == ["denoiser.pth", "elements.pth", "refiner.pth"]
    for row in rows:
        structure = Structure.from_file(Path(cfg.generation.output_dir) / f"{row['id']}.cif")
        numbers = {element.Z for element in structure.composition}
        assert numbers <= ALLOWED - {1} and len(structure) == row["num_atoms"] <= 4, "H is not judged on a sheet that holds H"
        letters = re.sub(r"\d", "", row["family"].split(",")[0])
        assert len(letters) == len(numbers), "one element for each kind of atoms"
    other = with_generation(cfg, batch_size=1, output_dir=str(tmp_path / "other"))
    structure_generator.main(other)
    assert contents(other) == contents(cfg) and len(contents(cfg)) == 5
    monkeypatch.setattr(recipe_choice, "load_elements", lambda *_: pytest.fail("it is complete"))
    structure_generator.main(cfg)


def test_seeds_and_settings_of_elements_change_the_sheets(cfg, tmp_path):
    structure_generator.main(cfg)
    seeded = with_generation(cfg, output_dir=str(tmp_path / "seeded"))
    seeded = dataclasses.replace(seeded, run=dataclasses.replace(cfg.run, seed=1))
    structure_generator.main(seeded)
    assert contents(seeded) != contents(cfg)
    oxides = with_generation(cfg, output_dir=str(tmp_path / "oxides"), elements=["Ti", "Zr", "O", "Nb"], cfg_scale=2.0)
    structure_generator.main(oxides)
    assert {s for row in manifest(oxides)["candidates"] for s in re.findall("[A-Z][a-z]?", row["formula"])} <= {
        "Ti",
        "Zr",
        "O",
        "Nb",
    }


def test_new_compositions_come_first_without_guidance(cfg):
    model, content = load_denoiser(cfg.denoiser.checkpoint, "")
    library = TemplateLibrary([], [])
    recipes = recipe_choice.choose_recipes(content | {"formulas": []}, library, cfg.generation, 0)
    known = recipes[2].formula
    again = recipe_choice.choose_recipes(content | {"formulas": [known]}, library, cfg.generation, 0)
    new, old = ([r.formula for r in recipes if (r.formula == known) is is_known] for is_known in (False, True))
    assert [r.formula for r in again] == new + old and old, "otherwise as they were drawn"
    assert all(sorted(recipe.start.atomic_numbers) == sorted(recipe.atomic_numbers) for recipe in recipes)


def test_missing_files_are_one_line(cfg, tmp_path):
    for setting in ("elements", "refiner"):
        missing = with_generation(cfg, **{f"{setting}_checkpoint": str(tmp_path / "no.pth")})
        with pytest.raises(StageError, match=rf"^generation\.{setting}_checkpoint: no file at \S*no\.pth") as error:
            structure_generator.main(missing)
        assert "\n" not in str(error.value) and f"weights/{setting}.pth" in str(error.value)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"no checkpoint")
    with pytest.raises(StageError, match=r"damaged\.pth.*scripts\.train_elements"):
        structure_generator.main(with_generation(cfg, elements_checkpoint=str(damaged)))
    with pytest.raises(StageError, match="no arrangement of at most 4 atoms and so few elements"):
        structure_generator.main(with_generation(cfg, elements=["H"]))
    assert not list(Path(tmp_path).glob("cifs/*.cif"))


def test_under_guidance_the_heads_choose_among_more_draws(cfg, monkeypatch):
    """The order of the new recipes is that of what the heads say of their sheets, and the best give further ones."""
    seen: list[tuple[list, np.ndarray]] = []
    original = search.by_heads

    def watched(settings):
        heads = original(settings)
        return lambda sheets, properties: seen.append((sheets, heads(sheets, properties))) or seen[-1][1]

    monkeypatch.setattr(generate, "by_heads", watched)
    monkeypatch.setattr(search, "exceeds_quota", lambda recipes, *_: np.zeros(len(recipes), dtype=bool))
    taken: list = []
    planner = generate.planner
    monkeypatch.setattr(generate, "planner", lambda recipes, *rest: taken.extend(recipes) or planner(recipes, *rest))
    structure_generator.main(with_generation(cfg, guidance_scale=1.0, search_rounds=1))
    assert UNGUIDED_DRAWS * 4 - 3 < len(seen[0][0]) <= 6 * 4 and len(seen) == 2, "all draws, then what comes from the best"
    chances = {sheet.formula: [] for sheets, _ in seen for sheet in sheets}
    for sheets, found in seen:
        for sheet, chance in zip(sheets, found, strict=True):
            chances[sheet.formula].append(chance)
    new = [recipe for recipe in taken if recipe.formula not in ("MoS2", "TiSe2", "PtTe2")]
    in_order = sorted((chance for sheets, found in seen for chance in found), reverse=True)
    _, starts = search.starting_sheets(None, cfg.generation, new)
    assert len(new) == len(in_order)
    for sheet, chance in zip(starts, in_order, strict=True):
        assert any(own == pytest.approx(chance) for own in chances[sheet.formula])
    assert manifest(cfg)["selection"].startswith("drawn from the valid")
    assert manifest(cfg)["counts"]["sampled"] == 8, "oversample times num_structures"


class _Triage:
    """Quick judges that favour large cells, and have a verdict on every CIF."""

    identity = {"judges": "test"}

    def __init__(self) -> None:
        self.sheets: list = []

    def triaging(self):
        return nullcontext(self.triage)

    def triage(self, sheets, properties):
        self.sheets += sheets
        return np.array([np.linalg.det(sheet.lattice) / 1000 for sheet in sheets])

    def __call__(self, cif_dir, output_dir, delta_g):
        return {name: (0.5, False) for name in delta_g}


def test_a_guided_run_with_other_draws_is_another_run(cfg, monkeypatch):
    configs = [cfg, with_generation(cfg, guidance_scale=1.0)]
    unguided, guided = (generation_fingerprint(given, "model") for given in configs)
    monkeypatch.setattr("generation.candidates.LAST", 2)
    again, other = (generation_fingerprint(given, "model") for given in configs)
    assert again == unguided and other != guided


def test_quick_judges_order_the_recipes_before_any_is_sampled(cfg, monkeypatch):
    judges, taken = _Triage(), []
    planner = generate.planner
    monkeypatch.setattr(generate, "planner", lambda recipes, *rest: taken.extend(recipes) or planner(recipes, *rest))
    free = {"max_family_share": 1.0, "max_per_composition": 0, "search_rounds": 0}
    asked = with_generation(cfg, guidance_scale=1.0, prefilter=True, **free)
    model, content = load_denoiser(asked.denoiser.checkpoint, "")
    generate_structures(asked, model, content, prefilter=judges)
    areas = sorted((np.linalg.det(sheet.lattice) for sheet in judges.sheets), reverse=True)
    looked_at, others = taken[: len(areas)], taken[len(areas) :]
    _, starts = search.starting_sheets(None, asked.generation, looked_at)
    assert all(recipe.formula in ("MoS2", "TiSe2", "PtTe2") for recipe in others) and len(taken) > 16, "enough new ones"
    assert [np.linalg.det(sheet.lattice) for sheet in starts] == pytest.approx(areas, abs=1e-4) and len(areas) > 16
    assert manifest(asked)["selection"] == "best chances of a new hit by the prefilter"
    of_rounds = _Triage()
    with_rounds = with_generation(asked, search_rounds=2, output_dir=str(Path(asked.generation.output_dir).with_name("rounds")))
    generate_structures(with_rounds, model, content, prefilter=of_rounds)
    assert [sheet.formula for sheet in of_rounds.sheets[: len(areas)]] == [sheet.formula for sheet in judges.sheets]
    further = {sheet.formula for sheet in of_rounds.sheets[len(areas) :]} - {sheet.formula for sheet in judges.sheets}
    assert further, "the best sheets give further compositions"
    best = max(np.linalg.det(sheet.lattice) for sheet in of_rounds.sheets)
    assert best > areas[0], "and better ones"
