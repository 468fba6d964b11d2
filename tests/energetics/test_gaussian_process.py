"""The process behind the correction: its formula, points that are off, and sites inside sheets and on faces."""

import numpy as np
import pytest

from energetics import gaussian_process
from energetics.gaussian_process import GaussianProcess


@pytest.mark.parametrize(("with_place", "with_latent"), [(False, False), (True, False), (True, True)])
def test_the_process_is_that_of_the_formula(with_place, with_latent):
    """Mean and variance by the equations as they stand, without the factorisation."""
    rng = np.random.default_rng(6)
    site = [rng.choice([2.58, 3.44], 24), np.full(24, 16.0), rng.uniform(1.0, 2.0, 24)]
    inside = np.arange(24) % 3 == 0
    place = [rng.normal(1.0, 0.3, 24), rng.normal(size=24) - 2 * inside, inside]
    features, truth = np.column_stack([rng.normal(size=24), *site, *(place if with_place else [])]), rng.normal(size=24)
    fitted, new = features[:20], features[20:]
    latent = rng.normal(2.0, [0.1, 1.0, 3.0], size=(24, 3))
    own = latent if with_latent else None
    process = GaussianProcess(fitted, truth[:20], with_place=with_place, latent=own[:20] if with_latent else None)
    standard = ~inside[:20] if with_place else np.full(20, True)
    scaled = (features - fitted[standard].mean(0)) / (fitted[standard].std(0) + 1e-9)
    square = np.square(scaled[:, None] - scaled[None])[..., :6].sum(-1)
    together = (inside[:, None] == inside) if with_place else np.full((24, 24), True)
    c = gaussian_process
    same = ((features[:, 1, None] > 3) == (features[:, 1] > 3)) & together
    k = c.LINEAR**2 * np.outer(scaled[:, 0], scaled[:, 0]) + c.SITE**2 * same
    k += together * c.AMPLITUDE**2 * np.exp(-square / 2 / c.LENGTH**2)
    if with_place:
        k += together * c.NEAR_AMPLITUDE**2 * np.exp(-square / 2 / c.NEAR_LENGTH**2)
    if with_latent:
        spread = latent[:20].std(0)
        z = (latent - latent[:20].mean(0)) / (spread + c.LATENT_FLOOR * spread.mean() + 1e-9)
        apart = np.square(z[:, None] - z[None]).sum(-1)
        k += c.LATENT_AMPLITUDE**2 * np.exp(-apart / (2 * 3 * c.LATENT_LENGTH**2))
    noise, offset = c.NOISE_WITH_PLACE if with_place else c.NOISE, truth[:20][standard].mean()
    inverse = np.linalg.inv(k[:20, :20] + np.diag(process.scatter))
    mean, sigma = process.predict(new, own[20:] if with_latent else None)
    np.testing.assert_allclose(mean, offset + k[20:, :20] @ inverse @ (truth[:20] - offset), rtol=1e-9)
    np.testing.assert_allclose(sigma**2, np.diag(k[20:, 20:] - k[20:, :20] @ inverse @ k[:20, 20:]) + noise**2, rtol=1e-9)
    away = []
    for one in range(20):
        rest = np.delete(np.arange(20), one)
        weights = np.linalg.solve(k[np.ix_(rest, rest)] + np.diag(process.scatter[rest]), k[rest, one])
        error = weights @ (truth[rest] - offset) - (truth[one] - offset)
        away.append(abs(error) / np.sqrt(k[one, one] + process.scatter[one] - weights @ k[rest, one]))
    assert process.scale_of_errors == pytest.approx(np.quantile(away, 0.6827), rel=1e-9)


def with_points_inside(rng, number=40):
    """Features and truth of sites on faces, which lie on a line, and of as many inside, 1 eV below it, with other descriptors."""
    site = [np.full(2 * number, 1.6), np.full(2 * number, 5.0), rng.uniform(1.0, 1.5, 2 * number)]
    inside = np.repeat([0.0, 1.0], number)
    place = [rng.normal(1.5 + inside, 0.2), rng.normal(1.0 - 2.5 * inside, 0.1), inside]
    energies = rng.normal(size=2 * number)
    truth = 0.8 * energies - inside + rng.normal(scale=0.05, size=2 * number)
    return np.column_stack([energies, *site, *place]), truth, inside == 1


def test_what_is_learnt_inside_sheets_says_nothing_of_faces():
    features, truth, inside = with_points_inside(np.random.default_rng(1))
    both = GaussianProcess(features, truth, with_place=True)
    alone = GaussianProcess(features[~inside], truth[~inside], with_place=True)
    np.testing.assert_array_equal(both.mean, alone.mean)
    for found, expected in zip(both.predict(features[~inside]), alone.predict(features[~inside]), strict=True):
        np.testing.assert_allclose(found, expected, atol=0.03)
    assert np.abs(both.predict(features[inside])[0] - truth[inside]).mean() < 0.06
    few = GaussianProcess(features[: 40 + 4], truth[: 40 + 4], with_place=True)
    said = few.complaints(features[-1:])[0]
    assert said.startswith("4 DFT points with H on metal, inside the sheet") and few.complaints(features[:1]) == [""]
    assert few.predict(features[-1:])[1] > 2 * few.predict(features[:1])[1]


def test_one_point_that_is_off_by_eV_does_not_bend_the_fit():
    """The scatter is that of Student's distribution at its maximum, and large for the one point."""
    rng = np.random.default_rng(8)
    site = [np.full(40, 2.58), np.full(40, 16.0), rng.uniform(1.0, 2.0, 40)]
    features = np.column_stack([rng.normal(size=40), *site])
    truth = 0.8 * features[:, 0] + rng.normal(scale=0.1, size=40)
    spoilt = truth + np.eye(40)[5] * 4.0
    rest = np.delete(np.arange(40), 5)
    whole, without = GaussianProcess(features, spoilt), GaussianProcess(features[rest], truth[rest])
    change = whole.predict(features[rest])[0] - without.predict(features[rest])[0]
    assert np.abs(change).max() < 0.1 and np.abs(change).mean() < 0.03
    c = gaussian_process
    assert whole.scatter[5] > 20 * np.median(whole.scatter) and np.median(whole.scatter) < 1.1 * c.NOISE**2
    covariance = whole._covariance(features)
    gain = covariance @ np.linalg.inv(covariance + np.diag(whole.scatter))
    deviation = spoilt - spoilt.mean()
    squares = np.square(deviation - gain @ deviation) + np.diag(covariance - gain @ covariance)
    weights = (c.DEGREES_OF_FREEDOM + 1) / (c.DEGREES_OF_FREEDOM + squares / c.NOISE**2)  # of a mixture of normal distributions
    np.testing.assert_allclose(whole.scatter, c.NOISE**2 / weights, atol=2e-4)


def test_a_law_of_the_latent_features_is_learnt_and_says_how_far_it_reaches():
    """Truth bends with a few directions of 30 numbers, of which the descriptors know nothing."""
    rng = np.random.default_rng(11)
    energies = rng.normal(size=160)
    features = np.column_stack([energies, np.full(160, 2.58), np.full(160, 16.0), np.full(160, 1.5)])
    hidden = rng.normal(size=(160, 2))
    latent = hidden @ rng.normal(size=(2, 30)) * 10 ** rng.uniform(-2, 2, 30)
    truth = 0.8 * energies + 0.4 * np.sin(2 * hidden[:, 0]) + rng.normal(scale=0.05, size=160)
    fitted, asked = slice(0, 120), slice(120, 160)
    process = GaussianProcess(features[fitted], truth[fitted], latent=latent[fitted])
    blind = GaussianProcess(features[fitted], truth[fitted])

    def error(values):
        return np.abs(values - truth[asked]).mean()

    predicted, sigma = process.predict(features[asked], latent[asked])
    assert error(predicted) < 0.5 * error(blind.predict(features[asked])[0])
    far = process.predict(features[asked], 20 * latent[asked])[1]
    assert (far > gaussian_process.LATENT_AMPLITUDE).all() and np.median(sigma) < 0.5 * np.median(far), (
        "its prior, where it knows nothing"
    )
    with pytest.raises(ValueError, match="features of a potential"):
        process.predict(features[asked])
    shuffled = GaussianProcess(features[fitted], truth[fitted], latent=latent[fitted][rng.permutation(120)])
    assert error(shuffled.predict(features[asked], latent[asked])[0]) > 2 * error(predicted)
