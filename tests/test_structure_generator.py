"""Stage 4: the sampler, guidance, determinism, symmetrisation and export, with a tiny model of random weights."""

from __future__ import annotations

import dataclasses
import json
from itertools import chain, repeat
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from pymatgen.core import Structure

import structure_generator
from crystals.cif import cif_text
from crystals.recipes import Recipe, parse_recipes
from crystals.symmetry import symmetrise
from generation import candidates, search
from generation.batch import NoiseEstimate, PropertyEstimate
from generation.candidates import export_atoms
from generation.generate import STAGE
from generation.sampling import draft, guidance_strength, guided_noise, predict_properties, sample, target_loss
from generation.search import gumbel_keys, order_recipes
from geo_utils import Sheet
from models import DenoiserModelConfig, DenoisingEGNN
from networks.checkpoints import save_checkpoint
from pipeline.errors import StageError
from pipeline.provenance import read_sidecar
from pipeline.settings import Config, GenerationConfig

COMPOSITIONS = [(42, 16, 16), (6, 6), (22, 22, 6, 8, 8), (16,), (42, 52, 16)]


@pytest.fixture(scope="module")
def model() -> DenoisingEGNN:
    torch.manual_seed(0)
    net = DenoisingEGNN(
        DenoiserModelConfig(hidden_channels=16, vector_channels=4, num_layers=1, num_rbf=8, max_neighbors=8, num_timesteps=60,
                            beta_end=0.3)
    )  # fmt: skip
    return net.double().eval()


@pytest.fixture(scope="module")
def settings() -> GenerationConfig:
    return dataclasses.replace(GenerationConfig(), num_steps=8, guidance_scale=0.5, cfg_scale=1.5)


def mos2() -> Sheet:
    lattice = np.array([[3.18, 0.0], [-1.59, 3.18 * np.sqrt(3) / 2]])
    frac = np.array([[0.0, 0.0], [1 / 3, 2 / 3], [1 / 3, 2 / 3]])
    return Sheet(np.array([42, 16, 16]), frac, np.array([0.0, 1.56, -1.56]), lattice)


def same(first: Sheet, second: Sheet) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


def test_samples_do_not_depend_on_the_batch(model, settings):
    together = sample(model, COMPOSITIONS, range(5), settings, seed=3)
    for k in (0, 2, 3):
        alone = sample(model, [COMPOSITIONS[k]], [k], settings, seed=3)[0]
        assert same(alone, together[k]), k
    other = sample(model, COMPOSITIONS[:1], [0], settings, seed=4)[0]
    assert not same(other, together[0])


def test_samples_are_sheets(model, settings):
    for sheet, numbers in zip(sample(model, COMPOSITIONS, range(5), settings, seed=0), COMPOSITIONS, strict=True):
        assert sheet.atomic_numbers.tolist() == list(numbers)
        assert abs(sheet.heights.mean()) < 1e-9 and (sheet.frac_coords >= 0).all() and (sheet.frac_coords < 1).all()
        assert sheet.thickness <= 2 * settings.max_thickness_angstrom and np.linalg.det(sheet.lattice) > 0


def test_thickness_is_bounded(model, settings):
    thin = dataclasses.replace(settings, max_thickness_angstrom=1.0)
    sheets = sample(model, COMPOSITIONS, range(5), thin, seed=0)
    assert max(sheet.thickness for sheet in sheets) <= 2.0 + 1e-6


def test_classifier_free_guidance_extrapolates(model, settings):
    class Encoded:
        alpha_bar = torch.zeros(2)

    class Network:
        def noise(self, encoded, delta_g=None, e_hull=None):
            value = torch.tensor([1.0]) if delta_g is None else torch.tensor([3.0])
            return NoiseEstimate(value, value, value)

    for w, expected in ((0.0, 1.0), (1.0, 3.0), (1.5, 4.0)):
        estimate = guided_noise(Network(), Encoded(), dataclasses.replace(settings, cfg_scale=w))
        assert float(estimate.frac) == expected and float(estimate.lattice) == expected


def test_target_loss(settings):
    settings = dataclasses.replace(settings, target_delta_g=0.1, weight_e_hull=2.0, weight_synth=0.5)
    properties = PropertyEstimate(torch.tensor([0.4, 0.1]), torch.tensor([-0.3, 0.2]), torch.tensor([0.0, 50.0]))
    expected = torch.tensor([0.3 + 0.5 * np.log(2), 0.4], dtype=torch.float32)
    torch.testing.assert_close(target_loss(properties, settings), expected)


def test_guidance_is_off_at_pure_noise_and_grows(model, settings):
    strengths = [guidance_strength(model.schedule, t, settings) for t in (60, 30, 1)]
    assert strengths[0] < strengths[1] < strengths[2] and strengths[0] < 0.1 * strengths[2]


def test_guidance_on_a_quadratic_head_moves_the_right_way(model, settings, monkeypatch):
    """A head that wants a large cell: guided cells must be larger than unguided ones from the same noise."""

    def head(self, encoded):
        area = torch.linalg.det(encoded.cell).abs()
        return PropertyEstimate((torch.log(area) - 4.0) ** 2, torch.zeros_like(area), torch.full_like(area, 50.0))

    monkeypatch.setattr(DenoisingEGNN, "properties", head)
    areas = []
    for scale in (0.0, 0.3):
        chosen = dataclasses.replace(settings, guidance_scale=scale, num_steps=40, cfg_scale=0.0)
        areas.append(np.array([s.area for s in sample(model, COMPOSITIONS, range(5), chosen, seed=1)]))
    before, after = ((np.log(a) - 4.0) ** 2 for a in areas)
    assert after.mean() < before.mean() and (after < before).sum() >= 4


def test_drafts_ignore_the_position_in_the_list(model, settings):
    settings = dataclasses.replace(settings, draft_steps=4)
    sheets, forward = draft(model, COMPOSITIONS, [None] * 5, settings, 0)
    others, backward = draft(model, COMPOSITIONS[::-1], [None] * 5, settings, 0, batch_size=2)
    np.testing.assert_allclose(forward, backward[::-1], rtol=0, atol=1e-10)
    for sheet, other in zip(sheets, others[::-1], strict=True):
        np.testing.assert_array_equal(sheet.frac_coords, other.frac_coords)


def test_guided_recipes_prefer_low_loss_and_new_compositions(model, settings, monkeypatch):
    recipes = [Recipe(f"C{k}", (6,) * k, "x") for k in range(1, 9)]
    monkeypatch.setattr(search, "reduced_formula", lambda numbers: f"C{len(numbers)}")
    monkeypatch.setattr(search, "draft", lambda m, c, *a: (list(map(len, c)), np.array([float(len(x)) for x in c])))
    monkeypatch.setattr(search, "check_validity", lambda atoms, settings: "clash" if atoms == 3 else "ok")
    strong = dataclasses.replace(settings, guidance_scale=1.0, template_share=0.0)
    order = [r.formula for r in order_recipes(model, recipes, {"C1"}, strong, 0, "cpu")]
    assert order == ["C2", "C4", "C5", "C6", "C7", "C8", "C1", "C3"]  # C1 is not new, and the draft of C3 is no sheet
    capped = dataclasses.replace(strong, num_structures=1, oversample=2.0, max_family_share=1.0)
    others = [dataclasses.replace(r, family="y") if r.formula in ("C6", "C8") else r for r in recipes]
    order = [r.formula for r in order_recipes(model, others, {"C1"}, capped, 0, "cpu")]
    assert order == ["C2", "C4", "C6", "C8", "C5", "C7", "C1", "C3"]  # two of a family, then two of the other
    one = dataclasses.replace(strong, max_family_share=1.0, max_per_composition=1)
    order = [r.formula for r in order_recipes(model, recipes + recipes[4:5] * 2, {"C1"}, one, 0, "cpu")]
    assert order[2:5] == ["C5", "C5", "C6"]  # two of a composition are sampled for one that is kept
    polymorphs = [dataclasses.replace(recipes[k], family=f) for k, f in ((4, "x"), (4, "y"), (4, "z"), (5, "x"))]
    assert search.exceeds_quota(polymorphs, one).tolist() == [False, True, True, False]
    assert search.exceeds_quota(polymorphs, one, 2.0).tolist() == [False, False, True, False]
    assert not search.exceeds_quota(polymorphs, dataclasses.replace(one, max_per_composition=0)).any()
    free = dataclasses.replace(settings, guidance_scale=0.0)
    orders = {tuple(r.formula for r in order_recipes(model, recipes, {"C1"}, free, seed, "cpu")) for seed in range(5)}
    assert len(orders) > 1 and all(o[-1] == "C1" for o in orders)


def test_the_search_breeds_from_the_best_and_ends_at_the_target(model, settings, monkeypatch):
    """On a line of compositions C1, C2, ... with the target at C9, one substitution leads from n to n + 1."""
    monkeypatch.setattr(search, "reduced_formula", lambda numbers: f"C{len(numbers)}")
    monkeypatch.setattr(search, "check_validity", lambda atoms, settings: "clash" if atoms == 4 else "ok")
    drafted: list[int] = []

    def drafts_of(model, compositions, *rest):
        drafted.extend(map(len, compositions))
        return list(map(len, compositions)), np.array([abs(len(c) - 9.0) for c in compositions])

    monkeypatch.setattr(search, "draft", drafts_of)
    bred: list[list[str]] = []

    def next_ones(parents):
        bred.append([parent.formula for parent in parents])
        return [Recipe(f"C{len(p.atomic_numbers) + 1}", (6,) * (len(p.atomic_numbers) + 1), "x") for p in parents]

    recipes = [Recipe(f"C{k}", (6,) * k, "x") for k in (1, 2, 3, 6)]
    strong = dataclasses.replace(
        settings, guidance_scale=1.0, template_share=0.0, num_structures=2, search_rounds=2, max_family_share=1.0
    )
    order = [r.formula for r in order_recipes(model, recipes, set(), strong, 0, "cpu", substituted=next_ones)]
    assert bred == [["C6", "C3"], ["C7", "C6"]], "the best two of all so far, none whose draft is no sheet"
    assert order == ["C8", "C7", "C6", "C3", "C2", "C1", "C4"] and sorted(drafted) == [1, 2, 3, 4, 6, 7, 8]
    small = dataclasses.replace(strong, max_recipe_atoms=7)
    assert order_recipes(model, recipes, set(), small, 0, "cpu", substituted=next_ones)[0].formula == "C7"
    none = dataclasses.replace(strong, search_rounds=0)
    assert len(order_recipes(model, recipes, set(), none, 0, "cpu", substituted=next_ones)) == 4


def test_families_have_the_same_weight(model, settings):
    """Of 200 recipes of one family and 10 of another, the small family has a fair share among the first."""
    recipes = [Recipe(f"a{k}", (6,), "large") for k in range(200)] + [Recipe(f"b{k}", (6,), "small") for k in range(10)]
    free = dataclasses.replace(settings, guidance_scale=0.0)
    first = [order_recipes(model, recipes, set(), free, seed, "cpu")[0].family for seed in range(100)]
    assert 30 < first.count("small") < 70


def test_recipes_from_formulas():
    (recipe,) = parse_recipes(["Mo2S4"], {42, 16})
    assert sorted(recipe.atomic_numbers) == [16] * 4 + [42] * 2
    for formula, message in (
        ("MoS2", "not trained on Mo"),
        ("Xx", "not a chemical formula"),
        ("C0.5", "fractional"),
        ("C99", "99 atoms"),
    ):
        with pytest.raises(StageError, match=message):
            parse_recipes([formula], {16, 6})


def test_recipes_from_families(caplog):
    elements = {16, 34, 42, 74}
    found = parse_recipes(["2H-MX2: Mo W | S, Se", "Janus-2H: Mo | * | *"], elements)
    assert [r.formula for r in found] == ["MoS2", "MoSe2", "WS2", "WSe2", "MoSSe"]
    assert [r.family for r in found] == ["2H-MX2"] * 4 + [
        "Janus-2H"
    ] and "hold elements that the model does not know" in caplog.text
    for entry, message in (
        ("9H: Mo | S", "no family '9H'; there are 2H-MX2"),
        ("2H-MX2: Mo", "2 sites, not 1"),
        ("2H-MX2: Mo | ", "an empty site"),
        ("2H-MX2: Mo | Zz", "Zz is no element"),
        ("2H-MX2: Mo | W", "charge-neutral"),
        ("2H-MX2: Ti | O", "not trained on O, Ti"),
    ):
        with pytest.raises(StageError, match=message):
            parse_recipes([entry], elements)


def test_symmetrisation_finds_the_group_of_a_rattled_sheet():
    clean = mos2()
    rng = np.random.default_rng(0)
    rattled = dataclasses.replace(
        clean,
        frac_coords=(clean.frac_coords + rng.normal(0, 0.008, (3, 2))) % 1.0,
        heights=clean.heights + rng.normal(0, 0.02, 3),
        lattice=clean.lattice * np.array([[1.01], [1.0]]),
    )
    result, symmetry = symmetrise(rattled, 0.2)
    assert symmetry.space_group_number == 187 and symmetry.tolerance == 0.2
    assert symmetry.layer_group_number == 78
    lengths = np.linalg.norm(result.lattice, axis=1)
    assert lengths[0] == pytest.approx(lengths[1], abs=1e-9)
    assert lengths.mean() == pytest.approx(3.2, abs=0.03)
    assert np.ptp(result.heights) == pytest.approx(3.12, abs=0.1)


def test_symmetrisation_leaves_a_sheet_without_symmetry_alone():
    rng = np.random.default_rng(1)
    sheet = Sheet.from_atoms(
        Sheet(np.array([42, 16, 34, 8]), rng.random((4, 2)), rng.normal(size=4), np.array([[3.0, 0.0], [-0.7, 4.1]])).to_atoms()
    )
    result, symmetry = symmetrise(sheet, 0.1)
    assert symmetry.space_group == "P1" and symmetry.tolerance == 0
    assert same(result, sheet)
    assert symmetrise(mos2(), 0.0)[1].space_group_number == 187, "an exact symmetry is reported even when none is imposed"


def test_cif_and_extxyz_agree(tmp_path):
    atoms = export_atoms(mos2(), 20.0)
    (tmp_path / "a.cif").write_text(cif_text(atoms, "gen_00001"))
    ase.io.write(tmp_path / "a.extxyz", atoms, format="extxyz")
    structure = Structure.from_file(tmp_path / "a.cif")
    again = ase.io.read(tmp_path / "a.extxyz")
    assert [s.Z for s in structure.species] == again.numbers.tolist()
    difference = structure.frac_coords - again.get_scaled_positions(wrap=False)
    difference -= np.round(difference)
    assert np.abs(difference @ again.cell.array).max() < 1e-4
    np.testing.assert_allclose(np.sort(structure.lattice.abc), np.sort(again.cell.lengths()), atol=1e-4)
    assert again.cell.lengths()[2] == pytest.approx(3.12 + 20.0, abs=1e-4)
    assert "data_gen_00001" in (tmp_path / "a.cif").read_text()


@pytest.fixture
def cfg(tmp_path, model, settings, monkeypatch) -> Config:
    """A checkpoint of random weights, and validity checks that pass most of what it makes."""
    path = tmp_path / "denoiser.pth"
    save_checkpoint(
        path, "denoiser", model.config, {"model": model.state_dict(), "elements": [6, 8, 16, 22, 42], "formulas": ["MoS2"]}
    )
    monkeypatch.setattr(candidates, "check_validity", lambda s, c: "clash" if len(s) == 1 else "ok")
    base = Config()
    return dataclasses.replace(
        base,
        run=dataclasses.replace(base.run, device="cpu", threads=1),
        denoiser=dataclasses.replace(base.denoiser, checkpoint=str(path)),
        generation=dataclasses.replace(
            settings, num_structures=4, batch_size=3, num_steps=4, oversample=2.0, output_dir=str(tmp_path / "cifs"),
            recipes=["MoS2", "C2", "TiC", "S", "Ti2CO2"],
        ),
    )  # fmt: skip


def with_generation(cfg: Config, **changes) -> Config:
    return dataclasses.replace(cfg, generation=dataclasses.replace(cfg.generation, **changes))


def contents(folder: str | Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file() and p.name != "manifest.json"}


def test_products(cfg, model):
    structure_generator.main(cfg)
    folder = Path(cfg.generation.output_dir)
    manifest = read_sidecar(folder, stage=STAGE)
    assert manifest["counts"]["kept"] == 4 and manifest["counts"]["sampled"] == 8
    assert manifest["counts"]["clash"] == 1
    frames = ase.io.read(folder / "candidates.extxyz", ":")
    assert [f.info["id"] for f in frames] == [row["id"] for row in manifest["candidates"]]
    assert {f"{f.info['id']}.cif" for f in frames} == {p.name for p in folder.glob("*.cif")}
    for frame in frames:
        structure = Structure.from_file(folder / f"{frame.info['id']}.cif")
        assert len(structure) == len(frame) and (frame.pbc == [True, True, False]).all()
        difference = structure.frac_coords - frame.get_scaled_positions(wrap=False)
        assert np.abs((difference - np.round(difference)) @ frame.cell.array).max() < 1e-4
        predicted = predict_properties(model, [Sheet.from_atoms(frame)])
        assert frame.info["delta_g_pred"] == pytest.approx(float(predicted.delta_g), abs=2e-3)
    assert not (folder / candidates.PARTIAL_DIR).exists()


def test_same_files_whatever_the_batch_size_and_after_a_kill(cfg, tmp_path, monkeypatch):
    structure_generator.main(cfg)
    reference = contents(cfg.generation.output_dir)
    other = with_generation(cfg, batch_size=8, output_dir=str(tmp_path / "other"))
    structure_generator.main(other)
    assert contents(other.generation.output_dir) == reference

    killed = with_generation(cfg, output_dir=str(tmp_path / "killed"))
    calls, original = {"n": 0}, candidates.sample

    def dies_in_the_second_batch(*args):
        calls["n"] += 1
        if calls["n"] == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(candidates, "sample", dies_in_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        structure_generator.main(killed)
    assert not list(Path(killed.generation.output_dir).glob("*.cif"))
    structure_generator.main(killed)
    assert calls["n"] == 4, "the first batch was not sampled again"
    assert contents(killed.generation.output_dir) == reference


def test_a_finished_stage_does_nothing_and_new_settings_replace_the_files(cfg, monkeypatch):
    structure_generator.main(cfg)
    folder = Path(cfg.generation.output_dir)
    monkeypatch.setattr(candidates, "sample", lambda *a: pytest.fail("sampled again"))
    structure_generator.main(cfg)
    monkeypatch.undo()
    monkeypatch.setattr(candidates, "check_validity", lambda s, c: "ok")
    structure_generator.main(with_generation(cfg, num_structures=2))
    assert len(list(folder.glob("gen_*.cif"))) == 2


def test_a_control_is_not_selected_by_the_heads(cfg):
    structure_generator.main(with_generation(cfg, guidance_scale=0.0, cfg_scale=0.0))
    manifest = json.loads((Path(cfg.generation.output_dir) / "manifest.json").read_text())
    assert [row["id"] for row in manifest["candidates"]] == ["gen_00000", "gen_00001", "gen_00002", "gen_00004"]
    assert "first valid" in manifest["selection"]


def test_selection_draws_with_the_tilt_of_the_guidance():
    """Of two candidates, the worse by 0.1 eV is drawn with probability 1/(1+e) at η = 1, and as often as the other at η = 0."""
    loss, trials = np.array([0.1, 0.2]), 4000
    for strength, expected in ((1.0, 1 / (1 + np.e)), (0.0, 0.5)):
        worse = sum(np.argmax(gumbel_keys(loss, [2 * k, 2 * k + 1], strength, 0)) for k in range(trials))
        assert worse / trials == pytest.approx(expected, abs=4 * 0.5 / trials**0.5)
    keys = gumbel_keys(np.zeros(3), [5, 6, 7], 1.0, 0)
    np.testing.assert_array_equal(gumbel_keys(np.zeros(2), [7, 5], 1.0, 0), keys[[2, 0]])


def test_too_few_valid_sheets(cfg, monkeypatch, caplog):
    verdicts = chain(["ok"] * 3, repeat("disconnected"))
    monkeypatch.setattr(candidates, "check_validity", lambda s, c: next(verdicts))
    structure_generator.main(with_generation(cfg, num_structures=8, oversample=1.0))
    assert "fewer than generation.num_structures=8" in caplog.text
    monkeypatch.setattr(candidates, "check_validity", lambda s, c: "too thick")
    with pytest.raises(StageError, match="none of 20 sampled sheets is valid .*20 too thick"):
        structure_generator.main(with_generation(cfg, oversample=1.0))


def test_missing_checkpoint_is_one_line(cfg):
    missing = dataclasses.replace(cfg, denoiser=dataclasses.replace(cfg.denoiser, checkpoint="/nonexistent/denoiser.pth"))
    with pytest.raises(StageError, match="denoiser checkpoint: no file.*run optimization.py"):
        structure_generator.main(missing)
