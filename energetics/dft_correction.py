"""Δ-learning from DFT: corrects ΔE_H on two-dimensional sheets, of a network trained on a potential and of potentials themselves.

Potentials trained on bulk crystals bind H too strongly to inert basal planes, by about 1 eV on MoS2 or graphene, while they rank
sheets well. Gaussian-process regression on some tens of DFT points takes most of that away. Its descriptors are few and physical:
the predicted ΔE_H (of one potential, or of two, whose difference says how far to trust them); electronegativity and group of the
element that H binds to; the mean covalent radius of the other elements, which grows as their bonds to it soften; and the band gap
of the sheet (``band_gap.py``), over which the electron of H has to go. Every figure quoted for it is from hosts, or whole families,
left out of the fit.

A network that learnt from a potential's relaxations takes the correction of that potential, its teacher: fitted on the teacher's
own ΔE_H at the DFT geometries and applied to the network's. Fitted on the network's values, the network's noise would flatten the
slope (regression dilution), and every sheet would be drawn towards the mean.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from energetics.dft_points import TruthPoint, element_properties, potential_delta_e, read_truth, sheet_gaps
from energetics.sites import adsorbed_hydrogen
from pipeline.errors import StageError
from pipeline.files import relative_name

log = logging.getLogger("her2d")

MIN_POINTS = 12
# The prior, in eV per standardised descriptor; fixed, because some tens of points cannot tell hyperparameters apart: a linear
# trend, deviations from it of AMPLITUDE over LENGTH standard deviations, and the scatter of single points.
LINEAR, AMPLITUDE, LENGTH, NOISE = 0.5, 0.4, 2.0, 0.25


def descriptors(atoms: Atoms, energies: Sequence[float]) -> np.ndarray:
    """(k + 3,): the k predicted ΔE_H (eV); electronegativity and group of the element that H binds to; mean covalent radius (Å) of
    the other elements, each counted once.

    In a sheet of one element the element itself stands for the others. NaN for elements without an electronegativity.
    """
    hydrogen = adsorbed_hydrogen(atoms)
    others = [i for i in range(len(atoms)) if i != hydrogen]
    nearest = others[int(np.argmin(atoms.get_distances(hydrogen, others, mic=True)))]
    host = atoms.symbols[nearest]
    rest = sorted({atoms.symbols[i] for i in others} - {host}) or [host]
    radius = np.mean([covalent_radii[atomic_numbers[symbol]] for symbol in rest])
    return np.array([*energies, *element_properties(host), radius])


@dataclass(frozen=True)
class DftCorrection:
    """Gaussian process ΔE_H(DFT) = f(descriptors). features: (n, d), truth: (n,) eV.

    rmse_ev: error on hosts left out of the fit. scale: factor that makes 68 % of these errors fall within the process's own σ.
    with_gap: whether the last descriptor is the band gap, without which a sheet is corrected by the others alone. teacher: the
    potential whose ΔE_H it was fitted on, where that is not the one corrected.
    """

    features: tuple[tuple[float, ...], ...]
    truth: tuple[float, ...]
    rmse_ev: float
    scale: float
    with_gap: bool = False
    teacher: str = ""

    @property
    def n(self) -> int:
        """DFT points."""
        return len(self.truth)

    @classmethod
    def fit(
        cls, features: np.ndarray, truth: np.ndarray, hosts: Sequence[str], with_gap: bool = False, teacher: str = ""
    ) -> DftCorrection:
        """features: (n, d), truth: (n,) eV, hosts: the group of each point. Raises ValueError for fewer than MIN_POINTS points."""
        if len(truth) < MIN_POINTS:
            raise ValueError(f"{len(truth)} DFT points are too few for a correction, {MIN_POINTS} are needed")
        left_out, sigma = leave_out(features, truth, hosts, with_gap)
        error = left_out - truth
        scale = float(np.quantile(np.abs(error) / sigma, 0.6827))
        as_tuples = tuple(tuple(float(v) for v in row) for row in features)
        return cls(as_tuples, tuple(float(v) for v in truth), float(np.sqrt(np.mean(error**2))), scale, with_gap, teacher)

    @cached_property
    def _regression(self) -> _Regression:
        return _Regression(np.array(self.features), np.array(self.truth), self.with_gap)

    def apply(
        self, atoms: Sequence[Atoms], energies: np.ndarray, std: np.ndarray, gaps: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Corrected ΔE_H (n,) eV and its standard error: ``std`` through the slope, and the process's own, in quadrature.

        energies: (n,) or (n, k) eV, as in the fit; std: (n,) eV, of the first of them. gaps: (n,) eV, for a correction with gaps;
        NaN where one is not known, None where none is. NaN for elements without an electronegativity.
        """
        energies = np.asarray(energies, dtype=float).reshape(len(atoms), -1)
        if not len(energies):
            return np.zeros(0), np.zeros(0)
        features = np.array([descriptors(a, row) for a, row in zip(atoms, energies, strict=True)])
        if self.with_gap:
            features = np.column_stack([features, np.full(len(atoms), np.nan) if gaps is None else gaps])
        value, sigma = self._regression.predict(features)
        step = np.zeros_like(features)
        step[:, 0] = 0.05
        above, below = (self._regression.predict(features + side * step)[0] for side in (1, -1))
        slope = (above - below) / (2 * step[:, 0])
        return value, np.hypot(slope * np.asarray(std), self.scale * sigma)


class _Regression:
    """Two processes: of all descriptors, and of those before the band gap, for sheets whose gap is not known."""

    def __init__(self, features: np.ndarray, truth: np.ndarray, with_gap: bool) -> None:
        known = np.isfinite(features).all(1)
        enough = known.sum() >= (MIN_POINTS if with_gap else 1)  # a few gaps say less than the other descriptors of all points
        self.parts = [(slice(None), _Process(features[known], truth[known]))] if enough else []
        if with_gap:
            self.parts.append((slice(None, -1), _Process(features[:, :-1], truth)))

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mean, standard deviation), (n,) eV; NaN where another descriptor than the gap is."""
        value, sigma = np.full(len(features), np.nan), np.full(len(features), np.nan)
        for columns, process in self.parts:
            rows = np.isfinite(features[:, columns]).all(1) & np.isnan(value)
            if rows.any():
                value[rows], sigma[rows] = process.predict(features[rows][:, columns])
        return value, sigma


class _Process:
    """Regression of truth (n,) eV on standardised features (n, d): Rasmussen and Williams, Gaussian Processes for Machine Learning
    (2006), equations 2.25 and 2.26, with the prior of the constants above around the mean of the points."""

    def __init__(self, features: np.ndarray, truth: np.ndarray) -> None:
        self.mean, self.spread, self.offset = features.mean(0), features.std(0) + 1e-9, truth.mean()
        self.known = (features - self.mean) / self.spread
        self.covariance = self._kernel(self.known, self.known) + NOISE**2 * np.eye(len(truth))
        self.weights = np.linalg.solve(self.covariance, truth - self.offset)

    @staticmethod
    def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        squared = ((first[:, None] - second[None]) ** 2).sum(-1)
        return LINEAR**2 * first @ second.T + AMPLITUDE**2 * np.exp(-squared / (2 * LENGTH**2))

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (n,) eV, the scatter of single points included."""
        new = (features - self.mean) / self.spread
        cross = self._kernel(new, self.known)
        prior = LINEAR**2 * (new**2).sum(1) + AMPLITUDE**2 + NOISE**2
        explained = np.einsum("ij,ji->i", cross, np.linalg.solve(self.covariance, cross.T))
        return self.offset + cross @ self.weights, np.sqrt(np.maximum(prior - explained, NOISE**2))


def leave_out(
    features: np.ndarray,
    truth: np.ndarray,
    groups: Sequence[str],
    with_gap: bool = False,
    applied_to: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, σ), (n,) eV: every point by a fit without any point of its group. applied_to: (n, d) features of the points to
    predict, where they are not those that are fitted."""
    asked = features if applied_to is None else applied_to
    labels = np.array(groups)
    predicted, sigma = np.full(len(truth), np.nan), np.full(len(truth), np.nan)
    for group in sorted(set(groups)):
        held = labels == group
        if not held.all():
            predicted[held], sigma[held] = _Regression(features[~held], truth[~held], with_gap).predict(asked[held])
    return predicted, sigma


def fit_correction(predict_raw: Any, truth_path: str | Path, teacher: str = "") -> tuple[DftCorrection, dict[str, Any]]:
    """Correction of a network on the DFT points, their band gaps included, and what it does to them when their host is left out.

    predict_raw: tagged Atoms -> (ΔE_H, std) without correction. teacher: the potential that the network learnt from, whose own
    ΔE_H the correction is fitted on; points where it cannot be had are left out. Raises StageError for too few points.
    """
    points = read_truth(truth_path)
    raw, _ = predict_raw([point.atoms for point in points])
    fitted_on = teacher_delta_e(points, teacher) if teacher else np.asarray(raw, dtype=float)
    known = np.isfinite(fitted_on)
    if not known.all():
        names = ", ".join(point.name for point, is_known in zip(points, known, strict=True) if not is_known)
        log.warning("%s: left out, no clean sheet to get %s's ΔE_H with: %s", relative_name(truth_path), teacher, names)
        points, raw, fitted_on = [p for p, k in zip(points, known, strict=True) if k], raw[known], fitted_on[known]
    truth = np.array([point.delta_e for point in points])
    try:
        correction = DftCorrection.fit(*_fit_arguments(points, fitted_on, with_gap=True), with_gap=True, teacher=teacher)
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
    """``potential_delta_e`` of an embedded potential by its name, which is loaded only where a value has to be computed."""
    from energetics.potentials import load_potential

    complete = all(teacher in point.energies or point.clean is None for point in points)
    return potential_delta_e(points, SimpleNamespace(name=teacher) if complete else load_potential(teacher))


def fit_potential_correction(potentials: Sequence[Any], truth_path: str | Path, with_gap: bool = False) -> DftCorrection | None:
    """The correction of ΔE_H from one or two potentials; None, with a line that says why, where there are too few DFT points.

    with_gap: the band gap is one of its descriptors too.
    """
    points = read_truth(truth_path)
    raw = np.stack([potential_delta_e(points, potential) for potential in potentials], 1)
    known = np.isfinite(raw).all(1)
    points, raw = [p for p, is_known in zip(points, known, strict=True) if is_known], raw[known]
    try:
        return DftCorrection.fit(*_fit_arguments(points, raw, with_gap), with_gap)
    except ValueError as error:
        log.warning("no correction of %s's ΔE_H: %s", " and ".join(p.name for p in potentials), error)
        return None


def left_out_predictions(
    points: Sequence[TruthPoint], raw: np.ndarray, by: str = "host", with_gap: bool = False, teacher: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, σ), (n,) eV: ``raw``, (n,) or (n, k) eV, of every point corrected by a fit without its host, or its family.

    by: "host" or "family". with_gap: the band gap is a descriptor too. teacher: potential on whose ΔE_H the fits are made; points
    without one get no prediction. NaN where ``raw`` is, or where too few points are left to fit.
    """
    raw = np.asarray(raw, dtype=float).reshape(len(points), -1)
    fitted_on = teacher_delta_e(points, teacher) if teacher else raw
    known = np.flatnonzero(np.isfinite(raw).all(1) & np.isfinite(fitted_on.reshape(len(points), -1)).all(1))
    predicted, sigma = np.full(len(raw), np.nan), np.full(len(raw), np.nan)
    if len(known) >= MIN_POINTS:
        chosen = [points[k] for k in known]
        asked, truth, _ = _fit_arguments(chosen, raw[known], with_gap)
        fitted = _fit_arguments(chosen, fitted_on[known], with_gap)[0]
        predicted[known], sigma[known] = leave_out(fitted, truth, [getattr(p, by) for p in chosen], with_gap, asked)
    return predicted, sigma


def _fit_arguments(
    points: Sequence[TruthPoint], raw: np.ndarray, with_gap: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rows = np.asarray(raw, dtype=float).reshape(len(points), -1)
    features = np.array([descriptors(p.atoms, row) for p, row in zip(points, rows, strict=True)])
    if with_gap:
        features = np.column_stack([features, sheet_gaps(points)])
    return features, np.array([p.delta_e for p in points]), [p.host for p in points]
