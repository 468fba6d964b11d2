"""Corrects the ΔE_H that a potential, or a network trained on one, predicts on two-dimensional sheets: Δ-learning from DFT points.

Potentials trained on bulk crystals bind H too strongly to inert basal planes, by about 1 eV on MoS2 or graphene, while they rank
sheets well. Gaussian-process regression on DFT points removes most of that error. Its descriptors are few and
physical:

- the predicted ΔE_H of one potential, or of two, whose difference says how far to trust them;
- electronegativity and group of the element that H binds to;
- the mean covalent radius of the other elements, which grows as their bonds to that element soften;
- for the potentials, which relax H: its bond-valence sum and its height, which tell a top site from a hollow, and whether it is
  inside the sheet, where the potentials err otherwise;
- the band gap of the sheet (``band_gap.py``), over which the electron of H has to go;
- for the potentials that have them, what H changes in their latent features (``latent_features.py``).

Every error quoted for it is from hosts, whole families or all sites of one chemistry (``site_chemistry.py``) left out of the fit.
Its standard error grows with the distance from the points and on sites of a chemistry that they lack; ``complaints`` names these.

A network that learnt from a potential's relaxations takes the correction of that potential, its teacher: fitted on the teacher's
own ΔE_H at the DFT geometries and applied to the network's. Fitted on the network's values, the network's noise would flatten the
slope (regression dilution), and every sheet would be drawn towards the mean.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ase import Atoms
from scipy.optimize import minimize
from scipy.stats import t as student

from energetics.dft_points import TruthPoint, judged_delta_e, judged_latent_change, potential_delta_e, read_truth, sheet_gaps
from energetics.gaussian_process import DEGREES_OF_FREEDOM, PRIOR, WITHIN_ONE_STD, GaussianProcess
from energetics.site_chemistry import PLACE, site_descriptors
from pipeline.errors import StageError
from pipeline.files import as_float, relative_name
from pipeline.memory import NO_MEMORY, Memory

log = logging.getLogger("her2d")

MIN_POINTS = 12
MIN_POWER_POINTS = 50  # errors from which the power of ``ErrorScale`` is fitted
POWERS = (1.0, 2.0)  # its limits
MOST_FITS = 25  # of ``leave_out``
FIT_VERSION = 1  # raised whenever ``leave_out`` predicts something else from the same features


def descriptors(atoms: Atoms, energies: Sequence[float], with_place: bool = False) -> np.ndarray:
    """Describe H on a sheet for the correction.

    Args:
        atoms: a sheet with one tagged H.
        energies: k predicted ΔE_H, eV.
        with_place: whether H is where it is bound, so that its place says something too.

    Returns:
        (k + 3,), with the place (k + 6,): the k energies, then what ``site_descriptors`` returns.
    """
    return np.array([*energies, *site_descriptors(atoms, with_place)])


@dataclass(frozen=True)
class DftCorrection:
    """Gaussian process ΔE_H(DFT) = f(descriptors).

    features: (n, d), as ``descriptors`` gives them, with the band gap as a last column where ``with_gap``. truth: (n,) eV.
    rmse_ev: error on hosts left out of the fit, eV. scale, power: of ``ErrorScale``, fitted on these errors.
    with_gap: whether the last descriptor is the band gap; a sheet without one is corrected by the others alone. teacher: the
    potential whose ΔE_H the correction was fitted on, where that is not the one corrected. with_place: whether the place of H is
    among the descriptors. latent: (n, m), what H changes in the latent features of the potential; empty for a correction without.
    """

    features: tuple[tuple[float, ...], ...]
    truth: tuple[float, ...]
    rmse_ev: float
    scale: float
    with_gap: bool = False
    teacher: str = ""
    with_place: bool = False
    power: float = 1.0
    latent: tuple[tuple[float, ...], ...] = ()

    @property
    def error_scale(self) -> ErrorScale:
        """Return what makes the process's σ a standard error."""
        return ErrorScale(self.scale, self.power)

    @property
    def n(self) -> int:
        """Return the number of DFT points."""
        return len(self.truth)

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        truth: np.ndarray,
        hosts: Sequence[str],
        with_gap: bool = False,
        teacher: str = "",
        with_place: bool = False,
        memory: Memory = NO_MEMORY,
        latent: np.ndarray | None = None,
    ) -> DftCorrection:
        """Fit the process, and measures its error on hosts left out of the fit.

        Args:
            features: (n, d) descriptors.
            truth: (n,) eV, ΔE_H by DFT.
            hosts: (n,) group of each point; a group is left out as a whole.
            with_gap, teacher, with_place: as the attributes.
            memory: of fits.
            latent: (n, m), as the attribute.

        Raises:
            ValueError: there are fewer than MIN_POINTS points.
        """
        if len(truth) < MIN_POINTS:
            raise ValueError(f"{len(truth)} DFT points are too few for a correction, {MIN_POINTS} are needed")
        left_out, sigma = leave_out(features, truth, hosts, with_gap, with_place=with_place, memory=memory, latent=latent)
        error = left_out - truth
        scale = ErrorScale.fit(truth, left_out, sigma)
        rmse = float(np.sqrt(np.mean(error**2)))
        of_fit = {"with_gap": with_gap, "teacher": teacher, "with_place": with_place}
        if latent is not None:
            of_fit["latent"] = _rows(latent)
        return cls(_rows(features), tuple(float(v) for v in truth), rmse, scale.factor, power=scale.power, **of_fit)

    @cached_property
    def _regression(self) -> _Regression:
        latent = np.array(self.latent) if self.latent else None
        return _Regression(np.array(self.features), np.array(self.truth), self.with_gap, self.with_place, latent)

    def apply(
        self,
        atoms: Sequence[Atoms],
        energies: np.ndarray,
        std: np.ndarray,
        gaps: np.ndarray | None = None,
        latent: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Correct ΔE_H.

        Args:
            atoms: n sheets with one tagged H each.
            energies: (n,) or (n, k) eV, the predicted ΔE_H, in the columns of the fit.
            std: (n,) eV, standard error of the first column.
            gaps: (n,) eV, for a correction with gaps; NaN where one is not known, None where none is.
            latent: (n, m), for a correction with it, as ``latent_features.latent_change`` gives it.

        Returns:
            Corrected ΔE_H (n,) eV and its standard error (n,) eV: ``std`` times the slope of the process, and the process's own
            error, in quadrature. NaN for elements without an electronegativity.

        Raises:
            ValueError: the correction needs ``latent``, and it is missing.
        """
        if not len(atoms):
            return np.zeros(0), np.zeros(0)
        features = self._features(atoms, energies, gaps)
        value, sigma = self._regression.predict(features, latent)
        step = np.zeros_like(features)
        step[:, 0] = 0.05
        above, below = (self._regression.predict(features + side * step, latent)[0] for side in (1, -1))
        slope = (above - below) / (2 * step[:, 0])
        return value, np.hypot(slope * np.asarray(std), self.error_scale(sigma))

    def complaints(self, atoms: Sequence[Atoms], energies: np.ndarray, gaps: np.ndarray | None = None) -> list[str]:
        """Return why the DFT points do not cover each sheet; empty where they do. atoms, energies, gaps: as for ``apply``."""
        return self._regression.complaints(self._features(atoms, energies, gaps)) if len(atoms) else []

    def _features(self, atoms: Sequence[Atoms], energies: np.ndarray, gaps: np.ndarray | None) -> np.ndarray:
        rows = np.asarray(energies, dtype=float).reshape(len(atoms), -1)
        features = np.array([descriptors(a, row, self.with_place) for a, row in zip(atoms, rows, strict=True)])
        if not self.with_gap:
            return features
        return np.column_stack([features, np.full(len(atoms), np.nan) if gaps is None else gaps])


@dataclass(frozen=True)
class ErrorScale:
    """Turns σ of the process into a standard error: factor · σ^power, eV.

    Near to points the process is surer of itself than its prior allows it to say, and far from them less sure: the power stretches
    σ on a logarithmic scale.
    """

    factor: float
    power: float = 1.0

    @classmethod
    def fit(cls, truth: np.ndarray, left_out: np.ndarray, sigma: np.ndarray) -> ErrorScale:
        """Fit the power by the likelihood of errors as Student's distribution has them; 68 % of them fall within the outcome.

        truth, left_out, sigma: (n,) eV, predictions of points left out of the fit; NaN are passed over. Of fewer than
        MIN_POWER_POINTS the power is 1.
        """
        known = np.isfinite(left_out)
        error, sigma = (left_out - truth)[known], sigma[known]
        power = 1.0
        if len(error) >= MIN_POWER_POINTS:

            def surprise(of: np.ndarray) -> float:
                size = of[0] + of[1] * np.log(sigma)
                return -float(np.mean(student.logpdf(error / np.exp(size), DEGREES_OF_FREEDOM) - size))

            power = float(minimize(surprise, [0.0, 1.0], bounds=[(None, None), POWERS]).x[1])
        return cls(float(np.quantile(np.abs(error) / sigma**power, WITHIN_ONE_STD)), power)

    def __call__(self, sigma: np.ndarray) -> np.ndarray:
        """Return the standard error (n,) eV of a σ (n,) eV of the process."""
        return self.factor * np.asarray(sigma) ** self.power


class _Regression:
    """Two processes: one of all descriptors, and one of those before the band gap, for sheets whose gap is not known.

    The prior, which suits the first, makes the second too sure of itself: its σ is widened by how much more often it is wrong.
    """

    def __init__(
        self,
        features: np.ndarray,
        truth: np.ndarray,
        with_gap: bool,
        with_place: bool = False,
        latent: np.ndarray | None = None,
    ) -> None:
        known = np.isfinite(features).all(1)
        enough = known.sum() >= (MIN_POINTS if with_gap else 1)  # a few gaps say less than the other descriptors of all points
        self.parts = []
        if enough:
            of_known = None if latent is None else latent[known]
            self.parts.append((slice(None), GaussianProcess(features[known], truth[known], with_gap, with_place, of_known)))
        if with_gap:
            self.parts.append((slice(None, -1), GaussianProcess(features[:, :-1], truth, False, with_place, latent)))
        of_errors = [process.scale_of_errors for _, process in self.parts]
        self.widening = max(1.0, of_errors[-1] / max(of_errors[0], 1e-9)) if enough and with_gap else 1.0

    def _shared_out(self, features: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, GaussianProcess]]:
        """Yield (rows (n,) bool, their descriptors, the process for them); a row without a process is in none."""
        free = np.ones(len(features), dtype=bool)
        for columns, process in self.parts:
            rows = np.isfinite(features[:, columns]).all(1) & free
            free &= ~rows
            if rows.any():
                yield rows, features[rows][:, columns], process

    def predict(self, features: np.ndarray, latent: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Predict (mean, standard deviation), (n,) eV each; NaN where a descriptor other than the gap is NaN."""
        value, sigma = np.full(len(features), np.nan), np.full(len(features), np.nan)
        for rows, chosen, process in self._shared_out(features):
            value[rows], sigma[rows] = process.predict(chosen, None if latent is None else latent[rows])
            if process is not self.parts[0][1]:
                sigma[rows] *= self.widening
        return value, sigma

    def complaints(self, features: np.ndarray) -> list[str]:
        """Return why the points do not cover each row, empty where they do."""
        said = np.full(len(features), "an element without an electronegativity", dtype=object)
        for rows, chosen, process in self._shared_out(features):
            said[rows] = process.complaints(chosen)
        return said.tolist()


def leave_out(
    features: np.ndarray,
    truth: np.ndarray,
    groups: Sequence[str],
    with_gap: bool = False,
    predict_at: np.ndarray | None = None,
    with_place: bool = False,
    memory: Memory = NO_MEMORY,
    latent: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict every point by a fit without any point of its group; of many groups, some are left out together (MOST_FITS).

    With some hundred points this takes seconds, and every worker and every report asks for the same: a memory keeps it.

    Args:
        features: (n, d), what is fitted.
        truth: (n,) eV.
        groups: (n,) host, family or site chemistry of each point.
        with_gap: whether the last feature is the band gap.
        predict_at: (n, d) features of the points to predict, where they are not those that are fitted.
        with_place: whether the place of H is among the features.
        memory: of fits.
        latent: (n, m), latent features of the points.

    Returns:
        (prediction, σ), (n,) eV each.
    """
    at = features if predict_at is None else predict_at

    def find() -> dict[str, list[float]]:
        predicted, sigma = _leave_out(features, truth, groups, with_gap, at, with_place, latent)
        return {"predicted": predicted.tolist(), "sigma": sigma.tolist()}

    fitted = {"features": features.tolist(), "truth": list(map(float, truth)), "groups": list(groups), "at": at.tolist()}
    if latent is not None:
        fitted["latent"] = hashlib.sha256(np.ascontiguousarray(latent, dtype=float).tobytes()).hexdigest()
    about = {"version": FIT_VERSION, "question": "left out", "prior": PRIOR, "with_gap": with_gap, "with_place": with_place}
    values = ("predicted", "sigma")
    found = memory.answer(about | fitted, find, lambda record: all(len(record.get(name) or ()) == len(truth) for name in values))
    return tuple(np.array([as_float(value) for value in found[name]]) for name in values)


def _leave_out(
    features: np.ndarray,
    truth: np.ndarray,
    groups: Sequence[str],
    with_gap: bool,
    at: np.ndarray,
    with_place: bool,
    latent: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Do what ``leave_out`` says."""
    names = sorted(set(groups))
    left_out_with = {name: k % MOST_FITS for k, name in enumerate(names)}
    labels = np.array([left_out_with[group] for group in groups])
    predicted, sigma = np.full(len(truth), np.nan), np.full(len(truth), np.nan)
    for k in range(min(len(names), MOST_FITS)):
        held_out = labels == k
        if not held_out.all():
            fitted_on, asked = (None, None) if latent is None else (latent[~held_out], latent[held_out])
            regression = _Regression(features[~held_out], truth[~held_out], with_gap, with_place, fitted_on)
            predicted[held_out], sigma[held_out] = regression.predict(at[held_out], asked)
    return predicted, sigma


def fit_correction(predict_raw: Any, truth_path: str | Path, teacher: str = "") -> tuple[DftCorrection, dict[str, Any]]:
    """Fit the correction of a network to the DFT points, their band gaps included.

    Args:
        predict_raw: tagged Atoms -> (ΔE_H, std), (n,) eV each, without correction.
        truth_path: ASE database of DFT points (``dft_points.read_truth``).
        teacher: the potential that the network learnt from. The correction is fitted on its own ΔE_H; points without one are left
            out. Empty: the network's values are fitted.

    Returns:
        The correction, and its errors on the points (eV) when their host is left out of the fit.

    Raises:
        StageError: there are too few points.
    """
    points = read_truth(truth_path)
    raw, _ = predict_raw([point.atoms for point in points])
    fitted_on = teacher_delta_e(points, teacher) if teacher else np.asarray(raw, dtype=float)
    if teacher and any(inside := [point.is_inside for point in points]):  # the network is asked about faces only
        on_faces = ~np.array(inside)
        points, raw, fitted_on = [p for p, k in zip(points, on_faces, strict=True) if k], raw[on_faces], fitted_on[on_faces]
    known = np.isfinite(fitted_on)
    if not known.all():
        names = ", ".join(point.name for point, is_known in zip(points, known, strict=True) if not is_known)
        log.warning("%s: left out, no clean sheet to get %s's ΔE_H with: %s", relative_name(truth_path), teacher, names)
        points, raw, fitted_on = [p for p, k in zip(points, known, strict=True) if k], raw[known], fitted_on[known]
    truth = np.array([point.delta_e for point in points])
    try:
        correction = DftCorrection.fit(*fit_arguments(points, fitted_on, with_gap=True), with_gap=True, teacher=teacher)
    except ValueError as error:
        raise StageError(f"{relative_name(truth_path)}: {error}; add points, or set dimenet.dft_path= to do without") from error
    left_out, _ = left_out_predictions(points, raw, with_gap=True, teacher=teacher)
    summary = {
        "n": len(points),
        "raw_mae_ev": float(np.abs(raw - truth).mean()),
        "left_out_mae_ev": float(np.abs(left_out - truth).mean()),
        "left_out_rmse_ev": float(np.sqrt(np.square(left_out - truth).mean())),
    }
    return correction, summary


def teacher_delta_e(points: Sequence[TruthPoint], teacher: str) -> np.ndarray:
    """Return ``potential_delta_e`` (n,) eV of an embedded potential by its name; it is loaded only to compute a missing value."""
    from energetics.potentials import load_potential

    complete = all(teacher in point.energies or point.clean is None for point in points)
    return potential_delta_e(points, SimpleNamespace(name=teacher) if complete else load_potential(teacher))


def fit_potential_correction(
    potentials: Sequence[Any], truth_path: str | Path, with_gap: bool = False, memory: Memory = NO_MEMORY
) -> DftCorrection | None:
    """Fit the correction of ΔE_H from one or two potentials.

    Args:
        potentials: the one to correct first; the difference to a second says how far to trust it.
        truth_path: ASE database of DFT points.
        with_gap: whether the band gap is one of the descriptors too.
        memory: of fits.

    Returns:
        The correction; None, with a warning that says why, where there are too few DFT points.
    """
    points = read_truth(truth_path)
    raw = judged_delta_e(points, potentials)
    known = np.isfinite(raw).all(1)
    points, raw = [p for p, is_known in zip(points, known, strict=True) if is_known], raw[known]
    latent = judged_latent_change(points, potentials[0])
    try:
        return DftCorrection.fit(
            *fit_arguments(points, raw, with_gap, True), with_gap, with_place=True, memory=memory, latent=latent
        )
    except ValueError as error:
        log.warning("no correction of %s's ΔE_H: %s", " and ".join(p.name for p in potentials), error)
        return None


def left_out_predictions(
    points: Sequence[TruthPoint],
    raw: np.ndarray,
    by: str = "host",
    with_gap: bool = False,
    teacher: str = "",
    with_place: bool = False,
    memory: Memory = NO_MEMORY,
    latent: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Correct every point by a fit without its host, its family, or all sites of its chemistry.

    Args:
        points: n DFT points.
        raw: (n,) or (n, k) eV, the ΔE_H to correct.
        by: "host", "family" or "chemistry".
        with_gap: whether the band gap is a descriptor too.
        teacher: potential on whose ΔE_H the fits are made; points without one get no prediction, nor do those inside a sheet.
        with_place: whether the place of H is a descriptor too.
        memory: of fits.
        latent: (n, m), latent features of the points.

    Returns:
        (prediction, σ of the process), (n,) eV each; NaN where ``raw`` is NaN, or where too few points are left to fit.
    """
    raw = np.asarray(raw, dtype=float).reshape(len(points), -1)
    fitted_on = teacher_delta_e(points, teacher) if teacher else raw
    known = np.flatnonzero(np.isfinite(raw).all(1) & np.isfinite(fitted_on.reshape(len(points), -1)).all(1))
    if teacher:
        known = np.array([k for k in known if not points[k].is_inside], dtype=int)
    predicted, sigma = np.full(len(raw), np.nan), np.full(len(raw), np.nan)
    if len(known) >= MIN_POINTS:
        chosen = [points[k] for k in known]
        predict_at, truth, _ = fit_arguments(chosen, raw[known], with_gap, with_place)
        fitted = fit_arguments(chosen, fitted_on[known], with_gap, with_place)[0]
        groups = [getattr(point, by) for point in chosen]
        own = None if latent is None else latent[known]
        predicted[known], sigma[known] = leave_out(fitted, truth, groups, with_gap, predict_at, with_place, memory, own)
    return predicted, sigma


def _rows(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in values)


def fit_arguments(
    points: Sequence[TruthPoint], raw: np.ndarray, with_gap: bool = False, with_place: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the arguments of ``DftCorrection.fit``: features (n, d), ΔE_H by DFT (n,) eV and the host of each point.

    raw: (n,) or (n, k) eV, predicted ΔE_H. with_gap: whether the band gap is the last feature. with_place: whether the place of H
    is among the features.
    """
    rows = np.asarray(raw, dtype=float).reshape(len(points), -1)
    sites = np.array([point.site_descriptors for point in points]).reshape(len(points), -1)
    features = np.column_stack([rows, sites if with_place else sites[:, : -len(PLACE)]])
    if with_gap:
        features = np.column_stack([features, sheet_gaps(points)])
    return features, np.array([p.delta_e for p in points]), [p.host for p in points]
