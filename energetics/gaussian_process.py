"""The Gaussian process behind the correction of ΔE_H (``dft_correction``): prior, regression, and what its points do not cover."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.lapack import dpotri
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import euclidean_distances

from energetics.site_chemistry import INSIDE, chemistry_of

# Columns of the features: of the element that H binds to and of the others; of the place of H, whether it is inside the last one.
SITE_DESCRIPTORS, PLACE_DESCRIPTORS = 3, 3
MIN_FACE_POINTS = 12  # points outside from which the features are standardised by them
MIN_SITE_POINTS = 5  # DFT points of a chemistry from which it counts as known
KNOWN_SHARE = 0.95  # of the points are as near to another one as a site must be to the nearest, to count as known
WITHIN_ONE_STD = 0.6827
# The prior, in eV per standardised descriptor; fixed, because some hundred points cannot tell hyperparameters apart: a linear
# trend; deviations from it of AMPLITUDE over LENGTH standard deviations; what the sites of one chemistry have in common; and the
# scatter of single points. By errors and likelihoods of points whose host, family or chemistry was left out.
LINEAR, AMPLITUDE, LENGTH, SITE, NOISE = 0.5, 0.4, 1.75, 0.2, 0.2
# With the place of H among the descriptors, sheets alike in all but an element have more in common, and points scatter less. A
# network does not know the place; its correction got worse by both.
NEAR_AMPLITUDE, NEAR_LENGTH, NOISE_WITH_PLACE = 0.2, 0.6, 0.12
# With what H changes in the features of the potential: deviations over these, LATENT_LENGTH in root mean squares of a standardised
# one. Sites that the potential sees as alike it misjudges alike.
LATENT_AMPLITUDE, LATENT_LENGTH = 0.5, 0.8
LATENT_FLOOR = 1e-3  # of the mean spread of all: less than it says nothing
# Of the scatter, by Student's distribution: where a potential tears a sheet apart, DFT at its geometry may be off by eV, and one
# such point must not bend the fit of all others.
DEGREES_OF_FREEDOM = 4
FIT_STEPS, FIT_TOLERANCE = 100, 1e-4  # of the variances of the points, eV²
PRIOR = (
    *(LINEAR, AMPLITUDE, LENGTH, SITE, NOISE, NEAR_AMPLITUDE, NEAR_LENGTH, NOISE_WITH_PLACE),
    *(LATENT_AMPLITUDE, LATENT_LENGTH, DEGREES_OF_FREEDOM),
)


class GaussianProcess:
    """Regression of truth (n,) eV on features (n, d), with the prior of the constants above.

    k(x, x') = LINEAR² u·u' + [both inside, or both not] Σ A² exp(−|x − x'|² / (2 L²)) + SITE² [x and x' of one site chemistry]
    around the mean of the points, and noise² on the diagonal: Rasmussen and Williams, Gaussian Processes for Machine Learning
    (2006), equations 2.25 and 2.26. A and L are AMPLITUDE and LENGTH, and with the place of H NEAR_AMPLITUDE and NEAR_LENGTH as
    well. x are the standardised features. u are energies and gap alone: a straight line over the descriptors of the site would go
    on to elements that no point has. The third term is an offset of each chemistry with variance SITE² (ibid., equation 2.40, with
    one indicator for each as basis), of which the points of other chemistries say nothing.

    Where ``latent_features.latent_change`` is known of every point, LATENT_AMPLITUDE² exp(−|z − z'|² / (2 m LATENT_LENGTH²)) is
    added, with z the m standardised numbers.

    H inside a sheet has only the straight line, and this, in common with H on a face, and counts as a chemistry of its own: there
    the potentials err by other amounts (``dft_inputs.competing_sites``). Nor do such points say how wide the features of faces
    spread.

    The scatter of the points around k is Student's, a normal distribution whose variance differs from point to point: their
    expectations and the regression are found in turn (Lange, Little, Taylor, J. Am. Stat. Assoc. 84, 881 (1989)). noise² on the
    diagonal becomes noise² (ν + ⟨(y − f)²⟩ / noise²) / (ν + 1), with ν = DEGREES_OF_FREEDOM.
    """

    def __init__(
        self,
        features: np.ndarray,
        truth: np.ndarray,
        with_gap: bool = False,
        with_place: bool = False,
        latent: np.ndarray | None = None,
    ) -> None:
        self.features, self.with_place = features, with_place
        self.noise = NOISE_WITH_PLACE if with_place else NOISE  # eV
        self.scales = [(AMPLITUDE, LENGTH), (NEAR_AMPLITUDE, NEAR_LENGTH)][: 1 + with_place]
        end = features.shape[1] - with_gap
        self.site = slice(end - SITE_DESCRIPTORS - PLACE_DESCRIPTORS * with_place, end)
        faces = ~self._inside(features)
        spread_by = faces if faces.sum() >= MIN_FACE_POINTS else np.full(len(features), True)
        self.mean, self.spread = features[spread_by].mean(0), features[spread_by].std(0) + 1e-9
        self.offset = truth[spread_by].mean()
        self.scaled, self.inside, self.chemistries = self._scaled(features), self._inside(features), self._chemistries(features)
        self.latent_mean = self.latent_spread = np.zeros(0)
        if latent is not None:
            self.latent_mean, self.latent_spread = latent.mean(0), latent.std(0) + LATENT_FLOOR * latent.std(0).mean() + 1e-9
        self.latent = self._scaled_latent(latent, len(features))
        covariance, deviation = self._covariance(features, latent), truth - self.offset
        self.scatter = np.full(len(truth), self.noise**2)
        for _ in range(FIT_STEPS):
            self.factor = cho_factor(covariance + np.diag(self.scatter))
            self.weights = cho_solve(self.factor, deviation)
            # y − f and the variance of f, with K = (K + S) − S, so that only the diagonal of (K + S)⁻¹ is needed.
            squares = np.square(self.scatter * self.weights) + self.scatter - self.scatter**2 * self._inverse_diagonal()
            scatter = (DEGREES_OF_FREEDOM * self.noise**2 + squares) / (DEGREES_OF_FREEDOM + 1)
            if np.abs(scatter - self.scatter).max() < FIT_TOLERANCE:
                break
            self.scatter = scatter

    def _inside(self, features: np.ndarray) -> np.ndarray:
        """Return which sites are inside their sheet, (n,) bool; none where the place is not described."""
        return features[:, self.site.stop - 1] > 0.5 if self.with_place else np.zeros(len(features), dtype=bool)

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        """Standardise the features, without that of being inside, which ``_inside`` answers for."""
        scaled = (features - self.mean) / self.spread
        return np.delete(scaled, self.site.stop - 1, axis=1) if self.with_place else scaled

    def _scaled_latent(self, latent: np.ndarray | None, count: int) -> np.ndarray:
        """Standardise what H changes in the features of the potential; (count, 0) where the points are fitted without."""
        if not len(self.latent_mean):
            return np.zeros((count, 0))
        if latent is None:
            raise ValueError("the points are fitted on the features of a potential, and these are missing")
        return (latent - self.latent_mean) / self.latent_spread

    def _of_sheet(self, scaled: np.ndarray) -> np.ndarray:
        """Return the columns u of standardised features."""
        return np.delete(scaled, np.r_[self.site.start : self.site.stop - self.with_place], axis=1)

    def _chemistries(self, features: np.ndarray) -> np.ndarray:
        """Name the chemistry of every site, (n,)."""
        names = [chemistry_of(*row[:2]) for row in features[:, self.site]]
        return np.array([f"{name}{INSIDE * bool(is_in)}" for name, is_in in zip(names, self._inside(features), strict=True)])

    def _distances(self, features: np.ndarray) -> np.ndarray:
        """Return the distances between features (m, d) and those of the points, (m, n), in standard deviations.

        They are infinite from inside to outside.
        """
        apart = self._inside(features)[:, None] != self.inside
        return np.where(apart, np.inf, cdist(self._scaled(features), self.scaled))

    def _covariance(self, features: np.ndarray, latent: np.ndarray | None = None) -> np.ndarray:
        """Return k between features (m, d), with the latent ones, and those of the points, (m, n) eV²."""
        u, of_points = self._of_sheet(self._scaled(features)), self._of_sheet(self.scaled)
        same_site = self._chemistries(features)[:, None] == self.chemistries
        squares = np.square(self._distances(features))
        deviations = sum(size**2 * np.exp(-squares / (2 * length**2)) for size, length in self.scales)
        covariance = LINEAR**2 * u @ of_points.T + deviations + SITE**2 * same_site
        if count := len(self.latent_mean):
            apart = euclidean_distances(self._scaled_latent(latent, len(features)), self.latent, squared=True)
            covariance += LATENT_AMPLITUDE**2 * np.exp(-apart / (2 * count * LATENT_LENGTH**2))
        return covariance

    def predict(self, features: np.ndarray, latent: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Predict mean and standard deviation, (m,) eV each, the scatter of single points included.

        latent: (m, ...), needed where the points are fitted with it.
        """
        covariance = self._covariance(features, latent)
        u = self._of_sheet(self._scaled(features))
        prior = LINEAR**2 * np.square(u).sum(1) + sum(size**2 for size, _ in self.scales) + SITE**2
        prior += LATENT_AMPLITUDE**2 if len(self.latent_mean) else 0.0
        variance = prior - np.einsum("mn,nm->m", covariance, cho_solve(self.factor, covariance.T))
        return self.offset + covariance @ self.weights, np.sqrt(np.maximum(variance, 0.0) + self.noise**2)

    def _inverse_diagonal(self) -> np.ndarray:
        """Return the diagonal (n,) of the inverse of the covariance of the points, scatter included."""
        factor, is_lower = self.factor
        return np.diag(dpotri(factor, lower=is_lower)[0])

    @cached_property
    def scale_of_errors(self) -> float:
        """Return the factor that makes 68 % of the errors on single points left out fall within σ (ibid., equation 5.12)."""
        inverse = self._inverse_diagonal()
        return float(np.quantile(np.abs(self.weights) / np.sqrt(inverse), WITHIN_ONE_STD))

    @cached_property
    def reach(self) -> float:
        """Return the distance to the nearest other point that KNOWN_SHARE of the points do not exceed, in standard deviations."""
        return float(np.quantile(np.sort(self._distances(self.features), axis=1)[:, 1], KNOWN_SHARE))

    def complaints(self, features: np.ndarray) -> list[str]:
        """Return why the points do not cover each row of features (m, d); empty where they do.

        A site is not covered where H binds to a chemistry of fewer than MIN_SITE_POINTS points, or where the nearest point, in
        standard deviations of the descriptors, is farther than ``reach``.
        """
        counts = Counter(self.chemistries.tolist())
        distances = self._distances(features).min(1)
        said = []
        for chemistry, distance in zip(self._chemistries(features).tolist(), distances.tolist(), strict=True):
            reasons = [f"{counts[chemistry]} DFT points with H on {chemistry}"] if counts[chemistry] < MIN_SITE_POINTS else []
            if distance > self.reach:
                known = f"{KNOWN_SHARE * 100:.0f} % of the points within {self.reach:.1f}"
                reasons.append(f"{distance:.1f} standard deviations from the nearest DFT point, {known}")
            said.append("; ".join(reasons))
        return said
