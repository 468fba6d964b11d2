"""Δ-learning from DFT: never judged on the hosts it was fitted on."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111, graphene, mx2
from ase.db import connect
from scipy.stats import spearmanr

import geo_utils as geo
from energetics import dft_correction, dft_points, gaussian_process, sites
from energetics.band_gap_model import GapModel
from energetics.dft_correction import DftCorrection, ErrorScale, descriptors
from energetics.gaussian_process import GaussianProcess
from pipeline.errors import StageError
from pipeline.memory import Memory
from pipeline.settings import EvaluationConfig

TRUTH = Path(__file__).resolve().parents[2] / "data" / "h_on_2d_dft.db"
GAPS = str(Path(__file__).parents[2] / "weights" / "band_gap.pth")
TABLE = Path(__file__).resolve().parents[1] / "data" / "her_truth.csv"


def sheet_with_hydrogen(formula="MoS2"):
    sheet = geo.standard_sheet(mx2(formula, vacuum=10))
    site = next(s for s in sites.adsorption_sites(sheet) if s.kind == "top" and s.label(sheet).split()[1] != "Mo")
    return sites.add_hydrogen(sheet, site, (2, 2))


def test_descriptors_of_a_known_sheet():
    values = dft_correction.descriptors(sheet_with_hydrogen(), [0.75, 0.6])
    # H sits on S, 2.58 on Pauling's scale, of group 16; the rest is Mo, of covalent radius 1.54 Å.
    np.testing.assert_allclose(values, [0.75, 0.6, 2.58, 16, 1.54])
    carbon = geo.standard_sheet(graphene(vacuum=10))
    top = next(s for s in sites.adsorption_sites(carbon) if s.kind == "top")
    on_carbon = dft_correction.descriptors(sites.add_hydrogen(carbon, top, (3, 3)), [1.5])
    np.testing.assert_allclose(on_carbon, [1.5, 2.55, 14, 0.76], err_msg="an element stands for the others where it is alone")


@pytest.mark.parametrize("face", [1, -1])
def test_the_place_of_h_is_its_bond_valence_and_its_height(face):
    sheet = Atoms("C3H", [[1, 0, 0], [-0.5, 0.75**0.5, 0], [-0.5, -(0.75**0.5), 0], [0, 0, face * 0.8]], cell=[20, 20, 20])
    sheet.pbc = (True, True, False)
    sheet.set_tags([1, 1, 1, 2])
    valence, height, inside = descriptors(sheet, [0.1], with_place=True)[-3:]
    assert (
        inside == 0
        and height == pytest.approx(0.8)
        and valence == pytest.approx(3 * np.exp((0.76 + 0.31 - np.hypot(1, 0.8)) / 0.37))
    )
    np.testing.assert_array_equal(descriptors(sheet, [0.1], with_place=True)[:-3], descriptors(sheet, [0.1]))


def test_a_law_of_the_place_is_learnt_where_the_place_is_described():
    rng = np.random.default_rng(4)
    energies, height = rng.normal(size=60), rng.choice([0.0, 1.0], 60)
    plain = np.column_stack([energies, np.full(60, 2.58), np.full(60, 16.0), np.full(60, 1.5)])
    place = np.column_stack([plain, rng.normal(1, 0.1, 60), height, np.zeros(60)])
    truth = 0.7 * energies + 0.8 * height + rng.normal(scale=0.03, size=60)
    hosts = [str(k % 20) for k in range(60)]
    with_place, without = DftCorrection.fit(place, truth, hosts, with_place=True), DftCorrection.fit(plain, truth, hosts)
    assert with_place.rmse_ev < 0.12 < 0.3 < without.rmse_ev


def test_a_law_is_recovered_on_left_out_hosts_with_its_uncertainty():
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.normal(0.5, 0.6, 60), rng.choice([14.0, 15, 16], 60), rng.uniform(1.2, 3.4, 60), np.zeros(60)])
    truth = 0.3 + 0.9 * features[:, 0] + 0.3 * np.sin(2 * features[:, 2]) + 0.05 * rng.normal(size=60)
    hosts = [f"host{i // 2}" for i in range(60)]
    correction = DftCorrection.fit(features, truth, hosts)
    assert correction.n == 60 and correction.rmse_ev < 0.12 < 0.3 * truth.std()
    predicted, sigma = dft_correction.leave_out(features, truth, hosts)
    within = np.abs(predicted - truth) <= correction.error_scale(sigma)
    assert within.mean() == pytest.approx(0.683, abs=0.03)


def test_left_out_values_do_not_depend_on_the_left_out_truth():
    rng = np.random.default_rng(1)
    features, truth = rng.normal(size=(20, 5)), rng.normal(size=20)
    hosts = [f"host{i // 2}" for i in range(20)]
    reference = dft_correction.leave_out(features, truth, hosts)[0]
    changed = truth.copy()
    changed[:2] += 100.0
    np.testing.assert_allclose(dft_correction.leave_out(features, changed, hosts)[0][:2], reference[:2])
    assert np.abs(dft_correction.leave_out(features, changed, hosts)[0][2:] - reference[2:]).max() > 1


def test_a_fit_is_remembered_to_the_last_bit_and_only_for_the_same_points(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    features, truth = rng.normal(size=(20, 5)), rng.normal(size=20)
    features[3, -1] = np.nan  # a band gap that is not known
    hosts, memory = [f"host{i // 2}" for i in range(20)], Memory(tmp_path)
    plain = dft_correction.leave_out(features, truth, hosts, True)
    first = dft_correction.leave_out(features, truth, hosts, True, memory=memory)
    fits = []
    monkeypatch.setattr(dft_correction, "_Regression", lambda *arguments: fits.append(arguments) or 1 / 0)
    again = dft_correction.leave_out(features, truth, hosts, True, memory=Memory(tmp_path))
    for one in (first, again):
        np.testing.assert_array_equal(one, plain)
    moved = features + [1e-9, 0, 0, 0, 0]
    for others in (
        {"features": moved},
        {"truth": truth + 1e-9},
        {"groups": hosts[::-1]},
        {"with_gap": False},
        {"with_place": True},
        {"predict_at": moved},
        {"latent": features[:, :2]},
    ):
        arguments = {"features": features, "truth": truth, "groups": hosts, "with_gap": True} | others
        with pytest.raises(ZeroDivisionError):
            dft_correction.leave_out(**arguments, memory=memory)
    monkeypatch.setattr(dft_correction, "PRIOR", (*gaussian_process.PRIOR[:-1], 5))
    with pytest.raises(ZeroDivisionError):
        dft_correction.leave_out(features, truth, hosts, True, memory=memory)
    assert len(fits) == 8


def test_shuffled_truth_cannot_be_learnt():
    """On the committed DFT points the potential's own ΔE_H predicts left-out hosts; after shuffling it predicts nothing."""
    points = dft_points.read_truth(TRUTH)
    features = np.array([dft_correction.descriptors(p.atoms, p.energies.values()) for p in points])
    truth, hosts = np.array([p.delta_e for p in points]), [p.host for p in points]
    real = np.corrcoef(dft_correction.leave_out(features, truth, hosts)[0], truth)[0, 1]
    shuffled = []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(truth))
        shuffled.append(np.corrcoef(dft_correction.leave_out(features, truth[order], hosts)[0], truth[order])[0, 1])
    assert real > 0.65 and abs(np.mean(shuffled)) < 0.35


def test_error_bars_grow_with_the_networks_and_far_from_the_points():
    points = truth_points()
    features = np.array([dft_correction.descriptors(p.atoms, p.energies.values()) for p in points])
    correction = DftCorrection.fit(features, np.array([p.delta_e for p in points]), [p.host for p in points])
    atoms = [points[0].atoms] * 3
    value, std = correction.apply(atoms, np.array([0.5, 0.5, 30.0]), np.array([0.0, 0.4, 0.0]))
    assert value[0] == pytest.approx(0.4 + 0.7 * 0.5, abs=0.1) and value[0] == value[1]
    assert std[1] == pytest.approx(np.hypot(std[0], 0.4 * 0.7), rel=0.1)
    assert std[2] > 3 * std[0]
    again = DftCorrection(**json.loads(json.dumps(dataclasses.asdict(correction))))
    np.testing.assert_allclose(again.apply(atoms, np.full(3, 0.5), np.zeros(3))[0], value[0], rtol=1e-12)
    helium = points[0].atoms.copy()
    helium.numbers[helium.symbols == "S"] = 2
    assert np.isnan(correction.apply([helium], np.array([0.5]), np.zeros(1))[0]).all(), "no electronegativity, no correction"


def as_judged(points):
    """Return the ΔE_H (n, 2) of the two potentials of the default judge."""
    settings = EvaluationConfig()
    return dft_points.judged_delta_e(points, [SimpleNamespace(name=n) for n in (settings.potential, settings.second_potential)])


def fitted_on_the_committed_points(most_halogens=100):
    """Points with a gap, at most so many with H on a halogen, the ΔE_H of the potentials, and a correction fitted on them."""
    points = [point for point in dft_points.read_truth(TRUTH) if np.isfinite(point.gap)]
    halogens = [point for point in points if point.chemistry.startswith("halogen")][:most_halogens]
    points = [point for point in points if not point.chemistry.startswith("halogen")] + halogens
    energies = as_judged(points)
    arguments = dft_correction.fit_arguments(points, energies, with_gap=True)
    return points, energies, DftCorrection.fit(*arguments, with_gap=True)


def test_sigma_grows_with_the_distance_from_the_points_and_on_sites_of_another_chemistry():
    _, _, correction = fitted_on_the_committed_points()
    features, truth = np.array(correction.features), np.array(correction.truth)
    process = GaussianProcess(features, truth, with_gap=True)
    away = features.mean(0) + np.outer(np.arange(0, 12, 2), [1, 0, 0, 0, 0, 0])
    sigma = process.predict(away)[1]
    assert (np.diff(sigma) > 0.05).all(), "the slope of the trend is not known exactly"
    shifted = features[:1] + np.outer(np.arange(0, 12, 3), [0, 0, 0, 0, 1.0, 0])  # other elements: Å of radius
    sigma = process.predict(shifted)[1]
    c = gaussian_process
    bound = np.sqrt(c.AMPLITUDE**2 + c.NOISE**2 + c.SITE**2 + 1)
    assert (np.diff(sigma)[:1] > 0.1).all() and sigma.max() < bound, "no straight line over the descriptors of the site"
    chalcogen = features[:, 3] == 16
    other = GaussianProcess(features[~chalcogen], truth[~chalcogen], with_gap=True)
    assert other.predict(features[chalcogen])[1].mean() > 1.2 * process.predict(features[chalcogen])[1].mean()


def test_the_error_of_a_sheet_without_a_gap_is_larger_and_still_one():
    points, energies, correction = fitted_on_the_committed_points()
    features, truth, hosts = dft_correction.fit_arguments(points, energies, with_gap=True)
    blank = features.copy()
    blank[:, -1] = np.nan
    _, with_gap = dft_correction.leave_out(features, truth, hosts, True)
    predicted, sigma = dft_correction.leave_out(features, truth, hosts, True, blank)
    assert 0.6 < np.mean(np.abs(predicted - truth) <= correction.error_scale(sigma)) < 0.76
    assert sigma.mean() > 1.03 * with_gap.mean()


def test_a_network_is_not_corrected_by_points_inside_sheets(tmp_path):
    """It is asked about faces only, and does not know the place of H."""
    points = truth_points()
    niobium = geo.standard_sheet(mx2("NbSe2", a=3.47, thickness=3.37, vacuum=10))
    deep = sites.add_hydrogen(niobium, sites.inner_sites(niobium)[0], (2, 2))
    with connect(tmp_path / "x.db") as db:
        for p in points:
            db.write(p.atoms, kind="slab_H", name=p.name, site=p.site, dE_dft=p.delta_e, dE_7net0=p.energies["sevennet-0"])
        db.write(deep, kind="slab_H", name="deep", site="hollow", dE_dft=-2.0, dE_7net0=1.0)
    read = dft_points.read_truth(tmp_path / "x.db")
    raw = np.zeros(len(read))
    taught, summary = dft_correction.fit_correction(
        lambda structures: (raw[: len(structures)], None), tmp_path / "x.db", "sevennet-0"
    )
    assert summary["n"] == taught.n == len(points)
    left_out, _ = dft_correction.left_out_predictions(read, raw, teacher="sevennet-0")
    assert [point.name for point, value in zip(read, left_out, strict=True) if np.isnan(value)] == ["deep"]


def test_errors_that_grow_faster_than_sigma_are_scaled_by_a_power():
    rng = np.random.default_rng(2)
    sigma = rng.uniform(0.1, 0.5, 2000)
    error = 3.0 * sigma**1.7 * rng.standard_t(4, 2000)
    scale = ErrorScale.fit(np.zeros(2000), error, sigma)
    assert scale.power == pytest.approx(1.7, abs=0.1)
    for part in np.array_split(np.argsort(sigma), 4):
        assert np.mean(np.abs(error[part]) <= scale(sigma[part])) == pytest.approx(0.683, abs=0.05)
    few = ErrorScale.fit(np.zeros(20), error[:20], sigma[:20])
    assert few.power == 1 and few.factor == pytest.approx(np.quantile(np.abs(error[:20]) / sigma[:20], 0.6827))
    blank = ErrorScale.fit(np.zeros(2000), np.where(np.arange(2000) < 5, np.nan, error), sigma)
    assert blank.power == pytest.approx(scale.power, abs=0.02), "what has no prediction is passed over"


def test_sites_unlike_the_points_are_named_and_have_larger_errors():
    points, energies, correction = fitted_on_the_committed_points(most_halogens=3)
    atoms, gaps = [p.atoms for p in points], np.array([p.gap for p in points])
    said = correction.complaints(atoms, energies, gaps)
    flagged = np.array([bool(text) for text in said])
    assert {p.chemistry.split(",")[0] for p, is_out in zip(points, flagged, strict=True) if is_out} == {"halogen"}, (
        "three points are too few"
    )
    assert all(text == "3 DFT points with H on halogen" for text in said if text)
    _, sigma = correction.apply(atoms, energies, np.zeros(len(atoms)), gaps)
    assert sigma[flagged].min() > np.median(sigma[~flagged])
    points, energies, correction = fitted_on_the_committed_points()
    assert not any(correction.complaints([p.atoms for p in points], energies, np.array([p.gap for p in points])))
    far = energies[:1] + 6.0
    for gap in (gaps[:1], None):  # with and without the gap, by the process of that case
        (text,) = correction.complaints(atoms[:1], far, gap)
        value, error = correction.apply(atoms[:1], far, np.zeros(1), gap)
        assert "standard deviations from the nearest DFT point, 95 % of the points within" in text
        assert np.isfinite(value).all() and error[0] > 1.5 * np.median(sigma)
    hydrogenated = atoms[0].copy()
    hydrogenated += Atoms("H", [hydrogenated.positions[-1] + [0, 0, 0.8]])
    hydrogenated.set_tags([*hydrogenated.get_tags()[:-1], 0])
    (text,) = correction.complaints([hydrogenated], energies[:1], gaps[:1])
    assert text.startswith("0 DFT points with H on hydrogen")
    assert correction.complaints([], energies[:0]) == []


def test_the_gap_helps_where_it_is_known_and_its_absence_is_the_fit_without_it():
    rng = np.random.default_rng(4)
    site = [rng.uniform(2.0, 3.0, 60), np.full(60, 16.0), np.full(60, 1.5)]
    features = np.column_stack([rng.normal(0.5, 0.6, 60), *site, rng.uniform(0, 4, 60)])
    truth = 0.3 + 0.8 * features[:, 0] + 0.25 * features[:, -1]
    hosts = [f"host{k}" for k in range(60)]
    with_gap = DftCorrection.fit(features, truth, hosts, with_gap=True)
    without = DftCorrection.fit(features[:, :-1], truth, hosts)
    assert with_gap.rmse_ev < 0.1 < 0.2 < without.rmse_ev
    blank = features.copy()
    blank[::2, -1] = np.nan  # known for half of the points and asked for where it is not
    partly, _ = dft_correction.leave_out(blank, truth, hosts, with_gap=True)
    plain, _ = dft_correction.leave_out(features[:, :-1], truth, hosts)
    np.testing.assert_allclose(partly[::2], plain[::2], rtol=1e-12)
    assert np.abs(partly[1::2] - truth[1::2]).max() < 0.2 < np.abs(plain[1::2] - truth[1::2]).max()
    blank[3:, -1] = np.nan  # two points with a gap are no fit
    np.testing.assert_allclose(dft_correction.leave_out(blank, truth, hosts, with_gap=True)[0], plain, rtol=1e-12)


def test_stored_gaps_are_those_of_the_sheets(tmp_path):
    ribbon = Atoms("MoS2", [[0, 0, 0], [1.8, 0, 1.6], [1.8, 0, -1.6]], cell=[3.2, 24, 24], pbc=(True, True, False))
    ribbon.center()
    sheets = {"a": sheet_with_hydrogen()[:-1], "none": sheet_with_hydrogen()[:-1], "ribbon": ribbon}
    with connect(tmp_path / "x.db") as db:
        for name, sheet in sheets.items():
            db.write(sheet + Atoms("H", [sheet.positions[0] + [0, 0, 3.0]]), kind="slab_H", name=name, dE_dft=1.0, gap_learnt=9.0)
            if name != "none":
                db.write(sheet, kind="clean", name=name)
    expected = GapModel.load(GAPS).band_gap(sheets["a"])
    assert dft_points.store_gaps(tmp_path / "x.db", GAPS) == 1
    gaps = dft_points.sheet_gaps(dft_points.read_truth(tmp_path / "x.db"))
    assert gaps[0] == pytest.approx(expected) and np.isnan(gaps[1:]).all(), "neither without its sheet nor of a ribbon"


def test_the_committed_points():
    points = dft_points.read_truth(TRUTH)
    origins = Counter(point.origin for point in points)
    assert origins["defects and edges"] >= 40 and sum("edge" in point.name for point in points) == 18
    assert origins["guided generator"] >= 30 and origins["unguided generator"] >= 15 and origins["known structure types"] >= 80
    assert set(origins) <= {*dft_points.ORIGINS.values(), "defects and edges", "known structure types"}
    assert len(points) >= 25 and len({p.host for p in points}) >= 20
    for point in points:
        assert sites.adsorbed_hydrogen(point.atoms) == len(point.atoms) - 1 and np.isfinite(point.delta_e)
    value = {(p.host, p.name): p.delta_e for p in points}
    assert value[("MoS2", "MoS2_2H")] == pytest.approx(1.83, abs=0.1) and value[("C", "graphene")] == pytest.approx(1.53, abs=0.1)


def test_bad_input_is_named(tmp_path, caplog):
    with pytest.raises(StageError, match=r"DFT points: no file at .*none\.db"):
        dft_points.read_truth(tmp_path / "none.db")
    with connect(tmp_path / "x.db") as db:
        db.write(mx2("MoS2", vacuum=10), kind="slab_H", dE_dft=1.0)
    with pytest.raises(StageError, match="row 1.*not an H"):
        dft_points.read_truth(tmp_path / "x.db")
    unbound = sheet_with_hydrogen()
    with connect(tmp_path / "y.db") as db:
        db.write(unbound, kind="slab_H", name="a", dE_dft=4.0)
        db.write(unbound, kind="slab_H", name="b", dE_dft=2.0)
        db.write(unbound, kind="slab_H", name="c", dE_dft=-6.0)
    with caplog.at_level("INFO", logger="her2d"):
        for _ in range(3):
            assert [p.name for p in dft_points.read_truth(tmp_path / "y.db")] == ["b"]
    assert len([line for line in caplog.messages if "left out, H unbound" in line]) == 1, "once in a run"
    with pytest.raises(ValueError, match="too few"):
        DftCorrection.fit(np.zeros((3, 5)), np.zeros(3), ["a", "b", "c"])
    with pytest.raises(StageError, match=r"y\.db: 1 DFT points are too few"):
        dft_correction.fit_correction(lambda structures: (np.zeros(len(structures)), None), tmp_path / "y.db")


def truth_points(count=16, seed=0):
    """Points on decorated sheets, each its own host, with ΔE_H = 0.4 + 0.7 ΔE_H(potential) + noise."""
    rng = np.random.default_rng(seed)
    points = []
    for k, m in enumerate(("Mo", "W", "Nb", "Ta", "V", "Cr", "Ti", "Zr", "Hf", "Pt", "Pd", "Ni", "Sn", "Co", "Rh", "Ir")[:count]):
        own = float(rng.normal(0.5, 0.6))
        atoms = sheet_with_hydrogen(f"{m}S2")
        truth = 0.4 + 0.7 * own + 0.02 * (-1) ** k
        points.append(dft_points.TruthPoint(m, f"{m}S2", "topS", atoms, truth, {"sevennet-0": own}, atoms[:-1]))
    return points


def test_the_potential_is_corrected_host_by_host_and_gaps_stay_gaps():
    points = truth_points()
    raw = np.array([point.energies["sevennet-0"] for point in points])
    left_out, _ = dft_correction.left_out_predictions(points, raw)
    truth = np.array([point.delta_e for point in points])
    assert np.abs(left_out - truth).mean() < 0.3 * np.abs(raw - truth).mean()
    raw[3] = np.nan
    with_gap, _ = dft_correction.left_out_predictions(points, raw)
    assert np.isnan(with_gap[3]) and np.isfinite(np.delete(with_gap, 3)).all()
    assert np.isnan(dft_correction.left_out_predictions(points[:5], raw[:5])[0]).all(), "too few points to learn from"


def test_a_network_takes_the_correction_of_its_teacher(tmp_path):
    """The network is the teacher with noise; fitted on its own values the slope of the law, 0.7, would come out flatter."""
    points = truth_points()
    own = np.array([point.energies["sevennet-0"] for point in points])
    with connect(tmp_path / "x.db") as db:
        for p in points:
            db.write(p.atoms, kind="slab_H", name=p.name, site=p.site, dE_dft=p.delta_e, dE_7net0=p.energies["sevennet-0"])
        db.write(sheet_with_hydrogen("ReS2"), kind="slab_H", name="Re", dE_dft=1.0)  # the teacher said nothing
    noisy = own + 0.7 * np.random.default_rng(3).normal(size=len(own))
    by_formula = {p.atoms.get_chemical_formula(): value for p, value in zip(points, noisy, strict=True)}

    def predict_raw(structures):
        return np.array([by_formula.get(a.get_chemical_formula(), 0.0) for a in structures]), np.full(len(structures), 0.7)

    taught, summary = dft_correction.fit_correction(predict_raw, tmp_path / "x.db", "sevennet-0")
    alone, _ = dft_correction.fit_correction(predict_raw, tmp_path / "x.db")
    assert (taught.teacher, taught.n, alone.teacher, alone.n) == ("sevennet-0", 16, "", 17)
    atoms = [points[0].atoms] * 2

    def slope(correction):
        low, high = correction.apply(atoms, np.array([0.0, 1.0]), np.zeros(2))[0]
        return high - low

    assert slope(taught) == pytest.approx(0.7, abs=0.08) and slope(alone) < 0.8 * slope(taught)
    read = dft_points.read_truth(tmp_path / "x.db")
    left_out, _ = dft_correction.left_out_predictions(read, predict_raw([p.atoms for p in read])[0], teacher="sevennet-0")
    assert np.isnan(left_out[-1]) and np.isfinite(left_out[:-1]).all()
    error = np.abs(left_out[:-1] - [p.delta_e for p in read[:-1]]).mean()
    assert summary["n"] == 16 and summary["left_out_mae_ev"] == pytest.approx(error)
    exact, _ = dft_correction.left_out_predictions(read[:-1], own, teacher="sevennet-0")
    np.testing.assert_allclose(exact, dft_correction.left_out_predictions(read[:-1], own)[0], rtol=1e-12)


def test_new_points_get_the_value_of_the_teacher_computed(monkeypatch):
    from energetics import potentials

    points = truth_points()
    stored = dft_correction.teacher_delta_e(points, "sevennet-0")
    np.testing.assert_array_equal(stored, [p.energies["sevennet-0"] for p in points])
    new = [dataclasses.replace(points[0], energies={}), dataclasses.replace(points[1], energies={}, clean=None), points[2]]
    half_filled = potentials.Potential("sevennet-0", {"name": "sevennet-0"}, None)
    monkeypatch.setattr(potentials, "load_potential", lambda name: half_filled)
    asked = []
    monkeypatch.setattr(dft_correction, "potential_delta_e", lambda p, potential: asked.append(potential) or np.zeros(len(p)))
    dft_correction.teacher_delta_e(new, "sevennet-0")
    dft_correction.teacher_delta_e(new[1:], "sevennet-0")
    assert asked[0] is half_filled and asked[1] is not half_filled, "loaded only where a value can and must be computed"


def test_delta_e_of_another_potential_is_its_own_at_the_geometries():
    from ase.calculators.emt import EMT

    from energetics.potentials import Potential

    clean = fcc111("Pt", (2, 2, 2), a=3.97, vacuum=8)
    clean.pbc = (True, True, False)
    atoms = clean + Atoms("H", [clean.positions[-1] + [0, 0, 1.6]])
    point = dft_points.TruthPoint("Pt", "Pt", "topPt", atoms, 0.0, {"sevennet-0": -1.0}, clean)
    unknown = dft_points.TruthPoint("x", "Pt", "topPt", atoms, 0.0, {}, None)
    values = dft_points.potential_delta_e([point, unknown], Potential("emt", {"name": "emt"}, EMT()))
    energies = []
    for system in (atoms, clean, Atoms("H2", [[0, 0, 0], [0, 0, 0.779]])):
        system = system.copy()
        system.calc = EMT()
        energies.append(system.get_potential_energy())
    assert values[0] == pytest.approx(energies[0] - energies[1] - energies[2] / 2, abs=0.02) and np.isnan(values[1])
    named = Potential("sevennet-0", {"name": "sevennet-0"}, None)
    assert dft_points.potential_delta_e([point], named)[0] == -1.0, "the stored value, without a calculation"


def test_the_committed_points_pass_the_gate():
    """Potentials corrected by other hosts, or by other families, against DFT: nothing is fitted on the row it is judged by."""
    from evaluation import dft_benchmark

    points = dft_points.read_truth(TRUTH)
    truth = np.array([p.delta_e for p in points])
    energies = as_judged(points)
    table = dft_benchmark.read_table(TABLE)
    assert len({p.host for p in points}) >= 60 and len({p.family for p in points}) >= 10
    scales = {}
    faces = np.array(["inside" not in p.chemistry for p in points])
    for by, with_gap, mae, rank in (("host", False, 0.28, 0.85), ("family", False, 0.30, 0.83), ("host", True, 0.27, 0.85),
                                    ("family", True, 0.29, 0.84), ("chemistry", True, 0.45, 0.78)):  # fmt: skip
        predicted, sigma = dft_correction.left_out_predictions(points, energies, by, with_gap, with_place=True)
        # Without any site inside, the trend of the faces is all that is known of these: 0.6 eV.
        of = faces if by == "chemistry" else np.full(len(points), True)
        assert np.abs(predicted - truth).mean() <= 0.65
        assert np.abs(predicted - truth)[of].mean() <= mae and spearmanr(predicted[of], truth[of]).statistic >= rank
        rows = [{"name": p.name, "e": value} for p, value in zip(points, predicted, strict=True)]
        order = dft_benchmark.inert_above_active(rows, table, "e")
        assert order["pairs"] >= 8 and len(order["violations"]) <= (by == "chemistry")  # without any site on a chalcogen one pair
        scale = scales.setdefault(with_gap, ErrorScale.fit(truth, predicted, sigma))  # of the hosts, which are first
        most = 0.9 if by == "chemistry" else 0.85  # σ is on the safe side without a whole chemistry
        assert 0.6 < np.mean(np.abs(predicted - truth) <= scale(sigma)) < most, "a standard error, whatever was left out"


def test_blind_points_are_those_of_no_fit(tmp_path):
    from evaluation import dft_benchmark

    class Half:
        """Predicts half of what the potential does."""

        def predict_delta_e(self, structures, gaps):
            return np.array([0.5 * own[a.symbols[0]] for a in structures]), np.full(len(structures), 0.1)

    points = truth_points()
    own = {point.name: point.energies["sevennet-0"] for point in points}

    def write_points(path, chosen):
        with connect(path) as db:
            for p in chosen:
                db.write(p.atoms, kind="slab_H", name=p.name, site=p.site, dE_dft=p.delta_e, dE_7net0=p.energies["sevennet-0"])
        return path

    fitted, blind = write_points(tmp_path / "fit.db", points[:13]), write_points(tmp_path / "blind.db", points[13:])
    potential = [SimpleNamespace(name="sevennet-0")]
    found = dft_benchmark.blind_report(Half(), blind, fitted, potential)
    assert found["n"] == 3 and [row["name"] for row in found["rows"]] == ["Co", "Rh", "Ir"]
    truth = np.array([p.delta_e for p in points[13:]])
    raw = np.array([own[p.name] for p in points[13:]])
    assert {name: own["n"] for name, own in found["potential_corrected"]["by_origin"].items()} == {"known structure types": 3}
    assert found["mae_ev"] == pytest.approx(np.abs(0.5 * raw - truth).mean())
    assert found["potential"]["mae_ev"] == pytest.approx(np.abs(raw - truth).mean())
    assert found["potential_corrected"]["mae_ev"] < 0.5 * found["potential"]["mae_ev"]
    overlapping = write_points(tmp_path / "overlapping.db", points[12:])
    with pytest.raises(StageError, match=r"overlapping\.db is not blind: .* is in fit\.db too"):
        dft_benchmark.blind_report(Half(), overlapping, fitted, potential)


def test_the_table_of_truth_says_what_the_database_says():
    from evaluation import dft_benchmark

    by_point = {(p.name, p.site): p.delta_e for p in dft_points.read_truth(TRUTH, with_unbound=True)}
    table = dft_benchmark.read_table(TABLE)
    own = [entry for entry in table if "h_on_2d_dft" in entry["structure"]]
    assert len(own) == len(by_point) and len(table) > len(own), "all of ours, and some of the literature"
    for entry in own:
        assert entry["delta_e_ev"] == pytest.approx(by_point[dft_benchmark.named_row(entry), entry["site"]], abs=6e-4)
    assert all(entry["source"] for entry in table)
