"""The HER judge: one answer per sheet whatever its cell, refusals, calibration, domain, checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, graphene, mx2

from energetics import dft_correction, dft_points, site_cache
from energetics.hydrogen import Calibration, Domain, HydrogenPredictor, batch_atoms, ensemble_spread
from energetics.sites import add_hydrogen, adsorption_sites, h_supercell
from geo_utils import standard_sheet
from models import DIMENET_KIND, DimeNetPlusPlus
from networks.checkpoints import CheckpointError, save_checkpoint
from networks.dimenet_layers import DimeNetPlusPlusConfig
from pipeline.settings import DatasetConfig

TRUTH = Path(__file__).resolve().parents[2] / "data" / "h_on_2d_dft.db"
SETTINGS = DatasetConfig(h_image_distance_angstrom=6.0, label_batch_size=8)
SIZE = DimeNetPlusPlusConfig(hidden_channels=16, out_emb_channels=16, int_emb_size=8)
WIDE = Domain(elements=tuple(range(1, 95)), delta_e_min=-99.0, delta_e_max=99.0, std_max=99.0)


def make_predictor(domain: Domain = WIDE, members: int = 3, dtype: torch.dtype = torch.float64) -> HydrogenPredictor:
    torch.manual_seed(0)
    networks = [DimeNetPlusPlus(SIZE).to(dtype) for _ in range(members)]
    return HydrogenPredictor(networks, mean=0.4, std=0.1, calibration=Calibration(1.5, 0.01), domain=domain)


@pytest.fixture(scope="module")
def predictor() -> HydrogenPredictor:
    return make_predictor()


def sheet(formula: str = "MoS2", kind: str = "2H") -> Atoms:
    atoms = mx2(formula, kind, a=3.18, thickness=3.13, vacuum=10.0)
    atoms.pbc = (True, True, False)
    return standard_sheet(atoms)


def test_bare_sheet_and_wrong_adsorbates_are_refused(predictor):
    bare = sheet()
    with pytest.raises(ValueError, match="MoS2: no atom tagged as adsorbate, expected one H"):
        predictor.predict_delta_e([bare])
    covered = add_hydrogen(bare, adsorption_sites(bare)[0], (2, 2))
    two = covered.copy()
    two.append("H")
    two.positions[-1] = two.positions[-2] + [1.0, 0, 0]
    two.set_tags([*covered.get_tags(), 2])
    with pytest.raises(ValueError, match="H2 tagged as adsorbate"):
        predictor.predict_delta_e([covered, two])
    oxygen = covered.copy()
    oxygen.symbols[-1] = "O"
    with pytest.raises(ValueError, match="O tagged as adsorbate, expected one H"):
        predictor.predict_delta_e([oxygen])
    assert predictor.predict_delta_e([])[0].shape == (0,)


def test_the_legacy_output_of_a_bare_sheet_is_the_sum_over_its_atoms_and_opens_no_other_door(predictor):
    bare = sheet()
    value = predictor.legacy_bare_output(bare)
    doubled = predictor.legacy_bare_output(bare.repeat((2, 1, 1)))
    assert abs(value - 0.4) > 1e-3
    assert doubled - 0.4 == pytest.approx(2 * (value - 0.4), rel=1e-9), "a sum over the cell grows with the cell"
    with pytest.raises(ValueError, match="no atom tagged as adsorbate"):
        predictor.predict_delta_e([bare])
    with pytest.raises(ValueError, match="no adsorbate atom"):
        predictor.members[0](*batch_atoms([bare], torch.float64, "cpu"))
    assert predictor.members[0].settings.readout == "adsorbate"
    too_heavy = bare.copy()
    too_heavy.numbers[0] = predictor.max_atomic_number + 1
    with pytest.raises(ValueError, match="heavier than"):
        predictor.legacy_bare_output(too_heavy)


def test_sheet_gives_every_site_and_the_lowest(predictor):
    bare = sheet()
    result = predictor.predict_sheet(bare, SETTINGS)
    sites = adsorption_sites(result.sheet)
    assert len(result.sites) == len(sites) == len(result.delta_g) == len(result.std) >= 3
    assert {site.kind for site in result.sites} == {"top", "bridge", "hollow"}
    supercell = h_supercell(result.sheet, 6.0)
    assert result.supercell == supercell and result.coverage == 1 / (supercell[0] * supercell[1])
    expected, std = predictor.predict_delta_e([add_hydrogen(result.sheet, site, supercell) for site in sites])
    np.testing.assert_allclose(result.delta_e, expected, atol=1e-10)
    np.testing.assert_allclose(result.delta_g, expected + 0.27, atol=1e-10)
    np.testing.assert_allclose(result.std, std, atol=1e-10)
    assert result.best == int(np.argmin(expected)) and result.best_delta_g == result.delta_g[result.best]
    assert np.ptp(result.delta_g) > 1e-4
    assert result.in_domain and result.status == "ok"


def test_the_band_gap_of_the_primitive_sheet_reaches_the_correction():
    points = dft_points.read_truth(TRUTH)
    raw = np.array([point.energies["sevennet-0"] for point in points])
    judge = make_predictor()
    features, truth, hosts = dft_correction.fit_arguments(points, raw, with_gap=True)
    judge.correction = dft_correction.DftCorrection.fit(features, truth, hosts, with_gap=True)
    without_gap = dft_correction.DftCorrection.fit(features[:, :-1], truth, hosts)
    asked: list[int] = []

    def gap(primitive: Atoms) -> float:
        asked.append(len(primitive))
        return 2.0

    wide = judge.predict_sheet(sheet().repeat((2, 2, 1)), SETTINGS, gap)
    assert asked == [3] and wide.band_gap == 2.0
    structures = [add_hydrogen(wide.sheet, site, wide.supercell) for site in wide.sites]
    given = judge.predict_raw(structures)
    expected, std = judge.correction.apply(structures, *given, np.full(len(structures), 2.0))
    np.testing.assert_allclose(wide.delta_e, expected, atol=1e-9)
    np.testing.assert_allclose(wide.std, std, atol=1e-9)
    np.testing.assert_allclose(judge.predict_delta_e(structures, gaps=np.full(len(structures), 2.0))[0], expected, atol=1e-9)
    plain = judge.predict_sheet(sheet(), SETTINGS)
    assert np.isnan(plain.band_gap)
    np.testing.assert_allclose(plain.delta_e, without_gap.apply(structures, *given)[0], atol=1e-6)
    metal = judge.predict_sheet(sheet(), SETTINGS, lambda primitive: 0.0)
    assert metal.best_delta_g < wide.best_delta_g - 0.1, "an electron has to go over the gap"


def supercell(atoms: Atoms) -> Atoms:
    return atoms.repeat((2, 1, 1))


def rotated(atoms: Atoms) -> Atoms:
    turned = atoms.copy()
    turned.rotate(23.0, "z", rotate_cell=True)
    return turned


def lifted(atoms: Atoms) -> Atoms:
    moved = atoms.copy()
    moved.positions[:, 2] += 3.3
    return moved


def wrapped_across_the_vacuum(atoms: Atoms) -> Atoms:
    moved = atoms.copy()
    moved.pbc = True
    moved.positions[:, 2] -= moved.positions[:, 2].mean()
    moved.wrap()
    return moved


def other_basis(atoms: Atoms) -> Atoms:
    moved = atoms.copy()
    moved.set_cell(np.array([[1, 1, 0], [1, 2, 0], [0, 0, 1]]) @ atoms.cell.array)
    return moved


@pytest.mark.parametrize("change", [supercell, rotated, lifted, wrapped_across_the_vacuum, other_basis])
@pytest.mark.parametrize("kind", ["2H", "1T"])
def test_same_sheet_same_answer(predictor, kind, change):
    bare = sheet("NbSe2", kind)
    first, second = (predictor.predict_sheet(atoms, SETTINGS) for atoms in (bare, change(bare)))
    assert len(first.sites) == len(second.sites) and first.coverage == second.coverage
    np.testing.assert_allclose(sorted(first.delta_g), sorted(second.delta_g), rtol=0, atol=1e-6)


def test_stream_gives_what_single_calls_give(predictor):
    carbon = graphene(vacuum=10.0)
    carbon.pbc = (True, True, False)
    bulk = Atoms("Cu", cell=[2.5, 2.5, 2.5], pbc=True)
    sheets = [sheet(), bulk, carbon, sheet("WSe2", "1T")]
    results = list(predictor.predict_many(iter(sheets), SETTINGS))
    assert len(results) == 4
    for index in (0, 2, 3):
        alone = predictor.predict_sheet(sheets[index], SETTINGS)
        np.testing.assert_allclose(results[index].delta_g, alone.delta_g, rtol=0, atol=1e-10)
    assert "no vacuum" in results[1].status and results[1].best is None and np.isnan(results[1].best_delta_g)
    assert not results[1].in_domain and results[1].domain_reason == results[1].status
    with pytest.raises(ValueError, match="no vacuum"):
        predictor.predict_sheet(bulk, SETTINGS)
    assert list(predictor.predict_many([], SETTINGS)) == []


def test_stream_is_consumed_batch_by_batch(predictor):
    taken = []

    def sheets():
        for number in range(6):
            taken.append(number)
            yield sheet()

    stream = predictor.predict_many(sheets(), SETTINGS)
    next(stream)
    assert len(taken) < 6


def test_domain_flags_name_the_reason():
    known = Domain(elements=(1, 16, 42), delta_e_min=-99.0, delta_e_max=99.0, std_max=99.0)
    assert make_predictor(known).predict_sheet(sheet(), SETTINGS).in_domain
    strange = make_predictor(known).predict_sheet(sheet("WS2"), SETTINGS)
    assert not strange.in_domain and "W" in strange.domain_reason
    narrow = Domain(elements=WIDE.elements, delta_e_min=90.0, delta_e_max=99.0, std_max=99.0)
    assert "training range" in make_predictor(narrow).predict_sheet(sheet(), SETTINGS).domain_reason
    sure = Domain(elements=WIDE.elements, delta_e_min=-99.0, delta_e_max=99.0, std_max=1e-6)
    assert "members disagree" in make_predictor(sure).predict_sheet(sheet(), SETTINGS).domain_reason


def test_calibration_covers_what_it_promises():
    rng = np.random.default_rng(0)
    spread = rng.gamma(2.0, 0.05, 4000)
    error = rng.normal(size=4000) * 3.0 * np.sqrt(spread**2 + np.median(spread) ** 2)
    fitted = Calibration.fit(spread[:2000], error[:2000])
    assert fitted.scale == pytest.approx(3.0, rel=0.1)
    within = np.abs(error[2000:]) <= fitted.std(spread[2000:])
    assert within.mean() == pytest.approx(0.6827, abs=0.03)
    alone = Calibration.fit(np.zeros(2000), error[:2000])
    assert alone.std(np.zeros(3)) == pytest.approx(np.quantile(np.abs(error[:2000]), 0.6827))
    assert ensemble_spread(np.ones((1, 4))).tolist() == [0.0] * 4


def test_checkpoint_round_trip_and_refusals(tmp_path):
    predictor = make_predictor(dtype=torch.float32)
    states = [member.state_dict() for member in predictor.members]
    state = HydrogenPredictor.state(predictor.calibration, predictor.domain, 0.4, 0.1, states)
    path = tmp_path / "dimenet.pth"
    save_checkpoint(path, DIMENET_KIND, SIZE, state)
    loaded = HydrogenPredictor.load(path)
    covered = add_hydrogen(sheet(), adsorption_sites(sheet())[0], (2, 2))
    np.testing.assert_array_equal(loaded.predict_delta_e([covered]), predictor.predict_delta_e([covered]))
    assert loaded.domain == predictor.domain and loaded.provenance["members"] == 3

    with pytest.raises(CheckpointError, match="run pretrain_dimenet.py"):
        HydrogenPredictor.load(tmp_path / "missing.pth")
    renamed = {("x." + key if key == "rbf.freq" else key): value for key, value in states[0].items()}
    save_checkpoint(path, DIMENET_KIND, SIZE, {**state, "members": [renamed]})
    with pytest.raises(CheckpointError, match="does not fit"):
        HydrogenPredictor.load(path)
    save_checkpoint(path, "denoiser", SIZE, state)
    with pytest.raises(CheckpointError, match="not a dimenet checkpoint"):
        HydrogenPredictor.load(path)


def test_batch_does_not_depend_on_its_size(predictor):
    structures = [add_hydrogen(sheet(), site, (2, 2)) for site in adsorption_sites(sheet())] * 3
    whole, _ = predictor.predict_delta_e(structures, batch_size=100)
    single, _ = predictor.predict_delta_e(structures, batch_size=1)
    np.testing.assert_allclose(whole, single, rtol=0, atol=1e-10)
    z, pos, cell, batch, tags = batch_atoms(structures, torch.float64, "cpu")
    assert z.shape == batch.shape == tags.shape == pos.shape[:1] and cell.shape == (len(structures), 3, 3)


def test_kept_sites_give_the_same_answer_and_are_not_searched_again(predictor, tmp_path, monkeypatch):
    settings = DatasetConfig()
    sheets = [standard_sheet(mx2(formula, vacuum=10)) for formula in ("MoS2", "WSe2")]
    sheets.append(bulk("Cu", "fcc", a=3.61, cubic=True))
    plain = list(predictor.predict_many(sheets, settings))
    store = site_cache.SiteStore(tmp_path / "sites.jsonl", settings.h_image_distance_angstrom)
    first = list(predictor.predict_many(sheets, settings, store))
    path = tmp_path / "sites.jsonl"
    path.write_bytes(path.read_bytes() + b'{"key": "half a li')

    def refuse(*_):
        raise AssertionError("searched again")

    monkeypatch.setattr(site_cache, "place_sites", refuse)
    again = list(predictor.predict_many(sheets, settings, site_cache.SiteStore(path, settings.h_image_distance_angstrom)))
    for a, b, c in zip(plain, first, again, strict=True):
        assert a.status == b.status == c.status and a.supercell == b.supercell == c.supercell
        np.testing.assert_array_equal(a.delta_g, b.delta_g)
        np.testing.assert_array_equal(a.delta_g, c.delta_g)
        assert [s.label(a.sheet) for s in a.sites] == [s.label(c.sheet) for s in c.sites]
    assert plain[2].status != "ok"
    with pytest.raises(AssertionError, match="searched again"):
        list(predictor.predict_many(sheets, settings, site_cache.SiteStore(path, 9.0)))
