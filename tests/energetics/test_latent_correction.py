"""The correction from DFT with what H changes in the latent features of the potential."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from ase.db import connect
from test_dft_correction import TRUTH, as_judged, truth_points

from energetics import dft_correction, dft_points
from energetics.dft_correction import DftCorrection, ErrorScale
from energetics.dft_rows import LATENT_CHANGE_OF
from energetics.potentials import load_potential
from pipeline.errors import StageError
from pipeline.settings import EvaluationConfig


def test_the_latent_features_of_the_committed_points_help_most_on_generated_sheets():
    """Each host predicted by fits without it: nothing gets worse by more than chance, what the generator makes gets better."""
    points = dft_points.read_truth(TRUTH)
    truth, energies = np.array([p.delta_e for p in points]), as_judged(points)
    latent = dft_points.judged_latent_change(points, SimpleNamespace(name=EvaluationConfig().potential))
    assert latent.shape == (len(points), 640)
    errors, shares = [], []
    for own in (None, latent):
        predicted, sigma = dft_correction.left_out_predictions(points, energies, "host", True, with_place=True, latent=own)
        errors.append(np.abs(predicted - truth))
        shares.append(errors[-1] <= ErrorScale.fit(truth, predicted, sigma)(sigma))
    guided = np.array([p.origin == "guided generator" for p in points])
    assert guided.sum() > 80
    assert errors[1].mean() < 0.95 * errors[0].mean() and errors[1][guided].mean() < 0.9 * errors[0][guided].mean()
    assert shares[0][guided].mean() < 0.6 < shares[1][guided].mean() < 0.8, "and the standard error is one there"


def test_a_correction_with_latent_features_asks_for_them_and_survives_being_written():
    rng = np.random.default_rng(3)
    points = truth_points()
    energies = np.array([list(p.energies.values()) for p in points])
    latent = rng.normal(size=(len(points), 12))
    arguments = dft_correction.fit_arguments(points, energies, with_place=True)
    correction = DftCorrection.fit(*arguments, with_place=True, latent=latent)
    asked = [p.atoms for p in points[:4]], energies[:4], np.zeros(4)
    values = correction.apply(*asked, latent=latent[:4])
    again = DftCorrection(**json.loads(json.dumps(dataclasses.asdict(correction))))
    np.testing.assert_array_equal(again.apply(*asked, latent=latent[:4]), values)
    assert np.abs(correction.apply(*asked, latent=latent[4:8])[0] - values[0]).max() > 0.01
    with pytest.raises(ValueError, match="features of a potential"):
        correction.apply(*asked)


def test_points_without_latent_features_are_fitted_without_them(caplog):
    points, judge = truth_points(), SimpleNamespace(name="sevennet-l3i5")
    assert dft_points.judged_latent_change(points, judge) is None
    assert dft_points.judged_latent_change(points, load_potential("sevennet-0")) is None, "databases do not store those of others"
    known = [dataclasses.replace(p, latent_change_of={judge.name: np.arange(3.0) + k}) for k, p in enumerate(points)]
    found = dft_points.judged_latent_change(known, judge)
    np.testing.assert_array_equal(found[:, 0], np.arange(len(points)))
    assert dft_points.judged_latent_change([], judge) is None
    lone = [*known, dataclasses.replace(points[0], clean=None, name="alone")]
    assert dft_points.judged_latent_change(lone, load_potential(judge.name)) is None and "alone" in caplog.text


@pytest.mark.parametrize("stored", [np.zeros(12), np.zeros((2, 640)), np.full(640, np.nan), ["0.1"] * 640])
def test_stored_features_that_are_none_of_the_potential_are_named_with_file_and_row(tmp_path, stored):
    database, key = tmp_path / "own.db", LATENT_CHANGE_OF["sevennet-l3i5"]
    with connect(TRUTH) as source, connect(database) as target:
        for row in source.select(kind="slab_H", limit=2):
            target.write(row.toatoms(), row.key_value_pairs, data=row.data)
    assert all(len(point.latent_change_of["sevennet-l3i5"]) == 640 for point in dft_points.read_truth(database))
    connect(database).update(2, data={key: stored})
    with pytest.raises(StageError, match=rf"own.db, row 2: {key} has to be 640 finite numbers.*computed anew"):
        dft_points.read_truth(database)
